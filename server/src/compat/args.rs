//! Every flag of Konnectivity's proxy-server. They have no default here: what is not given is
//! filled in by `profile`, and only with `--compatibility=konnectivity`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use towline_link::process::klog::{KlogFlags, go_bool};
use towline_link::process::values::TimeSpan;

/// `--compatibility`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compatibility {
    /// Stand in for Konnectivity's proxy-server.
    Konnectivity,
}

/// A word that is not the one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown value {given:?}: use {expected}")]
pub struct UnknownWord {
    given: String,
    expected: &'static str,
}

impl UnknownWord {
    fn new(given: &str, expected: &'static str) -> Self {
        Self {
            given: given.chars().take(32).collect(),
            expected,
        }
    }
}

impl FromStr for Compatibility {
    type Err = UnknownWord;
    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        match text {
            "konnectivity" => Ok(Compatibility::Konnectivity),
            other => Err(UnknownWord::new(other, "konnectivity")),
        }
    }
}

/// `--mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoorMode {
    /// Konnectivity's gRPC only.
    Grpc,
    /// HTTP CONNECT only.
    HttpConnect,
}

impl FromStr for DoorMode {
    type Err = UnknownWord;
    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        match text {
            "grpc" => Ok(DoorMode::Grpc),
            "http-connect" => Ok(DoorMode::HttpConnect),
            other => Err(UnknownWord::new(other, "grpc or http-connect")),
        }
    }
}

impl fmt::Display for DoorMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DoorMode::Grpc => "grpc",
            DoorMode::HttpConnect => "http-connect",
        })
    }
}

/// A path, or nothing: manifests of the field give empty values.
fn path(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    Ok(text.into())
}

/// Flags of Konnectivity's proxy-server.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "With --compatibility=konnectivity")]
pub struct KonnectivityArgs {
    /// Stand in for Konnectivity's proxy-server: its flags, its defaults, its agents, which are not verified. The only value is konnectivity
    #[arg(long, env = "TOWLINE_COMPATIBILITY", value_name = "PROGRAM")]
    pub compatibility: Option<Compatibility>,

    /// Let legacy agents have targets whose verified owner has no link, as for a way back
    #[arg(long, env = "TOWLINE_ALLOW_DOWNGRADE", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub allow_downgrade: Option<bool>,

    /// Unix socket for front ends; then --server-port must be 0
    #[arg(long, env = "TOWLINE_UDS_NAME", value_name = "PATH", value_parser = path)]
    pub uds_name: Option<PathBuf>,

    /// Remove what lies in the socket's place: a dead socket, an empty file or directory, a link; what holds something and a socket that somebody serves are left, with an error [default: true]
    #[arg(long, env = "TOWLINE_DELETE_EXISTING_UDS_FILE", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub delete_existing_uds_file: Option<bool>,

    /// TCP port for front ends, 1024 to 49151, or 0 with a socket [default: 8090]
    #[arg(long, env = "TOWLINE_SERVER_PORT", value_name = "PORT")]
    pub server_port: Option<u16>,

    /// Address for front ends [default: every address]
    #[arg(long, env = "TOWLINE_SERVER_BIND_ADDRESS", value_name = "IP")]
    pub server_bind_address: Option<String>,

    /// Our certificate for front ends over TCP (PEM)
    #[arg(long, env = "TOWLINE_SERVER_CERT", value_name = "FILE", value_parser = path)]
    pub server_cert: Option<PathBuf>,

    /// Its key (PEM)
    #[arg(long, env = "TOWLINE_SERVER_KEY", value_name = "FILE", value_parser = path)]
    pub server_key: Option<PathBuf>,

    /// Who signs front ends: any certificate of this authority may ask for anything (PEM)
    #[arg(long, env = "TOWLINE_SERVER_CA_CERT", value_name = "FILE", value_parser = path)]
    pub server_ca_cert: Option<PathBuf>,

    /// Port for agents, 1024 to 49151 [default: that of --listen]
    #[arg(long, env = "TOWLINE_AGENT_PORT", value_name = "PORT")]
    pub agent_port: Option<u16>,

    /// Address for agents [default: that of --listen]
    #[arg(long, env = "TOWLINE_AGENT_BIND_ADDRESS", value_name = "IP")]
    pub agent_bind_address: Option<String>,

    /// Our certificate for legacy agents (PEM)
    #[arg(long, env = "TOWLINE_CLUSTER_CERT", value_name = "FILE", value_parser = path)]
    pub cluster_cert: Option<PathBuf>,

    /// Its key (PEM)
    #[arg(long, env = "TOWLINE_CLUSTER_KEY", value_name = "FILE", value_parser = path)]
    pub cluster_key: Option<PathBuf>,

    /// Who signs legacy agents: any certificate of this authority is an agent (PEM)
    #[arg(long, env = "TOWLINE_CLUSTER_CA_CERT", value_name = "FILE", value_parser = path)]
    pub cluster_ca_cert: Option<PathBuf>,

