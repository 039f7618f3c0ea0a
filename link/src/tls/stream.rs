//! The two halves of a stream behind the carrier's traits.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use towline_proto::mux::{Interest, RecvError, SendError, StreamKey};
use towline_proto::reason::Reason;

use super::shared::Shared;
use crate::carrier::{RecvHalf, SendHalf, Stream, StreamError};

/// Wraps both halves of a stream that nobody holds yet. The server opens dials; what the agent
/// opens is no company for one.
pub(super) fn wrap(shared: &Arc<Shared>, key: StreamKey, dial: bool) -> Stream {
    Stream::new(
        Box::new(TlsSend {
            shared: shared.clone(),
            key,
            dial,
        }),
        Box::new(TlsRecv {
            shared: shared.clone(),
            key,
            dial,
        }),
    )
}

struct TlsSend {
    shared: Arc<Shared>,
    key: StreamKey,
    dial: bool,
}

impl SendHalf for TlsSend {
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut Bytes,
    ) -> Poll<Result<(), StreamError>> {
        let key = self.key;
        self.shared
            .poll_moving(cx, key, self.dial, Interest::SEND, |mux| {
                match mux.send(key, chunk) {
                    Ok(()) => Some(Ok(())),
                    Err(SendError::Blocked) => None,
                    Err(SendError::Stopped(reason)) => Some(Err(StreamError::Stopped(reason))),
                    Err(SendError::Closed(reason)) => Some(Err(StreamError::Lost(reason))),
                    // Sent after our own end or reset.
                    Err(SendError::Ended) => Some(Err(StreamError::Reset(Reason::Aborted))),
                }
            })
    }

    fn finish(&mut self) {
        self.shared.with(|mux| mux.finish(self.key));
    }

    fn reset(&mut self, reason: Reason) {
        self.shared.with(|mux| mux.reset(self.key, reason));
    }

    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let key = self.key;
        self.shared.poll(cx, key, Interest::STOPPED, |mux| {
            match mux.stopped(key)? {
                SendError::Stopped(reason) => Some(StreamError::Stopped(reason)),
                SendError::Closed(reason) => Some(StreamError::Lost(reason)),
                SendError::Blocked | SendError::Ended => None,
            }
        })
    }

    fn set_priority(&mut self, priority: i32) {
        self.shared.with(|mux| mux.set_priority(self.key, priority));
    }
}

impl Drop for TlsSend {
    fn drop(&mut self) {
        self.shared.release(self.key, true);
    }
}

struct TlsRecv {
    shared: Arc<Shared>,
    key: StreamKey,
    dial: bool,
}

impl RecvHalf for TlsRecv {
    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        let key = self.key;
        self.shared
            .poll_moving(cx, key, self.dial, Interest::RECV, |mux| {
                match mux.recv(key, max) {
                    Ok(bytes) => Some(Ok(bytes)),
                    Err(RecvError::Blocked) => None,
                    Err(RecvError::Reset(reason)) => Some(Err(StreamError::Reset(reason))),
                    Err(RecvError::Closed(reason)) => Some(Err(StreamError::Lost(reason))),
                    // Read after our own stop.
                    Err(RecvError::Stopped) => Some(Err(StreamError::Stopped(Reason::Aborted))),
                }
            })
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let key = self.key;
        self.shared.poll(cx, key, Interest::RECV, |mux| {
            mux.broken(key).map(|error| match error {
                RecvError::Closed(reason) => StreamError::Lost(reason),
                RecvError::Reset(reason) => StreamError::Reset(reason),
                RecvError::Blocked | RecvError::Stopped => StreamError::Reset(Reason::Aborted),
            })
        })
    }

    fn stop(&mut self, reason: Reason) {
        self.shared.with(|mux| mux.stop(self.key, reason));
    }
}

impl Drop for TlsRecv {
    fn drop(&mut self) {
        self.shared.release(self.key, false);
    }
}
