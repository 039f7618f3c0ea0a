//! Survey: every certificate in a place, whoever made it.
//!
//! A place is a PEM file, a kubeconfig, a manifest with Secrets or ConfigMaps, or a directory with
//! any of them. What holds no certificate is passed over in a directory and an error when it was
//! named itself; what is damaged is a fault of its own and hides nothing else. Private keys that
//! lie beside certificates are not looked at.

use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use serde_json::Value;

use crate::inspect::{Certificate, escape};
use crate::store::{self, StoreError};
use crate::{pem, yaml};

/// One certificate and where it lies.
#[derive(Clone, Debug)]
pub struct Found {
    /// The file, and the part of it where there are several.
    pub place: String,
    /// What it says.
    pub certificate: Certificate,
    /// Its bytes.
    pub der: CertificateDer<'static>,
}

/// Something that should hold certificates and cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file, and the part of it where there are several.
    pub place: String,
    /// What is wrong.
    pub cause: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.cause)
    }
}

/// What a place holds, in the order of its files' names.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    pub found: Vec<Found>,
    pub damaged: Vec<Damage>,
}

/// Why a place cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "{place}: holds no certificate: neither PEM nor a kubeconfig, Secret or ConfigMap with some"
    )]
    Nothing { place: String },
}

/// Looks at a file or, with all that is below it, at a directory.
pub fn survey(path: &Path) -> Result<Survey, SurveyError> {
    let mut survey = Survey::default();
    if path.is_dir() {
        for file in store::files_below(path)? {
            // What was issued is told in lines, and may be long.
            if file.extension().is_some_and(|end| end == "jsonl") {
                continue;
            }
            match store::read(&file) {
                Ok(text) => survey.read(&file, &text),
                Err(error) => survey.damaged.push(Damage {
                    place: file.display().to_string(),
                    cause: error.to_string(),
                }),
            }
        }
    } else {
        survey.read(path, &store::read(path)?);
    }
    if survey.found.is_empty() && survey.damaged.is_empty() {
        return Err(SurveyError::Nothing {
            place: path.display().to_string(),
        });
    }
    Ok(survey)
}

impl Survey {
    /// Takes in certificates that came from elsewhere: a connection, for example.
    pub fn take(&mut self, place: &str, chain: impl IntoIterator<Item = CertificateDer<'static>>) {
        let chain: Vec<_> = chain.into_iter().collect();
        let many = chain.len() > 1;
        for (index, der) in chain.into_iter().enumerate() {
            let place = match many {
                true => format!("{place} #{}", index + 1),
                false => place.to_owned(),
            };
            match Certificate::parse(der.as_ref()) {
                Ok(certificate) => self.found.push(Found {
                    place,
                    certificate,
                    der,
                }),
                Err(error) => self.damaged.push(Damage {
                    place,
                    cause: error.to_string(),
                }),
            }
        }
    }

    fn read(&mut self, path: &Path, text: &[u8]) {
        let place = path.display().to_string();
        if contains(text, b"apiVersion") && contains(text, b"kind") {
            self.read_manifests(path, &place, text);
        } else if contains(text, b"-----BEGIN CERTIFICATE-----") {
            self.read_pem(&place, text);
        }
    }

    fn read_pem(&mut self, place: &str, text: &[u8]) {
        match pem::certificates(text) {
            Ok(chain) => self.take(place, chain),
            Err(error) => self.damaged.push(Damage {
                place: place.to_owned(),
                cause: error.to_string(),
            }),
        }
    }

    fn read_manifests(&mut self, path: &Path, place: &str, text: &[u8]) {
        match yaml::read_all::<Value>(text) {
            Ok(documents) => {
                for document in &documents {
                    self.read_manifest(path, place, document);
                }
            }
            Err(fault) => self.damaged.push(Damage {
                place: place.to_owned(),
                cause: fault.to_string(),
            }),
        }
    }

    fn read_manifest(&mut self, path: &Path, place: &str, document: &Value) {
        match document["kind"].as_str() {
            Some("Config") => self.read_kubeconfig(path, place, document),
            Some(kind @ ("Secret" | "ConfigMap")) => {
                let name = &document["metadata"]["name"];
                let name = escape(name.as_str().unwrap_or("without a name"));
                let place = format!("{place} {kind} {name}");
                let encoded = kind == "Secret";
                self.read_entries(&place, &document["data"], encoded);
                self.read_entries(&place, &document["binaryData"], true);
                self.read_entries(&place, &document["stringData"], false);
            }
            _ => {
                for item in document["items"].as_array().into_iter().flatten() {
                    // A list does not hold lists.
                    if item["items"].is_null() {
                        self.read_manifest(path, place, item);
                    }
                }
            }
        }
    }

    fn read_entries(&mut self, place: &str, entries: &Value, encoded: bool) {
        for (key, value) in entries.as_object().into_iter().flatten() {
            let place = format!("{place} {}", escape(key));
            let Some(text) = value.as_str() else { continue };
            if encoded {
                self.read_encoded(&place, text);
            } else if contains(text.as_bytes(), b"-----BEGIN CERTIFICATE-----") {
                self.read_pem(&place, text.as_bytes());
            }
        }
    }

    fn read_encoded(&mut self, place: &str, text: &str) {
        let text: String = text.split_whitespace().collect();
        match STANDARD.decode(text) {
            Ok(bytes) if contains(&bytes, b"-----BEGIN CERTIFICATE-----") => {
                self.read_pem(place, &bytes);
            }
            Ok(_) => {}
            Err(error) => self.damaged.push(Damage {
                place: place.to_owned(),
                cause: format!("not base64: {error}"),
            }),
        }
    }

    fn read_kubeconfig(&mut self, path: &Path, place: &str, config: &Value) {
        for (list, entry, key) in [
            ("clusters", "cluster", "certificate-authority"),
            ("users", "user", "client-certificate"),
        ] {
            for item in config[list].as_array().into_iter().flatten() {
                let name = escape(item["name"].as_str().unwrap_or("without a name"));
                let place = format!("{place} {entry} {name}");
                if let Some(text) = item[entry][format!("{key}-data")].as_str() {
                    self.read_encoded(&place, text);
                }
                if let Some(file) = item[entry][key].as_str() {
                    // Relative to the kubeconfig, as kubectl has it.
                    let file = path.parent().unwrap_or(Path::new(".")).join(file);
                    let place = format!("{place} {}", escape(&file.display().to_string()));
                    match store::read(&file) {
                        Ok(text) => self.read_pem(&place, &text),
                        Err(error) => self.damaged.push(Damage {
                            place,
                            cause: error.to_string(),
                        }),
                    }
                }
            }
        }
    }
}

fn contains(text: &[u8], needle: &[u8]) -> bool {
    text.windows(needle.len()).any(|window| window == needle)
}
