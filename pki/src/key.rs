//! Key pairs: which kinds there are, making one, reading one, and the public half of one.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rcgen::{KeyPair, PublicKeyData, SigningKey};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey as ParsedKey;
use x509_parser::x509::SubjectPublicKeyInfo;
use zeroize::Zeroize;

use crate::encrypted::{self, EncryptedKeyError};
use crate::passphrase::{PassphraseError, Passphrases};
use crate::pem;
use crate::secret::Secret;
use crate::store::{self, KeyFile, StoreError};
use crate::tls;

/// The smallest RSA modulus that is accepted or made, in bits.
const RSA_BITS: usize = 2048;

/// The kinds of keys that Towline makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyKind {
    /// Small, fast, and understood by everything around Kubernetes.
    #[default]
    EcdsaP256,
    EcdsaP384,
    Ed25519,
    /// Leaves only: below what authorities that outlive 2030 should have.
    Rsa2048,
    Rsa3072,
    Rsa4096,
}

impl KeyKind {
    /// Every kind, the default first.
    pub const ALL: [KeyKind; 6] = [
        KeyKind::EcdsaP256,
        KeyKind::EcdsaP384,
        KeyKind::Ed25519,
        KeyKind::Rsa2048,
        KeyKind::Rsa3072,
        KeyKind::Rsa4096,
    ];

    /// The word used in flags.
    pub const fn as_str(self) -> &'static str {
        match self {
            KeyKind::EcdsaP256 => "ecdsa-p256",
            KeyKind::EcdsaP384 => "ecdsa-p384",
            KeyKind::Ed25519 => "ed25519",
            KeyKind::Rsa2048 => "rsa-2048",
            KeyKind::Rsa3072 => "rsa-3072",
            KeyKind::Rsa4096 => "rsa-4096",
        }
    }

    /// The kind of a key as certificates name it; the default for what is not made here.
    pub fn like(described: &str) -> Self {
        let matching = |kind: &KeyKind| kind.describe() == described;
        KeyKind::ALL.into_iter().find(matching).unwrap_or_default()
    }

    /// As [`PublicKey::describe`] says it.
    pub(crate) const fn describe(self) -> &'static str {
        match self {
            KeyKind::EcdsaP256 => "ECDSA P-256",
            KeyKind::EcdsaP384 => "ECDSA P-384",
            KeyKind::Ed25519 => "Ed25519",
            KeyKind::Rsa2048 => "RSA 2048",
            KeyKind::Rsa3072 => "RSA 3072",
            KeyKind::Rsa4096 => "RSA 4096",
        }
    }

    /// Whether an authority may be made with it: authorities live for ten years, and RSA of 2048
    /// bits is not counted as strong for so long.
    pub const fn fits_authority(self) -> bool {
        !matches!(self, KeyKind::Rsa2048)
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that names no kind of key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown key algorithm: use ecdsa-p256, ecdsa-p384, ed25519, rsa-2048, rsa-3072 or rsa-4096"
)]
pub struct UnknownKeyKind;

impl FromStr for KeyKind {
    type Err = UnknownKeyKind;
    fn from_str(text: &str) -> Result<Self, UnknownKeyKind> {
        KeyKind::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or(UnknownKeyKind)
    }
}

/// What is wrong with a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the random source or the crypto library failed while making a key")]
    Generate,
    #[error(
        "not a private key that can sign: use RSA (2048 bits or more), ECDSA P-256/P-384/P-521 or Ed25519"
    )]
    Unusable,
    #[error("public key is {found}: use RSA (2048 bits or more), ECDSA P-256/P-384 or Ed25519")]
    Refused { found: String },
    #[error("signing failed")]
    Sign,
}

/// Why a key file does not open. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum UnlockError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Passphrase(#[from] PassphraseError),
    #[error("{path}: the passphrase is wrong", path = path.display())]
    WrongPassphrase { path: PathBuf },
    #[error("{path}: {cause}", path = path.display())]
    In { path: PathBuf, cause: String },
}

/// A private key that can sign.
pub struct PrivateKey(KeyPair);

