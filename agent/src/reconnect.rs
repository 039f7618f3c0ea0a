//! Keeps one link to one server, for as long as the agent runs.
//!
//! One loop, one state: the current link (or none), and the attempts under way. What can happen:
//! - The link is lost: an attempt after a short, growing, jittered pause.
//! - The server drains: an attempt at once, while dials of the old link go on.
//! - The link runs on tls though quic is wanted: an attempt by quic now and then, beside it.
//! - The quic link is silent although we keep sending: an attempt beside it, dropped again when
//!   the link speaks first. A restarted server is met long before the silence counts as death.
//! - New files are in force: the server is verified again; a new identity of ours means a new
//!   link, and so does an issuer of the server that is no anchor any more.
//! - Our certificate was renewed: the link stays, and is replaced in the last part of the life of
//!   the certificate that it was made with; its dials have until that one's end. A certificate of
//!   another issuer is shown soon: the old issuer is about to be trusted no more.
//!
//! A new link always takes over before the old one is drained, so dials never meet a gap that we
//! could have avoided.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;
use tokio::time::Instant;
use towline_link::carrier::CarrierKind;
use towline_link::driver::{Link, LinkState};
use towline_link::error::one_line;
use towline_link::process::drain::DrainWatch;
use towline_pki::{Certificate, PeerError, Serial};
use towline_proto::limits;
use towline_proto::reason::Reason;
use towline_proto::target::Target;
use towline_proto::version::Capabilities;
use tracing::{debug, info, warn};

use crate::attempt::{AttemptError, Greeted, Keeping, Purpose, jitter};
use crate::attempts::Attempts;
use crate::farewell::farewell;
use crate::links::Slot;
use crate::probed::Probed;
use crate::probes::Probes;
use crate::trust::Snapshot;

struct Current {
    link: Link,
    kind: CarrierKind,
    /// The files in force when it was last judged.
    trust: Arc<Snapshot>,
    /// The certificate that the server knows it by.
    shown: Shown,
    since: Instant,
    /// Bytes received at the last look, and when that number last changed.
    received: u64,
    heard: Instant,
}

/// What the server judges the life of a link by.
struct Shown {
    serial: Serial,
    /// Key identifier of who signed it.
    issuer: Option<Vec<u8>>,
    not_after: SystemTime,
    /// When a link with a newer certificate takes over.
    succeed_at: SystemTime,
}

impl Shown {
    /// In the last tenth of its life, and not in the last twentieth; by chance, so that the links
    /// of a cluster do not move together.
    fn new(trust: &Snapshot) -> Self {
        let leaf = trust.material.credentials().leaf();
        let life = leaf.not_after.duration_since(leaf.not_before);
        let life = life.unwrap_or_default();
        let rest = life / 20 + jitter(life / 20);
        Self {
            serial: leaf.serial.clone(),
            issuer: issuer_of(trust),
            not_after: leaf.not_after,
            succeed_at: leaf.not_after.checked_sub(rest).unwrap_or(leaf.not_before),
        }
    }

    /// A rotation is under way: the link with the newer certificate is wanted soon.
    fn succeed_soon(&mut self, now: SystemTime) {
        let pause = limits::RELINK_AFTER + jitter(limits::RELINK_SPREAD);
        self.succeed_at = self.succeed_at.min(now + pause);
    }

    /// How long dials of its link may still go on: in order as long as the certificate lives.
    fn dials_have(&self, least: Duration, now: SystemTime) -> Duration {
        let left = self.not_after.duration_since(now).unwrap_or_default();
        let left = left.saturating_sub(2 * limits::PEER_SILENT);
        left.min(limits::DRAIN_TIMEOUT_MAX).max(least)
    }
}

/// By its key, because a successor may have the same name.
fn issuer_of(trust: &Snapshot) -> Option<Vec<u8>> {
    let own = trust.material.credentials().chain().first()?;
    Certificate::parse(own.as_ref()).ok()?.issuer_key_id
}

enum Event {
    Succeed,
    Attempted(Purpose, Result<Greeted, AttemptError>),
    Link(LinkState),
    Look,
    Files,
    Doomed,
    Ended(Reason),
    Stop,
}

/// Keeps the link to one server.
pub struct Keeper {
    keeping: Arc<Keeping>,
    slot: Slot,
    drain: DrainWatch,
    current: Option<Current>,
    attempts: Attempts,
    links: JoinSet<Reason>,
    probes: Probes,
    /// Serial of the certificate of another identity for which a link was planned.
    moving: Option<Serial>,
    /// When links whose server is trusted no more are closed, replaced or not.
    doomed: Option<Instant>,
    twin_told: bool,
    logged: Option<Reason>,
}

