//! When the data path of a link was last seen to work: a probe of the server came through and was
//! answered. What readiness and status look at.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Of one link; the task that answers and those who look share it.
#[derive(Debug)]
pub struct Probed {
    /// The server said that it probes.
    expected: bool,
    /// With so many dials there is no stream left for a probe, which is no fault of the path.
    room: u32,
    since: Instant,
    answered_ms: AtomicU64,
}

impl Probed {
    /// Of a link that was just greeted.
    pub fn new(expected: bool, room: u32) -> Self {
        Self {
            expected,
            room,
            since: Instant::now(),
            answered_ms: AtomicU64::new(0),
        }
    }

    /// One was answered.
    pub fn answered(&self) {
        let ms = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.answered_ms.fetch_max(ms, Ordering::Relaxed);
    }

    /// Since the last one, or since the greeting; `None` where none are to be expected of a link
    /// with so many dials.
    pub fn unanswered_for(&self, dials: u32) -> Option<Duration> {
        let last = Duration::from_millis(self.answered_ms.load(Ordering::Relaxed));
        let expected = self.expected && dials < self.room;
        expected.then(|| self.since.elapsed().saturating_sub(last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_runs_from_the_last_answer() {
        let second = Duration::from_secs(1);
        let (probed, silent) = (Probed::new(true, 10), Probed::new(false, 10));
        tokio::time::advance(31 * second).await;
        assert_eq!(probed.unanswered_for(0), Some(31 * second));
        assert_eq!(probed.unanswered_for(10), None);
        assert_eq!(silent.unanswered_for(0), None);
        probed.answered();
        tokio::time::advance(2 * second).await;
        assert_eq!(probed.unanswered_for(9), Some(2 * second));
    }
}
