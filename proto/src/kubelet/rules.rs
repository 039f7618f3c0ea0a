//! Rules about requests to kubelets. As for dials, deny wins and order has no meaning: a request
//! passes when no rule denies it and one allows it, or none fits and the default, which has to be
//! said, is to allow.
//!
//! Two things are the same for every set of rules. A path that no kubelet is known to serve, or
//! that could be read as another one, is refused: a rule could not have meant it. And a rule that
//! denies is wider than one that allows: `deny exec` covers `run`, which executes a command too,
//! and `deny logs` in a namespace covers `node-logs`, where the same files lie.

use std::fmt;

use super::call::{Ambiguity, Call, Verb};
use crate::limits;

/// What a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// It may pass.
    Allow,
    /// It may not.
    Deny,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Effect::Allow => "allow",
            Effect::Deny => "deny",
        })
    }
}

/// What a rule is about: a verb that the kubelet serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleVerb(Verb);

/// A word that names no verb.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no verb of a kubelet: use logs, exec, attach, port-forward, run, checkpoint, \
     node-logs, pods, running-pods, metrics, stats, health, config or debug"
)]
pub struct UnknownVerb(String);

impl std::str::FromStr for RuleVerb {
    type Err = UnknownVerb;

    fn from_str(text: &str) -> Result<Self, UnknownVerb> {
        Verb::ALL
            .into_iter()
            .find(|verb| *verb != Verb::Unknown && verb.as_str() == text)
            .map(RuleVerb)
            .ok_or_else(|| UnknownVerb(text.chars().take(32).collect()))
    }
}

/// One rule. An empty list fits everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What it says.
    pub effect: Effect,
    /// About which verbs.
    pub verbs: Vec<RuleVerb>,
    /// In which namespaces: names, or a name with `*` at its end.
    pub namespaces: Vec<String>,
    /// On which nodes, in the same form.
    pub nodes: Vec<String>,
    /// The line of the file that it stands in, for explanations.
    pub line: u32,
}

/// What is wrong with a set of rules.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// Too many.
    #[error(
        "{given} kubelet rules are more than the {} allowed",
        limits::GATEWAY_RULES
    )]
    Many {
        /// How many.
        given: usize,
    },
    /// A pattern that cannot fit anything.
    #[error(
        "line {line}: {text:?} is no name: lower-case letters, digits, '-' and '.', with '*' at \
         its end or nowhere"
    )]
    Pattern {
        /// Of the rule.
        line: u32,
        /// As it was written, cut.
        text: String,
    },
    /// A namespace for verbs that have none.
    #[error(
        "line {line}: {verb} is about a whole node, not about a namespace: an allowing rule with \
         namespaces never fits it; leave `namespaces` out"
    )]
    NoNamespace {
        /// Of the rule.
        line: u32,
        /// Which verb.
        verb: Verb,
    },
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    default: Effect,
    rules: Vec<Rule>,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// By a rule in this line.
    Rule {
        /// Of the policy file.
        line: u32,
    },
    /// No rule allows it.
    Default,
    /// No kubelet is known to serve it.
    Unknown,
    /// It could be read as another request.
    Ambiguous(Ambiguity),
}

/// What the rules say about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass: by the rule in this line, or by the default.
    Allowed {
        /// Of the policy file; `None`: the default.
        line: Option<u32>,
    },
    /// It may not.
    Refused(Refusal),
}

impl Refusal {
    /// The word for metrics and audit records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Refusal::Rule { .. } => "rule",
            Refusal::Default => "no-rule",
            Refusal::Unknown => "unknown-path",
            Refusal::Ambiguous(_) => "ambiguous-path",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Rule { line } => write!(f, "denied by the kubelet rule in line {line}"),
            Refusal::Default => f.write_str("no kubelet rule allows it"),
            Refusal::Unknown => f.write_str("no kubelet is known to serve this path"),
            Refusal::Ambiguous(why) => write!(f, "its path has {why}"),
        }
    }
}

