//! Who gets in and who does not, at the server and at the agent, on every connection anew.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use towline_link::carrier::CarrierKind;
use towline_proto::id::Role;
use towline_proto::reason::Reason;
use towline_tests::apiserver::client_config;
use towline_tests::authority::Flaw;
use towline_tests::cluster::{Cluster, Plan, node_ip};
use towline_tests::rogue::{self, RogueServer};
use towline_tests::scenario::{eventually, expect};
use towline_tests::scenarios;

/// Tries to link as `n9` with such a certificate.
async fn as_agent(
    cluster: &Cluster,
    carrier: CarrierKind,
    flaw: Option<Flaw>,
) -> Result<(), String> {
    let leaf = cluster.authority.leaf(Role::Agent, "n9").ips(&[node_ip(9)]);
    let pair = match flaw {
        Some(flaw) => leaf
            .flawed(flaw, &cluster.authority, &cluster.stranger)
            .sign(),
        None => leaf.sign(),
    };
    let server = cluster.server(0).link_address();
    let entering = rogue::enter(
        carrier,
        server,
        &cluster.authority,
        Some(&pair),
        rogue::hello("n9"),
    );
    expect("the server's verdict", entering).await
}

/// What the server counts a handshake with this flaw as, and what the agent says of such a server.
/// On quic a failed handshake is told apart by its reason alone, on tls by the finding.
const fn words(flaw: Flaw) -> (&'static str, &'static str) {
    match flaw {
        Flaw::WrongCa | Flaw::WrongIssuer => {
            ("unknown-issuer", "signed by none of the authorities")
        }
        Flaw::WrongCluster => ("wrong-cluster", "is not of our cluster"),
        Flaw::WrongRole => ("wrong-role", "is not of role server"),
        Flaw::Expired => ("expired", "expired at"),
        Flaw::NotYetValid => ("not-yet-valid", "is not valid before"),
        Flaw::TwoIdentities => ("many-identities", "has 2 URI SANs"),
        Flaw::NoIdentity => ("no-identity", "has no identity"),
        Flaw::WrongUsage => ("wrong-usage", "is not for"),
    }
}

const fn reason(flaw: Flaw) -> Reason {
    match flaw {
        Flaw::Expired => Reason::CertificateEnded,
        _ => Reason::BadCertificate,
    }
}

/// What the server counted failed handshakes on this carrier as, and how many of each.
async fn failed(cluster: &Cluster, carrier: CarrierKind) -> BTreeMap<String, u64> {
    let mut stream = TcpStream::connect(cluster.server(0).health_address())
        .await
        .unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).await.unwrap();
    let series = match carrier {
        CarrierKind::Quic => "towline_quic_handshake_failures_total{reason=\"",
        CarrierKind::Tls => "towline_server_tls_handshakes_failed_total{reason=\"",
    };
    let lines = page.lines().filter_map(|line| line.strip_prefix(series));
    let pairs = lines.filter_map(|line| line.split_once("\"} "));
    let counts = pairs.map(|(word, count)| (word.to_owned(), count.parse().unwrap()));
    counts.collect()
}

/// Waits until one more handshake is counted than `before`, and gives as what.
async fn counted_as(
    cluster: &Cluster,
    carrier: CarrierKind,
    before: &BTreeMap<String, u64>,
) -> String {
    eventually("a failed handshake in the metrics", || async {
        let now = failed(cluster, carrier).await;
        let more = |word: &&String| now.get(*word) != before.get(*word);
        now.keys().find(more).cloned()
    })
    .await
}

/// Whether the server has ever listed an agent of this name.
fn listed(cluster: &Cluster, name: &str) -> bool {
    cluster
        .server(0)
        .status()
        .agents
        .iter()
        .any(|agent| agent.name == name)
}

