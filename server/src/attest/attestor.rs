//! The attestor: asked before every dial of class kubelet, and on its own account by its keeper.
//!
//! A fresh verdict costs a look at memory. Without one, in mode `enforce`, a dial does the
//! handshake itself; others that come meanwhile wait for that one, and if its front end leaves,
//! the next of them goes on. In mode `observe` no dial waits: it goes on without a verdict, and
//! the keeper is told to hurry. Both are bounded by [`limits::ATTESTATIONS_AT_ONCE`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use towline_link::process::ratelimit::RateLimited;
use towline_pki::Expiry;
use towline_pki::kubelet::{Cause, Expected, KubeletCheck, KubeletTrust, Verdict};
use towline_proto::address;
use towline_proto::id::Name;
use towline_proto::limits;
use towline_proto::reason::Reason;
use towline_proto::target::{Host, Target};

use super::ask;
use super::memory::{Attestation, Kubelet, Stamp};
use super::{AttestMetrics, KubeletConfig, Mode};
use crate::agents::{AgentLink, Node};
use crate::dial_ids::DialIds;

/// Why a dial does not go to its kubelet.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The number for logs, metrics and doors.
    pub reason: Reason,
    /// What was found; `None` when there was no time to find anything.
    pub attestation: Option<Arc<Attestation>>,
}

/// See the head of this file.
pub struct Attestor {
    mode: Mode,
    port: u16,
    trust: ArcSwapOption<KubeletTrust>,
    generation: AtomicU64,
    places: Semaphore,
    beside: Arc<Semaphore>,
    ids: Arc<DialIds>,
    pub(super) metrics: AttestMetrics,
    pub(super) hurry: Notify,
    begun: Instant,
    lines: RateLimited<Name>,
    doubts: Mutex<Vec<(Name, Host)>>,
}

impl Attestor {
    /// An attestor of the kubelets on this port.
    pub fn new(
        config: KubeletConfig,
        port: u16,
        ids: Arc<DialIds>,
        metrics: AttestMetrics,
    ) -> Arc<Self> {
        if config.mode == Mode::Off {
            tracing::warn!(
                "KUBELETS ARE NOT VERIFIED (--kubelet-verification off): whoever answers on a node's \
                 kubelet port gets what kube-apiserver sends there; give \
                 --kubelet-certificate-authority and begin with --kubelet-verification observe"
            );
        }
        Arc::new(Self {
            mode: config.mode,
            port,
            trust: ArcSwapOption::from(config.trust.map(|(_, trust)| trust)),
            generation: AtomicU64::new(0),
            places: Semaphore::new(limits::ATTESTATIONS_AT_ONCE),
            beside: Arc::new(Semaphore::new(limits::ATTESTATIONS_BESIDE)),
            ids,
            metrics,
            hurry: Notify::new(),
            begun: Instant::now(),
            lines: RateLimited::new(4, Duration::from_secs(60)),
            doubts: Mutex::default(),
        })
    }

    /// What a verdict is good for.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whom kubelets must chain to, now; `None` in mode `off`.
    pub fn trust(&self) -> Option<Arc<KubeletTrust>> {
        self.trust.load_full().filter(|_| self.mode != Mode::Off)
    }

    /// The check for one more connection with a node's kubelet, by the files in force: strict
    /// or only looking, as the mode says; `None` in mode `off`.
    pub fn check(&self, node: &Name, host: &Host) -> Option<Arc<KubeletCheck>> {
        let trust = self.trust()?;
        let expected = expected(node, host);
        Some(match self.mode {
            Mode::Observe => KubeletCheck::observing(trust, expected),
            Mode::Enforce | Mode::Off => KubeletCheck::new(trust, expected),
        })
    }

    /// A connection with this kubelet found another one than the last verdict is about: it is
    /// looked at again soon, so that dials and `towline-server kubelets` know it, too.
    pub fn doubt(&self, node: &Name, host: &Host) {
        let doubt = (node.clone(), host.clone());
        let mut doubts = self.doubts.lock().unwrap_or_else(PoisonError::into_inner);
        if doubts.len() < limits::ATTESTATION_DOUBTS && !doubts.contains(&doubt) {
            doubts.push(doubt);
            self.hurry.notify_one();
        }
    }

