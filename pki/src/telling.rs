//! A verifier of servers that remembers what it said, for one handshake. The errors of QUIC hold a
//! text and no cause; who asks here gets the same sentence there as over TLS.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{DigitallySignedStruct, Error as TlsFailure, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::peer_error::PeerError;
use crate::verify::PeerVerifier;

/// See the head of this file. It decides nothing by itself.
#[derive(Debug)]
pub struct Telling {
    peers: Arc<PeerVerifier>,
    said: Mutex<Option<PeerError>>,
}

impl Telling {
    /// For one handshake.
    pub fn new(peers: Arc<PeerVerifier>) -> Arc<Self> {
        Arc::new(Self {
            peers,
            said: Mutex::new(None),
        })
    }

    /// Why the server was refused, if it was.
    pub fn said(&self) -> Option<PeerError> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.clone()
    }
}

impl ServerCertVerifier for Telling {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsFailure> {
        let peers: &dyn ServerCertVerifier = &*self.peers;
        let verified = peers.verify_server_cert(end_entity, intermediates, name, ocsp, now);
        if let Err(error) = &verified {
            *self.said.lock().unwrap_or_else(PoisonError::into_inner) =
                PeerError::from_rustls(error);
        }
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsFailure> {
        ServerCertVerifier::verify_tls12_signature(&*self.peers, message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsFailure> {
        ServerCertVerifier::verify_tls13_signature(&*self.peers, message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(&*self.peers)
    }
}
