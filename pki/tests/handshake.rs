//! TLS handshakes in memory: both ends verify, every time, and the peer is told why not.

mod cluster;

use std::sync::Arc;

use cluster::{Cluster, DAY, Paper, now};
use rustls::crypto::CryptoProvider;
use rustls::time_provider::TimeProvider;
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, Error, NamedGroup, ServerConfig,
    ServerConnection,
};
use rustls_pki_types::UnixTime;
use towline_pki::{PeerError, Usage, tls};
use towline_proto::id::Role;
use towline_proto::reason::Reason;

/// The time of [`cluster::now`], for configurations.
#[derive(Debug)]
struct Fixed;

impl TimeProvider for Fixed {
    fn current_time(&self) -> Option<UnixTime> {
        let since = now().duration_since(std::time::UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(since))
    }
}

/// How a handshake ended, seen from the client and from the server.
struct Outcome {
    client: Result<(), Error>,
    server: Result<(), Error>,
    connections: (ClientConnection, ServerConnection),
}

fn shake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Outcome {
    let mut client_config = (*client).clone();
    client_config.time_provider = Arc::new(Fixed);
    let mut server_config = (*server).clone();
    server_config.time_provider = Arc::new(Fixed);
    let mut client = ClientConnection::new(client_config.into(), tls::server_name()).unwrap();
    let mut server = ServerConnection::new(server_config.into()).unwrap();
    let (mut client_end, mut server_end) = (Ok(()), Ok(()));
    // A handshake takes three flights; four rounds leave room for alerts.
    for _ in 0..4 {
        let flight = drain(|out| client.write_tls(out));
        server_end = server_end.and(feed(Connected::Server(&mut server), &flight));
        let flight = drain(|out| server.write_tls(out));
        client_end = client_end.and(feed(Connected::Client(&mut client), &flight));
    }
    Outcome {
        client: client_end,
        server: server_end,
        connections: (client, server),
    }
}

