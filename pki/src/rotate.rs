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
use crate::credentials::{Credentials, CredentialsError};
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
}

/// Our credentials and a verifier for each role, loaded together.
#[derive(Clone, Debug)]
pub struct Material {
    credentials: Credentials,
    verifiers: Vec<(Role, PathBuf, Arc<PeerVerifier>)>,
    cert: PathBuf,
}

/// What is wrong with a set of files. The message names the file.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error("trust anchors for {role}: {source}")]
    Anchors { role: Role, source: AnchorsError },
    #[error("deny list: {0}")]
    DenyList(#[from] DenyListError),
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
    /// Every file, for watching.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        let anchors = self.anchors.iter().map(|(_, path)| path);
        [&self.cert, &self.key]
            .into_iter()
            .chain(anchors)
            .chain(&self.deny_list)
    }
}

impl Material {
    /// Reads and checks every file. The cluster of the verifiers is that of our own identity.
    pub fn load(files: &Files, own: Role, now: SystemTime) -> Result<Self, MaterialError> {
        let credentials = Credentials::load(&files.cert, &files.key, own, now)?;
        let deny = match &files.deny_list {
            Some(path) => DenyList::load(path)?,
            None => DenyList::default(),
        };
        let mut verifiers = Vec::with_capacity(files.anchors.len());
        for (role, path) in &files.anchors {
            let role = *role;
            let anchors =
                Anchors::load(path).map_err(|source| MaterialError::Anchors { role, source })?;
            let cluster = credentials.identity().cluster.clone();
            let verifier = PeerVerifier::new(cluster, role, anchors, deny.clone());
            verifiers.push((role, path.clone(), verifier));
        }
        Ok(Self {
            credentials,
            verifiers,
            cert: files.cert.clone(),
        })
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
