//! Which agent a dial goes through: pure, from a snapshot of who is granted what.
//!
//! | class | candidates |
//! |---|---|
//! | `kubelet`, `node` | the owner of the address or name, nobody else |
//! | `pod` | agents granted a prefix around the address, the longest first; else as `service` |
//! | `service` | every agent with the `gateway` grant, in turn |
//! | `other` | nobody |
//!
//! Among candidates of the same kind a ready one comes before an unhealthy one, and that before
//! one that drains.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use towline_proto::address;
use towline_proto::id::LinkId;
use towline_proto::target::{Class, Host};

use crate::classify::{Nodes, within};

/// How fit an agent is for a new dial; the least is the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// A link that works.
    Ready,
    /// A link whose data path or heartbeat is in doubt.
    Unhealthy,
    /// Only links that the agent wants to be rid of.
    Draining,
    /// No link.
    Gone,
}

/// A candidate.
pub trait Candidate {
    /// How fit it is when the link `avoid` is left out.
    fn standing(&self, avoid: Option<LinkId>) -> Standing;
}

/// What a candidate is granted, as routing needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Node addresses it owns.
    pub addresses: Vec<IpAddr>,
    /// Prefixes it owns.
    pub prefixes: Vec<IpNet>,
    /// Whether it serves the cluster's service and pod prefixes.
    pub gateway: bool,
}

impl Route {
    /// Whether an agent of this name with these grants may serve a target; the same rules as
    /// [`Routes::pick`].
    pub fn serves(&self, name: &str, host: &Host, class: Class) -> bool {
        let owns = match host {
            Host::Ip(ip) => self.addresses.contains(&address::canonical(*ip)),
            Host::Name(host) => host.as_str() == name,
        };
        let around = match host {
            Host::Ip(ip) => within(&self.prefixes, address::canonical(*ip)),
            Host::Name(_) => false,
        };
        match class {
            Class::Kubelet | Class::Node => owns,
            Class::Pod => around || self.gateway,
            Class::Service => self.gateway,
            // Nobody serves it, so there is nothing to withdraw.
            Class::Other => true,
        }
    }
}

/// Who owns what. Built anew when grants or names change, shared by all dials.
#[derive(Debug)]
pub struct Routes<C> {
    agents: Vec<Arc<C>>,
    names: HashMap<Box<str>, usize>,
    addresses: HashMap<IpAddr, usize>,
    /// By length, longest first; looked up by the address cut to that length, so that ten
    /// thousand prefixes of nodes cost no more than one.
    prefixes: Vec<(u8, HashMap<IpNet, Vec<usize>>)>,
    gateways: Vec<usize>,
}

impl<C> Default for Routes<C> {
    fn default() -> Self {
        Self {
            agents: Vec::new(),
            names: HashMap::new(),
            addresses: HashMap::new(),
            prefixes: Vec::new(),
            gateways: Vec::new(),
        }
    }
}

/// Why there is nobody.
#[derive(Debug, PartialEq, Eq)]
pub enum NoAgent<C> {
    /// The owner is known and has no link.
    Owner(Arc<C>),
    /// No agent is granted this node address or name.
    UnknownNode,
    /// Agents may serve it, and none of them has a link.
    NoGateway,
    /// No agent may serve it at all.
    NoRoute,
    /// Agents could serve it, and the policy lets it through none of them; this is one.
    Forbidden(Arc<C>),
}

impl<C: Candidate> Routes<C> {
    /// Puts an agent in. Of two that hold one address the first keeps it; the table sees to it
    /// that this does not happen among live ones.
    pub fn add(&mut self, name: &str, route: &Route, agent: Arc<C>) {
        let index = self.agents.len();
        self.agents.push(agent);
        self.names.insert(name.into(), index);
        for ip in &route.addresses {
            self.addresses
                .entry(address::canonical(*ip))
                .or_insert(index);
        }
        for prefix in &route.prefixes {
            let length = prefix.prefix_len();
            let place = match self.prefixes.binary_search_by(|(l, _)| length.cmp(l)) {
                Ok(place) => place,
                Err(place) => {
                    self.prefixes.insert(place, (length, HashMap::new()));
                    place
                }
            };
            let owners = self.prefixes[place].1.entry(prefix.trunc()).or_default();
            owners.push(index);
        }
        if route.gateway {
            self.gateways.push(index);
        }
    }

