//! All input of the agent, read once and checked as a whole: flags, files, and the proxy names
//! of the environment. After this nobody reads the environment.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use towline_link::carrier::CarrierMode;
use towline_link::kube::KubeError;
use towline_link::process::compat::{MetricsAt, Second};
use towline_link::process::policy_file::{PolicyFile, PolicyFileError};
use towline_link::process::telemetry::{LogFilter, LogFormat};
use towline_link::process::watch::Seen;
use towline_link::quic;
use towline_link::tls::{HttpProxy, ProxyError};
use towline_pki::{CrlPolicy, Files, SharedRoots};
use towline_proto::address::{self, Refusal};
use towline_proto::id::Role;
use towline_proto::limits;
use towline_proto::policy::RuleSet;
use towline_proto::target::{Class, Classes, Target};

use crate::args::Args;
use crate::attempt::random;
use crate::enrol::Enrolling;
use crate::enrol::flags::{EnrolFlagError, Source};
use crate::enrol::start::{enrolled, enrolling};
use crate::konnectivity::args::KonnectivityArgs;
use crate::konnectivity::config::{LegacyConfig, LegacyConfigError, Listeners};
use crate::policy::{Policy, Rules};
use crate::serve::ServeConfig;
use crate::trust::{Snapshot, TrustError};

/// What is wrong with the configuration; says what to change.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A certificate, key, trust file or deny list.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The flags of enrolment.
    #[error(transparent)]
    Enrol(#[from] EnrolFlagError),
    /// Where signing requests go.
    #[error("--enrol kubernetes: {0}")]
    EnrolApi(#[source] KubeError),
    /// The proxy.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// A proxy that nothing goes through.
    #[error(
        "--http-proxy has no effect with --carrier quic: UDP does not go through it; use auto or tls"
    )]
    ProxyForQuic,
    /// The policy file.
    #[error("policy: {0}")]
    Policy(#[from] PolicyFileError),
    /// The legacy mode.
    #[error(transparent)]
    Legacy(#[from] LegacyConfigError),
    /// Its flags without it.
    #[error(
        "{0} is a flag of Konnectivity's agent: add --compatibility=konnectivity, or leave it out"
    )]
    NotCompatible(&'static str),
    /// Part of an identity.
    #[error("{given} needs {missing}: an identity is --cert, --key and --server-ca together")]
    PartOfIdentity {
        /// Given.
        given: &'static str,
        /// Missing.
        missing: &'static str,
    },
    /// A Towline server without an identity of ours.
    #[error("--server {0} needs --cert, --key and --server-ca")]
    NoIdentity(Target),
    /// Nothing to keep a link to.
    #[error("no server: give --server HOST:PORT")]
    NoServer,
    /// Too many.
    #[error(
        "{given} servers are more than the {} that one agent keeps links to",
        limits::SERVERS
    )]
    ManyServers {
        /// How many.
        given: usize,
    },
    /// Given twice.
    #[error("--server {0} is given twice; one link is kept to each server")]
    SameServer(Target),
    /// No address can be both.
    #[error(
        "--service-cidr {service} and --pod-cidr {pod} overlap; an address is of one class only"
    )]
    Overlap {
        /// The service prefix.
        service: IpNet,
        /// The pod prefix.
        pod: IpNet,
    },
    /// A prefix that would turn everything into its class.
    #[error("--{flag} {prefix} covers every address; give the prefix of your cluster")]
    Everything {
        /// Which flag.
        flag: &'static str,
        /// Its value.
        prefix: IpNet,
    },
    /// More than a greeting holds.
    #[error(
        "{given} kubelet addresses are more than the {} allowed",
        limits::LIST_ITEMS
    )]
    ManyAddresses {
        /// How many.
        given: usize,
    },
    /// No kubelet listens there.
    #[error("--kubelet-address {ip} is a {why}: give an address of this node")]
    KubeletAddress {
        /// The address.
        ip: IpAddr,
        /// Why it cannot be one.
        why: Refusal,
    },
    /// The exception for the kubelet would open our own port.
    #[error("--health-bind {0} has the kubelet's port; give another one")]
    HealthPort(SocketAddr),
    /// Not even one stalled dial.
    #[error("--quic-payload: {0}")]
    Quic(#[from] quic::OptionsError),
}

