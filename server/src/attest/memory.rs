//! What is remembered of a node's kubelet: one attestation for each host by which it is dialled.
//!
//! Dials read it without waiting. An attestation counts until its end, and only for the stamp
//! under which its handshake began: a reload of the kubelet authority and a new link of the
//! node's agent each make a new stamp.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::time::Instant;
use towline_pki::Fingerprint;
use towline_pki::kubelet::Verdict;
use towline_proto::id::Name;
use towline_proto::limits;
use towline_proto::target::Host;

/// One finished check of a kubelet.
#[derive(Clone, Debug)]
pub struct Attestation {
    /// The node, by the name of its agent.
    pub node: Name,
    /// The host that was dialled.
    pub host: Host,
    /// What it came to.
    pub verdict: Verdict,
    /// When, on the wall clock.
    pub at: SystemTime,
    /// How long the handshake took.
    pub took: Duration,
    pub(super) checked: Instant,
    pub(super) until: Instant,
    pub(super) stamp: Stamp,
}

impl Attestation {
    /// Whether the kubelet proved to be the node's.
    pub fn is_verified(&self) -> bool {
        self.verdict.result.is_ok()
    }

    /// `verified`, or the word of the cause: a closed set.
    pub fn word(&self) -> &'static str {
        self.verdict
            .cause()
            .map_or(VERIFIED, towline_pki::kubelet::Cause::as_str)
    }

    /// The key that was shown, believed or not.
    pub fn key(&self) -> Option<Fingerprint> {
        self.verdict.presented.as_ref().map(|shown| shown.key)
    }
}

/// The word of a good verdict.
pub(super) const VERIFIED: &str = "verified";

/// What an attestation is bound to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Files of the kubelet authority.
    pub(super) generation: u64,
    /// Links of the agent.
    pub(super) session: u64,
}

/// The kubelet of one node, by each host that it is dialled by.
#[derive(Debug, Default)]
pub struct Attestations {
    session: AtomicU64,
    hosts: ArcSwap<Vec<Arc<Kubelet>>>,
    adding: Mutex<()>,
}

impl Attestations {
    /// The agent has a new link: what was seen through the others has to be seen again.
    pub(crate) fn new_session(&self) {
        self.session.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn session(&self) -> u64 {
        self.session.load(Ordering::Acquire)
    }

    /// Every host.
    pub(super) fn all(&self) -> Arc<Vec<Arc<Kubelet>>> {
        self.hosts.load_full()
    }

    /// The place of one host. A new one takes that of the host that was not asked for longest
    /// when there are too many.
    pub(super) fn place(&self, host: &Host, due: u64) -> Arc<Kubelet> {
        let find = |all: &[Arc<Kubelet>]| all.iter().find(|one| one.host == *host).cloned();
        if let Some(known) = find(&self.hosts.load()) {
            return known;
        }
        let _alone = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = self.hosts.load().to_vec();
        if let Some(known) = find(&all) {
            return known;
        }
        if all.len() >= limits::ATTESTATIONS_PER_NODE {
            let oldest = all.iter().enumerate().min_by_key(|(_, one)| one.asked());
            if let Some(at) = oldest.map(|(at, _)| at) {
                all.swap_remove(at);
            }
        }
        let new = Arc::new(Kubelet::new(host.clone(), due));
        all.push(Arc::clone(&new));
        self.hosts.store(Arc::new(all));
        new
    }
}

/// One kubelet by one host.
#[derive(Debug)]
pub(super) struct Kubelet {
    pub(super) host: Host,
    /// The last verdict.
    pub(super) last: ArcSwapOption<Attestation>,
    /// When it was last asked for, milliseconds of the attestor's clock; 0: never.
    asked: AtomicU64,
    /// Not to be looked at beside the dials before this time.
    due: AtomicU64,
    /// Held during a handshake: who waits for it finds the verdict.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// The last key that was believed.
    pub(super) key: Mutex<Option<Fingerprint>>,
}

impl Kubelet {
    fn new(host: Host, due: u64) -> Self {
        Self {
            host,
            last: ArcSwapOption::empty(),
            asked: AtomicU64::new(0),
            due: AtomicU64::new(due),
            turn: tokio::sync::Mutex::new(()),
            key: Mutex::new(None),
        }
    }

    pub(super) fn ask(&self, now: u64) {
        self.asked.store(now.max(1), Ordering::Relaxed);
    }

    /// See the field.
    pub(super) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    pub(super) fn postpone(&self, due: u64) {
        self.due.store(due, Ordering::Relaxed);
    }

    pub(super) fn due(&self) -> u64 {
        self.due.load(Ordering::Relaxed)
    }

    /// The last verdict, while it counts.
    pub(super) fn fresh(&self, stamp: Stamp, now: Instant) -> Option<Arc<Attestation>> {
        let last = self.last.load();
        last.as_ref()
            .filter(|last| last.stamp == stamp && now < last.until)
            .cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_a_node_are_bounded_and_the_least_used_goes() {
        let node = Attestations::default();
        let host = |number: usize| format!("10.0.0.{number}").parse::<Host>().unwrap();
        for number in 0..limits::ATTESTATIONS_PER_NODE {
            node.place(&host(number), 0).ask(10 + number as u64);
        }
        node.place(&host(0), 0).ask(99);
        node.place(&host(100), 0);
        let all = node.all();
        assert_eq!(all.len(), limits::ATTESTATIONS_PER_NODE);
        let known = |number| all.iter().any(|one| one.host == host(number));
        assert!(known(0) && known(100) && !known(1));
        assert!(Arc::ptr_eq(
            &node.place(&host(100), 0),
            &node.place(&host(100), 7)
        ));
    }
}
