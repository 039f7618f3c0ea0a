//! Where the servers of this tunnel are, as far as an agent can know: no dial may go there.
//!
//! Three sources, kept apart because they weigh differently. What the flags say counts from the
//! start and for ever. What a server's name gave, and where links went, is ours to know. What a
//! server says in its Welcome is only its word: it is kept by server, a later Welcome replaces
//! it, and the policy does not let it stand in the way of the node's own kubelet.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use towline_proto::address;
use towline_proto::limits;
use towline_proto::target::{Host, Target};

/// See the head of this file.
#[derive(Debug, Default)]
pub struct ServerAddresses {
    given: Vec<Target>,
    /// By the server's flag, so that no server's words push another's out.
    known: Mutex<HashMap<Target, Known>>,
}

#[derive(Debug, Default)]
struct Known {
    /// Newest first.
    reached: VecDeque<SocketAddr>,
    told: Vec<SocketAddr>,
}

impl ServerAddresses {
    /// These are the servers.
    pub fn new(servers: &[Target]) -> Self {
        Self {
            given: servers.to_vec(),
            known: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Target, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its name leads there, or a link went there. Of each server the newest are kept.
    pub fn reached(&self, server: &Target, address: SocketAddr) {
        let address = canonical(address);
        let mut known = self.lock();
        let reached = &mut known.entry(server.clone()).or_default().reached;
        reached.retain(|one| *one != address);
        reached.push_front(address);
        reached.truncate(limits::REACHED_ADDRESSES);
    }

    /// A server says in its Welcome where servers are; what it said before is forgotten.
    pub fn told(&self, server: &Target, addresses: impl IntoIterator<Item = SocketAddr>) {
        let addresses = addresses.into_iter().take(limits::LIST_ITEMS);
        let addresses = addresses.map(canonical).collect();
        self.lock().entry(server.clone()).or_default().told = addresses;
    }

    /// Whether a server is there by the flags or by what we saw.
    pub fn has(&self, address: SocketAddr) -> bool {
        let address = canonical(address);
        let given = self.given.iter().filter_map(Target::address);
        given.map(canonical).any(|one| one == address)
            || self
                .lock()
                .values()
                .any(|known| known.reached.contains(&address))
    }

    /// Whether a server says that one is there.
    pub fn has_told(&self, address: SocketAddr) -> bool {
        let address = canonical(address);
        self.lock()
            .values()
            .any(|known| known.told.contains(&address))
    }

    /// Whether this is the name and port of a server.
    pub fn has_name(&self, name: &str, port: u16) -> bool {
        self.given.iter().any(|server| {
            let own = matches!(&server.host, Host::Name(own) if own.as_str() == name);
            own && server.port() == port
        })
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address::canonical(address.ip()), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn servers_of_the_flags_are_known_before_anything_was_reached() {
        let known = ServerAddresses::new(&[target("192.0.2.10:8091"), target("cp.example:8091")]);
        assert!(known.has(at("192.0.2.10:8091")));
        assert!(known.has(at("[::ffff:192.0.2.10]:8091")));
        assert!(!known.has(at("192.0.2.10:8092")));
        assert!(known.has_name("cp.example", 8091));
        assert!(!known.has_name("cp.example", 443) && !known.has_name("example", 8091));
    }

    #[test]
    fn nothing_that_is_told_or_found_pushes_the_servers_out() {
        let (own, other) = (target("192.0.2.10:8091"), target("cp.example:8091"));
        let known = ServerAddresses::new(&[own.clone(), other.clone()]);
        known.reached(&other, at("192.0.2.20:8091"));
        for round in 0..8 {
            let flood = (0..2000).map(|port| SocketAddr::from(([10, 0, round, 2], port)));
            known.told(&own, flood.clone());
            flood.for_each(|address| known.reached(&own, address));
        }
        assert!(known.has(at("192.0.2.10:8091")) && known.has(at("192.0.2.20:8091")));
        // The newest of what was reached, and the last Welcome alone.
        assert!(known.has(at("10.0.7.2:1999")) && !known.has(at("10.0.7.2:1")));
        assert!(known.has_told(at("10.0.7.2:1")) && !known.has_told(at("10.0.6.2:1")));
        let known = known.lock();
        let kept = known.values().map(|one| one.reached.len() + one.told.len());
        assert!(kept.sum::<usize>() <= 2 * (limits::REACHED_ADDRESSES + limits::LIST_ITEMS));
    }

    #[test]
    fn what_a_server_told_lasts_until_it_tells_again() {
        let server = target("192.0.2.10:8091");
        let known = ServerAddresses::new(std::slice::from_ref(&server));
        known.told(&server, [at("[::ffff:10.0.0.1]:8091")]);
        assert!(known.has_told(at("10.0.0.1:8091")) && !known.has(at("10.0.0.1:8091")));
        known.told(&server, []);
        assert!(!known.has_told(at("10.0.0.1:8091")));
    }
}
