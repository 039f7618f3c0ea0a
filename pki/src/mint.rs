//! Mint: a certificate from a specification, without any policy.
//!
//! This is the layer under `authority` and `role`: it writes whatever it is told, expired, without
//! an identity or with two. Production code reaches it only through a role's profile; tests reach
//! it directly to make what must be refused.
//!
//! The structure is encoded here and not by a library, because the issuer's name must be the very
//! bytes of the authority's subject: a name that is decoded and encoded again can come out
//! different, and then nothing verifies.

use std::net::IpAddr;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

use crate::date;
use crate::der::{TRUE, bit_string, element, positive_integer, sequence};
use crate::inspect::Usage;
use crate::key::{KeyError, PrivateKey, PublicKey};
use crate::tls;

/// X.520 allows 64 characters in a common name and an organisation.
pub(crate) const NAME_CHARS: usize = 64;
/// Random bytes in a serial number: more than the 64 bits that RFC 5280 readers expect.
const SERIAL_BYTES: usize = 16;

/// A leaf, word for word.
#[derive(Clone, Debug)]
pub struct LeafSpec {
    /// Subject's common name; cut at 64 characters. Empty: no subject.
    pub common_name: String,
    /// URI SANs. A good leaf has one.
    pub uris: Vec<String>,
    pub dns: Vec<String>,
    pub ips: Vec<IpAddr>,
    /// Extended key usages; [`Usage::Other`] is left out.
    pub usages: Vec<Usage>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// Why a certificate could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("the random source failed")]
    Random,
}

/// Who signs, under which name.
pub(crate) struct Signer<'a> {
    pub(crate) name_der: &'a [u8],
    pub(crate) key_id: &'a [u8],
    pub(crate) key: &'a PrivateKey,
}

/// What is signed: the parts that a leaf and an authority share, and the extensions.
pub(crate) struct Body<'a> {
    pub(crate) subject_der: &'a [u8],
    pub(crate) public_key: &'a PublicKey,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    pub(crate) extensions: Vec<Vec<u8>>,
}

/// Signs one certificate (RFC 5280 section 4.1).
pub(crate) fn certificate(
    signer: &Signer<'_>,
    body: Body<'_>,
) -> Result<CertificateDer<'static>, MintError> {
    let algorithm = signer.key.signature_algorithm()?;
    let mut extensions = body.extensions;
    extensions.push(extension(
        KEY_ID,
        false,
        &element(0x04, &body.public_key.id()),
    ));
    let authority_key_id = sequence(&[&element(0x80, signer.key_id)]);
    extensions.push(extension(AUTHORITY_KEY_ID, false, &authority_key_id));
    let extensions: Vec<&[u8]> = extensions.iter().map(Vec::as_slice).collect();
    let (tag_before, before) = date::asn1(body.not_before);
    let (tag_after, after) = date::asn1(body.not_after);
    let tbs = sequence(&[
        &element(0xa0, &positive_integer(&[2])),
        &positive_integer(&random_serial()?),
        algorithm,
        signer.name_der,
        &sequence(&[
            &element(tag_before, before.as_bytes()),
            &element(tag_after, after.as_bytes()),
        ]),
        body.subject_der,
        body.public_key.der(),
        &element(0xa3, &sequence(&extensions)),
    ]);
    let signature = signer.key.sign(&tbs)?;
    Ok(CertificateDer::from(sequence(&[
        &tbs,
        algorithm,
        &bit_string(0, &signature),
    ])))
}

/// A signing request (RFC 2986) that asks for these extensions.
pub(crate) fn request(
    subject_der: &[u8],
    key: &PrivateKey,
    extensions: &[Vec<u8>],
) -> Result<Vec<u8>, MintError> {
    let algorithm = key.signature_algorithm()?;
    let asked = sequence(&[&extensions.concat()]);
    let attribute = sequence(&[EXTENSION_REQUEST, &element(0x31, &asked)]);
    let public_key = key.public();
    let info = sequence(&[
        &positive_integer(&[]),
        subject_der,
        public_key.der(),
        &element(0xa0, &attribute),
    ]);
    let signature = key.sign(&info)?;
    Ok(sequence(&[&info, algorithm, &bit_string(0, &signature)]))
}

/// The extensions of a leaf. Key usage is signing only: TLS 1.3 needs no other.
pub(crate) fn leaf_extensions(spec: &LeafSpec) -> Vec<Vec<u8>> {
    // Bit 0, digitalSignature.
    leaf_extensions_for(spec, &bit_string(7, &[0x80]))
}

