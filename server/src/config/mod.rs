//! All input of the server, read once and checked as a whole: flags and files. After this nobody
//! reads the environment.

mod error;
mod files;
mod signing;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use towline_link::carrier::CarrierMode;
use towline_link::process::compat::{MetricsAt, Second};
use towline_link::process::policy_file::PolicyFile;
use towline_link::process::telemetry::{LogFilter, LogFormat};
use towline_link::process::unix::AllowedUids;
use towline_link::process::watch::Seen;
use towline_link::quic;
use towline_pki::gateway::GatewayFiles;
use towline_pki::kubelet::{KubeletFiles, KubeletTrust};
use towline_pki::{Files, SealKey};
use towline_proto::address;
use towline_proto::id::Name;
use towline_proto::limits;
use towline_proto::target::Target;

use crate::args::Args;
use crate::attest::{KubeletConfig, Mode};
use crate::audit::file::Rotate;
use crate::audit::open::{AuditConfig, Place};
use crate::classify::Prefixes;
use crate::compat::Profile;
use crate::compat::args::DoorMode;
use crate::csr::SigningConfig;
use crate::dial::DialOptions;
use crate::doors::Speaks;
use crate::enrol::{self, EnrolConfig};
use crate::gateway::GatewayConfig;
use crate::grants::Grants;
use crate::trust::Snapshot;

use files::{kubelet_files, own_files};

pub use error::ConfigError;

/// Checked values, grouped by who uses them.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our own identity and its roots; only the compatibility profile goes without.
    pub own: Option<Own>,
    /// What all files were before they were read, so that no change falls in between.
    pub seen: Seen,
    /// The compatibility profile.
    pub compat: Option<Profile>,
    /// Where agents connect.
    pub links: LinkConfig,
    /// Where front ends connect.
    pub doors: DoorConfig,
    /// The cluster's addresses.
    pub prefixes: Prefixes,
    /// The grants file and what was in it.
    pub grants: Option<(PathBuf, Grants)>,
    /// Who decides about signing requests of the Kubernetes API.
    pub signing: Option<SigningConfig>,
    /// How kubelets are verified.
    pub kubelets: KubeletConfig,
    /// The kubelet gateway.
    pub gateway: Option<GatewayConfig>,
    /// The issuing authority of agents.
    pub enrol: Option<EnrolConfig>,
    /// The policy file, what was in it, and what it was before it was read.
    pub policy: Option<((PathBuf, PolicyFile), Seen)>,
    /// Bounds of dials.
    pub dials: DialOptions,
    /// Where dials are recorded.
    pub audit: Option<AuditConfig>,
    /// For stalled dials, bytes.
    pub memory_budget: u64,
    /// How long dials may go on after the first signal.
    pub drain_timeout: Duration,
    /// Threads, listeners, logs.
    pub process: ProcessConfig,
}

/// Certificates and roots.
#[derive(Clone, Debug)]
pub struct Own {
    /// Which files.
    pub files: Files,
    /// And what was in them.
    pub trust: Snapshot,
}

/// Where agents connect.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// UDP and TCP.
    pub listen: SocketAddr,
    /// Which of the two.
    pub carrier: CarrierMode,
    /// Told to agents.
    pub advertise: Vec<String>,
    /// How quic runs, bound of handshakes included.
    pub quic: quic::Options,
    /// At once.
    pub max_links: usize,
    /// Where the keys of the QUIC endpoint are kept.
    pub state_dir: Option<PathBuf>,
}

/// Where front ends connect.
#[derive(Clone, Debug)]
pub struct DoorConfig {
    /// The Unix socket.
    pub unix: Option<UnixDoor>,
    /// Mutual TLS.
    pub tcp: Option<TcpDoor>,
    /// What they take.
    pub speaks: Speaks,
    /// Silence after which a gRPC front end is pinged.
    pub keep_alive: Duration,
    /// Over TCP, for whoever is signed by the authority of the compatibility profile.
    pub signed: Option<SocketAddr>,
    /// At once, for each door.
    pub max_connections: usize,
}

/// The Unix socket.
#[derive(Clone, Debug)]
pub struct UnixDoor {
    /// What said where.
    pub flag: &'static str,
    /// Whether what holds nothing is removed from its place.
    pub clears: bool,
    /// Where.
    pub path: PathBuf,
    /// Its mode.
    pub mode: u32,
    /// Who may use it.
    pub allowed: AllowedUids,
}

