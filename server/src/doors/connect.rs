//! One front-end connection that speaks HTTP CONNECT, from its first byte to its last. One that
//! turns out to speak HTTP/2 is handed to [`super::grpc`].
//!
//! 1. the head of the request, within [`limits::CONNECT_HEAD_TIMEOUT`];
//! 2. the dial; what the front end sends meanwhile is kept, and when it leaves the dial is given
//!    up at once;
//! 3. the answer: 200 and nothing else, flushed; or a status line that says why not;
//! 4. bytes, until both sides have ended.
//!
//! While bytes are idle nothing of the first three is held in memory.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towline_link::error::one_line;
use towline_link::process::drain::{DrainWatch, Stage, WorkGuard};
use towline_link::process::ratelimit::RateLimited;
use towline_link::splice::{Early, LocalEnd, LocalSide, splice};
use towline_proto::limits;
use towline_proto::reason::Reason;

use super::front_ends::FrontEndGuard;
use super::grpc::connection;
use super::head::{self, First, Head, HeadError};
use super::rewound::Rewound;
use super::status::{self, Answer};
use super::timed::Timed;
use super::turned_away::TurnedAway;
use super::{Speaks, as_konnectivity};
use crate::caller::Caller;
use crate::dial::{Ask, Detail, Dialer, Door, OpenDial};
use crate::gateway::{self, Gateway};
use crate::konnectivity::metrics::Pending;
use crate::konnectivity::{Counted, DialFailure};
use crate::metrics::Metrics;

/// What a door's connection must be able to tell beside bytes.
pub trait FrontEnd: LocalEnd {
    /// After an end of file: has the front end gone, or did it only end its direction?
    fn is_gone(&self) -> bool;
    /// Resolves when the socket has bytes, or an end. Cancel-safe.
    fn readable(&self) -> impl Future<Output = ()> + Send;
    /// The answer of 200, as this kind of connection needs it.
    fn established(&self) -> &'static [u8];
    /// Resolves when it is known that the front end has read the answer, or that it never will be.
    fn answer_read(&self) -> impl Future<Output = ()> + Send;
}

/// What all connections of the doors share.
pub struct Desk {
    dialer: Arc<Dialer>,
    metrics: Metrics,
    speaks: Speaks,
    keep_alive: Duration,
    refusals: RateLimited<(Door, &'static str)>,
    gateway: Option<Arc<Gateway>>,
    turned_away: TurnedAway,
}

/// Lines about refused dials in a minute, for each door and reason.
const REFUSAL_LINES: u32 = 20;

impl Desk {
    /// The desk of a dialer.
    pub fn new(
        dialer: Arc<Dialer>,
        metrics: Metrics,
        speaks: Speaks,
        keep_alive: Duration,
    ) -> Self {
        Self {
            dialer,
            metrics,
            speaks,
            keep_alive,
            refusals: RateLimited::new(REFUSAL_LINES, Duration::from_secs(60)),
            gateway: None,
            turned_away: TurnedAway::default(),
        }
    }

    /// With a gateway, which takes dials of class kubelet over.
    pub fn with_gateway(mut self, gateway: Option<Arc<Gateway>>) -> Self {
        self.gateway = gateway;
        self
    }

    /// For who may not come in.
    pub(super) fn turned_away(&self) -> &TurnedAway {
        &self.turned_away
    }

    /// The dialer behind it.
    pub fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// What it counts.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Through which kubelets are reached, if that is asked for.
    pub fn gateway(&self) -> Option<&Arc<Gateway>> {
        self.gateway.as_ref()
    }

    /// What doors take, and in whose words they refuse.
    pub(super) fn speaks(&self) -> Speaks {
        self.speaks
    }

    /// Silence after which a gRPC front end is pinged.
    pub fn keep_alive(&self) -> Duration {
        self.keep_alive
    }

    /// What it counts as Konnectivity does.
    pub fn counted(&self) -> &Arc<Counted> {
        self.metrics.counted()
    }