scenarios! {
    async fn an_agent_of_the_cluster_gets_in(carrier) {
        let cluster = Plan::on(carrier).start().await;
        as_agent(&cluster, carrier, None).await.unwrap();
        assert!(listed(&cluster, "n9"));
    }

    async fn an_agent_with_a_bad_certificate_does_not_get_in(carrier) {
        let cluster = Plan::on(carrier).start().await;
        for flaw in Flaw::ALL {
            let before = failed(&cluster, carrier).await;
            let verdict = as_agent(&cluster, carrier, Some(flaw)).await;
            assert!(verdict.is_err(), "{flaw:?} got in");
            let counted = counted_as(&cluster, carrier, &before).await;
            match carrier {
                // Quic knows the alert that was sent, and TLS has one for both.
                CarrierKind::Quic if flaw == Flaw::NotYetValid => {
                    assert_eq!(counted, Reason::CertificateEnded.as_str());
                }
                CarrierKind::Quic => assert_eq!(counted, reason(flaw).as_str(), "{flaw:?}"),
                CarrierKind::Tls => assert_eq!(counted, words(flaw).0, "{flaw:?}"),
            }
            assert!(!listed(&cluster, "n9"), "{flaw:?} was listed");
        }
        cluster.linked().await;
    }

    async fn nobody_gets_in_without_a_certificate(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let server = cluster.server(0).link_address();
        let entering = rogue::enter(carrier, server, &cluster.authority, None, rogue::hello("n9"));
        assert!(expect("the server's verdict", entering).await.is_err());
        let counted = counted_as(&cluster, carrier, &BTreeMap::new()).await;
        let words = match carrier {
            CarrierKind::Quic => Reason::BadCertificate.as_str(),
            CarrierKind::Tls => "no-certificate",
        };
        assert_eq!(counted, words);
        assert!(!listed(&cluster, "n9"));
    }

    async fn every_other_role_is_turned_away_as_an_agent(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let server = cluster.server(0).link_address();
        for role in [Role::Client, Role::Operator, Role::Server] {
            let pair = cluster.authority.leaf(role, "n9").sign();
            let before = failed(&cluster, carrier).await;
            let entering = rogue::enter(carrier, server, &cluster.authority, Some(&pair), rogue::hello("n9"));
            assert!(expect("the server's verdict", entering).await.is_err(), "{role} got in");
            let counted = counted_as(&cluster, carrier, &before).await;
            let words = match carrier {
                CarrierKind::Quic => Reason::BadCertificate.as_str(),
                // The other issuer's; a server's certificate is not for a client either.
                CarrierKind::Tls if role == Role::Server => "wrong-usage",
                CarrierKind::Tls => "unknown-issuer",
            };
            assert_eq!(counted, words, "{role}");
        }
    }

    async fn an_agent_cannot_greet_under_another_name(carrier) {
        let cluster = Plan::on(carrier).start_unlinked().await;
        let pair = cluster.authority.leaf(Role::Agent, "n9").ips(&[node_ip(9)]).sign();
        let server = cluster.server(0).link_address();
        let entering = rogue::enter(carrier, server, &cluster.authority, Some(&pair), rogue::hello("n1"));
        let why = expect("the server's verdict", entering).await.unwrap_err();
        assert!(why.contains("excess-claim"), "{why}");
    }

    async fn an_agent_that_claims_too_much_is_refused(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let pair = cluster.authority.leaf(Role::Agent, "n9").ips(&[node_ip(9)]).sign();
        let server = cluster.server(0).link_address();
        let mut hello = rogue::hello("n9");
        hello.addresses = vec![node_ip(1)];
        let entering = rogue::enter(carrier, server, &cluster.authority, Some(&pair), hello);
        let why = expect("the server's verdict", entering).await.unwrap_err();
        assert!(why.contains("excess-claim"), "{why}");
    }

    async fn an_agent_with_another_nodes_address_is_refused(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let pair = cluster.authority.leaf(Role::Agent, "n9").ips(&[node_ip(1)]).sign();
        let server = cluster.server(0).link_address();
        let entering = rogue::enter(carrier, server, &cluster.authority, Some(&pair), rogue::hello("n9"));
        let why = expect("the server's verdict", entering).await.unwrap_err();
        assert!(why.contains("excess-claim"), "{why}");
        cluster.linked().await;
    }

    async fn an_agent_trusts_no_server_with_a_bad_certificate(carrier) {
        for flaw in Flaw::ALL {
            let cluster = Plan::on(carrier).agents(0).start().await;
            let leaf = cluster.authority.leaf(Role::Server, "s9");
            let pair = leaf.flawed(flaw, &cluster.authority, &cluster.stranger).sign();
            let rogue = RogueServer::start(carrier, &cluster.authority, &pair).await.unwrap();
            let agent = rogue_agent(&cluster, &rogue).await;
            let status = eventually("the agent's verdict", || async {
                agent.links().status().into_iter().find(|server| server.error.is_some())
            }).await;
            assert_eq!(agent.links().ready(), 0, "{flaw:?}: {status:?}");
            assert!(status.links.is_empty(), "{flaw:?}: {status:?}");
            assert_eq!(status.reason.as_deref(), Some(reason(flaw).as_str()), "{flaw:?}: {status:?}");
            let said = status.error.as_deref().unwrap_or_default();
            assert!(said.contains(words(flaw).1), "{flaw:?}: {said}");
        }
    }

    async fn an_agent_links_to_a_sound_server(carrier) {
        let cluster = Plan::on(carrier).agents(0).start().await;
        let pair = cluster.authority.leaf(Role::Server, "s9").sign();
        let rogue = RogueServer::start(carrier, &cluster.authority, &pair).await.unwrap();
        let agent = rogue_agent(&cluster, &rogue).await;
        expect("the link", rogue.link()).await;
        expect("the agent's link", towline_tests::cluster::links_of(&agent, 1)).await;
    }
}

