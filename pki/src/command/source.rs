//! Where the signing authority comes from: a directory made by `init`, or two files of an
//! authority that is there already.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use towline_pki::hierarchy::succession;
use towline_pki::ledger::LEDGER_FILE;
use towline_pki::{Authority, Layout, Ledger, Seat, store};
use towline_proto::id::{ClusterName, Role};

use super::Failure;
use super::book::Book;
use super::unlock::Unlock;

/// The flags that choose the authority.
#[derive(clap::Args)]
pub(crate) struct Source {
    /// Directory that `towline-pki init` made
    #[arg(long, value_name = "DIR", default_value = ".", env = "TOWLINE_PKI_DIR")]
    pub(crate) dir: PathBuf,
    /// Certificate of another authority (kubeadm's, for example) instead of DIR's issuer
    #[arg(long, value_name = "FILE", requires = "ca_key")]
    pub(crate) ca_cert: Option<PathBuf>,
    /// Private key of that authority
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    pub(crate) ca_key: Option<PathBuf>,
    /// Name of the cluster, with --ca-cert; otherwise DIR knows it
    #[arg(long, value_name = "NAME", requires = "ca_cert")]
    pub(crate) cluster: Option<ClusterName>,
    /// Where it is written down what was issued [default: DIR/issued.jsonl; with --ca-cert beside it, as
    /// NAME.issued.jsonl]
    #[arg(long, value_name = "FILE")]
    pub(crate) ledger: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) unlock: Unlock,
}

/// The authority that signs, and for which cluster.
pub(crate) struct Signing {
    pub(crate) authority: Authority,
    pub(crate) cluster: ClusterName,
    /// Names that get no certificates.
    pub(crate) denied: PathBuf,
    /// What it issued: every certificate is there before it is handed out.
    pub(crate) ledger: Ledger,
    /// Where peers' trust files are, for the "next step".
    pub(crate) trust: Trust,
}

/// The trust files of a cluster.
pub(crate) struct Trust {
    pub(crate) agents: PathBuf,
    pub(crate) servers: PathBuf,
}

impl Source {
    /// What the authority issued.
    pub(crate) fn ledger(&self) -> Ledger {
        match (&self.ledger, &self.ca_cert) {
            (Some(path), _) => Ledger::at(path),
            (None, Some(cert)) => Ledger::at(cert.with_extension(LEDGER_FILE)),
            (None, None) => Ledger::in_dir(&self.dir),
        }
    }

    /// The cluster's name.
    pub(crate) fn cluster_name(&self) -> Result<ClusterName, Failure> {
        match &self.cluster {
            Some(cluster) => Ok(cluster.clone()),
            None => read_cluster(&self.dir),
        }
    }

    /// Loads the issuer of certificates of this role.
    pub(crate) fn open(&self, role: Role, now: SystemTime) -> Result<Signing, Failure> {
        let mut passphrases = self.unlock.passphrases();
        if let (Some(cert), Some(key), Some(cluster)) = (&self.ca_cert, &self.ca_key, &self.cluster)
        {
            return Ok(Signing {
                authority: Authority::unlock(cert, key, &mut passphrases, now)?,
                cluster: cluster.clone(),
                ledger: self.ledger(),
                denied: Book::of(self).denied(),
                trust: Trust {
                    agents: cert.clone(),
                    servers: cert.clone(),
                },
            });
        }
        if self.ca_cert.is_some() {
            return Err(Failure::usage(
                "--ca-cert needs --cluster NAME: the cluster of the identities that it signs",
            ));
        }
        let cluster = read_cluster(&self.dir)?;
        let layout = Layout::new(&self.dir);
        let seat = Seat::issuer_of(role);
        Ok(Signing {
            authority: succession::open(&layout, seat, &mut passphrases, now)?,
            cluster,
            ledger: self.ledger(),
            denied: Book::of(self).denied(),
            trust: Trust {
                agents: self.dir.join("trust/agents.pem"),
                servers: self.dir.join("trust/servers.pem"),
            },
        })
    }
}

/// The name of the cluster that a directory is of.
pub(crate) fn read_cluster(dir: &Path) -> Result<ClusterName, Failure> {
    let path = dir.join("cluster");
    let bytes = store::read(&path).map_err(|error| {
        Failure::file(format!(
            "{error}\n  {} is no directory of `towline-pki init`; name one with --dir, or an \
             authority of your own with --ca-cert, --ca-key and --cluster",
            dir.display()
        ))
    })?;
    String::from_utf8_lossy(&bytes)
        .trim()
        .parse()
        .map_err(|error| Failure::file(format!("{}: {error}", path.display())))
}
