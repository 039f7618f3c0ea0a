//! Material: the certificate files of a daemon as one snapshot that was checked as a whole.
//!
//! A daemon loads a snapshot at its start and again whenever the files may have changed. A set
//! that does not load is an error, and the daemon keeps the snapshot it has: half of a rotation
//! (the new key with the old certificate) is such an error, and the next look finds the whole.
//! A snapshot is never changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use towline_proto::id::Role;

use crate::anchors::{Anchors, AnchorsError};
use crate::apart::{self, NotApart, SharedRoots};
use crate::credentials::{Credentials, CredentialsError};
use crate::crl::{CrlFault, CrlPolicy, CrlState, Revocation, RevocationListError};
use crate::revoke::{DenyList, DenyListError};
use crate::serial::Fingerprint;
use crate::verify::PeerVerifier;

/// Which files make up a snapshot.
#[derive(Clone, Debug)]
pub struct Files {
    /// Our chain, leaf first.
    pub cert: PathBuf,
    /// Our private key.
    pub key: PathBuf,
    /// One bundle of trust anchors for each role that may come to us.
    pub anchors: Vec<(Role, PathBuf)>,
    /// Who is refused although it verifies.
    pub deny_list: Option<PathBuf>,
    /// Revocation lists for peers of a role; none: they are not asked for.
    pub crls: Vec<(Role, Vec<PathBuf>)>,
    /// What such a list past its next update means.
    pub crl_policy: CrlPolicy,
    /// What happens when an authority could sign more roles than it should.
    pub shared_roots: SharedRoots,
}

/// Our credentials and a verifier for each role, loaded together.
#[derive(Clone, Debug)]
pub struct Material {
    credentials: Credentials,
    verifiers: Vec<(Role, PathBuf, Arc<PeerVerifier>)>,
    cert: PathBuf,
    crl_faults: Vec<CrlFault>,
}

/// What is wrong with a set of files. The message names the file.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error("trust anchors for {role}: {source}")]
    Anchors { role: Role, source: AnchorsError },
    #[error(transparent)]
    NotApart(#[from] Box<NotApart>),
    #[error("deny list: {0}")]
    DenyList(#[from] DenyListError),
    #[error("revocation lists for {role}: {source}")]
    Crl {
        role: Role,
        source: RevocationListError,
    },
}

/// Something that is loaded and ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// What it is, from a small closed set: fit for a metric label.
    pub what: String,
    pub path: PathBuf,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

impl Files {
    fn crls_of(&self, role: Role) -> &[PathBuf] {
        let found = self.crls.iter().find(|(of, _)| *of == role);
        found.map_or(&[], |(_, paths)| paths.as_slice())
    }

    /// Every file, for watching.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        let anchors = self.anchors.iter().map(|(_, path)| path);
        [&self.cert, &self.key]
            .into_iter()
            .chain(anchors)
            .chain(&self.deny_list)
            .chain(self.crls.iter().flat_map(|(_, paths)| paths))
    }
}

impl Material {
    /// Reads and checks every file. The cluster of the verifiers is that of our own identity.
    pub fn load(files: &Files, own: Role, now: SystemTime) -> Result<Self, MaterialError> {
        Self::load_after(files, own, None, now)
    }

    /// The same, after something was in force: revocation lists that may not follow those leave
    /// them in force, and are told by [`crl_faults`](Self::crl_faults).
    pub fn load_after(
        files: &Files,
        own: Role,
        before: Option<&Material>,
        now: SystemTime,
    ) -> Result<Self, MaterialError> {
        let credentials = Credentials::load(&files.cert, &files.key, own, now)?;
        let deny = match &files.deny_list {
            Some(path) => DenyList::load(path)?,
            None => DenyList::default(),
        };
        let mut verifiers = Vec::with_capacity(files.anchors.len());
        let mut crl_faults = Vec::new();
        for (role, path) in &files.anchors {
            let role = *role;
            let anchors = Anchors::load_for(role, path)
                .map_err(|source| MaterialError::Anchors { role, source })?;
            let cluster = credentials.identity().cluster.clone();
            let in_force = before.and_then(|before| before.verifier(role)?.revocation());
            let (revocation, fault) = revocation(files, role, &anchors, in_force)?;
            crl_faults.extend(fault);
            let verifier =
                PeerVerifier::with_lists(cluster, role, anchors, deny.clone(), revocation);
            verifiers.push((role, path.clone(), verifier));
        }
        let loaded = Self {
            credentials,
            verifiers,
            cert: files.cert.clone(),
            crl_faults,
        };
        match loaded.not_apart(now) {
            Some(fault) if files.shared_roots == SharedRoots::Refused => {
                Err(Box::new(fault).into())
            }
            _ => Ok(loaded),
        }
    }

    fn not_apart(&self, now: SystemTime) -> Option<NotApart> {
        apart::find(&self.credentials, &self.sets(), now)
    }

