//! The kubelet gateway: whom it takes, whom it believes, and what becomes of connections when
//! that changes. A kubelet counts as reached only when it heard a request.

use std::net::IpAddr;
use std::time::Duration;

use rustls_pki_types::ServerName;
use towline_pki::Certificate;
use towline_proto::id::Role;
use towline_tests::apiserver::client_config;
use towline_tests::authority::{Authority, Flaw, Pair};
use towline_tests::cluster::{Cluster, Plan, node_ip};
use towline_tests::gateway::{FRONT_END, FrontEnd, GatewayKit, Reply, leaf};
use towline_tests::kubelet::FakeKubelet;
use towline_tests::scenario::expect;
use towline_tests::scenarios;
use towline_tests::scratch::{Scratch, replace};
use towline_tests::target::Behaviour;

const NODE: &str = "10.0.0.1:10250";

fn name(text: &str) -> ServerName<'static> {
    ServerName::try_from(text.to_owned()).expect("a name")
}

/// What comes of one request with this configuration.
async fn try_with(
    cluster: &Cluster,
    sni: ServerName<'static>,
    config: &rustls::ClientConfig,
) -> std::io::Result<Reply> {
    let pipe = cluster.apiserver().pipe(NODE).await;
    let asking = async {
        let mut front_end = FrontEnd::connect_with(pipe, sni, config).await?;
        front_end
            .send("GET /healthz HTTP/1.1\r\nHost: n\r\n\r\n")
            .await?;
        front_end.try_reply().await
    };
    expect("an answer or an end", asking).await
}

/// Who takes a kubelet's place, and what is said of it.
const IMPOSTORS: [(&str, &str); 5] = [
    (
        "wrong-ca",
        "is not signed by the kubelet certificate authority",
    ),
    ("stolen", "no IP subject alternative name"),
    ("other-node", "is of node n2, not of node n1"),
    ("expired", "expired"),
    ("not-yet", "not valid before"),
];

fn pair_of(cluster: &Cluster, what: &str) -> Pair {
    let (own, ips) = (&cluster.authority, [node_ip(1)]);
    let made = match what {
        "wrong-ca" => cluster.stranger.kubelet_leaf("n1", &ips),
        "stolen" => own.kubelet_leaf("n2", &[node_ip(2)]),
        "other-node" => own.kubelet_leaf("n2", &ips),
        "expired" => own
            .kubelet_leaf("n1", &ips)
            .flawed(Flaw::Expired, own, &cluster.stranger),
        _ => own
            .kubelet_leaf("n1", &ips)
            .begins_in(Duration::from_secs(3600)),
    };
    made.sign()
}

async fn try_as(cluster: &Cluster, own: Option<&Pair>) -> std::io::Result<Reply> {
    let config = client_config(own, &cluster.gateway.issuer);
    try_with(cluster, ServerName::from(node_ip(1)), &config).await
}

/// A kubelet that nobody should talk to, at the address of `n1`'s.
async fn impostor(cluster: &Cluster, pair: &Pair) -> FakeKubelet {
    cluster.kubelet_with(1, pair).await
}

