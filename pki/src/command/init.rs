//! `init`: the authorities of one new cluster.
//!
//! ```text
//! DIR/cluster              name of the cluster
//! DIR/root/root.{crt,key}  signs the two issuers and nothing else; the key belongs offline
//! DIR/issuers/agents.*     signs agents
//! DIR/issuers/servers.*    signs servers, clients and operators
//! DIR/trust/agents.pem     what servers anchor agents on
//! DIR/trust/servers.pem    what agents anchor servers on, and servers their clients
//! DIR/issued.jsonl         what was issued
//! ```

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use towline_pki::role::{BACKDATE, ISSUER_LIFE, ROOT_LIFE};
use towline_pki::store::{self, Replace};
use towline_pki::{Authority, AuthoritySpec, KeyKind, Ledger, PrivateKey, Usage, date};
use towline_proto::id::ClusterName;

use super::answer::{self, Answer};
use super::{EXIT_CODES, Failure};

/// Make the authorities of a new cluster: a root, and one issuer each for agents and for servers,
/// clients and operators.
///
/// Nothing that exists is ever overwritten: a second run over the same directory changes nothing
/// and says what to do.
#[derive(clap::Args)]
#[command(after_help = format!("Example:\n  towline-pki init /secure/prod --cluster prod.example\n\n{EXIT_CODES}"))]
pub(crate) struct Args {
    /// Directory to make; it must not hold another cluster
    dir: PathBuf,
    /// Name of the cluster: part of every identity, lower-case letters, digits, '-' and '.'
    #[arg(long, value_name = "NAME")]
    cluster: ClusterName,
    /// Kind of the keys: ecdsa-p256, ecdsa-p384, ed25519, rsa-2048 or rsa-4096
    #[arg(long, value_name = "KIND", default_value_t)]
    key_kind: KeyKind,
    /// Life of the root in days
    #[arg(long, value_name = "DAYS", default_value_t = ROOT_LIFE.as_secs() / DAY, value_parser = clap::value_parser!(u64).range(2..=36_500))]
    root_days: u64,
    /// Life of the two issuers in days, shorter than the root's
    #[arg(long, value_name = "DAYS", default_value_t = ISSUER_LIFE.as_secs() / DAY, value_parser = clap::value_parser!(u64).range(1..=36_500))]
    issuer_days: u64,
}

const DAY: u64 = 86_400;

const FILES: [&str; 9] = [
    "cluster",
    "root/root.key",
    "root/root.crt",
    "issuers/agents.key",
    "issuers/agents.crt",
    "issuers/servers.key",
    "issuers/servers.crt",
    "trust/agents.pem",
    "trust/servers.pem",
];

pub(crate) fn run(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    if args.issuer_days >= args.root_days {
        return Err(Failure::usage(format!(
            "--issuer-days {} must be less than --root-days {}: an issuer cannot outlive its root",
            args.issuer_days, args.root_days
        )));
    }
    refuse_existing(args)?;
    let root = Authority::create(
        &spec(args, now, "towline root", args.root_days, Some(1), &[]),
        key(args.key_kind)?,
    )?;
    let days = args.issuer_days;
    let client = [Usage::ClientAuth];
    let both = [Usage::ServerAuth, Usage::ClientAuth];
    let agents = root.create_below(
        &spec(args, now, "towline agents", days, Some(0), &client),
        key(args.key_kind)?,
    )?;
    let servers = root.create_below(
        &spec(args, now, "towline servers", days, Some(0), &both),
        key(args.key_kind)?,
    )?;

    let dir = &args.dir;
    for private in ["", "root", "issuers", "trust"] {
        store::make_private_directory(&dir.join(private))?;
    }
    let made = [&agents, &servers].map(|authority| authority.der().as_ref());
    Ledger::in_dir(dir).record(made, "init", now)?;
    // Keys before certificates, the name of the cluster last: what has it is whole.
    for (name, authority) in [
        ("root/root", &root),
        ("issuers/agents", &agents),
        ("issuers/servers", &servers),
    ] {
        let file = |end: &str| dir.join(format!("{name}.{end}"));
        store::write_secret(&file("key"), &authority.key_to_pem(), Replace::Never)?;
        store::write_public(&file("crt"), &authority.to_pem(), Replace::Never)?;
    }
    for (name, authority) in [
        ("trust/agents.pem", &agents),
        ("trust/servers.pem", &servers),
    ] {
        store::write_public(&dir.join(name), &authority.to_pem(), Replace::Never)?;
    }
    let name = format!("{}\n", args.cluster);
    store::write_public(&dir.join("cluster"), &name, Replace::Never)?;
    let text = report(args, now, &root, &agents, &servers);
    let made = [&root, &agents, &servers];
    let made: Vec<Value> = made
        .iter()
        .map(|authority| answer::certificate(authority.certificate(), now))
        .collect();
    let files: Vec<Value> = FILES
        .iter()
        .map(|name| answer::file(&dir.join(name), holds(name)))
        .collect();
    let result = json!({
        "cluster": args.cluster.as_str(),
        "certificates": made,
        "files": files,
    });
    Ok(Answer::new(text, result))
}

