//! Which addresses may be a node's by the word of its own Node object: those where the operator
//! said that nodes are, and that nothing else in the cluster has.
//!
//! A kubelet writes its own Node's status, so a node that was broken into claims what it likes.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use towline_proto::address::{self, Refusal};

use crate::classify::{Prefixes, within};

/// Why an address does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excluded {
    /// No node is reached by it: loopback, metadata, multicast.
    Never(Refusal),
    /// Outside of `--node-cidr`.
    OutsideNodes,
    /// What agents are told to connect to, or `--control-plane-cidr`.
    ControlPlane,
    /// Inside `--service-cidr`.
    Services,
    /// Inside `--pod-cidr`.
    Pods,
}

impl fmt::Display for Excluded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Excluded::Never(refusal) => write!(f, "a {refusal}, by which no node is reached"),
            Excluded::OutsideNodes => f.write_str("outside of --node-cidr"),
            Excluded::ControlPlane => f.write_str("an address of the control plane"),
            Excluded::Services => f.write_str("an address of services"),
            Excluded::Pods => f.write_str("an address of pods"),
        }
    }
}

/// Judges a canonical address. Pure.
pub fn check(ip: IpAddr, prefixes: &Prefixes, control_plane: &[IpNet]) -> Result<(), Excluded> {
    if let Some(refusal) = address::refusal(ip) {
        return Err(Excluded::Never(refusal));
    }
    if !within(&prefixes.node, ip) {
        return Err(Excluded::OutsideNodes);
    }
    for (reserved, excluded) in [
        (control_plane, Excluded::ControlPlane),
        (&prefixes.service, Excluded::Services),
        (&prefixes.pod, Excluded::Pods),
    ] {
        if within(reserved, ip) {
            return Err(excluded);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_exclusion_has_its_name() {
        let nets = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        let prefixes = Prefixes {
            kubelet_port: 10250,
            service: nets(&["10.0.96.0/24"]),
            pod: nets(&["10.0.7.0/24"]),
            node: nets(&["10.0.0.0/16", "fd00::/64", "127.0.0.0/8"]),
        };
        let control_plane: Vec<IpNet> = nets(&["10.0.0.250/32"]);
        let of = |text: &str| check(text.parse().unwrap(), &prefixes, &control_plane);
        assert_eq!(of("10.0.0.5"), Ok(()));
        assert_eq!(of("fd00::5"), Ok(()));
        assert_eq!(of("192.0.2.1"), Err(Excluded::OutsideNodes));
        assert_eq!(of("10.0.0.250"), Err(Excluded::ControlPlane));
        assert_eq!(of("10.0.96.1"), Err(Excluded::Services));
        assert_eq!(of("10.0.7.1"), Err(Excluded::Pods));
        assert!(matches!(of("127.0.0.1"), Err(Excluded::Never(_))));
    }
}