/// An agent of the cluster that is told to link to `rogue`.
async fn rogue_agent(cluster: &Cluster, rogue: &RogueServer) -> towline_agent::run::Agent {
    let files = cluster
        .agent_pair("n1")
        .write(cluster.scratch(), "n1")
        .unwrap();
    let mut args = cluster.agent_args(&files);
    let at = args.iter().position(|arg| arg == "--server").unwrap();
    args[at + 1] = rogue.address().to_string();
    let network = towline_tests::network::MappedNetwork::new(&cluster.wire, &[node_ip(1)]);
    towline_tests::cluster::start_agent(&args, network)
        .await
        .unwrap()
}

/// A daemon whose own certificate is bad says so and does not start.
#[tokio::test]
async fn no_daemon_starts_with_a_bad_certificate_of_its_own() {
    let cluster = Plan::on(CarrierKind::Tls).agents(0).start().await;
    for flaw in [
        Flaw::WrongRole,
        Flaw::Expired,
        Flaw::NotYetValid,
        Flaw::TwoIdentities,
        Flaw::NoIdentity,
        Flaw::WrongUsage,
    ] {
        let leaf = |role| {
            cluster
                .authority
                .leaf(role, "x1")
                .flawed(flaw, &cluster.authority, &cluster.stranger)
                .sign()
        };
        let files = leaf(Role::Server)
            .write(cluster.scratch(), "bad-server")
            .unwrap();
        let error =
            towline_tests::cluster::start_server(&cluster.server_args(7, &files, "127.0.0.1:0"))
                .await
                .err()
                .unwrap();
        assert!(error.contains("bad-server.crt"), "{flaw:?}: {error}");
        let files = leaf(Role::Agent)
            .write(cluster.scratch(), "bad-agent")
            .unwrap();
        let network = towline_tests::network::MappedNetwork::new(&cluster.wire, &[]);
        let error = towline_tests::cluster::start_agent(&cluster.agent_args(&files), network)
            .await
            .err()
            .unwrap();
        assert!(error.contains("bad-agent.crt"), "{flaw:?}: {error}");
    }
}

/// A resumed handshake would skip the verifier: no listener hands out a ticket, and a client that
/// would resume goes through a full handshake every time.
#[tokio::test]
async fn resumption_is_refused_by_every_tls_listener() {
    let cluster = Plan::on(CarrierKind::Tls).start().await;
    let root = cluster.authority.issuer(Role::Server).der();
    for (port, role, alpn) in [
        (cluster.server(0).link_address(), Role::Agent, "towline/1"),
        (
            cluster.server(0).door_tcp().unwrap(),
            Role::Client,
            "http/1.1",
        ),
    ] {
        let pair = cluster.authority.leaf(role, "kube-apiserver").sign();
        let mut config = client_config(Some(&pair), root);
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        config.enable_early_data = true;
        let connector = TlsConnector::from(Arc::new(config));
        for _ in 0..3 {
            let tcp = TcpStream::connect(port).await.unwrap();
            let name = rustls::pki_types::ServerName::from(port.ip());
            let mut tls = connector.connect(name, tcp).await.unwrap();
            // Whatever the server sends after the handshake would carry its tickets in front.
            tokio::io::AsyncWriteExt::write_all(&mut tls, b"GET / HTTP/1.1\r\n\r\n")
                .await
                .unwrap();
            let mut answer = Vec::new();
            let _ = expect(
                "the server's answer",
                tokio::io::AsyncReadExt::read_to_end(&mut tls, &mut answer),
            )
            .await;
            let (_, state) = tls.get_ref();
            assert_eq!(
                state.handshake_kind(),
                Some(rustls::HandshakeKind::Full),
                "{alpn}"
            );
            assert_eq!(state.tls13_tickets_received(), 0, "{alpn}");
            assert!(!state.is_early_data_accepted(), "{alpn}");
        }
    }
}

#[tokio::test]
async fn resumption_is_refused_on_quic() {
    let cluster = Plan::on(CarrierKind::Quic).start().await;
    let pair = cluster.agent_pair("n9");
    let mut config = client_config(Some(&pair), cluster.authority.issuer(Role::Server).der());
    config.alpn_protocols = vec![b"towline/1".to_vec()];
    config.enable_early_data = true;
    let config = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(config));
    let server = cluster.server(0).link_address();
    let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    for _ in 0..3 {
        let connecting = endpoint
            .connect_with(config.clone(), server, "localhost")
            .unwrap();
        let connecting = match connecting.into_0rtt() {
            Ok(_) => panic!("a ticket was kept"),
            Err(connecting) => connecting,
        };
        let connection = expect("the handshake", connecting).await.unwrap();
        connection.close(0_u32.into(), b"");
        endpoint.wait_idle().await;
    }
}
