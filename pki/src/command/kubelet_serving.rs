//! `sign --role kubelet-serving`: the serving certificate of one kubelet, by the rules of
//! `kubernetes.io/kubelet-serving`, for names that the command line gives.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde_json::json;
use towline_pki::kubelet::{ServingIssueError, ServingRefusal, ServingRequest, ServingSpec};
use towline_pki::store::{self, Replace};
use towline_pki::{Authority, Certificate, date};
use towline_proto::address;
use towline_proto::id::Role;
use towline_proto::target::HostName;

use super::answer::{self, Answer};
use super::{Failure, paper, sign};

/// What `sign` signs for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// An identity of Towline's.
    Role(Role),
    /// A kubelet's port.
    KubeletServing,
}

impl fmt::Display for For {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            For::Role(role) => role.fmt(f),
            For::KubeletServing => f.write_str("kubelet-serving"),
        }
    }
}

/// A word that names neither.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown role {0:?}: use agent, client, operator, server or kubelet-serving")]
pub(crate) struct UnknownFor(String);

impl FromStr for For {
    type Err = UnknownFor;
    fn from_str(text: &str) -> Result<Self, UnknownFor> {
        if text == "kubelet-serving" {
            return Ok(For::KubeletServing);
        }
        let unknown = |_| UnknownFor(text.chars().take(32).collect());
        text.parse().map(For::Role).map_err(unknown)
    }
}

impl From<ServingIssueError> for Failure {
    fn from(error: ServingIssueError) -> Self {
        match error {
            ServingIssueError::Mint(_) => Self::failed(error),
            ServingIssueError::Life
            | ServingIssueError::NoNames
            | ServingIssueError::ForbiddenIp { .. } => Self::usage(error),
            ServingIssueError::Usage { .. }
            | ServingIssueError::OutlivesAuthority { .. }
            | ServingIssueError::Ended { .. } => Self::file(error),
        }
    }
}

fn refused(args: &sign::Args, refusal: &ServingRefusal) -> Failure {
    let path = args.request.display();
    match refusal {
        ServingRefusal::Request(_) | ServingRefusal::Several => {
            Failure::file(format!("{path}: {refusal}"))
        }
        refusal => Failure::failed(format!("nothing was signed: {path}: {refusal}")),
    }
}

/// Every name that is asked for has to be one that the command line gives.
fn check_names(args: &sign::Args, asked: &ServingRequest) -> Result<(), Failure> {
    let refuse = |text: String| Err(Failure::failed(format!("nothing was signed: {text}")));
    if *asked.node() != args.name {
        return refuse(format!(
            "the request is for node {}, and --name is {}",
            asked.node(),
            args.name
        ));
    }
    let mut dns = Vec::new();
    for text in &args.names.dns {
        let name: HostName = text.parse().map_err(Failure::usage)?;
        dns.push(name);
    }
    for name in asked.dns() {
        if name.as_str() != args.name.as_str() && !dns.contains(name) {
            return refuse(format!(
                "the request asks for DNS name {name}; if it is this node's, add --dns {name}"
            ));
        }
    }
    let named = |ip| {
        let mut given = args.names.ip.iter();
        given.any(|one| address::canonical(*one) == ip)
    };
    match asked.ips().iter().find(|ip| !named(**ip)) {
        Some(ip) => refuse(format!(
            "the request asks for IP {ip}; if it is this node's, add --ip {ip}"
        )),
        None => Ok(()),
    }
}

pub(crate) fn run(args: &sign::Args, now: SystemTime) -> Result<Answer, Failure> {
    let (Some(ca_cert), Some(ca_key)) = (&args.source.ca_cert, &args.source.ca_key) else {
        return Err(Failure::usage(
            "--role kubelet-serving needs --ca-cert and --ca-key: the authority that kubelets' \
             verifiers believe, in kubeadm's clusters /etc/kubernetes/pki/ca.crt and ca.key",
        ));
    };
    let cert = args.out.join(format!("kubelet-serving-{}.crt", args.name));
    let replace = if args.replace {
        Replace::Atomically
    } else {
        paper::refuse_existing(&[&cert], "to renew it, add --replace")?;
        Replace::Never
    };
    let asked = ServingRequest::load(&args.request).map_err(|error| refused(args, &error))?;
    check_names(args, &asked)?;
    paper::need_directory(&args.out)?;
    let mut passphrases = args.source.unlock.passphrases();
    let authority = Authority::unlock(ca_cert, ca_key, &mut passphrases, now)?;
    let spec = ServingSpec {
        node: asked.node().clone(),
        dns: asked.dns().to_vec(),
        ips: asked.ips().to_vec(),
        life: args
            .names
            .days
            .map(|days| Duration::from_secs(days * 86_400)),
    };
    let issued = spec.issue(&authority, asked.public_key(), now)?;
    let leaf = Some(issued.der.as_ref());
    args.source.ledger().record(leaf, "sign", now)?;
    store::write_public(&cert, &issued.to_pem(), replace)?;
    let read = Certificate::parse(&issued.der)?;
    let mut names: Vec<String> = asked.dns().iter().map(|n| format!("DNS {n}")).collect();
    names.extend(asked.ips().iter().map(|ip| format!("IP {ip}")));
    let short = match issued.cut_short {
        true => "; cut short, because its authority ends then",
        false => "",
    };
    let text = format!(
        "made     serving certificate of the kubelet of node {node}\n\
         \x20 names    {names}\n\
         \x20 key      {kind}, of {request}; its sender holds it\n\
         \x20 valid    {before} to {after} ({left}{short})\n\
         \x20 serial   {serial}\n\
         \x20 issuer   {issuer}\n\
         \x20 file     {cert}  certificate, public\n\
         \n\
         next     on the node, in the kubelet's configuration: tlsCertFile and tlsPrivateKeyFile,\n\
         \x20        without serverTLSBootstrap; then `towline-server kubelets` shows it\n",
        node = args.name,
        names = names.join(", "),
        kind = asked.public_key().describe(),
        request = args.request.display(),
        before = date::text(issued.not_before),
        after = date::text(issued.not_after),
        left = date::distance(now, issued.not_after),
        serial = read.serial,
        issuer = read.issuer,
        cert = cert.display(),
    );
    let result = json!({
        "certificates": [answer::certificate(&read, now)],
        "files": [answer::file(&cert, "certificate")],
    });
    Ok(Answer::new(text, result))
}
