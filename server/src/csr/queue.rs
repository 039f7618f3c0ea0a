//! Which requests wait for a look, and until when: names only, each once.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use towline_proto::limits;

#[derive(Debug)]
enum Place {
    /// Its turn comes then.
    Due(Instant),
    /// Somebody works on it; whether it changed meanwhile.
    Busy { again: bool },
}

#[derive(Debug)]
struct Item {
    place: Place,
    /// Failures one after the other.
    failures: u32,
    /// Whose changes it waits for.
    node: Option<String>,
    /// When it was first seen.
    since: Instant,
    /// Who made it.
    owner: Arc<str>,
}

#[derive(Default)]
struct Inner {
    items: HashMap<String, Item>,
    due: BTreeSet<(Instant, String)>,
    /// How many each user has.
    owners: HashMap<Arc<str>, usize>,
    /// Some did not fit.
    overflowed: bool,
    shown: Option<HashSet<String>>,
}

/// See the head of this file.
#[derive(Default)]
pub struct Queue {
    inner: Mutex<Inner>,
    wake: Notify,
    /// There is room again for what did not fit.
    pub room: Notify,
}

/// One that is worked on. Given back by [`Queue::done`] or [`Queue::later`].
#[derive(Debug)]
pub struct Turn {
    /// The request's name.
    pub name: String,
    /// Failures so far.
    pub failures: u32,
    /// How long it is known.
    pub known: Duration,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are not done.
    pub fn len(&self) -> usize {
        self.lock().items.len()
    }

    /// Whether nothing is left to do.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A list begins.
    pub fn begins(&self) {
        self.lock().shown = Some(HashSet::new());
    }

    /// It is complete: what it did not show is gone.
    pub fn listed(&self) {
        let mut inner = self.lock();
        let Some(shown) = inner.shown.take() else {
            return;
        };
        let gone: Vec<String> = inner
            .items
            .keys()
            .filter(|name| !shown.contains(*name))
            .cloned()
            .collect();
        for name in gone {
            inner.forget(&name);
        }
    }

    /// This one is new or changed: its turn is now. `false` when there is no room for it.
    pub fn look(&self, name: &str, owner: &str) -> bool {
        let owner: String = owner.chars().take(limits::HOST_BYTES).collect();
        let owner: Arc<str> = owner.into();
        let mut inner = self.lock();
        if let Some(shown) = &mut inner.shown {
            shown.insert(name.to_owned());
        }
        if !inner.items.contains_key(name) {
            if inner.items.len() >= limits::CSR_PENDING {
                inner.overflowed = true;
                return false;
            }
            let count = inner.owners.entry(Arc::clone(&owner)).or_default();
            if *count >= limits::CSR_PENDING_EACH {
                return false;
            }
            *count += 1;
            inner.add(name, owner);
        }
        inner.hurry(name);
        drop(inner);
        self.wake.notify_one();
        true
    }

    /// This one is gone.
    pub fn forget(&self, name: &str) {
        self.lock().forget(name);
    }

    /// Those that wait for this node have their turn now.
    pub fn node_changed(&self, node: &str) {
        self.hurry_if(|waits_for| waits_for == node);
    }

    /// Those that wait for any node have their turn now.
    pub fn all_changed(&self) {
        self.hurry_if(|_| true);
    }

    fn hurry_if(&self, wanted: impl Fn(&str) -> bool) {
        let mut inner = self.lock();
        let waiting: Vec<String> = inner
            .items
            .iter()
            .filter(|(_, item)| item.node.as_deref().is_some_and(&wanted))
            .map(|(name, _)| name.clone())
            .collect();
        for name in waiting {
            inner.hurry(&name);
        }
        drop(inner);
        self.wake.notify_one();
    }

    /// The next one whose turn it is. Cancel-safe.
    pub async fn take(&self) -> Turn {
        loop {
            let next = {
                let mut inner = self.lock();
                match inner.pop(Instant::now()) {
                    Ok(turn) => {
                        // There may be more, and one permit wakes one.
                        self.wake.notify_one();
                        return turn;
                    }
                    Err(next) => next,
                }
            };
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                () = self.wake.notified() => {}
            }
        }
    }

    /// Nothing more is to be done, unless it changed meanwhile.
    pub fn done(&self, turn: &Turn) {
        let mut inner = self.lock();
        let again = matches!(
            inner.items.get(&turn.name),
            Some(Item {
                place: Place::Busy { again: true },
                ..
            })
        );
        match again {
            true => inner.put_back(&turn.name, Instant::now(), 0, None),
            false => inner.forget(&turn.name),
        }
        let room = inner.overflowed && inner.items.len() <= limits::CSR_PENDING / 2;
        if room {
            inner.overflowed = false;
        }
        drop(inner);
        if room {
            self.room.notify_one();
        }
        self.wake.notify_one();
    }

    /// It is looked at again after `pause`, at once if it changed meanwhile, or when `node` does.
    pub fn later(&self, turn: &Turn, pause: Duration, failed: bool, node: Option<String>) {
        let failures = if failed {
            turn.failures.saturating_add(1)
        } else {
            0
        };
        let mut inner = self.lock();
        inner.put_back(&turn.name, Instant::now() + pause, failures, node);
        drop(inner);
        self.wake.notify_one();
    }
}

