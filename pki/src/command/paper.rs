//! What `issue` and `sign` share: the names asked for, the certificate file, and the report of
//! what was made, for which names, until when, and what to do next.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::json;
use towline_pki::store::{self, Replace};
use towline_pki::{Identity, Issue, Issued, PublicKey, date};
use towline_proto::id::{Name, Role};

use super::answer::{self, Answer};
use super::source::{Signing, Trust};
use super::{Failure, deny};

/// The flags that say what goes into a certificate.
#[derive(clap::Args)]
pub(crate) struct Names {
    /// DNS name; servers and kubelets only (repeat or separate by commas)
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) dns: Vec<String>,
    /// IP address: of an agent's node (it is what the agent may serve), or of a server's door,
    /// or of a kubelet
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub(crate) ip: Vec<IpAddr>,
    /// Life in days instead of the role's default (server 365, agent 90, client 365,
    /// operator 30, kubelet-serving 90)
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..=36_500))]
    pub(crate) days: Option<u64>,
}

/// Issues the certificate and writes down that it was issued.
pub(crate) fn issue(
    signing: &Signing,
    role: Role,
    name: &Name,
    names: &Names,
    public_key: PublicKey,
    by: &str,
    now: SystemTime,
) -> Result<Issued, Failure> {
    let issue = Issue {
        identity: Identity::new(signing.cluster.clone(), role, name.clone()),
        dns: names.dns.clone(),
        ips: names.ip.clone(),
        life: names.days.map(|days| Duration::from_secs(days * 86_400)),
        public_key,
    };
    deny::refuse_denied(&signing.denied, &issue.identity)?;
    let issued = signing.authority.issue(&issue, now)?;
    record(signing, &issued, by, now)?;
    Ok(issued)
}

/// Writes down that a certificate was issued; before that it is nobody's.
pub(crate) fn record(
    signing: &Signing,
    issued: &Issued,
    by: &str,
    now: SystemTime,
) -> Result<(), Failure> {
    let leaf = issued.chain.first().map(|der| der.as_ref());
    Ok(signing.ledger.record(leaf, by, now)?)
}

/// `DIR/<role>-<name>.<end>`.
pub(crate) fn file(dir: &Path, role: Role, name: &Name, end: &str) -> PathBuf {
    dir.join(format!("{role}-{name}.{end}"))
}

/// Refuses before anything is made when a file is in the way.
pub(crate) fn refuse_existing(paths: &[&Path], advice: &str) -> Result<(), Failure> {
    match paths.iter().find(|path| path.symlink_metadata().is_ok()) {
        Some(path) => Err(Failure::failed(format!(
            "nothing was changed: {} is there already; {advice}",
            path.display()
        ))),
        None => Ok(()),
    }
}

/// Refuses before anything is signed when there is no place for it.
pub(crate) fn need_directory(dir: &Path) -> Result<(), Failure> {
    match dir.is_dir() {
        true => Ok(()),
        false => Err(Failure::failed(format!(
            "nothing was changed: {} is no directory; make it first",
            dir.display()
        ))),
    }
}

/// Writes the certificate.
pub(crate) fn write(issued: &Issued, path: &Path, replace: Replace) -> Result<(), Failure> {
    Ok(store::write_public(path, &issued.to_pem(), replace)?)
}

/// What was made, for which names, until when, and the next step.
pub(crate) fn report(
    issued: &Issued,
    signing: &Signing,
    cert: &Path,
    key: Option<&Path>,
    now: SystemTime,
) -> Answer {
    let leaf = &issued.leaf;
    let identity = &leaf.identity;
    let (role, name) = (identity.role, &identity.name);
    let mut names: Vec<String> = leaf.dns_sans.iter().map(|n| format!("DNS {n}")).collect();
    names.extend(leaf.ip_sans.iter().map(|ip| format!("IP {ip}")));
    let names = match (names.is_empty(), role) {
        (false, _) => names.join(", "),
        (true, Role::Agent) => "none: without --ip this agent serves no address of its node \
                                unless the server knows it otherwise"
            .into(),
        (true, Role::Server) => {
            "none: front ends that match host names (kube-apiserver over TCP, curl) need --dns \
             or --ip"
                .into()
        }
        (true, _) => "none".into(),
    };
    let short = if issued.cut_short {
        "; cut short, because its authority ends then"
    } else {
        ""
    };
    let cert_text = cert.display();
    let key_line = match key {
        Some(key) => format!(
            "\x20 file     {}  private key, mode 0600; it goes to that machine and nowhere else\n",
            key.display()
        ),
        None => String::new(),
    };
    let key_text = key.map_or_else(
        || cert.with_extension("key").display().to_string(),
        |key| key.display().to_string(),
    );
    let text = format!(
        "made     certificate of {role} {name}, cluster {cluster}\n\
         \x20 identity {identity}\n\
         \x20 names    {names}\n\
         \x20 valid    {before} to {after} ({left}{short})\n\
         \x20 serial   {serial}\n\
         \x20 issuer   {issuer}\n\
         \x20 file     {cert_text}  certificate, public\n\
         {key_line}\n\
         next     {next}\n",
        cluster = identity.cluster,
        before = date::text(leaf.not_before),
        after = date::text(leaf.not_after),
        left = date::distance(now, leaf.not_after),
        serial = leaf.serial,
        issuer = leaf.issuer,
        next = next_step(role, &cert_text.to_string(), &key_text, &signing.trust),
    );
    let mut files = vec![answer::file(cert, "certificate")];
    files.extend(key.map(|key| answer::file(key, "private-key")));
    let result = json!({
        "certificates": answer::issued(issued, now),
        "cutShort": issued.cut_short,
        "files": files,
    });
    Answer::new(text, result)
}

fn next_step(role: Role, cert: &str, key: &str, trust: &Trust) -> String {
    let (agents, servers) = (trust.agents.display(), trust.servers.display());
    match role {
        Role::Server => format!(
            "beside kube-apiserver: towline-server --cert {cert} --key {key} \\\n           \
             --agent-ca {agents} --client-ca {servers}"
        ),
        Role::Agent => format!(
            "on the node: towline-agent --server HOST:8091 --cert {cert} --key {key} \\\n           \
             --server-ca {servers}"
        ),
        Role::Client => format!(
            "in kube-apiserver's EgressSelectorConfiguration: clientCert {cert}, clientKey {key},\n           \
             caBundle {servers}; and on the server: --door-allow with this name"
        ),
        Role::Operator => format!("give both to that person: {cert}, {key}"),
    }
}
