//! One QUIC connection as a carrier.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, ConnectionError, Side, StreamId};
use rustls::pki_types::CertificateDer;
use tokio::time::Instant;
use towline_pki::{PeerError, PeerVerifier, VerifiedPeer};
use towline_proto::limits;
use towline_proto::reason::Reason;
use towline_proto::version::ALPN_LINK;

use super::{reason, short, stream, transport};
use crate::carrier::{Carrier, CarrierKind, CarrierStats, Stream, StreamError};
use crate::company::SharedCompany;

/// Why a connection whose handshake is done is still not a link.
#[derive(Debug)]
pub(super) enum Unverified {
    /// The certificate is not one that we take.
    Peer(PeerError),
    /// The protocol was not agreed on.
    Alpn,
}

impl Unverified {
    pub(super) fn reason(&self) -> Reason {
        match self {
            Unverified::Peer(error) => error.reason(),
            Unverified::Alpn => Reason::Version,
        }
    }
}

/// A verified QUIC connection.
pub struct QuicLink {
    shared: Arc<Shared>,
    peer: VerifiedPeer,
}

/// What the link and its streams have in common.
pub(super) struct Shared {
    pub(super) connection: Connection,
    pub(super) window: ReceiveWindow,
    pub(super) company: Arc<SharedCompany>,
    closed_with: OnceLock<Reason>,
    stop_watches_left: AtomicU32,
}

impl QuicLink {
    /// The only way to a link: the peer's chain passes the verifier again, here, whatever the
    /// TLS library thought of it.
    pub(super) fn verify(
        connection: Connection,
        verifier: &PeerVerifier,
        now: SystemTime,
    ) -> Result<Self, Unverified> {
        match Self::check(&connection, verifier, now) {
            Ok(peer) => Ok(Self {
                shared: Arc::new(Shared {
                    company: short::company_of(&connection),
                    connection,
                    window: ReceiveWindow::default(),
                    closed_with: OnceLock::new(),
                    stop_watches_left: AtomicU32::new(0),
                }),
                peer,
            }),
            Err(unverified) => {
                connection.close(reason::to_code(unverified.reason()), b"");
                Err(unverified)
            }
        }
    }

    fn check(
        connection: &Connection,
        verifier: &PeerVerifier,
        now: SystemTime,
    ) -> Result<VerifiedPeer, Unverified> {
        let alpn = connection
            .handshake_data()
            .and_then(|data| data.downcast::<HandshakeData>().ok())
            .and_then(|data| data.protocol);
        if alpn.as_deref() != Some(ALPN_LINK) {
            return Err(Unverified::Alpn);
        }
        let chain = connection
            .peer_identity()
            .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
            .ok_or(Unverified::Peer(PeerError::NoCertificate))?;
        verifier.verify(&chain, now).map_err(Unverified::Peer)
    }
}

impl Drop for QuicLink {
    fn drop(&mut self) {
        // Streams hold the connection too; without this they would go on without an owner.
        self.close(Reason::Aborted);
    }
}

#[async_trait]
impl Carrier for QuicLink {
    fn kind(&self) -> CarrierKind {
        CarrierKind::Quic
    }

    fn peer(&self) -> &VerifiedPeer {
        &self.peer
    }

    fn remote_address(&self) -> SocketAddr {
        let address = self.shared.connection.remote_address();
        SocketAddr::new(address.ip().to_canonical(), address.port())
    }

    async fn open(&self) -> Result<Stream, StreamError> {
        match self.shared.connection.open_bi().await {
            Ok((send, recv)) => Ok(stream::wrap(&self.shared, send, recv)),
            Err(error) => Err(StreamError::Lost(self.shared.reason(&error))),
        }
    }

    async fn accept(&self) -> Result<Stream, StreamError> {
        match self.shared.connection.accept_bi().await {
            Ok((send, recv)) => Ok(stream::wrap(&self.shared, send, recv)),
            Err(error) => Err(StreamError::Lost(self.shared.reason(&error))),
        }
    }

