//! Identity: cluster, role and name, and its one text form.
//!
//! ```text
//! spiffe://<cluster>/towline/<role>/<name>
//! ```
//!
//! It is a SPIFFE ID, so that any SPIFFE authority can issue it too. Text and value are inverses:
//! there is exactly one text for a value, and every other text is refused.

use std::fmt;
use std::str::FromStr;

use crate::mint::NAME_CHARS;
use towline_proto::id::{ClusterName, Name, NameError, Role, UnknownRole};

/// Who somebody is.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// The trust domain.
    pub cluster: ClusterName,
    /// What it is there.
    pub role: Role,
    /// Which one. For an agent it is the node name.
    pub name: Name,
}

/// Longest identity in bytes: a bound on the text before it is looked at.
const MAX_BYTES: usize = 9 + ClusterName::MAX_BYTES + 9 + 8 + 1 + Name::MAX_BYTES;

/// Why a text is not an identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("{len} bytes is longer than any identity")]
    TooLong { len: usize },
    #[error("not of the form spiffe://CLUSTER/towline/ROLE/NAME")]
    Form,
    #[error(transparent)]
    Role(#[from] UnknownRole),
    #[error(transparent)]
    Name(#[from] NameError),
}

impl Identity {
    /// An identity from its parts.
    pub fn new(cluster: ClusterName, role: Role, name: Name) -> Self {
        Self {
            cluster,
            role,
            name,
        }
    }

    /// What its holder is called in a subject: not a Kubernetes user name, which under a shared
    /// authority it would be.
    pub(crate) fn common_name(&self) -> String {
        let whole = format!("towline:{}:{}", self.role, self.name);
        match whole.len() {
            0..=NAME_CHARS => whole,
            _ => format!("towline:{}", self.role),
        }
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        if text.len() > MAX_BYTES {
            return Err(IdentityError::TooLong { len: text.len() });
        }
        let rest = text.strip_prefix("spiffe://").ok_or(IdentityError::Form)?;
        let mut parts = rest.split('/');
        let (Some(cluster), Some("towline"), Some(role), Some(name), None) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) else {
            return Err(IdentityError::Form);
        };
        Ok(Self {
            cluster: cluster.parse()?,
            role: role.parse()?,
            name: name.parse()?,
        })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/towline/{}/{}",
            self.cluster, self.role, self.name
        )
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_identity_reads_as_it_prints() {
        let text = "spiffe://prod.example/towline/agent/n1.internal";
        let identity: Identity = text.parse().unwrap();
        assert_eq!(identity.role, Role::Agent);
        assert_eq!(identity.name.as_str(), "n1.internal");
        assert_eq!(identity.to_string(), text);
    }

    #[test]
    fn every_other_text_is_refused() {
        for bad in [
            "",
            "spiffe://",
            "spiffe://c",
            "spiffe://c/towline/agent",
            "spiffe://c/towline/agent/",
            "spiffe://c/towline/agent/n/",
            "spiffe://c/towline/agent/n/x",
            "spiffe://c/ns/default/sa/x",
            "SPIFFE://c/towline/agent/n",
            "spiffe://C/towline/agent/n",
            "spiffe://c:80/towline/agent/n",
            "spiffe://u@c/towline/agent/n",
            "spiffe://c/towline/Agent/n",
            "spiffe://c/towline/agent/n?x",
            "spiffe://c/towline/agent/n#x",
            "spiffe://c/towline/agent/%6e",
            "spiffe://c//towline/agent/n",
            "https://c/towline/agent/n",
            " spiffe://c/towline/agent/n",
            "spiffe://c/towline/agent/n\n",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad:?}");
        }
        let long = format!("spiffe://c/towline/agent/{}", "a".repeat(600));
        assert_eq!(
            long.parse::<Identity>().unwrap_err(),
            IdentityError::TooLong { len: long.len() }
        );
    }

    proptest! {
        #[test]
        fn what_parses_prints_back_the_same(text in "spiffe://[a-z0-9.-]{1,12}/towline/(agent|server|client|operator)/[a-z0-9.-]{1,12}") {
            if let Ok(identity) = text.parse::<Identity>() {
                prop_assert_eq!(identity.to_string(), text);
            }
        }
    }
}
