//! The bytes of one gateway connection, both ways, in one task: plain between two TLS sessions,
//! each request judged before its first byte passes, nothing rewritten.
//!
//! 1. A side that takes nothing stops only its own direction; what is kept for it is bounded.
//! 2. An end travels as an end (`close_notify`), and only where nothing that was cut can look
//!    whole; everything else ends both sides abruptly.
//! 3. An answer of ours is written between the kubelet's answers, never into one. Where the
//!    connection cannot go on behind it, the rest is read and dropped for a moment, so that the
//!    front end can read it.
//!
//! An idle connection holds no buffer.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::AsyncWrite;
use tokio::time::Sleep;
use tokio_rustls::{client, server};
use towline_link::live::LiveGuard;
use towline_link::splice::{LocalEnd, Presence};
use towline_proto::http1::head::Method;
use towline_proto::http1::{DownStep, Exchange, UpStep, Violation};
use towline_proto::limits;
use towline_proto::reason::Reason;

use super::answer::Answer;
use super::judge::Judge;
use super::pipe::{Front, Pipe};
use super::way::{Way, read_some};

/// Rounds over both directions before other tasks get their turn.
const TURNS: usize = 16;

/// Resolves when the process stops.
pub(super) type Stopping = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One connection between a front end and a kubelet.
pub(super) struct Relay<'a, L: LocalEnd> {
    front: server::TlsStream<Front<L>>,
    kubelet: client::TlsStream<Pipe>,
    exchange: Exchange,
    judge: Judge<'a>,
    live: &'a LiveGuard,
    up: Way,
    down: Way,
    /// Nothing more is taken from anybody, for this reason.
    closing: Option<Reason>,
    /// Ready when the process stops and nothing new shall begin.
    stopping: Option<Stopping>,
    /// For a head that is not whole.
    deadline: Option<Pin<Box<Sleep>>>,
    /// For what is still on its way when the connection ends.
    linger: Option<Pin<Box<Sleep>>>,
    /// For a side that is not read.
    look: Option<Pin<Box<Sleep>>>,
    /// Looks in a row that found nothing moved.
    still: u32,
    moved: u64,
}

impl<'a, L: LocalEnd> Relay<'a, L> {
    pub(super) fn new(
        front: server::TlsStream<Front<L>>,
        kubelet: client::TlsStream<Pipe>,
        judge: Judge<'a>,
        live: &'a LiveGuard,
        stopping: Stopping,
    ) -> Self {
        Self {
            front,
            kubelet,
            exchange: Exchange::default(),
            judge,
            live,
            up: Way::default(),
            down: Way::default(),
            closing: None,
            stopping: Some(stopping),
            deadline: None,
            linger: None,
            look: None,
            still: 0,
            moved: 0,
        }
    }

