//! Signing requests: made where the key is, checked where the authority is.
//!
//! A request proves that its sender holds a key. Nothing else in it counts: whatever it asks for
//! (names, usages, to be an authority) is shown to the operator and never signed.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DistinguishedName, DnType, SanType};
use rustls_pki_types::CertificateSigningRequestDer;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::inspect::escape;
use crate::key::{KeyError, PrivateKey, PublicKey};
use crate::mint::NAME_CHARS;
use crate::pem::{self, PemError};
use crate::store::{self, StoreError};
use towline_proto::limits;

/// Names of a request that are kept for showing.
const SHOWN_NAMES: usize = 16;

/// A request whose sender holds the private key.
#[derive(Clone, Debug)]
pub struct Request {
    public_key: PublicKey,
    asked: Vec<String>,
}

/// What a request that is to be made asks for, word for word. Towline's own issuers take nothing
/// from it but its key; Kubernetes' signers take all of it.
#[derive(Clone, Debug, Default)]
pub struct RequestSpec {
    /// Subject's organisation; empty: none.
    pub organisation: String,
    /// Subject's common name; empty: none.
    pub common_name: String,
    pub dns: Vec<String>,
    pub ips: Vec<IpAddr>,
    pub uris: Vec<String>,
    pub emails: Vec<String>,
}

impl RequestSpec {
    /// Makes the request for a key. Returns PEM.
    pub fn make(&self, key: &PrivateKey) -> Result<String, RequestError> {
        self.make_der(key)
            .map(|der| pem::write_request(&CertificateSigningRequestDer::from(der)))
    }

    /// The same as DER.
    pub fn make_der(&self, key: &PrivateKey) -> Result<Vec<u8>, RequestError> {
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        for (kind, text) in [
            (DnType::OrganizationName, &self.organisation),
            (DnType::CommonName, &self.common_name),
        ] {
            if !text.is_empty() {
                name.push(kind, text.as_str());
            }
        }
        params.distinguished_name = name;
        let text = |text: &String| text.as_str().try_into().map_err(|_| RequestError::Make);
        for name in &self.dns {
            params.subject_alt_names.push(SanType::DnsName(text(name)?));
        }
        let addresses = self.ips.iter().copied().map(SanType::IpAddress);
        params.subject_alt_names.extend(addresses);
        for uri in &self.uris {
            params.subject_alt_names.push(SanType::URI(text(uri)?));
        }
        for email in &self.emails {
            params
                .subject_alt_names
                .push(SanType::Rfc822Name(text(email)?));
        }
        let request = params
            .serialize_request(key.pair())
            .map_err(|_| RequestError::Make)?;
        Ok(request.der().to_vec())
    }
}

/// What is wrong with a request.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{path}: {source}", path = path.display())]
    In {
        path: PathBuf,
        source: Box<RequestError>,
    },
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error("not a signing request, or a damaged one")]
    Malformed,
    #[error("signing request has {len} bytes, more than the {max} allowed")]
    TooLarge { len: usize, max: usize },
    #[error(
        "signing request is signed with {algorithm}, which is not accepted; use SHA-256 or SHA-384, or Ed25519"
    )]
    Algorithm { algorithm: String },
    #[error("signing request is not signed by the key inside it: its sender may not hold that key")]
    Possession,
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("signing request could not be made")]
    Make,
}

impl Request {
    /// Makes a request for a key. `common_name` is a hint for people only. Returns PEM.
    pub fn make(key: &PrivateKey, common_name: &str) -> Result<String, RequestError> {
        Self::make_der(key, common_name)
            .map(|der| pem::write_request(&CertificateSigningRequestDer::from(der)))
    }

    /// The same as DER.
    pub fn make_der(key: &PrivateKey, common_name: &str) -> Result<Vec<u8>, RequestError> {
        let spec = RequestSpec {
            common_name: common_name.chars().take(NAME_CHARS).collect(),
            ..RequestSpec::default()
        };
        spec.make_der(key)
    }

    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, RequestError> {
        Self::parse(&store::read(path)?).map_err(|source| RequestError::In {
            path: path.into(),
            source: Box::new(source),
        })
    }

    /// Reads and checks PEM text.
    pub fn parse(text: &[u8]) -> Result<Self, RequestError> {
        Self::parse_der(&pem::request(text)?)
    }

    /// Reads and checks DER.
    pub fn parse_der(der: &[u8]) -> Result<Self, RequestError> {
        read(der, |request, public_key| {
            let info = &request.certification_request_info;
            let mut asked = vec![format!("subject {}", escape(&info.subject.to_string()))];
            for extension in request.requested_extensions().into_iter().flatten() {
                describe(extension, &mut asked);
            }
            asked.truncate(SHOWN_NAMES);
            Self { public_key, asked }
        })
    }

    /// The key to sign for.
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// What the request asks for, escaped: for showing, never for signing.
    pub fn asked(&self) -> &[String] {
        &self.asked
    }
}

/// Checks what every request must be: readable to its last byte, signed by the key inside it with
/// an algorithm that counts, a key that is strong enough. Hands it to `take`.
pub(crate) fn read<T>(
    der: &[u8],
    take: impl FnOnce(&X509CertificationRequest<'_>, PublicKey) -> T,
) -> Result<T, RequestError> {
    if der.len() > limits::CERTIFICATE_BYTES {
        return Err(RequestError::TooLarge {
            len: der.len(),
            max: limits::CERTIFICATE_BYTES,
        });
    }
    let Ok(([], request)) = X509CertificationRequest::from_der(der) else {
        return Err(RequestError::Malformed);
    };
    let algorithm = request.signature_algorithm.algorithm.to_id_string();
    if !ALGORITHMS.contains(&algorithm.as_str()) {
        return Err(RequestError::Algorithm { algorithm });
    }
    let public_key = PublicKey::from_der(request.certification_request_info.subject_pki.raw)?;
    request
        .verify_signature()
        .map_err(|_| RequestError::Possession)?;
    Ok(take(&request, public_key))
}

fn describe(extension: &ParsedExtension<'_>, out: &mut Vec<String>) {
    match extension {
        ParsedExtension::SubjectAlternativeName(names) => {
            for name in names.general_names.iter().take(SHOWN_NAMES) {
                out.push(match name {
                    GeneralName::URI(text) => format!("URI {}", escape(text)),
                    GeneralName::DNSName(text) => format!("DNS {}", escape(text)),
                    GeneralName::IPAddress(bytes) => format!("IP of {} bytes", bytes.len()),
                    _ => "a name of another kind".into(),
                });
            }
        }
        ParsedExtension::BasicConstraints(basic) if basic.ca => {
            out.push("to be an authority".into())
        }
        _ => {}
    }
}

/// sha256/384/512WithRSA, RSA-PSS, ECDSA with SHA-256/384, Ed25519.
const ALGORITHMS: [&str; 7] = [
    "1.2.840.113549.1.1.11",
    "1.2.840.113549.1.1.12",
    "1.2.840.113549.1.1.13",
    "1.2.840.113549.1.1.10",
    "1.2.840.10045.4.3.2",
    "1.2.840.10045.4.3.3",
    "1.3.101.112",
];
