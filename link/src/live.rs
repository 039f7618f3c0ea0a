//! The live dials of one process: counted, measured, ended from outside.
//!
//! Memory that stalled readers can hold is bounded here. A stalled dial may hold up to one stream
//! window of bytes that the peer has sent. Stalled is a dial whose local reader is behind and
//! takes fewer than [`limits::MOVING_BYTES`] in each [`limits::STALLED_AFTER`]: a reader of one
//! byte at a time holds as much as one of none. When the windows of all stalled dials together
//! pass the process-wide byte budget, the dial that has been stalled longest is ended with
//! [`Reason::MemoryBudget`]; a dial that moves is never touched.
//!
//! Where no window bounds what waits for a reader ([`Held`]: a protocol without flow control for
//! one connection), the true bytes are charged instead, at once and not only at the next look.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use towline_proto::limits;
use towline_proto::reason::Reason;

/// Nothing ended the dial from outside.
const NOT_ENDED: u32 = u32::MAX;

/// One live dial as others see it.
#[derive(Debug)]
pub struct LiveDial {
    /// Bytes taken from the local end and given to the link.
    to_peer: AtomicU64,
    /// Bytes taken from the link and given to the local end.
    from_peer: AtomicU64,
    /// `from_peer` at the last look.
    looked_at: AtomicU64,
    /// Tick since which the local reader is behind and hardly takes anything; 0 while it has
    /// all there is.
    stalled_since: AtomicU32,
    ended: AtomicU32,
    waker: Mutex<Option<Waker>>,
    held: OnceLock<Arc<Held>>,
}

/// Bytes of one dial that wait in memory, with no window that bounds them.
#[derive(Debug)]
pub struct Held {
    bytes: AtomicU64,
    all: LiveDials,
}

impl Held {
    /// So many more bytes wait. Whether the budget still holds, after the longest-stalled dials
    /// were ended for it; if not, whoever adds has to give up.
    pub fn add(&self, bytes: usize) -> bool {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let shared = &self.all.shared;
        let before = shared.held.fetch_add(bytes as u64, Ordering::Relaxed);
        before.saturating_add(bytes as u64) <= shared.budget_bytes || self.all.keep_within()
    }

    /// So many were taken.
    pub fn take(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
        let held = &self.all.shared.held;
        held.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    /// How many wait.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let left = self.bytes();
        self.all.shared.held.fetch_sub(left, Ordering::Relaxed);
    }
}

impl LiveDial {
    fn new() -> Self {
        Self {
            to_peer: AtomicU64::new(0),
            from_peer: AtomicU64::new(0),
            looked_at: AtomicU64::new(0),
            stalled_since: AtomicU32::new(0),
            ended: AtomicU32::new(NOT_ENDED),
            waker: Mutex::new(None),
            held: OnceLock::new(),
        }
    }

    fn held(&self) -> u64 {
        self.held.get().map_or(0, |held| held.bytes())
    }

