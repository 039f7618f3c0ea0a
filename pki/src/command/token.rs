//! `token`: one-time join tokens, by which new nodes get their first certificate.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Subcommand;
use serde_json::{Value, json};
use towline_pki::first_contact::key_hash;
use towline_pki::join::{JoinEntry, JoinError, JoinId};
use towline_pki::seal::hex;
use towline_pki::store::{self, Lock, Replace};
use towline_pki::{Anchors, JoinFile, JoinMark, JoinToken, date};
use towline_proto::id::{ClusterName, Name};
use towline_proto::limits;
use towline_proto::pattern::Pattern;

use super::answer::{self, Answer};
use super::source::read_cluster;
use super::{EXIT_CODES, Failure};

const EXAMPLES: &str = "\
Examples:
  towline-pki token create node-7 --dir /secure/prod --tokens /etc/towline/join-tokens --ip 10.0.1.7
  towline-pki token create 'worker-*' --dir /secure/prod --tokens join-tokens --hours 48
  towline-pki token list --tokens /etc/towline/join-tokens --used /var/lib/towline/join-spent
  towline-pki token revoke 4f2a9c0d11223344 --tokens /etc/towline/join-tokens
Then, on the node:
  towline-agent --server cp.example:8091 --enrol server --join-token-file join-node-7.token --state-dir /var/lib/towline";

/// Make, list and take back one-time join tokens for new nodes.
///
/// The token goes to the node, in a file that only its agent reads. Servers are given the tokens
/// file (--enrol-join-tokens), in which no secret stands, only hashes; they notice changes by
/// themselves.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Create(Create),
    List(List),
    Revoke(Revoke),
}

/// Where servers read which tokens there are.
#[derive(clap::Args)]
struct Tokens {
    /// The tokens file, as --enrol-join-tokens of the servers names it
    #[arg(long, value_name = "FILE", default_value = "join-tokens")]
    tokens: PathBuf,
}

/// Make a token for one node, or for any one node whose name fits a pattern.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
struct Create {
    /// Node name, or a pattern such as 'worker-*'; a token is used once in any case
    node: Pattern,
    #[command(flatten)]
    tokens: Tokens,
    /// Directory that `towline-pki init` made: for the cluster's name and trust/servers.pem
    #[arg(long, value_name = "DIR", default_value = ".", env = "TOWLINE_PKI_DIR")]
    dir: PathBuf,
    /// Authority that signs servers instead of DIR's (PEM)
    #[arg(long, value_name = "FILE", requires = "cluster")]
    server_ca: Option<PathBuf>,
    /// Name of the cluster, with --server-ca; otherwise DIR knows it
    #[arg(long, value_name = "NAME", requires = "server_ca")]
    cluster: Option<ClusterName>,
    /// Address of the node, for its certificate: it is what the agent may serve (only with a name)
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    ip: Vec<IpAddr>,
    /// How long it may wait to be used
    #[arg(long, value_name = "HOURS", default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=720))]
    hours: u64,
    /// File for the token, mode 0600 [default: join-NODE.token, or join-ID.token for a pattern]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// List tokens: which may be used, have ended and, where a server's marks can be read, were used.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
struct List {
    #[command(flatten)]
    tokens: Tokens,
    /// Where a server marks used tokens (its --enrol-join-spent, or join-spent in its --state-dir),
    /// or a copy of it; repeat it for servers that have their own
    #[arg(long, value_name = "DIR", value_delimiter = ',')]
    used: Vec<PathBuf>,
}

/// Take tokens back that were not used yet.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
struct Revoke {
    /// Ids, as `token list` shows them
    #[arg(required = true)]
    id: Vec<JoinId>,
    #[command(flatten)]
    tokens: Tokens,
}

impl From<JoinError> for Failure {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::Store(error) => error.into(),
            JoinError::Names(_) => Self::usage(error),
            JoinError::Random => Self::failed(error),
            _ => Self::file(error),
        }
    }
}

