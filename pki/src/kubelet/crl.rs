//! Certificate revocation lists of the authorities that sign kubelets.
//!
//! Once a list is given, every certificate of a kubelet's chain must be covered by one of its
//! issuer: what no list says anything about is refused as such, by name. A list that is past its
//! next update still counts, with an alarm: an old list knows of most that was revoked, and a
//! forgotten renewal must not lock everybody out. Its signature is checked with the chain.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::CertificateRevocationListDer;
use towline_proto::limits;
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::date;
use crate::inspect::escape;
use crate::rotate::Expiry;
use crate::serial::Fingerprint;
use crate::store::{self, StoreError};

/// Revocation lists. Cheap to clone, never changed; the default revokes nobody.
#[derive(Clone, Default)]
pub struct RevocationLists {
    lists: Arc<[List]>,
}

struct List {
    list: CertRevocationList<'static>,
    path: PathBuf,
    fingerprint: Fingerprint,
    issuer: String,
    this_update: SystemTime,
    next_update: SystemTime,
}

impl std::fmt::Debug for RevocationLists {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.issuers()).finish()
    }
}

/// What is wrong with a revocation list.
#[derive(Debug, thiserror::Error)]
pub enum RevocationListError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{path}: list {number}: {source}", path = path.display())]
    In {
        path: PathBuf,
        number: usize,
        source: Box<RevocationListError>,
    },
    #[error("{count} lists are more than the {max} that are read")]
    Many { count: usize, max: usize },
    #[error("not a revocation list, or a damaged one")]
    Malformed,
    #[error(
        "is of a form that cannot be checked ({0}); use a complete, direct list of version 2 \
         with a next update, as `openssl ca -gencrl` makes it"
    )]
    Unsupported(String),
}

impl RevocationLists {
    /// Reads files, each with one list or several (PEM).
    pub fn load(paths: &[PathBuf]) -> Result<Self, RevocationListError> {
        let mut lists = Vec::new();
        for path in paths {
            for (index, der) in store::read_revocation_lists(path)?.iter().enumerate() {
                let list = List::read(der, path).map_err(|source| RevocationListError::In {
                    path: path.clone(),
                    number: index + 1,
                    source: Box::new(source),
                })?;
                lists.push(list);
            }
        }
        Self::collect(lists)
    }

    /// From lists in memory.
    pub fn new(ders: &[CertificateRevocationListDer<'_>]) -> Result<Self, RevocationListError> {
        let read = |der| List::read(der, Path::new(""));
        Self::collect(ders.iter().map(read).collect::<Result<_, _>>()?)
    }

    fn collect(lists: Vec<List>) -> Result<Self, RevocationListError> {
        if lists.len() > limits::KUBELET_CRLS {
            return Err(RevocationListError::Many {
                count: lists.len(),
                max: limits::KUBELET_CRLS,
            });
        }
        Ok(Self {
            lists: lists.into(),
        })
    }

    /// Who made them, escaped and bounded.
    pub fn issuers(&self) -> impl Iterator<Item = &str> {
        self.lists.iter().map(|list| list.issuer.as_str())
    }

    pub(super) fn fingerprints(&self) -> impl Iterator<Item = Fingerprint> {
        self.lists.iter().map(|list| list.fingerprint)
    }

    pub(super) fn webpki(&self) -> Vec<&CertRevocationList<'static>> {
        self.lists.iter().map(|list| &list.list).collect()
    }

    pub(super) fn expiries(&self) -> impl Iterator<Item = Expiry> {
        self.lists.iter().map(|list| Expiry {
            what: "kubelet-crl".into(),
            path: list.path.clone(),
            not_before: list.this_update,
            not_after: list.next_update,
        })
    }
}

impl List {
    fn read(
        der: &CertificateRevocationListDer<'_>,
        path: &Path,
    ) -> Result<Self, RevocationListError> {
        let owned = OwnedCertRevocationList::from_der(der.as_ref()).map_err(|error| {
            let text = escape(&error.to_string());
            match error {
                webpki::Error::BadDer | webpki::Error::TrailingData(_) => {
                    RevocationListError::Malformed
                }
                _ => RevocationListError::Unsupported(text),
            }
        })?;
        let (_, read) = CertificateRevocationList::from_der(der.as_ref())
            .map_err(|_| RevocationListError::Malformed)?;
        let next_update = read.next_update().ok_or(RevocationListError::Malformed)?;
        Ok(Self {
            list: CertRevocationList::from(owned),
            path: path.into(),
            fingerprint: Fingerprint::of(der.as_ref()),
            issuer: escape(&read.issuer().to_string()),
            this_update: date::from_seconds(read.last_update().timestamp()),
            next_update: date::from_seconds(next_update.timestamp()),
        })
    }
}
