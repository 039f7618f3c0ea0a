//! What no dial may reach, at both ends: the server refuses what it can see, the agent judges
//! the resolved address whatever the server calls it.

use std::net::{IpAddr, SocketAddr};

use towline_agent::run::Agent;
use towline_link::carrier::CarrierKind;
use towline_proto::id::Role;
use towline_proto::reason::Reason;
use towline_proto::target::Class;
use towline_tests::cluster::{Cluster, Plan, node_ip, start_agent};
use towline_tests::network::MappedNetwork;
use towline_tests::rogue::{self, RogueServer};
use towline_tests::scenario::{eventually, expect};
use towline_tests::scenarios;
use towline_tests::target::Behaviour;

const FORBIDDEN: [&str; 14] = [
    "127.0.0.1:22",
    "127.8.8.8:80",
    "0.0.0.0:80",
    "169.254.169.254:80",
    "169.254.1.1:80",
    "100.100.100.200:80",
    "224.0.0.1:80",
    "255.255.255.255:80",
    "[::1]:22",
    "[::]:80",
    "[fe80::1]:80",
    "[::ffff:127.0.0.1]:22",
    "[::ffff:169.254.169.254]:80",
    "[fd00:ec2::254]:80",
];

/// Loopback and metadata as some resolver or another reads them.
const ODD_FORMS: [&str; 10] = [
    "2130706433",
    "0177.0.0.1",
    "0x7f.0.0.1",
    "0x7f000001",
    "127.1",
    "127.0.1",
    "2852039166",
    "0251.0376.0251.0376",
    "169.254.43518",
    "017700000001",
];

