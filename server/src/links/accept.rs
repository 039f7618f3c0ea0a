//! Connections of agents, on UDP and on TCP at the same port. Handshakes never hold an accept
//! loop up and are bounded; what comes out of them is verified.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use towline_link::carrier::Carrier;
use towline_link::error::{ConnectError, detail};
use towline_link::process::accept::{AcceptMetrics, AcceptOptions, Slot, accept_loop};
use towline_link::process::drain::DrainWatch;
use towline_link::process::ratelimit::RateLimited;
use towline_link::process::shares::{Share, Shares, network};
use towline_link::quic::QuicListener;
use towline_link::tls::{self, TlsOptions};
use towline_proto::limits;
use towline_proto::version::{ALPN_ENROL, ALPN_LINK};

use super::greet::Greeter;
use super::serve::serve;
use crate::enrol::EnrolDoor;
use crate::legacy::accept::LegacyDoor;
use crate::metrics::Metrics;
use crate::trust::Trust;

/// Serves links over QUIC until stopping begins and they have ended.
pub async fn quic(listener: Arc<QuicListener>, greeter: Arc<Greeter>, drain: DrainWatch) {
    let mut links = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            _ = drain.signalled() => break,
            Some(ended) = links.join_next() => note_panic(ended),
            accepted = listener.accept() => match accepted {
                Some(link) => {
                    let carrier: Arc<dyn Carrier> = Arc::new(link);
                    links.spawn(serve(carrier, Arc::clone(&greeter), drain.clone()));
                }
                None => break,
            },
        }
    }
    listener.stop_accepting();
    while let Some(ended) = links.join_next().await {
        note_panic(ended);
    }
}

fn note_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "the task of a link panicked; the link is closed");
    }
}

/// Links over TLS, and legacy agents at the same port: what a connection wants to speak decides.
pub struct TlsLinks {
    /// Whom we trust, and who greets agents; none without an identity of our own.
    pub own: Option<(Trust, Arc<Greeter>)>,
    /// The door for agents that want a certificate, where one is issued.
    pub enrol: Option<Arc<EnrolDoor>>,
    /// The door for legacy agents, closed in general.
    pub legacy: Option<Arc<LegacyDoor>>,
    /// What is counted.
    pub counted: Metrics,
    /// Handshakes at once.
    pub handshakes: usize,
    /// Of these, those of one address.
    pub handshakes_per_address: usize,
    /// Links at once, with some room for those that are shaking hands.
    pub connections: usize,
    /// Connections are counted here.
    pub metrics: AcceptMetrics,
}

/// What the connections of one listener share.
struct Shared {
    own: Option<(Trust, Arc<Greeter>)>,
    enrol: Option<Arc<EnrolDoor>>,
    legacy: Option<Arc<LegacyDoor>>,
    counted: Metrics,
    handshakes: Semaphore,
    /// Of one address: connections that have proved nothing yet, and handshakes.
    unproven: Shares<IpAddr>,
    shares: Shares<IpAddr>,
    refused: RateLimited<&'static str>,
}

impl TlsLinks {
    /// Serves links over TLS until stopping begins and they have ended.
    pub async fn run(self, listener: TcpListener, drain: DrainWatch) {
        let options = AcceptOptions {
            name: "link-tls",
            connections: self.connections,
            metrics: self.metrics,
        };
        let shared = Arc::new(Shared {
            own: self.own,
            enrol: self.enrol,
            legacy: self.legacy,
            counted: self.counted,
            handshakes: Semaphore::new(self.handshakes),
            unproven: Shares::new(limits::UNPROVEN_PER_ADDRESS),
            shares: Shares::new(self.handshakes_per_address),
            refused: RateLimited::new(10, Duration::from_secs(60)),
        });
        let watch = drain.clone();
        accept_loop(listener, options, drain, move |tcp, address, slot| {
            let shared = Arc::clone(&shared);
            let drain = watch.clone();
            async move {
                let from = network(address.ip());
                let Some(unproven) = shared.unproven.take(&from) else {
                    shared.refuse(
                        &slot,
                        address,
                        "crowded",
                        "its address has as many connections as one may have that prove nothing",
                    );
                    return;
                };
                let shaking = handshake(&shared, tcp, from);
                match Box::pin(shaking).await {
                    Ok(Shaken::Link(carrier, greeter)) => {
                        drop((shared, unproven));
                        serve(carrier, greeter, drain).await;
                        drop(slot);
                    }
                    Ok(Shaken::Other(serving)) => {
                        drop(shared);
                        serving(address, drain, unproven, slot).await;
                    }
                    Err(error) => shared.refuse(&slot, address, word(&error), &detail(&error)),
                }
            }
        })
        .await;
    }
}

