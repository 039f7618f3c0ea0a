//! Every flag of the server, each with its name in the environment. What is parsed here has the
//! right form and range; what must fit together is checked in `config`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use ipnet::IpNet;
use towline_link::carrier::CarrierMode;
use towline_link::process::telemetry::{LogFilter, LogFormat};
use towline_link::process::values::{ByteSize, TimeSpan, listen_address, prefix};
use towline_link::quic::Congestion;
use towline_pki::CrlPolicy;
use towline_proto::id::Name;
use towline_proto::limits;
use towline_proto::target::Target;

use crate::attest::Mode;
use crate::audit::requests::Commands;
use crate::audit::trail::OnFailure;
use crate::compat::KonnectivityArgs;
use crate::compat::args::DoorMode;
use crate::csr::SigningArgs;
use crate::enrol::EnrolArgs;
use crate::gateway::flags::GatewayArgs;

/// The control plane's end of the line: gives kube-apiserver a byte pipe to any node.
///
/// Takes links that agents open, verifies by certificate which node each of them is, and carries
/// what front ends ask for (HTTP CONNECT) through the agent that may serve it, and no other way.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "towline-server",
    version,
    max_term_width = 100,
    args_override_self = true
)]
pub struct Args {
    /// This server's certificate, issuers after it (PEM)
    #[arg(
        long,
        env = "TOWLINE_CERT",
        value_name = "FILE",
        required_unless_present = "compatibility"
    )]
    pub cert: Option<PathBuf>,

    /// The key of the certificate (PEM, readable by its owner and at most its group)
    #[arg(
        long,
        env = "TOWLINE_KEY",
        value_name = "FILE",
        required_unless_present = "compatibility"
    )]
    pub key: Option<PathBuf>,

    /// The authority that signs agents (PEM, several during a change)
    #[arg(
        long,
        env = "TOWLINE_AGENT_CA",
        value_name = "FILE",
        required_unless_present = "compatibility"
    )]
    pub agent_ca: Option<PathBuf>,

    /// The authority that signs front ends of the TCP door (PEM)
    #[arg(long, env = "TOWLINE_CLIENT_CA", value_name = "FILE")]
    pub client_ca: Option<PathBuf>,

    /// Peers that are refused although they verify: identities, or serial:HEX, one a line
    #[arg(long, env = "TOWLINE_DENY_LIST", value_name = "FILE")]
    pub deny_list: Option<PathBuf>,

    /// Revocation lists of the authorities that sign agents (PEM); repeat it
    #[arg(
        long = "agent-crl",
        env = "TOWLINE_AGENT_CRL",
        value_name = "FILE",
        value_delimiter = ','
    )]
    pub agent_crls: Vec<PathBuf>,

    /// Revocation lists of the authorities that sign front ends (PEM); repeat it
    #[arg(
        long = "client-crl",
        env = "TOWLINE_CLIENT_CRL",
        value_name = "FILE",
        value_delimiter = ','
    )]
    pub client_crls: Vec<PathBuf>,

    /// What a revocation list past its next update means: keep-last (it still counts, with an alarm)
    /// or fail-closed (whom it should cover is refused, live links included)
    #[arg(long, env = "TOWLINE_CRL_POLICY", value_name = "POLICY", default_value_t = CrlPolicy::default())]
    pub crl_policy: CrlPolicy,

    /// Where the keys are kept by which a restarted server ends lost links; without it agents
    /// notice a killed server some seconds later
    #[arg(long, env = "TOWLINE_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Where agents connect, UDP and TCP at the same port
    #[arg(
        long,
        env = "TOWLINE_LISTEN",
        value_name = "IP:PORT",
        value_parser = listen_address,
        default_value = "[::]:8091"
    )]
    pub listen: SocketAddr,

    /// What links run on: auto (both), quic or tls
    #[arg(long, env = "TOWLINE_CARRIER", default_value = "auto")]
    pub carrier: CarrierMode,

    /// Where servers of this cluster can be reached, told to agents; repeat it
    #[arg(
        long,
        env = "TOWLINE_ADVERTISE",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    pub advertise: Vec<Target>,

    /// Unix socket for front ends (HTTP CONNECT)
    #[arg(long, env = "TOWLINE_DOOR_UNIX", value_name = "PATH")]
    pub door_unix: Option<PathBuf>,

    /// Mode of the Unix socket, octal
    #[arg(long, env = "TOWLINE_DOOR_UNIX_MODE", value_name = "MODE", default_value = "0600", value_parser = mode)]
    pub door_unix_mode: u32,

    /// User id that may use the Unix socket; repeat it [default: 0 and our own]
    #[arg(
        long = "door-unix-uid",
        env = "TOWLINE_DOOR_UNIX_UID",
        value_name = "UID",
        value_delimiter = ','
    )]
    pub door_unix_uids: Vec<u32>,

    /// Address for front ends over TCP with mutual TLS (HTTP CONNECT)
    #[arg(long, env = "TOWLINE_DOOR_TCP", value_name = "IP:PORT", value_parser = listen_address)]
    pub door_tcp: Option<SocketAddr>,

    /// Name of a client certificate that may use the TCP door; repeat it
    #[arg(
        long = "door-allow",
        env = "TOWLINE_DOOR_ALLOW",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub door_allow: Vec<Name>,

    /// The kubelets' port
    #[arg(long, env = "TOWLINE_KUBELET_PORT", default_value_t = 10250, value_parser = clap::value_parser!(u16).range(1..))]
    pub kubelet_port: u16,

    /// What a kubelet's serving certificate decides: enforce (unverified kubelets are not
    /// dialled), observe (the same checks, only counted and listed) or off [default: enforce; off
    /// with --compatibility and without --kubelet-certificate-authority]
    #[arg(long, env = "TOWLINE_KUBELET_VERIFICATION", value_name = "MODE")]
    pub kubelet_verification: Option<Mode>,

    /// The authority that signs kubelets' serving certificates (PEM, several during a change)
    #[arg(
        long,
        env = "TOWLINE_KUBELET_CERTIFICATE_AUTHORITY",
        value_name = "FILE"
    )]
    pub kubelet_certificate_authority: Option<PathBuf>,

    /// Revocation lists of that authority and of those below it (PEM); repeat it
    #[arg(
        long = "kubelet-crl",
        env = "TOWLINE_KUBELET_CRL",
        value_name = "FILE",
        value_delimiter = ','
    )]
    pub kubelet_crls: Vec<PathBuf>,

    /// The kubelet gateway
    #[command(flatten)]
    pub gateway: GatewayArgs,

    #[command(flatten)]
    pub signing: SigningArgs,

    #[command(flatten)]
    pub enrol: EnrolArgs,

    /// Service prefixes of the cluster
    #[arg(
        long = "service-cidr",
        env = "TOWLINE_SERVICE_CIDR",
        value_name = "PREFIX",
        value_parser = prefix,
        value_delimiter = ','
    )]
    pub service_prefixes: Vec<IpNet>,

    /// Pod prefixes of the cluster
    #[arg(
        long = "pod-cidr",
        env = "TOWLINE_POD_CIDR",
        value_name = "PREFIX",
        value_parser = prefix,
        value_delimiter = ','
    )]
    pub pod_prefixes: Vec<IpNet>,

    /// Node prefixes of the cluster: the kubelet port of an address in them is a kubelet's
    #[arg(
        long = "node-cidr",
        env = "TOWLINE_NODE_CIDR",
        value_name = "PREFIX",
        value_parser = prefix,
        value_delimiter = ','
    )]
    pub node_prefixes: Vec<IpNet>,

    /// What agents may serve beyond their certificates (YAML); without it each is a gateway
    #[arg(long, env = "TOWLINE_GRANTS", value_name = "FILE")]
    pub grants: Option<PathBuf>,

    /// Which front ends may reach which targets (YAML, the same file at agents); without it the
    /// classes kubelet, pod and service are allowed
    #[arg(long, env = "TOWLINE_POLICY", value_name = "FILE")]
    pub policy: Option<PathBuf>,

    /// Where every dial is recorded, in lines that hold the hash of the one before; - is standard
    /// output
    #[arg(long, env = "TOWLINE_AUDIT_LOG", value_name = "FILE")]
    pub audit_log: Option<PathBuf>,

    /// The key that signs checkpoints of the audit log (PEM; towline-pki audit-key makes one)
    #[arg(long, env = "TOWLINE_AUDIT_KEY", value_name = "FILE")]
    pub audit_key: Option<PathBuf>,

    /// While the audit log cannot be written: block refuses new dials, drop lets them go on
    /// unrecorded and counts them
    #[arg(long, env = "TOWLINE_AUDIT_FAILURE", value_name = "WHAT", default_value_t = OnFailure::default())]
    pub audit_failure: OnFailure,

    /// Size at which the audit log is put aside under the number of its last line
    #[arg(long, env = "TOWLINE_AUDIT_MAX_SIZE", value_name = "SIZE", default_value_t = ByteSize(limits::AUDIT_MAX_SIZE), value_parser = ByteSize::between(64 << 10..=1 << 40))]
    pub audit_max_size: ByteSize,

    /// Age at which the audit log is put aside, 0 for none
    #[arg(long, env = "TOWLINE_AUDIT_MAX_AGE", value_name = "TIME", default_value_t = TimeSpan(limits::AUDIT_MAX_AGE))]
    pub audit_max_age: TimeSpan,

    /// How much of the commands of exec the audit log holds in gateway mode: none, program (the
    /// first word) or full (arguments may hold secrets)
    #[arg(long, env = "TOWLINE_AUDIT_COMMANDS", value_name = "PART", default_value_t = Commands::default())]
    pub audit_commands: Commands,

    /// Audit logs that are kept when put aside, older ones are removed; 0 keeps all
    #[arg(long, env = "TOWLINE_AUDIT_KEEP", value_name = "COUNT", default_value_t = limits::AUDIT_KEEP)]
    pub audit_keep: u32,

    /// From a front end's request to the agent's answer
    #[arg(long, env = "TOWLINE_DIAL_TIMEOUT", value_name = "TIME", default_value_t = TimeSpan(limits::DIAL_TIMEOUT), value_parser = TimeSpan::between(Duration::from_millis(100)..=limits::DIAL_TIMEOUT_MAX))]
    pub dial_timeout: TimeSpan,

    /// How long live dials may go on when the server stops
    #[arg(long, env = "TOWLINE_DRAIN_TIMEOUT", value_name = "TIME", default_value_t = TimeSpan(limits::DRAIN_TIMEOUT), value_parser = TimeSpan::between(Duration::ZERO..=limits::DRAIN_TIMEOUT_MAX))]
    pub drain_timeout: TimeSpan,

    /// Links at once; more are refused as overloaded
    #[arg(long, env = "TOWLINE_MAX_LINKS", default_value_t = limits::LINKS as u32, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_links: u32,

    /// Live dials of one link; more are refused as busy
    #[arg(long, env = "TOWLINE_MAX_DIALS", default_value_t = limits::DIALS_PER_LINK, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_dials: u32,

    /// Handshakes of links at once, for each carrier
    #[arg(long, env = "TOWLINE_MAX_HANDSHAKES", default_value_t = limits::HANDSHAKES as u32, value_parser = clap::value_parser!(u32).range(4..=65_536))]
    pub max_handshakes: u32,

    /// Connections of one door at once; more wait
    #[arg(long, env = "TOWLINE_MAX_DOOR_CONNECTIONS", default_value_t = limits::DOOR_CONNECTIONS as u32, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_door_connections: u32,

    /// Bytes that stalled dials may hold together; then the longest-stalled is ended
    #[arg(long, env = "TOWLINE_MEMORY_BUDGET", value_name = "SIZE", default_value = "512MiB", value_parser = ByteSize::between(8 << 20..=1 << 40))]
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

    /// Threads that carry bytes, 0 for one for each processor
    #[arg(long, env = "TOWLINE_WORKERS", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=256))]
    pub workers: u16,

    /// Where health and metrics are served [default: 127.0.0.1:8092]
    #[arg(long, env = "TOWLINE_HEALTH_BIND", value_name = "IP:PORT", value_parser = listen_address)]
    pub health_bind: Option<SocketAddr>,

    /// Unix socket for status and orders, for root and our own user
    #[arg(long, env = "TOWLINE_ADMIN_SOCKET", value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,

    /// human or json
    #[arg(long, env = "TOWLINE_LOG_FORMAT", default_value_t = LogFormat::default())]
    pub log_format: LogFormat,

    /// error, warn, info, debug, trace, or directives such as info,towline_link=debug
    #[arg(long, env = "TOWLINE_LOG_LEVEL", default_value_t = LogFilter::default())]
    pub log_level: LogFilter,

    /// Reads and checks every flag and file, opens no socket, and ends
    #[arg(long, env = "TOWLINE_CHECK_CONFIG", value_parser = clap::builder::FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub check_config: bool,

    /// What the doors speak: grpc or http-connect; without it both, told apart by the first bytes
    #[arg(long, env = "TOWLINE_MODE", value_name = "PROTOCOL")]
    pub mode: Option<DoorMode>,

    /// Another program's flags.
    #[command(flatten)]
    pub konnectivity: KonnectivityArgs,
}

