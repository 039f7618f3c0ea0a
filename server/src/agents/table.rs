//! The table of agents, keyed by verified identity.
//!
//! A link comes in in two steps, because the greeting is answered in between: [`Agents::admit`]
//! checks and reserves a place, [`Admission::register`] fills it. Rules:
//! 1. no more links than allowed, of all agents and of one (`overloaded`);
//! 2. two agents never hold one node address at a time: the newcomer is refused with an alarm;
//! 3. links of one instance stand side by side; a newer instance takes the new dials and the
//!    links of the older one are drained, their dials intact;
//! 4. more than [`limits::REPLACEMENTS_PER_MINUTE`] such replacements a minute raise an alarm:
//!    either an agent keeps dying, or two machines hold the same key.
//!
//! Dials read a snapshot and never wait for the table.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::Instant;
use towline_link::driver::Link;
use towline_link::error::detail;
use towline_link::process::ratelimit::RateLimited;
use towline_pki::{Serial, VerifiedPeer};
use towline_proto::control::Hello;
use towline_proto::id::{InstanceId, Name};
use towline_proto::limits;
use towline_proto::reason::Reason;

use super::node::{AgentLink, Ended, Node, NodeState};
use super::replacements::{Replacements, WINDOW};
use crate::metrics::Metrics;
use crate::pick::{Route, Routes};

/// Why an agent was not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// As many links as `--max-links` allows.
    #[error("{0} links are as many as --max-links allows")]
    Full(usize),
    /// As many links as one agent may have.
    #[error(
        "it has {} links, as many as one agent may have",
        limits::LINKS_PER_AGENT
    )]
    Many,
    /// Somebody else holds an address that it is granted.
    #[error("its address {address} is held by the linked agent {holder}")]
    Overlap {
        /// The address.
        address: IpAddr,
        /// Who holds it.
        holder: Name,
    },
}

impl NotAdmitted {
    /// The part that travels.
    pub const fn reason(&self) -> Reason {
        match self {
            NotAdmitted::Full(_) | NotAdmitted::Many => Reason::Overloaded,
            NotAdmitted::Overlap { .. } => Reason::ExcessClaim,
        }
    }
}

/// All agents that are linked, or were not long ago.
pub struct Agents {
    inner: Mutex<Inner>,
    routes: ArcSwap<Routes<Node>>,
    stale: AtomicBool,
    /// Moves on whenever a link comes, goes or changes its verdict.
    changes: watch::Sender<u64>,
    max_links: usize,
    metrics: Metrics,
    alarms: RateLimited<Name>,
}

#[derive(Default)]
struct Inner {
    known: HashMap<Name, Known>,
    holders: HashMap<IpAddr, Name>,
    /// Links and places reserved for links.
    places: usize,
}

struct Known {
    node: Arc<Node>,
    route: Route,
    reserved: usize,
    replacements: Replacements,
    /// Who came last.
    newest: Option<Newest>,
}

#[derive(Clone, Debug)]
struct Newest {
    instance: InstanceId,
    peer: VerifiedPeer,
    address: SocketAddr,
}

impl Newest {
    fn serial(&self) -> &Serial {
        &self.peer.leaf().serial
    }
}

impl Known {
    fn is_held(&self) -> bool {
        self.reserved > 0 || self.node.is_linked()
    }
}

impl Agents {
    /// An empty table.
    pub fn new(max_links: usize, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::default(),
            routes: ArcSwap::default(),
            stale: AtomicBool::new(false),
            changes: watch::Sender::new(0),
            max_links,
            metrics,
            alarms: RateLimited::new(1, WINDOW),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who owns what, now. Built anew when something about it changed.
    pub fn routes(&self) -> Arc<Routes<Node>> {
        if self.stale.load(Ordering::Acquire) {
            let inner = self.lock();
            if self.stale.swap(false, Ordering::AcqRel) {
                self.routes.store(Arc::new(inner.routes()));
            }
        }
        self.routes.load_full()
    }

    /// Every known agent.
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        let inner = self.lock();
        inner.known.values().map(|k| Arc::clone(&k.node)).collect()
    }

    /// The agent that is granted this (canonical) address.
    pub fn holder(&self, ip: IpAddr) -> Option<Name> {
        self.lock().holders.get(&ip).cloned()
    }

    /// Whether there is, or was not long ago, an agent of this name.
    pub fn knows(&self, name: &str) -> bool {
        let name: Result<Name, _> = name.parse();
        name.is_ok_and(|name| self.lock().known.contains_key(&name))
    }

    /// The first of an agent's own addresses, if it has any.
    pub fn address_of(&self, name: &Name) -> Option<IpAddr> {
        let inner = self.lock();
        let known = inner.known.get(name)?;
        known.route.addresses.first().copied()
    }