    /// Says, now and then, that somebody was refused.
    pub fn refused(&self, door: Door, caller: &Caller, word: &'static str, text: &str) {
        if let Some(suppressed) = self.refusals.allow((door, word)) {
            tracing::info!(
                door = door.as_str(),
                front_end = %caller,
                reason = word,
                suppressed,
                "refused: {}",
                one_line(text)
            );
        }
    }
}

/// One connection: who it is, and what may end it.
pub struct Visit {
    /// Which door.
    pub door: Door,
    /// Who, as the door proved it.
    pub caller: Caller,
    /// Stopping.
    pub drain: DrainWatch,
    /// Its place among front ends with a certificate.
    pub certified: Option<FrontEndGuard>,
}

/// Serves one connection to its end.
pub async fn serve<S: FrontEnd + 'static>(mut stream: S, desk: Arc<Desk>, mut visit: Visit) {
    // Boxed, so that what the greeting needs is given back before the bytes flow.
    let greeted = Box::pin(greet(&mut stream, &desk, &mut visit)).await;
    let Greeted {
        open,
        to_peer,
        work,
        connects,
    } = match greeted {
        Some(Guest::Connect(greeted)) => *greeted,
        Some(Guest::Http2(first)) => {
            visit.door = visit.door.grpc();
            let stream = Rewound::new(first, stream);
            return Box::pin(connection::serve(stream, desk, visit)).await;
        }
        None => return,
    };
    let Visit {
        door,
        caller,
        drain,
        certified,
    } = visit;
    let OpenDial {
        id,
        class,
        agent,
        stream: pipe,
        early,
        on_link,
        mut record,
        live,
        judged,
        rule,
        kubelet,
    } = open;
    if let Some(certified) = &certified {
        certified.carries(live.dial());
    }
    record.counts(live.dial());
    tracing::debug!(dial = %id, door = door.as_str(), front_end = %caller, %class, %agent, %rule, kubelet = kubelet.as_ref().map(|found| found.word()), "dial open");
    let target = &judged.judged().target;
    let stage = drain.view();
    drop((caller, drain, rule, kubelet));
    let kubelet = gateway::through(desk.gateway(), id, target, class, &agent, stage);
    let early = Early {
        to_peer,
        to_local: early,
    };
    let established = desk.counted().established();
    let timing = desk.speaks.as_konnectivity;
    let stream = Timed::new(stream, timing.then(|| Arc::clone(desk.counted())));
    let end = match kubelet {
        Some((gateway, request)) => {
            Box::pin(gateway.serve(stream, pipe, request, early, &live)).await
        }
        None => splice(stream, pipe, LocalSide::FrontEnd, early, &live).await,
    };
    record.ended(end);
    drop((on_link, work, certified, judged, connects, established));
    desk.metrics.dial_ended(door, Some(class), end.reason);
    tracing::debug!(
        dial = %id, %agent, reason = %end.reason,
        bytes_in = end.to_peer, bytes_out = end.from_peer,
        "dial ended"
    );
}

/// Who came.
enum Guest {
    /// One whose dial is open.
    Connect(Box<Greeted>),
    /// One that speaks HTTP/2; this was read of it.
    Http2(Bytes),
}

/// What steps 1 to 3 end with.
struct Greeted {
    open: OpenDial,
    /// What the front end has sent already.
    to_peer: Bytes,
    /// A graceful stop waits for it, from before the dial.
    work: WorkGuard,
    connects: Pending,
}

async fn greet<S: FrontEnd>(stream: &mut S, desk: &Desk, visit: &mut Visit) -> Option<Guest> {
    let drain = visit.drain.view();
    let read = tokio::select! {
        biased;
        read = head::read(stream) => read,
        stage = drain.signalled() => {
            stopped(stream, desk, visit, stage).await;
            return None;
        }
        _ = untrusted(&mut visit.certified) => return None,
    };
    let read = match read {
        Ok(First::Http2(first)) if desk.speaks.grpc => return Some(Guest::Http2(first)),
        Ok(First::Connect(head)) if desk.speaks.connect => Ok(head),
        Ok(First::Http2(_)) => Err(HeadError::Http2),
        Ok(First::Connect(_)) => Err(HeadError::Connect),
        Err(error) => Err(error),
    };
    let Head {
        target,
        trace,
        rest,
    } = match read {
        Ok(head) => head,
        Err(error) => {
            refuse_head(stream, desk, visit, &error).await;
            return None;
        }
    };
    let connects = desk.counted().connect();
    let work = visit.drain.guard();
    let ask = Ask {
        target,
        door: visit.door,
        caller: visit.caller.clone(),
        trace,
    };
    let mut kept = Kept::new(rest);
    let gone = async {
        tokio::select! {
            () = kept.until_gone(stream) => Reason::FrontEndGone,
            () = drain.forced() => Reason::Shutdown,
            reason = untrusted(&mut visit.certified) => reason,
        }
    };
    let dialled = desk.dialer.dial_until(ask, gone).await;
    let open = match dialled {
        Ok(open) => open,
        Err(error) if matches!(error.detail, Detail::GivenUp) => {
            tracing::debug!(target = %error.target, reason = %error.reason, "given up while dialling");
            return None;
        }
        Err(error) => {
            let answer = match desk.speaks.as_konnectivity {
                true => as_konnectivity::of_dial(&error),
                false => status::of_dial(&error),
            };
            desk.refused(
                visit.door,
                &visit.caller,
                error.reason.as_str(),
                &answer.phrase,
            );
            tell(stream, &answer).await;
            return None;
        }
    };
    let nothing_kept = kept.bytes.is_empty() && !kept.ended;
    let answered = tokio::select! {
        answered = establish(stream, nothing_kept) => answered.ok_or(Reason::FrontEndGone),
        () = drain.forced() => Err(Reason::Shutdown),
        // A front end that reads nothing does not keep what is forbidden meanwhile.
        reason = untrusted(&mut visit.certified) => Err(reason),
        reason = std::future::poll_fn(|cx| open.live.dial().poll_ended(cx)) => Err(reason),
    };
    if let Err(reason) = answered {
        desk.metrics
            .dial_ended(visit.door, Some(open.class), reason);
        desk.counted().dial_failed(DialFailure::SendResponse);
        open.record.ended_early(reason);
        return None;
    }
    Some(Guest::Connect(Box::new(Greeted {
        open,
        to_peer: kept.bytes.freeze(),
        work,
        connects,
    })))
}

