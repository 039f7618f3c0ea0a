//! How long a dial may take in the profile, where two flags say so: ours for every dial, and
//! Konnectivity's for the answer of a legacy agent.

use std::time::Duration;

use towline_link::process::values::TimeSpan;
use towline_proto::limits;

/// From `--dial-timeout` and `--backend-dial-timeout`: how long every dial may take, and what to say
/// when that cuts the second short. Our flag gives way where nobody has set it.
pub(super) fn settle(dial: Duration, answer: Option<Duration>) -> (Duration, Option<String>) {
    let Some(answer) = answer.filter(|answer| *answer > dial) else {
        return (dial, None);
    };
    let dial = match dial == limits::DIAL_TIMEOUT {
        true => answer.min(limits::DIAL_TIMEOUT_MAX),
        false => dial,
    };
    let note = (answer > dial).then(|| {
        format!(
            "--backend-dial-timeout {} is not waited out: every dial ends after {} (--dial-timeout)",
            TimeSpan(answer),
            TimeSpan(dial)
        )
    });
    (dial, note)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_longer_answer_is_waited_for_unless_our_own_flag_says_otherwise() {
        for (dial, answer, waited, said) in [
            (10, None, 10, false),
            (10, Some(5), 10, false),
            (10, Some(20), 20, false),
            (10, Some(60), 30, true),
            (3, Some(20), 3, true),
            (20, Some(15), 20, false),
        ] {
            let (waits, note) = settle(seconds(dial), answer.map(seconds));
            assert_eq!(
                (waits, note.is_some()),
                (seconds(waited), said),
                "{answer:?}"
            );
        }
        let (_, note) = settle(seconds(3), Some(seconds(20)));
        let said = "--backend-dial-timeout 20s is not waited out: every dial ends after 3s (--dial-timeout)";
        assert_eq!(note.as_deref(), Some(said));
    }
}
