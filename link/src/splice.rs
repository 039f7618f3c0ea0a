//! Joins a local connection and a stream of a link, both directions in one task.
//!
//! What it does, in order of what can happen:
//! 1. Bytes of either side go to the other as they come; a side that takes none stops only its
//!    own direction.
//! 2. End of stream travels as half-close: local end of file becomes [`SendStream::finish`], end
//!    of the stream becomes a shut-down of the local write side. Bytes before it are delivered.
//! 3. An abort travels as a reset: a local error resets the stream, a reset of the stream aborts
//!    the local connection (RST where the socket can).
//! 4. When the far reader is gone but bytes still come from there, those are delivered first;
//!    what the local side goes on sending is read and dropped, so that its end is noticed.
//!
//! An idle splice holds no buffer: reads go through a scratch buffer of the thread and a chunk is
//! kept only while the other side does not take it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::io::poll_read_buf;
use towline_proto::limits;
use towline_proto::reason::Reason;

use crate::carrier::{RecvStream, SendStream, Stream, StreamError};
use crate::live::LiveGuard;

/// A local connection: the front end's at the server, the target's at the agent.
pub trait LocalEnd: AsyncRead + AsyncWrite + Unpin + Send {
    /// Ends it so that the other side cannot take what it has for complete, where the socket can
    /// express that. A Unix socket cannot: its peer sees an end of file.
    fn abort(self);
}

impl LocalEnd for TcpStream {
    fn abort(self) {
        // Fails only on a socket that is gone already.
        let _ = self.set_zero_linger();
    }
}

impl LocalEnd for UnixStream {
    fn abort(self) {}
}

impl LocalEnd for tokio_rustls::server::TlsStream<TcpStream> {
    fn abort(self) {
        // No close_notify is sent, which the peer's TLS reports as a truncation.
        let _ = self.get_ref().0.set_zero_linger();
    }
}

/// How a dial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpliceEnd {
    /// Bytes from the local end to the peer.
    pub to_peer: u64,
    /// Bytes from the peer to the local end.
    pub from_peer: u64,
    /// [`Reason::Done`] when both directions ended in order.
    pub reason: Reason,
}

/// What to call a local failure: the front end went away, or the target did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalSide {
    /// We are the server.
    FrontEnd,
    /// We are the agent.
    Target,
}

impl LocalSide {
    const fn reset(self) -> Reason {
        match self {
            LocalSide::FrontEnd => Reason::FrontEndGone,
            LocalSide::Target => Reason::TargetReset,
        }
    }

    const fn reader_gone(self) -> Reason {
        match self {
            LocalSide::FrontEnd => Reason::FrontEndGone,
            LocalSide::Target => Reason::ReaderGone,
        }
    }
}

/// Bytes that were read before the splice began.
#[derive(Debug, Default)]
pub struct Early {
    /// Read from the local end, owed to the peer.
    pub to_peer: Bytes,
    /// Read from the stream, owed to the local end.
    pub to_local: Bytes,
}

/// Runs until both directions have ended or one failed. Dropping the future aborts: the stream
/// is reset by its guard, the local socket is closed.
pub async fn splice<L: LocalEnd>(
    local: L,
    stream: Stream,
    side: LocalSide,
    early: Early,
    live: &LiveGuard,
) -> SpliceEnd {
    let mut job = Job {
        local,
        up: Up {
            send: stream.send,
            chunk: early.to_peer,
            cut: false,
            state: UpState::Open,
        },
        down: Down {
            recv: stream.recv,
            chunks: VecDeque::new(),
            held: 0,
            state: DownState::Open,
        },
        side,
        live,
    };
    if !early.to_local.is_empty() {
        job.down.held = early.to_local.len();
        job.down.chunks.push_back(early.to_local);
    }
    let reason = std::future::poll_fn(|cx| job.poll(cx)).await;
    // When all that came from the peer was delivered and ended in order, the local end keeps it:
    // a RST could destroy what it has not read yet.
    if job.down.state != DownState::Done {
        job.up.send.reset(reason);
        job.down.recv.stop(reason);
        job.local.abort();
    }
    let (to_peer, from_peer) = live.dial().bytes();
    SpliceEnd {
        to_peer,
        from_peer,
        reason,
    }
}

thread_local! {
    /// Taken by one poll at a time and never across a wait.
    static SCRATCH: RefCell<BytesMut> = const { RefCell::new(BytesMut::new_const()) };
}

/// Reads below this size are copied out of the scratch buffer, so that a small chunk that waits
/// does not keep a large buffer alive.
const COPY_BELOW: usize = 8 * 1024;

/// Turns of one direction before other tasks get theirs.
const TURNS: usize = 16;

/// Chunks written by one call.
const VECTOR: usize = 64;

