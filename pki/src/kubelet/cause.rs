//! What can be wrong with a kubelet: one cause for each rule, and what to do about it.
//!
//! Text of the kubelet inside is escaped and bounded. [`Cause::as_str`] is a closed set, fit for
//! metric labels; [`Cause::fix`] is for the person who has to repair the node.

use std::net::IpAddr;
use std::time::SystemTime;

use rustls::{AlertDescription, CertificateError, Error as TlsFailure};
use rustls_pki_types::{CertificateDer, UnixTime};
use towline_proto::id::Name;
use towline_proto::reason::Reason;
use towline_proto::target::HostName;

use crate::date;
use crate::inspect::{Certificate, escape};
use crate::serial::Serial;

/// Why a kubelet is not believed, or could not be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    // ---- the chain
    #[error("the kubelet presented no certificate")]
    NoCertificate,
    #[error("the kubelet's chain has {count} certificates, more than the {max} allowed")]
    LongChain { count: usize, max: usize },
    #[error("the kubelet's certificate has {len} bytes, more than the {max} allowed")]
    TooLarge { len: usize, max: usize },
    #[error("the kubelet's certificate is not usable: {detail}")]
    BadCertificate { detail: String },
    #[error("the kubelet's certificate is one that it signed itself (issuer {issuer})")]
    SelfSigned { issuer: String },
    #[error(
        "the kubelet's certificate is not signed by the kubelet certificate authority; its issuer \
         calls itself {issuer}"
    )]
    WrongCa { issuer: String },
    #[error("the kubelet certificate authority that signed the certificate is not valid now")]
    AuthorityNotValid,
    #[error("the kubelet's certificate chain expired at {}", date::text(*not_after))]
    Expired { not_after: SystemTime },
    #[error("the kubelet's certificate chain is not valid before {}", date::text(*not_before))]
    NotYetValid { not_before: SystemTime },
    #[error("the kubelet's certificate (serial {serial}) or one above it is revoked")]
    Revoked { serial: Serial },
    #[error(
        "no revocation list that is given says anything about a certificate of the kubelet's \
         chain (issuer {issuer})"
    )]
    UnknownRevocation { issuer: String },
    #[error(
        "the revocation list for the kubelet's chain is past its next update, {}, and --crl-policy is \
         fail-closed", date::text(*next_update)
    )]
    ListStale { next_update: SystemTime },
    #[error("the kubelet's authority may not sign for the names in its certificate")]
    NameConstraint,
    // ---- the leaf
    #[error("the kubelet's certificate is not for TLS servers (serverAuth, digitalSignature)")]
    WrongUsage,
    #[error("the kubelet's certificate has no IP subject alternative name {ip}")]
    MissingIpSan { ip: IpAddr },
    #[error("the kubelet's certificate holds the address {ip} as a DNS name, not as an IP")]
    IpInDnsName { ip: IpAddr },
    #[error("the kubelet's certificate has no DNS subject alternative name {name}")]
    MissingDnsSan { name: HostName },
    #[error("the kubelet's certificate is of node {found}, not of node {expected}")]
    OtherNode { expected: Name, found: String },
    #[error(
        "the kubelet's certificate ({subject}) names no node: neither system:node:{expected} nor \
         DNS name {expected}"
    )]
    NoNodeName { expected: Name, subject: String },
    // ---- the connection
    #[error("the agent of the node does not let this kubelet be reached: {reason}")]
    AgentRefuses { reason: Reason },
    #[error("the kubelet could not be reached: {reason}")]
    Unreachable { reason: Reason },
    #[error("the kubelet did not finish its TLS handshake in time")]
    Timeout,
    #[error("what answers at the kubelet's port does not speak TLS")]
    NotTls,
    #[error("the kubelet closed the connection during the TLS handshake")]
    HungUp,
    #[error("the TLS handshake with the kubelet failed: {detail}")]
    Handshake { detail: String },
}

impl Cause {
    /// Every word of [`Cause::as_str`], for metrics that show all of them from the start.
    pub const WORDS: [&'static str; 24] = [
        "no-certificate",
        "long-chain",
        "too-large",
        "bad-certificate",
        "self-signed",
        "wrong-ca",
        "authority-not-valid",
        "expired",
        "not-yet-valid",
        "revoked",
        "revocation-unknown",
        "name-constraint",
        "wrong-usage",
        "missing-ip-san",
        "ip-in-dns-name",
        "missing-dns-san",
        "other-node",
        "no-node-name",
        "agent-refuses",
        "unreachable",
        "timeout",
        "not-tls",
        "hung-up",
        "handshake",
    ];

