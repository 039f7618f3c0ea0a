//! The audit trail of a server of the kit: its records, and the proof over them.

use std::path::{Path, PathBuf};

use serde_json::Value;
use towline_pki::store::{self, Replace};
use towline_pki::{KeyKind, PrivateKey, SealPublic, pem};
use towline_server::audit::verify::{Fault, Findings, Verifier, Wanted};

use crate::scenario::eventually;
use crate::scratch::Scratch;

/// Makes the key of an audit trail, `audit.key` and `audit.pub`.
pub fn make_key(scratch: &Scratch) {
    let key = PrivateKey::generate(KeyKind::Ed25519).expect("a key");
    let public = pem::write_public_key(key.public().der());
    store::write_secret(&scratch.join("audit.key"), &key.to_pem(), Replace::Never).expect("a file");
    store::write_public(&scratch.join("audit.pub"), &public, Replace::Never).expect("a file");
}

/// One trail.
#[derive(Clone, Debug)]
pub struct AuditTrail {
    log: PathBuf,
    public: PathBuf,
}

impl AuditTrail {
    /// The trail in this file, proven with `audit.pub` beside it.
    pub fn at(log: PathBuf, public: PathBuf) -> Self {
        Self { log, public }
    }

    /// The file that is written now.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The public key.
    pub fn public(&self) -> &Path {
        &self.public
    }

    /// Every file of it, oldest first.
    pub fn files(&self) -> Vec<PathBuf> {
        let name = self.log.file_name().expect("a name").to_string_lossy();
        let folder = self.log.parent().expect("a folder");
        let entries = std::fs::read_dir(folder).expect("a folder").flatten();
        let mut aside: Vec<PathBuf> = entries
            .map(|entry| entry.path())
            .filter(|path| {
                let file = path.file_name().unwrap_or_default().to_string_lossy();
                let end = file.strip_prefix(&format!("{name}.")).map(str::to_owned);
                end.is_some_and(|end| end.bytes().all(|byte| byte.is_ascii_digit()))
            })
            .collect();
        aside.sort();
        aside.push(self.log.clone());
        aside
    }

    /// Every whole record.
    pub fn records(&self) -> Vec<Value> {
        let mut records = Vec::new();
        for path in self.files() {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            records.extend(
                whole
                    .lines()
                    .filter_map(|line| serde_json::from_str::<Value>(line).ok()),
            );
        }
        records
    }

    /// Records of this event.
    pub fn of(&self, event: &str) -> Vec<Value> {
        let mut records = self.records();
        records.retain(|record| record["event"] == event);
        records
    }

    /// Waits for a record that fits.
    pub async fn record(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        eventually(what, || async { self.records().into_iter().find(&fits) }).await
    }

    /// The start and the end of the one dial to this target.
    pub async fn dial(&self, target: &str) -> (Value, Value) {
        let of = |event: &'static str| {
            move |record: &Value| record["event"] == event && record["target"] == target
        };
        let end = self.record("the end of the dial", of("end")).await;
        let start = self.record("its start", of("start")).await;
        (start, end)
    }

    /// The proof over all files, with the key.
    pub fn prove(&self) -> (Findings, Result<(), Fault>) {
        let mut verifier = Verifier::new(Wanted {
            keys: vec![SealPublic::load(&self.public).expect("a key")],
            head: None,
        });
        for path in self.files() {
            let bytes = std::fs::read(&path).expect("a file");
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if let Err(fault) = verifier.file(&name).and_then(|()| verifier.push(&bytes)) {
                return (verifier.findings().clone(), Err(fault));
            }
        }
        verifier.finish()
    }

    /// What the proof found, which must be good.
    pub fn proven(&self) -> Findings {
        let (findings, result) = self.prove();
        if let Err(fault) = result {
            panic!("{fault}");
        }
        findings
    }
}
