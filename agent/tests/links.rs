//! The agent against a fake server, on both carriers: dials, carrier changes, drains, reconnects.

mod fake;

use std::time::Duration;

use fake::{Cluster, FakeServer, Listen, agent, echoes, ends, open};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use towline_link::carrier::CarrierKind;
use towline_link::dial;
use towline_link::driver::LinkState;
use towline_proto::dial::DialRequest;
use towline_proto::id::Role;
use towline_proto::reason::Reason;
use towline_proto::target::Class;

const ANY: &str = "127.0.0.1:0";

async fn on_both(scenario: AsyncScenario) {
    for carrier in ["quic", "tls"] {
        let cluster = Cluster::new();
        let server = FakeServer::start(&cluster, ANY.parse().unwrap(), Listen::Both).await;
        scenario(cluster, server, carrier).await;
    }
}

type AsyncScenario =
    fn(Cluster, FakeServer, &'static str) -> std::pin::Pin<Box<dyn Future<Output = ()>>>;

#[tokio::test]
async fn a_dial_reaches_the_kubelet_and_half_close_travels() {
    on_both(|cluster, mut server, carrier| {
        Box::pin(async move {
            let agent = agent(cluster.config(server.address, &["--carrier", carrier])).await;
            let link = server.link().await;
            assert_eq!(link.carrier().kind().as_str(), carrier);
            for target in ["10.0.0.7:10250", "n7:10250"] {
                let mut dial = open(&link, target, Class::Kubelet).await.unwrap();
                echoes(&mut dial, "hello").await;
                assert_eq!(agent.live_dials(), 1);
                ends(dial).await;
            }
        })
    })
    .await;
}

#[tokio::test]
async fn what_the_policy_forbids_is_refused_with_reason_and_address() {
    on_both(|cluster, mut server, carrier| {
        Box::pin(async move {
            let _agent = agent(cluster.config(server.address, &["--carrier", carrier])).await;
            let link = server.link().await;
            for (target, class, reason) in [
                ("169.254.169.254:80", Class::Pod, Reason::ForbiddenAddress),
                ("127.0.0.1:10250", Class::Kubelet, Reason::ForbiddenAddress),
                ("10.0.0.7:22", Class::Pod, Reason::AgentPolicy),
                ("10.0.0.7:22", Class::Node, Reason::AgentPolicy),
                ("10.0.0.8:10250", Class::Kubelet, Reason::AgentPolicy),
                ("evil.ns.svc:443", Class::Service, Reason::ForbiddenAddress),
                ("nowhere.ns.svc:443", Class::Service, Reason::NameNotFound),
                ("10.244.0.9:1", Class::Pod, Reason::TargetRefused),
            ] {
                let refused = open(&link, target, class).await.map(|_| ()).unwrap_err();
                assert_eq!(refused.reason, reason, "{target} as {class}");
            }
            let mut dial = open(&link, "webhook.ns.svc:443", Class::Service)
                .await
                .unwrap();
            echoes(&mut dial, "still here").await;
        })
    })
    .await;
}

#[tokio::test]
async fn a_server_that_comes_back_is_met_again_soon() {
    on_both(|cluster, mut server, carrier| {
        Box::pin(async move {
            let _agent = agent(cluster.config(server.address, &["--carrier", carrier])).await;
            server.link().await;
            let address = server.address;
            drop(server);
            let mut server = FakeServer::start(&cluster, address, Listen::Both).await;
            let back = tokio::time::Instant::now();
            let link = server.link().await;
            assert!(
                back.elapsed() < Duration::from_secs(3),
                "{:?}",
                back.elapsed()
            );
            echoes(
                &mut open(&link, "n7:10250", Class::Kubelet).await.unwrap(),
                "again",
            )
            .await;
        })
    })
    .await;
}

#[tokio::test]
async fn a_draining_server_gets_a_new_link_while_old_dials_go_on() {
    on_both(|cluster, mut server, carrier| {
        Box::pin(async move {
            let _agent = agent(cluster.config(server.address, &["--carrier", carrier])).await;
            let old = server.link().await;
            let mut dial = open(&old, "n7:10250", Class::Kubelet).await.unwrap();
            let guard = old.begin_dial(10).unwrap();
            old.drain(Reason::Shutdown, Duration::from_secs(20));
            let new = server.link().await;
            assert_ne!(new.id(), old.id());
            echoes(&mut dial, "old").await;
            echoes(
                &mut open(&new, "n7:10250", Class::Kubelet).await.unwrap(),
                "new",
            )
            .await;
            ends(dial).await;
            drop(guard);
            assert_eq!(old.closed().await, Reason::Shutdown);
        })
    })
    .await;
}

#[tokio::test]
async fn a_stopping_agent_lets_its_dials_end_and_takes_no_new_ones() {
    on_both(|cluster, mut server, carrier| {
        Box::pin(async move {
            let agent = agent(cluster.config(server.address, &["--carrier", carrier])).await;
            let link = server.link().await;
            let mut dial = open(&link, "n7:10250", Class::Kubelet).await.unwrap();
            let guard = link.begin_dial(10).unwrap();
            agent.drain();
            let mut state = link.watch();
            state
                .wait_for(|state| matches!(state, LinkState::Draining { by_peer: true, .. }))
                .await
                .unwrap();
            echoes(&mut dial, "to the end").await;
            let stopped = agent.wait();
            let done = async {
                ends(dial).await;
                drop(guard);
            };
            let (stopped, ()) = tokio::join!(stopped, done);
            assert!(stopped.is_ok(), "{stopped:?}");
        })
    })
    .await;
}

#[tokio::test]
async fn a_forced_agent_cuts_its_dials_and_says_so() {
    on_both(|cluster, mut server, carrier| {
        Box::pin(async move {
            let agent = agent(cluster.config(server.address, &["--carrier", carrier])).await;
            let link = server.link().await;
            let mut dial = open(&link, "n7:10250", Class::Kubelet).await.unwrap();
            echoes(&mut dial, "cut me").await;
            agent.stop_now();
            assert!(agent.wait().await.is_err());
            let cut = dial.stream.recv.recv(1024).await;
            assert!(cut.is_err(), "{cut:?}");
        })
    })
    .await;
}

#[tokio::test]
async fn without_udp_the_link_runs_on_tls_and_moves_back_when_it_opens() {
    let cluster = Cluster::new();
    let mut server = FakeServer::start(&cluster, ANY.parse().unwrap(), Listen::Tcp).await;
    let _agent = agent(cluster.config(server.address, &["--carrier-probe", "100ms"])).await;
    let begun = tokio::time::Instant::now();
    let old = server.link().await;
    assert!(begun.elapsed() < Duration::from_secs(3));
    assert_eq!(old.carrier().kind(), CarrierKind::Tls);
    let mut dial = open(&old, "n7:10250", Class::Kubelet).await.unwrap();
    let guard = old.begin_dial(10).unwrap();

    let mut udp = FakeServer::start_udp(&cluster, server.address).await;
    let new = udp.link().await;
    assert_eq!(new.carrier().kind(), CarrierKind::Quic);
    let mut state = old.watch();
    state
        .wait_for(|state| {
            matches!(
                state,
                LinkState::Draining {
                    reason: Reason::Moved,
                    ..
                }
            )
        })
        .await
        .unwrap();
    echoes(&mut dial, "on the old carrier").await;
    echoes(
        &mut open(&new, "n7:10250", Class::Kubelet).await.unwrap(),
        "on the new",
    )
    .await;
    ends(dial).await;
    drop(guard);
    old.closed().await;
}

#[tokio::test]
async fn a_quic_link_that_falls_silent_is_replaced_long_before_it_counts_as_dead() {
    let cluster = Cluster::new();
    let mut server = FakeServer::start(&cluster, ANY.parse().unwrap(), Listen::Both).await;
    let wire = fake::Wire::start(server.address).await;
    let _agent = agent(cluster.config(wire.address, &[])).await;
    let old = server.link().await;
    assert_eq!(old.carrier().kind(), CarrierKind::Quic);
    echoes(
        &mut open(&old, "n7:10250", Class::Kubelet).await.unwrap(),
        "here",
    )
    .await;
    wire.cut_udp();
    let cut = tokio::time::Instant::now();
    let new = server.link().await;
    assert_eq!(new.carrier().kind(), CarrierKind::Tls);
    assert!(
        cut.elapsed() < Duration::from_secs(7),
        "{:?}",
        cut.elapsed()
    );
    echoes(
        &mut open(&new, "n7:10250", Class::Kubelet).await.unwrap(),
        "moved",
    )
    .await;
}

#[tokio::test]
async fn a_renewed_certificate_keeps_the_link_and_a_denied_server_loses_it() {
    on_both(|cluster, mut server, carrier| {
        Box::pin(async move {
            let deny = cluster.path("deny");
            std::fs::write(&deny, "# nobody\n").unwrap();
            let deny_flag = deny.to_str().unwrap().to_owned();
            let more = ["--carrier", carrier, "--deny-list", &deny_flag];
            let agent = agent(cluster.config(server.address, &more)).await;
            let link = server.link().await;
            let mut dial = open(&link, "n7:10250", Class::Kubelet).await.unwrap();

            cluster.issue(Role::Agent, "n7", &[fake::NODE.parse().unwrap()]);
            agent.reload().await.unwrap();
            echoes(&mut dial, "after the renewal").await;
            assert_eq!(link.state(), LinkState::Ready);

            std::fs::write(&deny, "not an entry\n").unwrap();
            assert!(agent.reload().await.is_err());
            echoes(&mut dial, "after a broken file").await;

            std::fs::write(&deny, "spiffe://c1/towline/server/s1\n").unwrap();
            agent.reload().await.unwrap();
            assert_eq!(link.closed().await, Reason::Denied);
            assert!(dial.stream.recv.recv(1024).await.is_err());
            assert!(agent.links().readiness().is_err());
        })
    })
    .await;
}

#[tokio::test]
async fn a_new_identity_means_a_new_link_before_the_old_one_goes() {
    let cluster = Cluster::new();
    let mut server = FakeServer::start(&cluster, ANY.parse().unwrap(), Listen::Both).await;
    let agent = agent(cluster.config(server.address, &[])).await;
    let old = server.link().await;
    echoes(
        &mut open(&old, "n7:10250", Class::Kubelet).await.unwrap(),
        "n7",
    )
    .await;
    cluster.issue(Role::Agent, "n8", &["10.0.0.8".parse().unwrap()]);
    agent.reload().await.unwrap();
    let new = server.link().await;
    assert_eq!(new.carrier().peer().identity().name.as_str(), "n8");
    assert_eq!(old.closed().await, Reason::Moved);
    let refused = open(&new, "10.0.0.7:10250", Class::Kubelet)
        .await
        .map(|_| ());
    assert_eq!(refused.unwrap_err().reason, Reason::AgentPolicy);
}

#[tokio::test]
async fn a_target_that_never_answers_and_one_dial_too_many_have_their_reasons() {
    on_both(|cluster, mut server, carrier| {
        Box::pin(async move {
            let more = [
                "--carrier",
                carrier,
                "--connect-timeout",
                "50ms",
                "--max-dials",
                "2",
            ];
            let _agent = agent(cluster.config(server.address, &more)).await;
            let link = server.link().await;
            let late = open(&link, "10.244.0.9:2", Class::Pod).await.map(|_| ());
            assert_eq!(late.unwrap_err().reason, Reason::TargetTimeout);
            let mut first = open(&link, "n7:10250", Class::Kubelet).await.unwrap();
            let second = open(&link, "n7:10250", Class::Kubelet).await.unwrap();
            let third = open(&link, "n7:10250", Class::Kubelet).await.map(|_| ());
            assert_eq!(third.unwrap_err().reason, Reason::AgentBusy);
            echoes(&mut first, "not disturbed").await;
            ends(second).await;
        })
    })
    .await;
}

#[tokio::test]
async fn probes_are_answered_and_nonsense_disturbs_nobody() {
    on_both(|cluster, mut server, carrier| {
        Box::pin(async move {
            let _agent = agent(cluster.config(server.address, &["--carrier", carrier])).await;
            let link = server.link().await;
            for nonsense in [
                &b""[..],
                b"\xff\xff",
                b"\x00\x01\x09",
                b"\x00\x03\x01\x01\xff",
            ] {
                let mut stream = link.carrier().open().await.unwrap();
                stream.send.send(nonsense.into()).await.unwrap();
                stream.send.finish();
                assert!(!matches!(stream.recv.recv(16).await, Ok(Some(_))));
            }
            let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
            let probe = dial::open(&**link.carrier(), &DialRequest::Probe, deadline).await;
            ends(probe.unwrap()).await;
        })
    })
    .await;
}

#[tokio::test]
async fn one_linked_server_is_ready_and_the_worst_is_named() {
    let cluster = Cluster::new();
    let mut server = FakeServer::start(&cluster, ANY.parse().unwrap(), Listen::Both).await;
    let agent = agent(cluster.config(server.address, &["--server", "127.0.0.1:1"])).await;
    let links = agent.links().clone();
    assert!(links.readiness().unwrap_err().contains("no link to server"));
    let _link = server.link().await;
    let mut changes = links.watch();
    while links.readiness().is_err() {
        changes.changed().await.unwrap();
    }
    assert!(links.worst().unwrap().contains("127.0.0.1:1"));
}

#[tokio::test]
async fn a_health_answer_that_is_being_asked_for_is_given_by_the_last_step() {
    let cluster = Cluster::new();
    let server = FakeServer::start(&cluster, ANY.parse().unwrap(), Listen::Both).await;
    let agent = agent(cluster.config(server.address, &[])).await;
    let mut asking = TcpStream::connect(agent.health_address()).await.unwrap();
    asking
        .write_all(b"GET /metrics HTTP/1.1\r\n")
        .await
        .unwrap();
    // Its answer says that the first one has been accepted.
    let mut other = TcpStream::connect(agent.health_address()).await.unwrap();
    let whole = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n";
    other.write_all(whole).await.unwrap();
    let mut page = String::new();
    other.read_to_string(&mut page).await.unwrap();
    agent.stop_now();
    let _ = agent.wait().await;
    let finished = async {
        asking.write_all(b"Host: x\r\n\r\n").await.unwrap();
        let mut page = String::new();
        asking.read_to_string(&mut page).await.unwrap();
        page
    };
    let ((), page) = tokio::join!(agent.close(), finished);
    assert!(page.ends_with("# EOF\n"), "{page}");
}