    /// The owner of a node's address or name.
    pub fn owner(&self, host: &Host) -> Option<&Arc<C>> {
        let index = match host {
            Host::Ip(ip) => self.addresses.get(&address::canonical(*ip)),
            Host::Name(name) => self.names.get(name.as_str()),
        };
        index.and_then(|index| self.agents.get(*index))
    }

    /// Chooses an agent. `turn` moves on with every dial, so that gateways take turns; `may` says
    /// through whom the policy lets it go.
    pub fn pick(
        &self,
        host: &Host,
        class: Class,
        avoid: Option<LinkId>,
        turn: usize,
        may: impl Fn(&C) -> bool,
    ) -> Result<&Arc<C>, NoAgent<C>> {
        match class {
            Class::Kubelet | Class::Node => {
                let owner = self.owner(host).ok_or(NoAgent::UnknownNode)?;
                match owner.standing(avoid) {
                    _ if !may(owner) => Err(NoAgent::Forbidden(Arc::clone(owner))),
                    Standing::Gone => Err(NoAgent::Owner(Arc::clone(owner))),
                    _ => Ok(owner),
                }
            }
            Class::Pod => match self.pick_by_prefix(host, avoid, &may) {
                Some(owner) => Ok(owner),
                None => self.pick_gateway(avoid, turn, &may),
            },
            Class::Service => self.pick_gateway(avoid, turn, &may),
            Class::Other => Err(NoAgent::NoRoute),
        }
    }

    /// How many agents serve the cluster's service and pod prefixes.
    pub fn gateways(&self) -> usize {
        self.gateways.len()
    }

    /// Whether the agent of this name is granted a prefix around the address.
    pub fn owns(&self, name: &str, host: &Host) -> bool {
        let Host::Ip(ip) = host else { return false };
        let index = self.names.get(name);
        let mut around = self.owners_around(address::canonical(*ip));
        index.is_some_and(|index| around.any(|owners| owners.contains(index)))
    }

    fn pick_by_prefix(
        &self,
        host: &Host,
        avoid: Option<LinkId>,
        may: impl Fn(&C) -> bool,
    ) -> Option<&Arc<C>> {
        let Host::Ip(ip) = host else { return None };
        let best = |owners: &Vec<usize>| {
            let agents = owners.iter().filter_map(|index| self.agents.get(*index));
            agents
                .map(|agent| (agent.standing(avoid), agent))
                .filter(|(standing, agent)| *standing != Standing::Gone && may(agent))
                .min_by_key(|(standing, _)| *standing)
        };
        self.owners_around(address::canonical(*ip))
            .find_map(best)
            .map(|(_, agent)| agent)
    }

    fn pick_gateway(
        &self,
        avoid: Option<LinkId>,
        turn: usize,
        may: impl Fn(&C) -> bool,
    ) -> Result<&Arc<C>, NoAgent<C>> {
        let count = self.gateways.len();
        if count == 0 {
            return Err(NoAgent::NoRoute);
        }
        let mut best: Option<(Standing, &Arc<C>)> = None;
        let mut forbidden = None;
        for step in 0..count {
            let index = self.gateways[(turn % count + step) % count];
            let Some(agent) = self.agents.get(index) else {
                continue;
            };
            let standing = agent.standing(avoid);
            if standing != Standing::Gone && !may(agent) {
                forbidden = Some(agent);
                continue;
            }
            if standing == Standing::Ready {
                return Ok(agent);
            }
            if standing != Standing::Gone && best.is_none_or(|(before, _)| standing < before) {
                best = Some((standing, agent));
            }
        }
        match (best, forbidden) {
            (Some((_, agent)), _) => Ok(agent),
            (None, Some(agent)) => Err(NoAgent::Forbidden(Arc::clone(agent))),
            (None, None) => Err(NoAgent::NoGateway),
        }
    }
}

impl<C> Routes<C> {
    /// The owners of each prefix around an address, the longest prefix first.
    fn owners_around(&self, ip: IpAddr) -> impl Iterator<Item = &Vec<usize>> {
        self.prefixes.iter().filter_map(move |(length, by_prefix)| {
            by_prefix.get(&IpNet::new(ip, *length).ok()?.trunc())
        })
    }
}

impl<C> Nodes for Routes<C> {
    fn has_address(&self, ip: IpAddr) -> bool {
        self.addresses.contains_key(&ip)
    }

    fn has_name(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    fn has_prefix_around(&self, ip: IpAddr) -> bool {
        self.owners_around(ip).next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, PartialEq, Eq)]
    struct Plain {
        name: String,
        standing: Standing,
        route: Route,
    }

    impl Candidate for Plain {
        fn standing(&self, _: Option<LinkId>) -> Standing {
            self.standing
        }
    }