/// Who we are to Towline servers.
#[derive(Debug)]
pub struct OwnIdentity {
    /// Which files.
    pub files: Files,
    /// What was in them.
    pub trust: Snapshot,
    /// As which they were read; what changed after that is not missed.
    pub seen: Seen,
}

/// The compatibility profile.
#[derive(Debug)]
pub struct Compatible {
    /// The legacy server, where there is one.
    pub legacy: Option<LegacyConfig>,
    /// The second port.
    pub second: Second,
    /// What is to be said once at the start.
    pub notes: Vec<String>,
}

/// Checked values, grouped by who uses them.
#[derive(Debug)]
pub struct Config {
    /// Who we are; only the compatibility profile can do without.
    pub identity: Option<OwnIdentity>,
    /// Who sees to the certificate, where the agent itself does. Without an identity it has to
    /// get one first.
    pub enrolling: Option<Arc<Enrolling>>,
    /// The compatibility profile, where it is asked for.
    pub compatible: Option<Compatible>,
    /// Where links go.
    pub reach: ReachConfig,
    /// What may be reached.
    pub policy: PolicyConfig,
    /// The policy file, what was in it, and what it was before it was read.
    pub policy_file: Option<((PathBuf, PolicyFile), Seen)>,
    /// Bounds of dials.
    pub serve: ServeConfig,
    /// How long dials may go on after the first signal.
    pub drain_timeout: Duration,
    /// Threads, listeners, logs.
    pub process: ProcessConfig,
}

/// Where links go.
#[derive(Clone, Debug)]
pub struct ReachConfig {
    /// Each gets a link.
    pub servers: Vec<Target>,
    /// Which carriers may be used.
    pub carrier: CarrierMode,
    /// For the tls carrier.
    pub proxy: Option<HttpProxy>,
    /// How quic runs.
    pub quic: quic::Options,
    /// How often a link on tls tries quic.
    pub carrier_probe: Duration,
}

/// What the operator said about the node; with a certificate it makes a [`Policy`].
#[derive(Clone, Debug)]
pub struct PolicyConfig {
    pub(crate) kubelet_port: u16,
    pub(crate) kubelet_addresses: Vec<IpAddr>,
    pub(crate) service_prefixes: Vec<IpNet>,
    pub(crate) pod_prefixes: Vec<IpNet>,
    pub(crate) allowed: Vec<Class>,
    open: bool,
}

impl PolicyConfig {
    /// The policy of the node that the certificate names, where there is one: by the file, or
    /// built in.
    pub fn policy(
        &self,
        trust: Option<&Snapshot>,
        health: Option<SocketAddr>,
        file: Option<&PolicyFile>,
    ) -> Policy {
        let rules = match file {
            Some(file) => Arc::clone(&file.rules),
            None => Arc::new(RuleSet::built_in(Classes::of(&self.allowed))),
        };
        Policy::new(self.rules(trust, health, rules))
    }

    /// What the policy goes by.
    pub fn rules(
        &self,
        trust: Option<&Snapshot>,
        health: Option<SocketAddr>,
        rules: Arc<RuleSet>,
    ) -> Rules {
        let leaf = trust.map(|trust| trust.material.credentials().leaf());
        let kubelet_addresses = match self.kubelet_addresses.as_slice() {
            [] => leaf.map_or_else(Vec::new, |leaf| leaf.ip_sans.clone()),
            given => given.to_vec(),
        };
        Rules {
            node: leaf.map(|leaf| leaf.identity.name.clone()),
            kubelet_addresses,
            kubelet_port: self.kubelet_port,
            service_prefixes: self.service_prefixes.clone(),
            pod_prefixes: self.pod_prefixes.clone(),
            rules,
            health,
            open: self.open,
        }
    }
}

/// Threads, listeners, logs.
#[derive(Clone, Debug)]
pub struct ProcessConfig {
    /// Threads that carry bytes.
    pub workers: u16,
    /// Health and metrics.
    pub health: SocketAddr,
    /// Status and orders.
    pub admin_socket: Option<PathBuf>,
    /// Form of the log.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_level: LogFilter,
}

impl Config {
    /// Reads every file; resolves no name and opens no socket.
    pub fn from_args(args: Args) -> Result<Self, ConfigError> {
        Self::new(args, &|name| std::env::var(name).ok(), SystemTime::now())
    }

