//! What a target is, before anybody is asked to reach it: pure.
//!
//! In this order, the first that fits decides:
//! 1. an address or a name of a known node: `kubelet` on the kubelet port, `node` on any other;
//! 2. an address of a node prefix on the kubelet port: `kubelet`, although nobody owns it yet, so
//!    that a kubelet is never reached through somebody else's node;
//! 3. an address of a service prefix: `service`;
//! 4. an address of a pod prefix, or of a prefix that some agent is granted: `pod`;
//! 5. an address of a node prefix: `node`;
//! 6. a name inside the cluster (`webhook.ns.svc`, with or without the cluster's domain):
//!    `service`;
//! 7. another name on the kubelet port: `kubelet` of a node that is not known;
//! 8. everything else: `other`.

use std::net::IpAddr;

use ipnet::IpNet;
use towline_proto::address;
use towline_proto::target::{Class, Host, Target};

/// What the operator says about the cluster's addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefixes {
    /// The port of every kubelet.
    pub kubelet_port: u16,
    /// `--service-cidr`.
    pub service: Vec<IpNet>,
    /// `--pod-cidr`.
    pub pod: Vec<IpNet>,
    /// `--node-cidr`.
    pub node: Vec<IpNet>,
}

/// What is known about nodes at this moment.
pub trait Nodes {
    /// Whether an agent's grants hold this (canonical) address.
    fn has_address(&self, ip: IpAddr) -> bool;
    /// Whether an agent has this name.
    fn has_name(&self, name: &str) -> bool;
    /// Whether an agent is granted a prefix around this (canonical) address.
    fn has_prefix_around(&self, ip: IpAddr) -> bool;
}

/// The class of a target.
pub fn classify(target: &Target, prefixes: &Prefixes, nodes: &impl Nodes) -> Class {
    let kubelet_port = target.port() == prefixes.kubelet_port;
    let of_node = if kubelet_port {
        Class::Kubelet
    } else {
        Class::Node
    };
    match &target.host {
        Host::Ip(ip) => {
            let ip = address::canonical(*ip);
            let node_prefix = within(&prefixes.node, ip);
            if nodes.has_address(ip) || (kubelet_port && node_prefix) {
                of_node
            } else if within(&prefixes.service, ip) {
                Class::Service
            } else if within(&prefixes.pod, ip) || nodes.has_prefix_around(ip) {
                Class::Pod
            } else if node_prefix {
                Class::Node
            } else {
                Class::Other
            }
        }
        Host::Name(name) => {
            if nodes.has_name(name.as_str()) {
                of_node
            } else if is_cluster_local(name.as_str()) {
                Class::Service
            } else if kubelet_port {
                Class::Kubelet
            } else {
                Class::Other
            }
        }
    }
}

/// Whether one of the prefixes holds the address.
pub fn within(prefixes: &[IpNet], ip: IpAddr) -> bool {
    prefixes.iter().any(|prefix| prefix.contains(&ip))
}

/// `service.namespace.svc`, with or without the cluster's domain behind it.
pub fn is_cluster_local(name: &str) -> bool {
    name.split('.').nth(2) == Some("svc")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Known;

    impl Nodes for Known {
        fn has_address(&self, ip: IpAddr) -> bool {
            ["10.0.0.7", "fd00::7", "10.244.9.9"].contains(&ip.to_string().as_str())
        }
        fn has_name(&self, name: &str) -> bool {
            ["n7", "n7.corp.example", "odd.node.svc"].contains(&name)
        }
        fn has_prefix_around(&self, ip: IpAddr) -> bool {
            within(&nets(&["172.30.0.0/16"]), ip)
        }
    }

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn prefixes() -> Prefixes {
        Prefixes {
            kubelet_port: 10250,
            service: nets(&["10.96.0.0/12", "fd01::/108"]),
            pod: nets(&["10.244.0.0/16", "fd02::/56"]),
            node: nets(&["10.0.0.0/24"]),
        }
    }

    #[test]
    fn targets_have_these_classes() {
        for (target, class) in [
            ("10.0.0.7:10250", Class::Kubelet),
            ("[::ffff:10.0.0.7]:10250", Class::Kubelet),
            ("[fd00::7]:10250", Class::Kubelet),
            ("10.0.0.7:22", Class::Node),
            ("n7:10250", Class::Kubelet),
            ("N7.corp.example:10250", Class::Kubelet),
            ("n7:9100", Class::Node),
            ("odd.node.svc:443", Class::Node),
            // A host-network address that a pod prefix covers is still the node's.
            ("10.244.9.9:10250", Class::Kubelet),
            ("10.244.9.9:80", Class::Node),
            // Not known, but it can only be a node.
            ("10.0.0.8:10250", Class::Kubelet),
            ("10.0.0.8:22", Class::Node),
            ("n8:10250", Class::Kubelet),
            ("10.96.0.1:443", Class::Service),
            ("[fd01::1]:443", Class::Service),
            ("webhook.ns.svc:443", Class::Service),
            ("webhook.ns.svc.cluster.local:10250", Class::Service),
            ("10.244.1.1:10250", Class::Pod),
            ("[fd02::9]:8080", Class::Pod),
            ("172.30.1.1:80", Class::Pod),
            ("8.8.8.8:53", Class::Other),
            ("example.com:443", Class::Other),
            ("svc:443", Class::Other),
            ("a.svc:443", Class::Other),
        ] {
            let target = target.parse().unwrap();
            assert_eq!(classify(&target, &prefixes(), &Known), class, "{target}");
        }
    }

    proptest! {
        #[test]
        fn no_address_of_a_node_is_ever_pod_or_service(port in 1u16.., mapped: bool) {
            let text = if mapped { "[::ffff:10.0.0.7]" } else { "10.0.0.7" };
            let target = format!("{text}:{port}").parse().unwrap();
            let class = classify(&target, &prefixes(), &Known);
            prop_assert_eq!(class == Class::Kubelet, port == 10250);
            prop_assert!(matches!(class, Class::Kubelet | Class::Node));
        }

        #[test]
        fn a_kubelet_port_of_a_node_prefix_is_never_left_to_a_gateway(last: u8) {
            let target = format!("10.0.0.{last}:10250").parse().unwrap();
            prop_assert_eq!(classify(&target, &prefixes(), &Known), Class::Kubelet);
        }
    }
}
