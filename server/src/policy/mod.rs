//! Which targets the server lets a front end reach: built-in refusals first, then the rules. Pure,
//! and the only maker of a [`Permit`]. The agent judges again, by the resolved address.
//!
//! Around it: [`in_force`] (the policy that counts now, and what happens when it changes),
//! [`judged`] (live dials, judged again then), [`explain`] and [`command`] (for people).

pub mod command;
pub mod explain;
pub mod in_force;
pub mod judged;

use std::sync::Arc;

use towline_proto::address::{self, Refusal};
use towline_proto::policy::{Asker, Decision, Question, RuleSet, RuleTag};
use towline_proto::reason::Reason;
use towline_proto::target::{Class, Classes, Host, Target};

use crate::caller::Caller;

/// The leave to ask an agent for a target. Made here only, consumed by the dialer.
#[derive(Debug, PartialEq, Eq)]
pub struct Permit {
    target: Target,
    class: Class,
    rule: RuleTag,
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

    /// By which rule.
    pub fn rule(&self) -> &RuleTag {
        &self.rule
    }
}

/// Why there is no leave.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// No rule can allow it.
    #[error("{0} is never a target")]
    Forbidden(Refusal),
    /// A rule denies it.
    #[error("denied by {0} of the server's policy")]
    Rule(RuleTag),
    /// No rule allows it.
    #[error("no rule of the server's policy allows it (class {0})")]
    Unnamed(Class),
}

impl Denial {
    /// The part that is a number.
    pub const fn reason(&self) -> Reason {
        match self {
            Denial::Forbidden(_) => Reason::ForbiddenAddress,
            Denial::Rule(_) | Denial::Unnamed(_) => Reason::ServerPolicy,
        }
    }

    /// The rule that decided, if one did.
    pub const fn rule(&self) -> Option<&RuleTag> {
        match self {
            Denial::Rule(tag) => Some(tag),
            Denial::Forbidden(_) | Denial::Unnamed(_) => None,
        }
    }

    /// The word in metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Denial::Forbidden(_) => "built-in",
            Denial::Rule(_) => "deny",
            Denial::Unnamed(_) => "default",
        }
    }
}

/// Built-in refusals and rules. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Policy {
    rules: Arc<RuleSet>,
    /// An agent's loopback may be asked for.
    loopback: bool,
}

/// The classes that count without a file.
pub const DEFAULT_CLASSES: [Class; 3] = [Class::Kubelet, Class::Pod, Class::Service];

impl Default for Policy {
    fn default() -> Self {
        Self::new(Arc::new(RuleSet::built_in(Classes::of(&DEFAULT_CLASSES))))
    }
}

impl Policy {
    /// With these rules behind the built-in refusals, which no rule can take away.
    pub fn new(rules: Arc<RuleSet>) -> Self {
        Self {
            rules,
            loopback: false,
        }
    }

    /// The compatibility profile: every class, and an agent's loopback, as Konnectivity has it.
    /// Link-local, metadata, multicast and unspecified addresses stay refused.
    pub fn compatibility() -> Self {
        Self {
            rules: Arc::new(RuleSet::anything()),
            loopback: true,
        }
    }

    /// The same behind these rules.
    pub fn with_rules(&self, rules: Arc<RuleSet>) -> Self {
        Self { rules, ..*self }
    }

    /// What no rule can allow.
    pub(crate) fn refusal(&self, host: &Host, class: Class) -> Option<Refusal> {
        match refusal(host, class) {
            Some(Refusal::Loopback) if self.loopback => None,
            refusal => refusal,
        }
    }

    /// The rules.
    pub fn rules(&self) -> &RuleSet {
        &self.rules
    }

    /// Decides on one target for one front end. Without a node, rules about nodes count as if it
    /// were one that they let pass; see [`RuleSet::asks_node`].
    pub fn check(
        &self,
        target: &Target,
        class: Class,
        caller: &Caller,
        node: Option<&str>,
    ) -> Result<Permit, Denial> {
        self.check_asker(target, class, caller.asker(), node)
    }

