//! `revoke`: certificates that count no more, and names that are denied; and the way back.

use std::path::PathBuf;
use std::time::SystemTime;

use serde_json::json;
use towline_pki::crl::RevocationReason;
use towline_pki::store;
use towline_pki::{Certificate, Identity, Serial, date};
use towline_proto::id::Role;

use super::answer::{self, Answer};
use super::book::{Book, Entry, Group};
use super::deny::DenyFile;
use super::lists::Signed;
use super::source::Source;
use super::{EXIT_CODES, Failure};

const EXAMPLES: &str = "\
Examples:
  towline-pki revoke --dir /secure/prod --identity agent/node-7 --reason keyCompromise
  towline-pki revoke --dir /secure/prod --serial 43681e9cf3961a9605b485a5e665e900
  towline-pki revoke --dir /secure/prod --cert agent-node-7.crt
  towline-pki revoke --dir /secure/prod --lift agent/node-7
  towline-pki revoke --dir /secure/prod --identity agent/node-7 --deny-only

Daemons end live links within seconds of seeing the new files: trust/agents.crl (--agent-crl),
trust/servers.crl (--server-crl, --client-crl) and trust/denied (--deny-list). A list must be signed by
the issuer's own key. Where that is held elsewhere use --deny-only, which needs no key.";

/// Revoke certificates by serial number, file or identity, and sign the list of their issuer anew.
///
/// By identity: every certificate of that name in the ledger that has not ended, and the name goes on
/// the deny list, so that nothing is issued to it before --lift. A revoked serial stays revoked.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Args {
    /// Serial number, hexadecimal; repeat it
    #[arg(long = "serial", value_name = "HEX")]
    serials: Vec<Serial>,
    /// File with the certificate (PEM; the first one counts); repeat it
    #[arg(long = "cert", value_name = "FILE")]
    certs: Vec<PathBuf>,
    /// ROLE/NAME or the whole URI: all its certificates, and the name itself; repeat it
    #[arg(long = "identity", value_name = "IDENTITY")]
    identities: Vec<String>,
    /// Take a name off the deny list (ROLE/NAME or the whole URI); repeat it
    #[arg(long, value_name = "IDENTITY", conflicts_with_all = ["serials", "certs", "identities", "deny_only"])]
    lift: Vec<String>,
    /// Why: unspecified, keyCompromise, caCompromise, affiliationChanged, superseded,
    /// cessationOfOperation, privilegeWithdrawn
    #[arg(long, value_name = "REASON", default_value_t)]
    reason: RevocationReason,
    /// Whose issuer signed a --serial that is not in the ledger
    #[arg(long, value_name = "ROLE", requires = "serials")]
    role: Option<Role>,
    /// Sign no list: put serial numbers and names on the deny list only
    #[arg(long)]
    deny_only: bool,
    /// Days until the signed list needs a successor
    #[arg(long, value_name = "DAYS", default_value_t = super::crl::DAYS, value_parser = clap::value_parser!(u64).range(1..=3_650))]
    days: u64,
    #[command(flatten)]
    source: Source,
}

/// One certificate that is to be revoked.
struct Doomed {
    group: Group,
    entry: Entry,
}

