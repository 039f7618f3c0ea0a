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
//!
//! With `--root` and its kin the root is elsewhere, and DIR holds its certificate only. With
//! `--external-root` DIR holds requests, until `accept` brings certificates.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Value, json};
use towline_pki::hierarchy::succession;
use towline_pki::role::{ISSUER_LIFE, ROOT_LIFE};
use towline_pki::store::{self, Replace};
use towline_pki::{
    Authority, Generation, KeyKind, Layout, Ledger, Passphrases, PrivateKey, Seat, Secret, date,
};
use towline_proto::id::ClusterName;

use super::answer::{self, Answer};
use super::root::{self, RootFlags};
use super::unlock::{self, Unlock};
use super::{EXIT_CODES, Failure};

const EXAMPLES: &str = "\
Examples:
  towline-pki init /secure/prod --cluster prod.example
  towline-pki init /secure/prod --cluster prod.example --encrypt-keys --passphrase-file pass
One offline root for several clusters:
  towline-pki init /offline/root --root-only --organisation example.org --encrypt-keys
  towline-pki init /secure/prod --cluster prod.example --root /offline/root
  towline-pki init /secure/test --cluster test.example --root /offline/root
A root that others hold:
  towline-pki init /secure/prod --cluster prod.example --external-root
  towline-pki accept signed-agents.crt --dir /secure/prod";

/// Make the authorities of a new cluster: a root, and one issuer each for agents and for servers,
/// clients and operators.
///
/// Nothing that exists is ever overwritten: a second run over the same directory changes nothing
/// and says what to do.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Args {
    /// Directory to make; it must not hold another cluster
    dir: PathBuf,
    /// Name of the cluster: part of every identity, lower-case letters, digits, '-' and '.'
    #[arg(long, value_name = "NAME", required_unless_present = "root_only")]
    cluster: Option<ClusterName>,
    /// Make a root alone, for several clusters, or to be kept where nothing is online
    #[arg(long, conflicts_with_all = ["cluster", "root", "root_cert", "external_root"], requires = "organisation")]
    root_only: bool,
    /// Organisation in the root's name, with --root-only; otherwise it is the cluster
    #[arg(long, value_name = "NAME", requires = "root_only")]
    organisation: Option<String>,
    #[command(flatten)]
    root: RootFlags,
    /// Encrypt the private keys that are written, under a passphrase
    #[arg(long)]
    encrypt_keys: bool,
    #[command(flatten)]
    unlock: Unlock,
    /// Algorithm of the keys: ecdsa-p256, ecdsa-p384, ed25519, rsa-3072 or rsa-4096
    #[arg(
        long = "key-algorithm",
        alias = "key-kind",
        value_name = "ALGORITHM",
        default_value_t
    )]
    key_kind: KeyKind,
    /// Life of the root in days
    #[arg(long, value_name = "DAYS", default_value_t = ROOT_LIFE.as_secs() / DAY, value_parser = clap::value_parser!(u64).range(2..=36_500))]
    root_days: u64,
    /// Life of the two issuers in days, shorter than the root's
    #[arg(long, value_name = "DAYS", default_value_t = ISSUER_LIFE.as_secs() / DAY, value_parser = clap::value_parser!(u64).range(1..=36_500))]
    issuer_days: u64,
}

const DAY: u64 = 86_400;

/// An authority that is made, and the text of its key's file.
struct Made {
    authority: Authority,
    key: Secret,
}

