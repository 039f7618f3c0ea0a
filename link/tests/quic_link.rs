//! Who becomes a QUIC link and who does not, and what a link says about itself.

mod pair;

use std::sync::Arc;
use std::time::Duration;

use pair::{Cluster, LOOPBACK, Pair, listener_for, wire::Wire};
use towline_link::carrier::{Carrier, CarrierKind};
use towline_link::error::ConnectError;
use towline_link::quic::{EndpointKeys, Options, QuicEndpoint, QuicListener};
use towline_pki::PeerError;
use towline_proto::limits;
use towline_proto::reason::Reason;

#[tokio::test]
async fn both_ends_know_who_the_other_is() {
    let pair = Pair::new().await;
    assert_eq!(pair.server.peer().identity().name.to_string(), "node-1");
    assert_eq!(pair.agent.peer().identity().name.to_string(), "server-1");
    assert_eq!(pair.agent.kind(), CarrierKind::Quic);
    assert_eq!(pair.agent.remote_address().ip(), LOOPBACK.ip());
    assert_eq!(pair.server.remote_address().ip(), LOOPBACK.ip());
    assert_eq!(pair.listener.metrics().verified(), 1);
    assert_eq!(pair.listener.metrics().in_flight(), 0);
    assert!(pair.agent.stats().rtt.is_some());
}

/// The same client configuration again is a full handshake again: the verifiers run.
#[tokio::test]
async fn nothing_is_resumed() {
    let cluster = Cluster::new("prod");
    let listener = listener_for(&cluster, Options::default());
    let server = listener.local_address().unwrap();
    let endpoint = QuicEndpoint::new(Options::default()).unwrap();
    let agent = cluster.agent("node-1");
    let (tls, verifier) = cluster.agent_side(&agent);
    for _ in 0..2 {
        let connecting = endpoint.connect(server, tls.clone(), &verifier);
        let (link, accepted) = tokio::join!(connecting, listener.accept());
        link.unwrap();
        accepted.unwrap();
    }
    // Revoked: the same client configuration is refused though it was welcome before.
    let (server_tls, server_verifier) = cluster.server_side_denying(&agent);
    listener
        .replace_config(server_tls, server_verifier)
        .unwrap();
    let reason = match endpoint.connect(server, tls, &verifier).await {
        Ok(link) => link.closed().await,
        Err(error) => error.reason(),
    };
    assert_eq!(reason, Reason::Denied, "the alert says it");
    assert_eq!(listener.metrics().verified(), 2);
    pair::until(|| listener.metrics().failed() == 1).await;
}

