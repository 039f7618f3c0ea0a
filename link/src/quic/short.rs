//! Congestion control that keeps the queue short.
//!
//! quinn's BBR takes the rate between two neighbouring acknowledgements for the path's. Where the
//! whole path is one machine or one rack, batches arrive at once, that rate comes out many times
//! too high, and the window no longer bounds anything: a bulk dial then keeps a whole stream
//! window in the receiver's socket, and every other dial of the link waits behind it. This
//! wrapper measures the rate over a longer time and holds the window to twice what the path
//! carries at that rate, plus [`limits::QUIC_QUEUE`]; for a dial that is alone on its link, plus
//! [`limits::QUIC_QUEUE_ALONE`]. What does not fit waits in the sender's own streams, which take
//! turns.
//!
//! On a long path twice the bandwidth-delay product is what the inner control wants at most
//! anyway. The path's own delay is the least of the last two periods; once in a period the
//! flight is drained for a moment so that the least is not that of a queue of our own.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::Connection;
use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics};
use quinn_proto::RttEstimator;
use towline_proto::limits;

use crate::company::SharedCompany;

/// A rate is measured over at least this time, and over two round trips.
const SAMPLE: Duration = Duration::from_millis(2);
/// The best of so many samples counts.
const SAMPLES: usize = 10;
/// The path's delay is looked for anew in each period.
const PERIOD: Duration = Duration::from_secs(10);
/// Time for the flight to drain at the end of a period, beside two round trips.
const DRAIN: Duration = Duration::from_millis(5);
/// Window while it drains, datagrams.
const DRAINED: u64 = 16;

/// Wraps the congestion control that was chosen.
pub(super) struct Short(pub(super) Arc<dyn ControllerFactory + Send + Sync>);

impl ControllerFactory for Short {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let inner = Arc::clone(&self.0).build(now, mtu);
        Box::new(ShortQueue {
            inner,
            path: Path::new(now, mtu),
            company: Arc::default(),
        })
    }
}

/// Whom the streams of this connection tell that they move bytes. A path that the connection moved
/// to has a control of its own that nobody tells anything: there, bulk is held short always.
pub(super) fn company_of(connection: &Connection) -> Arc<SharedCompany> {
    let control = connection.congestion_state().into_any();
    let company = control
        .downcast::<ShortQueue>()
        .map(|control| control.company)
        .unwrap_or_default();
    company.listen();
    company
}

struct ShortQueue {
    inner: Box<dyn Controller>,
    path: Path,
    company: Arc<SharedCompany>,
}

/// What was measured, and the bound that follows from it.
#[derive(Clone)]
struct Path {
    mtu: u64,
    /// Bytes acknowledged since then.
    acked: u64,
    since: Instant,
    rates: VecDeque<u64>,
    /// Least delay of this period and of the one before.
    least: [Option<Duration>; 2],
    period: Instant,
    drain_until: Option<Instant>,
    /// Twice what the path carries; unbounded until something was measured.
    carried: u64,
    /// Nobody else on the link moves bytes.
    alone: bool,
}

impl Path {
    fn new(now: Instant, mtu: u16) -> Self {
        Self {
            mtu: mtu.into(),
            acked: 0,
            since: now,
            rates: VecDeque::with_capacity(SAMPLES),
            least: [None; 2],
            period: now,
            drain_until: None,
            carried: u64::MAX,
            alone: false,
        }
    }

    fn acked(&mut self, now: Instant, sent: Instant, bytes: u64) {
        self.acked += bytes;
        let delay = now.saturating_duration_since(sent);
        let least = self.least[0].map_or(delay, |least| least.min(delay));
        self.least[0] = Some(least);
    }

    fn delay(&self) -> Option<Duration> {
        self.least.iter().flatten().min().copied()
    }

    fn ended_acks(&mut self, now: Instant) {
        let Some(delay) = self.delay() else { return };
        if self.drain_until.is_some_and(|until| now >= until) {
            self.drain_until = None;
            // What was acknowledged meanwhile says nothing about the path's rate.
            (self.acked, self.since) = (0, now);
        }
        if now.saturating_duration_since(self.period) >= PERIOD {
            self.period = now;
            self.least = [None, self.least[0]];
            self.drain_until = Some(now + DRAIN + 2 * delay);
        }
        let elapsed = now.saturating_duration_since(self.since);
        if self.drain_until.is_some() || elapsed < SAMPLE.max(2 * delay) {
            return;
        }
        if self.rates.len() == SAMPLES {
            self.rates.pop_front();
        }
        self.rates.push_back(per_second(self.acked, elapsed));
        (self.acked, self.since) = (0, now);
        let rate = self.rates.iter().copied().max().unwrap_or(0);
        self.carried = carried(rate, 2 * delay);
    }

