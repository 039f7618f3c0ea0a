//! What a link runs on, seen from above: streams, an end, some numbers. Two implementations
//! (`quic`, `tls`), and nothing above this file knows which one it has.
//!
//! The two stream halves carry Towline's end-of-life rule in their types: a [`SendStream`] that
//! is dropped before [`SendStream::finish`] resets its direction, so a cancelled or panicked
//! task can never make a truncated body look complete.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::Bytes;
use towline_pki::VerifiedPeer;
use towline_proto::reason::Reason;

use crate::live::Held;

/// Which of the two carriers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CarrierKind {
    /// QUIC over UDP.
    Quic,
    /// TLS 1.3 over TCP with Towline's multiplexer.
    Tls,
}

impl CarrierKind {
    /// The word used in flags, logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            CarrierKind::Quic => "quic",
            CarrierKind::Tls => "tls",
        }
    }
}

impl fmt::Display for CarrierKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `--carrier`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CarrierMode {
    /// Both: at a server at the same port; at an agent quic where it works, tls where it does not.
    #[default]
    Auto,
    /// quic only.
    Quic,
    /// tls only.
    Tls,
}

/// A word that names no carrier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown carrier {0:?}: use auto, quic or tls")]
pub struct UnknownCarrier(String);

impl FromStr for CarrierMode {
    type Err = UnknownCarrier;
    fn from_str(text: &str) -> Result<Self, UnknownCarrier> {
        match text {
            "auto" => Ok(CarrierMode::Auto),
            "quic" => Ok(CarrierMode::Quic),
            "tls" => Ok(CarrierMode::Tls),
            other => Err(UnknownCarrier(other.chars().take(32).collect())),
        }
    }
}

impl fmt::Display for CarrierMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CarrierMode::Auto => "auto",
            CarrierMode::Quic => "quic",
            CarrierMode::Tls => "tls",
        })
    }
}

/// How one direction of a stream ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer gave up sending.
    #[error("reset by the peer: {0}")]
    Reset(Reason),
    /// The peer gave up reading.
    #[error("stopped by the peer: {0}")]
    Stopped(Reason),
    /// The link under the stream is gone.
    #[error("link lost: {0}")]
    Lost(Reason),
}

impl StreamError {
    /// The reason inside.
    pub const fn reason(self) -> Reason {
        match self {
            StreamError::Reset(reason)
            | StreamError::Stopped(reason)
            | StreamError::Lost(reason) => reason,
        }
    }
}

/// Numbers of one carrier, for metrics and status. Counters since the link began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CarrierStats {
    /// Smoothed round-trip time, where the carrier measures one.
    pub rtt: Option<std::time::Duration>,
    /// Bytes handed to the network, headers included.
    pub sent_bytes: u64,
    /// Bytes taken from the network, headers included.
    pub received_bytes: u64,
    /// Packets declared lost (quic only).
    pub lost_packets: u64,
    /// Largest UDP payload in use (quic only).
    pub mtu: Option<u16>,
    /// Path black holes found (quic only).
    pub black_holes: u64,
}

/// One verified connection. Cheap calls only; dropping the last handle closes the connection.
#[async_trait]
pub trait Carrier: Send + Sync + 'static {
    /// Which carrier this is.
    fn kind(&self) -> CarrierKind;

    /// The proof of who is at the other end.
    fn peer(&self) -> &VerifiedPeer;

    /// Where the peer's packets come from now; on QUIC it may change.
    fn remote_address(&self) -> SocketAddr;

    /// Opens a bidirectional stream; waits while the peer's stream limit is reached.
    /// Cancel-safe: a cancelled call opens nothing that the peer sees.
    async fn open(&self) -> Result<Stream, StreamError>;

    /// The next stream the peer opened. Cancel-safe.
    async fn accept(&self) -> Result<Stream, StreamError>;

    /// How many streams the peer may have open at once from now on.
    fn set_stream_limit(&self, streams: u32);

    /// Closes at once: every stream ends with [`StreamError::Lost`] at both ends, and the peer
    /// is told the reason where the carrier still can.
    fn close(&self, reason: Reason);

    /// Resolves when the connection has ended, with the reason that the ending side gave.
    async fn closed(&self) -> Reason;

    /// Resolves when nothing of a closed connection is left to wait for: the close was said, or
    /// [`limits::CLOSE_LINGER`](towline_proto::limits::CLOSE_LINGER) is over. On QUIC at once: there
    /// the endpoint says it, and is waited for instead. Cancel-safe.
    async fn gone(&self);

    /// Numbers for metrics and status.
    fn stats(&self) -> CarrierStats;
}