pub(crate) fn run(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    let book = Book::of(&args.source);
    if !args.lift.is_empty() {
        return lift(args, &book);
    }
    if args.serials.is_empty() && args.certs.is_empty() && args.identities.is_empty() {
        return Err(Failure::usage(
            "nothing to revoke: name certificates by --serial, --cert or --identity, or --lift a name",
        ));
    }
    let identities = identities(args, &args.identities)?;
    let doomed = doomed(args, &book, &identities, now)?;
    let _lock = book.lock()?;
    // Whatever may fail comes before the first file.
    let mut ready = Vec::new();
    for group in book.groups() {
        let mut added = doomed.iter().filter(|one| one.group == *group);
        if !args.deny_only && added.next().is_some() {
            ready.push((*group, book.ready(*group, true, now)?));
        }
    }
    let mut denied = Vec::new();
    let path = book.denied();
    let mut file = DenyFile::read(&path)?;
    let note = args.reason.to_string();
    let names = identities.iter().map(ToString::to_string);
    let serials = doomed
        .iter()
        .map(|one| format!("serial:{}", one.entry.serial));
    let entries = names.chain(serials.filter(|_| args.deny_only));
    for entry in entries.collect::<Vec<_>>() {
        if file.add(&entry, &note, now) {
            denied.push(entry);
        }
    }
    if !denied.is_empty() {
        file.write(&path)?;
    }
    let mut lists = Vec::new();
    for (group, ready) in &ready {
        let added = doomed.iter().filter(|one| one.group == *group);
        let added: Vec<Entry> = added.map(|one| one.entry.clone()).collect();
        lists.extend(ready.sign(&added, args.days, now)?);
    }
    Ok(report(&doomed, &denied, &path, &lists, now))
}

/// Every certificate that is meant, each once.
fn doomed(
    args: &Args,
    book: &Book<'_>,
    identities: &[Identity],
    now: SystemTime,
) -> Result<Vec<Doomed>, Failure> {
    let mut all: Vec<Doomed> = Vec::new();
    let mut take = |group, entry: Entry| {
        if all.iter().all(|known| known.entry.serial != entry.serial) {
            all.push(Doomed { group, entry });
        }
    };
    for path in &args.certs {
        let der = store::read_certificates(path)?.swap_remove(0);
        let read = Certificate::parse(der.as_ref())
            .map_err(|error| Failure::file(format!("{}: {error}", path.display())))?;
        let group =
            signer(book, &|authority| authority.subject == read.issuer)?.ok_or_else(|| {
                Failure::failed(format!(
                    "{}: is signed by \"{}\", which is no authority here; nothing was changed",
                    path.display(),
                    read.issuer
                ))
            })?;
        let identity = read.identity().ok().map(|identity| identity.to_string());
        take(
            group,
            Entry::new(&read.serial, identity, args.reason, Some(read.not_after)),
        );
    }
    let ledger = args.source.ledger();
    for serial in &args.serials {
        let text = serial.to_string();
        let found = ledger.find(|entry| entry.serial == text)?.pop();
        let by_ledger = match &found {
            Some(entry) => signer(book, &|authority| authority.key_id_text() == entry.issuer)?,
            None => None,
        };
        let group = by_ledger.or(args.role.map(|role| book.group_of(role)));
        let group = group.or_else(|| match book.groups() {
            [only] => Some(*only),
            _ => None,
        });
        let group = group.ok_or_else(|| {
            Failure::usage(format!(
                "serial {serial} is not in the ledger {}: say with --role whose issuer signed it, or \
                 give the certificate with --cert",
                ledger.path().display()
            ))
        })?;
        let end = found.as_ref().map(|entry| entry.not_after());
        let identity = found.and_then(|entry| entry.identity);
        take(group, Entry::new(serial, identity, args.reason, end));
    }
    for identity in identities {
        for found in ledger.of_identity(identity, now)? {
            let serial = found.serial().map_err(Failure::file)?;
            let group = signer(book, &|authority| authority.key_id_text() == found.issuer)?;
            let group = group.unwrap_or(book.group_of(identity.role));
            let end = Some(found.not_after());
            take(group, Entry::new(&serial, found.identity, args.reason, end));
        }
    }
    Ok(all)
}

/// Which group's trust file has an authority like this.
fn signer(book: &Book<'_>, like: &dyn Fn(&Certificate) -> bool) -> Result<Option<Group>, Failure> {
    for group in book.groups() {
        let trust = book.trust(*group);
        for der in store::read_certificates(&trust)? {
            let authority = Certificate::parse(der.as_ref())
                .map_err(|error| Failure::file(format!("{}: {error}", trust.display())))?;
            if like(&authority) {
                return Ok(Some(*group));
            }
        }
    }
    Ok(None)
}

