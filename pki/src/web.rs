//! Peers that have no identity of ours: servers known by DNS name or address, such as the
//! Kubernetes API or Konnectivity's proxy-server, and the pair that we present to them.
//!
//! What is checked of such a server is what TLS itself can check: the chain to roots that were
//! given by file (never the system's), the time, the usage, and the name. That is less than an
//! identity, and nothing here makes a [`VerifiedPeer`](crate::VerifiedPeer).

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;
use rustls::client::danger::ServerCertVerifier;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use towline_proto::limits;

use crate::inspect::Certificate;
use crate::pem::{self, PemError};
use crate::rotate::Expiry;
use crate::store::{self, StoreError};
use crate::tls;

/// What is wrong with roots or a pair. Messages of files name the file.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{what}: {source}")]
    Pem { what: String, source: PemError },
    #[error("{what}: {count} certificates are more than the {max} of one bundle")]
    Many {
        what: String,
        count: usize,
        max: usize,
    },
    #[error("{what}: certificate {number} cannot be a trust anchor: it is malformed")]
    Anchor { what: String, number: usize },
    #[error("{what}: the private key cannot be used: use RSA, ECDSA P-256/P-384/P-521 or Ed25519")]
    Key { what: String },
    #[error("{key}: is not the private key of {cert}")]
    Mismatch { cert: String, key: String },
    #[error("the server showed no certificate")]
    NoCertificate,
    #[error("the server's certificate is not good for its name: {0}")]
    Server(rustls::Error),
    #[error("{0:?} is neither a DNS name nor an address, so no certificate can be checked for it")]
    Name(String),
}

/// Whom such a server must be signed by.
#[derive(Clone, Debug)]
pub struct WebRoots {
    store: Arc<RootCertStore>,
    lives: Vec<Life>,
}

/// From when and until when a certificate is good.
type Life = (SystemTime, SystemTime);

/// Of those that can be read; what TLS itself makes of the others is for it to say.
fn lives(certificates: &[CertificateDer<'_>]) -> Vec<Life> {
    let parsed = certificates
        .iter()
        .filter_map(|der| Certificate::parse(der.as_ref()).ok());
    parsed.map(|one| (one.not_before, one.not_after)).collect()
}

fn expiries(lives: &[Life], what: &str, path: &Path) -> Vec<Expiry> {
    let expiry = |(not_before, not_after): &Life| Expiry {
        what: what.to_owned(),
        path: path.to_owned(),
        not_before: *not_before,
        not_after: *not_after,
    };
    lives.iter().map(expiry).collect()
}

impl WebRoots {
    /// Reads a bundle.
    pub fn load(path: &Path) -> Result<Self, WebError> {
        Self::from_pem(&store::read(path)?, &path.display().to_string())
    }

    /// From PEM in memory; `what` is named in errors.
    pub fn from_pem(text: &[u8], what: &str) -> Result<Self, WebError> {
        let certificates = pem::certificates(text).map_err(|source| WebError::Pem {
            what: what.to_owned(),
            source,
        })?;
        if certificates.len() > limits::ANCHORS {
            return Err(WebError::Many {
                what: what.to_owned(),
                count: certificates.len(),
                max: limits::ANCHORS,
            });
        }
        let lives = lives(&certificates);
        let mut store = RootCertStore::empty();
        for (index, der) in certificates.into_iter().enumerate() {
            store.add(der).map_err(|_| WebError::Anchor {
                what: what.to_owned(),
                number: index + 1,
            })?;
        }
        Ok(Self {
            store: Arc::new(store),
            lives,
        })
    }

    /// When the trust anchors end. `path` is where they came from.
    pub fn expiries(&self, what: &str, path: &Path) -> Vec<Expiry> {
        expiries(&self.lives, what, path)
    }

    /// Whether a chain, leaf first, is that of the server `name`: to one of these roots, in its
    /// time, for servers, and for that name.
    pub fn check(
        &self,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: SystemTime,
    ) -> Result<(), WebError> {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (leaf, above) = chain.split_first().ok_or(WebError::NoCertificate)?;
        tls::web_verifier(self)
            .map_err(|_| WebError::NoCertificate)?
            .verify_server_cert(leaf, above, name, &[], UnixTime::since_unix_epoch(since))
            .map(|_| ())
            .map_err(WebError::Server)
    }

    pub(crate) fn store(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.store)
    }
}

