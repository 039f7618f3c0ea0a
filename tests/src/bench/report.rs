//! The results as a Markdown table for people and as JSON for everything else.

use std::fmt::Write;

use serde_json::{Value as Json, json};

use super::peers::{BASE, PEERS};
use super::results::{Metric, Results};
use super::stats::Spread;
use super::targets::{self, Verdict};

/// What is known about the run itself.
#[derive(Debug)]
pub struct Circumstances {
    pub quick: bool,
    pub runs: u32,
    pub kernel: String,
    pub processor: String,
    pub processors: usize,
    /// Congestion control of the kernel's TCP.
    pub congestion: String,
    pub load_before: [f64; 3],
    pub load_after: [f64; 3],
    pub seconds: f64,
    /// How the long path was made, or why not.
    pub emulator: String,
    pub notes: Vec<String>,
}

/// The table, the targets and the notes.
#[must_use]
pub fn markdown(results: &Results, about: &Circumstances) -> String {
    let mut out = String::new();
    // Writing into a string cannot fail.
    let _ = write_markdown(&mut out, results, about);
    out
}

fn write_markdown(out: &mut String, results: &Results, about: &Circumstances) -> std::fmt::Result {
    writeln!(out, "# Towline bench\n")?;
    writeln!(
        out,
        "{} run(s){} in {:.0} s on {} x {}, Linux {}, kernel TCP {}. Load average {:.2} before, {:.2} after \
         (the bench itself included). Long path: {}.\n",
        about.runs,
        if about.quick {
            " (--quick: proves nothing)"
        } else {
            ""
        },
        about.seconds,
        about.processors,
        about.processor,
        about.kernel,
        about.congestion,
        about.load_before[0],
        about.load_after[0],
        about.emulator
    )?;
    writeln!(
        out,
        "Each cell: median (least .. most), then the ratio of medians to `{BASE}`.\n"
    )?;
    write!(out, "| measure | unit |")?;
    for peer in PEERS {
        write!(out, " {} |", peer.name)?;
    }
    write!(out, "\n| --- | --- |{}\n", " --- |".repeat(PEERS.len()))?;
    for metric in results.metrics() {
        row(out, metric)?;
    }
    let verdicts = targets::verdicts(results);
    let met = verdicts
        .iter()
        .filter(|verdict| verdict.met == Some(true))
        .count();
    let judged = verdicts
        .iter()
        .filter(|verdict| verdict.met.is_some())
        .count();
    writeln!(out, "\n## Targets: {met} of {judged} measured met\n")?;
    writeln!(
        out,
        "| measure | peer | target | measured | |\n| --- | --- | --- | --- | --- |"
    )?;
    for Verdict {
        metric,
        peer,
        target,
        measured,
        met,
    } in &verdicts
    {
        let measured = measured.map_or_else(|| "not measured".to_owned(), number);
        let met = met.map_or("", |met| if met { "met" } else { "**missed**" });
        writeln!(out, "| {metric} | {peer} | {target} | {measured} | {met} |")?;
    }
    if !about.notes.is_empty() {
        writeln!(out, "\n## Notes\n")?;
        for note in &about.notes {
            writeln!(out, "- {}", note.replace('\n', "\n  "))?;
        }
    }
    Ok(())
}

fn row(out: &mut String, metric: &Metric) -> std::fmt::Result {
    write!(out, "| {} | {} |", metric.name, metric.unit)?;
    let base = metric.values(BASE).and_then(Spread::of);
    for peer in PEERS {
        match metric.values(peer.name).and_then(Spread::of) {
            None => write!(out, " |")?,
            Some(spread) => {
                write!(out, " {}", number(spread.median))?;
                if spread.runs > 1 {
                    write!(out, " ({} .. {})", number(spread.min), number(spread.max))?;
                }
                match base {
                    Some(base) if base.median > 0.0 && peer.name != BASE => {
                        write!(out, ", {:.2}x |", spread.median / base.median)?;
                    }
                    _ => write!(out, " |")?,
                }
            }
        }
    }
    writeln!(out)
}

/// Three or four significant digits.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.3}"),
    }
}

/// Everything.
#[must_use]
pub fn json(results: &Results, about: &Circumstances) -> Json {
    let metrics: Vec<Json> = results
        .metrics()
        .iter()
        .map(|metric| {
            let peers: serde_json::Map<String, Json> = metric
                .peers
                .iter()
                .map(|(peer, values)| {
                    let spread = Spread::of(values);
                    (
                        (*peer).to_owned(),
                        json!({ "values": values, "spread": spread }),
                    )
                })
                .collect();
            json!({ "metric": metric.name, "unit": metric.unit, "peers": peers })
        })
        .collect();
    json!({
        "format": 1,
        "quick": about.quick,
        "runs": about.runs,
        "seconds": about.seconds,
        "machine": {
            "kernel": about.kernel,
            "processor": about.processor,
            "processors": about.processors,
            "tcp_congestion_control": about.congestion,
            "load_before": about.load_before,
            "load_after": about.load_after,
        },
        "emulator": about.emulator,
        "metrics": metrics,
        "targets": targets::verdicts(results),
        "notes": about.notes,
    })
}
