//! The rules for a kubelet's serving certificate; the first that fails decides:
//!
//! 1. it is not too much to look at, and it can be read;
//! 2. the chain leads to `--kubelet-certificate-authority`, every part of it valid now (give or
//!    take [`limits::KUBELET_CLOCK_SKEW`]), allowed by name constraints, not revoked;
//! 3. it is for TLS servers;
//! 4. its names cover the dialled host: an address as an IP SAN, a name as a DNS SAN;
//! 5. it is of the node: a common name `system:node:<name>` decides, a DNS SAN only where there
//!    is no such common name.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use towline_proto::address;
use towline_proto::id::Name;
use towline_proto::limits;
use towline_proto::target::Host;
use webpki::{EndEntityCert, KeyUsage, RevocationOptionsBuilder, VerifiedPath};

use super::{Cause, Expected, KubeletTrust, Presented, Verdict};
use crate::inspect::{Certificate, Usage};
use crate::peer_error::unix;
use crate::serial::Fingerprint;
use crate::verify::{check_anchor, check_usage};

/// What a node's common name begins with.
const NODE_PREFIX: &str = "system:node:";

impl KubeletTrust {
    /// Checks what was presented, leaf first.
    pub fn check(
        &self,
        chain: &[CertificateDer<'_>],
        expected: &Expected,
        now: SystemTime,
    ) -> Verdict {
        match chain.split_first() {
            Some((leaf, above)) => self.check_parts(leaf, above, expected, now),
            None => Verdict::failed(Cause::NoCertificate),
        }
    }

    pub(super) fn check_parts(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        expected: &Expected,
        now: SystemTime,
    ) -> Verdict {
        let certificate = match bound(leaf, above).and_then(|()| read(leaf)) {
            Ok(certificate) => certificate,
            Err(cause) => return Verdict::failed(cause),
        };
        let result = self
            .chain(leaf, above, &certificate, now)
            .and_then(|valid_until| {
                check_usage(&certificate, &Usage::ServerAuth).map_err(|_| Cause::WrongUsage)?;
                covers(&certificate, &expected.host)?;
                is_of(&certificate, &expected.node)?;
                Ok(valid_until)
            });
        Verdict {
            presented: Some(Presented::of(&certificate)),
            result,
        }
    }

    /// Rule 2: until when the path is good.
    fn chain(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        certificate: &Certificate,
        now: SystemTime,
    ) -> Result<SystemTime, Cause> {
        let skew = limits::KUBELET_CLOCK_SKEW;
        let failure = match self.path(leaf, above, now, true) {
            Ok(until) => return Ok(until),
            Err(error) => error,
        };
        let shifted = match failure {
            webpki::Error::CertNotValidYet { .. } => now.checked_add(skew),
            webpki::Error::CertExpired { .. } => now.checked_sub(skew),
            _ => None,
        };
        if let Some(shifted) = shifted
            && let Ok(until) = self.path(leaf, above, shifted, true)
        {
            return Ok(until);
        }
        Err(match failure {
            webpki::Error::UnknownIssuer if self.path(leaf, above, now, false).is_ok() => {
                Cause::AuthorityNotValid
            }
            other => Cause::of_chain(other, certificate, above),
        })
    }

    /// A path to an authority that is valid at that time (`current`) or, to tell a better cause,
    /// to one that is not.
    fn path(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        at: SystemTime,
        current: bool,
    ) -> Result<SystemTime, webpki::Error> {
        let anchors = self.anchors.at(at, current);
        let lists = self.crls.webpki();
        let revocation = RevocationOptionsBuilder::new(&lists).ok();
        let end_entity = EndEntityCert::try_from(leaf)?;
        let path = end_entity.verify_for_usage(
            self.provider.signature_verification_algorithms.all,
            &anchors,
            above,
            unix(at),
            KeyUsage::server_auth(),
            revocation.map(|builder| {
                let expiration = self.crl_policy.expiration();
                builder.with_expiration_policy(expiration).build()
            }),
            Some(&|path: &VerifiedPath<'_>| check_anchor(&self.anchors, path, &Usage::ServerAuth)),
        )?;
        let end = |der: &[u8]| Certificate::parse(der).ok().map(|read| read.not_after);
        let between = path
            .intermediate_certificates()
            .filter_map(|certificate| end(certificate.der().as_ref()));
        let anchor = self
            .anchors
            .of(path.anchor())
            .map(|anchor| anchor.certificate.not_after)
            .max();
        let ends = end(leaf.as_ref()).into_iter().chain(between).chain(anchor);
        let first = ends.min().unwrap_or(at);
        Ok(first.checked_add(skew()).unwrap_or(first))
    }
}

const fn skew() -> Duration {
    limits::KUBELET_CLOCK_SKEW
}

impl Presented {
    fn of(certificate: &Certificate) -> Self {
        Self {
            key: Fingerprint::of(&certificate.public_key_der),
            certificate: certificate.fingerprint,
            serial: certificate.serial.clone(),
            subject: certificate.subject.clone(),
            issuer: certificate.issuer.clone(),
            not_after: certificate.not_after,
        }
    }
}

/// Rule 1.
fn bound(leaf: &CertificateDer<'_>, above: &[CertificateDer<'_>]) -> Result<(), Cause> {
    let count = above.len() + 1;
    if count > limits::CHAIN_CERTIFICATES {
        return Err(Cause::LongChain {
            count,
            max: limits::CHAIN_CERTIFICATES,
        });
    }
    let sizes = std::iter::once(leaf).chain(above).map(|der| der.len());
    match sizes.max() {
        Some(len) if len > limits::CERTIFICATE_BYTES => Err(Cause::TooLarge {
            len,
            max: limits::CERTIFICATE_BYTES,
        }),
        _ => Ok(()),
    }
}

fn read(leaf: &CertificateDer<'_>) -> Result<Certificate, Cause> {
    Certificate::parse(leaf.as_ref()).map_err(|error| Cause::BadCertificate {
        detail: error.to_string(),
    })
}

/// Rule 4.
fn covers(certificate: &Certificate, host: &Host) -> Result<(), Cause> {
    match host {
        Host::Ip(ip) => covers_address(certificate, address::canonical(*ip)),
        Host::Name(name) => {
            let covered = certificate
                .dns_sans
                .iter()
                .any(|san| matches_name(san, name.as_str()));
            covered
                .then_some(())
                .ok_or_else(|| Cause::MissingDnsSan { name: name.clone() })
        }
    }
}

fn covers_address(certificate: &Certificate, ip: IpAddr) -> Result<(), Cause> {
    if certificate.ip_sans.contains(&ip) {
        return Ok(());
    }
    let written = |san: &String| {
        let text = san.trim_start_matches('[').trim_end_matches(']');
        text.parse::<IpAddr>().map(address::canonical) == Ok(ip)
    };
    if certificate.dns_sans.iter().any(written) {
        Err(Cause::IpInDnsName { ip })
    } else {
        Err(Cause::MissingIpSan { ip })
    }
}

/// As kube-apiserver compares them: ignoring case, `*` for one whole first label.
fn matches_name(san: &str, name: &str) -> bool {
    let san = san.strip_suffix('.').unwrap_or(san);
    match san.strip_prefix("*.") {
        Some(rest) => name
            .split_once('.')
            .is_some_and(|(first, after)| !first.is_empty() && after.eq_ignore_ascii_case(rest)),
        None => san.eq_ignore_ascii_case(name),
    }
}

/// Rule 5.
fn is_of(certificate: &Certificate, node: &Name) -> Result<(), Cause> {
    let Some(names) = &certificate.common_names else {
        return Err(Cause::BadCertificate {
            detail: "its subject's common name is not readable text".into(),
        });
    };
    let mut nodes = names
        .iter()
        .filter_map(|name| name.strip_prefix(NODE_PREFIX))
        .peekable();
    if nodes.peek().is_some() {
        return match nodes.find(|found| *found != node.as_str()) {
            Some(found) => Err(Cause::OtherNode {
                expected: node.clone(),
                found: found.to_owned(),
            }),
            None => Ok(()),
        };
    }
    let named = |san: &String| san.eq_ignore_ascii_case(node.as_str());
    if certificate.dns_sans.iter().any(named) {
        Ok(())
    } else {
        Err(Cause::NoNodeName {
            expected: node.clone(),
            subject: certificate.subject.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_kube_apiserver_compares_them() {
        for (san, name, covered) in [
            ("n1.example", "n1.example", true),
            ("N1.Example.", "n1.example", true),
            ("*.example", "n1.example", true),
            ("*.example", "a.n1.example", false),
            ("*.example", "example", false),
            ("*", "n1", false),
            ("n*.example", "n1.example", false),
            ("n1", "n1.example", false),
            ("", "n1", false),
        ] {
            assert_eq!(matches_name(san, name), covered, "{san} {name}");
        }
    }
}
