//! The task that owns one connection: frames to TLS to the socket, and back.
//!
//! It runs when the socket can do something or a stream has something to send, moves up to
//! [`TLS_TURN`] bytes each way, and lets others run. It ends when the connection is over: after
//! a close of ours it waits up to [`CLOSE_LINGER`] for the peer to have read it. It lives as long as
//! its link and that time more: dropping the link closes the connection, and who closes one as
//! the process ends waits for this task ([`Carrier::gone`](crate::carrier::Carrier::gone)).

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsStream;
use towline_proto::limits::{CLOSE_LINGER, MUX_BATCH, TLS_TURN};
use towline_proto::mux::Batch;
use towline_proto::reason::Reason;

use super::handshake::reason_of;
use super::read_ahead::ReadAhead;
use super::shared::Shared;

/// Slices of one vectored write.
const SLICES: usize = 64;

pub(super) struct Driver<IO> {
    tls: TlsStream<ReadAhead<IO>>,
    shared: Arc<Shared>,
    batch: Batch,
    /// Encrypted bytes may wait in the TLS library.
    flush: bool,
    /// The connection is over and so much of the good-bye is done.
    closing: Option<Closing>,
}

struct Closing {
    /// Our direction of the socket is shut.
    shut: bool,
    until: Pin<Box<Sleep>>,
}

/// How a pass over one direction ended.
#[derive(PartialEq, Eq)]
enum Pass {
    /// Nothing more to do now.
    Idle,
    /// The socket takes no more now.
    Blocked,
    /// A turn's worth was done and there may be more.
    Turn,
    /// The peer's direction ended.
    End,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Driver<IO> {
    pub(super) fn new(tls: TlsStream<ReadAhead<IO>>, shared: Arc<Shared>) -> Self {
        Self {
            tls,
            shared,
            batch: Batch::default(),
            flush: false,
            closing: None,
        }
    }

    fn drive(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        loop {
            let written = self.write(cx)?;
            let read = self.read(cx)?;
            if read == Pass::End || self.say_goodbye(cx).is_ready() {
                return Ok(Poll::Ready(()));
            }
            if written == Pass::Turn || read == Pass::Turn {
                cx.waker().wake_by_ref();
                return Ok(Poll::Pending);
            }
            let flushed = !self.flush || written == Pass::Blocked;
            if flushed && self.shared.park(cx, written != Pass::Blocked) {
                self.batch.release();
                return Ok(Poll::Pending);
            }
        }
    }

    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<Pass> {
        let mut bytes = 0;
        let pass = loop {
            if self.batch.is_empty() {
                if self.shared.fill(&mut self.batch, MUX_BATCH) {
                    self.begin_closing();
                }
                if self.batch.is_empty() {
                    break Pass::Idle;
                }
            }
            if bytes >= TLS_TURN {
                break Pass::Turn;
            }
            let mut slices = [io::IoSlice::new(&[]); SLICES];
            let mut count = 0;
            for (place, slice) in slices.iter_mut().zip(self.batch.slices()) {
                *place = io::IoSlice::new(slice);
                count += 1;
            }
            match Pin::new(&mut self.tls).poll_write_vectored(cx, &slices[..count]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => {
                    self.batch.advance(written);
                    self.flush = true;
                    bytes += written;
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    // A peer that reads nothing does not keep a closed connection alive.
                    if self.shared.is_over() {
                        self.begin_closing();
                    }
                    return Ok(Pass::Blocked);
                }
            }
        };
        if self.flush {
            match Pin::new(&mut self.tls).poll_flush(cx) {
                Poll::Ready(flushed) => flushed?,
                Poll::Pending => return Ok(Pass::Blocked),
            }
            self.flush = false;
        }
        Ok(pass)
    }

    fn begin_closing(&mut self) {
        self.closing.get_or_insert_with(|| Closing {
            shut: false,
            until: Box::pin(tokio::time::sleep_until(Instant::now() + CLOSE_LINGER)),
        });
    }

    fn read(&mut self, cx: &mut Context<'_>) -> io::Result<Pass> {
        let mut bytes = 0;
        let pass = loop {
            if bytes >= TLS_TURN {
                break Pass::Turn;
            }
            let chunk = match Pin::new(&mut self.tls).poll_fill_buf(cx) {
                Poll::Ready(chunk) => chunk?,
                Poll::Pending => break Pass::Idle,
            };
            let length = chunk.len();
            if length == 0 {
                break Pass::End;
            }
            if let Err(violation) = self.shared.handle(chunk) {
                tracing::warn!(%violation, "closing a tls link whose peer breaks the protocol");
            }
            Pin::new(&mut self.tls).consume(length);
            bytes += length;
        };
        // An answer of TLS itself, such as to a key update.
        self.flush |= self.tls.get_ref().1.wants_write();
        Ok(pass)
    }

    /// Once the connection is over: what is left goes out, our direction ends, and the peer's
    /// end or the time limit ends it all. Bytes that still come are read and ignored, because
    /// closing a socket with unread bytes would destroy what is on its way to the peer.
    fn say_goodbye(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(closing) = &mut self.closing else {
            return Poll::Pending;
        };
        if !closing.shut && self.batch.is_empty() && !self.flush {
            closing.shut = Pin::new(&mut self.tls).poll_shutdown(cx).is_ready();
        }
        closing.until.as_mut().poll(cx)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Future for Driver<IO> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.drive(cx) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(())) => {
                self.shared.with(|mux| mux.lost(Reason::LinkLost));
                Poll::Ready(())
            }
            Err(error) => {
                let reason = reason_of(&error);
                tracing::debug!(%error, %reason, "tls link lost");
                self.shared.with(|mux| mux.lost(reason));
                Poll::Ready(())
            }
        }
    }
}

impl<IO> Drop for Driver<IO> {
    /// A driver that is torn down with its runtime leaves no stream waiting.
    fn drop(&mut self) {
        self.shared.with(|mux| mux.lost(Reason::LinkLost));
    }
}
