//! Where everything lies below the directory of a cluster. Names inside `pki/` are kubeadm's.
//!
//! ```text
//! cluster                      name of the cluster
//! pki/                         authorities of Kubernetes with their keys; sa.key and sa.pub
//! root/ issuers/ trust/        authorities of Towline, as `towline-pki init` lays them out
//! admin.conf super-admin.conf  for people
//! clients/ operators/          Towline's clients and operators
//! hosts/NAME/                  all that goes to one machine, and nothing that does not
//!   pki/ *.conf                /etc/kubernetes
//!   kubelet/                   /var/lib/kubelet/pki
//!   towline/                   /etc/towline
//! ```

use std::fmt;

/// What an authority is for. No two of them share a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Purpose {
    /// kube-apiserver and its clients.
    Kubernetes,
    /// etcd: servers, peers and clients.
    Etcd,
    /// Who may speak for users to extension servers.
    FrontProxy,
    /// What kubelets serve with, when that is not Kubernetes' own authority.
    Kubelets,
    /// Signs Towline's two issuers.
    Root,
    /// Towline's agents.
    Agents,
    /// Towline's servers, clients and operators.
    Servers,
    /// What the kubelet gateway shows kube-apiserver.
    Gateway,
}

impl Purpose {
    /// Every purpose, in the order in which they are made.
    pub const ALL: [Purpose; 8] = [
        Purpose::Kubernetes,
        Purpose::Etcd,
        Purpose::FrontProxy,
        Purpose::Kubelets,
        Purpose::Root,
        Purpose::Agents,
        Purpose::Servers,
        Purpose::Gateway,
    ];

    /// The word in cluster.yaml and in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Purpose::Kubernetes => "kubernetes",
            Purpose::Etcd => "etcd",
            Purpose::FrontProxy => "frontProxy",
            Purpose::Kubelets => "kubelets",
            Purpose::Root => "root",
            Purpose::Agents => "agents",
            Purpose::Servers => "servers",
            Purpose::Gateway => "gateway",
        }
    }

    /// Its files without `.crt` and `.key`.
    pub const fn stem(self) -> &'static str {
        match self {
            Purpose::Kubernetes => "pki/ca",
            Purpose::Etcd => "pki/etcd/ca",
            Purpose::FrontProxy => "pki/front-proxy-ca",
            Purpose::Kubelets => "pki/kubelet-ca",
            Purpose::Root => "root/root",
            Purpose::Agents => "issuers/agents",
            Purpose::Servers => "issuers/servers",
            Purpose::Gateway => "issuers/gateway",
        }
    }

    /// Its certificate.
    pub fn certificate(self) -> String {
        format!("{}.crt", self.stem())
    }

    /// Its key.
    pub fn key(self) -> String {
        format!("{}.key", self.stem())
    }

    /// What others anchor on, where that is a file of its own.
    pub const fn trust(self) -> Option<&'static str> {
        match self {
            Purpose::Agents => Some("trust/agents.pem"),
            Purpose::Servers => Some("trust/servers.pem"),
            Purpose::Gateway => Some("trust/gateway.pem"),
            _ => None,
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The file that names the cluster.
pub const CLUSTER: &str = "cluster";
/// Names that get no certificates, and serial numbers that count no more.
pub const DENIED: &str = "trust/denied";
/// What Towline's issuers revoked.
pub const REVOCATION_LISTS: [&str; 2] = ["trust/agents.crl", "trust/servers.crl"];
/// Signs service-account tokens.
pub const SERVICE_ACCOUNT_KEY: &str = "pki/sa.key";
/// Verifies them.
pub const SERVICE_ACCOUNT_PUBLIC: &str = "pki/sa.pub";
/// One directory for each machine.
pub const HOSTS: &str = "hosts";
/// Directories of our own beside those of machines.
pub const FOLDERS: [&str; 9] = [
    "",
    "pki",
    "pki/etcd",
    "root",
    "issuers",
    "trust",
    "clients",
    "operators",
    HOSTS,
];
/// Directories with pairs named after their holders.
pub const PEOPLE: [&str; 2] = ["clients", "operators"];

/// Pairs that a machine can have, without `.crt` and `.key`.
pub const HOST_PAIRS: [&str; 12] = [
    "pki/apiserver",
    "pki/apiserver-kubelet-client",
    "pki/apiserver-etcd-client",
    "pki/front-proxy-client",
    "pki/etcd/server",
    "pki/etcd/peer",
    "pki/etcd/healthcheck-client",
    "kubelet/kubelet",
    "towline/server",
    "towline/client",
    "towline/agent",
    "towline/kubelet-client",
];

/// Other files that a machine can have.
pub const HOST_FILES: [&str; 16] = [
    "controller-manager.conf",
    "scheduler.conf",
    "kubelet.conf",
    "pki/ca.crt",
    "pki/ca.key",
    "pki/front-proxy-ca.crt",
    "pki/kubelet-ca.crt",
    "pki/etcd/ca.crt",
    "pki/sa.key",
    "pki/sa.pub",
    "towline/agents.pem",
    "towline/servers.pem",
    "towline/gateway.pem",
    "towline/gateway.crt",
    "towline/gateway.key",
    "towline/kubelet-ca.crt",
];

/// The directory of a machine.
pub fn host(name: &str) -> String {
    format!("{HOSTS}/{name}")
}
