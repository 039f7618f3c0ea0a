//! `export secret`: a Secret manifest, of type kubernetes.io/tls or Opaque.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use towline_pki::manifest::{self, DataKey, Meta, Namespace, ObjectName, SecretType};
use towline_pki::{Secret, pem, store};

use super::config_map::{self, Entry};
use super::{
    Content, EXIT_CODES, Failure, Open, Place, Shown, read_authorities, read_chain, read_key,
};
use crate::command::answer::Answer;

const EXAMPLES: &str = "\
Examples:
  towline-pki export secret towline-server --namespace kube-system \\
      --cert server-cp-1.crt --key server-cp-1.key | kubectl apply -f -
  towline-pki export secret gateway-ca --from ca.crt=prod/issuers/gateway.crt \\
      --from ca.key=prod/issuers/gateway.key --out gateway-ca.yaml";

/// A Secret manifest: kubernetes.io/tls with --cert and --key, Opaque with --from.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
#[command(group = clap::ArgGroup::new("content").required(true).args(["cert", "from"]))]
pub(super) struct Args {
    /// Name of the Secret
    name: ObjectName,
    /// Namespace; without it that of kubectl
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<Namespace>,
    /// Certificate, perhaps with others in any order: tls.crt, leaf first
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its private key: tls.key
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// File with certificates above it (may be given several times)
    #[arg(long, value_name = "FILE", requires = "cert")]
    chain: Vec<PathBuf>,
    /// Authorities to trust: ca.crt
    #[arg(long, value_name = "FILE", requires = "cert")]
    ca: Option<PathBuf>,
    /// An entry of an Opaque Secret: certificates, revocation lists or a private key; KEY is the
    /// file's name unless it is given (may be given several times)
    #[arg(long, value_name = "[KEY=]FILE", conflicts_with_all = ["cert", "key", "chain", "ca"])]
    from: Vec<Entry>,
    #[command(flatten)]
    open: Open,
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    args.place.check()?;
    let mut shown = Shown::default();
    let meta = Meta {
        name: args.name.clone(),
        namespace: args.namespace.clone(),
    };
    let (kind, data) = match (&args.cert, &args.key) {
        (Some(cert), Some(key)) => (SecretType::Tls, tls(args, cert, key, &mut shown, now)?),
        _ => (SecretType::Opaque, opaque(args, &mut shown, now)?),
    };
    let made = manifest::secret(&meta, kind, &data).map_err(Failure::usage)?;
    let what = format!("Secret {} of type {}", args.name, type_of(kind));
    let content = Content::Private(made);
    args.place.deliver(&content, &what, "secret", &shown)
}

const fn type_of(kind: SecretType) -> &'static str {
    match kind {
        SecretType::Tls => "kubernetes.io/tls",
        SecretType::Opaque => "Opaque",
    }
}

fn tls(
    args: &Args,
    cert: &Path,
    key: &Path,
    shown: &mut Shown,
    now: SystemTime,
) -> Result<Vec<(DataKey, Secret)>, Failure> {
    let key = read_key(key, &mut args.open.passphrases(), shown)?;
    let chain = read_chain(cert, &args.chain, Some(&key), shown, now)?;
    let text = pem::write_certificates(&chain.certificates);
    let mut data = vec![
        (named("tls.crt")?, Secret::new(text.into_bytes())),
        (named("tls.key")?, key.pem),
    ];
    if let Some(ca) = &args.ca {
        let text = read_authorities(ca, shown, now)?;
        data.push((named("ca.crt")?, Secret::new(text.into_bytes())));
    }
    Ok(data)
}

fn named(key: &str) -> Result<DataKey, Failure> {
    key.parse().map_err(Failure::usage)
}

fn opaque(
    args: &Args,
    shown: &mut Shown,
    now: SystemTime,
) -> Result<Vec<(DataKey, Secret)>, Failure> {
    let entries = &args.from;
    config_map::refuse_twice(entries)?;
    let mut passphrases = args.open.passphrases();
    let mut data = Vec::with_capacity(entries.len());
    for entry in entries {
        let text = Secret::new(store::read(&entry.file)?);
        let holds_key = pem::holds_private_key(text.expose());
        let value = match holds_key {
            // Read once more, with a look at who else may read it.
            true => read_key(&entry.file, &mut passphrases, shown)?.pem,
            false => {
                let text = config_map::public(entry, shown, now)?;
                Secret::new(text.into_bytes())
            }
        };
        data.push((entry.key.clone(), value));
    }
    Ok(data)
}
