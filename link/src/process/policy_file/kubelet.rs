//! The `kubelet` section: rules about HTTP requests to kubelets, for the gateway. What they mean
//! is [`towline_proto::kubelet::rules`]'s.
//!
//! ```yaml
//! kubelet:
//!   default: deny               # what happens when no rule fits: must be said
//!   rules:
//!     - action: deny
//!       verbs: [exec, attach]
//!       namespaces: [kube-system]
//!     - action: allow
//!       verbs: [logs]
//! ```

use serde::Deserialize;
use serde_saphyr::Spanned;
use towline_proto::kubelet::{Effect, Rule, Rules};

use super::List;
use crate::process::yaml::{Fault, number};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    default: Spanned<String>,
    #[serde(default)]
    rules: Vec<Spanned<RawRule>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    action: Spanned<String>,
    #[serde(default)]
    verbs: List<String>,
    #[serde(default)]
    namespaces: List<String>,
    #[serde(default)]
    nodes: List<String>,
}

fn effect(word: &Spanned<String>) -> Result<Effect, Fault> {
    match word.value.as_str() {
        "allow" => Ok(Effect::Allow),
        "deny" => Ok(Effect::Deny),
        other => Err(Fault::at(
            word.referenced,
            format_args!("{other:?}: use allow or deny"),
        )),
    }
}

impl Section {
    pub(super) fn rules(&self) -> Result<Rules, Fault> {
        let default = effect(&self.default)?;
        let rules = self.rules.iter().map(|rule| {
            let raw = &rule.value;
            let names = |list: &List<String>| list.each(|text| Ok::<_, String>(text.clone()));
            Ok(Rule {
                effect: effect(&raw.action)?,
                verbs: raw.verbs.each(|word| word.parse())?,
                namespaces: names(&raw.namespaces)?,
                nodes: names(&raw.nodes)?,
                line: number(rule.referenced.line()),
            })
        });
        let rules = rules.collect::<Result<Vec<_>, Fault>>()?;
        Rules::new(default, rules).map_err(|error| Fault::at(self.default.referenced, error))
    }
}
