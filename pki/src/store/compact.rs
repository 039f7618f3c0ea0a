//! A journal without the lines that nobody needs any more.
//!
//! All that is kept goes into a new file beside it, which takes the place of the one that is written
//! in one step; then the files that were put aside go, the newest first, so that readers find no
//! gap among their numbers. A crash before that step leaves everything as it was, one behind it
//! some lines twice; the next run puts that right. No line that is kept is ever missing.

use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::journal::{Journal, Lock, write_error};
use super::{StoreError, flush, step, sync_directory_of};
use crate::key::sha256;

/// What became of the lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Lines that are still there.
    pub kept: u64,
    /// Lines that are not, those that were there twice included.
    pub dropped: u64,
}

impl Journal {
    /// Leaves out what `keep` does not want. Nothing is changed when there is no such line, or when
    /// one cannot be read.
    pub fn compact(
        &self,
        mut keep: impl FnMut(&[u8]) -> Result<bool, String>,
    ) -> Result<Compacted, StoreError> {
        let failed = |source| write_error(&self.path, source);
        step().map_err(failed)?;
        let _lock = Lock::take(&self.path.with_extension("lock"))?;
        // Whoever holds the lock may write over what a crash left of this.
        let new = self.new_path();
        let result = self.keep_in(&new, &mut keep);
        match result {
            Ok(done) if done.dropped > 0 => {
                step()
                    .and_then(|()| fs::rename(&new, &self.path))
                    .and_then(|()| sync_directory_of(&self.path))
                    .map_err(failed)?;
                self.remove_aside().map_err(failed)?;
                Ok(done)
            }
            unchanged => {
                let _ = step().and_then(|()| fs::remove_file(&new));
                unchanged
            }
        }
    }

    fn new_path(&self) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(".new");
        name.into()
    }

    /// Writes what is kept, each line once, and flushes it to the disk.
    fn keep_in(
        &self,
        new: &PathBuf,
        keep: &mut impl FnMut(&[u8]) -> Result<bool, String>,
    ) -> Result<Compacted, StoreError> {
        let failed = |source| write_error(new, source);
        step().map_err(failed)?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(new)
            .map_err(failed)?;
        let mut out = BufWriter::new(file);
        let (mut done, mut seen, mut broken) = (Compacted::default(), HashSet::new(), None);
        let read = self.each(|line| {
            let mut start = [0; 16];
            start.copy_from_slice(&sha256(line)[..16]);
            if !keep(line)? || !seen.insert(start) {
                done.dropped += 1;
                return Ok(());
            }
            done.kept += 1;
            let written = out.write_all(line).and_then(|()| out.write_all(b"\n"));
            written.map_err(|error| {
                let text = error.to_string();
                broken = Some(error);
                text
            })
        });
        if let Some(error) = broken {
            return Err(failed(error));
        }
        read?;
        step().map_err(failed)?;
        let file = out
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
            .map_err(failed)?;
        flush(&file).map_err(failed)?;
        Ok(done)
    }

    fn remove_aside(&self) -> io::Result<()> {
        let mut aside = self.files();
        aside.pop();
        for path in aside.iter().rev() {
            step()?;
            fs::remove_file(path)?;
        }
        match aside.is_empty() {
            true => Ok(()),
            false => sync_directory_of(&self.path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::faults;
    use crate::store::tests::Scratch;

    fn lines(journal: &Journal) -> Vec<String> {
        let mut out = Vec::new();
        let read = journal.each(|line| {
            out.push(String::from_utf8_lossy(line).into_owned());
            Ok(())
        });
        read.unwrap();
        out
    }

    /// Five files of two or three lines, every second of which is over.
    fn full(dir: &Scratch) -> Journal {
        let mut journal = Journal::at(dir.path("issued.jsonl"));
        journal.full = 16;
        for number in 0..12 {
            let word = if number % 2 == 0 { "over" } else { "good" };
            journal.append(&[format!("{word} {number}")]).unwrap();
        }
        assert!(journal.files().len() > 3);
        journal
    }

    fn good(line: &[u8]) -> Result<bool, String> {
        Ok(line.starts_with(b"good"))
    }

    const GOOD: [&str; 6] = ["good 1", "good 3", "good 5", "good 7", "good 9", "good 11"];

    #[test]
    fn what_is_wanted_stays_in_its_order_and_in_one_file() {
        let dir = Scratch::new();
        let journal = full(&dir);
        let done = journal.compact(good).unwrap();
        assert_eq!((done.kept, done.dropped), (6, 6));
        assert_eq!(lines(&journal), GOOD);
        assert_eq!(journal.files().len(), 1);
        // Once more there is nothing to do.
        let before = fs::metadata(&journal.path).unwrap().modified().unwrap();
        let done = journal.compact(good).unwrap();
        assert_eq!((done.kept, done.dropped), (6, 0));
        let after = fs::metadata(&journal.path).unwrap().modified().unwrap();
        assert_eq!(before, after);
        journal.append(&["good 12".into()]).unwrap();
        assert_eq!(lines(&journal).len(), 7);
        assert!(!dir.path("issued.jsonl.new").exists());
        // What there is nothing of needs nothing done.
        let none = Journal::at(dir.path("none.jsonl"));
        assert_eq!(none.compact(good).unwrap(), Compacted::default());
        assert!(!none.path.exists() && !dir.path("none.jsonl.new").exists());
    }

    #[test]
    fn a_crash_between_any_two_changes_loses_no_line_that_is_wanted() {
        for count in 0.. {
            let dir = Scratch::new();
            let journal = full(&dir);
            let before = lines(&journal);
            let (result, enough) = faults::with_changes(count, || journal.compact(good));
            let found = lines(&journal);
            for line in GOOD {
                assert!(found.iter().any(|one| one == line), "{count}: {found:?}");
            }
            assert!(found.iter().all(|one| before.contains(one)), "{count}");
            // Others go on with it, and the next run ends what this one began.
            journal.append(&["good 12".into()]).unwrap();
            journal.compact(good).unwrap();
            let mut all = lines(&journal);
            all.sort();
            let mut wanted: Vec<&str> = GOOD.into_iter().chain(["good 12"]).collect();
            wanted.sort_unstable();
            assert_eq!(all, wanted, "{count}");
            assert!(!dir.path("issued.jsonl.new").exists(), "{count}");
            if enough {
                assert!(result.is_ok() && count > 6, "{count}");
                return;
            }
        }
    }

    #[test]
    fn a_line_that_cannot_be_read_leaves_everything_as_it_is() {
        let dir = Scratch::new();
        let journal = full(&dir);
        let before = lines(&journal);
        let refused = journal.compact(|line| match line {
            b"good 9" => Err("is no line of ours".into()),
            _ => Ok(false),
        });
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("is no line of ours"), "{error}");
        assert_eq!(lines(&journal), before);
        assert!(!dir.path("issued.jsonl.new").exists());
    }
}
