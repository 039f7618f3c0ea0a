//! `apply`: a whole cluster from one file, and the difference when the file or the time changes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::SystemTime;

use serde_json::{Value, json};
use towline_pki::cluster::plan::Act;
use towline_pki::cluster::{
    Change, ClusterFile, ClusterFileError, Done, Kind, Note, Plan, PlanError, Present,
    PresentError, Reason, Wanted, WriteError, plan, write,
};
use towline_pki::{Certificate, date, store};
use towline_proto::limits;

use super::answer::{self, Answer};
use super::unlock::Unlock;
use super::{EXIT_CODES, Failure};

const EXAMPLES: &str = "\
Examples:
  towline-pki apply -f cluster.yaml -d /secure/prod --dry-run
  towline-pki apply -f cluster.yaml -d /secure/prod
  towline-pki apply -f cluster.yaml -d /secure/prod --prune -o json

Signs in front of a line: + made, ~ made anew or changed, - taken away, ? waits for a signature,
! nothing is done about it.

With --dry-run exit code 1 says that something would change. Without it, 1 also says that requests
wait for an authority that somebody else holds.";

/// Make everything a cluster needs from one file: authorities of Kubernetes, etcd, the front proxy,
/// Towline and the kubelet gateway, and a key and certificate for each component on each machine.
///
/// Run it again after a change to the file, or from a timer: what is as it should be stays as it
/// is to the byte, what is due or different is made anew, and each line says why. An authority is never
/// written over. When a file is damaged, nothing is touched.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Args {
    /// The cluster file
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Directory with everything that was made; it is made when it is missing
    #[arg(short, long, value_name = "DIR", env = "TOWLINE_PKI_DIR")]
    dir: PathBuf,
    /// Say what would change and why, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Take away what the file does not name any more: directories of machines, pairs of clients
    #[arg(long)]
    prune: bool,
    #[command(flatten)]
    unlock: Unlock,
}

impl From<ClusterFileError> for Failure {
    fn from(error: ClusterFileError) -> Self {
        Self::file(error)
    }
}

impl From<PresentError> for Failure {
    fn from(error: PresentError) -> Self {
        Self::file(format!("nothing was changed: {error}"))
    }
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Self {
        Self::failed(format!("nothing was changed: {error}"))
    }
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        Self::failed(format!(
            "not finished: {error}\n  what was written is whole; run it again to go on"
        ))
    }
}

pub(crate) fn run(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    let wanted = Wanted::of(&ClusterFile::load(&args.file)?);
    // A directory that is not there yet holds nothing that could change under us.
    let lock = match !args.dry_run && store::is_there(&args.dir) {
        true => Some(store::lock(&args.dir)?),
        false => None,
    };
    let mut passphrases = args.unlock.passphrases();
    let present = Present::unlock(&args.dir, &wanted, &mut passphrases, now)?;
    let plan = plan(&wanted, &present, args.prune, now)?;
    let done = match args.dry_run || plan.changes.is_empty() {
        true => Done::default(),
        false => {
            store::make_private_directory(&args.dir)?;
            let _lock = match lock {
                Some(lock) => lock,
                None => store::lock(&args.dir)?,
            };
            let writers = limits::CLUSTER_WRITERS;
            write(&args.dir, &wanted, present, &plan, writers, now)?
        }
    };
    let result = as_json(args, &wanted, &plan, &done, now);
    let answer = Answer::new(as_text(args, &wanted, &plan), result);
    let waiting = plan.notes.iter();
    let waiting = waiting.filter(|note| matches!(note, Note::Waiting { .. }));
    match (args.dry_run, plan.changes.len(), waiting.count()) {
        (true, 1.., _) => {
            let count = plan.changes.len();
            let message = format!("{count} changes are to be made; nothing was changed");
            Err(Failure::failed(message).with_answer(answer))
        }
        (_, _, count @ 1..) => Err(Failure::failed(format!(
            "{count} certificates wait for their authority: have each .csr signed, put the \
             certificate beside it as .crt, and apply again"
        ))
        .with_answer(answer)),
        _ => Ok(answer),
    }
}

/// The sign in front, and what happens to the key.
fn sign(kind: Kind) -> (char, &'static str) {
    match kind {
        Kind::Leaf(_, act) => match act {
            Act::Make { new_key: true } => ('+', ""),
            Act::Make { new_key: false } => ('+', "same key"),
            Act::Reissue => ('~', "new key"),
            Act::Rewrite | Act::Assemble | Act::Finish => ('~', "same key"),
            Act::Tidy | Act::Answered => ('-', ""),
            Act::Request { new_key: true } => ('+', "request, new key"),
            Act::Request { new_key: false } => ('~', "request, same key"),
        },
        Kind::Remove | Kind::RemoveMachine => ('-', ""),
        _ => ('+', ""),
    }
}

fn action(kind: Kind) -> &'static str {
    match kind {
        Kind::Cluster | Kind::ServiceAccount => "make",
        Kind::Authority(_) => "make-authority",
        Kind::Adopt(_) => "adopt-authority",
        Kind::Trust(_) => "trust",
        Kind::Copy(_) => "copy",
        Kind::RemoveMachine => "remove-machine",
        Kind::Remove => "remove",
        Kind::Leaf(_, act) => match act {
            Act::Make { .. } => "make",
            Act::Reissue => "reissue",
            Act::Rewrite => "rewrite",
            Act::Finish => "finish",
            Act::Tidy => "tidy",
            Act::Request { .. } => "request",
            Act::Assemble => "assemble",
            Act::Answered => "answered",
        },
    }
}