pub(crate) fn run(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    match &args.verb {
        Verb::Create(args) => create(args, now),
        Verb::List(args) => list(args, now),
        Verb::Revoke(args) => revoke(args, now),
    }
}

/// Two at once would lose a token. Held while the file changes.
fn lock(tokens: &Path) -> Result<Lock, Failure> {
    let mut name = tokens.as_os_str().to_owned();
    name.push(".lock");
    Ok(Lock::take(Path::new(&name))?)
}

fn read(tokens: &Path) -> Result<JoinFile, Failure> {
    Ok(JoinFile::load(tokens)?)
}

fn create(args: &Create, now: SystemTime) -> Result<Answer, Failure> {
    if !args.ip.is_empty() && args.node.exact().is_none() {
        return Err(Failure::usage(
            "--ip is for a token of one node; a pattern has no addresses",
        ));
    }
    if let Some(name) = args.node.exact() {
        let _: Name = name.parse().map_err(Failure::usage)?;
    }
    let (cluster, authority) = match (&args.cluster, &args.server_ca) {
        (Some(cluster), Some(path)) => (cluster.clone(), path.clone()),
        _ => (read_cluster(&args.dir)?, args.dir.join("trust/servers.pem")),
    };
    let anchors = Anchors::load(&authority)?;
    let hashes: Vec<_> = anchors.certificates().map(key_hash).collect();
    if hashes.len() > limits::JOIN_AUTHORITIES {
        return Err(Failure::file(format!(
            "{}: {} authorities are more than the {} that a join token names",
            authority.display(),
            hashes.len(),
            limits::JOIN_AUTHORITIES
        )));
    }
    let token = JoinToken::make(cluster, hashes)?;
    let until = now + Duration::from_secs(args.hours * 3600);
    let entry = JoinEntry::new(&token, args.node.clone(), until, args.ip.clone())?;
    let out = args.out.clone().unwrap_or_else(|| {
        let which = args.node.exact().map(str::to_owned);
        let which = which.unwrap_or_else(|| token.id.to_string());
        PathBuf::from(format!("join-{which}.token"))
    });
    let tokens = &args.tokens.tokens;
    // A file that cannot be read is left alone, without a lock beside it.
    if tokens.exists() {
        read(tokens)?;
    }
    let _held = lock(tokens)?;
    let there = match tokens.exists() {
        true => read(tokens)?,
        false => JoinFile::default(),
    };
    // What has ended is of no use to anybody.
    let mut entries: Vec<_> = there.entries().to_vec();
    entries.retain(|entry| !entry.is_over(now));
    if entries.len() >= limits::JOIN_TOKENS {
        return Err(Failure::failed(format!(
            "{}: holds {} tokens already, which is as many as may be",
            tokens.display(),
            entries.len()
        )));
    }
    entries.push(entry.clone());
    // The secret first: without its line it is worth nothing, a line without it is litter.
    store::write_secret(&out, &token.to_text(), Replace::Never)?;
    if let Err(error) = JoinFile::with(entries).write(tokens) {
        let _ = store::remove(&out);
        return Err(error.into());
    }
    let text = format!(
        "made     join token {id} for {node}, until {until} ({distance}); it is used once\n\
         \x20 file     {out}  the token, mode 0600: a secret, for the node alone\n\
         \x20 file     {tokens}  what servers know of it, for --enrol-join-tokens: no secret\n\
         \n\
         next     bring {out} to the node and start there: towline-agent --server HOST:PORT \
         --enrol server --join-token-file FILE --state-dir DIR{name}\n",
        id = token.id,
        node = args.node,
        until = date::text(until),
        distance = date::distance(now, until),
        out = out.display(),
        tokens = tokens.display(),
        name = match args.node.exact() {
            Some(_) => "",
            None => " --node-name NAME",
        },
    );
    let result = json!({
        "token": describe(&entry, now),
        "files": [answer::file(&out, "join-token"), answer::file(tokens, "join-tokens")],
    });
    Ok(Answer::new(text, result))
}

