//! The one place where a reason becomes text for a front end.
//!
//! kube-apiserver shows its user nothing but the status line, so the reason phrase carries what
//! an operator needs: one line, printable ASCII, at most [`limits::REASON_PHRASE_BYTES`].

use std::time::Duration;

use towline_proto::limits;
use towline_proto::reason::Reason;
use towline_proto::target::{Class, Target};

use super::head::HeadError;
use crate::dial::{Detail, DialError};
use crate::policy::Denial;

/// What a front end is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The number.
    pub status: u16,
    /// The words behind it.
    pub phrase: String,
    /// What kind of text the body is.
    pub kind: &'static str,
    /// The body, when it is other words than these.
    pub body: Option<String>,
}

/// Text, as HTTP has it.
pub const TEXT: &str = "text/plain; charset=utf-8";
/// The same without a charset.
pub const PLAIN: &str = "text/plain";

impl Answer {
    fn new(status: u16, phrase: impl AsRef<str>) -> Self {
        Self {
            status,
            phrase: clean(phrase.as_ref()),
            kind: TEXT,
            body: None,
        }
    }

    /// The same with another number and another body.
    pub(super) fn with(self, status: u16, body: String) -> Self {
        Self {
            status,
            body: Some(body),
            ..self
        }
    }

    /// The whole answer: status line, headers, and the phrase again as a body for people with
    /// curl.
    pub fn bytes(&self) -> Vec<u8> {
        let Answer {
            status,
            phrase,
            kind,
            body,
        } = self;
        let (body, end) = match body {
            Some(body) => (body, ""),
            None => (phrase, "\n"),
        };
        let length = body.len() + end.len();
        let allow = if *status == 405 {
            "Allow: CONNECT\r\n"
        } else {
            ""
        };
        format!(
            "HTTP/1.1 {status} {phrase}\r\n{allow}Content-Type: {kind}\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{body}{end}"
        )
        .into_bytes()
    }
}

/// The answer to a request that was understood and granted. Nothing may follow it in one write:
/// kube-apiserver takes bytes behind the empty line for an error.
pub const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection Established\r\n\r\n";

/// Printable ASCII on one line, bounded.
fn clean(text: &str) -> String {
    let printable = |c: char| {
        if (' '..='~').contains(&c) { c } else { '?' }
    };
    text.chars()
        .map(printable)
        .take(limits::REASON_PHRASE_BYTES)
        .collect()
}

/// For a request that is none.
pub fn of_head(error: &HeadError) -> Answer {
    let status = match error {
        HeadError::Late => 408,
        HeadError::TooLarge | HeadError::ManyHeaders => 431,
        HeadError::Method(_) | HeadError::Connect => 405,
        HeadError::Http2 => 505,
        HeadError::Syntax(_) | HeadError::Target(_) | HeadError::Gone => 400,
    };
    Answer::new(status, error.to_string())
}

/// For a front end that comes while the server ends.
pub fn draining() -> Answer {
    Answer::new(
        503,
        "this towline-server is stopping and takes no new dials",
    )
}

/// For a front end that is known and not allowed.
pub fn not_on_the_list(why: &str) -> Answer {
    Answer::new(403, why)
}

const fn status_of(reason: Reason) -> u16 {
    match reason {
        Reason::BadTarget => 400,
        Reason::ServerPolicy
        | Reason::AgentPolicy
        | Reason::ForbiddenAddress
        | Reason::Denied
        | Reason::Revoked
        | Reason::RevocationUnknown
        | Reason::PolicyChanged
        | Reason::RouteWithdrawn => 403,
        Reason::NoAgent
        | Reason::NoRoute
        | Reason::AgentBusy
        | Reason::ServerBusy
        | Reason::Draining
        | Reason::MemoryBudget
        | Reason::Shutdown
        | Reason::Superseded
        | Reason::Moved
        | Reason::Overloaded
        | Reason::LocalResources
        | Reason::AuditUnavailable => 503,
        Reason::DialTimeout | Reason::TargetTimeout => 504,
        _ => 502,
    }
}

