//! What a splice makes of a local end that is gone while nothing moves: on a paused clock, with
//! a stream that takes and gives nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout};
use towline_link::carrier::{RecvHalf, SendHalf, Stream, StreamError};
use towline_link::live::LiveDials;
use towline_link::splice::{Early, LocalEnd, LocalSide, Presence, splice};
use towline_proto::limits::{LOCAL_GONE, LOCAL_LOOK};
use towline_proto::reason::Reason;

/// Takes one byte when it is told to, and else nothing.
struct Slow(Arc<AtomicBool>);

impl SendHalf for Slow {
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut Bytes,
    ) -> Poll<Result<(), StreamError>> {
        if self.0.swap(false, Ordering::SeqCst) {
            drop(chunk.split_to(1));
            cx.waker().wake_by_ref();
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }
    fn finish(&mut self) {}
    fn reset(&mut self, _: Reason) {}
    fn poll_stopped(&mut self, _: &mut Context<'_>) -> Poll<StreamError> {
        Poll::Pending
    }
    fn set_priority(&mut self, _: i32) {}
}

struct Mute;

impl RecvHalf for Mute {
    fn poll_recv(
        &mut self,
        _: &mut Context<'_>,
        _: usize,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        Poll::Pending
    }
    fn poll_reset(&mut self, _: &mut Context<'_>) -> Poll<StreamError> {
        Poll::Pending
    }
    fn stop(&mut self, _: Reason) {}
}

/// What the test says of a local end.
#[derive(Clone, Default)]
struct State {
    presence: Arc<AtomicU8>,
    looks: Arc<AtomicU8>,
    /// Set when a close is an abort.
    armed: Arc<AtomicBool>,
}

const CLOSED: u8 = 1;
const BROKEN: u8 = 2;

struct Local {
    bytes: usize,
    state: State,
}

impl LocalEnd for Local {
    fn abort(self) {
        self.begin();
    }
    fn begin(&self) {
        self.state.armed.store(true, Ordering::SeqCst);
    }
    fn complete(&self) {
        self.state.armed.store(false, Ordering::SeqCst);
    }
    fn presence(&self) -> Presence {
        self.state.looks.fetch_add(1, Ordering::SeqCst);
        match self.state.presence.load(Ordering::SeqCst) {
            CLOSED => Presence::Closed,
            BROKEN => Presence::Broken,
            _ => Presence::There,
        }
    }
}

impl AsyncRead for Local {
    /// Its bytes, and then the end.
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let given = self.bytes.min(buf.remaining());
        buf.put_slice(&vec![1; given]);
        self.bytes -= given;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Local {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Pending
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// How a splice ends, if it does within ten minutes, and after what time.
async fn ends(
    side: LocalSide,
    bytes: usize,
    presence: u8,
    moves: &[Duration],
) -> (Option<Reason>, Duration, State) {
    let (state, takes) = (State::default(), Arc::new(AtomicBool::new(false)));
    state.presence.store(presence, Ordering::SeqCst);
    let local = Local {
        bytes,
        state: state.clone(),
    };
    let stream = Stream::new(Box::new(Slow(takes.clone())), Box::new(Mute));
    let live = LiveDials::new(u64::MAX).register();
    let begun = Instant::now();
    let joined = splice(local, stream, side, Early::default(), &live);
    let moving = async {
        for pause in moves {
            tokio::time::sleep(*pause).await;
            takes.store(true, Ordering::SeqCst);
        }
        std::future::pending::<()>().await;
    };
    let limit = Duration::from_secs(600);
    let end = timeout(limit, async {
        tokio::select! {
            end = joined => end.reason,
            () = moving => unreachable!(),
        }
    });
    (end.await.ok(), begun.elapsed(), state)
}

fn about(took: Duration, expected: Duration) -> bool {
    (expected..=expected + 2 * LOCAL_LOOK).contains(&took)
}

#[tokio::test(start_paused = true)]
async fn last_bytes_of_a_front_end_that_closed_are_kept_for_a_while() {
    let (reason, took, state) = ends(LocalSide::FrontEnd, 100, CLOSED, &[]).await;
    assert_eq!(reason, Some(Reason::FrontEndGone));
    assert!(about(took, LOCAL_GONE), "{took:?}");
    assert!(state.armed.load(Ordering::SeqCst), "it was aborted");
    // As long as some of them are taken they are kept.
    let moves = [Duration::from_secs(20); 3];
    let (reason, took, _) = ends(LocalSide::FrontEnd, 100, CLOSED, &moves).await;
    assert_eq!(reason, Some(Reason::FrontEndGone));
    assert!(took > LOCAL_GONE + Duration::from_secs(55), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_front_end_that_is_there_may_wait_for_ever() {
    for bytes in [0, 100] {
        let (reason, ..) = ends(LocalSide::FrontEnd, bytes, 0, &[]).await;
        assert_eq!(reason, None, "{bytes}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_that_closed_keeps_its_bytes_for_a_reader_that_pauses() {
    for bytes in [0, 100] {
        let (reason, ..) = ends(LocalSide::Target, bytes, CLOSED, &[]).await;
        assert_eq!(reason, None, "{bytes}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_local_end_that_broke_ends_the_dial_at_the_next_look() {
    for (side, expected) in [
        (LocalSide::FrontEnd, Reason::FrontEndGone),
        (LocalSide::Target, Reason::TargetReset),
    ] {
        for bytes in [0, 100] {
            let (reason, took, _) = ends(side, bytes, BROKEN, &[]).await;
            assert_eq!(reason, Some(expected));
            assert!(about(took, LOCAL_LOOK), "{took:?}");
        }
    }
    let (reason, took, state) = ends(LocalSide::FrontEnd, 0, CLOSED, &[]).await;
    assert_eq!(reason, Some(Reason::FrontEndGone), "nobody takes an answer");
    assert!(about(took, LOCAL_LOOK), "{took:?}");
    assert_eq!(state.looks.load(Ordering::SeqCst), 1);
}
