//! A front end's socket that knows how long its writes are waited for: what Konnectivity counts as
//! `frontend_write_duration_seconds`.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use towline_link::splice::{LocalEnd, Presence};

use crate::konnectivity::Counted;

/// See the head of this file.
pub(super) struct Timed<S> {
    inner: S,
    /// Nobody is told outside of the compatibility profile.
    counted: Option<Arc<Counted>>,
    /// When the write that goes on has begun.
    since: Option<Instant>,
}

impl<S> Timed<S> {
    pub(super) fn new(inner: S, counted: Option<Arc<Counted>>) -> Self {
        Self {
            inner,
            counted,
            since: None,
        }
    }
}

impl<S: AsyncWrite + Unpin> Timed<S> {
    fn observed(
        &mut self,
        write: impl FnOnce(Pin<&mut S>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let Some(counted) = &self.counted else {
            return write(Pin::new(&mut self.inner));
        };
        let begun = *self.since.get_or_insert_with(Instant::now);
        let written = ready!(write(Pin::new(&mut self.inner)));
        self.since = None;
        counted.front_end_took(begun.elapsed());
        Poll::Ready(written)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().observed(|inner| inner.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut()
            .observed(|inner| inner.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

impl<S: LocalEnd> LocalEnd for Timed<S> {
    fn abort(self) {
        self.inner.abort();
    }

    fn begin(&self) {
        self.inner.begin();
    }

    fn complete(&self) {
        self.inner.complete();
    }

    fn presence(&self) -> Presence {
        self.inner.presence()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    fn count(counted: &Counted) -> Option<String> {
        let mut page = String::new();
        counted.families().write(&mut page);
        let name = "konnectivity_network_proxy_server_frontend_write_duration_seconds_count ";
        let line = page.lines().find(|line| line.starts_with(name))?;
        line.strip_prefix(name).map(str::to_owned)
    }

    #[tokio::test]
    async fn every_write_is_observed_once_also_one_that_waits() {
        let counted = Arc::new(Counted::new());
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut timed = Timed::new(near, Some(Arc::clone(&counted)));
        assert_eq!(count(&counted), None);
        timed.write_all(b"hello").await.unwrap();
        assert_eq!(count(&counted).as_deref(), Some("1"));
        // More than the socket takes at once: the last piece waits for the reader.
        let large = vec![7; 4 << 20];
        let writing = async {
            let mut writes = 0;
            let mut left = &large[..];
            while !left.is_empty() {
                let written = timed.write(left).await.unwrap();
                left = &left[written..];
                writes += 1;
            }
            drop(timed);
            writes
        };
        let reading = async {
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            all.len()
        };
        let (writes, read) = tokio::join!(writing, reading);
        assert_eq!(read, large.len() + 5);
        assert!(writes > 1, "one write took everything");
        assert_eq!(count(&counted), Some((writes + 1).to_string()));
    }

    #[tokio::test]
    async fn elsewhere_nobody_looks_at_the_clock() {
        let (near, _far) = UnixStream::pair().unwrap();
        let mut timed = Timed::new(near, None);
        timed.write_all(b"hello").await.unwrap();
        assert!(timed.since.is_none());
    }
}