    fn new(
        args: Args,
        env: &dyn Fn(&str) -> Option<String>,
        now: SystemTime,
    ) -> Result<Self, ConfigError> {
        let compatible = args.konnectivity.compatibility.is_some();
        let by_api = args.enrol.enrol == Some(Source::Kubernetes);
        let mut given = args.konnectivity.given();
        given.retain(|flag| !(by_api && *flag == "--kubeconfig"));
        if !compatible && let Some(flag) = given.first() {
            return Err(ConfigError::NotCompatible(flag));
        }
        if !compatible || !args.servers.is_empty() {
            check_servers(&args.servers)?;
        }
        let listeners = match compatible {
            true => Some(Listeners::new(&args.konnectivity)?),
            false => None,
        };
        let profile = listeners.map_or(HEALTH_BIND, |listeners| listeners.health);
        let health = args.health_bind.unwrap_or(profile);
        check_policy(&args, health)?;
        let proxy = proxy(&args, env)?;
        let quic = quic::Options {
            congestion: args.quic_congestion,
            payload: args.quic_payload,
            udp_buffer: usize::try_from(args.udp_buffer.0).unwrap_or(limits::UDP_BUFFER),
            ..quic::Options::default()
        };
        quic.check()?;
        let enrolling = enrolling(&args, proxy.as_ref(), env)?;
        let refusals = Refusals {
            deny_list: args.deny_list,
            crls: args.server_crls,
            crl_policy: args.crl_policy,
            // Clusters that come from Konnectivity may have one authority for everything.
            shared_roots: match compatible {
                true => SharedRoots::Taken,
                false => SharedRoots::Refused,
            },
        };
        let identity = match &enrolling {
            Some(enrolling) => enrolled(enrolling, now)?,
            None => identity(
                &args.servers,
                (args.cert, args.key, args.server_ca),
                refusals,
                now,
            )?,
        };
        let level = args.konnectivity.klog.level();
        let log_level = match level {
            Some(level) if args.log_level == LogFilter::default() => {
                level.parse().unwrap_or(args.log_level)
            }
            _ => args.log_level,
        };
        let compatible = match listeners {
            Some(listeners) => Some(compatible_profile(
                args.konnectivity,
                &args.servers,
                args.state_dir.as_deref(),
                listeners,
                health,
                identity.is_some(),
                env,
            )?),
            None => None,
        };
        let allowed = match (args.allow_classes, &compatible) {
            (some, _) if !some.is_empty() => some,
            (_, Some(_)) => Class::ALL.to_vec(),
            (_, None) => vec![Class::Kubelet, Class::Pod, Class::Service],
        };
        let policy_file = match args.policy {
            Some(path) => {
                let seen = Seen::now(std::slice::from_ref(&path));
                let file = PolicyFile::load(&path)?;
                Some(((path, file), seen))
            }
            None => None,
        };
        Ok(Self {
            identity,
            enrolling,
            reach: ReachConfig {
                servers: args.servers,
                carrier: args.carrier,
                proxy,
                quic,
                carrier_probe: args.carrier_probe.into(),
            },
            policy: PolicyConfig {
                kubelet_port: args.kubelet_port,
                kubelet_addresses: args.kubelet_addresses,
                service_prefixes: args.service_prefixes,
                pod_prefixes: args.pod_prefixes,
                allowed,
                open: compatible.is_some(),
            },
            policy_file,
            compatible,
            serve: ServeConfig {
                max_dials: args.max_dials,
                connect_timeout: args.connect_timeout.into(),
                memory_budget: args.memory_budget.into(),
            },
            drain_timeout: args.drain_timeout.into(),
            process: ProcessConfig {
                workers: args.workers,
                health,
                admin_socket: args.admin_socket,
                log_format: args.log_format,
                log_level,
            },
        })
    }

    /// What is taken and should not stay so, to be said at the start and by `--check-config`.
    pub fn warnings(&self, now: SystemTime) -> Vec<String> {
        let own = self.identity.as_ref();
        own.map_or_else(Vec::new, |own| own.trust.material.warnings(now))
    }

    /// Who we are, in words.
    pub fn who(&self) -> String {
        let legacy = self.compatible.as_ref();
        match (
            &self.identity,
            legacy.and_then(|compatible| compatible.legacy.as_ref()),
        ) {
            (Some(identity), _) => identity.trust.identity().to_string(),
            (None, Some(legacy)) => format!("legacy agent {:?}", legacy.agent_id),
            (None, None) if self.enrolling.is_some() => {
                "a node without a certificate yet, which will enrol".to_owned()
            }
            (None, None) => "nobody".to_owned(),
        }
    }
}

