//! Why a legacy agent gave no connection.
//!
//! Konnectivity says everything by text, which is part of what its users know: the text travels
//! on unchanged. For our own metrics and status codes it is sorted into a [`Reason`] here, at the
//! edge, and nowhere else.

use towline_proto::reason::Reason;

/// A dial that a legacy agent did not open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DialFailure {
    /// Sorted.
    pub reason: Reason,
    /// The agent's own words.
    pub said: Option<Box<str>>,
    /// Whether the agent may have seen the request.
    pub reached: bool,
}

impl DialFailure {
    /// A failure without words.
    pub const fn new(reason: Reason, reached: bool) -> Self {
        Self {
            reason,
            said: None,
            reached,
        }
    }

    /// What an agent said, escaped.
    pub fn said(text: &str) -> Self {
        Self {
            reason: sort(text),
            said: Some(printable(text).into()),
            reached: true,
        }
    }
}

fn printable(text: &str) -> String {
    let show = |c: char| if c.is_control() { '?' } else { c };
    text.chars().map(show).collect()
}

/// Texts of Go's net package and what they mean, the first that is contained decides.
const TEXTS: [(&str, Reason); 11] = [
    ("timeout", Reason::TargetTimeout),
    ("deadline exceeded", Reason::TargetTimeout),
    ("too many open files", Reason::AgentBusy),
    ("connection refused", Reason::TargetRefused),
    ("no such host", Reason::NameNotFound),
    ("unreachable", Reason::TargetUnreachable),
    ("no route to host", Reason::TargetUnreachable),
    ("connection reset", Reason::TargetReset),
    ("missing port", Reason::BadTarget),
    ("invalid port", Reason::BadTarget),
    ("permission denied", Reason::AgentPolicy),
];

fn sort(text: &str) -> Reason {
    let text = text.to_ascii_lowercase();
    let found = TEXTS.iter().find(|(part, _)| text.contains(part));
    found.map_or(Reason::TargetUnreachable, |(_, reason)| *reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_go_are_sorted_and_kept() {
        for (text, reason) in [
            (
                "dial tcp 10.0.0.7:1: connect: connection refused",
                Reason::TargetRefused,
            ),
            ("dial tcp 10.0.0.7:1: i/o timeout", Reason::TargetTimeout),
            (
                "dial tcp: lookup x on 10.96.0.10:53: no such host",
                Reason::NameNotFound,
            ),
            ("connect: network is unreachable", Reason::TargetUnreachable),
            ("something new", Reason::TargetUnreachable),
        ] {
            let failure = DialFailure::said(text);
            assert_eq!(failure.reason, reason, "{text}");
            assert_eq!(failure.said.as_deref(), Some(text));
        }
        let hostile = DialFailure::said("a\r\nb\u{1b}[31m");
        assert_eq!(hostile.said.as_deref(), Some("a??b?[31m"));
    }
}
