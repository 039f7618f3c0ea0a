//! The server's end: takes connections, and hands out those whose peer is verified.
//!
//! Handshakes never hold the accept loop up, and their number is bounded: from a part of the
//! limit on a peer has to prove its address (Retry, no state here), above the limit it is refused;
//! of those that did, one address has its share and no more.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use prometheus_client::registry::Registry;
use quinn::{AsyncUdpSocket, Endpoint, Incoming};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use towline_pki::PeerVerifier;
use towline_proto::limits;
use towline_proto::reason::Reason;

use super::endpoint::{self, SocketFacts};
use super::keys::EndpointKeys;
use super::link::QuicLink;
use super::metrics::{self, QuicMetrics};
use super::reason;
use super::socket::{self, BindError, UdpBuffers};
use super::transport::{self, Options, OptionsError};
use crate::error::detail;
use crate::process::shares::{Share, Shares, network};

/// Takes QUIC connections. Dropping it stops taking new ones and leaves the links alive.
pub struct QuicListener {
    endpoint: Endpoint,
    options: Options,
    facts: Option<SocketFacts>,
    door: Arc<Door>,
    links: Mutex<mpsc::Receiver<QuicLink>>,
    accepting: AbortHandle,
}

/// What the accept loop and its handshakes share.
struct Door {
    verifier: ArcSwap<PeerVerifier>,
    draining: AtomicBool,
    handshakes: Arc<Semaphore>,
    /// Of those whose address is proved: a forged one must not use up somebody's share.
    shares: Shares<IpAddr>,
    retry_below: usize,
    metrics: QuicMetrics,
}

impl QuicListener {
    /// On an address of the kernel. `[::]` serves both address families.
    pub fn bind(
        address: SocketAddr,
        tls: Arc<rustls::ServerConfig>,
        verifier: Arc<PeerVerifier>,
        keys: &EndpointKeys,
        options: Options,
    ) -> Result<Self, BindError> {
        options.check()?;
        let (socket, facts) = endpoint::wrap(socket::bind(address, options.udp_buffer)?, address)?;
        Self::on(socket, Some(facts), tls, verifier, keys, options)
    }

    /// On a socket of the caller's making; with [`Options::seed`] this is what simulations use.
    pub fn with_socket(
        socket: Arc<dyn AsyncUdpSocket>,
        tls: Arc<rustls::ServerConfig>,
        verifier: Arc<PeerVerifier>,
        keys: &EndpointKeys,
        options: Options,
    ) -> Result<Self, BindError> {
        options.check()?;
        Self::on(socket, None, tls, verifier, keys, options)
    }

    fn on(
        socket: Arc<dyn AsyncUdpSocket>,
        facts: Option<SocketFacts>,
        tls: Arc<rustls::ServerConfig>,
        verifier: Arc<PeerVerifier>,
        keys: &EndpointKeys,
        options: Options,
    ) -> Result<Self, BindError> {
        let server = transport::server(&options, tls)?;
        let endpoint = endpoint::start(socket, &options, keys, Some(server))?;
        let handshakes = options.handshakes.clamp(1, Semaphore::MAX_PERMITS);
        let door = Arc::new(Door {
            verifier: ArcSwap::new(verifier),
            draining: AtomicBool::new(false),
            handshakes: Arc::new(Semaphore::new(handshakes)),
            shares: Shares::new(options.handshakes_per_address),
            retry_below: handshakes - handshakes / limits::QUIC_RETRY_FROM_PART,
            metrics: QuicMetrics::default(),
        });
        // One place is enough: a handshake keeps its permit until its link was taken, so what
        // waits here is bounded by the handshakes.
        let (deliver, links) = mpsc::channel(1);
        let accepting =
            tokio::spawn(accept_loop(endpoint.clone(), door.clone(), deliver)).abort_handle();
        Ok(Self {
            endpoint,
            options,
            facts,
            door,
            links: Mutex::new(links),
            accepting,
        })
    }

    /// The next verified link; `None` after [`QuicListener::close`]. Cancel-safe.
    pub async fn accept(&self) -> Option<QuicLink> {
        self.links.lock().await.recv().await
    }