/// Without `--health-bind`.
const HEALTH_BIND: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8093);

/// The flags that say which servers are refused although they verify.
struct Refusals {
    deny_list: Option<PathBuf>,
    crls: Vec<PathBuf>,
    crl_policy: CrlPolicy,
    shared_roots: SharedRoots,
}

/// The identity, if it is asked for. In the compatibility profile its certificate may come
/// later, as that of a Secret that is optional.
fn identity(
    servers: &[Target],
    given: (Option<PathBuf>, Option<PathBuf>, Option<PathBuf>),
    refusals: Refusals,
    now: SystemTime,
) -> Result<Option<OwnIdentity>, ConfigError> {
    let part = |given, missing| Err(ConfigError::PartOfIdentity { given, missing });
    let (cert, key, server_ca) = match given {
        (Some(cert), Some(key), Some(server_ca)) => (cert, key, server_ca),
        (None, None, None) => {
            return match servers.first() {
                Some(server) => Err(ConfigError::NoIdentity(server.clone())),
                None => Ok(None),
            };
        }
        (None, ..) => return part("--key or --server-ca", "--cert"),
        (_, None, _) => return part("--cert", "--key"),
        (.., None) => return part("--cert", "--server-ca"),
    };
    if servers.is_empty() && !cert.exists() {
        tracing::debug!(cert = %cert.display(), "no identity yet");
        return Ok(None);
    }
    let files = Files {
        cert,
        key,
        anchors: vec![(Role::Server, server_ca)],
        deny_list: refusals.deny_list,
        crls: vec![(Role::Server, refusals.crls)],
        crl_policy: refusals.crl_policy,
        shared_roots: refusals.shared_roots,
    };
    let paths: Vec<_> = files.paths().cloned().collect();
    let seen = Seen::now(&paths);
    let trust = Snapshot::load(&files, None, now)?;
    Ok(Some(OwnIdentity { files, trust, seen }))
}

/// The compatibility profile as a whole.
fn compatible_profile(
    args: KonnectivityArgs,
    servers: &[Target],
    state: Option<&Path>,
    listeners: Listeners,
    health: SocketAddr,
    identified: bool,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Compatible, ConfigError> {
    let mut notes = vec![
        "--compatibility=konnectivity: targets are not judged by class, and loopback of this node \
         can be reached"
            .to_owned(),
    ];
    let without = args.without_effect();
    if !without.is_empty() {
        notes.push(format!(
            "accepted and without effect here: {}",
            without.join(", ")
        ));
    }
    let wanted = servers.is_empty() || args.proxy_server_host.is_some();
    let legacy = match wanted {
        true => Some(LegacyConfig::new(args, state, env, random_id)?),
        false => None,
    };
    if let Some(legacy) = &legacy {
        if servers.contains(&legacy.server) {
            return Err(ConfigError::SameServer(legacy.server.clone()));
        }
        notes.extend(legacy.warnings());
        if identified && state.is_none() {
            notes.push(
                "without --state-dir a restart forgets which servers have spoken towline/1"
                    .to_owned(),
            );
        }
        if !identified {
            notes.push(
                "no identity (--cert, --key, --server-ca): only the legacy protocol is spoken"
                    .to_owned(),
            );
        }
    }
    let mut second = listeners.second;
    second.metrics = MetricsAt::Port(health.port());
    Ok(Compatible {
        legacy,
        second,
        notes,
    })
}

/// A random UUID, as the original makes one.
fn random_id() -> String {
    let bits = u128::from(random()) << 64 | u128::from(random());
    let bits = bits & !(0xf << 76) | 0x4 << 76;
    let bits = bits & !(0x3 << 62) | 0x2 << 62;
    let text = format!("{bits:032x}");
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32];
    parts.map(|part| text[part].to_owned()).join("-")
}

