//! Finds the first rule of an action that applies without asking every rule.
//!
//! Rules with destinations are found by the destination: a prefix by looking the address up, cut
//! to each length that some rule uses; a whole name by looking it up; patterns one after the
//! other. Rules without destinations are listed by class. All lists are in the order of rules.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Action, Destination, Question, Rule};
use crate::address;
use crate::pattern::Pattern;
use crate::target::Class;

#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    allow: Side,
    deny: Side,
}

/// The rules of one action.
#[derive(Clone, Debug, Default)]
struct Side {
    anywhere: [Vec<usize>; Class::ALL.len()],
    v4: Prefixes,
    v6: Prefixes,
    names: BTreeMap<Box<str>, Vec<usize>>,
    patterns: Vec<(Pattern, usize)>,
}

impl Index {
    pub(super) fn new(rules: &[Rule]) -> Self {
        let mut index = Self::default();
        for (at, rule) in rules.iter().enumerate() {
            match rule.action {
                Action::Allow => index.allow.add(at, rule),
                Action::Deny => index.deny.add(at, rule),
            }
        }
        index
    }

    /// The first rule of this action that applies.
    pub(super) fn first(
        &self,
        rules: &[Rule],
        question: &Question<'_>,
        action: Action,
    ) -> Option<usize> {
        match action {
            Action::Allow => self.allow.first(rules, question, false),
            Action::Deny => self.deny.first(rules, question, true),
        }
    }
}

impl Side {
    fn add(&mut self, at: usize, rule: &Rule) {
        if rule.to.is_empty() {
            for (list, class) in self.anywhere.iter_mut().zip(Class::ALL) {
                if rule.classes.has(class) {
                    list.push(at);
                }
            }
        }
        for place in &rule.to {
            match place {
                Destination::Prefix(prefix @ IpNet::V4(_)) => self.v4.add(*prefix, at),
                Destination::Prefix(prefix @ IpNet::V6(_)) => self.v6.add(*prefix, at),
                Destination::Name(pattern) => match pattern.exact() {
                    Some(name) => self.names.entry(name.into()).or_default().push(at),
                    None => self.patterns.push((pattern.clone(), at)),
                },
            }
        }
    }

    /// `carried`: what the address carries is looked up, too.
    fn first(&self, rules: &[Rule], question: &Question<'_>, carried: bool) -> Option<usize> {
        let mut best = First {
            rules,
            question,
            at: None,
        };
        let class = Class::ALL.iter().position(|class| *class == question.class);
        if let Some(list) = class.and_then(|class| self.anywhere.get(class)) {
            best.look(list);
        }
        if let Some(ip) = question.address {
            let prefixes = if ip.is_ipv4() { &self.v4 } else { &self.v6 };
            for list in prefixes.around(ip) {
                best.look(list);
            }
            for ip in address::carried(ip).filter(|_| carried) {
                for list in self.v4.around(ip) {
                    best.look(list);
                }
            }
        }
        if let Some(name) = question.name {
            if let Some(list) = self.names.get(name) {
                best.look(list);
            }
            for (pattern, at) in &self.patterns {
                if best.is_better(*at) && pattern.fits(name) {
                    best.look(&[*at]);
                }
            }
        }
        best.at
    }
}

/// The first rule that applies, of those that were looked at.
struct First<'a> {
    rules: &'a [Rule],
    question: &'a Question<'a>,
    at: Option<usize>,
}

impl First<'_> {
    fn is_better(&self, at: usize) -> bool {
        self.at.is_none_or(|best| at < best)
    }

    /// A list in order, of rules whose destination fits.
    fn look(&mut self, list: &[usize]) {
        for at in list {
            if !self.is_better(*at) {
                return;
            }
            let rule = self.rules.get(*at);
            if rule.is_some_and(|rule| rule.applies_there(self.question)) {
                self.at = Some(*at);
                return;
            }
        }
    }
}

/// Rules by prefix, of one family.
#[derive(Clone, Debug, Default)]
struct Prefixes {
    /// By length; within a length by prefix.
    lengths: BTreeMap<u8, BTreeMap<IpNet, Vec<usize>>>,
}

impl Prefixes {
    fn add(&mut self, prefix: IpNet, at: usize) {
        let by_prefix = self.lengths.entry(prefix.prefix_len()).or_default();
        let list = by_prefix.entry(prefix.trunc()).or_default();
        if list.last() != Some(&at) {
            list.push(at);
        }
    }

    fn around(&self, ip: IpAddr) -> impl Iterator<Item = &Vec<usize>> {
        self.lengths.iter().filter_map(move |(length, by_prefix)| {
            by_prefix.get(&IpNet::new(ip, *length).ok()?.trunc())
        })
    }
}
