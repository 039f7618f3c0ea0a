//! What the end of a server is called: success, or why not.
//!
//! By itself a server that had to cut dials says so by its exit code. Konnectivity's program ends
//! with 0 after the first signal, whatever was cut, and with 1 on the second; who watches it takes
//! everything but 0 for a crash.

use towline_link::process::drain::Outcome;

/// Why the server ended other than by order.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Some dials did not end before the deadline.
    #[error("the drain ended with live dials cut: {dials}")]
    Cut {
        /// How many.
        dials: usize,
    },
    /// The compatibility profile's word for a second signal.
    #[error("ended at once by a second signal, live dials cut: {dials}")]
    AtOnce {
        /// How many.
        dials: usize,
    },
    /// A defect.
    #[error("a task of the server panicked: {0}")]
    Panicked(String),
}

/// Judges the end of a drain that `at_once` was cut short by order, `in_profile` as Konnectivity's
/// program would.
pub fn judge(outcome: Outcome, at_once: bool, in_profile: bool) -> Result<(), RunError> {
    let dials = match outcome {
        Outcome::Clean if !in_profile => return Ok(()),
        Outcome::Clean => 0,
        Outcome::Cut { work } | Outcome::Abandoned { work, .. } => work,
    };
    match (in_profile, at_once) {
        (true, true) => Err(RunError::AtOnce { dials }),
        (true, false) => {
            if dials > 0 {
                tracing::warn!(
                    dials,
                    "live dials were cut, --graceful-shutdown-timeout is over"
                );
            }
            Ok(())
        }
        (false, _) => Err(RunError::Cut { dials }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dials_that_were_cut_are_a_failure_of_ours_and_none_of_the_profile() {
        let cut = Outcome::Cut { work: 3 };
        let left = Outcome::Abandoned {
            work: 3,
            watches: 1,
        };
        for outcome in [cut, left] {
            for at_once in [false, true] {
                let ended = judge(outcome, at_once, false);
                assert!(
                    matches!(ended, Err(RunError::Cut { dials: 3 })),
                    "{ended:?}"
                );
            }
            judge(outcome, false, true).unwrap();
        }
    }

    #[test]
    fn a_second_signal_is_a_failure_in_the_profile_also_with_nothing_cut() {
        for (outcome, cut) in [(Outcome::Clean, 0), (Outcome::Cut { work: 1 }, 1)] {
            let ended = judge(outcome, true, true);
            assert!(matches!(ended, Err(RunError::AtOnce { dials }) if dials == cut));
        }
        judge(Outcome::Clean, true, false).unwrap();
        judge(Outcome::Clean, false, true).unwrap();
    }
}