/// The same for a server that older TLS clients may ask to decipher a key (RSA key exchange).
pub(crate) fn enciphering_leaf_extensions(spec: &LeafSpec) -> Vec<Vec<u8>> {
    // Bits 0 and 2, digitalSignature and keyEncipherment.
    leaf_extensions_for(spec, &bit_string(5, &[0xa0]))
}

fn leaf_extensions_for(spec: &LeafSpec, key_usage: &[u8]) -> Vec<Vec<u8>> {
    let mut out = vec![
        extension(BASIC_CONSTRAINTS, true, &sequence(&[])),
        extension(KEY_USAGE, true, key_usage),
    ];
    out.extend(usages_extension(&spec.usages));
    let mut names = Vec::new();
    for uri in &spec.uris {
        names.extend(element(0x86, uri.as_bytes()));
    }
    for dns in &spec.dns {
        names.extend(element(0x82, dns.as_bytes()));
    }
    for ip in &spec.ips {
        names.extend(match ip {
            IpAddr::V4(v4) => element(0x87, &v4.octets()),
            IpAddr::V6(v6) => element(0x87, &v6.octets()),
        });
    }
    if !names.is_empty() {
        // RFC 5280 section 4.2.1.6: critical when the subject is empty.
        let critical = spec.common_name.is_empty();
        out.push(extension(
            ALTERNATIVE_NAME,
            critical,
            &element(0x30, &names),
        ));
    }
    out
}

/// The extensions of an authority: may sign certificates and revocation lists.
pub(crate) fn authority_extensions(path_length: Option<u32>, usages: &[Usage]) -> Vec<Vec<u8>> {
    let length = path_length.map(|length| positive_integer(&length.to_be_bytes()));
    let basic = sequence(&[TRUE, length.as_deref().unwrap_or_default()]);
    let mut out = vec![
        extension(BASIC_CONSTRAINTS, true, &basic),
        // Bits 5 and 6, keyCertSign and cRLSign.
        extension(KEY_USAGE, true, &bit_string(1, &[0x06])),
    ];
    out.extend(usages_extension(usages));
    out
}

/// A distinguished name of an optional organisation and an optional common name.
pub(crate) fn name(organisation: &str, common_name: &str) -> Vec<u8> {
    let cut = |text: &str| text.chars().take(NAME_CHARS).collect::<String>();
    name_in_full(&cut(organisation), &cut(common_name))
}

/// The same without X.520's bound: to Kubernetes a common name is a user, and a node's user that
/// was cut would be another node's.
pub(crate) fn name_in_full(organisation: &str, common_name: &str) -> Vec<u8> {
    let attribute = |oid: &[u8], text: &str| {
        let value = sequence(&[oid, &element(0x0c, text.as_bytes())]);
        element(0x31, &value)
    };
    let mut content = Vec::new();
    if !organisation.is_empty() {
        content.extend(attribute(ORGANISATION, organisation));
    }
    if !common_name.is_empty() {
        content.extend(attribute(COMMON_NAME, common_name));
    }
    element(0x30, &content)
}

fn usages_extension(usages: &[Usage]) -> Option<Vec<u8>> {
    let purposes: Vec<&[u8]> = usages
        .iter()
        .filter_map(|usage| match usage {
            Usage::ServerAuth => Some(SERVER_AUTH),
            Usage::ClientAuth => Some(CLIENT_AUTH),
            Usage::Other(_) => None,
        })
        .collect();
    (!purposes.is_empty()).then(|| extension(EXTENDED_KEY_USAGE, false, &sequence(&purposes)))
}

pub(crate) fn extension(oid: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical = if critical { TRUE } else { &[] };
    sequence(&[oid, critical, &element(0x04, value)])
}

/// Random, positive, and of the same length every time.
fn random_serial() -> Result<[u8; SERIAL_BYTES], MintError> {
    let mut serial = [0; SERIAL_BYTES];
    tls::fill_random(&mut serial).map_err(|_| MintError::Random)?;
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

const EXTENSION_REQUEST: &[u8] = &[
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x0e,
];
const BASIC_CONSTRAINTS: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x13];
const KEY_USAGE: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x0f];
const EXTENDED_KEY_USAGE: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x25];
const ALTERNATIVE_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x11];
const KEY_ID: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x0e];
pub(crate) const AUTHORITY_KEY_ID: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x23];
const SERVER_AUTH: &[u8] = &[0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
const CLIENT_AUTH: &[u8] = &[0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];
const COMMON_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x03];
const ORGANISATION: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x0a];
