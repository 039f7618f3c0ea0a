//! `towline-server kubelets`: what a running server knows of its kubelets, asked for over its
//! admin socket.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use towline_link::process::ask;
use towline_link::process::exit::Exit;

use super::Mode;
use super::report::Report;
use super::table::table;

/// Enforcing refuses kubelets that it finds, or would.
const REFUSED: u8 = 4;
/// Nothing would be refused, as far as is known; some kubelets could not be judged.
const UNKNOWN: u8 = 5;

const EXIT_CODES: &str = "\
Exit codes:
  0  every linked node's kubelet is verified: enforcing breaks nothing today
  1  the server could not be asked
  2  wrong command line
  4  enforcing refuses some kubelets, or would
  5  none would be refused, but some have not been judged yet or did not answer,
     no agent is linked, or the mode is off";

/// List every node's kubelet: verdict, cause, days left, key, what to do
#[derive(Clone, Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct KubeletsArgs {
    /// The server's --admin-socket
    #[arg(long, env = "TOWLINE_ADMIN_SOCKET", value_name = "PATH")]
    admin_socket: PathBuf,
    /// table or json
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    output: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    Table,
    Json,
}

/// Runs what was asked for.
pub fn run(args: &KubeletsArgs) -> ExitCode {
    let body = match ask::get(&args.admin_socket, "/kubelets") {
        Ok(body) => body,
        Err(error) => return failed(&error),
    };
    let report: Report = match serde_json::from_slice(&body) {
        Ok(report) => report,
        Err(error) => return failed(&error),
    };
    let text = match args.output {
        Form::Table => table(&report),
        Form::Json => match serde_json::to_string_pretty(&report) {
            Ok(text) => text + "\n",
            Err(error) => return failed(&error),
        },
    };
    if let Err(error) = ask::print(&text) {
        return failed(&error);
    }
    code(&report)
}

fn code(report: &Report) -> ExitCode {
    let summary = report.summary;
    if summary.would_be_refused > 0 {
        ExitCode::from(REFUSED)
    } else if summary.unknown > 0 || summary.linked == 0 || report.mode == Mode::Off.as_str() {
        ExitCode::from(UNKNOWN)
    } else {
        ExitCode::SUCCESS
    }
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("error: {error}");
    Exit::Runtime.into()
}