fn texts(reasons: &[Reason]) -> String {
    let texts: Vec<String> = reasons.iter().map(Reason::to_string).collect();
    texts.join(", ")
}

fn as_text(args: &Args, wanted: &Wanted, plan: &Plan) -> String {
    let mut out = format!("cluster  {} in {}\n", wanted.cluster, args.dir.display());
    let mut machines: BTreeMap<&str, usize> = BTreeMap::new();
    for change in &plan.changes {
        if let [Reason::NewMachine(name)] = change.reasons.as_slice() {
            *machines.entry(name).or_default() += 1;
            continue;
        }
        let (mut sign, key) = sign(change.kind);
        if sign == '+' && !matches!(change.reasons.as_slice(), [Reason::New]) {
            sign = '~';
        }
        let key = match key {
            "" => String::new(),
            key => format!("; {key}"),
        };
        let _ = writeln!(
            out,
            "{sign} {path:44} {why}{key}",
            path = change.path,
            why = texts(&change.reasons),
        );
    }
    for (name, count) in &machines {
        let path = format!("hosts/{name}/");
        let _ = writeln!(out, "+ {path:44} {name} is new: {count} parts, new keys");
    }
    for note in &plan.notes {
        let (_, text) = note_text(note);
        let sign = match note {
            Note::Waiting { .. } => '?',
            _ => '!',
        };
        let _ = writeln!(out, "{sign} {text}");
    }
    let verb = match args.dry_run {
        true => "would change",
        false => "changed",
    };
    let _ = writeln!(
        out,
        "{} {verb}, {} as they were",
        plan.changes.len(),
        plan.kept
    );
    out
}

/// The word for machines and the line for people.
fn note_text(note: &Note) -> (&'static str, String) {
    match note {
        Note::MachineGone { name } => (
            "machine-gone",
            format!(
                "{:44} not in the file any more; left as it is, --prune takes it away. Its \
                 certificates count until they end or are revoked",
                format!("hosts/{}/", name.escape_debug())
            ),
        ),
        Note::FileGone { path } => (
            "file-gone",
            format!(
                "{:44} not in the file any more; left as it is, --prune takes it away",
                path.escape_debug().to_string()
            ),
        ),
        Note::AuthorityEnds { purpose, not_after } => (
            "authority-ends",
            format!(
                "{:44} ends {}: certificates are cut short, make its successor",
                purpose.certificate(),
                date::text(*not_after)
            ),
        ),
        Note::Denied { path, identity } => (
            "denied",
            format!(
                "{path:44} left as it is: {identity} is on the deny list; when it may come back, run \
                 `towline-pki revoke --lift {}` and apply again",
                identity.rsplit("/towline/").next().unwrap_or(identity)
            ),
        ),
        Note::Waiting {
            path,
            request,
            reasons,
        } => (
            "waiting",
            format!(
                "{path:44} waits for {request} to be signed ({})",
                texts(reasons)
            ),
        ),
    }
}

fn as_json(args: &Args, wanted: &Wanted, plan: &Plan, done: &Done, now: SystemTime) -> Value {
    let signed: BTreeMap<&str, &[u8]> = done
        .signed
        .iter()
        .map(|(path, der)| (path.as_str(), der.as_ref()))
        .collect();
    let change = |change: &Change| {
        let mut out = json!({
            "path": change.path,
            "action": action(change.kind),
            "reasons": reasons(&change.reasons),
        });
        let (_, key) = sign(change.kind);
        let new = matches!(change.kind, Kind::Leaf(_, Act::Make { new_key: true }));
        if new || key.contains("new key") {
            out["key"] = json!("new");
        } else if key.contains("same key") {
            out["key"] = json!("same");
        }
        let der = signed.get(change.path.as_str());
        if let Some(certificate) = der.and_then(|der| Certificate::parse(der).ok()) {
            out["certificate"] = answer::certificate(&certificate, now);
        }
        out
    };
    let note = |note: &Note| {
        let (code, text) = note_text(note);
        let mut out = json!({ "code": code, "text": squeezed(&text) });
        match note {
            Note::MachineGone { name } => out["machine"] = json!(name),
            Note::FileGone { path } => out["path"] = json!(path),
            Note::Denied { path, identity } => {
                out["path"] = json!(path);
                out["identity"] = json!(identity);
            }
            Note::AuthorityEnds { purpose, not_after } => {
                out["path"] = json!(purpose.certificate());
                out["notAfter"] = json!(date::text(*not_after));
            }
            Note::Waiting {
                path,
                request,
                reasons: why,
            } => {
                out["path"] = json!(path);
                out["request"] = json!(request);
                out["reasons"] = reasons(why);
            }
        }
        out
    };
    json!({
        "cluster": wanted.cluster,
        "directory": args.dir.display().to_string(),
        "dryRun": args.dry_run,
        "changes": plan.changes.iter().map(change).collect::<Vec<Value>>(),
        "notes": plan.notes.iter().map(note).collect::<Vec<Value>>(),
        "kept": plan.kept,
    })
}

fn reasons(list: &[Reason]) -> Value {
    let one = |reason: &Reason| json!({ "code": reason.as_str(), "text": reason.to_string() });
    list.iter().map(one).collect()
}

/// Without the spaces that align columns.
fn squeezed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
