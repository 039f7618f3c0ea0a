//! What is known of every kubelet, for operators: the answer of `GET /kubelets`, which
//! `towline-server kubelets` prints, and from which metrics and readiness are counted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use towline_proto::id::Name;
use towline_proto::target::Host;

use super::memory::{Attestation, VERIFIED};
use super::metrics::Now;
use super::{Attestor, Mode};
use crate::agents::{Agents, Node};
use towline_pki::kubelet::Cause;

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
    /// `verified`, `refused` (enforce refuses it, or would), `unanswered`, `not-allowed` (by the
    /// agent's own rules) or `unknown`.
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
pub(super) const UNKNOWN: &str = "unknown";
const REFUSED: &str = "refused";
const UNANSWERED: &str = "unanswered";
const NOT_ALLOWED: &str = "not-allowed";

/// One kubelet, as it is remembered.
pub(super) struct Seen<'a> {
    node: &'a Node,
    linked: bool,
    host: Option<&'a Host>,
    /// The last verdict, if it was found under what is in force now.
    last: Option<&'a Attestation>,
}

impl Seen<'_> {
    fn verdict(&self) -> &'static str {
        match self.last.map(|last| last.verdict.cause()) {
            None => UNKNOWN,
            Some(None) => VERIFIED,
            Some(Some(cause)) if cause.is_passing() => UNANSWERED,
            // No mode of ours changes that, and it says nothing of the certificate.
            Some(Some(Cause::AgentRefuses { .. })) => NOT_ALLOWED,
            Some(Some(_)) => REFUSED,
        }
    }

    fn line(&self, now: SystemTime) -> Line {
        let cause = self.last.and_then(|last| last.verdict.cause());
        let shown = self.last.and_then(|last| last.verdict.presented.as_ref());
        let ends = shown.map(|shown| seconds(shown.not_after));
        let name = self.node.name();
        Line {
            node: name.to_string(),
            host: self
                .host
                .map_or_else(|| name.to_string(), ToString::to_string),
            linked: self.linked,
            verdict: self.verdict().into(),
            cause: cause.map(|cause| cause.as_str().to_owned()),
            detail: cause.map(ToString::to_string),
            fix: cause.map(|cause| cause.fix().to_owned()),
            key: shown.map(|shown| shown.key.to_string()),
            serial: shown.map(|shown| shown.serial.to_string()),
            subject: shown.map(|shown| shown.subject.clone()),
            issuer: shown.map(|shown| shown.issuer.clone()),
            certificate_ends: ends,
            days_left: ends.map(|ends| ends.saturating_sub(seconds(now)).div_euclid(86_400)),
            checked_seconds_ago: self
                .last
                .map(|last| now.duration_since(last.at).unwrap_or_default().as_secs()),
        }
    }
}

pub(super) fn seconds(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
    }
}

impl Summary {
    fn count(&mut self, verdict: &str) {
        self.linked += 1;
        match verdict {
            VERIFIED => self.verified += 1,
            REFUSED => self.would_be_refused += 1,
            _ => self.unknown += 1,
        }
    }
}

/// Numbers over the kubelets of linked nodes, without a text for each of them.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) summary: Summary,
    /// By `verified`, `unknown` or the word of the cause.
    pub(super) words: BTreeMap<&'static str, usize>,
    /// One that enforce refuses, or would, and why.
    pub(super) refused: Option<(Name, &'static str)>,
    /// When the first of their certificates ends.
    pub(super) first_end: Option<SystemTime>,
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
        let mut summary = Summary::default();
        let mut kubelets = Vec::new();
        self.each(|seen| {
            if seen.linked {
                summary.count(seen.verdict());
            }
            kubelets.push(seen.line(now));
        });
        kubelets.sort_by(|a, b| (&a.node, &a.host).cmp(&(&b.node, &b.host)));
        Report {
            mode: self.attestor.mode().to_string(),
            summary,
            kubelets,
        }
    }

    /// The same as numbers.
    pub fn summary(&self) -> Summary {
        self.tally().summary
    }

    pub(super) fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        self.each(|seen| {
            if !seen.linked {
                return;
            }
            let verdict = seen.verdict();
            tally.summary.count(verdict);
            let word = seen.last.map_or(UNKNOWN, Attestation::word);
            *tally.words.entry(word).or_default() += 1;
            if verdict == REFUSED {
                let name = || (seen.node.name().clone(), word);
                tally.refused.get_or_insert_with(name);
            }
            let shown = seen.last.and_then(|last| last.verdict.presented.as_ref());
            if let Some(end) = shown.map(|shown| shown.not_after) {
                tally.first_end = Some(tally.first_end.map_or(end, |first| first.min(end)));
            }
        });
        tally
    }

    fn each(&self, mut look: impl FnMut(&Seen<'_>)) {
        if self.attestor.mode() == Mode::Off {
            return;
        }
        for node in self.agents.nodes() {
            let stamp = self.attestor.stamp(&node);
            let linked = node.is_linked();
            let all = node.attested().all();
            // What was only looked at by ourselves counts while nobody dials it otherwise.
            let dialled = all.iter().any(|one| one.asked() > 0);
            let mut any = false;
            for one in all.iter().filter(|one| !dialled || one.asked() > 0) {
                any = true;
                let last = one.last.load();
                // A verdict of other files or another link says nothing about now, unless there
                // is no link by which to find out.
                let last = last
                    .as_deref()
                    .filter(|last| !linked || last.stamp == stamp);
                look(&Seen {
                    node: &node,
                    linked,
                    host: Some(&one.host),
                    last,
                });
            }
            if !any {
                look(&Seen {
                    node: &node,
                    linked,
                    host: None,
                    last: None,
                });
            }
        }
    }
}
