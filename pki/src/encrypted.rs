//! Encrypted private keys: PKCS#8 `ENCRYPTED PRIVATE KEY` under a passphrase (PBES2, RFC 8018).
//!
//! Written: PBKDF2 with HMAC-SHA-256 and AES-256-CBC, which `openssl pkey` reads. Read: PBKDF2 with
//! HMAC-SHA-1, 256, 384 or 512 and AES-128, 192 or 256 in CBC mode, which is what openssl has
//! written since 1.1. Anything else (scrypt, DES, the traditional format) is refused by name with
//! the line that converts it. The primitives are those of the one crypto provider; a second
//! library would bring second implementations of AES, HMAC and SHA-2 for this file alone.
//!
//! The file is hostile until the passphrase fits: sizes and rounds are bounded before any work.

use std::num::NonZeroU32;

use aws_lc_rs::cipher::{
    AES_128, AES_192, AES_256, Algorithm, DecryptionContext, EncryptionContext,
    PaddedBlockDecryptingKey, PaddedBlockEncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::pbkdf2;
use towline_proto::limits;
use zeroize::{Zeroize, Zeroizing};

use crate::der::{self, element, positive_integer, sequence};
use crate::secret::Secret;
use crate::tls;

/// Random bytes that make the same passphrase another key in each file.
const SALT_BYTES: usize = 16;
/// One block of AES.
const BLOCK_BYTES: usize = 16;

/// Why an encrypted key is not opened or not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncryptedKeyError {
    #[error("the encrypted private key is damaged")]
    Malformed,
    #[error(
        "the private key is encrypted with {what}, which is not supported; convert it with \
         `openssl pkcs8 -topk8 -v2 aes-256-cbc -in FILE -out NEW` under umask 077"
    )]
    Unsupported { what: String },
    #[error(
        "the encrypted private key asks for {rounds} rounds of PBKDF2, more than the {max} allowed"
    )]
    Rounds { rounds: u64, max: u32 },
    #[error("the passphrase is wrong")]
    WrongPassphrase,
    #[error("the crypto library failed while encrypting a key")]
    Encrypt,
}

/// Encrypts a PKCS#8 key. Returns the DER of an EncryptedPrivateKeyInfo.
pub fn encrypt(pkcs8: &[u8], passphrase: &Secret) -> Result<Vec<u8>, EncryptedKeyError> {
    let mut random = [0; SALT_BYTES + BLOCK_BYTES];
    tls::fill_random(&mut random).map_err(|_| EncryptedKeyError::Encrypt)?;
    let (salt, iv) = random.split_at(SALT_BYTES);
    let iv: [u8; BLOCK_BYTES] = iv.try_into().map_err(|_| EncryptedKeyError::Encrypt)?;
    let rounds = NonZeroU32::new(limits::KEY_ROUNDS).ok_or(EncryptedKeyError::Encrypt)?;
    let mut key = Zeroizing::new([0; 32]);
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        rounds,
        salt,
        passphrase.expose(),
        key.as_mut_slice(),
    );
    // Room for the padding, so that no copy of the plain key stays behind in the heap.
    let mut bytes = Vec::with_capacity(pkcs8.len() + BLOCK_BYTES);
    bytes.extend_from_slice(pkcs8);
    let done = UnboundCipherKey::new(&AES_256, key.as_slice())
        .and_then(PaddedBlockEncryptingKey::cbc_pkcs7)
        .and_then(|cipher| {
            let context = EncryptionContext::Iv128(FixedLength::from(iv));
            cipher.less_safe_encrypt(&mut bytes, context)
        });
    if done.is_err() {
        bytes.zeroize();
        return Err(EncryptedKeyError::Encrypt);
    }
    let kdf = sequence(&[
        PBKDF2,
        &sequence(&[
            &element(0x04, salt),
            &positive_integer(&limits::KEY_ROUNDS.to_be_bytes()),
            &sequence(&[HMAC_SHA256, NULL]),
        ]),
    ]);
    let cipher = sequence(&[AES_256_CBC, &element(0x04, &iv)]);
    let scheme = sequence(&[PBES2, &sequence(&[&kdf, &cipher])]);
    Ok(sequence(&[&scheme, &element(0x04, &bytes)]))
}

