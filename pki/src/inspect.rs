//! What a certificate says, read once: [`Certificate`] for any of them, [`Leaf`] for one that has
//! an identity.
//!
//! Nothing here is proof of anything: signatures, dates and roles are checked in `verify`. Text
//! that a stranger chose is escaped and bounded when it is read, so it can be printed as it is.
//! An extension that does not parse makes the whole certificate unreadable.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use towline_proto::id::Role;
use towline_proto::limits;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::date;
use crate::identity::{Identity, IdentityError};
use crate::key;
use crate::seal::hex;
use crate::serial::{Fingerprint, Serial};

/// Longest text of a name that is kept, in characters; longer than any identity. The rest is cut.
const TEXT_CHARS: usize = 640;

/// An extended key usage.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Usage {
    /// TLS server.
    ServerAuth,
    /// TLS client.
    ClientAuth,
    /// Another one, by its name or number.
    Other(String),
}

impl Usage {
    /// The usage that a certificate of this role must carry.
    pub const fn of(role: Role) -> Self {
        match role {
            Role::Server => Usage::ServerAuth,
            Role::Agent | Role::Client | Role::Operator => Usage::ClientAuth,
        }
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Usage::ServerAuth => f.write_str("serverAuth"),
            Usage::ClientAuth => f.write_str("clientAuth"),
            Usage::Other(name) => f.write_str(name),
        }
    }
}

/// Why bytes are not a certificate that we can read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("certificate of {len} bytes is larger than the {max} allowed")]
    TooLarge { len: usize, max: usize },
    #[error("not a certificate, or a damaged one")]
    Malformed,
    #[error("{count} bytes follow the certificate")]
    Trailing { count: usize },
    #[error("an extension of the certificate is malformed or there twice")]
    Extension,
}

/// Any certificate, read.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub serial: Serial,
    pub fingerprint: Fingerprint,
    /// Escaped and bounded.
    pub subject: String,
    /// Escaped and bounded.
    pub issuer: String,
    /// Common names of the subject, escaped and bounded. `None`: one of them is not readable
    /// as text, so nobody can say what the subject is called.
    pub common_names: Option<Vec<String>>,
    /// Organisations of the subject, in the same way.
    pub organisations: Option<Vec<String>>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// URI SANs, escaped and bounded.
    pub uris: Vec<String>,
    /// DNS SANs, escaped and bounded.
    pub dns_sans: Vec<String>,
    /// IP SANs; IPv4 inside IPv6 is unwrapped.
    pub ip_sans: Vec<IpAddr>,
    /// How many SANs are of a kind that Towline never uses.
    pub other_sans: usize,
    /// Extended key usages. Empty: the extension is absent.
    pub usages: Vec<Usage>,
    /// Whether the key may sign handshakes: no key-usage extension, or one that says so.
    pub signs_handshakes: bool,
    /// Whether this is an authority: basic constraints say so, key usage does not forbid it.
    pub is_authority: bool,
    /// Whether its key may sign revocation lists: no key-usage extension, or one that says so.
    pub signs_lists: bool,
    /// Authorities that may stand between this one and a leaf. `None`: any number.
    pub path_length: Option<u32>,
    /// For example "ECDSA P-256".
    pub key: String,
    /// Object identifier of the algorithm that it is signed with.
    pub signed_with: String,
    pub(crate) subject_der: Vec<u8>,
    pub(crate) issuer_der: Vec<u8>,
    pub(crate) public_key_der: Vec<u8>,
    pub(crate) key_id: Option<Vec<u8>>,
    /// Which key signed it, as its issuer numbers keys.
    pub issuer_key_id: Option<Vec<u8>>,
}

