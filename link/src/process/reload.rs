//! Files that change are put in force while the daemon runs: on a file event, on a look, on
//! SIGHUP or `POST /reload`.
//!
//! The daemon gives one function that reads everything, checks it and puts it in force, or
//! fails and leaves what was in force as it is. It runs on a thread for blocking work, one run
//! at a time. A set that failed is tried again every [`limits::RELOAD_RETRY`] even when the
//! files stay as they are: a certificate may become valid, a descriptor may be free again.
//!
//! Metrics: `towline_reload_total{what,result}` and
//! `towline_reload_last_success_timestamp_seconds{what}`. A failure is logged with its cause,
//! repeated ones once in ten minutes, and is a note in `/readyz?verbose` until it is mended: what
//! was in force works on, so nobody is turned away.

use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use towline_pki::date;
use towline_proto::limits;
use tracing::{error, info};

use super::ratelimit::RateLimited;
use super::ready::Condition;
use super::watch::Watch;

/// Why a reload that was asked for did not happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReloadError {
    /// What was in force stays in force.
    #[error("{0}; what was in force stays in force")]
    Refused(String),
    /// Too many wait already.
    #[error("too many reloads are waiting")]
    Busy,
    /// The daemon is ending.
    #[error("the daemon is stopping")]
    Stopped,
}

/// Keeps one set of files in force; dropping it ends that.
pub struct Reloader {
    handle: ReloadHandle,
    _task: JoinSet<()>,
}

/// Asks for a reload.
#[derive(Clone)]
pub struct ReloadHandle {
    requests: mpsc::Sender<Request>,
    failing: Arc<AtomicBool>,
}

type Request = oneshot::Sender<Result<(), ReloadError>>;

impl Reloader {
    /// Starts watching. `apply` reads the files and puts them in force; its error is for
    /// people. `what` names the set in metrics and logs; `noted` is where a failure is told, unless
    /// `apply` tells it itself.
    pub fn start<E: Display>(
        what: &'static str,
        watch: Watch,
        metrics: ReloadMetrics,
        noted: Option<Condition>,
        apply: impl Fn() -> Result<(), E> + Send + Sync + 'static,
    ) -> Self {
        let (requests, incoming) = mpsc::channel(limits::RELOAD_REQUESTS);
        let apply = Arc::new(move || apply().map_err(|error| error.to_string()));
        let mut task = JoinSet::new();
        let failing = Arc::new(AtomicBool::new(false));
        if let Some(condition) = &noted {
            condition.met();
        }
        let keeping = Keeping {
            what,
            noted,
            since: None,
            apply,
            metrics,
            failing: Arc::clone(&failing),
            said: RateLimited::new(1, Duration::from_secs(600)),
        };
        task.spawn(keeping.run(watch, incoming));
        Self {
            handle: ReloadHandle { requests, failing },
            _task: task,
        }
    }

    /// For the admin socket and signals.
    pub fn handle(&self) -> ReloadHandle {
        self.handle.clone()
    }
}

impl ReloadHandle {
    /// Whether the last look failed: what is in force is older than the files.
    pub fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// Reads the files now, whether they changed or not, and says how it went.
    pub async fn reload_now(&self) -> Result<(), ReloadError> {
        let (answer, answered) = oneshot::channel();
        self.requests
            .try_send(answer)
            .map_err(|refused| match refused {
                mpsc::error::TrySendError::Full(_) => ReloadError::Busy,
                mpsc::error::TrySendError::Closed(_) => ReloadError::Stopped,
            })?;
        answered.await.unwrap_or(Err(ReloadError::Stopped))
    }
}

struct Keeping<F> {
    what: &'static str,
    noted: Option<Condition>,
    /// When it first failed, since it last worked.
    since: Option<SystemTime>,
    apply: Arc<F>,
    metrics: ReloadMetrics,
    failing: Arc<AtomicBool>,
    said: RateLimited<()>,
}

