//! One rule: an action and its conditions, each of which is met, not met, or open.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use super::{Asker, Question, RuleTag};
use crate::address;
use crate::pattern::{Pattern, PatternError};
use crate::target::{Class, Classes};

/// What a rule does with a dial to which it applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Allowed, unless some rule denies it.
    Allow,
    /// Denied, whatever other rules say.
    Deny,
}

impl Action {
    /// The word in files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Action::Allow => "allow",
            Action::Deny => "deny",
        }
    }
}

/// Ports from one to another, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// A text that is no port and no range of ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a port from 1 to 65535 or a range such as 8000-8999")]
pub struct PortRangeError(String);

impl PortRange {
    /// One port.
    pub const fn one(port: u16) -> Self {
        Self {
            first: port,
            last: port,
        }
    }

    /// Whether the port is in it.
    pub const fn has(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

impl FromStr for PortRange {
    type Err = PortRangeError;

    fn from_str(text: &str) -> Result<Self, PortRangeError> {
        let wrong = || PortRangeError(text.chars().take(40).collect());
        let port = |text: &str| {
            let digits = (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
            let port = text.parse::<u16>().ok().filter(|port| digits && *port != 0);
            port.ok_or_else(wrong)
        };
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (port(first)?, port(last)?),
            None => (port(text)?, port(text)?),
        };
        if first > last {
            return Err(wrong());
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return write!(f, "{}", self.first);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Where a dial may lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Addresses; of a name only where its address is known.
    Prefix(IpNet),
    /// Names that are asked for.
    Name(Pattern),
}

impl Destination {
    fn has(&self, question: &Question<'_>) -> bool {
        match self {
            Destination::Prefix(prefix) => question.address.is_some_and(|ip| prefix.contains(&ip)),
            Destination::Name(pattern) => question.name.is_some_and(|name| pattern.fits(name)),
        }
    }

    /// Whether the address carries one that is there.
    fn is_carried(&self, question: &Question<'_>) -> bool {
        let mut carried = question.address.into_iter().flat_map(address::carried);
        match self {
            Destination::Prefix(prefix) => carried.any(|ip| prefix.contains(&ip)),
            Destination::Name(_) => false,
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Destination::Prefix(prefix) if prefix.prefix_len() == prefix.max_prefix_len() => {
                prefix.addr().fmt(f)
            }
            Destination::Prefix(prefix) => prefix.fmt(f),
            Destination::Name(pattern) => pattern.fmt(f),
        }
    }
}

/// Who asks: `uid:0`, `gid:1000`, `local`, `client:kube-apiserver`, `client:backup-*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrontEnd {
    /// Any process of the server's machine.
    Local,
    /// Processes of this user.
    Uid(u32),
    /// Processes of this group.
    Gid(u32),
    /// Client certificates with such a name.
    Client(Pattern),
}

/// A text that names no front end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrontEndError {
    /// None of the forms.
    #[error("{0:?} is not a front end: use local, uid:NUMBER, gid:NUMBER or client:NAME")]
    Form(String),
    /// The part behind `client:`.
    #[error(transparent)]
    Name(#[from] PatternError),
}

impl FrontEnd {
    /// `None` when it cannot be told here.
    fn has(&self, asker: Asker<'_>) -> Option<bool> {
        Some(match (self, asker) {
            (_, Asker::Unseen) => return None,
            (FrontEnd::Local, Asker::Local { .. }) => true,
            (FrontEnd::Uid(uid), Asker::Local { uid: asking, .. }) => *uid == asking,
            (FrontEnd::Gid(gid), Asker::Local { gid: asking, .. }) => *gid == asking,
            (FrontEnd::Client(pattern), Asker::Client(name)) => pattern.fits(name),
            _ => false,
        })
    }
}

impl FromStr for FrontEnd {
    type Err = FrontEndError;

    fn from_str(text: &str) -> Result<Self, FrontEndError> {
        let wrong = || FrontEndError::Form(text.chars().take(80).collect());
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            text.parse::<u32>()
                .ok()
                .filter(|_| digits)
                .ok_or_else(wrong)
        };
        match text.split_once(':') {
            None if text == "local" => Ok(FrontEnd::Local),
            Some(("uid", id)) => Ok(FrontEnd::Uid(number(id)?)),
            Some(("gid", id)) => Ok(FrontEnd::Gid(number(id)?)),
            Some(("client", name)) => Ok(FrontEnd::Client(name.parse()?)),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for FrontEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrontEnd::Local => f.write_str("local"),
            FrontEnd::Uid(uid) => write!(f, "uid:{uid}"),
            FrontEnd::Gid(gid) => write!(f, "gid:{gid}"),
            FrontEnd::Client(pattern) => write!(f, "client:{pattern}"),
        }
    }
}

/// One rule. Lists that are empty are conditions that were left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name and place.
    pub tag: RuleTag,
    /// What it does.
    pub action: Action,
    /// Of these classes.
    pub classes: Classes,
    /// On these ports.
    pub ports: Vec<PortRange>,
    /// To these addresses and names.
    pub to: Vec<Destination>,
    /// Through these nodes.
    pub nodes: Vec<Pattern>,
    /// For these front ends.
    pub from: Vec<FrontEnd>,
}

impl Rule {
    /// A built-in rule without conditions.
    pub fn new(name: &str, action: Action) -> Self {
        Self {
            tag: RuleTag {
                name: name.into(),
                line: None,
            },
            action,
            classes: Classes::of(&Class::ALL),
            ports: Vec::new(),
            to: Vec::new(),
            nodes: Vec::new(),
            from: Vec::new(),
        }
    }

