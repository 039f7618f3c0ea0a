//! `issue`: a new key and its certificate in one step.

use std::path::PathBuf;
use std::time::SystemTime;

use towline_pki::store::{self, Replace};
use towline_pki::{KeyKind, PrivateKey};
use towline_proto::id::{Name, Role};

use super::answer::Answer;
use super::paper::{self, Names};
use super::source::Source;
use super::{EXIT_CODES, Failure};

const EXAMPLES: &str = "\
Examples:
  towline-pki issue --dir /secure/prod server cp-1 --dns cp.example --ip 10.0.0.1
  towline-pki issue --dir /secure/prod agent node-7 --ip 10.0.1.7,fd00::7
  towline-pki issue --dir /secure/prod client kube-apiserver
  towline-pki issue --dir /secure/prod operator alice --days 7
  towline-pki issue --ca-cert ca.crt --ca-key ca.key --cluster prod server cp-1

The key is best made where it is used: see `towline-pki request` and `sign`.";

/// Make a new key and a certificate for it: ROLE-NAME.key and ROLE-NAME.crt.
///
/// Roles: server (beside kube-apiserver), agent (on a node; NAME is the node name), client (a
/// front end such as kube-apiserver, over TCP), operator (a person).
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Args {
    /// server, agent, client or operator
    role: Role,
    /// Name in the identity; of an agent the node name
    name: Name,
    #[command(flatten)]
    names: Names,
    #[command(flatten)]
    source: Source,
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
    /// Replace both files when they are there (renewal); a crash leaves a pair that works
    #[arg(long)]
    replace: bool,
}

pub(crate) fn run(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    let path = |end| paper::file(&args.out, args.role, &args.name, end);
    let (cert, key) = (path("crt"), path("key"));
    if !args.replace {
        let advice = "to renew, add --replace: it makes a new key and certificate in its place";
        paper::refuse_existing(&[&key, &cert], advice)?;
    }
    paper::need_directory(&args.out)?;
    let signing = args.source.open(args.role, now)?;
    let private = PrivateKey::generate(args.key_kind).map_err(Failure::failed)?;
    let public = private.public();
    let issued = paper::issue(
        &signing,
        args.role,
        &args.name,
        &args.names,
        public,
        "issue",
        now,
    )?;
    if args.replace {
        store::replace_pair(&cert, &issued.to_pem(), &key, &private.to_pem())?;
    } else {
        store::write_secret(&key, &private.to_pem(), Replace::Never)?;
        paper::write(&issued, &cert, Replace::Never)?;
    }
    Ok(paper::report(&issued, &signing, &cert, Some(&key), now))
}
