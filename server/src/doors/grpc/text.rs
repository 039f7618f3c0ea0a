//! A refused dial in the words that Konnectivity's callers match on: those of Go's `net` package,
//! which its agent passes on, and its server's own two. What Go has no words for is said in ours.

use towline_proto::konnectivity::{DIAL_TIMED_OUT, NO_AGENT};
use towline_proto::reason::Reason;
use towline_proto::target::TargetError;

use super::super::status;
use crate::dial::DialError;

/// For a dial that did not open.
pub fn of_dial(error: &DialError) -> String {
    if let Some(said) = &error.said {
        // A legacy agent's own words, which are Go's already.
        return said.to_string();
    }
    let target = &error.target;
    let ours = || status::of_dial(error).phrase;
    let connect = |what: &str| format!("dial tcp {target}: connect: {what}");
    match error.reason {
        Reason::NoAgent | Reason::NoRoute => format!("{NO_AGENT}: {}", ours()),
        Reason::DialTimeout => DIAL_TIMED_OUT.to_owned(),
        Reason::TargetRefused => connect("connection refused"),
        Reason::TargetReset => connect("connection reset by peer"),
        Reason::TargetUnreachable => connect("no route to host"),
        Reason::TargetTimeout => format!("dial tcp {target}: i/o timeout"),
        Reason::NameNotFound => format!("dial tcp: lookup {}: no such host", target.host),
        Reason::LocalResources => format!("dial tcp {target}: socket: too many open files"),
        _ => format!("dial tcp {target}: {}", ours()),
    }
}

/// The same to the letter, for the compatibility profile: what we know beyond it is in the log.
pub fn exactly(error: &DialError) -> String {
    match error.reason {
        Reason::NoAgent | Reason::NoRoute => NO_AGENT.to_owned(),
        _ => of_dial(error),
    }
}

/// For an address that is none.
pub fn of_target(address: &str, error: &TargetError) -> String {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let short = |text: &str| -> String { text.chars().take(80).collect() };
    match error {
        TargetError::Empty | TargetError::NoPort(_) => {
            format!(
                "dial tcp: address {}: missing port in address",
                short(address)
            )
        }
        TargetError::Port(port) => format!("dial tcp: address {port}: invalid port"),
        TargetError::Brackets(_) => {
            format!(
                "dial tcp: address {}: too many colons in address",
                short(address)
            )
        }
        TargetError::Name(_) | TargetError::Ipv4Form(_) => {
            format!("dial tcp: lookup {}: no such host ({error})", short(host))
        }
        other => format!("dial tcp: address {}: {other}", short(address)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dial::Detail;
    use towline_proto::target::{Class, Target};

    #[test]
    fn callers_find_the_words_they_look_for() {
        for (reason, words) in [
            (Reason::NoAgent, "No agent available"),
            (Reason::NoRoute, "No agent available"),
            (Reason::DialTimeout, "timed out waiting for backend dial"),
            (Reason::TargetRefused, "connect: connection refused"),
            (Reason::TargetTimeout, "i/o timeout"),
            (Reason::TargetUnreachable, "no route to host"),
            (Reason::NameNotFound, "no such host"),
            (Reason::TargetReset, "connection reset by peer"),
            (Reason::LocalResources, "too many open files"),
        ] {
            let text = of_dial(&error(reason));
            assert!(text.contains(words), "{text}");
        }
    }

    fn error(reason: Reason) -> DialError {
        DialError {
            reason,
            target: "10.0.0.7:10250".parse().unwrap(),
            class: Some(Class::Kubelet),
            agent: None,
            detail: Detail::None,
            said: None,
        }
    }

    #[test]
    fn in_the_profile_nothing_stands_behind_its_words() {
        for reason in [Reason::NoAgent, Reason::NoRoute] {
            assert_eq!(exactly(&error(reason)), "No agent available");
            assert_ne!(of_dial(&error(reason)), "No agent available");
        }
        let timeout = "timed out waiting for backend dial";
        assert_eq!(exactly(&error(Reason::DialTimeout)), timeout);
    }

    #[test]
    fn a_bad_address_is_refused_as_go_does() {
        for (address, words) in [
            ("10.0.0.7", "missing port in address"),
            ("", "missing port in address"),
            ("10.0.0.7:99999", "address 99999: invalid port"),
            ("fd00::7:10250", "too many colons in address"),
            ("a b:1", "no such host"),
        ] {
            let error = address.parse::<Target>().unwrap_err();
            let text = of_target(address, &error);
            assert!(text.contains(words), "{text}");
        }
    }
}