    /// Once in a tick: a dial that is behind but moves begins its stall anew.
    fn look(&self, now: u32) {
        let bytes = self.from_peer.load(Ordering::Relaxed);
        let moved = bytes.saturating_sub(self.looked_at.swap(bytes, Ordering::Relaxed));
        let since = self.stalled_since.load(Ordering::Relaxed);
        if since != 0 && moved >= limits::MOVING_BYTES {
            // Fails when the reader caught up at this moment, which is better still.
            let _ = self.stalled_since.compare_exchange(
                since,
                now,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
    }

    /// Bytes so far: towards the peer, from the peer.
    pub fn bytes(&self) -> (u64, u64) {
        (
            self.to_peer.load(Ordering::Relaxed),
            self.from_peer.load(Ordering::Relaxed),
        )
    }

    /// Ends the dial; the first reason wins.
    pub fn end(&self, reason: Reason) {
        let code = u32::from(reason.code());
        let _ = self
            .ended
            .compare_exchange(NOT_ENDED, code, Ordering::AcqRel, Ordering::Acquire);
        let waker = self
            .waker
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn ended(&self) -> Option<Reason> {
        match self.ended.load(Ordering::Acquire) {
            NOT_ENDED => None,
            code => Some(Reason::from_code(u16::try_from(code).unwrap_or(u16::MAX))),
        }
    }

    /// Ready when somebody ended the dial.
    pub fn poll_ended(&self, cx: &Context<'_>) -> Poll<Reason> {
        if let Some(reason) = self.ended() {
            return Poll::Ready(reason);
        }
        let mut waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        if !waker
            .as_ref()
            .is_some_and(|known| known.will_wake(cx.waker()))
        {
            *waker = Some(cx.waker().clone());
        }
        drop(waker);
        // The end may have come between the look and the registration.
        self.ended().map_or(Poll::Pending, Poll::Ready)
    }
}

#[derive(Debug)]
struct Shared {
    dials: Mutex<HashMap<u64, Arc<LiveDial>>>,
    next: AtomicU64,
    /// Counts looks of the budget task; starts at 1 so that 0 can mean "not stalled".
    tick: AtomicU32,
    budget_bytes: u64,
    /// Bytes to the peer and from it, of dials that are over. Changed under the lock of the others
    /// only, so that the sum with theirs never goes back.
    past: (AtomicU64, AtomicU64),
    /// Bytes in [`Held`].
    held: AtomicU64,
    ended_for_memory: AtomicU64,
}

/// All live dials of a process. Clones share.
#[derive(Clone, Debug)]
pub struct LiveDials {
    shared: Arc<Shared>,
}

impl LiveDials {
    /// With a budget in bytes for what stalled dials may hold together.
    pub fn new(budget_bytes: u64) -> Self {
        Self {
            shared: Arc::new(Shared {
                dials: Mutex::default(),
                next: AtomicU64::new(0),
                tick: AtomicU32::new(1),
                budget_bytes,
                past: (AtomicU64::new(0), AtomicU64::new(0)),
                held: AtomicU64::new(0),
                ended_for_memory: AtomicU64::new(0),
            }),
        }
    }

    /// A new dial; it leaves the table when the guard is dropped.
    pub fn register(&self) -> LiveGuard {
        let key = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let dial = Arc::new(LiveDial::new());
        self.lock().insert(key, Arc::clone(&dial));
        LiveGuard {
            key,
            dial,
            all: self.clone(),
        }
    }

    /// A count of bytes that wait for one dial without a window.
    pub fn hold(&self) -> Arc<Held> {
        Arc::new(Held {
            bytes: AtomicU64::new(0),
            all: self.clone(),
        })
    }

    /// Bytes that wait without a window, of all dials.
    pub fn held(&self) -> u64 {
        self.shared.held.load(Ordering::Relaxed)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Bytes to peers and from them since the start, those of dials that go on included.
    pub fn bytes(&self) -> (u64, u64) {
        let dials = self.lock();
        let (past_to, past_from) = &self.shared.past;
        let past = (
            past_to.load(Ordering::Relaxed),
            past_from.load(Ordering::Relaxed),
        );
        dials.values().fold(past, |(to_peer, from_peer), dial| {
            let (to, from) = dial.bytes();
            (to_peer + to, from_peer + from)
        })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many were ended because the budget was used up.
    pub fn ended_for_memory(&self) -> u64 {
        self.shared.ended_for_memory.load(Ordering::Relaxed)
    }

    /// How many are stalled now.
    pub fn stalled(&self) -> usize {
        self.stalled_dials().len()
    }

    /// Ends all of them.
    pub fn end_all(&self, reason: Reason) {
        let all: Vec<_> = self.lock().values().cloned().collect();
        for dial in all {
            dial.end(reason);
        }
    }

    /// Keeps the budget until the task that runs it is dropped.
    pub async fn keep_budget(self) {
        let mut interval = tokio::time::interval(limits::STALLED_AFTER);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.look();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<LiveDial>>> {
        self.shared
            .dials
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u32 {
        self.shared.tick.load(Ordering::Relaxed)
    }

    /// Stalled for at least one whole tick, longest first; without those that were ended and are
    /// on their way out.
    fn stalled_dials(&self) -> Vec<(u32, Arc<LiveDial>)> {
        let now = self.now();
        let mut stalled: Vec<_> = self
            .lock()
            .values()
            .map(|dial| (dial.stalled_since.load(Ordering::Relaxed), dial))
            .filter(|(since, dial)| {
                *since != 0 && since.saturating_add(1) < now && dial.ended().is_none()
            })
            .map(|(since, dial)| (since, Arc::clone(dial)))
            .collect();
        stalled.sort_by_key(|(since, _)| *since);
        stalled
    }

    fn look(&self) {
        // 136 years of seconds: it does not wrap.
        let now = self.shared.tick.fetch_add(1, Ordering::Relaxed) + 1;
        for dial in self.lock().values() {
            dial.look(now);
        }
        self.keep_within();
    }

    /// Ends the longest-stalled dials until the rest is within the budget. Whether it is.
    fn keep_within(&self) -> bool {
        let stalled = self.stalled_dials();
        let charge = |dial: &LiveDial| dial.held().max(u64::from(limits::STREAM_WINDOW));
        let held_by = |dials: &mut dyn Iterator<Item = &Arc<LiveDial>>| -> u64 {
            dials.map(|dial| dial.held()).sum()
        };
        // On their way out, and those that move.
        let ended: u64 = held_by(&mut self.lock().values().filter(|dial| dial.ended().is_some()));
        let of_stalled = held_by(&mut stalled.iter().map(|(_, dial)| dial));
        let others = self.held().saturating_sub(ended).saturating_sub(of_stalled);
        let charged: u64 = stalled.iter().map(|(_, dial)| charge(dial)).sum();
        let mut total = others.saturating_add(charged);
        for (_, dial) in &stalled {
            if total <= self.shared.budget_bytes {
                break;
            }
            total -= charge(dial);
            self.shared.ended_for_memory.fetch_add(1, Ordering::Relaxed);
            dial.end(Reason::MemoryBudget);
        }
        total <= self.shared.budget_bytes
    }
}

/// A dial's place among the live ones.
#[derive(Debug)]
pub struct LiveGuard {
    key: u64,
    dial: Arc<LiveDial>,
    all: LiveDials,
}

impl LiveGuard {
    /// The dial as others see it.
    pub fn dial(&self) -> &Arc<LiveDial> {
        &self.dial
    }

    /// Charges the dial with what waits for it instead of a stream window.
    pub fn charge(&self, held: Arc<Held>) {
        // A dial has one stream; a second one would be charged by the look only.
        let _ = self.dial.held.set(held);
    }

    /// Bytes that went to the peer.
    pub fn count_to_peer(&self, bytes: usize) {
        self.dial.to_peer.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes that the local end took.
    pub fn count_from_peer(&self, bytes: usize) {
        self.dial
            .from_peer
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The local reader has taken all there is.
    pub fn mark_caught_up(&self) {
        if self.dial.stalled_since.load(Ordering::Relaxed) != 0 {
            self.dial.stalled_since.store(0, Ordering::Relaxed);
        }
    }

    /// The local reader takes nothing at the moment.
    pub fn mark_stalled(&self) {
        if self.dial.stalled_since.load(Ordering::Relaxed) == 0 {
            self.dial
                .stalled_since
                .store(self.all.now(), Ordering::Relaxed);
        }
    }
}

impl Drop for LiveGuard {
    fn drop(&mut self) {
        let mut dials = self.all.lock();
        let (to_peer, from_peer) = self.dial.bytes();
        let (past_to, past_from) = &self.all.shared.past;
        past_to.fetch_add(to_peer, Ordering::Relaxed);
        past_from.fetch_add(from_peer, Ordering::Relaxed);
        dials.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_count_while_they_move_and_once() {
        let dials = LiveDials::new(u64::MAX);
        let (one, other) = (dials.register(), dials.register());
        one.count_to_peer(3);
        other.count_from_peer(5);
        assert_eq!(dials.bytes(), (3, 5));
        drop(one);
        other.count_to_peer(4);
        assert_eq!(dials.bytes(), (7, 5));
        drop(other);
        assert_eq!(dials.bytes(), (7, 5));
    }

    #[test]
    fn the_budget_ends_those_stalled_longest_and_no_others() {
        let dials = LiveDials::new(2 * u64::from(limits::STREAM_WINDOW));
        let guards: Vec<_> = (0..5).map(|_| dials.register()).collect();
        for guard in &guards[..4] {
            guard.mark_stalled();
            dials.look();
        }
        // The second one moves; the third, behind as long, takes next to nothing.
        guards[1].count_from_peer(limits::MOVING_BYTES as usize);
        guards[2].count_from_peer(1);
        dials.look();
        dials.look();
        let ended: Vec<_> = guards.iter().map(|guard| guard.dial().ended()).collect();
        assert_eq!(ended, [Some(Reason::MemoryBudget), None, None, None, None]);
        assert_eq!(dials.ended_for_memory(), 1);
    }

    #[test]
    fn a_reader_of_one_byte_at_a_time_counts_as_stalled_until_it_has_all() {
        let dials = LiveDials::new(u64::MAX);
        let guard = dials.register();
        guard.mark_stalled();
        for _ in 0..3 {
            guard.count_from_peer(1);
            dials.look();
        }
        assert_eq!(dials.stalled(), 1);
        guard.mark_caught_up();
        assert_eq!(dials.stalled(), 0);
    }

    #[test]
    fn bytes_without_a_window_are_charged_as_they_come() {
        let window = u64::from(limits::STREAM_WINDOW);
        let dials = LiveDials::new(10 * window);
        let (old, new) = (dials.register(), dials.register());
        let (old_held, new_held) = (dials.hold(), dials.hold());
        old.charge(Arc::clone(&old_held));
        new.charge(Arc::clone(&new_held));
        // Nobody is stalled for long enough yet: who adds gives up.
        assert!(new_held.add(8 * window as usize));
        assert!(!old_held.add(6 * window as usize));
        old.mark_stalled();
        dials.look();
        new.mark_stalled();
        dials.look();
        assert_eq!(old.dial().ended(), Some(Reason::MemoryBudget));
        assert_eq!(new.dial().ended(), None);
        // What the ended one still holds does not count against the others.
        assert!(new_held.add(window as usize));
        drop((old, old_held));
        assert_eq!(dials.held(), 9 * window);
        new_held.take(9 * window as usize);
        assert_eq!((dials.held(), new_held.bytes()), (0, 0));
    }

    #[test]
    fn a_dial_leaves_the_table_with_its_guard() {
        let dials = LiveDials::new(0);
        let guard = dials.register();
        assert_eq!(dials.len(), 1);
        drop(guard);
        assert!(dials.is_empty());
    }

    #[test]
    fn the_first_reason_wins() {
        let dials = LiveDials::new(0);
        let guard = dials.register();
        dials.end_all(Reason::Denied);
        guard.dial().end(Reason::Shutdown);
        assert_eq!(guard.dial().ended(), Some(Reason::Denied));
    }
}