    fn sets(&self) -> Vec<apart::Set<'_>> {
        let verifiers = self.verifiers.iter();
        verifiers
            .map(|(role, path, verifier)| (*role, path.as_path(), verifier.anchors()))
            .collect()
    }

    /// What is wrong with these files and was taken all the same, for people.
    pub fn warnings(&self, now: SystemTime) -> Vec<String> {
        match self.not_apart(now) {
            Some(fault) => vec![fault.to_string()],
            None => {
                let roots = apart::roots(&self.sets());
                roots.iter().map(ToString::to_string).collect()
            }
        }
    }

    /// The same credentials and anchors, with the deny list and the revocation lists of now: for
    /// when the set does not load as a whole, because a revocation does not wait until somebody has
    /// mended another file. What cannot be used of those, too, stays as it was.
    pub fn revoked_anew(&self, files: &Files) -> Self {
        let read = files.deny_list.as_deref().map(DenyList::load);
        let denied = read.and_then(Result::ok);
        let mut crl_faults = Vec::new();
        let renewed = |(role, path, old): &(Role, PathBuf, Arc<PeerVerifier>)| {
            let anchors = old.anchors().clone();
            let deny = denied.clone().unwrap_or_else(|| old.deny_list().clone());
            let found = revocation(files, *role, &anchors, old.revocation());
            let (lists, fault) = found.unwrap_or_else(|_| (old.revocation().cloned(), None));
            crl_faults.extend(fault);
            let cluster = old.cluster().clone();
            let verifier = PeerVerifier::with_lists(cluster, *role, anchors, deny, lists);
            (*role, path.clone(), verifier)
        };
        let verifiers = self.verifiers.iter().map(renewed).collect();
        Self {
            credentials: self.credentials.clone(),
            verifiers,
            cert: self.cert.clone(),
            crl_faults,
        }
    }

    /// Who we are and how we prove it.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The verifier of peers of a role; `None` when no file was given for it.
    pub fn verifier(&self, role: Role) -> Option<&Arc<PeerVerifier>> {
        self.verifiers
            .iter()
            .find(|(of, ..)| *of == role)
            .map(|(.., verifier)| verifier)
    }

    /// Files of revocation lists that are not in force; older lists are.
    pub fn crl_faults(&self) -> &[CrlFault] {
        &self.crl_faults
    }

    /// Every revocation list that is in force.
    pub fn crl_states(&self) -> Vec<CrlState> {
        let of = |(role, _, verifier): &(Role, PathBuf, Arc<PeerVerifier>)| {
            let what = format!("{role}-crl");
            let states = verifier.revocation().map(|lists| lists.states(&what));
            states.unwrap_or_default()
        };
        self.verifiers.iter().flat_map(of).collect()
    }

    /// Whether between two moments a list came to the end of its time and peers are refused for
    /// it: then everybody who is connected must be verified again.
    pub fn crl_went_stale(&self, before: SystemTime, now: SystemTime) -> bool {
        self.verifiers.iter().any(|(.., verifier)| {
            let lists = verifier.revocation();
            lists.is_some_and(|lists| lists.went_stale(before, now))
        })
    }

    /// Everything loaded that ends, each with the file it came from. Of several certificates of
    /// one kind in one file (two authorities during a change) each is listed.
    pub fn expiries(&self) -> Vec<Expiry> {
        let expiry = |what: &str, path: &PathBuf, not_before, not_after| Expiry {
            what: what.into(),
            path: path.clone(),
            not_before,
            not_after,
        };
        let own = self.credentials.leaf();
        let own = expiry("certificate", &self.cert, own.not_before, own.not_after);
        let mut out = vec![own];
        for life in self.credentials.issuers_lives() {
            out.push(expiry("issuer", &self.cert, life.start, life.end));
        }
        for (role, path, verifier) in &self.verifiers {
            for certificate in verifier.anchors().certificates() {
                let what = format!("{role}-ca");
                let (from, until) = (certificate.not_before, certificate.not_after);
                out.push(expiry(&what, path, from, until));
            }
            let what = format!("{role}-crl");
            let lists = verifier.revocation();
            out.extend(
                lists
                    .into_iter()
                    .flat_map(|lists| lists.lists().expiries(&what)),
            );
        }
        out
    }

    /// Every authority that peers may come from: the role of those peers, the file, and which it is.
    pub fn trusted(&self) -> Vec<(Role, &Path, Fingerprint)> {
        let mut out = Vec::new();
        for (role, path, verifier) in &self.verifiers {
            for certificate in verifier.anchors().certificates() {
                out.push((*role, path.as_path(), certificate.fingerprint));
            }
        }
        out
    }

    /// Whether live links may stay: we are still who we were.
    pub fn keeps_identity(&self, old: &Material) -> bool {
        self.credentials.identity() == old.credentials.identity()
    }
}

/// The lists for peers of a role; those in force, and why, where the files may not follow them.
fn revocation(
    files: &Files,
    role: Role,
    anchors: &Anchors,
    in_force: Option<&Revocation>,
) -> Result<(Option<Revocation>, Option<CrlFault>), MaterialError> {
    let paths = files.crls_of(role);
    if paths.is_empty() {
        return Ok((None, None));
    }
    match (
        Revocation::load(paths, anchors, files.crl_policy, in_force),
        in_force,
    ) {
        (Ok(lists), _) => Ok((Some(lists), None)),
        (Err(source), None) => Err(MaterialError::Crl { role, source }),
        (Err(source), Some(old)) => {
            let fault = CrlFault {
                what: format!("{role}-crl"),
                error: source.to_string(),
            };
            Ok((Some(old.clone()), Some(fault)))
        }
    }
}