    /// Handshakes from now on use these; links live on.
    pub fn replace_config(
        &self,
        tls: Arc<rustls::ServerConfig>,
        verifier: Arc<PeerVerifier>,
    ) -> Result<(), OptionsError> {
        let server = transport::server(&self.options, tls)?;
        // The verifier first: a handshake in between is judged by the newer rules.
        self.door.verifier.store(verifier);
        self.endpoint.set_server_config(Some(server));
        Ok(())
    }

    /// Where it listens.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Socket buffers; `None` on a socket that is not the kernel's.
    pub fn buffers(&self) -> Option<UdpBuffers> {
        self.facts.map(|facts| facts.buffers)
    }

    /// What is counted.
    pub fn metrics(&self) -> &QuicMetrics {
        &self.door.metrics
    }

    /// Adds the numbers of handshakes and socket to what a scrape shows.
    pub fn register(&self, registry: &mut Registry) {
        self.door.metrics.register(registry);
        if let Some(facts) = self.facts {
            metrics::register_socket(registry, facts.buffers, facts.drops);
        }
    }

    /// Refuses new connections from now on; links live on.
    pub fn stop_accepting(&self) {
        self.door.draining.store(true, Ordering::Relaxed);
    }

    /// Closes every link at once and takes no more.
    pub fn close(&self, reason: Reason) {
        self.endpoint.close(reason::to_code(reason), b"");
    }

    /// Waits until the peers of closed links were told.
    pub async fn wait_idle(&self) {
        self.endpoint.wait_idle().await;
    }
}

impl Drop for QuicListener {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Owns every handshake: they end with it.
async fn accept_loop(endpoint: Endpoint, door: Arc<Door>, deliver: mpsc::Sender<QuicLink>) {
    let mut handshakes = JoinSet::new();
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => incoming,
                None => break,
            },
            Some(ended) = handshakes.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a QUIC handshake task ended badly");
                }
                continue;
            }
        };
        if let Some((incoming, place)) = door.admit(incoming) {
            handshakes.spawn(handshake(incoming, place, door.clone(), deliver.clone()));
        }
    }
}

/// Among all handshakes, and among those of one address.
type Place = (OwnedSemaphorePermit, Option<Share<IpAddr>>);

impl Door {
    fn admit(&self, incoming: Incoming) -> Option<(Incoming, Place)> {
        if self.draining.load(Ordering::Relaxed) {
            self.refuse(incoming);
            return None;
        }
        let proved = incoming.remote_address_validated();
        if self.handshakes.available_permits() < self.retry_below && !proved {
            self.metrics.retried.inc();
            // Fails only for validated addresses; then the attempt is dropped, which refuses it.
            let _ = incoming.retry();
            return None;
        }
        let address = network(incoming.remote_address().ip());
        let share = match proved.then(|| self.shares.take(&address)) {
            Some(None) => {
                self.metrics.crowded.inc();
                incoming.refuse();
                return None;
            }
            share => share.flatten(),
        };
        match self.handshakes.clone().try_acquire_owned() {
            Ok(permit) => Some((incoming, (permit, share))),
            Err(_) => {
                self.refuse(incoming);
                None
            }
        }
    }

    fn refuse(&self, incoming: Incoming) {
        self.metrics.refused.inc();
        incoming.refuse();
    }
}

async fn handshake(
    incoming: Incoming,
    place: Place,
    door: Arc<Door>,
    deliver: mpsc::Sender<QuicLink>,
) {
    let in_flight = door.metrics.begin();
    let remote = incoming.remote_address();
    let connected = match incoming.accept() {
        Ok(connecting) => tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, connecting).await,
        Err(error) => Ok(Err(error)),
    };
    let connection = match connected {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            let reason = reason::of_connection(&error, None);
            door.metrics.fail(reason);
            tracing::debug!(%remote, %reason, cause = detail(error), "QUIC handshake failed");
            return;
        }
        Err(_) => {
            door.metrics.timed_out.inc();
            tracing::debug!(%remote, "QUIC handshake took too long");
            return;
        }
    };
    match QuicLink::verify(connection, &door.verifier.load(), SystemTime::now()) {
        Ok(link) => {
            door.metrics.verified.inc();
            drop(in_flight);
            // Fails when nobody listens any more: the link is dropped, which closes it.
            let _ = deliver.send(link).await;
        }
        Err(unverified) => {
            door.metrics.fail(unverified.reason());
            tracing::debug!(%remote, cause = ?unverified, "QUIC peer refused");
        }
    }
    drop(place);
}
