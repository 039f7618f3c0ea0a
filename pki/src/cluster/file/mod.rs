//! cluster.yaml: the one file from which a cluster is made. [pki/README.md] shows a whole one.
//!
//! Everything wrong with it is one error with line and column: unknown and duplicate keys, wrong
//! types, names that cannot be names, an address at two machines, lives out of bounds.

mod check;
mod raw;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use towline_proto::id::{ClusterName, Name};

use super::layout::Purpose;
use crate::key::KeyKind;
use crate::store::{self, StoreError};
use crate::yaml::{self, Fault};

/// What is wrong with a cluster file: `FILE:LINE:COLUMN: cause`.
#[derive(Debug, thiserror::Error)]
pub enum ClusterFileError {
    /// It cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It says something that cannot be.
    #[error("{}:{fault}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// Place and cause.
        fault: Fault,
    },
}

/// A cluster file that was read and checked.
#[derive(Clone, Debug)]
pub struct ClusterFile {
    /// Part of every identity.
    pub cluster: ClusterName,
    /// Where kubeconfigs for people and nodes point; `None` without control planes.
    pub endpoint: Option<Endpoint>,
    /// Port of each kube-apiserver.
    pub port: u16,
    /// The address of the service "kubernetes", one for each family.
    pub service_addresses: Vec<IpAddr>,
    /// For example "cluster.local".
    pub cluster_domain: String,
    /// More DNS names of kube-apiserver.
    pub apiserver_dns: Vec<String>,
    /// More addresses of kube-apiserver.
    pub apiserver_ips: Vec<IpAddr>,
    /// Whether control planes get the key of Kubernetes' authority.
    pub signer_on_control_planes: bool,
    /// Every machine, in the order of the file.
    pub machines: Vec<Machine>,
    /// Towline's clients beside the kube-apiservers.
    pub clients: Vec<Name>,
    /// People and tools that administer Towline's servers.
    pub operators: Vec<Name>,
    /// Kinds of keys.
    pub keys: Keys,
    /// How long everything lives.
    pub lives: Lives,
    /// Authorities that the cluster has.
    pub authorities: Vec<Purpose>,
    /// Authorities that others hold.
    pub external: Vec<External>,
}

/// Host and port of the cluster's kube-apiservers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// A DNS name or an address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl Endpoint {
    /// For a kubeconfig.
    pub fn url(&self) -> String {
        match self.host.parse::<IpAddr>() {
            Ok(IpAddr::V6(v6)) => format!("https://[{v6}]:{}", self.port),
            _ => format!("https://{}:{}", self.host, self.port),
        }
    }
}

/// One machine and what runs on it.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The node's name, where it is one.
    pub name: Name,
    /// More DNS names.
    pub dns: Vec<String>,
    /// All of its addresses.
    pub ips: Vec<IpAddr>,
    /// kube-apiserver, controller manager, scheduler.
    pub control_plane: bool,
    /// A member of etcd.
    pub etcd: bool,
    /// A kubelet.
    pub kubelet: bool,
    /// Towline's server.
    pub server: bool,
    /// Towline's agent.
    pub agent: bool,
}

/// Kinds of keys.
#[derive(Clone, Copy, Debug)]
pub struct Keys {
    pub authorities: KeyKind,
    pub certificates: KeyKind,
    pub service_accounts: KeyKind,
}

/// How long everything lives.
#[derive(Clone, Copy, Debug)]
pub struct Lives {
    pub authorities: Duration,
    pub issuers: Duration,
    pub components: Duration,
    pub kubelets: Duration,
    pub admins: Duration,
    pub servers: Duration,
    pub agents: Duration,
    pub clients: Duration,
    pub operators: Duration,
    /// Renewed when less is left; `None`: when a third of its life is left.
    pub renew_before: Option<Duration>,
}

/// An authority that somebody else holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    pub purpose: Purpose,
    pub certificate: PathBuf,
    /// Without it requests go out and certificates come in.
    pub key: Option<PathBuf>,
}

impl ClusterFile {
    /// Reads a file. Paths inside it count from its directory.
    pub fn load(path: &Path) -> Result<Self, ClusterFileError> {
        let beside = path.parent().unwrap_or(Path::new(""));
        Self::parse(&store::read(path)?, beside).map_err(|fault| ClusterFileError::Form {
            path: path.into(),
            fault,
        })
    }

    /// Reads the text of one.
    pub fn parse(text: &[u8], beside: &Path) -> Result<Self, Fault> {
        check::file(yaml::read(text)?, beside)
    }

    /// Whether the cluster has this authority.
    pub fn has(&self, purpose: Purpose) -> bool {
        self.authorities.contains(&purpose)
    }
}
