//! Every flag of the agent, each with its name in the environment. What is parsed here has the
//! right form and range; what must fit together is checked in `config`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use ipnet::IpNet;
use towline_link::carrier::CarrierMode;
use towline_link::process::telemetry::{LogFilter, LogFormat};
use towline_link::process::values::{ByteSize, TimeSpan, listen_address, prefix};
use towline_link::quic::Congestion;
use towline_pki::CrlPolicy;
use towline_proto::limits;
use towline_proto::target::{Class, Target};

use crate::enrol::flags::EnrolArgs;
use crate::konnectivity::args::KonnectivityArgs;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Keeps this node on a verified line from the control plane.
///
/// Dials out to every server given, proves by certificate which node it is, and connects what
/// the control plane asks for to the kubelet, pods and services of this node, and to nothing else.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "towline-agent",
    version,
    max_term_width = 100,
    args_override_self = true
)]
pub struct Args {
    /// Where a server is; repeat it for each server, a link is kept to every one
    #[arg(
        long = "server",
        env = "TOWLINE_SERVER",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        required_unless_present = "compatibility"
    )]
    pub servers: Vec<Target>,

    /// This node's certificate, issuers after it (PEM); its name is the node name
    #[arg(
        long,
        env = "TOWLINE_CERT",
        value_name = "FILE",
        required_unless_present_any = ["compatibility", "enrol"]
    )]
    pub cert: Option<PathBuf>,

    /// The key of the certificate (PEM, readable by its owner and at most its group)
    #[arg(
        long,
        env = "TOWLINE_KEY",
        value_name = "FILE",
        required_unless_present_any = ["compatibility", "enrol"]
    )]
    pub key: Option<PathBuf>,

    /// The authority that signs servers (PEM, several during a change)
    #[arg(
        long,
        env = "TOWLINE_SERVER_CA",
        value_name = "FILE",
        required_unless_present_any = ["compatibility", "enrol"]
    )]
    pub server_ca: Option<PathBuf>,

    /// How the certificate is got.
    #[command(flatten)]
    pub enrol: EnrolArgs,

    /// Servers that are refused although they verify: identities, or serial:HEX, one a line
    #[arg(long, env = "TOWLINE_DENY_LIST", value_name = "FILE")]
    pub deny_list: Option<PathBuf>,

    /// Revocation lists of the authorities that sign servers (PEM); repeat it
    #[arg(
        long = "server-crl",
        env = "TOWLINE_SERVER_CRL",
        value_name = "FILE",
        value_delimiter = ','
    )]
    pub server_crls: Vec<PathBuf>,

    /// What a revocation list past its next update means: keep-last (it still counts, with an alarm)
    /// or fail-closed (whom it should cover is refused, live links included)
    #[arg(long, env = "TOWLINE_CRL_POLICY", value_name = "POLICY", default_value_t = CrlPolicy::default())]
    pub crl_policy: CrlPolicy,

    /// What links run on: auto, quic or tls
    #[arg(long, env = "TOWLINE_CARRIER", default_value = "auto")]
    pub carrier: CarrierMode,

    /// HTTP proxy for the tls carrier, or off; without it HTTPS_PROXY, ALL_PROXY and NO_PROXY count
    #[arg(long, env = "TOWLINE_HTTP_PROXY", value_name = "URL")]
    pub http_proxy: Option<String>,

    /// The kubelet's port
    #[arg(long, env = "TOWLINE_KUBELET_PORT", default_value_t = 10250, value_parser = clap::value_parser!(u16).range(1..))]
    pub kubelet_port: u16,

    /// Where the kubelet of this node listens; repeat it [default: the IP addresses in the certificate]
    #[arg(
        long = "kubelet-address",
        env = "TOWLINE_KUBELET_ADDRESS",
        value_name = "IP",
        value_delimiter = ','
    )]
    pub kubelet_addresses: Vec<IpAddr>,

    /// Service prefixes: only these are class service; needed where IPVS binds service addresses
    #[arg(
        long = "service-cidr",
        env = "TOWLINE_SERVICE_CIDR",
        value_name = "PREFIX",
        value_parser = prefix,
        value_delimiter = ','
    )]
    pub service_prefixes: Vec<IpNet>,

    /// Pod prefixes: only these are class pod
    #[arg(
        long = "pod-cidr",
        env = "TOWLINE_POD_CIDR",
        value_name = "PREFIX",
        value_parser = prefix,
        value_delimiter = ','
    )]
    pub pod_prefixes: Vec<IpNet>,

    /// What may be reached (YAML, the same file as at the servers); takes the place of --allow-class
    #[arg(long, env = "TOWLINE_POLICY", value_name = "FILE")]
    pub policy: Option<PathBuf>,

    /// Classes of targets that may be reached without --policy: kubelet, node, pod, service, other [default: kubelet, pod and service; all with --compatibility]
    #[arg(
        long = "allow-class",
        conflicts_with = "policy",
        env = "TOWLINE_ALLOW_CLASS",
        value_name = "CLASS",
        value_delimiter = ','
    )]
    pub allow_classes: Vec<Class>,

    /// For connecting to a target, all its addresses together
    #[arg(long, env = "TOWLINE_CONNECT_TIMEOUT", value_name = "TIME", default_value_t = TimeSpan(limits::CONNECT_TIMEOUT), value_parser = TimeSpan::between(10 * MS..=limits::DIAL_TIMEOUT_MAX))]
    pub connect_timeout: TimeSpan,

    /// How long live dials may go on when the agent stops or changes links
    #[arg(long, env = "TOWLINE_DRAIN_TIMEOUT", value_name = "TIME", default_value_t = TimeSpan(limits::DRAIN_TIMEOUT), value_parser = TimeSpan::between(Duration::ZERO..=3600 * SECOND))]
    pub drain_timeout: TimeSpan,

    /// Live dials of this agent; more are refused as busy
    #[arg(long, env = "TOWLINE_MAX_DIALS", default_value_t = limits::DIALS_PER_LINK, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_dials: u32,

    /// Bytes that stalled dials may hold together; then the longest-stalled is ended
    #[arg(long, env = "TOWLINE_MEMORY_BUDGET", value_name = "SIZE", default_value = "128MiB", value_parser = ByteSize::between(8 << 20..=1 << 40))]
    pub memory_budget: ByteSize,

    /// UDP socket buffer to ask for, each way
    #[arg(long, env = "TOWLINE_UDP_BUFFER", value_name = "SIZE", default_value = "8MiB", value_parser = ByteSize::between(64 << 10..=1 << 30))]
    pub udp_buffer: ByteSize,

    /// Largest UDP payload to try: more than 1452 only with jumbo frames all the way
    #[arg(long, env = "TOWLINE_QUIC_PAYLOAD", value_name = "BYTES", default_value_t = limits::QUIC_PAYLOAD, value_parser = clap::value_parser!(u16).range(1200..=i64::from(limits::QUIC_PAYLOAD_JUMBO)))]
    pub quic_payload: u16,

    /// Congestion control of quic links: bbr or cubic
    #[arg(long, env = "TOWLINE_QUIC_CONGESTION", value_name = "NAME", default_value_t = Congestion::default())]
    pub quic_congestion: Congestion,

    /// How often a link on tls tries to move back to quic
    #[arg(long, env = "TOWLINE_CARRIER_PROBE", value_name = "TIME", hide = true, default_value_t = TimeSpan(limits::CARRIER_PROBE), value_parser = TimeSpan::between(100 * MS..=3600 * SECOND))]
    pub carrier_probe: TimeSpan,

    /// Threads that carry bytes
    #[arg(long, env = "TOWLINE_WORKERS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: u16,

    /// Where health and metrics are served [default: 127.0.0.1:8093]
    #[arg(long, env = "TOWLINE_HEALTH_BIND", value_name = "IP:PORT", value_parser = listen_address)]
    pub health_bind: Option<SocketAddr>,

    /// Where is kept what must survive a restart: with --enrol this node's key and certificate,
    /// with --compatibility which servers have spoken towline/1
    #[arg(long, env = "TOWLINE_STATE_DIR", value_name = "DIRECTORY")]
    pub state_dir: Option<PathBuf>,

    /// Unix socket for status and orders, for root and our own user
    #[arg(long, env = "TOWLINE_ADMIN_SOCKET", value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,

    /// human or json
    #[arg(long, env = "TOWLINE_LOG_FORMAT", default_value_t = LogFormat::default())]
    pub log_format: LogFormat,

    /// error, warn, info, debug, trace, or directives such as info,towline_link=debug
    #[arg(long, env = "TOWLINE_LOG_LEVEL", default_value_t = LogFilter::default())]
    pub log_level: LogFilter,

    /// Reads and checks every flag and file, opens no socket, resolves no name, and ends
    #[arg(long, env = "TOWLINE_CHECK_CONFIG", value_parser = clap::builder::FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub check_config: bool,

    /// What comes from Konnectivity.
    #[command(flatten)]
    pub konnectivity: KonnectivityArgs,
}

