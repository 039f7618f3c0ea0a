//! PEM: a reader that forgives form and a writer that does not use that freedom.
//!
//! The reader takes CRLF, a missing last newline, text before and between blocks, kinds of blocks
//! that it does not know, and the accidents that `pem_lines` puts straight. It refuses a
//! block that does not end, bytes that are no base64, and a file without the block that was asked
//! for. An encrypted key is never taken for a plain one.

use rustls_pki_types::pem::{Error as DecodeError, PemObject, SectionKind};
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, CertificateSigningRequestDer, PrivateKeyDer,
};

use crate::pem_lines;
use crate::secret::Secret;

const ENCRYPTED: &str = "ENCRYPTED PRIVATE KEY";

/// Why a text holds no usable PEM.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    #[error("holds no {wanted} block (-----BEGIN {wanted}-----){hint}")]
    Missing {
        wanted: &'static str,
        hint: &'static str,
    },
    #[error("holds {count} private keys; it must hold one")]
    ManyKeys { count: usize },
    #[error("{count} bytes follow the private key inside its block: the file is damaged")]
    Trailing { count: usize },
    #[error("a block begins but does not end: the file is cut off")]
    CutOff,
    #[error("a block is not base64: the file is damaged")]
    NotBase64,
    #[error("a line that begins a block is malformed")]
    BadStart,
    #[error(
        "the private key is encrypted, and nobody is there to ask for its passphrase; decrypt it, \
         for example with `openssl pkey -in FILE -out NEW` under umask 077"
    )]
    Encrypted,
    #[error(
        "the private key is encrypted in the traditional format; convert it with `openssl pkcs8 \
         -topk8 -v2 aes-256-cbc -in FILE -out NEW` under umask 077"
    )]
    TraditionalEncryption,
}

/// Every certificate, in the order of the text. At least one.
pub fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let found: Vec<_> = sections(text)?
        .into_iter()
        .filter(|(kind, _)| *kind == SectionKind::Certificate)
        .map(|(_, der)| CertificateDer::from(der))
        .collect();
    if found.is_empty() {
        return Err(missing("CERTIFICATE", text));
    }
    Ok(found)
}

/// The one private key: PKCS#8, PKCS#1 or SEC1.
pub fn private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, PemError> {
    if contains(text, b"Proc-Type: 4,ENCRYPTED") {
        return Err(PemError::TraditionalEncryption);
    }
    if contains(text, ENCRYPTED.as_bytes()) {
        return Err(PemError::Encrypted);
    }
    let mut keys: Vec<PrivateKeyDer<'static>> = sections(text)?
        .into_iter()
        .filter_map(|(kind, der)| PrivateKeyDer::from_pem(kind, der))
        .collect();
    let count = keys.len();
    match (keys.pop(), count) {
        (Some(key), 1) => match bytes_behind(key.secret_der()) {
            0 => Ok(key),
            count => Err(PemError::Trailing { count }),
        },
        (None, _) => Err(missing("PRIVATE KEY", text)),
        _ => Err(PemError::ManyKeys { count }),
    }
}

/// The one encrypted private key (EncryptedPrivateKeyInfo, DER); `None` when no key in the text
/// is encrypted that way.
pub fn encrypted_key(text: &[u8]) -> Result<Option<Vec<u8>>, PemError> {
    let needle = ENCRYPTED.as_bytes();
    if !contains(text, needle) {
        return Ok(None);
    }
    // The decoder knows no such label. What is relabelled here is not secret, and is never taken
    // for a plain key.
    let mut relabelled = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest
        .windows(needle.len())
        .position(|window| window == needle)
    {
        relabelled.extend_from_slice(rest.get(..at).unwrap_or_default());
        relabelled.extend_from_slice(b"PRIVATE KEY");
        rest = rest.get(at + needle.len()..).unwrap_or_default();
    }
    relabelled.extend_from_slice(rest);
    match private_key(&relabelled)? {
        PrivateKeyDer::Pkcs8(der) => Ok(Some(der.secret_pkcs8_der().to_vec())),
        _ => Err(missing(ENCRYPTED, text)),
    }
}

/// The one certificate signing request.
pub fn request(text: &[u8]) -> Result<CertificateSigningRequestDer<'static>, PemError> {
    sections(text)?
        .into_iter()
        .find_map(|(kind, der)| CertificateSigningRequestDer::from_pem(kind, der))
        .ok_or_else(|| missing("CERTIFICATE REQUEST", text))
}

