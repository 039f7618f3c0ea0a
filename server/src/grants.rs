//! The grants file: what agents may serve beyond what their certificates say.
//!
//! ```yaml
//! agents:
//!   - name: "gw-*"              # a name, or a pattern in which * stands for any letters
//!     gateway: true             # serves --service-cidr and --pod-cidr
//!   - name: n7
//!     addresses: [10.0.0.7]     # node addresses beside the certificate's IP SANs
//!     prefixes: [10.244.7.0/24] # owns these
//! ```
//!
//! An agent gets what all entries that fit its name give together. Without a file every agent is
//! a gateway; with one only those that it names. An unknown word in the file is an error, because
//! a misspelt grant must not silently be none.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;
use serde_saphyr::Spanned;
use towline_link::process::yaml::{self, Fault};
use towline_pki::store;
use towline_proto::address;
use towline_proto::id::Name;
use towline_proto::limits;

use crate::pick::Route;

/// What is wrong with a grants file.
#[derive(Debug, thiserror::Error)]
pub enum GrantsError {
    /// It cannot be read.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// It is no grants file.
    #[error("{}:{fault}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong, on one line.
        fault: Fault,
    },
}

/// A grants file that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    agents: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGrants {
    agents: Vec<Spanned<Entry>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: Pattern,
    #[serde(default)]
    addresses: Vec<IpAddr>,
    #[serde(default)]
    prefixes: Vec<IpNet>,
    #[serde(default)]
    gateway: bool,
}

/// A name in which `*` stands for any letters.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct Pattern(String);

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.*".contains(c);
        if text.is_empty() || text.len() > Name::MAX_BYTES || !text.chars().all(ok) {
            return Err(
                "an agent's name or a pattern: lower-case letters, digits, '-', '.' and '*'"
                    .to_owned(),
            );
        }
        Ok(Self(text))
    }
}

impl Pattern {
    fn fits(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else {
            return false;
        };
        let Some(last) = parts.next_back() else {
            return rest.is_empty();
        };
        for part in parts {
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

impl Grants {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, GrantsError> {
        let text = store::read(path)?;
        Self::parse(&text).map_err(|fault| GrantsError::Form {
            path: path.into(),
            fault,
        })
    }

    fn parse(text: &[u8]) -> Result<Self, Fault> {
        let raw: RawGrants = yaml::read(text)?;
        if let Some(entry) = raw.agents.get(limits::GRANT_ENTRIES) {
            let cause = format!(
                "more than the {} entries of one file",
                limits::GRANT_ENTRIES
            );
            return Err(Fault::at(entry.referenced, cause));
        }
        for entry in &raw.agents {
            let Entry {
                addresses,
                prefixes,
                ..
            } = &entry.value;
            if addresses.len().max(prefixes.len()) > limits::LIST_ITEMS {
                let cause = format!(
                    "{:?} has more than {} addresses or prefixes",
                    entry.value.name.0,
                    limits::LIST_ITEMS
                );
                return Err(Fault::at(entry.referenced, cause));
            }
        }
        let agents = raw.agents.into_iter().map(|entry| entry.value).collect();
        Ok(Self { agents })
    }

    /// Whether any entry has this (canonical) address.
    pub fn has_address(&self, ip: IpAddr) -> bool {
        let mut all = self.agents.iter().flat_map(|entry| &entry.addresses);
        all.any(|given| address::canonical(*given) == ip)
    }

    /// What the file gives to an agent.
    pub fn of(&self, name: &Name) -> Route {
        let mut route = Route::default();
        for entry in self.agents.iter().filter(|e| e.name.fits(name.as_str())) {
            route
                .addresses
                .extend(entry.addresses.iter().map(|ip| address::canonical(*ip)));
            route.prefixes.extend(&entry.prefixes);
            route.gateway |= entry.gateway;
        }
        route
    }
}

/// Fuzz body: any bytes are grants or one error.
pub fn fuzz_grants(data: &[u8]) {
    if let Ok(grants) = Grants::parse(data) {
        for entry in &grants.agents {
            let _ = entry.name.fits("n1");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
agents:
  - name: \"gw-*\"
    gateway: true
  - name: n7
    addresses: [10.0.0.7, \"fd00::7\"]
    prefixes: [10.244.7.0/24]
  - name: \"n*\"
    prefixes: [10.9.0.0/16]
";

    #[test]
    fn entries_that_fit_add_up() {
        let grants = Grants::parse(FILE.as_bytes()).unwrap();
        let n7 = grants.of(&"n7".parse().unwrap());
        assert_eq!(n7.addresses.len(), 2);
        assert_eq!(n7.prefixes.len(), 2);
        assert!(!n7.gateway);
        assert!(grants.of(&"gw-1".parse().unwrap()).gateway);
        assert_eq!(grants.of(&"x".parse().unwrap()), Route::default());
    }

    #[test]
    fn what_is_not_understood_refuses_the_file_with_its_place() {
        for (bad, place) in [
            ("", (1, 1)),
            ("agents: {}", (1, 9)),
            ("agents:\n- name: N7\n", (2, 9)),
            ("agents:\n- name: n7\n  gatewya: true\n", (3, 3)),
            ("agents:\n- name: n7\n  gateway: yes\n", (3, 12)),
            ("agents:\n- name: n7\n  name: n8\n", (3, 3)),
            ("agents:\n- name: n7\n  prefixes: [10.0.0.0/33]\n", (3, 14)),
            ("agents:\n- name: n7\n  addresses: [10.0.0.0/8]\n", (3, 15)),
            ("agents:\n- gateway: true\n", (2, 3)),
            ("agent: []\n", (1, 1)),
            ("agents: &a []\nmore: *a\n", (1, 12)),
            ("\u{1b}[2J", (1, 1)),
        ] {
            let fault = Grants::parse(bad.as_bytes()).unwrap_err();
            let text = fault.to_string();
            assert_eq!(text.lines().count(), 1, "{text:?}");
            assert!(!text.contains('\u{1b}'), "{text:?}");
            assert_eq!((fault.line, fault.column), place, "{bad:?}: {text}");
        }
        let many = "agents:\n".to_owned() + &"- name: a\n".repeat(limits::GRANT_ENTRIES + 1);
        let fault = Grants::parse(many.as_bytes()).unwrap_err();
        assert_eq!(fault.line as usize, limits::GRANT_ENTRIES + 2, "{fault}");
        assert!(Grants::parse(b"\xff").is_err());
    }

    #[test]
    fn a_star_stands_for_any_letters() {
        for (pattern, name, fits) in [
            ("n1", "n1", true),
            ("n1", "n12", false),
            ("n*", "n12", true),
            ("*", "anything", true),
            ("*-gw", "a-gw", true),
            ("*-gw", "a-gw-b", false),
            ("a*b*c", "a-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("a*a", "a", false),
            ("**", "x", true),
        ] {
            let pattern = Pattern::try_from(pattern.to_owned()).unwrap();
            assert_eq!(pattern.fits(name), fits, "{pattern:?} {name}");
        }
    }
}
