//! The deny list as `revoke` keeps it: lines are added and taken out, everything else of the file
//! stays as a person wrote it.

use std::path::Path;
use std::time::SystemTime;

use towline_pki::store::{self, Replace};
use towline_pki::{DenyList, Identity, Serial, date};

use super::Failure;

/// A deny list's text.
pub(crate) struct DenyFile {
    text: String,
    list: DenyList,
}

impl DenyFile {
    /// Reads it; one that is not there is empty.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let text = match path.exists() {
            true => store::read(path)?,
            false => Vec::new(),
        };
        let named = |error: &dyn std::fmt::Display| {
            Failure::file(format!(
                "{}: {error}. Nothing was changed; mend the line first",
                path.display()
            ))
        };
        let list = DenyList::parse(&text).map_err(|error| named(&error))?;
        let text = String::from_utf8(text).map_err(|error| named(&error))?;
        Ok(Self { text, list })
    }

    pub(crate) fn has(&self, identity: &Identity) -> bool {
        self.list.has_identity(identity)
    }

    /// Adds an identity or `serial:HEX`, with a note; `false` when it is there already.
    pub(crate) fn add(&mut self, entry: &str, note: &str, now: SystemTime) -> bool {
        let known = match entry.strip_prefix("serial:").map(str::parse::<Serial>) {
            Some(serial) => serial.is_ok_and(|serial| self.list.has_serial(&serial)),
            None => entry.parse().is_ok_and(|identity| self.has(&identity)),
        };
        if known {
            return false;
        }
        if !self.text.is_empty() && !self.text.ends_with('\n') {
            self.text.push('\n');
        }
        let day = date::text(now);
        self.text.push_str(&format!("{entry} # {day} {note}\n"));
        true
    }

    /// Takes an identity out; `false` when it is not there.
    pub(crate) fn lift(&mut self, identity: &Identity) -> bool {
        let is_it = |line: &str| {
            let entry = line.split('#').next().unwrap_or_default().trim();
            entry
                .parse::<Identity>()
                .is_ok_and(|found| found == *identity)
        };
        let kept: String = self
            .text
            .split_inclusive('\n')
            .filter(|line| !is_it(line))
            .collect();
        let found = kept.len() != self.text.len();
        self.text = kept;
        found
    }

    /// Puts it in its place in one step.
    pub(crate) fn write(&self, path: &Path) -> Result<(), Failure> {
        // What daemons would refuse must not get there.
        DenyList::parse(self.text.as_bytes())?;
        Ok(store::write_public(path, &self.text, Replace::Atomically)?)
    }
}

/// Refuses to sign for who is denied.
pub(crate) fn refuse_denied(path: &Path, identity: &Identity) -> Result<(), Failure> {
    match DenyFile::read(path)?.has(identity) {
        true => Err(Failure::failed(format!(
            "nothing was signed: {identity} is on the deny list {}; when it may come back, run \
             `towline-pki revoke --lift {}/{}` first",
            path.display(),
            identity.role,
            identity.name
        ))),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_person_wrote_stays() {
        let own = "# ours\r\nserial:0a # old\n  spiffe://c/towline/agent/n1   # stolen\nspiffe://c/towline/agent/n2";
        let mut file = DenyFile {
            list: DenyList::parse(own.as_bytes()).unwrap(),
            text: own.into(),
        };
        let now = date::from_seconds(1_793_000_000);
        assert!(!file.add("serial:0A", "x", now));
        assert!(!file.add("spiffe://c/towline/agent/n1", "x", now));
        assert!(file.add("spiffe://c/towline/agent/n3", "keyCompromise", now));
        assert!(file.text.starts_with(own), "{}", file.text);
        assert!(!file.lift(&"spiffe://c/towline/agent/n9".parse().unwrap()));
        assert!(file.lift(&"spiffe://c/towline/agent/n1".parse().unwrap()));
        assert_eq!(
            file.text,
            "# ours\r\nserial:0a # old\nspiffe://c/towline/agent/n2\n\
             spiffe://c/towline/agent/n3 # 2026-10-26T07:33:20Z keyCompromise\n"
        );
    }
}
