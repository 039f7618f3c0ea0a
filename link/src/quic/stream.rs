//! The two halves of a QUIC stream behind the carrier's traits.
//!
//! quinn's `write_chunks` and `read_chunk` are stateless futures over one poll function (the
//! waker is kept in the connection under the stream's number), so making a new one for every
//! poll loses nothing. Two of quinn's habits are not ours: a send half that is dropped ends
//! cleanly, and a receive half that failed or was stopped reads as ended when it is read again.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use quinn::{ReadError, ResetError, StoppedError, VarInt, WriteError};
use towline_proto::reason::Reason;

use super::link::Shared;
use super::reason;
use crate::carrier::{RecvHalf, SendHalf, Stream, StreamError};

type Stopped = Pin<Box<dyn Future<Output = Result<Option<VarInt>, StoppedError>> + Send + Sync>>;

/// Wraps the halves of one stream.
pub(super) fn wrap(
    shared: &Arc<Shared>,
    send: quinn::SendStream,
    recv: quinn::RecvStream,
) -> Stream {
    shared.window.opened(&shared.connection);
    Stream::new(
        Box::new(QuicSend {
            shared: shared.clone(),
            stream: send,
            stopped: Watch::Idle,
            open: true,
        }),
        Box::new(QuicRecv {
            shared: shared.clone(),
            stream: recv,
            ended: None,
        }),
    )
}

/// Waiting for the reader to stop.
enum Watch {
    /// Nobody asked yet.
    Idle,
    /// quinn keeps a notification for this stream.
    Armed(Stopped),
    /// Everything was delivered: the reader can no longer stop.
    Never,
}

struct QuicSend {
    shared: Arc<Shared>,
    stream: quinn::SendStream,
    stopped: Watch,
    open: bool,
}

impl QuicSend {
    fn error(&self, error: WriteError) -> StreamError {
        match error {
            WriteError::Stopped(code) => StreamError::Stopped(reason::from_code(code)),
            WriteError::ConnectionLost(error) => StreamError::Lost(self.shared.reason(&error)),
            // Written to after our own finish or reset; 0-RTT is never used.
            WriteError::ClosedStream | WriteError::ZeroRttRejected => {
                StreamError::Reset(Reason::Aborted)
            }
        }
    }
}

impl SendHalf for QuicSend {
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut Bytes,
    ) -> Poll<Result<(), StreamError>> {
        if chunk.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let written = {
            let write = pin!(self.stream.write_chunks(std::slice::from_mut(chunk)));
            ready!(write.poll(cx))
        };
        self.shared.heard(self.stream.id());
        Poll::Ready(written.map(drop).map_err(|error| self.error(error)))
    }

    fn finish(&mut self) {
        if std::mem::take(&mut self.open) {
            // Fails only when the stream is over anyway; quinn goes on delivering by itself.
            let _ = self.stream.finish();
        }
    }

    fn reset(&mut self, reason: Reason) {
        if std::mem::take(&mut self.open) {
            let _ = self.stream.reset(reason::to_code(reason));
            if matches!(self.stopped, Watch::Armed(_)) {
                self.shared.stop_watch_left();
            }
        }
    }

    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        if matches!(self.stopped, Watch::Idle) {
            if !self.open || self.shared.stop_watches_used_up() {
                return self.check_stopped(cx);
            }
            self.stopped = Watch::Armed(Box::pin(self.stream.stopped()));
        }
        let Watch::Armed(stopped) = &mut self.stopped else {
            return Poll::Pending;
        };
        let output = ready!(stopped.as_mut().poll(cx));
        self.stopped = Watch::Idle;
        match output {
            Ok(Some(code)) => Poll::Ready(StreamError::Stopped(reason::from_code(code))),
            Ok(None) => {
                self.stopped = Watch::Never;
                Poll::Pending
            }
            Err(StoppedError::ConnectionLost(error)) => {
                Poll::Ready(StreamError::Lost(self.shared.reason(&error)))
            }
            Err(StoppedError::ZeroRttRejected) => Poll::Ready(StreamError::Reset(Reason::Aborted)),
        }
    }

    fn set_priority(&mut self, priority: i32) {
        let _ = self.stream.set_priority(priority);
    }
}

impl QuicSend {
    /// What is known without leaving anything behind in the connection: writing nothing tells
    /// whether the reader stopped.
    fn check_stopped(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let checked = {
            let write = pin!(self.stream.write_chunks(&mut []));
            write.poll(cx)
        };
        match checked {
            Poll::Ready(Err(WriteError::ClosedStream)) => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(self.error(error)),
            Poll::Ready(Ok(_)) | Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for QuicSend {
    fn drop(&mut self) {
        self.reset(Reason::Aborted);
    }
}

struct QuicRecv {
    shared: Arc<Shared>,
    stream: quinn::RecvStream,
    /// How it ended; told again to whoever reads again.
    ended: Option<Result<(), StreamError>>,
}

impl RecvHalf for QuicRecv {
    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        if let Some(ended) = self.ended {
            return Poll::Ready(ended.map(|()| None));
        }
        let read = {
            let read = pin!(self.stream.read_chunk(max, true));
            ready!(read.poll(cx))
        };
        let error = match read {
            Ok(Some(chunk)) => {
                self.shared.heard(self.stream.id());
                return Poll::Ready(Ok(Some(chunk.bytes)));
            }
            Ok(None) => {
                self.ended = Some(Ok(()));
                return Poll::Ready(Ok(None));
            }
            Err(ReadError::Reset(code)) => StreamError::Reset(reason::from_code(code)),
            Err(ReadError::ConnectionLost(error)) => StreamError::Lost(self.shared.reason(&error)),
            // Read from after our own stop; 0-RTT and unordered reads are never used.
            Err(
                ReadError::ClosedStream
                | ReadError::ZeroRttRejected
                | ReadError::IllegalOrderedRead,
            ) => StreamError::Reset(Reason::Aborted),
        };
        self.ended = Some(Err(error));
        Poll::Ready(Err(error))
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let broken = match self.ended {
            Some(Ok(())) => return Poll::Pending,
            Some(Err(error)) => return Poll::Ready(error),
            None => {
                let reset = pin!(self.stream.received_reset());
                ready!(reset.poll(cx))
            }
        };
        let error = match broken {
            Ok(Some(code)) => StreamError::Reset(reason::from_code(code)),
            // Everything came, so nothing can be lost any more.
            Ok(None) => return Poll::Pending,
            Err(ResetError::ConnectionLost(error)) => StreamError::Lost(self.shared.reason(&error)),
            Err(ResetError::ZeroRttRejected) => StreamError::Reset(Reason::Aborted),
        };
        self.ended = Some(Err(error));
        Poll::Ready(error)
    }

    fn stop(&mut self, reason: Reason) {
        if self.ended.is_none() {
            self.ended = Some(Err(StreamError::Reset(Reason::Aborted)));
            let _ = self.stream.stop(reason::to_code(reason));
        }
    }
}

impl Drop for QuicRecv {
    fn drop(&mut self) {
        self.stop(Reason::Aborted);
        self.shared.window.closed(&self.shared.connection);
    }
}
