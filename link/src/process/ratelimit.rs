//! A limit on how often the same thing is logged: at most N lines for each key in an interval,
//! and the first line after a pause says how many were kept back. A flood of bad handshakes
//! must not become a flood of log lines.
//!
//! The number of keys is bounded; what exceeds it shares one allowance. Time is tokio's, so
//! that tests may pause it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use towline_proto::limits;

/// The limit, for keys of one kind (an address, a reason, a file).
pub struct RateLimited<K> {
    lines: u32,
    interval: Duration,
    windows: Mutex<Windows<K>>,
}

struct Windows<K> {
    by_key: HashMap<K, Window>,
    overflow: Window,
}

#[derive(Clone, Copy, Default)]
struct Window {
    begun: Option<Instant>,
    used: u32,
    suppressed: u64,
}

impl<K: Eq + Hash> RateLimited<K> {
    /// At most `lines` for each key in every `interval`.
    pub fn new(lines: u32, interval: Duration) -> Self {
        Self {
            lines,
            interval,
            windows: Mutex::new(Windows {
                by_key: HashMap::new(),
                overflow: Window::default(),
            }),
        }
    }

    /// `Some` when the line may be written, with how many were kept back since the last one.
    ///
    /// ```ignore
    /// if let Some(suppressed) = self.floods.allow(address) {
    ///     warn!(suppressed, ?address, "handshake refused");
    /// }
    /// ```
    pub fn allow(&self, key: K) -> Option<u64> {
        let now = Instant::now();
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.by_key.len() >= limits::LOG_KEYS && !windows.by_key.contains_key(&key) {
            let interval = self.interval;
            windows
                .by_key
                .retain(|_, window| !window.is_over(now, interval));
        }
        let window =
            if windows.by_key.len() >= limits::LOG_KEYS && !windows.by_key.contains_key(&key) {
                &mut windows.overflow
            } else {
                windows.by_key.entry(key).or_default()
            };
        window.take(now, self.lines, self.interval)
    }
}

impl Window {
    fn is_over(&self, now: Instant, interval: Duration) -> bool {
        self.begun
            .is_none_or(|begun| now.duration_since(begun) >= interval)
    }

    fn take(&mut self, now: Instant, lines: u32, interval: Duration) -> Option<u64> {
        if self.is_over(now, interval) {
            self.begun = Some(now);
            self.used = 0;
        }
        if self.used >= lines {
            self.suppressed += 1;
            return None;
        }
        self.used += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn each_key_has_its_lines_and_the_rest_is_counted() {
        let limited = RateLimited::new(2, MINUTE);
        assert_eq!(limited.allow("a"), Some(0));
        assert_eq!(limited.allow("a"), Some(0));
        assert_eq!(limited.allow("a"), None);
        assert_eq!(limited.allow("a"), None);
        assert_eq!(limited.allow("b"), Some(0));
        tokio::time::advance(MINUTE).await;
        assert_eq!(limited.allow("a"), Some(2));
        assert_eq!(limited.allow("a"), Some(0));
        assert_eq!(limited.allow("a"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn keys_are_bounded_and_the_overflow_shares_one_allowance() {
        let limited = RateLimited::new(1, MINUTE);
        for key in 0..limits::LOG_KEYS {
            assert_eq!(limited.allow(key), Some(0));
        }
        assert_eq!(limited.allow(limits::LOG_KEYS), Some(0));
        assert_eq!(limited.allow(limits::LOG_KEYS + 1), None);
        tokio::time::advance(MINUTE).await;
        assert_eq!(limited.allow(limits::LOG_KEYS + 2), Some(0));
        assert_eq!(
            limited.windows.lock().expect("not poisoned").by_key.len(),
            1
        );
    }
}
