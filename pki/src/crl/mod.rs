//! Certificate revocation lists: reading them ([`RevocationLists`]), what they decide about peers
//! ([`Revocation`]), and making them ([`ListSpec`]).
//!
//! Once a list is given, every certificate of a chain must be covered by one of its issuer: what
//! no list says anything about is refused as such, by name.

mod issue;
mod revocation;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::CertificateRevocationListDer;
use towline_proto::limits;
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::date;
use crate::inspect::{Certificate, escape};
use crate::pem;
use crate::rotate::Expiry;
use crate::serial::{Fingerprint, Serial};
use crate::store::{self, StoreError};

pub use issue::{ListError, ListSpec, RevocationReason, Revoked};
pub use revocation::{CrlFault, CrlPolicy, CrlState, Revocation};

/// Revocation lists. Cheap to clone, never changed; the default revokes nobody.
#[derive(Clone, Default)]
pub struct RevocationLists {
    lists: Arc<[List]>,
}

/// One list, read.
pub struct List {
    list: CertRevocationList<'static>,
    path: PathBuf,
    der: CertificateRevocationListDer<'static>,
    issuer: String,
    issuer_der: Vec<u8>,
    number: Number,
    this_update: SystemTime,
    next_update: SystemTime,
    entries: Vec<Revoked>,
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
         with a next update, as `towline-pki crl renew` and `openssl ca -gencrl` make it"
    )]
    Unsupported(String),
    #[error(
        "is of \"{issuer}\", which is none of the authorities that we trust for this role; of an \
         authority between add its certificate to the file of the list"
    )]
    Foreign { issuer: String },
    #[error("is not signed by \"{issuer}\", whose name it carries")]
    Signature { issuer: String },
    #[error(
        "is an older one: number {number} of \"{issuer}\", and number {had} was in force; was the \
         file rolled back?"
    )]
    RolledBack {
        issuer: String,
        number: Number,
        had: Number,
    },
    #[error("the list of \"{issuer}\", which was in force, is not in the files any more")]
    Dropped { issuer: String },
}

/// The number of a list: it grows with each list of an issuer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Number(Vec<u8>);

impl Number {
    fn from_bytes(bytes: &[u8]) -> Self {
        Self(
            bytes
                .iter()
                .copied()
                .skip_while(|byte| *byte == 0)
                .collect(),
        )
    }

    /// As a number, when it is one of ours.
    pub fn small(&self) -> Option<u64> {
        (self.0.len() <= 8).then(|| {
            self.0
                .iter()
                .fold(0, |value, byte| value << 8 | u64::from(*byte))
        })
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0.len(), &self.0).cmp(&(other.0.len(), &other.0))
    }
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.small() {
            Some(number) => write!(f, "{number}"),
            None => write!(f, "0x{}", Serial::from_bytes(&self.0)),
        }
    }
}

impl RevocationLists {
    /// Reads files, each with one list or several (PEM).
    pub fn load(paths: &[PathBuf]) -> Result<Self, RevocationListError> {
        let mut lists = Vec::new();
        for path in paths {
            lists.extend(List::load(path)?);
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

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &List> {
        self.lists.iter()
    }

    pub(crate) fn fingerprints(&self) -> impl Iterator<Item = Fingerprint> {
        self.lists
            .iter()
            .map(|list| Fingerprint::of(list.der.as_ref()))
    }

    pub(crate) fn webpki(&self) -> Vec<&CertRevocationList<'static>> {
        self.lists.iter().map(|list| &list.list).collect()
    }

    pub(crate) fn expiries(&self, what: &str) -> impl Iterator<Item = Expiry> {
        self.lists.iter().map(move |list| Expiry {
            what: what.into(),
            path: list.path.clone(),
            not_before: list.this_update,
            not_after: list.next_update,
        })
    }
}

impl List {
    /// Reads a file with one list or several (PEM).
    pub fn load(path: &Path) -> Result<Vec<Self>, RevocationListError> {
        let read = |(index, der): (usize, &CertificateRevocationListDer<'_>)| {
            Self::read(der, path).map_err(|source| RevocationListError::In {
                path: path.into(),
                number: index + 1,
                source: Box::new(source),
            })
        };
        let ders = store::read_revocation_lists(path)?;
        ders.iter().enumerate().map(read).collect()
    }

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
        let entry = |revoked: &x509_parser::revocation_list::RevokedCertificate<'_>| Revoked {
            serial: Serial::from_bytes(revoked.raw_serial()),
            at: date::from_seconds(revoked.revocation_date.timestamp()),
            reason: revoked
                .reason_code()
                .map_or(RevocationReason::Unspecified, |(_, code)| {
                    RevocationReason::of_code(code.0)
                }),
        };
        Ok(Self {
            list: CertRevocationList::from(owned),
            path: path.into(),
            der: der.as_ref().to_vec().into(),
            issuer: escape(&read.issuer().to_string()),
            issuer_der: read.issuer().as_raw().to_vec(),
            number: read.crl_number().map_or_else(Number::default, |number| {
                Number::from_bytes(&number.to_bytes_be())
            }),
            this_update: date::from_seconds(read.last_update().timestamp()),
            next_update: date::from_seconds(next_update.timestamp()),
            entries: read.iter_revoked_certificates().map(entry).collect(),
        })
    }

    /// Whether this authority signed it.
    pub fn check_signature(&self, authority: &Certificate) -> Result<(), RevocationListError> {
        let wrong = || RevocationListError::Signature {
            issuer: self.issuer.clone(),
        };
        if !self.is_of(authority) {
            return Err(RevocationListError::Foreign {
                issuer: self.issuer.clone(),
            });
        }
        let (_, read) =
            CertificateRevocationList::from_der(self.der.as_ref()).map_err(|_| wrong())?;
        let (_, key) =
            SubjectPublicKeyInfo::from_der(&authority.public_key_der).map_err(|_| wrong())?;
        read.verify_signature(&key).map_err(|_| wrong())
    }

    /// Whether it carries the name of this authority.
    pub fn is_of(&self, authority: &Certificate) -> bool {
        self.issuer_der == authority.subject_der
    }

    /// As text.
    pub fn to_pem(&self) -> String {
        pem::write_revocation_list(&self.der)
    }

    /// Who made it, escaped and bounded.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Its number.
    pub fn number(&self) -> &Number {
        &self.number
    }

    /// When it was made.
    pub fn this_update(&self) -> SystemTime {
        self.this_update
    }

    /// When the next one comes at the latest.
    pub fn next_update(&self) -> SystemTime {
        self.next_update
    }

    /// What it revokes.
    pub fn entries(&self) -> &[Revoked] {
        &self.entries
    }

    /// Whether half of its life, or more, is over.
    pub fn past_half_life(&self, now: SystemTime) -> bool {
        let life = self.next_update.duration_since(self.this_update);
        let half = self.this_update.checked_add(life.unwrap_or_default() / 2);
        half.is_none_or(|half| now >= half)
    }

    /// Whether its next update is overdue.
    pub fn is_stale(&self, now: SystemTime) -> bool {
        date::seconds(now) > date::seconds(self.next_update)
    }
}