    /// Port of metrics for administrators, 1024 to 49151 [default: 8095]
    #[arg(long, env = "TOWLINE_ADMIN_PORT", value_name = "PORT")]
    pub admin_port: Option<u16>,

    /// Address of metrics for administrators, empty for every address [default: 127.0.0.1]
    #[arg(long, env = "TOWLINE_ADMIN_BIND_ADDRESS", value_name = "IP")]
    pub admin_bind_address: Option<String>,

    /// Port of health and metrics, 1024 to 49151 [default: 8092]
    #[arg(long, env = "TOWLINE_HEALTH_PORT", value_name = "PORT")]
    pub health_port: Option<u16>,

    /// Address of health and metrics [default: every address]
    #[arg(long, env = "TOWLINE_HEALTH_BIND_ADDRESS", value_name = "IP")]
    pub health_bind_address: Option<String>,

    /// Silence after which a legacy agent is pinged [default: 1h]
    #[arg(long, env = "TOWLINE_KEEPALIVE_TIME", value_name = "TIME")]
    pub keepalive_time: Option<TimeSpan>,

    /// Silence after which a gRPC front end is pinged [default: 1h]
    #[arg(
        long,
        env = "TOWLINE_FRONTEND_KEEPALIVE_TIME",
        value_name = "TIME",
        hide = true
    )]
    pub frontend_keepalive_time: Option<TimeSpan>,

    /// Accepted; there is no profiling over HTTP here
    #[arg(long, env = "TOWLINE_ENABLE_PROFILING", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub enable_profiling: Option<bool>,

    /// Accepted; needs --enable-profiling
    #[arg(long, env = "TOWLINE_ENABLE_CONTENTION_PROFILING", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub enable_contention_profiling: Option<bool>,

    /// Our id, told to agents [default: PROXY_SERVER_ID of the environment, or a random one]
    #[arg(long, env = "TOWLINE_SERVER_ID", value_name = "ID")]
    pub server_id: Option<String>,

    /// How many servers there are, told to agents [default: 1]
    #[arg(long, env = "TOWLINE_SERVER_COUNT", value_name = "NUMBER")]
    pub server_count: Option<u32>,

    /// Namespace of the service account that legacy agents run as
    #[arg(long, env = "TOWLINE_AGENT_NAMESPACE", value_name = "NAME")]
    pub agent_namespace: Option<String>,

    /// Service account that legacy agents run as
    #[arg(long, env = "TOWLINE_AGENT_SERVICE_ACCOUNT", value_name = "NAME")]
    pub agent_service_account: Option<String>,

    /// Audience of the tokens of legacy agents, in general system:konnectivity-server
    #[arg(long, env = "TOWLINE_AUTHENTICATION_AUDIENCE", value_name = "NAME")]
    pub authentication_audience: Option<String>,

    /// Where the Kubernetes API is [default: the pod that we run in]
    #[arg(long, env = "TOWLINE_KUBECONFIG", value_name = "FILE", value_parser = path)]
    pub kubeconfig: Option<PathBuf>,

    /// Accepted, without effect
    #[arg(
        long,
        env = "TOWLINE_KUBECONFIG_QPS",
        hide = true,
        allow_negative_numbers = true
    )]
    pub kubeconfig_qps: Option<f64>,

    /// Accepted, without effect
    #[arg(
        long,
        env = "TOWLINE_KUBECONFIG_BURST",
        hide = true,
        allow_negative_numbers = true
    )]
    pub kubeconfig_burst: Option<i64>,

    /// Accepted, without effect: JSON is spoken
    #[arg(long, env = "TOWLINE_KUBE_API_CONTENT_TYPE", hide = true)]
    pub kube_api_content_type: Option<String>,

    /// In which order a legacy agent is looked for: default, destHost, defaultRoute [default: default]
    #[arg(long, env = "TOWLINE_PROXY_STRATEGIES", value_name = "LIST")]
    pub proxy_strategies: Option<String>,

    /// Accepted, without effect: TLS 1.3 with our own suites
    #[arg(long, env = "TOWLINE_CIPHER_SUITES", hide = true)]
    pub cipher_suites: Option<String>,

    /// Accepted: VersionTLS10 to VersionTLS13; it is TLS 1.3 always
    #[arg(long, env = "TOWLINE_TLS_MIN_VERSION", hide = true)]
    pub tls_min_version: Option<String>,

    /// Accepted, without effect: queues are bounded in bytes
    #[arg(
        long,
        env = "TOWLINE_XFR_CHANNEL_SIZE",
        hide = true,
        allow_negative_numbers = true
    )]
    pub xfr_channel_size: Option<i64>,

    /// Accepted, without effect: queues are bounded in bytes
    #[arg(
        long,
        env = "TOWLINE_FRONTEND_WRITE_CHANNEL_SIZE",
        hide = true,
        allow_negative_numbers = true
    )]
    pub frontend_write_channel_size: Option<i64>,

    /// Keep a Lease by which agents count servers
    #[arg(long, env = "TOWLINE_ENABLE_LEASE_CONTROLLER", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub enable_lease_controller: Option<bool>,

    /// Where Leases are [default: kube-system]
    #[arg(long, env = "TOWLINE_LEASE_NAMESPACE", value_name = "NAME")]
    pub lease_namespace: Option<String>,

    /// Labels of the Leases of all servers [default: k8s-app=konnectivity-server]
    #[arg(long, env = "TOWLINE_LEASE_LABEL", value_name = "KEY=VALUE,...")]
    pub lease_label: Option<String>,

    /// How long live dials may go on when the server stops [default: 0s]
    #[arg(long, env = "TOWLINE_GRACEFUL_SHUTDOWN_TIMEOUT", value_name = "TIME")]
    pub graceful_shutdown_timeout: Option<TimeSpan>,

    /// How long a legacy agent may take to answer a dial, 30s at most; 0 is --dial-timeout, which is raised to it where it is not given [default: 0s]
    #[arg(long, env = "TOWLINE_BACKEND_DIAL_TIMEOUT", value_name = "TIME")]
    pub backend_dial_timeout: Option<TimeSpan>,

    /// Accepted, without effect
    #[arg(long, env = "TOWLINE_WARN_ON_CHANNEL_LIMIT", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub warn_on_channel_limit: Option<bool>,

    /// Logging.
    #[command(flatten)]
    pub klog: KlogFlags,
}

