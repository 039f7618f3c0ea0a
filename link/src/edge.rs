//! The local side of a splice: a socket of a front end or a target, or a protocol that has bytes
//! in pieces already.
//!
//! Reads of sockets go through a scratch buffer of the thread, so an idle one holds no memory.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use rustix::event::{PollFd, PollFlags, Timespec};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::io::poll_read_buf;
use towline_proto::limits;
use towline_proto::reason::Reason;

/// Chunks written by one call.
const VECTOR: usize = 64;

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

thread_local! {
    /// Taken by one poll at a time and never across a wait.
    static SCRATCH: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// Reads below this size are copied out of the scratch buffer, so that a small chunk that waits
/// does not keep a large buffer alive.
const COPY_BELOW: usize = 8 * 1024;

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
