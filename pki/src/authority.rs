//! Authority: a key and certificate that signs for one cluster.
//!
//! It is made here (a root, or an issuer below one) or loaded: kubeadm's RSA authority, an EC or
//! an Ed25519 one, in PKCS#1, SEC1 or PKCS#8. What it signs carries its exact subject bytes as the
//! issuer, a random serial, and its key identifier. [`Authority::issue`] follows the policy of
//! `role`; [`Authority::issue_raw`] follows none and is for tests and special needs.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::date;
use crate::identity::Identity;
use crate::inspect::{Certificate, CertificateError, Leaf, Usage};
use crate::key::{KeyError, PrivateKey, PublicKey, UnlockError};
use crate::mint::{self, Body, LeafSpec, MintError, NAME_CHARS, Signer};
use crate::passphrase::Passphrases;
use crate::pem;
use crate::role::{BACKDATE, NameRefusal, Profile};
use crate::seal::hex;
use crate::secret::Secret;
use crate::store::{self, StoreError};

/// A key and certificate that signs.
pub struct Authority {
    certificate: Certificate,
    key_id: Vec<u8>,
    der: CertificateDer<'static>,
    key: PrivateKey,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.certificate.subject)
    }
}

/// What an authority that is to be made will say.
#[derive(Clone, Debug)]
pub struct AuthoritySpec {
    /// For example "towline agents". A part of the key's hash is added, so that an authority and
    /// its successor have different names.
    pub purpose: String,
    /// Organisation, by custom the cluster. Left out when longer than X.520 allows.
    pub organisation: String,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// Authorities that may stand below. `Some(0)`: it signs leaves only.
    pub path_length: Option<u32>,
    /// What leaves below it may be for; empty: anything.
    pub usages: Vec<Usage>,
}

