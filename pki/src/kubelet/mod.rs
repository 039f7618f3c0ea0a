//! Whether who answers at a kubelet's port is the kubelet of that node.
//!
//! Reading order: [`Expected`] (who it has to be), [`KubeletTrust`] (authority and revocation
//! lists, loaded and checked as one), `check` (the rules, in order), [`Cause`] (one for each
//! rule, with what to do about it), [`KubeletCheck`] (the rules in one TLS handshake).
//!
//! For one connection: [`KubeletCheck::new`], [`crate::tls::kubelet_client`], the handshake, and
//! then [`KubeletCheck::verdict`], which knows more than the error of the handshake.
//!
//! The other half: [`ServingRequest`] (what a kubelet's signing request must say) and
//! [`ServingSpec`] (the certificate that is made from it).

mod cause;
mod check;
mod client;
mod handshake;
mod issue;
mod request;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::CryptoProvider;
use towline_proto::id::Name;
use towline_proto::target::Host;

use crate::anchors::{Anchors, AnchorsError};
use crate::crl::CrlPolicy;
pub use crate::crl::{RevocationListError, RevocationLists};
use crate::rotate::Expiry;
use crate::serial::{Fingerprint, Serial};
use crate::tls;

pub use cause::Cause;
pub use client::{KubeletClient, KubeletClientError};
pub use handshake::KubeletCheck;
pub use issue::{ServingIssueError, ServingIssued, ServingSpec, issued_by};
pub use request::{NODE_USER, NODES_GROUP, ServingRefusal, ServingRequest};

/// Who has to answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Expected {
    /// The node: the verified name of the agent, which owns the dialled address.
    pub node: Name,
    /// What was dialled.
    pub host: Host,
}

/// What a kubelet showed, believed or not. Texts are escaped and bounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presented {
    /// SHA-256 of its public key (SubjectPublicKeyInfo).
    pub key: Fingerprint,
    /// SHA-256 of its certificate.
    pub certificate: Fingerprint,
    /// Serial number of its certificate.
    pub serial: Serial,
    /// Whom its certificate names.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// End of its certificate.
    pub not_after: SystemTime,
}

/// What a check came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What was shown; `None` when it was no certificate that can be read.
    pub presented: Option<Presented>,
    /// Until when the whole chain is good, clock allowance included; or what is wrong with it.
    pub result: Result<SystemTime, Cause>,
}

impl Verdict {
    /// A failure before anything was shown.
    pub fn failed(cause: Cause) -> Self {
        Self {
            presented: None,
            result: Err(cause),
        }
    }

    /// What is wrong.
    pub fn cause(&self) -> Option<&Cause> {
        self.result.as_ref().err()
    }
}

/// Which files say what a kubelet's certificate must chain to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KubeletFiles {
    /// `--kubelet-certificate-authority`.
    pub authority: PathBuf,
    /// `--kubelet-crl`.
    pub crls: Vec<PathBuf>,
    /// `--crl-policy`.
    pub crl_policy: CrlPolicy,
}

impl KubeletFiles {
    /// Every file, for watching.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.authority).chain(&self.crls)
    }
}

/// What is wrong with those files. The message names the file.
#[derive(Debug, thiserror::Error)]
pub enum KubeletTrustError {
    #[error("--kubelet-certificate-authority: {0}")]
    Authority(#[from] AnchorsError),
    #[error("--kubelet-crl: {0}")]
    Crl(#[from] RevocationListError),
}

/// Authority and revocation lists, loaded together and never changed: a reload makes a new one.
pub struct KubeletTrust {
    pub(crate) anchors: Anchors,
    pub(crate) crls: RevocationLists,
    pub(crate) crl_policy: CrlPolicy,
    pub(crate) provider: Arc<CryptoProvider>,
    authority: PathBuf,
    digest: Fingerprint,
}

impl std::fmt::Debug for KubeletTrust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KubeletTrust({})", self.authority.display())
    }
}

impl KubeletTrust {
    /// Reads and checks every file.
    pub fn load(files: &KubeletFiles) -> Result<Arc<Self>, KubeletTrustError> {
        let anchors = Anchors::load(&files.authority)?;
        let crls = RevocationLists::load(&files.crls)?;
        Ok(Self::make(
            anchors,
            crls,
            files.crl_policy,
            &files.authority,
        ))
    }

    /// From what is in memory.
    pub fn new(anchors: Anchors, crls: RevocationLists) -> Arc<Self> {
        Self::make(anchors, crls, CrlPolicy::default(), Path::new(""))
    }

    fn make(
        anchors: Anchors,
        crls: RevocationLists,
        crl_policy: CrlPolicy,
        authority: &Path,
    ) -> Arc<Self> {
        let parts: Vec<String> = anchors
            .certificates()
            .map(|certificate| certificate.fingerprint)
            .chain(crls.fingerprints())
            .map(|fingerprint| fingerprint.to_string())
            .collect();
        Arc::new(Self {
            digest: Fingerprint::of(parts.join(" ").as_bytes()),
            anchors,
            crls,
            crl_policy,
            provider: tls::kubelet_provider(),
            authority: authority.into(),
        })
    }

    /// Whether the same files were loaded: what was decided by one holds for the other.
    pub fn is_same(&self, other: &Self) -> bool {
        self.digest == other.digest
    }

    /// Everything loaded that ends.
    pub fn expiries(&self) -> Vec<Expiry> {
        let authorities = self.anchors.certificates().map(|certificate| Expiry {
            what: "kubelet-ca".into(),
            path: self.authority.clone(),
            not_before: certificate.not_before,
            not_after: certificate.not_after,
        });
        authorities
            .chain(self.crls.expiries("kubelet-crl"))
            .collect()
    }
}
