//! Reads large pieces from the socket for a TLS library that asks for small ones.
//!
//! rustls reads at most 4 KiB at a time, which is four or five system calls for one record. While
//! the peer sends more than that, this reads [`TLS_READ`] bytes at once and hands them on from
//! memory; the buffer exists only while it holds bytes, so an idle connection has none.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;
use towline_proto::limits::TLS_READ;

/// Bytes copied by one call; the reason stands at the same number in `proto/src/queue.rs`.
const COPY_STEP: usize = 1024;

/// Bytes of one connection on the network, each way.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
}

/// A connection with a read buffer that comes and goes. Writes pass through.
#[derive(Debug)]
pub(super) struct ReadAhead<IO> {
    io: IO,
    buffer: BytesMut,
    /// The last read filled all that was asked for: read ahead.
    busy: bool,
    counters: Arc<Counters>,
}

impl<IO> ReadAhead<IO> {
    pub(super) fn new(io: IO, counters: Arc<Counters>) -> Self {
        Self {
            io,
            buffer: BytesMut::new(),
            busy: false,
            counters,
        }
    }

    fn count_received(&self, bytes: usize) {
        self.counters
            .received
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn count_sent(&self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = written {
            self.counters
                .sent
                .fetch_add(*bytes as u64, Ordering::Relaxed);
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for ReadAhead<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.buffer.is_empty() {
            if !this.busy {
                let before = out.filled().len();
                ready!(Pin::new(&mut this.io).poll_read(cx, out))?;
                this.count_received(out.filled().len() - before);
                this.busy = out.remaining() == 0;
                return Poll::Ready(Ok(()));
            }
            // Takes the whole buffer back where it was emptied, else makes one.
            this.buffer.clear();
            this.buffer.reserve(TLS_READ);
            let read = match poll_read_buf(Pin::new(&mut this.io), cx, &mut this.buffer) {
                Poll::Ready(read) => read?,
                Poll::Pending => {
                    this.buffer = BytesMut::new();
                    return Poll::Pending;
                }
            };
            this.count_received(read);
            this.busy = read > out.remaining();
        }
        let length = this.buffer.len().min(out.remaining());
        for step in this.buffer[..length].chunks(COPY_STEP) {
            out.put_slice(step);
        }
        this.buffer.advance(length);
        if this.buffer.is_empty() && !this.busy {
            this.buffer = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for ReadAhead<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write(cx, bytes);
        this.count_sent(&written);
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, slices);
        this.count_sent(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
