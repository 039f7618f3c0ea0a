//! What a TLS server presents, for people who want to see it: taken from the handshake, which is
//! then broken off. Nothing is verified, so nothing may ever be sent; that is why the verifier
//! here refuses everybody after it has looked.

use std::io::{self, Read, Write};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{
    CertificateError, ClientConnection, DigitallySignedStruct, Error as TlsFailure, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use towline_proto::limits;
use towline_proto::target::Host;

use crate::tls;

/// The chain that the server at the other end presents, leaf first. Blocks as `io` does.
pub fn presented_by(
    io: &mut (impl Read + Write),
    host: &Host,
) -> io::Result<Vec<CertificateDer<'static>>> {
    let seen = Arc::new(Looker::default());
    let config = tls::looking_client(Arc::clone(&seen) as _).map_err(io::Error::other)?;
    let mut connection =
        ClientConnection::new(config, tls::kubelet_name(host)).map_err(io::Error::other)?;
    let ended = loop {
        match connection.complete_io(io) {
            // The handshake cannot come to its end.
            Ok(_) if connection.is_handshaking() => {}
            Ok(_) => break io::Error::other("the handshake ended without a certificate"),
            Err(error) => break error,
        }
    };
    seen.chain.get().cloned().ok_or(ended)
}

/// Keeps what it sees and refuses it.
#[derive(Debug, Default)]
pub(crate) struct Looker {
    chain: OnceLock<Vec<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Looker {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsFailure> {
        let all = std::iter::once(end_entity).chain(intermediates);
        let all = all.take(limits::CHAIN_CERTIFICATES);
        let _ = self
            .chain
            .set(all.map(|der| der.clone().into_owned()).collect());
        Err(refused())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsFailure> {
        Err(refused())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsFailure> {
        Err(refused())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn refused() -> TlsFailure {
    TlsFailure::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
}
