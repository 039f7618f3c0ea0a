//! Wanted: every file that follows from a cluster file, and what must stand in each.
//!
//! Names, groups and usages are those that Kubernetes' components and kubeadm agree on. Each
//! certificate has a key of its own on each machine; nothing is shared but what has to be: the
//! service-account key between control planes, and the gateway's issuer between servers.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use towline_proto::id::{Name, Role};

use super::file::{ClusterFile, Endpoint, Machine};
use super::layout::{self, Purpose};
use crate::identity::Identity;
use crate::inspect::Usage;
use crate::key::KeyKind;

/// The group that kubeadm binds to the role cluster-admin.
const ADMINS: &str = "kubeadm:cluster-admins";
/// The group that may do anything, whatever RBAC says.
const MASTERS: &str = "system:masters";
/// Name of kube-apiserver among Towline's clients.
const FRONT_END: &str = "kube-apiserver";

/// All that must be there.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub cluster: String,
    pub authorities: Vec<WantedAuthority>,
    pub leaves: Vec<WantedLeaf>,
    pub copies: Vec<WantedCopy>,
    /// Kind of the key that signs service-account tokens.
    pub service_account: Option<KeyKind>,
    pub authority_kind: KeyKind,
    pub leaf_kind: KeyKind,
    /// Renewed when less is left; `None`: a third of its life.
    pub renew_before: Option<Duration>,
    /// Names of machines.
    pub hosts: BTreeSet<String>,
}

/// An authority.
#[derive(Clone, Debug)]
pub struct WantedAuthority {
    pub purpose: Purpose,
    /// In its subject.
    pub title: &'static str,
    pub life: Duration,
    pub path_length: u32,
    pub usages: Vec<Usage>,
    /// Held by somebody else.
    pub external: Option<External>,
}

/// Files of an authority that somebody else holds.
#[derive(Clone, Debug)]
pub struct External {
    pub certificate: PathBuf,
    pub key: Option<PathBuf>,
}

/// A certificate and its key.
#[derive(Clone, Debug)]
pub struct WantedLeaf {
    pub place: Place,
    pub issuer: Purpose,
    pub subject: Subject,
    pub life: Duration,
}

/// Where a certificate and its key lie.
#[derive(Clone, Debug)]
pub enum Place {
    /// In two files, named without `.crt` and `.key`.
    Pair { stem: String },
    /// In one kubeconfig.
    Conf {
        /// Without `.conf`.
        stem: String,
        user: String,
        server: String,
    },
}

impl Place {
    /// The file that holds the certificate.
    pub fn path(&self) -> String {
        match self {
            Place::Pair { stem } => format!("{stem}.crt"),
            Place::Conf { stem, .. } => format!("{stem}.conf"),
        }
    }

    /// Without the ending.
    pub fn stem(&self) -> &str {
        match self {
            Place::Pair { stem } | Place::Conf { stem, .. } => stem,
        }
    }
}

/// What a certificate says about its holder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    pub common_name: String,
    pub organisation: &'static str,
    pub uris: Vec<String>,
    pub dns: Vec<String>,
    pub ips: Vec<IpAddr>,
    pub usages: Vec<Usage>,
}

/// A file with what also stands elsewhere.
#[derive(Clone, Debug)]
pub struct WantedCopy {
    pub path: String,
    pub of: Source,
}

/// What a copy is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// All certificates that holders of this purpose are known by.
    Anchors(Purpose),
    /// The authority's own certificate.
    Certificate(Purpose),
    /// Its key.
    Key(Purpose),
    /// The key that signs tokens.
    ServiceAccountKey,
    /// The key that verifies them.
    ServiceAccountPublic,
}

impl Source {
    /// Whether only the owner may read it.
    pub const fn is_secret(self) -> bool {
        matches!(self, Source::Key(_) | Source::ServiceAccountKey)
    }
}

impl Wanted {
    /// Everything that follows from the file.
    pub fn of(file: &ClusterFile) -> Self {
        let mut wanted = Self {
            cluster: file.cluster.to_string(),
            authorities: authorities(file),
            leaves: Vec::new(),
            copies: Vec::new(),
            service_account: None,
            authority_kind: file.keys.authorities,
            leaf_kind: file.keys.certificates,
            renew_before: file.lives.renew_before,
            hosts: BTreeSet::new(),
        };
        for machine in &file.machines {
            wanted.hosts.insert(machine.name.to_string());
            let mut on = On {
                file,
                machine,
                wanted: &mut wanted,
            };
            on.control_plane();
            on.etcd();
            on.kubelet();
            on.towline();
        }
        wanted.people(file);
        wanted
    }