pub(crate) fn run(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    fits_authority(args.key_kind)?;
    let root_is_ours = !args.root.is_elsewhere() && !args.root.external_root;
    if root_is_ours && !args.root_only && args.issuer_days >= args.root_days {
        return Err(Failure::usage(format!(
            "--issuer-days {} must be less than --root-days {}: an issuer cannot outlive its root",
            args.issuer_days, args.root_days
        )));
    }
    refuse_existing(args)?;
    let layout = Layout::new(&args.dir);
    let mut issuers = args.unlock.passphrases();
    let Some(cluster) = &args.cluster else {
        return root_only(args, &layout, &mut issuers, now);
    };
    if args.root.external_root {
        return requests(args, cluster, &layout, &mut issuers);
    }
    let (root, root_key) = if root_is_ours {
        let made = make_root(args, cluster.as_str(), &mut issuers, now)?;
        (made.authority, Some(made.key))
    } else {
        (args.root.open(&layout, &mut issuers, now)?, None)
    };
    let encrypt = args.encrypt_keys.then_some(&mut issuers);
    let made = make_issuers(args, cluster, &root, encrypt, now)?;
    write_folders(&args.dir)?;
    let issued = made.iter().map(|(_, made)| made.authority.der().as_ref());
    Ledger::in_dir(&args.dir).record(issued.clone(), "init", now)?;
    if let Some(dir) = &args.root.root {
        Ledger::in_dir(dir).record(issued, "init", now)?;
    }
    // Keys before certificates, the name of the cluster last: what has it is whole.
    if let Some(key) = &root_key {
        store::write_secret(
            &layout.key(Seat::Root, Generation::Current),
            key,
            Replace::Never,
        )?;
    }
    root::keep_certificate(&layout, &root)?;
    for (seat, made) in &made {
        let key = layout.key(*seat, Generation::Current);
        store::write_secret(&key, &made.key, Replace::Never)?;
        let cert = layout.cert(*seat, Generation::Current);
        store::write_public(&cert, &made.authority.to_pem(), Replace::Never)?;
        succession::trust(&layout, *seat)?;
    }
    write_name(&layout, cluster)?;
    let text = report(args, now, cluster, &root, &made);
    let authorities = std::iter::once(&root).chain(made.iter().map(|(_, made)| &made.authority));
    let certificates: Vec<Value> = authorities
        .map(|authority| answer::certificate(authority.certificate(), now))
        .collect();
    Ok(Answer::new(
        text,
        json!({
            "cluster": cluster.as_str(),
            "encrypted": args.encrypt_keys,
            "certificates": certificates,
            "files": files(&layout),
        }),
    ))
}

/// What lies in the directory now, in the order of the hierarchy.
fn files(layout: &Layout) -> Vec<Value> {
    let ledger = Ledger::in_dir(layout.dir()).path().to_owned();
    let mut files = vec![(layout.cluster(), "name"), (ledger, "ledger")];
    for seat in Seat::ALL {
        files.push((layout.key(seat, Generation::Current), "private-key"));
        files.push((layout.request(seat, Generation::Current), "request"));
        files.push((layout.cert(seat, Generation::Current), "certificate"));
        files.extend(layout.trust(seat).map(|path| (path, "trust")));
    }
    files
        .iter()
        .filter(|(path, _)| path.exists())
        .map(|(path, holds)| answer::file(path, holds))
        .collect()
}

/// An authority lives longer than the smallest RSA keys are good for.
pub(crate) fn fits_authority(kind: KeyKind) -> Result<(), Failure> {
    if kind.fits_authority() {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "--key-algorithm {kind}: too weak for an authority, which lives for years; use rsa-3072, \
         rsa-4096, or better ecdsa-p256"
    )))
}

fn make_root(
    args: &Args,
    organisation: &str,
    others: &mut Passphrases,
    now: SystemTime,
) -> Result<Made, Failure> {
    let spec = Seat::Root.spec(organisation, now, args.root_days);
    let authority = Authority::create(&spec, generate(args.key_kind)?)?;
    let mut own = args.root.passphrases(others);
    let encrypt = args.encrypt_keys.then(|| own.as_mut().unwrap_or(others));
    let key = unlock::key_pem(authority.key(), encrypt, "the root's key")?;
    Ok(Made { authority, key })
}

