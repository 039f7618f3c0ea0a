//! Every request of one gateway connection is judged here, and told to the audit trail: one event
//! when its answer begins, or when it is refused or fails.

use std::time::SystemTime;

use towline_pki::Fingerprint;
use towline_proto::http1::RequestHead;
use towline_proto::id::{DialId, Name};
use towline_proto::kubelet::{Call, Refusal, Verb, Verdict};
use towline_proto::limits;
use towline_proto::reason::Reason;
use towline_proto::target::Target;

use super::Gateway;
use super::answer::Answer;
use super::connections::ConnectionGuard;
use super::event::{FrontEndCertificate, Outcome, RequestEvent};

/// What is the same for all requests of a connection.
#[derive(Clone, Debug)]
pub(super) struct About {
    pub(super) dial: DialId,
    pub(super) target: Target,
    pub(super) node: Name,
    pub(super) front_end: FrontEndCertificate,
    pub(super) kubelet_key: Option<Fingerprint>,
}

/// A request that passed and whose answer has not begun.
struct Asked {
    at: SystemTime,
    method: &'static str,
    path: String,
    call: Call,
}

/// See the head of this file.
pub(super) struct Judge<'a> {
    gateway: &'a Gateway,
    about: About,
    connection: Option<ConnectionGuard>,
    asked: Option<Asked>,
    number: u64,
    refused: u32,
}

impl<'a> Judge<'a> {
    pub(super) fn new(
        gateway: &'a Gateway,
        about: About,
        connection: Option<ConnectionGuard>,
    ) -> Self {
        Self {
            gateway,
            about,
            connection,
            asked: None,
            number: 0,
            refused: 0,
        }
    }

    pub(super) fn node(&self) -> &Name {
        &self.about.node
    }

    /// Whether a request may pass; if not, what it is answered, and whether the connection may go
    /// on after that, for its part.
    pub(super) fn request(&mut self, head: &RequestHead) -> Option<(Answer, bool)> {
        let answer = self.verdict(head)?;
        self.refused = self.refused.saturating_add(1);
        let goes_on = self.refused < limits::GATEWAY_REFUSALS;
        if !goes_on {
            self.gateway.metrics.refused_too_often();
        }
        Some((answer, goes_on))
    }

    fn verdict(&mut self, head: &RequestHead) -> Option<Answer> {
        self.number += 1;
        let asked = Asked::new(head);
        // Before the rules are looked at: a change of them meanwhile finds it.
        if let Some(connection) = &self.connection {
            connection.asks(&asked.call);
        }
        let verdict = match self.gateway.rules() {
            Some(rules) => rules.judge(&asked.call, self.about.node.as_str()),
            None => Verdict::Allowed { line: None },
        };
        if let Verdict::Refused(refusal) = verdict {
            let answer = forbidden(&asked.call, refusal);
            let line = match refusal {
                Refusal::Rule { line } => Some(line),
                _ => None,
            };
            let why = refusal.as_str();
            self.gateway
                .say_refused(&self.about, asked.call.verb, refusal);
            self.tell(asked, Some(403), Outcome::Refused { why, line });
            return Some(answer);
        }
        if !self.gateway.sink.takes() {
            let answer = Answer::new(
                503,
                "towline-server cannot write its audit trail, and no request passes unseen",
            );
            self.tell(asked, Some(503), Outcome::Unrecorded);
            return Some(answer);
        }
        self.asked = Some(asked);
        None
    }

    /// The kubelet's answer begins.
    pub(super) fn answered(&mut self, status: u16) {
        if let Some(asked) = self.asked.take() {
            self.tell(asked, Some(status), Outcome::Answered);
        }
    }

    /// There is no answer, or not a whole one.
    pub(super) fn failed(&mut self, why: &'static str, status: Option<u16>) {
        if let Some(asked) = self.asked.take() {
            self.tell(asked, status, Outcome::Failed(why));
        }
    }

    /// Something that is no request that may pass.
    pub(super) fn malformed(&mut self, why: &'static str, status: Option<u16>) {
        let outcome = Outcome::Malformed(why);
        match self.asked.take() {
            // Its body was: it is that request that failed.
            Some(asked) => self.tell(asked, status, outcome),
            None => {
                self.number += 1;
                let event = self.event(SystemTime::now(), status, outcome);
                self.gateway.sink.request(event);
            }
        }
        self.gateway.metrics.request(None, outcome);
        self.gateway.say_malformed(&self.about, why);
    }

    /// The connection is over.
    pub(super) fn ended(&mut self, reason: Reason) {
        self.failed(reason.as_str(), None);
    }

    fn event(&self, at: SystemTime, status: Option<u16>, outcome: Outcome) -> RequestEvent {
        let About {
            dial,
            target,
            node,
            front_end,
            kubelet_key,
        } = self.about.clone();
        RequestEvent {
            at,
            dial,
            number: self.number,
            target,
            node,
            method: None,
            call: None,
            path: None,
            status,
            outcome,
            front_end,
            kubelet_key,
        }
    }

    fn tell(&self, asked: Asked, status: Option<u16>, outcome: Outcome) {
        if !matches!(outcome, Outcome::Malformed(_)) {
            self.gateway.metrics.request(Some(asked.call.verb), outcome);
        }
        let mut event = self.event(asked.at, status, outcome);
        event.method = Some(asked.method);
        event.path = Some(asked.path);
        event.call = Some(asked.call);
        self.gateway.sink.request(event);
    }
}

/// Also of a task that was cut: nothing passes unseen.
impl Drop for Judge<'_> {
    fn drop(&mut self) {
        self.failed(Reason::Aborted.as_str(), None);
    }
}

impl Asked {
    fn new(head: &RequestHead) -> Self {
        let path = head.target.split('?').next().unwrap_or_default();
        Self {
            at: SystemTime::now(),
            method: head.method.as_str(),
            path: path.chars().take(limits::GATEWAY_PATH_BYTES).collect(),
            call: Call::of(&head.target),
        }
    }
}

/// One sentence for whoever typed the command.
fn forbidden(call: &Call, refusal: Refusal) -> Answer {
    let verb = match call.verb {
        Verb::Unknown => "this request",
        known => known.as_str(),
    };
    let place = match (&call.namespace, &call.pod) {
        (Some(namespace), Some(pod)) => format!(" of pod {:?} in namespace {:?}", pod, namespace),
        (Some(namespace), None) => format!(" in namespace {namespace:?}"),
        _ => String::new(),
    };
    Answer::new(
        403,
        format!("towline-server refuses {verb}{place}: {refusal}"),
    )
}
