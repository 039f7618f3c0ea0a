//! Readiness as a list of named conditions, all of which must be met.
//!
//! Two kinds. A start-up task is a [`StartupTask`] that its subsystem holds until it calls
//! [`StartupTask::done`]; dropped without that it stays unmet for ever, because a start that
//! failed must never look ready. A live [`Condition`] says met or unmet with a text at any
//! time and starts unmet; when its owner is gone it is unmet. Met, it may carry a note: something
//! that an operator should know and that must not turn load balancers away.
//!
//! `/readyz` prints [`Readiness::report`]; the service manager is told when
//! [`Readiness::started`] resolves. Changes are logged here, once each, with what is missing.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;
use towline_proto::limits;
use tracing::{debug, error, info, warn};

/// The list. Clones are the same list.
#[derive(Clone)]
pub struct Readiness {
    entries: watch::Sender<Vec<Entry>>,
    stopping: Arc<AtomicBool>,
}

struct Entry {
    id: u64,
    name: &'static str,
    startup: bool,
    unmet: Option<String>,
    note: Option<String>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Readiness {
    /// An empty list, which is ready.
    pub fn new() -> Self {
        Self {
            entries: watch::Sender::new(Vec::new()),
            stopping: Arc::default(),
        }
    }

    /// Adds something that must be done once.
    pub fn task(&self, name: &'static str) -> StartupTask {
        let id = self.add(name, true, "not done yet");
        StartupTask {
            list: self.clone(),
            id,
            done: false,
        }
    }

    /// Adds a condition that is unmet, for the reason given, until its owner says otherwise.
    pub fn condition(&self, name: &'static str, reason: impl Into<String>) -> Condition {
        let id = self.add(name, false, reason);
        Condition {
            list: self.clone(),
            id,
        }
    }

    /// Everything at this moment, in order of registration.
    pub fn report(&self) -> Report {
        let entries = self.entries.borrow();
        Report {
            lines: entries
                .iter()
                .map(|entry| (entry.name, entry.unmet.clone(), entry.note.clone()))
                .collect(),
        }
    }

    /// Whether all is met now.
    pub fn is_ready(&self) -> bool {
        self.entries
            .borrow()
            .iter()
            .all(|entry| entry.unmet.is_none())
    }

    /// Resolves when every start-up task so far is done. Cancel-safe.
    pub async fn started(&self) {
        self.wait(|entries| {
            entries
                .iter()
                .filter(|entry| entry.startup)
                .all(|entry| entry.unmet.is_none())
        })
        .await;
    }

    /// Resolves when all is met. Cancel-safe.
    pub async fn ready(&self) {
        self.wait(|entries| entries.iter().all(|entry| entry.unmet.is_none()))
            .await;
    }

    /// Resolves when something is unmet. Cancel-safe.
    pub async fn unready(&self) {
        self.wait(|entries| entries.iter().any(|entry| entry.unmet.is_some()))
            .await;
    }

    async fn wait(&self, met: impl FnMut(&Vec<Entry>) -> bool) {
        // The sender lives in `self`, so the wait cannot fail.
        let _ = self.entries.subscribe().wait_for(met).await;
    }

    fn add(&self, name: &'static str, startup: bool, reason: impl Into<String>) -> u64 {
        let mut id = 0;
        self.entries.send_modify(|entries| {
            id = entries.last().map_or(1, |last| last.id + 1);
            if entries.len() >= limits::READY_CONDITIONS {
                error!(
                    condition = name,
                    "too many readiness conditions, this one is not listed"
                );
                return;
            }
            entries.push(Entry {
                id,
                name,
                startup,
                unmet: Some(cut(reason.into())),
                note: None,
            });
        });
        id
    }

    fn set(&self, id: u64, unmet: Option<String>, note: Option<String>) {
        let (unmet, note) = (unmet.map(cut), note.map(cut));
        self.entries.send_if_modified(|entries| {
            let Some(entry) = entries.iter_mut().find(|entry| entry.id == id) else {
                return false;
            };
            if entry.unmet == unmet && entry.note == note {
                return false;
            }
            let (name, turned) = (entry.name, entry.unmet.is_some() != unmet.is_some());
            if let Some(note) = note.as_deref().filter(|_| entry.note.is_none()) {
                warn!(condition = name, note, "ready, but");
            }
            entry.unmet = unmet;
            entry.note = note;
            if turned {
                log_change(name, entries, id, self.stopping.load(Ordering::Relaxed));
            }
            true
        });
    }
}

fn log_change(name: &'static str, entries: &[Entry], id: u64, stopping: bool) {
    let missing: Vec<&str> = entries
        .iter()
        .filter(|entry| entry.unmet.is_some())
        .map(|entry| entry.name)
        .collect();
    let missing = missing.join(",");
    match entries
        .iter()
        .find(|entry| entry.id == id)
        .and_then(|entry| entry.unmet.as_deref())
    {
        // Who stops is not ready by order, and so is each of its parts, one after the other.
        Some(reason) if stopping => debug!(condition = name, reason, missing, "not ready"),
        Some(reason) => warn!(condition = name, reason, missing, "not ready"),
        None if missing.is_empty() => info!(condition = name, "ready"),
        None => info!(condition = name, missing, "condition met"),
    }
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(limits::READY_TEXT_BYTES));
    text.retain(|c| !c.is_control());
    text
}

/// Something that must be done once before the daemon is ready.
#[must_use = "dropping it leaves the daemon unready for ever"]
pub struct StartupTask {
    list: Readiness,
    id: u64,
    done: bool,
}

impl StartupTask {
    /// It is done.
    pub fn done(mut self) {
        self.done = true;
        self.list.set(self.id, None, None);
    }
}

