//! `towline-pki`: makes, signs and checks the certificates of one cluster. Offline; no server.
//!
//! Exit codes: 0 done, 1 failed or not verified, 2 wrong usage, 3 a file is not what it must be.

use std::process::ExitCode;
use std::time::SystemTime;

use clap::{Parser, Subcommand};

mod command;

/// Mint and check what a Towline cluster needs: authorities, certificates, identities.
///
/// Start with `towline-pki init DIR --cluster NAME`. Every verb has examples: `towline-pki issue
/// --help`.
#[derive(Parser)]
#[command(name = "towline-pki", version, after_help = command::EXIT_CODES)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Init(command::init::Args),
    Issue(command::issue::Args),
    Request(command::request::Args),
    Sign(command::sign::Args),
    Inspect(command::inspect::Args),
    Verify(command::verify::Args),
    Status(command::status::Args),
    Lint(command::lint::Args),
    NeedsRenewal(command::needs_renewal::Args),
    Renew(command::renew::Args),
    AuditKey(command::audit_key::Args),
    GatewayIssuer(command::gateway_issuer::Args),
    KubeletClient(command::kubelet_client::Args),
}

fn main() -> ExitCode {
    // clap ends the process itself: 0 for help and version, 2 for wrong usage.
    let args = Args::parse();
    let now = SystemTime::now();
    let result = match args.verb {
        Verb::Init(args) => command::init::run(&args, now),
        Verb::Issue(args) => command::issue::run(&args, now),
        Verb::Request(args) => command::request::run(&args),
        Verb::Sign(args) => command::sign::run(&args, now),
        Verb::Inspect(args) => command::inspect::run(&args, now),
        Verb::Verify(args) => command::verify::run(&args, now),
        Verb::Status(args) => command::status::run(&args, now),
        Verb::Lint(args) => command::lint::run(&args),
        Verb::NeedsRenewal(args) => command::needs_renewal::run(&args, now),
        Verb::Renew(args) => command::renew::run(&args, now),
        Verb::AuditKey(args) => command::audit_key::run(&args),
        Verb::GatewayIssuer(args) => command::gateway_issuer::run(&args, now),
        Verb::KubeletClient(args) => command::kubelet_client::run(&args, now),
    };
    match result {
        Ok(output) => command::print(&output),
        Err(failure) => {
            if let Some(output) = &failure.output {
                let _ = command::print(output);
            }
            eprintln!("towline-pki: {failure}");
            ExitCode::from(failure.code())
        }
    }
}
