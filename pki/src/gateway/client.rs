//! The issuing policy of the certificate that kubelets are shown: a user of Kubernetes with the
//! rights that it is given there, and no more.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;

use crate::authority::Authority;
use crate::date;
use crate::inspect::Usage;
use crate::key::PublicKey;
use crate::mint::{LeafSpec, MintError, NAME_CHARS};
use crate::role::BACKDATE;

/// What it says.
#[derive(Clone, Debug)]
pub struct KubeletClientSpec {
    /// Its common name: a user of Kubernetes.
    pub user: String,
    /// Its organisation: a group of Kubernetes.
    pub group: Option<String>,
    /// How long it counts, at most as long as its authority.
    pub life: Duration,
}

/// The certificate.
#[derive(Clone, Debug)]
pub struct KubeletClientIssued {
    /// Its bytes.
    pub der: CertificateDer<'static>,
    /// When it ends.
    pub not_after: SystemTime,
}

/// Why it is not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KubeletClientRefusal {
    #[error(
        "{name:?} cannot be a user or group: 1 to 64 letters, digits and any of '-', '.', ':', '_', '@'"
    )]
    Name { name: String },
    #[error(
        "group system:masters may do anything in the cluster; leave --group out and bind the user \
         to the cluster role system:kubelet-api-admin"
    )]
    Masters,
    #[error("{user} would be a node: kubelets take it for the user of another node")]
    Node { user: String },
    #[error(
        "authority {subject} may not sign certificates for TLS clients; use the authority of the kubelets' --client-ca-file"
    )]
    Usage { subject: String },
    #[error("authority {subject} ends at {}; ask for less or renew it first", date::text(*not_after))]
    OutlivesAuthority {
        subject: String,
        not_after: SystemTime,
    },
    #[error(transparent)]
    Mint(#[from] MintError),
}

impl KubeletClientSpec {
    /// Issues it.
    pub fn issue(
        &self,
        authority: &Authority,
        public_key: &PublicKey,
        now: SystemTime,
    ) -> Result<KubeletClientIssued, KubeletClientRefusal> {
        for name in std::iter::once(&self.user).chain(&self.group) {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-.:_@".contains(&byte);
            if name.is_empty() || name.len() > NAME_CHARS || !name.bytes().all(fits) {
                let name = name.chars().take(80).collect();
                return Err(KubeletClientRefusal::Name { name });
            }
        }
        if self.group.as_deref() == Some("system:masters") {
            return Err(KubeletClientRefusal::Masters);
        }
        if self.user.starts_with("system:node:") || self.group.as_deref() == Some("system:nodes") {
            return Err(KubeletClientRefusal::Node {
                user: self.user.clone(),
            });
        }
        let issuer = authority.certificate();
        if !issuer.allows(&Usage::ClientAuth) {
            return Err(KubeletClientRefusal::Usage {
                subject: issuer.subject.clone(),
            });
        }
        let not_after = now.checked_add(self.life).unwrap_or(issuer.not_after);
        if not_after > issuer.not_after {
            return Err(KubeletClientRefusal::OutlivesAuthority {
                subject: issuer.subject.clone(),
                not_after: issuer.not_after,
            });
        }
        let backdated = now.checked_sub(BACKDATE).unwrap_or(now);
        let spec = LeafSpec {
            common_name: self.user.clone(),
            uris: Vec::new(),
            dns: Vec::new(),
            ips: Vec::new(),
            usages: vec![Usage::ClientAuth],
            not_before: backdated.max(issuer.not_before),
            not_after,
        };
        let group = self.group.as_deref().unwrap_or_default();
        let der = authority.issue_raw_of(group, &spec, public_key)?;
        Ok(KubeletClientIssued { der, not_after })
    }
}
