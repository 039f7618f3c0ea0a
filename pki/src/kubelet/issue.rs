//! The issuing policy of a kubelet's serving certificate: whom it names, what it is for, for how
//! long. Which names are a node's is decided by the caller.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use towline_proto::address::{self, Refusal};
use towline_proto::id::Name;
use towline_proto::limits;
use towline_proto::target::HostName;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::request::{NODE_USER, NODES_GROUP};
use crate::authority::Authority;
use crate::date;
use crate::inspect::Usage;
use crate::key::PublicKey;
use crate::mint::{self, Body, LeafSpec, MintError};
use crate::pem;
use crate::role::BACKDATE;

/// What it says.
#[derive(Clone, Debug)]
pub struct ServingSpec {
    /// Whose kubelet.
    pub node: Name,
    /// Its names.
    pub dns: Vec<HostName>,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// How long it counts; `None`: [`limits::SERVING_LIFE`], or as long as the authority.
    pub life: Option<Duration>,
}

/// The certificate.
#[derive(Clone, Debug)]
pub struct ServingIssued {
    /// Its bytes.
    pub der: CertificateDer<'static>,
    /// When it begins, in the past by the allowance for clocks.
    pub not_before: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
    /// Whether the authority's own end cut its life short.
    pub cut_short: bool,
}

impl ServingIssued {
    /// As PEM.
    pub fn to_pem(&self) -> String {
        pem::write_certificates(std::slice::from_ref(&self.der))
    }
}

/// Why it is not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServingIssueError {
    /// It would name no host.
    #[error("a serving certificate names at least one DNS name or IP address")]
    NoNames,
    /// An address that is no node's.
    #[error("{ip} is a {refusal}: no node is reached by that")]
    ForbiddenIp {
        /// Which.
        ip: IpAddr,
        /// Why.
        refusal: Refusal,
    },
    /// Out of the bounds.
    #[error(
        "a kubelet's serving certificate lives from 10 minutes to {} days",
        limits::SERVING_LIFE_MOST.as_secs() / 86_400
    )]
    Life,
    /// The wrong authority.
    #[error("authority {subject} may not sign certificates for TLS servers")]
    Usage {
        /// Which.
        subject: String,
    },
    /// The authority ends before.
    #[error("authority {subject} ends at {}; ask for less or renew it first", date::text(*not_after))]
    OutlivesAuthority {
        /// Which.
        subject: String,
        /// When.
        not_after: SystemTime,
    },
    /// The authority has ended.
    #[error("authority {subject} is not valid now: it is from {} to {}", date::text(*not_before), date::text(*not_after))]
    Ended {
        /// Which.
        subject: String,
        /// Since when.
        not_before: SystemTime,
        /// Until when.
        not_after: SystemTime,
    },
    /// The crypto library.
    #[error(transparent)]
    Mint(#[from] MintError),
}

/// Whether the first certificate of this PEM bears the signature of this authority.
pub fn issued_by(pem: &[u8], authority: &Authority) -> bool {
    let check = || {
        let leaf = pem::certificates(pem).ok()?.into_iter().next()?;
        let (_, leaf) = X509Certificate::from_der(leaf.as_ref()).ok()?;
        let (_, issuer) = X509Certificate::from_der(authority.der().as_ref()).ok()?;
        let signed = leaf.verify_signature(Some(issuer.public_key())).is_ok();
        Some(signed && leaf.issuer().as_raw() == issuer.subject().as_raw())
    };
    check().unwrap_or(false)
}

impl ServingSpec {
    /// Issues it.
    pub fn issue(
        &self,
        authority: &Authority,
        public_key: &PublicKey,
        now: SystemTime,
    ) -> Result<ServingIssued, ServingIssueError> {
        if self.dns.is_empty() && self.ips.is_empty() {
            return Err(ServingIssueError::NoNames);
        }
        for ip in &self.ips {
            if let Some(refusal) = address::refusal(*ip) {
                return Err(ServingIssueError::ForbiddenIp { ip: *ip, refusal });
            }
        }
        let issuer = authority.certificate();
        let subject = || issuer.subject.clone();
        if !issuer.allows(&Usage::ServerAuth) {
            return Err(ServingIssueError::Usage { subject: subject() });
        }
        if !issuer.is_current(now) {
            return Err(ServingIssueError::Ended {
                subject: subject(),
                not_before: issuer.not_before,
                not_after: issuer.not_after,
            });
        }
        let (not_after, cut_short) = self.end(issuer.not_after, now, subject)?;
        let backdated = now.checked_sub(BACKDATE).unwrap_or(now);
        let spec = LeafSpec {
            common_name: format!("{NODE_USER}{}", self.node),
            uris: Vec::new(),
            dns: self.dns.iter().map(ToString::to_string).collect(),
            ips: self.ips.clone(),
            usages: vec![Usage::ServerAuth],
            not_before: backdated.max(issuer.not_before),
            not_after,
        };
        // As kubelets ask: an RSA key may decipher, others cannot.
        let extensions = match public_key.is_rsa() {
            true => mint::enciphering_leaf_extensions(&spec),
            false => mint::leaf_extensions(&spec),
        };
        let der = authority.sign_body(Body {
            subject_der: &mint::name_in_full(NODES_GROUP, &spec.common_name),
            public_key,
            not_before: spec.not_before,
            not_after,
            extensions,
        })?;
        Ok(ServingIssued {
            der,
            not_before: spec.not_before,
            not_after,
            cut_short,
        })
    }

    fn end(
        &self,
        authority_ends: SystemTime,
        now: SystemTime,
        subject: impl FnOnce() -> String,
    ) -> Result<(SystemTime, bool), ServingIssueError> {
        let life = self.life.unwrap_or(limits::SERVING_LIFE);
        if life < limits::SERVING_LIFE_LEAST || life > limits::SERVING_LIFE_MOST {
            return Err(ServingIssueError::Life);
        }
        match now.checked_add(life) {
            Some(end) if end <= authority_ends => Ok((end, false)),
            _ if self.life.is_none() => Ok((authority_ends, true)),
            _ => Err(ServingIssueError::OutlivesAuthority {
                subject: subject(),
                not_after: authority_ends,
            }),
        }
    }
}
