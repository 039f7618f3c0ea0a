//! What is wrong with a configuration, and what to change.

use std::net::SocketAddr;

use ipnet::IpNet;
use towline_link::process::policy_file::PolicyFileError;
use towline_link::process::unix::UidError;
use towline_link::quic;
use towline_pki::SealError;
use towline_pki::gateway::GatewayError;
use towline_pki::kubelet::KubeletTrustError;
use towline_proto::limits;

use crate::attest::Mode;
use crate::compat::ProfileError;
use crate::csr::SigningError;
use crate::enrol::EnrolFlagError;
use crate::gateway::flags::GatewayFlagError;
use crate::grants::GrantsError;
use crate::trust::TrustError;

/// What is wrong with the configuration; says what to change.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A certificate, key, trust file or deny list.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The grants file.
    #[error("grants: {0}")]
    Grants(#[from] GrantsError),
    /// The policy file.
    #[error("policy: {0}")]
    Policy(#[from] PolicyFileError),
    /// Verification of kubelets without anything to verify them by.
    #[error(
        "--kubelet-verification {0} needs --kubelet-certificate-authority FILE, the authority that \
         signs your kubelets' serving certificates. To see first what would be refused, give it \
         together with --kubelet-verification observe; to carry on without verification say \
         --kubelet-verification off"
    )]
    NoKubeletAuthority(Mode),
    /// What kubelets are verified by.
    #[error(transparent)]
    Kubelets(#[from] KubeletTrustError),
    /// Flags of the gateway.
    #[error(transparent)]
    GatewayFlags(#[from] GatewayFlagError),
    /// Files of the gateway.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// Flags and files of enrolment.
    #[error(transparent)]
    Enrol(#[from] EnrolFlagError),
    /// Nobody could ask for anything.
    #[error("no door for front ends: give --door-unix PATH or --door-tcp ADDRESS")]
    NoDoor,
    /// The TCP door has to know whom to trust.
    #[error("--door-tcp needs --client-ca, the authority that signs front ends")]
    NoClientRoots,
    /// And whom to let in.
    #[error("--door-tcp needs --door-allow, the names of client certificates that may use it")]
    NobodyAllowed,
    /// The key of the audit trail.
    #[error("--audit-key: {0}")]
    AuditKey(#[from] SealError),
    /// An unsigned trail proves little.
    #[error(
        "--audit-log needs --audit-key, which signs its checkpoints; `towline-pki audit-key` makes one"
    )]
    NoAuditKey,
    /// Flags that would silently do nothing.
    #[error("{flag} has no effect without {without}")]
    Useless {
        /// Given.
        flag: &'static str,
        /// Missing.
        without: &'static str,
    },
    /// Users of the Unix socket.
    #[error("--door-unix-uid: {0}")]
    Uid(#[from] UidError),
    /// An address is of one class only.
    #[error("{one_flag} {one} and {other_flag} {other} overlap; an address is of one class only")]
    Overlap {
        /// A flag.
        one_flag: &'static str,
        /// Its value.
        one: IpNet,
        /// Another.
        other_flag: &'static str,
        /// Its value.
        other: IpNet,
    },
    /// A prefix that would turn everything into its class.
    #[error("{flag} {prefix} covers every address; give the prefix of your cluster")]
    Everything {
        /// Which flag.
        flag: &'static str,
        /// Its value.
        prefix: IpNet,
    },
    /// More than a message holds.
    #[error(
        "{given} values of {flag} are more than the {} allowed",
        limits::LIST_ITEMS
    )]
    Many {
        /// Which flag.
        flag: &'static str,
        /// How many.
        given: usize,
    },
    /// Two listeners on one address.
    #[error("{one_flag} and {other_flag} are both {address}")]
    SameAddress {
        /// A flag.
        one_flag: &'static str,
        /// Another.
        other_flag: &'static str,
        /// Their value.
        address: SocketAddr,
    },
    /// Flags of the compatibility profile.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// Flags of the compatibility profile without it.
    #[error("{0} says something only with --compatibility=konnectivity")]
    OnlyCompatible(&'static str),
    /// Only some of the files of our own identity.
    #[error("--cert, --key and --agent-ca belong together: {0} is missing")]
    PartOfIdentity(&'static str),
    /// Flags that need an identity of our own.
    #[error("{0} needs an identity of our own: --cert, --key and --agent-ca")]
    NoIdentity(&'static str),
    /// Two sockets for one door.
    #[error("--door-unix and --uds-name exclude each other")]
    TwoSockets,
    /// The approver of signing requests.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// Values that QUIC cannot run with.
    #[error("--quic-payload: {0}")]
    Quic(#[from] quic::OptionsError),
}
