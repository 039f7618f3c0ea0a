//! Legacy agents by what they announced. Every key leads to streams in order of arrival, so two
//! processes that announce one id are two agents behind one key, and neither takes the other's
//! place.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use towline_proto::reason::Reason;
use towline_proto::target::Host;

use super::strategy::{Strategies, Strategy};
use super::stream::AgentStream;

/// Keys of one strategy, with a place for taking turns among them.
#[derive(Debug)]
struct Keyed<K, A> {
    places: HashMap<K, usize>,
    rows: Vec<(K, Vec<Arc<A>>)>,
}

impl<K, A> Default for Keyed<K, A> {
    fn default() -> Self {
        Self {
            places: HashMap::new(),
            rows: Vec::new(),
        }
    }
}

/// What a choice needs to know of an agent.
pub trait Candidate {
    /// Whether it asked for no new dials.
    fn is_draining(&self) -> bool;
}

impl<K: Eq + Hash + Clone, A: Candidate> Keyed<K, A> {
    fn add(&mut self, key: K, agent: &Arc<A>) {
        let place = *self.places.entry(key).or_insert_with_key(|key| {
            self.rows.push((key.clone(), Vec::new()));
            self.rows.len() - 1
        });
        let row = &mut self.rows[place].1;
        if !row.iter().any(|known| Arc::ptr_eq(known, agent)) {
            row.push(Arc::clone(agent));
        }
    }

    fn remove(&mut self, key: &K, agent: &Arc<A>) {
        let Some(place) = self.places.get(key).copied() else {
            return;
        };
        let row = &mut self.rows[place].1;
        row.retain(|known| !Arc::ptr_eq(known, agent));
        if row.is_empty() {
            self.places.remove(key);
            self.rows.swap_remove(place);
            if let Some((moved, _)) = self.rows.get(place) {
                self.places.insert(moved.clone(), place);
            }
        }
    }

    /// The first of a key that does not drain, else the first.
    fn of(&self, key: &K) -> Option<&Arc<A>> {
        let row = &self.rows[*self.places.get(key)?].1;
        row.iter().find(|a| !a.is_draining()).or(row.first())
    }

    /// One key after the other: from `turn` onward the first with an agent that does not drain.
    fn any(&self, turn: usize) -> Option<&Arc<A>> {
        let count = self.rows.len();
        let at = |step: usize| &self.rows[(turn % count + step) % count].1;
        let fit = (0..count).find_map(|step| at(step).iter().find(|a| !a.is_draining()));
        fit.or_else(|| (0..count).find_map(|step| at(step).first()))
    }

    fn len(&self) -> usize {
        self.rows.len()
    }
}

#[derive(Debug)]
struct Index {
    by_id: Keyed<Box<str>, AgentStream>,
    by_host: Keyed<Host, AgentStream>,
    routes: Keyed<Box<str>, AgentStream>,
    streams: Vec<Arc<AgentStream>>,
}

/// Every stream of legacy agents. Clones share.
#[derive(Clone, Debug)]
pub struct LegacyAgents {
    strategies: Strategies,
    index: Arc<Mutex<Index>>,
    next: Arc<AtomicU64>,
    bound: usize,
    changes: watch::Sender<()>,
}

impl LegacyAgents {
    /// An empty table that takes so many streams.
    pub fn new(strategies: Strategies, bound: usize) -> Self {
        Self {
            strategies,
            index: Arc::new(Mutex::new(Index {
                by_id: Keyed::default(),
                by_host: Keyed::default(),
                routes: Keyed::default(),
                streams: Vec::new(),
            })),
            next: Arc::default(),
            bound,
            changes: watch::Sender::new(()),
        }
    }

