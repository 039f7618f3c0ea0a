//! `export`: certificates and keys in the forms in which others take them. One file for each form.
//!
//! A private key leaves its file only when `--key` names it. Where it goes to a file, that is 0600;
//! a terminal never shows one.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use towline_pki::order::{Chain, order};
use towline_pki::pkcs8::pkcs8;
use towline_pki::store::{self, KeyFile, Replace};
use towline_pki::{
    Anchors, Certificate, PassphraseSource, Passphrases, PrivateKey, PublicKey, Secret, date, pem,
};

use super::answer::{self, Answer};
use super::{EXIT_CODES, Failure, unlock};

mod config_map;
mod egress_selector;
mod kubeconfig;
mod pem_bundle;
mod pkcs12;
mod secret;

const EXAMPLES: &str = "\
Examples:
  towline-pki export pem --cert server-cp-1.crt --chain prod/issuers/servers.crt --out chain.pem
  towline-pki export secret towline-server --namespace kube-system \\
      --cert server-cp-1.crt --key server-cp-1.key | kubectl apply -f -
  towline-pki export config-map towline-trust --namespace kube-system \\
      --from agents.pem=prod/trust/agents.pem --from servers.pem=prod/trust/servers.pem
  towline-pki export kubeconfig --server https://api.example:6443 --ca ca.crt \\
      --cert admin.crt --key admin.key --out admin.conf
  towline-pki export egress-selector --unix /run/towline/door.sock

`towline-pki export FORM --help` has more.";

/// Write certificates in a form that others take: PEM with its chain, a kubeconfig, Secret and
/// ConfigMap manifests, kube-apiserver's EgressSelectorConfiguration, PKCS#12.
///
/// What is read may have any form: text around the blocks, CRLF, a byte order mark, the wrong
/// order. What is written has one: RFC 7468, leaf first, keys as PKCS#8. Without --out it goes to
/// standard output. A private key is written only where --key names one. One that is encrypted is
/// opened first: what is written holds it in the open, except as PKCS#12, which has a passphrase of
/// its own.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Args {
    #[command(subcommand)]
    form: Form,
}

#[derive(clap::Subcommand)]
enum Form {
    Pem(pem_bundle::Args),
    Kubeconfig(kubeconfig::Args),
    Secret(secret::Args),
    ConfigMap(config_map::Args),
    EgressSelector(egress_selector::Args),
    Pkcs12(pkcs12::Args),
}

pub(crate) fn run(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    match &args.form {
        Form::Pem(args) => pem_bundle::run(args, now),
        Form::Kubeconfig(args) => kubeconfig::run(args, now),
        Form::Secret(args) => secret::run(args, now),
        Form::ConfigMap(args) => config_map::run(args, now),
        Form::Pkcs12(args) => pkcs12::run(args, now),
        Form::EgressSelector(args) => egress_selector::run(args),
    }
}

/// Where it goes.
#[derive(clap::Args)]
struct Place {
    /// File to write; without it standard output. With a private key inside, its mode is 0600
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace that file when it is there, in one step
    #[arg(long, requires = "out")]
    replace: bool,
}

/// What is written.
enum Content {
    Public(String),
    /// There is a private key inside.
    Private(Secret),
}

impl Place {
    /// Refuses before anything is read or asked for.
    fn check(&self) -> Result<(), Failure> {
        match &self.out {
            Some(out) if !self.replace => {
                super::paper::refuse_existing(&[out], "choose another file, or add --replace")
            }
            _ => Ok(()),
        }
    }

    /// Writes it and says so. `what` for people: "a Secret manifest"; `holds` for machines.
    fn deliver(
        &self,
        content: &Content,
        what: &str,
        holds: &str,
        shown: &Shown,
    ) -> Result<Answer, Failure> {
        let mut result = json!({
            "certificates": shown.certificates,
            "notes": shown.notes,
            "files": [],
        });
        let Some(out) = &self.out else {
            let text = match content {
                Content::Public(text) => text.clone(),
                Content::Private(_) if io::stdout().is_terminal() => {
                    return Err(Failure::usage(
                        "a private key is not shown on a terminal; add --out FILE, or a pipe",
                    ));
                }
                Content::Private(secret) => text_of(secret)?,
            };
            result["content"] = text.clone().into();
            return Ok(Answer::new(text, result));
        };
        let replace = match self.replace {
            true => Replace::Atomically,
            false => Replace::Never,
        };
        let mode = match content {
            Content::Public(text) => {
                store::write_public(out, text, replace)?;
                "public"
            }
            Content::Private(secret) => {
                store::write_secret(out, secret, replace)?;
                "with a private key, mode 0600"
            }
        };
        result["files"] = json!([answer::file(out, holds)]);
        let mut text = format!("made     {what}\n  file     {}  {mode}\n", out.display());
        for note in &shown.notes {
            text.push_str(&format!("  note     {note}\n"));
        }
        Ok(Answer::new(text, result))
    }
}