fn make_issuers(
    args: &Args,
    cluster: &ClusterName,
    root: &Authority,
    mut encrypt: Option<&mut Passphrases>,
    now: SystemTime,
) -> Result<Vec<(Seat, Made)>, Failure> {
    let mut made = Vec::new();
    for seat in Seat::ISSUERS {
        let spec = seat.spec(cluster.as_str(), now, args.issuer_days);
        let private = generate(args.key_kind)?;
        let der = root.certify_below(&spec, &private.public())?;
        let key = unlock::key_pem(&private, encrypt.as_deref_mut(), "the issuers' keys")?;
        let authority = Authority::new(der, &private.to_der(), now)?;
        made.push((seat, Made { authority, key }));
    }
    Ok(made)
}

fn root_only(
    args: &Args,
    layout: &Layout,
    passphrases: &mut Passphrases,
    now: SystemTime,
) -> Result<Answer, Failure> {
    let organisation = args.organisation.as_deref().unwrap_or_default();
    if organisation.is_empty() || organisation.len() > 64 || organisation.contains(char::is_control)
    {
        return Err(Failure::usage(
            "--organisation must be a name of 1 to 64 bytes without control characters",
        ));
    }
    let made = make_root(args, organisation, passphrases, now)?;
    for folder in ["", "root"] {
        store::make_private_directory(&args.dir.join(folder))?;
    }
    let key = layout.key(Seat::Root, Generation::Current);
    store::write_secret(&key, &made.key, Replace::Never)?;
    root::keep_certificate(layout, &made.authority)?;
    let dir = args.dir.display();
    let text = format!(
        "made     a root in {dir}, {until}\n\
         \x20 root/root.key        private key{encrypted}; keep it where nothing is online\n\
         \x20 root/root.crt        certificate; no daemon is to anchor on it\n\
         \n\
         next     for each cluster: towline-pki init DIR --cluster NAME --root {dir}\n\
         \x20        or, where the issuers' keys must not come near the root: towline-pki init DIR\n\
         \x20        --cluster NAME --external-root, and here: towline-pki sign-issuer REQUEST\n\
         \x20        --issuer agents --cluster NAME --root {dir}\n",
        until = until(now, &made.authority),
        encrypted = if args.encrypt_keys { ", encrypted" } else { "" },
    );
    Ok(Answer::new(
        text,
        json!({
            "encrypted": args.encrypt_keys,
            "certificates": [answer::certificate(made.authority.certificate(), now)],
            "files": files(layout),
        }),
    ))
}

/// Keys and requests; the certificates come from whoever holds the root.
fn requests(
    args: &Args,
    cluster: &ClusterName,
    layout: &Layout,
    passphrases: &mut Passphrases,
) -> Result<Answer, Failure> {
    let mut made = Vec::new();
    for seat in Seat::ISSUERS {
        let private = generate(args.key_kind)?;
        let encrypt = args.encrypt_keys.then_some(&mut *passphrases);
        let key = unlock::key_pem(&private, encrypt, "the issuers' keys")?;
        made.push((seat, key, seat.request(cluster, &private)?));
    }
    write_folders(&args.dir)?;
    for (seat, key, request) in &made {
        let path = layout.key(*seat, Generation::Current);
        store::write_secret(&path, key, Replace::Never)?;
        let path = layout.request(*seat, Generation::Current);
        store::write_public(&path, request, Replace::Never)?;
    }
    write_name(layout, cluster)?;
    let dir = args.dir.display();
    let text = format!(
        "made     keys and signing requests of cluster {cluster} in {dir}\n\
         \x20 issuers/agents.csr   of the issuer of agents: have it signed as an authority with\n\
         \x20                      path length 0, limited to clientAuth\n\
         \x20 issuers/servers.csr  of the issuer of servers, clients and operators: path length 0,\n\
         \x20                      limited to serverAuth and clientAuth\n\
         \n\
         next     have both signed (a root of ours does it with `towline-pki sign-issuer`), then\n\
         \x20        towline-pki accept CERTIFICATE --dir {dir}\n\
         \x20        for each of the two\n",
    );
    Ok(Answer::new(
        text,
        json!({
            "cluster": cluster.as_str(),
            "encrypted": args.encrypt_keys,
            "files": files(layout),
        }),
    ))
}

