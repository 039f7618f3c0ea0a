//! `needs-renewal`: a question for scripts, answered by the exit code.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde_json::json;
use towline_pki::{Certificate, date, store};

use super::Failure;
use super::answer::{self, Answer};

const EXAMPLES: &str = "\
Examples:
  towline-pki needs-renewal agent-node-7.crt && towline-pki renew agent-node-7.crt --dir /secure/prod
  towline-pki needs-renewal server-cp-1.crt --days 30

Exit codes: 0 renew it now, 1 not yet, 2 wrong usage, 3 a file is not what it must be.";

/// Whether a certificate is due: two thirds of its life are over, or what --days says. One that has
/// ended is due.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// File with the certificate (PEM); the first one counts
    file: PathBuf,
    /// Due when fewer than so many days are left, instead of a third of its life
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(0..=36_500))]
    days: Option<u64>,
}

pub(crate) fn run(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    let der = store::read_certificates(&args.file)?.swap_remove(0);
    let certificate = Certificate::parse(der.as_ref())
        .map_err(|error| Failure::file(format!("{}: {error}", args.file.display())))?;
    let due = due(&certificate, args.days);
    let file = args.file.display();
    let end = format!(
        "it ends {} ({})",
        date::text(certificate.not_after),
        date::distance(now, certificate.not_after)
    );
    let result = json!({
        "due": now >= due,
        "dueAt": date::text(due),
        "certificates": [answer::certificate(&certificate, now)],
    });
    if now >= due {
        let text = format!("{file}: renew it now; {end}\n");
        Ok(Answer::new(text, result))
    } else {
        let when = date::text(due);
        let failure = Failure::failed(format!("{file}: not before {when}; {end}"));
        Err(failure.with_answer(Answer::new(String::new(), result)))
    }
}

/// When a certificate should be renewed.
fn due(certificate: &Certificate, days: Option<u64>) -> SystemTime {
    let (begin, end) = (certificate.not_before, certificate.not_after);
    let life = end.duration_since(begin).unwrap_or_default();
    let ahead = match days {
        Some(days) => Duration::from_secs(days * 86_400),
        None => life / 3,
    };
    end.checked_sub(ahead).unwrap_or(begin)
}
