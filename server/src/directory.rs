//! What an agent may serve, from every source but the agent itself.
//!
//! Sources now: the certificate (node name, IP SANs) and the grants file. A source that watches
//! the Kubernetes API comes later, behind the same trait.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use ipnet::IpNet;
use towline_pki::VerifiedPeer;
use towline_proto::address;
use towline_proto::control::Hello;
use towline_proto::id::Name;

use crate::classify::Prefixes;
use crate::grants::Grants;
use crate::pick::Route;

/// Says what a verified agent may serve.
pub trait Directory: Send + Sync + 'static {
    /// Its grants at this moment.
    fn route(&self, agent: &VerifiedPeer) -> Route;

    /// Prefixes that every gateway may serve.
    fn gateway_prefixes(&self) -> Vec<IpNet>;
}

/// Certificates, flags and the grants file.
pub struct FileDirectory {
    grants: ArcSwapOption<Grants>,
    prefixes: Prefixes,
}

impl FileDirectory {
    /// `None`: there is no grants file, and every agent is a gateway.
    pub fn new(prefixes: Prefixes, grants: Option<Grants>) -> Self {
        Self {
            grants: ArcSwapOption::from(grants.map(Arc::new)),
            prefixes,
        }
    }

    /// Whether the grants file gives this (canonical) address to this agent.
    pub fn gives(&self, name: &Name, ip: IpAddr) -> bool {
        let grants = self.grants.load();
        let given = |grants: &Arc<Grants>| grants.of(name).addresses.contains(&ip);
        grants.as_ref().is_some_and(given)
    }

    /// Whether the grants file gives this (canonical) address to anybody.
    pub fn gives_away(&self, ip: IpAddr) -> bool {
        let grants = self.grants.load();
        grants.as_ref().is_some_and(|grants| grants.has_address(ip))
    }

    /// After a reload of the file.
    pub fn replace(&self, grants: Grants) {
        self.grants.store(Some(Arc::new(grants)));
    }
}

impl Directory for FileDirectory {
    fn route(&self, agent: &VerifiedPeer) -> Route {
        let mut route = match &*self.grants.load() {
            Some(grants) => grants.of(&agent.identity().name),
            None => Route {
                gateway: true,
                ..Route::default()
            },
        };
        let certified = agent.leaf().ip_sans.iter().copied();
        route.addresses.extend(certified.map(address::canonical));
        route.addresses.sort_unstable();
        route.addresses.dedup();
        route.prefixes.sort_unstable();
        route.prefixes.dedup();
        route
    }

    fn gateway_prefixes(&self) -> Vec<IpNet> {
        let both = self.prefixes.service.iter().chain(&self.prefixes.pod);
        both.copied().collect()
    }
}

/// The part of a Hello that is not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Excess {
    /// A node address.
    #[error("the address {0}")]
    Address(IpAddr),
    /// A prefix.
    #[error("the prefix {0}")]
    Prefix(IpNet),
}

/// What an agent claims has to lie within what it is granted.
pub fn check_claims(hello: &Hello, route: &Route, gateway: &[IpNet]) -> Result<(), Excess> {
    for ip in &hello.addresses {
        if !route.addresses.contains(&address::canonical(*ip)) {
            return Err(Excess::Address(*ip));
        }
    }
    let by_gateway = if route.gateway { gateway } else { &[] };
    for prefix in &hello.prefixes {
        let mut granted = route.prefixes.iter().chain(by_gateway);
        if !granted.any(|around| around.contains(prefix)) {
            return Err(Excess::Prefix(*prefix));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use towline_proto::id::InstanceId;
    use towline_proto::version::Capabilities;

    fn hello(addresses: &[&str], prefixes: &[&str]) -> Hello {
        Hello {
            versions: (1, 1),
            capabilities: Capabilities::OURS,
            instance: InstanceId::new(1).unwrap(),
            name: "n1".parse().unwrap(),
            addresses: addresses.iter().map(|t| t.parse().unwrap()).collect(),
            prefixes: prefixes.iter().map(|t| t.parse().unwrap()).collect(),
            software: String::new(),
        }
    }

    #[test]
    fn claims_lie_within_grants_or_the_excess_is_named() {
        let route = Route {
            addresses: vec!["10.0.0.1".parse().unwrap()],
            prefixes: vec!["10.244.1.0/24".parse().unwrap()],
            gateway: true,
        };
        let no_gateway = Route {
            gateway: false,
            ..route.clone()
        };
        let gateway: Vec<IpNet> = vec!["10.96.0.0/12".parse().unwrap()];
        let said = |hello: &Hello, route: &Route| match check_claims(hello, route, &gateway) {
            Ok(()) => "fine".to_owned(),
            Err(excess) => excess.to_string(),
        };
        assert_eq!(said(&hello(&[], &[]), &route), "fine");
        assert_eq!(said(&hello(&["::ffff:10.0.0.1"], &[]), &route), "fine");
        assert_eq!(said(&hello(&[], &["10.244.1.128/25"]), &route), "fine");
        assert_eq!(said(&hello(&[], &["10.97.0.0/16"]), &route), "fine");
        assert_eq!(
            said(&hello(&["10.0.0.2"], &[]), &route),
            "the address 10.0.0.2"
        );
        assert_eq!(
            said(&hello(&[], &["10.244.0.0/16"]), &route),
            "the prefix 10.244.0.0/16"
        );
        assert_eq!(
            said(&hello(&[], &["10.97.0.0/16"]), &no_gateway),
            "the prefix 10.97.0.0/16"
        );
    }
}