fn text_of(secret: &Secret) -> Result<String, Failure> {
    String::from_utf8(secret.expose().to_vec())
        .map_err(|_| Failure::usage("this form is not text; add --out FILE"))
}

/// What went in, for the answer.
#[derive(Default)]
struct Shown {
    certificates: Vec<Value>,
    notes: Vec<String>,
}

impl Shown {
    fn certificate(&mut self, place: &Path, der: &[u8], now: SystemTime) {
        if let Ok(read) = Certificate::parse(der) {
            let mut value = answer::certificate(&read, now);
            value["place"] = place.display().to_string().into();
            self.certificates.push(value);
            if !read.is_current(now) {
                let (subject, begin, end) = (&read.subject, read.not_before, read.not_after);
                let note = match now < begin {
                    true => format!("{subject} is not valid before {}", date::text(begin)),
                    false => format!("{subject} ended at {}", date::text(end)),
                };
                self.notes.push(note);
            }
        }
    }
}

/// Where the passphrase of an encrypted key comes from that is exported.
#[derive(clap::Args)]
struct Open {
    /// File whose first line is the passphrase of the key, when it is encrypted; without it and
    /// --passphrase-fd you are asked
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_fd")]
    passphrase_file: Option<PathBuf>,
    /// Open descriptor to read that passphrase from
    #[arg(long, value_name = "NUMBER")]
    passphrase_fd: Option<u32>,
}

impl Open {
    fn passphrases(&self) -> Passphrases {
        let source = unlock::source(&self.passphrase_file, self.passphrase_fd);
        Passphrases::new(source.unwrap_or(PassphraseSource::Terminal), "")
    }
}

/// A private key that was read: as PEM, and its public half.
struct Key {
    pem: Secret,
    public: PublicKey,
}

/// A key that is encrypted is opened, and that is said.
fn read_key(path: &Path, passphrases: &mut Passphrases, shown: &mut Shown) -> Result<Key, Failure> {
    let named = |error| Failure::file(format!("{}: {error}", path.display()));
    let der = match store::read_key_file(path)? {
        KeyFile::Plain(der) => der,
        KeyFile::Encrypted(_) => {
            let key = PrivateKey::unlock(path, passphrases)?;
            let what = format!("{}: was encrypted; what is written is not", path.display());
            shown.notes.push(what);
            return Ok(Key {
                pem: key.to_pem(),
                public: key.public(),
            });
        }
    };
    let public = PrivateKey::from_der(&der).map_err(named)?.public();
    let pkcs8 = pkcs8(&der).map_err(named)?;
    Ok(Key {
        pem: pem::write_private_key(pkcs8.expose()),
        public,
    })
}

/// Every certificate of a file, none of them damaged.
fn read_whole(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let all = store::read_certificates(path)?;
    for (index, der) in all.iter().enumerate() {
        Certificate::parse(der.as_ref()).map_err(|error| {
            let number = index + 1;
            Failure::file(format!("{}: certificate {number}: {error}", path.display()))
        })?;
    }
    Ok(all)
}

/// A leaf with what is above it, out of its file and others.
fn read_chain(
    cert: &Path,
    above: &[PathBuf],
    key: Option<&Key>,
    shown: &mut Shown,
    now: SystemTime,
) -> Result<Chain, Failure> {
    let mut all = read_whole(cert)?;
    for path in above {
        all.extend(read_whole(path)?);
    }
    let chain = order(&all, key.map(|key| &key.public))
        .map_err(|error| Failure::file(format!("{}: {error}", cert.display())))?;
    for der in &chain.certificates {
        shown.certificate(cert, der.as_ref(), now);
    }
    if chain.moved && chain.apart.is_empty() {
        let note = "the certificates were not in order; what is written is";
        shown.notes.push(note.to_owned());
    }
    for subject in &chain.apart {
        let note = format!("{subject} is no part of the chain and was left out");
        shown.notes.push(note);
    }
    Ok(chain)
}

/// A bundle of authorities, as PEM.
fn read_authorities(path: &Path, shown: &mut Shown, now: SystemTime) -> Result<String, Failure> {
    let all = store::read_certificates(path)?;
    Anchors::new(&all).map_err(|error| Failure::file(format!("{}: {error}", path.display())))?;
    for der in &all {
        shown.certificate(path, der.as_ref(), now);
    }
    Ok(pem::write_certificates(&all))
}
