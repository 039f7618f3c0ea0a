//! What the QUIC endpoints count.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use towline_proto::reason::Reason;

use super::socket::{DropCounter, UdpBuffers};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Direction {
    direction: &'static str,
}

/// Handshakes of one listener. Clones share their numbers.
#[derive(Clone, Debug)]
pub struct QuicMetrics {
    outcomes: Family<Outcome, Counter>,
    failures: Family<Why, Counter>,
    in_flight: Gauge,
    pub(super) verified: Counter,
    pub(super) failed: Counter,
    pub(super) timed_out: Counter,
    pub(super) retried: Counter,
    pub(super) refused: Counter,
    pub(super) crowded: Counter,
}

impl Default for QuicMetrics {
    fn default() -> Self {
        let outcomes = Family::<Outcome, Counter>::default();
        let counter = |outcome| outcomes.get_or_create(&Outcome { outcome }).clone();
        Self {
            verified: counter("verified"),
            failed: counter("failed"),
            timed_out: counter("timed-out"),
            retried: counter("retried"),
            refused: counter("refused"),
            crowded: counter("crowded"),
            outcomes,
            failures: Family::default(),
            in_flight: Gauge::default(),
        }
    }
}

impl QuicMetrics {
    /// Adds these numbers to what a scrape shows.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "towline_quic_handshakes",
            "QUIC handshakes by outcome; retried ones come again",
            self.outcomes.clone(),
        );
        registry.register(
            "towline_quic_handshake_failures",
            "Failed QUIC handshakes by reason",
            self.failures.clone(),
        );
        registry.register(
            "towline_quic_handshakes_in_flight",
            "QUIC handshakes that are going on",
            self.in_flight.clone(),
        );
    }

    /// Handshakes that ended in a link.
    pub fn verified(&self) -> u64 {
        self.verified.get()
    }

    /// Handshakes that one end gave up, or whose peer is not one that we take.
    pub fn failed(&self) -> u64 {
        self.failed.get()
    }

    /// Failed handshakes with this reason.
    pub fn failed_with(&self, reason: Reason) -> u64 {
        self.failures
            .get_or_create(&Why {
                reason: reason.as_str(),
            })
            .get()
    }

    /// Handshakes that took too long.
    pub fn timed_out(&self) -> u64 {
        self.timed_out.get()
    }

    /// Connection attempts that had to prove their address first.
    pub fn retried(&self) -> u64 {
        self.retried.get()
    }

    /// Connection attempts that were refused for want of room or because of a drain.
    pub fn refused(&self) -> u64 {
        self.refused.get()
    }

    /// Handshakes refused because their address had its share of them.
    pub fn crowded(&self) -> u64 {
        self.crowded.get()
    }

    /// Handshakes that are going on.
    pub fn in_flight(&self) -> i64 {
        self.in_flight.get()
    }

    pub(super) fn fail(&self, reason: Reason) {
        self.failed.inc();
        self.failures
            .get_or_create(&Why {
                reason: reason.as_str(),
            })
            .inc();
    }

    /// Counts one handshake as going on until the result is dropped.
    pub(super) fn begin(&self) -> InFlight {
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

/// Adds what is known about a UDP socket to what a scrape shows.
pub(super) fn register_socket(
    registry: &mut Registry,
    buffers: UdpBuffers,
    drops: Option<DropCounter>,
) {
    let granted = Family::<Direction, Gauge>::default();
    for (direction, bytes) in [
        ("receive", buffers.granted_recv),
        ("send", buffers.granted_send),
    ] {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        granted.get_or_create(&Direction { direction }).set(bytes);
    }
    registry.register(
        "towline_udp_buffer_bytes",
        "UDP socket buffer that the kernel granted",
        granted,
    );
    if let Some(drops) = drops {
        registry.register_collector(Box::new(UdpDrops(drops)));
    }
}

#[derive(Debug)]
struct UdpDrops(DropCounter);

impl Collector for UdpDrops {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(drops) = self.0.read() else {
            return Ok(());
        };
        let counter = ConstCounter::new(drops);
        let metric = encoder.encode_descriptor(
            "towline_udp_dropped_datagrams",
            "Datagrams that the kernel dropped because the UDP receive buffer was full",
            None,
            counter.metric_type(),
        )?;
        counter.encode(metric)
    }
}
