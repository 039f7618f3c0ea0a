//! PKCS#12 (RFC 7292): a key with its chain in one file under a passphrase, for the programs that
//! take nothing else. Written only, never read.
//!
//! Modern algorithms alone: PBES2 with PBKDF2-HMAC-SHA-256 and AES-256-CBC for the key and the
//! certificates ([`crate::encrypted`]), HMAC-SHA-256 over all of it. RC2, triple DES and SHA-1,
//! which are the defaults of older writers, are not offered.

use aws_lc_rs::hmac;
use rustls_pki_types::CertificateDer;
use towline_proto::limits;

use crate::der::{self, element, positive_integer, sequence};
use crate::encrypted::{self, EncryptedKeyError};
use crate::key::sha256;
use crate::secret::Secret;
use crate::tls;

/// Random bytes that make the same passphrase another key of the check sum in each file.
const SALT_BYTES: usize = 16;
/// Block of SHA-256, by which the derivation of RFC 7292 appendix B goes.
const BLOCK_BYTES: usize = 64;

/// A file with a key (PKCS#8) and its chain, leaf first.
pub fn pkcs12(
    pkcs8: &[u8],
    chain: &[CertificateDer<'_>],
    passphrase: &Secret,
) -> Result<Vec<u8>, EncryptedKeyError> {
    // What says that the key is that of the leaf.
    let id = chain.first().map(|leaf| sha256(leaf.as_ref()));
    let id = id.as_ref().map_or(&[][..], <[u8; 32]>::as_slice);
    let own = element(
        0x31,
        &sequence(&[LOCAL_KEY_ID, &element(0x31, &element(0x04, id))]),
    );
    let mut bags = Vec::new();
    for (index, certificate) in chain.iter().enumerate() {
        let bytes = explicit(&element(0x04, certificate.as_ref()));
        let bag = explicit(&sequence(&[X509_CERTIFICATE, &bytes]));
        let attributes: &[u8] = if index == 0 { &own } else { &[] };
        bags.extend(sequence(&[CERTIFICATE_BAG, &bag, attributes]));
    }
    let certificates = sealed(&sequence(&[&bags]), passphrase)?;
    let shrouded = encrypted::encrypt(pkcs8, passphrase)?;
    let key = sequence(&[&sequence(&[KEY_BAG, &explicit(&shrouded), &own])]);
    let contents = sequence(&[&certificates, &data(&key)]);

    let mut salt = [0; SALT_BYTES];
    tls::fill_random(&mut salt).map_err(|_| EncryptedKeyError::Encrypt)?;
    let mac_key = Secret::new(derive(passphrase, &salt).to_vec());
    let mac_key = hmac::Key::new(hmac::HMAC_SHA256, mac_key.expose());
    let sum = hmac::sign(&mac_key, &contents);
    let digest = sequence(&[&sequence(&[SHA256, NULL]), &element(0x04, sum.as_ref())]);
    let rounds = positive_integer(&limits::PKCS12_ROUNDS.to_be_bytes());
    let mac = sequence(&[&digest, &element(0x04, &salt), &rounds]);
    Ok(sequence(&[&[0x02, 0x01, 0x03], &data(&contents), &mac]))
}

/// ContentInfo of bytes as they are.
fn data(bytes: &[u8]) -> Vec<u8> {
    sequence(&[DATA, &explicit(&element(0x04, bytes))])
}

/// ContentInfo of encrypted bytes: the scheme and the content of an encrypted key, in other words.
fn sealed(bytes: &[u8], passphrase: &Secret) -> Result<Vec<u8>, EncryptedKeyError> {
    let made = encrypted::encrypt(bytes, passphrase)?;
    let parts = der::take(0x30, &made).and_then(|(inside, _)| {
        let (scheme, rest) = der::take(0x30, inside)?;
        der::take(0x04, rest).map(|(content, _)| (scheme, content))
    });
    let (scheme, content) = parts.ok_or(EncryptedKeyError::Encrypt)?;
    let info = sequence(&[DATA, &element(0x30, scheme), &element(0x80, content)]);
    let sealed = sequence(&[&[0x02, 0x01, 0x00], &info]);
    Ok(sequence(&[ENCRYPTED_DATA, &explicit(&sealed)]))
}

/// `[0] EXPLICIT`.
fn explicit(inside: &[u8]) -> Vec<u8> {
    element(0xa0, inside)
}

/// The key of the check sum (RFC 7292 appendix B.2, purpose 3). One block of SHA-256 is all of it.
fn derive(passphrase: &Secret, salt: &[u8]) -> [u8; 32] {
    let text = String::from_utf8_lossy(passphrase.expose());
    let units = text.encode_utf16().chain(std::iter::once(0));
    let wide = Secret::new(units.flat_map(u16::to_be_bytes).collect());
    let filled = |bytes: &[u8]| -> Vec<u8> {
        let length = bytes.len().div_ceil(BLOCK_BYTES) * BLOCK_BYTES;
        bytes.iter().copied().cycle().take(length).collect()
    };
    let mut input = vec![3; BLOCK_BYTES];
    input.extend(filled(salt));
    input.extend(filled(wide.expose()));
    let input = Secret::new(input);
    let mut key = sha256(input.expose());
    for _ in 1..limits::PKCS12_ROUNDS {
        key = sha256(&key);
    }
    key
}

const NULL: &[u8] = &[0x05, 0x00];
const DATA: &[u8] = &[
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01,
];
const ENCRYPTED_DATA: &[u8] = &[
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x06,
];
const KEY_BAG: &[u8] = &[
    0x06, 0x0b, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01, 0x02,
];
const CERTIFICATE_BAG: &[u8] = &[
    0x06, 0x0b, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01, 0x03,
];
const X509_CERTIFICATE: &[u8] = &[
    0x06, 0x0a, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x16, 0x01,
];
const LOCAL_KEY_ID: &[u8] = &[
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x15,
];
const SHA256: &[u8] = &[
    0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01,
];