    /// A word for metric labels, tables and audit records.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Cause::NoCertificate => "no-certificate",
            Cause::LongChain { .. } => "long-chain",
            Cause::TooLarge { .. } => "too-large",
            Cause::BadCertificate { .. } => "bad-certificate",
            Cause::SelfSigned { .. } => "self-signed",
            Cause::WrongCa { .. } => "wrong-ca",
            Cause::AuthorityNotValid => "authority-not-valid",
            Cause::Expired { .. } => "expired",
            Cause::NotYetValid { .. } => "not-yet-valid",
            Cause::Revoked { .. } => "revoked",
            Cause::UnknownRevocation { .. } => "revocation-unknown",
            Cause::ListStale { .. } => "crl-stale",
            Cause::NameConstraint => "name-constraint",
            Cause::WrongUsage => "wrong-usage",
            Cause::MissingIpSan { .. } => "missing-ip-san",
            Cause::IpInDnsName { .. } => "ip-in-dns-name",
            Cause::MissingDnsSan { .. } => "missing-dns-san",
            Cause::OtherNode { .. } => "other-node",
            Cause::NoNodeName { .. } => "no-node-name",
            Cause::AgentRefuses { .. } => "agent-refuses",
            Cause::Unreachable { .. } => "unreachable",
            Cause::Timeout => "timeout",
            Cause::NotTls => "not-tls",
            Cause::HungUp => "hung-up",
            Cause::Handshake { .. } => "handshake",
        }
    }

    /// Whether nothing was found wrong with the kubelet's certificate: it could not be asked, and
    /// the same attempt may succeed in a moment.
    pub const fn is_passing(&self) -> bool {
        matches!(
            self,
            Cause::Unreachable { .. } | Cause::Timeout | Cause::HungUp
        )
    }

    /// The number that a refused dial is given: that of the connection where it is the connection
    /// that failed.
    pub const fn reason(&self) -> Reason {
        match self {
            Cause::Unreachable { reason } | Cause::AgentRefuses { reason } => *reason,
            Cause::Timeout | Cause::NotTls | Cause::HungUp | Cause::Handshake { .. } => {
                Reason::KubeletHandshake
            }
            _ => Reason::KubeletUnverified,
        }
    }

    /// What to do about it, one sentence.
    pub const fn fix(&self) -> &'static str {
        match self {
            Cause::NoCertificate | Cause::Handshake { .. } => {
                "look at the kubelet's log and its --tls-cert-file and --tls-private-key-file"
            }
            Cause::LongChain { .. } | Cause::TooLarge { .. } => {
                "have the kubelet serve its own certificate and the issuers below the authority, \
                 nothing else"
            }
            Cause::BadCertificate { .. } => {
                "issue the kubelet's serving certificate again; `towline-pki inspect` shows what \
                 is in it"
            }
            Cause::SelfSigned { .. } => {
                "set `serverTLSBootstrap: true` in the kubelet's configuration and approve its \
                 request (kubectl get csr, kubectl certificate approve), or give it a certificate \
                 of the authority with --tls-cert-file"
            }
            Cause::WrongCa { .. } => {
                "compare the issuer with the file of --kubelet-certificate-authority: add the \
                 authority that signs your kubelets to it, or issue this kubelet's certificate \
                 again"
            }
            Cause::AuthorityNotValid => {
                "renew the authority in the file of --kubelet-certificate-authority"
            }
            Cause::Expired { .. } => {
                "renew the kubelet's serving certificate: approve its waiting request (kubectl get \
                 csr), or issue it again; with rotateCertificates the kubelet asks by itself"
            }
            Cause::NotYetValid { .. } => {
                "compare the clocks of this machine, of the node and of whoever signed the \
                 certificate"
            }
            Cause::Revoked { .. } => {
                "if the revocation is meant, remove the node; if not, issue a new certificate"
            }
            Cause::UnknownRevocation { .. } => {
                "give with --kubelet-crl one list for each authority of the chain, or none at all"
            }
            Cause::ListStale { .. } => {
                "put a current list into the file of --kubelet-crl, or choose --crl-policy keep-last"
            }
            Cause::NameConstraint => {
                "issue the certificate from an authority whose name constraints allow this node's \
                 names and addresses"
            }
            Cause::WrongUsage => {
                "issue the certificate with extended key usage serverAuth and key usage \
                 digitalSignature, as the signer kubernetes.io/kubelet-serving does"
            }
            Cause::MissingIpSan { .. } => {
                "issue the certificate with this address as an IP subject alternative name: set \
                 the kubelet's --node-ip or correct the Node's addresses, then delete the old \
                 certificate and approve the new request"
            }
            Cause::IpInDnsName { .. } => {
                "issue the certificate again with the address as an IP subject alternative name; \
                 as a DNS name it counts for nobody"
            }
            Cause::MissingDnsSan { .. } => {
                "issue the certificate with this name as a DNS subject alternative name, or have \
                 kube-apiserver dial the node by address (--kubelet-preferred-address-types)"
            }
            Cause::OtherNode { .. } => {
                "somebody answers with another node's certificate: look for a copied disk image or \
                 an intruder on the node's network, then issue a certificate for this node"
            }
            Cause::NoNodeName { .. } => {
                "issue the certificate with common name system:node:<node name>, or with the node \
                 name as a DNS subject alternative name"
            }
            Cause::Unreachable { .. } | Cause::Timeout | Cause::HungUp => {
                "see that the kubelet runs and listens on --kubelet-port at this address, from the \
                 node itself"
            }
            Cause::AgentRefuses { .. } => {
                "look at the agent's --policy, --allow-class, --kubelet-address and --kubelet-port: \
                 its rules, or what it takes for its own kubelet, do not fit this address; its log \
                 and metrics say which"
            }
            Cause::NotTls => {
                "see what listens on --kubelet-port of this node; a kubelet always speaks TLS there"
            }
        }
    }

    /// From a handshake that failed although the certificate was not refused.
    pub fn of_tls(error: &TlsFailure) -> Self {
        match error {
            TlsFailure::InvalidMessage(_) | TlsFailure::InappropriateMessage { .. } => {
                Cause::NotTls
            }
            TlsFailure::NoCertificatesPresented => Cause::NoCertificate,
            TlsFailure::InvalidCertificate(CertificateError::BadSignature) => {
                Cause::BadCertificate {
                    detail: "whoever presented it does not hold its key".into(),
                }
            }
            TlsFailure::InvalidCertificate(other) => Cause::BadCertificate {
                detail: escape(&other.to_string()),
            },
            TlsFailure::AlertReceived(
                AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure,
            ) => Cause::Handshake {
                detail: "no protocol version or cipher suite in common (TLS 1.2 or 1.3 is needed)"
                    .into(),
            },
            other => Cause::Handshake {
                detail: escape(&other.to_string()),
            },
        }
    }

    /// From the chain check.
    pub(super) fn of_chain(
        error: webpki::Error,
        leaf: &Certificate,
        above: &[CertificateDer<'_>],
    ) -> Self {
        use webpki::Error as E;
        let issuer = || leaf.issuer.clone();
        match error {
            E::CertExpired { not_after, .. } => Cause::Expired {
                not_after: instant(not_after),
            },
            E::CertNotValidYet { not_before, .. } => Cause::NotYetValid {
                not_before: instant(not_before),
            },
            E::UnknownIssuer
            | E::InvalidSignatureForPublicKey
            | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
                if is_self_made(leaf, above) {
                    Cause::SelfSigned { issuer: issuer() }
                } else {
                    Cause::WrongCa { issuer: issuer() }
                }
            }
            E::CaUsedAsEndEntity if leaf.subject_der == leaf.issuer_der => {
                Cause::SelfSigned { issuer: issuer() }
            }
            E::CertRevoked => Cause::Revoked {
                serial: leaf.serial.clone(),
            },
            E::UnknownRevocationStatus
            | E::IssuerNotCrlSigner
            | E::InvalidCrlSignatureForPublicKey => Cause::UnknownRevocation { issuer: issuer() },
            E::CrlExpired { next_update, .. } => Cause::ListStale {
                next_update: instant(next_update),
            },
            E::NameConstraintViolation => Cause::NameConstraint,
            E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => Cause::WrongUsage,
            other => Cause::BadCertificate {
                detail: escape(&other.to_string()),
            },
        }
    }
}

/// Whether the kubelet signed for itself: by its own key, or, as a kubelet without a signer does
/// at its first start, by an authority `<host>-ca@<seconds>` that it made up on the spot.
fn is_self_made(leaf: &Certificate, above: &[CertificateDer<'_>]) -> bool {
    if leaf.subject_der == leaf.issuer_der {
        return true;
    }
    let made_up = |name: &str| {
        name.rsplit_once("-ca@").is_some_and(|(host, seconds)| {
            !host.is_empty() && !seconds.is_empty() && seconds.bytes().all(|b| b.is_ascii_digit())
        })
    };
    // With or without the made-up authority in the chain, the issuer's name tells.
    made_up(&leaf.issuer)
        || above.iter().any(|der| {
            Certificate::parse(der.as_ref()).is_ok_and(|issuer| {
                issuer.subject_der == leaf.issuer_der && made_up(&issuer.subject)
            })
        })
}

fn instant(time: UnixTime) -> SystemTime {
    date::from_seconds(i64::try_from(time.as_secs()).unwrap_or(i64::MAX))
}
