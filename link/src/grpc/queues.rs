//! What waits in one connection of a legacy stream, each way.
//!
//! The protocol has no flow control for one connection. What comes for a slow reader waits in
//! [`Inbound`], which also judges whether the reader moves: the peer may be held back for one that
//! does, never for one that does not. What goes to the peer waits in [`Outbound`] until the
//! stream's writer gives the connection its turn.
//!
//! Both live behind their owner's lock. Whoever has to be woken is returned, so that the owner
//! wakes it after it let go of the lock.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::time::Instant;
use towline_proto::limits;
use towline_proto::queue::Queue;
use towline_proto::reason::Reason;

use crate::carrier::StreamError;

/// From the peer, for our reader.
#[derive(Debug)]
pub struct Inbound {
    /// Packed: a peer chooses how much each packet holds, and what is charged is bytes.
    chunks: Queue,
    end: Option<Result<(), StreamError>>,
    waker: Option<Waker>,
    stopped: bool,
    pace: Pace,
}

/// Whether a reader moves: how much it has taken since it was last judged.
#[derive(Debug)]
struct Pace {
    judged: Instant,
    taken: u64,
    moves: bool,
}

impl Pace {
    fn judge(&mut self, least: f64) {
        self.moves = self.taken as f64 >= least;
        self.judged = Instant::now();
        self.taken = 0;
    }
}

impl Default for Inbound {
    fn default() -> Self {
        Self {
            chunks: Queue::default(),
            end: None,
            waker: None,
            stopped: false,
            pace: Pace {
                judged: Instant::now(),
                taken: 0,
                moves: true,
            },
        }
    }
}

impl Inbound {
    /// Bytes of the peer. `false`: nobody wants them any more.
    pub fn push(&mut self, data: Bytes) -> bool {
        let wanted = !self.stopped && self.end.is_none();
        if wanted {
            self.chunks.push(data);
        }
        wanted
    }

    /// The reader, if it waits.
    pub fn reader(&mut self) -> Option<Waker> {
        self.waker.take()
    }

