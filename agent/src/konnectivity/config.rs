//! The flags of the compatibility profile, checked as a whole: what Konnectivity's proxy-agent
//! refuses at its start is refused here too.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::pki_types::ServerName;
use towline_link::kube::lease::Leases;
use towline_link::kube::{Access, Client, KubeError};
use towline_link::process::compat::{MetricsAt, Second};
use towline_link::process::values::{TimeSpan, bind_address};
use towline_pki::store::StoreError;
use towline_pki::web::{public_key_file, server_name};
use towline_pki::{WebError, WebPair, WebRoots};
use towline_proto::konnectivity::{Identifiers, IdentifiersError};
use towline_proto::limits;
use towline_proto::target::{Host, Target};

use super::args::KonnectivityArgs;
use super::count::CountSource;
use super::memory::SpokenTo;

/// What is wrong; says what to change.
#[derive(Debug, thiserror::Error)]
pub enum LegacyConfigError {
    /// Obligatory.
    #[error("--ca-cert is missing: legacy servers are verified by it, and never by system roots")]
    NoRoots,
    /// One of a pair.
    #[error("cannot have {missing} empty when {given} is set")]
    Half {
        /// Given.
        given: &'static str,
        /// Missing.
        missing: &'static str,
    },
    /// A port that is none.
    #[error("{flag} {value} must be from 1 to 65535")]
    Port {
        /// Which.
        flag: &'static str,
        /// Its value.
        value: i64,
    },
    /// An address that is none.
    #[error("{flag} {text:?} is not an IP address, nor localhost")]
    Address {
        /// Which.
        flag: &'static str,
        /// Its value.
        text: String,
    },
    /// A file that is not there.
    #[error("--kubeconfig {0}: no such file")]
    NoKubeconfig(String),
    /// A host that is none.
    #[error("--proxy-server-host {0:?} is neither a name nor an address")]
    ServerHost(String),
    /// Queues.
    #[error("channel size {0} must be greater than 0")]
    ChannelSize(i64),
    /// Profiling.
    #[error("if --enable-contention-profiling is set, --enable-profiling must also be set")]
    Profiling,
    /// Sync.
    #[error("sync interval {interval} must be less than sync interval cap {cap}")]
    SyncInterval {
        /// One.
        interval: TimeSpan,
        /// Another.
        cap: TimeSpan,
    },
    /// Identifiers.
    #[error("agent address is invalid: {0}")]
    Identifiers(#[from] IdentifiersError),
    /// The id.
    #[error(
        "--agent-id: 1 to {} printable characters",
        limits::KONNECTIVITY_ID_BYTES
    )]
    AgentId,
    /// A protocol name that TLS cannot carry.
    #[error("--alpn-proto {0:?}: 1 to 255 bytes")]
    Alpn(String),
    /// The token's file.
    #[error("error checking service account token path {path}, got {source}")]
    TokenFile {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A label selector that is none.
    #[error("--lease-label-selector {0:?} is no selector such as k8s-app=konnectivity-server")]
    Selector(String),
    /// Roots, certificate, key.
    #[error(transparent)]
    Web(#[from] WebError),
    /// The Kubernetes API.
    #[error(transparent)]
    Kube(#[from] KubeError),
    /// The state directory.
    #[error("--state-dir: {0}")]
    State(#[from] StoreError),
}

/// Files that are read again for each attempt.
#[derive(Clone, Debug)]
pub struct LegacyFiles {
    /// Who signs servers.
    pub roots: PathBuf,
    /// What we show.
    pub pair: Option<(PathBuf, PathBuf)>,
    /// What we say.
    pub token: Option<PathBuf>,
}

impl LegacyFiles {
    /// Roots and pair as they are now.
    pub fn load(&self) -> Result<(WebRoots, Option<WebPair>), WebError> {
        let roots = WebRoots::load(&self.roots)?;
        let pair = match &self.pair {
            Some((cert, key)) => Some(WebPair::load(cert, key)?),
            None => None,
        };
        Ok((roots, pair))
    }
}

/// Checked values of the legacy mode.
pub struct LegacyConfig {
    /// Where the server is.
    pub server: Target,
    /// What its certificate must be for.
    pub name: ServerName<'static>,
    /// Files.
    pub files: LegacyFiles,
    /// Protocols to offer before our own.
    pub alpn: Vec<Vec<u8>>,
    /// What we call ourselves.
    pub agent_id: String,
    /// What we say we serve, as it was given.
    pub identifiers: String,
    /// First and longest pause between attempts.
    pub sync: (Duration, Duration),
    /// Go on looking.
    pub sync_forever: bool,
    /// Between pings.
    pub keepalive: Duration,
    /// Where Leases are counted, and which.
    pub leases: Option<(Leases, String)>,
    /// Which number counts.
    pub source: CountSource,
    /// Speak the legacy protocol to anybody.
    pub allow_downgrade: bool,
    /// Who has spoken `towline/1`.
    pub spoken: SpokenTo,
}

impl fmt::Debug for LegacyConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LegacyConfig")
            .field("server", &self.server.to_string())
            .field("files", &self.files)
            .field("agent_id", &self.agent_id)
            .field("identifiers", &self.identifiers)
            .field("sync", &self.sync)
            .field("sync_forever", &self.sync_forever)
            .field("keepalive", &self.keepalive)
            .field("count_leases", &self.leases.is_some())
            .field("allow_downgrade", &self.allow_downgrade)
            .finish_non_exhaustive()
    }
}

/// Health and admin ports as Konnectivity has them.
#[derive(Clone, Copy, Debug)]
pub struct Listeners {
    /// `--health-server-host`, `--health-server-port`.
    pub health: SocketAddr,
    /// `--admin-bind-address`, `--admin-server-port`.
    pub second: Second,
}

impl Listeners {
    /// From the flags.
    pub fn new(args: &KonnectivityArgs) -> Result<Self, LegacyConfigError> {
        let health = socket(
            ("--health-server-host", args.health_server_host.as_deref()),
            "",
            ("--health-server-port", args.health_server_port),
            8093,
        )?;
        let address = socket(
            ("--admin-bind-address", args.admin_bind_address.as_deref()),
            "127.0.0.1",
            ("--admin-server-port", args.admin_server_port),
            8094,
        )?;
        let profiling = args.enable_profiling.unwrap_or(false);
        if args.enable_contention_profiling.unwrap_or(false) && !profiling {
            return Err(LegacyConfigError::Profiling);
        }
        Ok(Self {
            health,
            second: Second {
                address,
                metrics: MetricsAt::Port(health.port()),
                profiling,
            },
        })
    }
}

fn socket(
    (host_flag, host): (&'static str, Option<&str>),
    default_host: &str,
    (port_flag, port): (&'static str, Option<i64>),
    default_port: u16,
) -> Result<SocketAddr, LegacyConfigError> {
    let text = host.unwrap_or(default_host);
    let ip = bind_address(text).ok_or_else(|| LegacyConfigError::Address {
        flag: host_flag,
        text: text.chars().take(limits::HOST_BYTES).collect(),
    })?;
    Ok(SocketAddr::new(ip, port_of(port_flag, port, default_port)?))
}

fn port_of(flag: &'static str, given: Option<i64>, default: u16) -> Result<u16, LegacyConfigError> {
    match given {
        None => Ok(default),
        Some(value) => u16::try_from(value)
            .ok()
            .filter(|port| *port != 0)
            .ok_or(LegacyConfigError::Port { flag, value }),
    }
}

impl LegacyConfig {
    /// Reads every file; resolves no name and opens no socket. `env` is asked for Konnectivity's
    /// own name and for those of a pod, `random` for an id where none is given.
    pub fn new(
        args: KonnectivityArgs,
        state: Option<&Path>,
        env: &dyn Fn(&str) -> Option<String>,
        random: impl FnOnce() -> String,
    ) -> Result<Self, LegacyConfigError> {
        let (server, name) = server(&args)?;
        let kubeconfig = kubeconfig(&args)?;
        let files = files(&args)?;
        check_small(&args)?;
        let sync = sync(&args)?;
        let alpn = args.alpn_protos.iter().map(|name| match name.len() {
            1..=255 => Ok(name.as_bytes().to_vec()),
            _ => Err(LegacyConfigError::Alpn(name.chars().take(80).collect())),
        });
        let alpn = alpn.collect::<Result<_, _>>()?;
        let identifiers = args.agent_identifiers.unwrap_or_default();
        Identifiers::parse_strictly(&identifiers)?;
        let from_env = || env("PROXY_AGENT_ID").filter(|id| !id.is_empty());
        let given = args.agent_id.filter(|id| !id.is_empty());
        let agent_id = given.or_else(from_env).unwrap_or_else(random);
        let printable = agent_id.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        if !printable || agent_id.len() > limits::KONNECTIVITY_ID_BYTES {
            return Err(LegacyConfigError::AgentId);
        }
        let selector = args
            .lease_label_selector
            .unwrap_or_else(|| "k8s-app=konnectivity-server".to_owned());
        let leases = match args.count_server_leases.unwrap_or(false) {
            true => {
                check_selector(&selector)?;
                let client = Client::new(Access::load(kubeconfig.as_deref(), env)?);
                let namespace = args.lease_namespace.as_deref().unwrap_or("kube-system");
                Some((Leases::new(client, namespace), selector))
            }
            false => None,
        };
        let hour = Duration::from_secs(3600);
        Ok(Self {
            server,
            name,
            files,
            alpn,
            agent_id,
            identifiers,
            sync,
            sync_forever: args.sync_forever.unwrap_or(false),
            keepalive: args.keepalive_time.map_or(hour, Into::into),
            leases,
            source: args.server_count_source.unwrap_or_default(),
            allow_downgrade: args.allow_downgrade.unwrap_or(false),
            spoken: SpokenTo::load(state)?,
        })
    }
}

fn server(args: &KonnectivityArgs) -> Result<(Target, ServerName<'static>), LegacyConfigError> {
    let text = args.proxy_server_host.as_deref().unwrap_or("127.0.0.1");
    let port = port_of("--proxy-server-port", args.proxy_server_port, 8091)?;
    let wrong = || LegacyConfigError::ServerHost(text.chars().take(limits::HOST_BYTES).collect());
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let host: Host = bare.parse().map_err(|_| wrong())?;
    let target = Target::new(host, port).ok_or_else(wrong)?;
    Ok((target, server_name(bare)?))
}

/// It must be there whether it is needed or not.
fn kubeconfig(args: &KonnectivityArgs) -> Result<Option<PathBuf>, LegacyConfigError> {
    let given = args.kubeconfig.clone();
    let given = given.filter(|path| !path.as_os_str().is_empty());
    match given {
        Some(path) if !path.exists() => {
            Err(LegacyConfigError::NoKubeconfig(path.display().to_string()))
        }
        given => Ok(given),
    }
}

fn files(args: &KonnectivityArgs) -> Result<LegacyFiles, LegacyConfigError> {
    let path = |path: &Option<PathBuf>| path.clone().filter(|path| !path.as_os_str().is_empty());
    let half = |given, missing| Err(LegacyConfigError::Half { given, missing });
    let pair = match (path(&args.agent_cert), path(&args.agent_key)) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        (Some(_), None) => return half("--agent-cert", "--agent-key"),
        (None, Some(_)) => return half("--agent-key", "--agent-cert"),
    };
    let token = path(&args.service_account_token_path);
    if let Some(path) = &token {
        std::fs::metadata(path).map_err(|source| LegacyConfigError::TokenFile {
            path: path.display().to_string(),
            source,
        })?;
    }
    let files = LegacyFiles {
        roots: path(&args.ca_cert).ok_or(LegacyConfigError::NoRoots)?,
        pair,
        token,
    };
    files.load()?;
    Ok(files)
}

fn check_small(args: &KonnectivityArgs) -> Result<(), LegacyConfigError> {
    match args.xfr_channel_size {
        Some(size) if size <= 0 => Err(LegacyConfigError::ChannelSize(size)),
        _ => Ok(()),
    }
}

fn sync(args: &KonnectivityArgs) -> Result<(Duration, Duration), LegacyConfigError> {
    let second = |seconds| TimeSpan(Duration::from_secs(seconds));
    let interval = args.sync_interval.unwrap_or(second(1));
    let cap = args.sync_interval_cap.unwrap_or(second(10));
    if interval.0 > cap.0 {
        return Err(LegacyConfigError::SyncInterval { interval, cap });
    }
    // An interval of nothing would be a loop without a pause.
    let least = limits::BACKOFF_FIRST;
    Ok((interval.0.max(least), cap.0.max(least)))
}

fn check_selector(text: &str) -> Result<(), LegacyConfigError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=!(), ".contains(c);
    let requirements = text.split(',').all(|part| !part.trim().is_empty());
    match !text.is_empty() && text.len() <= limits::KUBE_TEXT_BYTES && text.chars().all(plain) {
        true if requirements => Ok(()),
        _ => Err(LegacyConfigError::Selector(text.chars().take(80).collect())),
    }
}

impl LegacyConfig {
    /// What an operator should know at the start, one line each.
    pub fn warnings(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "legacy mode: whoever holds a server certificate for {} under {} may reach anything \
             from this node that is not forbidden to all; nothing says which server it is",
            self.server.host,
            self.files.roots.display()
        )];
        if let Some((_, key)) = &self.files.pair
            && let Some((path, mode)) = public_key_file(key)
        {
            lines.push(format!(
                "{}: mode {mode:04o} lets others at the private key",
                path.display()
            ));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_that_is_not_there_is_refused_although_nobody_needs_it() {
        let with = |path: &str| {
            let args = KonnectivityArgs {
                kubeconfig: Some(path.into()),
                ..KonnectivityArgs::default()
            };
            LegacyConfig::new(args, None, &|_| None, String::new).unwrap_err()
        };
        let error = with("/none");
        assert_eq!(error.to_string(), "--kubeconfig /none: no such file");
        // Empty is not given, as with all paths.
        assert!(matches!(with(""), LegacyConfigError::NoRoots));
    }

    #[test]
    fn listeners_may_be_at_localhost() {
        let at = |host: &str| {
            let args = KonnectivityArgs {
                health_server_host: Some(host.to_owned()),
                ..KonnectivityArgs::default()
            };
            Listeners::new(&args).map(|both| both.health.to_string())
        };
        assert_eq!(at("localhost").unwrap(), "127.0.0.1:8093");
        assert_eq!(at("").unwrap(), "[::]:8093");
        at("cp.example").unwrap_err();
    }
}
