//! Names and numbers that must not be confused with each other.
//!
//! A value of one of these types has been checked: it is never empty, never longer than its
//! limit, and prints in a terminal and a log line without escaping.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

/// Why a text is not a name. The message says what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("{what} is empty")]
    Empty { what: &'static str },
    #[error("{what} has {len} bytes, more than the {max} allowed")]
    TooLong {
        what: &'static str,
        len: usize,
        max: usize,
    },
    #[error(
        "{what} {text:?} may hold only lower-case letters, digits, '-' and '.', and must begin and end with a letter or digit"
    )]
    Form { what: &'static str, text: String },
}

/// RFC 1123 subdomain, the form Kubernetes uses for node names.
fn check_dns_name(what: &'static str, text: &str, max: usize) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty { what });
    }
    if text.len() > max {
        return Err(NameError::TooLong {
            what,
            len: text.len(),
            max,
        });
    }
    let label_ok = |label: &str| {
        let bytes = label.as_bytes();
        let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        !bytes.is_empty()
            && bytes.len() <= 63
            && bytes.iter().all(|b| edge(b) || *b == b'-')
            && bytes.first().is_some_and(edge)
            && bytes.last().is_some_and(edge)
    };
    if text.split('.').all(label_ok) {
        Ok(())
    } else {
        // Cut, because the text may come from a peer and ends in a log line.
        let text = text.chars().take(80).collect();
        Err(NameError::Form { what, text })
    }
}

macro_rules! dns_name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Longest accepted text in bytes.
            pub const MAX_BYTES: usize = $max;

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                check_dns_name($what, text, $max)?;
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

dns_name!(
    /// The name of one trust domain. It is the SPIFFE trust domain of every identity.
    ClusterName, "cluster name", 253
);
dns_name!(
    /// The name in an identity. For an agent it **is** the node name.
    Name, "name", 253
);

/// What a certificate holder is in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The daemon on a node.
    Agent,
    /// A front end of the server's TCP door, in practice kube-apiserver.
    Client,
    /// A person or tool that administers a server.
    Operator,
    /// The daemon beside kube-apiserver.
    Server,
}

impl Role {
    /// Every role, in alphabetical order.
    pub const ALL: [Role; 4] = [Role::Agent, Role::Client, Role::Operator, Role::Server];

    /// The word used in identities, file names and flags.
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Agent => "agent",
            Role::Client => "client",
            Role::Operator => "operator",
            Role::Server => "server",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that names no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown role {0:?}: use agent, client, operator or server")]
pub struct UnknownRole(pub String);

impl FromStr for Role {
    type Err = UnknownRole;
    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        Role::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| UnknownRole(text.chars().take(80).collect()))
    }
}

/// Number of a dial, unique within one server process and never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DialId(NonZeroU64);

/// Number of a link, unique within one process and never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(NonZeroU64);

/// Chosen at random by an agent when its process starts; tells two links of one agent process
/// from links of two processes that hold the same certificate. Never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId(NonZeroU64);

macro_rules! number {
    ($name:ident, $prefix:literal) => {
        impl $name {
            /// `None` for zero.
            pub const fn new(raw: u64) -> Option<Self> {
                match NonZeroU64::new(raw) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }

            /// The number as it stands on the wire.
            pub const fn get(self) -> u64 {
                self.0.get()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{:x}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{:x}"), self.0)
            }
        }
    };
}

number!(DialId, "d");
number!(LinkId, "l");
number!(InstanceId, "i");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_of_kubernetes_are_names() {
        for good in ["n1", "ip-10-0-0-7.eu-west-1.compute.internal", "a", "0"] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn what_is_no_name_is_refused_with_the_rule() {
        let long = "a".repeat(254);
        for bad in [
            "", "N1", "a_b", "a/b", "-a", "a-", "a..b", ".a", "a\n", "*", "ä", &long,
        ] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
        let text = "a/b".parse::<Name>().unwrap_err().to_string();
        assert!(text.contains("lower-case"), "{text}");
    }

    #[test]
    fn roles_read_as_they_print() {
        for role in Role::ALL {
            assert_eq!(role.as_str().parse::<Role>().unwrap(), role);
        }
        assert!("Agent".parse::<Role>().is_err());
    }

    #[test]
    fn zero_is_no_number() {
        assert!(DialId::new(0).is_none());
        assert_eq!(DialId::new(255).unwrap().to_string(), "dff");
    }
}