/// For the tls carrier. Of the environment it may be without use: others read it, too.
fn proxy(
    args: &Args,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<HttpProxy>, ConfigError> {
    match args.http_proxy.as_deref() {
        Some("off") => Ok(None),
        Some(_) if args.carrier == CarrierMode::Quic => Err(ConfigError::ProxyForQuic),
        flag => Ok(HttpProxy::from_flag_or_env(flag, env)?),
    }
}

fn check_servers(servers: &[Target]) -> Result<(), ConfigError> {
    if servers.is_empty() {
        return Err(ConfigError::NoServer);
    }
    if servers.len() > limits::SERVERS {
        return Err(ConfigError::ManyServers {
            given: servers.len(),
        });
    }
    match servers
        .iter()
        .enumerate()
        .find(|(index, server)| servers[..*index].contains(server))
    {
        Some((_, twice)) => Err(ConfigError::SameServer(twice.clone())),
        None => Ok(()),
    }
}

fn check_policy(args: &Args, health: SocketAddr) -> Result<(), ConfigError> {
    for (flag, prefixes) in [
        ("service-cidr", &args.service_prefixes),
        ("pod-cidr", &args.pod_prefixes),
    ] {
        if let Some(prefix) = prefixes.iter().find(|prefix| prefix.prefix_len() == 0) {
            return Err(ConfigError::Everything {
                flag,
                prefix: *prefix,
            });
        }
    }
    for service in &args.service_prefixes {
        if let Some(pod) = args
            .pod_prefixes
            .iter()
            .find(|pod| pod.contains(service) || service.contains(*pod))
        {
            return Err(ConfigError::Overlap {
                service: *service,
                pod: *pod,
            });
        }
    }
    if args.kubelet_addresses.len() > limits::LIST_ITEMS {
        return Err(ConfigError::ManyAddresses {
            given: args.kubelet_addresses.len(),
        });
    }
    for ip in &args.kubelet_addresses {
        match address::refusal(*ip) {
            None | Some(Refusal::Loopback) => {}
            Some(why) => return Err(ConfigError::KubeletAddress { ip: *ip, why }),
        }
    }
    if health.port() == args.kubelet_port {
        return Err(ConfigError::HealthPort(health));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn check(more: &[&str]) -> Result<(), ConfigError> {
        let base = [
            "towline-agent",
            "--server",
            "a:1",
            "--cert",
            "/none",
            "--key",
            "/none",
            "--server-ca",
            "/none",
        ];
        let args = Args::try_parse_from(base.iter().chain(more)).unwrap();
        check_servers(&args.servers)?;
        proxy(&args, &|_| None)?;
        check_policy(&args, args.health_bind.unwrap_or(HEALTH_BIND))
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        assert!(check(&[]).is_ok());
        assert!(check(&["--kubelet-address", "127.0.0.1"]).is_ok());
        let proxy = ["--http-proxy", "http://p:3128", "--carrier"];
        assert!(check(&[&proxy[..], &["tls"]].concat()).is_ok());
        assert!(check(&["--http-proxy", "off", "--carrier", "quic"]).is_ok());
        assert!(matches!(
            check(&[&proxy[..], &["quic"]].concat()),
            Err(ConfigError::ProxyForQuic)
        ));
        assert!(matches!(
            check(&["--server", "a:1"]),
            Err(ConfigError::SameServer(_))
        ));
        let many: Vec<String> = (0..40).map(|n| format!("--server=s{n}:1")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(matches!(check(&many), Err(ConfigError::ManyServers { .. })));
        assert!(matches!(
            check(&[
                "--service-cidr",
                "10.0.0.0/8",
                "--pod-cidr",
                "10.244.0.0/16"
            ]),
            Err(ConfigError::Overlap { .. })
        ));
        assert!(matches!(
            check(&["--pod-cidr", "0.0.0.0/0"]),
            Err(ConfigError::Everything { .. })
        ));
        assert!(matches!(
            check(&["--kubelet-address", "169.254.169.254"]),
            Err(ConfigError::KubeletAddress { .. })
        ));
        assert!(matches!(
            check(&["--health-bind", "127.0.0.1:10250"]),
            Err(ConfigError::HealthPort(_))
        ));
    }

    #[test]
    fn a_missing_file_is_named() {
        let args = Args::try_parse_from([
            "towline-agent",
            "--server",
            "a:1",
            "--cert",
            "/no/such/cert.pem",
            "--key",
            "k",
            "--server-ca",
            "s",
        ])
        .unwrap();
        let error = Config::new(args, &|_| None, SystemTime::now()).unwrap_err();
        assert!(error.to_string().contains("/no/such/cert.pem"), "{error}");
    }
}