/// `Ok(None)` at end of file.
fn poll_read_chunk<L: LocalEnd>(
    local: &mut L,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Option<Bytes>>> {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.capacity() < limits::READ_CHUNK / 2 {
            scratch.reserve(limits::READ_CHUNK);
        }
        let read = ready!(poll_read_buf(Pin::new(local), cx, scratch))?;
        Poll::Ready(Ok(match read {
            0 => None,
            small if small < COPY_BELOW => {
                let chunk = Bytes::copy_from_slice(scratch);
                scratch.clear();
                Some(chunk)
            }
            _ => Some(scratch.split().freeze()),
        }))
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UpState {
    Open,
    /// The peer takes no more; what the local end sends is dropped.
    Discard,
    Done,
}

struct Up {
    send: SendStream,
    chunk: Bytes,
    /// The peer stopped reading before the end.
    cut: bool,
    state: UpState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DownState {
    Open,
    /// The stream ended; held chunks and the local shut-down are left.
    Ending,
    Done,
}

struct Down {
    recv: RecvStream,
    chunks: VecDeque<Bytes>,
    held: usize,
    state: DownState,
}

struct Job<'a, L> {
    local: L,
    up: Up,
    down: Down,
    side: LocalSide,
    live: &'a LiveGuard,
}

impl<L: LocalEnd> Job<'_, L> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        if let Poll::Ready(reason) = self.live.dial().poll_ended(cx) {
            return Poll::Ready(reason);
        }
        if let Poll::Ready(Err(reason)) = self.poll_down(cx) {
            return Poll::Ready(reason);
        }
        if let Poll::Ready(Err(reason)) = self.poll_up(cx) {
            return Poll::Ready(reason);
        }
        if self.up.state != UpState::Open && self.down.state == DownState::Done {
            // Nothing more can be said in either direction that anybody hears.
            return Poll::Ready(if self.up.state == UpState::Done && !self.up.cut {
                Reason::Done
            } else {
                Reason::ReaderGone
            });
        }
        Poll::Pending
    }

    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Reason>> {
        for _ in 0..TURNS {
            if self.up.state == UpState::Done {
                return Poll::Ready(Ok(()));
            }
            if !self.up.chunk.is_empty() {
                let before = self.up.chunk.len();
                match ready!(self.up.send.poll_send(cx, &mut self.up.chunk)) {
                    Ok(()) => self.live.count_to_peer(before - self.up.chunk.len()),
                    Err(StreamError::Stopped(_)) => {
                        self.up.chunk.clear();
                        self.up.send.reset(Reason::ReaderGone);
                        self.up.cut = true;
                        self.up.state = UpState::Discard;
                    }
                    Err(error) => return Poll::Ready(Err(error.reason())),
                }
                continue;
            }
            match ready!(poll_read_chunk(&mut self.local, cx)) {
                Ok(Some(chunk)) if self.up.state == UpState::Open => self.up.chunk = chunk,
                Ok(Some(_)) => {}
                Ok(None) => {
                    if self.up.state == UpState::Open {
                        self.up.send.finish();
                    }
                    self.up.state = UpState::Done;
                }
                Err(_) => return Poll::Ready(Err(self.side.reset())),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Reason>> {
        for _ in 0..TURNS {
            match self.down.state {
                DownState::Done => return Poll::Ready(Ok(())),
                DownState::Open => self.poll_fill(cx)?,
                DownState::Ending => {}
            }
            if !self.down.chunks.is_empty() {
                ready!(self.poll_write(cx))?;
                continue;
            }
            if self.down.state == DownState::Ending {
                let shut = ready!(Pin::new(&mut self.local).poll_shutdown(cx));
                // A local end that is gone already has what it wanted of this direction.
                let _ = shut;
                self.down.state = DownState::Done;
                continue;
            }
            // Nothing came and nothing is held: an idle dial keeps no buffer.
            self.down.chunks = VecDeque::new();
            let flushed = Pin::new(&mut self.local).poll_flush(cx);
            return match flushed {
                Poll::Ready(Err(_)) => Poll::Ready(Err(self.side.reader_gone())),
                _ => Poll::Pending,
            };
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes what the stream has, up to one read's worth. `Ok` also when nothing was there; the
    /// waker is then registered.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Result<(), Reason> {
        while self.down.held < limits::READ_CHUNK && self.down.chunks.len() < VECTOR {
            let room = limits::READ_CHUNK - self.down.held;
            match self.down.recv.poll_recv(cx, room) {
                Poll::Ready(Ok(Some(chunk))) => {
                    self.down.held += chunk.len();
                    self.down.chunks.push_back(chunk);
                }
                Poll::Ready(Ok(None)) => {
                    self.down.state = DownState::Ending;
                    break;
                }
                Poll::Ready(Err(error)) => return Err(error.reason()),
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Reason>> {
        let mut slices = [IoSlice::new(&[]); VECTOR];
        let mut count = 0;
        for (slot, chunk) in slices.iter_mut().zip(&self.down.chunks) {
            *slot = IoSlice::new(chunk);
            count += 1;
        }
        let local = Pin::new(&mut self.local);
        let written = if local.is_write_vectored() {
            local.poll_write_vectored(cx, &slices[..count])
        } else {
            local.poll_write(cx, &slices[0])
        };
        match written {
            Poll::Ready(Ok(mut bytes)) if bytes > 0 => {
                self.live.count_from_peer(bytes);
                self.down.held -= bytes;
                while bytes > 0 {
                    let Some(first) = self.down.chunks.front_mut() else {
                        break;
                    };
                    let taken = bytes.min(first.len());
                    first.advance(taken);
                    bytes -= taken;
                    if first.is_empty() {
                        self.down.chunks.pop_front();
                    }
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(_) => Poll::Ready(Err(self.side.reader_gone())),
            Poll::Pending => {
                self.live.mark_stalled();
                Poll::Pending
            }
        }
    }
}
