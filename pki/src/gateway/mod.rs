//! What the kubelet gateway shows front ends, and whom it takes for one.
//!
//! The gateway stands where a kubelet would: it shows kube-apiserver a serving certificate for the
//! very host that was dialled ([`ServingSource`], `serving`), and takes requests only from who
//! holds kube-apiserver's client certificate for kubelets ([`FrontEndVerifier`], `front_end`).
//!
//! The issuer of the serving certificates is an authority of its own. No link trusts it, it trusts
//! nothing, and only kube-apiserver's `--kubelet-certificate-authority` names it.

mod client;
mod front_end;
mod serving;

use std::path::PathBuf;
use std::time::SystemTime;

pub use client::{KubeletClientIssued, KubeletClientRefusal, KubeletClientSpec};
pub use front_end::{FrontEndError, FrontEndRules, FrontEndVerifier, VerifiedFrontEnd};
pub use serving::{Serving, ServingError, ServingNames, ServingSource, SourceError};

use crate::anchors::{Anchors, AnchorsError};
use crate::kubelet::{KubeletClient, KubeletClientError};
use crate::revoke::{DenyList, DenyListError};
use crate::rotate::Expiry;

/// Which files make up a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayFiles {
    /// What signs the client certificates of front ends for kubelets.
    pub client_authority: PathBuf,
    /// Which of them may come.
    pub rules: FrontEndRules,
    /// What front ends are shown.
    pub serving: ServingFiles,
    /// What kubelets are shown: certificate and key.
    pub kubelet_client: (PathBuf, PathBuf),
    /// Who is refused although it verifies.
    pub deny_list: Option<PathBuf>,
}

/// Where serving certificates come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServingFiles {
    /// An authority, certificate and key, that mints one for each node.
    Issuer(PathBuf, PathBuf),
    /// One certificate and key for all nodes.
    Given(PathBuf, PathBuf),
}

impl GatewayFiles {
    /// Every file, for watching.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        let (ServingFiles::Issuer(cert, key) | ServingFiles::Given(cert, key)) = &self.serving;
        let (client, client_key) = &self.kubelet_client;
        [&self.client_authority, cert, key, client, client_key]
            .into_iter()
            .chain(&self.deny_list)
    }
}

/// What is wrong with those files. The message names the flag and the file.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    #[error("--kubelet-gateway-client-ca: {0}")]
    ClientAuthority(#[from] AnchorsError),
    #[error(transparent)]
    Serving(#[from] SourceError),
    #[error("--kubelet-client-certificate: {0}")]
    KubeletClient(#[from] KubeletClientError),
    #[error("deny list: {0}")]
    DenyList(#[from] DenyListError),
}

/// Everything a gateway holds, loaded and checked as one; never changed.
#[derive(Debug)]
pub struct GatewayMaterial {
    /// Who may come.
    pub front_ends: std::sync::Arc<FrontEndVerifier>,
    /// What they are shown.
    pub serving: ServingSource,
    /// What kubelets are shown.
    pub kubelet_client: KubeletClient,
    client_authority: PathBuf,
}

impl GatewayMaterial {
    /// Reads and checks every file.
    pub fn load(files: &GatewayFiles, now: SystemTime) -> Result<Self, GatewayError> {
        let anchors = Anchors::load(&files.client_authority)?;
        let deny = match &files.deny_list {
            Some(path) => DenyList::load(path)?,
            None => DenyList::default(),
        };
        let (cert, key) = &files.kubelet_client;
        Ok(Self {
            front_ends: FrontEndVerifier::new(anchors, files.rules.clone(), deny),
            serving: ServingSource::load(&files.serving, now)?,
            kubelet_client: KubeletClient::load(cert, key, now)?,
            client_authority: files.client_authority.clone(),
        })
    }

    /// Everything loaded that ends.
    pub fn expiries(&self) -> Vec<Expiry> {
        let authorities = self.front_ends.anchors().certificates().map(|one| Expiry {
            what: "gateway-client-ca".into(),
            path: self.client_authority.clone(),
            not_before: one.not_before,
            not_after: one.not_after,
        });
        authorities
            .chain([self.serving.expiry(), self.kubelet_client.expiry()])
            .collect()
    }
}
