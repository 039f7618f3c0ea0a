//! Keeps one link to one server, for as long as the agent runs.
//!
//! One loop, one state: the current link (or none), at most one attempt under way, and the
//! moment of the next one. What can happen:
//! - The link is lost: an attempt after a short, growing, jittered pause.
//! - The server drains: an attempt at once, while dials of the old link go on.
//! - The link runs on tls though quic is wanted: an attempt by quic now and then, beside it.
//! - The quic link is silent although we keep sending: an attempt beside it, dropped again when
//!   the link speaks first. A restarted server is met long before the silence counts as death.
//! - New files are in force: the server is verified again; a new identity of ours means a new
//!   link.
//!
//! A new link always takes over before the old one is drained, so dials never meet a gap that we
//! could have avoided.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;
use tokio::time::Instant;
use towline_link::carrier::CarrierKind;
use towline_link::driver::{Link, LinkState};
use towline_link::process::drain::DrainWatch;
use towline_proto::backoff::Backoff;
use towline_proto::limits;
use towline_proto::reason::Reason;
use towline_proto::target::Target;
use tracing::{debug, info, warn};

use crate::attempt::{self, Attempt, AttemptError, Greeted, Keeping, Purpose, jitter, random};
use crate::farewell::farewell;
use crate::links::Slot;
use crate::probes::Probes;
use crate::trust::Snapshot;

struct Current {
    link: Link,
    kind: CarrierKind,
    /// The files it was made with.
    trust: Arc<Snapshot>,
    since: Instant,
    /// Bytes received at the last look, and when that number last changed.
    received: u64,
    heard: Instant,
}

enum Event {
    Attempted(Result<Greeted, AttemptError>),
    Due,
    Link(LinkState),
    Look,
    Files,
    Ended(Reason),
    Stop,
}

/// Keeps the link to one server.
pub struct Keeper {
    keeping: Arc<Keeping>,
    slot: Slot,
    drain: DrainWatch,
    current: Option<Current>,
    attempt: Option<(Purpose, Instant, Attempt)>,
    next: Option<(Instant, Purpose)>,
    backoff: Backoff,
    /// Since when there has been no stable link; pauses grow with it.
    outage: Instant,
    links: JoinSet<Reason>,
    probes: Probes,
    twin_told: bool,
    logged: Option<Reason>,
}

impl Keeper {
    /// For the server of the slot.
    pub fn new(keeping: Arc<Keeping>, slot: Slot, drain: DrainWatch) -> Self {
        let now = Instant::now();
        Self {
            probes: Probes::new(keeping.carrier_probe),
            keeping,
            slot,
            drain,
            current: None,
            attempt: None,
            next: Some((now, Purpose::Link)),
            backoff: Backoff::new(random()),
            outage: now,
            links: JoinSet::new(),
            twin_told: false,
            logged: None,
        }
    }

    /// Runs until the agent stops and every link to this server has ended.
    pub async fn run(mut self) {
        let mut files = self.keeping.trust.watch();
        let drain = self.drain.view();
        let signalled = drain.signalled();
        tokio::pin!(signalled);
        loop {
            let event = tokio::select! {
                biased;
                _ = &mut signalled => Event::Stop,
                state = changed(self.current.as_ref()) => Event::Link(state),
                result = attempted(self.attempt.as_mut()) => Event::Attempted(result),
                Some(ended) = self.links.join_next() => Event::Ended(ended.unwrap_or(Reason::Aborted)),
                Ok(()) = files.changed() => Event::Files,
                () = due(self.next.map(|(at, _)| at)), if self.attempt.is_none() => Event::Due,
                () = tokio::time::sleep(LOOK), if self.wants_looks() => Event::Look,
            };
            match event {
                Event::Stop => break,
                Event::Link(state) => self.link_changed(state),
                Event::Attempted(Ok(greeted)) => self.take(greeted),
                Event::Attempted(Err(error)) => self.attempt_failed(&error),
                Event::Ended(reason) => {
                    debug!(server = %self.slot.server(), %reason, "link ended");
                    self.slot.sweep();
                }
                Event::Files => self.files_replaced(),
                Event::Due => self.begin_attempt(),
                Event::Look => self.look(),
            }
        }
        self.attempt = None;
        farewell(&self.slot, &self.drain, &mut self.links).await;
    }

    // ---- attempts --------------------------------------------------------------------------

    fn begin_attempt(&mut self) {
        let Some((_, purpose)) = self.next.take() else {
            return;
        };
        let server = self.slot.server().clone();
        debug!(%server, ?purpose, "attempt");
        let attempt = attempt::begin(Arc::clone(&self.keeping), server, purpose);
        self.attempt = Some((purpose, Instant::now(), attempt));
    }

