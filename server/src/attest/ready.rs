//! The readiness condition `kubelets`: what enforcing refuses, or would refuse.
//!
//! One kubelet with a bad certificate is a note beside a condition that is met: a server that
//! turned unready for it would take the other nodes with it. The condition is unmet when mode
//! `enforce` refuses every kubelet that answered, which is a wrong file and not a bad node.

use std::time::Duration;

use towline_link::process::ready::Condition;

use super::Mode;
use super::report::{Reporter, Tally};

/// How often it is judged; nothing that depends on it is quicker.
const LOOK: Duration = Duration::from_secs(1);

impl Reporter {
    /// Keeps the condition until the task is dropped.
    pub async fn keep_ready(self, condition: Condition) {
        loop {
            match judge(self.attestor.mode(), &self.tally()) {
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

fn judge(mode: Mode, tally: &Tally) -> Judged {
    if mode == Mode::Off {
        return Judged::Note("kubelets are not verified (--kubelet-verification off)".into());
    }
    let Some((node, word)) = &tally.refused else {
        return Judged::Met;
    };
    let enforced = mode == Mode::Enforce;
    let text = format!(
        "{} of {} kubelets {} ({node}: {word}); see towline-server kubelets",
        tally.summary.would_be_refused,
        tally.summary.linked,
        if enforced {
            "are refused"
        } else {
            "would be refused by enforce"
        },
    );
    if enforced && tally.summary.verified == 0 {
        Judged::Unmet(text)
    } else {
        Judged::Note(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::report::Summary;

    fn tally(verified: usize, refused: usize, unknown: usize) -> Tally {
        Tally {
            summary: Summary {
                linked: verified + refused + unknown,
                verified,
                would_be_refused: refused,
                unknown,
            },
            refused: (refused > 0).then(|| ("n1".parse().unwrap(), "wrong-ca")),
            ..Tally::default()
        }
    }

    #[test]
    fn one_bad_kubelet_is_a_note_and_all_of_them_are_a_wrong_file() {
        use Mode::{Enforce, Observe, Off};
        assert_eq!(judge(Enforce, &tally(0, 0, 0)), Judged::Met);
        assert_eq!(judge(Enforce, &tally(0, 0, 1)), Judged::Met);
        let mixed = judge(Enforce, &tally(1, 1, 0));
        let said = |judged: &Judged, part: &str| matches!(judged, Judged::Note(text) if text.contains(part));
        assert!(
            said(&mixed, "1 of 2") && said(&mixed, "n1: wrong-ca"),
            "{mixed:?}"
        );
        assert!(matches!(judge(Enforce, &tally(0, 1, 1)), Judged::Unmet(_)));
        assert!(said(&judge(Observe, &tally(0, 1, 0)), "would be"));
        assert!(matches!(judge(Off, &tally(0, 0, 0)), Judged::Note(_)));
    }
}
