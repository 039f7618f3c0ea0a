//! The policy file: text to [`RuleSet`]. What rules mean is [`towline_proto::policy`]'s.
//!
//! ```yaml
//! version: 1
//! rules:
//!   - name: kubelets-for-apiserver        # unique; shown in refusals and the audit trail
//!     action: allow                       # allow, or deny: deny wins, order has no meaning
//!     classes: [kubelet]                  # kubelet, node, pod, service, other
//!     from: [uid:0, client:kube-apiserver]  # who asks; also gid:N, local, client:NAME-*
//!   - name: webhooks
//!     action: allow
//!     classes: [service]
//!     ports: [443, 8000-8999]
//!     to: [10.96.0.0/12, "*.prod.svc"]    # addresses, prefixes, names that are asked for
//!   - name: no-secrets-node
//!     action: deny
//!     nodes: ["vault-*"]                  # the node through which the dial goes
//! ```
//!
//! A condition that is left out is met by everything; an empty list is an error, because it would
//! be met by nothing. What no rule can allow may not be written into an `allow` rule either.

mod kubelet;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::de::Deserializer;
use serde::{Deserialize, de};
use serde_saphyr::Spanned;
use towline_pki::store;
use towline_proto::address::{self, Refusal};
use towline_proto::kubelet::Rules as KubeletRules;
use towline_proto::limits;
use towline_proto::pattern::Pattern;
use towline_proto::policy::{Action, Destination, FrontEnd, PortRange, Rule, RuleSet, RuleTag};
use towline_proto::target::{Class, Classes, HostName};

use super::yaml::{self, Fault, number};

/// What is wrong with a policy file: `FILE:LINE:COLUMN: cause`.
#[derive(Debug, thiserror::Error)]
pub enum PolicyFileError {
    /// It cannot be read.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// It is no policy.
    #[error("{}:{fault}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// Place and cause.
        fault: Fault,
    },
}

/// A policy file that was read.
#[derive(Clone, Debug)]
pub struct PolicyFile {
    /// Rules about dials.
    pub rules: Arc<RuleSet>,
    /// Rules about requests to kubelets; only the gateway can keep them.
    pub kubelet: Option<Arc<KubeletRules>>,
}

impl PolicyFile {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, PolicyFileError> {
        Self::parse(&store::read(path)?).map_err(|fault| PolicyFileError::Form {
            path: path.into(),
            fault,
        })
    }

    /// Reads the text of one.
    pub fn parse(text: &[u8]) -> Result<Self, Fault> {
        let raw: RawFile = yaml::read(text)?;
        if raw.version.value != VERSION {
            let cause = format!(
                "version {} is not known here: use {VERSION}",
                raw.version.value
            );
            return Err(Fault::at(raw.version.referenced, cause));
        }
        if let Some(rule) = raw.rules.get(limits::POLICY_RULES) {
            let cause = format!("more than the {} rules of one file", limits::POLICY_RULES);
            return Err(Fault::at(rule.referenced, cause));
        }
        let mut names = BTreeMap::new();
        let mut rules = Vec::with_capacity(raw.rules.len());
        for spanned in &raw.rules {
            let rule = spanned.value.rule(number(spanned.referenced.line()))?;
            let line = spanned.referenced.line();
            if let Some(before) = names.insert(Arc::clone(&rule.tag.name), line) {
                return Err(Fault::at(
                    spanned.value.name.referenced,
                    format_args!(
                        "the rule in line {before} has the name {:?}, too",
                        rule.tag.name
                    ),
                ));
            }
            rules.push(rule);
        }
        let kubelet = raw.kubelet.as_ref().map(kubelet::Section::rules);
        Ok(Self {
            rules: Arc::new(RuleSet::new(rules)),
            kubelet: kubelet.transpose()?.map(Arc::new),
        })
    }
}

const VERSION: u64 = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    version: Spanned<u64>,
    rules: Vec<Spanned<RawRule>>,
    #[serde(default)]
    kubelet: Option<kubelet::Section>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    name: Spanned<String>,
    action: Spanned<String>,
    #[serde(default)]
    classes: List<String>,
    #[serde(default)]
    ports: List<Port>,
    #[serde(default)]
    to: List<String>,
    #[serde(default)]
    nodes: List<String>,
    #[serde(default)]
    from: List<String>,
}

impl RawRule {
    fn rule(&self, line: u32) -> Result<Rule, Fault> {
        let name = &self.name.value;
        let ok = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.len() > limits::POLICY_NAME_BYTES || !name.chars().all(ok) {
            let cause = format!(
                "{name:?} is no name of a rule: letters, digits, '-', '_' and '.', at most {} bytes",
                limits::POLICY_NAME_BYTES
            );
            return Err(Fault::at(self.name.referenced, cause));
        }
        let action = match self.action.value.as_str() {
            "allow" => Action::Allow,
            "deny" => Action::Deny,
            other => {
                let cause = format!("{other:?}: use allow or deny");
                return Err(Fault::at(self.action.referenced, cause));
            }
        };
        let classes: Vec<Class> = self.classes.each(|word| word.parse())?;
        let classes = match classes.as_slice() {
            [] => Classes::of(&Class::ALL),
            given => Classes::of(given),
        };
        Ok(Rule {
            tag: RuleTag {
                name: name.as_str().into(),
                line: Some(line),
            },
            action,
            classes,
            ports: self.ports.each(|port| port.0.parse::<PortRange>())?,
            to: self.to.each(|text| destination(text, action, classes))?,
            nodes: self.nodes.each(|text| text.parse::<Pattern>())?,
            from: self.from.each(|text| text.parse::<FrontEnd>())?,
        })
    }
}

