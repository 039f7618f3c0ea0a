//! Which server an agent believes before it has a certificate, and so before it is of a cluster.
//!
//! What is pinned is either a file of authorities or, from a join token, the hashes of their
//! public keys; the server then sends the certificates that fit. Everything else is as for any
//! other server ([`crate::verify`]): chain, time, usage, exactly one identity of role `server`, and
//! the cluster, where it is known. Where it is not, the server's own counts, because the pinned
//! authority signs for one cluster only; the certificate that is issued must then be of it.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{DigitallySignedStruct, Error as TlsFailure, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use towline_proto::id::{ClusterName, Role};
use towline_proto::limits;

use crate::anchors::Anchors;
use crate::handshake::tls12_is_off;
use crate::inspect::{Certificate, Leaf};
use crate::key::sha256;
use crate::peer_error::PeerError;
use crate::revoke::DenyList;
use crate::tls;
use crate::verify::{PeerVerifier, VerifiedPeer};

/// SHA-256 of an authority's public key (SubjectPublicKeyInfo).
pub type KeyHash = [u8; 32];

/// What is known of the authority of servers.
#[derive(Clone, Debug)]
pub enum Pinned {
    /// Its certificates.
    Anchors(Anchors),
    /// No more than the hashes of its public keys.
    Hashes(Vec<KeyHash>),
}

/// Decides whether a server may be asked for a certificate.
#[derive(Debug)]
pub struct FirstContact {
    pinned: Pinned,
    cluster: Option<ClusterName>,
    deny: DenyList,
    provider: Arc<CryptoProvider>,
}

/// Hash of the public key of an authority's certificate.
pub fn key_hash(certificate: &Certificate) -> KeyHash {
    sha256(&certificate.public_key_der)
}

impl FirstContact {
    /// Believes servers below what is pinned, of this cluster where it is known.
    pub fn new(pinned: Pinned, cluster: Option<ClusterName>, deny: DenyList) -> Arc<Self> {
        Arc::new(Self {
            pinned,
            cluster,
            deny,
            provider: tls::provider(),
        })
    }

    /// The verifier for what this server showed: the anchors that count, and its cluster.
    fn verifier(&self, chain: &[CertificateDer<'_>]) -> Result<Arc<PeerVerifier>, PeerError> {
        if chain.len() > limits::CHAIN_CERTIFICATES {
            return Err(PeerError::LongChain {
                count: chain.len(),
                max: limits::CHAIN_CERTIFICATES,
            });
        }
        let anchors = match &self.pinned {
            Pinned::Anchors(anchors) => anchors.clone(),
            Pinned::Hashes(hashes) => {
                Anchors::new(&pinned_of(chain, hashes)).map_err(|_| PeerError::UnknownIssuer)?
            }
        };
        let cluster = match &self.cluster {
            Some(cluster) => cluster.clone(),
            None => {
                let first = chain.first().ok_or(PeerError::NoCertificate)?;
                let leaf = Leaf::parse(first).map_err(|error| match error {
                    crate::inspect::LeafError::Certificate(cause) => PeerError::BadCertificate {
                        cause: cause.to_string(),
                    },
                    other => PeerError::from(other),
                })?;
                leaf.identity.cluster
            }
        };
        Ok(PeerVerifier::new(
            cluster,
            Role::Server,
            anchors,
            self.deny.clone(),
        ))
    }

    /// Checks what a server showed, leaf first.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<VerifiedPeer, PeerError> {
        self.verifier(chain)?.verify(chain, now)
    }

    /// The authorities among what a verified server showed that are pinned: what links are to be
    /// anchored on from then on. Nothing where they are in a file already.
    pub fn authorities(&self, chain: &[CertificateDer<'_>]) -> Vec<CertificateDer<'static>> {
        match &self.pinned {
            Pinned::Anchors(_) => Vec::new(),
            Pinned::Hashes(hashes) => pinned_of(chain, hashes),
        }
    }
}

fn pinned_of(chain: &[CertificateDer<'_>], hashes: &[KeyHash]) -> Vec<CertificateDer<'static>> {
    let is_pinned = |der: &&CertificateDer<'_>| {
        Certificate::parse(der.as_ref())
            .is_ok_and(|read| read.is_authority && hashes.contains(&key_hash(&read)))
    };
    let found = chain.iter().skip(1).filter(is_pinned);
    found.map(|der| der.clone().into_owned()).collect()
}

impl ServerCertVerifier for FirstContact {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsFailure> {
        let chain: Vec<_> = std::iter::once(end_entity)
            .chain(intermediates)
            .cloned()
            .collect();
        let instant = UNIX_EPOCH
            .checked_add(Duration::from_secs(now.as_secs()))
            .unwrap_or(UNIX_EPOCH);
        match self.verify(&chain, instant) {
            Ok(_) => Ok(ServerCertVerified::assertion()),
            Err(error) => Err(error.into_rustls(now)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsFailure> {
        Err(tls12_is_off())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsFailure> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