    /// The certificate with which an agent of this name was linked last, whoever issued it.
    pub fn shown_by(&self, name: &Name) -> Option<VerifiedPeer> {
        let inner = self.lock();
        let newest = inner.known.get(name)?.newest.as_ref()?;
        Some(newest.peer.clone())
    }

    /// Whether an agent of this name is linked, or was so shortly ago that it may be coming back. One
    /// that said goodbye is not.
    pub fn is_alive(&self, name: &Name, shortly: Duration) -> bool {
        let inner = self.lock();
        let Some(known) = inner.known.get(name) else {
            return false;
        };
        let broke = known.node.ended();
        let broke = broke.filter(|ended| ended.reason != Reason::Shutdown);
        known.node.is_linked() || broke.is_some_and(|ended| ended.at.elapsed() < shortly)
    }

    /// Every link.
    pub fn links(&self) -> Vec<Arc<AgentLink>> {
        self.nodes().iter().flat_map(|node| node.links()).collect()
    }

    /// Sees that something changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Says that a link's verdict changed.
    pub fn touch(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Checks an agent and reserves a place for its link until the admission is dropped.
    pub fn admit(
        self: &Arc<Self>,
        peer: &VerifiedPeer,
        route: Route,
    ) -> Result<Admission, NotAdmitted> {
        self.reserve(&peer.identity().name, route)
    }

    fn reserve(self: &Arc<Self>, name: &Name, route: Route) -> Result<Admission, NotAdmitted> {
        let mut inner = self.lock();
        if inner.places >= self.max_links {
            return Err(NotAdmitted::Full(self.max_links));
        }
        let held = |known: &Known| known.reserved + known.node.link_count();
        if inner.known.get(name).map_or(0, held) >= limits::LINKS_PER_AGENT {
            return Err(NotAdmitted::Many);
        }
        if let Some(overlap) = inner.overlap(name, &route) {
            drop(inner);
            self.metrics.overlap();
            return Err(overlap);
        }
        inner.places += 1;
        self.place(&mut inner, name, route);
        if let Some(known) = inner.known.get_mut(name) {
            known.reserved += 1;
        }
        Ok(Admission {
            table: Arc::clone(self),
            name: name.clone(),
        })
    }

    /// Gives an agent its grants.
    fn place(&self, inner: &mut Inner, name: &Name, route: Route) {
        let mut moved = false;
        for ip in &route.addresses {
            let before = inner.holders.insert(*ip, name.clone());
            moved |= before.as_ref() != Some(name);
        }
        let known = inner.known.entry(name.clone()).or_insert_with(|| Known {
            node: Arc::new(Node::new(name.clone())),
            route: Route::default(),
            reserved: 0,
            replacements: Replacements::default(),
            newest: None,
        });
        let new = known.newest.is_none() && known.reserved == 0;
        if new || moved || known.route != route {
            known.route = route;
            self.stale.store(true, Ordering::Release);
        }
    }

    /// Grants changed: every agent gets those that `route` says. An agent that now overlaps
    /// another live one keeps what it had, and that is said by an error in the log.
    pub fn regrant(&self, route: impl Fn(&VerifiedPeer) -> Route) {
        let mut inner = self.lock();
        let linked: Vec<(Name, Route)> = inner
            .known
            .iter()
            .filter_map(|(name, known)| {
                let links = known.node.links();
                let newest = links.first()?;
                Some((name.clone(), route(newest.peer())))
            })
            .collect();
        for (name, route) in linked {
            if let Some(overlap) = inner.overlap(&name, &route) {
                self.metrics.overlap();
                tracing::error!(agent = %name, error = %overlap, "new grants of a linked agent are not used");
                continue;
            }
            self.place(&mut inner, &name, route);
        }
        let held: HashMap<IpAddr, Name> = inner
            .known
            .iter()
            .flat_map(|(name, known)| known.route.addresses.iter().map(|ip| (*ip, name.clone())))
            .collect();
        // Of a live and a remembered holder of one address the live one stays.
        let live: Vec<(IpAddr, Name)> = inner
            .known
            .iter()
            .filter(|(_, known)| known.is_held())
            .flat_map(|(name, known)| known.route.addresses.iter().map(|ip| (*ip, name.clone())))
            .collect();
        inner.holders = held;
        inner.holders.extend(live);
        self.stale.store(true, Ordering::Release);
    }

    fn register(&self, name: &Name, link: Link, hello: &Hello) -> Arc<AgentLink> {
        let entry = Arc::new(AgentLink::new(
            link,
            hello.instance,
            detail(&hello.software),
        ));
        let came = Newest {
            instance: hello.instance,
            peer: entry.peer().clone(),
            address: entry.link.carrier().remote_address(),
        };
        let mut old = Vec::new();
        {
            let mut inner = self.lock();
            inner.places += 1;
            let Some(known) = inner.known.get_mut(name) else {
                // Cannot be: the admission, which still lives, keeps the agent known.
                entry.link.close(Reason::Aborted);
                return entry;
            };
            let before = known.newest.replace(came.clone());
            let mut links = known.node.links();
            if let Some(before) = before.filter(|before| before.instance != came.instance)
                && !links.is_empty()
            {
                old = links.clone();
                self.replaced(name, known, &before, &came);
            }
            entry.belongs_to(&known.node);
            known.node.attested().new_session();
            links.insert(0, Arc::clone(&entry));
            known.node.replace(NodeState { links, ended: None });
        }
        for link in old.iter().filter(|link| link.instance != came.instance) {
            if link.supersede() {
                // As long as it can be: what the old instance carries is none of the new one's
                // business, and a process that ends has a deadline of its own.
                link.link
                    .drain(Reason::Superseded, limits::DRAIN_TIMEOUT_MAX);
            }
        }
        self.touch();
        entry
    }

    fn replaced(&self, name: &Name, known: &mut Known, before: &Newest, came: &Newest) {
        self.metrics.replacement();
        if !known.replacements.count(Instant::now()) {
            return;
        }
        self.metrics.replacement_alarm();
        if let Some(suppressed) = self.alarms.allow(name.clone()) {
            tracing::error!(
                agent = %name,
                suppressed,
                serial = %came.serial(),
                address = %came.address,
                instance = %came.instance,
                serial_before = %before.serial(),
                address_before = %before.address,
                instance_before = %before.instance,
                "instances of this agent replace each other: it restarts again and again, or two \
                 machines hold the same key (then deny both serials and issue new certificates)"
            );
        }
    }

    /// Takes a link out that is over.
    pub fn retire(&self, entry: &AgentLink, reason: Reason) {
        let name = &entry.peer().identity().name;
        {
            let mut inner = self.lock();
            inner.places = inner.places.saturating_sub(1);
            if let Some(known) = inner.known.get(name) {
                let mut links = known.node.links();
                links.retain(|link| link.link.id() != entry.link.id());
                let ended = links.is_empty().then(|| Ended {
                    at: Instant::now(),
                    reason,
                });
                known.node.replace(NodeState { links, ended });
            }
            if inner.known.len() > self.max_links.max(limits::REMEMBERED_AGENTS) {
                inner.forget_oldest();
                self.stale.store(true, Ordering::Release);
            }
        }
        self.touch();
    }

    fn release(&self, name: &Name) {
        let mut inner = self.lock();
        inner.places = inner.places.saturating_sub(1);
        let Some(known) = inner.known.get_mut(name) else {
            return;
        };
        known.reserved = known.reserved.saturating_sub(1);
        // Never linked: nothing to remember.
        if !known.is_held() && known.node.ended().is_none() {
            inner.forget(name);
            self.stale.store(true, Ordering::Release);
        }
    }
}

impl Inner {
    fn overlap(&self, name: &Name, route: &Route) -> Option<NotAdmitted> {
        route.addresses.iter().find_map(|address| {
            let holder = self.holders.get(address).filter(|holder| *holder != name)?;
            let held = self.known.get(holder).is_some_and(Known::is_held);
            held.then(|| NotAdmitted::Overlap {
                address: *address,
                holder: holder.clone(),
            })
        })
    }

