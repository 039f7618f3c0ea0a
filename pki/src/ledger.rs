//! The ledger: what an authority issued, one line of JSON for each certificate.
//!
//! A certificate is in the ledger, on the disk, before anybody is handed it: so what is revoked by
//! identity is complete. A line may be there for a certificate that was never handed out, because
//! a crash came between; revoking that one too harms nobody.
//!
//! ```text
//! {"at":"2026-11-21T10:00:00Z","by":"issue","serial":"4f..","identity":"spiffe://..","subject":"CN=..",
//!  "usage":["clientAuth"],"not_before":"..","not_after":"..","issuer":"<key id>","fingerprint":"..",
//!  "key":"<its public key's hash>","ips":["10.0.0.1"]}
//! ```

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use towline_proto::limits;

use crate::date;
use crate::identity::Identity;
use crate::inspect::{Certificate, CertificateError};
use crate::join::unhex;
use crate::key::sha256;
use crate::seal::hex;
use crate::serial::{Serial, SerialError};
use crate::store::{Compacted, Journal, StoreError};

/// Name of the ledger in an authority's directory.
pub const LEDGER_FILE: &str = "issued.jsonl";

/// What was issued. Cheap to make; the file is opened for each use.
#[derive(Clone, Debug)]
pub struct Ledger {
    journal: Journal,
}

/// One certificate that was issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When, RFC 3339.
    pub at: String,
    /// What asked for it: `issue`, `sign`, `renew`, `apply`, `enrol`, ...
    pub by: String,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// The identity, when it has one: its only URI name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// Its subject, escaped and bounded.
    pub subject: String,
    /// Extended key usages; empty for an authority that may sign for anything.
    pub usage: Vec<String>,
    /// RFC 3339.
    pub not_before: String,
    /// RFC 3339.
    pub not_after: String,
    /// Key identifier of the issuer, hexadecimal; empty when the certificate names none.
    pub issuer: String,
    /// SHA-256 of the certificate, hexadecimal.
    pub fingerprint: String,
    /// SHA-256 of its public key, hexadecimal; not in lines of older versions.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key: String,
    /// Its addresses, as many as a line has room for; not in lines of older versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpAddr>,
}

/// What is wrong with a ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("ledger: {0}; without its line there is no certificate")]
    Write(StoreError),
    #[error(transparent)]
    Store(StoreError),
    #[error("the certificate that is to be recorded: {0}")]
    Certificate(#[from] CertificateError),
}

impl Ledger {
    /// In this file.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            journal: Journal::at(path.into()),
        }
    }

    /// Of the authorities in a directory.
    pub fn in_dir(dir: &Path) -> Self {
        Self::at(dir.join(LEDGER_FILE))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.journal.path()
    }

    /// Records certificates (DER) that were signed and not yet handed out. When it returns they
    /// are on the disk; one call for many costs one wait for the disk.
    pub fn record<'a>(
        &self,
        certificates: impl IntoIterator<Item = &'a [u8]>,
        by: &str,
        now: SystemTime,
    ) -> Result<(), LedgerError> {
        let lines = certificates
            .into_iter()
            .map(|der| Entry::of(der, by, now).map(|entry| entry.line()))
            .collect::<Result<Vec<_>, _>>()?;
        self.journal.append(&lines).map_err(LedgerError::Write)
    }

    /// The entries that are wanted, oldest first. A ledger that is not there is empty. A line
    /// that cannot be read is an error: what it says might be just what is looked for.
    pub fn find(&self, mut wanted: impl FnMut(&Entry) -> bool) -> Result<Vec<Entry>, LedgerError> {
        let mut found = Vec::new();
        let read = self.journal.each(|line| {
            let entry = Entry::read(line)?;
            if wanted(&entry) {
                found.push(entry);
            }
            Ok(())
        });
        read.map_err(LedgerError::Store)?;
        Ok(found)
    }

    /// Leaves out certificates that ended before `before`; the trail of who was given what is the
    /// audit trail. For the ledgers of servers: an authority's own keeps everything.
    pub fn forget(&self, before: SystemTime) -> Result<Compacted, LedgerError> {
        let keep = |line: &[u8]| Ok(!Entry::read(line)?.has_ended(before));
        self.journal.compact(keep).map_err(LedgerError::Store)
    }

    /// Every certificate of an identity that has not ended.
    pub fn of_identity(
        &self,
        identity: &Identity,
        now: SystemTime,
    ) -> Result<Vec<Entry>, LedgerError> {
        let text = identity.to_string();
        self.find(|entry| entry.identity.as_ref() == Some(&text) && !entry.has_ended(now))
    }
}

