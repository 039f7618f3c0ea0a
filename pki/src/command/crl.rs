//! `crl`: revocation lists are shown, signed anew and checked.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::Subcommand;
use serde_json::{Value, json};
use towline_pki::crl::{List, RevocationListError};
use towline_pki::{Certificate, date, store};

use super::answer::{self, Answer};
use super::book::Book;
use super::deny::DenyFile;
use super::lists::Signed;
use super::source::Source;
use super::{EXIT_CODES, Failure};

/// Days from one list to the next.
pub(crate) const DAYS: u64 = 30;

const EXAMPLES: &str = "\
Examples:
  towline-pki crl renew --dir /secure/prod              # also makes the first ones, which are empty
  towline-pki crl renew --dir /secure/prod --if-due     # from a timer: only from half-life on
  towline-pki crl show --dir /secure/prod
  towline-pki crl verify --dir /secure/prod             # exit code 1 from half-life on
  towline-pki crl verify agents.crl --trust agents.pem";

/// Show, renew or check revocation lists.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Show(Show),
    Renew(Renew),
    Verify(Verify),
}

/// What lists say: issuer, number, times, what is revoked and why.
#[derive(clap::Args)]
struct Show {
    /// Files with lists (PEM); without any, those of the cluster
    files: Vec<PathBuf>,
    #[command(flatten)]
    source: Source,
}

/// Sign the cluster's lists anew, with a higher number and a later end. What has ended is left out.
/// The first time it makes an empty deny list, too.
#[derive(clap::Args)]
struct Renew {
    /// Days until the list needs a successor
    #[arg(long, value_name = "DAYS", default_value_t = DAYS, value_parser = clap::value_parser!(u64).range(1..=3_650))]
    days: u64,
    /// Leave a list alone that has more than half of its life before it
    #[arg(long)]
    if_due: bool,
    #[command(flatten)]
    source: Source,
}

/// Check signature and age. Fails from half of a list's life on, so that a timer notices in time.
#[derive(clap::Args)]
struct Verify {
    /// File with lists (PEM); without one, those of the cluster
    #[arg(requires = "trust")]
    file: Option<PathBuf>,
    /// Certificates of the authorities whose lists they must be (PEM)
    #[arg(long, value_name = "FILE", requires = "file")]
    trust: Option<PathBuf>,
    #[command(flatten)]
    source: Source,
}

pub(crate) fn run(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    match &args.verb {
        Verb::Show(args) => show(args, now),
        Verb::Renew(args) => renew(args, now),
        Verb::Verify(args) => verify(args, now),
    }
}

impl From<RevocationListError> for Failure {
    fn from(error: RevocationListError) -> Self {
        match error {
            RevocationListError::Store(error) => error.into(),
            other => Self::file(other),
        }
    }
}

fn show(args: &Show, now: SystemTime) -> Result<Answer, Failure> {
    let book = Book::of(&args.source);
    let files = match args.files.as_slice() {
        [] => book
            .groups()
            .iter()
            .map(|group| book.list(*group))
            .collect(),
        given => given.to_vec(),
    };
    let lines = match args.files.is_empty() {
        true => book.lines()?,
        false => Vec::new(),
    };
    let name = |serial: &str| {
        let revoked = lines.iter().filter_map(|line| line.revoked.as_ref());
        let mut of = revoked.filter(|entry| entry.serial == serial);
        of.find_map(|entry| entry.identity.clone())
    };
    let (mut text, mut found) = (String::new(), Vec::new());
    for path in &files {
        for list in load(path, args.files.is_empty())? {
            text.push_str(&head(path, &list, now));
            let mut entries = Vec::new();
            for entry in list.entries() {
                let serial = entry.serial.to_string();
                let identity = name(&serial);
                let at = date::text(entry.at);
                let shown = identity.as_deref().unwrap_or_default();
                text.push_str(&format!("  {serial}  {at}  {}  {shown}\n", entry.reason));
                entries.push(json!({
                    "serial": serial,
                    "at": at,
                    "reason": entry.reason.to_string(),
                    "identity": identity,
                }));
            }
            found.push(describe(path, &list, now, Some(entries)));
        }
    }
    Ok(Answer::new(text, json!({ "lists": found })))
}

