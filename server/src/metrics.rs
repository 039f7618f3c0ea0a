//! What the server counts. Names begin with `towline_server_`; labels come from closed sets, so
//! that no peer can make new time series.

use std::fmt;
use std::sync::Arc;
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
use towline_proto::konnectivity::misuse::Misuse;
use towline_proto::notes::Notes;
use towline_proto::reason::Reason;
use towline_proto::target::Class;

use crate::agents::Agents;
use crate::dial::Door;
use crate::konnectivity::Counted;
use crate::pick::Standing;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DialLabels {
    door: &'static str,
    class: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Direction {
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    carrier: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Decided {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DoorWhy {
    door: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CarrierWhy {
    carrier: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LinkLabels {
    carrier: &'static str,
    state: &'static str,
}

/// All numbers that are counted as things happen. Clones are the same numbers.
#[derive(Clone)]
pub struct Metrics {
    counted: Arc<Counted>,
    dials: Family<DialLabels, Counter>,
    dial_seconds: Histogram,
    retries: Counter,
    front_ends_refused: Family<DoorWhy, Counter>,
    links_greeted: Family<Kind, Counter>,
    links_ended: Family<CarrierWhy, Counter>,
    links_refused: Family<CarrierWhy, Counter>,
    tls_handshakes_failed: Family<Why, Counter>,
    tls_handshakes_in_flight: Gauge,
    tls_handshakes_waited: Counter,
    replacements: Counter,
    replacement_alarms: Counter,
    overlaps: Counter,
    probes: Family<Outcome, Counter>,
    legacy_streams: Gauge,
    legacy_refused: Family<Why, Counter>,
    legacy_strays: Family<Why, Counter>,
    front_end_strays: Family<Why, Counter>,
    legacy_held_back: Counter,
    policy_decisions: Family<Decided, Counter>,
    policy_dials_ended: Family<Why, Counter>,
    policy_rules: Gauge,
    policy_stale: Gauge,
}

/// Upper bounds of the dial histogram, seconds: from a dial on one host to the longest deadline.
const DIAL_SECONDS: [f64; 12] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0,
];

impl Default for Metrics {
    fn default() -> Self {
        Self {
            counted: Arc::new(Counted::new()),
            dials: Family::default(),
            dial_seconds: Histogram::new(DIAL_SECONDS),
            retries: Counter::default(),
            front_ends_refused: Family::default(),
            links_greeted: Family::default(),
            links_ended: Family::default(),
            links_refused: Family::default(),
            tls_handshakes_failed: Family::default(),
            tls_handshakes_in_flight: Gauge::default(),
            tls_handshakes_waited: Counter::default(),
            replacements: Counter::default(),
            replacement_alarms: Counter::default(),
            overlaps: Counter::default(),
            probes: Family::default(),
            legacy_streams: Gauge::default(),
            legacy_refused: Family::default(),
            legacy_strays: Family::default(),
            front_end_strays: Family::default(),
            legacy_held_back: Counter::default(),
            policy_decisions: Family::default(),
            policy_dials_ended: Family::default(),
            policy_rules: Gauge::default(),
            policy_stale: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Adds them to what a scrape shows.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "towline_server_dials",
            "Dials that ended or were refused, by door, class and reason",
            self.dials.clone(),
        );
        registry.register(
            "towline_server_dial_seconds",
            "From the door's request to the agent's yes",
            self.dial_seconds.clone(),
        );
        registry.register(
            "towline_server_dial_retries",
            "Dials that were tried on a second link because they never reached the first",
            self.retries.clone(),
        );
        registry.register(
            "towline_server_front_ends_refused",
            "Door connections that were refused before a dial, by door and reason",
            self.front_ends_refused.clone(),
        );
        registry.register(
            "towline_server_links_greeted",
            "Links that were made, by carrier",
            self.links_greeted.clone(),
        );
        registry.register(
            "towline_server_links_ended",
            "Links that ended, by carrier and reason",
            self.links_ended.clone(),
        );
        registry.register(
            "towline_server_links_refused",
            "Verified agents that were not greeted, by carrier and reason",
            self.links_refused.clone(),
        );
        registry.register(
            "towline_server_tls_handshakes_failed",
            "Failed handshakes of links over TLS and of the TCP door, by reason",
            self.tls_handshakes_failed.clone(),
        );
        registry.register(
            "towline_server_tls_handshakes_in_flight",
            "TLS handshakes of links that are going on",
            self.tls_handshakes_in_flight.clone(),
        );
        registry.register(
            "towline_server_tls_handshakes_waited",
            "TLS handshakes of links that waited because their address had its share of them",
            self.tls_handshakes_waited.clone(),
        );
        registry.register(
            "towline_server_agent_replacements",
            "Times that a newer instance of an agent took over from a linked one",
            self.replacements.clone(),
        );
        registry.register(
            "towline_server_agent_replacement_alarms",
            "Replacements beyond what restarts explain: one key on two machines, or a crash loop",
            self.replacement_alarms.clone(),
        );
        registry.register(
            "towline_server_address_overlaps",
            "Agents refused because another linked agent holds one of their addresses",
            self.overlaps.clone(),
        );
        registry.register(
            "towline_server_probes",
            "Data-path probes of links, by result",
            self.probes.clone(),
        );
        registry.register(
            "towline_server_legacy_streams",
            "Streams of legacy agents (compatibility profile), which are not verified",
            self.legacy_streams.clone(),
        );
        registry.register(
            "towline_server_legacy_refused",
            "Calls of legacy agents that were refused, by reason",
            self.legacy_refused.clone(),
        );
        registry.register(
            "towline_server_legacy_stray_packets",
            "Packets of legacy agents that fit nothing they may speak of, by reason",
            self.legacy_strays.clone(),
        );
        registry.register(
            "towline_server_front_end_stray_packets",
            "Packets of gRPC front ends that fit nothing they may say at that moment, by reason",
            self.front_end_strays.clone(),
        );
        registry.register(
            "towline_server_legacy_held_back",
            "Times that a legacy agent was held back for a slow front end of one of its dials",
            self.legacy_held_back.clone(),
        );
        registry.register(
            "towline_server_policy_decisions",
            "Dials by what the policy said: allow, deny (a rule), default (no rule), built-in",
            self.policy_decisions.clone(),
        );
        registry.register(
            "towline_server_policy_dials_ended",
            "Live dials ended because a new policy or new grants do not allow them, by reason",
            self.policy_dials_ended.clone(),
        );
        registry.register(
            "towline_server_policy_rules",
            "Rules of the policy file in force, 0 without a file",
            self.policy_rules.clone(),
        );
        registry.register(
            "towline_server_policy_stale",
            "1 while the policy file cannot be used and an older one is in force",
            self.policy_stale.clone(),
        );
    }

    /// The same things as Konnectivity counts them.
    pub fn counted(&self) -> &Arc<Counted> {
        &self.counted
    }

    pub(crate) fn dial_ended(&self, door: Door, class: Option<Class>, reason: Reason) {
        let labels = DialLabels {
            door: door.as_str(),
            class: class.map_or("none", Class::as_str),
            reason: reason.as_str(),
        };
        self.dials.get_or_create(&labels).inc();
    }

    pub(crate) fn dial_opened(&self, after: Duration) {
        self.dial_seconds.observe(after.as_secs_f64());
    }

    pub(crate) fn retry(&self) {
        self.retries.inc();
    }

    pub(crate) fn front_end_refused(&self, door: Door, reason: &'static str) {
        let labels = DoorWhy {
            door: door.as_str(),
            reason,
        };
        self.front_ends_refused.get_or_create(&labels).inc();
    }

    pub(crate) fn link_greeted(&self, carrier: CarrierKind) {
        let labels = Kind {
            carrier: carrier.as_str(),
        };
        self.links_greeted.get_or_create(&labels).inc();
    }

    pub(crate) fn link_ended(&self, carrier: CarrierKind, reason: Reason) {
        let labels = CarrierWhy {
            carrier: carrier.as_str(),
            reason: reason.as_str(),
        };
        self.links_ended.get_or_create(&labels).inc();
    }

    pub(crate) fn link_refused(&self, carrier: CarrierKind, reason: Reason) {
        let labels = CarrierWhy {
            carrier: carrier.as_str(),
            reason: reason.as_str(),
        };
        self.links_refused.get_or_create(&labels).inc();
    }

    pub(crate) fn tls_handshake_failed(&self, reason: &'static str) {
        self.tls_handshakes_failed
            .get_or_create(&Why { reason })
            .inc();
    }

    pub(crate) fn tls_handshake_waits(&self) {
        self.tls_handshakes_waited.inc();
    }

    /// Counts a handshake as going on until the result is dropped.
    pub(crate) fn tls_handshake(&self) -> InFlight {
        self.tls_handshakes_in_flight.inc();
        InFlight(self.tls_handshakes_in_flight.clone())
    }

    pub(crate) fn replacement(&self) {
        self.replacements.inc();
    }

    pub(crate) fn replacement_alarm(&self) {
        self.replacement_alarms.inc();
    }

    pub(crate) fn overlap(&self) {
        self.overlaps.inc();
    }

    /// Counts a stream until the result is dropped.
    pub(crate) fn legacy_stream(&self) -> InFlight {
        self.legacy_streams.inc();
        InFlight(self.legacy_streams.clone())
    }

    pub(crate) fn legacy_refused(&self, reason: &'static str) {
        self.legacy_refused.get_or_create(&Why { reason }).inc();
    }

    pub(crate) fn legacy_stray(&self, reason: &'static str) {
        self.legacy_strays.get_or_create(&Why { reason }).inc();
    }

    /// For a stream of a front end, which is too small for all of this.
    pub(crate) fn front_end_strays(&self) -> Strays {
        Strays(self.front_end_strays.clone())
    }

    pub(crate) fn legacy_held_back(&self) {
        self.legacy_held_back.inc();
    }

    pub(crate) fn decided(&self, outcome: &'static str) {
        self.policy_decisions
            .get_or_create(&Decided { outcome })
            .inc();
    }

    pub(crate) fn ended_by_policy(&self, reason: Reason) {
        let reason = reason.as_str();
        let ended = &self.policy_dials_ended;
        ended.get_or_create(&Why { reason }).inc();
    }

    pub(crate) fn policy_rules(&self, count: usize) {
        self.policy_rules.set(number(count));
    }

    pub(crate) fn policy_stale(&self, stale: bool) {
        self.policy_stale.set(stale.into());
    }

    pub(crate) fn probed(&self, result: &'static str) {
        self.probes.get_or_create(&Outcome { result }).inc();
    }
}

/// Counts what a gRPC front end should not have sent.
pub struct Strays(Family<Why, Counter>);

impl Strays {
    pub(crate) fn saw(&self, what: Misuse) {
        let reason = what.as_str();
        self.0.get_or_create(&Why { reason }).inc();
    }
}

/// See [`Metrics::tls_handshake`].
pub(crate) struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Numbers that are looked up when somebody asks.
pub struct Live {
    agents: Arc<Agents>,
    dials: LiveDials,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").finish_non_exhaustive()
    }
}

impl Live {
    /// Adds links, agents and live dials to what a scrape shows.
    pub fn register(registry: &mut Registry, agents: Arc<Agents>, dials: LiveDials) {
        registry.register_collector(Box::new(Self { agents, dials }));
    }
}

/// The word for a link's standing in metrics and status.
pub const fn standing_word(standing: Standing) -> &'static str {
    match standing {
        Standing::Ready => "ready",
        Standing::Unhealthy => "unhealthy",
        Standing::Draining => "draining",
        // Told to drain by us, or just closed.
        Standing::Gone => "ending",
    }
}

const STATES: [Standing; 4] = [
    Standing::Ready,
    Standing::Unhealthy,
    Standing::Draining,
    Standing::Gone,
];

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: i64,
) -> Result<(), fmt::Error> {
    let gauge = ConstGauge::new(value);
    let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
    gauge.encode(metric)
}

impl Collector for Live {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let nodes = self.agents.nodes();
        let links = self.agents.links();
        let mut metric = encoder.encode_descriptor(
            "towline_server_links",
            "Links now, by carrier and state",
            None,
            MetricType::Gauge,
        )?;
        for carrier in [CarrierKind::Quic, CarrierKind::Tls] {
            for state in STATES {
                let count = links
                    .iter()
                    .filter(|l| l.link.carrier().kind() == carrier && l.standing() == state)
                    .count();
                let labels = LinkLabels {
                    carrier: carrier.as_str(),
                    state: standing_word(state),
                };
                ConstGauge::new(number(count)).encode(metric.encode_family(&labels)?)?;
            }
        }
        let linked = nodes.iter().filter(|node| node.ended().is_none()).count();
        gauge(
            &mut encoder,
            "towline_server_agents_linked",
            "Agents with a link",
            number(linked),
        )?;
        gauge(
            &mut encoder,
            "towline_server_agents_gone",
            "Agents that had a link and have none now",
            number(nodes.len() - linked),
        )?;
        let mut metric = encoder.encode_descriptor(
            "towline_server_agents_reporting",
            "Linked agents whose heartbeats say so, by condition",
            None,
            MetricType::Gauge,
        )?;
        for (note, condition) in Notes::WORDS {
            let count = nodes.iter().filter(|node| node.notes().has(note)).count();
            let labels = [("condition", condition)];
            ConstGauge::new(number(count)).encode(metric.encode_family(&labels)?)?;
        }
        gauge(
            &mut encoder,
            "towline_server_dials_live",
            "Dials open now",
            number(self.dials.len()),
        )?;
        let (to_target, from_target) = self.dials.bytes();
        let mut metric = encoder.encode_descriptor(
            "towline_server_bytes",
            "Bytes of dials, those that go on included, by direction",
            None,
            MetricType::Counter,
        )?;
        for (direction, bytes) in [("to-target", to_target), ("from-target", from_target)] {
            let labels = Direction { direction };
            ConstCounter::new(bytes).encode(metric.encode_family(&labels)?)?;
        }
        gauge(
            &mut encoder,
            "towline_server_dials_stalled",
            "Dials whose front end takes no bytes",
            number(self.dials.stalled()),
        )?;
        gauge(
            &mut encoder,
            "towline_server_dials_ended_for_memory",
            "Dials ended since start because stalled ones used the memory budget up",
            i64::try_from(self.dials.ended_for_memory()).unwrap_or(i64::MAX),
        )
    }
}
