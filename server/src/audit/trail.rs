//! What the dialer holds of the trail. A [`Draft`] is made before anything is decided about a
//! dial, and becomes one refusal or an [`OpenRecord`], which becomes the end. None can be
//! forgotten: dropped, they are records too.
//!
//! All a dial pays for is a message into a channel. Whether it may be sent is decided by numbers
//! that the writer keeps; nothing here waits.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use towline_link::carrier::CarrierKind;
use towline_link::live::LiveDial;
use towline_link::process::drain::{DrainView, Stage};
use towline_link::splice::SpliceEnd;
use towline_pki::VerifiedPeer;
use towline_proto::id::{DialId, Name};
use towline_proto::limits;
use towline_proto::policy::RuleTag;
use towline_proto::reason::Reason;
use towline_proto::target::Class;

use super::facts::{Event, Facts, Timed};
use super::metrics::AuditMetrics;
use crate::attest::Attestation;
use crate::caller::Caller;
use crate::dial::{Ask, Door};

/// `--audit-failure`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// What cannot be recorded is not done.
    #[default]
    Block,
    /// It is done, and counted.
    Drop,
}

/// A word that names neither.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "use block (dials that cannot be recorded are refused) or drop (they go on unrecorded and are counted)"
)]
pub struct UnknownOnFailure;

impl OnFailure {
    /// The word of the flag.
    pub const fn as_str(self) -> &'static str {
        match self {
            OnFailure::Block => "block",
            OnFailure::Drop => "drop",
        }
    }
}

impl std::str::FromStr for OnFailure {
    type Err = UnknownOnFailure;
    fn from_str(text: &str) -> Result<Self, UnknownOnFailure> {
        match text {
            "block" => Ok(OnFailure::Block),
            "drop" => Ok(OnFailure::Drop),
            _ => Err(UnknownOnFailure),
        }
    }
}

impl std::fmt::Display for OnFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the writer's thread is told.
#[derive(Debug)]
pub enum Message {
    /// A record.
    Event(Timed),
    /// Look whether the file was moved.
    Look,
    /// Write what waits, sign, end.
    Close,
}

/// What could not be recorded since the last record that could.
#[derive(Clone, Debug, Default)]
pub struct Lost {
    /// Records.
    pub dropped: u64,
    /// Dials refused for it.
    pub dials_refused: u64,
    /// Since when.
    pub since: Option<SystemTime>,
    /// Why.
    pub cause: String,
}

/// What the dialer's side and the writer's thread have in common.
pub struct Shared {
    queue: Sender<Message>,
    waiting: AtomicUsize,
    /// The last write failed.
    failing: AtomicBool,
    /// Milliseconds since `base` at which a write began that has not returned; 0 for none.
    writing_since: AtomicU64,
    /// Milliseconds since `base` of the last checkpoint.
    checkpoint_at: AtomicU64,
    closing: AtomicBool,
    base: Instant,
    lost: Mutex<Lost>,
    /// When the process stops at once, its tasks are dropped, and this says why.
    stage: OnceLock<DrainView>,
    on_failure: OnFailure,
    pub(super) metrics: AuditMetrics,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shared({} waiting)", self.waiting())
    }
}

impl Shared {
    pub(super) fn new(queue: Sender<Message>, on_failure: OnFailure) -> Arc<Self> {
        Arc::new(Self {
            queue,
            waiting: AtomicUsize::new(0),
            failing: AtomicBool::new(false),
            writing_since: AtomicU64::new(0),
            checkpoint_at: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            base: Instant::now(),
            lost: Mutex::default(),
            stage: OnceLock::new(),
            on_failure,
            metrics: AuditMetrics::default(),
        })
    }

    /// `--audit-failure`.
    pub fn on_failure(&self) -> OnFailure {
        self.on_failure
    }

    /// Records in the queue.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Since the last checkpoint, or the start.
    pub fn checkpoint_age(&self) -> Duration {
        let at = Duration::from_millis(self.checkpoint_at.load(Ordering::Relaxed));
        self.base.elapsed().saturating_sub(at)
    }