impl Certificate {
    /// Reads one certificate; size first.
    pub fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        if der.len() > limits::CERTIFICATE_BYTES {
            return Err(CertificateError::TooLarge {
                len: der.len(),
                max: limits::CERTIFICATE_BYTES,
            });
        }
        let (rest, read) =
            X509Certificate::from_der(der).map_err(|_| CertificateError::Malformed)?;
        if !rest.is_empty() {
            return Err(CertificateError::Trailing { count: rest.len() });
        }
        let mut certificate = Self {
            serial: Serial::from_bytes(read.raw_serial()),
            fingerprint: Fingerprint::of(der),
            subject: escape(&read.subject().to_string()),
            issuer: escape(&read.issuer().to_string()),
            common_names: read
                .subject()
                .iter_common_name()
                .map(|name| name.as_str().ok().map(escape))
                .collect(),
            organisations: read
                .subject()
                .iter_organization()
                .map(|name| name.as_str().ok().map(escape))
                .collect(),
            not_before: date::from_seconds(read.validity().not_before.timestamp()),
            not_after: date::from_seconds(read.validity().not_after.timestamp()),
            uris: Vec::new(),
            dns_sans: Vec::new(),
            ip_sans: Vec::new(),
            other_sans: 0,
            usages: Vec::new(),
            signs_handshakes: true,
            signs_lists: true,
            is_authority: false,
            path_length: None,
            key: key::describe(read.public_key().raw),
            signed_with: escape(&read.signature_algorithm.algorithm.to_id_string()),
            subject_der: read.subject().as_raw().to_vec(),
            issuer_der: read.issuer().as_raw().to_vec(),
            public_key_der: read.public_key().raw.to_vec(),
            key_id: None,
            issuer_key_id: None,
        };
        certificate.read_extensions(&read)?;
        Ok(certificate)
    }

    /// SubjectPublicKeyInfo, DER.
    pub fn public_key(&self) -> &[u8] {
        &self.public_key_der
    }

    /// The subject as it is encoded: what another certificate names as its issuer.
    pub fn subject_der(&self) -> &[u8] {
        &self.subject_der
    }

    fn read_extensions(&mut self, read: &X509Certificate<'_>) -> Result<(), CertificateError> {
        read.extensions_map()
            .map_err(|_| CertificateError::Extension)?;
        let mut may_sign_certificates = true;
        for extension in read.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::ParseError { .. } => return Err(CertificateError::Extension),
                ParsedExtension::SubjectAlternativeName(names) => {
                    for name in &names.general_names {
                        self.read_name(name)?;
                    }
                }
                ParsedExtension::BasicConstraints(basic) => {
                    self.is_authority = basic.ca;
                    self.path_length = basic.path_len_constraint;
                }
                ParsedExtension::KeyUsage(usage) => {
                    self.signs_handshakes = usage.digital_signature();
                    self.signs_lists = usage.crl_sign();
                    may_sign_certificates = usage.key_cert_sign();
                }
                ParsedExtension::ExtendedKeyUsage(usage) => {
                    let named = [
                        (usage.server_auth, Usage::ServerAuth),
                        (usage.client_auth, Usage::ClientAuth),
                        (usage.any, Usage::Other("any".into())),
                        (usage.code_signing, Usage::Other("codeSigning".into())),
                        (
                            usage.email_protection,
                            Usage::Other("emailProtection".into()),
                        ),
                        (usage.time_stamping, Usage::Other("timeStamping".into())),
                        (usage.ocsp_signing, Usage::Other("ocspSigning".into())),
                    ];
                    self.usages
                        .extend(named.into_iter().filter(|(set, _)| *set).map(|(_, u)| u));
                    let others = usage.other.iter();
                    self.usages
                        .extend(others.map(|oid| Usage::Other(escape(&oid.to_id_string()))));
                }
                ParsedExtension::SubjectKeyIdentifier(id) => self.key_id = Some(id.0.to_vec()),
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    self.issuer_key_id = id.key_identifier.as_ref().map(|id| id.0.to_vec());
                }
                _ => {}
            }
        }
        self.is_authority &= may_sign_certificates;
        Ok(())
    }

    fn read_name(&mut self, name: &GeneralName<'_>) -> Result<(), CertificateError> {
        match name {
            GeneralName::URI(uri) => self.uris.push(escape(uri)),
            GeneralName::DNSName(name) => self.dns_sans.push(escape(name)),
            GeneralName::IPAddress(bytes) => {
                let ip = if let Ok(v4) = <[u8; 4]>::try_from(*bytes) {
                    IpAddr::V4(Ipv4Addr::from(v4))
                } else if let Ok(v6) = <[u8; 16]>::try_from(*bytes) {
                    IpAddr::V6(Ipv6Addr::from(v6)).to_canonical()
                } else {
                    return Err(CertificateError::Extension);
                };
                self.ip_sans.push(ip);
            }
            GeneralName::Invalid(..) => return Err(CertificateError::Extension),
            _ => self.other_sans += 1,
        }
        Ok(())
    }

    /// The identity, when there is exactly one URI SAN and it is one.
    pub fn identity(&self) -> Result<Identity, LeafError> {
        match self.uris.as_slice() {
            [] => Err(LeafError::NoIdentity),
            [uri] => uri.parse().map_err(|cause| LeafError::BadIdentity {
                uri: uri.clone(),
                cause,
            }),
            more => Err(LeafError::ManyIdentities { count: more.len() }),
        }
    }

    /// Its key identifier as certificates below it name it, in hexadecimal; empty when it has none.
    pub fn key_id_text(&self) -> String {
        hex(self.key_id.as_deref().unwrap_or_default())
    }

    /// Whether `now` is inside the validity, both ends included.
    pub fn is_current(&self, now: SystemTime) -> bool {
        self.not_before <= now && date::seconds(now) <= date::seconds(self.not_after)
    }

    /// Whether an authority's usages, if it has any, allow it to sign for this one.
    pub fn allows(&self, usage: &Usage) -> bool {
        self.usages.is_empty()
            || self.usages.contains(usage)
            || self.usages.contains(&Usage::Other("any".into()))
    }
}

