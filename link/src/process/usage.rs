//! What comes before a command line is read, and how one that clap does not take ends the process.
//!
//! Konnectivity's programs end with 1 for every failure, and who watches them knows no other
//! number. So does the compatibility profile, which here can only be seen in the words themselves.

use std::ffi::{OsStr, OsString};

use clap::builder::Resettable;
use clap::error::ErrorKind;

use super::exit::Exit;

/// Flags, without the variables that are none of ours: for a Service `towline-server` Kubernetes
/// puts `TOWLINE_SERVER_PORT=tcp://10.96.1.2:8091` into every container of the namespace, and so for
/// each Service whose name and `-port` make a flag.
pub fn without_service_links(
    command: clap::Command,
    environment: impl Fn(&OsStr) -> Option<OsString>,
) -> clap::Command {
    command.mut_args(|arg| {
        let value = arg.get_env().and_then(&environment);
        match value.is_some_and(|value| is_service_link(&value)) {
            true => arg.env(Resettable::Reset),
            false => arg,
        }
    })
}

fn is_service_link(value: &OsStr) -> bool {
    let value = value.to_string_lossy();
    ["tcp://", "udp://", "sctp://"]
        .iter()
        .any(|scheme| value.starts_with(scheme))
}

/// Prints what clap has to say and ends the process: help and version with success.
pub fn refuse(error: &clap::Error, compatible: bool) -> ! {
    // Nobody has to read it: the exit code says it, too.
    let _ = error.print();
    std::process::exit(i32::from(code(error, compatible).code()))
}

fn code(error: &clap::Error, compatible: bool) -> Exit {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Success,
        _ if compatible => Exit::Runtime,
        _ => Exit::Usage,
    }
}

/// Whether these words, or the environment, ask for the compatibility profile.
pub fn is_compatible(words: impl Iterator<Item = OsString>, environment: Option<&OsStr>) -> bool {
    let flag = |word: OsString| {
        let word = word.to_string_lossy().into_owned();
        word == "--compatibility" || word.starts_with("--compatibility=")
    };
    environment.is_some_and(|value| !value.is_empty()) || words.into_iter().any(flag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    #[command(version)]
    struct Program {}

    #[test]
    fn a_service_link_is_known_by_its_scheme() {
        assert!(is_service_link(OsStr::new("tcp://10.96.1.2:8091")));
        assert!(is_service_link(OsStr::new("udp://[fd00::1]:8091")));
        for ours in ["8090", "http://proxy:3128", "cp.example:8091", ""] {
            assert!(!is_service_link(OsStr::new(ours)), "{ours}");
        }
    }

    #[test]
    fn every_failure_is_one_in_the_profile_and_usage_elsewhere() {
        for (flag, plain, compatible) in [
            ("--help", Exit::Success, Exit::Success),
            ("--version", Exit::Success, Exit::Success),
            ("--no-such-flag", Exit::Usage, Exit::Runtime),
        ] {
            let error = Program::try_parse_from(["p", flag]).expect_err(flag);
            assert_eq!(
                (code(&error, false), code(&error, true)),
                (plain, compatible),
                "{flag}"
            );
        }
    }

    #[test]
    fn the_profile_is_seen_in_words_that_clap_does_not_take() {
        let asked = |words: &[&str]| is_compatible(words.iter().map(OsString::from), None);
        assert!(asked(&["--x", "--compatibility=konnectivity"]));
        assert!(asked(&["--compatibility", "nonsense"]));
        assert!(!asked(&["--compatible", "compatibility"]));
        assert!(is_compatible(
            std::iter::empty(),
            Some(OsStr::new("konnectivity"))
        ));
        assert!(!is_compatible(std::iter::empty(), Some(OsStr::new(""))));
    }
}