/// The door over TCP.
#[derive(Clone, Debug)]
pub struct TcpDoor {
    /// Where.
    pub address: SocketAddr,
    /// Client names that may use it.
    pub allow: Vec<Name>,
}

/// Threads, listeners, logs.
#[derive(Clone, Debug)]
pub struct ProcessConfig {
    /// Threads that carry bytes, 0 for one for each processor.
    pub workers: u16,
    /// Health and metrics.
    pub health: SocketAddr,
    /// Metrics once more, for administrators of the compatibility profile.
    pub second: Option<Second>,
    /// Status and orders.
    pub admin_socket: Option<PathBuf>,
    /// Form of the log.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_level: LogFilter,
}

impl Config {
    /// What is taken and should not stay so, to be said at the start and by `--check-config`.
    pub fn warnings(&self, now: SystemTime) -> Vec<String> {
        let own = self.own.as_ref();
        own.map_or_else(Vec::new, |own| own.trust.material.warnings(now))
    }

    /// Reads every file and opens no socket.
    pub fn from_args(args: Args) -> Result<Self, ConfigError> {
        Self::new(args, SystemTime::now())
    }

    fn new(args: Args, now: SystemTime) -> Result<Self, ConfigError> {
        let compat = compatibility(&args)?;
        check_doors(&args, compat.as_ref())?;
        check_prefixes(&args)?;
        check_addresses(&args)?;
        let unix = unix_door(&args, compat.as_ref())?;
        let quic = quic::Options {
            congestion: args.quic_congestion,
            payload: args.quic_payload,
            udp_buffer: usize::try_from(args.udp_buffer.0).unwrap_or(limits::UDP_BUFFER),
            handshakes: args.max_handshakes as usize,
            handshakes_per_address: (args.max_handshakes as usize / 4)
                .clamp(1, limits::HANDSHAKES_PER_ADDRESS),
            ..quic::Options::default()
        };
        quic.check()?;
        let files = own_files(&args)?;
        let verification = args.kubelet_verification.unwrap_or(match &compat {
            // The profile verifies kubelets as soon as it is told by which authority.
            Some(_) if args.kubelet_certificate_authority.is_none() => Mode::Off,
            _ => Mode::default(),
        });
        let kubelet_files = kubelet_files(
            verification,
            args.kubelet_certificate_authority,
            args.kubelet_crls,
            args.crl_policy,
        )?;
        let gateway_files = args.gateway.files(verification, args.deny_list.clone())?;
        let issuer = args.signing.issuer_files()?;
        let own_paths = files.iter().flat_map(Files::paths);
        let legacy_paths = compat.iter().flat_map(|profile| profile.files.paths());
        let watched: Vec<PathBuf> = own_paths
            .chain(legacy_paths)
            .chain(&args.grants)
            .chain(issuer.iter().flat_map(|files| [&files.cert, &files.key]))
            .chain(kubelet_files.iter().flat_map(KubeletFiles::paths))
            .chain(gateway_files.iter().flat_map(GatewayFiles::paths))
            .cloned()
            .collect();
        let seen = Seen::now(&watched);
        let own = match files {
            Some(files) => {
                let trust = Snapshot::load(&files, None, now)?;
                Some(Own { files, trust })
            }
            None => None,
        };
        let kubelets = KubeletConfig {
            mode: verification,
            trust: match kubelet_files {
                Some(files) => {
                    let trust = KubeletTrust::load(&files)?;
                    Some((files, trust))
                }
                None => None,
            },
        };
        let gateway = match gateway_files {
            Some(files) => Some(GatewayConfig::load(files, now)?),
            None => None,
        };
        let env = |name: &str| std::env::var(name).ok();
        let beside = enrol::flags::Beside {
            trust: own.as_ref().map(|own| &own.trust),
            state_dir: args.state_dir.as_deref(),
            tcp: args.carrier != CarrierMode::Quic,
            kubeconfig: signing::named(args.konnectivity.kubeconfig.as_deref()),
            control_plane: control_plane(&args.signing.control_plane_prefixes, &args.advertise),
        };
        let enrol = args.enrol.config(&beside, &env, now)?;
        let grants = match args.grants {
            Some(path) => Some((path.clone(), Grants::load(&path)?)),
            None => None,
        };
        let policy = match args.policy {
            Some(path) => {
                let seen = Seen::now(std::slice::from_ref(&path));
                let file = PolicyFile::load(&path)?;
                Some(((path, file), seen))
            }
            None => None,
        };
        check_kubelet_rules(policy.as_ref().map(|((_, file), _)| file), &gateway)?;
        let audit = match (args.audit_log, args.audit_key) {
            // Every record names the server that wrote it.
            (Some(_), _) if own.is_none() => return Err(ConfigError::NoIdentity("--audit-log")),
            (Some(path), Some(key)) => Some(AuditConfig {
                place: Place::of(path),
                key: Arc::new(SealKey::load(&key)?),
                on_failure: args.audit_failure,
                rotate: Rotate {
                    max_size: args.audit_max_size.into(),
                    max_age: args.audit_max_age.into(),
                    keep: args.audit_keep,
                },
                commands: args.audit_commands,
            }),
            (Some(_), None) => return Err(ConfigError::NoAuditKey),
            (None, Some(_)) => {
                return Err(ConfigError::Useless {
                    flag: "--audit-key",
                    without: "--audit-log",
                });
            }
            (None, None) => None,
        };
        let env = |name: &str| std::env::var(name).ok();
        let (flags, known) = (&args.konnectivity, &args.advertise);
        let signing = signing::signing(args.signing, flags, known, enrol.is_some(), &env, now)?;
        let profile = compat.as_ref();
        let health = profile
            .and_then(|profile| profile.health)
            .or(args.health_bind);
        let drain = profile.and_then(|profile| profile.graceful);
        let unchanged = args.drain_timeout.0 == limits::DRAIN_TIMEOUT;
        let level = args.konnectivity.klog.level();
        let front_end_keep_alive = args
            .konnectivity
            .frontend_keepalive_time
            .map_or(limits::GRPC_KEEP_ALIVE, |span| span.0)
            .max(limits::GRPC_KEEP_ALIVE_LEAST);
        Ok(Self {
            seen,
            links: LinkConfig {
                listen: profile
                    .and_then(|profile| profile.agents)
                    .unwrap_or(args.listen),
                carrier: match own {
                    Some(_) => args.carrier,
                    None => CarrierMode::Tls,
                },
                advertise: args.advertise.iter().map(ToString::to_string).collect(),
                quic,
                max_links: args.max_links as usize,
                state_dir: args.state_dir,
            },
            doors: DoorConfig {
                unix,
                signed: profile.and_then(|profile| profile.front_ends),
                tcp: args.door_tcp.map(|address| TcpDoor {
                    address,
                    allow: args.door_allow,
                }),
                speaks: speaks(args.mode, profile.is_some()),
                keep_alive: front_end_keep_alive,
                max_connections: args.max_door_connections as usize,
            },
            prefixes: Prefixes {
                kubelet_port: args.kubelet_port,
                service: args.service_prefixes,
                pod: args.pod_prefixes,
                node: args.node_prefixes,
            },
            grants,
            signing,
            dials: DialOptions {
                timeout: match profile {
                    Some(profile) => profile.dial_timeout,
                    None => args.dial_timeout.into(),
                },
                per_link: args.max_dials,
                gateway: gateway.is_some(),
            },
            kubelets,
            gateway,
            enrol,
            policy,
            audit,
            memory_budget: args.memory_budget.into(),
            drain_timeout: match profile {
                Some(_) if unchanged => drain.unwrap_or(Duration::ZERO),
                _ => drain.unwrap_or(args.drain_timeout.into()),
            },
            process: ProcessConfig {
                workers: args.workers,
                health: health.unwrap_or_else(|| match profile {
                    Some(_) => Profile::default_health(),
                    None => HEALTH,
                }),
                second: profile.and_then(|profile| {
                    Some(Second {
                        address: profile.admin?,
                        metrics: MetricsAt::Here,
                        profiling: profile.profiling,
                    })
                }),
                admin_socket: args.admin_socket,
                log_format: args.log_format,
                log_level: match level.and_then(|level| level.parse().ok()) {
                    Some(level) if args.log_level == LogFilter::default() => level,
                    _ => args.log_level,
                },
            },
            own,
            compat,
        })
    }
}