    fn set_stream_limit(&self, streams: u32) {
        self.shared
            .connection
            .set_max_concurrent_bi_streams(streams.into());
    }

    fn close(&self, reason: Reason) {
        // The first reason stays: the connection is closed by it.
        if self.shared.closed_with.set(reason).is_ok() {
            self.shared.connection.close(reason::to_code(reason), b"");
        }
    }

    async fn closed(&self) -> Reason {
        let error = self.shared.connection.closed().await;
        self.shared.reason(&error)
    }

    async fn gone(&self) {}

    fn stats(&self) -> CarrierStats {
        let stats = self.shared.connection.stats();
        CarrierStats {
            rtt: Some(stats.path.rtt),
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            lost_packets: stats.path.lost_packets,
            mtu: Some(stats.path.current_mtu),
            black_holes: stats.path.black_holes_detected,
        }
    }
}

impl Shared {
    pub(super) fn reason(&self, error: &ConnectionError) -> Reason {
        reason::of_connection(error, self.closed_with.get().copied())
    }

    /// The server opens dials; what the agent opens is no company for one.
    pub(super) fn heard(&self, stream: StreamId) {
        if stream.initiator() == Side::Server {
            let now = Instant::now().into_std();
            self.company.heard(stream.index(), now);
        }
    }

    /// quinn 0.11 frees the notification of a stream when it is finished or stopped, but not
    /// when it is reset: those stay until the connection ends, so they are counted.
    pub(super) fn stop_watch_left(&self) {
        self.stop_watches_left.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn stop_watches_used_up(&self) -> bool {
        self.stop_watches_left.load(Ordering::Relaxed) >= limits::QUIC_STOP_WATCHES
    }
}

/// The connection's receive window, always larger than what the open streams can leave unread.
///
/// A fixed window would be used up by a few stalled dials and freeze the link. No window would
/// be as safe for the link (each stream has its own), but then a peer that opens streams faster
/// than they are accepted is bound only by its stream limit; this way it is bound by what this
/// end has taken on, plus a few to spare so that a new dial never waits for credit.
pub(super) struct ReceiveWindow(Mutex<Streams>);

struct Streams {
    open: u32,
    covered: u32,
}

impl Default for ReceiveWindow {
    fn default() -> Self {
        Self(Mutex::new(Streams {
            open: 0,
            covered: limits::QUIC_SPARE_STREAMS,
        }))
    }
}

impl ReceiveWindow {
    pub(super) fn opened(&self, connection: &Connection) {
        self.change(connection, |streams| {
            streams.open = streams.open.saturating_add(1)
        });
    }

    pub(super) fn closed(&self, connection: &Connection) {
        self.change(connection, |streams| {
            streams.open = streams.open.saturating_sub(1)
        });
    }

    fn change(&self, connection: &Connection, change: impl FnOnce(&mut Streams)) {
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut streams);
        let covered = cover(streams.open, streams.covered);
        if covered != streams.covered {
            streams.covered = covered;
            connection.set_receive_window(transport::receive_window(covered));
        }
    }
}

/// How many streams the window should cover: doubled when fewer than the spare ones are left,
/// halved when three quarters are unused, so that a change comes once in many dials.
fn cover(open: u32, covered: u32) -> u32 {
    let needed = open.saturating_add(limits::QUIC_SPARE_STREAMS);
    if needed > covered {
        needed.max(covered.saturating_mul(2))
    } else if covered / 4 >= needed {
        covered / 2
    } else {
        covered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_always_covers_the_open_streams_and_some_more() {
        let spare = limits::QUIC_SPARE_STREAMS;
        let mut covered = spare;
        let mut changes = 0;
        for open in (0..=5000).chain((0..=5000).rev()) {
            let next = cover(open, covered);
            assert!(next >= open + spare, "{open} open, {next} covered");
            assert!(next <= 4 * (open + spare), "{open} open, {next} covered");
            changes += u32::from(next != covered);
            covered = next;
        }
        assert!(changes < 20, "{changes} changes");
        assert!(covered <= 4 * spare);
    }
}