    /// The order in which it is searched.
    pub fn strategies(&self) -> &Strategies {
        &self.strategies
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for a new stream.
    pub(super) fn serial(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Puts a stream in, until the guard is dropped; `None` when the table is full.
    pub(super) fn add(&self, agent: Arc<AgentStream>) -> Option<Listed> {
        let mut index = self.lock();
        if index.streams.len() >= self.bound {
            return None;
        }
        index.by_id.add(agent.id().into(), &agent);
        for host in agent.hosts() {
            index.by_host.add(host.clone(), &agent);
        }
        if agent.identifiers().default_route {
            index.routes.add(agent.id().into(), &agent);
        }
        index.streams.push(Arc::clone(&agent));
        drop(index);
        self.changes.send_replace(());
        Some(Listed {
            agent,
            table: self.clone(),
        })
    }

    fn remove(&self, agent: &Arc<AgentStream>) {
        let mut index = self.lock();
        index.by_id.remove(&agent.id().into(), agent);
        for host in agent.hosts() {
            index.by_host.remove(host, agent);
        }
        index.routes.remove(&agent.id().into(), agent);
        index.streams.retain(|known| !Arc::ptr_eq(known, agent));
        drop(index);
        self.changes.send_replace(());
    }

    /// Chooses an agent for a target's host. `turn` moves on with every dial; `avoid` was tried.
    pub fn pick(&self, host: &Host, turn: usize, avoid: Option<u64>) -> Option<Arc<AgentStream>> {
        let index = self.lock();
        self.strategies
            .iter()
            .find_map(|strategy| match strategy {
                Strategy::Default => index.by_id.any(turn),
                Strategy::DestHost => index.by_host.of(host),
                Strategy::DefaultRoute => index.routes.any(turn),
            })
            .filter(|agent| avoid != Some(agent.serial()))
            .cloned()
    }

    /// Keys under which a strategy lists agents: ids, or hosts.
    pub fn backends(&self, strategy: Strategy) -> usize {
        let index = self.lock();
        match strategy {
            Strategy::Default => index.by_id.len(),
            Strategy::DestHost => index.by_host.len(),
            Strategy::DefaultRoute => index.routes.len(),
        }
    }

    /// Whether the first strategy has anybody, which is what Konnectivity calls ready.
    pub fn is_ready(&self) -> bool {
        self.backends(self.strategies.first()) > 0
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.lock().streams.is_empty()
    }

    /// Every stream, oldest first.
    pub fn streams(&self) -> Vec<Arc<AgentStream>> {
        self.lock().streams.clone()
    }

    /// Tells when somebody came or went, or drains.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    pub(super) fn touch(&self) {
        self.changes.send_replace(());
    }

    /// Ends every stream.
    pub fn end_all(&self, reason: Reason) {
        for stream in self.streams() {
            stream.end(reason);
        }
    }
}

/// A stream's place in the table; dropping it takes the stream out and ends what it carries.
pub(super) struct Listed {
    agent: Arc<AgentStream>,
    table: LegacyAgents,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.table.remove(&self.agent);
        self.agent.end(Reason::LinkLost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Plain(&'static str, bool);

    impl Candidate for Plain {
        fn is_draining(&self) -> bool {
            self.1
        }
    }

    fn keyed(of: &[(&'static str, &'static str, bool)]) -> Keyed<&'static str, Plain> {
        let mut keyed = Keyed::default();
        for (key, name, draining) in of {
            keyed.add(*key, &Arc::new(Plain(name, *draining)));
        }
        keyed
    }

    #[test]
    fn the_oldest_stream_of_a_key_is_asked_unless_it_drains() {
        let all = keyed(&[
            ("a", "a1", false),
            ("a", "a2", false),
            ("b", "b1", true),
            ("b", "b2", false),
        ]);
        assert_eq!(all.of(&"a").unwrap().0, "a1");
        assert_eq!(all.of(&"b").unwrap().0, "b2");
        assert!(all.of(&"c").is_none());
        let draining = keyed(&[("a", "a1", true), ("a", "a2", true)]);
        assert_eq!(draining.of(&"a").unwrap().0, "a1");
    }

    #[test]
    fn agents_take_turns_and_those_that_drain_are_passed_over() {
        let all = keyed(&[("a", "a1", false), ("b", "b1", true), ("c", "c1", false)]);
        let picked: Vec<_> = (0..4).map(|turn| all.any(turn).unwrap().0).collect();
        assert_eq!(picked, ["a1", "c1", "c1", "a1"]);
        assert!(Keyed::<&str, Plain>::default().any(3).is_none());
        assert_eq!(keyed(&[("a", "a1", true)]).any(9).unwrap().0, "a1");
    }

    #[test]
    fn a_key_goes_with_its_last_stream_and_the_others_stay_in_place() {
        let (a, b, c) = (
            Arc::new(Plain("a1", false)),
            Arc::new(Plain("b1", false)),
            Arc::new(Plain("c1", false)),
        );
        let mut all = Keyed::default();
        for (key, agent) in [("a", &a), ("b", &b), ("c", &c)] {
            all.add(key, agent);
            all.add(key, agent);
        }
        all.remove(&"a", &b);
        all.remove(&"a", &a);
        all.remove(&"x", &a);
        assert_eq!(all.len(), 2);
        assert!(all.of(&"a").is_none());
        assert_eq!(
            (all.of(&"b").unwrap().0, all.of(&"c").unwrap().0),
            ("b1", "c1")
        );
    }
}
