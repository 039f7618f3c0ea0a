//! Proof that a front end on a Unix socket has read the answer to its CONNECT.
//!
//! kube-apiserver takes bytes that arrive in one read with the answer for an error, so bytes of a
//! target that speaks first must not be written before the answer was read. A Unix socket counts
//! what its peer has not read against its send buffer: with the smallest buffer there is, it is
//! writable again only when an answer of [`LENGTH`] bytes has been read to its end. Nearly every
//! front end speaks first and needs none of this; the others pay two system calls.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{set_socket_send_buffer_size, socket_send_buffer_size};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::status::ESTABLISHED;

/// Length of the answer that says whether it was read. Linux counts at least this much for it,
/// and calls a socket writable while four times the count fit the buffer, whose smallest size is
/// about 4,600 bytes: 1,152 would do exactly, and the count of 1,024 includes the kernel's own
/// record of over 500.
const LENGTH: usize = 1024;

/// Where the filler stands in the answer: a header that no client knows, or needs to.
const BEFORE: &[u8] = b"\r\nTowline-Filler: ";
const AFTER: &[u8] = b"\r\n\r\n";

/// The answer of 200, made so long that it can be seen whether it was read.
pub(super) static ANSWER: [u8; LENGTH] = filled();

const fn filled() -> [u8; LENGTH] {
    let mut answer = [b'-'; LENGTH];
    let line = ESTABLISHED.len() - AFTER.len();
    let mut at = 0;
    while at < line + BEFORE.len() {
        answer[at] = if at < line {
            ESTABLISHED[at]
        } else {
            BEFORE[at - line]
        };
        at += 1;
    }
    let mut at = 0;
    while at < AFTER.len() {
        answer[LENGTH - AFTER.len() + at] = AFTER[at];
        at += 1;
    }
    answer
}

/// Resolves when everything that was written to `stream` has been read, or its peer is gone; at
/// once on a system whose sockets do not show it. Cancel-safe.
pub(super) async fn until_read(stream: &UnixStream) {
    if !shown_here() {
        return;
    }
    let Ok(_small) = Small::of(stream) else {
        return;
    };
    while stream.writable().await.is_ok() {
        let looked = stream.try_io(Interest::WRITABLE, || match is_writable(stream) {
            true => Ok(()),
            false => Err(io::ErrorKind::WouldBlock.into()),
        });
        if !matches!(looked, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            break;
        }
    }
}

/// A send buffer of the smallest size, until this is dropped.
struct Small<'a> {
    stream: &'a UnixStream,
    usual: usize,
}

impl<'a> Small<'a> {
    fn of(stream: &'a UnixStream) -> io::Result<Self> {
        let usual = socket_send_buffer_size(stream)?;
        set_socket_send_buffer_size(stream, 0)?;
        Ok(Self { stream, usual })
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        // What the kernel tells is twice what it was told. Fails only on a socket that is gone.
        let _ = set_socket_send_buffer_size(self.stream, self.usual / 2);
    }
}

/// Whether sockets of this system show what is unread: tried once, on a pair.
fn shown_here() -> bool {
    static SHOWN: OnceLock<bool> = OnceLock::new();
    *SHOWN.get_or_init(|| {
        let shown = tried().unwrap_or(false);
        if !shown {
            tracing::warn!(
                "this system does not show when a Unix socket was read: a target that speaks \
                 first may be heard together with the answer to CONNECT"
            );
        }
        shown
    })
}

fn tried() -> io::Result<bool> {
    let (mut ours, mut theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    ours.write_all(&ANSWER)?;
    set_socket_send_buffer_size(&ours, 0)?;
    let unread = !is_writable(&ours);
    let mut answer = [0; LENGTH];
    theirs.read_exact(&mut answer[..LENGTH - 1])?;
    let nearly = !is_writable(&ours);
    theirs.read_exact(&mut answer[LENGTH - 1..])?;
    Ok(unread && nearly && is_writable(&ours))
}

fn is_writable(socket: &impl AsFd) -> bool {
    let mut asked = [PollFd::new(socket, PollFlags::OUT)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    matches!(poll(&mut asked, Some(&at_once)), Ok(1..))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn the_answer_is_one_head() {
        let text = std::str::from_utf8(&ANSWER).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 Connection Established\r\nTowline-Filler: ---"));
        assert!(text.ends_with("---\r\n\r\n"));
        assert_eq!(text.matches("\r\n").count(), 3);
    }

    #[tokio::test]
    async fn the_last_byte_of_the_answer_is_the_proof() {
        assert!(tried().unwrap(), "this kernel shows what is unread");
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let usual = socket_send_buffer_size(&ours).unwrap();
        ours.write_all(&ANSWER).await.unwrap();
        {
            let mut read = std::pin::pin!(until_read(&ours));
            let mut answer = [0; LENGTH];
            let first = theirs.read_exact(&mut answer[..LENGTH - 1]);
            tokio::select! {
                biased;
                () = &mut read => panic!("not everything was read"),
                first = first => assert_eq!(first.unwrap(), LENGTH - 1),
            }
            tokio::task::yield_now().await;
            assert!(looked_at(&mut read).await.is_none(), "one byte is unread");
            theirs.read_exact(&mut answer[LENGTH - 1..]).await.unwrap();
            read.await;
            assert_eq!(answer, ANSWER);
        }
        assert_eq!(socket_send_buffer_size(&ours).unwrap(), usual);
    }

    #[tokio::test]
    async fn whoever_stops_waiting_leaves_the_buffer_as_it_was() {
        let (mut ours, _theirs) = UnixStream::pair().unwrap();
        let usual = socket_send_buffer_size(&ours).unwrap();
        ours.write_all(&ANSWER).await.unwrap();
        let mut read = Box::pin(until_read(&ours));
        assert!(looked_at(&mut read).await.is_none());
        assert!(socket_send_buffer_size(&ours).unwrap() < usual);
        drop(read);
        assert_eq!(socket_send_buffer_size(&ours).unwrap(), usual);
    }

    #[tokio::test]
    async fn a_front_end_that_is_gone_is_not_waited_for() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&ANSWER).await.unwrap();
        drop(theirs);
        until_read(&ours).await;
    }

    /// One look at a future.
    async fn looked_at<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|cx| {
            std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(cx) {
                std::task::Poll::Ready(output) => Some(output),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }
}
