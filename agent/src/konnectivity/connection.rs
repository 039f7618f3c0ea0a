//! One connection of a legacy stream as the byte pipe that a splice knows.
//!
//! What the protocol cannot say:
//! - No flow control for one connection: what comes for a slow target waits in a queue that is
//!   charged to the process-wide memory budget; see `session` for who is held back when.
//! - No half-close: when the target has ended, the whole connection is closed behind what it
//!   said; what the server sent before still reaches the target.
//! - An end and a reset differ in the error text of CLOSE_RSP only.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;
use towline_link::carrier::{RecvHalf, SendHalf, Stream, StreamError};
use towline_link::live::Held;
use towline_proto::konnectivity::Packet;
use towline_proto::limits;
use towline_proto::reason::Reason;

use super::stream::ServerStream;

/// How far closing has come.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Closing {
    No,
    /// CLOSE_RSP with this error as soon as everything that waits for the server was handed over.
    AfterFlush(String),
    /// CLOSE_RSP was said: the connection is no more.
    Said,
}

#[derive(Debug)]
struct Inner {
    /// From the server.
    inbound: VecDeque<Bytes>,
    /// How the server's side ended.
    end: Option<Result<(), StreamError>>,
    recv_waker: Option<Waker>,
    /// The target takes no more.
    stopped: bool,
    /// To the server.
    outbound: VecDeque<Bytes>,
    waiting: usize,
    send_waker: Option<Waker>,
    /// Whether it stands in the stream's line of those with something to send.
    in_line: bool,
    closing: Closing,
    /// When it was last judged whether the target moves, and how much it had taken then.
    judged: Instant,
    taken: u64,
    taken_then: u64,
    moves: bool,
    /// The server said something about it.
    spoken: bool,
}

impl Inner {
    fn is_spoken(&self) -> bool {
        self.spoken || self.end.is_some()
    }
}

/// One connection of a stream.
#[derive(Debug)]
pub(super) struct Connection {
    id: i64,
    stream: Arc<ServerStream>,
    inner: Mutex<Inner>,
    held: Arc<Held>,
    /// Told when the queue is short again, or nobody wants it any more.
    pub(super) room: Notify,
    heard: Notify,
}

/// What the writer of a stream finds when it is a connection's turn.
pub(super) struct Turn {
    /// To be sent.
    pub(super) packet: Option<Packet>,
    /// Whether there is more for another turn.
    pub(super) again: bool,
}

impl Connection {
    pub(super) fn new(id: i64, stream: Arc<ServerStream>) -> Arc<Self> {
        let held = stream.live().hold();
        Arc::new(Self {
            id,
            stream,
            inner: Mutex::new(Inner {
                inbound: VecDeque::new(),
                end: None,
                recv_waker: None,
                stopped: false,
                outbound: VecDeque::new(),
                waiting: 0,
                send_waker: None,
                in_line: false,
                closing: Closing::No,
                judged: Instant::now(),
                taken: 0,
                taken_then: 0,
                moves: true,
                spoken: false,
            }),
            held,
            room: Notify::new(),
            heard: Notify::new(),
        })
    }

    pub(super) fn id(&self) -> i64 {
        self.id
    }