/// The two kinds of connection behind what feeding needs.
enum Connected<'a> {
    Client(&'a mut ClientConnection),
    Server(&'a mut ServerConnection),
}

fn feed(mut to: Connected<'_>, mut flight: &[u8]) -> Result<(), Error> {
    while !flight.is_empty() {
        match &mut to {
            Connected::Client(c) => {
                c.read_tls(&mut flight).unwrap();
                c.process_new_packets()?;
            }
            Connected::Server(s) => {
                s.read_tls(&mut flight).unwrap();
                s.process_new_packets()?;
            }
        }
    }
    Ok(())
}

fn drain(mut write: impl FnMut(&mut Vec<u8>) -> std::io::Result<usize>) -> Vec<u8> {
    let mut out = Vec::new();
    while write(&mut out).unwrap() > 0 {}
    out
}

struct Ends {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

fn link(c: &Cluster) -> Ends {
    Ends {
        client: tls::link_client(&c.credentials(Role::Agent, "n1"), c.verifier(Role::Server))
            .unwrap(),
        server: tls::link_server(&c.credentials(Role::Server, "cp"), c.verifier(Role::Agent))
            .unwrap(),
    }
}

fn presenting(c: &Cluster, paper: &Paper) -> Arc<ClientConfig> {
    let own = Some((paper.chain.clone(), paper.key_der()));
    tls::presenting::link_client(own, c.verifier(Role::Server)).unwrap()
}

#[test]
fn both_ends_verify_and_speak_what_the_design_says() {
    let c = Cluster::new("prod");
    let ends = link(&c);
    let outcome = shake(ends.client, ends.server);
    outcome.client.unwrap();
    outcome.server.unwrap();
    let (client, server) = outcome.connections;
    assert!(!client.is_handshaking() && !server.is_handshaking());
    assert_eq!(client.alpn_protocol(), Some(&b"towline/1"[..]));
    let group = client.negotiated_key_exchange_group().unwrap();
    assert_eq!(group.name(), NamedGroup::X25519MLKEM768);
    let suite = client.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    let seen = c.verifier(Role::Agent);
    let peer = seen
        .verify(server.peer_certificates().unwrap(), now())
        .unwrap();
    assert_eq!(peer.identity().name.as_str(), "n1");
    assert_eq!(server.server_name(), None, "no SNI is sent");
}

#[test]
fn the_door_over_tcp_takes_clients_and_only_them() {
    let c = Cluster::new("prod");
    let server = c.credentials(Role::Server, "cp");
    let door = || tls::door_server(&server, c.verifier(Role::Client)).unwrap();
    let client = |role| {
        let own = c.credentials(role, "kube-apiserver");
        tls::door_client(&own, c.verifier(Role::Server)).unwrap()
    };
    let outcome = shake(client(Role::Client), door());
    outcome.server.unwrap();
    assert_eq!(
        outcome.connections.0.alpn_protocol(),
        Some(&b"http/1.1"[..])
    );
    for role in [Role::Operator, Role::Server, Role::Agent] {
        let error = shake(client(role), door()).server.unwrap_err();
        assert!(PeerError::from_rustls(&error).is_some(), "{role}: {error}");
    }
}

#[test]
fn a_link_is_never_resumed() {
    let c = Cluster::new("prod");
    let ends = link(&c);
    for _ in 0..3 {
        let outcome = shake(ends.client.clone(), ends.server.clone());
        outcome.server.unwrap();
        let kind = outcome.connections.1.handshake_kind();
        assert_eq!(kind, Some(rustls::HandshakeKind::Full));
    }
    // Denied between two connections of the same client configuration: out.
    let deny = "spiffe://prod/towline/agent/n1";
    let own = c.credentials(Role::Server, "cp");
    let server = tls::link_server(&own, c.verifier_denying(Role::Agent, deny)).unwrap();
    let error = shake(ends.client, server).server.unwrap_err();
    let cause = PeerError::from_rustls(&error).unwrap();
    assert!(matches!(cause, PeerError::DeniedInHandshake), "{cause}");
    assert_eq!(cause.reason(), Reason::Denied);
}

#[test]
fn a_refused_client_is_told_why_where_tls_has_a_word_for_it() {
    let c = Cluster::new("prod");
    let stranger = Cluster::new("prod");
    let mut expired = c.leaf(Role::Agent, "n1");
    expired.not_after = now() - DAY / 2;
    let mut early = c.leaf(Role::Agent, "n1");
    early.not_before = now() + DAY;
    let mut usage = c.leaf(Role::Agent, "n1");
    usage.usages = vec![Usage::ServerAuth];
    let mut two = c.leaf(Role::Agent, "n1");
    two.uris.push("spiffe://prod/towline/agent/n2".into());
    let mut none = c.leaf(Role::Agent, "n1");
    none.uris.clear();
    let agent = |spec| c.mint(Role::Agent, spec);
    use AlertDescription as Alert;
    for (paper, alert, cause) in [
        (agent(&expired), Alert::CertificateExpired, "expired"),
        (agent(&early), Alert::CertificateExpired, "not-yet-valid"),
        (
            stranger.paper(Role::Agent, "n1"),
            Alert::UnknownCA,
            "unknown-issuer",
        ),
        (agent(&usage), Alert::UnsupportedCertificate, "wrong-usage"),
        (agent(&two), Alert::CertificateUnknown, "many-identities"),
        (agent(&none), Alert::CertificateUnknown, "no-identity"),
        (
            c.paper(Role::Client, "x"),
            Alert::UnknownCA,
            "unknown-issuer",
        ),
        (
            c.paper(Role::Server, "cp"),
            Alert::UnsupportedCertificate,
            "wrong-usage",
        ),
    ] {
        let outcome = shake(presenting(&c, &paper), link(&c).server);
        let error = outcome.server.unwrap_err();
        let exact = PeerError::from_rustls(&error).unwrap();
        assert_eq!(exact.as_str(), cause, "{error:?}");
        assert_eq!(
            outcome.client.unwrap_err(),
            Error::AlertReceived(alert),
            "{cause}"
        );
    }
}

#[test]
fn a_client_without_certificate_is_refused() {
    let c = Cluster::new("prod");
    let client = tls::presenting::link_client(None, c.verifier(Role::Server)).unwrap();
    let outcome = shake(client, link(&c).server);
    let error = outcome.server.unwrap_err();
    let exact = PeerError::from_rustls(&error).unwrap();
    assert_eq!(exact, PeerError::NoCertificate);
    let wrapped = std::io::Error::new(std::io::ErrorKind::InvalidData, error);
    assert_eq!(PeerError::from_io(&wrapped), Some(PeerError::NoCertificate));
}

#[test]
fn an_agent_refuses_what_is_not_a_server_of_its_cluster() {
    let c = Cluster::new("prod");
    let own = c.credentials(Role::Agent, "n1");
    let mut usage = c.leaf(Role::Server, "cp");
    usage.usages = vec![Usage::ClientAuth];
    let mut foreign = c.leaf(Role::Server, "cp");
    foreign.uris = vec!["spiffe://staging/towline/server/cp".into()];
    for (paper, cause) in [
        (c.paper(Role::Client, "cp"), "wrong-usage"),
        (c.mint(Role::Server, &usage), "wrong-usage"),
        (c.mint(Role::Server, &foreign), "wrong-cluster"),
        (c.paper(Role::Agent, "n2"), "wrong-usage"),
        (
            Cluster::new("prod").paper(Role::Server, "cp"),
            "unknown-issuer",
        ),
    ] {
        let client = tls::link_client(&own, c.verifier(Role::Server)).unwrap();
        let (chain, key) = (paper.chain.clone(), paper.key_der());
        let verifier = c.verifier(Role::Agent);
        let server = tls::presenting::link_server(chain, key, verifier).unwrap();
        let error = shake(client, server).client.unwrap_err();
        assert_eq!(PeerError::from_rustls(&error).unwrap().as_str(), cause);
    }
}

#[test]
fn a_stolen_certificate_without_its_key_is_useless() {
    let c = Cluster::new("prod");
    let genuine = c.paper(Role::Agent, "n1");
    let thief = Paper {
        chain: genuine.chain,
        key: cluster::new_key(),
    };
    let outcome = shake(presenting(&c, &thief), link(&c).server);
    assert!(outcome.server.is_err());
}

#[test]
fn tls_1_2_is_not_spoken_and_no_process_default_is_set() {
    let c = Cluster::new("prod");
    let ends = link(&c);
    let offered = ends.client.crypto_provider();
    assert!(
        offered
            .cipher_suites
            .iter()
            .all(|suite| suite.tls13().is_some())
    );
    assert_eq!(offered.kx_groups[0].name(), NamedGroup::X25519MLKEM768);
    assert_eq!(ends.server.send_tls13_tickets, 0);
    assert_eq!(ends.server.max_early_data_size, 0);
    assert!(!ends.server.send_half_rtt_data);
    assert!(!ends.server.session_storage.can_cache());
    assert!(!ends.client.enable_early_data);
    assert!(CryptoProvider::get_default().is_none());
}
