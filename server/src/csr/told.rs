//! What is told of requests: metrics, log, trail. A refusal that is found again at each look is
//! told once.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use towline_link::error::detail;
use towline_link::kube::KubeError;
use towline_link::kube::csr::SigningRequest;
use towline_link::process::ratelimit::RateLimited;
use towline_pki::date;
use towline_proto::limits;

use super::office::{Refusal, Signed, Subject};
use crate::audit::signing::{SigningEvent, short};
use crate::audit::trail::Audit;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Approved by us.
    Approved,
    /// Denied by us.
    Denied,
    /// Signed by us.
    Signed,
    /// Left as it is, and looked at again.
    Waiting,
    /// Left to people: made by no node.
    NotOurs,
    /// Approved by somebody, and not signed by us because it is not right.
    Failed,
    /// Signed by somebody else, although we sign.
    Foreign,
    /// Approved a while ago, and nobody has signed it.
    Unsigned,
}

impl Outcome {
    /// The word for metrics and the trail.
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::Approved => "approved",
            Outcome::Denied => "denied",
            Outcome::Signed => "signed",
            Outcome::Waiting => "waiting",
            Outcome::NotOurs => "not-ours",
            Outcome::Failed => "failed",
            Outcome::Foreign => "foreign",
            Outcome::Unsigned => "unsigned",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    signer: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCause {
    signer: &'static str,
    cause: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySigner {
    signer: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCall {
    call: &'static str,
}

/// Somebody claims what is another's.
const ALARMING: [&str; 5] = [
    "AddressTaken",
    "Contested",
    "NameTaken",
    "OfOther",
    "OtherNode",
];

/// Numbers. Clones are the same.
#[derive(Clone, Default)]
pub struct SigningMetrics {
    decisions: Family<ByOutcome, Counter>,
    refusals: Family<ByCause, Counter>,
    pending: Family<BySigner, Gauge>,
    errors: Family<ByCall, Counter>,
}

impl SigningMetrics {
    /// Adds them to what a scrape shows.
    pub fn register(&self, registry: &mut Registry) {
        self.watch("kubelet-serving");
        self.register_families(registry);
    }

    /// What may be alarmed on is there from the start.
    pub fn watch(&self, signer: &'static str) {
        for outcome in ["approved", "foreign", "unsigned"] {
            self.decisions
                .get_or_create(&ByOutcome { signer, outcome })
                .inc_by(0);
        }
        for cause in ["Contested", "OfOther", "OtherNode"] {
            self.refusals
                .get_or_create(&ByCause { signer, cause })
                .inc_by(0);
        }
        self.count("follow");
        self.pending(signer, 0);
    }

    fn register_families(&self, registry: &mut Registry) {
        registry.register(
            "towline_server_csr_decisions",
            "Signing requests of the Kubernetes API by signer and what became of them: approved, denied, signed, waiting, not-ours, failed, foreign (somebody else signs too), unsigned (nobody does)",
            self.decisions.clone(),
        );
        registry.register(
            "towline_server_csr_refusals",
            "Signing requests that were not approved, by signer and cause",
            self.refusals.clone(),
        );
        registry.register(
            "towline_server_csr_pending",
            "Signing requests that are not done, by signer",
            self.pending.clone(),
        );
        registry.register(
            "towline_server_csr_api_errors",
            "Calls of the Kubernetes API about signing requests and Nodes that failed, by call",
            self.errors.clone(),
        );
    }

    /// How many are not done.
    pub fn pending(&self, signer: &'static str, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.pending.get_or_create(&BySigner { signer }).set(count);
    }

    fn decided(&self, signer: &'static str, outcome: Outcome) {
        let outcome = outcome.as_str();
        let labels = ByOutcome { signer, outcome };
        self.decisions.get_or_create(&labels).inc();
    }

    fn refused(&self, signer: &'static str, cause: &'static str) {
        self.refusals
            .get_or_create(&ByCause { signer, cause })
            .inc();
    }

    /// Failures of this call are counted from now on.
    pub fn count(&self, call: &'static str) {
        self.errors.get_or_create(&ByCall { call }).inc_by(0);
    }

    /// A call failed.
    pub fn failed(&self, call: &'static str) {
        self.errors.get_or_create(&ByCall { call }).inc();
    }
}

/// What was told already: request and word.
#[derive(Default)]
struct Once {
    known: HashSet<(String, &'static str)>,
    order: VecDeque<(String, &'static str)>,
}

/// See the head of this file.
pub struct Told {
    signer: &'static str,
    manifest: &'static str,
    metrics: SigningMetrics,
    audit: Audit,
    once: Mutex<Once>,
    lines: RateLimited<&'static str>,
}

impl Told {
    /// About the requests for one signer, for which this file gives the rights.
    pub fn new(
        signer: &'static str,
        manifest: &'static str,
        metrics: SigningMetrics,
        audit: Audit,
    ) -> Self {
        Self {
            signer,
            manifest,
            metrics,
            audit,
            once: Mutex::default(),
            lines: RateLimited::new(limits::CSR_LOG_LINES, Duration::from_secs(60)),
        }
    }

    /// The numbers.
    pub fn metrics(&self) -> &SigningMetrics {
        &self.metrics
    }

    /// Whether what is done now can be recorded, where that matters.
    pub fn may_act(&self) -> bool {
        !self.audit.blocks() || self.audit.state().is_ok()
    }

    /// Whether it is the first time.
    fn first(&self, request: &SigningRequest, word: &'static str) -> bool {
        let mut once = self.once.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (request.metadata.uid.clone(), word);
        if !once.known.insert(key.clone()) {
            return false;
        }
        once.order.push_back(key);
        if once.order.len() > limits::CSR_TOLD
            && let Some(oldest) = once.order.pop_front()
        {
            once.known.remove(&oldest);
        }
        true
    }

    /// Approved.
    pub fn approved(&self, request: &SigningRequest, subject: &Subject) {
        self.metrics.decided(self.signer, Outcome::Approved);
        tracing::info!(
            request = short(&request.metadata.name),
            signer = self.signer,
            node = subject.node,
            names = subject.names.join(" "),
            "signing request approved"
        );
        self.record(request, Outcome::Approved, subject, None, None);
    }

    /// Signed.
    pub fn signed(&self, request: &SigningRequest, subject: &Subject, signed: &Signed) {
        self.metrics.decided(self.signer, Outcome::Signed);
        tracing::info!(
            request = short(&request.metadata.name),
            signer = self.signer,
            node = subject.node,
            serial = signed.serial,
            until = date::text(signed.not_after),
            "signing request signed"
        );
        self.record(request, Outcome::Signed, subject, None, Some(signed));
    }

    /// Not approved: denied, waiting, or somebody else's. Whether that is new.
    pub fn refused(&self, request: &SigningRequest, outcome: Outcome, refusal: &Refusal) -> bool {
        if !self.first(request, refusal.word) {
            return false;
        }
        self.metrics.decided(self.signer, outcome);
        self.metrics.refused(self.signer, refusal.word);
        self.record(request, outcome, &Subject::default(), Some(refusal), None);
        let Some(suppressed) = self.lines.allow(refusal.word) else {
            return true;
        };
        let name = short(&request.metadata.name);
        let who = short(&request.spec.username);
        let (signer, cause, fix) = (self.signer, &refusal.cause, refusal.fix);
        match outcome {
            Outcome::NotOurs => {
                tracing::info!(
                    request = name,
                    who,
                    signer,
                    "signing request left alone: {cause}"
                );
            }
            // A claim on what is another's is an alarm.
            _ if ALARMING.contains(&refusal.word) => {
                tracing::error!(
                    request = name,
                    who,
                    signer,
                    outcome = outcome.as_str(),
                    suppressed,
                    "signing request not approved: {cause}; {fix}"
                );
            }
            _ => tracing::warn!(
                request = name,
                who,
                signer,
                outcome = outcome.as_str(),
                suppressed,
                "signing request not approved: {cause}; {fix}"
            ),
        }
        true
    }

    /// There is no room for one more request, of anybody or of this user.
    pub fn full(&self, who: &str) {
        if let Some(suppressed) = self.lines.allow("full") {
            tracing::warn!(
                who = short(who),
                signer = self.signer,
                most = limits::CSR_PENDING,
                of_one_user = limits::CSR_PENDING_EACH,
                suppressed,
                "more signing requests wait than are kept in mind"
            );
        }
    }

    /// Something about a request that is an alarm: once for each.
    pub fn alarm(&self, request: &SigningRequest, outcome: Outcome, text: &str) {
        if !self.first(request, outcome.as_str()) {
            return;
        }
        self.metrics.decided(self.signer, outcome);
        let name = short(&request.metadata.name);
        tracing::error!(request = name, signer = self.signer, "{text}");
        self.record(request, outcome, &Subject::default(), None, None);
    }

    /// A call failed.
    pub fn api(&self, call: &'static str, error: &KubeError) {
        self.metrics.failed(call);
        let fix = match error.status() {
            Some(403) => format!("; give this server's user the rights of {}", self.manifest),
            _ => String::new(),
        };
        let text = detail(error);
        tracing::warn!(signer = self.signer, call, "signing requests: {text}{fix}");
    }

    fn record(
        &self,
        request: &SigningRequest,
        outcome: Outcome,
        subject: &Subject,
        refusal: Option<&Refusal>,
        signed: Option<&Signed>,
    ) {
        self.audit.signing(SigningEvent {
            at: SystemTime::now(),
            request: request.metadata.name.clone(),
            uid: request.metadata.uid.clone(),
            signer: self.signer,
            requester: request.spec.username.clone(),
            outcome: outcome.as_str(),
            node: subject.node.clone(),
            names: subject.names.clone(),
            cause: refusal.map(|refusal| (refusal.word, refusal.cause.clone())),
            signed: signed.map(|signed| (signed.serial.clone(), signed.not_after)),
        });
    }
}
