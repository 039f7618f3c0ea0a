//! What is written down of a dial. Cheap to make: shared names and numbers, no text is formatted
//! before the writer's thread does.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use towline_link::carrier::CarrierKind;
use towline_pki::VerifiedPeer;
use towline_proto::dial::TraceContext;
use towline_proto::id::{DialId, Name};
use towline_proto::policy::RuleTag;
use towline_proto::reason::Reason;
use towline_proto::target::{Class, Target};

use super::enrolment::EnrolmentEvent;
use super::signing::SigningEvent;
use crate::attest::Attestation;
use crate::caller::Caller;
use crate::dial::Door;
use crate::gateway::event::{Outcome, RequestEvent};

/// What is known of a dial, as far as it came.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Its number in this process, the same as in the logs of both ends.
    pub id: DialId,
    /// Where it came in.
    pub door: Door,
    /// Who asked.
    pub caller: Caller,
    /// What for.
    pub target: Target,
    /// The front end's trace context.
    pub trace: Option<TraceContext>,
    /// What the target is.
    pub class: Option<Class>,
    /// The node that it is on, or whose agent is the way to it.
    pub node: Option<Name>,
    /// The agent, by its certificate.
    pub agent: Option<VerifiedPeer>,
    /// A legacy agent, as it calls itself.
    pub legacy: Option<Box<str>>,
    /// What carried it.
    pub carrier: Option<CarrierKind>,
    /// The rule that allowed or refused it.
    pub rule: Option<RuleTag>,
    /// What is known of the kubelet.
    pub kubelet: Option<Arc<Attestation>>,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A dial was opened.
    Start {
        /// Which.
        facts: Arc<Facts>,
        /// How long it took to open.
        opening: Duration,
    },
    /// An opened dial ended.
    End {
        /// Which.
        facts: Arc<Facts>,
        /// How long it was open.
        open: Duration,
        /// Bytes towards the target.
        to_target: u64,
        /// Bytes from the target.
        from_target: u64,
        /// Why.
        reason: Reason,
    },
    /// A request passed the gateway, or was refused there.
    Request(Box<RequestEvent>),
    /// Something was decided about a signing request of the Kubernetes API.
    Signing(Box<SigningEvent>),
    /// An agent was given a certificate, or refused one.
    Enrolment(Box<EnrolmentEvent>),
    /// A front end asked for something that is no dial.
    BadRequest {
        /// Where.
        door: Door,
        /// Who.
        caller: Caller,
        /// What was wrong.
        cause: &'static str,
    },
    /// A dial was not opened.
    Refused {
        /// Which.
        facts: Arc<Facts>,
        /// After how long.
        after: Duration,
        /// Why.
        reason: Reason,
        /// The resolved address that was at fault.
        address: Option<IpAddr>,
    },
}

impl Event {
    /// The word of its record.
    pub const fn word(&self) -> &'static str {
        match self {
            Event::Start { .. } => "start",
            Event::End { .. } => "end",
            Event::Request(_) => "request",
            Event::Signing(_) => "signing",
            Event::Enrolment(_) => "enrolment",
            Event::BadRequest { .. } => "bad-request",
            Event::Refused { .. } => "refused",
        }
    }
}

impl Event {
    /// Whether nothing came of it: there can be any number of those.
    pub fn is_refusal(&self) -> bool {
        match self {
            Event::BadRequest { .. } | Event::Refused { .. } => true,
            Event::Request(request) => matches!(
                request.outcome,
                Outcome::Refused { .. } | Outcome::Malformed(_) | Outcome::Unrecorded
            ),
            Event::Enrolment(enrolment) => enrolment.outcome.is_err(),
            Event::Start { .. } | Event::End { .. } | Event::Signing(_) => false,
        }
    }
}

/// With its time.
#[derive(Clone, Debug)]
pub struct Timed {
    /// When.
    pub at: SystemTime,
    /// What.
    pub event: Event,
}
