//! One connection of a legacy stream as the byte pipe that a splice knows.
//!
//! What the protocol cannot say:
//! - No flow control for one connection: what comes for a slow target waits in a queue that is
//!   charged to the process-wide memory budget; see `session` for who is held back when.
//! - No half-close: when the target has ended, the whole connection is closed behind what it
//!   said; what the server sent before still reaches the target.
//! - An end and a reset differ in the error text of CLOSE_RSP only.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::sync::Notify;
use towline_link::carrier::{RecvHalf, SendHalf, Stream, StreamError};
use towline_link::grpc::{Inbound, Outbound};
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
    inbound: Inbound,
    /// To the server.
    outbound: Outbound,
    closing: Closing,
    /// The server said something about it.
    spoken: bool,
}

impl Inner {
    fn is_spoken(&self) -> bool {
        self.spoken || self.inbound.is_ended()
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
                inbound: Inbound::default(),
                outbound: Outbound::default(),
                closing: Closing::No,
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
        if length == 0 || !inner.inbound.push(data) {
            drop(inner);
            self.held.take(length);
            return false;
        }
        let waker = inner.inbound.reader();
        let long = self.held.bytes() > limits::LEGACY_QUEUE;
        let wait = long && inner.inbound.moves();
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
        self.lock().inbound.judge_after_pause();
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
        inner.inbound.finish(end);
        let wakers = [inner.inbound.reader(), inner.outbound.sender()];
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
        let enter = inner.outbound.enter();
        drop(inner);
        if enter {
            self.stream.stand_in_line(self);
        }
    }

    /// The writer's turn with this connection.
    pub(super) fn turn(&self) -> Turn {
        let mut inner = self.lock();
        let connect_id = self.id;
        let packet = match inner.outbound.pop() {
            Some(data) => Some(Packet::Data { connect_id, data }),
            None => match std::mem::replace(&mut inner.closing, Closing::Said) {
                Closing::AfterFlush(error) => {
                    // Nothing more comes: what is here goes to the target, then its end.
                    inner.inbound.finish(Ok(()));
                    Some(Packet::CloseResponse { error, connect_id })
                }
                before => {
                    inner.closing = before;
                    None
                }
            },
        };
        let closing = matches!(inner.closing, Closing::AfterFlush(_));
        let (again, sender) = inner.outbound.stay(closing);
        let receiver = match inner.closing {
            Closing::Said => inner.inbound.reader(),
            _ => None,
        };
        drop(inner);
        for waker in [sender, receiver].into_iter().flatten() {
            waker.wake();
        }
        Turn { packet, again }
    }
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
        if let Some(error) = inner.inbound.refusal() {
            return Poll::Ready(Err(error));
        }
        let most = limits::LEGACY_SEND_QUEUE;
        let enter = ready!(inner.outbound.poll_push(cx, chunk, most));
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
        match inner.inbound.refusal() {
            Some(error) => Poll::Ready(error),
            None => {
                inner.outbound.watch(cx);
                Poll::Pending
            }
        }
    }

    fn set_priority(&mut self, _: i32) {}
}

impl RecvHalf for Half {
    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        let connection = &self.0;
        let taken = ready!(connection.lock().inbound.poll_take(cx, max))?;
        connection.held.take(taken.as_ref().map_or(0, Bytes::len));
        if taken.is_some() && connection.has_room() {
            connection.room.notify_waiters();
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.0.lock().inbound.poll_reset(cx)
    }

    fn stop(&mut self, _: Reason) {
        let left = self.0.lock().inbound.stop();
        self.0.held.take(left);
        self.0.room.notify_waiters();
    }

    fn held(&self) -> Option<Arc<Held>> {
        Some(Arc::clone(&self.0.held))
    }
}
