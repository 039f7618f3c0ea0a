//! `status`: every certificate in a place, how long it lives, and an exit code by threshold.

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use towline_pki::survey::{Found, Survey, SurveyError, survey};
use towline_pki::{Certificate, date};

use super::answer::{self, Answer};
use super::{EXIT_CODES, Failure, ask};

const EXAMPLES: &str = "\
Examples:
  towline-pki status /etc/kubernetes/pki
  towline-pki status /etc/kubernetes/admin.conf secret.yaml --days 14
  towline-pki status control-plane.example:6443 -o json

Exit code 1 when something has ended, is not yet valid, or ends within --days; 3 when something is
damaged and nothing ends.";

/// Show every certificate and authority in files, directories and at TLS servers, with the days
/// that are left. Who made them does not matter.
///
/// A place is a PEM file, a kubeconfig, a manifest with Secrets or ConfigMaps, a directory with
/// any of them, or HOST:PORT. A server is asked for its certificate and nothing else: nothing is
/// verified, and no byte but the handshake's first is sent to it.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Args {
    /// Files, directories, or HOST:PORT
    #[arg(required = true, value_name = "PLACE")]
    places: Vec<String>,
    /// What ends within so many days is worth exit code 1
    #[arg(long, value_name = "DAYS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=36_500))]
    days: u64,
}

const DAY: u64 = 86_400;

/// How a certificate stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Good,
    Ends,
    NotYet,
    Ended,
}

impl State {
    fn of(certificate: &Certificate, now: SystemTime, within: Duration) -> Self {
        let soon = now.checked_add(within).unwrap_or(now);
        if now < certificate.not_before {
            State::NotYet
        } else if !certificate.is_current(now) {
            State::Ended
        } else if certificate.not_after < soon {
            State::Ends
        } else {
            State::Good
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            State::Good => "valid",
            State::Ends => "ends-soon",
            State::NotYet => "not-yet-valid",
            State::Ended => "expired",
        }
    }
}

pub(crate) fn run(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    let all = look(&args.places)?;
    let within = Duration::from_secs(args.days * DAY);
    let state = |found: &Found| State::of(&found.certificate, now, within);
    let mut rows: Vec<&Found> = all.found.iter().collect();
    rows.sort_by_key(|found| found.certificate.not_after);
    let bad = rows.iter().filter(|found| state(found) != State::Good);
    let bad = bad.count();
    let text = as_table(&rows, now, &state);
    let answer = Answer::new(text, as_json(&all, &rows, now, &state));
    if bad > 0 {
        let of = match bad {
            1 => "1 certificate has ended, is not yet valid, or ends",
            _ => "certificates have ended, are not yet valid, or end",
        };
        let count = if bad == 1 {
            String::new()
        } else {
            format!("{bad} ")
        };
        let message = format!("{count}{of} within {} days", args.days);
        return Err(Failure::failed(message).with_answer(answer));
    }
    match all.damaged.first() {
        Some(damage) => Err(Failure::file(damage).with_answer(answer)),
        None => Ok(answer),
    }
}

/// Everything in these places. One that is no file is taken for a server's address.
pub(crate) fn look(places: &[String]) -> Result<Survey, Failure> {
    let mut all = Survey::default();
    for place in places {
        let path = Path::new(place);
        if path.symlink_metadata().is_err()
            && let Ok(target) = place.parse()
        {
            let chain = ask::certificates(&target)
                .map_err(|error| Failure::failed(format!("{place}: {error}")))?;
            all.take(place, chain);
            continue;
        }
        let one = survey(path).map_err(|error| match error {
            SurveyError::Store(error) => Failure::from(error),
            nothing => Failure::file(nothing),
        })?;
        all.found.extend(one.found);
        all.damaged.extend(one.damaged);
    }
    Ok(all)
}

/// Whom a certificate is for, in few words.
pub(crate) fn subject(certificate: &Certificate) -> String {
    if let Ok(identity) = certificate.identity() {
        return format!(
            "{} {} of {}",
            identity.role, identity.name, identity.cluster
        );
    }
    match certificate.common_names.as_deref() {
        Some([name]) => name.clone(),
        _ => certificate.subject.clone(),
    }
}

fn as_table(rows: &[&Found], now: SystemTime, state: &dyn Fn(&Found) -> State) -> String {
    let mut lines = vec![["ENDS", "LEFT", "STATE", "KIND", "SUBJECT", "PLACE"].map(String::from)];
    for found in rows {
        let certificate = &found.certificate;
        let kind = match certificate.is_authority {
            true => "authority",
            false => "leaf",
        };
        lines.push([
            date::text(certificate.not_after),
            date::distance(now, certificate.not_after),
            state(found).as_str().to_owned(),
            kind.to_owned(),
            subject(certificate),
            found.place.clone(),
        ]);
    }
    table(&lines)
}

/// Columns side by side; the last one as it is.
pub(crate) fn table<const N: usize>(lines: &[[String; N]]) -> String {
    let width = |column: usize| {
        let widths = lines.iter().map(|line| line[column].chars().count());
        widths.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut out = String::new();
    for line in lines {
        for (column, text) in line.iter().enumerate() {
            if column + 1 == N {
                let _ = writeln!(out, "{text}");
            } else {
                let _ = write!(out, "{text:width$}  ", width = widths[column]);
            }
        }
    }
    out
}

fn as_json(
    all: &Survey,
    rows: &[&Found],
    now: SystemTime,
    state: &dyn Fn(&Found) -> State,
) -> Value {
    let one = |found: &&Found| {
        let mut value = answer::certificate(&found.certificate, now);
        value["place"] = found.place.clone().into();
        value["state"] = state(found).as_str().into();
        value
    };
    let certificates: Vec<Value> = rows.iter().map(one).collect();
    json!({ "certificates": certificates, "damaged": damaged(all) })
}

/// What cannot be read, in every answer that looks at places.
pub(crate) fn damaged(all: &Survey) -> Value {
    let damaged = all.damaged.iter();
    damaged
        .map(|damage| json!({ "place": damage.place, "cause": damage.cause }))
        .collect()
}
