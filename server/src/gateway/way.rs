//! One direction of a gateway connection: what was read, what may pass, what has ended. A direction
//! in which nothing waits holds no buffer.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::AsyncRead;
use tokio_util::io::poll_read_buf;
use towline_proto::limits;

/// Reads below this size are copied out of the scratch buffer, so that a small piece that waits
/// does not keep a large buffer alive.
const COPY_BELOW: usize = 8 * 1024;

/// One direction.
#[derive(Default)]
pub(super) struct Way {
    /// Read, and not yet allowed to pass.
    pub(super) held: BytesMut,
    /// Allowed to pass, and not yet taken.
    pub(super) out: BytesMut,
    /// The reading side has ended.
    pub(super) eof: bool,
    /// And the writing side was told.
    pub(super) shut: bool,
    /// The writing side takes no more, though not everything was said.
    pub(super) cut: bool,
    /// Written, and perhaps not sent.
    pub(super) unsent: bool,
}

impl Way {
    /// Lets so many of the held bytes pass.
    pub(super) fn pass(&mut self, count: usize) {
        let bytes = self.held.split_to(count);
        if self.out.is_empty() {
            self.out = bytes;
        } else {
            self.out.unsplit(bytes);
        }
        if self.held.is_empty() {
            self.held = BytesMut::new();
        }
    }

    /// Adds what was read.
    pub(super) fn keep(&mut self, bytes: BytesMut) {
        if self.held.is_empty() {
            self.held = bytes;
        } else {
            self.held.extend_from_slice(&bytes);
        }
    }
}

thread_local! {
    /// Taken by one read at a time and never across a wait.
    static PLAIN: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// What one side has said, at most a large chunk of it; `None` at its end in order.
pub(super) fn read_some<S: AsyncRead + Unpin>(
    stream: &mut S,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Option<BytesMut>>> {
    PLAIN.with_borrow_mut(|scratch| {
        if scratch.capacity() < limits::READ_CHUNK / 2 {
            scratch.reserve(limits::READ_CHUNK);
        }
        let read = ready!(poll_read_buf(Pin::new(stream), cx, scratch))?;
        Poll::Ready(Ok(match read {
            0 => None,
            small if small < COPY_BELOW => {
                let bytes = BytesMut::from(&scratch[..]);
                scratch.clear();
                Some(bytes)
            }
            _ => Some(scratch.split()),
        }))
    })
}