fn holds(name: &str) -> &'static str {
    match name.rsplit_once('.') {
        Some((_, "key")) => "private-key",
        Some((_, "crt")) => "certificate",
        Some(_) => "trust",
        None => "name",
    }
}

fn refuse_existing(args: &Args) -> Result<(), Failure> {
    let there: Vec<String> = FILES
        .iter()
        .map(|name| args.dir.join(name))
        .filter(|path| path.symlink_metadata().is_ok())
        .map(|path| path.display().to_string())
        .collect();
    if there.is_empty() {
        return Ok(());
    }
    let dir = args.dir.display();
    let advice = if args.dir.join("cluster").exists() {
        format!(
            "a cluster was made here before. To issue certificates for it run `towline-pki issue \
             --dir {dir} ...`; for another cluster choose another directory"
        )
    } else {
        format!(
            "an earlier init did not finish. When nothing was issued from it, remove {dir} and \
             run init again"
        )
    };
    Err(Failure::failed(format!(
        "nothing was changed: {} is there already; {advice}",
        there.join(", ")
    )))
}

fn key(kind: KeyKind) -> Result<PrivateKey, Failure> {
    PrivateKey::generate(kind).map_err(Failure::failed)
}

fn spec(
    args: &Args,
    now: SystemTime,
    purpose: &str,
    days: u64,
    path_length: Option<u32>,
    usages: &[Usage],
) -> AuthoritySpec {
    AuthoritySpec {
        purpose: purpose.into(),
        organisation: args.cluster.to_string(),
        not_before: now.checked_sub(BACKDATE).unwrap_or(now),
        not_after: now
            .checked_add(Duration::from_secs(days.saturating_mul(DAY)))
            .unwrap_or(now),
        path_length,
        usages: usages.to_vec(),
    }
}

fn report(
    args: &Args,
    now: SystemTime,
    root: &Authority,
    agents: &Authority,
    servers: &Authority,
) -> String {
    let dir = args.dir.display();
    let until = |authority: &Authority| {
        let end = authority.certificate().not_after;
        format!("until {} ({})", date::text(end), date::distance(now, end))
    };
    format!(
        "made     authorities of cluster {cluster} in {dir}\n\
         \x20 root/root            {root}; signs the two issuers only\n\
         \x20 issuers/agents       {agents}; signs agents\n\
         \x20 issuers/servers      {servers}; signs servers, clients, operators\n\
         \x20 trust/agents.pem     give it to servers (--agent-ca)\n\
         \x20 trust/servers.pem    give it to agents (--server-ca) and to servers (--client-ca)\n\
         \x20 issued.jsonl         what was issued, one line each: revoking a name needs it\n\
         \n\
         keep     move {dir}/root/root.key to where nothing is online: issuing does not need it,\n\
         \x20        and there is no way to restore it\n\
         next     towline-pki issue --dir {dir} server NAME --dns NAME.example\n\
         \x20        towline-pki issue --dir {dir} agent NODE --ip ADDRESS-OF-NODE\n",
        cluster = args.cluster,
        root = until(root),
        agents = until(agents),
        servers = until(servers),
    )
}