    fn people(&mut self, file: &ClusterFile) {
        let has_control_plane = file.machines.iter().any(|machine| machine.control_plane);
        if file.has(Purpose::Kubernetes) && has_control_plane {
            self.service_account = Some(file.keys.service_accounts);
            if let Some(endpoint) = &file.endpoint {
                for (stem, user, group) in [
                    ("admin", "kubernetes-admin", ADMINS),
                    ("super-admin", "kubernetes-super-admin", MASTERS),
                ] {
                    self.conf(stem.into(), user.into(), group, endpoint, file.lives.admins);
                }
            }
        }
        if file.has(Purpose::Servers) {
            for (folder, role, names, life) in [
                ("clients", Role::Client, &file.clients, file.lives.clients),
                (
                    "operators",
                    Role::Operator,
                    &file.operators,
                    file.lives.operators,
                ),
            ] {
                for name in names {
                    let subject = identity(file, role, name);
                    self.pair(format!("{folder}/{name}"), Purpose::Servers, subject, life);
                }
            }
        }
    }

    fn pair(&mut self, stem: String, issuer: Purpose, subject: Subject, life: Duration) {
        self.leaves.push(WantedLeaf {
            place: Place::Pair { stem },
            issuer,
            subject,
            life,
        });
    }

    fn conf(
        &mut self,
        stem: String,
        user: String,
        organisation: &'static str,
        server: &Endpoint,
        life: Duration,
    ) {
        self.leaves.push(WantedLeaf {
            place: Place::Conf {
                stem,
                user: user.clone(),
                server: server.url(),
            },
            issuer: Purpose::Kubernetes,
            subject: client(user, organisation),
            life,
        });
    }

    /// The authority of this purpose.
    pub fn authority(&self, purpose: Purpose) -> Option<&WantedAuthority> {
        self.authorities
            .iter()
            .find(|authority| authority.purpose == purpose)
    }
}

fn authorities(file: &ClusterFile) -> Vec<WantedAuthority> {
    let both = || vec![Usage::ServerAuth, Usage::ClientAuth];
    let one = |purpose: &Purpose| {
        let (title, life, path_length, usages) = match purpose {
            Purpose::Kubernetes => ("kubernetes", file.lives.authorities, 0, both()),
            Purpose::Etcd => ("etcd", file.lives.authorities, 0, both()),
            Purpose::FrontProxy => (
                "front-proxy",
                file.lives.authorities,
                0,
                vec![Usage::ClientAuth],
            ),
            Purpose::Kubelets => (
                "kubelets",
                file.lives.authorities,
                0,
                vec![Usage::ServerAuth],
            ),
            Purpose::Root => ("towline root", file.lives.authorities, 1, Vec::new()),
            Purpose::Agents => (
                "towline agents",
                file.lives.issuers,
                0,
                vec![Usage::ClientAuth],
            ),
            Purpose::Servers => ("towline servers", file.lives.issuers, 0, both()),
            Purpose::Gateway => (
                "towline gateway",
                file.lives.issuers,
                0,
                vec![Usage::ServerAuth],
            ),
        };
        let external = file.external.iter().find(|one| one.purpose == *purpose);
        WantedAuthority {
            purpose: *purpose,
            title,
            life,
            path_length,
            usages,
            external: external.map(|external| External {
                certificate: external.certificate.clone(),
                key: external.key.clone(),
            }),
        }
    };
    file.authorities.iter().map(one).collect()
}

/// What goes to one machine.
struct On<'a> {
    file: &'a ClusterFile,
    machine: &'a Machine,
    wanted: &'a mut Wanted,
}

