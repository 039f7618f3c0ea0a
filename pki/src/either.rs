//! A server that is met before it is known which protocol it speaks.
//!
//! An agent that offers both `towline/1` and `h2` learns which of them it is from the answer to
//! its first message, while the certificate is verified without that knowledge. So the handshake
//! takes a certificate that either rule takes, and whoever finishes it must then ask the rule of
//! the protocol that was chosen: [`PeerVerifier::verify`] or [`WebRoots::check`].

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{DigitallySignedStruct, Error as TlsFailure, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::verify::PeerVerifier;

/// Takes what one of two verifiers takes.
#[derive(Debug)]
pub(crate) struct Either {
    pub(crate) identity: Arc<PeerVerifier>,
    pub(crate) name: Arc<dyn ServerCertVerifier>,
}

impl ServerCertVerifier for Either {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsFailure> {
        let verify = |verifier: &dyn ServerCertVerifier| {
            verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        };
        match verify(&*self.identity) {
            Ok(verified) => Ok(verified),
            Err(_) => verify(&*self.name),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsFailure> {
        self.name.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsFailure> {
        self.name.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.name.supported_verify_schemes()
    }
}
