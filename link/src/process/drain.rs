//! Stopping as a value that is passed down, and the one place where its order is written.
//!
//! 1. [`Drain::begin`]: stage `draining`. Accept loops close their listeners, sessions tell
//!    their peers, new dials are refused; live dials go on.
//! 2. When the last [`WorkGuard`] is gone: stage `closing`. Nothing is left to protect; links
//!    say goodbye and close, loops return.
//! 3. When the deadline passes first, or on [`Drain::force`] (the second signal): stage
//!    `forced`. Work is reset with a reason, links close at once.
//! 4. When the last [`DrainWatch`] is gone, or [`limits::DRAIN_FORCED`] after step 2 or 3, the
//!    drain is over. The admin listener is no part of it: it answers until the very end.
//!
//! [`Drain::finish`] walks through these steps. A dropped [`Drain`] (all its clones) counts as
//! forced, so that nothing outlives its owner. Tasks hold watches and guards; dropping is the
//! only thing they must do to be counted as done, also when they panic.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use towline_proto::limits;

/// How far stopping has come. Later stages are greater; it never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Not stopping.
    Running,
    /// No new work; old work may finish until the deadline.
    Draining {
        /// When the stage becomes [`Stage::Forced`].
        deadline: Instant,
    },
    /// Work is done: say goodbye and return.
    Closing,
    /// Stop now, whatever is left.
    Forced,
}

impl Stage {
    /// The word for logs, readiness and status.
    pub const fn as_str(self) -> &'static str {
        match self {
            Stage::Running => "running",
            Stage::Draining { .. } => "draining",
            Stage::Closing => "closing",
            Stage::Forced => "forced",
        }
    }

    const fn rank(self) -> u8 {
        match self {
            Stage::Running => 0,
            Stage::Draining { .. } => 1,
            Stage::Closing => 2,
            Stage::Forced => 3,
        }
    }
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All work ended by itself and every watch was given back.
    Clean,
    /// Work was cut: by the deadline or by force.
    Cut {
        /// Guards that were held at that moment.
        work: usize,
    },
    /// Watches were still held at the very end; their tasks are left to be aborted.
    Abandoned {
        /// Guards that were held when the stage became forced (0 if it did not).
        work: usize,
        /// Watches that were never given back.
        watches: usize,
    },
}

struct Shared {
    stage: watch::Sender<Stage>,
    watches: watch::Sender<()>,
    work: watch::Sender<()>,
    /// Guards that were held when the stage became forced.
    cut: AtomicUsize,
    /// [`Drain::force`] was called: it was not the deadline, or not alone.
    forced: AtomicBool,
}

/// The trigger. Clones are the same trigger.
#[derive(Clone)]
pub struct Drain {
    shared: Arc<Shared>,
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Drain {
    /// A drain that has not begun.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                stage: watch::Sender::new(Stage::Running),
                watches: watch::Sender::new(()),
                work: watch::Sender::new(()),
                cut: AtomicUsize::new(0),
                forced: AtomicBool::new(false),
            }),
        }
    }

    /// A watch: its holder is waited for. Watches may be made at any stage.
    pub fn watch(&self) -> DrainWatch {
        DrainWatch {
            view: self.view(),
            _held: self.shared.watches.subscribe(),
            work: self.shared.work.clone(),
        }
    }

    /// Sees the stage without being waited for (readiness, status, metrics).
    pub fn view(&self) -> DrainView {
        DrainView {
            stage: self.shared.stage.subscribe(),
        }
    }

    /// The stage now.
    pub fn stage(&self) -> Stage {
        *self.shared.stage.borrow()
    }

    /// Step 1. Does nothing when stopping has already begun.
    pub fn begin(&self, grace: Duration) {
        self.advance(Stage::Draining {
            deadline: Instant::now() + grace,
        });
    }

    /// Step 3 at once.
    pub fn force(&self) {
        self.shared.forced.store(true, Ordering::Relaxed);
        self.advance(Stage::Forced);
    }

    /// Whether somebody did not wait for the deadline.
    pub fn was_forced(&self) -> bool {
        self.shared.forced.load(Ordering::Relaxed)
    }

    /// Waits until stopping begins, then carries out the order in this file's head.
    ///
    /// Cancel-safe: the steps depend only on the stage.
    pub async fn finish(&self) -> Outcome {
        let stage = self.view();
        if let Stage::Draining { deadline } = stage.signalled().await {
            tokio::select! {
                biased;
                () = stage.forced() => {}
                () = self.shared.work.closed() => self.advance(Stage::Closing),
                () = tokio::time::sleep_until(deadline) => self.advance(Stage::Forced),
            }
        }
        let over = || tokio::time::timeout(limits::DRAIN_FORCED, self.shared.watches.closed());
        if over().await.is_err() {
            self.advance(Stage::Forced);
            let _ = over().await;
        }
        let work = self.shared.cut.load(Ordering::Relaxed);
        match self.shared.watches.receiver_count() {
            0 if work == 0 => Outcome::Clean,
            0 => Outcome::Cut { work },
            watches => Outcome::Abandoned { work, watches },
        }
    }

    /// Guards that are held now.
    pub fn work(&self) -> usize {
        self.shared.work.receiver_count()
    }

    fn advance(&self, next: Stage) {
        self.shared.stage.send_if_modified(|stage| {
            let forward = next.rank() > stage.rank();
            if forward {
                if next == Stage::Forced {
                    self.shared.cut.store(self.work(), Ordering::Relaxed);
                }
                *stage = next;
            }
            forward
        });
    }
}

/// Sees the stage; nobody waits for it.
#[derive(Clone)]
pub struct DrainView {
    stage: watch::Receiver<Stage>,
}

