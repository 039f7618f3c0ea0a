//! `towline-server audit verify`: the proof over files, in the order of the chain.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use towline_pki::SealPublic;
use towline_proto::limits;

use super::chain::{Head, Link};
use super::report::{self, Checked, EXIT_CODES};
use super::verify::{Fault, Verifier, Wanted};

/// Look into the audit trail
#[derive(Clone, Debug, Args)]
pub struct AuditArgs {
    #[command(subcommand)]
    verb: AuditVerb,
}

#[derive(Clone, Debug, Subcommand)]
enum AuditVerb {
    Verify(VerifyArgs),
}

const EXAMPLES: &str = "\
Examples:
  towline-server audit verify /var/log/towline/audit.log* --key audit.pub
  towline-server audit verify audit.log --key audit.pub --expect-head 4711:HASH
The server's log has a head in every line `audit checkpoint`.";

/// Prove that the lines of an audit trail are as they were written
///
/// Everything up to the last signed checkpoint is proven. Files may be given in any order.
#[derive(Clone, Debug, Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
struct VerifyArgs {
    /// The files of one trail, in any order; `-` reads standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Public key that checkpoints are signed with (PEM); repeat it after a change of keys
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    /// A head that the server's log had: it must be in the trail
    #[arg(long, value_name = "SEQ:HASH")]
    expect_head: Option<Head>,
    /// text or json
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    output: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    Text,
    Json,
}

/// Runs what was asked for.
pub fn run(args: &AuditArgs) -> ExitCode {
    let AuditVerb::Verify(args) = &args.verb;
    let mut wanted = Wanted {
        head: args.expect_head,
        ..Wanted::default()
    };
    for path in &args.key {
        match SealPublic::load(path) {
            Ok(key) => wanted.keys.push(key),
            Err(error) => return fail(3, &error),
        }
    }
    let checked = Checked {
        signatures: !wanted.keys.is_empty(),
        head: wanted.head.is_some(),
    };
    let mut verifier = Verifier::new(wanted);
    let read = in_order(&args.files).and_then(|files| prove(&mut verifier, &files));
    let fault = match read {
        Ok(()) => None,
        Err(Failure::Fault(fault)) => Some(fault),
        Err(Failure::Read(path, error)) => {
            return fail(1, &format!("{}: {error}", path.display()));
        }
    };
    let (findings, fault) = match fault {
        Some(fault) => (verifier.findings().clone(), Some(fault)),
        None => {
            let (findings, end) = verifier.finish();
            (findings, end.err())
        }
    };
    let text = match args.output {
        Form::Text => report::text(&findings, fault.as_ref(), checked),
        Form::Json => report::json(&findings, fault.as_ref(), checked),
    };
    let printed = io::stdout().lock().write_all(text.as_bytes());
    match (fault, printed) {
        (Some(fault), _) => ExitCode::from(fault.kind.exit_code()),
        (None, Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => fail(1, &error),
        (None, _) => ExitCode::SUCCESS,
    }
}

enum Failure {
    Fault(Fault),
    Read(PathBuf, io::Error),
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(code)
}

/// Sorted by the number of the first record; files without one stay where they were given, and
/// empty ones (the lock beside a trail) are left out.
fn in_order(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for path in paths {
        let first = if is_stdin(path) {
            Some(None)
        } else {
            first_number(path).map_err(|error| Failure::Read(path.clone(), error))?
        };
        if let Some(first) = first {
            files.push((first, path.clone()));
        }
    }
    let all_known = files.iter().all(|(first, _)| first.is_some());
    if all_known {
        files.sort_by_key(|(first, _)| *first);
    }
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// `None` for an empty file, `Some(None)` for one that does not begin with records.
fn first_number(path: &Path) -> io::Result<Option<Option<u64>>> {
    let mut file = File::open(path)?.take(4 * limits::AUDIT_LINE_BYTES as u64);
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
    Ok(Some(lines.find_map(Link::read).map(|link| link.seq)))
}

fn prove(verifier: &mut Verifier, files: &[PathBuf]) -> Result<(), Failure> {
    let mut buffer = vec![0; 256 * 1024];
    for path in files {
        let failed = |error| Failure::Read(path.clone(), error);
        let mut input: Box<dyn Read> = if is_stdin(path) {
            Box::new(io::stdin().lock())
        } else {
            Box::new(File::open(path).map_err(failed)?)
        };
        let shown = path.display().to_string();
        let shown: String = shown.chars().filter(|c| !c.is_control()).collect();
        verifier.file(&shown).map_err(Failure::Fault)?;
        loop {
            match input.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => verifier.push(&buffer[..read]).map_err(Failure::Fault)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }
    Ok(())
}