/// Why a certificate is not one of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("certificate has no identity: it has no URI among its subject alternative names")]
    NoIdentity,
    #[error("certificate has {count} URIs among its subject alternative names; it must have one")]
    ManyIdentities { count: usize },
    #[error("certificate's URI \"{uri}\" is not a Towline identity: {cause}")]
    BadIdentity { uri: String, cause: IdentityError },
}

/// A certificate with exactly one identity.
#[derive(Clone, Debug)]
pub struct Leaf {
    pub identity: Identity,
    pub serial: Serial,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// IP SANs; of an agent these are the addresses of its node.
    pub ip_sans: Vec<IpAddr>,
    /// DNS SANs, escaped and bounded.
    pub dns_sans: Vec<String>,
    pub fingerprint: Fingerprint,
    /// Escaped and bounded.
    pub issuer: String,
    /// Escaped and bounded.
    pub subject: String,
    pub usages: Vec<Usage>,
}

impl Leaf {
    /// Reads a certificate that must have exactly one identity.
    pub fn parse(der: &CertificateDer<'_>) -> Result<Self, LeafError> {
        Self::try_from(Certificate::parse(der.as_ref())?)
    }
}

impl TryFrom<Certificate> for Leaf {
    type Error = LeafError;

    fn try_from(certificate: Certificate) -> Result<Self, LeafError> {
        let identity = certificate.identity()?;
        Ok(Self {
            identity,
            serial: certificate.serial,
            not_before: certificate.not_before,
            not_after: certificate.not_after,
            ip_sans: certificate.ip_sans,
            dns_sans: certificate.dns_sans,
            fingerprint: certificate.fingerprint,
            issuer: certificate.issuer,
            subject: certificate.subject,
            usages: certificate.usages,
        })
    }
}

/// Printable, on one line, bounded; a second escaping would not change it visibly.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == TEXT_CHARS {
            out.push('…');
            break;
        }
        if c.is_ascii_graphic() || c == ' ' {
            out.push(c);
        } else {
            out.extend(c.escape_unicode());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_is_one_bounded_printable_line() {
        let text = escape("a\n\u{1b}[31mred\u{202e}\0");
        assert_eq!(text, "a\\u{a}\\u{1b}[31mred\\u{202e}\\u{0}");
        assert!(escape(&"x".repeat(100_000)).chars().count() <= TEXT_CHARS + 1);
    }

    #[test]
    fn bytes_that_are_no_certificate_are_refused() {
        assert_eq!(
            Certificate::parse(b"").unwrap_err(),
            CertificateError::Malformed
        );
        let large = vec![0x30; limits::CERTIFICATE_BYTES + 1];
        assert!(matches!(
            Certificate::parse(&large).unwrap_err(),
            CertificateError::TooLarge { .. }
        ));
    }
}
