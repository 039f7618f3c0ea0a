//! One agent, by the name that its certificate proves: its links now, and how the last one ended.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::time::Instant;
use towline_link::driver::{Link, LinkState};
use towline_pki::VerifiedPeer;
use towline_proto::id::{InstanceId, LinkId, Name};
use towline_proto::limits;
use towline_proto::notes::Notes;
use towline_proto::reason::Reason;

use crate::attest::Attestations;
use crate::pick::{Candidate, Standing};

/// How an agent came to have no link.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// When.
    pub at: Instant,
    /// Why.
    pub reason: Reason,
}

/// What the last data-path probe said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Not probed yet.
    None,
    /// Streams pass in both directions.
    Passed,
    /// They do not.
    Failed,
}

impl Probe {
    /// The word for status and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Probe::None => "none",
            Probe::Passed => "passed",
            Probe::Failed => "failed",
        }
    }
}

/// A greeted link of an agent.
#[derive(Debug)]
pub struct AgentLink {
    /// The link.
    pub link: Link,
    /// The agent process at its other end.
    pub instance: InstanceId,
    /// Name and version of its program, for people; bounded, not escaped.
    pub software: String,
    /// When it was greeted, on the wall clock.
    pub since: SystemTime,
    node: OnceLock<Weak<Node>>,
    superseded: AtomicBool,
    probe: AtomicU8,
    probe_us: AtomicU64,
}

impl AgentLink {
    pub(super) fn new(link: Link, instance: InstanceId, software: String) -> Self {
        Self {
            link,
            instance,
            software,
            since: SystemTime::now(),
            node: OnceLock::new(),
            superseded: AtomicBool::new(false),
            probe: AtomicU8::new(0),
            probe_us: AtomicU64::new(0),
        }
    }

    /// The proof of who is at its other end.
    pub fn peer(&self) -> &VerifiedPeer {
        self.link.carrier().peer()
    }

    /// The agent whose link it is, while it is known.
    pub fn node(&self) -> Option<Arc<Node>> {
        self.node.get()?.upgrade()
    }

    pub(super) fn belongs_to(&self, node: &Arc<Node>) {
        let _ = self.node.set(Arc::downgrade(node));
    }

    /// The last probe's verdict.
    pub fn probe(&self) -> Probe {
        match self.probe.load(Ordering::Relaxed) {
            0 => Probe::None,
            1 => Probe::Passed,
            _ => Probe::Failed,
        }
    }

    /// Notes a verdict: the time that a probe took, or that it did not pass.
    pub fn set_probe(&self, passed: Option<Duration>) {
        let code = if passed.is_some() { 1 } else { 2 };
        if let Some(time) = passed {
            let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
            self.probe_us.store(us, Ordering::Relaxed);
        }
        self.probe.store(code, Ordering::Relaxed);
        self.link.set_healthy(passed.is_some());
    }

    /// How long the last probe that passed took, from stream to stream.
    pub fn probe_time(&self) -> Option<Duration> {
        match self.probe_us.load(Ordering::Relaxed) {
            0 => None,
            us => Some(Duration::from_micros(us)),
        }
    }

    /// A newer instance took over.
    pub fn superseded(&self) -> bool {
        self.superseded.load(Ordering::Relaxed)
    }

    pub(super) fn supersede(&self) -> bool {
        !self.superseded.swap(true, Ordering::Relaxed)
    }

    /// How fit the link is for a new dial.
    pub fn standing(&self) -> Standing {
        match self.link.state() {
            LinkState::Closed(_) => Standing::Gone,
            // We asked for it: the agent was told that no new dials come.
            LinkState::Draining { by_peer: false, .. } => Standing::Gone,
            LinkState::Draining { .. } => Standing::Draining,
            LinkState::Ready => {
                let doubted = self.probe() == Probe::Failed
                    || !self.link.peer_healthy()
                    || self.link.silent_for() > limits::LINK_DOUBTED;
                if doubted {
                    Standing::Unhealthy
                } else {
                    Standing::Ready
                }
            }
        }
    }
}

/// What changes about an agent; replaced as a whole.
#[derive(Debug, Default)]
pub(super) struct NodeState {
    /// Newest first.
    pub(super) links: Vec<Arc<AgentLink>>,
    pub(super) ended: Option<Ended>,
}

/// One agent.
#[derive(Debug)]
pub struct Node {
    name: Name,
    state: ArcSwap<NodeState>,
    attested: Attestations,
}

impl Node {
    pub(crate) fn new(name: Name) -> Self {
        Self {
            name,
            state: ArcSwap::default(),
            attested: Attestations::default(),
        }
    }

    /// Its name, as certified.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// What is known of its kubelet.
    pub fn attested(&self) -> &Attestations {
        &self.attested
    }

    /// Its links, newest first.
    pub fn links(&self) -> Vec<Arc<AgentLink>> {
        self.state.load().links.clone()
    }

    /// What the newest of its links says of it in its heartbeats.
    pub fn notes(&self) -> Notes {
        let state = self.state.load();
        let newest = state.links.first();
        newest.map_or(Notes::NONE, |entry| entry.link.peer_notes())
    }

    /// How many.
    pub fn link_count(&self) -> usize {
        self.state.load().links.len()
    }

    /// How its last link ended; `None` while it has one.
    pub fn ended(&self) -> Option<Ended> {
        self.state.load().ended
    }

    /// The link for a new dial: the fittest, of several the newest, because an agent opens
    /// another link when it likes that one better (a carrier that works, a new process).
    pub fn choose(&self, avoid: Option<LinkId>) -> Option<Arc<AgentLink>> {
        let state = self.state.load();
        state
            .links
            .iter()
            .filter(|link| Some(link.link.id()) != avoid)
            .map(|link| (link.standing(), link))
            .filter(|(standing, _)| *standing != Standing::Gone)
            .min_by_key(|(standing, _)| *standing)
            .map(|(_, link)| Arc::clone(link))
    }

    pub(super) fn replace(&self, state: NodeState) {
        self.state.store(Arc::new(state));
    }

    /// Whether it has a link.
    pub fn is_linked(&self) -> bool {
        !self.state.load().links.is_empty()
    }
}

impl Candidate for Node {
    fn standing(&self, avoid: Option<LinkId>) -> Standing {
        let state = self.state.load();
        state
            .links
            .iter()
            .filter(|link| Some(link.link.id()) != avoid)
            .map(|link| link.standing())
            .min()
            .unwrap_or(Standing::Gone)
    }
}
