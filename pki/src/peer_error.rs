//! Why a peer's certificate is refused: one variant for each rule, and the way through rustls.
//!
//! rustls turns a refusal into an alert for the peer. What has an alert of its own (expired, not
//! yet valid, unknown issuer, wrong purpose, denied) is given to rustls in its own words; the rest travels
//! inside [`rustls::CertificateError::Other`]. [`PeerError::from_rustls`] finds the exact cause
//! again, for logs and metrics.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::{CertificateError as TlsCertificateError, Error as TlsFailure, OtherError};
use rustls_pki_types::UnixTime;
use towline_proto::id::{ClusterName, Role};
use towline_proto::reason::Reason;

use crate::date;
use crate::identity::{Identity, IdentityError};
use crate::inspect::{Certificate, LeafError, Usage, escape};
use crate::serial::Serial;

/// Why a peer is not who it must be. Text of the peer inside is escaped and bounded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    #[error("peer presented no certificate")]
    NoCertificate,
    #[error("peer's chain has {count} certificates, more than the {max} allowed")]
    LongChain { count: usize, max: usize },
    #[error("peer's certificate has {len} bytes, more than the {max} allowed")]
    TooLarge { len: usize, max: usize },
    #[error("peer's certificate is not usable: {cause}")]
    BadCertificate { cause: String },
    #[error(
        "peer's certificate is signed by none of the authorities that we trust for its role; \
         compare `towline-pki inspect` of it with our trust file"
    )]
    UnknownIssuer,
    #[error(
        "peer's certificate is signed by an authority of our trust file that is itself not valid \
         now; put its successor into the trust file"
    )]
    AnchorNotValid,
    #[error("peer's chain expired at {}", date::text(*not_after))]
    Expired { not_after: SystemTime },
    #[error("peer's chain is not valid before {}; compare the clocks", date::text(*not_before))]
    NotYetValid { not_before: SystemTime },
    #[error("peer's certificate is not for {needed}")]
    WrongUsage { needed: &'static str },
    #[error("peer's certificate has no identity (no URI SAN)")]
    NoIdentity,
    #[error("peer's certificate has {count} URI SANs; it must have exactly one, its identity")]
    ManyIdentities { count: usize },
    #[error("peer's URI SAN \"{uri}\" is no identity: {cause}")]
    BadIdentity { uri: String, cause: IdentityError },
    #[error("peer {identity} is not of our cluster {ours}")]
    WrongCluster {
        ours: ClusterName,
        identity: Identity,
    },
    #[error("peer {identity} is not of role {expected}")]
    WrongRole { expected: Role, identity: Identity },
    #[error("peer {identity} (serial {serial}) is denied: {by} is on the deny list")]
    Denied {
        identity: Identity,
        serial: Serial,
        /// "its identity", "its serial" or "the serial of its issuer".
        by: &'static str,
    },
    /// [`PeerError::Denied`] as it comes back out of a handshake: its alert has no place for more.
    #[error("peer is on the deny list; the log says who at level debug")]
    DeniedInHandshake,
    #[error("peer's certificate, or that of an authority above it, is revoked{who}")]
    Revoked {
        /// The rest of the sentence: who, or that the log says it.
        who: String,
    },
    #[error(
        "no revocation list that we have speaks for peer's certificate: none is of its issuer, or \
         with --crl-policy fail-closed the one is past its next update; put a current list of that \
         issuer into the file"
    )]
    RevocationUnknown,
    #[error(
        "the revocation list for peer's certificate is past its next update, {}, and --crl-policy \
         is fail-closed; run `towline-pki crl renew`", date::text(*next_update)
    )]
    ListStale { next_update: SystemTime },
}

impl PeerError {
    /// The number that goes on the wire and into metrics.
    pub fn reason(&self) -> Reason {
        match self {
            PeerError::Denied { .. } | PeerError::DeniedInHandshake => Reason::Denied,
            PeerError::Revoked { .. } => Reason::Revoked,
            PeerError::RevocationUnknown | PeerError::ListStale { .. } => Reason::RevocationUnknown,
            PeerError::Expired { .. } => Reason::CertificateEnded,
            _ => Reason::BadCertificate,
        }
    }