    /// Why nothing more can be recorded now.
    pub fn obstacle(&self) -> Option<&'static str> {
        if self.failing.load(Ordering::Relaxed) {
            return Some("the last write failed");
        }
        if self.waiting() >= limits::AUDIT_QUEUE {
            return Some("as many records wait as may");
        }
        let since = self.writing_since.load(Ordering::Relaxed);
        let stuck =
            since != 0 && self.millis().saturating_sub(since) >= millis(limits::AUDIT_STUCK);
        stuck.then_some("a write does not return")
    }

    /// One more look than [`Self::obstacle`]: the failure in its own words.
    pub fn state(&self) -> Result<(), String> {
        match self.obstacle() {
            None => Ok(()),
            Some(word) => match self.lost().cause.as_str() {
                "" => Err(word.to_owned()),
                cause => Err(cause.to_owned()),
            },
        }
    }

    pub(super) fn lost(&self) -> MutexGuard<'_, Lost> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_failing(&self, failing: bool) {
        self.failing.store(failing, Ordering::Relaxed);
    }

    pub(super) fn writing(&self, writes: bool) {
        let since = if writes { self.millis().max(1) } else { 0 };
        self.writing_since.store(since, Ordering::Relaxed);
    }

    pub(super) fn took(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn checkpointed(&self) {
        self.checkpoint_at.store(self.millis(), Ordering::Relaxed);
    }

    pub(super) fn tell(&self, message: Message) {
        if matches!(message, Message::Close) {
            self.closing.store(true, Ordering::Relaxed);
        }
        // The writer is gone only when the process ends.
        let _ = self.queue.send(message);
    }

    /// Whether the writer was told to end, also when it does not read what it is told.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    fn millis(&self) -> u64 {
        millis(self.base.elapsed())
    }

    /// Why a dial's task ended without saying why.
    fn dropped(&self) -> Reason {
        match self.stage.get().map(DrainView::stage) {
            Some(Stage::Forced) => Reason::Shutdown,
            _ => Reason::Aborted,
        }
    }

    /// What is neither a dial's start nor its end.
    fn count_lost(&self, records: u64, dials: u64) {
        self.metrics.dropped.inc_by(records);
        self.metrics.dials_refused.inc_by(dials);
        let mut lost = self.lost();
        lost.dropped += records;
        lost.dials_refused += dials;
        lost.since.get_or_insert_with(SystemTime::now);
        if lost.cause.is_empty() {
            let full = "the queue was full, or half full of refusals";
            lost.cause = self.obstacle().unwrap_or(full).to_owned();
        }
    }

    /// Whether there is room or not: for what follows from something that was recorded.
    pub(super) fn send(&self, event: Event) {
        let at = SystemTime::now();
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if self
            .queue
            .send(Message::Event(Timed { at, event }))
            .is_err()
        {
            self.took();
            self.metrics.dropped.inc();
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The way into the trail. Without one nothing is recorded. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    shared: Option<Arc<Shared>>,
}

/// The trail cannot be written, and `--audit-failure` is `block`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unavailable;

impl Audit {
    /// No trail.
    pub fn off() -> Self {
        Self::default()
    }

    pub(super) fn on(shared: Arc<Shared>) -> Self {
        Self {
            shared: Some(shared),
        }
    }

    /// What is shared with the writer's thread.
    pub fn shared(&self) -> Option<&Arc<Shared>> {
        self.shared.as_ref()
    }

    /// By what it is known that the process stops at once.
    pub fn stops_with(&self, stage: DrainView) {
        if let Some(shared) = &self.shared {
            let _ = shared.stage.set(stage);
        }
    }

    /// Whether dials are refused while nothing can be recorded.
    pub fn blocks(&self) -> bool {
        let shared = self.shared.as_ref();
        shared.is_some_and(|shared| shared.on_failure == OnFailure::Block)
    }

    /// Whether anything can be recorded now, and why not.
    pub fn state(&self) -> Result<(), String> {
        self.shared.as_ref().map_or(Ok(()), |shared| shared.state())
    }

    /// Has the writer look whether the file was moved: after SIGHUP.
    pub fn look(&self) {
        if let Some(shared) = &self.shared {
            shared.tell(Message::Look);
        }
    }

    /// A front end asked for something that is no dial.
    pub fn bad_request(&self, door: Door, caller: &Caller, cause: &'static str) {
        if self.shared.is_some() {
            self.tell(Event::BadRequest {
                door,
                caller: caller.clone(),
                cause,
            });
        }
    }

    /// What is neither a dial's beginning nor its end: taken while there is room.
    pub(super) fn tell(&self, event: Event) {
        let Some(shared) = &self.shared else {
            return;
        };
        let room = match event.is_refusal() {
            true => limits::AUDIT_REFUSALS,
            false => limits::AUDIT_QUEUE,
        };
        if shared.waiting() >= room {
            shared.count_lost(1, 0);
        } else {
            shared.send(event);
        }
    }

    /// A dial begins.
    pub fn begin(&self, id: DialId, ask: &Ask) -> Result<Draft, Unavailable> {
        let Some(shared) = &self.shared else {
            return Ok(Draft(None));
        };
        let recorded = match shared.on_failure {
            OnFailure::Block if shared.obstacle().is_some() => {
                shared.count_lost(0, 1);
                return Err(Unavailable);
            }
            OnFailure::Block => true,
            // A short failure costs nothing: what fits into the queue is written after it.
            OnFailure::Drop => shared.waiting() < limits::AUDIT_QUEUE,
        };
        Ok(Draft(Some(Box::new(Begun {
            shared: Arc::clone(shared),
            recorded,
            begun: Instant::now(),
            facts: Facts {
                id,
                door: ask.door,
                caller: ask.caller.clone(),
                target: ask.target.clone(),
                trace: ask.trace,
                class: None,
                node: None,
                agent: None,
                legacy: None,
                carrier: None,
                rule: None,
                kubelet: None,
            },
        }))))
    }
}

#[derive(Debug)]
struct Begun {
    shared: Arc<Shared>,
    /// The trail could be written when the dial began.
    recorded: bool,
    begun: Instant,
    facts: Facts,
}

/// A dial that is neither open nor refused yet. Dropped, it is recorded as refused.
#[derive(Debug)]
pub struct Draft(Option<Box<Begun>>);

impl Draft {
    /// What the target is.
    pub fn class(&mut self, class: Class) {
        if let Some(begun) = &mut self.0 {
            begun.facts.class = Some(class);
        }
    }

    /// Whose it is, or who would be asked.
    pub fn node(&mut self, node: &Name) {
        if let Some(begun) = &mut self.0 {
            begun.facts.node = Some(node.clone());
        }
    }

    /// Who is asked, and over what.
    pub fn agent(&mut self, agent: &VerifiedPeer, carrier: CarrierKind) {
        if let Some(begun) = &mut self.0 {
            begun.facts.node = Some(agent.identity().name.clone());
            begun.facts.agent = Some(agent.clone());
            begun.facts.carrier = Some(carrier);
        }
    }

    /// A legacy agent is asked: it calls itself so.
    pub fn legacy(&mut self, id: &str) {
        if let Some(begun) = &mut self.0 {
            begun.facts.legacy = Some(id.into());
        }
    }

    /// Which rule decided.
    pub fn rule(&mut self, rule: Option<&RuleTag>) {
        if let (Some(begun), Some(rule)) = (&mut self.0, rule) {
            begun.facts.rule = Some(rule.clone());
        }
    }

    /// What is known of the kubelet.
    pub fn kubelet(&mut self, kubelet: Option<&Arc<Attestation>>) {
        if let (Some(begun), Some(kubelet)) = (&mut self.0, kubelet) {
            begun.facts.kubelet = Some(Arc::clone(kubelet));
        }
    }

    /// The dial is refused.
    pub fn refused(mut self, reason: Reason, address: Option<IpAddr>) {
        if let Some(begun) = self.0.take() {
            begun.refused(reason, address);
        }
    }

    /// The dial is open.
    pub fn opened(mut self) -> OpenRecord {
        let Some(begun) = self.0.take() else {
            return OpenRecord(None);
        };
        let Begun {
            shared,
            recorded,
            begun,
            facts,
        } = *begun;
        let facts = Arc::new(facts);
        if recorded {
            shared.send(Event::Start {
                facts: Arc::clone(&facts),
                opening: begun.elapsed(),
            });
        } else {
            shared.count_lost(1, 0);
        }
        OpenRecord(Some(Box::new(Open {
            shared,
            recorded,
            facts,
            since: Instant::now(),
            live: None,
        })))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(begun) = self.0.take() {
            let reason = begun.shared.dropped();
            begun.refused(reason, None);
        }
    }
}

impl Begun {
    fn refused(self, reason: Reason, address: Option<IpAddr>) {
        if !self.recorded || self.shared.waiting() >= limits::AUDIT_REFUSALS {
            self.shared.count_lost(1, 0);
            return;
        }
        self.shared.send(Event::Refused {
            after: self.begun.elapsed(),
            facts: Arc::new(self.facts),
            reason,
            address,
        });
    }
}

#[derive(Debug)]
struct Open {
    shared: Arc<Shared>,
    /// Its start is in the trail, so its end will be.
    recorded: bool,
    facts: Arc<Facts>,
    since: Instant,
    live: Option<Arc<LiveDial>>,
}

/// An open dial. Dropped, it is recorded as ended, with the bytes that were counted.
#[derive(Debug)]
pub struct OpenRecord(Option<Box<Open>>);

impl OpenRecord {
    /// Where its bytes are counted.
    pub fn counts(&mut self, live: &Arc<LiveDial>) {
        if let Some(open) = &mut self.0 {
            open.live = Some(Arc::clone(live));
        }
    }

    /// It ended.
    pub fn ended(mut self, end: SpliceEnd) {
        if let Some(open) = self.0.take() {
            open.ended(end.to_peer, end.from_peer, end.reason);
        }
    }

    /// It ended before a byte was moved.
    pub fn ended_early(mut self, reason: Reason) {
        if let Some(open) = self.0.take() {
            open.ended(0, 0, reason);
        }
    }
}

impl Drop for OpenRecord {
    fn drop(&mut self) {
        if let Some(open) = self.0.take() {
            let (to, from) = open.live.as_ref().map_or((0, 0), |live| live.bytes());
            let reason = open.shared.dropped();
            open.ended(to, from, reason);
        }
    }
}

impl Open {
    fn ended(self, to_target: u64, from_target: u64, reason: Reason) {
        if !self.recorded {
            self.shared.count_lost(1, 0);
            return;
        }
        self.shared.send(Event::End {
            open: self.since.elapsed(),
            facts: self.facts,
            to_target,
            from_target,
            reason,
        });
    }
}
