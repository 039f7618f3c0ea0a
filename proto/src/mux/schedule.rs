//! Which stream sends next: higher priority first, and streams of one priority in turn.
//!
//! A turn is one DATA frame, so a stream's quantum is
//! [`MUX_FRAME_BYTES`](crate::limits::MUX_FRAME_BYTES): deficit round robin whose deficit is
//! always zero, because a frame is cut to the quantum instead of being carried over.

use std::collections::VecDeque;

use super::StreamKey;

/// Streams with something to send. Each one stands in it at most once (its owner's duty), so
/// its bound is the number of streams.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// Highest priority last. Few priorities are in use at a time.
    levels: Vec<(i32, VecDeque<StreamKey>)>,
}

impl Schedule {
    pub(super) fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }

    pub(super) fn push(&mut self, priority: i32, key: StreamKey) {
        match self
            .levels
            .binary_search_by_key(&priority, |(level, _)| *level)
        {
            Ok(at) => self.levels[at].1.push_back(key),
            Err(at) => self.levels.insert(at, (priority, VecDeque::from([key]))),
        }
    }

    pub(super) fn pop(&mut self) -> Option<StreamKey> {
        let (_, keys) = self.levels.last_mut()?;
        let key = keys.pop_front();
        if keys.is_empty() {
            self.levels.pop();
        }
        key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn higher_priorities_go_first_and_equals_take_turns() {
        let mut schedule = Schedule::default();
        for (priority, key) in [(0, 1), (5, 2), (0, 3), (-1, 4), (5, 5)] {
            schedule.push(priority, StreamKey(key));
        }
        let order: Vec<u32> = std::iter::from_fn(|| schedule.pop())
            .map(|key| key.0)
            .collect();
        assert_eq!(order, [2, 5, 1, 3, 4]);
        assert!(schedule.is_empty());
    }
}
