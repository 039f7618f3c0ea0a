//! `export pem`: one file with the leaf, what is above it, and the key when it is asked for.

use std::path::PathBuf;
use std::time::SystemTime;

use towline_pki::{Secret, pem};

use super::{Content, EXIT_CODES, Failure, Open, Place, Shown, read_chain, read_key};
use crate::command::answer::Answer;

const EXAMPLES: &str = "\
Examples:
  towline-pki export pem --cert server-cp-1.crt --chain prod/issuers/servers.crt --out chain.pem
  towline-pki export pem --cert downloaded.crt --out in-order.crt
  towline-pki export pem --cert a.crt --key a.key --out a-with-key.pem";

/// PEM: the leaf first, then its issuers in order.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(super) struct Args {
    /// File with the certificate, perhaps with others, in any order
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// File with certificates above it (may be given several times)
    #[arg(long, value_name = "FILE")]
    chain: Vec<PathBuf>,
    /// Write the self-signed root, too, when it is there; peers do not need it
    #[arg(long)]
    root: bool,
    /// Write this private key, too, in front
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    #[command(flatten)]
    open: Open,
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    args.place.check()?;
    let mut shown = Shown::default();
    let mut passphrases = args.open.passphrases();
    let key = args.key.as_deref();
    let key = key.map(|key| read_key(key, &mut passphrases, &mut shown));
    let key = key.transpose()?;
    let chain = read_chain(&args.cert, &args.chain, key.as_ref(), &mut shown, now)?;
    let mut certificates = chain.certificates;
    if args.root {
        certificates.extend(chain.root);
    }
    let text = pem::write_certificates(&certificates);
    let what = match certificates.len() {
        1 => "PEM of one certificate".to_owned(),
        count => format!("PEM of {count} certificates, leaf first"),
    };
    let content = match key {
        None => Content::Public(text),
        Some(key) => {
            let mut all = key.pem.expose().to_vec();
            all.extend_from_slice(text.as_bytes());
            Content::Private(Secret::new(all))
        }
    };
    args.place.deliver(&content, &what, "pem", &shown)
}
