//! A server that was killed says nothing; its successor with the same keys does.

mod pair;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pair::wire::Wire;
use pair::{Cluster, LOOPBACK};
use towline_link::carrier::Carrier;
use towline_link::quic::{EndpointKeys, Options, QuicEndpoint, QuicListener};
use towline_proto::limits;
use towline_proto::reason::Reason;

struct StateDirectory(PathBuf);

impl StateDirectory {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("towline-restart-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }
}

impl Drop for StateDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server on a runtime of its own, so that it can die without a word.
fn server(
    cluster: &Cluster,
    address: SocketAddr,
    state: &StateDirectory,
) -> (tokio::runtime::Runtime, QuicListener) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let keys = EndpointKeys::load_or_create(&state.0).unwrap();
    let (tls, verifier) = cluster.server_side(&cluster.server("server-1"));
    let listener = {
        let _entered = runtime.enter();
        QuicListener::bind(address, tls, verifier, &keys, Options::default()).unwrap()
    };
    (runtime, listener)
}

#[test]
fn a_killed_server_ends_its_links_when_it_is_back() {
    let cluster = Cluster::new("prod");
    let state = StateDirectory::new("reset");
    let (first, listener) = server(&cluster, LOOPBACK, &state);
    let address = listener.local_address().unwrap();

    let agents = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let endpoint = agents.block_on(async { QuicEndpoint::new(Options::default()).unwrap() });
    let (tls, verifier) = cluster.agent_side(&cluster.agent("node-1"));
    let (link, at_server) = agents.block_on(async {
        tokio::join!(endpoint.connect(address, tls.clone(), &verifier), async {
            listener.accept().await.unwrap()
        })
    });
    let link = link.unwrap();

    // The runtime goes first: what is dropped after it can send nothing.
    first.shutdown_timeout(Duration::from_secs(5));
    drop(at_server);
    drop(listener);

    let (second, listener) = server(&cluster, address, &state);
    let back = Instant::now();
    let reason = agents.block_on(link.closed());
    let waited = back.elapsed();
    assert_eq!(reason, Reason::LinkLost);
    assert!(
        waited < 2 * limits::QUIC_KEEP_ALIVE,
        "heard of it after {waited:?}"
    );

    agents.block_on(async {
        let (link, taken) =
            tokio::join!(endpoint.connect(address, tls, &verifier), listener.accept());
        link.unwrap();
        taken.unwrap();
    });
    drop(listener);
    second.shutdown_timeout(Duration::from_secs(5));
}

/// A link to a server that dies without a word; how it ends when a successor with these keys
/// listens at the same address, and after how long.
async fn ends_with(first: &EndpointKeys, second: &EndpointKeys) -> (Reason, Duration) {
    let wire = Arc::new(Wire::default());
    let cluster = Cluster::new("prod");
    let (tls, verifier) = cluster.server_side(&cluster.server("server-1"));
    let listen = |keys| {
        let (tls, verifier) = (tls.clone(), verifier.clone());
        QuicListener::with_socket(wire.socket(1), tls, verifier, keys, Options::default()).unwrap()
    };
    let listener = listen(first);
    let endpoint = QuicEndpoint::with_socket(wire.socket(2), Options::default()).unwrap();
    let (client, peers) = cluster.agent_side(&cluster.agent("node-1"));
    let server = listener.local_address().unwrap();
    let (link, at_server) =
        tokio::join!(endpoint.connect(server, client, &peers), listener.accept());
    let link = link.unwrap();
    // Until the path is explored, so that only the keep-alive speaks.
    tokio::time::sleep(Duration::from_secs(60)).await;

    wire.cut_after(0);
    drop(at_server);
    listener.wait_idle().await;
    drop(listener);
    let _successor = listen(second);
    wire.mend();
    let back = tokio::time::Instant::now();
    (link.closed().await, back.elapsed())
}

#[tokio::test(start_paused = true)]
async fn only_a_successor_with_the_same_keys_can_end_a_link() {
    let keys = EndpointKeys::ephemeral().unwrap();
    let (reason, after) = ends_with(&keys, &keys).await;
    assert_eq!(reason, Reason::LinkLost);
    assert!(
        after <= limits::QUIC_KEEP_ALIVE + Duration::from_millis(500),
        "{after:?}"
    );

    let (reason, after) = ends_with(&keys, &EndpointKeys::ephemeral().unwrap()).await;
    assert_eq!(reason, Reason::PeerSilent);
    assert!(after > limits::PEER_SILENT, "{after:?}");
}