/// The same, where nothing else may stand beside it; `None` where something does.
pub fn only_request(
    text: &[u8],
) -> Result<Option<CertificateSigningRequestDer<'static>>, PemError> {
    let one = request(text)?;
    Ok((sections(text)?.len() == 1).then_some(one))
}

/// Every certificate revocation list, in the order of the text. At least one.
pub fn revocation_lists(
    text: &[u8],
) -> Result<Vec<CertificateRevocationListDer<'static>>, PemError> {
    let found: Vec<_> = sections(text)?
        .into_iter()
        .filter_map(|(kind, der)| CertificateRevocationListDer::from_pem(kind, der))
        .collect();
    if found.is_empty() {
        return Err(missing("X509 CRL", text));
    }
    Ok(found)
}

/// The one public key: SubjectPublicKeyInfo, DER.
pub fn public_key(text: &[u8]) -> Result<Vec<u8>, PemError> {
    let mut keys: Vec<_> = sections(text)?
        .into_iter()
        .filter(|(kind, _)| *kind == SectionKind::PublicKey)
        .map(|(_, der)| der)
        .collect();
    match keys.len() {
        1 => keys.pop().ok_or_else(|| missing("PUBLIC KEY", text)),
        _ => Err(missing("PUBLIC KEY", text)),
    }
}

/// A public key (SubjectPublicKeyInfo) as text.
pub fn write_public_key(der: &[u8]) -> String {
    block("PUBLIC KEY", der)
}

/// Whether there is a private key in the text, of any kind, whole or not.
pub fn holds_private_key(text: &[u8]) -> bool {
    contains(text, b"PRIVATE KEY-----")
}

