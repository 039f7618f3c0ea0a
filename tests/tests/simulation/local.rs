//! A local connection in memory that, like TCP, can be aborted: the other side then sees an
//! error and never an end of file.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use towline_link::splice::LocalEnd;

/// One end.
pub(crate) struct Local {
    stream: DuplexStream,
    finished: bool,
    /// Set by us when we go without having finished.
    we_broke: Arc<AtomicBool>,
    they_broke: Arc<AtomicBool>,
}

/// Two ends of one connection.
pub(crate) fn pair() -> (Local, Local) {
    let (a, b) = tokio::io::duplex(64 * 1024);
    let (a_broke, b_broke) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let end = |stream, we_broke: &Arc<_>, they_broke: &Arc<_>| Local {
        stream,
        finished: false,
        we_broke: Arc::clone(we_broke),
        they_broke: Arc::clone(they_broke),
    };
    (end(a, &a_broke, &b_broke), end(b, &b_broke, &a_broke))
}

impl LocalEnd for Local {
    fn abort(self) {
        self.we_broke.store(true, Ordering::SeqCst);
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        // What a test's own side does by dropping, a process does by dying: the kernel resets
        // when there was something unread. Here it always does.
        if !self.finished {
            self.we_broke.store(true, Ordering::SeqCst);
        }
    }
}

impl AsyncRead for Local {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let ended = matches!(polled, Poll::Ready(Ok(())))
            && buf.filled().len() == before
            && buf.remaining() > 0;
        if ended && self.they_broke.load(Ordering::SeqCst) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        polled
    }
}

impl AsyncWrite for Local {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finished = true;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
