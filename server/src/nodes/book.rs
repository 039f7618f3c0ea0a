//! What Node objects say about names and addresses, and who said so first.
//!
//! A kubelet writes its own Node's status, so a node that was broken into can claim what it likes.
//! What two Nodes claim belongs to whoever was known to have it before the other came; to nobody
//! when both were there at the first look.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use towline_link::kube::node::Node;
use towline_proto::address;
use towline_proto::limits;
use towline_proto::target::HostName;

/// Whether a node has something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It says so, and nobody said so before.
    Own,
    /// It does not say so.
    None,
    /// It says so, and this other one did before, or at the same time.
    Contested(String),
}

/// Which Nodes claim a thing, and since which change.
struct Claims<K>(HashMap<K, Vec<(String, u64)>>);

impl<K> Default for Claims<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash + Clone> Claims<K> {
    fn add(&mut self, key: K, node: &str, at: u64) {
        let claims = self.0.entry(key).or_default();
        if !claims.iter().any(|(name, _)| name == node) {
            claims.push((node.to_owned(), at));
        }
    }

    fn remove(&mut self, key: &K, node: &str) {
        if let Some(claims) = self.0.get_mut(key) {
            claims.retain(|(name, _)| name != node);
            if claims.is_empty() {
                self.0.remove(key);
            }
        }
    }

    fn since(&self, key: &K, node: &str) -> Option<u64> {
        let mut claims = self.0.get(key)?.iter();
        let found = claims.find(|(name, _)| name == node)?;
        Some(found.1)
    }

    fn of(&self, key: &K, node: &str) -> Claim {
        let claims = self.0.get(key).map(Vec::as_slice).unwrap_or_default();
        let Some((_, since)) = claims.iter().find(|(name, _)| name == node) else {
            return Claim::None;
        };
        let earlier = claims
            .iter()
            .find(|(name, theirs)| name != node && theirs <= since);
        match earlier {
            Some((other, _)) => Claim::Contested(other.clone()),
            None => Claim::Own,
        }
    }
}

#[derive(Default)]
struct Known {
    uid: String,
    ips: HashSet<IpAddr>,
    names: HashSet<HostName>,
}

#[derive(Default)]
struct Inner {
    nodes: HashMap<String, Known>,
    ips: Claims<IpAddr>,
    names: Claims<HostName>,
    /// Counts changes; a whole list is one.
    clock: u64,
    /// A list is complete.
    listed: bool,
    /// Names that the list under way has shown.
    shown: Option<HashSet<String>>,
    /// Names of Nodes for which there was no room, and those of the list under way.
    left_out: HashSet<String>,
    left_out_now: HashSet<String>,
    /// The list or the watch failed, and no other list has begun.
    broken: bool,
}

/// All Nodes.
#[derive(Default)]
pub struct Book {
    inner: Mutex<Inner>,
    /// Counts changes for those who wait for one.
    changes: watch::Sender<u64>,
}

impl Book {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether all Nodes were seen once.
    pub fn is_listed(&self) -> bool {
        self.lock().listed
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().nodes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is a Node of this name.
    pub fn has(&self, node: &str) -> bool {
        self.lock().nodes.contains_key(node)
    }

    /// Whether a node has an address.
    pub fn ip(&self, node: &str, ip: IpAddr) -> Claim {
        self.lock().ips.of(&ip, node)
    }

    /// Whether a node has a DNS name.
    pub fn name(&self, node: &str, name: &HostName) -> Claim {
        self.lock().names.of(name, node)
    }

    /// Whose an address is, as soon as the watch has shown that this Node claims it, too. Everything
    /// that the API server took before is known then, so a claim that is found to be first is first.
    /// `None` when it was not shown until then, or cannot be: who asks must not believe it.
    pub async fn claim(&self, node: &str, ip: IpAddr, until: Instant) -> Option<Claim> {
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            let broken = {
                let inner = self.lock();
                // Half of a list says nothing about who was first among those that it shows; what
                // was known before it began was before them all.
                let before = || inner.ips.since(&ip, node) < Some(inner.clock);
                match inner.ips.of(&ip, node) {
                    Claim::None => {}
                    claim if inner.listed && (inner.shown.is_none() || before()) => {
                        return Some(claim);
                    }
                    _ => {}
                }
                inner.broken
            };
            if broken || !matches!(timeout_at(until, changes.changed()).await, Ok(Ok(()))) {
                return None;
            }
        }
    }