fn identities(args: &Args, texts: &[String]) -> Result<Vec<Identity>, Failure> {
    let cluster = args.source.cluster_name()?;
    let read = |text: &String| {
        let whole = match text.starts_with("spiffe://") {
            true => text.clone(),
            false => format!("spiffe://{cluster}/towline/{text}"),
        };
        let identity: Identity = whole.parse().map_err(|error| {
            Failure::usage(format!(
                "{text:?} is no identity, such as agent/node-7 or \
                 spiffe://{cluster}/towline/agent/node-7: {error}"
            ))
        })?;
        match identity.cluster == cluster {
            true => Ok(identity),
            false => Err(Failure::usage(format!(
                "{identity} is of another cluster than {cluster}"
            ))),
        }
    };
    texts.iter().map(read).collect()
}

fn lift(args: &Args, book: &Book<'_>) -> Result<Answer, Failure> {
    let identities = identities(args, &args.lift)?;
    let _lock = book.lock()?;
    let path = book.denied();
    let mut file = DenyFile::read(&path)?;
    for identity in &identities {
        if !file.lift(identity) {
            return Err(Failure::failed(format!(
                "nothing was changed: {identity} is not on the deny list {}",
                path.display()
            )));
        }
    }
    file.write(&path)?;
    let mut text = String::new();
    for identity in &identities {
        text.push_str(&format!(
            "lifted   {identity} may have certificates again; those that were revoked stay revoked\n"
        ));
    }
    text.push_str(&format!("  file     {}\n", path.display()));
    let names: Vec<String> = identities.iter().map(ToString::to_string).collect();
    Ok(Answer::new(
        text,
        json!({ "lifted": names, "files": [answer::file(&path, "deny-list")] }),
    ))
}

fn report(
    doomed: &[Doomed],
    denied: &[String],
    path: &std::path::Path,
    lists: &[Signed],
    now: SystemTime,
) -> Answer {
    let mut text = String::new();
    for Doomed { entry, .. } in doomed {
        let name = entry.identity.as_deref().unwrap_or("no identity known");
        text.push_str(&format!(
            "revoked  serial {} ({name}), {}\n",
            entry.serial, entry.reason
        ));
    }
    if doomed.is_empty() {
        text.push_str(
            "revoked  no certificate: the ledger has none of that name that still lives\n",
        );
    }
    for entry in denied {
        text.push_str(&format!("denied   {entry} in {}\n", path.display()));
    }
    for list in lists {
        text.push_str(&list.line(now));
    }
    text.push_str("next     bring these files to the daemons; they end live links by themselves\n");
    let mut paths: Vec<_> = lists.iter().map(|list| &list.path).collect();
    paths.dedup();
    let mut files: Vec<_> = paths
        .iter()
        .map(|path| answer::file(path, "revocation-list"))
        .collect();
    if !denied.is_empty() {
        files.push(answer::file(path, "deny-list"));
    }
    let entry = |one: &Doomed| {
        json!({
            "serial": one.entry.serial,
            "identity": one.entry.identity,
            "reason": one.entry.reason,
            "notAfter": one.entry.not_after,
        })
    };
    let entries: Vec<_> = doomed.iter().map(entry).collect();
    let signed: Vec<_> = lists.iter().map(Signed::json).collect();
    Answer::new(
        text,
        json!({ "revoked": entries, "denied": denied, "lists": signed, "files": files }),
    )
}

impl Signed {
    /// For people.
    pub(crate) fn line(&self, now: SystemTime) -> String {
        format!(
            "list     {} number {}: {} revoked, next update {} ({})\n",
            self.path.display(),
            self.number,
            self.revoked,
            date::text(self.next_update),
            date::distance(now, self.next_update),
        )
    }

    /// For machines.
    pub(crate) fn json(&self) -> serde_json::Value {
        json!({
            "path": self.path.display().to_string(),
            "issuer": self.issuer,
            "number": self.number,
            "revoked": self.revoked,
            "nextUpdate": date::text(self.next_update),
        })
    }
}
