//! What is said of each enrolment: a number, a line of the log, a record of the trail.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use towline_link::error::detail;
use towline_link::process::ratelimit::RateLimited;
use towline_pki::TlsError;
use towline_proto::enrol::Refusal;
use towline_proto::id::Name;

use crate::audit::enrolment::EnrolmentEvent;
use crate::audit::trail::Audit;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct By {
    proof: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    proof: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Closed {
    reason: &'static str,
}

/// Who has an address that a node which enrols claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A linked agent.
    Link,
    /// A certificate that was issued here.
    Certificate,
    /// The grants file says so.
    Grants,
    /// Another Node object.
    Node,
}

impl Holder {
    /// All.
    const ALL: [Self; 4] = [Self::Link, Self::Certificate, Self::Grants, Self::Node];

    /// The word for metrics.
    const fn as_str(self) -> &'static str {
        match self {
            Holder::Link => "link",
            Holder::Certificate => "certificate",
            Holder::Grants => "grants",
            Holder::Node => "node",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Held {
    by: &'static str,
}

/// Upper bounds of the histogram, seconds.
const SECONDS: [f64; 10] = [
    0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0, 10.0,
];

/// See the head of this file.
pub struct Told {
    audit: Audit,
    issued: Family<By, Counter>,
    refused: Family<Why, Counter>,
    closed: Family<Closed, Counter>,
    contested: Family<Held, Counter>,
    /// Enrolments that are worked on.
    pub places: Gauge,
    /// Connections that wait for a place.
    pub waiting: Gauge,
    seconds: Family<By, Histogram>,
    lines: RateLimited<(&'static str, &'static str)>,
}

impl Told {
    /// Nothing yet.
    pub fn new(audit: Audit, registry: &mut Registry) -> Self {
        let told = Self {
            audit,
            issued: Family::default(),
            refused: Family::default(),
            closed: Family::default(),
            contested: Family::default(),
            places: Gauge::default(),
            waiting: Gauge::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            lines: RateLimited::new(30, Duration::from_secs(60)),
        };
        registry.register(
            "towline_server_enrolments",
            "Certificates that were issued to agents, by proof",
            told.issued.clone(),
        );
        registry.register(
            "towline_server_enrolments_refused",
            "Enrolments that were refused, by proof and reason",
            told.refused.clone(),
        );
        registry.register(
            "towline_server_enrolment_connections_closed",
            "Connections for enrolment that ended without an answer, by reason",
            told.closed.clone(),
        );
        for holder in Holder::ALL {
            let by = holder.as_str();
            told.contested.get_or_create(&Held { by }).inc_by(0);
        }
        registry.register(
            "towline_server_enrolment_addresses_contested",
            "Addresses that a node which enrols claims and another one has, by what says so: a link, a certificate, the grants file, a Node object",
            told.contested.clone(),
        );
        registry.register(
            "towline_server_enrolments_in_flight",
            "Enrolments that are being worked on",
            told.places.clone(),
        );
        registry.register(
            "towline_server_enrolments_waiting",
            "Connections for enrolment that wait for their turn",
            told.waiting.clone(),
        );
        registry.register(
            "towline_server_enrolment_seconds",
            "From the request of an agent to its answer, by proof; of a signing request, since this server first saw it",
            told.seconds.clone(),
        );
        told
    }

    /// Why nothing may be issued now, because it could not be recorded.
    pub fn obstacle(&self) -> Option<String> {
        match self.audit.blocks() {
            true => self.audit.state().err(),
            false => None,
        }
    }

    /// A node claims an address that another one has: one of the two is wrong, or was broken into.
    pub fn contested(&self, node: &Name, ip: IpAddr, holder: &str, by: Holder) {
        let word = by.as_str();
        self.contested.get_or_create(&Held { by: word }).inc();
        if let Some(suppressed) = self.lines.allow(("contested", word)) {
            let holder: String = detail(holder);
            tracing::error!(%node, %ip, holder, by = word, suppressed, "a node claims an address of another one");
        }
    }

    /// Nobody can enrol, by a fault of ours.
    pub fn broken(&self, error: &TlsError) {
        if let Some(suppressed) = self.lines.allow(("broken", "")) {
            tracing::error!(suppressed, "no node can enrol: {error}");
        }
    }

    /// A connection ended before there was anything to answer.
    pub fn closed(&self, address: SocketAddr, reason: &'static str) {
        self.closed.get_or_create(&Closed { reason }).inc();
        if let Some(suppressed) = self.lines.allow(("", reason)) {
            tracing::info!(%address, reason, suppressed, "a connection for enrolment was closed");
        }
    }

    /// One enrolment was answered, after this time; or it waits, and has no answer yet.
    pub fn answered(&self, event: EnrolmentEvent, took: Option<Duration>) {
        let proof = event.proof;
        if let Some(took) = took {
            let seconds = self.seconds.get_or_create(&By { proof });
            seconds.observe(took.as_secs_f64());
        }
        let node = event.node.as_str();
        let address = event.address.map(tracing::field::display);
        let request = event.request.as_deref();
        match &event.outcome {
            Ok(issued) => {
                self.issued.get_or_create(&By { proof }).inc();
                tracing::info!(node, address, request, proof, serial = issued.serial, ips = ?issued.ips, "agent enrolled");
            }
            Err((refusal, text)) => {
                let reason = refusal.as_str();
                self.refused.get_or_create(&Why { proof, reason }).inc();
                if let Some(suppressed) = self.lines.allow((proof, reason)) {
                    let why = detail(text);
                    match refusal {
                        Refusal::Busy => {
                            tracing::info!(
                                node,
                                address,
                                request,
                                proof,
                                reason,
                                suppressed,
                                "enrolment refused: {why}"
                            );
                        }
                        _ => {
                            tracing::warn!(
                                node,
                                address,
                                request,
                                proof,
                                reason,
                                suppressed,
                                "enrolment refused: {why}"
                            );
                        }
                    }
                }
            }
        }
        self.audit.enrolment(event);
    }
}