/// A certificate chain and its key, of any kind and with any names in it.
#[derive(Clone)]
pub struct WebPair(Arc<CertifiedKey>);

impl std::fmt::Debug for WebPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WebPair")
    }
}

impl WebPair {
    /// Reads both files. The mode of the key file is not judged: Kubernetes mounts a Secret
    /// readable by everybody in the container; see [`public_key_file`].
    pub fn load(cert: &Path, key: &Path) -> Result<Self, WebError> {
        let names = (cert.display().to_string(), key.display().to_string());
        Self::from_pem(&store::read(cert)?, &store::read(key)?, names)
    }

    /// From PEM in memory; `names` (of certificate and key) stand in errors.
    pub fn from_pem(cert: &[u8], key: &[u8], names: (String, String)) -> Result<Self, WebError> {
        let (cert_name, key_name) = names;
        let chain = pem::certificates(cert).map_err(|source| WebError::Pem {
            what: cert_name.clone(),
            source,
        })?;
        let key = pem::private_key(key).map_err(|source| WebError::Pem {
            what: key_name.clone(),
            source,
        })?;
        Self::new(chain, key, (cert_name, key_name))
    }

    fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        (cert, key_name): (String, String),
    ) -> Result<Self, WebError> {
        if chain.len() > limits::CHAIN_CERTIFICATES {
            return Err(WebError::Many {
                what: cert,
                count: chain.len(),
                max: limits::CHAIN_CERTIFICATES,
            });
        }
        let key = tls::signing_key(key).map_err(|_| WebError::Key {
            what: key_name.clone(),
        })?;
        let pair = CertifiedKey::new(chain, key);
        match pair.keys_match() {
            Ok(()) => Ok(Self(Arc::new(pair))),
            Err(_) => Err(WebError::Mismatch {
                cert,
                key: key_name,
            }),
        }
    }

    /// When the certificates of the pair end, the leaf first. `path` is where they came from.
    pub fn expiries(&self, what: &str, path: &Path) -> Vec<Expiry> {
        expiries(&lives(&self.0.cert), what, path)
    }

    pub(crate) fn presented(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.0)
    }
}

/// The mode of a key file that others can read, to be warned about.
pub fn public_key_file(path: &Path) -> Option<(PathBuf, u32)> {
    use std::os::unix::fs::MetadataExt;
    let mode = std::fs::metadata(path).ok()?.mode() & 0o7777;
    (mode & 0o004 != 0).then(|| (path.to_owned(), mode))
}

/// The name that such a server's certificate must be for: a DNS name or an address, IPv6 with or
/// without brackets.
pub fn server_name(host: &str) -> Result<ServerName<'static>, WebError> {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(ServerName::IpAddress(ip.into()));
    }
    let shown = || WebError::Name(bare.chars().take(limits::HOST_BYTES).collect());
    ServerName::try_from(bare.to_owned()).map_err(|_| shown())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_told_apart() {
        assert!(matches!(
            server_name("[fd00::7]").unwrap(),
            ServerName::IpAddress(_)
        ));
        assert!(matches!(
            server_name("10.0.0.7").unwrap(),
            ServerName::IpAddress(_)
        ));
        assert!(matches!(
            server_name("proxy.example").unwrap(),
            ServerName::DnsName(_)
        ));
        assert!(matches!(server_name("a b"), Err(WebError::Name(_))));
    }

    #[test]
    fn what_is_no_bundle_is_refused_by_name() {
        let error = WebRoots::from_pem(b"", "ca.pem").unwrap_err().to_string();
        assert!(error.contains("ca.pem"), "{error}");
        let junk = pem::write_certificates(&[CertificateDer::from(vec![0x30, 0x00])]);
        assert!(matches!(
            WebRoots::from_pem(junk.as_bytes(), "x"),
            Err(WebError::Anchor { number: 1, .. })
        ));
    }
}
