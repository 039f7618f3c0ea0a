//! Trust anchors: the authorities that one role's certificates must chain to.
//!
//! A bundle is one PEM file. Every certificate in it must be an authority; during a change of
//! authority the old and the new one stand side by side. An anchor counts only while it is valid
//! itself, and its own limits (usages, path length) hold for what is below it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, TrustAnchor};
use towline_proto::id::Role;
use towline_proto::limits;

use crate::inspect::{Certificate, CertificateError, Usage};
use crate::store::{self, StoreError};

/// The trust anchors of one role. Cheap to clone, never changed.
#[derive(Clone, Debug)]
pub struct Anchors {
    list: Arc<[Anchor]>,
}

/// One trusted authority.
#[derive(Debug)]
pub(crate) struct Anchor {
    pub(crate) trust: TrustAnchor<'static>,
    pub(crate) certificate: Certificate,
    pub(crate) der: CertificateDer<'static>,
}

/// What is wrong with a bundle. Messages of files name the file.
#[derive(Debug, thiserror::Error)]
pub enum AnchorsError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{path}: {source}", path = path.display())]
    In {
        path: PathBuf,
        source: Box<AnchorsError>,
    },
    #[error("no trust anchor is given")]
    Empty,
    #[error("{count} certificates are more than the {max} of one bundle")]
    Many { count: usize, max: usize },
    #[error("certificate {number}: {source}")]
    Certificate {
        number: usize,
        source: CertificateError,
    },
    #[error(
        "certificate {number} ({subject}) is not an authority; a trust file holds the certificates \
         that sign, as in trust/agents.pem of `towline-pki init`"
    )]
    NotAuthority { number: usize, subject: String },
    #[error(
        "none of these authorities may sign {role}s: {subject} is limited to other uses; this is the \
         file of another role (`towline-pki init` makes trust/agents.pem for servers to verify agents \
         by, and trust/servers.pem for everybody else)"
    )]
    OtherRole { role: Role, subject: String },
    #[error("certificate {number} cannot be a trust anchor: it is malformed")]
    Unusable { number: usize },
}

impl Anchors {
    /// Reads a bundle.
    pub fn load(path: &Path) -> Result<Self, AnchorsError> {
        let certificates = store::read_certificates(path)?;
        Self::new(&certificates).map_err(|source| AnchorsError::In {
            path: path.into(),
            source: Box::new(source),
        })
    }

    /// From certificates in memory.
    pub fn new(certificates: &[CertificateDer<'_>]) -> Result<Self, AnchorsError> {
        if certificates.is_empty() {
            return Err(AnchorsError::Empty);
        }
        if certificates.len() > limits::ANCHORS {
            return Err(AnchorsError::Many {
                count: certificates.len(),
                max: limits::ANCHORS,
            });
        }
        let list = certificates
            .iter()
            .enumerate()
            .map(|(index, der)| Anchor::new(index + 1, der))
            .collect::<Result<_, _>>()?;
        Ok(Self { list })
    }

    /// Reads the bundle of a role. One in which nobody may sign certificates of that role is the
    /// file of another role: nothing would ever verify against it.
    pub fn load_for(role: Role, path: &Path) -> Result<Self, AnchorsError> {
        let anchors = Self::load(path)?;
        let needed = Usage::of(role);
        let may = |certificate: &Certificate| {
            let usages = &certificate.usages;
            let any = |usage: &Usage| matches!(usage, Usage::Other(_)) || *usage == needed;
            usages.is_empty() || usages.iter().any(any)
        };
        if anchors.certificates().any(may) {
            return Ok(anchors);
        }
        let first = anchors.certificates().next();
        let subject = first.map_or_else(String::new, |first| first.subject.clone());
        Err(AnchorsError::In {
            path: path.into(),
            source: Box::new(AnchorsError::OtherRole { role, subject }),
        })
    }

    /// What each anchor says, in the order of the bundle.
    pub fn certificates(&self) -> impl ExactSizeIterator<Item = &Certificate> {
        self.list.iter().map(|anchor| &anchor.certificate)
    }

    /// Each anchor, in the order of the bundle.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Anchor> {
        self.list.iter()
    }

    /// Anchors that are valid at `now` (`current`), or those that are not.
    pub(crate) fn at(&self, now: SystemTime, current: bool) -> Vec<TrustAnchor<'static>> {
        self.list
            .iter()
            .filter(|anchor| anchor.certificate.is_current(now) == current)
            .map(|anchor| anchor.trust.clone())
            .collect()
    }

    /// Every listed certificate of this name and key; a renewed authority can be there twice.
    pub(crate) fn of<'a>(&'a self, trust: &'a TrustAnchor<'_>) -> impl Iterator<Item = &'a Anchor> {
        self.list.iter().filter(move |anchor| {
            anchor.trust.subject == trust.subject
                && anchor.trust.subject_public_key_info == trust.subject_public_key_info
        })
    }
}

impl Anchor {
    fn new(number: usize, der: &CertificateDer<'_>) -> Result<Self, AnchorsError> {
        let certificate = Certificate::parse(der.as_ref())
            .map_err(|source| AnchorsError::Certificate { number, source })?;
        if !certificate.is_authority {
            return Err(AnchorsError::NotAuthority {
                number,
                subject: certificate.subject,
            });
        }
        let trust = webpki::anchor_from_trusted_cert(der)
            .map_err(|_| AnchorsError::Unusable { number })?
            .to_owned();
        Ok(Self {
            trust,
            certificate,
            der: der.clone().into_owned(),
        })
    }
}