/// What is wrong with an authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{path}: {source}", path = path.display())]
    In {
        path: PathBuf,
        source: Box<AuthorityError>,
    },
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("{subject} is not an authority: its certificate does not allow signing certificates")]
    NotAuthority { subject: String },
    #[error("authority {subject} expired at {}", date::text(*not_after))]
    Expired {
        subject: String,
        not_after: SystemTime,
    },
    #[error("authority {subject} is not valid before {}; compare the clocks", date::text(*not_before))]
    NotYetValid {
        subject: String,
        not_before: SystemTime,
    },
    #[error("the private key is not the one of authority {subject}")]
    Mismatch { subject: String },
    #[error("authority {subject} must not have authorities below it (path length 0)")]
    PathLength { subject: String },
    #[error(
        "an authority cannot outlive the one above it, and {subject} ends at {}; ask for less or \
         renew that one first",
        date::text(*not_after)
    )]
    Outlives {
        subject: String,
        not_after: SystemTime,
    },
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Mint(#[from] MintError),
    #[error(transparent)]
    Unlock(#[from] UnlockError),
}

/// One certificate to be issued by the rules.
#[derive(Clone, Debug)]
pub struct Issue {
    pub identity: Identity,
    pub dns: Vec<String>,
    pub ips: Vec<IpAddr>,
    /// `None`: what the role's profile says, or as long as the authority lives.
    pub life: Option<Duration>,
    pub public_key: PublicKey,
}

/// A certificate that was issued.
#[derive(Clone, Debug)]
pub struct Issued {
    /// What it says, read back from its bytes.
    pub leaf: Leaf,
    /// To present: leaf first, and nothing else; peers anchor on the issuer.
    pub chain: Vec<CertificateDer<'static>>,
    /// Whether the authority's own end cut its life short.
    pub cut_short: bool,
}

impl Issued {
    /// The chain as PEM.
    pub fn to_pem(&self) -> String {
        pem::write_certificates(&self.chain)
    }
}

/// Why a certificate is not issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error(transparent)]
    Names(#[from] NameRefusal),
    #[error(
        "{asked_days} days are more than the {most_days} that a certificate for {role} may live",
        role = identity.role
    )]
    TooLong {
        identity: Identity,
        asked_days: u64,
        most_days: u64,
    },
    #[error("a certificate that lives for no time is of no use; give at least a day")]
    NoLife,
    #[error(
        "the certificate would outlive its authority, which ends at {}; ask for less or renew the \
         authority first",
        date::text(*authority_ends)
    )]
    OutlivesAuthority { authority_ends: SystemTime },
    #[error("authority {subject} may not sign certificates for {usage}; use the other issuer")]
    Usage { subject: String, usage: Usage },
    #[error(transparent)]
    Mint(#[from] MintError),
    #[error("the certificate that was made does not read back: {0}")]
    ReadBack(#[from] crate::inspect::LeafError),
}

impl Authority {
    /// A root with a new key, signed by itself.
    pub fn create(spec: &AuthoritySpec, key: PrivateKey) -> Result<Self, AuthorityError> {
        let public_key = key.public();
        let subject = spec.subject(&public_key);
        let signer = Signer {
            name_der: &subject,
            key_id: &public_key.id(),
            key: &key,
        };
        let der = mint::certificate(&signer, spec.body(&subject, &public_key))?;
        Self::assemble(der, key)
    }

    /// An authority below this one.
    pub fn create_below(
        &self,
        spec: &AuthoritySpec,
        key: PrivateKey,
    ) -> Result<Self, AuthorityError> {
        if self.certificate.path_length == Some(0) {
            return Err(AuthorityError::PathLength {
                subject: self.certificate.subject.clone(),
            });
        }
        let public_key = key.public();
        let subject = spec.subject(&public_key);
        let der = mint::certificate(&self.signer(), spec.body(&subject, &public_key))?;
        Self::assemble(der, key)
    }

    /// Reads a certificate (the first of its file) and its key, and checks that they belong
    /// together, that the certificate may sign, and that it is valid now.
    pub fn load(cert: &Path, key: &Path, now: SystemTime) -> Result<Self, AuthorityError> {
        let der = store::read_certificates(cert)?.swap_remove(0);
        let secret = store::read_private_key(key)?;
        Self::new(der, &secret, now).map_err(|source| AuthorityError::In {
            path: match source {
                AuthorityError::Key(_) | AuthorityError::Mismatch { .. } => key.into(),
                _ => cert.into(),
            },
            source: Box::new(source),
        })
    }

    /// As [`load`](Self::load), and opens an encrypted key.
    pub fn unlock(
        cert: &Path,
        key: &Path,
        passphrases: &mut Passphrases,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let der = store::read_certificates(cert)?.swap_remove(0);
        let key_pair = PrivateKey::unlock(key, passphrases)?;
        Self::of(der, key_pair, now).map_err(|source| AuthorityError::In {
            path: match source {
                AuthorityError::Mismatch { .. } => key.into(),
                _ => cert.into(),
            },
            source: Box::new(source),
        })
    }

    /// As [`load`](Self::load), from memory.
    pub fn new(
        der: CertificateDer<'static>,
        key: &PrivateKeyDer<'_>,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        Self::of(der, PrivateKey::from_der(key)?, now)
    }

    fn of(
        der: CertificateDer<'static>,
        key: PrivateKey,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let authority = Self::assemble(der, key)?;
        Self::check(&authority.certificate, now)?;
        Ok(authority)
    }

    /// Whether this is the certificate of an authority that is valid now, whoever has its key.
    pub fn check(certificate: &Certificate, now: SystemTime) -> Result<(), AuthorityError> {
        let subject = || certificate.subject.clone();
        if !certificate.is_authority {
            return Err(AuthorityError::NotAuthority { subject: subject() });
        }
        if date::seconds(now) < date::seconds(certificate.not_before) {
            return Err(AuthorityError::NotYetValid {
                subject: subject(),
                not_before: certificate.not_before,
            });
        }
        if !certificate.is_current(now) {
            return Err(AuthorityError::Expired {
                subject: subject(),
                not_after: certificate.not_after,
            });
        }
        Ok(())
    }

    fn assemble(der: CertificateDer<'static>, key: PrivateKey) -> Result<Self, AuthorityError> {
        let certificate = Certificate::parse(der.as_ref())?;
        let subject = || certificate.subject.clone();
        if !certificate.is_authority {
            return Err(AuthorityError::NotAuthority { subject: subject() });
        }
        if certificate.public_key_der != key.public().der() {
            return Err(AuthorityError::Mismatch { subject: subject() });
        }
        let key_id = certificate
            .key_id
            .clone()
            .unwrap_or_else(|| key.public().id());
        Ok(Self {
            certificate,
            key_id,
            der,
            key,
        })
    }

    /// What its certificate says.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The number of its key that is in what it signs, in hexadecimal.
    pub fn key_id_text(&self) -> String {
        hex(&self.key_id)
    }

    /// Its certificate: what verifiers anchor on.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Its certificate as PEM.
    pub fn to_pem(&self) -> String {
        pem::write_certificates(std::slice::from_ref(&self.der))
    }

    /// Its key.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// Its private key as PEM.
    pub fn key_to_pem(&self) -> Secret {
        self.key.to_pem()
    }

    /// Issues a certificate by the rules of its role.
    pub fn issue(&self, issue: &Issue, now: SystemTime) -> Result<Issued, IssueError> {
        let identity = &issue.identity;
        let profile = Profile::of(identity.role);
        profile.check_names(&issue.dns, &issue.ips)?;
        if !self.certificate.allows(&profile.usage) {
            return Err(IssueError::Usage {
                subject: self.certificate.subject.clone(),
                usage: profile.usage,
            });
        }
        let (not_after, cut_short) = self.end_of(issue, &profile, now)?;
        let backdated = now.checked_sub(BACKDATE).unwrap_or(now);
        let spec = LeafSpec {
            common_name: identity.common_name(),
            uris: vec![identity.to_string()],
            dns: issue.dns.clone(),
            ips: issue.ips.clone(),
            usages: vec![profile.usage],
            not_before: backdated.max(self.certificate.not_before),
            not_after,
        };
        let der = self.issue_raw(&spec, &issue.public_key)?;
        Ok(Issued {
            leaf: Leaf::parse(&der)?,
            chain: vec![der],
            cut_short,
        })
    }

    fn end_of(
        &self,
        issue: &Issue,
        profile: &Profile,
        now: SystemTime,
    ) -> Result<(SystemTime, bool), IssueError> {
        let authority_ends = self.certificate.not_after;
        let life = issue.life.unwrap_or(profile.default_life);
        if life.is_zero() {
            return Err(IssueError::NoLife);
        }
        if life > profile.longest_life {
            return Err(IssueError::TooLong {
                identity: issue.identity.clone(),
                asked_days: life.as_secs() / 86_400,
                most_days: profile.longest_life.as_secs() / 86_400,
            });
        }
        let end = now.checked_add(life).unwrap_or(authority_ends);
        if end <= authority_ends {
            Ok((end, false))
        } else if issue.life.is_none() {
            Ok((authority_ends, true))
        } else {
            Err(IssueError::OutlivesAuthority { authority_ends })
        }
    }

    /// Signs a leaf exactly as specified, without any policy: expired, without identity, with two.
    /// The role profiles stand on this; tests use it to make what must be refused.
    pub fn issue_raw(
        &self,
        spec: &LeafSpec,
        public_key: &PublicKey,
    ) -> Result<CertificateDer<'static>, MintError> {
        self.issue_raw_of("", spec, public_key)
    }

    /// The same, with an organisation in the subject: to Kubernetes it is a group.
    pub(crate) fn issue_raw_of(
        &self,
        organisation: &str,
        spec: &LeafSpec,
        public_key: &PublicKey,
    ) -> Result<CertificateDer<'static>, MintError> {
        let subject = mint::name(organisation, &spec.common_name);
        mint::certificate(
            &self.signer(),
            Body {
                subject_der: &subject,
                public_key,
                not_before: spec.not_before,
                not_after: spec.not_after,
                extensions: mint::leaf_extensions(spec),
            },
        )
    }

    /// Signs a subject and extensions that the caller made.
    pub(crate) fn sign_body(&self, body: Body<'_>) -> Result<CertificateDer<'static>, MintError> {
        mint::certificate(&self.signer(), body)
    }

    pub(crate) fn signer(&self) -> Signer<'_> {
        Signer {
            name_der: &self.certificate.subject_der,
            key_id: &self.key_id,
            key: &self.key,
        }
    }
}

impl AuthoritySpec {
    pub(crate) fn subject(&self, public_key: &PublicKey) -> Vec<u8> {
        let hash: String = public_key.id()[..4]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let organisation = match self.organisation.len() {
            0..=NAME_CHARS => self.organisation.as_str(),
            _ => "",
        };
        mint::name(organisation, &format!("{} {hash}", self.purpose))
    }

    pub(crate) fn body<'a>(&self, subject_der: &'a [u8], public_key: &'a PublicKey) -> Body<'a> {
        Body {
            subject_der,
            public_key,
            not_before: self.not_before,
            not_after: self.not_after,
            extensions: mint::authority_extensions(self.path_length, &self.usages),
        }
    }
}
