//! One direction of a path as a state machine: packets go in, wait, and come out or are lost.
//!
//! Order is kept: delay is the same for every packet, so the queue is first in, first out.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How bad the path is, one way.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Path {
    /// Time that every packet takes.
    pub delay: Duration,
    /// Part of the packets that is lost at random: 0.005 is half a percent.
    pub loss: f64,
    /// Bytes a second that leave the queue, if bounded.
    pub rate: Option<u64>,
    /// Bytes that wait for the rate at most; more are dropped. Only with a rate.
    pub queue: Option<u64>,
    /// Two lines with the same seed lose the same packets.
    pub seed: u64,
}

impl Path {
    /// A path that only takes time and loses.
    #[must_use]
    pub fn new(delay: Duration, loss: f64, seed: u64) -> Self {
        Self {
            delay,
            loss,
            rate: None,
            queue: None,
            seed,
        }
    }
}

/// What became of the packets.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Counts {
    pub forwarded: u64,
    pub bytes: u64,
    /// Lost at random.
    pub lost: u64,
    /// Dropped because the queue or the emulator's own bound was full.
    pub overflowed: u64,
    /// Refused by the far device or socket.
    pub refused: u64,
}

/// More than this many packets are never held: 100 ms at about 800 MB/s. Overflow: dropped, counted.
const PACKETS: usize = 64 * 1024;

/// One direction of a path.
#[derive(Debug)]
pub struct Line {
    path: Path,
    dice: Dice,
    waiting: VecDeque<Waiting>,
    /// When the last byte that was taken in has left the queue for the wire.
    busy_until: Option<Instant>,
    spare: Vec<Vec<u8>>,
    counts: Counts,
}

#[derive(Debug)]
struct Waiting {
    due: Instant,
    packet: Vec<u8>,
}

impl Line {
    #[must_use]
    pub fn new(path: Path) -> Self {
        Self {
            path,
            dice: Dice::new(path.seed),
            waiting: VecDeque::new(),
            busy_until: None,
            spare: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// What became of the packets so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// A packet enters the path.
    pub fn push(&mut self, packet: &[u8], now: Instant) {
        if self.dice.below(self.path.loss) {
            self.counts.lost += 1;
            return;
        }
        let Some(departure) = self.departure(packet.len() as u64, now) else {
            self.counts.overflowed += 1;
            return;
        };
        if self.waiting.len() >= PACKETS {
            self.counts.overflowed += 1;
            return;
        }
        let mut kept = self.spare.pop().unwrap_or_default();
        kept.clear();
        kept.extend_from_slice(packet);
        self.waiting.push_back(Waiting {
            due: departure + self.path.delay,
            packet: kept,
        });
    }

    /// When the packet has left the queue, or `None` when the queue has no room for it.
    fn departure(&mut self, bytes: u64, now: Instant) -> Option<Instant> {
        let Some(rate) = self.path.rate else {
            return Some(now);
        };
        let rate = rate.max(1) as f64;
        let free = self.busy_until.map_or(now, |busy| busy.max(now));
        let queued = (free - now).as_secs_f64() * rate;
        if self
            .path
            .queue
            .is_some_and(|bound| queued + bytes as f64 > bound as f64)
        {
            return None;
        }
        let departure = free + Duration::from_secs_f64(bytes as f64 / rate);
        self.busy_until = Some(departure);
        Some(departure)
    }

    /// When the next packet is due.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.waiting.front().map(|waiting| waiting.due)
    }

    /// Hands the next due packet to `deliver`, which says whether the far side took it. Returns whether
    /// there was one.
    pub fn deliver(&mut self, now: Instant, deliver: impl FnOnce(&[u8]) -> bool) -> bool {
        if self.next_due().is_none_or(|due| due > now) {
            return false;
        }
        let Some(waiting) = self.waiting.pop_front() else {
            return false;
        };
        if deliver(&waiting.packet) {
            self.counts.forwarded += 1;
            self.counts.bytes += waiting.packet.len() as u64;
        } else {
            self.counts.refused += 1;
        }
        self.spare.push(waiting.packet);
        true
    }
}

/// Repeatable random numbers (SplitMix64): good enough to lose packets by, one line long.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// True in this part of the throws.
    fn below(&mut self, part: f64) -> bool {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let throw = (mixed ^ (mixed >> 31)) >> 11;
        (throw as f64) < part * (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn taken(line: &mut Line, now: Instant) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        while line.deliver(now, |packet| {
            out.push(packet.to_vec());
            true
        }) {}
        out
    }

    #[test]
    fn packets_come_out_in_order_after_the_delay() {
        let start = Instant::now();
        let mut line = Line::new(Path::new(10 * MS, 0.0, 1));
        line.push(b"one", start);
        line.push(b"two", start + MS);
        assert_eq!(line.next_due(), Some(start + 10 * MS));
        assert!(taken(&mut line, start + 9 * MS).is_empty());
        assert_eq!(taken(&mut line, start + 10 * MS), [b"one"]);
        assert_eq!(taken(&mut line, start + 20 * MS), [b"two"]);
        assert_eq!(line.counts().forwarded, 2);
    }

    #[test]
    fn loss_is_as_asked_and_repeatable() {
        let start = Instant::now();
        let lost = |seed| {
            let mut line = Line::new(Path::new(Duration::ZERO, 0.02, seed));
            for _ in 0..50_000 {
                line.push(b"x", start);
            }
            line.counts().lost
        };
        assert_eq!(lost(7), lost(7));
        assert!((800..1200).contains(&lost(7)), "{}", lost(7));
        assert_ne!(lost(7), lost(8));
    }

    #[test]
    fn a_rate_spreads_packets_and_a_queue_bounds_them() {
        let start = Instant::now();
        let path = Path {
            rate: Some(1_000_000),
            queue: Some(3_000),
            ..Path::new(Duration::ZERO, 0.0, 1)
        };
        let mut line = Line::new(path);
        for _ in 0..5 {
            line.push(&[0; 1000], start);
        }
        assert_eq!(line.counts().overflowed, 2);
        assert_eq!(taken(&mut line, start + MS).len(), 1);
        assert_eq!(taken(&mut line, start + 3 * MS).len(), 2);
        // The queue is empty again: the next packet waits for itself only.
        line.push(&[0; 1000], start + 10 * MS);
        assert_eq!(line.next_due(), Some(start + 11 * MS));
    }
}
