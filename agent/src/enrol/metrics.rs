//! What is known and counted of enrolment: for metrics, for the status, for readiness.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::Serialize;
use towline_pki::date;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Done {
    source: &'static str,
    proof: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failed {
    source: &'static str,
    reason: &'static str,
}

#[derive(Debug, Default)]
struct Known {
    proof: Option<&'static str>,
    renews: Option<SystemTime>,
    error: Option<(SystemTime, String)>,
}

/// Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct EnrolMetrics {
    done: Family<Done, Counter>,
    failed: Family<Failed, Counter>,
    renews: Gauge,
    failing: Gauge,
    known: Arc<Mutex<Known>>,
}

/// In the status document.
#[derive(Clone, Debug, Serialize)]
pub struct EnrolmentStatus {
    /// `--enrol`.
    pub source: &'static str,
    /// What the certificate was got with, when this process got it.
    pub proof: Option<&'static str>,
    /// When the next one is asked for.
    pub renews: Option<String>,
    /// Why the last attempt failed, when it did.
    pub error: Option<String>,
    /// When that was.
    pub error_at: Option<String>,
}

impl EnrolMetrics {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds them to what a scrape shows.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "towline_agent_enrolments",
            "Certificates that this node was given, by source and proof",
            self.done.clone(),
        );
        registry.register(
            "towline_agent_enrolments_failed",
            "Attempts that gave no certificate, by source and reason",
            self.failed.clone(),
        );
        registry.register(
            "towline_agent_enrolment_renews_timestamp_seconds",
            "When the next certificate is asked for",
            self.renews.clone(),
        );
        registry.register(
            "towline_agent_enrolment_failing",
            "1 while the last attempt to get a certificate failed",
            self.failing.clone(),
        );
    }

    /// A certificate was given.
    pub fn done(&self, source: &'static str, proof: &'static str) {
        self.done.get_or_create(&Done { source, proof }).inc();
        self.failing.set(0);
        let mut known = self.lock();
        known.proof = Some(proof);
        known.error = None;
    }

    /// None was.
    pub fn failed(
        &self,
        source: &'static str,
        reason: &'static str,
        text: String,
        now: SystemTime,
    ) {
        self.failed.get_or_create(&Failed { source, reason }).inc();
        self.failing.set(1);
        self.lock().error = Some((now, text));
    }

    /// When the next one is asked for.
    pub fn renews(&self, at: SystemTime) {
        let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.renews.set(i64::try_from(seconds).unwrap_or(i64::MAX));
        self.lock().renews = Some(at);
    }

    /// For the status.
    pub fn status(&self, source: &'static str) -> EnrolmentStatus {
        let known = self.lock();
        EnrolmentStatus {
            source,
            proof: known.proof,
            renews: known.renews.map(date::text),
            error: known.error.as_ref().map(|(_, text)| text.clone()),
            error_at: known.error.as_ref().map(|(at, _)| date::text(*at)),
        }
    }

    /// Why there is no certificate, in words.
    pub fn error(&self) -> Option<String> {
        self.lock().error.as_ref().map(|(_, text)| text.clone())
    }
}
