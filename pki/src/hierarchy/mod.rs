//! The authorities of one cluster: which seats there are, what sits in each, and where its files are.
//!
//! ```text
//! root      signs the issuers, and nothing else; offline, perhaps shared between clusters
//! agents    signs agents
//! servers   signs servers, clients and operators
//! ```
//!
//! Daemons anchor on issuers and never on a root: what another issuer below the same root signs,
//! of another role or another cluster, is nothing to them. A seat has up to three generations:
//! the one that signs, the next one, and the old one ([`succession`]). [`accept`] checks a certificate
//! that somebody else signed for a seat.

pub mod accept;
pub mod layout;
pub mod reports;
pub mod succession;

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use towline_proto::id::{ClusterName, Role};

pub use layout::{Generation, Layout};

use crate::authority::{Authority, AuthorityError, AuthoritySpec};
use crate::inspect::Usage;
use crate::key::{PrivateKey, PublicKey};
use crate::mint;
use crate::pem;
use crate::role::BACKDATE;

/// A place that an authority fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Seat {
    Root,
    Agents,
    Servers,
}

/// A word that names no seat.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("use {expected}")]
pub struct UnknownSeat {
    expected: &'static str,
}

impl Seat {
    /// Every seat, the highest first.
    pub const ALL: [Seat; 3] = [Seat::Root, Seat::Agents, Seat::Servers];
    /// Those that sign leaves, and that daemons anchor on.
    pub const ISSUERS: [Seat; 2] = [Seat::Agents, Seat::Servers];

    /// The word in flags and file names.
    pub const fn as_str(self) -> &'static str {
        match self {
            Seat::Root => "root",
            Seat::Agents => "agents",
            Seat::Servers => "servers",
        }
    }

    /// The issuer of this role. Agents have one of their own, so that what signs for nodes cannot
    /// make a server.
    pub const fn issuer_of(role: Role) -> Self {
        match role {
            Role::Agent => Seat::Agents,
            Role::Server | Role::Client | Role::Operator => Seat::Servers,
        }
    }

    /// What leaves below it may be for; none: anything.
    pub const fn usages(self) -> &'static [Usage] {
        match self {
            Seat::Root => &[],
            Seat::Agents => &[Usage::ClientAuth],
            Seat::Servers => &[Usage::ServerAuth, Usage::ClientAuth],
        }
    }

    /// Authorities that may stand below.
    pub const fn path_length(self) -> u32 {
        match self {
            Seat::Root => 1,
            Seat::Agents | Seat::Servers => 0,
        }
    }

    /// What an authority of this seat says.
    pub fn spec(self, organisation: &str, now: SystemTime, days: u64) -> AuthoritySpec {
        let life = Duration::from_secs(days.saturating_mul(86_400));
        AuthoritySpec {
            purpose: format!("towline {self}"),
            organisation: organisation.to_owned(),
            not_before: now.checked_sub(BACKDATE).unwrap_or(now),
            not_after: now.checked_add(life).unwrap_or(now),
            path_length: Some(self.path_length()),
            usages: self.usages().to_vec(),
        }
    }

    /// A signing request for this seat, as PEM, for an authority that is held elsewhere. It asks
    /// for what the seat needs; an authority that looks for itself sets the same.
    pub fn request(
        self,
        cluster: &ClusterName,
        key: &PrivateKey,
    ) -> Result<String, AuthorityError> {
        let spec = self.spec(cluster.as_str(), SystemTime::UNIX_EPOCH, 0);
        let public_key = key.public();
        let der = mint::request(
            &spec.subject(&public_key),
            key,
            &mint::authority_extensions(spec.path_length, &spec.usages),
        )?;
        Ok(pem::write_request(&der))
    }
}

impl Authority {
    /// Whether such an authority may stand below this one.
    pub fn may_sign_below(&self, spec: &AuthoritySpec) -> Result<(), AuthorityError> {
        let own = self.certificate();
        if own.path_length == Some(0) {
            return Err(AuthorityError::PathLength {
                subject: own.subject.clone(),
            });
        }
        if spec.not_after > own.not_after {
            return Err(AuthorityError::Outlives {
                subject: own.subject.clone(),
                not_after: own.not_after,
            });
        }
        Ok(())
    }

    /// The certificate of an authority below this one, whose key is held elsewhere.
    pub fn certify_below(
        &self,
        spec: &AuthoritySpec,
        public_key: &PublicKey,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        self.may_sign_below(spec)?;
        let subject = spec.subject(public_key);
        Ok(mint::certificate(
            &self.signer(),
            spec.body(&subject, public_key),
        )?)
    }
}

impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Seat {
    type Err = UnknownSeat;
    fn from_str(text: &str) -> Result<Self, UnknownSeat> {
        let known = Seat::ALL.into_iter().find(|seat| seat.as_str() == text);
        known.ok_or(UnknownSeat {
            expected: "root, agents or servers",
        })
    }
}
