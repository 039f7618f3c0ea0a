//! Who may send requests to kubelets through the gateway: whoever holds a client certificate that
//! the named authority signed and, where rules say so, that has one of the names.
//!
//! In clusters that `kubeadm` made, that authority also signs the certificates of nodes and
//! administrators; there the rules should name `kube-apiserver-kubelet-client`.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError as TlsCertificateError, DigitallySignedStruct, DistinguishedName,
    Error as TlsFailure, OtherError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use towline_proto::limits;
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use crate::anchors::Anchors;
use crate::inspect::{Certificate, Usage};
use crate::peer_error::{PeerError, unix};
use crate::revoke::DenyList;
use crate::tls;
use crate::verify::{check_anchor, check_usage};

/// Which certificates of the authority may come; nothing given: all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrontEndRules {
    /// Common names.
    pub names: Vec<String>,
    /// Organisations; one of them is enough.
    pub organisations: Vec<String>,
}

/// Why somebody is not taken for a front end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrontEndError {
    /// What is wrong with the chain.
    #[error(transparent)]
    Chain(#[from] PeerError),
    /// Not one of those that may come.
    #[error(
        "{subject} is neither named by --kubelet-gateway-allow-name nor of an organisation of \
         --kubelet-gateway-allow-organization"
    )]
    NotAllowed {
        /// Escaped and bounded.
        subject: String,
    },
    /// On the deny list.
    #[error("{subject} (serial {serial}) is on the deny list")]
    Denied {
        /// Escaped and bounded.
        subject: String,
        /// Its serial number.
        serial: String,
    },
}

impl FrontEndError {
    /// A word for metric labels.
    pub fn as_str(&self) -> &'static str {
        match self {
            FrontEndError::Chain(error) => error.as_str(),
            FrontEndError::NotAllowed { .. } => "name",
            FrontEndError::Denied { .. } => "denied",
        }
    }

    /// The refusal that a failed handshake of our verifier carries, from what TLS streams return.
    pub fn from_io(error: &std::io::Error) -> Option<Self> {
        let failure = error.get_ref()?.downcast_ref::<TlsFailure>()?;
        if let TlsFailure::InvalidCertificate(TlsCertificateError::Other(OtherError(inner))) =
            failure
            && let Some(ours) = inner.downcast_ref::<FrontEndError>()
        {
            return Some(ours.clone());
        }
        PeerError::from_rustls(failure).map(FrontEndError::Chain)
    }
}

/// A front end that passed every check at the time of the check. Cheap to clone.
#[derive(Clone)]
pub struct VerifiedFrontEnd {
    certificate: Arc<Certificate>,
    chain: Arc<[CertificateDer<'static>]>,
}

impl VerifiedFrontEnd {
    /// What its certificate says; texts are escaped and bounded.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// What it presented, leaf first: for checking it again after a reload.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }
}

impl fmt::Debug for VerifiedFrontEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Certificate {
            subject, serial, ..
        } = &*self.certificate;
        write!(f, "{subject} (serial {serial})")
    }
}

/// Decides whether somebody may send requests to kubelets.
pub struct FrontEndVerifier {
    anchors: Anchors,
    rules: FrontEndRules,
    deny: DenyList,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for FrontEndVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrontEndVerifier({:?})", self.rules)
    }
}

impl FrontEndVerifier {
    /// A verifier; a reload makes a new one.
    pub fn new(anchors: Anchors, rules: FrontEndRules, deny: DenyList) -> Arc<Self> {
        Arc::new(Self {
            anchors,
            rules,
            deny,
            provider: tls::provider(),
        })
    }

    /// The authorities that certificates must chain to.
    pub fn anchors(&self) -> &Anchors {
        &self.anchors
    }

    /// Checks what was presented, leaf first.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<VerifiedFrontEnd, FrontEndError> {
        let (leaf, above) = chain.split_first().ok_or(PeerError::NoCertificate)?;
        let certificate = self.check(leaf, above, now)?;
        Ok(VerifiedFrontEnd {
            certificate: Arc::new(certificate),
            chain: chain.iter().map(|der| der.clone().into_owned()).collect(),
        })
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<Certificate, FrontEndError> {
        if above.len() >= limits::CHAIN_CERTIFICATES {
            return Err(PeerError::LongChain {
                count: above.len() + 1,
                max: limits::CHAIN_CERTIFICATES,
            }
            .into());
        }
        if let Some(der) = above
            .iter()
            .find(|der| der.len() > limits::CERTIFICATE_BYTES)
        {
            return Err(PeerError::TooLarge {
                len: der.len(),
                max: limits::CERTIFICATE_BYTES,
            }
            .into());
        }
        let certificate =
            Certificate::parse(leaf.as_ref()).map_err(|cause| PeerError::BadCertificate {
                cause: cause.to_string(),
            })?;
        self.path(leaf, above, now)?;
        check_usage(&certificate, &Usage::ClientAuth)?;
        if self.deny.has_serial(&certificate.serial) {
            return Err(FrontEndError::Denied {
                subject: certificate.subject,
                serial: certificate.serial.to_string(),
            });
        }
        if !self.rules.allow(&certificate) {
            return Err(FrontEndError::NotAllowed {
                subject: certificate.subject,
            });
        }
        Ok(certificate)
    }

    fn path(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<(), PeerError> {
        let usage = Usage::ClientAuth;
        let refused = |error| PeerError::from_webpki(error, &usage);
        EndEntityCert::try_from(leaf)
            .map_err(refused)?
            .verify_for_usage(
                self.provider.signature_verification_algorithms.all,
                &self.anchors.at(now, true),
                above,
                unix(now),
                KeyUsage::client_auth(),
                None,
                Some(&|path: &VerifiedPath<'_>| check_anchor(&self.anchors, path, &usage)),
            )
            .map(drop)
            .map_err(refused)
    }
}

impl FrontEndRules {
    fn allow(&self, certificate: &Certificate) -> bool {
        if self.names.is_empty() && self.organisations.is_empty() {
            return true;
        }
        // Of two names nobody can say which one is meant; neither of a name that is no text.
        let name = match certificate.common_names.as_deref() {
            Some([name]) => Some(name),
            _ => None,
        };
        let of = certificate.organisations.as_deref().unwrap_or_default();
        name.is_some_and(|name| self.names.contains(name))
            || of.iter().any(|one| self.organisations.contains(one))
    }
}

impl ClientCertVerifier for FrontEndVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Without hints a front end shows what it has, and is told what is wrong with it.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsFailure> {
        let instant = UNIX_EPOCH
            .checked_add(Duration::from_secs(now.as_secs()))
            .unwrap_or(UNIX_EPOCH);
        match self.check(end_entity, intermediates, instant) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(FrontEndError::Chain(error)) => Err(error.into_rustls(now)),
            Err(error) => Err(TlsFailure::InvalidCertificate(TlsCertificateError::Other(
                OtherError(Arc::new(error)),
            ))),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsFailure> {
        Err(TlsFailure::General(
            "TLS 1.2 is not spoken with front ends".into(),
        ))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsFailure> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
