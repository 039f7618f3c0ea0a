//! Which names and addresses are a node's, by the rules for grants (see `directory`): what a
//! certificate of its agent or the grants file says wins; what its Node object says counts only
//! where the operator said that nodes are, and while nobody else has it.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use towline_proto::id::Name;
use towline_proto::target::HostName;

use super::office::{Refusal, Verdict};
use crate::agents::Agents;
use crate::classify::{Prefixes, is_cluster_local};
use crate::directory::FileDirectory;
use crate::node_address::{self, Excluded};
use crate::nodes::{Book, Claim};

/// Whose what is, at this moment.
pub struct NodeNames {
    /// Node objects.
    pub book: Arc<Book>,
    /// Agents' certificates.
    pub agents: Arc<Agents>,
    /// The grants file.
    pub directory: Arc<FileDirectory>,
    /// Of the cluster.
    pub prefixes: Prefixes,
    /// Where the control plane is: never a node's by its own word.
    pub control_plane: Vec<IpNet>,
    /// Names of the control plane.
    pub control_plane_names: Vec<HostName>,
    /// Domains of nodes: names below them count when a Node object has them.
    pub domains: Vec<HostName>,
}

type Check = Result<(), Verdict<()>>;

fn not_yet(word: &'static str, cause: String, fix: &'static str) -> Check {
    Err(Verdict::NotYet(Refusal { word, cause, fix }))
}

impl NodeNames {
    /// Whether there is such a node at all.
    pub fn check_node(&self, node: &Name) -> Check {
        if !self.book.is_listed() {
            return not_yet(
                "NodesUnknown",
                "the Nodes of the cluster are not known yet".into(),
                "see why they are not: the log, towline_server_csr_api_errors_total, the right to \
                 list nodes",
            );
        }
        if !self.book.has(node.as_str()) {
            return not_yet(
                "NoNode",
                format!("there is no Node {node}"),
                "the request is looked at again as soon as the node registers",
            );
        }
        Ok(())
    }

    /// Whether a node has this address.
    pub fn check_ip(&self, node: &Name, ip: IpAddr) -> Check {
        match self.agents.holder(ip) {
            Some(holder) if holder == *node => return Ok(()),
            Some(holder) => {
                return not_yet(
                    "OfOther",
                    format!("{ip} is granted to the agent of node {holder}"),
                    "if it moved, renew that agent's certificate or grants without it; if not, \
                     look at what runs on the node that asks",
                );
            }
            None => {}
        }
        if self.directory.gives(node, ip) {
            return Ok(());
        }
        if self.directory.gives_away(ip) {
            return not_yet(
                "OfOther",
                format!("the grants file gives {ip} to another agent"),
                "correct the grants file, or look at what runs on the node that asks",
            );
        }
        match self.book.ip(node.as_str(), ip) {
            Claim::Own => {}
            Claim::None => {
                return not_yet(
                    "NotOfNode",
                    format!("{ip} is not among the addresses of Node {node}"),
                    "wait until its kubelet has written it to the Node's status, or grant it by \
                     the agent's certificate or the grants file",
                );
            }
            Claim::Contested(other) => {
                return not_yet(
                    "Contested",
                    format!("{ip} is claimed by Node {other} too"),
                    "one of the two is wrong, and may have been broken into: find out which, then \
                     correct or delete its Node, or grant the address by the agent's certificate",
                );
            }
        }
        match node_address::check(ip, &self.prefixes, &self.control_plane) {
            Ok(()) => Ok(()),
            Err(excluded @ Excluded::OutsideNodes) => not_yet(
                "OutsideNodes",
                format!("{ip} is {excluded}"),
                "add the network of this node to --node-cidr, or grant the address by the agent's \
                 certificate or the grants file",
            ),
            Err(excluded) => not_yet(
                "Reserved",
                format!("{ip} is {excluded}"),
                "a Node's own word does not do for it: grant it by the agent's certificate or \
                 the grants file",
            ),
        }
    }

    /// Whether a node has this DNS name.
    pub fn check_dns(&self, node: &Name, name: &HostName) -> Check {
        let text = name.as_str();
        if is_reserved(text) || self.control_plane_names.contains(name) {
            return Err(Verdict::Never(Refusal {
                word: "ReservedName",
                cause: format!("{name} is a name of the control plane or of services"),
                fix: "no node has such a name; look at what runs on the node that asks",
            }));
        }
        if text == node.as_str() {
            return Ok(());
        }
        if self.book.has(text) || self.agents.knows(text) {
            return not_yet(
                "OfOther",
                format!("{name} is another node"),
                "look at what runs on the node that asks",
            );
        }
        match self.book.name(node.as_str(), name) {
            Claim::Own => {}
            Claim::None => {
                return not_yet(
                    "NotOfNode",
                    format!("{name} is not among the names of Node {node}"),
                    "wait until its kubelet has written it to the Node's status",
                );
            }
            Claim::Contested(other) => {
                return not_yet(
                    "Contested",
                    format!("{name} is claimed by Node {other} too"),
                    "one of the two is wrong, and may have been broken into: find out which, then \
                     correct or delete its Node",
                );
            }
        }
        let below = |domain: &HostName| {
            text.strip_suffix(domain.as_str())
                .is_some_and(|rest| rest.ends_with('.'))
        };
        match self.domains.iter().any(below) {
            true => Ok(()),
            false => not_yet(
                "OutsideNodes",
                format!("{name} is below no --kubelet-serving-domain"),
                "add the domain of this node to --kubelet-serving-domain",
            ),
        }
    }
}

/// Names by which pods reach the API server or each other: a certificate with one of them, by the
/// cluster's own authority, would be taken for theirs.
fn is_reserved(name: &str) -> bool {
    const EXACT: [&str; 3] = ["localhost", "kubernetes", "kubernetes.default"];
    EXACT.contains(&name)
        || name.ends_with(".localhost")
        || name.ends_with(".svc")
        || name.ends_with(".cluster.local")
        || is_cluster_local(name)
}

#[cfg(test)]
mod tests {
    use super::is_reserved;

    #[test]
    fn names_of_services_are_no_nodes() {
        for name in [
            "localhost",
            "a.localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "webhook.ns.svc",
            "webhook.ns.svc.corp.example",
            "10-0-0-1.ns.pod.cluster.local",
        ] {
            assert!(is_reserved(name), "{name}");
        }
        for name in [
            "n7",
            "n7.corp.example",
            "kubernetes-1",
            "svc",
            "svc.corp.example",
        ] {
            assert!(!is_reserved(name), "{name}");
        }
    }
}
