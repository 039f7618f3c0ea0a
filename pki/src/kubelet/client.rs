//! The certificate that kubelets know a front end by: in Kubernetes `apiserver-kubelet-client`.
//!
//! It carries no identity of Towline's; the kubelet's own authorisation looks at its subject. A
//! pair that every kubelet would refuse is refused here first, with the file's name.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::sign::CertifiedKey;
use towline_proto::limits;

use crate::date;
use crate::inspect::{Certificate, CertificateError, Usage};
use crate::rotate::Expiry;
use crate::store::{self, StoreError};
use crate::tls;

/// A client certificate for kubelets and its key. Cheap to clone.
#[derive(Clone)]
pub struct KubeletClient {
    certificate: Arc<Certificate>,
    presented: Arc<CertifiedKey>,
    path: PathBuf,
}

impl std::fmt::Debug for KubeletClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KubeletClient({})", self.certificate.subject)
    }
}

/// What is wrong with the pair.
#[derive(Debug, thiserror::Error)]
pub enum KubeletClientError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{path}: {source}", path = path.display())]
    Certificate {
        path: PathBuf,
        source: CertificateError,
    },
    #[error("{path}: holds {count} certificates, more than the {max} of one chain", path = path.display())]
    LongChain {
        path: PathBuf,
        count: usize,
        max: usize,
    },
    #[error("{path}: the certificate of {subject} is not for TLS clients (clientAuth)", path = path.display())]
    WrongUsage { path: PathBuf, subject: String },
    #[error("{path}: the certificate of {subject} is not valid now ({} to {}); renew it", date::text(*not_before), date::text(*not_after), path = path.display())]
    NotCurrent {
        path: PathBuf,
        subject: String,
        not_before: SystemTime,
        not_after: SystemTime,
    },
    #[error("{path}: the private key cannot be used", path = path.display())]
    Key { path: PathBuf },
    #[error("{path}: the private key is not the one of {cert}", path = path.display(), cert = cert.display())]
    Mismatch { path: PathBuf, cert: PathBuf },
}

impl KubeletClient {
    /// Reads and checks a chain and its key. The key file must not be readable by others.
    pub fn load(cert: &Path, key: &Path, now: SystemTime) -> Result<Self, KubeletClientError> {
        let chain = store::read_certificates(cert)?;
        let secret = store::read_private_key(key)?;
        let count = chain.len();
        if count > limits::CHAIN_CERTIFICATES {
            return Err(KubeletClientError::LongChain {
                path: cert.into(),
                count,
                max: limits::CHAIN_CERTIFICATES,
            });
        }
        // `read_certificates` gives at least one.
        let leaf = chain.first().map_or(&[][..], |leaf| leaf.as_ref());
        let certificate =
            Certificate::parse(leaf).map_err(|source| KubeletClientError::Certificate {
                path: cert.into(),
                source,
            })?;
        if !certificate.allows(&Usage::ClientAuth) {
            return Err(KubeletClientError::WrongUsage {
                path: cert.into(),
                subject: certificate.subject,
            });
        }
        if !certificate.is_current(now) {
            return Err(KubeletClientError::NotCurrent {
                path: cert.into(),
                subject: certificate.subject,
                not_before: certificate.not_before,
                not_after: certificate.not_after,
            });
        }
        let secret =
            tls::signing_key(secret).map_err(|_| KubeletClientError::Key { path: key.into() })?;
        let presented = CertifiedKey::new(chain, secret);
        presented
            .keys_match()
            .map_err(|_| KubeletClientError::Mismatch {
                path: key.into(),
                cert: cert.into(),
            })?;
        Ok(Self {
            certificate: Arc::new(certificate),
            presented: Arc::new(presented),
            path: cert.into(),
        })
    }

    /// What the certificate says.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// When it ends.
    pub fn expiry(&self) -> Expiry {
        Expiry {
            what: "kubelet-client".into(),
            path: self.path.clone(),
            not_before: self.certificate.not_before,
            not_after: self.certificate.not_after,
        }
    }

    pub(crate) fn presented(&self) -> &Arc<CertifiedKey> {
        &self.presented
    }
}
