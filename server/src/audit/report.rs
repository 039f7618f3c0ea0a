//! What a proof found, for people and for machines.

use std::fmt::Write;

use serde_json::json;

use super::verify::{Fault, Findings};

/// Whether signatures were looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// A key was given.
    pub signatures: bool,
    /// A head was given.
    pub head: bool,
}

fn unproven(findings: &Findings) -> u64 {
    let last = findings.head.map_or(0, |head| head.seq);
    let proven = findings.proven.as_ref().map(|(seq, ..)| *seq);
    // A checkpoint itself is covered by the next one only, and says nothing that matters.
    match proven {
        Some(seq) => last.saturating_sub(seq.saturating_add(1)),
        None => findings.records,
    }
}

/// A few lines.
pub fn text(findings: &Findings, fault: Option<&Fault>, checked: Checked) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        let _ = writeln!(out, "{text}");
    };
    for note in &findings.notes {
        line(format!("note     {note}"));
    }
    if findings.more_notes > 0 {
        line(format!("note     and {} more", findings.more_notes));
    }
    if let Some(fault) = fault {
        line(format!("BROKEN   {fault}"));
    }
    if let Some(head) = findings.head {
        let runs = findings.runs;
        line(format!(
            "records  {} (lines {} to {}), {runs} start{} of a server",
            findings.records,
            findings.first,
            head.seq,
            if runs == 1 { "" } else { "s" }
        ));
        line(format!("head     {head}"));
    }
    match (&findings.proven, checked.signatures) {
        (Some((seq, time, at)), true) => line(format!(
            "proven   to line {seq}, by {} signed checkpoints, the last at {time} ({at})",
            findings.checkpoints
        )),
        (Some((seq, time, _)), false) => line(format!(
            "signed   to line {seq}, last at {time}; signatures NOT checked: give --key"
        )),
        (None, _) => line("proven   nothing: there is no checkpoint".to_owned()),
    }
    let open = unproven(findings);
    if open > 0 && fault.is_none() {
        line(format!(
            "unproven {open} lines behind it: whoever can write the file could have changed or cut them"
        ));
    }
    if findings.first > 1 {
        line(format!(
            "begins   at line {}; earlier files were not given",
            findings.first
        ));
    }
    if checked.head && fault.is_none() {
        line("expected head is there".to_owned());
    }
    out
}

/// One object.
pub fn json(findings: &Findings, fault: Option<&Fault>, checked: Checked) -> String {
    let proven = findings
        .proven
        .as_ref()
        .map(|(seq, time, at)| json!({"seq": seq, "time": time, "file": at.file, "line": at.line}));
    let fault = fault.map(|fault| {
        json!({
            "kind": fault.kind.as_str(),
            "file": fault.at.as_ref().map(|at| &at.file),
            "line": fault.at.as_ref().map(|at| at.line),
            "text": fault.text,
        })
    });
    let value = json!({
        "good": fault.is_none(),
        "fault": fault,
        "trail": findings.trail,
        "records": findings.records,
        "first": findings.first,
        "head": findings.head.map(|head| head.to_string()),
        "checkpoints": findings.checkpoints,
        "signatures_checked": checked.signatures,
        "expected_head_met": checked.head.then_some(findings.head_met),
        "last_checkpoint": proven,
        "unproven": unproven(findings),
        "runs": findings.runs,
        "dropped": findings.dropped,
        "dials_refused": findings.dials_refused,
        "notes": findings.notes,
        "notes_left_out": findings.more_notes,
    });
    let mut out = serde_json::to_string_pretty(&value).unwrap_or_default();
    out.push('\n');
    out
}

/// What the exit codes mean, for the help.
pub const EXIT_CODES: &str = "\
Exit codes: 0 everything up to the last checkpoint is as it was written, 1 a file cannot be read, \
2 wrong usage, 3 the key is not what it must be, 4 a line was changed, 5 lines are missing, moved or \
put in, 6 a signature does not fit, 7 the expected head is not there, 8 nothing is signed.";
