//! Which addresses go into a node's certificate: what an operator wrote into a join token, or what
//! the Node object of that very name says, as far as the operator's prefixes allow. Never what the
//! agent says.
//!
//! A kubelet writes its own Node's status, so an address counts only inside `--node-cidr`, outside
//! the prefixes of control plane, services and pods, and while nobody else holds it; an overlap refuses the
//! newcomer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;
use towline_link::kube::node::Node;
use towline_link::kube::{Client, node};
use towline_proto::address;
use towline_proto::enrol::Refusal;
use towline_proto::id::Name;
use towline_proto::limits;

use super::No;
use super::account::unavailable;
use super::names::Names;
use crate::agents::Agents;
use crate::classify::Prefixes;
use crate::node_address;

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
        now: SystemTime,
    ) -> Result<(), No> {
        for ip in ips {
            let linked = self.agents.holder(*ip).filter(|holder| holder != name);
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
                tracing::error!(node = %name, %ip, %holder, "a node claims an address of another one: no certificate");
                let text = format!("the address {ip} is {holder}'s");
                return Err(No::new(Refusal::AddressTaken, text));
            }
        }
        Ok(())
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
