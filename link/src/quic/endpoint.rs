//! The agent's end: one UDP socket from which links to all its servers are made.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use prometheus_client::registry::Registry;
use quinn::{AsyncUdpSocket, ConnectionError, Endpoint, Runtime};
use towline_pki::telling::Telling;
use towline_pki::{PeerError, PeerVerifier};
use towline_proto::limits;
use towline_proto::reason::Reason;

use super::gather::Gathering;
use super::keys::EndpointKeys;
use super::link::{QuicLink, Unverified};
use super::socket::{self, BindError, BoundSocket, DropCounter, UdpBuffers};
use super::transport::{self, Options};
use super::{metrics, reason};
use crate::error::{ConnectError, detail};

/// Makes links to servers. Dropping it leaves its links alive.
#[derive(Debug)]
pub struct QuicEndpoint {
    endpoint: Endpoint,
    options: Options,
    socket: Mutex<Option<SocketFacts>>,
}

/// What is known about the kernel's socket, where there is one.
#[derive(Clone, Copy, Debug)]
pub(super) struct SocketFacts {
    pub(super) buffers: UdpBuffers,
    pub(super) drops: Option<DropCounter>,
}

/// Makes quinn's socket out of a bound one.
pub(super) fn wrap(
    bound: BoundSocket,
    address: SocketAddr,
) -> Result<(Arc<dyn AsyncUdpSocket>, SocketFacts), BindError> {
    let facts = SocketFacts {
        buffers: bound.buffers,
        drops: bound.drops,
    };
    let socket = Gathering
        .wrap_udp_socket(bound.socket)
        .map_err(|source| BindError::Socket { address, source })?;
    Ok((socket, facts))
}

/// Starts quinn on a socket.
pub(super) fn start(
    socket: Arc<dyn AsyncUdpSocket>,
    options: &Options,
    keys: &EndpointKeys,
    server: Option<quinn::ServerConfig>,
) -> Result<Endpoint, BindError> {
    let address = socket.local_addr().unwrap_or_else(|_| ANY.into());
    let config = transport::endpoint(options, keys);
    Endpoint::new_with_abstract_socket(config, server, socket, Arc::new(Gathering))
        .map_err(|source| BindError::Socket { address, source })
}

/// Any address of either family, any port.
const ANY: (Ipv6Addr, u16) = (Ipv6Addr::UNSPECIFIED, 0);

impl QuicEndpoint {
    /// On a free port, for both address families.
    pub fn new(options: Options) -> Result<Self, BindError> {
        Self::bind(ANY.into(), options)
    }

    /// On an address of our own.
    pub fn bind(address: SocketAddr, options: Options) -> Result<Self, BindError> {
        options.check()?;
        let (socket, facts) = wrap(socket::bind(address, options.udp_buffer)?, address)?;
        Self::on(socket, Some(facts), options)
    }

    /// On a socket of the caller's making; with [`Options::seed`] this is what simulations use.
    pub fn with_socket(
        socket: Arc<dyn AsyncUdpSocket>,
        options: Options,
    ) -> Result<Self, BindError> {
        options.check()?;
        Self::on(socket, None, options)
    }

    fn on(
        socket: Arc<dyn AsyncUdpSocket>,
        facts: Option<SocketFacts>,
        options: Options,
    ) -> Result<Self, BindError> {
        let endpoint = start(socket, &options, &EndpointKeys::ephemeral()?, None)?;
        Ok(Self {
            endpoint,
            options,
            socket: Mutex::new(facts),
        })
    }

    /// Where our packets come from, as far as the socket knows.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Socket buffers; `None` on a socket that is not the kernel's.
    pub fn buffers(&self) -> Option<UdpBuffers> {
        self.facts().map(|facts| facts.buffers)
    }

    fn facts(&self) -> Option<SocketFacts> {
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the socket's numbers to what a scrape shows.
    pub fn register(&self, registry: &mut Registry) {
        if let Some(facts) = self.facts() {
            metrics::register_socket(registry, facts.buffers, facts.drops);
        }
    }

    /// Goes on with a new socket on another port; links and their streams stay.
    pub fn rebind(&self) -> Result<(), BindError> {
        let any = match self.endpoint.local_addr() {
            Ok(SocketAddr::V4(_)) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
            _ => SocketAddr::from(ANY),
        };
        let (socket, facts) = wrap(socket::bind(any, self.options.udp_buffer)?, any)?;
        self.endpoint
            .rebind_abstract(socket)
            .map_err(|source| BindError::Socket {
                address: any,
                source,
            })?;
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = Some(facts);
        Ok(())
    }

    /// Goes on with another socket of the caller's making.
    pub fn rebind_with_socket(&self, socket: Arc<dyn AsyncUdpSocket>) -> io::Result<()> {
        self.endpoint.rebind_abstract(socket)
    }

    /// One attempt to make a verified link. Cancel-safe: a dropped call closes what it began.
    pub async fn connect(
        &self,
        server: SocketAddr,
        tls: Arc<rustls::ClientConfig>,
        verifier: &Arc<PeerVerifier>,
    ) -> Result<QuicLink, ConnectError> {
        let telling = Telling::new(Arc::clone(verifier));
        let tls = towline_pki::tls::telling(&tls, Arc::clone(&telling));
        let config =
            transport::client(&self.options, tls).map_err(|error| ConnectError::Handshake {
                server: server.to_string(),
                reason: Reason::LocalResources,
                detail: detail(error),
            })?;
        let connecting = self
            .endpoint
            .connect_with(config, server, &towline_pki::tls::server_name().to_str())
            .map_err(|error| ConnectError::Unreachable {
                server: server.to_string(),
                source: io::Error::new(io::ErrorKind::AddrNotAvailable, error),
            })?;
        let connection = tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, connecting)
            .await
            .unwrap_or(Err(ConnectionError::TimedOut))
            .map_err(|error| failed(server, &error, telling.said()))?;
        QuicLink::verify(connection, verifier, SystemTime::now()).map_err(|unverified| {
            let server = server.to_string();
            match unverified {
                Unverified::Peer(source) => ConnectError::Peer { server, source },
                Unverified::Alpn => ConnectError::Alpn { server },
            }
        })
    }

    /// Closes every link at once and makes no more.
    pub fn close(&self, reason: Reason) {
        self.endpoint.close(reason::to_code(reason), b"");
    }

    /// Waits until the peers of closed links were told.
    pub async fn wait_idle(&self) {
        self.endpoint.wait_idle().await;
    }
}

fn failed(server: SocketAddr, error: &ConnectionError, said: Option<PeerError>) -> ConnectError {
    let server = server.to_string();
    if let Some(source) = said {
        return ConnectError::Peer { server, source };
    }
    match reason::of_connection(error, None) {
        Reason::PeerSilent => ConnectError::Timeout {
            server,
            after: limits::HANDSHAKE_TIMEOUT,
        },
        Reason::Version => ConnectError::Alpn { server },
        reason => ConnectError::Handshake {
            server,
            reason,
            detail: detail(error),
        },
    }
}
