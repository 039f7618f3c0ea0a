//! What is counted about kubelets. Labels come from closed sets: no time series for each node;
//! which node it is, `towline-server kubelets` says.

use std::fmt;
use std::time::{Duration, SystemTime};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use towline_pki::kubelet::Cause;

use super::Mode;
use super::memory::VERIFIED;
use super::report::{Reporter, UNKNOWN, seconds};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByVerdict {
    verdict: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByMode {
    mode: &'static str,
}

/// Numbers that are counted as things happen. Clones are the same numbers.
#[derive(Clone)]
pub struct AttestMetrics {
    attestations: Family<ByVerdict, Counter>,
    seconds: Histogram,
    dials: Family<ByVerdict, Counter>,
    key_changes: Counter,
    in_flight: Gauge,
}

/// Upper bounds of the handshake histogram, seconds.
const SECONDS: [f64; 9] = [0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.25, 1.0, 5.0];

impl Default for AttestMetrics {
    fn default() -> Self {
        Self {
            attestations: Family::default(),
            seconds: Histogram::new(SECONDS),
            dials: Family::default(),
            key_changes: Counter::default(),
            in_flight: Gauge::default(),
        }
    }
}

impl AttestMetrics {
    /// Adds them to what a scrape shows.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "towline_server_kubelet_attestations",
            "Handshakes that verified a kubelet or failed to, by verdict: verified or the cause",
            self.attestations.clone(),
        );
        registry.register(
            "towline_server_kubelet_attestation_seconds",
            "How long these handshakes took",
            self.seconds.clone(),
        );
        registry.register(
            "towline_server_kubelet_dials",
            "Dials to kubelets by what was known of the kubelet: verified, a cause, pending (mode observe, not known yet), timeout, off",
            self.dials.clone(),
        );
        registry.register(
            "towline_server_kubelet_key_changes",
            "Times that a kubelet showed another key than the one that was last believed",
            self.key_changes.clone(),
        );
        registry.register(
            "towline_server_kubelet_handshakes_in_flight",
            "Handshakes with kubelets that are going on",
            self.in_flight.clone(),
        );
    }

    pub(super) fn attested(&self, verdict: &'static str, took: Duration) {
        self.attestations
            .get_or_create(&ByVerdict { verdict })
            .inc();
        self.seconds.observe(took.as_secs_f64());
    }

    pub(super) fn dialled(&self, verdict: &'static str) {
        self.dials.get_or_create(&ByVerdict { verdict }).inc();
    }

    pub(super) fn key_changed(&self) {
        self.key_changes.inc();
    }

    /// Counts a handshake as going on until the result is dropped.
    pub(super) fn handshake(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }
}

pub(super) struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Numbers that are looked up when somebody asks.
pub(super) struct Now {
    pub(super) reporter: Reporter,
}

impl fmt::Debug for Now {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Now")
    }
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let tally = self.reporter.tally();
        let in_force = self.reporter.attestor.mode();
        let mut metric = encoder.encode_descriptor(
            "towline_server_kubelet_verification",
            "1 for the mode of --kubelet-verification that is in force",
            None,
            MetricType::Gauge,
        )?;
        for mode in [Mode::Enforce, Mode::Observe, Mode::Off] {
            let labels = ByMode {
                mode: mode.as_str(),
            };
            let value = ConstGauge::new(i64::from(mode == in_force));
            value.encode(metric.encode_family(&labels)?)?;
        }
        let mut metric = encoder.encode_descriptor(
            "towline_server_kubelets",
            "Kubelets of linked nodes now, by verdict: verified, unknown (not looked at yet) or the cause",
            None,
            MetricType::Gauge,
        )?;
        for verdict in [VERIFIED, UNKNOWN].into_iter().chain(Cause::WORDS) {
            let count = tally.words.get(verdict).copied().unwrap_or(0);
            let labels = ByVerdict { verdict };
            ConstGauge::new(number(count)).encode(metric.encode_family(&labels)?)?;
        }
        let refused = ConstGauge::new(number(tally.summary.would_be_refused));
        let metric = encoder.encode_descriptor(
            "towline_server_kubelets_refused_by_enforce",
            "Kubelets of linked nodes that mode enforce refuses, or would refuse",
            None,
            refused.metric_type(),
        )?;
        refused.encode(metric)?;
        let Some(end) = tally.first_end else {
            return Ok(());
        };
        let left = seconds(end).saturating_sub(seconds(SystemTime::now()));
        let left = ConstGauge::new(left);
        let metric = encoder.encode_descriptor(
            "towline_server_kubelet_certificate_expiry_seconds",
            "Seconds until the first serving certificate of a linked node's kubelet ends; negative when it has ended",
            None,
            left.metric_type(),
        )?;
        left.encode(metric)
    }
}
