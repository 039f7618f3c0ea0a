//! The issuing policy: what a certificate of each role says, for how long, and which names it may
//! carry besides its identity.
//!
//! | role | usage | days by default / at most | other names |
//! |---|---|---|---|
//! | server | serverAuth | 365 / 825 | DNS names and addresses of its door, for front ends that match host names |
//! | agent | clientAuth | 90 / 400 | the addresses of its node: they are grants |
//! | client | clientAuth | 365 / 825 | none |
//! | operator | clientAuth | 30 / 90 | none |
//!
//! An agent's certificate lives on a node, so it is short; a person's shorter still. Agents never
//! match DNS names, identity decides; kube-apiserver and curl at the door over TCP do.

use std::net::IpAddr;
use std::time::Duration;

use towline_proto::address;
use towline_proto::id::Role;
use towline_proto::target::HostName;

use crate::inspect::Usage;

/// What is fixed for certificates of one role.
#[derive(Clone, Debug)]
pub struct Profile {
    pub role: Role,
    pub usage: Usage,
    pub default_life: Duration,
    pub longest_life: Duration,
}

/// A name that a certificate of this role must not carry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameRefusal {
    #[error("a certificate for {role} carries no DNS names; leave --dns out")]
    NoDns { role: Role },
    #[error("a certificate for {role} carries no addresses; leave --ip out")]
    NoIp { role: Role },
    #[error("{text} is an IP address, not a DNS name; give it as --ip {text}")]
    IpAsDns { text: String },
    #[error("{text:?} is not a DNS name: {cause}")]
    BadDns { text: String, cause: String },
    #[error(
        "{ip} cannot be the address of a node: {cause}; an agent's addresses are what it may serve"
    )]
    ForbiddenIp { ip: IpAddr, cause: String },
}

const fn days(count: u64) -> Duration {
    Duration::from_secs(count * 86_400)
}

/// Life of a root unless told otherwise.
pub const ROOT_LIFE: Duration = days(3_650);
/// Life of an issuer unless told otherwise: shorter than its root's.
pub const ISSUER_LIFE: Duration = days(1_825);
/// How far a new certificate reaches into the past, for machines whose clock is behind. Verifiers
/// grant nothing of the kind: not yet valid is refused.
pub const BACKDATE: Duration = Duration::from_secs(300);

impl Profile {
    /// The profile of a role.
    pub const fn of(role: Role) -> Self {
        let (default_life, longest_life) = match role {
            Role::Server | Role::Client => (days(365), days(825)),
            Role::Agent => (days(90), days(400)),
            Role::Operator => (days(30), days(90)),
        };
        Self {
            role,
            usage: Usage::of(role),
            default_life,
            longest_life,
        }
    }

    /// Whether the names may be in a certificate of this role.
    pub fn check_names(&self, dns: &[String], ips: &[IpAddr]) -> Result<(), NameRefusal> {
        let role = self.role;
        if role != Role::Server && !dns.is_empty() {
            return Err(NameRefusal::NoDns { role });
        }
        if !matches!(role, Role::Server | Role::Agent) && !ips.is_empty() {
            return Err(NameRefusal::NoIp { role });
        }
        for text in dns {
            check_dns(text)?;
        }
        if role == Role::Agent {
            for ip in ips {
                if let Some(refusal) = address::refusal(*ip) {
                    return Err(NameRefusal::ForbiddenIp {
                        ip: *ip,
                        cause: refusal.to_string(),
                    });
                }
            }
        }
        Ok(())
    }
}

/// A DNS name as a certificate carries it: no address in any spelling, no wildcard.
pub(crate) fn check_dns(text: &str) -> Result<(), NameRefusal> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<IpAddr>().is_ok() {
        return Err(NameRefusal::IpAsDns { text: bare.into() });
    }
    match text.parse::<HostName>() {
        Ok(_) => Ok(()),
        Err(error) => Err(NameRefusal::BadDns {
            text: text.chars().take(80).collect(),
            cause: error.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(role: Role, dns: &[&str], ips: &[&str]) -> String {
        let dns: Vec<String> = dns.iter().map(|s| s.to_string()).collect();
        let ips: Vec<IpAddr> = ips.iter().map(|s| s.parse().unwrap()).collect();
        let profile = Profile::of(role);
        profile
            .check_names(&dns, &ips)
            .map_or_else(|e| e.to_string(), |()| String::new())
    }

    #[test]
    fn each_role_carries_its_own_names_only() {
        assert_eq!(refused(Role::Server, &["cp.example"], &["10.0.0.1"]), "");
        assert_eq!(refused(Role::Agent, &[], &["10.0.0.1", "fd00::1"]), "");
        assert!(refused(Role::Agent, &["n1"], &[]).contains("--dns"));
        assert!(refused(Role::Client, &[], &["10.0.0.1"]).contains("--ip"));
        assert!(refused(Role::Operator, &["x"], &[]).contains("--dns"));
    }

    #[test]
    fn an_address_as_dns_name_is_refused_by_name() {
        for text in ["10.0.0.1", "fd00::1", "[fd00::1]"] {
            assert!(
                refused(Role::Server, &[text], &[]).contains("--ip"),
                "{text}"
            );
        }
        for text in ["*.example", "", "a..b", "2130706433", "127.1", "a b"] {
            assert!(
                refused(Role::Server, &[text], &[]).contains("not a DNS name"),
                "{text}"
            );
        }
    }

    #[test]
    fn an_agent_is_not_granted_what_no_dial_may_reach() {
        for text in [
            "127.0.0.1",
            "::1",
            "169.254.169.254",
            "0.0.0.0",
            "224.0.0.1",
            "fe80::1",
        ] {
            assert!(
                refused(Role::Agent, &[], &[text]).contains("cannot be"),
                "{text}"
            );
        }
    }

    #[test]
    fn defaults_are_inside_the_limits() {
        for role in Role::ALL {
            let profile = Profile::of(role);
            assert!(profile.default_life <= profile.longest_life);
            assert!(profile.longest_life <= ISSUER_LIFE);
        }
    }
}
