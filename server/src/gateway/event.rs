//! What the gateway tells about each request: one value for each, given to a sink when its answer
//! begins, or when it is refused or fails. The audit trail is such a sink.
//!
//! Text in it is of the front end: bounded, not escaped. There is never payload in it.

use std::time::SystemTime;

use towline_pki::Fingerprint;
use towline_proto::id::{DialId, Name};
use towline_proto::kubelet::Call;
use towline_proto::target::Target;

/// One request to a kubelet.
#[derive(Clone, Debug)]
pub struct RequestEvent {
    /// When its head was whole.
    pub at: SystemTime,
    /// The dial that carried it.
    pub dial: DialId,
    /// Its number on this connection, from 1.
    pub number: u64,
    /// What was dialled.
    pub target: Target,
    /// The node that the dial went to.
    pub node: Name,
    /// Its method; `None` when no request could be read.
    pub method: Option<&'static str>,
    /// What it asks for; `None` when no request could be read.
    pub call: Option<Call>,
    /// Path without query, cut; what identifies it when no kubelet is known to serve it.
    pub path: Option<String>,
    /// The status that the front end got: the kubelet's, or ours.
    pub status: Option<u16>,
    /// What became of it.
    pub outcome: Outcome,
    /// Subject and serial of the certificate that the front end showed the gateway.
    pub front_end: FrontEndCertificate,
    /// The kubelet's key as seen on this very connection.
    pub kubelet_key: Option<Fingerprint>,
}

/// Who the front end proved to be towards the gateway: a process, not the user behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontEndCertificate {
    /// Its subject, escaped and bounded.
    pub subject: String,
    /// Its serial number, hexadecimal.
    pub serial: String,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The kubelet answered.
    Answered,
    /// A kubelet rule refused it, or its path; the line is the rule's, where there is one.
    Refused {
        /// `rule`, `no-rule`, `unknown-path` or `ambiguous-path`.
        why: &'static str,
        /// Of the policy file.
        line: Option<u32>,
    },
    /// It was no request that may pass: smuggling, a head without an end.
    Malformed(&'static str),
    /// The kubelet did not answer: refused by us, gone, or broken.
    Failed(&'static str),
    /// The audit trail could not take it and nothing may pass unseen.
    Unrecorded,
}

impl Outcome {
    /// The word for metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::Answered => "answered",
            Outcome::Refused { .. } => "refused",
            Outcome::Malformed(_) => "malformed",
            Outcome::Failed(_) => "failed",
            Outcome::Unrecorded => "unrecorded",
        }
    }

    /// What more there is to say, from a closed set.
    pub const fn detail(self) -> &'static str {
        match self {
            Outcome::Refused { why, .. } | Outcome::Malformed(why) | Outcome::Failed(why) => why,
            Outcome::Answered | Outcome::Unrecorded => "none",
        }
    }
}

/// Takes events. Must not wait.
pub trait RequestSink: Send + Sync {
    /// Whether an event could be taken now; asked before a request passes. With `false` the
    /// request is refused, because nothing may pass unseen.
    fn takes(&self) -> bool;
    /// One request.
    fn request(&self, event: RequestEvent);
}

/// Takes everything and keeps nothing: a gateway without an audit trail.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSink;

impl RequestSink for NoSink {
    fn takes(&self) -> bool {
        true
    }

    fn request(&self, _event: RequestEvent) {}
}