    /// A word for metric labels.
    pub fn as_str(&self) -> &'static str {
        match self {
            PeerError::NoCertificate => "no-certificate",
            PeerError::LongChain { .. } => "long-chain",
            PeerError::TooLarge { .. } => "too-large",
            PeerError::BadCertificate { .. } => "bad-certificate",
            PeerError::UnknownIssuer => "unknown-issuer",
            PeerError::AnchorNotValid => "anchor-not-valid",
            PeerError::Expired { .. } => "expired",
            PeerError::NotYetValid { .. } => "not-yet-valid",
            PeerError::WrongUsage { .. } => "wrong-usage",
            PeerError::NoIdentity => "no-identity",
            PeerError::ManyIdentities { .. } => "many-identities",
            PeerError::BadIdentity { .. } => "bad-identity",
            PeerError::WrongCluster { .. } => "wrong-cluster",
            PeerError::WrongRole { .. } => "wrong-role",
            PeerError::Denied { .. } | PeerError::DeniedInHandshake => "denied",
            PeerError::Revoked { .. } => "revoked",
            PeerError::RevocationUnknown => "revocation-unknown",
            PeerError::ListStale { .. } => "crl-stale",
        }
    }

    /// What to do about it, one sentence, for the person who asked.
    pub const fn fix(&self) -> &'static str {
        match self {
            PeerError::NoCertificate => "give the peer a certificate: `towline-pki issue`",
            PeerError::LongChain { .. } | PeerError::TooLarge { .. } => {
                "present the certificate and the issuers below the anchor, nothing else: \
                 `towline-pki export pem` puts a chain in order"
            }
            PeerError::BadCertificate { .. } => {
                "issue it anew; `towline-pki inspect` shows what is in it"
            }
            PeerError::UnknownIssuer => {
                "compare its issuer with the trust file of its role: agents are signed by another \
                 issuer than servers, clients and operators; during a change of authority the \
                 file holds both"
            }
            PeerError::AnchorNotValid => {
                "put the authority's successor into the trust file and issue anew from it"
            }
            PeerError::Expired { .. } => {
                "renew it: `towline-pki renew`; where an issuer in the chain has ended, change the \
                 authority"
            }
            PeerError::NotYetValid { .. } => "compare the clocks of this machine and the signer's",
            PeerError::WrongUsage { .. } => {
                "issue it anew for the role that it must have: servers need serverAuth, all others \
                 clientAuth"
            }
            PeerError::NoIdentity
            | PeerError::ManyIdentities { .. }
            | PeerError::BadIdentity { .. } => {
                "issue it anew with `towline-pki issue`: exactly one URI name, the identity"
            }
            PeerError::WrongCluster { .. } => {
                "see which cluster is meant: identities of another one are refused, whoever signed \
                 them"
            }
            PeerError::WrongRole { .. } => {
                "use the certificate of the role that is expected here, or ask for the role that \
                 it has"
            }
            PeerError::Denied { .. } | PeerError::DeniedInHandshake => {
                "if the denial is meant, issue a new certificate with a new key; if not, take the \
                 line out of the deny list: `towline-pki revoke --lift`"
            }
            PeerError::Revoked { .. } => {
                "issue a new certificate with a new key: what is revoked stays revoked"
            }
            PeerError::RevocationUnknown | PeerError::ListStale { .. } => {
                "put a current list of its issuer into the file: `towline-pki crl renew`"
            }
        }
    }

    /// The refusal that a failed handshake of **our** verifier carries. `None` when the handshake
    /// failed for another cause, for example because the peer refused us.
    pub fn from_rustls(error: &TlsFailure) -> Option<Self> {
        use TlsCertificateError as E;
        let certificate = match error {
            TlsFailure::InvalidCertificate(certificate) => certificate,
            TlsFailure::NoCertificatesPresented => return Some(PeerError::NoCertificate),
            _ => return None,
        };
        Some(match certificate {
            E::Other(OtherError(inner)) => inner.downcast_ref::<PeerError>().cloned()?,
            E::ExpiredContext { not_after, .. } => PeerError::Expired {
                not_after: instant(*not_after),
            },
            E::NotValidYetContext { not_before, .. } => PeerError::NotYetValid {
                not_before: instant(*not_before),
            },
            E::UnknownIssuer => PeerError::UnknownIssuer,
            E::Revoked => PeerError::Revoked {
                who: "; the log says who at level debug".into(),
            },
            E::ApplicationVerificationFailure => PeerError::DeniedInHandshake,
            E::InvalidOcspResponse => PeerError::RevocationUnknown,
            E::InvalidPurpose => PeerError::WrongUsage { needed: "its role" },
            other => PeerError::BadCertificate {
                cause: escape(&other.to_string()),
            },
        })
    }

    /// As [`from_rustls`](Self::from_rustls), from what TLS streams return. tokio-rustls wraps the
    /// error of rustls in an [`std::io::Error`].
    pub fn from_io(error: &std::io::Error) -> Option<Self> {
        error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<TlsFailure>())
            .and_then(Self::from_rustls)
    }

    /// For rustls, which makes the alert.
    pub(crate) fn into_rustls(self, now: UnixTime) -> TlsFailure {
        use TlsCertificateError as E;
        TlsFailure::InvalidCertificate(match self {
            PeerError::NoCertificate => return TlsFailure::NoCertificatesPresented,
            PeerError::Expired { not_after } => E::ExpiredContext {
                time: now,
                not_after: unix(not_after),
            },
            PeerError::NotYetValid { not_before } => E::NotValidYetContext {
                time: now,
                not_before: unix(not_before),
            },
            PeerError::UnknownIssuer => E::UnknownIssuer,
            PeerError::WrongUsage { .. } => E::InvalidPurpose,
            PeerError::Revoked { .. } => E::Revoked,
            PeerError::Denied { .. } | PeerError::DeniedInHandshake => {
                E::ApplicationVerificationFailure
            }
            // The one alert that speaks of a status and not of the certificate.
            PeerError::RevocationUnknown | PeerError::ListStale { .. } => E::InvalidOcspResponse,
            ours => E::Other(OtherError(Arc::new(ours))),
        })
    }

    /// With the name of the peer, and the serial number that its issuer's list may hold.
    pub(crate) fn revoked(leaf: &Certificate) -> Self {
        let name = leaf
            .identity()
            .map_or_else(|_| leaf.subject.clone(), |identity| identity.to_string());
        PeerError::Revoked {
            who: format!(" ({name}, serial {})", leaf.serial),
        }
    }

    /// From the chain check.
    pub(crate) fn from_webpki(error: webpki::Error, needed: &Usage) -> Self {
        use webpki::Error as E;
        match error {
            E::CertExpired { not_after, .. } => PeerError::Expired {
                not_after: instant(not_after),
            },
            E::CertNotValidYet { not_before, .. } => PeerError::NotYetValid {
                not_before: instant(not_before),
            },
            E::CertRevoked => PeerError::Revoked { who: String::new() },
            E::UnknownRevocationStatus
            | E::IssuerNotCrlSigner
            | E::InvalidCrlSignatureForPublicKey => PeerError::RevocationUnknown,
            E::CrlExpired { next_update, .. } => PeerError::ListStale {
                next_update: instant(next_update),
            },
            // The last two: another authority of the same name.
            E::UnknownIssuer
            | E::InvalidSignatureForPublicKey
            | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => PeerError::UnknownIssuer,
            E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => PeerError::WrongUsage {
                needed: usage_word(needed),
            },
            other => PeerError::BadCertificate {
                cause: escape(&other.to_string()),
            },
        }
    }
}

impl From<LeafError> for PeerError {
    fn from(error: LeafError) -> Self {
        match error {
            LeafError::Certificate(cause) => PeerError::BadCertificate {
                cause: cause.to_string(),
            },
            LeafError::NoIdentity => PeerError::NoIdentity,
            LeafError::ManyIdentities { count } => PeerError::ManyIdentities { count },
            LeafError::BadIdentity { uri, cause } => PeerError::BadIdentity { uri, cause },
        }
    }
}

pub(crate) const fn usage_word(usage: &Usage) -> &'static str {
    match usage {
        Usage::ServerAuth => "TLS servers (serverAuth)",
        Usage::ClientAuth => "TLS clients (clientAuth)",
        Usage::Other(_) => "this use",
    }
}

fn instant(time: UnixTime) -> SystemTime {
    date::from_seconds(i64::try_from(time.as_secs()).unwrap_or(i64::MAX))
}

pub(crate) fn unix(time: SystemTime) -> UnixTime {
    let seconds = u64::try_from(date::seconds(time)).unwrap_or(0);
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds))
}