/// Opens an EncryptedPrivateKeyInfo. Returns the PKCS#8 key inside.
pub fn decrypt(der: &[u8], passphrase: &Secret) -> Result<Secret, EncryptedKeyError> {
    let sealed = Sealed::parse(der)?;
    let mut key = Zeroizing::new(vec![0; sealed.cipher.key_bytes]);
    pbkdf2::derive(
        sealed.hash,
        sealed.rounds,
        sealed.salt,
        passphrase.expose(),
        &mut key,
    );
    let mut bytes = Zeroizing::new(sealed.data.to_vec());
    let plain = UnboundCipherKey::new(sealed.cipher.algorithm, &key)
        .and_then(PaddedBlockDecryptingKey::cbc_pkcs7)
        .and_then(|cipher| {
            let context = DecryptionContext::Iv128(FixedLength::from(sealed.iv));
            cipher.decrypt(&mut bytes, context)
        })
        .map_err(|_| EncryptedKeyError::WrongPassphrase)?;
    // One wrong passphrase in 256 leaves a padding that looks right.
    match der::take(0x30, plain) {
        Some((_, [])) => Ok(Secret::new(plain.to_vec())),
        _ => Err(EncryptedKeyError::WrongPassphrase),
    }
}

/// Whether the form can be opened, before anybody is asked for a passphrase.
pub fn check(der: &[u8]) -> Result<(), EncryptedKeyError> {
    Sealed::parse(der).map(|_| ())
}

struct Cipher {
    oid: &'static [u8],
    algorithm: &'static Algorithm,
    key_bytes: usize,
}

static CIPHERS: [Cipher; 3] = [
    Cipher {
        oid: AES_128_CBC,
        algorithm: &AES_128,
        key_bytes: 16,
    },
    Cipher {
        oid: AES_192_CBC,
        algorithm: &AES_192,
        key_bytes: 24,
    },
    Cipher {
        oid: AES_256_CBC,
        algorithm: &AES_256,
        key_bytes: 32,
    },
];

struct Sealed<'a> {
    hash: pbkdf2::Algorithm,
    rounds: NonZeroU32,
    salt: &'a [u8],
    cipher: &'static Cipher,
    iv: &'a [u8; BLOCK_BYTES],
    data: &'a [u8],
}

impl<'a> Sealed<'a> {
    fn parse(der: &'a [u8]) -> Result<Self, EncryptedKeyError> {
        let bad = || EncryptedKeyError::Malformed;
        let whole = |found: Option<(&'a [u8], &'a [u8])>| match found {
            Some((content, [])) => Ok(content),
            _ => Err(bad()),
        };
        let (scheme, data) = der::take(0x30, whole(der::take(0x30, der))?).ok_or_else(bad)?;
        let data = whole(der::take(0x04, data))?;
        let (oid, parameters) = oid(scheme).ok_or_else(bad)?;
        if oid != PBES2 {
            return Err(unsupported(oid));
        }
        let (kdf, cipher) = der::take(0x30, whole(der::take(0x30, parameters))?).ok_or_else(bad)?;
        let (hash, rounds, salt) = read_kdf(kdf)?;
        let (oid, iv) = self::oid(whole(der::take(0x30, cipher))?).ok_or_else(bad)?;
        let cipher = CIPHERS
            .iter()
            .find(|cipher| cipher.oid == oid)
            .ok_or_else(|| unsupported(oid))?;
        let iv = whole(der::take(0x04, iv))?.try_into().map_err(|_| bad())?;
        if data.is_empty() || data.len() % BLOCK_BYTES != 0 {
            return Err(bad());
        }
        Ok(Self {
            hash,
            rounds,
            salt,
            cipher,
            iv,
            data,
        })
    }
}

