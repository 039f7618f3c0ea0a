//! How often one agent's instances replaced each other lately.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;
use towline_proto::limits;

/// The time over which replacements are counted.
pub(super) const WINDOW: Duration = Duration::from_secs(60);

/// The last replacements, no more of them than decide.
#[derive(Debug, Default)]
pub(super) struct Replacements(VecDeque<Instant>);

impl Replacements {
    /// Counts one; `true` when there are more in a minute than restarts explain.
    pub(super) fn count(&mut self, now: Instant) -> bool {
        self.0.push_back(now);
        let is_old = |at: &Instant| now.duration_since(*at) > WINDOW;
        while self.0.front().is_some_and(is_old)
            || self.0.len() > limits::REPLACEMENTS_PER_MINUTE + 1
        {
            self.0.pop_front();
        }
        self.0.len() > limits::REPLACEMENTS_PER_MINUTE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_three_in_a_minute_are_too_many() {
        let begin = Instant::now();
        let mut replacements = Replacements::default();
        let mut at = |seconds| replacements.count(begin + Duration::from_secs(seconds));
        assert_eq!([0, 10, 20].map(&mut at), [false; 3]);
        assert!(at(30));
        assert!(at(60));
        // Only two of the last minute are left.
        assert!(!at(100));
    }
}
