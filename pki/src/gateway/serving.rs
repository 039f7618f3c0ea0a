//! What the gateway shows front ends: a serving certificate for the host that was dialled, minted
//! when it is needed and short-lived; or one that was given for all nodes.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use towline_proto::id::Name;
use towline_proto::limits;
use towline_proto::target::Host;

use super::ServingFiles;
use crate::authority::{Authority, AuthorityError};
use crate::date;
use crate::inspect::{Certificate, CertificateError, Usage};
use crate::key::{KeyError, KeyKind, PrivateKey, PublicKey};
use crate::mint::{LeafSpec, MintError};
use crate::role::BACKDATE;
use crate::rotate::Expiry;
use crate::store::{self, StoreError};
use crate::tls;

/// What a front end dialled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServingNames {
    /// The host as it was dialled.
    pub host: Host,
    /// The node that it is.
    pub node: Name,
}

/// A certificate for one dialled host, with its key.
#[derive(Clone)]
pub struct Serving {
    presented: Arc<CertifiedKey>,
    names: Vec<String>,
    /// When it ends.
    pub not_after: SystemTime,
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serving({:?})", self.names)
    }
}

impl ResolvesServerCert for Serving {
    /// A front end that asks for another name than it dialled gets nothing.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let asked = hello.server_name().map(|name| name.trim_end_matches('.'));
        let known = |asked: &str| {
            self.names
                .iter()
                .any(|name| name.eq_ignore_ascii_case(asked))
        };
        asked.is_none_or(known).then(|| Arc::clone(&self.presented))
    }
}

/// What is wrong with the files.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("--kubelet-gateway-ca-cert: {0}")]
    Authority(#[from] AuthorityError),
    #[error(
        "--kubelet-gateway-ca-cert: authority {subject} may not sign for TLS servers; make one \
         with `towline-pki gateway-issuer`"
    )]
    IssuerUsage { subject: String },
    #[error("--kubelet-gateway-cert: {0}")]
    Store(#[from] StoreError),
    #[error("--kubelet-gateway-cert: {path}: {source}", path = path.display())]
    Certificate {
        path: PathBuf,
        source: CertificateError,
    },
    #[error("--kubelet-gateway-cert: {path}: the certificate of {subject} {what}", path = path.display())]
    Unfit {
        path: PathBuf,
        subject: String,
        what: &'static str,
    },
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Why there is no certificate for a host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServingError {
    #[error("the gateway's authority {subject} ended at {}; renew it", date::text(*not_after))]
    Ended {
        subject: String,
        not_after: SystemTime,
    },
    #[error(transparent)]
    Mint(#[from] MintError),
    #[error("the certificate of --kubelet-gateway-cert does not name {host}")]
    NotNamed { host: Host },
}

/// Where serving certificates come from.
pub struct ServingSource(Kind);

enum Kind {
    Issuer {
        authority: Box<Authority>,
        path: PathBuf,
        key: Arc<dyn SigningKey>,
        public: PublicKey,
    },
    Given {
        certificate: Box<Certificate>,
        path: PathBuf,
        presented: Arc<CertifiedKey>,
    },
}

impl fmt::Debug for ServingSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Issuer { authority, .. } => write!(f, "ServingSource({authority:?})"),
            Kind::Given { certificate, .. } => write!(f, "ServingSource({})", certificate.subject),
        }
    }
}

impl ServingSource {
    /// Reads and checks the files.
    pub fn load(files: &ServingFiles, now: SystemTime) -> Result<Self, SourceError> {
        match files {
            ServingFiles::Issuer(cert, key) => {
                Self::issuer(Authority::load(cert, key, now)?, cert.clone())
            }
            ServingFiles::Given(cert, key) => Self::given(cert, key, now),
        }
    }

    /// An authority that is in memory. All certificates of one source have the same new key: it
    /// never leaves the process and ends with it.
    pub fn issuer(authority: Authority, path: PathBuf) -> Result<Self, SourceError> {
        let certificate = authority.certificate();
        if !certificate.allows(&Usage::ServerAuth) {
            return Err(SourceError::IssuerUsage {
                subject: certificate.subject.clone(),
            });
        }
        let private = PrivateKey::generate(KeyKind::EcdsaP256)?;
        let public = private.public();
        let key = tls::signing_key(private.to_der()).map_err(|_| KeyError::Unusable)?;
        Ok(Self(Kind::Issuer {
            authority: Box::new(authority),
            path,
            key,
            public,
        }))
    }

