//! Our own signature under kubelets' serving certificates, for clusters whose controller manager
//! does not sign them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use towline_pki::kubelet::{ServingIssueError, ServingRequest, ServingSpec, issued_by};
use towline_pki::{Authority, AuthorityError, Certificate, Expiry};

use super::office::{Refusal, Signed};

/// The authority's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerFiles {
    /// Its certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// The authority in force.
pub struct Issuer {
    files: IssuerFiles,
    authority: ArcSwap<Authority>,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Issuer({:?})", self.authority.load())
    }
}

impl Issuer {
    /// Reads and checks the files.
    pub fn load(files: IssuerFiles, now: SystemTime) -> Result<Arc<Self>, AuthorityError> {
        let authority = Authority::load(&files.cert, &files.key, now)?;
        Ok(Arc::new(Self {
            files,
            authority: ArcSwap::from_pointee(authority),
        }))
    }

    /// Reads the files again; `replace` puts what came of it in force.
    pub fn read_again(&self, now: SystemTime) -> Result<Authority, AuthorityError> {
        Authority::load(&self.files.cert, &self.files.key, now)
    }

    /// See [`Self::read_again`].
    pub fn replace(&self, authority: Authority) {
        self.authority.store(Arc::new(authority));
    }

    /// Every file, for watching.
    pub fn paths(&self) -> [&PathBuf; 2] {
        [&self.files.cert, &self.files.key]
    }

    /// When it ends.
    pub fn expiry(&self) -> Expiry {
        let authority = self.authority.load();
        let certificate = authority.certificate();
        Expiry {
            what: "kubelet-serving-signer".into(),
            path: self.files.cert.clone(),
            not_before: certificate.not_before,
            not_after: certificate.not_after,
        }
    }

    /// Whether the first certificate of this PEM is signed by the authority in force.
    pub fn signed(&self, pem: &[u8]) -> bool {
        issued_by(pem, &self.authority.load())
    }

    pub(super) fn sign(
        &self,
        asked: &ServingRequest,
        life: Option<Duration>,
        now: SystemTime,
    ) -> Result<Signed, Refusal> {
        let authority = self.authority.load();
        let mut spec = ServingSpec {
            node: asked.node().clone(),
            dns: asked.dns().to_vec(),
            ips: asked.ips().to_vec(),
            life,
        };
        let issued = match spec.issue(&authority, asked.public_key(), now) {
            // Shorter than was asked for is what every signer may do.
            Err(ServingIssueError::OutlivesAuthority { .. }) => {
                spec.life = None;
                spec.issue(&authority, asked.public_key(), now)
            }
            other => other,
        };
        let refusal = |cause: String| Refusal {
            word: "NotSigned",
            cause,
            fix: "look at --kubelet-serving-signer-certificate: `towline-pki inspect` shows it",
        };
        let issued = issued.map_err(|error| refusal(error.to_string()))?;
        let read = Certificate::parse(&issued.der).map_err(|error| refusal(error.to_string()))?;
        Ok(Signed {
            pem: issued.to_pem(),
            serial: read.serial.to_string(),
            not_after: issued.not_after,
        })
    }
}
