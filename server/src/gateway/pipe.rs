//! The two ends of a gateway connection as TLS wants them: byte streams.
//!
//! Towards the kubelet: a stream of a link. Towards the front end: the local connection, read in
//! large pieces, because TLS by itself asks for 4 KiB at a time. Both begin with what came early.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use towline_link::carrier::{Stream, StreamError};
use towline_link::splice::{LocalEnd, poll_read_chunk};
use towline_proto::limits;
use towline_proto::reason::Reason;

/// A stream of a link, as a byte stream.
pub(super) struct Pipe {
    stream: Stream,
    ahead: Bytes,
    /// Why it failed, when it did: an error of a byte stream has no place for it.
    failed: Option<Reason>,
}

impl Pipe {
    pub(super) fn new(stream: Stream, early: Bytes) -> Self {
        Self {
            stream,
            ahead: early,
            failed: None,
        }
    }

    /// Why reading or writing failed, when it did.
    pub(super) fn failed(&self) -> Option<Reason> {
        self.failed
    }

    /// Ready when what was not read is lost; takes nothing.
    pub(super) fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        self.stream.recv.poll_reset(cx).map(StreamError::reason)
    }

    /// Ready when nobody takes what is written.
    pub(super) fn poll_unheard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.send.poll_stopped(cx).map(drop)
    }

    /// Gives both directions up that have not ended.
    pub(super) fn abort(self, reason: Reason) {
        self.stream.abort(reason);
    }

    fn failure(&mut self, error: StreamError) -> io::Error {
        self.failed = Some(error.reason());
        io::Error::from(io::ErrorKind::ConnectionReset)
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.ahead.is_empty() {
            match ready!(self.stream.recv.poll_recv(cx, limits::READ_CHUNK)) {
                Ok(Some(bytes)) => self.ahead = bytes,
                Ok(None) => return Poll::Ready(Ok(())),
                Err(error) => return Poll::Ready(Err(self.failure(error))),
            }
        }
        hand_over(&mut self.ahead, buf);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        let most = total.min(limits::READ_CHUNK + limits::READ_CHUNK / 2);
        let mut gathered = BytesMut::with_capacity(most);
        for slice in slices {
            let room = most - gathered.len();
            gathered.extend_from_slice(&slice[..slice.len().min(room)]);
        }
        let mut chunk = gathered.freeze();
        match ready!(self.stream.send.poll_send(cx, &mut chunk)) {
            Ok(()) => Poll::Ready(Ok(most - chunk.len())),
            Err(error) => Poll::Ready(Err(self.failure(error))),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.send.finish();
        Poll::Ready(Ok(()))
    }
}

/// A local connection that is read ahead. An idle one holds no buffer.
pub(super) struct Front<L> {
    local: L,
    ahead: Bytes,
}

impl<L: LocalEnd> Front<L> {
    pub(super) fn new(local: L, early: Bytes) -> Self {
        Self {
            local,
            ahead: early,
        }
    }

    /// The connection itself.
    pub(super) fn local(&self) -> &L {
        &self.local
    }

    /// Ends it so that nothing looks complete.
    pub(super) fn abort(self) {
        self.local.abort();
    }
}

impl<L: LocalEnd> AsyncRead for Front<L> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            match ready!(poll_read_chunk(&mut self.local, cx))? {
                Some(bytes) => self.ahead = bytes,
                None => return Poll::Ready(Ok(())),
            }
        }
        hand_over(&mut self.ahead, buf);
        Poll::Ready(Ok(()))
    }
}

impl<L: LocalEnd> AsyncWrite for Front<L> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.local).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.local).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.local.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.local).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.local).poll_shutdown(cx)
    }
}

fn hand_over(ahead: &mut Bytes, buf: &mut ReadBuf<'_>) {
    let count = ahead.len().min(buf.remaining());
    buf.put_slice(&ahead[..count]);
    ahead.advance(count);
    if ahead.is_empty() {
        // So that what was read last does not stay in memory.
        *ahead = Bytes::new();
    }
}