/// Where no node is by its own word.
fn control_plane(prefixes: &[IpNet], advertised: &[Target]) -> Vec<IpNet> {
    let told = advertised.iter().filter_map(|target| target.address());
    let told = told.map(|address| IpNet::from(address::canonical(address.ip())));
    prefixes.iter().copied().chain(told).collect()
}

/// Nobody else reads requests.
fn check_kubelet_rules(
    policy: Option<&PolicyFile>,
    gateway: &Option<GatewayConfig>,
) -> Result<(), ConfigError> {
    match (policy, gateway) {
        (Some(file), None) if file.kubelet.is_some() => Err(ConfigError::Useless {
            flag: "section kubelet of --policy",
            without: "--kubelet-gateway",
        }),
        _ => Ok(()),
    }
}

/// Health and metrics, when no flag says so.
const HEALTH: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8092);

/// The profile, if it is asked for; without it its flags would silently do nothing.
fn compatibility(args: &Args) -> Result<Option<Profile>, ConfigError> {
    let flags = &args.konnectivity;
    if flags.compatibility.is_none() {
        return match flags.given().first() {
            Some(flag) => Err(ConfigError::OnlyCompatible(flag)),
            None => Ok(None),
        };
    }
    let own = args.cert.is_some();
    let env = |name: &str| std::env::var(name).ok();
    let dial_timeout = args.dial_timeout.into();
    Ok(Some(Profile::new(flags.clone(), own, dial_timeout, &env)?))
}

