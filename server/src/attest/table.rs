//! The report as a table for people, and below it what to do about each cause.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::report::{Line, Report};

/// Characters of a key's fingerprint that are shown; JSON has all of them.
const KEY_CHARS: usize = 16;
/// Nodes that are listed with one remedy.
const NODES: usize = 8;

const HEAD: [&str; 7] = ["NODE", "HOST", "VERDICT", "CAUSE", "DAYS", "KEY", "CHECKED"];

/// Everything, ending with a line break.
pub fn table(report: &Report) -> String {
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(report.kubelets.iter().map(row));
    let mut widths = [0; HEAD.len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in &rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    remedies(report, &mut out);
    let summary = report.summary;
    let _ = writeln!(
        out,
        "\nmode {}: {} linked, {} verified, {} {}, {} unknown",
        printable(&report.mode),
        summary.linked,
        summary.verified,
        summary.would_be_refused,
        if report.mode == "enforce" {
            "refused"
        } else {
            "would be refused by enforce"
        },
        summary.unknown,
    );
    if summary.linked == 0 {
        out.push_str("no agent is linked, so no kubelet is known\n");
    }
    out
}

fn row(line: &Line) -> [String; HEAD.len()] {
    let verdict = if line.linked {
        line.verdict.clone()
    } else {
        format!("{} (no link)", line.verdict)
    };
    let dash = || "-".to_owned();
    let key = line.key.as_deref().map(|key| key.chars().take(KEY_CHARS));
    [
        line.node.clone(),
        line.host.clone(),
        verdict,
        line.cause.clone().unwrap_or_else(dash),
        line.days_left.map_or_else(dash, |days| days.to_string()),
        key.map_or_else(dash, String::from_iter),
        line.checked_seconds_ago
            .map_or_else(dash, |ago| format!("{ago}s ago")),
    ]
    .map(|cell| printable(&cell))
}

fn remedies(report: &Report, out: &mut String) {
    let mut causes: BTreeMap<&str, Vec<&Line>> = BTreeMap::new();
    for line in &report.kubelets {
        if let Some(cause) = &line.cause {
            causes.entry(cause).or_default().push(line);
        }
    }
    for (cause, lines) in causes {
        let mut nodes: Vec<&str> = lines.iter().map(|line| line.node.as_str()).collect();
        nodes.dedup();
        let more = match nodes.len().saturating_sub(NODES) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        nodes.truncate(NODES);
        let text = |of: fn(&Line) -> Option<&String>| {
            lines
                .first()
                .and_then(|line| of(line))
                .map_or("", String::as_str)
        };
        let _ = writeln!(
            out,
            "\n{}: {}{more}\n  {}\n  fix: {}",
            printable(cause),
            printable(&nodes.join(", ")),
            printable(text(|line| line.detail.as_ref())),
            printable(text(|line| line.fix.as_ref())),
        );
    }
}

/// The server escapes what strangers wrote; a terminal is not left to its word.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::report::Summary;

    #[test]
    fn a_table_is_aligned_and_tells_what_to_do_once() {
        let line = |node: &str, cause: Option<&str>| Line {
            node: node.into(),
            host: "10.0.0.1".into(),
            linked: node != "n3",
            verdict: cause.map_or("verified", |_| "refused").into(),
            cause: cause.map(str::to_owned),
            detail: cause.map(|_| "signed by \u{1b}[31mwho".into()),
            fix: cause.map(|_| "do this".into()),
            key: Some("ab".repeat(32)),
            serial: None,
            subject: None,
            issuer: None,
            certificate_ends: Some(0),
            days_left: Some(-3),
            checked_seconds_ago: Some(4),
        };
        let report = Report {
            mode: "observe".into(),
            summary: Summary {
                linked: 3,
                verified: 1,
                would_be_refused: 2,
                unknown: 0,
            },
            kubelets: vec![
                line("n1", None),
                line("n2", Some("wrong-ca")),
                line("n3", Some("wrong-ca")),
            ],
        };
        let text = table(&report);
        let lines: Vec<&str> = text.lines().collect();
        let verdicts: Vec<usize> = lines[..4]
            .iter()
            .map(|line| {
                line.find("VERDICT")
                    .or(line.find("verified"))
                    .or(line.find("refused"))
            })
            .map(|at| at.expect("a verdict"))
            .collect();
        assert!(verdicts.iter().all(|at| *at == verdicts[0]), "{text}");
        assert_eq!(text.matches("fix: do this").count(), 1, "{text}");
        assert!(
            text.contains("wrong-ca: n2, n3") && text.contains("(no link)"),
            "{text}"
        );
        assert!(text.contains("2 would be refused by enforce"), "{text}");
        assert!(!text.contains("no agent is linked"), "{text}");
        let nobody = Report {
            summary: Summary::default(),
            kubelets: Vec::new(),
            ..report.clone()
        };
        assert!(table(&nobody).ends_with("no agent is linked, so no kubelet is known\n"));
        assert!(!text.contains('\u{1b}'));
        assert!(text.contains("abababababababab ") && !text.contains(&"ab".repeat(9)));
    }
}