/// A list that is not there, or has something in it.
struct List<T>(Option<Spanned<Vec<Spanned<T>>>>);

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let list = Spanned::<Vec<Spanned<T>>>::deserialize(deserializer)?;
        if list.value.is_empty() {
            return Err(de::Error::custom(
                "an empty list is met by nothing: leave the key out for everything",
            ));
        }
        Ok(Self(Some(list)))
    }
}

impl<T> List<T> {
    /// Reads every item; the first that is wrong is the error.
    fn each<O, E: fmt::Display>(&self, read: impl Fn(&T) -> Result<O, E>) -> Result<Vec<O>, Fault> {
        let Some(list) = &self.0 else {
            return Ok(Vec::new());
        };
        if let Some(item) = list.value.get(limits::POLICY_ITEMS) {
            let cause = format!("more than the {} items of one list", limits::POLICY_ITEMS);
            return Err(Fault::at(item.referenced, cause));
        }
        let items = list
            .value
            .iter()
            .map(|item| read(&item.value).map_err(|error| Fault::at(item.referenced, error)));
        items.collect()
    }
}

/// A number or a range.
struct Port(String);

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // As it is written: `0x1bb` is a number to YAML and no port to us.
        String::deserialize(deserializer).map(Port)
    }
}

/// What stands in `to`.
#[derive(Debug, thiserror::Error)]
enum DestinationError {
    #[error("{0:?} is no address, prefix or name: {1}")]
    Form(String, String),
    #[error("{prefix} has bits behind its length: write {wanted}")]
    Bits { prefix: IpNet, wanted: IpNet },
    #[error("{0} is an IPv4 address in an IPv6 one: write the IPv4 address")]
    Mapped(IpNet),
    #[error("{0} holds only what no rule can allow ({1})")]
    Forbidden(IpNet, Refusal),
}

fn destination(
    text: &str,
    action: Action,
    classes: Classes,
) -> Result<Destination, DestinationError> {
    let cut = || text.chars().take(80).collect::<String>();
    let prefix = match text.parse::<IpAddr>() {
        Ok(ip) => Some(IpNet::from(ip)),
        Err(_) if text.contains('/') || text.contains(':') => {
            let parsed = IpNet::from_str(text);
            Some(parsed.map_err(|_| {
                DestinationError::Form(cut(), "a prefix is written like 10.0.0.0/24".to_owned())
            })?)
        }
        Err(_) => None,
    };
    if let Some(prefix) = prefix {
        return checked(prefix, action, classes).map(Destination::Prefix);
    }
    let numeric = text
        .bytes()
        .all(|b| b.is_ascii_digit() || b == b'.' || b == b'*');
    if numeric && text.contains('*') && text != "*" {
        let why = "patterns are for names; write a prefix such as 10.0.0.0/24".to_owned();
        return Err(DestinationError::Form(cut(), why));
    }
    let form = |why: &dyn fmt::Display| DestinationError::Form(cut(), why.to_string());
    if !text.contains('*') {
        // Refuses what a resolver could take for an address.
        let name: HostName = text.parse().map_err(|error| form(&error))?;
        let pattern = name.as_str().parse().map_err(|error| form(&error))?;
        return Ok(Destination::Name(pattern));
    }
    text.parse()
        .map(Destination::Name)
        .map_err(|error| form(&error))
}

fn checked(prefix: IpNet, action: Action, classes: Classes) -> Result<IpNet, DestinationError> {
    if prefix.trunc() != prefix {
        let wanted = prefix.trunc();
        return Err(DestinationError::Bits { prefix, wanted });
    }
    if address::canonical(prefix.addr()) != prefix.addr() {
        return Err(DestinationError::Mapped(prefix));
    }
    let (first, last) = (
        address::refusal(prefix.network()),
        address::refusal(prefix.broadcast()),
    );
    match (first, last) {
        // A kubelet may listen on loopback.
        (Some(Refusal::Loopback), _) if classes.has(Class::Kubelet) => Ok(prefix),
        (Some(first), Some(last)) if first == last && action == Action::Allow => {
            Err(DestinationError::Forbidden(prefix, first))
        }
        _ => Ok(prefix),
    }
}

/// Fuzz body: any bytes are a policy, or one error on one line.
pub fn fuzz_policy_file(data: &[u8]) {
    match PolicyFile::parse(data) {
        Ok(file) => assert!(file.rules.rules().len() <= limits::POLICY_RULES),
        Err(fault) => {
            let text = fault.to_string();
            assert!(!text.chars().any(char::is_control), "{text:?}");
        }
    }
}

#[cfg(test)]
mod tests;