impl PrivateKey {
    /// A new key.
    pub fn generate(kind: KeyKind) -> Result<Self, KeyError> {
        let made = match kind {
            KeyKind::EcdsaP256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            KeyKind::EcdsaP384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            KeyKind::Ed25519 => KeyPair::generate_for(&rcgen::PKCS_ED25519),
            KeyKind::Rsa2048 => {
                KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)
            }
            KeyKind::Rsa3072 => {
                KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_3072)
            }
            KeyKind::Rsa4096 => {
                KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_4096)
            }
        };
        made.map(Self).map_err(|_| KeyError::Generate)
    }

    /// A key that was read from a file: PKCS#8, PKCS#1 or SEC1.
    pub fn from_der(der: &PrivateKeyDer<'_>) -> Result<Self, KeyError> {
        KeyPair::try_from(der)
            .map(Self)
            .map_err(|_| KeyError::Unusable)
    }

    /// Reads a key file that others cannot read, encrypted or not.
    pub fn unlock(path: &Path, passphrases: &mut Passphrases) -> Result<Self, UnlockError> {
        let failed = |cause: &dyn fmt::Display| UnlockError::In {
            path: path.into(),
            cause: cause.to_string(),
        };
        match store::read_key_file(path)? {
            KeyFile::Plain(der) => Self::from_der(&der).map_err(|error| failed(&error)),
            KeyFile::Encrypted(sealed) => {
                // Nobody is asked for the passphrase of what cannot be opened.
                encrypted::check(&sealed).map_err(|error| failed(&error))?;
                let passphrase = passphrases.open(path)?;
                let pkcs8 =
                    encrypted::decrypt(&sealed, passphrase).map_err(|error| match error {
                        EncryptedKeyError::WrongPassphrase => {
                            UnlockError::WrongPassphrase { path: path.into() }
                        }
                        other => failed(&other),
                    })?;
                let der = PrivatePkcs8KeyDer::from(pkcs8.expose());
                Self::from_der(&der.into()).map_err(|error| failed(&error))
            }
        }
    }

    /// PKCS#8, for a file.
    pub fn to_pem(&self) -> Secret {
        pem::write_private_key(self.0.serialized_der())
    }

    /// PKCS#8 under a passphrase, for a file.
    pub fn to_encrypted_pem(&self, passphrase: &Secret) -> Result<Secret, EncryptedKeyError> {
        let der = encrypted::encrypt(self.0.serialized_der(), passphrase)?;
        Ok(pem::write_encrypted_key(&der))
    }

    /// PKCS#8, for the TLS library.
    pub fn to_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.0.serialize_der().into())
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey {
            der: self.0.subject_public_key_info(),
        }
    }

    /// AlgorithmIdentifier of [`sign`](Self::sign), DER.
    pub(crate) fn signature_algorithm(&self) -> Result<&'static [u8], KeyError> {
        let algorithm = self.0.algorithm();
        let table: [(&'static rcgen::SignatureAlgorithm, &'static [u8]); 5] = [
            (&rcgen::PKCS_ECDSA_P256_SHA256, ECDSA_SHA256),
            (&rcgen::PKCS_ECDSA_P384_SHA384, ECDSA_SHA384),
            (&rcgen::PKCS_ECDSA_P521_SHA512, ECDSA_SHA512),
            (&rcgen::PKCS_ED25519, ED25519),
            (&rcgen::PKCS_RSA_SHA256, RSA_SHA256),
        ];
        table
            .into_iter()
            .find(|(known, _)| *known == algorithm)
            .map(|(_, der)| der)
            .ok_or(KeyError::Unusable)
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.0.sign(message).map_err(|_| KeyError::Sign)
    }

    pub(crate) fn pair(&self) -> &KeyPair {
        &self.0
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
}

/// A public key that certificates may be made for: SubjectPublicKeyInfo, DER.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    der: Vec<u8>,
}

