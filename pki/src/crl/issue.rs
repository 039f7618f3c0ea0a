//! Making a revocation list (RFC 5280 chapter 5): version 2, complete, direct, with a number that
//! grows, signed by the key whose certificates it revokes. Nobody else's signature counts, so of an
//! authority that is held elsewhere the list is made there.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use rustls_pki_types::CertificateRevocationListDer;

use crate::authority::Authority;
use crate::date;
use crate::der::{bit_string, element, positive_integer, sequence};
use crate::mint::{AUTHORITY_KEY_ID, MintError, extension};
use crate::serial::Serial;

const CRL_NUMBER: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x14];
const REASON_CODE: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x15];

/// One certificate that is revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    pub serial: Serial,
    pub at: SystemTime,
    pub reason: RevocationReason,
}

/// Why, as RFC 5280 numbers it. Those that a certificate could come back from are left out: a
/// serial that is revoked stays revoked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RevocationReason {
    #[default]
    Unspecified,
    KeyCompromise,
    CaCompromise,
    AffiliationChanged,
    Superseded,
    CessationOfOperation,
    PrivilegeWithdrawn,
}

const REASONS: [(RevocationReason, u8, &str); 7] = [
    (RevocationReason::Unspecified, 0, "unspecified"),
    (RevocationReason::KeyCompromise, 1, "keyCompromise"),
    (RevocationReason::CaCompromise, 2, "caCompromise"),
    (
        RevocationReason::AffiliationChanged,
        3,
        "affiliationChanged",
    ),
    (RevocationReason::Superseded, 4, "superseded"),
    (
        RevocationReason::CessationOfOperation,
        5,
        "cessationOfOperation",
    ),
    (
        RevocationReason::PrivilegeWithdrawn,
        9,
        "privilegeWithdrawn",
    ),
];

impl RevocationReason {
    /// The number on the list.
    pub fn code(self) -> u8 {
        let found = REASONS.iter().find(|(reason, ..)| *reason == self);
        found.map_or(0, |(_, code, _)| *code)
    }

    pub(super) fn of_code(code: u8) -> Self {
        let found = REASONS.iter().find(|(_, known, _)| *known == code);
        found.map_or(Self::Unspecified, |(reason, ..)| *reason)
    }
}

impl fmt::Display for RevocationReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = REASONS.iter().find(|(reason, ..)| reason == self);
        f.write_str(found.map_or("unspecified", |(.., name)| name))
    }
}

/// A word that is no reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no reason for revoking: use unspecified, keyCompromise, caCompromise, affiliationChanged, \
     superseded, cessationOfOperation or privilegeWithdrawn"
)]
pub struct UnknownReason;

impl FromStr for RevocationReason {
    type Err = UnknownReason;

    /// Also `key-compromise`.
    fn from_str(text: &str) -> Result<Self, UnknownReason> {
        let word = text.replace('-', "");
        REASONS
            .iter()
            .find(|(.., name)| name.eq_ignore_ascii_case(&word))
            .map(|(reason, ..)| *reason)
            .ok_or(UnknownReason)
    }
}

/// A list, word for word.
#[derive(Clone, Debug)]
pub struct ListSpec {
    pub number: u64,
    pub this_update: SystemTime,
    pub next_update: SystemTime,
    pub revoked: Vec<Revoked>,
}

/// Why a list is not signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    #[error(
        "authority {subject} may not sign revocation lists: its key usage lacks cRLSign; give \
         daemons the serial numbers by their deny list"
    )]
    NotForLists { subject: String },
    #[error(transparent)]
    Mint(#[from] MintError),
}

impl Authority {
    /// Signs a list.
    pub fn sign_list(
        &self,
        spec: &ListSpec,
    ) -> Result<CertificateRevocationListDer<'static>, ListError> {
        let signer = self.signer();
        if !self.certificate().signs_lists {
            return Err(ListError::NotForLists {
                subject: self.certificate().subject.clone(),
            });
        }
        let algorithm = signer.key.signature_algorithm().map_err(MintError::from)?;
        let time = |time: SystemTime| {
            let (tag, text) = date::asn1(time);
            element(tag, text.as_bytes())
        };
        let entries: Vec<u8> = spec
            .revoked
            .iter()
            .flat_map(|one| entry(one, &time))
            .collect();
        // Absent when there is none (RFC 5280 section 5.1.2.6).
        let revoked = match entries.is_empty() {
            true => Vec::new(),
            false => element(0x30, &entries),
        };
        let number = positive_integer(&spec.number.to_be_bytes());
        let key_id = sequence(&[&element(0x80, signer.key_id)]);
        let extensions = [
            extension(AUTHORITY_KEY_ID, false, &key_id),
            extension(CRL_NUMBER, false, &number),
        ]
        .concat();
        let tbs = sequence(&[
            &positive_integer(&[1]),
            algorithm,
            signer.name_der,
            &time(spec.this_update),
            &time(spec.next_update),
            &revoked,
            &element(0xa0, &element(0x30, &extensions)),
        ]);
        let signature = signer.key.sign(&tbs).map_err(MintError::from)?;
        let whole = sequence(&[&tbs, algorithm, &bit_string(0, &signature)]);
        Ok(CertificateRevocationListDer::from(whole))
    }
}

fn entry(revoked: &Revoked, time: &impl Fn(SystemTime) -> Vec<u8>) -> Vec<u8> {
    let code = revoked.reason.code();
    // RFC 5280 section 5.3.1: unspecified is left out.
    let reason = match code {
        0 => Vec::new(),
        code => sequence(&[&extension(REASON_CODE, false, &element(0x0a, &[code]))]),
    };
    sequence(&[
        &positive_integer(revoked.serial.bytes()),
        &time(revoked.at),
        &reason,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_survive_their_words_and_numbers() {
        for (reason, code, name) in REASONS {
            assert_eq!(name.parse(), Ok(reason));
            assert_eq!(RevocationReason::of_code(code), reason);
            assert_eq!(reason.to_string(), name);
        }
        assert_eq!(
            "key-compromise".parse(),
            Ok(RevocationReason::KeyCompromise)
        );
        for bad in ["", "certificateHold", "removeFromCRL", "x"] {
            assert_eq!(bad.parse::<RevocationReason>(), Err(UnknownReason), "{bad}");
        }
    }
}
