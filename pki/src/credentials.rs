//! Credentials: our own certificate chain and private key, checked when they are read.
//!
//! A pair that would be refused by every peer is refused here first, with the file's name: one
//! identity, the expected role and usage, valid now, chain in order, key and certificate belong
//! together. Whether a peer trusts the issuer is for the peer to know.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use towline_proto::id::Role;
use towline_proto::limits;

use crate::date;
use crate::identity::Identity;
use crate::inspect::{Certificate, CertificateError, Leaf, LeafError, Usage};
use crate::peer_error::usage_word;
use crate::store::{self, StoreError};
use crate::tls;
use crate::verify;

/// Our certificate chain and private key. Cheap to clone.
#[derive(Clone)]
pub struct Credentials {
    leaf: Arc<Leaf>,
    presented: Arc<CertifiedKey>,
    issuers_lives: Vec<Range<SystemTime>>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({})", self.leaf.identity)
    }
}

/// What is wrong with our own certificate or key.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{path}: {source}", path = path.display())]
    In {
        path: PathBuf,
        source: Box<CredentialsError>,
    },
    #[error("holds no certificate")]
    Empty,
    #[error("{count} certificates are more than the {max} of one chain")]
    LongChain { count: usize, max: usize },
    #[error(transparent)]
    Leaf(#[from] LeafError),
    #[error("certificate {number}: {source}")]
    Issuer {
        number: usize,
        source: CertificateError,
    },
    #[error(
        "certificate {number} did not issue the one before it; the file must begin with the \
         certificate of this key, followed by its issuer, and so on; `towline-pki export pem` puts \
         them in order"
    )]
    Order { number: usize },
    #[error("is of {identity}, which is not of role {expected}")]
    WrongRole { expected: Role, identity: Identity },
    #[error("the certificate of {identity} is not for {needed}")]
    WrongUsage {
        identity: Identity,
        needed: &'static str,
    },
    #[error(
        "the certificate of {identity} expired at {}; issue a new one with `towline-pki issue`",
        date::text(*not_after)
    )]
    Expired {
        identity: Identity,
        not_after: SystemTime,
    },
    #[error(
        "the certificate of {identity} is not valid before {}; set this machine's clock",
        date::text(*not_before)
    )]
    NotYetValid {
        identity: Identity,
        not_before: SystemTime,
    },
    #[error("the private key cannot be used: use RSA, ECDSA P-256/P-384/P-521 or Ed25519")]
    Key,
    #[error("the private key is not the one of the certificate of {identity}")]
    Mismatch { identity: Identity },
}

impl Credentials {
    /// Reads and checks a chain and its key. The key file must not be readable by others. When a
    /// renewal was cut off between the two files, the key is the one that waits beside it
    /// ([`store::replace_pair`]).
    pub fn load(
        cert: &Path,
        key: &Path,
        role: Role,
        now: SystemTime,
    ) -> Result<Self, CredentialsError> {
        let chain = store::read_certificates(cert)?;
        let secret = store::read_private_key(key)?;
        let mut loaded = Self::new(chain.clone(), secret, role, now);
        if matches!(loaded, Err(CredentialsError::Mismatch { .. }))
            && let Ok(next) = store::read_private_key(&store::next_key(key))
            && let Ok(waiting) = Self::new(chain, next, role, now)
        {
            loaded = Ok(waiting);
        }
        loaded.map_err(|source| CredentialsError::In {
            path: match source {
                CredentialsError::Key | CredentialsError::Mismatch { .. } => key.into(),
                _ => cert.into(),
            },
            source: Box::new(source),
        })
    }

    /// Checks a chain, leaf first, and its key.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        role: Role,
        now: SystemTime,
    ) -> Result<Self, CredentialsError> {
        if chain.len() > limits::CHAIN_CERTIFICATES {
            return Err(CredentialsError::LongChain {
                count: chain.len(),
                max: limits::CHAIN_CERTIFICATES,
            });
        }
        let first = chain.first().ok_or(CredentialsError::Empty)?;
        let certificate = Certificate::parse(first.as_ref()).map_err(LeafError::Certificate)?;
        let issuers_lives = check_order(&certificate, &chain[1..])?;
        let usage_verdict = verify::check_usage(&certificate, &Usage::of(role));
        let leaf = Leaf::try_from(certificate)?;
        check_leaf(&leaf, role, now)?;
        let identity = || leaf.identity.clone();
        usage_verdict.map_err(|_| CredentialsError::WrongUsage {
            identity: identity(),
            needed: usage_word(&Usage::of(role)),
        })?;
        let key = tls::signing_key(key).map_err(|_| CredentialsError::Key)?;
        let presented = CertifiedKey::new(chain, key);
        presented
            .keys_match()
            .map_err(|_| CredentialsError::Mismatch {
                identity: identity(),
            })?;
        Ok(Self {
            leaf: Arc::new(leaf),
            presented: Arc::new(presented),
            issuers_lives,
        })
    }

    /// Who we are.
    pub fn identity(&self) -> &Identity {
        &self.leaf.identity
    }

    /// What our certificate says.
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    /// What we present, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.presented.cert
    }

    /// From when until when the issuers in our chain count, nearest first.
    pub(crate) fn issuers_lives(&self) -> &[Range<SystemTime>] {
        &self.issuers_lives
    }

    pub(crate) fn presented(&self) -> &Arc<CertifiedKey> {
        &self.presented
    }
}

/// Each certificate is issued, by name, by the next one. Returns their lives.
fn check_order(
    leaf: &Certificate,
    above: &[CertificateDer<'_>],
) -> Result<Vec<Range<SystemTime>>, CredentialsError> {
    let mut expected = leaf.issuer_der.clone();
    let mut lives = Vec::with_capacity(above.len());
    for (index, der) in above.iter().enumerate() {
        let number = index + 2;
        let issuer = Certificate::parse(der.as_ref())
            .map_err(|source| CredentialsError::Issuer { number, source })?;
        if issuer.subject_der != expected {
            return Err(CredentialsError::Order { number });
        }
        expected = issuer.issuer_der;
        lives.push(issuer.not_before..issuer.not_after);
    }
    Ok(lives)
}

fn check_leaf(leaf: &Leaf, role: Role, now: SystemTime) -> Result<(), CredentialsError> {
    let identity = || leaf.identity.clone();
    if leaf.identity.role != role {
        return Err(CredentialsError::WrongRole {
            expected: role,
            identity: identity(),
        });
    }
    if date::seconds(now) < date::seconds(leaf.not_before) {
        return Err(CredentialsError::NotYetValid {
            identity: identity(),
            not_before: leaf.not_before,
        });
    }
    if date::seconds(now) > date::seconds(leaf.not_after) {
        return Err(CredentialsError::Expired {
            identity: identity(),
            not_after: leaf.not_after,
        });
    }
    Ok(())
}