impl Entry {
    /// Of a certificate.
    pub fn of(der: &[u8], by: &str, now: SystemTime) -> Result<Self, CertificateError> {
        let certificate = Certificate::parse(der)?;
        let identity = certificate.identity().ok();
        Ok(Self {
            at: date::text(now),
            by: by.to_owned(),
            serial: certificate.serial.to_string(),
            identity: identity.map(|identity| identity.to_string()),
            // Of the longest names only a part: the line has a bound, and the serial decides.
            subject: certificate.subject.chars().take(256).collect(),
            usage: certificate
                .usages
                .iter()
                .take(8)
                .map(|usage| usage.to_string().chars().take(32).collect())
                .collect(),
            not_before: date::text(certificate.not_before),
            not_after: date::text(certificate.not_after),
            issuer: hex(certificate.issuer_key_id.as_deref().unwrap_or_default()),
            fingerprint: certificate.fingerprint.to_string(),
            key: hex(&sha256(&certificate.public_key_der)),
            ips: certificate
                .ip_sans
                .into_iter()
                .take(limits::LEDGER_ADDRESSES)
                .collect(),
        })
    }

    /// Its serial number.
    pub fn serial(&self) -> Result<Serial, SerialError> {
        self.serial.parse()
    }

    /// From when it counts; the beginning of time when its line does not say so.
    pub fn not_before(&self) -> SystemTime {
        date::from_text(&self.not_before).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Which key it is of, by its hash.
    pub fn key(&self) -> Option<[u8; 32]> {
        unhex(&self.key)
    }

    /// When it ends, or ended.
    pub fn not_after(&self) -> SystemTime {
        // Checked when it was read.
        date::from_text(&self.not_after).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Whether it can be used no more.
    pub fn has_ended(&self, now: SystemTime) -> bool {
        date::seconds(self.not_after()) < date::seconds(now)
    }

    fn read(line: &[u8]) -> Result<Self, String> {
        let entry: Self = serde_json::from_slice(line)
            .map_err(|error| format!("is no entry of a ledger: {error}"))?;
        entry.check()?;
        Ok(entry)
    }

    fn check(&self) -> Result<(), String> {
        self.serial()
            .map_err(|error| format!("serial {:?}: {error}", self.serial))?;
        match date::from_text(&self.not_after) {
            Some(_) => Ok(()),
            None => Err(format!("not_after {:?} is no time", self.not_after)),
        }
    }

    fn line(&self) -> String {
        // Strings only: it cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::authority::{Authority, AuthoritySpec, Issue};
    use crate::key::{KeyKind, PrivateKey};
    use crate::store::tests::Scratch;

    fn authority(now: SystemTime) -> Authority {
        let spec = AuthoritySpec {
            purpose: "agents".into(),
            organisation: "c".into(),
            not_before: now,
            not_after: now + Duration::from_secs(400 * 86_400),
            path_length: Some(0),
            usages: Vec::new(),
        };
        Authority::create(&spec, PrivateKey::generate(KeyKind::EcdsaP256).unwrap()).unwrap()
    }

    #[test]
    fn what_was_recorded_is_found_by_identity_until_it_ends() {
        let dir = Scratch::new();
        let ledger = Ledger::in_dir(&dir.path(""));
        let now = date::from_seconds(1_793_000_000);
        let authority = authority(now);
        let mut serials = Vec::new();
        for name in ["n1", "n2", "n1"] {
            let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
            let issue = Issue {
                identity: format!("spiffe://c/towline/agent/{name}").parse().unwrap(),
                dns: Vec::new(),
                ips: Vec::new(),
                life: Some(Duration::from_secs(86_400)),
                public_key: key.public(),
            };
            let issued = authority.issue(&issue, now).unwrap();
            ledger
                .record([issued.chain[0].as_ref()], "issue", now)
                .unwrap();
            serials.push(issued.leaf.serial);
        }
        let n1: Identity = "spiffe://c/towline/agent/n1".parse().unwrap();
        let found = ledger.of_identity(&n1, now).unwrap();
        let found: Vec<Serial> = found.iter().map(|entry| entry.serial().unwrap()).collect();
        assert_eq!(found, [serials[0].clone(), serials[2].clone()]);
        let later = now + Duration::from_secs(2 * 86_400);
        assert_eq!(ledger.of_identity(&n1, later).unwrap(), []);
        let all = ledger.find(|_| true).unwrap();
        assert_eq!(all.len(), 3);
        let key_id = hex(authority.certificate().key_id.as_deref().unwrap());
        assert!(
            all.iter()
                .all(|entry| entry.issuer == key_id && entry.by == "issue")
        );
        assert_eq!(all[0].usage, ["clientAuth"]);
        assert!(
            all.iter()
                .all(|entry| entry.key().is_some() && entry.not_before() <= now)
        );
        // Its last second counts; the lines of certificates that ended go, and no other.
        let end = all[0].not_after();
        assert_eq!(ledger.forget(end).unwrap().dropped, 0);
        let second = Duration::from_secs(1);
        let later = ledger.forget(end + second).unwrap();
        assert_eq!((later.kept, later.dropped), (0, 3));
        assert_eq!(ledger.find(|_| true).unwrap(), []);
    }

    #[test]
    fn a_line_of_an_older_version_and_the_longest_one_read_back() {
        let dir = Scratch::new();
        let ledger = Ledger::in_dir(&dir.path(""));
        let old = r#"{"at":"2026-11-21T10:00:00Z","by":"enrol","serial":"01","subject":"CN=n1","usage":[],"not_before":"2026-11-21T10:00:00Z","not_after":"2026-11-22T10:00:00Z","issuer":"","fingerprint":""}"#;
        std::fs::write(ledger.path(), format!("{old}\n")).unwrap();
        let found = ledger.find(|_| true).unwrap();
        assert_eq!((found[0].key(), found[0].ips.len()), (None, 0));
        assert_eq!(found[0].line(), old);
        let now = date::from_seconds(1_793_000_000);
        let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
        let name = [63, 63, 63, 61].map(|length| "n".repeat(length)).join(".");
        let ips = (0..limits::LIST_ITEMS as u128).map(|number| {
            let address = (0xfd00_1111_2222_3333_4444_5555_6666_7000 + number).into();
            IpAddr::V6(address)
        });
        let issue = Issue {
            identity: format!("spiffe://c/towline/agent/{name}").parse().unwrap(),
            dns: Vec::new(),
            ips: ips.collect(),
            life: Some(Duration::from_secs(86_400)),
            public_key: key.public(),
        };
        let issued = authority(now).issue(&issue, now).unwrap();
        let whole = issued.chain[0].as_ref();
        ledger.record([whole], "enrol", now).unwrap();
        let found = ledger.find(|_| true).unwrap();
        assert_eq!(found[1].ips.len(), limits::LEDGER_ADDRESSES);
    }

    #[test]
    fn a_damaged_line_is_an_error_with_its_place() {
        let dir = Scratch::new();
        let ledger = Ledger::in_dir(&dir.path(""));
        for bad in [
            "nonsense",
            "{}",
            r#"{"at":"","by":"","serial":"x","subject":"","usage":[],"not_before":"","not_after":"","issuer":"","fingerprint":""}"#,
            r#"{"at":"","by":"","serial":"01","subject":"","usage":[],"not_before":"","not_after":"tomorrow","issuer":"","fingerprint":""}"#,
        ] {
            std::fs::write(ledger.path(), format!("{bad}\n")).unwrap();
            let error = ledger.find(|_| true).unwrap_err().to_string();
            assert!(error.contains("issued.jsonl: line 1: "), "{error}");
        }
    }
}