    fn plain(name: &str, standing: Standing, ips: &[&str], nets: &[&str], gateway: bool) -> Plain {
        Plain {
            name: name.to_owned(),
            standing,
            route: Route {
                addresses: ips.iter().map(|text| text.parse().unwrap()).collect(),
                prefixes: nets.iter().map(|text| text.parse().unwrap()).collect(),
                gateway,
            },
        }
    }

    fn routes(agents: Vec<Plain>) -> Routes<Plain> {
        let mut routes = Routes::default();
        for agent in agents {
            let (name, route) = (agent.name.clone(), agent.route.clone());
            routes.add(&name, &route, Arc::new(agent));
        }
        routes
    }

    fn picked(routes: &Routes<Plain>, host: &str, class: Class, turn: usize) -> String {
        match routes.pick(&host.parse().unwrap(), class, None, turn, |_| true) {
            Ok(agent) => agent.name.clone(),
            Err(NoAgent::Owner(agent)) => format!("no link: {}", agent.name),
            Err(other) => format!("{other:?}"),
        }
    }

    #[test]
    fn each_class_goes_where_it_may() {
        use Standing::{Draining, Gone, Ready, Unhealthy};
        let routes = routes(vec![
            plain("a", Ready, &["10.0.0.1"], &["10.244.0.0/16"], true),
            plain("b", Gone, &["10.0.0.2"], &["10.244.2.0/24"], true),
            plain("c", Draining, &["10.0.0.3"], &["10.244.3.0/24"], true),
            plain("d", Unhealthy, &["10.0.0.4"], &[], false),
        ]);
        for (host, class, expected) in [
            ("10.0.0.1", Class::Kubelet, "a"),
            ("::ffff:10.0.0.1", Class::Kubelet, "a"),
            ("a", Class::Node, "a"),
            ("10.0.0.2", Class::Kubelet, "no link: b"),
            ("b", Class::Kubelet, "no link: b"),
            ("10.0.0.3", Class::Kubelet, "c"),
            ("10.0.0.4", Class::Kubelet, "d"),
            ("10.0.0.5", Class::Kubelet, "UnknownNode"),
            ("e", Class::Kubelet, "UnknownNode"),
            // The owner of the longest prefix with a link, also when it drains.
            ("10.244.3.1", Class::Pod, "c"),
            ("10.244.2.1", Class::Pod, "a"),
            ("10.244.9.1", Class::Pod, "a"),
            ("192.168.0.1", Class::Pod, "a"),
            ("10.96.0.1", Class::Service, "a"),
            ("x.ns.svc", Class::Service, "a"),
            ("8.8.8.8", Class::Other, "NoRoute"),
        ] {
            assert_eq!(picked(&routes, host, class, 7), expected, "{host} {class}");
        }
    }

    #[test]
    fn gateways_take_turns_and_without_one_it_is_said() {
        use Standing::{Gone, Ready};
        let both = routes(vec![
            plain("a", Ready, &[], &[], true),
            plain("b", Ready, &[], &[], true),
        ]);
        let turns: Vec<_> = (0..4)
            .map(|turn| picked(&both, "10.96.0.1", Class::Service, turn))
            .collect();
        assert_eq!(turns, ["a", "b", "a", "b"]);
        let gone = routes(vec![plain("a", Gone, &[], &[], true)]);
        assert_eq!(picked(&gone, "10.96.0.1", Class::Service, 0), "NoGateway");
        let none = routes(vec![plain("a", Ready, &[], &[], false)]);
        assert_eq!(picked(&none, "10.96.0.1", Class::Service, 0), "NoRoute");
    }

    #[test]
    fn who_is_forbidden_is_left_out_and_named_when_nobody_else_is_there() {
        use Standing::{Gone, Ready, Unhealthy};
        let routes = routes(vec![
            plain("a", Ready, &["10.0.0.1"], &["10.244.1.0/24"], true),
            plain("b", Unhealthy, &[], &[], true),
            plain("c", Gone, &[], &[], true),
        ]);
        let pick = |host: &str, class, may: &[&str]| {
            let host = host.parse().unwrap();
            match routes.pick(&host, class, None, 0, |agent| {
                may.contains(&agent.name.as_str())
            }) {
                Ok(agent) => agent.name.clone(),
                Err(NoAgent::Forbidden(agent)) => format!("not through {}", agent.name),
                Err(other) => format!("{other:?}"),
            }
        };
        assert_eq!(pick("10.0.0.1", Class::Kubelet, &["b"]), "not through a");
        assert_eq!(pick("10.244.1.1", Class::Pod, &["b"]), "b");
        assert_eq!(pick("10.96.0.1", Class::Service, &["b"]), "b");
        assert_eq!(pick("10.96.0.1", Class::Service, &["c"]), "not through b");
    }