    /// Another Node that claims an address, whoever was first.
    pub fn rival(&self, node: &str, ip: IpAddr) -> Option<String> {
        let inner = self.lock();
        let claims = inner.ips.0.get(&ip)?;
        let other = claims.iter().find(|(name, _)| name != node);
        other.map(|(name, _)| name.clone())
    }

    /// Waits for a change, until then.
    pub async fn changed(&self, until: Instant) {
        let mut changes = self.changes.subscribe();
        let _ = timeout_at(until, changes.changed()).await;
    }

    fn change(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// A list begins.
    pub fn begins(&self) {
        let mut inner = self.lock();
        // What a list that failed halfway has shown came at the same time as the rest of it.
        if inner.shown.is_none() {
            inner.clock += 1;
        }
        inner.shown = Some(HashSet::new());
        inner.left_out_now.clear();
        inner.broken = false;
    }

    /// The list or the watch failed.
    pub fn broke(&self) {
        self.lock().broken = true;
        self.change();
    }

    /// It is complete: what it did not show is gone.
    pub fn listed(&self) {
        let mut inner = self.lock();
        let shown = inner.shown.take().unwrap_or_default();
        let gone: Vec<String> = inner
            .nodes
            .keys()
            .filter(|name| !shown.contains(*name))
            .cloned()
            .collect();
        for name in gone {
            inner.remove(&name);
        }
        inner.left_out = std::mem::take(&mut inner.left_out_now);
        inner.listed = true;
        drop(inner);
        self.change();
    }

    /// How many Nodes there was no room for; at most [`limits::KUBE_NODES`] are counted.
    pub fn left_out(&self) -> usize {
        let inner = self.lock();
        inner.left_out.len().max(inner.left_out_now.len())
    }

    /// A Node is there. Whether anything about its names or addresses is new; `None` when there
    /// are more Nodes than are kept.
    pub fn is(&self, node: &Node) -> Option<bool> {
        let mut inner = self.lock();
        let name = node.metadata.name.as_str();
        if inner.nodes.len() >= limits::KUBE_NODES && !inner.nodes.contains_key(name) {
            inner.leave_out(name);
            return None;
        }
        inner.left_out.remove(name);
        match inner.shown.is_some() {
            true => {
                if let Some(shown) = &mut inner.shown {
                    shown.insert(name.to_owned());
                }
            }
            false => inner.clock += 1,
        }
        let new = inner.put(node);
        drop(inner);
        if new {
            self.change();
        }
        Some(new)
    }

    /// A Node is gone.
    pub fn was(&self, node: &Node) {
        let mut inner = self.lock();
        inner.remove(&node.metadata.name);
        inner.left_out.remove(&node.metadata.name);
        drop(inner);
        self.change();
    }
}

impl Inner {
    fn leave_out(&mut self, name: &str) {
        let of = match self.shown {
            Some(_) => &mut self.left_out_now,
            None => &mut self.left_out,
        };
        if of.len() < limits::KUBE_NODES {
            of.insert(name.to_owned());
        }
    }

    fn put(&mut self, node: &Node) -> bool {
        let name = node.metadata.name.as_str();
        let (mut ips, mut names) = (HashSet::new(), HashSet::new());
        for text in node.addresses() {
            if let Ok(ip) = text.parse::<IpAddr>() {
                ips.insert(address::canonical(ip));
            } else if let Ok(host) = text.parse::<HostName>() {
                names.insert(host);
            }
        }
        // Another Node of an old name begins anew.
        let again = self.nodes.get(name).map(|known| known.uid.as_str());
        if again.is_some_and(|uid| uid != node.metadata.uid) {
            self.remove(name);
        }
        let before = self.nodes.remove(name);
        let new = before
            .as_ref()
            .is_none_or(|before| before.ips != ips || before.names != names);
        let before = before.unwrap_or_default();
        for ip in before.ips.difference(&ips) {
            self.ips.remove(ip, name);
        }
        for host in before.names.difference(&names) {
            self.names.remove(host, name);
        }
        for ip in &ips {
            self.ips.add(*ip, name, self.clock);
        }
        for host in &names {
            self.names.add(host.clone(), name, self.clock);
        }
        let uid = node.metadata.uid.clone();
        self.nodes
            .insert(name.to_owned(), Known { uid, ips, names });
        new
    }

