//! When the next attempt is made, and the attempts that are under way.
//!
//! An attempt may hang for seconds (a lost first packet, a port that answers nobody), and a
//! server that comes back in the meantime would not be met before it gives up. So while there is
//! no link a new attempt begins beside those that hang, never more than one in
//! [`limits::ATTEMPT_SPACING`]; the first link wins and the others are dropped. Only one of them
//! greets at a time: the server never sees two links where one was wanted.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use towline_proto::backoff::Backoff;
use towline_proto::limits;
use towline_proto::reason::Reason;
use towline_proto::target::Target;
use tracing::debug;

use crate::attempt::{self, Attempt, AttemptError, Greeted, Keeping, Purpose, jitter, random};

struct Running {
    purpose: Purpose,
    began: Instant,
    /// From `began` to the next attempt.
    pause: Duration,
    future: Attempt,
}

/// See the head of this file.
pub(crate) struct Attempts {
    keeping: Arc<Keeping>,
    server: Target,
    running: Vec<Running>,
    next: Option<(Instant, Purpose)>,
    backoff: Backoff,
    /// Since when there has been no stable link; pauses grow with it.
    outage: Instant,
    greeting: Arc<Mutex<()>>,
}

impl Attempts {
    /// The first is due now.
    pub(crate) fn new(keeping: Arc<Keeping>, server: Target) -> Self {
        let now = Instant::now();
        Self {
            keeping,
            server,
            running: Vec::new(),
            next: Some((now, Purpose::Link)),
            backoff: Backoff::new(random()),
            outage: now,
            greeting: Arc::default(),
        }
    }

    /// Begins attempts as they come due and resolves when one has ended. Cancel-safe.
    pub(crate) async fn ended(&mut self) -> (Purpose, Result<Greeted, AttemptError>) {
        loop {
            let room = self.running.len() < limits::ATTEMPTS;
            let due = self.next.map(|(at, _)| at).filter(|_| room);
            tokio::select! {
                biased;
                (index, result) = poll_fn(|cx| poll_any(&mut self.running, cx)) => {
                    let Running { purpose, began, pause, .. } = self.running.swap_remove(index);
                    if let Err(error) = &result {
                        self.plan_after(purpose, began, pause, error.reason());
                    }
                    return (purpose, result);
                }
                () = sleep_until(due) => self.begin(),
            }
        }
    }

    /// Whether one is under way or planned.
    pub(crate) fn any(&self) -> bool {
        self.next.is_some() || !self.running.is_empty()
    }

    /// One for this purpose after a pause; what was planned before is not.
    pub(crate) fn plan(&mut self, purpose: Purpose, after: Duration) {
        self.next = Some((Instant::now() + after, purpose));
    }

    /// One with a pause of its place in the outage. What hangs goes on for the new purpose.
    pub(crate) fn plan_link(&mut self, pause: Duration) {
        self.forget(Purpose::Probe);
        for running in &mut self.running {
            running.purpose = Purpose::Link;
        }
        self.plan(Purpose::Link, pause);
    }

    /// Drops all of them.
    pub(crate) fn clear(&mut self) {
        self.running.clear();
        self.next = None;
    }

    /// Drops those of one purpose.
    pub(crate) fn forget(&mut self, purpose: Purpose) {
        self.running.retain(|running| running.purpose != purpose);
        self.next = self.next.filter(|(_, planned)| *planned != purpose);
    }

    /// Pauses begin small again.
    pub(crate) fn outage_began(&mut self, at: Instant) {
        self.backoff = Backoff::new(random());
        self.outage = at;
    }

    /// The next pause of this outage.
    pub(crate) fn pause(&mut self, reason: Reason) -> Duration {
        let pause = self.backoff.pause(self.outage.elapsed());
        if reason.retry() {
            return pause;
        }
        // Somebody has to change a file first. New files of ours are noticed without this.
        limits::BACKOFF_CAP / 2 + jitter(limits::BACKOFF_CAP / 2)
    }

    fn begin(&mut self) {
        let Some((_, purpose)) = self.next.take() else {
            return;
        };
        debug!(server = %self.server, ?purpose, hanging = self.running.len(), "attempt");
        let (keeping, greeting) = (Arc::clone(&self.keeping), Arc::clone(&self.greeting));
        let future = attempt::begin(keeping, greeting, self.server.clone(), purpose);
        let began = Instant::now();
        let mut pause = Duration::ZERO;
        if purpose != Purpose::Probe {
            pause = self.backoff.pause(self.outage.elapsed());
            self.next = Some((began + pause.max(limits::ATTEMPT_SPACING), purpose));
        }
        self.running.push(Running {
            purpose,
            began,
            pause,
            future,
        });
    }

    /// The newest attempt decides when the next one comes; an older one that gave up does not.
    fn plan_after(&mut self, purpose: Purpose, began: Instant, pause: Duration, reason: Reason) {
        let newest = self.running.iter().all(|running| running.began < began);
        if purpose == Purpose::Probe || !newest {
            return;
        }
        let now = Instant::now();
        let at = match reason.retry() {
            // From its beginning: one that hung for its whole time was pause enough.
            true => (began + pause).max(now + limits::BACKOFF_FIRST / 2),
            false => now + self.pause(reason),
        };
        self.next = Some((at, purpose));
    }
}

fn poll_any(
    running: &mut [Running],
    cx: &mut Context<'_>,
) -> Poll<(usize, Result<Greeted, AttemptError>)> {
    for (index, attempt) in running.iter_mut().enumerate() {
        if let Poll::Ready(result) = attempt.future.as_mut().poll(cx) {
            return Poll::Ready((index, result));
        }
    }
    Poll::Pending
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