    /// What the table above says, the long way round.
    fn oracle(agents: &[Plain], host: &Host, class: Class) -> Result<Vec<usize>, &'static str> {
        let fit = |index: &usize| agents[*index].standing != Standing::Gone;
        let best = |of: Vec<usize>| {
            let standing = of.iter().map(|i| agents[*i].standing).min();
            of.into_iter()
                .filter(|i| Some(agents[*i].standing) == standing)
                .collect::<Vec<_>>()
        };
        let gateways = || {
            let all: Vec<usize> = (0..agents.len())
                .filter(|i| agents[*i].route.gateway)
                .collect();
            let live: Vec<usize> = all.iter().copied().filter(fit).collect();
            match (all.is_empty(), live.is_empty()) {
                (true, _) => Err("NoRoute"),
                (_, true) => Err("NoGateway"),
                _ => Ok(best(live)),
            }
        };
        match class {
            Class::Kubelet | Class::Node => {
                let owner = (0..agents.len()).find(|i| match host {
                    Host::Ip(ip) => agents[*i].route.addresses.contains(ip),
                    Host::Name(name) => agents[*i].name == name.as_str(),
                });
                match owner {
                    None => Err("UnknownNode"),
                    Some(i) if agents[i].standing == Standing::Gone => Err("Owner"),
                    Some(i) => Ok(vec![i]),
                }
            }
            Class::Pod => {
                let Host::Ip(ip) = host else {
                    return gateways();
                };
                let length = |i: usize| {
                    let around = agents[i].route.prefixes.iter().filter(|p| p.contains(ip));
                    around.map(IpNet::prefix_len).max()
                };
                let owners: Vec<usize> = (0..agents.len())
                    .filter(|i| length(*i).is_some())
                    .filter(fit)
                    .collect();
                let longest = owners.iter().filter_map(|i| length(*i)).max();
                match longest {
                    None => gateways(),
                    some => Ok(best(
                        owners.into_iter().filter(|i| length(*i) == some).collect(),
                    )),
                }
            }
            Class::Service => gateways(),
            Class::Other => Err("NoRoute"),
        }
    }

    fn any_agents() -> impl Strategy<Value = Vec<Plain>> {
        let standing = prop_oneof![
            Just(Standing::Ready),
            Just(Standing::Unhealthy),
            Just(Standing::Draining),
            Just(Standing::Gone)
        ];
        let prefix = (0u8..4, 22u8..26).prop_map(|(net, len)| format!("10.244.{net}.0/{len}"));
        let one = (standing, prop::collection::vec(prefix, 0..3), any::<bool>());
        prop::collection::vec(one, 0..6).prop_map(|agents| {
            agents
                .into_iter()
                .enumerate()
                .map(|(i, (standing, nets, gateway))| {
                    let nets: Vec<&str> = nets.iter().map(String::as_str).collect();
                    let ip = format!("10.0.0.{i}");
                    plain(&format!("n{i}"), standing, &[&ip], &nets, gateway)
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn the_choice_is_one_that_the_oracle_allows(
            agents in any_agents(),
            class in prop::sample::select(Class::ALL.to_vec()),
            host in prop_oneof![
                (0u8..4, 0u8..=255).prop_map(|(a, b)| format!("10.244.{a}.{b}")),
                (0u8..8).prop_map(|a| format!("10.0.0.{a}")),
                (0u8..8).prop_map(|a| format!("n{a}")),
            ],
            turn: usize,
        ) {
            let host: Host = host.parse().unwrap();
            let expected = oracle(&agents, &host, class);
            let routes = routes(agents);
            match (routes.pick(&host, class, None, turn, |_| true), expected) {
                (Ok(agent), Ok(allowed)) => {
                    let index: usize = agent.name[1..].parse().unwrap();
                    prop_assert!(allowed.contains(&index), "{index} not in {allowed:?}");
                    prop_assert!(agent.route.serves(&agent.name, &host, class));
                }
                (Err(error), Err(word)) => {
                    prop_assert!(format!("{error:?}").starts_with(word), "{error:?} is not {word}");
                }
                (got, expected) => prop_assert!(false, "{got:?} instead of {expected:?}"),
            }
        }
    }
}
