//! Answers to CONNECT as Konnectivity's proxy-server gives them, for the compatibility profile:
//! its status codes, and its texts as bodies.
//!
//! The reason phrase stays ours. Theirs are the standard ones, and the status line is the only
//! thing that kube-apiserver shows its user.

use towline_proto::konnectivity::{DIAL_TIMED_OUT, NO_AGENT};
use towline_proto::reason::Reason;
use towline_proto::target::TargetError;

use super::grpc::text;
use super::head::HeadError;
use super::status::{self, Answer, PLAIN};
use crate::dial::DialError;
use crate::konnectivity::DialFailure;

/// For a dial that did not open.
pub(super) fn of_dial(error: &DialError) -> Answer {
    let ours = status::of_dial(error);
    match DialFailure::of(error.reason) {
        // The one answer without a charset.
        DialFailure::NoAgent => Answer {
            kind: PLAIN,
            ..ours.with(500, format!("currently no tunnels available: {NO_AGENT}"))
        },
        DialFailure::BackendDialTimeout => {
            ours.with(504, format!("Backend dial timeout: {DIAL_TIMED_OUT}\r\n"))
        }
        // Its words for a stream that ended, or a link that is ending.
        DialFailure::BackendClose => ours.with(
            502,
            "Backend context error: context canceled\r\n".to_owned(),
        ),
        _ => {
            let status = status_of(error).unwrap_or(ours.status);
            ours.with(status, text::of_dial(error))
        }
    }
}

/// Konnectivity sorts by the agent's words; what they mean was found out where they came in. `None`
/// where it has no such refusal.
fn status_of(error: &DialError) -> Option<u16> {
    match error.reason {
        Reason::TargetTimeout => Some(504),
        Reason::AgentBusy | Reason::LocalResources => Some(503),
        Reason::BadTarget => Some(502),
        _ => error.said.is_some().then_some(502),
    }
}

/// For a request that is none.
pub(super) fn of_head(error: &HeadError) -> Answer {
    let ours = status::of_head(error);
    match error {
        HeadError::Method(_) => {
            let body = "this proxy only supports CONNECT passthrough\n";
            ours.with(405, body.to_owned())
        }
        // There the agent finds out.
        HeadError::Target(why) => match why {
            TargetError::Empty => ours.with(502, text::of_target("", why)),
            TargetError::NoPort(text) | TargetError::Port(text) => {
                ours.with(502, text::of_target(text, why))
            }
            _ => ours,
        },
        _ => ours,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dial::Detail;
    use crate::legacy::error::DialFailure as Said;

    fn error(reason: Reason, said: Option<&str>) -> DialError {
        DialError {
            reason,
            target: "10.0.0.7:1".parse().unwrap(),
            class: None,
            agent: None,
            detail: Detail::None,
            said: said.map(Into::into),
        }
    }

    fn text(answer: &Answer) -> String {
        String::from_utf8(answer.bytes()).unwrap()
    }

    #[test]
    fn what_konnectivity_says_of_itself_is_said_in_its_words() {
        for (reason, status, kind, body) in [
            (
                Reason::NoAgent,
                500,
                "text/plain",
                "currently no tunnels available: No agent available",
            ),
            (
                Reason::NoRoute,
                500,
                "text/plain",
                "currently no tunnels available: No agent available",
            ),
            (
                Reason::LinkLost,
                502,
                "text/plain; charset=utf-8",
                "Backend context error: context canceled\r\n",
            ),
            (
                Reason::DialTimeout,
                504,
                "text/plain; charset=utf-8",
                "Backend dial timeout: timed out waiting for backend dial\r\n",
            ),
        ] {
            let answer = text(&of_dial(&error(reason, None)));
            let (head, said) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
            assert!(
                head.contains(&format!("\r\nContent-Type: {kind}\r\n")),
                "{head}"
            );
            assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())));
            assert_eq!(said, body);
        }
    }

    #[test]
    fn words_of_an_agent_have_the_status_that_they_have_there() {
        for (words, status) in [
            ("dial tcp 10.0.0.7:1: i/o timeout", 504),
            ("context deadline exceeded", 504),
            ("dial tcp 10.0.0.7:1: socket: too many open files", 503),
            ("dial tcp 10.0.0.7:1: connect: connection refused", 502),
            ("dial tcp 10.0.0.7:1: connect: permission denied", 502),
            ("dial tcp: address 99999: invalid port", 502),
            ("dial tcp: address x: missing port in address", 502),
            ("something new", 502),
        ] {
            let said = Said::said(words);
            let answer = of_dial(&error(said.reason, said.said.as_deref()));
            assert_eq!(answer.status, status, "{words}");
            assert!(
                text(&answer).ends_with(&format!("\r\n\r\n{words}")),
                "{words}"
            );
        }
        // What a verified agent says by number is said as Go would.
        let answer = of_dial(&error(Reason::TargetTimeout, None));
        assert_eq!(answer.status, 504);
        assert!(text(&answer).ends_with("\r\n\r\ndial tcp 10.0.0.7:1: i/o timeout"));
        // And what Konnectivity never refuses keeps its own number.
        assert_eq!(of_dial(&error(Reason::ServerPolicy, None)).status, 403);
    }

    #[test]
    fn requests_that_are_none_have_their_answers() {
        let answer = of_head(&HeadError::Method("GET".to_owned()));
        assert_eq!(answer.status, 405);
        let said = "\r\n\r\nthis proxy only supports CONNECT passthrough\n";
        assert!(text(&answer).ends_with(said));
        for (target, words) in [
            (
                "10.0.0.7",
                "dial tcp: address 10.0.0.7: missing port in address",
            ),
            ("a:99999", "dial tcp: address 99999: invalid port"),
        ] {
            let why = target.parse::<towline_proto::target::Target>().unwrap_err();
            let answer = of_head(&HeadError::Target(why));
            assert_eq!(answer.status, 502, "{target}");
            assert!(
                text(&answer).ends_with(&format!("\r\n\r\n{words}")),
                "{target}"
            );
        }
        assert_eq!(of_head(&HeadError::TooLarge).status, 431);
    }
}