fn write_folders(dir: &Path) -> Result<(), Failure> {
    for folder in ["", "root", "issuers", "trust"] {
        store::make_private_directory(&dir.join(folder))?;
    }
    Ok(())
}

fn write_name(layout: &Layout, cluster: &ClusterName) -> Result<(), Failure> {
    let text = format!("{cluster}\n");
    Ok(store::write_public(
        &layout.cluster(),
        &text,
        Replace::Never,
    )?)
}

fn refuse_existing(args: &Args) -> Result<(), Failure> {
    let layout = Layout::new(&args.dir);
    let mut files = vec![layout.cluster()];
    for seat in Seat::ALL {
        for generation in Generation::ALL {
            files.push(layout.key(seat, generation));
            files.push(layout.cert(seat, generation));
            files.push(layout.request(seat, generation));
        }
        files.extend(layout.trust(seat));
    }
    let there: Vec<String> = files
        .iter()
        .filter(|path| path.symlink_metadata().is_ok())
        .map(|path| path.display().to_string())
        .collect();
    if there.is_empty() {
        return Ok(());
    }
    let dir = args.dir.display();
    let advice = if layout.cluster().exists() {
        format!(
            "a cluster was made here before. To issue certificates for it run `towline-pki issue \
             --dir {dir} ...`; for another cluster choose another directory"
        )
    } else if args.root_only {
        format!(
            "a root was made here before, or begun. For a cluster below it run `towline-pki init \
             OTHER --cluster NAME --root {dir}`; for another root choose another directory"
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

fn generate(kind: KeyKind) -> Result<PrivateKey, Failure> {
    PrivateKey::generate(kind).map_err(Failure::failed)
}

fn until(now: SystemTime, authority: &Authority) -> String {
    let end = authority.certificate().not_after;
    format!("until {} ({})", date::text(end), date::distance(now, end))
}

fn report(
    args: &Args,
    now: SystemTime,
    cluster: &ClusterName,
    root: &Authority,
    made: &[(Seat, Made)],
) -> String {
    let dir = args.dir.display();
    let mut lines = vec![
        format!("made     authorities of cluster {cluster} in {dir}"),
        format!(
            "  root/root            {}; signs the two issuers only",
            until(now, root)
        ),
    ];
    for (seat, made) in made {
        let name = format!("issuers/{seat}");
        let signs = match seat {
            Seat::Agents => "agents",
            _ => "servers, clients, operators",
        };
        let until = until(now, &made.authority);
        lines.push(format!("  {name:<20} {until}; signs {signs}"));
    }
    lines.push("  trust/agents.pem     give it to servers (--agent-ca)".into());
    lines.push(
        "  trust/servers.pem    give it to agents (--server-ca) and to servers (--client-ca)"
            .into(),
    );
    lines.push(
        "  issued.jsonl         what was issued, one line each: revoking a name needs it".into(),
    );
    if args.encrypt_keys {
        lines.push("  the private keys are encrypted; without the passphrase they are lost".into());
    }
    lines.push(String::new());
    if args.root.is_elsewhere() {
        lines.push("keep     the root's key stayed where it is; root/root.crt is a copy of".into());
        lines.push("         its certificate, for checking chains. No daemon anchors on it".into());
    } else {
        lines.push(format!(
            "keep     move {dir}/root/root.key to where nothing is online: issuing does not need it,"
        ));
        lines.push("         and there is no way to restore it".into());
    }
    lines.push(format!(
        "next     towline-pki issue --dir {dir} server NAME --dns NAME.example"
    ));
    lines.push(format!(
        "         towline-pki issue --dir {dir} agent NODE --ip ADDRESS-OF-NODE"
    ));
    lines.join("\n") + "\n"
}
