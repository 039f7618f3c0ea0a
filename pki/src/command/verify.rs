//! `verify`: what a daemon would say to a certificate, without a daemon.

use std::path::PathBuf;
use std::time::SystemTime;

use serde_json::{Value, json};
use towline_pki::{
    Anchors, Certificate, DenyList, Leaf, PeerError, PeerVerifier, VerifiedPeer, date, store,
};
use towline_proto::id::{ClusterName, Role};

use super::answer::{self, Answer};
use super::{EXIT_CODES, Failure};

const EXAMPLES: &str = "\
Examples:
  towline-pki verify agent-node-7.crt --role agent --trust trust/agents.pem
  towline-pki verify agent-node-7.crt --role agent --trust trust/agents.pem --cluster prod \\
      --deny-list denied.txt -o json";

/// Check a certificate exactly as a daemon checks a peer: chain, dates, usage, one identity,
/// cluster, role, deny list.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Args {
    /// File with the certificate, followed by its intermediates if there are any (PEM)
    file: PathBuf,
    /// Role that the certificate must have
    #[arg(long)]
    role: Role,
    /// Trust anchors for that role (PEM)
    #[arg(long, value_name = "FILE")]
    trust: PathBuf,
    /// Cluster that the certificate must be of; without it any cluster will do
    #[arg(long, value_name = "NAME")]
    cluster: Option<ClusterName>,
    /// Deny list
    #[arg(long, value_name = "FILE")]
    deny_list: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    let chain = store::read_certificates(&args.file)?;
    let anchors = Anchors::load(&args.trust)?;
    let deny = match &args.deny_list {
        Some(path) => DenyList::load(path)?,
        None => DenyList::default(),
    };
    let verdict = match cluster(args, &chain) {
        Ok(cluster) => PeerVerifier::new(cluster, args.role, anchors, deny).verify(&chain, now),
        Err(error) => Err(error),
    };
    let shown: Vec<Value> = chain
        .iter()
        .filter_map(|der| Certificate::parse(der.as_ref()).ok())
        .map(|certificate| answer::certificate(&certificate, now))
        .collect();
    match verdict {
        Ok(peer) => {
            let result = json!({
                "verified": true,
                "identity": peer.identity().to_string(),
                "serial": peer.leaf().serial.to_string(),
                "validUntil": date::text(peer.valid_until()),
                "certificates": shown,
            });
            Ok(Answer::new(as_text(args, &peer, now), result))
        }
        Err(error) => {
            let result = json!({
                "verified": false,
                "cause": error.as_str(),
                "reason": error.to_string(),
                "certificates": shown,
            });
            let failure = Failure::failed(format!("{}: {error}", args.file.display()));
            Err(failure.with_answer(Answer::new(String::new(), result)))
        }
    }
}

/// The cluster asked for, or the one of the certificate: then that rule is left to the reader.
fn cluster(
    args: &Args,
    chain: &[rustls_pki_types::CertificateDer<'static>],
) -> Result<ClusterName, PeerError> {
    if let Some(cluster) = &args.cluster {
        return Ok(cluster.clone());
    }
    let first = chain.first().ok_or(PeerError::NoCertificate)?;
    Ok(Leaf::parse(first)?.identity.cluster)
}

fn as_text(args: &Args, peer: &VerifiedPeer, now: SystemTime) -> String {
    let end = peer.valid_until();
    let note = match args.cluster {
        Some(_) => "",
        None => "\n  note      the cluster was not checked; name it with --cluster",
    };
    format!(
        "verified {}\n  serial    {}\n  until     {} ({}){note}\n",
        peer.identity(),
        peer.leaf().serial,
        date::text(end),
        date::distance(now, end),
    )
}
