//! Why a dial is decided as it is, and what would change that, for people.

use super::{Action, Decision, Question, Rule, RuleSet, RuleTag};

/// A condition of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// `classes`
    Classes,
    /// `ports`
    Ports,
    /// `to`
    To,
    /// `nodes`
    Nodes,
    /// `from`
    From,
}

impl Condition {
    /// The key in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Condition::Classes => "classes",
            Condition::Ports => "ports",
            Condition::To => "to",
            Condition::Nodes => "nodes",
            Condition::From => "from",
        }
    }
}

/// An `allow` rule that does not apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearMiss {
    /// Which.
    pub rule: RuleTag,
    /// What is not met; never empty.
    pub unmet: Vec<Condition>,
}

/// The whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What is decided.
    pub decision: Decision,
    /// Every `deny` rule that applies: all of them have to go before the dial is allowed.
    pub denying: Vec<RuleTag>,
    /// Every `allow` rule that applies.
    pub allowing: Vec<RuleTag>,
    /// Where none applies: `allow` rules of which the fewest conditions are not met.
    pub near: Vec<NearMiss>,
    /// Rules whose condition about the node or the front end was open.
    pub open: Vec<(RuleTag, Condition)>,
}

/// Near misses that are worth telling.
const NEAR: usize = 5;

pub(super) fn explain(set: &RuleSet, question: &Question<'_>) -> Explanation {
    let applying = |action| {
        let rules = set.rules().iter();
        rules
            .filter(move |rule| rule.action == action && rule.applies(question))
            .map(|rule| rule.tag.clone())
            .collect::<Vec<_>>()
    };
    let allowing = applying(Action::Allow);
    let mut near = Vec::new();
    if allowing.is_empty() {
        let allow = set.rules().iter().filter(|r| r.action == Action::Allow);
        near.extend(allow.map(|rule| NearMiss {
            rule: rule.tag.clone(),
            unmet: unmet(rule, question),
        }));
        near.sort_by_key(|miss| miss.unmet.len());
        let fewest = near.first().map_or(0, |miss| miss.unmet.len());
        near.retain(|miss| miss.unmet.len() == fewest);
        near.truncate(NEAR);
    }
    let open = set.rules().iter().filter_map(|rule| {
        let elsewhere =
            rule.classes.has(question.class) && rule.is_on(question.port) && rule.is_to(question);
        let condition = match (rule.is_through(question.node), rule.is_for(question.asker)) {
            (Some(false), _) | (_, Some(false)) => return None,
            (None, _) => Condition::Nodes,
            (_, None) => Condition::From,
            _ => return None,
        };
        elsewhere.then(|| (rule.tag.clone(), condition))
    });
    Explanation {
        decision: set.decide(question),
        denying: applying(Action::Deny),
        allowing,
        near,
        open: open.collect(),
    }
}

fn unmet(rule: &Rule, question: &Question<'_>) -> Vec<Condition> {
    let met = [
        (Condition::Classes, rule.classes.has(question.class)),
        (Condition::Ports, rule.is_on(question.port)),
        (Condition::To, rule.is_to(question)),
        (
            Condition::Nodes,
            rule.is_through(question.node) != Some(false),
        ),
        (Condition::From, rule.is_for(question.asker) != Some(false)),
    ];
    let unmet = met.into_iter().filter(|(_, met)| !met);
    unmet.map(|(condition, _)| condition).collect()
}
