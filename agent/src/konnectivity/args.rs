//! Every flag of Konnectivity's proxy-agent. They have no default here: what is not given is
//! filled in by `config`, and only with `--compatibility=konnectivity`.

use std::path::PathBuf;
use std::str::FromStr;

use towline_link::process::klog::{KlogFlags, go_bool};
use towline_link::process::values::TimeSpan;

use super::count::CountSource;

/// `--compatibility`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compatibility {
    /// Stand in for Konnectivity's proxy-agent.
    Konnectivity,
}

/// A word that is not the one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown value {0:?}: use konnectivity")]
pub struct UnknownProgram(String);

impl FromStr for Compatibility {
    type Err = UnknownProgram;
    fn from_str(text: &str) -> Result<Self, UnknownProgram> {
        match text {
            "konnectivity" => Ok(Compatibility::Konnectivity),
            other => Err(UnknownProgram(other.chars().take(32).collect())),
        }
    }
}

/// Flags of Konnectivity's proxy-agent.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "With --compatibility=konnectivity")]
pub struct KonnectivityArgs {
    /// Stand in for Konnectivity's proxy-agent: its flags, its defaults, and its servers, which are known by name alone, until one speaks towline/1. The only value is konnectivity
    #[arg(long, env = "TOWLINE_COMPATIBILITY", value_name = "PROGRAM")]
    pub compatibility: Option<Compatibility>,

    /// Speak the legacy protocol also to a server that has spoken towline/1, as for a way back
    #[arg(long, env = "TOWLINE_ALLOW_DOWNGRADE", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub allow_downgrade: Option<bool>,

    /// Where the server or its load balancer is, of either kind [default: 127.0.0.1, unless --server is given]
    #[arg(long, env = "TOWLINE_PROXY_SERVER_HOST", value_name = "HOST")]
    pub proxy_server_host: Option<String>,

    /// Its port [default: 8091]
    #[arg(
        long,
        env = "TOWLINE_PROXY_SERVER_PORT",
        value_name = "PORT",
        allow_negative_numbers = true
    )]
    pub proxy_server_port: Option<i64>,

    /// Who signs legacy servers (PEM); their name must be --proxy-server-host
    #[arg(long, env = "TOWLINE_CA_CERT", value_name = "FILE")]
    pub ca_cert: Option<PathBuf>,

    /// Our certificate for legacy servers (PEM)
    #[arg(long, env = "TOWLINE_AGENT_CERT", value_name = "FILE")]
    pub agent_cert: Option<PathBuf>,

    /// Its key (PEM)
    #[arg(long, env = "TOWLINE_AGENT_KEY", value_name = "FILE")]
    pub agent_key: Option<PathBuf>,

    /// Protocols to offer before h2, for a load balancer that chooses by them
    #[arg(
        long = "alpn-proto",
        env = "TOWLINE_ALPN_PROTO",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub alpn_protos: Vec<String>,

    /// A service account's token to show to legacy servers; read again for each attempt
    #[arg(long, env = "TOWLINE_SERVICE_ACCOUNT_TOKEN_PATH", value_name = "FILE")]
    pub service_account_token_path: Option<PathBuf>,

    /// What we call ourselves towards legacy servers [default: PROXY_AGENT_ID of the environment, or a random one]
    #[arg(long, env = "TOWLINE_AGENT_ID", value_name = "ID")]
    pub agent_id: Option<String>,

    /// What we say we serve, as a URL query: ipv4=10.0.0.7&host=node-7&default-route=true
    #[arg(long, env = "TOWLINE_AGENT_IDENTIFIERS", value_name = "QUERY")]
    pub agent_identifiers: Option<String>,

    /// Pause between looks for servers that we have no stream to [default: 1s]
    #[arg(long, env = "TOWLINE_SYNC_INTERVAL", value_name = "TIME")]
    pub sync_interval: Option<TimeSpan>,

    /// Longest such pause after failures [default: 10s]
    #[arg(long, env = "TOWLINE_SYNC_INTERVAL_CAP", value_name = "TIME")]
    pub sync_interval_cap: Option<TimeSpan>,

    /// Look for further servers also when there are as many as there should be
    #[arg(long, env = "TOWLINE_SYNC_FOREVER", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub sync_forever: Option<bool>,

    /// Accepted, without effect: the end of a connection is noticed at once
    #[arg(long, env = "TOWLINE_PROBE_INTERVAL", hide = true)]
    pub probe_interval: Option<TimeSpan>,

    /// How often a legacy server is pinged, 30s at least; without an answer in 20 s its stream ends [default: 1h]
    #[arg(long, env = "TOWLINE_KEEPALIVE_TIME", value_name = "TIME")]
    pub keepalive_time: Option<TimeSpan>,

    /// Address of health and metrics [default: every address]
    #[arg(long, env = "TOWLINE_HEALTH_SERVER_HOST", value_name = "IP")]
    pub health_server_host: Option<String>,

    /// Port of health and metrics [default: 8093]
    #[arg(
        long,
        env = "TOWLINE_HEALTH_SERVER_PORT",
        value_name = "PORT",
        allow_negative_numbers = true
    )]
    pub health_server_port: Option<i64>,

    /// Address for administrators, empty for every address [default: 127.0.0.1]
    #[arg(long, env = "TOWLINE_ADMIN_BIND_ADDRESS", value_name = "IP")]
    pub admin_bind_address: Option<String>,

    /// Port for administrators: its /metrics leads to the health port [default: 8094]
    #[arg(
        long,
        env = "TOWLINE_ADMIN_SERVER_PORT",
        value_name = "PORT",
        allow_negative_numbers = true
    )]
    pub admin_server_port: Option<i64>,

    /// Accepted; there is no profiling over HTTP here
    #[arg(long, env = "TOWLINE_ENABLE_PROFILING", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub enable_profiling: Option<bool>,

    /// Accepted; needs --enable-profiling
    #[arg(long, env = "TOWLINE_ENABLE_CONTENTION_PROFILING", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub enable_contention_profiling: Option<bool>,

    /// Accepted, without effect: queues are bounded in bytes
    #[arg(
        long,
        env = "TOWLINE_XFR_CHANNEL_SIZE",
        hide = true,
        allow_negative_numbers = true
    )]
    pub xfr_channel_size: Option<i64>,

    /// Accepted, without effect
    #[arg(long, env = "TOWLINE_WARN_ON_CHANNEL_LIMIT", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub warn_on_channel_limit: Option<bool>,

    /// Count servers by their Leases in the Kubernetes API
    #[arg(long, env = "TOWLINE_COUNT_SERVER_LEASES", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub count_server_leases: Option<bool>,

    /// Where Leases are [default: kube-system]
    #[arg(long, env = "TOWLINE_LEASE_NAMESPACE", value_name = "NAME")]
    pub lease_namespace: Option<String>,

    /// Which Leases count; --lease-label is its old name [default: k8s-app=konnectivity-server]
    #[arg(
        long,
        env = "TOWLINE_LEASE_LABEL_SELECTOR",
        value_name = "SELECTOR",
        alias = "lease-label"
    )]
    pub lease_label_selector: Option<String>,

    /// Which number of servers counts: default (Leases where they are counted, else what servers say) or max
    #[arg(long, env = "TOWLINE_SERVER_COUNT_SOURCE", value_name = "SOURCE")]
    pub server_count_source: Option<CountSource>,

    /// Where the Kubernetes API is [default: the pod that we run in]
    #[arg(long, env = "TOWLINE_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Accepted, without effect: JSON is spoken
    #[arg(long, env = "TOWLINE_KUBE_API_CONTENT_TYPE", hide = true)]
    pub kube_api_content_type: Option<String>,

    /// Logging.
    #[command(flatten)]
    pub klog: KlogFlags,
}