/// PBKDF2-params: salt, rounds, an optional key length, which the cipher knows better, and a hash
/// that is SHA-1 unless it is named.
fn read_kdf(kdf: &[u8]) -> Result<(pbkdf2::Algorithm, NonZeroU32, &[u8]), EncryptedKeyError> {
    let bad = || EncryptedKeyError::Malformed;
    let (oid, parameters) = oid(kdf).ok_or_else(bad)?;
    if oid != PBKDF2 {
        return Err(unsupported(oid));
    }
    let (parameters, rest) = der::take(0x30, parameters).ok_or_else(bad)?;
    let (salt, parameters) = der::take(0x04, parameters).ok_or_else(bad)?;
    let (rounds, mut parameters) = der::take(0x02, parameters).ok_or_else(bad)?;
    if let Some((_, after)) = der::take(0x02, parameters) {
        parameters = after;
    }
    let hash = match der::take(0x30, parameters) {
        None if parameters.is_empty() => pbkdf2::PBKDF2_HMAC_SHA1,
        Some((name, [])) => match self::oid(name).ok_or_else(bad)?.0 {
            HMAC_SHA1 => pbkdf2::PBKDF2_HMAC_SHA1,
            HMAC_SHA256 => pbkdf2::PBKDF2_HMAC_SHA256,
            HMAC_SHA384 => pbkdf2::PBKDF2_HMAC_SHA384,
            HMAC_SHA512 => pbkdf2::PBKDF2_HMAC_SHA512,
            other => return Err(unsupported(other)),
        },
        _ => return Err(bad()),
    };
    let count = match rounds {
        [first, ..] if first & 0x80 != 0 => return Err(bad()),
        [_, ..] if rounds.len() <= 8 => rounds
            .iter()
            .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte)),
        _ => return Err(bad()),
    };
    let rounds = u32::try_from(count)
        .ok()
        .filter(|rounds| *rounds <= limits::KEY_ROUNDS_MAX)
        .ok_or(EncryptedKeyError::Rounds {
            rounds: count,
            max: limits::KEY_ROUNDS_MAX,
        })?;
    let rounds = NonZeroU32::new(rounds).ok_or_else(bad)?;
    match rest {
        [] => Ok((hash, rounds, salt)),
        _ => Err(bad()),
    }
}

/// An object identifier, whole, and what follows it.
fn oid(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (_, rest) = der::take(0x06, bytes)?;
    bytes
        .get(..bytes.len().checked_sub(rest.len())?)
        .map(|oid| (oid, rest))
}

fn unsupported(oid: &[u8]) -> EncryptedKeyError {
    let known = UNSUPPORTED.iter().find(|(known, _)| *known == oid);
    EncryptedKeyError::Unsupported {
        what: known.map_or_else(
            || "another method than PBES2 with PBKDF2 and AES-CBC".to_owned(),
            |(_, name)| (*name).to_owned(),
        ),
    }
}

const NULL: &[u8] = &[0x05, 0x00];
const PBES2: &[u8] = &[
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0d,
];
const PBKDF2: &[u8] = &[
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0c,
];
const HMAC_SHA1: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x07];
const HMAC_SHA256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x09];
const HMAC_SHA384: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x0a];
const HMAC_SHA512: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x0b];
const AES_128_CBC: &[u8] = &[
    0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x02,
];
const AES_192_CBC: &[u8] = &[
    0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x16,
];
const AES_256_CBC: &[u8] = &[
    0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2a,
];
/// What files in the field are encrypted with besides, by name.
const UNSUPPORTED: [(&[u8], &str); 4] = [
    (
        &[
            0x06, 0x09, 0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x04, 0x0b,
        ],
        "scrypt",
    ),
    (
        &[0x06, 0x08, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x03, 0x07],
        "triple DES",
    ),
    (
        &[
            0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x03,
        ],
        "PBES1 (MD5 and DES)",
    ),
    (
        &[
            0x06, 0x0a, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x01, 0x03,
        ],
        "PKCS#12's triple DES",
    ),
];

#[cfg(test)]
#[path = "encrypted_tests.rs"]
mod tests;
