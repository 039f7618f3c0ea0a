//! When to reconnect: the time since the link was lost and a seed in, a pause out.
//!
//! Pauses double from [`limits::BACKOFF_FIRST`] up to one second for the first thirty seconds, so
//! that a restarted server is met at once; then they grow by a quarter each time up to fifteen
//! seconds, so that a long outage ends within a few seconds of its end and a dead server is not
//! hammered. Each pause is drawn from the upper half of its range, so that a fleet spreads out.

use std::time::Duration;

use crate::limits;

/// The pauses of one outage. Make a new one for each.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    random: u64,
}

impl Backoff {
    /// `seed` must differ between agents; equal seeds give equal pauses.
    pub fn new(seed: u64) -> Self {
        Self {
            next: limits::BACKOFF_FIRST,
            random: seed | 1,
        }
    }

    /// The pause before the next attempt, `lost_for` after the link was lost.
    pub fn pause(&mut self, lost_for: Duration) -> Duration {
        let full = self.next;
        self.next = if lost_for < limits::BACKOFF_QUICK_FOR {
            (full * 2).min(limits::BACKOFF_QUICK_CAP)
        } else {
            (full + full / 4).min(limits::BACKOFF_CAP)
        };
        // Half to whole of the range: never zero, never all at once.
        let half = full / 2;
        half + half.mul_f64(self.unit())
    }

    /// xorshift64*: enough to spread a fleet, and repeatable.
    fn unit(&mut self) -> f64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let bits = self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
        bits as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn outage(seed: u64) -> Vec<(Duration, Duration)> {
        let mut backoff = Backoff::new(seed);
        let mut lost_for = Duration::ZERO;
        (0..200)
            .map(|_| {
                let pause = backoff.pause(lost_for);
                lost_for += pause;
                (lost_for, pause)
            })
            .collect()
    }

    proptest! {
        #[test]
        fn the_first_try_comes_within_200_ms_and_a_second_is_the_most_for_half_a_minute(seed: u64) {
            let pauses = outage(seed);
            prop_assert!(pauses[0].1 <= Duration::from_millis(200));
            for (lost_for, pause) in pauses {
                prop_assert!(pause >= limits::BACKOFF_FIRST / 2);
                if lost_for <= limits::BACKOFF_QUICK_FOR {
                    prop_assert!(pause <= limits::BACKOFF_QUICK_CAP);
                }
                prop_assert!(pause <= limits::BACKOFF_CAP);
            }
        }

        #[test]
        fn forty_seconds_into_an_outage_the_pause_is_under_four_seconds(seed: u64) {
            for (lost_for, pause) in outage(seed) {
                if lost_for <= Duration::from_secs(40) {
                    prop_assert!(pause < Duration::from_secs(4), "{pause:?} at {lost_for:?}");
                }
            }
        }
    }

    #[test]
    fn a_dead_server_is_asked_four_times_a_minute_in_the_end() {
        let pauses = outage(7);
        assert!(pauses.last().unwrap().1 >= limits::BACKOFF_CAP / 2);
    }

    #[test]
    fn two_agents_do_not_march_in_step() {
        assert_ne!(outage(1), outage(2));
        assert_eq!(outage(1), outage(1));
    }
}
