//! The door over TCP: mutual TLS, role `client`, and a name that `--door-allow` lists.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use towline_link::error::detail;
use towline_link::process::accept::{AcceptMetrics, AcceptOptions, Slot, accept_loop};
use towline_link::process::drain::DrainWatch;
use towline_link::process::ratelimit::RateLimited;
use towline_link::process::shares::{Shares, network};
use towline_pki::{PeerError, PeerVerifier, VerifiedPeer};
use towline_proto::id::Name;
use towline_proto::limits;

use super::connect::{Desk, FrontEnd, Visit, serve};
use super::front_ends::{FrontEnds, Proof};
use super::status;
use crate::caller::Caller;
use crate::dial::Door;
use crate::trust::Trust;

impl FrontEnd for TlsStream<TcpStream> {
    fn is_gone(&self) -> bool {
        // TLS and TCP cannot tell a front end that left from one that ended its direction, and
        // nobody does the latter before the answer.
        true
    }

    async fn readable(&self) {
        let _ = self.get_ref().0.readable().await;
    }

    fn established(&self) -> &'static [u8] {
        status::ESTABLISHED
    }

    async fn answer_read(&self) {
        // Not to be seen over TCP. The answer is a TLS record of its own, and a client that reads
        // record by record, as Go's does, reads it alone.
    }
}

/// How a handshake is made and judged; part of what a reload replaces.
pub struct DoorTls {
    /// For the handshake.
    pub config: Arc<rustls::ServerConfig>,
    /// For the proof.
    pub verifier: Arc<PeerVerifier>,
}

/// The door. `--client-ca` was given, or it would not be there.
pub struct TcpDoor {
    trust: Trust,
    allow: Vec<Name>,
    front_ends: FrontEnds,
    desk: Arc<Desk>,
    refused: RateLimited<&'static str>,
    unproven: Shares<IpAddr>,
}

/// Lines about refused front ends in a minute, for each cause.
const REFUSAL_LINES: u32 = 10;

impl TcpDoor {
    /// A door with its rules: whom we trust, and whose names may use it.
    pub fn new(trust: Trust, allow: Vec<Name>, front_ends: FrontEnds, desk: Arc<Desk>) -> Self {
        Self {
            trust,
            allow,
            front_ends,
            desk,
            refused: RateLimited::new(REFUSAL_LINES, Duration::from_secs(60)),
            unproven: Shares::new(limits::UNPROVEN_PER_ADDRESS),
        }
    }

    /// Serves the door until stopping begins and its connections have ended.
    pub async fn run(
        self,
        listener: TcpListener,
        connections: usize,
        metrics: AcceptMetrics,
        drain: DrainWatch,
    ) {
        let options = AcceptOptions {
            name: "door-tcp",
            connections,
            metrics,
        };
        let watch = drain.clone();
        let door = Arc::new(self);
        accept_loop(listener, options, drain, move |tcp, address, slot| {
            let door = Arc::clone(&door);
            let drain = watch.clone();
            async move {
                // Boxed: a handshake's state is large and over before bytes flow.
                let Some((stream, peer)) = Box::pin(door.handshake(tcp, address, &slot)).await
                else {
                    return;
                };
                let certified = door.front_ends.add(Proof::Identity(peer.clone()));
                // A reload may have come since the handshake; it checks only who is in the list.
                if let Err(error) = door.check_again(&peer) {
                    tracing::warn!(peer = %peer.identity(), %error, "front end is no longer trusted");
                    return;
                }
                let visit = Visit {
                    door: Door::ConnectTcp,
                    caller: Caller::Certified { peer, address },
                    drain,
                    certified: Some(certified),
                };
                serve(stream, Arc::clone(&door.desk), visit).await;
                drop(slot);
            }
        })
        .await;
    }

    fn check_again(&self, peer: &VerifiedPeer) -> Result<(), PeerError> {
        match &self.trust.snapshot().door {
            Some(tls) => tls
                .verifier
                .verify(peer.chain(), SystemTime::now())
                .map(drop),
            None => Ok(()),
        }
    }

    async fn handshake(
        &self,
        tcp: TcpStream,
        address: std::net::SocketAddr,
        slot: &Slot,
    ) -> Option<(TlsStream<TcpStream>, VerifiedPeer)> {
        keep_alive(&tcp);
        let Some(_unproven) = self.unproven.take(&network(address.ip())) else {
            slot.refused("crowded");
            let metrics = self.desk.metrics();
            metrics.front_end_refused(Door::ConnectTcp, "crowded");
            return None;
        };
        let tls = self.trust.snapshot().door.clone()?;
        let accepting = TlsAcceptor::from(Arc::clone(&tls.config)).accept(tcp);
        let mut known = None;
        let cause = match tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, accepting).await {
            Ok(Ok(stream)) => {
                let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
                match tls.verifier.verify(chain, SystemTime::now()) {
                    Ok(peer) if self.allow.contains(&peer.identity().name) => {
                        return Some((stream, peer));
                    }
                    Ok(peer) => {
                        known = Some(stream);
                        Cause::new(
                            "name",
                            format!("{} is not named by --door-allow", peer.identity()),
                        )
                    }
                    Err(error) => Cause::new(error.as_str(), error.to_string()),
                }
            }
            Ok(Err(error)) => match PeerError::from_io(&error) {
                Some(error) => Cause::new(error.as_str(), error.to_string()),
                None if is_plain(&error) => Cause::new(
                    "handshake",
                    "it does not speak TLS; front ends of the TCP door have to (https://)"
                        .to_owned(),
                ),
                None => Cause::new("handshake", detail(&error)),
            },
            Err(_) => Cause::new("late", "no TLS handshake in time".to_owned()),
        };
        slot.refused(cause.word);
        let metrics = self.desk.metrics();
        metrics.front_end_refused(Door::ConnectTcp, cause.word);
        if let Some(suppressed) = self.refused.allow(cause.word) {
            tracing::warn!(%address, reason = cause.word, suppressed, "front end refused: {}", cause.text);
        }
        if let Some(stream) = known {
            self.desk.turned_away().tell(stream, &cause.text).await;
        }
        None
    }
}

/// A front end whose machine is gone is noticed. A socket that is gone already says so later.
pub(super) fn keep_alive(tcp: &TcpStream) {
    let (idle, interval) = limits::TCP_KEEP_ALIVE;
    let _ = sockopt::set_tcp_keepidle(tcp, idle)
        .and_then(|()| sockopt::set_tcp_keepintvl(tcp, interval))
        .and_then(|()| sockopt::set_tcp_user_timeout(tcp, USER_TIMEOUT_MS))
        .and_then(|()| sockopt::set_socket_keepalive(tcp, true));
}

/// [`limits::TCP_UNACKNOWLEDGED`] as the kernel takes it.
const USER_TIMEOUT_MS: u32 = limits::TCP_UNACKNOWLEDGED.as_secs() as u32 * 1000;

/// Whether the first bytes were no TLS record.
fn is_plain(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(
        inner,
        Some(rustls::Error::InvalidMessage(
            rustls::InvalidMessage::InvalidContentType
        ))
    )
}

struct Cause {
    word: &'static str,
    text: String,
}

impl Cause {
    fn new(word: &'static str, text: String) -> Self {
        Self { word, text }
    }
}