/// Revocation lists as text, in the order given.
pub fn write_revocation_lists(lists: &[CertificateRevocationListDer<'_>]) -> String {
    lists
        .iter()
        .map(|der| block("X509 CRL", der.as_ref()))
        .collect()
}

/// Certificates as text, in the order given.
pub fn write_certificates(chain: &[CertificateDer<'_>]) -> String {
    chain
        .iter()
        .map(|der| block("CERTIFICATE", der.as_ref()))
        .collect()
}

/// A PKCS#8 key as text.
pub fn write_private_key(pkcs8: &[u8]) -> Secret {
    Secret::new(block("PRIVATE KEY", pkcs8).into_bytes())
}

/// An encrypted PKCS#8 key as text.
pub fn write_encrypted_key(der: &[u8]) -> Secret {
    Secret::new(block(ENCRYPTED, der).into_bytes())
}

/// A certificate revocation list as text.
pub fn write_revocation_list(der: &CertificateRevocationListDer<'_>) -> String {
    block("X509 CRL", der.as_ref())
}

/// A certificate signing request as text.
pub fn write_request(der: &[u8]) -> String {
    block("CERTIFICATE REQUEST", der)
}

/// How many bytes stand behind the one element that a key is.
fn bytes_behind(der: &[u8]) -> usize {
    let (length, rest) = match der {
        [0x30, 0x82, high, low, rest @ ..] => (u32::from_be_bytes([0, 0, *high, *low]), rest),
        [0x30, 0x81, length, rest @ ..] => (u32::from(*length), rest),
        [0x30, length, rest @ ..] if *length < 0x80 => (u32::from(*length), rest),
        _ => return 0,
    };
    rest.len()
        .saturating_sub(usize::try_from(length).unwrap_or(usize::MAX))
}

fn sections(text: &[u8]) -> Result<Vec<(SectionKind, Vec<u8>)>, PemError> {
    let lines = pem_lines::straighten(text);
    if pem_lines::is_cut_off(lines.text()) {
        return Err(PemError::CutOff);
    }
    <(SectionKind, Vec<u8>)>::pem_slice_iter(lines.text())
        .collect::<Result<_, _>>()
        .map_err(|error| match error {
            DecodeError::MissingSectionEnd { .. } => PemError::CutOff,
            DecodeError::IllegalSectionStart { .. } => PemError::BadStart,
            _ => PemError::NotBase64,
        })
}

fn missing(wanted: &'static str, text: &[u8]) -> PemError {
    let hint = match text.first() {
        None => "; the file is empty",
        // SEQUENCE with a long length: what every certificate and key begins with in DER.
        Some(0x30) => "; it looks like DER, convert it with `openssl ... -inform DER`",
        Some(0xff | 0xfe) => "; it looks like UTF-16, save it as UTF-8",
        _ if contains(text, b"-----BEGIN PKCS7") => {
            "; it holds PKCS#7, take it apart with `openssl pkcs7 -print_certs`"
        }
        _ => "",
    };
    PemError::Missing { wanted, hint }
}

fn contains(text: &[u8], needle: &[u8]) -> bool {
    text.windows(needle.len()).any(|window| window == needle)
}

/// RFC 7468: 64 characters a line, LF, no attributes.
fn block(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let byte = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
            let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
            for place in 0..4 {
                if place <= group.len() {
                    let index = (bits >> (18 - 6 * place)) & 63;
                    out.push(char::from(ALPHABET[index as usize]));
                } else {
                    out.push('=');
                }
            }
        }
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pem() -> String {
        write_certificates(&[CertificateDer::from((0u8..=200).collect::<Vec<_>>())])
    }

    #[test]
    fn what_is_written_reads_back_for_every_length() {
        for len in 0..200usize {
            let der: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let text = write_certificates(&[CertificateDer::from(der.clone())]);
            assert!(text.lines().all(|line| line.len() <= 64), "{text}");
            assert_eq!(certificates(text.as_bytes()).unwrap()[0].as_ref(), der);
        }
    }

    #[test]
    fn form_is_forgiven() {
        let text = pem();
        let expected = certificates(text.as_bytes()).unwrap();
        for variant in [
            text.replace('\n', "\r\n"),
            text.trim_end().to_string(),
            format!("{text}\n\n\n"),
            format!("subject=/CN=x\nissuer=/CN=y\n{text}trailing words\n"),
            format!("-----BEGIN EC PARAMETERS-----\nBggq\n-----END EC PARAMETERS-----\n{text}"),
            format!("\u{feff}{text}"),
            text.replace('\n', "\r"),
            text.lines().map(|line| format!("    {line}  \n")).collect(),
        ] {
            assert_eq!(
                certificates(variant.as_bytes()).unwrap(),
                expected,
                "{variant}"
            );
        }
    }

    #[test]
    fn no_block_is_lost_where_files_were_put_behind_each_other() {
        let text = pem();
        let glued = format!("{}{text}", text.trim_end());
        assert_eq!(certificates(glued.as_bytes()).unwrap().len(), 2);
        let marked = format!("{text}\u{feff}{text}");
        assert_eq!(certificates(marked.as_bytes()).unwrap().len(), 2);
        let cut = &text[..text.len() / 2];
        assert_eq!(
            certificates(format!("{cut}\n{text}").as_bytes()),
            Err(PemError::CutOff)
        );
    }

    #[test]
    fn what_is_damaged_is_refused_by_name() {
        let text = pem();
        let cut = &text[..text.len() - 30];
        assert_eq!(certificates(cut.as_bytes()), Err(PemError::CutOff));
        let noise = text.replace("AAEC", "A*EC");
        assert_eq!(certificates(noise.as_bytes()), Err(PemError::NotBase64));
        assert!(
            matches!(certificates(b""), Err(PemError::Missing { hint, .. }) if hint.contains("empty"))
        );
        assert!(
            matches!(certificates(&[0x30, 0x82]), Err(PemError::Missing { hint, .. }) if hint.contains("DER"))
        );
        assert!(matches!(
            private_key(text.as_bytes()),
            Err(PemError::Missing { .. })
        ));
        let locked = block("ENCRYPTED PRIVATE KEY", b"x");
        assert!(matches!(
            private_key(locked.as_bytes()),
            Err(PemError::Encrypted)
        ));
        assert_eq!(encrypted_key(locked.as_bytes()), Ok(Some(b"x".to_vec())));
        let plain = block("PRIVATE KEY", b"x");
        assert_eq!(encrypted_key(plain.as_bytes()), Ok(None));
        let both = [locked.clone(), plain].concat();
        assert!(matches!(
            encrypted_key(both.as_bytes()),
            Err(PemError::ManyKeys { count: 2 })
        ));
        let cut = &locked[..locked.len() - 20];
        assert_eq!(encrypted_key(cut.as_bytes()), Err(PemError::CutOff));
        let two = [block("PRIVATE KEY", b"x"), block("PRIVATE KEY", b"y")].concat();
        assert!(matches!(
            private_key(two.as_bytes()),
            Err(PemError::ManyKeys { count: 2 })
        ));
    }
}
