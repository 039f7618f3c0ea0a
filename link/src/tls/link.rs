//! One verified TLS connection behind the carrier's trait.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use tokio::sync::watch;
use towline_pki::VerifiedPeer;
use towline_proto::mux::Side;
use towline_proto::reason::Reason;

use super::shared::Shared;
use super::stream;
use crate::carrier::{Carrier, CarrierKind, CarrierStats, Stream, StreamError};

/// A link on TLS over TCP. Dropping it closes the connection.
pub(super) struct TlsLink {
    pub(super) shared: Arc<Shared>,
    pub(super) peer: VerifiedPeer,
    pub(super) remote: SocketAddr,
    pub(super) side: Side,
    /// Ends with the task that owns the connection.
    pub(super) task: watch::Receiver<()>,
}

#[async_trait]
impl Carrier for TlsLink {
    fn kind(&self) -> CarrierKind {
        CarrierKind::Tls
    }

    fn peer(&self) -> &VerifiedPeer {
        &self.peer
    }

    fn remote_address(&self) -> SocketAddr {
        self.remote
    }

    async fn open(&self) -> Result<Stream, StreamError> {
        let key = self.shared.open().await?;
        Ok(stream::wrap(&self.shared, key, self.side == Side::Acceptor))
    }

    async fn accept(&self) -> Result<Stream, StreamError> {
        let key = self.shared.accept().await?;
        Ok(stream::wrap(
            &self.shared,
            key,
            self.side == Side::Connector,
        ))
    }

    fn set_stream_limit(&self, streams: u32) {
        self.shared.with(|mux| mux.set_stream_limit(streams));
    }

    fn close(&self, reason: Reason) {
        self.shared.with(|mux| mux.close(reason));
    }

    async fn closed(&self) -> Reason {
        self.shared.closed().await
    }

    async fn gone(&self) {
        // Nothing is ever sent: it fails when the task is over.
        let _ = self.task.clone().changed().await;
    }

    fn stats(&self) -> CarrierStats {
        let counters = &self.shared.counters;
        CarrierStats {
            sent_bytes: counters.sent.load(Ordering::Relaxed),
            received_bytes: counters.received.load(Ordering::Relaxed),
            ..CarrierStats::default()
        }
    }
}

impl Drop for TlsLink {
    fn drop(&mut self) {
        self.shared.with(|mux| mux.close(Reason::Aborted));
    }
}
