//! Seals: signatures by a key of its own over texts that Towline writes for later proof, and the
//! hash that such texts are chained with. Ed25519 or ECDSA P-256; what is signed begins with words
//! that say what it is, so that a seal is good for nothing else.

use std::fmt;
use std::path::Path;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm,
};

use crate::key::{KeyError, KeyKind, PrivateKey, PublicKey};
use crate::pem::{self, PemError};
use crate::store::{self, StoreError};
use crate::tls;

/// What is wrong with a sealing key.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Not read, or readable by others.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Not PEM, or another block.
    #[error("{path}: {source}")]
    Pem {
        /// Which file.
        path: String,
        /// Why.
        source: PemError,
    },
    /// No key.
    #[error("{path}: {source}")]
    Key {
        /// Which file.
        path: String,
        /// Why.
        source: KeyError,
    },
    /// A key that seals are not made with.
    #[error(
        "{path}: key is {found}; seals are made with Ed25519 or ECDSA P-256 (towline-pki audit-key makes one)"
    )]
    Kind {
        /// Which file.
        path: String,
        /// What it is.
        found: String,
    },
}

/// The private half. Its `Debug` names the public half.
pub struct SealKey {
    key: PrivateKey,
    public: SealPublic,
}

impl SealKey {
    /// Kinds that seals are made with, the default first.
    pub const KINDS: [KeyKind; 2] = [KeyKind::Ed25519, KeyKind::EcdsaP256];

    /// From a PEM file that nobody else may read.
    pub fn load(path: &Path) -> Result<Self, SealError> {
        let der = store::read_private_key(path)?;
        let key = PrivateKey::from_der(&der).map_err(|source| SealError::Key {
            path: path.display().to_string(),
            source,
        })?;
        let public = SealPublic::new(key.public().der(), path)?;
        Ok(Self { key, public })
    }

    /// The half that proves.
    pub fn public(&self) -> &SealPublic {
        &self.public
    }

    /// A seal over these bytes.
    pub fn seal(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.key.sign(message)
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealKey({})", self.public.id)
    }
}

/// The public half.
#[derive(Clone)]
pub struct SealPublic {
    der: Vec<u8>,
    algorithm: &'static dyn VerificationAlgorithm,
    id: String,
}

impl SealPublic {
    /// From a PEM file (`-----BEGIN PUBLIC KEY-----`).
    pub fn load(path: &Path) -> Result<Self, SealError> {
        let text = store::read(path)?;
        let der = pem::public_key(&text).map_err(|source| SealError::Pem {
            path: path.display().to_string(),
            source,
        })?;
        Self::new(&der, path)
    }

    fn new(der: &[u8], path: &Path) -> Result<Self, SealError> {
        let path = || path.display().to_string();
        let key = PublicKey::from_der(der).map_err(|source| SealError::Key {
            path: path(),
            source,
        })?;
        let algorithm: &'static dyn VerificationAlgorithm = match key.describe().as_str() {
            "Ed25519" => &ED25519,
            "ECDSA P-256" => &ECDSA_P256_SHA256_ASN1,
            found => {
                return Err(SealError::Kind {
                    path: path(),
                    found: found.to_owned(),
                });
            }
        };
        let id = hex(&sha256(der)[..8]);
        Ok(Self {
            der: der.to_vec(),
            algorithm,
            id,
        })
    }

    /// The first eight bytes of the SHA-256 of the key, in hexadecimal.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether the seal was made over exactly these bytes by the other half.
    pub fn verifies(&self, message: &[u8], seal: &[u8]) -> bool {
        UnparsedPublicKey::new(self.algorithm, &self.der)
            .verify(message, seal)
            .is_ok()
    }
}

impl fmt::Debug for SealPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealPublic({})", self.id)
    }
}

/// SHA-256 of bytes that come in pieces.
#[derive(Clone)]
pub struct Sha256(digest::Context);

impl Default for Sha256 {
    fn default() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }
}

impl Sha256 {
    /// The next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all of them.
    pub fn finish(self) -> [u8; 32] {
        bytes_of(&self.0.finish())
    }
}

/// SHA-256 of bytes.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    bytes_of(&digest::digest(&digest::SHA256, bytes))
}

fn bytes_of(digest: &digest::Digest) -> [u8; 32] {
    let mut out = [0; 32];
    for (to, from) in out.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    out
}

/// Bytes that nobody can guess; `None` when the system has none.
pub fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    tls::fill_random(&mut bytes).ok().map(|()| bytes)
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// The bytes of lower-case hexadecimal; `None` for anything else.
pub fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let nibble = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let pairs = text.chunks(2);
    pairs
        .map(|pair| match *pair {
            [high, low] => Some(nibble(high)? << 4 | nibble(low)?),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Replace;
    use crate::store::tests::Scratch;

    #[test]
    fn a_seal_proves_these_bytes_and_this_key() {
        let dir = Scratch::new();
        let mut others = Vec::new();
        for kind in SealKey::KINDS {
            let (secret, public) = (
                dir.path(&format!("{kind}.key")),
                dir.path(&format!("{kind}.pub")),
            );
            let key = PrivateKey::generate(kind).unwrap();
            store::write_secret(&secret, &key.to_pem(), Replace::Never).unwrap();
            store::write_public(
                &public,
                &pem::write_public_key(key.public().der()),
                Replace::Never,
            )
            .unwrap();
            let (key, public) = (
                SealKey::load(&secret).unwrap(),
                SealPublic::load(&public).unwrap(),
            );
            assert_eq!(key.public().id(), public.id());
            let seal = key.seal(b"head 7").unwrap();
            assert!(public.verifies(b"head 7", &seal));
            assert!(!public.verifies(b"head 8", &seal));
            assert!(!public.verifies(b"head 7", &seal[1..]));
            assert!(!public.verifies(b"head 7", &[]));
            assert!(others.iter().all(|(other, known): &(SealPublic, Vec<u8>)| {
                !other.verifies(b"head 7", &seal) && !public.verifies(b"head 7", known)
            }));
            others.push((public, seal));
        }
    }

    #[test]
    fn other_keys_and_other_files_are_refused_by_name() {
        let dir = Scratch::new();
        let path = dir.path("rsa.key");
        let key = PrivateKey::generate(KeyKind::EcdsaP384).unwrap();
        store::write_secret(&path, &key.to_pem(), Replace::Never).unwrap();
        let error = SealKey::load(&path).unwrap_err().to_string();
        assert!(
            error.contains("P-384") && error.contains("audit-key"),
            "{error}"
        );
        let error = SealPublic::load(&path).unwrap_err().to_string();
        assert!(error.contains("PUBLIC KEY"), "{error}");
    }

    #[test]
    fn hexadecimal_is_exact() {
        assert_eq!(hex(&[0, 0xab, 0xff]), "00abff");
        assert_eq!(unhex(b"00abff"), Some(vec![0, 0xab, 0xff]));
        for bad in [&b"0"[..], b"0g", b"AB", b"000"] {
            assert_eq!(unhex(bad), None);
        }
    }

    #[test]
    fn pieces_hash_like_the_whole() {
        let mut pieces = Sha256::default();
        pieces.update(b"a");
        pieces.update(b"bc");
        assert_eq!(pieces.finish(), sha256(b"abc"));
        assert_eq!(hex(&sha256(b"abc")[..4]), "ba7816bf");
    }
}
