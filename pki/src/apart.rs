//! Roots per role: whoever is believed to sign agents must not be believed to sign servers and front
//! ends, and the other way round.
//!
//! URI names are not confined by name constraints, so what an authority may sign is decided by whose
//! roots it is in. An issuer of agents is online where nodes enrol; one root above it and the issuer of
//! servers, given as the root of a role, would let it make a server. What can be seen from one daemon's
//! files is looked for here: an authority that is above our own certificate, one that is in two sets,
//! and one that signed an authority of another set. A root that is above nothing else in the files is
//! told from an issuer only where its certificate says that authorities come below it: that is a
//! warning.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use towline_proto::id::Role;
use webpki::EndEntityCert;

use crate::anchors::{Anchor, Anchors};
use crate::credentials::Credentials;
use crate::hierarchy::accept::is_signed_by;
use crate::inspect::{Certificate, Usage};
use crate::peer_error::unix;
use crate::tls;
use crate::verify::key_usage;

/// What a daemon does when roles share an authority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SharedRoots {
    /// It refuses the files.
    #[default]
    Refused,
    /// It takes them, and says so: the compatibility profile, whose clusters have one authority.
    Taken,
}

/// Two roles that one authority could sign.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotApart {
    /// It signed us, who are of another role.
    #[error(
        "{path}: {subject} is above our own certificate, which is one of {own}s, and is given as an \
         authority of {role}s: whoever signs {own}s could sign {role}s. {FIX}",
        path = path.display()
    )]
    AboveUs {
        /// The file of the set.
        path: PathBuf,
        /// Whose authority it is said to be.
        role: Role,
        /// Which authority.
        subject: String,
        /// Our own role.
        own: Role,
    },
    /// It is in two sets.
    #[error(
        "{path} and {other_path} both hold {subject}: it could sign {role}s and {other}s. {FIX}",
        path = path.display(), other_path = other_path.display()
    )]
    InBoth {
        /// One file.
        path: PathBuf,
        /// Whose authorities.
        role: Role,
        /// The other.
        other_path: PathBuf,
        /// Whose authorities.
        other: Role,
        /// Which authority.
        subject: String,
    },
    /// It is above another set.
    #[error(
        "{path}: {subject}, given as an authority of {role}s, signed {below} in {other_path}, an \
         authority of {other}s, which could then sign {role}s. {FIX}",
        path = path.display(), other_path = other_path.display()
    )]
    Above {
        /// The file of the upper one.
        path: PathBuf,
        /// Whose authority it is said to be.
        role: Role,
        /// Which authority.
        subject: String,
        /// The file of the lower one.
        other_path: PathBuf,
        /// Whose authority that is.
        other: Role,
        /// Which authority that is.
        below: String,
    },
}

/// Authorities that are made to have others below them, which could sign the role, too.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{path}: {subject}, given as an authority of {role}s, is a root by its own certificate (it may \
     have authorities below it, each of which could then sign {role}s): give the issuer itself. {FIX}",
    path = path.display()
)]
pub struct RootGiven {
    /// The file.
    pub path: PathBuf,
    /// Whose authority it is said to be.
    pub role: Role,
    /// Which authority.
    pub subject: String,
}

const FIX: &str = "Roots are per role: give the issuer of agents for agents (trust/agents.pem of \
                   `towline-pki init`) and the issuer of servers for everybody else \
                   (trust/servers.pem), never both in one file and never the root above them";

/// The authorities of one role, and the file that they are from.
pub(crate) type Set<'a> = (Role, &'a Path, &'a Anchors);

/// Servers, front ends and operators have one issuer, agents another.
fn may_share(one: Role, other: Role) -> bool {
    (one == Role::Agent) == (other == Role::Agent)
}

/// The first fault that can be seen, if there is one.
pub(crate) fn find(own: &Credentials, sets: &[Set<'_>], now: SystemTime) -> Option<NotApart> {
    let ours = own.identity().role;
    for (role, path, anchors) in sets {
        if !may_share(ours, *role)
            && let Some(subject) = above_us(own, anchors, now)
        {
            return Some(NotApart::AboveUs {
                path: path.to_path_buf(),
                role: *role,
                subject,
                own: ours,
            });
        }
    }
    let pairs = sets
        .iter()
        .flat_map(|one| sets.iter().map(move |other| (one, other)));
    pairs
        .filter(|(one, other)| !may_share(one.0, other.0))
        .find_map(|(one, other)| above(one, other))
}

/// Every authority that is a root by its own certificate.
pub(crate) fn roots(sets: &[Set<'_>]) -> Vec<RootGiven> {
    let of = |(role, path, anchors): &Set<'_>| {
        let certificates = anchors.certificates();
        let roots = certificates.filter(|one| one.path_length.is_some_and(|length| length > 0));
        let given = |one: &Certificate| RootGiven {
            path: path.to_path_buf(),
            role: *role,
            subject: one.subject.clone(),
        };
        roots.map(given).collect::<Vec<_>>()
    };
    sets.iter().flat_map(of).collect()
}

/// An authority of the set that our own chain leads to, whatever the role is that it is for.
fn above_us(own: &Credentials, anchors: &Anchors, now: SystemTime) -> Option<String> {
    let (leaf, above) = own.chain().split_first()?;
    let leaf = EndEntityCert::try_from(leaf).ok()?;
    let mut trust = anchors.at(now, true);
    trust.extend(anchors.at(now, false));
    let path = leaf.verify_for_usage(
        tls::provider().signature_verification_algorithms.all,
        &trust,
        above,
        unix(now),
        key_usage(&Usage::of(own.identity().role)),
        None,
        None,
    );
    let path = path.ok()?;
    let anchor = anchors.of(path.anchor()).next()?;
    Some(anchor.certificate.subject.clone())
}

fn above(one: &Set<'_>, other: &Set<'_>) -> Option<NotApart> {
    let (role, path, anchors) = one;
    let (of, other_path, others) = other;
    let same_key = |upper: &Anchor, lower: &Anchor| {
        upper.trust.subject_public_key_info == lower.trust.subject_public_key_info
    };
    for upper in anchors.all() {
        for lower in others.all() {
            let subject = upper.certificate.subject.clone();
            if same_key(upper, lower) {
                return Some(NotApart::InBoth {
                    path: path.to_path_buf(),
                    role: *role,
                    other_path: other_path.to_path_buf(),
                    other: *of,
                    subject,
                });
            }
            if is_signed_by(&lower.der, &upper.der) {
                return Some(NotApart::Above {
                    path: path.to_path_buf(),
                    role: *role,
                    subject,
                    other_path: other_path.to_path_buf(),
                    other: *of,
                    below: lower.certificate.subject.clone(),
                });
            }
        }
    }
    None
}