    fn attempt_failed(&mut self, error: &AttemptError) {
        let Some((purpose, began, _)) = self.attempt.take() else {
            return;
        };
        let reason = error.reason();
        let now = Instant::now();
        match purpose {
            Purpose::Probe => {
                self.keeping.metrics.carrier_probe(false);
                debug!(server = %self.slot.server(), %error, "quic does not work yet, the link stays on tls");
                self.schedule_probe();
            }
            Purpose::Link | Purpose::Suspect | Purpose::Replace => {
                self.keeping.metrics.attempt_failed(reason);
                // Once per cause at `warn`; a server that is away for an hour is one line.
                if purpose == Purpose::Link && self.logged != Some(reason) {
                    self.logged = Some(reason);
                    warn!(server = %self.slot.server(), %reason, %error, "no link, trying again");
                } else {
                    debug!(server = %self.slot.server(), %reason, %error, ?purpose, "attempt failed");
                }
                if purpose == Purpose::Link {
                    self.slot.failed(reason, error.to_string());
                }
                // Counted from the beginning of the attempt: one that hung for its whole time
                // was pause enough.
                let pause = self.pause(reason);
                let at = (began + pause).max(now + limits::BACKOFF_FIRST / 2);
                self.next = Some((at, purpose));
            }
        }
    }

    fn pause(&mut self, reason: Reason) -> Duration {
        let pause = self.backoff.pause(self.outage.elapsed());
        if reason.retry() {
            return pause;
        }
        // Somebody has to change a file first. New files of ours are noticed without this.
        limits::BACKOFF_CAP / 2 + jitter(limits::BACKOFF_CAP / 2)
    }

    fn schedule_probe(&mut self) {
        let on_tls = self
            .current
            .as_ref()
            .is_some_and(|current| current.kind == CarrierKind::Tls);
        self.next = (on_tls && self.keeping.reach.prefers_quic())
            .then(|| (Instant::now() + self.probes.pause(), Purpose::Probe));
    }

    // ---- links -----------------------------------------------------------------------------

    fn take(&mut self, (link, welcome, run, trust): Greeted) {
        let purpose = self.attempt.take().map(|(purpose, ..)| purpose);
        let kind = link.carrier().kind();
        let peer = link.carrier().peer().identity().clone();
        if !self.twin_told
            && let Some(other) = self.slot.twin(&peer.name)
        {
            self.twin_told = true;
            warn!(
                server = %self.slot.server(), %other, %peer,
                "two --server flags lead to the same server: behind a load balancer give each server its own address"
            );
        }
        info!(
            server = %self.slot.server(), carrier = %kind, %peer, link = %link.id(),
            address = %link.carrier().remote_address(), software = ?welcome.software, ?purpose, "link ready"
        );
        self.keeping
            .metrics
            .linked(kind, self.current.as_ref().map(|current| current.kind));
        if purpose == Some(Purpose::Probe) {
            self.keeping.metrics.carrier_probe(true);
        }
        self.logged = None;
        // Where other servers say that they are is no target either.
        let told = welcome
            .servers
            .iter()
            .filter_map(|text| text.parse::<Target>().ok());
        for address in told.filter_map(|target| target.address()) {
            self.keeping.reach.addresses.note(address);
        }
        self.note_quic_end();
        if kind == CarrierKind::Tls {
            self.probes.fell_back();
        }
        let now = Instant::now();
        let old = self.current.replace(Current {
            received: link.carrier().stats().received_bytes,
            link: link.clone(),
            kind,
            trust,
            since: now,
            heard: now,
        });
        self.slot.set_current(link.clone(), welcome.software);
        if let Some(old) = old {
            old.link.drain(Reason::Moved, self.keeping.drain_timeout);
        }
        let serve = Arc::clone(&self.keeping.serve).run(link, self.drain.guard());
        self.links.spawn(async move {
            let (reason, ()) = tokio::join!(run, serve);
            reason
        });
        self.schedule_probe();
        // Files may have been replaced while the attempt ran.
        self.files_replaced();
    }

