//! `request`: a key and a signing request, made where the key will be used.

use std::path::PathBuf;

use serde_json::json;
use towline_pki::store::{self, Replace};
use towline_pki::{KeyKind, PrivateKey, Request};
use towline_proto::id::{Name, Role};

use super::answer::{self, Answer};
use super::{EXIT_CODES, Failure, paper};

const EXAMPLES: &str = "\
Example, on the node:
  towline-pki request agent node-7 --out /etc/towline
Then, where the authority is:
  towline-pki sign agent-node-7.csr --dir /secure/prod --role agent --name node-7 --ip 10.0.1.7";

/// Make a private key and a signing request for it: ROLE-NAME.key and ROLE-NAME.csr.
///
/// The key never leaves the machine; the request may travel any way.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Args {
    /// server, agent, client or operator
    role: Role,
    /// Name for the identity; of an agent the node name
    name: Name,
    /// Directory for the two files
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// Algorithm of the key: ecdsa-p256, ecdsa-p384, ed25519, rsa-2048, rsa-3072 or rsa-4096
    #[arg(
        long = "key-algorithm",
        alias = "key-kind",
        value_name = "ALGORITHM",
        default_value_t
    )]
    key_kind: KeyKind,
}

pub(crate) fn run(args: &Args) -> Result<Answer, Failure> {
    let (role, name) = (args.role, &args.name);
    let path = |end| paper::file(&args.out, role, name, end);
    let (csr, key) = (path("csr"), path("key"));
    let advice = "choose another directory with --out, or move the old files away";
    paper::refuse_existing(&[&key, &csr], advice)?;
    let private = PrivateKey::generate(args.key_kind).map_err(Failure::failed)?;
    let request = Request::make(&private, &format!("towline:{role}:{name}"))?;
    store::write_secret(&key, &private.to_pem(), Replace::Never)?;
    store::write_public(&csr, &request, Replace::Never)?;
    let text = format!(
        "made     signing request of {role} {name}\n\
         \x20 file     {csr}  request, public\n\
         \x20 file     {key}  private key, mode 0600; it stays on this machine\n\
         \n\
         next     where the authority is: towline-pki sign {file} --dir DIR --role {role} --name {name}\n\
         \x20        then bring {role}-{name}.crt back beside the key\n",
        csr = csr.display(),
        key = key.display(),
        file = csr
            .file_name()
            .map(|n| n.to_string_lossy())
            .unwrap_or_default(),
    );
    let result = json!({
        "key": private.public().describe(),
        "files": [answer::file(&csr, "request"), answer::file(&key, "private-key")],
    });
    Ok(Answer::new(text, result))
}