    fn remove(&mut self, name: &str) {
        let Some(known) = self.nodes.remove(name) else {
            return;
        };
        for ip in &known.ips {
            self.ips.remove(ip, name);
        }
        for host in &known.names {
            self.names.remove(host, name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use towline_link::kube::node::NodeAddress;

    fn node(name: &str, uid: &str, addresses: &[&str]) -> Node {
        let mut node = Node::default();
        node.metadata.name = name.into();
        node.metadata.uid = uid.into();
        node.status.addresses = addresses
            .iter()
            .map(|text| NodeAddress {
                kind: "InternalIP".into(),
                address: (*text).into(),
            })
            .collect();
        node
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn listed(nodes: &[Node]) -> Book {
        let book = Book::default();
        book.begins();
        for node in nodes {
            book.is(node);
        }
        book.listed();
        book
    }

    #[test]
    fn the_newcomer_of_two_has_nothing() {
        let book = listed(&[node("a", "1", &["10.0.0.1", "a.example"])]);
        assert_eq!(
            book.is(&node("b", "2", &["10.0.0.1", "A.example"])),
            Some(true)
        );
        assert_eq!(book.ip("a", ip("10.0.0.1")), Claim::Own);
        assert_eq!(book.ip("b", ip("10.0.0.1")), Claim::Contested("a".into()));
        let name = "a.example".parse().unwrap();
        assert_eq!(book.name("b", &name), Claim::Contested("a".into()));
        // The first lets go of it: then it is the other's.
        book.is(&node("a", "1", &[]));
        assert_eq!(book.ip("b", ip("10.0.0.1")), Claim::Own);
        assert_eq!(book.ip("a", ip("10.0.0.1")), Claim::None);
    }

    #[test]
    fn of_two_that_were_there_at_the_first_look_neither_has_it() {
        let book = listed(&[
            node("a", "1", &["10.0.0.1"]),
            node("b", "2", &["::ffff:10.0.0.1"]),
        ]);
        assert_eq!(book.ip("a", ip("10.0.0.1")), Claim::Contested("b".into()));
        assert_eq!(book.ip("b", ip("10.0.0.1")), Claim::Contested("a".into()));
    }

    #[test]
    fn a_list_that_comes_again_keeps_who_was_first() {
        let book = listed(&[node("a", "1", &["10.0.0.1"])]);
        book.is(&node("b", "2", &["10.0.0.1"]));
        book.begins();
        book.is(&node("b", "2", &["10.0.0.1"]));
        book.is(&node("a", "1", &["10.0.0.1"]));
        book.listed();
        assert_eq!(book.ip("a", ip("10.0.0.1")), Claim::Own);
        book.begins();
        book.is(&node("b", "2", &["10.0.0.1"]));
        book.listed();
        assert!(!book.has("a") && book.len() == 1);
        assert_eq!(book.ip("b", ip("10.0.0.1")), Claim::Own);
    }

    #[test]
    fn another_node_of_an_old_name_is_a_newcomer() {
        let book = listed(&[node("a", "1", &["10.0.0.1"])]);
        book.is(&node("b", "2", &["10.0.0.1"]));
        book.is(&node("a", "3", &["10.0.0.1"]));
        assert_eq!(book.ip("a", ip("10.0.0.1")), Claim::Contested("b".into()));
        assert_eq!(book.ip("b", ip("10.0.0.1")), Claim::Own);
    }

    #[test]
    fn a_status_that_says_nothing_new_is_no_change() {
        let book = listed(&[node("a", "1", &["10.0.0.1"])]);
        assert_eq!(book.is(&node("a", "1", &["10.0.0.1"])), Some(false));
        assert_eq!(
            book.is(&node("a", "1", &["10.0.0.1", "10.0.0.2"])),
            Some(true)
        );
        book.was(&node("a", "1", &[]));
        assert!(book.is_empty() && book.ip("a", ip("10.0.0.1")) == Claim::None);
    }

    #[test]
    fn nodes_beyond_the_bound_are_counted_until_there_is_room() {
        let many = |count: usize| (0..count).map(|n| node(&format!("n{n}"), "1", &[]));
        let book = listed(&many(limits::KUBE_NODES + 2).collect::<Vec<_>>());
        assert_eq!((book.len(), book.left_out()), (limits::KUBE_NODES, 2));
        let (known, late) = (node("n0", "1", &[]), node("late", "2", &["10.0.0.2"]));
        // A Node that is told again is one Node.
        for _ in 0..3 {
            assert_eq!(book.is(&late), None);
        }
        assert_eq!(book.left_out(), 3);
        assert_eq!(book.ip("late", ip("10.0.0.2")), Claim::None);
        book.was(&known);
        assert_eq!(book.is(&late), Some(true));
        assert_eq!(book.left_out(), 2);
        book.was(&node(&format!("n{}", limits::KUBE_NODES), "1", &[]));
        assert_eq!(book.left_out(), 1);
        book.begins();
        for node in many(5) {
            book.is(&node);
        }
        book.listed();
        // One of them came while there was no room: it has to be told again.
        assert_eq!((book.len(), book.left_out()), (4, 1));
        assert_eq!(book.is(&known), Some(true));
        assert_eq!((book.len(), book.left_out()), (5, 0));
    }

    fn soon() -> Instant {
        Instant::now() + std::time::Duration::from_secs(3)
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_counts_once_the_watch_has_shown_it() {
        let book = listed(&[node("a", "1", &["10.0.0.1"])]);
        let one = ip("10.0.0.1");
        assert_eq!(book.claim("a", one, soon()).await, Some(Claim::Own));
        assert_eq!(book.claim("b", one, soon()).await, None);
        let (later, ()) = tokio::join!(book.claim("b", one, soon()), async {
            tokio::task::yield_now().await;
            book.is(&node("b", "2", &["10.0.0.1"]));
        });
        assert_eq!(later, Some(Claim::Contested("a".into())));
        assert_eq!(book.rival("a", one), Some("b".into()));
        assert_eq!(book.rival("c", ip("10.0.0.9")), None);
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_broken_watch_only_what_was_known_counts_and_nobody_waits() {
        let book = Book::default();
        let one = ip("10.0.0.1");
        assert_eq!(book.claim("a", one, soon()).await, None);
        book.begins();
        book.is(&node("a", "1", &["10.0.0.1"]));
        // A list that is not whole says nothing about who was first.
        let begun = Instant::now();
        assert_eq!(book.claim("a", one, soon()).await, None);
        assert!(begun.elapsed().as_secs() >= 3);
        book.broke();
        let begun = Instant::now();
        assert_eq!(book.claim("a", one, soon()).await, None);
        assert!(begun.elapsed().is_zero());
        // Nor does it in the next list: b may have been there first.
        book.begins();
        book.is(&node("a", "1", &["10.0.0.1"]));
        book.is(&node("b", "2", &["10.0.0.1"]));
        book.listed();
        let contested = Some(Claim::Contested("b".into()));
        assert_eq!(book.claim("a", one, soon()).await, contested);
        let book = listed(&[node("a", "1", &["10.0.0.1"])]);
        book.broke();
        assert_eq!(book.claim("a", one, soon()).await, Some(Claim::Own));
        let begun = Instant::now();
        assert_eq!(book.claim("b", one, soon()).await, None);
        assert!(begun.elapsed().is_zero());
        // Nor do lists that fail one after the other change that, whatever they showed.
        for _ in 0..2 {
            book.begins();
            book.is(&node("c", "3", &["10.0.0.3"]));
            assert_eq!(book.claim("a", one, soon()).await, Some(Claim::Own));
            book.broke();
            assert_eq!(book.claim("a", one, soon()).await, Some(Claim::Own));
            assert_eq!(book.claim("c", ip("10.0.0.3"), soon()).await, None);
        }
    }
}