fn renew(args: &Renew, now: SystemTime) -> Result<Answer, Failure> {
    let book = Book::of(&args.source);
    let _lock = book.lock()?;
    let (mut text, mut lists, mut files) = (String::new(), Vec::new(), Vec::new());
    for group in book.groups() {
        let path = book.list(*group);
        if args.if_due && path.exists() {
            let there = List::load(&path)?;
            if !there.is_empty() && there.iter().all(|list| !list.past_half_life(now)) {
                text.push_str(&format!("left     {}: it is not due\n", path.display()));
                continue;
            }
        }
        for signed in book.ready(*group, false, now)?.sign(&[], args.days, now)? {
            text.push_str(&signed.line(now));
            lists.push(Signed::json(&signed));
        }
        files.push(answer::file(&path, "revocation-list"));
    }
    let denied = book.denied();
    if !denied.exists() {
        DenyFile::read(&denied)?.write(&denied)?;
        text.push_str(&format!(
            "made     {}: nobody is denied\n",
            denied.display()
        ));
        files.push(answer::file(&denied, "deny-list"));
    }
    Ok(Answer::new(text, json!({ "lists": lists, "files": files })))
}

fn verify(args: &Verify, now: SystemTime) -> Result<Answer, Failure> {
    let book = Book::of(&args.source);
    let pairs: Vec<(PathBuf, PathBuf)> = match (&args.file, &args.trust) {
        (Some(file), Some(trust)) => vec![(file.clone(), trust.clone())],
        _ => {
            let groups = book.groups().iter();
            groups
                .map(|group| (book.list(*group), book.trust(*group)))
                .collect()
        }
    };
    let (mut text, mut found, mut wrong) = (String::new(), Vec::new(), Vec::new());
    for (path, trust) in &pairs {
        let authorities: Vec<Certificate> = store::read_certificates(trust)?
            .iter()
            .map(|der| Certificate::parse(der.as_ref()))
            .collect::<Result<_, _>>()
            .map_err(|error| Failure::file(format!("{}: {error}", trust.display())))?;
        for list in load(path, args.file.is_none())? {
            text.push_str(&head(path, &list, now));
            found.push(describe(path, &list, now, None));
            let place = path.display();
            if authorities
                .iter()
                .all(|one| list.check_signature(one).is_err())
            {
                let trust = trust.display();
                wrong.push(format!("{place}: is signed by no authority of {trust}"));
            }
            match state(&list, now) {
                "current" => {}
                state => wrong.push(format!(
                    "{place}: {state}: next update {} ({}); run `towline-pki crl renew`",
                    date::text(list.next_update()),
                    date::distance(now, list.next_update())
                )),
            }
        }
    }
    let answer = Answer::new(text, json!({ "lists": found }));
    match wrong.is_empty() {
        true => Ok(answer),
        false => Err(Failure::failed(wrong.join("\n")).with_answer(answer)),
    }
}

/// Of the cluster's own list also what makes it.
fn load(path: &Path, own: bool) -> Result<Vec<List>, Failure> {
    match own && !path.exists() {
        true => Err(Failure::file(format!(
            "{}: there is no list yet; `towline-pki crl renew` makes the first one",
            path.display()
        ))),
        false => Ok(List::load(path)?),
    }
}

fn state(list: &List, now: SystemTime) -> &'static str {
    if list.is_stale(now) {
        "stale"
    } else if list.past_half_life(now) {
        "past half of its life"
    } else {
        "current"
    }
}

fn head(path: &Path, list: &List, now: SystemTime) -> String {
    format!(
        "{}: number {} of {}\n  made {}, next update {} ({}), {}, {} revoked\n",
        path.display(),
        list.number(),
        list.issuer(),
        date::text(list.this_update()),
        date::text(list.next_update()),
        date::distance(now, list.next_update()),
        state(list, now),
        list.entries().len(),
    )
}

fn describe(path: &Path, list: &List, now: SystemTime, entries: Option<Vec<Value>>) -> Value {
    json!({
        "path": path.display().to_string(),
        "issuer": list.issuer(),
        "number": list.number().to_string(),
        "thisUpdate": date::text(list.this_update()),
        "nextUpdate": date::text(list.next_update()),
        "secondsLeft": date::seconds(list.next_update()) - date::seconds(now),
        "state": state(list, now),
        "revoked": list.entries().len(),
        "entries": entries,
    })
}
