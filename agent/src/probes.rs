//! When a link on tls tries quic again: pure, but for the lot that spreads a fleet.
//!
//! Soon after a link came on tls (a restarted server may have had its TCP port up first), then
//! ever later up to the usual time. Where quic links are made but do not last (a network that
//! throttles UDP) each move costs dials, so the pauses grow beyond the usual time.

use std::time::Duration;

use crate::attempt::jitter;

/// The first probe comes after this part of the usual time.
const FIRST: u32 = 12;
/// Where quic does not last, probes come this much later than usual at the most.
const LAST: u32 = 8;

/// The pauses of one server's link.
#[derive(Debug)]
pub(crate) struct Probes {
    usual: Duration,
    next: Duration,
    quic_lived: Option<Duration>,
}

impl Probes {
    /// `usual` is the pause that probes settle at.
    pub(crate) fn new(usual: Duration) -> Self {
        Self {
            usual,
            next: usual / FIRST,
            quic_lived: None,
        }
    }

    /// A quic link ended.
    pub(crate) fn quic_ended(&mut self, lived: Duration) {
        self.quic_lived = Some(lived);
    }

    /// A link came on tls.
    pub(crate) fn fell_back(&mut self) {
        self.next = match self.quic_lived.take() {
            Some(lived) if lived < self.usual => self.longer(self.usual * LAST),
            _ => self.usual / FIRST,
        };
    }

    /// The pause before the next probe: three quarters to five quarters of its length.
    pub(crate) fn pause(&mut self) -> Duration {
        let full = self.next;
        self.next = self.longer(self.usual);
        full * 3 / 4 + jitter(full / 2)
    }

    fn longer(&self, most: Duration) -> Duration {
        (self.next * 2).min(most.max(self.next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn probes_begin_soon_and_settle_at_the_usual_time() {
        let mut probes = Probes::new(MINUTE);
        probes.fell_back();
        assert!(probes.pause() <= Duration::from_secs(7));
        for _ in 0..10 {
            probes.pause();
        }
        let settled = probes.pause();
        assert!(
            settled >= MINUTE * 3 / 4 && settled <= MINUTE * 5 / 4,
            "{settled:?}"
        );
    }

    #[test]
    fn quic_that_does_not_last_is_tried_ever_later() {
        let mut probes = Probes::new(MINUTE);
        for _ in 0..20 {
            probes.quic_ended(Duration::from_secs(3));
            probes.fell_back();
            probes.pause();
        }
        assert!(probes.pause() >= MINUTE * LAST * 3 / 4);
        probes.quic_ended(2 * MINUTE);
        probes.fell_back();
        assert!(probes.pause() <= Duration::from_secs(7));
    }
}