async fn untrusted(certified: &mut Option<FrontEndGuard>) -> Reason {
    match certified {
        Some(guard) => guard.ended().await,
        None => std::future::pending().await,
    }
}

/// Says 200 and lets the front end read it alone, before bytes of a target that speaks first are
/// written. Nearly every front end speaks at once, which shows that it has read.
async fn establish<S: FrontEnd>(stream: &mut S, nothing_kept: bool) -> Option<()> {
    if !nothing_kept {
        stream.write_all(status::ESTABLISHED).await.ok()?;
        stream.flush().await.ok()?;
        return Some(());
    }
    stream.write_all(stream.established()).await.ok()?;
    stream.flush().await.ok()?;
    if tokio::time::timeout(limits::ANSWER_ALONE, stream.readable())
        .await
        .is_err()
    {
        tokio::select! {
            () = stream.readable() => {}
            () = stream.answer_read() => {}
        }
    }
    Some(())
}

/// What the front end sends while its dial is under way.
struct Kept {
    bytes: BytesMut,
    ended: bool,
}

impl Kept {
    fn new(rest: Bytes) -> Self {
        Self {
            bytes: BytesMut::from(rest),
            ended: false,
        }
    }

    /// Reads until the front end is gone; for ever when it only ended its direction, or sends
    /// more than is kept. Cancel-safe.
    async fn until_gone<S: FrontEnd>(&mut self, stream: &mut S) {
        while !self.ended && self.bytes.len() < limits::READ_CHUNK {
            match stream.read_buf(&mut self.bytes).await {
                Ok(0) if stream.is_gone() => return,
                Ok(0) => self.ended = true,
                Ok(_) => {}
                Err(_) => return,
            }
        }
        std::future::pending().await
    }
}

async fn stopped<S: FrontEnd>(stream: &mut S, desk: &Desk, visit: &Visit, stage: Stage) {
    desk.metrics.front_end_refused(visit.door, "draining");
    if stage != Stage::Forced {
        tell(stream, &status::draining()).await;
    }
}

async fn refuse_head<S: FrontEnd>(stream: &mut S, desk: &Desk, visit: &Visit, error: &HeadError) {
    desk.metrics.front_end_refused(visit.door, error.as_str());
    if *error == HeadError::Gone {
        return;
    }
    let audit = desk.dialer.audit();
    audit.bad_request(visit.door, &visit.caller, error.as_str());
    let answer = match desk.speaks.as_konnectivity {
        true => as_konnectivity::of_head(error),
        false => status::of_head(error),
    };
    desk.refused(visit.door, &visit.caller, error.as_str(), &answer.phrase);
    tell(stream, &answer).await;
}

/// Answers and ends. The rest of what the front end sends is read and dropped for a moment, so
/// that unread bytes do not turn the answer into a reset.
pub(super) async fn tell<S: FrontEnd>(stream: &mut S, answer: &Answer) {
    let telling = async {
        stream.write_all(&answer.bytes()).await.ok()?;
        stream.shutdown().await.ok()?;
        let mut dropped = BytesMut::new();
        let mut left = limits::REFUSED_BYTES;
        while left > 0 {
            dropped.clear();
            dropped.reserve(4096);
            match stream.read_buf(&mut dropped).await {
                Ok(0) | Err(_) => break,
                Ok(read) => left = left.saturating_sub(read),
            }
        }
        Some(())
    };
    let _ = tokio::time::timeout(limits::CLOSE_LINGER, telling).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixStream;

    fn size<F: Future>(_: impl Fn(UnixStream, Arc<Desk>, Visit) -> F) -> usize {
        std::mem::size_of::<F>()
    }

    #[test]
    fn an_idle_dial_is_a_small_task() {
        let bytes = size(serve::<UnixStream>);
        assert!(bytes <= 1792, "{bytes} bytes");
    }
}