impl Keeper {
    /// For the server of the slot.
    pub fn new(keeping: Arc<Keeping>, slot: Slot, drain: DrainWatch) -> Self {
        Self {
            probes: Probes::new(keeping.carrier_probe),
            attempts: Attempts::new(Arc::clone(&keeping), slot.server().clone()),
            keeping,
            slot,
            drain,
            current: None,
            links: JoinSet::new(),
            moving: None,
            doomed: None,
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
                (purpose, result) = self.attempts.ended() => Event::Attempted(purpose, result),
                Some(ended) = self.links.join_next() => Event::Ended(ended.unwrap_or(Reason::Aborted)),
                Ok(()) = files.changed() => Event::Files,
                () = due(self.doomed) => Event::Doomed,
                () = tokio::time::sleep(LOOK), if self.wants_looks() => Event::Look,
                () = until_succeeded(self.current.as_ref(), &self.keeping) => Event::Succeed,
            };
            match event {
                Event::Stop => break,
                Event::Link(state) => self.link_changed(state),
                Event::Attempted(purpose, Ok(greeted)) => self.take(purpose, greeted),
                Event::Attempted(purpose, Err(error)) => self.attempt_failed(purpose, &error),
                Event::Ended(reason) => {
                    debug!(server = %self.slot.server(), %reason, "link ended");
                    self.slot.sweep();
                }
                Event::Files => self.files_replaced(),
                Event::Doomed => self.close_untrusted(),
                Event::Look => self.look(),
                Event::Succeed => self.succeed(),
            }
        }
        self.attempts.clear();
        farewell(&self.slot, &self.drain, &mut self.links).await;
    }

    // ---- attempts --------------------------------------------------------------------------

    fn attempt_failed(&mut self, purpose: Purpose, error: &AttemptError) {
        let reason = error.reason();
        if purpose == Purpose::Probe {
            self.keeping.metrics.carrier_probe(false);
            debug!(server = %self.slot.server(), %error, "quic does not work yet, the link stays on tls");
            return self.plan_probe();
        }
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
    }

    fn plan_probe(&mut self) {
        let on_tls = self
            .current
            .as_ref()
            .is_some_and(|current| current.kind == CarrierKind::Tls);
        if on_tls && self.keeping.reach.prefers_quic() {
            self.attempts.plan(Purpose::Probe, self.probes.pause());
        }
    }

    // ---- links -----------------------------------------------------------------------------

    fn take(&mut self, purpose: Purpose, (link, welcome, run, trust): Greeted) {
        self.attempts.clear();
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
            address = %link.carrier().remote_address(), software = one_line(&welcome.software), ?purpose, "link ready"
        );
        self.keeping
            .metrics
            .linked(kind, self.current.as_ref().map(|current| current.kind));
        if purpose == Purpose::Probe {
            self.keeping.metrics.carrier_probe(true);
        }
        self.logged = None;
        // Where other servers say that they are is no target either.
        let told = welcome
            .servers
            .iter()
            .filter_map(|text| text.parse::<Target>().ok());
        let told = told.filter_map(|target| target.address());
        self.keeping.reach.addresses.told(self.slot.server(), told);
        self.note_quic_end();
        if kind == CarrierKind::Tls {
            self.probes.fell_back();
        }
        let now = Instant::now();
        let old = self.current.replace(Current {
            received: link.carrier().stats().received_bytes,
            link: link.clone(),
            kind,
            shown: Shown::new(&trust),
            trust,
            since: now,
            heard: now,
        });
        let probes = welcome.capabilities.has(Capabilities::PROBE);
        let probed = Arc::new(Probed::new(probes, self.keeping.serve.max_dials()));
        self.slot
            .set_current(link.clone(), Arc::clone(&probed), welcome.software);
        if let Some(old) = old {
            let least = self.keeping.drain_timeout;
            let renewed = purpose == Purpose::Succeed;
            let deadline = match renewed {
                true => old.shown.dials_have(least, SystemTime::now()),
                false => least,
            };
            old.link.drain(Reason::Moved, deadline);
        }
        let carrier = Arc::clone(link.carrier());
        let serve = Arc::clone(&self.keeping.serve).run(link, probed, self.drain.guard());
        self.links.spawn(async move {
            let (reason, ()) = tokio::join!(run, serve);
            // Who stops waits for this task, and the server is told why first.
            carrier.gone().await;
            reason
        });
        self.plan_probe();
        // Files may have been replaced while the attempt ran.
        self.files_replaced();
    }

    fn link_changed(&mut self, state: LinkState) {
        let (reason, at_once) = match state {
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
                (reason, true)
            }
            LinkState::Closed(reason) => {
                warn!(server = %self.slot.server(), %reason, "link lost, connecting anew");
                self.slot.lost(reason);
                (reason, false)
            }
        };
        self.keeping.metrics.reconnect(reason);
        self.note_quic_end();
        let lived = self.current.take().map(|current| current.since.elapsed());
        if at_once || lived.is_some_and(|lived| lived >= limits::LINK_STABLE) {
            self.attempts.outage_began(Instant::now());
        }
        let pause = match reason {
            // Another process holds our certificate: do not take part in a tug of war.
            Reason::Superseded => self.attempts.pause(reason),
            _ if at_once => Duration::ZERO,
            _ => self.attempts.pause(Reason::LinkLost),
        };
        self.attempts.plan_link(pause);
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
            self.attempts.clear();
            self.attempts.plan(Purpose::Link, Duration::ZERO);
            return;
        };
        if Arc::ptr_eq(&current.trust, &trust) {
            return;
        }
        let now = SystemTime::now();
        let mut replace = false;
        for link in self.slot.all() {
            let Err(error) = trust.recheck(link.carrier().peer(), now) else {
                continue;
            };
            // Its issuer is no anchor any more, which is how a rotation ends: the server has a new
            // certificate by now, and gets a moment to show it. Anything else is a verdict.
            if matches!(error, PeerError::UnknownIssuer) {
                info!(server = %self.slot.server(), link = %link.id(), %error, "connecting anew");
                self.doomed
                    .get_or_insert_with(|| Instant::now() + limits::RELINK_GRACE);
                replace = true;
            } else {
                warn!(server = %self.slot.server(), link = %link.id(), %error, "the server is no longer trusted, link closed");
                link.close(error.reason());
            }
        }
        if !trust.material.keeps_identity(&current.trust.material) {
            let serial = trust.material.credentials().leaf().serial.clone();
            // A second look at the same files must not cut the link that the first one began.
            if self.moving.as_ref() != Some(&serial) || !self.attempts.any() {
                info!(server = %self.slot.server(), identity = %trust.identity(), "our identity changed, connecting anew");
                self.moving = Some(serial);
                replace = true;
            }
        } else {
            if issuer_of(&trust) != current.shown.issuer {
                current.shown.succeed_soon(now);
            }
            current.trust = trust;
        }
        if replace {
            self.attempts.clear();
            self.attempts.plan(Purpose::Replace, Duration::ZERO);
        }
    }

    fn close_untrusted(&mut self) {
        self.doomed = None;
        let trust = self.keeping.trust.current();
        let now = SystemTime::now();
        for link in self.slot.all() {
            if let Err(error) = trust.recheck(link.carrier().peer(), now) {
                warn!(server = %self.slot.server(), link = %link.id(), %error, "the server is no longer trusted, link closed");
                link.close(error.reason());
            }
        }
    }

    /// The certificate that the link was made with is about to end, and there is a newer one.
    fn succeed(&mut self) {
        self.attempts.forget(Purpose::Probe);
        if !self.attempts.any() {
            info!(server = %self.slot.server(), "the link moves to the renewed certificate");
            self.attempts.plan(Purpose::Succeed, Duration::ZERO);
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
        if received != current.received {
            current.received = received;
            current.heard = Instant::now();
            // It speaks: no second connection is wanted.
            self.attempts.forget(Purpose::Suspect);
        } else if current.heard.elapsed() >= limits::LINK_SUSPECT && !self.attempts.any() {
            debug!(server = %self.slot.server(), "the link is silent, connecting beside it");
            self.attempts.outage_began(current.heard);
            self.attempts.plan(Purpose::Suspect, Duration::ZERO);
        }
    }
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// How often a quic link is looked at for silence.
const LOOK: Duration = Duration::from_millis(500);

/// Resolves when the link has to be replaced by one with the renewed certificate.
async fn until_succeeded(current: Option<&Current>, keeping: &Keeping) {
    let Some(current) = current else {
        return std::future::pending().await;
    };
    loop {
        let newest = keeping.trust.current();
        let newer = newest.material.credentials().leaf().serial != current.shown.serial;
        match current.shown.succeed_at.duration_since(SystemTime::now()) {
            Err(_) if newer => return tokio::time::sleep(SUCCEED_PAUSE).await,
            Err(_) => tokio::time::sleep(SUCCEED_PAUSE).await,
            // The wall clock may be set.
            Ok(wait) => tokio::time::sleep(wait.clamp(SUCCEED_PAUSE, limits::EXPIRY_LOOK)).await,
        }
    }
}

/// Between two looks, and between two attempts, at the end of a certificate's life.
const SUCCEED_PAUSE: Duration = Duration::from_millis(250);

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
