//! The deny list: identities and serial numbers that are refused although they verify.
//!
//! One entry a line; `#` begins a comment; blank lines are skipped:
//!
//! ```text
//! spiffe://prod.example/towline/agent/n7      # stolen: every certificate of this name
//! serial:4f2a9c0d...                          # one certificate, or everything below an authority
//! ```
//!
//! A line that is neither makes the whole file an error, so that a typing mistake never lets
//! somebody in: the daemon keeps the list it has.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use towline_proto::limits;

use crate::identity::{Identity, IdentityError};
use crate::inspect::escape;
use crate::serial::{Serial, SerialError};
use crate::store::{self, StoreError};

/// Who is refused. Cheap to clone, never changed; the default refuses nobody.
#[derive(Clone, Debug, Default)]
pub struct DenyList {
    entries: Arc<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    identities: HashSet<Identity>,
    serials: HashSet<Serial>,
}

/// What is wrong with a deny list.
#[derive(Debug, thiserror::Error)]
pub enum DenyListError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{path}: {source}", path = path.display())]
    In {
        path: PathBuf,
        source: Box<DenyListError>,
    },
    #[error("not text (UTF-8)")]
    NotText,
    #[error("line {line}: \"{text}\": {source}")]
    Identity {
        line: usize,
        text: String,
        source: IdentityError,
    },
    #[error("line {line}: \"{text}\": {source}")]
    Serial {
        line: usize,
        text: String,
        source: SerialError,
    },
    #[error("line {line}: more than {max} entries")]
    Many { line: usize, max: usize },
}

impl DenyList {
    /// Reads a file. A file that is missing is an error: a list that was asked for must be there.
    pub fn load(path: &Path) -> Result<Self, DenyListError> {
        Self::parse(&store::read(path)?).map_err(|source| DenyListError::In {
            path: path.into(),
            source: Box::new(source),
        })
    }

    /// Reads text.
    pub fn parse(text: &[u8]) -> Result<Self, DenyListError> {
        let text = std::str::from_utf8(text).map_err(|_| DenyListError::NotText)?;
        let mut entries = Entries::default();
        for (index, whole) in text.lines().enumerate() {
            let line = index + 1;
            let entry = whole.split('#').next().unwrap_or_default().trim();
            if entry.is_empty() {
                continue;
            }
            if entries.identities.len() + entries.serials.len() >= limits::DENY_ENTRIES {
                return Err(DenyListError::Many {
                    line,
                    max: limits::DENY_ENTRIES,
                });
            }
            let shown = || escape(&entry.chars().take(80).collect::<String>());
            if let Some(serial) = entry.strip_prefix("serial:") {
                let serial = serial.trim().parse();
                entries.serials.insert(serial.map_err(|source| {
                    let text = shown();
                    DenyListError::Serial { line, text, source }
                })?);
            } else {
                entries.identities.insert(entry.parse().map_err(|source| {
                    let text = shown();
                    DenyListError::Identity { line, text, source }
                })?);
            }
        }
        Ok(Self {
            entries: Arc::new(entries),
        })
    }

    /// Whether this identity is refused, whatever its certificate.
    pub fn has_identity(&self, identity: &Identity) -> bool {
        self.entries.identities.contains(identity)
    }

    /// Whether a certificate of this serial is refused, and everything that it signed.
    pub fn has_serial(&self, serial: &Serial) -> bool {
        self.entries.serials.contains(serial)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.identities.len() + self.entries.serials.len()
    }

    /// Whether nobody is refused.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_and_serials_are_read_and_comments_are_not() {
        let list = DenyList::parse(
            b"\xef\xbb\xbf# stolen\r\n\r\nspiffe://c/towline/agent/n1 # 2026-11-02\nserial: 0A:bc\n  serial:0abc  \n",
        );
        // A byte-order mark is no entry; the first line here begins with one.
        assert!(list.is_err());
        let list = DenyList::parse(
            b"# stolen\r\n\r\nspiffe://c/towline/agent/n1 # 2026-11-02\nserial: 0A:bc\n  serial:0abc  \n",
        )
        .unwrap();
        assert_eq!(list.len(), 2);
        assert!(list.has_identity(&"spiffe://c/towline/agent/n1".parse().unwrap()));
        assert!(!list.has_identity(&"spiffe://c/towline/agent/n2".parse().unwrap()));
        assert!(list.has_serial(&"abc".parse().unwrap()));
        assert!(DenyList::default().is_empty());
    }

    #[test]
    fn one_bad_line_refuses_the_file_and_says_which() {
        for bad in [
            "n1",
            "serial:",
            "serial:xyz",
            "spiffe://c/towline/agent/",
            "\u{1b}[2J",
        ] {
            let text = format!("serial:01\n{bad}\n");
            let error = DenyList::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("line 2: "), "{error}");
            assert!(!error.contains('\u{1b}'), "{error:?}");
        }
        assert!(matches!(
            DenyList::parse(b"\xff"),
            Err(DenyListError::NotText)
        ));
    }

    #[test]
    fn a_list_without_end_is_refused() {
        let text: String = (0..=limits::DENY_ENTRIES)
            .map(|i| format!("serial:{i:x}\n"))
            .collect();
        assert!(matches!(
            DenyList::parse(text.as_bytes()),
            Err(DenyListError::Many { .. })
        ));
    }
}