impl PublicKey {
    /// Accepts only kinds that both our verifiers and our peers' handle.
    pub fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        let found = describe(der);
        let good = match found.as_str() {
            "ECDSA P-256" | "ECDSA P-384" | "Ed25519" => true,
            other => other
                .strip_prefix("RSA ")
                .and_then(|bits| bits.parse::<usize>().ok())
                .is_some_and(|bits| (RSA_BITS..=8192).contains(&bits)),
        };
        if good {
            Ok(Self { der: der.to_vec() })
        } else {
            Err(KeyError::Refused { found })
        }
    }

    /// SubjectPublicKeyInfo.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// SHA-256 of it: which key it is.
    pub fn hash(&self) -> [u8; 32] {
        sha256(&self.der)
    }

    /// For example "ECDSA P-256".
    pub fn describe(&self) -> String {
        describe(&self.der)
    }

    /// Whether it is an RSA key, which can decipher too.
    pub(crate) fn is_rsa(&self) -> bool {
        rsa_bits(&self.der).is_some()
    }

    /// Whether it is of this kind.
    pub fn is_of(&self, kind: KeyKind) -> bool {
        self.describe() == kind.describe()
    }

    /// Key identifier: the first 160 bits of the SHA-256 of the key (RFC 7093 section 2).
    pub(crate) fn id(&self) -> Vec<u8> {
        sha256(&self.der)[..20].to_vec()
    }
}

/// Kind and size of a SubjectPublicKeyInfo, as people say it.
pub(crate) fn describe(spki: &[u8]) -> String {
    let Ok(([], info)) = SubjectPublicKeyInfo::from_der(spki) else {
        return "unreadable".into();
    };
    let curve = || {
        let parameters = info.algorithm.parameters.as_ref()?;
        parameters.as_oid().ok().map(|oid| oid.to_id_string())
    };
    let algorithm = info.algorithm.algorithm.to_id_string();
    match (algorithm.as_str(), info.parsed()) {
        (_, Ok(ParsedKey::RSA(key))) => format!("RSA {}", bits(key.modulus)),
        ("1.2.840.10045.2.1", _) => match curve().as_deref() {
            Some("1.2.840.10045.3.1.7") => "ECDSA P-256".into(),
            Some("1.3.132.0.34") => "ECDSA P-384".into(),
            Some("1.3.132.0.35") => "ECDSA P-521".into(),
            _ => "ECDSA on another curve".into(),
        },
        ("1.3.101.112", _) => "Ed25519".into(),
        (other, _) => format!("of kind {other}"),
    }
}

/// Size of an RSA key in a SubjectPublicKeyInfo; `None` for other kinds.
pub(crate) fn rsa_bits(spki: &[u8]) -> Option<usize> {
    let (_, info) = SubjectPublicKeyInfo::from_der(spki).ok()?;
    match info.parsed() {
        Ok(ParsedKey::RSA(key)) => Some(bits(key.modulus)),
        _ => None,
    }
}

fn bits(modulus: &[u8]) -> usize {
    let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
    let digits = &modulus[zeros..];
    let leading = digits
        .first()
        .map_or(0, |byte| byte.leading_zeros() as usize);
    digits.len() * 8 - leading
}

/// By the one crypto provider of the tree.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let hash = tls::sha256(bytes);
    let mut out = [0; 32];
    for (to, from) in out.iter_mut().zip(hash.as_ref()) {
        *to = *from;
    }
    out
}

const ECDSA_SHA256: &[u8] = &[
    0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02,
];
const ECDSA_SHA384: &[u8] = &[
    0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03,
];
const ECDSA_SHA512: &[u8] = &[
    0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04,
];
const ED25519: &[u8] = &[0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70];
const RSA_SHA256: &[u8] = &[
    0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b, 0x05, 0x00,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_made_described_and_read_back() {
        for kind in KeyKind::ALL {
            let key = PrivateKey::generate(kind).unwrap();
            assert_eq!(key.public().describe(), kind.describe());
            assert_eq!(KeyKind::like(&key.public().describe()), kind);
            assert_eq!(kind.as_str().parse(), Ok(kind));
            assert!(PublicKey::from_der(key.public().der()).is_ok());
            let pem = key.to_pem();
            let der = crate::pem::private_key(pem.expose()).unwrap();
            assert_eq!(PrivateKey::from_der(&der).unwrap().public(), key.public());
            assert_eq!(format!("{key:?}"), "PrivateKey");
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        assert!(matches!(
            PublicKey::from_der(b"x"),
            Err(KeyError::Refused { .. })
        ));
        let junk = PrivateKeyDer::Pkcs8(vec![0x30, 0x00].into());
        assert_eq!(PrivateKey::from_der(&junk).unwrap_err(), KeyError::Unusable);
        assert!("dsa".parse::<KeyKind>().is_err());
    }

    #[test]
    fn sha256_is_sha256() {
        assert_eq!(sha256(b"abc")[..4], [0xba, 0x78, 0x16, 0xbf]);
    }
}
