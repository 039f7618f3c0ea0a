//! Which targets the server lets a front end reach at all: pure, and the only maker of a
//! [`Permit`]. The agent judges again, by the resolved address.

use towline_proto::address::{self, Refusal};
use towline_proto::reason::Reason;
use towline_proto::target::{Class, Host, Target};

/// The leave to ask an agent for a target. Made here only, consumed by the dialer.
#[derive(Debug, PartialEq, Eq)]
pub struct Permit {
    target: Target,
    class: Class,
}

impl Permit {
    /// What may be asked for.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// What it is.
    pub fn class(&self) -> Class {
        self.class
    }
}

/// Why there is no leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// No rule can allow it.
    #[error("{0} is never a target")]
    Forbidden(Refusal),
    /// The class is not allowed.
    #[error("class {0} is not allowed by the server's policy")]
    Class(Class),
}

impl Denial {
    /// The part that is a number.
    pub const fn reason(self) -> Reason {
        match self {
            Denial::Forbidden(_) => Reason::ForbiddenAddress,
            Denial::Class(_) => Reason::ServerPolicy,
        }
    }
}

/// The first policy: built-in refusals, then a list of classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    classes: Vec<Class>,
    loopback: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            classes: vec![Class::Kubelet, Class::Pod, Class::Service],
            loopback: false,
        }
    }
}

impl Policy {
    /// The compatibility profile: every class, and an agent's loopback, as Konnectivity has it.
    /// Link-local, metadata, multicast and unspecified addresses stay refused.
    pub fn compatibility() -> Self {
        Self {
            classes: Class::ALL.to_vec(),
            loopback: true,
        }
    }

    /// Decides on one target.
    pub fn check(&self, target: Target, class: Class) -> Result<Permit, Denial> {
        match built_in(&target.host) {
            // A kubelet that listens on loopback: it is class kubelet only when a certificate or
            // grant says that the address is the node's, and the agent checks that it is.
            Some(Refusal::Loopback) if class == Class::Kubelet || self.loopback => {}
            Some(refusal) => return Err(Denial::Forbidden(refusal)),
            None => {}
        }
        if !self.classes.contains(&class) {
            return Err(Denial::Class(class));
        }
        Ok(Permit { target, class })
    }
}

fn built_in(host: &Host) -> Option<Refusal> {
    match host {
        Host::Ip(ip) => address::refusal(*ip),
        Host::Name(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelets_pods_and_services_are_allowed_and_nothing_else() {
        let policy = Policy::default();
        for class in Class::ALL {
            let permit = policy.check("10.0.0.7:443".parse().unwrap(), class);
            let allowed = matches!(class, Class::Kubelet | Class::Pod | Class::Service);
            assert_eq!(permit.is_ok(), allowed, "{class}");
            if let Err(denial) = permit {
                assert_eq!(denial.reason(), Reason::ServerPolicy);
            }
        }
    }

    #[test]
    fn the_compatibility_profile_lifts_classes_and_loopback_only() {
        let policy = Policy::compatibility();
        for (target, allowed) in [
            ("127.0.0.1:80", true),
            ("8.8.8.8:53", true),
            ("169.254.169.254:80", false),
            ("[fe80::1]:80", false),
            ("0.0.0.0:80", false),
        ] {
            let permit = policy.check(target.parse().unwrap(), Class::Other);
            assert_eq!(permit.is_ok(), allowed, "{target}");
        }
    }

    #[test]
    fn built_in_refusals_come_before_every_rule() {
        let policy = Policy::default();
        for target in [
            "169.254.169.254:80",
            "127.0.0.1:10250",
            "[::1]:10250",
            "[::ffff:127.0.0.1]:10250",
            "224.0.0.1:80",
            "0.0.0.0:80",
        ] {
            let loopback = target.ends_with(":10250");
            for class in Class::ALL {
                if loopback && class == Class::Kubelet {
                    assert!(policy.check(target.parse().unwrap(), class).is_ok());
                    continue;
                }
                let denial = policy.check(target.parse().unwrap(), class).unwrap_err();
                assert_eq!(
                    denial.reason(),
                    Reason::ForbiddenAddress,
                    "{target} {class}"
                );
            }
        }
    }
}