impl<F> Keeping<F>
where
    F: Fn() -> Result<(), String> + Send + Sync + 'static,
{
    async fn run(mut self, mut watch: Watch, mut requests: mpsc::Receiver<Request>) {
        loop {
            let mut asked: Vec<Request> = Vec::new();
            tokio::select! {
                () = watch.changed() => {}
                () = tokio::time::sleep(limits::RELOAD_RETRY), if self.failing.load(Ordering::Relaxed) => {}
                Some(request) = requests.recv() => asked.push(request),
            }
            // One run answers all that waited when it began.
            while let Ok(request) = requests.try_recv() {
                asked.push(request);
            }
            let result = self.apply(!asked.is_empty()).await;
            for request in asked {
                let _ = request.send(result.clone());
            }
        }
    }

    async fn apply(&mut self, asked: bool) -> Result<(), ReloadError> {
        let apply = Arc::clone(&self.apply);
        let run = tokio::task::spawn_blocking(move || {
            std::panic::catch_unwind(AssertUnwindSafe(|| apply()))
                .unwrap_or_else(|_| Err("a defect: it panicked".into()))
        });
        let result = run
            .await
            .unwrap_or_else(|_| Err("the runtime is ending".into()));
        self.metrics.count(self.what, result.is_ok());
        self.note(result.as_ref().err(), SystemTime::now());
        match result {
            Ok(()) => {
                let after_failure = self.failing.swap(false, Ordering::Relaxed);
                info!(what = self.what, asked, after_failure, "files are in force");
                Ok(())
            }
            Err(text) => {
                let repeated = self.failing.swap(true, Ordering::Relaxed);
                let due = self.said.allow(());
                if asked || !repeated || due.is_some() {
                    error!(
                        what = self.what,
                        error = text,
                        suppressed = due.unwrap_or(0),
                        "reload failed, what was in force stays in force"
                    );
                }
                Err(ReloadError::Refused(text))
            }
        }
    }
}

