//! Both ends of a link on either carrier, and tests that run on both.

// Every test file compiles its own copy and uses a part of it.
#![allow(dead_code, unreachable_pub)]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use towline_link::carrier::{Carrier, CarrierKind, Stream};
use towline_link::quic::{EndpointKeys, Options, QuicEndpoint, QuicListener};
use towline_link::tls::{self, TlsOptions};

use crate::pair::wire::Wire;
use crate::pair::{Cluster, LOOPBACK, Pair};

/// Runs each function on both carriers, over the kernel's loopback.
#[macro_export]
macro_rules! on_both_carriers {
    ($($(#[$attribute:meta])* $name:ident),* $(,)?) => {
        mod quic {
            $(#[tokio::test] $(#[$attribute])* async fn $name() {
                $crate::both::in_time(super::$name($crate::both::Ends::on_quic().await)).await
            })*
        }
        mod tls {
            $(#[tokio::test] $(#[$attribute])* async fn $name() {
                $crate::both::in_time(super::$name($crate::both::Ends::on_tls().await)).await
            })*
        }
    };
}

/// Runs each function on both carriers, in memory and on a clock that jumps.
#[macro_export]
macro_rules! on_both_carriers_paused {
    ($($name:ident),* $(,)?) => {
        mod quic {
            $(#[tokio::test(start_paused = true)] async fn $name() {
                $crate::both::in_time(super::$name($crate::both::Ends::on_quic_in_memory().await)).await
            })*
        }
        mod tls {
            $(#[tokio::test(start_paused = true)] async fn $name() {
                $crate::both::in_time(super::$name($crate::both::Ends::on_tls_in_memory().await)).await
            })*
        }
    };
}

/// No test takes longer, on its own clock: one that waits for what never comes fails.
const LIMIT: Duration = Duration::from_secs(300);

pub async fn in_time(test: impl Future<Output = ()>) {
    let ended = tokio::time::timeout(LIMIT, Box::pin(test)).await;
    assert!(ended.is_ok(), "waits for ever");
}

/// Both ends of a link, verified and not greeted.
pub struct Ends {
    pub agent: Arc<dyn Carrier>,
    pub server: Arc<dyn Carrier>,
    /// What has to live as long.
    _kept: Box<dyn std::any::Any + Send>,
}

impl Ends {
    pub async fn on_quic() -> Self {
        let pair = Pair::new().await;
        Self {
            agent: pair.agent.clone(),
            server: pair.server.clone(),
            _kept: Box::new((pair.listener, pair.endpoint)),
        }
    }

    pub async fn on_tls() -> Self {
        let cluster = Cluster::new("prod");
        let agent = cluster.agent_side(&cluster.agent("node-1"));
        let server = cluster.server_side(&cluster.server("server-1"));
        let listener = TcpListener::bind(LOOPBACK).await.unwrap();
        let address = listener.local_addr().unwrap().to_string().parse().unwrap();
        let options = TlsOptions::agent();
        let (agent, server) = tokio::join!(
            tls::connect(&address, agent.0, agent.1, None, &options),
            async {
                let (tcp, _) = listener.accept().await.unwrap();
                tls::accept(tcp, server.0, server.1, &TlsOptions::server()).await
            }
        );
        Self {
            agent: agent.unwrap(),
            server: server.unwrap(),
            _kept: Box::new(()),
        }
    }

    pub async fn on_tls_in_memory() -> Self {
        let cluster = Cluster::new("prod");
        let agent = cluster.agent_side(&cluster.agent("node-1"));
        let server = cluster.server_side(&cluster.server("server-1"));
        let (near, far) = tokio::io::duplex(64 * 1024);
        let target = "server.example:8091".parse().unwrap();
        let (options, taking) = (TlsOptions::agent(), TlsOptions::server());
        let (agent, server) = tokio::join!(
            tls::connect_on(near, LOOPBACK, &target, agent.0, agent.1, &options),
            tls::accept_on(far, LOOPBACK, server.0, server.1, &taking),
        );
        Self {
            agent: agent.unwrap(),
            server: server.unwrap(),
            _kept: Box::new(()),
        }
    }

    pub async fn on_quic_in_memory() -> Self {
        let cluster = Cluster::new("prod");
        let agent = cluster.agent_side(&cluster.agent("node-1"));
        let server = cluster.server_side(&cluster.server("server-1"));
        let wire = Arc::new(Wire::default());
        let keys = EndpointKeys::ephemeral().unwrap();
        let listener = QuicListener::with_socket(
            wire.socket(8091),
            server.0,
            server.1,
            &keys,
            Options::default(),
        )
        .unwrap();
        let endpoint = QuicEndpoint::with_socket(wire.socket(9000), Options::default()).unwrap();
        let address = SocketAddr::from((Ipv4Addr::new(10, 0, 0, 1), 8091));
        let (agent, server) = tokio::join!(
            endpoint.connect(address, agent.0, &agent.1),
            listener.accept()
        );
        Self {
            agent: Arc::new(agent.unwrap()),
            server: Arc::new(server.unwrap()),
            _kept: Box::new((listener, endpoint)),
        }
    }

    pub fn kind(&self) -> CarrierKind {
        self.agent.kind()
    }

    /// A stream that the server opened and the agent accepted: the server's end first. It shows
    /// at the agent with its first byte, so one is sent and taken.
    pub async fn dial(&self) -> (Stream, Stream) {
        let mut here = self.server.open().await.unwrap();
        here.send.send("!".into()).await.unwrap();
        let mut there = self.agent.accept().await.unwrap();
        assert_eq!(there.recv.recv(1).await.unwrap().unwrap(), "!");
        (here, there)
    }
}

/// Two ends of one TCP connection.
pub async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let (near, far) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    (near.unwrap(), far.unwrap().0)
}
