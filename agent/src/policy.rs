//! Which targets this node may reach: pure, and the only maker of a [`Permit`].
//!
//! The agent judges by the *resolved* address and by what it knows of its own node. What the
//! server says a target is (its class) is only compared: it can never widen anything. One
//! address that may not be reached refuses the whole dial, so that a name cannot be used to
//! smuggle one in beside others.

use std::cell::LazyCell;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use towline_proto::address::{self, Refusal};
use towline_proto::dial::Refused;
use towline_proto::id::Name;
use towline_proto::limits;
use towline_proto::policy::{Asker, Decision, Question, RuleSet, RuleTag};
use towline_proto::reason::Reason;
use towline_proto::target::{Class, Classes, Host, HostName, Target};

/// The leave to reach one address. Made here only, consumed by the connector.
#[derive(Debug, PartialEq, Eq)]
pub struct Permit {
    address: SocketAddr,
    class: Class,
}

impl Permit {
    /// Where it allows to connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the address is to us.
    pub fn class(&self) -> Class {
        self.class
    }
}

/// What the agent knows of its node, and what the operator allows.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The node, from the agent's certificate, where there is one.
    pub node: Option<Name>,
    /// Where the kubelet of this node listens. When empty, every address of this node except
    /// loopback counts.
    pub kubelet_addresses: Vec<IpAddr>,
    /// The kubelet's port.
    pub kubelet_port: u16,
    /// Service prefixes, when given.
    pub service_prefixes: Vec<IpNet>,
    /// Pod prefixes, when given.
    pub pod_prefixes: Vec<IpNet>,
    /// What may be reached at all, of the policy file or built in. The front end is not visible
    /// here; see [`towline_proto::policy`] for what that means.
    pub rules: Arc<RuleSet>,
    /// Where this process serves health and metrics.
    pub health: Option<SocketAddr>,
    /// The compatibility profile: what a target is does not matter, and loopback counts as an
    /// address of the node. What else is forbidden to all stays forbidden.
    pub open: bool,
}

/// What is asked for, beside the address.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The name, when it was one.
    pub name: Option<&'a str>,
    /// The port.
    pub port: u16,
    /// What the server takes it for.
    pub said: Class,
}

impl<'a> Asked<'a> {
    /// Of a target.
    pub fn of(target: &'a Target, said: Class) -> Self {
        let name = match &target.host {
            Host::Name(name) => Some(name.as_str()),
            Host::Ip(_) => None,
        };
        Self {
            name,
            port: target.port(),
            said,
        }
    }
}

/// How the addresses of a target are found.
#[derive(Debug, PartialEq, Eq)]
pub enum Lookup<'a> {
    /// They are known.
    Known(Vec<IpAddr>),
    /// The node's resolver must be asked.
    Resolve(&'a HostName),
}

/// What the kernel and the links know at this moment; both are asked once per address.
pub trait Facts {
    /// Whether the address is one of this node's own.
    fn is_local(&self, ip: IpAddr) -> bool;
    /// Whether a server of this tunnel listens there.
    fn is_server(&self, address: SocketAddr) -> bool;
    /// Whether a server says that one listens there; only its word.
    fn is_told(&self, address: SocketAddr) -> bool;
    /// Whether this is a server's name and port.
    fn is_server_name(&self, name: &str, port: u16) -> bool;
}

/// Why a dial is not allowed, for the log; only the reason and the address travel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// The name gave no address.
    #[error("the name has no address")]
    NoAddress,
    /// No rule can allow it.
    #[error("{0} is a {1}")]
    Forbidden(IpAddr, Refusal),
    /// A server of this tunnel, or our own health address.
    #[error("{0} is an end of the tunnel itself")]
    Tunnel(SocketAddr),
    /// The server takes it for something that it is not here.
    #[error("the server takes {0} for class {1}, which it is not on this node")]
    Mismatch(IpAddr, Class),
    /// A rule denies it.
    #[error("{0} is denied by {1} of this agent's policy")]
    Rule(IpAddr, RuleTag),
    /// No rule allows it.
    #[error(
        "no rule of this agent's policy allows {0} (class {1}); see --policy and --allow-class"
    )]
    Unnamed(IpAddr, Class),
}

