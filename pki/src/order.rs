//! Order: certificates of one file or several, as a chain. Leaf first, then its issuer, then the
//! issuer's; a self-signed one at the end is told apart, because peers have it or do not trust it.
//!
//! The order of the file does not matter, signatures do: a certificate's issuer is the one whose
//! key signed it, not one that has the same name.

use rustls_pki_types::CertificateDer;
use towline_proto::limits;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::inspect::{Certificate, CertificateError};
use crate::key::PublicKey;

/// A chain in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Leaf first, up to the last one that is not self-signed.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The self-signed one that it ends in, when it was there.
    pub root: Option<CertificateDer<'static>>,
    /// Subjects of what was there and is no part of the chain.
    pub apart: Vec<String>,
    /// Whether they had another order before, or stood there twice.
    pub moved: bool,
}

/// Why certificates make no chain.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    #[error("{count} certificates are more than the {max} that are put in order")]
    Many { count: usize, max: usize },
    #[error("certificate {number}: {source}")]
    Certificate {
        number: usize,
        source: CertificateError,
    },
    #[error("holds the certificates of authorities only; name the leaf's file first")]
    NoLeaf,
    #[error(
        "holds {count} leaves ({subjects}): a chain has one; give each its file, or name its key"
    )]
    ManyLeaves { count: usize, subjects: String },
    #[error("the private key and the certificate do not belong together ({subjects})")]
    NotOfKey { subjects: String },
}

struct One<'a> {
    der: &'a CertificateDer<'static>,
    read: Certificate,
}

/// Puts certificates in order. With `key`, the leaf is the one of that key.
pub fn order(
    certificates: &[CertificateDer<'static>],
    key: Option<&PublicKey>,
) -> Result<Chain, OrderError> {
    if certificates.len() > limits::ANCHORS {
        return Err(OrderError::Many {
            count: certificates.len(),
            max: limits::ANCHORS,
        });
    }
    let mut all: Vec<One<'_>> = Vec::with_capacity(certificates.len());
    for (index, der) in certificates.iter().enumerate() {
        if all.iter().any(|one| one.der == der) {
            continue;
        }
        let read = Certificate::parse(der.as_ref()).map_err(|source| OrderError::Certificate {
            number: index + 1,
            source,
        })?;
        all.push(One { der, read });
    }
    let mut rest: Vec<&One<'_>> = all.iter().collect();
    let mut current = leaf(&all, key)?;
    let mut certificates_in_order = Vec::new();
    let mut root = None;
    loop {
        rest.retain(|one| !std::ptr::eq(*one, current));
        // A leaf that signed itself is all there is of its chain.
        if signed(current, current) && !certificates_in_order.is_empty() {
            root = Some(current.der.clone());
            break;
        }
        certificates_in_order.push(current.der.clone());
        let issuer = rest.iter().find(|one| signed(one, current));
        match issuer.filter(|_| !signed(current, current)) {
            Some(issuer) => current = issuer,
            None => break,
        }
    }
    let apart: Vec<String> = rest.iter().map(|one| one.read.subject.clone()).collect();
    let after: Vec<_> = certificates_in_order.iter().chain(&root).collect();
    let stayed = certificates.iter().filter(|der| after.contains(der));
    Ok(Chain {
        moved: !stayed.eq(after.iter().copied()),
        certificates: certificates_in_order,
        root,
        apart,
    })
}

/// The one to begin with.
fn leaf<'a>(all: &'a [One<'a>], key: Option<&PublicKey>) -> Result<&'a One<'a>, OrderError> {
    if let Some(key) = key {
        let mut of_key = all
            .iter()
            .filter(|one| one.read.public_key_der == key.der());
        return of_key.next().ok_or_else(|| OrderError::NotOfKey {
            subjects: subjects(all.iter()),
        });
    }
    let leaves: Vec<&One<'_>> = all.iter().filter(|one| !one.read.is_authority).collect();
    match leaves.as_slice() {
        [one] => Ok(one),
        [] => Err(OrderError::NoLeaf),
        more => Err(OrderError::ManyLeaves {
            count: more.len(),
            subjects: subjects(more.iter().copied()),
        }),
    }
}

fn subjects<'a>(all: impl Iterator<Item = &'a One<'a>>) -> String {
    let names: Vec<String> = all.take(4).map(|one| one.read.subject.clone()).collect();
    names.join("; ")
}

/// Whether this authority's key signed that certificate.
fn signed(issuer: &One<'_>, one: &One<'_>) -> bool {
    if issuer.read.subject_der != one.read.issuer_der {
        return false;
    }
    let parse = |one: &One<'_>| -> Option<bool> {
        let (_, below) = X509Certificate::from_der(one.der.as_ref()).ok()?;
        let (_, above) = X509Certificate::from_der(issuer.der.as_ref()).ok()?;
        Some(below.verify_signature(Some(above.public_key())).is_ok())
    };
    parse(one).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, AuthoritySpec, KeyKind, LeafSpec, PrivateKey, Usage};
    use std::time::{Duration, SystemTime};

    fn spec(purpose: &str) -> AuthoritySpec {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        AuthoritySpec {
            purpose: purpose.into(),
            organisation: String::new(),
            not_before: now,
            not_after: now + Duration::from_secs(86_400),
            path_length: None,
            usages: Vec::new(),
        }
    }

    fn key() -> PrivateKey {
        PrivateKey::generate(KeyKind::EcdsaP256).unwrap()
    }

    #[test]
    fn any_order_becomes_the_order_and_is_told() {
        let root = Authority::create(&spec("root"), key()).unwrap();
        let middle = root.create_below(&spec("middle"), key()).unwrap();
        let other = Authority::create(&spec("root"), key()).unwrap();
        let own = key();
        let leaf = LeafSpec {
            common_name: "leaf".into(),
            uris: Vec::new(),
            dns: vec!["a".into()],
            ips: Vec::new(),
            usages: vec![Usage::ServerAuth],
            not_before: spec("").not_before,
            not_after: spec("").not_after,
        };
        let leaf = middle.issue_raw(&leaf, &own.public()).unwrap();
        let (m, r, o) = (
            middle.der().clone(),
            root.der().clone(),
            other.der().clone(),
        );
        let good = vec![leaf.clone(), m.clone()];
        let chain = order(&[leaf.clone(), m.clone(), r.clone()], None).unwrap();
        assert_eq!(
            (chain.certificates, chain.root),
            (good.clone(), Some(r.clone()))
        );
        assert!(!chain.moved);
        let mixed = [r.clone(), o.clone(), m.clone(), leaf.clone(), m.clone()];
        let chain = order(&mixed, Some(&own.public())).unwrap();
        assert_eq!((chain.certificates, chain.root), (good, Some(r.clone())));
        assert!(chain.moved && chain.apart.len() == 1);
        assert!(matches!(
            order(&[m.clone(), r], None),
            Err(OrderError::NoLeaf)
        ));
        assert!(matches!(
            order(&[leaf, m], Some(&key().public())),
            Err(OrderError::NotOfKey { .. })
        ));
    }
}