/// Konnectivity's socket is for whoever its mode lets in.
fn unix_door(args: &Args, compat: Option<&Profile>) -> Result<Option<UnixDoor>, ConfigError> {
    let theirs = compat.and_then(|profile| profile.socket.clone());
    Ok(match (&args.door_unix, theirs) {
        (Some(_), Some(_)) => return Err(ConfigError::TwoSockets),
        (Some(path), None) => Some(UnixDoor {
            flag: "--door-unix",
            clears: false,
            path: path.clone(),
            mode: args.door_unix_mode,
            allowed: AllowedUids::from_flags(&args.door_unix_uids)?,
        }),
        (None, Some(path)) => Some(UnixDoor {
            flag: "--uds-name",
            clears: args.konnectivity.delete_existing_uds_file != Some(false),
            path,
            mode: KONNECTIVITY_SOCKET_MODE,
            allowed: match args.door_unix_uids.is_empty() {
                true => AllowedUids::everybody(),
                false => AllowedUids::from_flags(&args.door_unix_uids)?,
            },
        }),
        (None, None) => None,
    })
}

/// `--mode` restricts what doors take.
fn speaks(mode: Option<DoorMode>, as_konnectivity: bool) -> Speaks {
    Speaks {
        connect: mode != Some(DoorMode::Grpc),
        grpc: mode != Some(DoorMode::HttpConnect),
        as_konnectivity,
    }
}

/// 0770 less what has no meaning for a socket.
const KONNECTIVITY_SOCKET_MODE: u32 = 0o660;

fn check_doors(args: &Args, compat: Option<&Profile>) -> Result<(), ConfigError> {
    let theirs = compat.is_some_and(|p| p.socket.is_some());
    let useless = |given: bool, flag, without| match given {
        true => Err(ConfigError::Useless { flag, without }),
        false => Ok(()),
    };
    if args.door_unix.is_none() && !theirs {
        useless(
            !args.door_unix_uids.is_empty(),
            "--door-unix-uid",
            "--door-unix",
        )?;
    }
    match args.door_tcp {
        Some(_) if args.client_ca.is_none() => return Err(ConfigError::NoClientRoots),
        Some(_) if args.door_allow.is_empty() => return Err(ConfigError::NobodyAllowed),
        Some(_) => {}
        None => useless(!args.door_allow.is_empty(), "--door-allow", "--door-tcp")?,
    }
    let signed = compat.is_some_and(|profile| profile.front_ends.is_some());
    if args.door_unix.is_none() && args.door_tcp.is_none() && !theirs && !signed {
        return Err(ConfigError::NoDoor);
    }
    Ok(())
}