    /// Runs until the connection is over.
    pub(super) async fn run(mut self) -> Reason {
        self.front.get_ref().0.local().begin();
        let reason = std::future::poll_fn(|cx| self.poll(cx)).await;
        self.judge.ended(reason);
        let (front, _) = self.front.into_inner();
        if self.down.shut {
            front.local().complete();
        } else {
            front.abort();
        }
        let (pipe, _) = self.kubelet.into_inner();
        pipe.abort(reason);
        reason
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        if let Poll::Ready(reason) = self.live.dial().poll_ended(cx) {
            return Poll::Ready(reason);
        }
        if self.down.shut && !self.up.shut && self.kubelet.get_mut().0.poll_unheard(cx).is_ready() {
            // The kubelet has said its end, and nobody there takes what may still come.
            return Poll::Ready(Reason::ReaderGone);
        }
        for _ in 0..TURNS {
            if let Some(reason) = self.closing {
                return self.poll_close(cx, reason);
            }
            let moved = match self.turn(cx) {
                Ok(moved) => moved,
                Err(reason) => return Poll::Ready(reason),
            };
            if let Some(reason) = self.over() {
                return Poll::Ready(reason);
            }
            if !moved && !self.poll_stopping(cx) {
                return self.poll_timers(cx);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Result<bool, Reason> {
        let up = self.turn_up(cx)?;
        if self.closing.is_some() {
            return Ok(true);
        }
        let down = self.turn_down(cx)?;
        Ok(up || down || self.closing.is_some())
    }

    fn over(&self) -> Option<Reason> {
        if self.closing.is_some() {
            return None;
        }
        match (self.up.shut, self.down.shut) {
            (true, true) => Some(Reason::Done),
            (_, true) if self.up.cut => Some(Reason::ReaderGone),
            _ => None,
        }
    }

    // ---- towards the kubelet

    fn turn_up(&mut self, cx: &mut Context<'_>) -> Result<bool, Reason> {
        let mut moved = false;
        if !self.up.out.is_empty() {
            match Pin::new(&mut self.kubelet).poll_write(cx, &self.up.out) {
                Poll::Ready(Ok(count)) if count > 0 => {
                    self.up.out.advance(count);
                    self.live.count_to_peer(count);
                    self.up.unsent = true;
                    moved = true;
                }
                // It may have answered before it stopped reading.
                Poll::Ready(_) => {
                    self.up.cut = true;
                    self.up.out = BytesMut::new();
                    moved = true;
                }
                Poll::Pending => return Ok(moved),
            }
        }
        moved |= self.judge_held();
        if self.closing.is_some() || !self.up.out.is_empty() {
            return Ok(moved);
        }
        if !self.up.eof && self.up.held.len() < limits::GATEWAY_HELD_BYTES {
            match read_some(&mut self.front, cx) {
                Poll::Ready(Ok(Some(bytes))) => {
                    if !self.up.cut {
                        self.up.keep(bytes);
                    }
                    return Ok(true);
                }
                Poll::Ready(Ok(None)) => {
                    self.up.eof = true;
                    moved = true;
                }
                Poll::Ready(Err(_)) => return Err(Reason::FrontEndGone),
                Poll::Pending => {}
            }
        }
        if self.up.eof && !self.up.shut && !self.up.cut {
            if !self.exchange.client_may_end(self.up.held.len()) {
                return Err(Reason::FrontEndGone);
            }
            if self.up.held.is_empty() && Pin::new(&mut self.kubelet).poll_shutdown(cx).is_ready() {
                self.up.shut = true;
                moved = true;
            }
        }
        if self.up.shut && !self.exchange.is_busy() && !self.exchange.is_raw() {
            // Nobody asks and nobody answers any more.
            self.closing = Some(Reason::Done);
        }
        if self.up.unsent && Pin::new(&mut self.kubelet).poll_flush(cx).is_ready() {
            self.up.unsent = false;
        }
        Ok(moved)
    }

    /// Lets pass what may; a request only when its judge says so.
    fn judge_held(&mut self) -> bool {
        let mut moved = false;
        while !self.up.cut
            && self.closing.is_none()
            && self.up.out.len() < limits::GATEWAY_WAITING_BYTES
            && self.down.out.len() < limits::GATEWAY_WAITING_BYTES
        {
            match self.exchange.up(&self.up.held) {
                Ok(UpStep::Pass(count)) => self.up.pass(count),
                Ok(UpStep::Request(request, count)) => {
                    self.deadline = None;
                    match self.judge.request(&request) {
                        None => {
                            self.exchange.admit(&request);
                            self.up.pass(count);
                        }
                        Some((answer, patient)) => {
                            self.up.held.advance(count);
                            let goes_on = self.exchange.refuse(&request) && patient;
                            if request.method == Method::Head {
                                self.down.out.extend_from_slice(&answer.head(!goes_on));
                                self.closing = (!goes_on).then_some(Reason::Done);
                            } else {
                                self.answer(&answer, (!goes_on).then_some(Reason::Done));
                            }
                        }
                    }
                }
                Ok(UpStep::Wait) => break,
                Err(violation) => self.refuse(violation),
            }
            moved = true;
        }
        moved
    }

    /// The front end said something that cannot pass.
    fn refuse(&mut self, violation: Violation) {
        let answer = Answer::of_violation(violation);
        if self.exchange.may_answer() {
            self.judge
                .malformed(violation.as_str(), Some(answer.status));
            self.answer(&answer, Some(Reason::BadRequest));
        } else {
            self.judge.malformed(violation.as_str(), None);
            self.closing = Some(Reason::BadRequest);
            self.down.cut = true;
        }
    }

    fn answer(&mut self, answer: &Answer, last: Option<Reason>) {
        self.down
            .out
            .extend_from_slice(&answer.bytes(last.is_some()));
        self.closing = last;
    }

    // ---- towards the front end

    fn turn_down(&mut self, cx: &mut Context<'_>) -> Result<bool, Reason> {
        let mut moved = false;
        if !self.down.out.is_empty() {
            match Pin::new(&mut self.front).poll_write(cx, &self.down.out) {
                Poll::Ready(Ok(count)) if count > 0 => {
                    self.down.out.advance(count);
                    self.live.count_from_peer(count);
                    self.down.unsent = true;
                    moved = true;
                }
                Poll::Ready(_) => return Err(Reason::FrontEndGone),
                Poll::Pending => {
                    self.live.mark_stalled();
                    return Ok(moved);
                }
            }
        }
        while self.down.out.len() < limits::GATEWAY_WAITING_BYTES {
            match self.exchange.down(&self.down.held) {
                Ok(DownStep::Pass(count)) => self.down.pass(count),
                Ok(DownStep::Answer(head, count)) => {
                    if head.status == 101 || head.status >= 200 {
                        self.judge.answered(head.status);
                    }
                    self.down.pass(count);
                }
                Ok(DownStep::Wait) => break,
                Err(violation) => {
                    self.broken(violation.as_str(), "sent what is no HTTP answer")?;
                    return Ok(true);
                }
            }
            moved = true;
        }
        if !self.down.out.is_empty() {
            return Ok(moved);
        }
        if !self.down.eof && self.down.held.len() <= limits::GATEWAY_HEAD_BYTES {
            match read_some(&mut self.kubelet, cx) {
                Poll::Ready(Ok(Some(bytes))) => {
                    self.down.keep(bytes);
                    return Ok(true);
                }
                Poll::Ready(Ok(None)) => {
                    self.down.eof = true;
                    moved = true;
                }
                Poll::Ready(Err(_)) => {
                    let failed = self.kubelet.get_ref().0.failed();
                    let reason = failed.unwrap_or(Reason::TargetReset);
                    self.lost(reason)?;
                    return Ok(true);
                }
                Poll::Pending => self.live.mark_caught_up(),
            }
        }
        if self.down.eof && !self.down.shut {
            self.end_down(cx)?;
            moved |= self.down.shut;
        }
        if self.down.unsent {
            match Pin::new(&mut self.front).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.down.unsent = false,
                Poll::Ready(Err(_)) => return Err(Reason::FrontEndGone),
                Poll::Pending => {}
            }
        }
        Ok(moved)
    }

    /// The kubelet has ended its direction in order.
    fn end_down(&mut self, cx: &mut Context<'_>) -> Result<(), Reason> {
        if self.exchange.awaits_answer() && self.down.held.is_empty() {
            if self.exchange.requests() > 1 {
                // It had closed while the request was on its way; front ends know what to do.
                self.judge.failed("kubelet-closed", None);
                self.closing = Some(Reason::TargetReset);
                return Ok(());
            }
            return self.broken("kubelet-closed", "closed the connection without an answer");
        }
        if !self.exchange.server_may_end(self.down.held.len()) {
            return Err(Reason::TargetReset);
        }
        if !self.exchange.is_raw() {
            self.closing = Some(Reason::Done);
        } else if Pin::new(&mut self.front).poll_shutdown(cx).is_ready() {
            self.down.shut = true;
        }
        Ok(())
    }

    /// The kubelet, or the way to it, is gone.
    fn lost(&mut self, reason: Reason) -> Result<(), Reason> {
        match self.exchange.awaits_answer() {
            true => {
                let node = self.judge.node();
                let answer = Answer::new(
                    502,
                    format!(
                        "towline-server: the connection to the kubelet of node {node} was lost: {reason}"
                    ),
                );
                self.judge.failed(reason.as_str(), Some(answer.status));
                self.answer(&answer, Some(reason));
                Ok(())
            }
            false => Err(reason),
        }
    }

    /// The kubelet does what no kubelet does.
    fn broken(&mut self, word: &'static str, what: &str) -> Result<(), Reason> {
        match self.exchange.awaits_answer() {
            true => {
                let node = self.judge.node();
                let answer = Answer::new(
                    502,
                    format!("towline-server: the kubelet of node {node} {what}"),
                );
                self.judge.failed(word, Some(answer.status));
                self.answer(&answer, Some(Reason::TargetReset));
                Ok(())
            }
            false => {
                self.judge.failed(word, None);
                Err(Reason::TargetReset)
            }
        }
    }

    // ---- the end, and time

    /// A connection on which nothing is asked ends when the process stops: nobody would miss it,
    /// and the stop would wait for it.
    fn poll_stopping(&mut self, cx: &mut Context<'_>) -> bool {
        if let Some(stopping) = &mut self.stopping
            && stopping.as_mut().poll(cx).is_ready()
        {
            self.stopping = None;
        }
        let idle = self.stopping.is_none()
            && !self.exchange.is_busy()
            && !self.exchange.is_raw()
            && self.up.held.is_empty();
        if idle {
            self.closing = Some(Reason::Done);
        }
        idle
    }

    /// Gives out what is left, says the end, and lets the front end read it.
    fn poll_close(&mut self, cx: &mut Context<'_>, reason: Reason) -> Poll<Reason> {
        if !self.up.shut && !self.exchange.is_busy() {
            // In order where it can be, but nobody waits for it.
            let _ = Pin::new(&mut self.kubelet).poll_shutdown(cx);
            self.up.shut = true;
        }
        // Before anything else: whoever goes on sending does not put it off.
        if self.down.cut || self.poll_linger(cx).is_ready() {
            return Poll::Ready(reason);
        }
        while !self.down.out.is_empty() {
            match Pin::new(&mut self.front).poll_write(cx, &self.down.out) {
                Poll::Ready(Ok(count)) if count > 0 => {
                    self.live.count_from_peer(count);
                    self.down.out.advance(count);
                }
                Poll::Ready(_) => return Poll::Ready(Reason::FrontEndGone),
                Poll::Pending => return Poll::Pending,
            }
        }
        if !self.down.shut {
            match ready!(Pin::new(&mut self.front).poll_shutdown(cx)) {
                Ok(()) => self.down.shut = true,
                Err(_) => return Poll::Ready(reason),
            }
        }
        if self.up.eof {
            return Poll::Ready(reason);
        }
        // Unread bytes would turn the answer into a reset.
        for _ in 0..TURNS {
            match ready!(read_some(&mut self.front, cx)) {
                Ok(Some(_)) => {}
                _ => return Poll::Ready(reason),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ready when the end has had its time.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let linger = self
            .linger
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limits::CLOSE_LINGER)));
        linger.as_mut().poll(cx)
    }

    /// Nothing moves: a head that is not whole has its time, and a side that is not read is
    /// looked after.
    fn poll_timers(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        let partial = !self.up.held.is_empty()
            && self.up.out.is_empty()
            && !self.exchange.is_busy()
            && !self.exchange.is_raw();
        if partial {
            let deadline = self
                .deadline
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(limits::GATEWAY_HEAD_TIMEOUT)));
            if deadline.as_mut().poll(cx).is_ready() {
                self.deadline = None;
                let answer = Answer::late();
                self.judge.malformed("late", Some(answer.status));
                self.answer(&answer, Some(Reason::BadRequest));
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        } else {
            self.deadline = None;
        }
        let waits = |way: &Way| !way.out.is_empty();
        let unread =
            waits(&self.up) || self.up.held.len() >= limits::GATEWAY_HELD_BYTES || self.up.eof;
        if !unread && !waits(&self.down) && self.look.is_none() {
            return Poll::Pending;
        }
        loop {
            let look = self
                .look
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(limits::LOCAL_LOOK)));
            ready!(look.as_mut().poll(cx));
            self.look = None;
            let (to_peer, from_peer) = self.live.dial().bytes();
            let moved = to_peer + from_peer;
            self.still = match moved == self.moved {
                true => self.still.saturating_add(1),
                false => 0,
            };
            self.moved = moved;
            if !unread && !waits(&self.down) {
                return Poll::Pending;
            }
            if waits(&self.down)
                && let Poll::Ready(reason) = self.kubelet.get_mut().0.poll_lost(cx)
            {
                return Poll::Ready(reason);
            }
            let gone = u64::from(self.still) >= limits::LOCAL_GONE.as_secs();
            match self.front.get_ref().0.local().presence() {
                Presence::Broken => return Poll::Ready(Reason::FrontEndGone),
                Presence::Closed if self.up.eof || gone => {
                    return Poll::Ready(Reason::FrontEndGone);
                }
                Presence::Closed | Presence::There => {}
            }
        }
    }
}
