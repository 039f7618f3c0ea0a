//! `lint`: what is wrong with certificates that verify perhaps, and hurt later.

use std::fmt::Write;

use serde_json::{Value, json};
use towline_pki::lint::{Finding, Severity, lint};

use super::answer::Answer;
use super::{EXIT_CODES, Failure, status};

const EXAMPLES: &str = "\
Examples:
  towline-pki lint /etc/kubernetes/pki /var/lib/kubelet/pki
  towline-pki lint node-7.example:10250 -o json

Exit code 1 when there is an error, with --strict also for warnings; 3 when something is damaged and
nothing else is wrong.";

/// Look for what breaks or weakens verification: addresses written as DNS names, kubelets without
/// addresses, keys that two parties share, weak keys, wrong usages, lives that are too long.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Args {
    /// Files, directories, or HOST:PORT, as `towline-pki status` takes them
    #[arg(required = true, value_name = "PLACE")]
    places: Vec<String>,
    /// Warnings count as errors
    #[arg(long)]
    strict: bool,
}

pub(crate) fn run(args: &Args) -> Result<Answer, Failure> {
    let all = status::look(&args.places)?;
    let mut findings = lint(&all.found);
    findings.sort_by(|a, b| b.severity.cmp(&a.severity).then(a.place.cmp(&b.place)));
    let list: Vec<Value> = findings.iter().map(as_json).collect();
    let result = json!({
        "looked": all.found.len(),
        "findings": list,
        "damaged": status::damaged(&all),
    });
    let answer = Answer::new(as_text(&findings, all.found.len()), result);
    let wrong = |finding: &&Finding| args.strict || finding.severity == Severity::Error;
    let count = findings.iter().filter(wrong).count();
    if count > 0 {
        let message = format!("{count} of the findings must be mended");
        return Err(Failure::failed(message).with_answer(answer));
    }
    match all.damaged.first() {
        Some(damage) => Err(Failure::file(damage).with_answer(answer)),
        None => Ok(answer),
    }
}

fn as_text(findings: &[Finding], looked: usize) -> String {
    let mut out = String::new();
    for finding in findings {
        let _ = writeln!(
            out,
            "{:8} {}: {}\n         {}\n         fix: {}",
            finding.severity.as_str(),
            finding.rule,
            finding.place,
            finding.cause,
            finding.fix
        );
    }
    let _ = writeln!(out, "{looked} certificates, {} findings", findings.len());
    out
}

fn as_json(finding: &Finding) -> Value {
    json!({
        "place": finding.place,
        "rule": finding.rule,
        "severity": finding.severity.as_str(),
        "cause": finding.cause,
        "fix": finding.fix,
    })
}