fn check_prefixes(args: &Args) -> Result<(), ConfigError> {
    let service = ("--service-cidr", &args.service_prefixes);
    let pod = ("--pod-cidr", &args.pod_prefixes);
    let node = ("--node-cidr", &args.node_prefixes);
    for (flag, prefixes) in [service, pod, node] {
        if prefixes.len() > limits::LIST_ITEMS / 2 {
            return Err(ConfigError::Many {
                flag,
                given: prefixes.len(),
            });
        }
        if let Some(prefix) = prefixes.iter().find(|prefix| prefix.prefix_len() == 0) {
            return Err(ConfigError::Everything {
                flag,
                prefix: *prefix,
            });
        }
    }
    if args.advertise.len() > limits::LIST_ITEMS {
        return Err(ConfigError::Many {
            flag: "--advertise",
            given: args.advertise.len(),
        });
    }
    // Pod prefixes may lie inside node prefixes: some networks give pods addresses of the nodes'.
    for ((one_flag, ones), (other_flag, others)) in [(service, pod), (service, node)] {
        for one in ones {
            let overlap = |other: &&IpNet| one.contains(*other) || other.contains(one);
            if let Some(other) = others.iter().find(overlap) {
                return Err(ConfigError::Overlap {
                    one_flag,
                    one: *one,
                    other_flag,
                    other: *other,
                });
            }
        }
    }
    Ok(())
}

fn check_addresses(args: &Args) -> Result<(), ConfigError> {
    let listeners = [
        Some(("--listen", args.listen)),
        args.door_tcp.map(|address| ("--door-tcp", address)),
        Some(("--health-bind", args.health_bind.unwrap_or(HEALTH))),
    ];
    let listeners: Vec<_> = listeners.into_iter().flatten().collect();
    for (index, (other_flag, address)) in listeners.iter().enumerate() {
        let same = |(_, before): &&(&str, SocketAddr)| address.port() != 0 && before == address;
        if let Some((one_flag, _)) = listeners[..index].iter().find(same) {
            return Err(ConfigError::SameAddress {
                one_flag,
                other_flag,
                address: *address,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn check(more: &[&str]) -> Result<(), ConfigError> {
        let base = [
            "towline-server",
            "--cert",
            "/no/such/cert.pem",
            "--key",
            "/none",
            "--agent-ca",
            "/none",
        ];
        let verification = ["--kubelet-verification", "off"];
        let given = more.contains(&verification[0]);
        let verification = if given { &[][..] } else { &verification };
        let args = Args::try_parse_from(base.iter().chain(verification).chain(more)).unwrap();
        Config::new(args, SystemTime::now()).map(|_| ())
    }

    /// What a configuration without a fault but its files says.
    fn only_files_are_missing(result: &Result<(), ConfigError>) -> bool {
        matches!(result, Err(ConfigError::Trust(error)) if error.to_string().contains("/no/such/cert.pem"))
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let unix = ["--door-unix", "/run/d.sock"];
        let with = |more: &[&str]| check(&[&unix[..], more].concat());
        assert!(only_files_are_missing(&with(&[])));
        assert!(only_files_are_missing(&with(&[
            "--node-cidr",
            "10.0.0.0/8",
            "--pod-cidr",
            "10.244.0.0/16"
        ])));
        assert!(matches!(check(&[]), Err(ConfigError::NoDoor)));
        for mode in ["enforce", "observe"] {
            let error = with(&["--kubelet-verification", mode]).unwrap_err();
            assert!(matches!(error, ConfigError::NoKubeletAuthority(_)));
            let said = error.to_string();
            for word in [mode, "--kubelet-certificate-authority", "observe", "off"] {
                assert!(said.contains(word), "{said}");
            }
        }
        assert!(matches!(
            with(&["--door-tcp", "127.0.0.1:0"]),
            Err(ConfigError::NoClientRoots)
        ));
        assert!(matches!(
            with(&["--door-tcp", "127.0.0.1:0", "--client-ca", "c"]),
            Err(ConfigError::NobodyAllowed)
        ));
        assert!(matches!(
            with(&["--door-allow", "a"]),
            Err(ConfigError::Useless { .. })
        ));
        assert!(matches!(
            with(&["--door-unix-uid", "65534"]),
            Err(ConfigError::Uid(_))
        ));
        assert!(matches!(
            with(&["--pod-cidr", "::/0"]),
            Err(ConfigError::Everything { .. })
        ));
        assert!(matches!(
            with(&[
                "--pod-cidr",
                "10.96.1.0/24",
                "--service-cidr",
                "10.96.0.0/12"
            ]),
            Err(ConfigError::Overlap { .. })
        ));
        assert!(matches!(
            with(&["--health-bind", "127.0.0.1:1", "--listen", "127.0.0.1:1"]),
            Err(ConfigError::SameAddress { .. })
        ));
    }
}
