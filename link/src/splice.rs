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

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rustix::event::{PollFd, PollFlags, Timespec};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep};
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

    /// From now on every close is an abort, where the socket can: also when nobody is left to
    /// call [`LocalEnd::abort`].
    fn begin(&self) {}

    /// Everything and the end of it was written: a close is an ordinary one again.
    fn complete(&self) {}

    /// Whether its other side is still there, as far as that shows without reading.
    fn presence(&self) -> Presence {
        Presence::There
    }
}

/// The local side of a splice, as it takes and gives bytes: any [`LocalEnd`], or a protocol that
/// has bytes in pieces already, so that they need not be copied once more.
pub trait Edge: Send {
    /// The next bytes; `Ok(None)` at the end of them.
    fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>>;

    /// Gives bytes from the front of `chunks`, of which there is at least one, and removes what
    /// was given. Ready with how many; 0 when nobody takes them any more.
    fn poll_give(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut VecDeque<Bytes>,
    ) -> Poll<io::Result<usize>>;

    /// Everything was given for now.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Everything was given, and this is the end of it.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// See [`LocalEnd::abort`]; `reason` is why.
    fn give_up(self, reason: Reason);

    /// See [`LocalEnd::begin`].
    fn opened(&self) {}

    /// See [`LocalEnd::complete`].
    fn ended(&self) {}

    /// See [`LocalEnd::presence`].
    fn seen(&self) -> Presence;
}

impl<L: LocalEnd> Edge for L {
    fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        poll_read_chunk(self, cx)
    }

    fn poll_give(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut VecDeque<Bytes>,
    ) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); VECTOR];
        let mut count = 0;
        for (slot, chunk) in slices.iter_mut().zip(&*chunks) {
            *slot = IoSlice::new(chunk);
            count += 1;
        }
        let local = Pin::new(self);
        let given = ready!(if local.is_write_vectored() {
            local.poll_write_vectored(cx, &slices[..count])
        } else {
            local.poll_write(cx, &slices[0])
        })?;
        let mut left = given;
        while left > 0 {
            let Some(first) = chunks.front_mut() else {
                break;
            };
            let taken = left.min(first.len());
            first.advance(taken);
            left -= taken;
            if first.is_empty() {
                chunks.pop_front();
            }
        }
        Poll::Ready(Ok(given))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(self), cx)
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_shutdown(Pin::new(self), cx)
    }

    fn give_up(self, _reason: Reason) {
        self.abort();
    }

    fn opened(&self) {
        self.begin();
    }

    fn ended(&self) {
        self.complete();
    }

    fn seen(&self) -> Presence {
        self.presence()
    }
}

/// What is known of the other side of a local connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Nothing else is known. The other side of a TCP connection that closed looks like one that
    /// has only ended its sending.
    There,
    /// It takes nothing and sends nothing any more; what it sent may be unread.
    Closed,
    /// It was reset, or is no longer reachable.
    Broken,
}

impl LocalEnd for TcpStream {
    fn abort(self) {
        self.begin();
    }

    fn begin(&self) {
        // Fails only on a socket that is gone already.
        let _ = self.set_zero_linger();
    }

    fn complete(&self) {
        let _ = SockRef::from(self).set_linger(None);
    }

    fn presence(&self) -> Presence {
        presence_of(self)
    }
}

impl LocalEnd for UnixStream {
    fn abort(self) {}

    fn presence(&self) -> Presence {
        presence_of(self)
    }
}

impl LocalEnd for tokio_rustls::server::TlsStream<TcpStream> {
    fn abort(self) {
        // No close_notify is sent, which the peer's TLS reports as a truncation.
        self.get_ref().0.begin();
    }

    fn begin(&self) {
        let tcp = self.get_ref().0;
        tcp.begin();
        // A front end whose machine is gone says nothing, and neither does one that closed and
        // was forgotten by its kernel: both show when they are asked.
        let (idle, interval) = limits::TCP_KEEP_ALIVE;
        let asking = TcpKeepalive::new().with_time(idle).with_interval(interval);
        let _ = SockRef::from(tcp).set_tcp_keepalive(&asking);
    }

    fn complete(&self) {
        self.get_ref().0.complete();
    }

    fn presence(&self) -> Presence {
        presence_of(self.get_ref().0)
    }
}

fn presence_of(socket: &impl AsFd) -> Presence {
    let mut asked = [PollFd::new(socket, PollFlags::empty())];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match rustix::event::poll(&mut asked, Some(&at_once)) {
        Ok(0) | Err(_) => Presence::There,
        Ok(_) if asked[0].revents().contains(PollFlags::ERR) => Presence::Broken,
        Ok(_) if asked[0].revents().contains(PollFlags::HUP) => Presence::Closed,
        Ok(_) => Presence::There,
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

thread_local! {
    /// Taken by one poll at a time and never across a wait.
    static SCRATCH: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// Reads below this size are copied out of the scratch buffer, so that a small chunk that waits
/// does not keep a large buffer alive.
const COPY_BELOW: usize = 8 * 1024;

/// Turns of one direction before other tasks get theirs.
const TURNS: usize = 16;

/// Chunks written by one call.
const VECTOR: usize = 64;

/// One read into the scratch buffer of the thread; `Ok(None)` at end of file.
pub fn poll_read_chunk<L: AsyncRead + Unpin>(
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
