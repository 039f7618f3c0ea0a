//! The policy that counts now, and what follows from a change of it or of grants.
//!
//! A new policy counts for every dial from then on, and every live dial is judged by it: one that
//! it forbids is ended with [`Reason::PolicyChanged`]. Grants that changed are the same: a dial
//! through an agent that may no longer serve its target is ended with [`Reason::RouteWithdrawn`].
//! A file that cannot be used leaves everything as it is and raises an alarm: an error in the
//! log, the metrics, and a note at the readiness condition `policy`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use towline_link::process::policy_file::{PolicyFile, PolicyFileError};
use towline_link::process::ready::Condition;
use towline_proto::kubelet::Rules as KubeletRules;
use towline_proto::reason::Reason;

use super::Policy;
use super::judged::{Judged, JudgedDials, JudgedGuard};
use crate::directory::Directory;
use crate::metrics::Metrics;

/// See the head of this file.
pub struct InForce {
    policy: ArcSwap<Policy>,
    kubelet: ArcSwapOption<KubeletRules>,
    path: Option<PathBuf>,
    directory: Arc<dyn Directory>,
    dials: JudgedDials,
    metrics: Metrics,
    alarm: Mutex<Option<Condition>>,
    also: OnceLock<Also>,
}

/// Judges again what is judged by the kubelet rules; gives how many were ended.
type Also = Box<dyn Fn() -> usize + Send + Sync>;

impl InForce {
    /// From a file that was read, or with what is built in.
    pub fn new(
        built_in: Policy,
        file: Option<(PathBuf, PolicyFile)>,
        directory: Arc<dyn Directory>,
        metrics: Metrics,
    ) -> Self {
        let (path, file) = file.unzip();
        let in_force = Self {
            policy: ArcSwap::from_pointee(built_in),
            kubelet: ArcSwapOption::empty(),
            path,
            directory,
            dials: JudgedDials::default(),
            metrics,
            alarm: Mutex::new(None),
            also: OnceLock::new(),
        };
        if let Some(file) = file {
            in_force.store(file);
        }
        in_force
    }

    /// Says whether the file is in force from now on; it is at this moment.
    pub fn watch_over(&self, alarm: Condition) {
        alarm.met();
        *self.alarm.lock().unwrap_or_else(PoisonError::into_inner) = Some(alarm);
    }

    /// The policy.
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.load_full()
    }

    /// Rules about requests to kubelets, if the file has any.
    pub fn kubelet(&self) -> Option<Arc<KubeletRules>> {
        self.kubelet.load_full()
    }

    /// Where the policy comes from; `None`: it is the built-in default.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The live dials.
    pub fn dials(&self) -> &JudgedDials {
        &self.dials
    }

    /// Reads the file again and puts it in force; gives the number of dials that this ended.
    pub fn reload(&self) -> Result<usize, PolicyFileError> {
        let Some(path) = &self.path else { return Ok(0) };
        let read = PolicyFile::load(path);
        if let Some(alarm) = &*self.alarm.lock().unwrap_or_else(PoisonError::into_inner) {
            match &read {
                Ok(_) => alarm.met(),
                Err(error) => alarm.note(format!(
                    "the policy file is not in force, an older one is: {error}"
                )),
            }
        }
        self.metrics.policy_stale(read.is_err());
        let file = read?;
        if file.kubelet.is_some() && self.also.get().is_none() {
            tracing::warn!(
                "nobody keeps the kubelet section of the policy file: it needs --kubelet-gateway"
            );
        }
        self.store(file);
        let requests = self.also.get().map_or(0, |also| also());
        Ok(self.judge_all() + requests)
    }

    /// What is to be done, too, when a new file is in force. Only the first counts.
    pub fn also_judges(&self, also: impl Fn() -> usize + Send + Sync + 'static) {
        let _ = self.also.set(Box::new(also));
    }

    fn store(&self, file: PolicyFile) {
        self.metrics.policy_rules(file.rules.rules().len());
        let policy = self.policy.load().with_rules(file.rules);
        self.policy.store(Arc::new(policy));
        self.kubelet.store(file.kubelet);
    }

    /// Judges every live dial again, because policy or grants changed; gives the number of those
    /// that were ended.
    pub fn judge_all(&self) -> usize {
        let policy = self.policy();
        let ended = self.dials.judge(|judged| self.verdict(&policy, judged));
        if ended > 0 {
            tracing::warn!(
                dials = ended,
                "live dials were ended that are no longer allowed"
            );
        }
        ended
    }

    /// Judges a dial that was being opened while something changed.
    pub fn judge_again(&self, dial: &JudgedGuard) -> Option<Reason> {
        self.verdict(&self.policy(), dial.judged())
    }

    fn verdict(&self, policy: &Policy, judged: &Judged) -> Option<Reason> {
        // A legacy agent is granted nothing, so nothing can be withdrawn from it.
        let agent = judged.agent.as_ref();
        let name = agent.map(|agent| agent.identity().name.as_str());
        let serves = agent.is_none_or(|agent| {
            let route = self.directory.route(agent);
            route.serves(
                agent.identity().name.as_str(),
                &judged.target.host,
                judged.class,
            )
        });
        let reason = if !serves {
            Reason::RouteWithdrawn
        } else if match name {
            Some(_) => policy.check(&judged.target, judged.class, &judged.caller, name),
            None => policy.check_legacy(&judged.target, judged.class, &judged.caller),
        }
        .is_err()
        {
            Reason::PolicyChanged
        } else {
            return None;
        };
        self.metrics.ended_by_policy(reason);
        tracing::info!(
            target = %judged.target, class = %judged.class, agent = name.unwrap_or("(legacy)"),
            front_end = %judged.caller, %reason, "live dial ended"
        );
        Some(reason)
    }
}