impl KonnectivityArgs {
    /// Given flags that say something only in the compatibility profile.
    pub fn given(&self) -> Vec<&'static str> {
        let flags = [
            ("--allow-downgrade", self.allow_downgrade.is_some()),
            ("--proxy-server-host", self.proxy_server_host.is_some()),
            ("--proxy-server-port", self.proxy_server_port.is_some()),
            ("--ca-cert", self.ca_cert.is_some()),
            ("--agent-cert", self.agent_cert.is_some()),
            ("--agent-key", self.agent_key.is_some()),
            ("--alpn-proto", !self.alpn_protos.is_empty()),
            (
                "--service-account-token-path",
                self.service_account_token_path.is_some(),
            ),
            ("--agent-id", self.agent_id.is_some()),
            ("--agent-identifiers", self.agent_identifiers.is_some()),
            ("--sync-interval", self.sync_interval.is_some()),
            ("--sync-interval-cap", self.sync_interval_cap.is_some()),
            ("--sync-forever", self.sync_forever.is_some()),
            ("--keepalive-time", self.keepalive_time.is_some()),
            ("--health-server-host", self.health_server_host.is_some()),
            ("--health-server-port", self.health_server_port.is_some()),
            ("--admin-bind-address", self.admin_bind_address.is_some()),
            ("--admin-server-port", self.admin_server_port.is_some()),
            ("--count-server-leases", self.count_server_leases.is_some()),
            ("--lease-namespace", self.lease_namespace.is_some()),
            (
                "--lease-label-selector",
                self.lease_label_selector.is_some(),
            ),
            ("--server-count-source", self.server_count_source.is_some()),
            ("--kubeconfig", self.kubeconfig.is_some()),
        ];
        let mut given: Vec<_> = flags
            .into_iter()
            .filter_map(|(name, given)| given.then_some(name))
            .collect();
        given.extend(self.without_effect());
        given.extend(self.klog.v.map(|_| "--v"));
        given
    }

    /// Given flags that are accepted and change nothing.
    pub fn without_effect(&self) -> Vec<&'static str> {
        let flags = [
            ("--probe-interval", self.probe_interval.is_some()),
            ("--enable-profiling", self.enable_profiling.is_some()),
            (
                "--enable-contention-profiling",
                self.enable_contention_profiling.is_some(),
            ),
            ("--xfr-channel-size", self.xfr_channel_size.is_some()),
            (
                "--warn-on-channel-limit",
                self.warn_on_channel_limit.is_some(),
            ),
            (
                "--kube-api-content-type",
                self.kube_api_content_type.is_some(),
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
