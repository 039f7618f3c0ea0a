//! The targets that the project set itself, as a table, and whether a run of the bench met them.

use serde::Serialize;

use super::peers::BASE;
use super::results::Results;

/// What a metric is held against.
#[derive(Clone, Copy, Debug)]
enum Limit {
    /// At least this much of this unit.
    Floor(f64, &'static str),
    /// At least this part of the plain relay's median.
    FloorOfBase(f64),
    /// At most this much of this unit.
    Ceiling(f64, &'static str),
    /// At most this many times the plain relay's median.
    CeilingOfBase(f64),
}

use Limit::{Ceiling, CeilingOfBase, Floor, FloorOfBase};

const QUIC: &str = "towline-quic";
const JUMBO: &str = "towline-quic-jumbo";
const TLS: &str = "towline-tls";

/// Metric, peer, limit.
const TARGETS: &[(&str, &str, Limit)] = &[
    ("bulk.down.1", TLS, FloorOfBase(0.55)),
    ("bulk.up.1", TLS, FloorOfBase(0.55)),
    ("bulk.down.1", QUIC, FloorOfBase(0.30)),
    ("bulk.up.1", QUIC, FloorOfBase(0.30)),
    ("bulk.down.1", JUMBO, FloorOfBase(0.52)),
    ("bulk.up.1", JUMBO, FloorOfBase(0.52)),
    ("bulk.down.1.cpu.relays", TLS, Ceiling(1.1, "s/GiB")),
    ("bulk.up.1.cpu.relays", TLS, Ceiling(1.1, "s/GiB")),
    ("bulk.down.1.cpu.relays", QUIC, Ceiling(1.9, "s/GiB")),
    ("bulk.up.1.cpu.relays", QUIC, Ceiling(1.9, "s/GiB")),
    ("dial.p50", TLS, CeilingOfBase(1.5)),
    ("dial.p50", QUIC, CeilingOfBase(1.5)),
    ("ask.p50", TLS, CeilingOfBase(1.5)),
    ("ask.p50", QUIC, CeilingOfBase(1.5)),
    ("stalled.1.ask.p99-ratio", TLS, Ceiling(2.0, "x")),
    ("stalled.1.ask.p99-ratio", QUIC, Ceiling(2.0, "x")),
    ("stalled.8.ask.p99-ratio", TLS, Ceiling(2.0, "x")),
    ("stalled.8.ask.p99-ratio", QUIC, Ceiling(2.0, "x")),
    ("stalled.64.ask.p99-ratio", TLS, Ceiling(2.0, "x")),
    ("stalled.64.ask.p99-ratio", QUIC, Ceiling(2.0, "x")),
    ("stalled.64.dial.p99-ratio", TLS, Ceiling(2.0, "x")),
    ("stalled.64.dial.p99-ratio", QUIC, Ceiling(2.0, "x")),
    ("stalled.64.errors", TLS, Ceiling(0.0, "")),
    ("stalled.64.errors", QUIC, Ceiling(0.0, "")),
    ("long.20ms.0.5%.4MiB.bulk", QUIC, Floor(60.0, "MB/s")),
    ("long.20ms.0.5%.4MiB.p50", QUIC, Ceiling(25.0, "ms")),
    ("long.20ms.0.5%.4MiB.p99", QUIC, Ceiling(50.0, "ms")),
    ("attested-dial.excess", QUIC, Ceiling(0.0, "us")),
    ("attested-dial.excess", TLS, Ceiling(0.0, "us")),
    ("attest-all.start", QUIC, Ceiling(15.0, "s")),
    ("attest-all.start", TLS, Ceiling(15.0, "s")),
    ("attest-all.again", QUIC, Ceiling(15.0, "s")),
    ("attest-all.again", TLS, Ceiling(15.0, "s")),
    ("attest-all.at-once", QUIC, Ceiling(64.0, "")),
    ("attest-all.at-once", TLS, Ceiling(64.0, "")),
    ("memory.dials.idle.front", QUIC, Ceiling(12.0, "MiB")),
    ("memory.dials.idle.back", QUIC, Ceiling(12.0, "MiB")),
    ("memory.dials.idle.front", TLS, Ceiling(12.0, "MiB")),
    ("memory.dials.idle.back", TLS, Ceiling(12.0, "MiB")),
    ("memory.dials.each.front", QUIC, Ceiling(12.0, "KiB")),
    ("memory.dials.each.back", QUIC, Ceiling(12.0, "KiB")),
    ("memory.dials.each.front", TLS, Ceiling(12.0, "KiB")),
    ("memory.dials.each.back", TLS, Ceiling(12.0, "KiB")),
    ("memory.links.each.front", QUIC, Ceiling(64.0, "KiB")),
    ("memory.links.each.front", TLS, Ceiling(64.0, "KiB")),
    ("policy.mixed.p50", QUIC, Ceiling(20.0, "us")),
    ("policy.mixed.p99", QUIC, Ceiling(20.0, "us")),
    ("policy.classes.p50", QUIC, Ceiling(20.0, "us")),
    ("policy.patterns.p50", QUIC, Ceiling(20.0, "us")),
    ("gateway.bulk.down.ratio", QUIC, Floor(0.6, "x")),
    ("gateway.bulk.down.ratio", TLS, Floor(0.6, "x")),
    ("gateway.bulk.up.ratio", QUIC, Floor(0.6, "x")),
    ("gateway.bulk.up.ratio", TLS, Floor(0.6, "x")),
    ("gateway.dial.adds", QUIC, Ceiling(1000.0, "us")),
    ("gateway.dial.adds", TLS, Ceiling(1000.0, "us")),
    ("gateway.ask.adds", QUIC, Ceiling(1000.0, "us")),
    ("gateway.ask.adds", TLS, Ceiling(1000.0, "us")),
    ("reconnect.sigterm", QUIC, Ceiling(1000.0, "ms")),
    ("reconnect.sigterm", TLS, Ceiling(1000.0, "ms")),
    ("reconnect.sigkill", QUIC, Ceiling(2000.0, "ms")),
    ("reconnect.sigkill", TLS, Ceiling(2000.0, "ms")),
];

/// How one target came out.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    pub metric: &'static str,
    pub peer: &'static str,
    /// What is asked, in words.
    pub target: String,
    /// What was measured, in the target's terms, if it was.
    pub measured: Option<f64>,
    pub met: Option<bool>,
}

/// All targets against these results.
#[must_use]
pub fn verdicts(results: &Results) -> Vec<Verdict> {
    TARGETS
        .iter()
        .map(|(metric, peer, limit)| verdict(results, metric, peer, *limit))
        .collect()
}

fn verdict(results: &Results, metric: &'static str, peer: &'static str, limit: Limit) -> Verdict {
    let median = results.spread(metric, peer).map(|spread| spread.median);
    let base = results.spread(metric, BASE).map(|spread| spread.median);
    let ratio = median.zip(base).map(|(median, base)| median / base);
    let (target, measured, met) = match limit {
        Floor(bound, unit) => (
            format!(">= {bound} {unit}"),
            median,
            median.map(|is| is >= bound),
        ),
        Ceiling(bound, unit) => (
            format!("<= {bound} {unit}"),
            median,
            median.map(|is| is <= bound),
        ),
        FloorOfBase(bound) => (
            format!(">= {bound} x {BASE}"),
            ratio,
            ratio.map(|is| is >= bound),
        ),
        CeilingOfBase(bound) => (
            format!("<= {bound} x {BASE}"),
            ratio,
            ratio.map(|is| is <= bound),
        ),
    };
    Verdict {
        metric,
        peer,
        target: target.trim_end().to_owned(),
        measured,
        met,
    }
}
