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
    /// At least this many times the best of these peers.
    FloorOf(f64, Rivals),
    /// At most this part of the best of these peers.
    CeilingOf(f64, Rivals),
}

use Limit::{Ceiling, CeilingOf, CeilingOfBase, Floor, FloorOf, FloorOfBase};

/// Peers of which the best counts, and what they are called together.
#[derive(Clone, Copy, Debug)]
struct Rivals(&'static str, &'static [&'static str]);

/// Konnectivity's CONNECT modes.
const CONNECT: Rivals = Rivals(
    "Konnectivity's CONNECT",
    &["konnectivity-connect", "konnectivity-connect-tls"],
);
/// Konnectivity's GRPC mode.
const GRPC: Rivals = Rivals("Konnectivity's GRPC", &["konnectivity-grpc"]);

const QUIC: &str = "towline-quic";
const JUMBO: &str = "towline-quic-jumbo";
const TLS: &str = "towline-tls";
const QUIC_GRPC: &str = "towline-quic-grpc";
const TLS_GRPC: &str = "towline-tls-grpc";

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
    ("enrolment", TLS, Floor(200.0, "1/s")),
    ("enrolment.seconds", TLS, Ceiling(60.0, "s")),
    ("enrolment.failed", TLS, Ceiling(0.0, "")),
    ("enrolment.peak.front", TLS, Ceiling(200.0, "MiB")),
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
    ("revocation.one", QUIC, Ceiling(5.0, "s")),
    ("revocation.one", TLS, Ceiling(5.0, "s")),
    ("revocation.all", QUIC, Ceiling(5.0, "s")),
    ("revocation.all", TLS, Ceiling(5.0, "s")),
    ("bulk.down.1", QUIC, FloorOf(2.5, CONNECT)),
    ("bulk.up.1", QUIC, FloorOf(1.5, CONNECT)),
    ("bulk.down.1", TLS, FloorOf(4.0, CONNECT)),
    ("bulk.up.1", TLS, FloorOf(2.5, CONNECT)),
    ("bulk.down.1", QUIC_GRPC, FloorOf(2.5, GRPC)),
    ("bulk.up.1", QUIC_GRPC, FloorOf(2.5, GRPC)),
    ("bulk.down.1", TLS_GRPC, FloorOf(2.5, GRPC)),
    ("bulk.up.1", TLS_GRPC, FloorOf(2.5, GRPC)),
    (
        "bulk.down.1.cpu.relays",
        QUIC,
        CeilingOf(1.0 / 2.5, CONNECT),
    ),
    ("bulk.down.1.cpu.relays", TLS, CeilingOf(1.0 / 4.0, CONNECT)),
    ("ask-beside-bulk.p50", QUIC, CeilingOf(1.0 / 5.0, CONNECT)),
    ("ask-beside-bulk.p50", TLS, CeilingOf(1.0 / 5.0, CONNECT)),
    ("ask-beside-bulk.p99", QUIC, CeilingOf(1.0 / 3.0, CONNECT)),
    ("ask-beside-bulk.p99", TLS, CeilingOf(1.0 / 3.0, CONNECT)),
    ("dial.p50", QUIC, CeilingOf(1.0 / 2.0, CONNECT)),
    ("dial.p50", TLS, CeilingOf(1.0 / 2.0, CONNECT)),
    ("dial.p99", QUIC, CeilingOf(1.0 / 2.0, CONNECT)),
    ("dial.p99", TLS, CeilingOf(1.0 / 2.0, CONNECT)),
    ("connects", QUIC, FloorOf(1.3, CONNECT)),
    ("connects", TLS, FloorOf(1.3, CONNECT)),
    ("connects", QUIC_GRPC, FloorOf(2.0, GRPC)),
    ("connects", TLS_GRPC, FloorOf(2.0, GRPC)),
    (
        "memory.dials.each.relays",
        QUIC,
        CeilingOf(1.0 / 2.0, CONNECT),
    ),
    (
        "memory.dials.each.relays",
        TLS,
        CeilingOf(1.0 / 2.0, CONNECT),
    ),
    (
        "memory.dials.each.relays",
        QUIC_GRPC,
        CeilingOf(1.0 / 2.0, GRPC),
    ),
    ("intact.speaks-first", QUIC, Floor(100.0, "%")),
    ("intact.speaks-first", TLS, Floor(100.0, "%")),
    ("intact.speaks-first", QUIC_GRPC, Floor(100.0, "%")),
    ("intact.speaks-first", TLS_GRPC, Floor(100.0, "%")),
    ("intact.half-close", QUIC, Floor(100.0, "%")),
    ("intact.half-close", TLS, Floor(100.0, "%")),
    ("intact.bytes-before-close", QUIC, Floor(100.0, "%")),
    ("intact.bytes-before-close", TLS, Floor(100.0, "%")),
    ("intact.bytes-before-close", QUIC_GRPC, Floor(100.0, "%")),
    ("intact.bytes-before-close", TLS_GRPC, Floor(100.0, "%")),
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
    // The best is the greatest where ours must be greater, else the least.
    let rivals = |Rivals(_, peers): Rivals, greatest: bool| {
        let medians = peers
            .iter()
            .filter_map(|peer| Some(results.spread(metric, peer)?.median));
        let best = medians.reduce(if greatest { f64::max } else { f64::min });
        median.zip(best).map(|(median, best)| median / best)
    };
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
        FloorOf(bound, peers) => {
            let ratio = rivals(peers, true);
            let met = ratio.map(|is| is >= bound);
            (format!(">= {bound} x {}", peers.0), ratio, met)
        }
        CeilingOf(bound, peers) => {
            let ratio = rivals(peers, false);
            let met = ratio.map(|is| is <= bound);
            (format!("<= {bound:.2} x {}", peers.0), ratio, met)
        }
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