impl Inner {
    fn pop(&mut self, now: Instant) -> Result<Turn, Option<Instant>> {
        let first = self.due.first().map(|(at, _)| *at);
        if first.is_none_or(|at| at > now) {
            return Err(first);
        }
        let Some((_, name)) = self.due.pop_first() else {
            return Err(None);
        };
        let Some(item) = self.items.get_mut(&name) else {
            return Err(Some(now));
        };
        item.place = Place::Busy { again: false };
        item.node = None;
        Ok(Turn {
            failures: item.failures,
            known: now.saturating_duration_since(item.since),
            name,
        })
    }

    fn add(&mut self, name: &str, owner: Arc<str>) {
        let now = Instant::now();
        let item = Item {
            place: Place::Due(now),
            failures: 0,
            node: None,
            since: now,
            owner,
        };
        self.items.insert(name.to_owned(), item);
        self.due.insert((now, name.to_owned()));
    }

    fn hurry(&mut self, name: &str) {
        let now = Instant::now();
        match self.items.get_mut(name) {
            None => {}
            Some(item) => match &mut item.place {
                Place::Busy { again } => *again = true,
                Place::Due(at) => {
                    self.due.remove(&(*at, name.to_owned()));
                    *at = now;
                    self.due.insert((now, name.to_owned()));
                }
            },
        }
    }

    fn put_back(&mut self, name: &str, at: Instant, failures: u32, node: Option<String>) {
        let Some(item) = self.items.get_mut(name) else {
            return;
        };
        let again = matches!(item.place, Place::Busy { again: true });
        let at = if again { Instant::now() } else { at };
        item.place = Place::Due(at);
        item.failures = failures;
        item.node = node;
        self.due.insert((at, name.to_owned()));
    }

    fn forget(&mut self, name: &str) {
        let Some(item) = self.items.remove(name) else {
            return;
        };
        if let Place::Due(at) = item.place {
            self.due.remove(&(at, name.to_owned()));
        }
        if let Some(count) = self.owners.get_mut(&item.owner) {
            *count -= 1;
            if *count == 0 {
                self.owners.remove(&item.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_has_one_place_and_its_turn() {
        let queue = Queue::default();
        assert!(queue.look("a", "u") && queue.look("a", "u") && queue.look("b", "u"));
        let first = queue.take().await;
        assert_eq!((first.name.as_str(), queue.len()), ("a", 2));
        // It changed while it was worked on: it comes again, behind who is due already.
        tokio::time::advance(Duration::from_millis(1)).await;
        queue.look("a", "u");
        queue.done(&first);
        let second = queue.take().await;
        let third = queue.take().await;
        assert_eq!([second.name.as_str(), third.name.as_str()], ["b", "a"]);
        queue.done(&second);
        queue.done(&third);
        assert_eq!(queue.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_looked_at_in_time_or_when_its_node_changes() {
        let queue = Queue::default();
        queue.look("a", "u");
        let turn = queue.take().await;
        let begun = Instant::now();
        queue.later(&turn, Duration::from_secs(60), false, Some("n1".into()));
        let turn = queue.take().await;
        assert_eq!(begun.elapsed(), Duration::from_secs(60));
        queue.later(&turn, Duration::from_secs(60), true, Some("n1".into()));
        queue.node_changed("n2");
        queue.node_changed("n1");
        let turn = queue.take().await;
        assert_eq!(begun.elapsed(), Duration::from_secs(60));
        assert_eq!(turn.failures, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_gone_has_no_turn() {
        let queue = Queue::default();
        queue.look("a", "u");
        queue.look("b", "u");
        queue.begins();
        queue.look("b", "u");
        queue.listed();
        assert_eq!(queue.take().await.name, "b");
        queue.forget("b");
        assert_eq!(queue.len(), 0);
    }

    /// A node that was broken into makes requests without end: others are looked at all the same.
    #[tokio::test(start_paused = true)]
    async fn one_user_does_not_fill_it() {
        let queue = Queue::default();
        for n in 0..limits::CSR_PENDING_EACH {
            assert!(queue.look(&format!("a{n}"), "system:node:a"));
        }
        assert!(!queue.look("more", "system:node:a"));
        assert!(queue.look("b", "system:node:b"));
        let turn = queue.take().await;
        queue.done(&turn);
        assert!(queue.look("more", "system:node:a"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_fit_is_asked_for_again() {
        let queue = Queue::default();
        for n in 0..limits::CSR_PENDING {
            assert!(queue.look(&n.to_string(), &n.to_string()));
        }
        assert!(!queue.look("one more", "u"));
        for _ in 0..limits::CSR_PENDING / 2 {
            let turn = queue.take().await;
            queue.done(&turn);
        }
        queue.room.notified().await;
    }
}