#[tokio::test]
async fn an_agent_says_in_a_sentence_why_it_refuses_a_server() {
    let cluster = Cluster::new("prod");
    let listener = listener_for(&cluster, Options::default());
    let server = listener.local_address().unwrap();
    let other = Cluster::new("prod");
    let endpoint = QuicEndpoint::new(Options::default()).unwrap();
    let (tls, verifier) = other.agent_side(&other.agent("node-1"));
    let refused = endpoint.connect(server, tls, &verifier).await.err();
    let Some(ConnectError::Peer { source, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(source, PeerError::UnknownIssuer);
    assert_eq!(source.reason(), Reason::BadCertificate);
}

#[tokio::test]
async fn an_agent_of_another_cluster_or_another_role_is_refused() {
    let cluster = Cluster::new("prod");
    let listener = listener_for(&cluster, Options::default());
    let server = listener.local_address().unwrap();
    let stranger = Cluster::new("prod");
    let other = Cluster::new("test");
    let refused = [
        stranger.agent("node-1"),
        other.agent("node-1"),
        cluster.server("server-2"),
        cluster.agent_expired("node-1"),
    ];
    for (count, credentials) in (1u64..).zip(&refused) {
        let endpoint = QuicEndpoint::new(Options::default()).unwrap();
        // It trusts the right server, so it is the server who refuses.
        let (tls, verifier) = cluster.agent_side(credentials);
        let reason = match endpoint.connect(server, tls, &verifier).await {
            Ok(link) => link.closed().await,
            Err(error) => error.reason(),
        };
        assert_ne!(reason, Reason::Done);
        assert!(
            !matches!(reason, Reason::LinkLost | Reason::PeerSilent),
            "{reason}"
        );
        pair::until(|| listener.metrics().failed() == count).await;
    }
    assert_eq!(listener.metrics().verified(), 0);
}

#[tokio::test]
async fn an_agent_trusts_no_server_but_one_of_its_cluster() {
    let cluster = Cluster::new("prod");
    let impostor = Cluster::new("prod");
    let agent = cluster.agent("node-1");
    let listener = listener_for(&impostor, Options::default());
    let endpoint = QuicEndpoint::new(Options::default()).unwrap();
    let (tls, verifier) = cluster.agent_side(&agent);
    let server = listener.local_address().unwrap();
    let error = endpoint
        .connect(server, tls, &verifier)
        .await
        .err()
        .unwrap();
    assert!(
        matches!(
            error,
            ConnectError::Handshake { .. } | ConnectError::Peer { .. }
        ),
        "{error}"
    );
    assert_eq!(error.reason(), Reason::BadCertificate, "{error}");
}

#[tokio::test]
async fn links_outlive_a_reload_of_the_certificate() {
    let pair = Pair::new().await;
    let (tls, verifier) = pair.cluster.server_side(&pair.cluster.server("server-1"));
    pair.listener.replace_config(tls, verifier).unwrap();
    let (mut ours, mut theirs) = pair.stream().await;
    ours.send.send("still here".into()).await.unwrap();
    ours.send.finish();
    assert_eq!(
        pair::read_all(&mut theirs.recv).await.unwrap(),
        b"still here"
    );
    assert_eq!(
        pair.again().await.peer().identity().name.to_string(),
        "server-1"
    );
}

#[tokio::test]
async fn a_drained_listener_refuses_and_keeps_its_links() {
    let pair = Pair::new().await;
    pair.listener.stop_accepting();
    let error = pair.try_again().await.err().unwrap();
    assert_eq!(error.reason(), Reason::Overloaded, "{error}");
    assert_eq!(pair.listener.metrics().refused(), 1);
    pair.stream().await;
}

#[tokio::test]
async fn a_closed_listener_tells_its_links_and_ends() {
    let pair = Pair::new().await;
    pair.listener.close(Reason::Shutdown);
    assert_eq!(pair.agent.closed().await, Reason::Shutdown);
    assert_eq!(pair.server.closed().await, Reason::Shutdown);
    assert!(pair.listener.accept().await.is_none());
    pair.listener.wait_idle().await;
}

#[tokio::test]
async fn streams_survive_a_change_of_the_agents_address() {
    let pair = Pair::new().await;
    let (mut ours, mut theirs) = pair.stream().await;
    let before = pair.server.remote_address();
    for round in 0..3u8 {
        pair.endpoint.rebind().unwrap();
        theirs.send.send(vec![round].into()).await.unwrap();
        assert_eq!(ours.recv.recv(1).await.unwrap().unwrap()[..], [round]);
        ours.send.send(vec![round].into()).await.unwrap();
        assert_eq!(theirs.recv.recv(1).await.unwrap().unwrap()[..], [round]);
    }
    assert_ne!(pair.server.remote_address(), before);
    assert_eq!(pair.listener.metrics().verified(), 1);
}

// ---- on a paused clock, over memory ----------------------------------------------------------

fn seeded(seed: u8) -> Options {
    Options {
        seed: Some([seed; 32]),
        ..Options::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_is_given_up_in_time() {
    let wire = Arc::new(Wire::default());
    let endpoint = QuicEndpoint::with_socket(wire.socket(1), seeded(1)).unwrap();
    let cluster = Cluster::new("prod");
    let (tls, verifier) = cluster.agent_side(&cluster.agent("node-1"));
    let begin = tokio::time::Instant::now();
    let nobody = "10.0.0.1:9".parse().unwrap();
    let error = endpoint
        .connect(nobody, tls, &verifier)
        .await
        .err()
        .unwrap();
    assert!(matches!(error, ConnectError::Timeout { .. }), "{error}");
    assert_eq!(error.reason(), Reason::Unreachable);
    assert_eq!(begin.elapsed(), limits::HANDSHAKE_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn silence_ends_a_link_and_a_handshake() {
    let wire = Arc::new(Wire::default());
    let cluster = Cluster::new("prod");
    let (tls, verifier) = cluster.server_side(&cluster.server("server-1"));
    let keys = EndpointKeys::ephemeral().unwrap();
    let listener =
        QuicListener::with_socket(wire.socket(1), tls, verifier, &keys, seeded(1)).unwrap();
    let endpoint = QuicEndpoint::with_socket(wire.socket(2), seeded(2)).unwrap();
    let (tls, verifier) = cluster.agent_side(&cluster.agent("node-1"));
    let server = listener.local_address().unwrap();
    let connecting = endpoint.connect(server, tls.clone(), &verifier);
    let (agent, link) = tokio::join!(connecting, listener.accept());
    let (agent, link) = (agent.unwrap(), link.unwrap());

    // An idle link lives as long as the path does.
    tokio::time::sleep(Duration::from_secs(600)).await;
    let mut stream = link.open().await.unwrap();
    stream.send.send("x".into()).await.unwrap();
    agent.accept().await.unwrap();

    // Cut in the middle of a second handshake: the server hears the beginning only.
    wire.cut_after(2);
    let cut = tokio::time::Instant::now();
    let (second, reason, other) = tokio::join!(
        endpoint.connect(server, tls, &verifier),
        link.closed(),
        agent.closed()
    );
    assert_eq!(second.err().unwrap().reason(), Reason::Unreachable);
    assert_eq!((reason, other), (Reason::PeerSilent, Reason::PeerSilent));
    assert!(
        cut.elapsed() <= limits::QUIC_IDLE + Duration::from_secs(2),
        "{:?}",
        cut.elapsed()
    );
    assert!(cut.elapsed() > limits::PEER_SILENT, "{:?}", cut.elapsed());
    assert_eq!(listener.metrics().timed_out(), 1);
    assert_eq!(listener.metrics().in_flight(), 0);
}
