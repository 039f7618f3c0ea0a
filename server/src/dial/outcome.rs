//! What becomes of a dial: a byte pipe through somebody, or a reason with what more is known.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use towline_link::carrier::Stream;
use towline_link::driver::DialGuard;
use towline_link::live::LiveGuard;
use towline_proto::id::{DialId, Name};
use towline_proto::policy::RuleTag;
use towline_proto::reason::Reason;
use towline_proto::target::{Class, Target};

use super::Ask;
use crate::agents::Ended;
use crate::attest::Attestation;
use crate::audit::OpenRecord;
use crate::legacy;
use crate::policy::Denial;
use crate::policy::judged::JudgedGuard;

/// Who carries a dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Through {
    /// An agent that proved this name.
    Agent(Name),
    /// A legacy agent that calls itself so; nobody has checked it.
    Legacy(Box<str>),
}

impl Through {
    /// The name.
    pub fn as_str(&self) -> &str {
        match self {
            Through::Agent(name) => name.as_str(),
            Through::Legacy(id) => id,
        }
    }
}

impl fmt::Display for Through {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Through::Agent(name) => name.fmt(f),
            Through::Legacy(id) => write!(f, "{id} (legacy)"),
        }
    }
}

/// A dial's place among those of who carries it, until it is dropped.
pub enum OnLink {
    /// A link of a verified agent.
    Link(DialGuard),
    /// A stream of a legacy agent.
    Legacy(legacy::Place),
}

/// A byte pipe to a target, and what is counted for as long as it lives.
pub struct OpenDial {
    /// For logs at both ends.
    pub id: DialId,
    /// What the target is.
    pub class: Class,
    /// Through whom.
    pub agent: Through,
    /// The pipe.
    pub stream: Stream,
    /// Bytes of the target that came with the answer.
    pub early: Bytes,
    /// Its place among the link's dials.
    pub on_link: OnLink,
    /// What is known of the kubelet, when it is one that is verified or observed.
    pub kubelet: Option<Arc<Attestation>>,
    /// Its place in the audit trail.
    pub record: OpenRecord,
    /// Its place among the live dials of the process: counted, and ended from outside.
    pub live: LiveGuard,
    /// Its place among those that are judged again when policy or grants change.
    pub judged: JudgedGuard,
    /// The rule that allowed it.
    pub rule: RuleTag,
}

/// Why there is no byte pipe.
#[derive(Clone, Debug)]
pub struct DialError {
    /// Why.
    pub reason: Reason,
    /// What was asked for.
    pub target: Target,
    /// What it is, when that was found out.
    pub class: Option<Class>,
    /// Who was, or should have been, asked.
    pub agent: Option<Through>,
    /// What more is known.
    pub detail: Detail,
    /// The words of a legacy agent, escaped: front ends know them.
    pub said: Option<Box<str>>,
}

/// What more is known about a refusal.
#[derive(Clone, Debug)]
pub enum Detail {
    /// Nothing.
    None,
    /// Our policy's words.
    Denial(Denial),
    /// The address that the agent found at fault.
    Address(IpAddr),
    /// How the agent's last link ended.
    Ended {
        /// How long ago.
        ago: Duration,
        /// Why.
        reason: Reason,
    },
    /// No agent with this address or name has ever linked.
    UnknownNode,
    /// Gateways are known, and none has a link.
    NoGateway,
    /// What is wrong with the kubelet; `None`: there was no time to find out.
    Kubelet(Option<Arc<Attestation>>),
    /// A kubelet that only a legacy agent reaches, where kubelets must be verified.
    KubeletBehindLegacy,
    /// It has the port of kubelets and is the address of no known node.
    KubeletOfNobody,
    /// Whoever asked has given it up, or has lost the right to ask.
    GivenUp,
}

impl DialError {
    /// The rule of our policy that decided, if one did.
    pub fn rule(&self) -> Option<&RuleTag> {
        match &self.detail {
            Detail::Denial(denial) => denial.rule(),
            _ => None,
        }
    }

    /// What was found of the kubelet, if that is why.
    pub fn kubelet(&self) -> Option<&Arc<Attestation>> {
        match &self.detail {
            Detail::Kubelet(found) => found.as_ref(),
            _ => None,
        }
    }

    /// Before anything was found out.
    pub(super) fn early(ask: &Ask, reason: Reason, detail: Detail) -> Box<Self> {
        Box::new(Self {
            reason,
            target: ask.target.clone(),
            class: None,
            agent: None,
            detail,
            said: None,
        })
    }
}

impl Detail {
    pub(super) fn of(ended: Option<Ended>) -> Self {
        ended.map_or(Detail::None, |ended| Detail::Ended {
            ago: ended.at.elapsed(),
            reason: ended.reason,
        })
    }
}
