//! What is known of every kubelet, for operators: the answer of `GET /kubelets`, which
//! `towline-server kubelets` prints, and from which metrics and readiness are counted.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};

use super::memory::{Attestation, Kubelet, VERIFIED};
use super::metrics::Now;
use super::{Attestor, Mode};
use crate::agents::{Agents, Node};

/// Everything that is known.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// `enforce`, `observe` or `off`.
    pub mode: String,
    /// Counts over the kubelets of linked nodes.
    pub summary: Summary,
    /// By node, then host.
    pub kubelets: Vec<Line>,
}

/// Counts over the kubelets of linked nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// All of them.
    pub linked: usize,
    /// Proved to be their node's.
    pub verified: usize,
    /// Mode `enforce` refuses them, or would.
    pub would_be_refused: usize,
    /// Not looked at yet, or did not answer: nobody can say.
    pub unknown: usize,
}

/// One kubelet by one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The node.
    pub node: String,
    /// The host by which it is dialled.
    pub host: String,
    /// Whether the node's agent has a link now.
    pub linked: bool,
    /// `verified`, `refused` (enforce refuses it, or would), `unanswered` or `unknown`.
    pub verdict: String,
    /// One word for what is wrong.
    pub cause: Option<String>,
    /// The same as a sentence.
    pub detail: Option<String>,
    /// What to do about it.
    pub fix: Option<String>,
    /// SHA-256 of the key that it showed.
    pub key: Option<String>,
    /// Serial number of its certificate.
    pub serial: Option<String>,
    /// Whom its certificate names.
    pub subject: Option<String>,
    /// Who signed it.
    pub issuer: Option<String>,
    /// End of its certificate, seconds since 1970.
    pub certificate_ends: Option<i64>,
    /// Whole days until then; negative when it is over.
    pub days_left: Option<i64>,
    /// How long ago it was looked at.
    pub checked_seconds_ago: Option<u64>,
}

/// What stands for "nobody looked yet".
const UNKNOWN: &str = "unknown";
const REFUSED: &str = "refused";
const UNANSWERED: &str = "unanswered";

impl Line {
    /// `verified`, `unknown`, or the word of the cause.
    pub(super) fn word(&self) -> &str {
        self.cause.as_deref().unwrap_or(&self.verdict)
    }

    pub(super) fn seconds_left(&self) -> Option<i64> {
        Some(
            self.certificate_ends?
                .saturating_sub(seconds(SystemTime::now())),
        )
    }

    fn of(node: &Node, host: String, last: Option<&Attestation>, now: SystemTime) -> Self {
        let cause = last.and_then(|last| last.verdict.cause());
        let shown = last.and_then(|last| last.verdict.presented.as_ref());
        let ends = shown.map(|shown| seconds(shown.not_after));
        let verdict = match (last, cause) {
            (None, _) => UNKNOWN,
            (Some(_), None) => VERIFIED,
            (Some(_), Some(cause)) if cause.is_passing() => UNANSWERED,
            (Some(_), Some(_)) => REFUSED,
        };
        Self {
            node: node.name().to_string(),
            host,
            linked: node.ended().is_none() && !node.links().is_empty(),
            verdict: verdict.into(),
            cause: cause.map(|cause| cause.as_str().to_owned()),
            detail: cause.map(ToString::to_string),
            fix: cause.map(|cause| cause.fix().to_owned()),
            key: shown.map(|shown| shown.key.to_string()),
            serial: shown.map(|shown| shown.serial.to_string()),
            subject: shown.map(|shown| shown.subject.clone()),
            issuer: shown.map(|shown| shown.issuer.clone()),
            certificate_ends: ends,
            days_left: ends.map(|ends| ends.saturating_sub(seconds(now)).div_euclid(86_400)),
            checked_seconds_ago: last
                .map(|last| now.duration_since(last.at).unwrap_or_default().as_secs()),
        }
    }
}

fn seconds(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
    }
}

impl Summary {
    fn of(lines: &[Line]) -> Self {
        let mut summary = Self::default();
        for line in lines.iter().filter(|line| line.linked) {
            summary.linked += 1;
            match line.verdict.as_str() {
                VERIFIED => summary.verified += 1,
                REFUSED => summary.would_be_refused += 1,
                _ => summary.unknown += 1,
            }
        }
        summary
    }
}

/// Makes reports.
#[derive(Clone)]
pub struct Reporter {
    /// What is remembered, and how it is used.
    pub attestor: Arc<Attestor>,
    /// Whose kubelets.
    pub agents: Arc<Agents>,
}

impl Reporter {
    /// Adds what is known of kubelets now to what a scrape shows.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(Now {
            reporter: self.clone(),
        }));
    }

    /// Looks at everything now; asks no kubelet.
    pub fn report(&self) -> Report {
        let now = SystemTime::now();
        let off = self.attestor.mode() == Mode::Off;
        let mut kubelets: Vec<Line> = Vec::new();
        for node in self.agents.nodes() {
            let all = node.attested().all();
            // What was only looked at by ourselves counts while nobody dials it otherwise.
            let dialled = all.iter().any(|one| one.asked() > 0);
            let counts = |one: &&Arc<Kubelet>| !dialled || one.asked() > 0;
            let before = kubelets.len();
            for one in all.iter().filter(counts) {
                let last = one.last.load();
                kubelets.push(Line::of(&node, one.host.to_string(), last.as_deref(), now));
            }
            if kubelets.len() == before && !off {
                kubelets.push(Line::of(&node, node.name().to_string(), None, now));
            }
        }
        kubelets.sort_by(|a, b| (&a.node, &a.host).cmp(&(&b.node, &b.host)));
        Report {
            mode: self.attestor.mode().to_string(),
            summary: Summary::of(&kubelets),
            kubelets,
        }
    }
}
