//! The readiness condition `kubelets`: what enforcing refuses, or would refuse.
//!
//! One kubelet with a bad certificate is a note beside a condition that is met: a server that
//! turned unready for it would take the other nodes with it. The condition is unmet when mode
//! `enforce` refuses every kubelet that answered, which is a wrong file and not a bad node.

use std::time::Duration;

use towline_link::process::ready::Condition;

use super::Mode;
use super::report::{Report, Reporter};

/// How often it is judged; nothing that depends on it is quicker.
const LOOK: Duration = Duration::from_secs(1);

impl Reporter {
    /// Keeps the condition until the task is dropped.
    pub async fn keep_ready(self, condition: Condition) {
        loop {
            match judge(&self.report()) {
                Judged::Met => condition.met(),
                Judged::Note(text) => condition.note(text),
                Judged::Unmet(text) => condition.unmet(text),
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Judged {
    Met,
    Note(String),
    Unmet(String),
}

fn judge(report: &Report) -> Judged {
    if report.mode == Mode::Off.as_str() {
        return Judged::Note("kubelets are not verified (--kubelet-verification off)".into());
    }
    let enforced = report.mode == Mode::Enforce.as_str();
    let summary = report.summary;
    let refused = report
        .kubelets
        .iter()
        .find(|line| line.linked && line.verdict == "refused");
    let Some(first) = refused else {
        return Judged::Met;
    };
    let text = format!(
        "{} of {} kubelets {} ({}: {}); see towline-server kubelets",
        summary.would_be_refused,
        summary.linked,
        if enforced {
            "are refused"
        } else {
            "would be refused by enforce"
        },
        first.node,
        first.word(),
    );
    if enforced && summary.verified == 0 {
        Judged::Unmet(text)
    } else {
        Judged::Note(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::report::{Line, Summary};

    fn report(mode: &str, verdicts: &[&str]) -> Report {
        let line = |verdict: &&str| {
            serde_json::from_value::<Line>(serde_json::json!({
                "node": "n1", "host": "10.0.0.1", "linked": true, "verdict": verdict,
                "cause": (*verdict == "refused").then_some("wrong-ca"),
                "detail": null, "fix": null, "key": null, "serial": null, "subject": null,
                "issuer": null, "certificate_ends": null, "days_left": null,
                "checked_seconds_ago": null,
            }))
            .unwrap()
        };
        let kubelets: Vec<Line> = verdicts.iter().map(line).collect();
        let count = |wanted: &str| {
            verdicts
                .iter()
                .filter(|verdict| **verdict == wanted)
                .count()
        };
        Report {
            mode: mode.into(),
            summary: Summary {
                linked: verdicts.len(),
                verified: count("verified"),
                would_be_refused: count("refused"),
                unknown: count("unknown"),
            },
            kubelets,
        }
    }

    #[test]
    fn one_bad_kubelet_is_a_note_and_all_of_them_are_a_wrong_file() {
        assert_eq!(judge(&report("enforce", &[])), Judged::Met);
        assert_eq!(judge(&report("enforce", &["unknown"])), Judged::Met);
        let mixed = judge(&report("enforce", &["verified", "refused"]));
        assert!(
            matches!(&mixed, Judged::Note(text) if text.contains("1 of 2") && text.contains("n1: wrong-ca")),
            "{mixed:?}"
        );
        assert!(matches!(
            judge(&report("enforce", &["refused", "unknown"])),
            Judged::Unmet(_)
        ));
        let observed = judge(&report("observe", &["refused"]));
        assert!(
            matches!(&observed, Judged::Note(text) if text.contains("would be")),
            "{observed:?}"
        );
        assert!(matches!(judge(&report("off", &[])), Judged::Note(_)));
    }
}
