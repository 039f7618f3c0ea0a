//! Requests for authorities that others hold: all that the certificate should say, so that whoever
//! signs can see it and copy it.
//!
//! The part that is signed is the same for the same key and the same wishes: a request that is
//! there is compared with the one that would be made, and left alone when nothing changed.

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::wanted::Subject;
use crate::der::{bit_string, element, positive_integer, sequence};
use crate::key::{PrivateKey, PublicKey};
use crate::mint::{self, LeafSpec, MintError};
use crate::pem;

/// PKCS #9 extensionRequest.
const EXTENSION_REQUEST: &[u8] = &[
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x0e,
];

/// A certificate's content without dates.
pub(super) fn spec(subject: &Subject) -> LeafSpec {
    LeafSpec {
        common_name: subject.common_name.clone(),
        uris: subject.uris.clone(),
        dns: subject.dns.clone(),
        ips: subject.ips.clone(),
        usages: subject.usages.clone(),
        not_before: std::time::SystemTime::UNIX_EPOCH,
        not_after: std::time::SystemTime::UNIX_EPOCH,
    }
}

/// The part that is signed (RFC 2986 section 4.1).
fn info(subject: &Subject, key: &PublicKey) -> Vec<u8> {
    let extensions = mint::leaf_extensions(&spec(subject));
    let extensions: Vec<&[u8]> = extensions.iter().map(Vec::as_slice).collect();
    let wishes = element(0x31, &sequence(&extensions));
    let attribute = sequence(&[EXTENSION_REQUEST, &wishes]);
    sequence(&[
        &positive_integer(&[]),
        &mint::name(subject.organisation, &subject.common_name),
        key.der(),
        &element(0xa0, &attribute),
    ])
}

/// A request as PEM.
pub(super) fn make(subject: &Subject, key: &PrivateKey) -> Result<String, MintError> {
    let info = info(subject, &key.public());
    let algorithm = key.signature_algorithm()?;
    let signature = key.sign(&info)?;
    Ok(pem::write_request(&sequence(&[
        &info,
        algorithm,
        &bit_string(0, &signature),
    ])))
}

/// Whether the request that is there is the one that would be made.
pub(super) fn is_current(text: &[u8], subject: &Subject, key: &PublicKey) -> bool {
    let Ok(der) = pem::request(text) else {
        return false;
    };
    X509CertificationRequest::from_der(&der).is_ok_and(|(rest, request)| {
        rest.is_empty() && request.certification_request_info.raw == info(subject, key)
    })
}