impl Denial {
    /// The part that is told to the server.
    pub fn refused(&self) -> Refused {
        let (reason, address) = match self {
            Denial::NoAddress => (Reason::NameNotFound, None),
            Denial::Forbidden(ip, _) => (Reason::ForbiddenAddress, Some(ip)),
            Denial::Tunnel(address) => {
                return Refused {
                    reason: Reason::ForbiddenAddress,
                    address: Some(address.ip()),
                };
            }
            Denial::Mismatch(ip, _) | Denial::Rule(ip, _) | Denial::Unnamed(ip, _) => {
                (Reason::AgentPolicy, Some(ip))
            }
        };
        let address = address.copied();
        Refused { reason, address }
    }
}

/// The agent's policy. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Policy(Arc<Rules>);

impl Policy {
    /// Addresses of the rules are brought into the form in which they are compared.
    pub fn new(mut rules: Rules) -> Self {
        for ip in &mut rules.kubelet_addresses {
            *ip = address::canonical(*ip);
        }
        Self(Arc::new(rules))
    }

    /// The rules it was made of.
    pub fn rules(&self) -> &Rules {
        &self.0
    }

    /// The node's own name needs no resolver: its addresses are the kubelet's.
    pub fn lookup<'a>(&self, target: &'a Target) -> Lookup<'a> {
        self.lookup_host(&target.host)
    }

    /// [`Policy::lookup`] of a host alone.
    pub fn lookup_host<'a>(&self, host: &'a Host) -> Lookup<'a> {
        match host {
            Host::Ip(ip) => Lookup::Known(vec![*ip]),
            Host::Name(name)
                if self
                    .0
                    .node
                    .as_ref()
                    .is_some_and(|node| name.as_str() == node.as_str())
                    && !self.0.kubelet_addresses.is_empty() =>
            {
                Lookup::Known(self.0.kubelet_addresses.clone())
            }
            Host::Name(name) => Lookup::Resolve(name),
        }
    }

    /// Permits for all resolved addresses, in their order, or none at all.
    pub fn check(
        &self,
        resolved: &[IpAddr],
        asked: Asked<'_>,
        facts: &impl Facts,
    ) -> Result<Vec<Permit>, Denial> {
        let mut permits: Vec<Permit> = Vec::with_capacity(resolved.len());
        for ip in resolved.iter().take(limits::RESOLVED_ADDRESSES) {
            let permit = self.check_one(*ip, asked, facts)?;
            if !permits.contains(&permit) {
                permits.push(permit);
            }
        }
        if permits.is_empty() {
            return Err(Denial::NoAddress);
        }
        Ok(permits)
    }

    /// Permits for what a legacy server asks for, which says no class. Without the
    /// compatibility profile there are none.
    pub fn check_open(
        &self,
        resolved: &[IpAddr],
        name: Option<&str>,
        port: u16,
        facts: &impl Facts,
    ) -> Result<Vec<Permit>, Denial> {
        if !self.0.open {
            return Err(Denial::NoAddress);
        }
        let class = |ip: &IpAddr| {
            let ip = address::canonical(*ip);
            let kubelet = port == self.0.kubelet_port && self.0.kubelet_addresses.contains(&ip);
            let classes = self.classes(ip, port, kubelet, || facts.is_local(ip));
            let known = [Class::Kubelet, Class::Node, Class::Service, Class::Pod];
            let other = classes.has(Class::Other);
            let found = known.into_iter().find(|class| classes.has(*class));
            if other {
                Class::Other
            } else {
                found.unwrap_or(Class::Other)
            }
        };
        let said = resolved.first().map_or(Class::Other, class);
        self.check(resolved, Asked { name, port, said }, facts)
    }

    /// The leave for one address.
    pub fn check_one(
        &self,
        ip: IpAddr,
        asked: Asked<'_>,
        facts: &impl Facts,
    ) -> Result<Permit, Denial> {
        let Asked { name, port, said } = asked;
        let ip = address::canonical(ip);
        let address = SocketAddr::new(ip, port);
        let kubelet = port == self.0.kubelet_port && self.0.kubelet_addresses.contains(&ip);
        match address::refusal(ip) {
            // The kubelet may be told to listen on loopback only.
            Some(Refusal::Loopback) if kubelet || self.0.open => {}
            Some(refusal) => return Err(Denial::Forbidden(ip, refusal)),
            None => {}
        }
        // An address that carries another one may lead there as well.
        let ends = || std::iter::once(ip).chain(address::carried(ip));
        // Asks the kernel, so only when it decides something.
        let local = LazyCell::new(|| ends().any(|ip| facts.is_local(ip)));
        if name.is_some_and(|name| facts.is_server_name(name, port)) {
            return Err(Denial::Tunnel(address));
        }
        // No server's word takes this node's own kubelet away from the others.
        let any = port == self.0.kubelet_port && self.0.kubelet_addresses.is_empty();
        let own = || kubelet || (any && *local);
        for end in ends().map(|ip| SocketAddr::new(ip, port)) {
            let told = facts.is_told(end) && !own();
            if told || facts.is_server(end) || self.is_health(end, || *local) {
                return Err(Denial::Tunnel(end));
            }
        }
        if !self.0.open && !self.classes(ip, port, kubelet, || *local).has(said) {
            return Err(Denial::Mismatch(ip, said));
        }
        match self.0.rules.decide(&Question {
            class: said,
            port,
            name,
            address: Some(ip),
            node: self.0.node.as_ref().map(|node| node.as_str()),
            asker: Asker::Unseen,
        }) {
            Decision::Allowed(_) => Ok(Permit {
                address,
                class: said,
            }),
            Decision::Denied(rule) => Err(Denial::Rule(ip, rule)),
            Decision::Unnamed => Err(Denial::Unnamed(ip, said)),
        }
    }

    fn is_health(&self, address: SocketAddr, local: impl Fn() -> bool) -> bool {
        self.0.health.is_some_and(|health| {
            health.port() == address.port()
                && (address::canonical(health.ip()) == address.ip()
                    || (health.ip().is_unspecified() && local()))
        })
    }

    /// What the address can be, by our own knowledge. More than one class only where the
    /// operator gave no prefixes to tell them apart, and never on the kubelet's port.
    fn classes(&self, ip: IpAddr, port: u16, kubelet: bool, local: impl Fn() -> bool) -> Classes {
        let within = |prefixes: &[IpNet]| prefixes.iter().any(|prefix| prefix.contains(&ip));
        if kubelet {
            return Classes::of(&[Class::Kubelet]);
        }
        // Before `local`: IPVS binds service addresses on the node.
        if within(&self.0.service_prefixes) {
            return Classes::of(&[Class::Service]);
        }
        // Before the pod prefixes: the bridge of the pod network is an address of the node.
        if local() {
            let any = self.0.kubelet_addresses.is_empty() && port == self.0.kubelet_port;
            return Classes::of(&[if any { Class::Kubelet } else { Class::Node }]);
        }
        if within(&self.0.pod_prefixes) {
            return Classes::of(&[Class::Pod]);
        }
        // It may be another node's kubelet, and no server's word makes that a pod.
        let unknown = port != self.0.kubelet_port;
        Classes::of(&[Class::Other])
            .with(
                Class::Service,
                unknown && self.0.service_prefixes.is_empty(),
            )
            .with(Class::Pod, unknown && self.0.pod_prefixes.is_empty())
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
