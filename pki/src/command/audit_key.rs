//! `audit-key`: the key with which a server signs the checkpoints of its audit trail.

use std::path::PathBuf;

use serde_json::json;
use towline_pki::store::{self, Replace};
use towline_pki::{KeyKind, PrivateKey, SealKey, SealPublic, pem};

use super::answer::{self, Answer};
use super::{EXIT_CODES, Failure, paper};

const EXAMPLES: &str = "\
Example, on the server's machine:
  towline-pki audit-key --out /etc/towline
Then:
  towline-server ... --audit-log /var/log/towline/audit.log --audit-key /etc/towline/audit.key
  towline-server audit verify /var/log/towline/audit.log* --key audit.pub";

/// Make the key that signs the checkpoints of a server's audit trail: audit.key and audit.pub.
///
/// It is no certificate and proves nothing else. Keep the public half where the trail is checked,
/// away from the server: who can change it there can pass a forged trail off.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Args {
    /// Directory for the two files
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// Kind of the key: ed25519 or ecdsa-p256
    #[arg(long = "key-algorithm", alias = "key-kind", value_name = "ALGORITHM", default_value_t = SealKey::KINDS[0])]
    key_kind: KeyKind,
}

pub(crate) fn run(args: &Args) -> Result<Answer, Failure> {
    if !SealKey::KINDS.contains(&args.key_kind) {
        return Err(Failure::usage(format!(
            "--key-algorithm {}: checkpoints are signed with ed25519 or ecdsa-p256",
            args.key_kind
        )));
    }
    let (key, public) = (args.out.join("audit.key"), args.out.join("audit.pub"));
    let advice = "choose another directory with --out, or move the old files away";
    paper::refuse_existing(&[&key, &public], advice)?;
    let private = PrivateKey::generate(args.key_kind).map_err(Failure::failed)?;
    let text = pem::write_public_key(private.public().der());
    store::write_secret(&key, &private.to_pem(), Replace::Never)?;
    store::write_public(&public, &text, Replace::Never)?;
    let id = SealPublic::load(&public).map_err(Failure::file)?;
    let text = format!(
        "made     audit key {id} ({kind})\n\
         \x20 file     {key}  private key, mode 0600, for --audit-key\n\
         \x20 file     {public}  public key, for towline-server audit verify --key\n\
         \n\
         next     keep a copy of {public} away from the server\n",
        id = id.id(),
        kind = args.key_kind,
        key = key.display(),
        public = public.display(),
    );
    let result = json!({
        "id": id.id().to_string(),
        "key": private.public().describe(),
        "files": [answer::file(&key, "private-key"), answer::file(&public, "public-key")],
    });
    Ok(Answer::new(text, result))
}
