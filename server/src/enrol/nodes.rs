//! Which addresses go into a node's certificate: what an operator wrote into a join token, or what
//! the Node object of that very name says, as far as the operator's prefixes allow. Never what the
//! agent says.
//!
//! A kubelet writes its own Node's status, so an address counts only inside `--node-cidr`, outside
//! the prefixes of control plane, services and pods, and while nobody else holds it: no link, no
//! certificate, and no other Node object that claimed it before. An overlap refuses the newcomer. Who
//! holds an address already is not asked again whether another Node claims it.
//!
//! What Node objects claim comes from the server's one watch. An address counts only when that watch
//! has shown it: where it cannot (no list yet, a watch that broke, more Nodes than are kept) a
//! newcomer gets no certificate for now, and a renewal gets what the node held before.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;
use tokio::time::Instant;
use towline_link::kube::node::Node;
use towline_link::kube::{Client, node};
use towline_proto::address;
use towline_proto::enrol::Refusal;
use towline_proto::id::Name;
use towline_proto::limits;

use super::No;
use super::account::unavailable;
use super::desk::Kind;
use super::names::Names;
use super::told::{Holder, Told};
use crate::agents::Agents;
use crate::classify::Prefixes;
use crate::directory::FileDirectory;
use crate::node_address;
use crate::nodes::{Book, Claim};

/// Where addresses come from.
pub struct Nodes {
    /// The Kubernetes API, where there is one.
    pub client: Option<Client>,
    /// Where the control plane is: never a node's by its own word.
    pub control_plane: Vec<IpNet>,
    /// Of the cluster.
    pub prefixes: Prefixes,
    /// Whose addresses are whose now.
    pub agents: Arc<Agents>,
    /// What an operator gave to whom.
    pub directory: Arc<FileDirectory>,
    /// What Node objects claim; none where no address counts by their word.
    pub book: Option<Arc<Book>>,
}

/// The addresses of a Node that may count, by the operator's prefixes. Pure.
pub fn allowed(claimed: &Node, prefixes: &Prefixes, control_plane: &[IpNet]) -> Vec<IpAddr> {
    let mut out: Vec<IpAddr> = Vec::new();
    for text in claimed.addresses() {
        let Ok(ip) = text.parse::<IpAddr>() else {
            continue;
        };
        let ip = address::canonical(ip);
        let good = node_address::check(ip, prefixes, control_plane);
        if good.is_ok() && !out.contains(&ip) {
            out.push(ip);
        }
    }
    out.sort_unstable();
    out.truncate(limits::LIST_ITEMS);
    out
}

/// What the API says about a node.
pub enum Looked {
    /// There is no API to ask, or no `--node-cidr` by which its word would count.
    Nothing,
    /// There is no such Node.
    NoNode,
    /// Its addresses that may count.
    Addresses(Vec<IpAddr>),
}

impl Nodes {
    /// Reads the Node object.
    pub async fn look(&self, name: &Name) -> Result<Looked, No> {
        let Some(client) = &self.client else {
            return Ok(Looked::Nothing);
        };
        match node::get(client, name.as_str()).await {
            Ok(found) if found.metadata.name == name.as_str() => Ok(Looked::Addresses(allowed(
                &found,
                &self.prefixes,
                &self.control_plane,
            ))),
            Ok(_) => Ok(Looked::NoNode),
            Err(error) if error.is_not_found() => Ok(Looked::NoNode),
            Err(error) => Err(unavailable(&error)),
        }
    }

    /// Refuses the newcomer when an address is another node's: of a linked agent, or of a
    /// certificate that was issued here and whose Node still claims it.
    pub async fn check_free(
        &self,
        name: &Name,
        ips: &[IpAddr],
        names: &Names,
        told: &Told,
        now: SystemTime,
    ) -> Result<(), No> {
        for ip in ips {
            let linked = self.agents.holder(*ip).filter(|holder| holder != name);
            let by = match linked {
                Some(_) => Holder::Link,
                None => Holder::Certificate,
            };
            let issued = || names.holder_of(*ip, name, now);
            let Some(holder) = linked.or_else(issued) else {
                continue;
            };
            // The address of a node that is gone is free: clouds give it to the next one.
            let gone = match self.look(&holder).await {
                Ok(Looked::NoNode) => true,
                Ok(Looked::Addresses(theirs)) => {
                    !theirs.contains(ip) && self.agents.holder(*ip).is_none()
                }
                _ => false,
            };
            if !gone {
                told.contested(name, *ip, holder.as_str(), by);
                let text = format!("the address {ip} is {holder}'s");
                return Err(No::new(Refusal::AddressTaken, text));
            }
        }
        Ok(())
    }