impl Drop for StartupTask {
    fn drop(&mut self) {
        if !self.done {
            self.list.set(
                self.id,
                Some("given up before it was done".to_owned()),
                None,
            );
        }
    }
}

/// Something that is true or not while the daemon runs.
#[must_use = "dropping it leaves the daemon unready for ever"]
pub struct Condition {
    list: Readiness,
    id: u64,
}

impl Condition {
    /// It is true.
    pub fn met(&self) {
        self.list.set(self.id, None, None);
    }

    /// It is true, and there is something to know about it.
    pub fn note(&self, text: impl Into<String>) {
        self.list.set(self.id, None, Some(text.into()));
    }

    /// It is not, and why.
    pub fn unmet(&self, reason: impl Into<String>) {
        self.list.set(self.id, Some(reason.into()), None);
    }

    /// It is not, because the daemon stops. What becomes unmet from here on, of whatever
    /// condition, is no news.
    pub fn stopping(&self, reason: &'static str) {
        if !self.list.stopping.swap(true, Ordering::Relaxed) {
            info!(condition = "stopping", reason, "not ready any more");
        }
        self.unmet(reason);
    }

    /// One call for both.
    pub fn set(&self, state: Result<(), String>) {
        self.list.set(self.id, state.err(), None);
    }
}

impl Drop for Condition {
    fn drop(&mut self) {
        self.unmet("its subsystem has ended");
    }
}

/// What `/readyz` says: one line each, `[+]links ok`, `[-]links no live link`, or
/// `[!]kubelets 2 of 9 are refused` for what is met with a note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    lines: Vec<(&'static str, Option<String>, Option<String>)>,
}

impl Report {
    /// Whether all is met.
    pub fn is_ready(&self) -> bool {
        self.lines.iter().all(|(_, unmet, _)| unmet.is_none())
    }

    /// Name and, where unmet, reason.
    pub fn lines(&self) -> impl Iterator<Item = (&'static str, Option<&str>)> {
        self.lines
            .iter()
            .map(|(name, unmet, _)| (*name, unmet.as_deref()))
    }

    /// Names and notes of what is met with a note.
    pub fn notes(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.lines
            .iter()
            .filter_map(|(name, _, note)| Some((*name, note.as_deref()?)))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, unmet, note) in &self.lines {
            match (unmet, note) {
                (Some(reason), _) => writeln!(f, "[-]{name} {reason}")?,
                (None, Some(note)) => writeln!(f, "[!]{name} {note}")?,
                (None, None) => writeln!(f, "[+]{name} ok")?,
            }
        }
        f.write_str(if self.is_ready() {
            "ready\n"
        } else {
            "not ready\n"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_needs_every_task_and_every_condition() {
        let readiness = Readiness::new();
        assert!(readiness.is_ready());
        let task = readiness.task("certificates");
        let links = readiness.condition("links", "no live link");
        assert_eq!(
            readiness.report().to_string(),
            "[-]certificates not done yet\n[-]links no live link\nnot ready\n"
        );
        task.done();
        assert!(!readiness.is_ready());
        links.met();
        assert_eq!(
            readiness.report().to_string(),
            "[+]certificates ok\n[+]links ok\nready\n"
        );
        links.unmet("no live link since 10s");
        assert!(!readiness.report().is_ready());
        links.note("one of two carriers is blocked");
        assert_eq!(
            readiness.report().to_string(),
            "[+]certificates ok\n[!]links one of two carriers is blocked\nready\n"
        );
        assert_eq!(readiness.report().notes().count(), 1);
        links.met();
        assert_eq!(readiness.report().notes().count(), 0);
    }

    #[test]
    fn a_start_that_was_given_up_never_looks_ready() {
        let readiness = Readiness::new();
        drop(readiness.task("doors"));
        assert_eq!(
            readiness.report().to_string(),
            "[-]doors given up before it was done\nnot ready\n"
        );
    }

    #[test]
    fn a_condition_without_its_owner_is_unmet() {
        let readiness = Readiness::new();
        let links = readiness.condition("links", "none");
        links.met();
        drop(links);
        assert!(!readiness.is_ready());
    }

    #[test]
    fn who_stops_is_not_ready_whatever_the_others_say() {
        let readiness = Readiness::new();
        let (running, links) = (
            readiness.condition("running", ""),
            readiness.condition("links", ""),
        );
        running.met();
        links.met();
        assert!(readiness.is_ready());
        running.stopping("the agent is stopping");
        drop(links);
        assert_eq!(
            readiness.report().to_string(),
            "[-]running the agent is stopping\n[-]links its subsystem has ended\nnot ready\n"
        );
    }

    #[tokio::test]
    async fn started_waits_for_tasks_and_not_for_conditions() {
        let readiness = Readiness::new();
        let task = readiness.task("doors");
        let links = readiness.condition("links", "none");
        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.started().await }
        });
        task.done();
        waiting.await.expect("joined");
        links.met();
        readiness.ready().await;
        links.unmet("gone");
        readiness.unready().await;
    }

    #[test]
    fn texts_and_the_list_are_bounded() {
        let readiness = Readiness::new();
        let long = readiness.condition("long", "\u{e4}\n".repeat(limits::READY_TEXT_BYTES));
        let line = readiness.report().to_string();
        assert!(line.len() <= limits::READY_TEXT_BYTES + 32);
        assert_eq!(line.lines().count(), 2);
        let more: Vec<Condition> = (0..limits::READY_CONDITIONS)
            .map(|_| readiness.condition("more", "x"))
            .collect();
        assert_eq!(readiness.report().lines().count(), limits::READY_CONDITIONS);
        drop((more, long));
    }
}
