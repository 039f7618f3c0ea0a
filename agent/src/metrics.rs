//! What the agent counts. Names begin with `towline_agent_`; labels come from small closed sets.

use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use towline_link::carrier::CarrierKind;
use towline_link::live::LiveDials;
use towline_proto::reason::Reason;
use towline_proto::target::Class;

use crate::links::Links;
use crate::policy::Denial;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Dialled {
    class: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    class: &'static str,
    rule: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Direction {
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Switch {
    from: &'static str,
    to: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// Numbers of one agent. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    dials: Family<Dialled, Counter>,
    denied: Family<Refused, Counter>,
    policy_dials_ended: Counter,
    policy_rules: Gauge,
    policy_stale: Gauge,
    connect: Histogram,
    attempts_failed: Family<Why, Counter>,
    reconnects: Family<Why, Counter>,
    linked: Family<Switch, Counter>,
    carrier_probes: Family<Outcome, Counter>,
    probes: Counter,
    bad_requests: Counter,
    legacy_attempts: Family<Outcome, Counter>,
    legacy_streams: Gauge,
    legacy_strays: Family<Why, Counter>,
}

/// See [`Metrics::legacy_stream`].
pub struct LegacyStream(Gauge);

impl Drop for LegacyStream {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// From a connection inside the node to one that nearly timed out, seconds.
const CONNECT_SECONDS: [f64; 11] = [
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25, 1.0, 2.5, 5.0,
];

impl Default for Metrics {
    fn default() -> Self {
        Self {
            dials: Family::default(),
            denied: Family::default(),
            policy_dials_ended: Counter::default(),
            policy_rules: Gauge::default(),
            policy_stale: Gauge::default(),
            connect: Histogram::new(CONNECT_SECONDS),
            attempts_failed: Family::default(),
            reconnects: Family::default(),
            linked: Family::default(),
            carrier_probes: Family::default(),
            probes: Counter::default(),
            bad_requests: Counter::default(),
            legacy_attempts: Family::default(),
            legacy_streams: Gauge::default(),
            legacy_strays: Family::default(),
        }
    }
}

impl Metrics {
    /// Adds these numbers, and those of links and live dials, to what a scrape shows.
    pub fn register(&self, registry: &mut Registry, links: Links, live: LiveDials) {
        let Metrics {
            dials,
            denied,
            policy_dials_ended,
            policy_rules,
            policy_stale,
            connect,
            attempts_failed,
            reconnects,
            linked,
            carrier_probes,
            probes,
            bad_requests,
            legacy_attempts,
            legacy_streams,
            legacy_strays,
        } = self;
        registry.register(
            "towline_agent_dials",
            "Dials that ended, by class and reason",
            dials.clone(),
        );
        registry.register(
            "towline_agent_dials_denied",
            "Dials that the policy of this agent refused, by the class that the server said and by rule",
            denied.clone(),
        );
        registry.register(
            "towline_agent_policy_dials_ended",
            "Live dials ended because a new policy does not allow them",
            policy_dials_ended.clone(),
        );
        registry.register(
            "towline_agent_policy_rules",
            "Rules of the policy file in force, 0 without a file",
            policy_rules.clone(),
        );
        registry.register(
            "towline_agent_policy_stale",
            "1 while the policy file cannot be used and an older one is in force",
            policy_stale.clone(),
        );
        registry.register(
            "towline_agent_connect_seconds",
            "From a dial request to a connected target, look-up included",
            connect.clone(),
        );
        registry.register(
            "towline_agent_attempts_failed",
            "Attempts to make a link that failed, by reason",
            attempts_failed.clone(),
        );
        registry.register(
            "towline_agent_reconnects",
            "Links that ended or were drained by their server, by reason",
            reconnects.clone(),
        );
        registry.register(
            "towline_agent_links_made",
            "Links made, by the carrier of the link that it took over from (none: there was none) and its own",
            linked.clone(),
        );
        registry.register(
            "towline_agent_carrier_probes",
            "Attempts to move a link from tls back to quic, by outcome",
            carrier_probes.clone(),
        );
        registry.register(
            "towline_agent_probes_answered",
            "Data-path probes of servers answered",
            probes.clone(),
        );
        registry.register(
            "towline_agent_bad_requests",
            "Dial streams of servers without a readable request",
            bad_requests.clone(),
        );
        registry.register(
            "towline_agent_legacy_attempts",
            "Attempts to get a stream to a legacy server, by outcome: connected, duplicate, failed, or towline when it was none",
            legacy_attempts.clone(),
        );
        registry.register(
            "towline_agent_legacy_streams",
            "Streams to legacy servers, which are known by name alone",
            legacy_streams.clone(),
        );
        registry.register(
            "towline_agent_legacy_stray_packets",
            "Packets of legacy servers that fit nothing they may speak of, by reason",
            legacy_strays.clone(),
        );
        registry.register_collector(Box::new(Now { links, live }));
    }

    /// A packet of a legacy server fits nothing.
    pub fn legacy_stray(&self, reason: &'static str) {
        self.legacy_strays.get_or_create(&Why { reason }).inc();
    }

    /// An attempt of the legacy mode ended.
    pub fn legacy_attempt(&self, outcome: &'static str) {
        self.legacy_attempts
            .get_or_create(&Outcome { outcome })
            .inc();
    }

    /// A stream to a legacy server; counted as long as the value lives.
    pub fn legacy_stream(&self) -> LegacyStream {
        self.legacy_streams.inc();
        LegacyStream(self.legacy_streams.clone())
    }

    /// A dial ended, or was refused.
    pub fn dial_ended(&self, class: Class, reason: Reason) {
        let labels = Dialled {
            class: class.as_str(),
            reason: reason.as_str(),
        };
        self.dials.get_or_create(&labels).inc();
    }

    /// The policy said no.
    pub fn denied(&self, class: Class, denial: &Denial) {
        let rule = match denial {
            Denial::NoAddress => "no-address",
            Denial::Forbidden(..) => "forbidden-address",
            Denial::Tunnel(_) => "tunnel-endpoint",
            Denial::Mismatch(..) => "class-mismatch",
            Denial::Rule(..) => "denied",
            Denial::Unnamed(..) => "not-allowed",
        };
        self.denied
            .get_or_create(&Refused {
                class: class.as_str(),
                rule,
            })
            .inc();
    }

    /// Live dials were ended by a new policy.
    pub fn ended_by_policy(&self, count: usize) {
        self.policy_dials_ended.inc_by(count as u64);
    }

    /// A policy file is in force.
    pub fn policy_rules(&self, count: usize) {
        self.policy_rules
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Whether the policy file cannot be used and an older one is in force.
    pub fn policy_stale(&self, stale: bool) {
        self.policy_stale.set(stale.into());
    }

    /// A target was connected.
    pub fn connected(&self, after: Duration) {
        self.connect.observe(after.as_secs_f64());
    }

    /// An attempt to make a link failed.
    pub fn attempt_failed(&self, reason: Reason) {
        self.attempts_failed
            .get_or_create(&Why {
                reason: reason.as_str(),
            })
            .inc();
    }

    /// A link is to be replaced because it ended or its server drains.
    pub fn reconnect(&self, reason: Reason) {
        self.reconnects
            .get_or_create(&Why {
                reason: reason.as_str(),
            })
            .inc();
    }

    /// A link was made.
    pub fn linked(&self, kind: CarrierKind, before: Option<CarrierKind>) {
        let from = before.map_or("none", CarrierKind::as_str);
        self.linked
            .get_or_create(&Switch {
                from,
                to: kind.as_str(),
            })
            .inc();
    }

    /// An attempt to move back to quic ended.
    pub fn carrier_probe(&self, worked: bool) {
        let outcome = if worked { "moved" } else { "failed" };
        self.carrier_probes
            .get_or_create(&Outcome { outcome })
            .inc();
    }

    /// A data-path probe was answered.
    pub fn probe_answered(&self) {
        self.probes.inc();
    }

    /// A stream without a readable request.
    pub fn bad_request(&self) {
        self.bad_requests.inc();
    }
}

/// What is looked up at the moment of a scrape.
#[derive(Debug)]
struct Now {
    links: Links,
    live: LiveDials,
}

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut links = encoder.encode_descriptor(
            "towline_agent_links",
            "Live links by server, carrier and state",
            None,
            MetricType::Gauge,
        )?;
        for ((server, carrier, state), count) in self.links.counts() {
            let labels = [
                ("server", server.as_str()),
                ("carrier", carrier),
                ("state", state),
            ];
            ConstGauge::new(count).encode(links.encode_family(&labels)?)?;
        }
        let down = self.links.servers() - self.links.ready();
        let live = self.live.len();
        let stalled = self.live.stalled();
        for (name, help, value) in [
            (
                "towline_agent_servers_without_link",
                "Configured servers without a link that takes dials",
                down,
            ),
            ("towline_agent_live_dials", "Dials that are open", live),
            (
                "towline_agent_stalled_dials",
                "Dials whose target takes no bytes at the moment",
                stalled,
            ),
        ] {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let encoder = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(encoder)?;
        }
        let (out, into) = self.live.bytes();
        let mut bytes = encoder.encode_descriptor(
            "towline_agent_dial_bytes",
            "Bytes of dials, those that go on included; `in` is towards the target",
            None,
            MetricType::Counter,
        )?;
        for (direction, count) in [("in", into), ("out", out)] {
            let labels = Direction { direction };
            ConstCounter::new(count).encode(bytes.encode_family(&labels)?)?;
        }
        let ended = ConstCounter::new(self.live.ended_for_memory());
        let encoder = encoder.encode_descriptor(
            "towline_agent_dials_ended_for_memory",
            "Stalled dials ended because the memory budget was used up",
            None,
            ended.metric_type(),
        )?;
        ended.encode(encoder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_shows_what_was_counted_and_what_is() {
        let metrics = Metrics::default();
        let mut registry = Registry::default();
        let links = Links::new(&["server:8091".parse().unwrap()]);
        let live = LiveDials::new(0);
        metrics.register(&mut registry, links, live.clone());
        metrics.dial_ended(Class::Kubelet, Reason::Done);
        // Also while the dial goes on.
        let dial = live.register();
        dial.count_from_peer(20);
        metrics.carrier_probe(true);
        metrics.linked(CarrierKind::Quic, Some(CarrierKind::Tls));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "towline_agent_dials_total{class=\"kubelet\",reason=\"done\"} 1",
            "towline_agent_dial_bytes_total{direction=\"in\"} 20",
            "towline_agent_carrier_probes_total{outcome=\"moved\"} 1",
            "towline_agent_links_made_total{from=\"tls\",to=\"quic\"} 1",
            "towline_agent_servers_without_link 1",
            "towline_agent_live_dials 1",
        ] {
            assert!(text.contains(line), "{line} not in:\n{text}");
        }
    }
}