impl<F> Keeping<F> {
    /// The cause comes last: it is as long as its paths, and may be cut.
    fn note(&mut self, failure: Option<&String>, now: SystemTime) {
        let since = failure.map(|_| *self.since.get_or_insert(now));
        self.since = since;
        let Some(condition) = &self.noted else {
            return;
        };
        match failure.zip(since) {
            Some((error, since)) => condition.note(format!(
                "a change is kept out since {}, what was in force works on; mend it, it is read \
                 again by itself: {error}",
                date::text(since)
            )),
            None => condition.met(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Run {
    what: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Set {
    what: &'static str,
}

/// Reloads by set. One for a daemon, registered once.
#[derive(Clone, Default)]
pub struct ReloadMetrics {
    runs: Family<Run, Counter>,
    last_success: Family<Set, Gauge>,
}

impl ReloadMetrics {
    /// Adds the metrics to a registry.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "towline_reload",
            "Reloads of files by result",
            metrics.runs.clone(),
        );
        registry.register(
            "towline_reload_last_success_timestamp_seconds",
            "When a set of files was last put in force, seconds since 1970",
            metrics.last_success.clone(),
        );
        metrics
    }

    /// Counts a load; also called for the first one, at start.
    pub fn count(&self, what: &'static str, worked: bool) {
        let result = if worked { "success" } else { "failure" };
        self.runs.get_or_create(&Run { what, result }).inc();
        if worked {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs();
            self.last_success
                .get_or_create(&Set { what })
                .set(i64::try_from(now).unwrap_or(i64::MAX));
        }
    }

    /// How often a set was loaded with that result.
    pub fn runs(&self, what: &'static str, worked: bool) -> u64 {
        let result = if worked { "success" } else { "failure" };
        self.runs.get_or_create(&Run { what, result }).get()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;

    use tokio::sync::watch;

    use super::super::ready::Readiness;
    use super::*;

    /// Loads a number; what is in force can be waited for.
    fn number(
        path: &Path,
        readiness: &Readiness,
    ) -> (Reloader, watch::Receiver<u32>, ReloadMetrics) {
        let metrics = ReloadMetrics::default();
        let (in_force, seen) = watch::channel(0);
        let watch = Watch::new([path.to_owned()]);
        let path = path.to_owned();
        let condition = readiness.condition("number", "not read yet");
        let reloader = Reloader::start(
            "number",
            watch,
            metrics.clone(),
            Some(condition),
            move || {
                let text = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
                in_force.send_replace(
                    text.parse()
                        .map_err(|error| format!("not a number: {error}"))?,
                );
                Ok::<(), String>(())
            },
        );
        (reloader, seen, metrics)
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_comes_into_force_and_a_bad_one_does_not() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("number");
        let readiness = Readiness::new();
        let (reloader, mut seen, metrics) = number(&path, &readiness);
        assert_eq!(readiness.report().to_string(), "[+]number ok\nready\n");
        std::fs::write(&path, "7").expect("written");
        assert_eq!(*seen.wait_for(|n| *n == 7).await.expect("open"), 7);

        std::fs::write(&path, "seven").expect("written");
        let error = reloader
            .handle()
            .reload_now()
            .await
            .expect_err("not a number");
        assert!(error.to_string().contains("not a number"), "{error}");
        assert_eq!(*seen.borrow(), 7);
        assert!(metrics.runs("number", false) >= 1);
        let report = readiness.report();
        let (_, note) = report.notes().next().expect("a note");
        assert!(report.is_ready(), "what was in force works on");
        for words in [
            "kept out since 20",
            "Z, what was in force works on; mend it",
            ": not a number",
        ] {
            assert!(note.contains(words), "{words}: {note}");
        }
        assert!(reloader.handle().reload_now().await.is_err());
        let again = readiness.report();
        assert_eq!(again, report, "since the first failure, not the last");

        std::fs::write(&path, "8").expect("written");
        seen.wait_for(|n| *n == 8).await.expect("open");
        reloader.handle().reload_now().await.expect("a number");
        assert_eq!(readiness.report().notes().count(), 0);
        let mut registry = Registry::default();
        registry.register("towline_reload", "", metrics.runs.clone());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("encoded");
        assert!(
            text.contains("towline_reload_total{what=\"number\",result=\"failure\"}"),
            "{text}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_set_that_failed_is_tried_again_although_nothing_changed() {
        let folder = tempfile::tempdir().expect("folder");
        let watch = Watch::new([folder.path().join("absent")]);
        let results = Mutex::new(vec![Ok(()), Err("not yet valid"), Err("not yet valid")]);
        let metrics = ReloadMetrics::default();
        let reloader = Reloader::start("set", watch, metrics.clone(), None, move || {
            results
                .lock()
                .expect("not poisoned")
                .pop()
                .unwrap_or(Ok(()))
        });
        assert!(reloader.handle().reload_now().await.is_err());
        let start = tokio::time::Instant::now();
        while metrics.runs("set", true) == 0 {
            tokio::time::sleep(limits::RELOAD_RETRY / 4).await;
        }
        assert!(start.elapsed() >= limits::RELOAD_RETRY * 2);
        assert_eq!(metrics.runs("set", false), 2);
    }

    #[tokio::test]
    async fn a_panic_is_a_failure_and_the_next_reload_works() {
        let folder = tempfile::tempdir().expect("folder");
        let watch = Watch::new([folder.path().join("absent")]);
        let first = Mutex::new(true);
        let reloader = Reloader::start("set", watch, ReloadMetrics::default(), None, move || {
            let first = std::mem::take(
                &mut *first
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner),
            );
            assert!(!first, "as planned");
            Ok::<(), String>(())
        });
        let handle = reloader.handle();
        assert!(matches!(
            handle.reload_now().await,
            Err(ReloadError::Refused(_))
        ));
        assert_eq!(handle.reload_now().await, Ok(()));
        drop(reloader);
        assert_eq!(handle.reload_now().await, Err(ReloadError::Stopped));
    }
}
