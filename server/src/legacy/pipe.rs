//! One connection through a legacy agent as the byte pipe that doors know.
//!
//! What the protocol cannot say is made up for here:
//! - No flow control for one connection: what comes for a slow reader waits in a queue that is
//!   charged to the process-wide memory budget; see `serve` for who is held back when.
//! - No half-close: when our side has ended, nothing is said to the agent until the target has
//!   been silent for [`limits::LEGACY_LINGER`] or our reader has gone too; only then CLOSE_REQ,
//!   which ends the connection as a whole.
//! - No reset: an end of the agent's side reads as an end in order, unless the agent names an
//!   error or its stream is lost.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Sleep;
use towline_link::carrier::{RecvHalf, SendHalf, Stream, StreamError};
use towline_link::grpc::{Inbound, Outbound};
use towline_link::live::Held;
use towline_proto::konnectivity::Packet;
use towline_proto::limits;
use towline_proto::reason::Reason;

use super::stream::AgentStream;

/// How far closing has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    No,
    /// As soon as everything that waits for the agent was handed over.
    AfterFlush,
    /// CLOSE_REQ was queued.
    Asked,
}

#[derive(Debug)]
struct Inner {
    /// From the agent.
    inbound: Inbound,
    /// To the agent.
    outbound: Outbound,
    /// Our side has ended.
    finished: bool,
    closing: Closing,
}

/// One connection of an agent stream.
#[derive(Debug)]
pub(super) struct Connection {
    id: i64,
    stream: Arc<AgentStream>,
    inner: Mutex<Inner>,
    held: Arc<Held>,
    /// Told when the queue is short again, or nobody wants it any more.
    pub(super) room: Notify,
}

/// What the writer of a stream finds when it is a connection's turn.
pub(super) struct Turn {
    /// To be sent.
    pub(super) packet: Option<Packet>,
    /// Whether there is more for another turn.
    pub(super) again: bool,
}

impl Connection {
    pub(super) fn new(id: i64, stream: Arc<AgentStream>) -> Arc<Self> {
        let held = stream.live().hold();
        Arc::new(Self {
            id,
            stream,
            inner: Mutex::new(Inner {
                inbound: Inbound::default(),
                outbound: Outbound::default(),
                finished: false,
                closing: Closing::No,
            }),
            held,
            room: Notify::new(),
        })
    }

    /// Whether CLOSE_REQ was said.
    pub(super) fn is_closing(&self) -> bool {
        self.lock().closing == Closing::Asked
    }