impl Rules {
    /// Checks what can be checked without a request.
    pub fn new(default: Effect, rules: Vec<Rule>) -> Result<Self, RulesError> {
        if rules.len() > limits::GATEWAY_RULES {
            return Err(RulesError::Many { given: rules.len() });
        }
        for rule in &rules {
            let line = rule.line;
            for text in rule.namespaces.iter().chain(&rule.nodes) {
                if !is_pattern(text) {
                    let text = text.chars().take(64).collect();
                    return Err(RulesError::Pattern { line, text });
                }
            }
            let lost = rule.verbs.iter().find(|verb| !verb.0.has_namespace());
            if let Some(verb) = lost
                && rule.effect == Effect::Allow
                && !rule.namespaces.is_empty()
            {
                return Err(RulesError::NoNamespace { line, verb: verb.0 });
            }
        }
        Ok(Self { default, rules })
    }

    /// What they say about a request to this node's kubelet.
    pub fn judge(&self, call: &Call, node: &str) -> Verdict {
        if let Some(ambiguity) = call.ambiguity {
            return Verdict::Refused(Refusal::Ambiguous(ambiguity));
        }
        if call.verb == Verb::Unknown {
            return Verdict::Refused(Refusal::Unknown);
        }
        let of = |effect| {
            let mut fitting = self.rules.iter().filter(move |rule| rule.effect == effect);
            fitting.find(|rule| rule.fits(call, node))
        };
        if let Some(rule) = of(Effect::Deny) {
            return Verdict::Refused(Refusal::Rule { line: rule.line });
        }
        match (of(Effect::Allow), self.default) {
            (Some(rule), _) => Verdict::Allowed {
                line: Some(rule.line),
            },
            (None, Effect::Allow) => Verdict::Allowed { line: None },
            (None, Effect::Deny) => Verdict::Refused(Refusal::Default),
        }
    }
}

impl Rule {
    fn fits(&self, call: &Call, node: &str) -> bool {
        let verb = self.verbs.is_empty() || self.verbs.iter().any(|verb| self.covers(*verb, call));
        verb && self.fits_namespace(call) && fits_any(&self.nodes, node)
    }

    fn covers(&self, verb: RuleVerb, call: &Call) -> bool {
        let wider = self.effect == Effect::Deny
            && matches!(
                (verb.0, call.verb),
                (Verb::Exec, Verb::Run) | (Verb::Logs, Verb::NodeLogs)
            );
        verb.0 == call.verb || wider
    }

    fn fits_namespace(&self, call: &Call) -> bool {
        match (&call.namespace, self.effect) {
            (Some(namespace), _) => fits_any(&self.namespaces, namespace),
            // The files of every namespace lie there.
            (None, Effect::Deny) if call.verb == Verb::NodeLogs => true,
            (None, _) => self.namespaces.is_empty(),
        }
    }
}

impl Verb {
    const fn has_namespace(self) -> bool {
        matches!(
            self,
            Verb::Logs
                | Verb::Exec
                | Verb::Attach
                | Verb::PortForward
                | Verb::Run
                | Verb::Checkpoint
        )
    }
}

fn fits_any(patterns: &[String], name: &str) -> bool {
    patterns.is_empty()
        || patterns
            .iter()
            .any(|pattern| match pattern.strip_suffix('*') {
                Some(start) => name.starts_with(start),
                None => name == pattern,
            })
}

