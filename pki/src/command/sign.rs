//! `sign`: a certificate for the key of a signing request.

use std::path::PathBuf;
use std::time::SystemTime;

use towline_pki::Request;
use towline_pki::store::Replace;
use towline_proto::id::{Name, Role};

use super::answer::Answer;
use super::paper::{self, Names};
use super::source::Source;
use super::{EXIT_CODES, Failure};

const EXAMPLES: &str = "\
Example:
  towline-pki sign agent-node-7.csr --dir /secure/prod --role agent --name node-7 --ip 10.0.1.7";

/// Sign a request: ROLE-NAME.crt.
///
/// Only the public key is taken from the request, after its sender proved to hold the private one.
/// Names, usages and life come from this command line and the role; what the request asks for is
/// shown and not signed.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Args {
    /// File with the request (PEM)
    request: PathBuf,
    /// server, agent, client or operator
    #[arg(long)]
    role: Role,
    /// Name in the identity; of an agent the node name
    #[arg(long)]
    name: Name,
    #[command(flatten)]
    names: Names,
    #[command(flatten)]
    source: Source,
    /// Directory for the certificate
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// Replace the certificate when it is there (renewal of the same key)
    #[arg(long)]
    replace: bool,
}

pub(crate) fn run(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    let cert = paper::file(&args.out, args.role, &args.name, "crt");
    let replace = if args.replace {
        Replace::Atomically
    } else {
        paper::refuse_existing(&[&cert], "to renew it, add --replace")?;
        Replace::Never
    };
    let request = Request::load(&args.request)?;
    paper::need_directory(&args.out)?;
    let signing = args.source.open(args.role, now)?;
    let key = request.public_key().clone();
    let kind = key.describe();
    let issued = paper::issue(
        &signing,
        args.role,
        &args.name,
        &args.names,
        key,
        "sign",
        now,
    )?;
    paper::write(&issued, &cert, replace)?;
    let took = format!(
        "took     the {kind} key of {}; its sender holds it\n\
         ignored  what else it asks for: {}\n",
        args.request.display(),
        request.asked().join(", "),
    );
    let mut answer = paper::report(&issued, &signing, &cert, None, now);
    answer.prepend(&took);
    answer.add("ignored", request.asked().into());
    Ok(answer)
}
