//! A tunnel as a byte stream, for the gateway: TLS wants to read and write, not to take and give.
//!
//! What was written and not yet given waits here, up to [`limits::READ_CHUNK`]; a flush or a
//! shut-down gives it first.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use towline_link::splice::{Edge, LocalEnd, Presence};
use towline_proto::limits;
use towline_proto::reason::Reason;

/// See the head of this file.
pub(super) struct Wire<E> {
    edge: E,
    ahead: Bytes,
    behind: VecDeque<Bytes>,
}

impl<E: Edge + Unpin> Wire<E> {
    pub(super) fn new(edge: E) -> Self {
        Self {
            edge,
            ahead: Bytes::new(),
            behind: VecDeque::new(),
        }
    }

    fn poll_behind(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.behind.is_empty() {
            if ready!(self.edge.poll_give(cx, &mut self.behind))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
        }
        // An idle connection holds no buffer.
        self.behind = VecDeque::new();
        Poll::Ready(Ok(()))
    }
}

impl<E: Edge + Unpin> AsyncRead for Wire<E> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.ahead.is_empty() {
            match ready!(self.edge.poll_take(cx))? {
                Some(bytes) => self.ahead = bytes,
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead[..count]);
        self.ahead.advance(count);
        if self.ahead.is_empty() {
            self.ahead = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<E: Edge + Unpin> AsyncWrite for Wire<E> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_behind(cx))?;
        let taken = &bytes[..bytes.len().min(limits::READ_CHUNK)];
        if taken.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.behind.push_back(Bytes::copy_from_slice(taken));
        // What is not given now waits; whoever writes or flushes next is woken for it.
        match self.poll_behind(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(taken.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_behind(cx))?;
        self.edge.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_behind(cx))?;
        self.edge.poll_end(cx)
    }
}

impl<E: Edge + Unpin> LocalEnd for Wire<E> {
    fn abort(self) {
        self.edge.give_up(Reason::Aborted);
    }

    fn begin(&self) {
        self.edge.opened();
    }

    fn complete(&self) {
        self.edge.ended();
    }

    fn presence(&self) -> Presence {
        self.edge.seen()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Gives what it holds in pieces, takes three bytes at a time.
    #[derive(Default)]
    struct Small {
        held: VecDeque<Bytes>,
        given: Vec<u8>,
        ended: bool,
    }

    impl Edge for Small {
        fn poll_take(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
            Poll::Ready(Ok(self.held.pop_front()))
        }

        fn poll_give(
            &mut self,
            cx: &mut Context<'_>,
            chunks: &mut VecDeque<Bytes>,
        ) -> Poll<io::Result<usize>> {
            if self.given.len() % 2 == 1 {
                self.given.push(b'.');
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let first = chunks.front_mut().expect("at least one");
            let count = first.len().min(3);
            self.given.extend_from_slice(&first.split_to(count));
            if first.is_empty() {
                chunks.pop_front();
            }
            Poll::Ready(Ok(count))
        }

        fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_end(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.ended = true;
            Poll::Ready(Ok(()))
        }

        fn give_up(self, _reason: Reason) {}

        fn seen(&self) -> Presence {
            Presence::There
        }
    }

    #[tokio::test]
    async fn bytes_arrive_once_and_in_order_both_ways() {
        let held = [&b"ab"[..], b"", b"cde"].map(Bytes::copy_from_slice);
        let mut wire = Wire::new(Small {
            held: held.into(),
            ..Small::default()
        });
        let mut read = Vec::new();
        wire.read_to_end(&mut read).await.expect("read");
        assert_eq!(read, b"abcde");
        wire.write_all(b"0123456789").await.expect("written");
        wire.shutdown().await.expect("ended");
        let given: Vec<u8> = wire.edge.given.into_iter().filter(|b| *b != b'.').collect();
        assert_eq!(given, b"0123456789");
        assert!(wire.edge.ended);
    }
}
