//! Which dials are allowed: rules as values, and the decision over them. Pure; both ends use it.
//!
//! **Default deny, and deny wins.** A dial is allowed when at least one `allow` rule applies to
//! it and no `deny` rule does. The order of rules has no meaning: a rule that is added, moved or
//! merged from another file can never open what a `deny` closes, and reading one `deny` rule is
//! enough to know what it closes. The rule that is said to have decided is the first `deny` that
//! applies, else the first `allow`.
//!
//! A rule applies when every condition that it has is met; a condition that is left out is met by
//! everything. What an end cannot see is *open*: the agent does not see the front end, the server
//! does not see the node before it has chosen one. An open condition counts as met for `allow` and
//! as not met for `deny`, so that an end that sees less never refuses what the other allows for
//! somebody; the end that sees it has decided or will decide. What the *address* of a name is, is
//! not open: a prefix never applies to a name whose address is not known.
//!
//! A `deny` of an IPv4 prefix also closes the IPv6 addresses that carry an address of it (NAT64,
//! 6to4, Teredo), because a connection to those may end there. An `allow` opens what it says.
//!
//! What no rule can allow is not here: see [`crate::address`] and the policies of both ends.

mod explain;
mod index;
mod rule;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::target::{Class, Classes};

pub use explain::{Condition, Explanation, NearMiss};
pub use rule::{Action, Destination, FrontEnd, FrontEndError, PortRange, PortRangeError, Rule};

use index::Index;

/// Which rule, for records and messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleTag {
    /// Its name.
    pub name: Arc<str>,
    /// Its line in the file; `None` for a rule that is built in.
    pub line: Option<u32>,
}

impl fmt::Display for RuleTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "rule {:?} (line {line})", self.name),
            None => write!(f, "built-in rule {:?}", self.name),
        }
    }
}

/// Who asks, as far as this end sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker<'a> {
    /// A process of the server's machine.
    Local {
        /// Its user.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// The name in a client certificate.
    Client(&'a str),
    /// Not visible here: this is an agent.
    Unseen,
}

/// One dial, as the rules see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question<'a> {
    /// What the target is.
    pub class: Class,
    /// Its port.
    pub port: u16,
    /// The name that was asked for, when it was a name.
    pub name: Option<&'a str>,
    /// Its address in canonical form: the one asked for, at the agent the resolved one.
    pub address: Option<IpAddr>,
    /// The node through which it goes; `None` before one is chosen.
    pub node: Option<&'a str>,
    /// Who asks.
    pub asker: Asker<'a>,
}

/// What the rules say about one dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// By this rule, and no `deny` applies.
    Allowed(RuleTag),
    /// By this rule.
    Denied(RuleTag),
    /// No rule applies: denied by default.
    Unnamed,
}

impl Decision {
    /// Whether the dial may go on.
    pub const fn is_allowed(&self) -> bool {
        matches!(self, Decision::Allowed(_))
    }

    /// The rule that decided, if one did.
    pub const fn rule(&self) -> Option<&RuleTag> {
        match self {
            Decision::Allowed(tag) | Decision::Denied(tag) => Some(tag),
            Decision::Unnamed => None,
        }
    }

    /// `allow`, `deny` or `default`: the word in metrics and records.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Decision::Allowed(_) => "allow",
            Decision::Denied(_) => "deny",
            Decision::Unnamed => "default",
        }
    }
}

/// A set of rules, ready to decide. Immutable.
#[derive(Clone, Debug)]
pub struct RuleSet {
    rules: Vec<Rule>,
    index: Index,
    asks_node: bool,
}

impl RuleSet {
    /// In the order of the file, which decides only which rule is named.
    pub fn new(rules: Vec<Rule>) -> Self {
        let index = Index::new(&rules);
        let asks_node = rules.iter().any(|rule| !rule.nodes.is_empty());
        Self {
            rules,
            index,
            asks_node,
        }
    }

    /// What counts without a file: these classes, on every port, for every front end.
    pub fn built_in(classes: Classes) -> Self {
        Self::new(vec![Rule {
            classes,
            ..Rule::new("default", Action::Allow)
        }])
    }

    /// Everything but the built-in refusals: the profile for clusters that come from Konnectivity.
    pub fn anything() -> Self {
        Self::new(vec![Rule::new("anything", Action::Allow)])
    }

    /// The rules in order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Whether the answer can depend on the node.
    pub const fn asks_node(&self) -> bool {
        self.asks_node
    }

    /// How many rules have conditions about the front end.
    pub fn asking_front_end(&self) -> usize {
        let asking = |rule: &&Rule| !rule.from.is_empty();
        self.rules.iter().filter(asking).count()
    }

    /// Decides.
    pub fn decide(&self, question: &Question<'_>) -> Decision {
        let tag = |at: usize| self.rules.get(at).map(|rule| rule.tag.clone());
        if let Some(tag) = self
            .index
            .first(&self.rules, question, Action::Deny)
            .and_then(tag)
        {
            return Decision::Denied(tag);
        }
        match self
            .index
            .first(&self.rules, question, Action::Allow)
            .and_then(tag)
        {
            Some(tag) => Decision::Allowed(tag),
            None => Decision::Unnamed,
        }
    }

    /// Decides for a node that proves nothing about itself, so that no rule about nodes can open
    /// anything through it: an `allow` with a condition about nodes does not apply, and a `deny`
    /// with one does, because it may be that very node.
    pub fn decide_unproven(&self, question: &Question<'_>) -> Decision {
        let first = |action| {
            let mut rules = self.rules.iter();
            let fits = |rule: &&Rule| rule.action == action && rule.applies_unproven(question);
            rules.find(fits).map(|rule| rule.tag.clone())
        };
        match (first(Action::Deny), first(Action::Allow)) {
            (Some(tag), _) => Decision::Denied(tag),
            (None, Some(tag)) => Decision::Allowed(tag),
            (None, None) => Decision::Unnamed,
        }
    }

    /// Decides, and says what else was looked at and what would change the answer.
    pub fn explain(&self, question: &Question<'_>) -> Explanation {
        explain::explain(self, question)
    }
}