    /// Whether every condition is met; an open one counts as the action says.
    pub fn applies(&self, question: &Question<'_>) -> bool {
        self.is_to(question) && self.applies_there(question)
    }

    /// The same without a look at the destination, for who has looked it up already.
    pub(super) fn applies_there(&self, question: &Question<'_>) -> bool {
        let open = self.action == Action::Allow;
        self.classes.has(question.class)
            && self.is_on(question.port)
            && self.is_through(question.node).unwrap_or(open)
            && self.is_for(question.asker).unwrap_or(open)
    }

    /// The same where the node proves nothing; see [`super::RuleSet::decide_unproven`].
    pub(super) fn applies_unproven(&self, question: &Question<'_>) -> bool {
        let open = self.action == Action::Allow;
        self.classes.has(question.class)
            && self.is_on(question.port)
            && self.is_to(question)
            && (!open || self.nodes.is_empty())
            && self.is_for(question.asker).unwrap_or(open)
    }

    pub(super) fn is_on(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.iter().any(|range| range.has(port))
    }

    pub(super) fn is_to(&self, question: &Question<'_>) -> bool {
        let closes = self.action == Action::Deny;
        let fits =
            |place: &Destination| place.has(question) || (closes && place.is_carried(question));
        self.to.is_empty() || self.to.iter().any(fits)
    }

    /// `None`: open.
    pub(super) fn is_through(&self, node: Option<&str>) -> Option<bool> {
        if self.nodes.is_empty() {
            return Some(true);
        }
        node.map(|node| self.nodes.iter().any(|pattern| pattern.fits(node)))
    }

    /// `None`: open.
    pub(super) fn is_for(&self, asker: Asker<'_>) -> Option<bool> {
        if self.from.is_empty() {
            return Some(true);
        }
        let told = self.from.iter().map(|front_end| front_end.has(asker));
        told.reduce(|one, other| Some(one? || other?)).flatten()
    }
}

/// A prefix of one address.
impl From<IpAddr> for Destination {
    fn from(ip: IpAddr) -> Self {
        Destination::Prefix(ip.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_numbers_or_ranges() {
        for (text, first, last) in [("443", 443, 443), ("1-65535", 1, 65535), ("8-8", 8, 8)] {
            assert_eq!(text.parse(), Ok(PortRange { first, last }));
        }
        for bad in [
            "", "0", "-1", "1-", "-", "2-1", "65536", "1-2-3", "+1", " 1", "http", "000080",
        ] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad:?}");
        }
        assert_eq!(
            "8000-8999".parse::<PortRange>().unwrap().to_string(),
            "8000-8999"
        );
    }

    #[test]
    fn front_ends_read_as_they_print() {
        for text in [
            "local",
            "uid:0",
            "gid:4294967295",
            "client:kube-apiserver",
            "client:*",
        ] {
            assert_eq!(text.parse::<FrontEnd>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "uid",
            "uid:",
            "uid:-1",
            "uid:+1",
            "uid:root",
            "gid:4294967296",
            "client:",
            "client:A",
            "pid:1",
            "Local",
        ] {
            assert!(bad.parse::<FrontEnd>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_open_counts_as_the_action_says() {
        let question = Question {
            class: Class::Pod,
            port: 80,
            name: None,
            address: Some([10, 0, 0, 1].into()),
            node: None,
            asker: Asker::Unseen,
        };
        for action in [Action::Allow, Action::Deny] {
            let by_node = Rule {
                nodes: vec!["n1".parse().unwrap()],
                ..Rule::new("r", action)
            };
            let by_front_end = Rule {
                from: vec![FrontEnd::Uid(0)],
                ..Rule::new("r", action)
            };
            for rule in [by_node, by_front_end] {
                assert_eq!(rule.applies(&question), action == Action::Allow, "{rule:?}");
            }
        }
    }
}
