//! Encrypted keys: round trips, wrong passphrases, and files that lie.

use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::key::{KeyKind, PrivateKey};

fn secret(text: &str) -> Secret {
    Secret::new(text.as_bytes().to_vec())
}

fn key() -> Vec<u8> {
    let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
    key.to_der().secret_der().to_vec()
}

/// A file of one round, so that many can be opened.
fn cheap(rounds: &[u8], hash: &[u8], cipher: &[u8], data: &[u8]) -> Vec<u8> {
    let hash = match hash {
        [] => Vec::new(),
        oid => sequence(&[oid, NULL]),
    };
    let kdf = sequence(&[
        PBKDF2,
        &sequence(&[&element(4, b"saltsalt"), &element(2, rounds), &hash]),
    ]);
    let cipher = sequence(&[cipher, &element(4, &[7; 16])]);
    let scheme = sequence(&[PBES2, &sequence(&[&kdf, &cipher])]);
    sequence(&[&scheme, &element(4, data)])
}

#[test]
fn what_is_encrypted_opens_with_its_passphrase_only() {
    let key = key();
    let sealed = encrypt(&key, &secret("correct horse")).unwrap();
    assert!(!sealed.windows(16).any(|window| window == &key[..16]));
    assert_eq!(
        decrypt(&sealed, &secret("correct horse")).unwrap().expose(),
        key
    );
    for wrong in ["correct horsf", "", "correct horse "] {
        assert_eq!(
            decrypt(&sealed, &secret(wrong)).unwrap_err(),
            EncryptedKeyError::WrongPassphrase
        );
    }
    let again = encrypt(&key, &secret("correct horse")).unwrap();
    assert_ne!(again, sealed, "salt and vector are new each time");
}

#[test]
fn no_wrong_passphrase_passes_for_a_right_one() {
    // Of 2,000 wrong passphrases about eight leave a padding that looks right.
    let sealed = cheap(&[1], HMAC_SHA256, AES_128_CBC, &[0x5a; 160]);
    for number in 0..2_000 {
        let verdict = decrypt(&sealed, &secret(&number.to_string()));
        assert_eq!(verdict.unwrap_err(), EncryptedKeyError::WrongPassphrase);
    }
}

#[test]
fn a_file_cannot_make_the_tool_work_for_hours() {
    for rounds in [
        &[0x7f, 0xff, 0xff, 0xff][..],
        &[0x00, 0xff, 0xff, 0xff, 0xff],
        &[0x01, 0, 0, 0, 0, 0, 0, 0],
    ] {
        let begun = Instant::now();
        let sealed = cheap(rounds, HMAC_SHA256, AES_256_CBC, &[0; 64]);
        let error = decrypt(&sealed, &secret("x")).unwrap_err();
        assert!(matches!(error, EncryptedKeyError::Rounds { .. }), "{error}");
        assert!(begun.elapsed().as_secs() < 2);
    }
    for rounds in [&[0][..], &[], &[0x80], &[1; 9]] {
        let sealed = cheap(rounds, HMAC_SHA256, AES_256_CBC, &[0; 64]);
        assert_eq!(check(&sealed), Err(EncryptedKeyError::Malformed));
    }
}

#[test]
fn what_cannot_be_opened_is_named() {
    let named = |sealed: &[u8], word: &str| {
        let error = check(sealed).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("openssl"), "{error}");
    };
    let [scrypt, des, pbes1, pkcs12] = UNSUPPORTED.map(|(oid, _)| oid);
    named(&cheap(&[1], HMAC_SHA1, des, &[0; 16]), "triple DES");
    named(&cheap(&[1], des, AES_128_CBC, &[0; 16]), "triple DES");
    let scheme = |oid: &[u8]| sequence(&[&sequence(&[oid, NULL]), &element(4, &[0; 16])]);
    named(&scheme(pbes1), "PBES1");
    named(&scheme(pkcs12), "PKCS#12");
    let kdf = sequence(&[scrypt, &sequence(&[])]);
    let scheme = sequence(&[PBES2, &sequence(&[&kdf, &sequence(&[AES_128_CBC])])]);
    named(&sequence(&[&scheme, &element(4, &[0; 16])]), "scrypt");
}

#[test]
fn the_hash_is_sha1_unless_it_is_named() {
    assert!(check(&cheap(&[1], &[], AES_192_CBC, &[0; 16])).is_ok());
}

#[test]
fn every_cut_and_every_byte_too_many_is_damage() {
    let sealed = cheap(&[1], HMAC_SHA256, AES_128_CBC, &[0; 32]);
    assert!(check(&sealed).is_ok());
    for len in 0..sealed.len() {
        assert_eq!(check(&sealed[..len]), Err(EncryptedKeyError::Malformed));
    }
    let longer = [&sealed[..], &[0]].concat();
    assert_eq!(check(&longer), Err(EncryptedKeyError::Malformed));
    for data in [&[][..], &[0; 15], &[0; 17]] {
        let sealed = cheap(&[1], HMAC_SHA256, AES_128_CBC, data);
        assert_eq!(check(&sealed), Err(EncryptedKeyError::Malformed));
    }
}

proptest! {
    #[test]
    fn no_bytes_are_a_panic(at in 0_usize..90, byte: u8, len in 0_usize..120) {
        let mut sealed = cheap(&[1], HMAC_SHA256, AES_128_CBC, &[0; 32]);
        if let Some(place) = sealed.get_mut(at) {
            *place = byte;
        }
        sealed.truncate(len);
        let _ = check(&sealed);
    }
}
