//! The kubelet's HTTP API as the gateway has to know it: what a request asks for ([`call`]), and
//! rules about who may ask for it ([`rules`]).

pub mod call;
pub mod rules;

pub use call::{Ambiguity, Call, Verb};
pub use rules::{Effect, Refusal, Rule, RuleVerb, Rules, RulesError, Verdict};
