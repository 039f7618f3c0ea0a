//! `towline-pki`: makes, signs and checks the certificates of one cluster. Offline; no server.
//!
//! Exit codes: 0 done, 1 failed or not verified, 2 wrong usage, 3 a file is not what it must be.

use std::process::ExitCode;
use std::time::SystemTime;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

mod command;

use command::answer::{self, Form};

/// Mint and check what a Towline cluster needs: authorities, certificates, identities.
///
/// Start with `towline-pki init DIR --cluster NAME`. Every verb has examples: `towline-pki issue
/// --help`.
#[derive(Parser)]
#[command(name = "towline-pki", version, after_help = command::EXIT_CODES)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
    /// Form of the answer on standard output; what went wrong is told on standard error all the same
    #[arg(
        short,
        long,
        value_name = "FORM",
        default_value = "human",
        global = true
    )]
    output: Form,
}

#[derive(Subcommand)]
enum Verb {
    Init(command::init::Args),
    Apply(command::apply::Args),
    Issue(command::issue::Args),
    Request(command::request::Args),
    Sign(command::sign::Args),
    SignIssuer(command::sign_issuer::Args),
    Accept(command::accept::Args),
    Inspect(command::inspect::Args),
    Verify(command::verify::Args),
    Status(command::status::Args),
    Lint(command::lint::Args),
    NeedsRenewal(command::needs_renewal::Args),
    Renew(command::renew::Args),
    Export(command::export::Args),
    Rotate(command::rotate::Args),
    Revoke(command::revoke::Args),
    Crl(command::crl::Args),
    AuditKey(command::audit_key::Args),
    GatewayIssuer(command::gateway_issuer::Args),
    KubeletClient(command::kubelet_client::Args),
    Token(command::token::Args),
}

fn main() -> ExitCode {
    // clap ends the process itself: 0 for help and version, 2 for wrong usage.
    let matches = Args::command().get_matches();
    let args = Args::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let now = SystemTime::now();
    let result = match args.verb {
        Verb::Init(args) => answer::of(command::init::run(&args, now)),
        Verb::Apply(args) => answer::of(command::apply::run(&args, now)),
        Verb::Issue(args) => answer::of(command::issue::run(&args, now)),
        Verb::Request(args) => answer::of(command::request::run(&args)),
        Verb::Sign(args) => answer::of(command::sign::run(&args, now)),
        Verb::SignIssuer(args) => answer::of(command::sign_issuer::run(&args, now)),
        Verb::Accept(args) => answer::of(command::accept::run(&args, now)),
        Verb::Inspect(args) => answer::of(command::inspect::run(&args, now)),
        Verb::Verify(args) => answer::of(command::verify::run(&args, now)),
        Verb::Status(args) => answer::of(command::status::run(&args, now)),
        Verb::Lint(args) => answer::of(command::lint::run(&args)),
        Verb::NeedsRenewal(args) => answer::of(command::needs_renewal::run(&args, now)),
        Verb::Renew(args) => answer::of(command::renew::run(&args, now)),
        Verb::Export(args) => answer::of(command::export::run(&args, now)),
        Verb::Rotate(args) => answer::of(command::rotate::run(&args, now)),
        Verb::Revoke(args) => answer::of(command::revoke::run(&args, now)),
        Verb::Crl(args) => answer::of(command::crl::run(&args, now)),
        Verb::AuditKey(args) => answer::of(command::audit_key::run(&args)),
        Verb::GatewayIssuer(args) => answer::of(command::gateway_issuer::run(&args, now)),
        Verb::KubeletClient(args) => answer::of(command::kubelet_client::run(&args, now)),
        Verb::Token(args) => answer::of(command::token::run(&args, now)),
    };
    answer::print(&verb_of(&matches), args.output, result)
}

/// For example "issue", or "rotate prepare".
fn verb_of(matches: &ArgMatches) -> String {
    let mut words = Vec::new();
    let mut level = matches;
    while let Some((word, below)) = level.subcommand() {
        words.push(word);
        level = below;
    }
    words.join(" ")
}