    fn link_changed(&mut self, state: LinkState) {
        let (reason, first) = match state {
            LinkState::Ready => return,
            // Our own drain; the slot was given to the next link before.
            LinkState::Draining { by_peer: false, .. } => return,
            LinkState::Draining {
                by_peer: true,
                reason,
                ..
            } => {
                info!(server = %self.slot.server(), %reason, "the server drains, connecting anew");
                self.slot.retire();
                (reason, Duration::ZERO)
            }
            LinkState::Closed(reason) => {
                warn!(server = %self.slot.server(), %reason, "link lost, connecting anew");
                self.slot.lost(reason);
                (reason, Duration::MAX)
            }
        };
        self.keeping.metrics.reconnect(reason);
        self.note_quic_end();
        let lived = self.current.take().map(|current| current.since.elapsed());
        if lived.is_some_and(|lived| lived >= limits::LINK_STABLE) || first.is_zero() {
            self.backoff = Backoff::new(random());
            self.outage = Instant::now();
        }
        let pause = match reason {
            // Another process holds our certificate: do not take part in a tug of war.
            Reason::Superseded => self.pause(reason),
            _ if first.is_zero() => Duration::ZERO,
            _ => self.backoff.pause(self.outage.elapsed()),
        };
        match &self.attempt {
            // It looks for any link already.
            Some((Purpose::Suspect | Purpose::Replace | Purpose::Link, ..)) => {
                if let Some((purpose, ..)) = &mut self.attempt {
                    *purpose = Purpose::Link;
                }
            }
            Some((Purpose::Probe, ..)) | None => {
                self.attempt = None;
                self.next = Some((Instant::now() + pause, Purpose::Link));
            }
        }
    }

    fn note_quic_end(&mut self) {
        if let Some(current) = &self.current
            && current.kind == CarrierKind::Quic
        {
            self.probes.quic_ended(current.since.elapsed());
        }
    }

    fn files_replaced(&mut self) {
        let trust = self.keeping.trust.current();
        let Some(current) = &mut self.current else {
            // Whatever failed may work now.
            if self.attempt.is_none() {
                self.next = Some((Instant::now(), Purpose::Link));
            }
            return;
        };
        if Arc::ptr_eq(&current.trust, &trust) {
            return;
        }
        let now = SystemTime::now();
        for link in self.slot.all() {
            if let Err(error) = trust.recheck(link.carrier().peer(), now) {
                warn!(server = %self.slot.server(), link = %link.id(), %error, "the server is no longer trusted, link closed");
                link.close(error.reason());
            }
        }
        if trust.material.keeps_identity(&current.trust.material) {
            current.trust = trust;
        } else {
            info!(server = %self.slot.server(), identity = %trust.identity(), "our identity changed, connecting anew");
            self.attempt = None;
            self.next = Some((Instant::now(), Purpose::Replace));
        }
    }

    // ---- silence ---------------------------------------------------------------------------

    fn wants_looks(&self) -> bool {
        self.current
            .as_ref()
            .is_some_and(|current| current.kind == CarrierKind::Quic)
    }

    fn look(&mut self) {
        let Some(current) = &mut self.current else {
            return;
        };
        let received = current.link.carrier().stats().received_bytes;
        let suspecting = |purpose| purpose == Purpose::Suspect;
        if received != current.received {
            current.received = received;
            current.heard = Instant::now();
            // It speaks: no second connection is wanted.
            if self
                .attempt
                .as_ref()
                .is_some_and(|(purpose, ..)| suspecting(*purpose))
            {
                self.attempt = None;
            }
            if self.next.is_some_and(|(_, purpose)| suspecting(purpose)) {
                self.next = None;
            }
        } else if current.heard.elapsed() >= limits::LINK_SUSPECT
            && self.attempt.is_none()
            && self.next.is_none()
        {
            debug!(server = %self.slot.server(), "the link is silent, connecting beside it");
            self.outage = current.heard;
            self.backoff = Backoff::new(random());
            self.next = Some((Instant::now(), Purpose::Suspect));
        }
    }
}

/// How often a quic link is looked at for silence.
const LOOK: Duration = Duration::from_millis(500);

async fn changed(current: Option<&Current>) -> LinkState {
    let Some(current) = current else {
        return std::future::pending().await;
    };
    let mut state = current.link.watch();
    match state.wait_for(|state| matter(*state)).await {
        Ok(state) => *state,
        Err(_) => LinkState::Closed(Reason::LinkLost),
    }
}

/// Whether the keeper has to do something about it.
fn matter(state: LinkState) -> bool {
    matches!(
        state,
        LinkState::Closed(_) | LinkState::Draining { by_peer: true, .. }
    )
}

async fn attempted(
    attempt: Option<&mut (Purpose, Instant, Attempt)>,
) -> Result<Greeted, AttemptError> {
    match attempt {
        Some((_, _, attempt)) => attempt.await,
        None => std::future::pending().await,
    }
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