/// The sending half that a carrier implements.
pub trait SendHalf: Send {
    /// Takes as much of `chunk` as there is credit for (by splitting it, not copying where
    /// that can be avoided). Ready when at least one byte was taken or `chunk` was empty.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut Bytes,
    ) -> Poll<Result<(), StreamError>>;
    /// Everything was sent: end of stream. Never blocks; later calls do nothing.
    fn finish(&mut self);
    /// Gives this direction up. Never blocks; after `finish` it does nothing that the reader sees
    /// as long as everything was delivered.
    fn reset(&mut self, reason: Reason);
    /// Ready when the peer stopped reading or the link is gone.
    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<StreamError>;
    /// Higher goes first; 0 is normal.
    fn set_priority(&mut self, priority: i32);
}

/// The receiving half that a carrier implements.
pub trait RecvHalf: Send {
    /// The next bytes in order, at most `max`; `None` at end of stream.
    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Result<Option<Bytes>, StreamError>>;
    /// Ready when bytes that were not taken yet are lost: the sender gave up, or the link is
    /// gone. Takes none. Wakes for other things too.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError>;
    /// Takes no more bytes; the sender is told. Never blocks.
    fn stop(&mut self, reason: Reason);
    /// What waits in memory without a window that bounds it.
    fn held(&self) -> Option<Arc<Held>> {
        None
    }
}

/// A bidirectional stream of a link.
pub struct Stream {
    /// Towards the peer.
    pub send: SendStream,
    /// From the peer.
    pub recv: RecvStream,
}

impl Stream {
    /// Wraps a carrier's halves.
    pub fn new(send: Box<dyn SendHalf>, recv: Box<dyn RecvHalf>) -> Self {
        Self {
            send: SendStream {
                half: send,
                open: true,
            },
            recv: RecvStream {
                half: recv,
                open: true,
            },
        }
    }

    /// Gives both directions up.
    pub fn abort(mut self, reason: Reason) {
        self.send.reset(reason);
        self.recv.stop(reason);
    }
}

/// The sending half, resetting on drop until it was finished.
pub struct SendStream {
    half: Box<dyn SendHalf>,
    open: bool,
}

impl SendStream {
    /// See [`SendHalf::poll_send`].
    pub fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut Bytes,
    ) -> Poll<Result<(), StreamError>> {
        self.half.poll_send(cx, chunk)
    }

    /// Sends all of `chunk`. Not cancel-safe: part of it may have been taken.
    pub async fn send(&mut self, mut chunk: Bytes) -> Result<(), StreamError> {
        while !chunk.is_empty() {
            std::future::poll_fn(|cx| self.half.poll_send(cx, &mut chunk)).await?;
        }
        Ok(())
    }

    /// End of stream.
    pub fn finish(&mut self) {
        if std::mem::take(&mut self.open) {
            self.half.finish();
        }
    }

    /// Gives this direction up.
    pub fn reset(&mut self, reason: Reason) {
        if std::mem::take(&mut self.open) {
            self.half.reset(reason);
        }
    }

    /// See [`SendHalf::poll_stopped`].
    pub fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.half.poll_stopped(cx)
    }

    /// See [`SendHalf::set_priority`].
    pub fn set_priority(&mut self, priority: i32) {
        self.half.set_priority(priority);
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        self.reset(Reason::Aborted);
    }
}

/// The receiving half, stopping on drop until it ended.
pub struct RecvStream {
    half: Box<dyn RecvHalf>,
    open: bool,
}

impl RecvStream {
    /// See [`RecvHalf::poll_recv`].
    pub fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        let polled = self.half.poll_recv(cx, max);
        if matches!(polled, Poll::Ready(Ok(None) | Err(_))) {
            self.open = false;
        }
        polled
    }

    /// See [`RecvHalf::poll_reset`].
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let polled = self.half.poll_reset(cx);
        if polled.is_ready() {
            self.open = false;
        }
        polled
    }

    /// The next bytes, at most `max`; `None` at end of stream. Cancel-safe.
    pub async fn recv(&mut self, max: usize) -> Result<Option<Bytes>, StreamError> {
        std::future::poll_fn(|cx| self.poll_recv(cx, max)).await
    }

    /// Takes no more bytes.
    pub fn stop(&mut self, reason: Reason) {
        if std::mem::take(&mut self.open) {
            self.half.stop(reason);
        }
    }

    /// See [`RecvHalf::held`].
    pub fn held(&self) -> Option<Arc<Held>> {
        self.half.held()
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        self.stop(Reason::Aborted);
    }
}
