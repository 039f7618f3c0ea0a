//! One certificate beside what it should be. Pure.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::error::X509Error;
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::present::Certified;
use super::reason::Reason;
use super::wanted::{Subject, Wanted, WantedLeaf};
use crate::inspect::{Certificate, Usage};
use crate::key::KeyKind;
use crate::mint;
use crate::role::BACKDATE;

/// Who should have signed it.
#[derive(Clone, Copy)]
pub(super) enum Issuer<'a> {
    /// An authority that is there.
    There(&'a Certificate),
    /// One that is made in this run.
    New,
}

/// Why it is not what it should be; empty when it is.
pub(super) fn reasons(
    wanted: &Wanted,
    leaf: &WantedLeaf,
    (certificate, der): &Certified,
    issuer: Issuer<'_>,
    now: SystemTime,
) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let issued = match issuer {
        Issuer::There(authority) => is_signed_by(der, certificate, authority),
        Issuer::New => false,
    };
    if !issued {
        reasons.push(Reason::IssuerChanged);
    }
    says(&leaf.subject, certificate, &mut reasons);
    age(wanted, leaf, certificate, now, &mut reasons);
    reasons
}

/// Whether the key is of the kind that is asked for.
pub(super) fn key_reason(kind: KeyKind, certificate: &Certificate) -> Option<Reason> {
    (certificate.key != kind.describe()).then(|| Reason::KeyKind {
        from: certificate.key.clone(),
        to: kind.describe().to_owned(),
    })
}

/// Whether nothing is wrong but that it gets old.
pub(super) fn only_age(reasons: &[Reason]) -> bool {
    reasons
        .iter()
        .all(|reason| matches!(reason, Reason::Due { .. }))
}

/// Whether a new one would live longer than the one that is there.
pub(super) fn gains(
    leaf: &WantedLeaf,
    certificate: &Certificate,
    issuer: Issuer<'_>,
    now: SystemTime,
) -> bool {
    let end = now.checked_add(leaf.life).unwrap_or(now);
    let end = match issuer {
        Issuer::There(authority) => end.min(authority.not_after),
        Issuer::New => end,
    };
    end > certificate.not_after
}

/// Whether the authority ends before a new certificate would.
pub(super) fn is_cut_short(leaf: &WantedLeaf, authority: &Certificate, now: SystemTime) -> bool {
    now.checked_add(leaf.life)
        .is_none_or(|end| end > authority.not_after)
}

fn says(wanted: &Subject, certificate: &Certificate, reasons: &mut Vec<Reason>) {
    let name = mint::name(wanted.organisation, &wanted.common_name);
    if certificate.subject_der != name {
        let from = &certificate.subject;
        let to = match wanted.organisation {
            "" => format!("CN={}", wanted.common_name),
            group => format!("O={group}, CN={}", wanted.common_name),
        };
        // The same words in another encoding are the same subject to everybody who reads them.
        if !same_words(wanted, certificate) {
            reasons.push(Reason::Subject {
                from: from.clone(),
                to,
            });
        }
    }
    let set = |list: &[String]| list.iter().cloned().collect::<BTreeSet<_>>();
    let (want, have) = (set(&wanted.dns), set(&certificate.dns_sans));
    reasons.extend(want.difference(&have).cloned().map(Reason::NameAdded));
    reasons.extend(have.difference(&want).cloned().map(Reason::NameRemoved));
    let want: BTreeSet<_> = wanted.ips.iter().copied().collect();
    let have: BTreeSet<_> = certificate.ip_sans.iter().copied().collect();
    reasons.extend(want.difference(&have).copied().map(Reason::AddressAdded));
    reasons.extend(have.difference(&want).copied().map(Reason::AddressRemoved));
    if wanted.uris != certificate.uris || certificate.other_sans > 0 {
        reasons.push(Reason::IdentityChanged);
    }
    let words = |list: &[Usage]| list.iter().map(Usage::to_string).collect::<BTreeSet<_>>();
    let (to, mut from) = (words(&wanted.usages), words(&certificate.usages));
    if !certificate.signs_handshakes {
        from.insert("no digitalSignature".to_owned());
    }
    if to != from {
        let text = |words: BTreeSet<String>| match words.is_empty() {
            true => "none".to_owned(),
            false => words.into_iter().rev().collect::<Vec<_>>().join(", "),
        };
        reasons.push(Reason::Usages {
            from: text(from),
            to: text(to),
        });
    }
}

fn same_words(wanted: &Subject, certificate: &Certificate) -> bool {
    let names = certificate.common_names.as_deref();
    let groups = certificate.organisations.as_deref();
    let group = match (groups, wanted.organisation) {
        (Some([]), "") => true,
        (Some([one]), group) => one == group,
        _ => false,
    };
    group && matches!(names, Some([one]) if *one == wanted.common_name)
}

fn age(
    wanted: &Wanted,
    leaf: &WantedLeaf,
    certificate: &Certificate,
    now: SystemTime,
    reasons: &mut Vec<Reason>,
) {
    let (not_before, not_after) = (certificate.not_before, certificate.not_after);
    let life = not_after.duration_since(not_before).unwrap_or_default();
    let ahead = wanted.renew_before.unwrap_or(life / 3);
    let due = not_after.checked_sub(ahead).unwrap_or(not_before);
    if now < not_before {
        reasons.push(Reason::NotYetValid { not_before });
    } else if !certificate.is_current(now) {
        reasons.push(Reason::Expired { not_after });
    } else if now >= due {
        reasons.push(Reason::Due { not_after });
    }
    // Dates in certificates are whole seconds.
    if life > leaf.life + BACKDATE + Duration::from_secs(1) {
        let days = |life: Duration| life.as_secs() / 86_400;
        reasons.push(Reason::LongLife {
            days: days(life),
            most: days(leaf.life),
        });
    }
}

/// Whether the authority's key signed it. What cannot be computed is judged by name and key
/// identifier, which the authority's next certificate would have as well.
fn is_signed_by(der: &CertificateDer<'_>, leaf: &Certificate, authority: &Certificate) -> bool {
    if leaf.issuer_der != authority.subject_der {
        return false;
    }
    let Ok((_, read)) = X509Certificate::from_der(der.as_ref()) else {
        return false;
    };
    let Ok((_, key)) = SubjectPublicKeyInfo::from_der(&authority.public_key_der) else {
        return false;
    };
    matches!(
        read.verify_signature(Some(&key)),
        Ok(()) | Err(X509Error::SignatureUnsupportedAlgorithm)
    )
}