    pub(super) fn take_doubts(&self) -> Vec<(Name, Host)> {
        std::mem::take(&mut *self.doubts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts new files in force. What was decided by others is decided again.
    pub fn replace(&self, trust: Arc<KubeletTrust>) {
        let same = self
            .trust
            .load()
            .as_ref()
            .is_some_and(|old| old.is_same(&trust));
        self.trust.store(Some(trust));
        if !same {
            self.generation.fetch_add(1, Ordering::AcqRel);
            tracing::info!(
                "kubelet authority or revocation lists changed: every kubelet is verified again"
            );
            self.hurry.notify_one();
        }
    }

    /// Everything loaded that ends.
    pub fn expiries(&self) -> Vec<Expiry> {
        self.trust().map_or_else(Vec::new, |trust| trust.expiries())
    }

    /// Whether a dial of class kubelet may go to this node, and what is known of its kubelet.
    /// Cancel-safe.
    pub async fn gate(
        &self,
        node: &Node,
        through: &Arc<AgentLink>,
        host: &Host,
        deadline: Instant,
    ) -> Result<Option<Arc<Attestation>>, Refusal> {
        if self.mode == Mode::Off {
            self.metrics.dialled("off");
            return Ok(None);
        }
        let kubelet = self.kubelet(node, host);
        kubelet.ask(self.clock());
        let fresh = kubelet.fresh(self.stamp(node), Instant::now());
        let found = match (fresh, self.mode) {
            (Some(fresh), _) => fresh,
            (None, Mode::Enforce) => {
                let attesting = self.attest(node, &kubelet, Some(through));
                match tokio::time::timeout_at(deadline, Box::pin(attesting)).await {
                    Ok(found) => found,
                    Err(_) => {
                        self.metrics.dialled("timeout");
                        return Err(Refusal {
                            reason: Reason::KubeletHandshake,
                            attestation: None,
                        });
                    }
                }
            }
            (None, _) => {
                self.metrics.dialled("pending");
                kubelet.postpone(0);
                self.hurry.notify_one();
                return Ok(None);
            }
        };
        self.metrics.dialled(found.word());
        match (found.verdict.cause(), self.mode) {
            (Some(cause), Mode::Enforce) => Err(Refusal {
                reason: cause.reason(),
                attestation: Some(Arc::clone(&found)),
            }),
            _ => Ok(Some(found)),
        }
    }

    /// The place of a host among those of its node.
    pub(super) fn kubelet(&self, node: &Node, host: &Host) -> Arc<Kubelet> {
        match host {
            Host::Ip(ip) if address::canonical(*ip) != *ip => {
                let host = Host::Ip(address::canonical(*ip));
                node.attested().place(&host, self.clock())
            }
            host => node.attested().place(host, self.clock()),
        }
    }

    pub(super) fn stamp(&self, node: &Node) -> Stamp {
        Stamp {
            generation: self.generation.load(Ordering::Acquire),
            session: node.attested().session(),
        }
    }

    /// Milliseconds since the start.
    pub(super) fn clock(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A place among the handshakes that no dial waits for.
    pub(super) async fn place_beside(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.beside).acquire_owned().await.ok()
    }

    /// One handshake, unless somebody else has just done it. Cancel-safe: who waits goes on.
    async fn attest(
        &self,
        node: &Node,
        kubelet: &Kubelet,
        through: Option<&Arc<AgentLink>>,
    ) -> Arc<Attestation> {
        let _turn = kubelet.turn.lock().await;
        if let Some(fresh) = kubelet.fresh(self.stamp(node), Instant::now()) {
            return fresh;
        }
        let _place = self.places.acquire().await;
        self.shake(node, kubelet, through).await
    }

    /// For the keeper, which brings its place along: a handshake whether the last verdict still
    /// counts or not, unless one is going on.
    pub(super) async fn renew(&self, node: &Node, kubelet: &Kubelet, beside: OwnedSemaphorePermit) {
        let Ok(_turn) = kubelet.turn.try_lock() else {
            return;
        };
        let _place = self.places.acquire().await;
        Box::pin(self.shake(node, kubelet, None)).await;
        drop(beside);
    }

    async fn shake(
        &self,
        node: &Node,
        kubelet: &Kubelet,
        through: Option<&Arc<AgentLink>>,
    ) -> Arc<Attestation> {
        // Before everything else: what changes from here on is not covered by this handshake.
        let stamp = self.stamp(node);
        let _counted = self.metrics.handshake();
        let begun = Instant::now();
        let deadline = begun + limits::ATTESTATION_TIMEOUT;
        let verdict = self.ask(node, kubelet, through, deadline).await;
        self.learn(node, kubelet, verdict, stamp, begun)
    }

    async fn ask(
        &self,
        node: &Node,
        kubelet: &Kubelet,
        through: Option<&Arc<AgentLink>>,
        deadline: Instant,
    ) -> Verdict {
        let no_agent = || {
            Verdict::failed(Cause::Unreachable {
                reason: Reason::NoAgent,
            })
        };
        let (Some(trust), Some(target)) = (
            self.trust.load_full(),
            Target::new(kubelet.host.clone(), self.port),
        ) else {
            return no_agent();
        };
        let mut link = match through {
            Some(link) => Some(Arc::clone(link)),
            None => node.choose(None),
        };
        let mut verdict = None;
        // As a dial: a second link only when the first was never reached.
        for _ in 0..2 {
            let Some(through) = link.take() else { break };
            let expected = expected(node.name(), &kubelet.host);
            let check = KubeletCheck::new(Arc::clone(&trust), expected);
            let answer = ask::ask(&through, self.ids.next(), target.clone(), check, deadline).await;
            verdict = Some(answer.verdict);
            if !answer.never_reached || Instant::now() >= deadline {
                break;
            }
            link = node.choose(Some(through.link.id()));
        }
        verdict.unwrap_or_else(no_agent)
    }

    fn learn(
        &self,
        node: &Node,
        kubelet: &Kubelet,
        verdict: Verdict,
        stamp: Stamp,
        begun: Instant,
    ) -> Arc<Attestation> {
        let now = Instant::now();
        let wall = SystemTime::now();
        let life = match &verdict.result {
            Ok(valid_until) => valid_until
                .duration_since(wall)
                .unwrap_or_default()
                .min(limits::ATTESTATION_LIFE),
            // One that hangs costs a place for seconds; one that is not there costs nothing.
            Err(Cause::Timeout) => limits::ATTESTATION_RETRY,
            Err(cause) if cause.is_passing() => limits::ATTESTATION_RETRY_UNANSWERED,
            Err(_) => limits::ATTESTATION_RETRY,
        };
        let new = Arc::new(Attestation {
            node: node.name().clone(),
            host: kubelet.host.clone(),
            verdict,
            at: wall,
            took: now.duration_since(begun),
            checked: now,
            until: now + life,
            stamp,
        });
        self.metrics.attested(new.word(), new.took);
        let old = kubelet.last.load_full();
        let passing = new.verdict.cause().is_some_and(Cause::is_passing);
        let fresh = old
            .as_ref()
            .filter(|old| old.is_verified() && old.stamp == stamp && now < old.until);
        if let (true, Some(old)) = (passing, fresh) {
            // It did not answer; what it proved a moment ago still counts, until its own end.
            let retry = u64::try_from(limits::ATTESTATION_RETRY.as_millis()).unwrap_or(u64::MAX);
            kubelet.postpone(self.clock().saturating_add(retry));
            return Arc::clone(old);
        }
        kubelet.postpone(0);
        self.tell(kubelet, old.as_deref(), &new);
        kubelet.last.store(Some(Arc::clone(&new)));
        new
    }

    /// What changed, for the log.
    fn tell(&self, kubelet: &Kubelet, old: Option<&Attestation>, new: &Attestation) {
        let (node, host) = (&new.node, &new.host);
        if let Some(key) = new.key() {
            let mut believed = kubelet.key.lock().unwrap_or_else(PoisonError::into_inner);
            let before = *believed;
            if new.is_verified() {
                *believed = Some(key);
            }
            drop(believed);
            if let Some(before) = before.filter(|before| *before != key) {
                self.metrics.key_changed();
                if let Some(suppressed) = self.lines.allow(node.clone()) {
                    tracing::warn!(%node, %host, %before, %key, verdict = new.word(), suppressed, "the kubelet shows another key than before");
                }
            }
        }
        if old.map(Attestation::word) == Some(new.word()) {
            return;
        }
        match new.verdict.cause() {
            None if old.is_some() => tracing::info!(%node, %host, "the kubelet is verified again"),
            None => tracing::debug!(%node, %host, "kubelet verified"),
            Some(cause) => {
                if let Some(suppressed) = self.lines.allow(node.clone()) {
                    tracing::warn!(
                        %node, %host, cause = cause.as_str(), mode = %self.mode, suppressed,
                        "kubelet is not verified: {cause}; {}", cause.fix()
                    );
                }
            }
        }
    }
}

fn expected(node: &Name, host: &Host) -> Expected {
    Expected {
        node: node.clone(),
        host: host.clone(),
    }
}

#[cfg(test)]
#[path = "attestor_tests.rs"]
mod tests;
