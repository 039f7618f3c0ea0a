//! A private key in the one form that everything reads: PKCS#8, unencrypted. What came as PKCS#1
//! or SEC1 gets the wrapping; the key inside stays byte for byte.

use rustls_pki_types::PrivateKeyDer;

use crate::der::{element, sequence};
use crate::key::{KeyError, PrivateKey};
use crate::secret::Secret;

/// The key as PKCS#8, DER. It must be one that can sign.
pub fn pkcs8(key: &PrivateKeyDer<'_>) -> Result<Secret, KeyError> {
    let public = PrivateKey::from_der(key)?.public();
    let inner = match key {
        PrivateKeyDer::Pkcs8(der) => return Ok(Secret::new(der.secret_pkcs8_der().to_vec())),
        PrivateKeyDer::Pkcs1(der) => der.secret_pkcs1_der(),
        PrivateKeyDer::Sec1(der) => der.secret_sec1_der(),
        _ => return Err(KeyError::Unusable),
    };
    // The public key names its algorithm and curve in the same words.
    let algorithm = algorithm(public.der()).ok_or(KeyError::Unusable)?;
    let inner = Secret::new(element(0x04, inner));
    Ok(Secret::new(sequence(&[
        &[0x02, 0x01, 0x00],
        algorithm,
        inner.expose(),
    ])))
}

/// AlgorithmIdentifier of a SubjectPublicKeyInfo: the first element inside. Both are short.
fn algorithm(spki: &[u8]) -> Option<&[u8]> {
    let inside = match spki {
        [0x30, 0x81, _, rest @ ..] | [0x30, 0x82, _, _, rest @ ..] => rest,
        [0x30, length, rest @ ..] if *length < 0x80 => rest,
        _ => return None,
    };
    match inside {
        [0x30, length, ..] if *length < 0x80 => inside.get(..usize::from(*length) + 2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::KeyKind;

    #[test]
    fn every_kind_stays_what_it_is() {
        for kind in KeyKind::ALL {
            let key = PrivateKey::generate(kind).unwrap();
            let made = pkcs8(&key.to_der()).unwrap();
            let back = PrivateKeyDer::Pkcs8(made.expose().to_vec().into());
            assert_eq!(
                PrivateKey::from_der(&back).unwrap().public(),
                key.public(),
                "{kind}"
            );
        }
        let junk = PrivateKeyDer::Sec1(vec![0x30, 0].into());
        assert_eq!(pkcs8(&junk).unwrap_err(), KeyError::Unusable);
    }
}