    fn routes(&self) -> Routes<Node> {
        let mut routes = Routes::default();
        for (name, known) in &self.known {
            // An address may also be remembered of an agent that is gone; the holder has it.
            let mut route = known.route.clone();
            route
                .addresses
                .retain(|ip| self.holders.get(ip).is_none_or(|holder| holder == name));
            routes.add(name.as_str(), &route, Arc::clone(&known.node));
        }
        routes
    }

    fn forget(&mut self, name: &Name) {
        self.known.remove(name);
        self.holders.retain(|_, holder| holder != name);
    }

    fn forget_oldest(&mut self) {
        let oldest = self
            .known
            .iter()
            .filter(|(_, known)| !known.is_held())
            .min_by_key(|(_, known)| known.node.ended().map(|ended| ended.at))
            .map(|(name, _)| name.clone());
        if let Some(name) = oldest {
            self.forget(&name);
        }
    }
}

/// A reserved place for a link.
pub struct Admission {
    table: Arc<Agents>,
    name: Name,
}

impl Admission {
    /// Fills the place. The caller calls [`Agents::retire`] when the link is over.
    pub fn register(self, link: Link, hello: &Hello) -> Arc<AgentLink> {
        // The link takes a place of its own; dropping `self` gives the reserved one back.
        self.table.register(&self.name, link, hello)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.table.release(&self.name);
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
