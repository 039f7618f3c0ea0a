//! The verbs of `towline-server` beside the daemon itself: questions about files and about a
//! running server. A word behind the program's name chooses one; flags alone are the daemon.

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use towline_link::process::usage;

use crate::args;
use crate::attest::command as kubelets;
use crate::audit::command as audit;
use crate::compat::doctor;
use crate::doors::command as dial;
use crate::policy::command as policy;

#[derive(Debug, Parser)]
#[command(name = "towline-server", version, max_term_width = 100)]
struct Verbs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Audit(audit::AuditArgs),
    Dial(dial::DialArgs),
    Doctor(doctor::DoctorArgs),
    Kubelets(kubelets::KubeletsArgs),
    Policy(policy::PolicyArgs),
}

impl Verb {
    fn run(self) -> ExitCode {
        match self {
            Verb::Audit(args) => audit::run(&args),
            Verb::Dial(args) => dial::run(&args),
            Verb::Doctor(args) => doctor::run(&args),
            Verb::Kubelets(args) => kubelets::run(&args),
            Verb::Policy(args) => policy::run(&args),
        }
    }
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Asked {
    /// The server itself.
    Daemon(Box<args::Args>),
    /// A verb ran and this is its exit code.
    Answered(ExitCode),
}

/// Reads the command line; ends the process where clap does (help, version, wrong usage).
/// `environment` is asked for the variables of flags.
pub fn ask(environment: impl Fn(&OsStr) -> Option<OsString>) -> Asked {
    let verbs = Verbs::command();
    let first = std::env::args_os().nth(1);
    if first.is_some_and(|word| names(&verbs).any(|name| OsStr::new(name) == word)) {
        return Asked::Answered(Verbs::parse().verb.run());
    }
    let read = usage::without_service_links(daemon(), &environment).try_get_matches();
    match read.and_then(|matches| args::Args::from_arg_matches(&matches)) {
        Ok(args) => Asked::Daemon(Box::new(args)),
        Err(error) => {
            let words = std::env::args_os().skip(1);
            let asked = environment(OsStr::new("TOWLINE_COMPATIBILITY"));
            usage::refuse(&error, usage::is_compatible(words, asked.as_deref()))
        }
    }
}

/// The daemon's flags, with a word about the verbs in the help.
fn daemon() -> clap::Command {
    let verbs = Verbs::command();
    let mut help = String::from("Verbs (towline-server VERB --help):");
    for verb in verbs.get_subcommands() {
        let about = verb.get_about().map(ToString::to_string);
        help.push_str(&format!(
            "\n  {:<10} {}",
            verb.get_name(),
            about.unwrap_or_default()
        ));
    }
    args::Args::command().after_help(help)
}

fn names(verbs: &clap::Command) -> impl Iterator<Item = &str> {
    verbs.get_subcommands().map(clap::Command::get_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_is_told_in_the_help_of_the_daemon() {
        let verbs = Verbs::command();
        verbs.clone().debug_assert();
        let help = daemon().render_long_help().to_string();
        for name in names(&verbs) {
            assert!(help.contains(&format!("  {name} ")), "{name}: {help}");
        }
    }
}
