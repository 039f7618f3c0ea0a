//! `renew`: the same identity and names, a new certificate in the old one's place.

use std::path::PathBuf;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use serde_json::json;
use towline_pki::order::order;
use towline_pki::store::{self, Replace};
use towline_pki::{Certificate, Issue, KeyKind, Leaf, PrivateKey, date};

use super::answer::Answer;
use super::source::Source;
use super::{EXIT_CODES, Failure, deny, paper};

const EXAMPLES: &str = "\
Examples:
  towline-pki renew agent-node-7.crt --dir /secure/prod
  towline-pki renew server-cp-1.crt --dir /secure/prod --keep-key

Daemons see the new files by themselves and keep their links. The old certificate is valid until its
own end: the answer names its serial number for a deny list.";

/// Make a new certificate with the identity and the names of an old one, which may have ended, and
/// put it in its place, with a new key unless told otherwise.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Args {
    /// File with the certificate (PEM)
    cert: PathBuf,
    /// File with its key; by default the certificate's name with .key
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    #[command(flatten)]
    source: Source,
    /// Keep the key that is there
    #[arg(long, conflicts_with = "key_kind")]
    keep_key: bool,
    /// Algorithm of the new key instead of the old one's: ecdsa-p256, ecdsa-p384, ed25519, rsa-2048, rsa-3072 or rsa-4096
    #[arg(long = "key-algorithm", alias = "key-kind", value_name = "ALGORITHM")]
    key_kind: Option<KeyKind>,
    /// Life in days instead of the role's default
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..=36_500))]
    days: Option<u64>,
}

fn key_of(der: &CertificateDer<'_>) -> String {
    Certificate::parse(der.as_ref()).map_or_else(|_| String::new(), |old| old.key)
}

pub(crate) fn run(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    let der = store::read_certificates(&args.cert)?.swap_remove(0);
    let named =
        |error: &dyn std::fmt::Display| Failure::file(format!("{}: {error}", args.cert.display()));
    let old = Leaf::parse(&der).map_err(|error| named(&error))?;
    let identity = old.identity.clone();
    let signing = args.source.open(identity.role, now)?;
    if identity.cluster != signing.cluster {
        return Err(Failure::usage(format!(
            "{} is of cluster {}, and the authority signs for {}",
            args.cert.display(),
            identity.cluster,
            signing.cluster
        )));
    }
    let key_path = match &args.key {
        Some(path) => path.clone(),
        None => args.cert.with_extension("key"),
    };
    let key = match args.keep_key {
        true => PrivateKey::from_der(&store::read_private_key(&key_path)?)
            .map_err(|error| Failure::file(format!("{}: {error}", key_path.display())))?,
        false => {
            let kind = args
                .key_kind
                .unwrap_or_else(|| KeyKind::like(&key_of(&der)));
            PrivateKey::generate(kind).map_err(Failure::failed)?
        }
    };
    if args.keep_key {
        // A certificate for a key of somebody else would be no renewal.
        order(std::slice::from_ref(&der), Some(&key.public()))
            .map_err(|error| Failure::file(format!("{}: {error}", key_path.display())))?;
    }
    let issue = Issue {
        identity,
        dns: old.dns_sans.clone(),
        ips: old.ip_sans.clone(),
        life: args
            .days
            .map(|days| std::time::Duration::from_secs(days * 86_400)),
        public_key: key.public(),
    };
    deny::refuse_denied(&signing.denied, &issue.identity)?;
    let issued = signing.authority.issue(&issue, now)?;
    paper::record(&signing, &issued, "renew", now)?;
    if args.keep_key {
        paper::write(&issued, &args.cert, Replace::Atomically)?;
    } else {
        store::replace_pair(&args.cert, &issued.to_pem(), &key_path, &key.to_pem())?;
    }
    let mut answer = paper::report(&issued, &signing, &args.cert, Some(&key_path), now);
    answer.append(&format!(
        "before   serial {} is valid until {}; when it is in wrong hands:\n         \
         towline-pki revoke --serial {}\n",
        old.serial,
        date::text(old.not_after),
        old.serial
    ));
    let before = json!({
        "serial": old.serial.to_string(),
        "notAfter": date::text(old.not_after),
    });
    answer.add("before", before);
    Ok(answer)
}