fn describe(entry: &JoinEntry, now: SystemTime) -> Value {
    json!({
        "id": entry.id.to_string(),
        "node": entry.node.as_str(),
        "until": date::text(entry.until),
        "ended": entry.is_over(now),
        "ips": entry.ips,
    })
}

/// The first use of a token in any of these directories.
fn use_of(id: &JoinId, used: &[PathBuf]) -> Result<Option<JoinMark>, Failure> {
    let mut first: Option<JoinMark> = None;
    for directory in used {
        let mark = JoinMark::load(directory, id)?;
        first = [first, mark]
            .into_iter()
            .flatten()
            .min_by_key(|mark| mark.at);
    }
    Ok(first)
}

fn list(args: &List, now: SystemTime) -> Result<Answer, Failure> {
    let file = read(&args.tokens.tokens)?;
    // One that is not there would make every token look unused.
    for directory in &args.used {
        store::files_below(directory)?;
    }
    // Their numbers are random: who ends first comes first.
    let mut entries: Vec<_> = file.entries().iter().collect();
    entries.sort_by_key(|entry| (entry.until, entry.id));
    let (mut text, mut tokens) = (String::new(), Vec::new());
    for entry in entries {
        let mark = use_of(&entry.id, &args.used)?;
        let state = match (&mark, entry.is_over(now)) {
            (Some(mark), _) => format!("used by {} at {}", mark.name, date::text(mark.at)),
            (None, true) => "ended".to_owned(),
            (None, false) => "may be used".to_owned(),
        };
        let ips: Vec<String> = entry.ips.iter().map(ToString::to_string).collect();
        let line = format!(
            "{id}  {node}  {state}  {until} ({distance})  {ips}",
            id = entry.id,
            node = entry.node,
            until = date::text(entry.until),
            distance = date::distance(now, entry.until),
            ips = ips.join(","),
        );
        text.push_str(line.trim_end());
        text.push('\n');
        let mut described = describe(entry, now);
        if !args.used.is_empty() {
            described["used"] = mark.map_or(Value::Null, |mark| {
                json!({
                    "node": mark.name.as_str(),
                    "at": date::text(mark.at),
                    "key": hex(&mark.key),
                })
            });
        }
        tokens.push(described);
    }
    if tokens.is_empty() {
        text.push_str("no join token\n");
    }
    if args.used.is_empty() {
        text.push_str(
            "\nWhich of them were used, servers know: --used DIR, join-spent in their --state-dir; and the audit trail.\n",
        );
    }
    Ok(Answer::new(text, json!({ "tokens": tokens })))
}

fn revoke(args: &Revoke, now: SystemTime) -> Result<Answer, Failure> {
    let tokens = &args.tokens.tokens;
    read(tokens)?;
    let _held = lock(tokens)?;
    let file = read(tokens)?;
    let known = |id: &JoinId| file.entries().iter().any(|entry| entry.id == *id);
    if let Some(id) = args.id.iter().find(|id| !known(id)) {
        return Err(Failure::failed(format!(
            "nothing was changed: {} holds no join token {id}",
            tokens.display()
        )));
    }
    let (gone, mut kept): (Vec<_>, Vec<_>) = file
        .entries()
        .iter()
        .cloned()
        .partition(|entry| args.id.contains(&entry.id));
    kept.retain(|entry| !entry.is_over(now));
    JoinFile::with(kept).write(tokens)?;
    let mut text = String::new();
    for entry in &gone {
        text.push_str(&format!(
            "revoked  join token {} for {}\n",
            entry.id, entry.node
        ));
    }
    text.push_str(
        "\nnext     a node that used it already keeps its certificate: deny that one by its serial or name\n",
    );
    let gone: Vec<_> = gone.iter().map(|entry| describe(entry, now)).collect();
    Ok(Answer::new(text, json!({ "revoked": gone })))
}