scenarios! {
    async fn requests_of_one_connection_reach_the_kubelet(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        let kubelet = cluster.asking_kubelet().await;
        let mut front_end = cluster.front_end().await;
        for _ in 0..3 {
            let reply = front_end.ask("GET", "/healthz").await;
            assert_eq!((reply.status(), reply.body.as_str()), (200, "ok"));
        }
        assert_eq!(kubelet.lines(), ["GET /healthz", "GET /healthz", "GET /healthz"]);
        // The attestation shows nothing; the gateway shows its own certificate.
        let shown: Vec<_> = kubelet.clients().into_iter().flatten().collect();
        assert_eq!(shown, [cluster.gateway.kubelet_client.chain[0].clone()]);
        front_end.finish().await.unwrap();
        front_end.end().await.expect("an end in order");
    }

    async fn the_certificate_is_for_what_was_dialled(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        let _kubelet = cluster.asking_kubelet().await;
        let shown = Certificate::parse(cluster.front_end().await.shown().as_ref()).unwrap();
        assert_eq!(shown.ip_sans, [node_ip(1)]);
        assert_eq!(shown.dns_sans, ["n1"]);
        let day = Duration::from_secs(24 * 3600);
        assert!(shown.not_after.duration_since(shown.not_before).unwrap() <= day + Duration::from_secs(300));
        // A second connection is shown the same one.
        let again = Certificate::parse(cluster.front_end().await.shown().as_ref()).unwrap();
        assert_eq!(shown.serial, again.serial);

        let config = client_config(Some(&cluster.gateway.front_end), &cluster.gateway.issuer);
        // Both the name and no name at all are the node; another name is not.
        assert_eq!(try_with(&cluster, name("n1"), &config).await.unwrap().status(), 200);
        for other in ["n2", "kubernetes", "other.example"] {
            assert!(try_with(&cluster, name(other), &config).await.is_err(), "{other}");
        }
    }

    async fn only_http_1_1_is_spoken(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        let kubelet = cluster.asking_kubelet().await;
        let mut config = client_config(Some(&cluster.gateway.front_end), &cluster.gateway.issuer);
        let sni = || ServerName::from(node_ip(1));
        config.alpn_protocols = vec![b"h2".to_vec()];
        assert!(try_with(&cluster, sni(), &config).await.is_err());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        assert_eq!(try_with(&cluster, sni(), &config).await.unwrap().status(), 200);
        config.alpn_protocols = Vec::new();
        assert_eq!(try_with(&cluster, sni(), &config).await.unwrap().status(), 200);
        let before = kubelet.requests();
        let mut front_end = cluster.front_end().await;
        front_end.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let reply = front_end.reply().await;
        assert!(reply.status() == 505 && reply.sentence().contains("HTTP/2"), "{reply:?}");
        assert_eq!(kubelet.requests(), before);
    }

    async fn who_is_no_front_end_says_nothing_to_a_kubelet(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        let kubelet = cluster.asking_kubelet().await;
        let elsewhere = GatewayKit::make(&cluster.stranger, &Scratch::new().unwrap());
        let clients = &cluster.gateway.clients;
        let hour = Duration::from_secs(3600);
        let base = cluster.authority.leaf(Role::Client, FRONT_END).identities(&[]).signed_by(clients);
        let node = cluster.authority.kubelet_leaf("n1", &[node_ip(1)]).common_name(FRONT_END).signed_by(clients).sign();
        for (what, pair) in [
            ("no certificate", None),
            ("of another cluster", Some(elsewhere.front_end)),
            ("an administrator of this one", Some(leaf(&cluster.authority, clients, "kubernetes-admin"))),
            ("a front end of the TCP door", Some(cluster.authority.leaf(Role::Client, FRONT_END).sign())),
            ("expired", Some(base.clone().flawed(Flaw::Expired, &cluster.authority, &cluster.stranger).sign())),
            ("not for clients", Some(node)),
            ("not yet", Some(base.clone().begins_in(hour).sign())),
        ] {
            assert!(try_as(&cluster, pair.as_ref()).await.is_err(), "{what}");
        }
        let denied = base.clone().sign();
        assert_eq!(try_as(&cluster, Some(&denied)).await.unwrap().status(), 200);
        cluster.deny(&format!("serial:{}", denied.serial));
        assert_eq!(cluster.reload().await, Vec::<String>::new());
        assert!(try_as(&cluster, Some(&denied)).await.is_err(), "on the deny list");
        assert_eq!(kubelet.lines(), ["GET /healthz"]);
    }

    async fn a_front_end_believes_the_gateway_and_no_kubelet(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        let _kubelet = cluster.asking_kubelet().await;
        let config = client_config(Some(&cluster.gateway.front_end), cluster.authority.kubelets().der());
        assert!(try_with(&cluster, ServerName::from(node_ip(1)), &config).await.is_err());
    }

    async fn an_impostor_that_comes_after_the_attestation_hears_no_request(carrier) {
        for (what, cause) in IMPOSTORS {
            // The node's kubelet is attested, and the verdict is fresh.
            let cluster = Plan::on(carrier).agents(2).gateway().start().await;
            let kubelet = cluster.asking_kubelet().await;
            assert_eq!(cluster.front_end().await.ask("GET", "/pods").await.status(), 404);
            assert_eq!(kubelet.requests(), 1);
            // The man in the middle takes its place.
            let impostor = impostor(&cluster, &pair_of(&cluster, what)).await;
            let mut front_end = cluster.front_end().await;
            let reply = front_end.ask("GET", "/containerLogs/default/web/app").await;
            assert_eq!(reply.status(), 502, "{what}: {reply:?}");
            let said = reply.sentence();
            assert!(said.contains(cause) && said.contains("n1"), "{what}: {said}");
            front_end.end().await.expect("an end in order");
            assert_eq!((impostor.requests(), kubelet.requests()), (0, 1), "{what}");
            if what == "other-node" {
                cluster.measured("towline_server_gateway_handshakes_failed_total{side=\"kubelet\",reason=\"other-node\"} 1").await;
            }
        }
    }

    async fn what_the_gateway_found_is_known_to_dials_and_to_the_list_soon(carrier) {
        let cluster = Plan::on(carrier).agents(2).gateway().start().await;
        let kubelet = cluster.asking_kubelet().await;
        assert_eq!(cluster.front_end().await.ask("GET", "/pods").await.status(), 404);
        let impostor = impostor(&cluster, &pair_of(&cluster, "wrong-ca")).await;
        // The gateway's 502 inside the dial until it was looked at again, then the door's own.
        let config = client_config(Some(&cluster.gateway.front_end), &cluster.gateway.issuer);
        let refused = expect("a new verdict", async {
            loop {
                let pipe = match cluster.apiserver().dial(NODE).await.unwrap() {
                    Ok(pipe) => pipe,
                    Err(refused) => return refused,
                };
                let sni = ServerName::from(node_ip(1));
                let mut front_end = FrontEnd::connect_with(pipe, sni, &config).await.unwrap();
                assert_eq!(front_end.ask("GET", "/healthz").await.status(), 502);
            }
        })
        .await;
        assert!(refused.phrase.contains("wrong-ca"), "{}", refused.phrase);
        cluster.measured("towline_server_kubelets{verdict=\"wrong-ca\"} 1").await;
        assert_eq!((impostor.requests(), kubelet.requests()), (0, 1));
    }

    async fn an_agent_that_leads_elsewhere_is_not_followed(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        let _kubelet = cluster.asking_kubelet().await;
        assert_eq!(cluster.front_end().await.ask("GET", "/healthz").await.status(), 200);
        let plain = cluster.target(NODE, Behaviour::SpeaksFirst("220 hello\r\n")).await;
        cluster.at_node(1, plain.address());
        let reply = cluster.front_end().await.ask("GET", "/healthz").await;
        assert_eq!(reply.status(), 502);
        assert!(reply.sentence().contains("does not speak TLS"), "{reply:?}");
    }

    async fn other_dials_are_left_alone(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        let _pod = cluster.target("10.244.0.5:8080", Behaviour::SpeaksFirst("220 hello\r\n")).await;
        use tokio::io::AsyncReadExt;
        let mut pipe = cluster.apiserver().pipe("10.244.0.5:8080").await;
        let mut said = [0; 11];
        expect("the greeting", pipe.read_exact(&mut said)).await.unwrap();
        assert_eq!(&said, b"220 hello\r\n");
    }

    async fn both_doors_lead_to_the_gateway(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        let kubelet = cluster.asking_kubelet().await;
        let pipe = cluster.apiserver_tcp().pipe(NODE).await;
        let mut front_end = FrontEnd::to(pipe, node_ip(1), &cluster.gateway).await;
        assert_eq!(front_end.ask("GET", "/healthz").await.status(), 200);
        front_end.finish().await.unwrap();
        front_end.end().await.expect("an end in order");
        assert_eq!(kubelet.requests(), 1);
    }

    async fn new_files_count_for_new_connections_and_against_old_ones(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        let kubelet = cluster.asking_kubelet().await;
        kubelet.log("one");
        let mut live = cluster.through_gateway().await.follow().await.unwrap();
        assert_eq!(expect("a line", live.line()).await.unwrap().as_deref(), Some("one"));
        let before = cluster.front_end().await.shown();

        // Another issuer: new connections are shown it, live ones go on.
        let other = GatewayKit::make(&Authority::new("kit.example"), &Scratch::new().unwrap());
        let scratch = Scratch::new().unwrap();
        let kit = GatewayKit::make(&cluster.authority, &scratch);
        for file in ["gateway.key", "gateway.crt"] {
            let text = std::fs::read_to_string(scratch.join(file)).unwrap();
            replace(&cluster.scratch().join(file), &text).unwrap();
        }
        assert_eq!(cluster.reload().await, Vec::<String>::new());
        let config = client_config(Some(&cluster.gateway.front_end), &kit.issuer);
        assert_eq!(try_with(&cluster, ServerName::from(node_ip(1)), &config).await.unwrap().status(), 200);
        assert!(try_as(&cluster, Some(&cluster.gateway.front_end)).await.is_err());
        assert_ne!(before, kit.issuer);
        kubelet.log("two");
        assert_eq!(expect("a line", live.line()).await.unwrap().as_deref(), Some("two"));

        // Half of a change is none.
        replace(&cluster.scratch().join("gateway.key"), "nonsense").unwrap();
        let wrong = cluster.reload().await;
        assert!(wrong.len() == 1 && wrong[0].contains("--kubelet-gateway-ca-cert"), "{wrong:?}");
        let text = std::fs::read_to_string(scratch.join("gateway.key")).unwrap();
        replace(&cluster.scratch().join("gateway.key"), &text).unwrap();

        // Front ends of another authority: the live one is ended.
        replace(&cluster.scratch().join("front-ends.ca"), other.clients.pem()).unwrap();
        assert_eq!(cluster.reload().await, Vec::<String>::new());
        let ended = async { while let Ok(Some(_)) = live.line().await {} };
        expect("the end of the live log", ended).await;
    }

    async fn a_kubelet_that_is_no_longer_believed_loses_its_live_connection(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        let kubelet = cluster.asking_kubelet().await;
        kubelet.log("one");
        let mut live = cluster.through_gateway().await.follow().await.unwrap();
        assert_eq!(expect("a line", live.line()).await.unwrap().as_deref(), Some("one"));
        cluster.kubelet_authority(cluster.stranger.kubelets().pem());
        cluster.kubelet_revocations(&cluster.stranger.kubelets().revocation_list(&[]));
        assert_eq!(cluster.reload().await, Vec::<String>::new());
        let ended = async { while let Ok(Some(_)) = live.line().await {} };
        expect("the end of the live log", ended).await;
    }

    async fn one_certificate_for_all_nodes_does_too(carrier) {
        let scratch = Scratch::new().unwrap();
        let authority = Authority::new("other.example");
        let ips: [IpAddr; 1] = [node_ip(1)];
        let pair = authority.kubelet_leaf("everything", &ips).sign().write(&scratch, "given").unwrap();
        let (cert, key) = (pair.cert.display().to_string(), pair.key.display().to_string());
        let cluster = Plan::on(carrier)
            .gateway()
            .server_flags(&["--kubelet-gateway-cert", &cert, "--kubelet-gateway-key", &key])
            .agents(2)
            .start()
            .await;
        let _kubelet = cluster.asking_kubelet().await;
        let config = client_config(Some(&cluster.gateway.front_end), authority.kubelets().der());
        let reply = try_with(&cluster, ServerName::from(node_ip(1)), &config).await.unwrap();
        assert_eq!(reply.status(), 200);
        // It does not name the other node, so nothing is shown there.
        let _other = cluster.kubelet(2).await;
        let pipe = cluster.apiserver().pipe("10.0.0.2:10250").await;
        let connecting = FrontEnd::connect_with(pipe, ServerName::from(node_ip(2)), &config);
        assert!(expect("a refusal", connecting).await.is_err());
    }

    async fn a_stop_ends_what_is_idle_and_waits_for_what_is_not(carrier) {
        let mut cluster = Plan::on(carrier).gateway().start().await;
        let kubelet = cluster.asking_kubelet().await;
        let mut idle = cluster.front_end().await;
        assert_eq!(idle.ask("GET", "/healthz").await.status(), 200);
        kubelet.log("one");
        let mut busy = cluster.through_gateway().await.follow().await.unwrap();
        assert_eq!(expect("a line", busy.line()).await.unwrap().as_deref(), Some("one"));
        let server = cluster.take_server(0);
        server.drain();
        idle.end().await.expect("an end in order");
        kubelet.log("two");
        assert_eq!(expect("a line", busy.line()).await.unwrap().as_deref(), Some("two"));
        drop(busy);
        expect("the stop", server.wait()).await.unwrap();
    }

    async fn what_ends_is_told(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        for what in ["gateway-issuer", "gateway-client-ca", "kubelet-client"] {
            cluster.measured(&format!("towline_certificate_expiry_seconds{{what=\"{what}\"")).await;
        }
    }
}