fn is_pattern(text: &str) -> bool {
    let start = text.strip_suffix('*').unwrap_or(text);
    let fits =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    !text.is_empty() && text.len() <= limits::GATEWAY_NAME_BYTES && start.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(effect: Effect, verbs: &[&str], namespaces: &[&str], line: u32) -> Rule {
        Rule {
            effect,
            verbs: verbs.iter().map(|verb| verb.parse().unwrap()).collect(),
            namespaces: namespaces.iter().map(|name| (*name).to_owned()).collect(),
            nodes: Vec::new(),
            line,
        }
    }

    fn judge(rules: &Rules, target: &str) -> Verdict {
        rules.judge(&Call::of(target), "n1")
    }

    const RUN_BY_DENY: Verdict = Verdict::Refused(Refusal::Rule { line: 3 });

    #[test]
    fn deny_wins_wherever_it_stands() {
        let rules = Rules::new(
            Effect::Allow,
            vec![
                rule(Effect::Allow, &["logs", "exec"], &[], 4),
                rule(Effect::Deny, &["exec", "attach"], &["kube-*"], 3),
                rule(Effect::Deny, &[], &["secret"], 5),
            ],
        )
        .unwrap();
        for (target, verdict) in [
            ("/exec/kube-system/p/c", RUN_BY_DENY),
            ("/exec/kube-system/p/uid/c", RUN_BY_DENY),
            ("/attach/kube-public/p/c", RUN_BY_DENY),
            ("/run/kube-system/p/c?cmd=id", RUN_BY_DENY),
            ("/exec/default/p/c", Verdict::Allowed { line: Some(4) }),
            ("/attach/default/p/c", Verdict::Allowed { line: None }),
            (
                "/containerLogs/secret/p/c",
                Verdict::Refused(Refusal::Rule { line: 5 }),
            ),
            (
                "/containerLogs/kube-system/p/c",
                Verdict::Allowed { line: Some(4) },
            ),
            (
                "/portForward/secret/p",
                Verdict::Refused(Refusal::Rule { line: 5 }),
            ),
            ("/metrics", Verdict::Allowed { line: None }),
            // A rule about a namespace of everything also closes the node's log files.
            ("/logs/pods/", Verdict::Refused(Refusal::Rule { line: 5 })),
        ] {
            assert_eq!(judge(&rules, target), verdict, "{target}");
        }
    }

    #[test]
    fn to_allow_is_narrow() {
        let rules = Rules::new(
            Effect::Deny,
            vec![
                rule(Effect::Allow, &["exec"], &[], 1),
                rule(Effect::Allow, &["logs"], &["a"], 2),
            ],
        )
        .unwrap();
        let refused = Verdict::Refused(Refusal::Default);
        assert_eq!(
            judge(&rules, "/exec/a/p/c"),
            Verdict::Allowed { line: Some(1) }
        );
        assert_eq!(judge(&rules, "/run/a/p/c"), refused);
        assert_eq!(judge(&rules, "/logs/"), refused);
        assert_eq!(judge(&rules, "/containerLogs/b/p/c"), refused);
    }

    #[test]
    fn with_rules_no_odd_path_passes_whatever_they_say() {
        let rules = Rules::new(Effect::Allow, Vec::new()).unwrap();
        for target in ["/nosuch", "/Exec/a/b/c", "/cri/exec/x"] {
            assert_eq!(judge(&rules, target), Verdict::Refused(Refusal::Unknown));
        }
        for target in ["/exec%2fa/b/c", "/healthz/../exec/a/b/c", "//pods"] {
            assert!(matches!(
                judge(&rules, target),
                Verdict::Refused(Refusal::Ambiguous(_))
            ));
        }
    }

    #[test]
    fn a_rule_may_be_for_some_nodes() {
        let mut only = rule(Effect::Deny, &[], &[], 1);
        only.nodes = vec!["gpu-*".into()];
        let rules = Rules::new(Effect::Allow, vec![only]).unwrap();
        let call = Call::of("/pods");
        assert!(matches!(rules.judge(&call, "gpu-7"), Verdict::Refused(_)));
        assert!(matches!(rules.judge(&call, "n1"), Verdict::Allowed { .. }));
    }

    #[test]
    fn rules_that_cannot_be_meant_are_refused() {
        for text in ["", "a*b", "Kube", "a/b", "**"] {
            let one = rule(Effect::Deny, &[], &[text], 7);
            let error = Rules::new(Effect::Deny, vec![one]).unwrap_err();
            assert!(matches!(error, RulesError::Pattern { line: 7, .. }));
        }
        let one = rule(Effect::Allow, &["pods"], &["a"], 2);
        assert!(matches!(
            Rules::new(Effect::Deny, vec![one]),
            Err(RulesError::NoNamespace { line: 2, .. })
        ));
        assert!("proxy".parse::<RuleVerb>().is_err());
        assert!("unknown".parse::<RuleVerb>().is_err());
    }
}
