//! What the gateway counts. Labels come from closed sets.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use towline_proto::kubelet::Verb;

use super::event::Outcome;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: &'static str,
    outcome: &'static str,
    detail: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SideWhy {
    side: &'static str,
    reason: &'static str,
}

/// All numbers of the gateway. Clones are the same numbers.
#[derive(Clone)]
pub(super) struct GatewayMetrics {
    requests: Family<RequestLabels, Counter>,
    refused: Family<SideWhy, Counter>,
    handshakes: Histogram,
    minted: Counter,
    tired: Counter,
    pub(super) open: Gauge,
}

/// Upper bounds of the histogram, seconds.
const SECONDS: [f64; 9] = [0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 1.0, 5.0];

impl Default for GatewayMetrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            refused: Family::default(),
            handshakes: Histogram::new(SECONDS),
            minted: Counter::default(),
            tired: Counter::default(),
            open: Gauge::default(),
        }
    }
}

impl GatewayMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "towline_server_gateway_requests",
            "Requests to kubelets through the gateway, by verb, outcome and detail",
            self.requests.clone(),
        );
        registry.register(
            "towline_server_gateway_handshakes_failed",
            "TLS handshakes of the gateway that failed, by side (front-end, kubelet) and reason",
            self.refused.clone(),
        );
        registry.register(
            "towline_server_gateway_handshake_seconds",
            "Both TLS handshakes of a gateway connection together",
            self.handshakes.clone(),
        );
        registry.register(
            "towline_server_gateway_certificates_minted",
            "Serving certificates that the gateway minted",
            self.minted.clone(),
        );
        registry.register(
            "towline_server_gateway_refused_too_often",
            "Gateway connections that ended because so many of their requests were refused",
            self.tired.clone(),
        );
        registry.register(
            "towline_server_gateway_connections",
            "Gateway connections that are open now",
            self.open.clone(),
        );
    }

    pub(super) fn request(&self, verb: Option<Verb>, outcome: Outcome) {
        let labels = RequestLabels {
            verb: verb.map_or("none", Verb::as_str),
            outcome: outcome.as_str(),
            detail: outcome.detail(),
        };
        self.requests.get_or_create(&labels).inc();
    }

    pub(super) fn refused(&self, side: &'static str, reason: &'static str) {
        self.refused.get_or_create(&SideWhy { side, reason }).inc();
    }

    pub(super) fn shaken(&self, after: Duration) {
        self.handshakes.observe(after.as_secs_f64());
    }

    pub(super) fn refused_too_often(&self) {
        self.tired.inc();
    }

    pub(super) fn minted(&self) {
        self.minted.inc();
    }
}
