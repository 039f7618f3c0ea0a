//! Taking in a certificate that somebody else signed: nothing is believed of it.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::Seat;
use crate::date;
use crate::inspect::{Certificate, CertificateError, Usage};
use crate::key::PublicKey;

/// Why a certificate does not fit a seat.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("it is of another key than the one that the request was made with")]
    Key,
    #[error(
        "it is not an authority: it needs the basic constraint CA:TRUE and the key usage \
         keyCertSign"
    )]
    NotAuthority,
    #[error(
        "{found}: an issuer of Towline signs leaves only; it needs the path length {needed} \
         (basicConstraints=critical,CA:TRUE,pathlen:{needed})"
    )]
    PathLength { found: String, needed: u32 },
    #[error(
        "it is limited to {found}: the issuer of {seat} signs certificates for {needed} \
         (extendedKeyUsage={needed})"
    )]
    Usage {
        seat: Seat,
        found: String,
        needed: String,
    },
    #[error(
        "it is not limited to any usage: the issuer of {seat} must be limited to {needed}, so that \
         whoever holds it cannot make a server (extendedKeyUsage={needed}); with --any-usage it is \
         taken all the same, and only the trust files keep the roles apart"
    )]
    AnyUsage { seat: Seat, needed: String },
    #[error(
        "its name is {subject:?}, which is {of} too: two authorities of one name cannot be told \
         apart; have it signed with another name"
    )]
    SameName { subject: String, of: String },
    #[error("it has no name: an authority must have a subject")]
    NoName,
    #[error("it carries an identity or another name of a peer; an authority must not")]
    Names,
    #[error("it is not valid before {}; compare the clocks", date::text(*not_before))]
    NotYetValid { not_before: SystemTime },
    #[error("it expired at {}", date::text(*not_after))]
    Expired { not_after: SystemTime },
    #[error("it is not signed by {issuer}")]
    Signature { issuer: String },
}

/// What a certificate of a seat is held against.
pub struct Expected<'a> {
    pub seat: Seat,
    /// Of the key that waits for it.
    pub public_key: &'a PublicKey,
    /// Names that are taken, and by what.
    pub taken: &'a [(Vec<u8>, String)],
    /// The root, when its certificate is at hand.
    pub root: Option<&'a CertificateDer<'a>>,
    /// Whether a missing limit of usages is let pass.
    pub any_usage: bool,
}

impl Expected<'_> {
    /// Checks, in the order in which a person would want to hear of it.
    pub fn check(&self, der: &CertificateDer<'_>, now: SystemTime) -> Result<Certificate, Unfit> {
        let found = Certificate::parse(der.as_ref())?;
        if found.public_key_der != self.public_key.der() {
            return Err(Unfit::Key);
        }
        if !found.is_authority {
            return Err(Unfit::NotAuthority);
        }
        self.check_path_length(&found)?;
        self.check_usages(&found)?;
        // An empty SEQUENCE is two bytes.
        if found.subject_der.len() <= 2 {
            return Err(Unfit::NoName);
        }
        if let Some((_, of)) = self
            .taken
            .iter()
            .find(|(name, _)| *name == found.subject_der)
        {
            return Err(Unfit::SameName {
                subject: found.subject.clone(),
                of: of.clone(),
            });
        }
        if !found.uris.is_empty() {
            return Err(Unfit::Names);
        }
        if date::seconds(now) < date::seconds(found.not_before) {
            return Err(Unfit::NotYetValid {
                not_before: found.not_before,
            });
        }
        if !found.is_current(now) {
            return Err(Unfit::Expired {
                not_after: found.not_after,
            });
        }
        if let Some(root) = self.root
            && !is_signed_by(der, root)
        {
            let issuer = Certificate::parse(root.as_ref()).map_or_else(
                |_| "the root that is there".to_owned(),
                |root| format!("the root that is there ({})", root.subject),
            );
            return Err(Unfit::Signature { issuer });
        }
        Ok(found)
    }

    fn check_path_length(&self, found: &Certificate) -> Result<(), Unfit> {
        let needed = self.seat.path_length();
        let fits = match self.seat {
            Seat::Root => found.path_length.is_none_or(|length| length >= needed),
            Seat::Agents | Seat::Servers => found.path_length == Some(needed),
        };
        if fits {
            return Ok(());
        }
        Err(Unfit::PathLength {
            found: match found.path_length {
                Some(length) => format!("its path length is {length}"),
                None => "its path length is not limited".to_owned(),
            },
            needed,
        })
    }

    fn check_usages(&self, found: &Certificate) -> Result<(), Unfit> {
        let (seat, needed) = (self.seat, self.seat.usages());
        let words = |usages: &[Usage]| {
            let words: Vec<String> = usages.iter().map(Usage::to_string).collect();
            words.join(",")
        };
        if needed.is_empty() {
            return Ok(());
        }
        if found.usages.is_empty() {
            // Without the limit the issuer of servers is no more than it has to be.
            return match seat {
                Seat::Agents if !self.any_usage => Err(Unfit::AnyUsage {
                    seat,
                    needed: words(needed),
                }),
                _ => Ok(()),
            };
        }
        let all = needed.iter().all(|usage| found.usages.contains(usage));
        let server_too = seat == Seat::Agents && found.usages.contains(&Usage::ServerAuth);
        if all && !server_too {
            return Ok(());
        }
        Err(Unfit::Usage {
            seat,
            found: words(&found.usages),
            needed: words(needed),
        })
    }
}

/// Whether the signature is one of this authority's key. Dates and limits are not looked at.
pub fn is_signed_by(der: &CertificateDer<'_>, authority: &CertificateDer<'_>) -> bool {
    let (Ok(([], leaf)), Ok(([], above))) = (
        X509Certificate::from_der(der.as_ref()),
        X509Certificate::from_der(authority.as_ref()),
    ) else {
        return false;
    };
    leaf.issuer().as_raw() == above.subject().as_raw()
        && leaf.verify_signature(Some(above.public_key())).is_ok()
}