impl DrainView {
    /// The stage now.
    pub fn stage(&self) -> Stage {
        if self.stage.has_changed().is_err() {
            return Stage::Forced;
        }
        *self.stage.borrow()
    }

    /// Whether stopping has begun.
    pub fn is_signalled(&self) -> bool {
        self.stage() != Stage::Running
    }

    /// Resolves when stopping has begun, with the stage. Cancel-safe.
    pub async fn signalled(&self) -> Stage {
        self.reached(1).await
    }

    /// Resolves when there is no work left to protect (or it was cut). Cancel-safe.
    pub async fn closing(&self) -> Stage {
        self.reached(2).await
    }

    /// Resolves when everything must stop at once. Cancel-safe.
    pub async fn forced(&self) {
        self.reached(3).await;
    }

    async fn reached(&self, rank: u8) -> Stage {
        match self
            .stage
            .clone()
            .wait_for(|stage| stage.rank() >= rank)
            .await
        {
            Ok(stage) => *stage,
            Err(_) => Stage::Forced,
        }
    }
}

/// Sees the stage, and the drain is not over before it is dropped. For tasks that carry work
/// but are none: accept loops, links, watchers.
#[derive(Clone)]
pub struct DrainWatch {
    view: DrainView,
    _held: watch::Receiver<()>,
    work: watch::Sender<()>,
}

impl DrainWatch {
    /// Marks one piece of work (a dial) that a graceful stop waits for.
    pub fn guard(&self) -> WorkGuard {
        WorkGuard {
            _held: self.work.subscribe(),
        }
    }

    /// The same stage, without being waited for.
    pub fn view(&self) -> DrainView {
        self.view.clone()
    }
}

impl std::ops::Deref for DrainWatch {
    type Target = DrainView;

    fn deref(&self) -> &DrainView {
        &self.view
    }
}

/// One piece of work. A graceful stop goes on when none is left.
#[derive(Clone)]
pub struct WorkGuard {
    _held: watch::Receiver<()>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_drain_without_work_is_over_when_the_watches_are_gone() {
        let drain = Drain::new();
        let watch = drain.watch();
        let task = tokio::spawn(async move { watch.closing().await });
        assert_eq!(drain.stage(), Stage::Running);
        let begun = Instant::now();
        drain.begin(GRACE);
        assert_eq!(drain.finish().await, Outcome::Clean);
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert_eq!(task.await.expect("joined"), Stage::Closing);
    }

    #[tokio::test(start_paused = true)]
    async fn work_may_end_before_the_deadline() {
        let drain = Drain::new();
        let watch = drain.watch();
        let guard = watch.guard();
        let task = tokio::spawn(async move {
            assert!(matches!(watch.signalled().await, Stage::Draining { .. }));
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert!(matches!(watch.stage(), Stage::Draining { .. }));
            drop(guard);
            watch.closing().await
        });
        let begun = Instant::now();
        drain.begin(GRACE);
        assert_eq!(drain.finish().await, Outcome::Clean);
        assert_eq!(begun.elapsed(), Duration::from_secs(10));
        assert_eq!(task.await.expect("joined"), Stage::Closing);
    }

    #[tokio::test(start_paused = true)]
    async fn work_is_cut_at_the_deadline() {
        let drain = Drain::new();
        let watch = drain.watch();
        let guards = [watch.guard(), watch.guard()];
        tokio::spawn(async move {
            watch.forced().await;
            drop((guards, watch));
        });
        let begun = Instant::now();
        drain.begin(GRACE);
        assert_eq!(drain.finish().await, Outcome::Cut { work: 2 });
        assert_eq!(begun.elapsed(), GRACE);
        assert!(!drain.was_forced());
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_ends_the_wait_at_once() {
        let drain = Drain::new();
        let watch = drain.watch();
        let guard = watch.guard();
        let trigger = drain.clone();
        tokio::spawn(async move {
            watch.signalled().await;
            trigger.force();
            watch.forced().await;
            drop((guard, watch));
        });
        let begun = Instant::now();
        drain.begin(GRACE);
        assert_eq!(drain.finish().await, Outcome::Cut { work: 1 });
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert!(drain.was_forced());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_let_go_is_abandoned() {
        let drain = Drain::new();
        let held = drain.watch();
        let begun = Instant::now();
        drain.begin(GRACE);
        assert_eq!(
            drain.finish().await,
            Outcome::Abandoned {
                work: 0,
                watches: 1
            }
        );
        assert_eq!(begun.elapsed(), limits::DRAIN_FORCED * 2);
        assert_eq!(held.stage(), Stage::Forced);
        assert!(!drain.was_forced());
    }

    #[tokio::test(start_paused = true)]
    async fn the_stage_never_goes_back_and_the_first_deadline_stays() {
        let drain = Drain::new();
        drain.begin(GRACE);
        let first = drain.stage();
        tokio::time::advance(Duration::from_secs(1)).await;
        drain.begin(GRACE);
        assert_eq!(drain.stage(), first);
        drain.force();
        drain.begin(GRACE);
        assert_eq!(drain.stage(), Stage::Forced);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_trigger_counts_as_forced() {
        let drain = Drain::new();
        let watch = drain.watch();
        drop(drain);
        watch.forced().await;
        assert_eq!(watch.signalled().await, Stage::Forced);
        assert_eq!(watch.stage(), Stage::Forced);
    }

    #[tokio::test(start_paused = true)]
    async fn a_panicked_task_gives_its_watch_and_guard_back() {
        let drain = Drain::new();
        let watch = drain.watch();
        let guard = watch.guard();
        let task = tokio::spawn(async move {
            let _held = (&watch, &guard);
            watch.signalled().await;
            panic!("as planned");
        });
        drain.begin(GRACE);
        assert_eq!(drain.finish().await, Outcome::Clean);
        assert!(task.await.is_err());
    }
}
