//! The flags of the compatibility profile, checked as a whole: what Konnectivity's proxy-server
//! refuses at its start is refused here too, and so is the one thing that it does not refuse:
//! agents that prove nothing.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use towline_link::kube::{Access, Client, KubeError};
use towline_link::process::values::bind_address;
use towline_proto::limits;

use super::args::KonnectivityArgs;
use super::{patience, words};
use crate::legacy::strategy::{Strategies, StrategyError};
use crate::legacy::token::TokenRule;
use crate::legacy::trust::{DoorFiles, LegacyFiles, LegacySnapshot, LegacyTrustError};

/// What is wrong; says what to change.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// A port out of the range that Konnectivity takes.
    #[error("{flag} {port} is not from 1024 to 49151")]
    Port {
        /// Which.
        flag: &'static str,
        /// Its value.
        port: u16,
    },
    /// An address that is none.
    #[error("{flag} {text:?} is not an IP address, nor localhost")]
    Address {
        /// Which.
        flag: &'static str,
        /// Its value.
        text: String,
    },
    /// One flag without the other.
    #[error("{given} needs {missing}")]
    Needs {
        /// Given.
        given: &'static str,
        /// Missing.
        missing: &'static str,
    },
    /// Two flags that exclude each other.
    #[error("{one} and {other} exclude each other")]
    Both {
        /// One.
        one: &'static str,
        /// Another.
        other: &'static str,
    },
    /// Konnectivity would take anybody for an agent.
    #[error(
        "nothing says who is an agent, so anybody who reaches the agent port would be one: give --cluster-ca-cert, or --agent-namespace with --agent-service-account and --authentication-audience"
    )]
    AnybodyIsAgent,
    /// Only some of three.
    #[error(
        "--agent-namespace, --agent-service-account and --authentication-audience belong together: {0} is missing"
    )]
    PartOfTokens(&'static str),
    /// Nobody could ask for anything.
    #[error(
        "no way in for front ends: give --uds-name PATH with --server-port 0 (a Unix socket), or \
         --server-cert, --server-key and --server-ca-cert (a TCP port)"
    )]
    NoFrontEnds,
    /// Nobody could serve anything.
    #[error(
        "no way in for agents: give --cluster-cert and --cluster-key with --cluster-ca-cert or with \
         --agent-namespace, --agent-service-account and --authentication-audience, or an identity of \
         our own for Towline agents (--cert, --key, --agent-ca)"
    )]
    NoAgents,
    /// Obligatory.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A file.
    #[error(transparent)]
    Trust(#[from] LegacyTrustError),
    /// The Kubernetes API.
    #[error(transparent)]
    Kube(#[from] KubeError),
    /// `--proxy-strategies`.
    #[error("--proxy-strategies: {0}")]
    Strategies(#[from] StrategyError),
    /// A value that no flag has.
    #[error("{flag} {value:?}: {allowed}")]
    Value {
        /// Which.
        flag: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// A socket's place is taken and may not be cleared.
    #[error("--uds-name {0}: exists, and --delete-existing-uds-file is false")]
    SocketExists(PathBuf),
}

/// The Lease by which agents count servers.
#[derive(Clone, Debug)]
pub struct LeaseConfig {
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Where it is kept.
    pub client: Client,
}

/// Everything that the profile adds to the configuration.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Which files.
    pub files: LegacyFiles,
    /// And what was in them.
    pub trust: LegacySnapshot,
    /// Tokens of legacy agents, instead of certificates.
    pub tokens: Option<(TokenRule, Client)>,
    /// In which order legacy agents are looked for.
    pub strategies: Strategies,
    /// Our id.
    pub server_id: String,
    /// Told to agents.
    pub server_count: u32,
    /// Silence after which an agent is pinged.
    pub keep_alive: Duration,
    /// For a legacy agent's answer to a dial.
    pub answer_within: Option<Duration>,
    /// For every dial.
    pub dial_timeout: Duration,
    /// What an operator should know at the start, one line each.
    pub notes: Vec<String>,
    /// Whether targets of verified agents may go back.
    pub downgrade: bool,
    /// The Lease.
    pub lease: Option<LeaseConfig>,
    /// The Unix socket of front ends.
    pub socket: Option<PathBuf>,
    /// Front ends over TCP that only have to be signed.
    pub front_ends: Option<SocketAddr>,
    /// Where agents come in, when it is said here.
    pub agents: Option<SocketAddr>,
    /// Health and metrics.
    pub health: Option<SocketAddr>,
    /// Metrics for administrators; beside an identity of our own only when a flag asks for it.
    pub admin: Option<SocketAddr>,
    /// Whether `/debug/pprof` is said to be missing instead of unknown.
    pub profiling: bool,
    /// How long dials may go on at the end.
    pub graceful: Option<Duration>,
    /// Accepted, without effect.
    pub without_effect: Vec<&'static str>,
}

/// Customary ports of Konnectivity.
const SERVER_PORT: u16 = 8090;
const AGENT_PORT: u16 = 8091;
const HEALTH_PORT: u16 = 8092;
const ADMIN_PORT: u16 = 8095;

/// gRPC's pause between pings, and the shortest that makes sense.
const KEEP_ALIVE: Duration = Duration::from_secs(3600);
const KEEP_ALIVE_LEAST: Duration = Duration::from_secs(1);

impl Profile {
    /// Checks the flags and reads the files. `own` is whether we have an identity of our own, so
    /// that there are other agents than legacy ones; `dial_timeout` is our own flag. `env` is asked for names that Kubernetes and
    /// Konnectivity's manifests set.
    pub fn new(
        args: KonnectivityArgs,
        own: bool,
        dial_timeout: Duration,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ProfileError> {
        let without_effect = args.without_effect();
        words::check(&args)?;
        existing("--kubeconfig", args.kubeconfig.as_deref())?;
        let socket = given(args.uds_name.clone());
        if args.delete_existing_uds_file == Some(false)
            && let Some(path) = socket.clone().filter(|path| path.exists())
        {
            return Err(ProfileError::SocketExists(path));
        }
        let (front_end_files, front_ends) = front_ends(&args, socket.is_some(), own)?;
        let agent_files = agents(&args, own)?;
        let rule = token_rule(&args)?;
        match (&agent_files, &rule) {
            (Some(files), Some(_)) if files.ca.is_some() => {
                return Err(ProfileError::Both {
                    one: "--cluster-ca-cert",
                    other: "--agent-namespace",
                });
            }
            (Some(files), None) if files.ca.is_none() => return Err(ProfileError::AnybodyIsAgent),
            (None, Some(_)) => return Err(ProfileError::Missing("--cluster-cert")),
            _ => {}
        }
        let lease = args.enable_lease_controller == Some(true);
        let client = match rule.is_some() || lease {
            true => {
                let file = given(args.kubeconfig.clone());
                Some(Client::new(Access::load(file.as_deref(), env)?))
            }
            false => None,
        };
        let files = LegacyFiles {
            agents: agent_files,
            front_ends: front_end_files,
        };
        let positive = |span: Duration| (!span.is_zero()).then_some(span);
        let keep_alive = args.keepalive_time.map_or(KEEP_ALIVE, |span| span.0);
        let answer_within = args.backend_dial_timeout.and_then(|span| positive(span.0));
        let (dial_timeout, late) = patience::settle(dial_timeout, answer_within);
        let place = |flag, ip: &Option<String>, port_flag, port: Option<u16>, default| {
            if ip.is_none() && port.is_none() {
                return Ok(None);
            }
            let port = in_range(port_flag, port.unwrap_or(default))?;
            Ok::<_, ProfileError>(Some(SocketAddr::new(address(flag, ip)?, port)))
        };
        let admin_ip = match &args.admin_bind_address {
            Some(_) => address("--admin-bind-address", &args.admin_bind_address)?,
            None => [127, 0, 0, 1].into(),
        };
        let admin_port = in_range("--admin-port", args.admin_port.unwrap_or(ADMIN_PORT))?;
        let health_port = in_range("--health-port", args.health_port.unwrap_or(HEALTH_PORT))?;
        Ok(Self {
            trust: LegacySnapshot::load(&files)?,
            files,
            tokens: rule.zip(client.clone()),
            strategies: words::strategies(&args)?,
            server_id: server_id(&args, env)?,
            server_count: args.server_count.unwrap_or(1),
            keep_alive: keep_alive.max(KEEP_ALIVE_LEAST),
            answer_within,
            dial_timeout,
            notes: late.into_iter().collect(),
            downgrade: args.allow_downgrade == Some(true),
            lease: match client.filter(|_| lease) {
                Some(client) => Some(LeaseConfig {
                    namespace: given_text(&args.lease_namespace)
                        .unwrap_or("kube-system")
                        .to_owned(),
                    labels: labels(
                        given_text(&args.lease_label).unwrap_or("k8s-app=konnectivity-server"),
                    )?,
                    client,
                }),
                None => None,
            },
            socket,
            front_ends,
            agents: place(
                "--agent-bind-address",
                &args.agent_bind_address,
                "--agent-port",
                args.agent_port,
                AGENT_PORT,
            )?,
            health: Some(SocketAddr::new(
                address("--health-bind-address", &args.health_bind_address)?,
                health_port,
            ))
            .filter(|_| args.health_port.is_some() || args.health_bind_address.is_some()),
            admin: (!own || args.admin_port.is_some() || args.admin_bind_address.is_some())
                .then(|| SocketAddr::new(admin_ip, admin_port)),
            profiling: args.enable_profiling == Some(true),
            graceful: args.graceful_shutdown_timeout.map(|span| span.0),
            without_effect,
        })
    }

    /// Where health and metrics are when no flag says so.
    pub fn default_health() -> SocketAddr {
        SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), HEALTH_PORT)
    }

    /// What is not verified while the profile is on, one line each, to be shouted.
    pub fn unverified(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.files.agents.is_some() {
            let who = match &self.tokens {
                Some((rule, _)) => format!(
                    "whoever holds a token of service account {}/{}",
                    rule.namespace, rule.service_account
                ),
                None => "whoever holds any certificate of --cluster-ca-cert".to_owned(),
            };
            lines.push(format!(
                "legacy agents: {who} is an agent, and what it says it serves is believed"
            ));
            lines.push(
                "targets: legacy agents reach any address but link-local, metadata and multicast ones"
                    .to_owned(),
            );
        }
        if self.socket.is_some() {
            lines.push(
                "front ends: whoever may open the Unix socket may ask for any target".to_owned(),
            );
        }
        if self.front_ends.is_some() {
            lines.push(
                "front ends: whoever holds any certificate of --server-ca-cert may ask for any target"
                    .to_owned(),
            );
        }
        if self.downgrade {
            lines.push(
                "--allow-downgrade: a legacy agent may get what a verified agent owned".to_owned(),
            );
        }
        lines
    }
}

fn given(path: Option<PathBuf>) -> Option<PathBuf> {
    path.filter(|path| !path.as_os_str().is_empty())
}

fn given_text(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

fn existing(flag: &'static str, path: Option<&Path>) -> Result<(), ProfileError> {
    match path.filter(|path| !path.as_os_str().is_empty()) {
        Some(path) if !path.exists() => Err(ProfileError::Value {
            flag,
            value: path.display().to_string(),
            allowed: "no such file",
        }),
        _ => Ok(()),
    }
}

fn in_range(flag: &'static str, port: u16) -> Result<u16, ProfileError> {
    match (1024..=49151).contains(&port) {
        true => Ok(port),
        false => Err(ProfileError::Port { flag, port }),
    }
}

fn address(flag: &'static str, text: &Option<String>) -> Result<IpAddr, ProfileError> {
    let text = text.as_deref().unwrap_or_default();
    bind_address(text).ok_or_else(|| ProfileError::Address {
        flag,
        text: text.chars().take(limits::FLAG_VALUE_BYTES).collect(),
    })
}

/// A pair that is whole or not there.
fn pair(
    (cert_flag, cert): (&'static str, Option<PathBuf>),
    (key_flag, key): (&'static str, Option<PathBuf>),
) -> Result<Option<(PathBuf, PathBuf)>, ProfileError> {
    match (given(cert), given(key)) {
        (Some(cert), Some(key)) => Ok(Some((cert, key))),
        (None, None) => Ok(None),
        (Some(_), None) => Err(ProfileError::Needs {
            given: cert_flag,
            missing: key_flag,
        }),
        (None, Some(_)) => Err(ProfileError::Needs {
            given: key_flag,
            missing: cert_flag,
        }),
    }
}

type FrontEnds = (Option<DoorFiles>, Option<SocketAddr>);

fn front_ends(args: &KonnectivityArgs, socket: bool, own: bool) -> Result<FrontEnds, ProfileError> {
    let pair = pair(
        ("--server-cert", args.server_cert.clone()),
        ("--server-key", args.server_key.clone()),
    )?;
    let ca = given(args.server_ca_cert.clone());
    if socket {
        let tcp = "--server-cert, --server-key or --server-ca-cert";
        if pair.is_some() || ca.is_some() {
            return Err(ProfileError::Both {
                one: "--uds-name",
                other: tcp,
            });
        }
        // Konnectivity asks for --server-port 0 here; its default of 8090 is refused with it.
        return match args.server_port {
            Some(0) => Ok((None, None)),
            None if own => Ok((None, None)),
            _ => Err(ProfileError::Value {
                flag: "--server-port",
                value: args.server_port.unwrap_or(SERVER_PORT).to_string(),
                allowed: "it must be 0 with --uds-name",
            }),
        };
    }
    let untouched = args.server_port.is_none() && args.server_bind_address.is_none();
    if own && untouched && pair.is_none() && ca.is_none() {
        // Front ends come in by doors of our own.
        return Ok((None, None));
    }
    if pair.is_none() && ca.is_none() {
        return Err(ProfileError::NoFrontEnds);
    }
    let (cert, key) = pair.ok_or(ProfileError::Missing("--server-cert"))?;
    let ca = ca.ok_or(ProfileError::Missing("--server-ca-cert"))?;
    let port = in_range("--server-port", args.server_port.unwrap_or(SERVER_PORT))?;
    let ip = address("--server-bind-address", &args.server_bind_address)?;
    let ca = Some(ca);
    Ok((
        Some(DoorFiles { cert, key, ca }),
        Some(SocketAddr::new(ip, port)),
    ))
}

fn agents(args: &KonnectivityArgs, own: bool) -> Result<Option<DoorFiles>, ProfileError> {
    let pair = pair(
        ("--cluster-cert", args.cluster_cert.clone()),
        ("--cluster-key", args.cluster_key.clone()),
    )?;
    let ca = given(args.cluster_ca_cert.clone());
    match (pair, ca) {
        (Some((cert, key)), ca) => Ok(Some(DoorFiles { cert, key, ca })),
        (None, Some(_)) => Err(ProfileError::Needs {
            given: "--cluster-ca-cert",
            missing: "--cluster-cert",
        }),
        (None, None) if own => Ok(None),
        (None, None) => Err(ProfileError::NoAgents),
    }
}

fn token_rule(args: &KonnectivityArgs) -> Result<Option<TokenRule>, ProfileError> {
    let namespace = given_text(&args.agent_namespace);
    let account = given_text(&args.agent_service_account);
    let audience = given_text(&args.authentication_audience);
    match (namespace, account, audience) {
        (None, None, None) => Ok(None),
        (Some(namespace), Some(account), Some(audience)) => Ok(Some(TokenRule {
            namespace: namespace.to_owned(),
            service_account: account.to_owned(),
            audience: audience.to_owned(),
        })),
        (None, ..) => Err(ProfileError::PartOfTokens("--agent-namespace")),
        (_, None, _) => Err(ProfileError::PartOfTokens("--agent-service-account")),
        (.., None) => Err(ProfileError::PartOfTokens("--authentication-audience")),
    }
}

fn server_id(
    args: &KonnectivityArgs,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<String, ProfileError> {
    let id = given_text(&args.server_id)
        .map(str::to_owned)
        .or_else(|| env("PROXY_SERVER_ID").filter(|id| !id.is_empty()))
        .map_or_else(random_id, Ok)?;
    // It travels in a header and becomes part of a Lease's name.
    let fit = id.len() <= limits::KONNECTIVITY_ID_BYTES && id.bytes().all(|b| b.is_ascii_graphic());
    match fit {
        true => Ok(id),
        false => Err(ProfileError::Value {
            flag: "--server-id",
            value: id.chars().take(limits::FLAG_VALUE_BYTES).collect(),
            allowed: "use at most 253 printable characters without spaces",
        }),
    }
}

/// A random id in the form of a UUID.
fn random_id() -> Result<String, ProfileError> {
    let mut id = [0; 16];
    let random = towline_pki::tls::provider().secure_random.fill(&mut id);
    random.map_err(|_| ProfileError::Missing("--server-id (no random one can be made)"))?;
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let [a, b, c, d, e] = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    Ok(format!("{a}-{b}-{c}-{d}-{e}"))
}

/// `key=value,...`.
fn labels(text: &str) -> Result<BTreeMap<String, String>, ProfileError> {
    let pairs = text.split(',').filter(|pair| !pair.is_empty());
    let read = pairs.map(|pair| match pair.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(ProfileError::Value {
            flag: "--lease-label",
            value: pair.chars().take(limits::FLAG_VALUE_BYTES).collect(),
            allowed: "use key=value, several separated by commas",
        }),
    });
    read.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_agent_reads_them() {
        let at = |text: Option<&str>| address("--x", &text.map(str::to_owned));
        assert_eq!(at(Some("localhost")).unwrap().to_string(), "127.0.0.1");
        for everywhere in [None, Some("")] {
            assert_eq!(at(everywhere).unwrap(), Ipv6Addr::UNSPECIFIED);
        }
        let error = at(Some("cp.example")).unwrap_err().to_string();
        assert_eq!(
            error,
            "--x \"cp.example\" is not an IP address, nor localhost"
        );
    }
}