/// A command line without certificates, with a word about the other way to have them.
pub fn with_enrolment(mut error: clap::Error) -> clap::Error {
    let missing = matches!(error.get(ContextKind::InvalidArg), Some(ContextValue::Strings(flags)) if flags.iter().any(|flag| flag.starts_with("--cert")));
    if error.kind() == ErrorKind::MissingRequiredArgument && missing {
        let way = "a node can get its certificate itself: give --enrol server or --enrol kubernetes \
                   instead of --cert and --key (pki/README.md, \"A new node by itself\")";
        error.insert(
            ContextKind::Suggested,
            ContextValue::StyledStrs(vec![StyledStr::from(way)]),
        );
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_flag_has_its_name_in_the_environment() {
        let command = Args::command();
        command.clone().debug_assert();
        for arg in command
            .get_arguments()
            .filter(|arg| !matches!(arg.get_id().as_str(), "help" | "version"))
        {
            let flag = arg.get_long().expect("a long name");
            let expected = format!("TOWLINE_{}", flag.replace('-', "_").to_uppercase());
            assert_eq!(
                arg.get_env().and_then(|name| name.to_str()),
                Some(expected.as_str())
            );
        }
    }

    #[test]
    fn lists_are_repeated_or_separated_by_commas() {
        let args = Args::try_parse_from([
            "towline-agent",
            "--server",
            "a:1,b:2",
            "--server",
            "[::1]:3",
            "--cert",
            "c",
            "--key",
            "k",
            "--server-ca",
            "s",
            "--pod-cidr",
            "10.244.0.0/16,fd00::/64",
        ])
        .unwrap();
        assert_eq!(args.servers.len(), 3);
        assert_eq!(args.pod_prefixes.len(), 2);
        assert!(args.allow_classes.is_empty());
    }

    #[test]
    fn of_a_flag_that_is_repeated_the_last_value_counts() {
        let flags = ["--v=2", "--v=4", "--sync-forever", "--sync-forever=false"];
        let given = ["towline-agent", "--compatibility=konnectivity"];
        let args = Args::try_parse_from(given.iter().chain(&flags)).unwrap();
        assert_eq!(args.konnectivity.klog.v, Some(4));
        assert_eq!(args.konnectivity.sync_forever, Some(false));
    }

    #[test]
    fn what_is_out_of_range_is_refused_with_the_range() {
        for (flag, value) in [
            ("--kubelet-port", "0"),
            ("--connect-timeout", "1h"),
            ("--max-dials", "0"),
            ("--server", "a"),
            ("--carrier", "udp"),
            ("--udp-buffer", "8MB"),
            ("--quic-payload", "9000"),
            ("--allow-class", "all"),
        ] {
            let parsed = Args::try_parse_from([
                "towline-agent",
                "--server",
                "a:1",
                "--cert",
                "c",
                "--key",
                "k",
                "--server-ca",
                "s",
                flag,
                value,
            ]);
            assert!(parsed.is_err(), "{flag} {value}");
        }
    }

    #[test]
    fn who_gives_no_certificate_is_told_of_enrolment() {
        let refused = |words: &[&str]| {
            let words = ["towline-agent"].iter().chain(words);
            let error = Args::try_parse_from(words).expect_err("not enough");
            with_enrolment(error).to_string()
        };
        for words in [&[][..], &["--server", "a:1"]] {
            let said = refused(words);
            assert!(
                said.contains("--cert") && said.contains("--enrol server"),
                "{said}"
            );
        }
        let said = refused(&["--enrol", "server"]);
        assert!(said.contains("--server") && !said.contains("tip"), "{said}");
        let said = refused(&["--no-such-flag"]);
        assert!(!said.contains("--enrol server"), "{said}");
    }
}