    /// At most `max` bytes, then how the peer's side ended. Cancel-safe.
    pub fn poll_take(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        let Some(taken) = self.chunks.pop(max) else {
            return match self.end {
                Some(end) => Poll::Ready(end.map(|()| None)),
                None => {
                    self.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            };
        };
        self.pace.taken += taken.len() as u64;
        Poll::Ready(Ok(Some(taken)))
    }

    /// A lost or reset peer, once what it said before was taken.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        match self.end {
            Some(Err(error)) if self.chunks.is_empty() => Poll::Ready(error),
            _ => {
                self.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// The reader takes no more. How many bytes it leaves.
    pub fn stop(&mut self) -> usize {
        self.stopped = true;
        std::mem::take(&mut self.chunks).len()
    }

    /// Whether the reader takes no more.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// The peer's side has ended; the first end counts.
    pub fn finish(&mut self, end: Result<(), StreamError>) {
        self.end.get_or_insert(end);
    }

    /// Whether the peer's side has ended.
    pub fn is_ended(&self) -> bool {
        self.end.is_some()
    }

    /// What a sender to this peer is told: where this protocol ends one side, it ends both.
    pub fn refusal(&self) -> Option<StreamError> {
        self.end.map(|end| match end {
            Ok(()) => StreamError::Stopped(Reason::ReaderGone),
            Err(error) => error,
        })
    }

    /// Whether the reader moves, judged anew once in [`limits::STALLED_AFTER`].
    pub fn moves(&mut self) -> bool {
        if self.pace.judged.elapsed() >= limits::STALLED_AFTER {
            self.pace.judge(limits::MOVING_BYTES as f64);
        }
        self.pace.moves
    }

    /// After the peer was held back: a reader that took nearly nothing meanwhile is no reason to do
    /// it again.
    pub fn judge_after_pause(&mut self) {
        let elapsed = self.pace.judged.elapsed().as_secs_f64();
        self.pace
            .judge(limits::MOVING_BYTES as f64 * elapsed.min(1.0));
    }
}

/// For the peer, until the stream's writer comes by.
#[derive(Debug, Default)]
pub struct Outbound {
    chunks: VecDeque<Bytes>,
    bytes: usize,
    waker: Option<Waker>,
    in_line: bool,
}

impl Outbound {
    /// Takes as much of `chunk` as one packet holds; `most` bytes may wait. Ready with whether the
    /// connection has to be put in the stream's line. Cancel-safe.
    pub fn poll_push(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut Bytes,
        most: usize,
    ) -> Poll<bool> {
        if self.bytes >= most {
            self.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let data = chunk.split_to(chunk.len().min(limits::READ_CHUNK));
        self.bytes += data.len();
        self.chunks.push_back(data);
        Poll::Ready(self.enter())
    }

    /// Whether the connection was in no line; it is in one from now on.
    pub fn enter(&mut self) -> bool {
        !std::mem::replace(&mut self.in_line, true)
    }

    /// The bytes of one turn.
    pub fn pop(&mut self) -> Option<Bytes> {
        let data = self.chunks.pop_front()?;
        self.bytes -= data.len();
        Some(data)
    }

    /// After a turn: whether the connection stays in line, because bytes or `more` wait. And the
    /// sender, if it waits.
    pub fn stay(&mut self, more: bool) -> (bool, Option<Waker>) {
        self.in_line = more || !self.chunks.is_empty();
        (self.in_line, self.waker.take())
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Forgets what waits.
    pub fn clear(&mut self) {
        self.chunks = VecDeque::new();
        self.bytes = 0;
    }

    /// The sender, if it waits.
    pub fn sender(&mut self) -> Option<Waker> {
        self.waker.take()
    }

    /// Wakes `cx` when something happens that a sender wants to know.
    pub fn watch(&mut self, cx: &mut Context<'_>) {
        self.waker = Some(cx.waker().clone());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn idle() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_before_an_end_are_taken_and_nothing_after_it() {
        let mut queue = Inbound::default();
        assert!(queue.push("abcde".into()));
        queue.finish(Err(StreamError::Reset(Reason::TargetReset)));
        queue.finish(Ok(()));
        assert!(!queue.push("late".into()));
        assert!(queue.poll_reset(&mut idle()).is_pending());
        for expected in ["abc", "de"] {
            let taken = queue.poll_take(&mut idle(), 3);
            assert_eq!(taken, Poll::Ready(Ok(Some(expected.into()))));
        }
        let reset = StreamError::Reset(Reason::TargetReset);
        assert_eq!(queue.poll_take(&mut idle(), 3), Poll::Ready(Err(reset)));
        assert_eq!(queue.poll_reset(&mut idle()), Poll::Ready(reset));
        assert_eq!(queue.refusal(), Some(reset));
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_that_waits_keeps_no_buffer_alive_and_many_are_one_piece() {
        let mut queue = Inbound::default();
        for _ in 0..1000 {
            let buffer = Bytes::from(vec![7; 16 * 1024]);
            assert!(queue.push(buffer.slice(100..101)));
            assert!(buffer.is_unique());
        }
        let mut pieces = 0;
        while queue.poll_take(&mut idle(), usize::MAX).is_ready() {
            pieces += 1;
        }
        assert!(pieces < 20, "{pieces}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stopped_leaves_what_it_did_not_take() {
        let mut queue = Inbound::default();
        assert!(queue.push("abc".into()) && queue.push("de".into()));
        assert_eq!(queue.stop(), 5);
        assert!(queue.is_stopped() && !queue.push("f".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_reader_that_takes_enough_moves() {
        let mut queue = Inbound::default();
        assert!(queue.moves(), "nobody is judged at once");
        tokio::time::advance(limits::STALLED_AFTER).await;
        assert!(!queue.moves());
        assert!(queue.push(vec![0; limits::MOVING_BYTES as usize].into()));
        assert!(queue.poll_take(&mut idle(), usize::MAX).is_ready());
        assert!(!queue.moves(), "not before the next look");
        tokio::time::advance(limits::STALLED_AFTER).await;
        assert!(queue.moves());
        tokio::time::advance(Duration::from_millis(10)).await;
        queue.judge_after_pause();
        assert!(!queue.moves());
    }

    #[test]
    fn a_sender_waits_when_enough_waits_and_stands_in_line_once() {
        let mut queue = Outbound::default();
        let mut chunk = Bytes::from(vec![0; limits::READ_CHUNK + 1]);
        let most = limits::READ_CHUNK;
        assert_eq!(
            queue.poll_push(&mut idle(), &mut chunk, most),
            Poll::Ready(true)
        );
        assert_eq!(chunk.len(), 1);
        assert!(queue.poll_push(&mut idle(), &mut chunk, most).is_pending());
        assert_eq!(queue.pop().map(|data| data.len()), Some(limits::READ_CHUNK));
        let (stays, sender) = queue.stay(false);
        assert!(!stays && sender.is_some() && queue.is_empty());
        assert_eq!(
            queue.poll_push(&mut idle(), &mut chunk, most),
            Poll::Ready(true)
        );
        assert_eq!(
            queue.poll_push(&mut idle(), &mut "x".into(), most),
            Poll::Ready(false)
        );
        assert!(queue.stay(false).0);
        queue.clear();
        assert!(queue.is_empty() && !queue.stay(false).0 && queue.stay(true).0);
    }
}