/// For a dial that did not open.
pub fn of_dial(error: &DialError) -> Answer {
    Answer::new(status_of(error.reason), phrase(error))
}

fn phrase(error: &DialError) -> String {
    if let Some(said) = &error.said {
        return said.to_string();
    }
    let target = &error.target;
    let agent = error.agent.as_ref().map_or("?", |name| name.as_str());
    let at = match &error.detail {
        Detail::Address(ip) => format!("{target} ({ip})"),
        _ => target.to_string(),
    };
    match error.reason {
        Reason::NoAgent => no_agent(error, agent),
        Reason::NoRoute => no_route(target, error.class),
        Reason::ServerPolicy | Reason::ForbiddenAddress => match (&error.detail, &error.agent) {
            (Detail::Denial(Denial::Forbidden(kind)), _) => {
                format!("{target} is a {kind}, which is never a target")
            }
            (Detail::Denial(denial), _) => format!("{target}: {denial}"),
            (_, Some(agent)) => format!("agent {agent} refused {at}: never a target"),
            (_, None) => format!("{at} is never a target"),
        },
        Reason::AgentPolicy => format!("agent {agent} refused {at}: its policy does not allow it"),
        Reason::PolicyChanged => {
            format!("{at} was allowed when the dial began; the server's policy has changed since")
        }
        Reason::RouteWithdrawn => {
            format!("agent {agent} is no longer granted {at}; the grants have changed since")
        }
        Reason::KubeletUnverified | Reason::KubeletHandshake => kubelet(error, agent),
        Reason::DialTimeout => format!("agent {agent} did not answer the dial to {at} in time"),
        Reason::TargetRefused => format!("{at} refused the connection (asked from node {agent})"),
        Reason::TargetUnreachable => format!("{at} is unreachable from node {agent}"),
        Reason::TargetTimeout => {
            format!("{at} did not answer the connection attempt of node {agent}")
        }
        Reason::TargetReset => format!("{at} reset the connection (asked from node {agent})"),
        Reason::NameNotFound => format!("{target} does not resolve on node {agent}"),
        Reason::AgentBusy => format!("agent {agent} has as many dials as it may have"),
        Reason::AuditUnavailable => {
            "this towline-server cannot write its audit trail and takes no dials until it can (--audit-failure block)".to_owned()
        }
        Reason::ServerBusy => "this towline-server has as many dials as it may have".to_owned(),
        Reason::LocalResources => {
            format!("agent {agent} is out of descriptors or memory for {at}")
        }
        Reason::Draining | Reason::Shutdown | Reason::Superseded | Reason::Moved => {
            format!("agent {agent} is stopping and takes no new dials")
        }
        other => format!("the dial to {at} through agent {agent} failed: {other}"),
    }
}

fn kubelet(error: &DialError, agent: &str) -> String {
    let target = &error.target;
    if let Detail::KubeletBehindLegacy = error.detail {
        return format!(
            "{target} is not dialled: only a legacy agent reaches this kubelet, which cannot be \
             verified; give the node a towline-agent"
        );
    }
    if let Detail::KubeletOfNobody = error.detail {
        return format!(
            "{target} is not dialled: it has the kubelets' port and belongs to no known node, so \
             nobody can verify it; see --node-cidr"
        );
    }
    let found = error.kubelet();
    match found.and_then(|found| found.verdict.cause()) {
        Some(cause) => format!(
            "{target} is not dialled, kubelet verification says {}: {cause}",
            cause.as_str()
        ),
        None => format!("{target}: the kubelet of node {agent} was not verified in time"),
    }
}

fn no_agent(error: &DialError, agent: &str) -> String {
    let target = &error.target;
    match &error.detail {
        Detail::Ended { ago, reason } => format!(
            "node {agent} has no live link since {} (last error: {reason})",
            span(*ago)
        ),
        Detail::UnknownNode => format!(
            "no agent has linked that owns {} (no certificate or grant names it)",
            target.host
        ),
        Detail::NoGateway => format!("no gateway agent has a live link to reach {target}"),
        _ => format!("node {agent} has no live link"),
    }
}

