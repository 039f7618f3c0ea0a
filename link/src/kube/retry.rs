//! How long to wait before a collection is listed again.

use std::time::Duration;

use towline_proto::limits;

/// Pauses that double, and begin anew after something went well for a while.
#[derive(Debug)]
pub(super) struct Retry {
    pause: Duration,
}

impl Retry {
    pub(super) fn new() -> Self {
        Self {
            pause: limits::KUBE_RETRY.0,
        }
    }

    /// The pause after an attempt that lasted so long. What went well for a while failed for
    /// another cause than the time before.
    pub(super) fn after(&mut self, lasted: Duration) -> Duration {
        let (first, longest) = limits::KUBE_RETRY;
        if lasted > longest {
            self.pause = first;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(longest);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_the_longest_and_begin_anew_after_a_good_while() {
        let (first, longest) = limits::KUBE_RETRY;
        let mut retry = Retry::new();
        let soon = Duration::from_millis(1);
        assert_eq!(retry.after(soon), first);
        assert_eq!(retry.after(soon), 2 * first);
        for _ in 0..10 {
            retry.after(soon);
        }
        assert_eq!(retry.after(soon), longest);
        assert_eq!(retry.after(longest + soon), first);
        assert_eq!(retry.after(soon), 2 * first);
    }
}
