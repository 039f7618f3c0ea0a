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
//! 5. A side that is not read, because the other takes nothing or because its end was read, is
//!    looked after every [`limits::LOCAL_LOOK`]: a local end that broke, a stream that was reset
//!    and a link that was lost end the dial; a front end that closed ends it when nobody takes
//!    its last bytes.
//!
//! Until the end was delivered, a local TCP socket is set up so that closing it resets it, by
//! whatever way it is closed: a cancelled task, a panic, a killed process.
//!
//! An idle splice holds no buffer: reads go through a scratch buffer of the thread and a chunk is
//! kept only while the other side does not take it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep};
use towline_proto::limits;
use towline_proto::reason::Reason;

use crate::carrier::{RecvStream, SendStream, Stream, StreamError};
pub use crate::edge::{Edge, LocalEnd, Presence, poll_read_chunk};
use crate::live::LiveGuard;

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
pub async fn splice<E: Edge>(
    local: E,
    stream: Stream,
    side: LocalSide,
    early: Early,
    live: &LiveGuard,
) -> SpliceEnd {
    local.opened();
    if let Some(held) = stream.recv.held() {
        live.charge(held);
    }
    let mut job = Job {
        local,
        watch: None,
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
    // Both do nothing after an end in order.
    job.up.send.reset(reason);
    job.down.recv.stop(reason);
    // When all that came from the peer was delivered and ended in order, the local end keeps it:
    // a RST could destroy what it has not read yet.
    if job.down.state != DownState::Done {
        job.local.give_up(reason);
    }
    let (to_peer, from_peer) = live.dial().bytes();
    SpliceEnd {
        to_peer,
        from_peer,
        reason,
    }
}

/// Turns of one direction before other tasks get theirs.
const TURNS: usize = 16;

/// Chunks written by one call.
const VECTOR: usize = 64;

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

/// Set up when one side stops the other, taken away when both move.
struct Watch {
    look: Pin<Box<Sleep>>,
    /// Bytes both ways at the last look that found more of them than before.
    moved: u64,
    /// When that was.
    moved_at: Instant,
}

struct Job<'a, E> {
    local: E,
    watch: Option<Watch>,
    up: Up,
    down: Down,
    side: LocalSide,
    live: &'a LiveGuard,
}

impl<E: Edge> Job<'_, E> {
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
        if let Poll::Ready(reason) = self.poll_unheard(cx) {
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
        self.poll_presence(cx)
    }

    /// After its own end, a peer that stopped reading has gone: what the local end may still say
    /// is not waited for.
    fn poll_unheard(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        if self.up.state != UpState::Open || self.down.state != DownState::Done {
            return Poll::Pending;
        }
        match ready!(self.up.send.poll_stopped(cx)) {
            StreamError::Stopped(_) => Poll::Ready(Reason::ReaderGone),
            error => Poll::Ready(error.reason()),
        }
    }

    /// Ready when the peer is gone although nothing is read from it, because the local end takes
    /// nothing.
    fn poll_far(&mut self, cx: &mut Context<'_>, kept: Duration) -> Poll<Reason> {
        match (self.down.state, self.side) {
            (DownState::Open, _) => self.down.recv.poll_reset(cx).map(StreamError::reason),
            // The front end has left after its end; the target has its last bytes for a while.
            (DownState::Ending, LocalSide::Target) if self.up.state == UpState::Open => {
                match ready!(self.up.send.poll_stopped(cx)) {
                    StreamError::Stopped(_) if kept < limits::LOCAL_GONE => Poll::Pending,
                    StreamError::Stopped(_) => Poll::Ready(Reason::ReaderGone),
                    error => Poll::Ready(error.reason()),
                }
            }
            _ => Poll::Pending,
        }
    }

    /// Looks now and then for what is not noticed by itself: that the local end is gone although
    /// it is not read, that the peer is although the local end takes nothing.
    fn poll_presence(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        loop {
            // Only the end of a wait takes the watch away: a bulk transfer is blocked and
            // unblocked too often to set a timer each time.
            let unread = !self.up.chunk.is_empty() || self.up.state == UpState::Done;
            let held = !self.down.chunks.is_empty();
            let (to_peer, from_peer) = self.live.dial().bytes();
            let moved = to_peer + from_peer;
            let watch = match &mut self.watch {
                Some(watch) => watch,
                None if unread || held => self.watch.insert(Watch {
                    look: Box::pin(tokio::time::sleep(limits::LOCAL_LOOK)),
                    moved,
                    moved_at: Instant::now(),
                }),
                None => return Poll::Pending,
            };
            ready!(watch.look.as_mut().poll(cx));
            if !unread && !held {
                self.watch = None;
                return Poll::Pending;
            }
            let now = Instant::now();
            if watch.moved != moved {
                (watch.moved, watch.moved_at) = (moved, now);
            }
            let kept = now.saturating_duration_since(watch.moved_at);
            watch.look.as_mut().reset(now + limits::LOCAL_LOOK);
            if held && let Poll::Ready(reason) = self.poll_far(cx, kept) {
                return Poll::Ready(reason);
            }
            if !unread {
                continue;
            }
            match (self.local.seen(), self.side) {
                (Presence::There, _) => {}
                (Presence::Broken, side) => return Poll::Ready(side.reset()),
                // The peer's reader may be slow, and is looked after at the other end.
                (Presence::Closed, LocalSide::Target) => {}
                // What it sent is on its way, and it takes no answer.
                (Presence::Closed, LocalSide::FrontEnd)
                    if self.up.state == UpState::Done || kept >= limits::LOCAL_GONE =>
                {
                    return Poll::Ready(Reason::FrontEndGone);
                }
                (Presence::Closed, LocalSide::FrontEnd) => {}
            }
        }
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
            match ready!(self.local.poll_take(cx)) {
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
                let shut = ready!(self.local.poll_end(cx));
                // A local end that is gone already has what it wanted of this direction.
                let _ = shut;
                self.local.ended();
                self.down.state = DownState::Done;
                continue;
            }
            // Nothing came and nothing is held: an idle dial keeps no buffer.
            self.live.mark_caught_up();
            self.down.chunks = VecDeque::new();
            let flushed = self.local.poll_flush(cx);
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
                Poll::Ready(Ok(Some(chunk))) if chunk.is_empty() => {}
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
        match self.local.poll_give(cx, &mut self.down.chunks) {
            Poll::Ready(Ok(bytes)) if bytes > 0 => {
                self.live.count_from_peer(bytes);
                self.down.held = self.down.held.saturating_sub(bytes);
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