    fn window(&self, inner: u64) -> u64 {
        let queue = match self.alone {
            true => limits::QUIC_QUEUE_ALONE,
            false => limits::QUIC_QUEUE,
        };
        let bound = self.carried.saturating_add(queue);
        match self.drain_until {
            Some(_) => inner.min(bound).min(DRAINED * self.mtu),
            None => inner.min(bound),
        }
    }
}

/// Bytes a second.
fn per_second(bytes: u64, time: Duration) -> u64 {
    let rate = u128::from(bytes) * 1_000_000_000 / time.as_nanos().max(1);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

/// Bytes that this rate carries in this time.
fn carried(rate: u64, time: Duration) -> u64 {
    let bytes = u128::from(rate) * time.as_nanos() / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

impl Controller for ShortQueue {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
        self.path.acked(now, sent, bytes);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.inner
            .on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
        self.path.alone = !self.company.is_here(now);
        self.path.ended_acks(now);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.inner
            .on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.path.mtu = new_mtu.into();
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.path.window(self.inner.window())
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.inner.metrics();
        metrics.congestion_window = self.window();
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            inner: self.inner.clone_box(),
            path: self.path.clone(),
            company: Arc::clone(&self.company),
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MTU: u16 = 1452;

    /// A path of this delay that carries so many bytes a second, for a while.
    fn path(delay: Duration, rate: u64, time: Duration) -> (Path, Instant) {
        let mut now = Instant::now();
        let mut path = Path::new(now, MTU);
        let (step, end) = (Duration::from_millis(1), now + time);
        while now < end {
            now += step;
            path.acked(now, now - delay, carried(rate, step));
            path.ended_acks(now);
        }
        (path, now)
    }

    #[test]
    fn nothing_measured_bounds_nothing() {
        let path = Path::new(Instant::now(), MTU);
        assert_eq!(path.window(u64::MAX), u64::MAX);
    }

    #[test]
    fn a_short_path_gets_little_more_than_the_queue() {
        let time = Duration::from_millis(100);
        let (path, _) = path(Duration::from_micros(100), 400_000_000, time);
        assert_eq!(path.window(u64::MAX), limits::QUIC_QUEUE + 80_000);
        assert_eq!(path.window(10_000), 10_000);
    }

    #[test]
    fn a_dial_alone_gets_a_longer_queue_and_loses_it_when_company_comes() {
        let mut now = Instant::now();
        let inner: Arc<dyn ControllerFactory + Send + Sync> =
            Arc::new(quinn::congestion::CubicConfig::default());
        let mut control = ShortQueue {
            inner: inner.build(now, MTU),
            path: Path::new(now, MTU),
            company: Arc::default(),
        };
        let mut queue = |control: &mut ShortQueue| {
            for _ in 0..100 {
                now += Duration::from_millis(1);
                control
                    .path
                    .acked(now, now - Duration::from_micros(100), 400_000);
                control.on_end_acks(now, 0, false, None);
            }
            (control.path.window(u64::MAX) - control.path.carried, now)
        };
        assert_eq!(queue(&mut control).0, limits::QUIC_QUEUE, "nobody listens");
        control.company.listen();
        let (alone, now) = queue(&mut control);
        assert_eq!(alone, limits::QUIC_QUEUE_ALONE);
        control.company.heard(1, now);
        assert_eq!(queue(&mut control).0, limits::QUIC_QUEUE_ALONE);
        control.company.heard(2, now);
        assert_eq!(queue(&mut control).0, limits::QUIC_QUEUE);
    }

    #[test]
    fn a_long_path_gets_twice_what_it_carries() {
        let delay = Duration::from_millis(20);
        let (path, _) = path(delay, 100_000_000, Duration::from_secs(1));
        let carried = 2 * carried(100_000_000, delay);
        assert!(path.window(u64::MAX) >= carried, "{}", path.carried);
    }

    #[test]
    fn a_path_that_became_longer_is_noticed() {
        let short = Duration::from_micros(100);
        let (mut path, mut now) = path(short, 100_000_000, Duration::from_millis(100));
        let before = path.window(u64::MAX);
        let (long, end) = (Duration::from_millis(20), now + 3 * PERIOD);
        let mut drained = false;
        while now < end {
            now += Duration::from_millis(1);
            path.acked(now, now - long, 100_000);
            path.ended_acks(now);
            drained |= path.window(u64::MAX) == DRAINED * u64::from(MTU);
        }
        assert!(drained && path.drain_until.is_none());
        assert!(path.window(u64::MAX) > before + 3_000_000);
    }
}