    /// The two halves. Dropping them closes the connection.
    pub(super) fn pipe(self: &Arc<Self>) -> Stream {
        let halves = || Half(Arc::clone(self));
        Stream::new(Box::new(halves()), Box::new(halves()))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when the server has sent something on this connection, or closed it.
    pub(super) async fn spoken(&self) {
        loop {
            let heard = self.heard.notified();
            if self.lock().is_spoken() {
                return;
            }
            heard.await;
        }
    }

    /// Bytes from the server. Whether the queue is so long that the server should wait for it.
    pub(super) fn push(&self, data: Bytes) -> bool {
        let length = data.len();
        let within = length == 0 || self.held.add(length);
        let mut inner = self.lock();
        inner.spoken = true;
        self.heard.notify_waiters();
        if length == 0 || inner.stopped || inner.end.is_some() {
            drop(inner);
            self.held.take(length);
            return false;
        }
        inner.inbound.push_back(data);
        let waker = inner.recv_waker.take();
        let long = self.held.bytes() > limits::LEGACY_QUEUE;
        let wait = long && judge(&mut inner);
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
        if !within && long {
            // The budget is used up, and nobody was stalled longer.
            self.fail(StreamError::Reset(Reason::MemoryBudget));
            return false;
        }
        wait
    }

    /// Whether the queue is short enough for the server to go on.
    pub(super) fn has_room(&self) -> bool {
        self.held.bytes() <= limits::LEGACY_QUEUE / 2
    }

    /// After a pause: a target that took nearly nothing meanwhile is no reason for another one.
    pub(super) fn judge_after_pause(&self) {
        let mut inner = self.lock();
        let elapsed = inner.judged.elapsed().as_secs_f64();
        let least = limits::MOVING_BYTES as f64 * elapsed.min(1.0);
        inner.moves = (inner.taken - inner.taken_then) as f64 >= least;
        inner.judged = Instant::now();
        inner.taken_then = inner.taken;
    }

    /// CLOSE_REQ: what waits for the target stays, what waits for the server goes out, then
    /// CLOSE_RSP.
    pub(super) fn close_requested(self: &Arc<Self>) {
        self.finish_with(Ok(()));
        self.close_after_flush(String::new());
    }

    /// The stream is lost, or the connection is given up.
    pub(super) fn fail(&self, error: StreamError) {
        self.finish_with(Err(error));
    }

    fn finish_with(&self, end: Result<(), StreamError>) {
        let mut inner = self.lock();
        if inner.end.is_none() {
            inner.end = Some(end);
        }
        let wakers = [inner.recv_waker.take(), inner.send_waker.take()];
        drop(inner);
        self.room.notify_waiters();
        self.heard.notify_waiters();
        for waker in wakers.into_iter().flatten() {
            waker.wake();
        }
    }

    /// CLOSE_RSP, behind what waits for the server.
    fn close_after_flush(self: &Arc<Self>, error: String) {
        let mut inner = self.lock();
        if inner.closing != Closing::No {
            return;
        }
        inner.closing = Closing::AfterFlush(error);
        let enter = !std::mem::replace(&mut inner.in_line, true);
        drop(inner);
        if enter {
            self.stream.stand_in_line(self);
        }
    }

    /// The writer's turn with this connection.
    pub(super) fn turn(&self) -> Turn {
        let mut inner = self.lock();
        let connect_id = self.id;
        let packet = match inner.outbound.pop_front() {
            Some(data) => {
                inner.waiting -= data.len();
                Some(Packet::Data { connect_id, data })
            }
            None => match std::mem::replace(&mut inner.closing, Closing::Said) {
                Closing::AfterFlush(error) => {
                    // Nothing more comes: what is here goes to the target, then its end.
                    inner.end.get_or_insert(Ok(()));
                    Some(Packet::CloseResponse { error, connect_id })
                }
                before => {
                    inner.closing = before;
                    None
                }
            },
        };
        let again = !inner.outbound.is_empty() || matches!(inner.closing, Closing::AfterFlush(_));
        inner.in_line = again;
        let receiver = match inner.closing {
            Closing::Said => inner.recv_waker.take(),
            _ => None,
        };
        let sender = inner.send_waker.take();
        drop(inner);
        for waker in [sender, receiver].into_iter().flatten() {
            waker.wake();
        }
        Turn { packet, again }
    }
}

/// Looks once in a while whether the target moves.
fn judge(inner: &mut Inner) -> bool {
    if inner.judged.elapsed() >= limits::STALLED_AFTER {
        inner.moves = inner.taken - inner.taken_then >= limits::MOVING_BYTES;
        inner.judged = Instant::now();
        inner.taken_then = inner.taken;
    }
    inner.moves
}

struct Half(Arc<Connection>);

impl SendHalf for Half {
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut Bytes,
    ) -> Poll<Result<(), StreamError>> {
        if chunk.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let mut inner = self.0.lock();
        if let Some(end) = inner.end {
            return Poll::Ready(Err(after_end(end)));
        }
        if inner.waiting >= limits::LEGACY_SEND_QUEUE {
            inner.send_waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let most = chunk.len().min(limits::READ_CHUNK);
        inner.waiting += most;
        inner.outbound.push_back(chunk.split_to(most));
        let enter = !std::mem::replace(&mut inner.in_line, true);
        drop(inner);
        if enter {
            self.0.stream.stand_in_line(&self.0);
        }
        Poll::Ready(Ok(()))
    }

    fn finish(&mut self) {
        self.0.close_after_flush(String::new());
    }

    fn reset(&mut self, reason: Reason) {
        self.0
            .close_after_flush(format!("connection ended: {reason}"));
    }

    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let mut inner = self.0.lock();
        match inner.end {
            Some(end) => Poll::Ready(after_end(end)),
            None => {
                inner.send_waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn set_priority(&mut self, _: i32) {}
}

/// What a sender is told when the server's side has ended: in this protocol it takes no more.
fn after_end(end: Result<(), StreamError>) -> StreamError {
    match end {
        Ok(()) => StreamError::Stopped(Reason::ReaderGone),
        Err(error) => error,
    }
}

impl RecvHalf for Half {
    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        let connection = &self.0;
        let mut inner = connection.lock();
        let Some(first) = inner.inbound.front_mut() else {
            return match inner.end {
                Some(Ok(())) => Poll::Ready(Ok(None)),
                Some(Err(error)) => Poll::Ready(Err(error)),
                None => {
                    inner.recv_waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            };
        };
        let taken = match first.len() > max {
            true => first.split_to(max),
            false => inner.inbound.pop_front().unwrap_or_default(),
        };
        if inner.inbound.is_empty() {
            // An idle connection holds no memory for chunks.
            inner.inbound = VecDeque::new();
        }
        inner.taken += taken.len() as u64;
        drop(inner);
        connection.held.take(taken.len());
        if connection.has_room() {
            connection.room.notify_waiters();
        }
        Poll::Ready(Ok(Some(taken)))
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let mut inner = self.0.lock();
        match inner.end {
            // What is here already is not lost with the stream.
            Some(Err(error)) if inner.inbound.is_empty() => Poll::Ready(error),
            _ => {
                inner.recv_waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn stop(&mut self, _: Reason) {
        let mut inner = self.0.lock();
        inner.stopped = true;
        let dropped: usize = inner.inbound.drain(..).map(|data| data.len()).sum();
        drop(inner);
        self.0.held.take(dropped);
        self.0.room.notify_waiters();
    }

    fn held(&self) -> Option<Arc<Held>> {
        Some(Arc::clone(&self.0.held))
    }
}