    fn given(cert: &Path, key: &Path, now: SystemTime) -> Result<Self, SourceError> {
        let chain = store::read_certificates(cert)?;
        let secret = store::read_private_key(key)?;
        let leaf = chain.first().map_or(&[][..], |leaf| leaf.as_ref());
        let certificate = Certificate::parse(leaf).map_err(|source| SourceError::Certificate {
            path: cert.into(),
            source,
        })?;
        let unfit = |what| SourceError::Unfit {
            path: cert.into(),
            subject: certificate.subject.clone(),
            what,
        };
        if !certificate.usages.contains(&Usage::ServerAuth) {
            return Err(unfit("is not for TLS servers (serverAuth)"));
        }
        if !certificate.is_current(now) {
            return Err(unfit("is not valid now"));
        }
        let secret = tls::signing_key(secret).map_err(|_| KeyError::Unusable)?;
        let presented = CertifiedKey::new(chain, secret);
        presented
            .keys_match()
            .map_err(|_| unfit("is not of the key in --kubelet-gateway-key"))?;
        Ok(Self(Kind::Given {
            certificate: Box::new(certificate),
            path: cert.into(),
            presented: Arc::new(presented),
        }))
    }

    /// A certificate for this host.
    pub fn serving(&self, names: &ServingNames, now: SystemTime) -> Result<Serving, ServingError> {
        match &self.0 {
            Kind::Issuer {
                authority,
                key,
                public,
                ..
            } => mint(authority, key, public, names, now),
            Kind::Given {
                certificate,
                presented,
                ..
            } => {
                if !covers(certificate, &names.host) {
                    return Err(ServingError::NotNamed {
                        host: names.host.clone(),
                    });
                }
                let mut allowed = vec![names.node.to_string()];
                allowed.extend(certificate.dns_sans.iter().cloned());
                allowed.extend(host_name(&names.host));
                Ok(Serving {
                    presented: Arc::clone(presented),
                    names: allowed,
                    not_after: certificate.not_after,
                })
            }
        }
    }

    /// When the source itself ends.
    pub fn expiry(&self) -> Expiry {
        let (what, path, certificate) = match &self.0 {
            Kind::Issuer {
                authority, path, ..
            } => ("gateway-issuer", path, authority.certificate()),
            Kind::Given {
                path, certificate, ..
            } => ("gateway-certificate", path, &**certificate),
        };
        Expiry {
            what: what.into(),
            path: path.clone(),
            not_before: certificate.not_before,
            not_after: certificate.not_after,
        }
    }
}

fn mint(
    authority: &Authority,
    key: &Arc<dyn SigningKey>,
    public: &PublicKey,
    names: &ServingNames,
    now: SystemTime,
) -> Result<Serving, ServingError> {
    let issuer = authority.certificate();
    if !issuer.is_current(now) {
        return Err(ServingError::Ended {
            subject: issuer.subject.clone(),
            not_after: issuer.not_after,
        });
    }
    let mut dns = vec![names.node.to_string()];
    dns.extend(host_name(&names.host).filter(|name| *name != dns[0]));
    let ips: Vec<IpAddr> = match &names.host {
        Host::Ip(ip) => vec![*ip],
        Host::Name(_) => Vec::new(),
    };
    let end = now
        .checked_add(limits::GATEWAY_CERTIFICATE_LIFE)
        .unwrap_or(issuer.not_after);
    let backdated = now.checked_sub(BACKDATE).unwrap_or(now);
    let not_after = end.min(issuer.not_after);
    let spec = LeafSpec {
        // Not `system:node:`: it is no kubelet.
        common_name: format!("towline gateway {}", names.node),
        uris: Vec::new(),
        dns: dns.clone(),
        ips,
        usages: vec![Usage::ServerAuth],
        not_before: backdated.max(issuer.not_before),
        not_after,
    };
    let der = authority.issue_raw(&spec, public)?;
    Ok(Serving {
        presented: Arc::new(CertifiedKey::new(vec![der], Arc::clone(key))),
        names: dns,
        not_after,
    })
}

fn host_name(host: &Host) -> Option<String> {
    match host {
        Host::Ip(_) => None,
        Host::Name(name) => Some(name.to_string()),
    }
}

/// As kube-apiserver will look for it.
fn covers(certificate: &Certificate, host: &Host) -> bool {
    match host {
        Host::Ip(ip) => certificate.ip_sans.contains(&ip.to_canonical()),
        Host::Name(name) => {
            let name = name.to_string();
            let parent = name.split_once('.').map(|(_, parent)| parent);
            certificate.dns_sans.iter().any(|san| {
                san.eq_ignore_ascii_case(&name)
                    || san
                        .strip_prefix("*.")
                        .zip(parent)
                        .is_some_and(|(san, parent)| san.eq_ignore_ascii_case(parent))
            })
        }
    }
}
