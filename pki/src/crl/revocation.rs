//! What revocation lists decide about peers of one role, and which lists are taken.
//!
//! A list is taken when it reads, is signed by an authority that we trust for the role (or by one
//! whose certificate lies beside it in its file), and is not older than what is in force. Whatever
//! fails leaves the lists that are in force where they are, with an alarm: a damaged or rolled-back
//! file must neither let a revoked peer back in nor lock everybody out.
//!
//! When a list is past its next update [`CrlPolicy`] decides.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::SystemTime;

use webpki::{ExpirationPolicy, RevocationOptions, RevocationOptionsBuilder};

use super::{List, RevocationListError, RevocationLists};
use crate::anchors::Anchors;
use crate::inspect::Certificate;
use crate::pem;
use crate::serial::Serial;
use crate::store;

/// What a list past its next update means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CrlPolicy {
    /// It still counts, with an alarm: it knows of most that was revoked, and a renewal that was
    /// forgotten must not cut off every node.
    #[default]
    KeepLast,
    /// Who needs it is refused, live links included, until there is a new one.
    FailClosed,
}

impl CrlPolicy {
    /// The word of the flag.
    pub const fn as_str(self) -> &'static str {
        match self {
            CrlPolicy::KeepLast => "keep-last",
            CrlPolicy::FailClosed => "fail-closed",
        }
    }

    pub(crate) fn expiration(self) -> ExpirationPolicy {
        match self {
            CrlPolicy::KeepLast => ExpirationPolicy::Ignore,
            CrlPolicy::FailClosed => ExpirationPolicy::Enforce,
        }
    }
}

impl fmt::Display for CrlPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for CrlPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [CrlPolicy::KeepLast, CrlPolicy::FailClosed]
            .into_iter()
            .find(|policy| policy.as_str() == text)
            .ok_or_else(|| "keep-last or fail-closed".to_owned())
    }
}

/// The lists of one role. Cheap to clone, never changed.
#[derive(Clone, Debug)]
pub struct Revocation {
    lists: RevocationLists,
    policy: CrlPolicy,
}

/// What is known of one list that is in force: for metrics and status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrlState {
    /// `agent-crl`, for example.
    pub what: String,
    pub path: PathBuf,
    /// Escaped and bounded.
    pub issuer: String,
    pub number: String,
    pub revoked: usize,
    pub this_update: SystemTime,
    pub next_update: SystemTime,
    /// What happens past the next update.
    pub policy: CrlPolicy,
}

/// Files of lists that are not in force; older lists are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrlFault {
    /// `agent-crl`, for example.
    pub what: String,
    pub error: String,
}

impl Revocation {
    /// From lists whose signatures are only checked with the chains they are needed for.
    pub fn new(lists: RevocationLists, policy: CrlPolicy) -> Self {
        Self { lists, policy }
    }

    /// Reads files, and takes them only when they may follow what is in force.
    pub fn load(
        paths: &[PathBuf],
        anchors: &Anchors,
        policy: CrlPolicy,
        in_force: Option<&Revocation>,
    ) -> Result<Self, RevocationListError> {
        let mut lists: Vec<List> = Vec::new();
        for path in paths {
            let beside = authorities_beside(path);
            for (index, list) in List::load(path)?.into_iter().enumerate() {
                signed(&list, anchors, &beside).map_err(|source| RevocationListError::In {
                    path: path.clone(),
                    number: index + 1,
                    source: Box::new(source),
                })?;
                // Of two lists of one issuer the later one counts.
                match lists
                    .iter_mut()
                    .find(|had| had.issuer_der == list.issuer_der)
                {
                    Some(had) if is_older(had, &list) => *had = list,
                    Some(_) => {}
                    None => lists.push(list),
                }
            }
        }
        for had in in_force.iter().flat_map(|old| old.lists.iter()) {
            may_follow(had, &lists, anchors)?;
        }
        Ok(Self::new(RevocationLists::collect(lists)?, policy))
    }

    pub(crate) fn lists(&self) -> &RevocationLists {
        &self.lists
    }

    /// Whether a list names this serial number, whoever made it: they are random, and of one
    /// issuer each.
    pub fn has_serial(&self, serial: &Serial) -> bool {
        let mut entries = self.lists.iter().flat_map(List::entries);
        entries.any(|one| one.serial == *serial)
    }

    /// For the check of a chain.
    pub(crate) fn options<'a>(
        &self,
        lists: &'a [&'a webpki::CertRevocationList<'a>],
    ) -> Option<RevocationOptions<'a>> {
        let builder = RevocationOptionsBuilder::new(lists).ok()?;
        Some(
            builder
                .with_expiration_policy(self.policy.expiration())
                .build(),
        )
    }

    /// Whether a list came to the end of its time between two moments, and that matters.
    pub fn went_stale(&self, before: SystemTime, now: SystemTime) -> bool {
        self.policy == CrlPolicy::FailClosed
            && self
                .lists
                .iter()
                .any(|list| !list.is_stale(before) && list.is_stale(now))
    }

    /// Each list.
    pub fn states(&self, what: &str) -> Vec<CrlState> {
        let state = |list: &List| CrlState {
            what: what.to_owned(),
            path: list.path.clone(),
            issuer: list.issuer.clone(),
            number: list.number.to_string(),
            revoked: list.entries.len(),
            this_update: list.this_update,
            next_update: list.next_update,
            policy: self.policy,
        };
        self.lists.iter().map(state).collect()
    }
}

/// Authorities between an anchor and a leaf, whose certificates lie in the file of the lists.
fn authorities_beside(path: &std::path::Path) -> Vec<Certificate> {
    let text = store::read(path).unwrap_or_default();
    let found = pem::certificates(&text).unwrap_or_default();
    let read = found
        .iter()
        .filter_map(|der| Certificate::parse(der.as_ref()).ok());
    read.filter(|certificate| certificate.is_authority)
        .collect()
}

fn signed(
    list: &List,
    anchors: &Anchors,
    beside: &[Certificate],
) -> Result<(), RevocationListError> {
    let mut verdict = Err(RevocationListError::Foreign {
        issuer: list.issuer.clone(),
    });
    for authority in anchors.certificates().chain(beside) {
        if list.is_of(authority) {
            verdict = list.check_signature(authority);
            if verdict.is_ok() {
                break;
            }
        }
    }
    verdict
}

fn is_older(one: &List, other: &List) -> bool {
    (&one.number, one.this_update) < (&other.number, other.this_update)
}

/// Whether these lists may follow one that is in force.
fn may_follow(had: &List, lists: &[List], anchors: &Anchors) -> Result<(), RevocationListError> {
    match lists.iter().find(|list| list.issuer_der == had.issuer_der) {
        Some(list) if is_older(list, had) => Err(RevocationListError::RolledBack {
            issuer: list.issuer.clone(),
            number: list.number.clone(),
            had: had.number.clone(),
        }),
        Some(_) => Ok(()),
        // An authority that is not trusted any more needs none.
        None if anchors.certificates().any(|anchor| had.is_of(anchor)) => {
            Err(RevocationListError::Dropped {
                issuer: had.issuer.clone(),
            })
        }
        None => Ok(()),
    }
}