impl KonnectivityArgs {
    /// Given flags that say something only in the compatibility profile.
    pub fn given(&self) -> Vec<&'static str> {
        let of = |name, given: bool| given.then_some(name);
        let flags = [
            of("--allow-downgrade", self.allow_downgrade.is_some()),
            of("--uds-name", self.uds_name.is_some()),
            of(
                "--delete-existing-uds-file",
                self.delete_existing_uds_file.is_some(),
            ),
            of("--server-port", self.server_port.is_some()),
            of("--server-bind-address", self.server_bind_address.is_some()),
            of("--server-cert", self.server_cert.is_some()),
            of("--server-key", self.server_key.is_some()),
            of("--server-ca-cert", self.server_ca_cert.is_some()),
            of("--agent-port", self.agent_port.is_some()),
            of("--agent-bind-address", self.agent_bind_address.is_some()),
            of("--cluster-cert", self.cluster_cert.is_some()),
            of("--cluster-key", self.cluster_key.is_some()),
            of("--cluster-ca-cert", self.cluster_ca_cert.is_some()),
            of("--admin-port", self.admin_port.is_some()),
            of("--admin-bind-address", self.admin_bind_address.is_some()),
            of("--health-port", self.health_port.is_some()),
            of("--health-bind-address", self.health_bind_address.is_some()),
            of("--keepalive-time", self.keepalive_time.is_some()),
            of("--enable-profiling", self.enable_profiling.is_some()),
            of(
                "--enable-contention-profiling",
                self.enable_contention_profiling.is_some(),
            ),
            of("--server-id", self.server_id.is_some()),
            of("--server-count", self.server_count.is_some()),
            of("--agent-namespace", self.agent_namespace.is_some()),
            of(
                "--agent-service-account",
                self.agent_service_account.is_some(),
            ),
            of(
                "--authentication-audience",
                self.authentication_audience.is_some(),
            ),
            of("--proxy-strategies", self.proxy_strategies.is_some()),
            of(
                "--enable-lease-controller",
                self.enable_lease_controller.is_some(),
            ),
            of("--lease-namespace", self.lease_namespace.is_some()),
            of("--lease-label", self.lease_label.is_some()),
            of(
                "--graceful-shutdown-timeout",
                self.graceful_shutdown_timeout.is_some(),
            ),
            of(
                "--backend-dial-timeout",
                self.backend_dial_timeout.is_some(),
            ),
            of(
                "--frontend-keepalive-time",
                self.frontend_keepalive_time.is_some(),
            ),
        ];
        let mut given: Vec<_> = flags.into_iter().flatten().collect();
        given.extend(self.without_effect());
        given.extend(self.klog.v.map(|_| "--v"));
        given
    }

    /// Given flags that are accepted and change nothing.
    pub fn without_effect(&self) -> Vec<&'static str> {
        let flags = [
            ("--kubeconfig-qps", self.kubeconfig_qps.is_some()),
            ("--kubeconfig-burst", self.kubeconfig_burst.is_some()),
            (
                "--kube-api-content-type",
                self.kube_api_content_type.is_some(),
            ),
            ("--cipher-suites", self.cipher_suites.is_some()),
            ("--tls-min-version", self.tls_min_version.is_some()),
            ("--xfr-channel-size", self.xfr_channel_size.is_some()),
            (
                "--frontend-write-channel-size",
                self.frontend_write_channel_size.is_some(),
            ),
            (
                "--warn-on-channel-limit",
                self.warn_on_channel_limit.is_some(),
            ),
        ];
        let mut given: Vec<_> = flags
            .into_iter()
            .filter_map(|(name, given)| given.then_some(name))
            .collect();
        given.extend(self.klog.without_effect());
        given
    }
}
