//! Clients that are known by the authority that signed them and by nothing else: legacy agents
//! and front ends of the compatibility profile.
//!
//! What is checked is what Konnectivity checks: the chain to roots that were given by file, the
//! time, the usage. No identity is read, so nothing here makes a
//! [`VerifiedPeer`](crate::VerifiedPeer): whoever holds any certificate of that authority is as
//! good as anybody else who does.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use towline_proto::reason::Reason;

use crate::inspect::Certificate;
use crate::tls::{self, TlsError};
use crate::web::WebRoots;

/// See the head of this file. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ChainVerifier(Arc<dyn ClientCertVerifier>);

impl ChainVerifier {
    /// For clients that chain to these roots.
    pub fn new(roots: &WebRoots) -> Result<Self, TlsError> {
        tls::chain_verifier(roots).map(Self)
    }

    /// Checks the chain of a finished handshake once more, leaf first.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'static>],
        now: SystemTime,
    ) -> Result<(), rustls::Error> {
        let (leaf, above) = chain
            .split_first()
            .ok_or(rustls::Error::NoCertificatesPresented)?;
        let since = now.duration_since(SystemTime::UNIX_EPOCH);
        let now = UnixTime::since_unix_epoch(since.unwrap_or_default());
        self.0.verify_client_cert(leaf, above, now).map(drop)
    }

    pub(crate) fn inner(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.0)
    }
}

/// Why a chain does not verify, as a number.
pub fn reason(error: &rustls::Error) -> Reason {
    use rustls::CertificateError::{Expired, ExpiredContext};
    match error {
        rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. }) => {
            Reason::CertificateEnded
        }
        _ => Reason::BadCertificate,
    }
}

/// The subject of a certificate, for people: nobody has checked that it is anybody's name.
pub fn subject(leaf: &CertificateDer<'_>) -> String {
    let parsed = Certificate::parse(leaf.as_ref());
    parsed.map_or_else(|_| "?".to_owned(), |certificate| certificate.subject)
}