fn no_route(target: &Target, class: Option<Class>) -> String {
    match class {
        Some(class @ (Class::Pod | Class::Service)) => format!(
            "no agent may serve {target} (class {class}): none has linked yet, or no grant says gateway"
        ),
        _ => format!("no agent is granted {target}"),
    }
}

/// Whole units, the two largest.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dial::Through;
    use towline_proto::address::Refusal;

    fn error(reason: Reason, detail: Detail) -> DialError {
        DialError {
            reason,
            target: "10.0.0.7:10250".parse().unwrap(),
            class: Some(Class::Kubelet),
            agent: Some(Through::Agent("n1".parse().unwrap())),
            detail,
            said: None,
        }
    }

    #[test]
    fn the_status_line_says_what_is_wrong() {
        let ended = Detail::Ended {
            ago: Duration::from_secs(12),
            reason: Reason::PeerSilent,
        };
        for (reason, detail, line) in [
            (
                Reason::NoAgent,
                ended,
                "HTTP/1.1 503 node n1 has no live link since 12s (last error: peer-silent)\r\n",
            ),
            (
                Reason::NoAgent,
                Detail::UnknownNode,
                "HTTP/1.1 503 no agent has linked that owns 10.0.0.7 (no certificate or grant names it)\r\n",
            ),
            (
                Reason::TargetRefused,
                Detail::Address([10, 0, 0, 7].into()),
                "HTTP/1.1 502 10.0.0.7:10250 (10.0.0.7) refused the connection (asked from node n1)\r\n",
            ),
            (
                Reason::ServerPolicy,
                Detail::Denial(Denial::Unnamed(Class::Node)),
                "HTTP/1.1 403 10.0.0.7:10250: no rule of the server's policy allows it (class node)\r\n",
            ),
            (
                Reason::ForbiddenAddress,
                Detail::Denial(Denial::Forbidden(Refusal::Metadata)),
                "HTTP/1.1 403 10.0.0.7:10250 is a cloud metadata address, which is never a target\r\n",
            ),
            (
                Reason::DialTimeout,
                Detail::None,
                "HTTP/1.1 504 agent n1 did not answer the dial to 10.0.0.7:10250 in time\r\n",
            ),
        ] {
            let bytes = of_dial(&error(reason, detail)).bytes();
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.starts_with(line), "{text}");
            assert!(text.contains("Connection: close\r\n"), "{text}");
            assert!(
                text.contains("Content-Type: text/plain; charset=utf-8\r\n"),
                "{text}"
            );
            let body = text.split_once("\r\n\r\n").map(|(_, body)| body.len());
            let length = format!("Content-Length: {}\r\n", body.unwrap());
            assert!(text.contains(&length), "{text}");
        }
    }

    #[test]
    fn every_reason_has_a_phrase_within_the_bound() {
        let long = [
            "a".repeat(63),
            "b".repeat(63),
            "c".repeat(63),
            "d".repeat(60),
        ]
        .join(".");
        for reason in Reason::ALL.iter().copied().chain([Reason::Unknown(60_000)]) {
            let mut error = error(reason, Detail::Address([0xfd; 16].into()));
            error.target = format!("{long}:65535").parse().unwrap();
            error.agent = Some(Through::Agent(long.parse().unwrap()));
            let answer = of_dial(&error);
            assert!((400..600).contains(&answer.status), "{reason}");
            assert!(
                !answer.phrase.is_empty() && answer.phrase.len() <= 200,
                "{reason}"
            );
            assert!(answer.phrase.bytes().all(|b| (b' '..=b'~').contains(&b)));
        }
    }

    #[test]
    fn hostile_text_cannot_break_the_line() {
        assert_eq!(clean("a\r\nX: y\u{e4}\0"), "a??X: y??");
        assert_eq!(clean(&"x".repeat(500)).len(), limits::REASON_PHRASE_BYTES);
    }

    #[test]
    fn spans_are_short() {
        for (seconds, text) in [(0, "0s"), (61, "1m1s"), (3_700, "1h1m"), (90_000, "1d1h")] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }
}
