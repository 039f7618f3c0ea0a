//! The check of one kubelet in one TLS handshake.
//!
//! A check is made for one connection and keeps what it found: an error of a handshake has no
//! place for everything that a verdict says. Only after the handshake has succeeded is it proven
//! that whoever presented the certificate holds its key.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, Error as TlsFailure, OtherError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{Expected, KubeletTrust, Verdict};

/// The check of one connection.
#[derive(Debug)]
pub struct KubeletCheck {
    trust: Arc<KubeletTrust>,
    expected: Expected,
    only_look: bool,
    verdict: OnceLock<Verdict>,
}

impl KubeletCheck {
    /// A check that ends the handshake when it fails.
    pub fn new(trust: Arc<KubeletTrust>, expected: Expected) -> Arc<Self> {
        Self::make(trust, expected, false)
    }

    /// A check for `--kubelet-verification observe`: the handshake goes on whatever it finds.
    /// The caller counts and shows [`KubeletCheck::verdict`].
    pub fn observing(trust: Arc<KubeletTrust>, expected: Expected) -> Arc<Self> {
        Self::make(trust, expected, true)
    }

    fn make(trust: Arc<KubeletTrust>, expected: Expected, only_look: bool) -> Arc<Self> {
        Arc::new(Self {
            trust,
            expected,
            only_look,
            verdict: OnceLock::new(),
        })
    }

    /// Who has to answer.
    pub fn expected(&self) -> &Expected {
        &self.expected
    }

    /// What was found; `None` while nothing has been presented.
    pub fn verdict(&self) -> Option<&Verdict> {
        self.verdict.get()
    }
}

impl ServerCertVerifier for KubeletCheck {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        // Only for SNI; what is expected was said at the start.
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsFailure> {
        let instant = UNIX_EPOCH
            .checked_add(Duration::from_secs(now.as_secs()))
            .unwrap_or(UNIX_EPOCH);
        let verdict = self.verdict.get_or_init(|| {
            self.trust
                .check_parts(end_entity, intermediates, &self.expected, instant)
        });
        match &verdict.result {
            Err(cause) if !self.only_look => Err(TlsFailure::InvalidCertificate(
                CertificateError::Other(OtherError(Arc::new(cause.clone()))),
            )),
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsFailure> {
        let algorithms = &self.trust.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsFailure> {
        let algorithms = &self.trust.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust
            .provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
