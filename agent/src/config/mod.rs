//! All input of the agent, read once and checked as a whole: flags, files, and the proxy names
//! of the environment. After this nobody reads the environment.

mod check;
mod compatible;
mod error;
mod own;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use towline_link::carrier::CarrierMode;
use towline_link::process::policy_file::PolicyFile;
use towline_link::process::telemetry::{LogFilter, LogFormat};
use towline_link::process::watch::Seen;
use towline_link::quic;
use towline_link::tls::HttpProxy;
use towline_pki::SharedRoots;
use towline_proto::limits;
use towline_proto::policy::RuleSet;
use towline_proto::target::{Class, Classes, Target};

use crate::args::Args;
use crate::enrol::Enrolling;
use crate::enrol::flags::Source;
use crate::enrol::start::{enrolled, enrolling};
use crate::konnectivity::config::Listeners;
use crate::policy::{Policy, Rules};
use crate::serve::ServeConfig;
use crate::trust::Snapshot;

use check::{check_policy, check_servers, proxy};
use compatible::compatible_profile;
use own::{Refusals, identity};

pub use compatible::Compatible;
pub use error::ConfigError;
pub use own::OwnIdentity;

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
