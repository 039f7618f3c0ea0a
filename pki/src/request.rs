//! Signing requests: made where the key is, checked where the authority is.
//!
//! A request proves that its sender holds a key. Nothing else in it counts: whatever it asks for
//! (names, usages, to be an authority) is shown to the operator and never signed.

use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DistinguishedName, DnType};
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
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        let hint: String = common_name.chars().take(NAME_CHARS).collect();
        name.push(DnType::CommonName, hint);
        params.distinguished_name = name;
        let request = params
            .serialize_request(key.pair())
            .map_err(|_| RequestError::Make)?;
        Ok(pem::write_request(request.der()))
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
        let der = pem::request(text)?;
        if der.len() > limits::CERTIFICATE_BYTES {
            return Err(RequestError::TooLarge {
                len: der.len(),
                max: limits::CERTIFICATE_BYTES,
            });
        }
        let Ok(([], request)) = X509CertificationRequest::from_der(&der) else {
            return Err(RequestError::Malformed);
        };
        let algorithm = request.signature_algorithm.algorithm.to_id_string();
        if !ALGORITHMS.contains(&algorithm.as_str()) {
            return Err(RequestError::Algorithm { algorithm });
        }
        let info = &request.certification_request_info;
        let public_key = PublicKey::from_der(info.subject_pki.raw)?;
        request
            .verify_signature()
            .map_err(|_| RequestError::Possession)?;
        let mut asked = vec![format!("subject {}", escape(&info.subject.to_string()))];
        for extension in request.requested_extensions().into_iter().flatten() {
            describe(extension, &mut asked);
        }
        asked.truncate(SHOWN_NAMES);
        Ok(Self { public_key, asked })
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
