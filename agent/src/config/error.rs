//! What is wrong with a configuration, and what to change.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use towline_link::kube::KubeError;
use towline_link::process::policy_file::PolicyFileError;
use towline_link::quic;
use towline_link::tls::ProxyError;
use towline_proto::address::Refusal;
use towline_proto::limits;
use towline_proto::target::Target;

use crate::enrol::flags::EnrolFlagError;
use crate::konnectivity::config::LegacyConfigError;
use crate::trust::TrustError;

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