impl Shared {
    fn refuse(&self, slot: &Slot, address: SocketAddr, word: &'static str, cause: &str) {
        slot.refused(word);
        self.counted.tls_handshake_failed(word);
        if let Some(suppressed) = self.refused.allow(word) {
            tracing::info!(%address, reason = word, suppressed, "TLS handshake of a link failed: {cause}");
        }
    }
}

/// What came out of a handshake.
enum Shaken {
    Link(Arc<dyn Carrier>, Arc<Greeter>),
    /// Serves the rest of the connection.
    Other(Box<dyn FnOnce(SocketAddr, DrainWatch, Share<IpAddr>, Slot) -> Serving + Send>),
}

type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

async fn handshake(shared: &Shared, tcp: TcpStream, from: IpAddr) -> Result<Shaken, ConnectError> {
    // Waiting counts towards the time of the handshake, so that a flood cannot queue up here.
    let after = limits::HANDSHAKE_TIMEOUT;
    let whole = async {
        // Who says nothing takes no place from those who do.
        tcp.peek(&mut [0])
            .await
            .map_err(|source| ConnectError::Unreachable {
                server: "an agent".to_owned(),
                source,
            })?;
        // Nor does one address take the places of all the others.
        let _share = match shared.shares.take(&from) {
            Some(share) => share,
            None => {
                shared.counted.tls_handshake_waits();
                shared.shares.wait(&from).await
            }
        };
        // The semaphore is never closed; if it were, there would be no bound and no harm.
        let _place = shared.handshakes.acquire().await.ok();
        let _counted = shared.counted.tls_handshake();
        choose(shared, tcp).await
    };
    match tokio::time::timeout(after, whole).await {
        Ok(done) => done,
        Err(_) => Err(ConnectError::Timeout {
            server: "an agent".to_owned(),
            after,
        }),
    }
}

/// Which door it is decides ALPN: `towline/1` wherever it is offered, so that nobody who could
/// prove more comes in by the door that asks for less.
async fn choose(shared: &Shared, tcp: TcpStream) -> Result<Shaken, ConnectError> {
    let arrived = tls::Arrived::read(tcp).await?;
    // It goes on in places and with limits of its own, so that a thousand new nodes take nothing
    // from agents that have their certificates.
    if let Some(door) = &shared.enrol
        && arrived.offers(ALPN_ENROL)
        && !arrived.offers(ALPN_LINK)
    {
        let door = Arc::clone(door);
        return Ok(Shaken::Other(Box::new(
            move |address, drain, unproven, slot| {
                // That door counts callers itself, and thousands who wait there take no slot from links.
                drop((unproven, slot));
                Box::pin(door.serve(arrived, address, drain))
            },
        )));
    }
    if let Some(door) = &shared.legacy
        && !arrived.offers(ALPN_ENROL)
        && !(shared.own.is_some() && arrived.offers(ALPN_LINK))
        && let Some(trust) = &door.trust.snapshot().agents
    {
        let (io, chain) = arrived.other(Arc::clone(&trust.tls)).await?;
        let door = Arc::clone(door);
        return Ok(Shaken::Other(Box::new(
            move |address, drain, unproven, slot| {
                Box::pin(async move {
                    door.serve(io, chain, address, drain, unproven).await;
                    drop(slot);
                })
            },
        )));
    }
    let Some((trust, greeter)) = &shared.own else {
        return Err(ConnectError::Alpn {
            server: "an agent".to_owned(),
        });
    };
    let trust = trust.snapshot();
    let config = Arc::clone(&trust.link_tls);
    let options = TlsOptions::server();
    let carrier = arrived.link(config, &trust.agents, &options).await?;
    Ok(Shaken::Link(carrier, Arc::clone(greeter)))
}

/// The word for metrics.
fn word(error: &ConnectError) -> &'static str {
    match error {
        ConnectError::Peer { source, .. } => source.as_str(),
        ConnectError::Alpn { .. } => "alpn",
        ConnectError::Timeout { .. } => "late",
        ConnectError::Handshake { reason, .. } => reason.as_str(),
        _ => "unreachable",
    }
}