    /// The same for whoever asks.
    pub fn check_asker(
        &self,
        target: &Target,
        class: Class,
        asker: Asker<'_>,
        node: Option<&str>,
    ) -> Result<Permit, Denial> {
        self.judge(target, class, |rules| {
            rules.decide(&question(target, class, asker, node))
        })
    }

    /// The same for a legacy agent, which proves no node: no rule about nodes opens anything
    /// through it.
    pub fn check_legacy(
        &self,
        target: &Target,
        class: Class,
        caller: &Caller,
    ) -> Result<Permit, Denial> {
        let question = question(target, class, caller.asker(), None);
        self.judge(target, class, |rules| rules.decide_unproven(&question))
    }

    fn judge(
        &self,
        target: &Target,
        class: Class,
        decide: impl FnOnce(&RuleSet) -> Decision,
    ) -> Result<Permit, Denial> {
        if let Some(refusal) = self.refusal(&target.host, class) {
            return Err(Denial::Forbidden(refusal));
        }
        match decide(&self.rules) {
            Decision::Allowed(rule) => Ok(Permit {
                target: target.clone(),
                class,
                rule,
            }),
            Decision::Denied(rule) => Err(Denial::Rule(rule)),
            Decision::Unnamed => Err(Denial::Unnamed(class)),
        }
    }
}

/// A dial as the rules see it.
pub(crate) fn question<'a>(
    target: &'a Target,
    class: Class,
    asker: Asker<'a>,
    node: Option<&'a str>,
) -> Question<'a> {
    let (name, ip) = match &target.host {
        Host::Ip(ip) => (None, Some(address::canonical(*ip))),
        Host::Name(name) => (Some(name.as_str()), None),
    };
    Question {
        class,
        port: target.port(),
        name,
        address: ip,
        node,
        asker,
    }
}

fn refusal(host: &Host, class: Class) -> Option<Refusal> {
    let Host::Ip(ip) = host else { return None };
    match address::refusal(*ip) {
        // A kubelet that listens on loopback: it is class kubelet only when a certificate or
        // grant says that the address is the node's, and the agent checks that it is.
        Some(Refusal::Loopback) if class == Class::Kubelet => None,
        refusal => refusal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use towline_link::process::unix::PeerCredentials;

    fn root() -> Caller {
        Caller::Local(PeerCredentials {
            uid: 0,
            gid: 0,
            pid: None,
        })
    }

    fn check(policy: &Policy, target: &str, class: Class) -> Result<Permit, Denial> {
        policy.check(&target.parse().unwrap(), class, &root(), None)
    }

    #[test]
    fn kubelets_pods_and_services_are_allowed_and_nothing_else() {
        let policy = Policy::default();
        for class in Class::ALL {
            let permit = check(&policy, "10.0.0.7:443", class);
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
        let denying = policy.with_rules(Arc::new(RuleSet::built_in(Classes::of(&[]))));
        for (target, allowed) in [
            ("127.0.0.1:80", true),
            ("8.8.8.8:53", true),
            ("169.254.169.254:80", false),
            ("[fe80::1]:80", false),
            ("0.0.0.0:80", false),
        ] {
            assert_eq!(
                check(&policy, target, Class::Other).is_ok(),
                allowed,
                "{target}"
            );
            assert!(check(&denying, target, Class::Other).is_err(), "{target}");
        }
    }

    #[test]
    fn built_in_refusals_come_before_every_rule() {
        for policy in [
            Policy::default(),
            Policy::new(Arc::new(RuleSet::anything())),
        ] {
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
                    let denied = check(&policy, target, class);
                    if loopback && class == Class::Kubelet {
                        assert!(denied.is_ok());
                        continue;
                    }
                    let reason = denied.unwrap_err().reason();
                    assert_eq!(reason, Reason::ForbiddenAddress, "{target} {class}");
                }
            }
        }
    }
}
