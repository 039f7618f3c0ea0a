//! `export config-map`: a ConfigMap manifest with roots, other certificates and revocation lists.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::SystemTime;

use towline_pki::crl::RevocationLists;
use towline_pki::manifest::{self, DataKey, Meta, Namespace, ObjectName, WordError};
use towline_pki::{pem, store};

use super::{Content, EXIT_CODES, Failure, Place, Shown, read_whole};
use crate::command::answer::Answer;

const EXAMPLES: &str = "\
Example:
  towline-pki export config-map towline-trust --namespace kube-system \\
      --from agents.pem=prod/trust/agents.pem --from servers.pem=prod/trust/servers.pem \\
      | kubectl apply -f -";

/// A ConfigMap manifest: trust bundles, certificates, revocation lists. Never a private key.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(super) struct Args {
    /// Name of the ConfigMap
    name: ObjectName,
    /// Namespace; without it that of kubectl
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<Namespace>,
    /// An entry: certificates or revocation lists; KEY is the file's name unless it is given (may be
    /// given several times)
    #[arg(long, required = true, value_name = "[KEY=]FILE")]
    from: Vec<Entry>,
    #[command(flatten)]
    place: Place,
}

/// One entry and where it comes from.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: DataKey,
    pub(super) file: PathBuf,
}

impl FromStr for Entry {
    type Err = WordError;
    fn from_str(text: &str) -> Result<Self, WordError> {
        let (key, file) = match text.split_once('=') {
            Some((key, file)) => (key.to_owned(), PathBuf::from(file)),
            None => {
                let file = PathBuf::from(text);
                let name = file.file_name().unwrap_or_default();
                (name.to_string_lossy().into_owned(), file)
            }
        };
        let key = key.parse()?;
        Ok(Self { key, file })
    }
}

pub(super) fn run(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    args.place.check()?;
    refuse_twice(&args.from)?;
    let mut shown = Shown::default();
    let mut data = Vec::with_capacity(args.from.len());
    for entry in &args.from {
        data.push((entry.key.clone(), public(entry, &mut shown, now)?));
    }
    let meta = Meta {
        name: args.name.clone(),
        namespace: args.namespace.clone(),
    };
    let made = manifest::config_map(&meta, &data).map_err(Failure::usage)?;
    let what = format!("ConfigMap {}", args.name);
    let content = Content::Public(made);
    args.place.deliver(&content, &what, "config-map", &shown)
}

pub(super) fn refuse_twice(entries: &[Entry]) -> Result<(), Failure> {
    let mut keys: Vec<&DataKey> = entries.iter().map(|entry| &entry.key).collect();
    keys.sort();
    match keys.windows(2).find(|pair| pair.first() == pair.last()) {
        Some(pair) => Err(Failure::usage(format!(
            "{} is there twice: give each file a key of its own, as KEY=FILE",
            pair.first().map_or("", |key| key.as_str())
        ))),
        None => Ok(()),
    }
}

/// Certificates or revocation lists, written anew; nothing else gets through.
pub(super) fn public(entry: &Entry, shown: &mut Shown, now: SystemTime) -> Result<String, Failure> {
    let place = &entry.file;
    let text = store::read(place)?;
    let named =
        |error: &dyn std::fmt::Display| Failure::file(format!("{}: {error}", place.display()));
    if pem::holds_private_key(&text) {
        return Err(named(
            &"holds a private key, which belongs into a Secret: `towline-pki export secret`",
        ));
    }
    if let Ok(lists) = pem::revocation_lists(&text) {
        RevocationLists::new(&lists).map_err(|error| named(&error))?;
        return Ok(pem::write_revocation_lists(&lists));
    }
    pem::certificates(&text).map_err(|error| named(&error))?;
    let all = read_whole(place)?;
    for der in &all {
        shown.certificate(place, der.as_ref(), now);
    }
    Ok(pem::write_certificates(&all))
}
