//! Fuzz bodies: one plain function for each parser that reads what a stranger or a slip of the
//! hand wrote. Each takes any bytes, must return, and checks what must hold of a success.

use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};

use crate::anchors::Anchors;
use crate::date;
use crate::identity::Identity;
use crate::inspect::{Certificate, Leaf};
use crate::join::{JoinFile, JoinToken};
use crate::kubelet::{Expected, KubeletTrust, RevocationLists};
use crate::pem;
use crate::request::Request;
use crate::revoke::DenyList;
use crate::serial::Serial;
use crate::verify::PeerVerifier;

/// Certificates, keys and requests in PEM.
pub fn pem(bytes: &[u8]) {
    if let Ok(chain) = pem::certificates(bytes) {
        let again = pem::certificates(pem::write_certificates(&chain).as_bytes());
        assert_eq!(again.as_ref(), Ok(&chain), "the writer's text reads back");
        let _ = Anchors::new(&chain);
    }
    let _ = pem::private_key(bytes);
    let _ = Request::parse(bytes);
}

/// One certificate in DER; text from it must be printable.
pub fn certificate(bytes: &[u8]) {
    if let Ok(certificate) = Certificate::parse(bytes) {
        let texts = [&certificate.subject, &certificate.issuer, &certificate.key];
        let names = certificate.uris.iter().chain(&certificate.dns_sans);
        for text in texts.into_iter().chain(names) {
            assert!(!text.chars().any(char::is_control), "{text:?}");
        }
        let _ = date::text(certificate.not_after);
    }
    if let Ok(leaf) = Leaf::parse(&CertificateDer::from(bytes)) {
        assert_eq!(
            leaf.identity.to_string().parse().as_ref(),
            Ok(&leaf.identity)
        );
    }
}

/// A certificate that a peer presents: bytes that no authority signed never verify.
pub fn presented(verifier: &PeerVerifier, bytes: &[u8], now: SystemTime) {
    let der = CertificateDer::from(bytes);
    let _ = verifier.verify(std::slice::from_ref(&der), now);
    let _ = verifier.verify(&[der.clone(), der], now);
}

/// What a kubelet presents: whatever it is, what is said of it is printable and bounded.
pub fn kubelet(trust: &KubeletTrust, expected: &Expected, bytes: &[u8], now: SystemTime) {
    let der = CertificateDer::from(bytes);
    for chain in [&[der.clone()][..], &[der.clone(), der]] {
        let verdict = trust.check(chain, expected, now);
        let mut said = Vec::new();
        if let Some(shown) = &verdict.presented {
            said.extend([shown.subject.clone(), shown.issuer.clone()]);
        }
        if let Some(cause) = verdict.cause() {
            said.push(cause.to_string());
        }
        for text in said {
            assert!(!text.chars().any(char::is_control), "{text:?}");
            assert!(text.len() < 16 * 1024, "{} bytes", text.len());
        }
    }
}

/// Revocation lists, in DER and in PEM.
pub fn revocation_list(bytes: &[u8]) {
    let _ = RevocationLists::new(&[CertificateRevocationListDer::from(bytes)]);
    if let Ok(lists) = pem::revocation_lists(bytes) {
        let _ = RevocationLists::new(&lists);
    }
}

/// An identity: text and value are inverses.
pub fn identity(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(identity) = text.parse::<Identity>() {
        assert_eq!(identity.to_string(), text);
    }
    if let Ok(serial) = text.parse::<Serial>() {
        assert_eq!(serial.to_string().parse().as_ref(), Ok(&serial));
    }
}

/// A join token, and a file of them: what reads is written the same way again.
pub fn join(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(token) = JoinToken::parse(text)
    {
        let written = token.to_text();
        let again = std::str::from_utf8(written.expose()).map(JoinToken::parse);
        assert!(matches!(again, Ok(Ok(again)) if again.id == token.id));
    }
    if let Ok(file) = JoinFile::parse(bytes) {
        let text: String = file
            .entries()
            .iter()
            .map(|one| format!("{one}\n"))
            .collect();
        let again = JoinFile::parse(text.as_bytes());
        assert!(matches!(again, Ok(again) if again.entries() == file.entries()));
    }
}

/// A deny list.
pub fn deny_list(bytes: &[u8]) {
    let _ = DenyList::parse(bytes);
}