    /// Of the addresses that a Node claims those that may go into its certificate now. An address
    /// that another Node claimed before refuses a newcomer; of a renewal it is left out.
    pub(super) async fn settle(
        &self,
        name: &Name,
        ips: Vec<IpAddr>,
        held: impl Fn(IpAddr) -> bool,
        kind: Kind,
        told: &Told,
    ) -> Result<Vec<IpAddr>, No> {
        let Some(book) = &self.book else {
            return Ok(ips);
        };
        let until = Instant::now() + limits::ENROL_NODE_SEEN;
        let mut good = Vec::new();
        for ip in ips {
            let mine = held(ip)
                || self.agents.holder(ip).as_ref() == Some(name)
                || self.directory.gives(name, ip);
            let settled = match mine {
                true => Ok(()),
                false => self.claimed(book, name, ip, until, told).await,
            };
            match (settled, kind) {
                (Ok(()), _) => good.push(ip),
                (Err(_), Kind::Certificate) => {}
                (Err(no), _) => return Err(no),
            }
        }
        Ok(good)
    }

    /// Whether this Node was the first to claim an address that is new to it.
    async fn claimed(
        &self,
        book: &Book,
        name: &Name,
        ip: IpAddr,
        until: Instant,
        told: &Told,
    ) -> Result<(), No> {
        if self.directory.gives_away(ip) {
            told.contested(name, ip, "the grants file", Holder::Grants);
            let text = format!("the grants file gives {ip} to another agent");
            return Err(No::new(Refusal::AddressTaken, text));
        }
        loop {
            match book.claim(name.as_str(), ip, until).await {
                Some(Claim::Own) => return Ok(()),
                Some(Claim::Contested(other)) if self.claims(&other, ip).await => {
                    told.contested(name, ip, &other, Holder::Node);
                    let text = format!("Node {other} claims {ip} too");
                    return Err(No::new(Refusal::AddressTaken, text));
                }
                // The other one is gone, and the watch has not told yet.
                Some(Claim::Contested(_)) if Instant::now() < until => book.changed(until).await,
                Some(_) | None => {
                    let text = format!(
                        "whether another Node claims {ip} cannot be told: the watch of Nodes has \
                         not shown that {name} claims it"
                    );
                    return Err(No::new(Refusal::Unavailable, text));
                }
            }
        }
    }

    /// Whether that Node is there and claims the address at this moment, as far as can be told.
    async fn claims(&self, other: &str, ip: IpAddr) -> bool {
        let Some(client) = &self.client else {
            return true;
        };
        let is_it = |text: &str| text.parse().map(address::canonical) == Ok(ip);
        match node::get(client, other).await {
            Ok(found) => found.metadata.name != other || found.addresses().any(is_it),
            Err(error) => !error.is_not_found(),
        }
    }

    /// An operator's word counts whatever Node objects say, and is worth an alarm where they differ.
    pub fn look_at_given(&self, name: &Name, ips: &[IpAddr], told: &Told) {
        let Some(book) = &self.book else {
            return;
        };
        for ip in ips {
            if let Some(other) = book.rival(name.as_str(), address::canonical(*ip)) {
                told.contested(name, *ip, &other, Holder::Node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use towline_link::kube::node::{NodeAddress, NodeStatus};

    #[test]
    fn only_what_the_operators_prefixes_allow_counts() {
        let prefixes = Prefixes {
            kubelet_port: 10250,
            service: vec!["10.96.0.0/12".parse().unwrap()],
            pod: vec!["10.0.7.0/24".parse().unwrap()],
            node: vec!["10.0.0.0/16".parse().unwrap(), "fd00::/64".parse().unwrap()],
        };
        let claimed = [
            "10.0.0.5",
            "node-5",
            "10.0.0.5",
            "::ffff:10.0.0.6",
            "fd00::5",
            // Not a node's, a pod's, a service's, nobody's.
            "192.0.2.1",
            "10.0.0.250",
            "10.0.7.1",
            "10.96.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "10.0.0.999",
        ];
        let node = Node {
            status: NodeStatus {
                addresses: claimed
                    .into_iter()
                    .map(|address| NodeAddress {
                        kind: "InternalIP".into(),
                        address: address.into(),
                    })
                    .collect(),
            },
            ..Node::default()
        };
        let master = ["10.0.0.250/32".parse().unwrap()];
        let good: Vec<String> = allowed(&node, &prefixes, &master)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(good, ["10.0.0.5", "10.0.0.6", "fd00::5"]);
        let none = Prefixes {
            node: Vec::new(),
            ..prefixes
        };
        assert!(allowed(&node, &none, &[]).is_empty());
    }
}