/// `0600` or `600`.
fn mode(text: &str) -> Result<u32, String> {
    let wrong = || "a mode in octal of read and write permissions, e.g. 0600 or 0660".to_owned();
    let digits = text.len() <= 5 && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let mode = u32::from_str_radix(text, 8).map_err(|_| wrong())?;
    let allowed = digits && mode != 0 && mode & !0o666 == 0;
    allowed.then_some(mode).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    const BASE: [&str; 7] = [
        "towline-server",
        "--cert",
        "c",
        "--key",
        "k",
        "--agent-ca",
        "a",
    ];

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
            let name = arg.get_env().and_then(|name| name.to_str());
            assert_eq!(name, Some(expected.as_str()));
        }
    }

    #[test]
    fn of_a_flag_that_is_repeated_the_last_value_counts() {
        let flags = ["--v=2", "--v=4", "--uds-name=/a", "--uds-name=/b"];
        let given = ["towline-server", "--compatibility=konnectivity"];
        let args = Args::try_parse_from(given.iter().chain(&flags)).unwrap();
        assert_eq!(args.konnectivity.klog.v, Some(4));
        assert_eq!(args.konnectivity.uds_name, Some("/b".into()));
    }

    #[test]
    fn lists_are_repeated_or_separated_by_commas() {
        let more = [
            "--service-cidr",
            "10.96.0.0/12,fd01::/108",
            "--door-allow",
            "kube-apiserver",
            "--door-allow",
            "backup",
            "--door-unix-mode",
            "660",
        ];
        let args = Args::try_parse_from(BASE.iter().chain(&more)).unwrap();
        assert_eq!(args.service_prefixes.len(), 2);
        assert_eq!(args.door_allow.len(), 2);
        assert_eq!(args.door_unix_mode, 0o660);
        assert_eq!(args.listen.port(), 8091);
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        for (flag, value) in [
            ("--kubelet-port", "0"),
            ("--dial-timeout", "31s"),
            ("--max-dials", "0"),
            ("--door-unix-mode", "0777"),
            ("--door-unix-mode", "rw"),
            ("--door-unix-mode", "+600"),
            ("--carrier", "udp"),
            ("--advertise", "a"),
            ("--listen", "8091"),
            ("--pod-cidr", "10.0.0.0"),
            ("--door-allow", "Kube"),
        ] {
            let parsed = Args::try_parse_from(BASE.iter().chain(&[flag, value]));
            assert!(parsed.is_err(), "{flag} {value}");
        }
    }
}