    /// The two halves. Dropping them closes the connection.
    pub(super) fn pipe(self: Arc<Self>) -> Stream {
        let recv = Receiver {
            connection: Arc::clone(&self),
            quiet: None,
            asked: false,
        };
        Stream::new(Box::new(Sender { connection: self }), Box::new(recv))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes from the agent. Whether the queue is so long that the agent should wait for it.
    pub(super) fn push(&self, data: Bytes) -> bool {
        if data.is_empty() {
            return false;
        }
        let length = data.len();
        let within = self.held.add(length);
        let mut inner = self.lock();
        if !inner.inbound.push(data) {
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
        if !within && self.held.bytes() > limits::LEGACY_QUEUE {
            // The budget is used up, and nobody was stalled longer.
            self.fail(StreamError::Reset(Reason::MemoryBudget));
            self.ask_close();
            return false;
        }
        wait
    }

    /// Whether the queue is short enough for the agent to go on.
    pub(super) fn has_room(&self) -> bool {
        self.held.bytes() <= limits::LEGACY_QUEUE / 2
    }

    /// After a pause: a reader that took nearly nothing meanwhile is no reason for another one.
    pub(super) fn judge_after_pause(&self) {
        self.lock().inbound.judge_after_pause();
    }

    /// The agent's side has ended.
    pub(super) fn ended(&self, error: &str) {
        match error.is_empty() {
            true => self.finish_with(Ok(())),
            false => self.fail(StreamError::Reset(Reason::TargetReset)),
        }
    }

    /// Everything that waits for our reader stays; then this.
    pub(super) fn fail(&self, error: StreamError) {
        self.finish_with(Err(error));
    }

    fn finish_with(&self, end: Result<(), StreamError>) {
        let mut inner = self.lock();
        inner.inbound.finish(end);
        inner.outbound.clear();
        let wakers = [inner.inbound.reader(), inner.outbound.sender()];
        drop(inner);
        self.room.notify_waiters();
        for waker in wakers.into_iter().flatten() {
            waker.wake();
        }
    }

    /// The writer's turn with this connection.
    pub(super) fn turn(&self) -> Turn {
        let mut inner = self.lock();
        let connect_id = self.id;
        let packet = match inner.outbound.pop() {
            Some(data) => Some(Packet::Data { connect_id, data }),
            None if inner.closing == Closing::AfterFlush => {
                inner.closing = Closing::Asked;
                Some(Packet::CloseRequest { connect_id })
            }
            None => None,
        };
        let closing = inner.closing == Closing::AfterFlush;
        let (again, sender) = inner.outbound.stay(closing);
        // The receiver waits for the flush before it counts silence.
        let receiver = match inner.finished && !again {
            true => inner.inbound.reader(),
            false => None,
        };
        drop(inner);
        for waker in [sender, receiver].into_iter().flatten() {
            waker.wake();
        }
        Turn { packet, again }
    }

    /// CLOSE_REQ, at once.
    fn ask_close(&self) {
        let mut inner = self.lock();
        inner.outbound.clear();
        let ask = inner.closing != Closing::Asked;
        inner.closing = Closing::Asked;
        drop(inner);
        if ask {
            self.stream.ask_close(self.id);
        }
    }

    /// CLOSE_REQ, behind what waits for the agent.
    fn close_after_flush(self: &Arc<Self>) {
        let mut inner = self.lock();
        if inner.closing != Closing::No || inner.inbound.is_ended() {
            return;
        }
        inner.closing = Closing::AfterFlush;
        let enter = inner.outbound.enter();
        drop(inner);
        if enter {
            self.stream.stand_in_line(self);
        }
    }
}

struct Sender {
    connection: Arc<Connection>,
}

impl SendHalf for Sender {
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut Bytes,
    ) -> Poll<Result<(), StreamError>> {
        if chunk.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let connection = &self.connection;
        let mut inner = connection.lock();
        if let Some(error) = inner.inbound.refusal() {
            return Poll::Ready(Err(error));
        }
        let most = limits::MUX_SEND_QUEUE;
        let enter = ready!(inner.outbound.poll_push(cx, chunk, most));
        drop(inner);
        if enter {
            connection.stream.stand_in_line(connection);
        }
        Poll::Ready(Ok(()))
    }

    fn finish(&mut self) {
        let mut inner = self.connection.lock();
        inner.finished = true;
        let stopped = inner.inbound.is_stopped();
        let waker = inner.inbound.reader();
        drop(inner);
        if stopped {
            self.connection.close_after_flush();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn reset(&mut self, _: Reason) {
        let ended = self.connection.lock().inbound.is_ended();
        if !ended {
            self.connection.ask_close();
        }
    }

    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let mut inner = self.connection.lock();
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

struct Receiver {
    connection: Arc<Connection>,
    /// Runs while our side has ended and the target is silent, then while the close is unconfirmed.
    quiet: Option<Pin<Box<Sleep>>>,
    asked: bool,
}

impl Receiver {
    fn poll_quiet(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        loop {
            let wait = match self.asked {
                true => limits::LEGACY_CLOSE,
                false => limits::LEGACY_LINGER,
            };
            let quiet = self
                .quiet
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(wait)));
            ready!(quiet.as_mut().poll(cx));
            self.quiet = None;
            if self.asked {
                return Poll::Ready(Err(StreamError::Reset(Reason::PeerSilent)));
            }
            self.asked = true;
            self.connection.close_after_flush();
        }
    }
}

impl RecvHalf for Receiver {
    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        let connection = Arc::clone(&self.connection);
        let mut inner = connection.lock();
        let Poll::Ready(taken) = inner.inbound.poll_take(cx, max) else {
            let alone = inner.finished && inner.outbound.is_empty();
            drop(inner);
            return match alone {
                true => self.poll_quiet(cx),
                false => Poll::Pending,
            };
        };
        drop(inner);
        let taken = taken?;
        if let Some(data) = &taken {
            connection.held.take(data.len());
            if connection.has_room() {
                connection.room.notify_waiters();
            }
            if !self.asked {
                self.quiet = None;
            }
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.connection.lock().inbound.poll_reset(cx)
    }

    fn stop(&mut self, _: Reason) {
        let mut inner = self.connection.lock();
        let left = inner.inbound.stop();
        let finished = inner.finished;
        drop(inner);
        self.connection.held.take(left);
        self.connection.room.notify_waiters();
        if finished {
            self.connection.close_after_flush();
        }
    }

    fn held(&self) -> Option<Arc<Held>> {
        Some(Arc::clone(&self.connection.held))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc;
    use tokio::time::{Instant, timeout};
    use tokio_util::task::AbortOnDropHandle;
    use towline_link::carrier::SendStream;
    use towline_link::live::LiveDials;
    use towline_proto::konnectivity::Identifiers;

    use super::*;
    use crate::legacy::admit::Proof;
    use crate::legacy::stream::Announced;

    const MOMENT: Duration = Duration::from_millis(1);
    const CLOSE: Packet = Packet::CloseRequest { connect_id: 1 };
    type Came = Result<Option<Bytes>, StreamError>;

    /// A connection whose front end reads all the time.
    struct Open {
        stream: Arc<AgentStream>,
        connection: Arc<Connection>,
        send: SendStream,
        came: mpsc::UnboundedReceiver<Came>,
        _reading: AbortOnDropHandle<()>,
    }

    fn open() -> Open {
        let announced = Announced {
            id: "a".into(),
            identifiers: Identifiers::default(),
            proof: Proof::Certificate(Vec::new()),
            address: ([127, 0, 0, 1], 1).into(),
        };
        let stream = AgentStream::new(1, announced, LiveDials::new(1 << 20));
        let connection = Connection::new(1, Arc::clone(&stream));
        let Stream { send, mut recv } = Arc::clone(&connection).pipe();
        let (tell, came) = mpsc::unbounded_channel();
        let reading = tokio::spawn(async move {
            loop {
                let next = recv.recv(usize::MAX).await;
                let more = matches!(next, Ok(Some(_)));
                if tell.send(next).is_err() || !more {
                    return;
                }
            }
        });
        Open {
            stream,
            connection,
            send,
            came,
            _reading: AbortOnDropHandle::new(reading),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_is_heard_as_long_as_it_speaks_after_our_end() {
        let mut open = open();
        open.send.send(Bytes::from("question")).await.unwrap();
        open.send.finish();
        let question = open.stream.next_packet().await;
        assert!(matches!(question, Packet::Data { .. }), "{question:?}");
        // Longer than the silence that would end it, in pieces.
        for _ in 0..5 {
            let quiet = timeout(limits::LEGACY_LINGER - MOMENT, open.stream.next_packet());
            assert!(quiet.await.is_err(), "the connection was closed");
            open.connection.push(Bytes::from("word"));
            assert_eq!(open.came.recv().await, Some(Ok(Some(Bytes::from("word")))));
        }
        let begun = Instant::now();
        assert_eq!(open.stream.next_packet().await, CLOSE);
        assert!(begun.elapsed() >= limits::LEGACY_LINGER);
        // What was on its way is still heard, then the end.
        open.connection.push(Bytes::from("last"));
        open.connection.ended("");
        assert_eq!(open.came.recv().await, Some(Ok(Some(Bytes::from("last")))));
        assert_eq!(open.came.recv().await, Some(Ok(None)));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_closed_while_our_side_may_still_speak() {
        let mut open = open();
        let quiet = timeout(limits::LEGACY_LINGER * 10, open.stream.next_packet());
        assert!(quiet.await.is_err());
        open.send.send(Bytes::from("late")).await.unwrap();
        let late = open.stream.next_packet().await;
        assert!(matches!(late, Packet::Data { .. }), "{late:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_close_that_is_not_confirmed_ends_the_dial_in_time() {
        let mut open = open();
        open.send.finish();
        assert_eq!(open.stream.next_packet().await, CLOSE);
        let begun = Instant::now();
        let silent = StreamError::Reset(Reason::PeerSilent);
        assert_eq!(open.came.recv().await, Some(Err(silent)));
        assert!(begun.elapsed() >= limits::LEGACY_CLOSE);
    }
}