impl On<'_> {
    fn path(&self, rest: &str) -> String {
        format!("{}/{rest}", layout::host(self.machine.name.as_str()))
    }

    fn pair(&mut self, rest: &str, issuer: Purpose, subject: Subject, life: Duration) {
        let stem = self.path(rest);
        self.wanted.pair(stem, issuer, subject, life);
    }

    fn copy(&mut self, rest: &str, of: Source) {
        let path = self.path(rest);
        self.wanted.copies.push(WantedCopy { path, of });
    }

    fn control_plane(&mut self) {
        let file = self.file;
        if !self.machine.control_plane || !file.has(Purpose::Kubernetes) {
            return;
        }
        let life = file.lives.components;
        let kubernetes = Purpose::Kubernetes;
        self.pair("pki/apiserver", kubernetes, self.apiserver(), life);
        let kubelet_client = client("kube-apiserver-kubelet-client".into(), ADMINS);
        self.pair(
            "pki/apiserver-kubelet-client",
            kubernetes,
            kubelet_client,
            life,
        );
        self.copy("pki/ca.crt", Source::Anchors(kubernetes));
        if file.signer_on_control_planes {
            self.copy("pki/ca.key", Source::Key(kubernetes));
        }
        if file.has(Purpose::Etcd) {
            let subject = client("kube-apiserver-etcd-client".into(), "");
            self.pair("pki/apiserver-etcd-client", Purpose::Etcd, subject, life);
            self.copy("pki/etcd/ca.crt", Source::Anchors(Purpose::Etcd));
        }
        if file.has(Purpose::FrontProxy) {
            let subject = client("front-proxy-client".into(), "");
            self.pair("pki/front-proxy-client", Purpose::FrontProxy, subject, life);
            self.copy(
                "pki/front-proxy-ca.crt",
                Source::Anchors(Purpose::FrontProxy),
            );
        }
        if file.has(Purpose::Kubelets) {
            self.copy("pki/kubelet-ca.crt", Source::Anchors(Purpose::Kubelets));
        }
        self.copy("pki/sa.key", Source::ServiceAccountKey);
        self.copy("pki/sa.pub", Source::ServiceAccountPublic);
        let here = Endpoint {
            host: self
                .machine
                .ips
                .first()
                .map(IpAddr::to_string)
                .unwrap_or_default(),
            port: file.port,
        };
        for (name, user) in [
            ("controller-manager", "system:kube-controller-manager"),
            ("scheduler", "system:kube-scheduler"),
        ] {
            let stem = self.path(name);
            self.wanted.conf(stem, user.into(), "", &here, life);
        }
    }

    fn apiserver(&self) -> Subject {
        let file = self.file;
        let service = format!("kubernetes.default.svc.{}", file.cluster_domain);
        let mut dns = vec![self.machine.name.to_string()];
        let standard = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        dns.extend(standard.map(String::from));
        dns.push(service);
        dns.extend(self.machine.dns.iter().cloned());
        dns.extend(file.apiserver_dns.iter().cloned());
        let mut ips = file.service_addresses.clone();
        ips.extend(&self.machine.ips);
        ips.extend(&file.apiserver_ips);
        if let Some(endpoint) = &file.endpoint {
            match endpoint.host.parse() {
                Ok(ip) => ips.push(ip),
                Err(_) => dns.push(endpoint.host.clone()),
            }
        }
        Subject {
            common_name: "kube-apiserver".into(),
            dns: once(dns),
            ips: once(ips),
            usages: vec![Usage::ServerAuth],
            ..Subject::default()
        }
    }

    fn etcd(&mut self) {
        let file = self.file;
        if !self.machine.etcd || !file.has(Purpose::Etcd) {
            return;
        }
        let life = file.lives.components;
        // Members greet each other, and their own gateway, with the certificate they serve with.
        for name in ["server", "peer"] {
            let subject = Subject {
                common_name: self.machine.name.to_string(),
                usages: vec![Usage::ServerAuth, Usage::ClientAuth],
                ..self.local()
            };
            self.pair(&format!("pki/etcd/{name}"), Purpose::Etcd, subject, life);
        }
        let subject = client("kube-etcd-healthcheck-client".into(), "");
        self.pair("pki/etcd/healthcheck-client", Purpose::Etcd, subject, life);
        if !(self.machine.control_plane && file.has(Purpose::Kubernetes)) {
            self.copy("pki/etcd/ca.crt", Source::Anchors(Purpose::Etcd));
        }
    }

    /// The machine's names and addresses, and those by which it reaches itself.
    fn local(&self) -> Subject {
        let mut dns = vec![self.machine.name.to_string(), "localhost".into()];
        dns.extend(self.machine.dns.iter().cloned());
        let mut ips = self.machine.ips.clone();
        ips.push(Ipv4Addr::LOCALHOST.into());
        ips.push(Ipv6Addr::LOCALHOST.into());
        Subject {
            dns: once(dns),
            ips: once(ips),
            ..Subject::default()
        }
    }

    fn kubelet(&mut self) {
        let file = self.file;
        if !self.machine.kubelet || !file.has(Purpose::Kubernetes) {
            return;
        }
        let life = file.lives.kubelets;
        let user = format!("system:node:{}", self.machine.name);
        if let Some(endpoint) = &file.endpoint {
            let stem = self.path("kubelet");
            self.wanted
                .conf(stem, user.clone(), "system:nodes", endpoint, life);
        }
        let mut dns = vec![self.machine.name.to_string()];
        dns.extend(self.machine.dns.iter().cloned());
        let serving = Subject {
            common_name: user,
            organisation: "system:nodes",
            dns: once(dns),
            ips: once(self.machine.ips.clone()),
            usages: vec![Usage::ServerAuth],
            ..Subject::default()
        };
        self.pair("kubelet/kubelet", self.kubelets(), serving, life);
        if !self.machine.control_plane {
            self.copy("pki/ca.crt", Source::Anchors(Purpose::Kubernetes));
        }
    }

    /// Who signs what kubelets serve with.
    fn kubelets(&self) -> Purpose {
        match self.file.has(Purpose::Kubelets) {
            true => Purpose::Kubelets,
            false => Purpose::Kubernetes,
        }
    }

    fn towline(&mut self) {
        let file = self.file;
        if !file.has(Purpose::Servers) {
            return;
        }
        let machine = self.machine;
        let front_end = machine.control_plane && file.has(Purpose::Kubernetes);
        if machine.server {
            let local = self.local();
            let subject = Subject {
                dns: local.dns,
                ips: local.ips,
                ..identity(file, Role::Server, &machine.name)
            };
            self.pair(
                "towline/server",
                Purpose::Servers,
                subject,
                file.lives.servers,
            );
            self.copy("towline/agents.pem", Source::Anchors(Purpose::Agents));
            if file.has(Purpose::Kubernetes) {
                let kubelets = self.kubelets();
                self.copy("towline/kubelet-ca.crt", Source::Anchors(kubelets));
            }
            if file.has(Purpose::Gateway) {
                let gateway = Purpose::Gateway;
                self.copy("towline/gateway.crt", Source::Certificate(gateway));
                self.copy("towline/gateway.key", Source::Key(gateway));
                if file.has(Purpose::Kubernetes) {
                    let subject = client("towline-kubelet-client".into(), "");
                    self.pair(
                        "towline/kubelet-client",
                        Purpose::Kubernetes,
                        subject,
                        file.lives.components,
                    );
                }
            }
        }
        if front_end {
            if let Ok(name) = FRONT_END.parse() {
                let subject = identity(file, Role::Client, &name);
                self.pair(
                    "towline/client",
                    Purpose::Servers,
                    subject,
                    file.lives.clients,
                );
            }
            if file.has(Purpose::Gateway) {
                self.copy("towline/gateway.pem", Source::Anchors(Purpose::Gateway));
            }
        }
        if machine.agent {
            let subject = Subject {
                ips: machine.ips.clone(),
                ..identity(file, Role::Agent, &machine.name)
            };
            self.pair("towline/agent", Purpose::Agents, subject, file.lives.agents);
        }
        if machine.server || machine.agent || front_end {
            self.copy("towline/servers.pem", Source::Anchors(Purpose::Servers));
        }
    }
}

/// A user of Kubernetes or etcd.
fn client(common_name: String, organisation: &'static str) -> Subject {
    Subject {
        common_name,
        organisation,
        usages: vec![Usage::ClientAuth],
        ..Subject::default()
    }
}

/// Somebody of Towline.
fn identity(file: &ClusterFile, role: Role, name: &Name) -> Subject {
    let identity = Identity::new(file.cluster.clone(), role, name.clone());
    Subject {
        common_name: identity.common_name(),
        uris: vec![identity.to_string()],
        usages: vec![Usage::of(role)],
        ..Subject::default()
    }
}

/// Each once, in the order of the first.
fn once<T: PartialEq>(list: Vec<T>) -> Vec<T> {
    let mut out = Vec::with_capacity(list.len());
    for one in list {
        if !out.contains(&one) {
            out.push(one);
        }
    }
    out
}
