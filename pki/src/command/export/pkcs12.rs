//! `export pkcs12`: a key and its chain under a passphrase, for programs that take nothing else.

use std::path::PathBuf;
use std::time::SystemTime;

use towline_pki::pkcs12::pkcs12;
use towline_pki::{PassphraseSource, Passphrases, Secret, pem};

use super::{Content, EXIT_CODES, Failure, Place, Shown, read_chain, read_key};
use crate::command::answer::Answer;
use crate::command::unlock;

const EXAMPLES: &str = "\
Examples:
  towline-pki export pkcs12 --cert operator-al.crt --key operator-al.key --out al.p12
  towline-pki export pkcs12 --cert a.crt --chain ca.crt --key a.key --out a.p12 --passphrase-file pass
Then:
  openssl pkcs12 -in al.p12 -info -nodes";

/// PKCS#12: AES-256, PBKDF2 and HMAC-SHA-256, which openssl reads since 1.1 and Java since 8u301.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(super) struct Args {
    /// File with the certificate, perhaps with others, in any order
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// Its private key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// File with certificates above it (may be given several times)
    #[arg(long, value_name = "FILE")]
    chain: Vec<PathBuf>,
    /// File whose first line is the passphrase of what is made; without it and --passphrase-fd you
    /// are asked, twice
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_fd")]
    passphrase_file: Option<PathBuf>,
    /// Open descriptor to read that passphrase from
    #[arg(long, value_name = "NUMBER")]
    passphrase_fd: Option<u32>,
    /// File whose first line is the passphrase of --key, when that is encrypted; without it and
    /// --key-passphrase-fd you are asked
    #[arg(long, value_name = "FILE", conflicts_with = "key_passphrase_fd")]
    key_passphrase_file: Option<PathBuf>,
    /// Open descriptor to read the passphrase of --key from
    #[arg(long, value_name = "NUMBER")]
    key_passphrase_fd: Option<u32>,
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    args.place.check()?;
    if args.place.out.is_none() {
        return Err(Failure::usage("PKCS#12 is not text; add --out FILE"));
    }
    let mut shown = Shown::default();
    let own = unlock::source(&args.key_passphrase_file, args.key_passphrase_fd);
    let mut own = Passphrases::new(own.unwrap_or(PassphraseSource::Terminal), "key-");
    let key = read_key(&args.key, &mut own, &mut Shown::default())?;
    let chain = read_chain(&args.cert, &args.chain, Some(&key), &mut shown, now)?;
    let mut certificates = chain.certificates;
    certificates.extend(chain.root);
    let source = unlock::source(&args.passphrase_file, args.passphrase_fd);
    let mut passphrases = Passphrases::new(source.unwrap_or(PassphraseSource::Terminal), "");
    let passphrase = passphrases.choose("the PKCS#12 file")?;
    let der = pem::private_key(key.pem.expose()).map_err(Failure::file)?;
    let inner = towline_pki::pkcs8::pkcs8(&der).map_err(Failure::file)?;
    let made = pkcs12(inner.expose(), &certificates, passphrase).map_err(Failure::failed)?;
    let what = format!("PKCS#12 with a key and {} certificates", certificates.len());
    let content = Content::Private(Secret::new(made));
    args.place.deliver(&content, &what, "pkcs12", &shown)
}
