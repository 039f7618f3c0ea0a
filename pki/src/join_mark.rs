//! The mark of a used join token: written by servers, read by them and by `towline-pki token list`.
//!
//! ```text
//! <hash of the key> <name> <until> <when it was used>
//! ```

use std::fmt;
use std::path::Path;
use std::time::SystemTime;

use towline_proto::id::Name;

use crate::date;
use crate::join::{JoinError, JoinId, unhex};
use crate::seal::hex;
use crate::store;

/// How a server writes down that a token was used, in a file of the token's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinMark {
    /// Hash of the key that it was used for.
    pub key: [u8; 32],
    /// The name that it was used for.
    pub name: Name,
    /// When the token ends.
    pub until: SystemTime,
    /// When it was used.
    pub at: SystemTime,
}

impl JoinMark {
    /// Reads what a server wrote.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let [key, name, until, at] = words[..] else {
            return None;
        };
        Some(Self {
            key: unhex(key)?,
            name: name.parse().ok()?,
            until: date::from_text(until)?,
            at: date::from_text(at)?,
        })
    }

    /// The mark of this token in a directory (`--enrol-join-spent`), if it has one.
    pub fn load(directory: &Path, id: &JoinId) -> Result<Option<Self>, JoinError> {
        let path = directory.join(id.to_string());
        let Some(text) = store::read_if_there(&path)? else {
            return Ok(None);
        };
        let damaged = || JoinError::Mark { path: path.clone() };
        Self::parse(&text).map(Some).ok_or_else(damaged)
    }
}

impl fmt::Display for JoinMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (until, at) = (date::text(self.until), date::text(self.at));
        write!(f, "{} {} {until} {at}", hex(&self.key), self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::Scratch;

    #[test]
    fn a_mark_reads_back_and_damage_is_named() {
        let dir = Scratch::new();
        let mark = JoinMark {
            key: [7; 32],
            name: "n1".parse().unwrap(),
            until: date::from_seconds(1_800_000_000),
            at: date::from_seconds(1_799_000_000),
        };
        let text = mark.to_string();
        assert_eq!(JoinMark::parse(text.as_bytes()), Some(mark.clone()));
        let id: JoinId = "00112233445566aa".parse().unwrap();
        let path = dir.path(&id.to_string());
        assert_eq!(JoinMark::load(&dir.path(""), &id).unwrap(), None);
        std::fs::write(&path, format!("{text}\n")).unwrap();
        assert_eq!(JoinMark::load(&dir.path(""), &id).unwrap(), Some(mark));
        for bad in [
            String::new(),
            text.replace("n1", "N1"),
            text.replacen('0', "x", 1),
            format!("{text} more"),
            text.replace('Z', ""),
        ] {
            std::fs::write(&path, &bad).unwrap();
            let error = JoinMark::load(&dir.path(""), &id).unwrap_err().to_string();
            assert!(error.contains("00112233445566aa: is no mark"), "{error}");
        }
    }
}