scenarios! {
    async fn the_server_sends_no_forbidden_address_to_any_agent(carrier) {
        let cluster = Plan::on(carrier).unverified_kubelets().start().await;
        let front = cluster.apiserver();
        for target in FORBIDDEN {
            let refused = front.refusal(target).await;
            assert_eq!(refused.status, 403, "{target}: {refused:?}");
        }
        assert!(cluster.wire.tried().is_empty());
    }

    async fn the_agent_refuses_what_a_hostile_server_asks_for(carrier) {
        let cluster = Plan::on(carrier).agents(0).start().await;
        let (rogue, _agent) = hostile(&cluster, carrier).await;
        let link = expect("the link", rogue.link()).await;
        for target in FORBIDDEN {
            for class in [Class::Kubelet, Class::Node, Class::Pod, Class::Service, Class::Other] {
                let refused = expect("the agent's answer", rogue::ask(&link, target, class)).await;
                let reason = refused.err().map(|error| error.reason);
                assert!(matches!(reason, Some(Reason::ForbiddenAddress | Reason::AgentPolicy)), "{target} as {class}: {reason:?}");
            }
        }
        // Another port of the node, whatever it is called.
        for class in Class::ALL {
            let refused = expect("the agent's answer", rogue::ask(&link, "10.0.0.1:22", class)).await;
            assert_eq!(refused.err().map(|error| error.reason), Some(Reason::AgentPolicy), "{class}");
        }
        assert!(cluster.wire.tried().is_empty(), "{:?}", cluster.wire.tried());
    }

    async fn forms_that_resolvers_read_differently_are_refused_at_both_ends(carrier) {
        let cluster = Plan::on(carrier).unverified_kubelets().start().await;
        let (rogue, _agent) = hostile(&cluster, carrier).await;
        let link = expect("the link", rogue.link()).await;
        for form in ODD_FORMS {
            let refused = cluster.apiserver().refusal(&format!("{form}:80")).await;
            assert_eq!(refused.status, 400, "{form}: {refused:?}");
            for class in Class::ALL {
                let reason = expect("the agent's answer", rogue::ask_form(&link, form, 80, class)).await.err();
                // No request that it can read: the stream is reset, and nothing is looked up.
                assert!(reason.is_some(), "{form} as {class}");
            }
        }
        assert!(cluster.wire.tried().is_empty() && cluster.wire.resolved().is_empty());
        // The way by which the forms were sent does reach the agent.
        cluster.wire.name("a-plain.name", &[&[[169, 254, 169, 254].into()]]);
        let plain = expect("the agent's answer", rogue::ask_form(&link, "a-plain.name", 80, Class::Service)).await;
        assert_eq!(plain.err(), Some(Reason::ForbiddenAddress));
    }

    async fn the_kubelet_of_another_node_is_not_reached_through_this_node(carrier) {
        let mut cluster = Plan::on(carrier).agents(2).unverified_kubelets().start().await;
        let (rogue, _agent) = hostile(&cluster, carrier).await;
        let link = expect("the link", rogue.link()).await;
        let other = cluster.target("10.0.0.2:10250", Behaviour::Echo).await;
        cluster.wire.name("n2", &[&[node_ip(2)]]);
        // Whatever a hostile server calls it, and by whichever name.
        for target in ["10.0.0.2:10250", "[::ffff:10.0.0.2]:10250", "n2:10250"] {
            for class in Class::ALL {
                let refused = expect("the agent's answer", rogue::ask(&link, target, class)).await;
                assert_eq!(refused.err().map(|error| error.reason), Some(Reason::AgentPolicy), "{target} as {class}");
            }
        }
        let before = cluster.wire.tried().len();
        // And an honest server asks the owner or nobody.
        cluster.kill_agent("n2");
        eventually("the end of n2", || async {
            let refused = cluster.apiserver().dial("10.0.0.2:10250").await.unwrap().err()?;
            (refused.status == 503).then_some(())
        }).await;
        for target in ["10.0.0.2:10250", "n2:10250", "10.0.0.99:10250", "n99:10250"] {
            let refused = cluster.apiserver().refusal(target).await;
            assert!(refused.status == 503, "{target}: {refused:?}");
        }
        assert_eq!(cluster.wire.tried().len(), before);
        drop(other);
    }

    async fn with_prefixes_no_address_of_another_node_is_a_pod_or_a_service(carrier) {
        let cluster = Plan::on(carrier).agents(0).agent_flags(&["--pod-cidr", "10.244.0.0/16", "--service-cidr", "10.96.0.0/12"]).start().await;
        let (rogue, _agent) = hostile(&cluster, carrier).await;
        let link = expect("the link", rogue.link()).await;
        for target in ["10.0.0.2:10250", "10.0.0.2:22", "[::ffff:10.0.0.2]:10250"] {
            for class in Class::ALL {
                let refused = expect("the agent's answer", rogue::ask(&link, target, class)).await;
                assert_eq!(refused.err().map(|error| error.reason), Some(Reason::AgentPolicy), "{target} as {class}");
            }
        }
        assert!(cluster.wire.tried().is_empty());
    }

    async fn one_forbidden_address_of_a_name_refuses_the_whole_name(carrier) {
        let cluster = Plan::on(carrier).unverified_kubelets().start().await;
        let good: IpAddr = [10, 96, 1, 1].into();
        for (number, bad) in ["169.254.169.254", "127.0.0.1", "::1", "::ffff:169.254.169.254", "fe80::1"].into_iter().enumerate() {
            let bad: IpAddr = bad.parse().unwrap();
            for (order, answer) in [[good, bad], [bad, good]].into_iter().enumerate() {
                let name = format!("trap-{number}-{order}.prod.svc");
                cluster.wire.name(&name, &[&answer]);
                let refused = cluster.apiserver().refusal(&format!("{name}:443")).await;
                assert_eq!(refused.status, 403, "{bad}: {refused:?}");
            }
        }
        assert!(cluster.wire.tried().is_empty(), "{:?}", cluster.wire.tried());
    }

    async fn a_name_is_resolved_once_and_the_checked_address_is_reached(carrier) {
        let cluster = Plan::on(carrier).unverified_kubelets().start().await;
        let _service = cluster.target("10.96.1.1:443", Behaviour::Echo).await;
        // A rebinding name server gives the good address first and the bad one ever after.
        cluster.wire.name("rebind.prod.svc", &[&[[10, 96, 1, 1].into()], &[[127, 0, 0, 1].into()]]);
        cluster.apiserver().pipe("rebind.prod.svc:443").await;
        assert_eq!(cluster.wire.resolved().len(), 1);
        assert_eq!(cluster.wire.tried(), ["10.96.1.1:443".parse().unwrap()]);
        let refused = cluster.apiserver().refusal("rebind.prod.svc:443").await;
        assert_eq!(refused.status, 403, "{refused:?}");
        assert_eq!(cluster.wire.tried().len(), 1);
    }

    async fn a_name_with_no_address_is_not_found(carrier) {
        let cluster = Plan::on(carrier).start().await;
        cluster.wire.name("empty.prod.svc", &[&[]]);
        let refused = cluster.apiserver().refusal("empty.prod.svc:443").await;
        assert!(refused.status == 502 && refused.phrase.contains("does not resolve"), "{refused:?}");
    }

    async fn the_kubelet_on_loopback_is_reached_and_no_other_port_there(carrier) {
        let mut cluster = Plan::on(carrier).agents(0).agent_flags(&["--kubelet-address", "127.0.0.1"]).start().await;
        cluster.start_agent("n1").await;
        cluster.linked().await;
        let (rogue, _agent) = hostile(&cluster, carrier).await;
        let link = expect("the link", rogue.link()).await;
        let _kubelet = cluster.target("127.0.0.1:10250", Behaviour::Echo).await;
        assert!(expect("the answer", rogue::ask(&link, "127.0.0.1:10250", Class::Kubelet)).await.is_ok());
        for target in ["127.0.0.1:10255", "127.0.0.2:10250", "[::1]:10250"] {
            assert!(expect("the answer", rogue::ask(&link, target, Class::Kubelet)).await.is_err(), "{target}");
        }
    }

    async fn a_server_is_never_a_target_linked_or_not(carrier) {
        let cluster = Plan::on(carrier).agents(0).start().await;
        // The kubelet's port on loopback is the one address there that a server could be at.
        let (rogue, _agent) = hostile_with(&cluster, carrier, |server| {
            let port = server.port();
            let words = format!(
                "--kubelet-port {port} --kubelet-address 127.0.0.1 --kubelet-address 127.0.0.9 \
                 --server 127.0.0.9:{port} --server localhost:{port}"
            );
            words.split(' ').map(str::to_owned).collect()
        }).await;
        let link = expect("the link", rogue.link()).await;
        let port = rogue.address().port();
        cluster.wire.name("localhost", &[&[[10, 96, 0, 9].into()]]);
        for (host, class) in [("127.0.0.1", Class::Kubelet), ("127.0.0.9", Class::Kubelet), ("localhost", Class::Service)] {
            let target = format!("{host}:{port}");
            let asked = rogue::ask(&link, &target, class);
            let refused = expect("the agent's answer", asked).await.err();
            assert_eq!(refused.map(|error| error.reason), Some(Reason::ForbiddenAddress), "{host}");
        }
        assert!(cluster.wire.tried().is_empty(), "{:?}", cluster.wire.tried());
        // The same name at another port is a service like any other.
        let _service = cluster.target("10.96.0.9:443", Behaviour::Echo).await;
        assert!(expect("the answer", rogue::ask(&link, "localhost:443", Class::Service)).await.is_ok());
    }
}

/// An agent whose one server asks for whatever it likes.
async fn hostile(cluster: &Cluster, carrier: CarrierKind) -> (RogueServer, Agent) {
    hostile_with(cluster, carrier, |_| Vec::new()).await
}

/// The same with more flags, made of the server's address.
async fn hostile_with(
    cluster: &Cluster,
    carrier: CarrierKind,
    more: impl FnOnce(SocketAddr) -> Vec<String>,
) -> (RogueServer, Agent) {
    let pair = cluster.authority.leaf(Role::Server, "s9").sign();
    let rogue = RogueServer::start(carrier, &cluster.authority, &pair)
        .await
        .unwrap();
    let files = cluster
        .agent_pair("n1")
        .write(cluster.scratch(), "hostile")
        .unwrap();
    let mut args = cluster.agent_args(&files);
    let at = args.iter().position(|arg| arg == "--server").unwrap();
    args[at + 1] = rogue.address().to_string();
    args.extend(more(rogue.address()));
    let network = MappedNetwork::new(&cluster.wire, &[node_ip(1)]);
    let agent = start_agent(&args, network).await.unwrap();
    (rogue, agent)
}
