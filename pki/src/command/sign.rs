//! `sign`: a certificate for the key of a signing request.

use std::path::PathBuf;
use std::time::SystemTime;

use towline_pki::Request;
use towline_pki::store::Replace;
use towline_proto::id::Name;

use super::answer::Answer;
use super::kubelet_serving::{self, For};
use super::paper::{self, Names};
use super::source::Source;
use super::{EXIT_CODES, Failure};

const EXAMPLES: &str = "\
Example:
  towline-pki sign agent-node-7.csr --dir /secure/prod --role agent --name node-7 --ip 10.0.1.7
  towline-pki sign kubelet.csr --role kubelet-serving --name node-7 --ip 10.0.1.7 \\
    --ca-cert /etc/kubernetes/pki/ca.crt --ca-key /etc/kubernetes/pki/ca.key";

/// Sign a request: ROLE-NAME.crt.
///
/// Only the public key is taken from the request, after its sender proved to hold the private one.
/// Names, usages and life come from this command line and the role; what the request asks for is
/// shown and not signed.
///
/// Role kubelet-serving is the exception: a kubelet's request has to be exactly one for that
/// node's serving certificate (O=system:nodes, CN=system:node:NAME), and every name in it one
/// that the command line gives; then these names are signed.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Args {
    /// File with the request (PEM)
    pub(crate) request: PathBuf,
    /// server, agent, client, operator or kubelet-serving
    #[arg(long)]
    role: For,
    /// Name in the identity; of an agent or a kubelet the node name
    #[arg(long)]
    pub(crate) name: Name,
    #[command(flatten)]
    pub(crate) names: Names,
    #[command(flatten)]
    pub(crate) source: Source,
    /// Directory for the certificate
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) out: PathBuf,
    /// Replace the certificate when it is there (renewal of the same key)
    #[arg(long)]
    pub(crate) replace: bool,
}

pub(crate) fn run(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    let role = match args.role {
        For::Role(role) => role,
        For::KubeletServing => return kubelet_serving::run(args, now),
    };
    let cert = paper::file(&args.out, role, &args.name, "crt");
    let replace = if args.replace {
        Replace::Atomically
    } else {
        paper::refuse_existing(&[&cert], "to renew it, add --replace")?;
        Replace::Never
    };
    let request = Request::load(&args.request)?;
    paper::need_directory(&args.out)?;
    let signing = args.source.open(role, now)?;
    let key = request.public_key().clone();
    let kind = key.describe();
    let issued = paper::issue(&signing, role, &args.name, &args.names, key, "sign", now)?;
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
