//! A file to which whole lines are added, and the lock under which an authority's files change.
//!
//! Lines are on the disk when [`Journal::append`] returns. What a crash left of a line that was
//! being written is cut off by the next one who writes and passed over by readers. A file that is
//! full is put aside as `NAME-000001.END` and so on; readers read those first. [`Journal::compact`]
//! (in `compact.rs`) leaves lines out that nobody needs any more.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use towline_proto::limits;

use super::{StoreError, directory_of, sync_directory_of};

/// Held by whoever changes files that belong together. Dropping it gives it back, and so does
/// the end of the process.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock, at most [`limits::AUTHORITY_LOCK`].
    pub fn take(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| write_error(path, source);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        let until = Instant::now() + limits::AUTHORITY_LOCK;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(fs::TryLockError::Error(source)) => return Err(failed(source)),
                Err(fs::TryLockError::WouldBlock) if Instant::now() >= until => {
                    return Err(StoreError::Locked { path: path.into() });
                }
                Err(fs::TryLockError::WouldBlock) => {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }
}

/// See the head of this file.
#[derive(Clone, Debug)]
pub struct Journal {
    pub(super) path: PathBuf,
    pub(super) full: u64,
}

impl Journal {
    /// The file need not be there yet.
    pub fn at(path: PathBuf) -> Self {
        Self {
            path,
            full: limits::LEDGER_BYTES,
        }
    }

    /// Where lines are added.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds lines, all or none of them as far as an error tells. Each must have no line end.
    pub fn append(&self, lines: &[String]) -> Result<(), StoreError> {
        let failed = |source| write_error(&self.path, source);
        let mut text = String::new();
        for line in lines {
            if line.len() >= limits::LEDGER_LINE_BYTES || line.contains('\n') {
                return Err(self.line(0, format!("{} bytes are too many", line.len())));
            }
            text.push_str(line);
            text.push('\n');
        }
        super::step().map_err(failed)?;
        let _lock = Lock::take(&self.path.with_extension("lock"))?;
        let is_full = |found: fs::Metadata| found.len() >= self.full;
        if fs::metadata(&self.path).is_ok_and(is_full) {
            self.put_aside()?;
        }
        let new = !self.path.exists();
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.path)
            .map_err(failed)?;
        let whole = whole_lines(&mut file).map_err(failed)?;
        let Some(whole) = whole else {
            return Err(self.line(0, "its end is no line of ours; move the file away".into()));
        };
        file.set_len(whole).map_err(failed)?;
        let written = file
            .write_all(text.as_bytes())
            .and_then(|()| file.sync_all());
        if let Err(source) = written {
            // Half of it would be a line that nobody was told of.
            let _ = file.set_len(whole);
            return Err(failed(source));
        }
        if new {
            sync_directory_of(&self.path).map_err(failed)?;
        }
        Ok(())
    }

    /// Shows every line, oldest first, with its file and number.
    pub fn each(&self, mut see: impl FnMut(&[u8]) -> Result<(), String>) -> Result<(), StoreError> {
        for path in self.files() {
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(StoreError::Read { path, source }),
            };
            let mut reader = BufReader::new(file);
            let mut line = Vec::new();
            for number in 1.. {
                line.clear();
                let most = limits::LEDGER_LINE_BYTES as u64 + 1;
                let read = reader.by_ref().take(most).read_until(b'\n', &mut line);
                let length = read.map_err(|source| StoreError::Read {
                    path: path.clone(),
                    source,
                })?;
                let ended = line.pop_if(|last| *last == b'\n').is_some();
                if length == 0 || (!ended && length < limits::LEDGER_LINE_BYTES) {
                    // The end, or what a crash left of a line.
                    break;
                }
                let seen = match ended {
                    true => see(&line),
                    false => Err("is longer than any line of ours".into()),
                };
                seen.map_err(|cause| StoreError::Line {
                    path: path.clone(),
                    line: number,
                    cause,
                })?;
            }
        }
        Ok(())
    }

    /// Files that were put aside, oldest first, and the one that is written.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let aside = (1..=limits::LEDGER_FILES).map(|number| self.aside(number));
        let mut files: Vec<PathBuf> = aside.take_while(|path| path.exists()).collect();
        files.push(self.path.clone());
        files
    }

    fn aside(&self, number: u32) -> PathBuf {
        let part = |part: Option<&std::ffi::OsStr>| {
            part.map_or_else(String::new, |part| part.to_string_lossy().into_owned())
        };
        let (stem, end) = (part(self.path.file_stem()), part(self.path.extension()));
        directory_of(&self.path).join(format!("{stem}-{number:06}.{end}"))
    }

    fn put_aside(&self) -> Result<(), StoreError> {
        let free = (1..=limits::LEDGER_FILES)
            .map(|number| self.aside(number))
            .find(|path| !path.exists())
            .ok_or_else(|| self.line(0, "too many full files lie beside it".into()))?;
        fs::rename(&self.path, free)
            .and_then(|()| sync_directory_of(&self.path))
            .map_err(|source| write_error(&self.path, source))
    }

    fn line(&self, line: usize, cause: String) -> StoreError {
        StoreError::Line {
            path: self.path.clone(),
            line,
            cause,
        }
    }
}

pub(super) fn write_error(path: &Path, source: io::Error) -> StoreError {
    StoreError::Write {
        path: path.into(),
        source,
    }
}

/// How many bytes of the file are whole lines; `None` when its end cannot be one of ours.
fn whole_lines(file: &mut File) -> io::Result<Option<u64>> {
    let len = file.seek(SeekFrom::End(0))?;
    let back = len.min(limits::LEDGER_LINE_BYTES as u64);
    file.seek(SeekFrom::Start(len - back))?;
    let mut tail = Vec::new();
    file.take(back).read_to_end(&mut tail)?;
    Ok(match tail.iter().rposition(|byte| *byte == b'\n') {
        Some(last) => Some(len - back + last as u64 + 1),
        None if back == len => Some(0),
        None => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::Scratch;

    fn lines(journal: &Journal) -> Vec<String> {
        let mut out = Vec::new();
        journal
            .each(|line| {
                out.push(String::from_utf8_lossy(line).into_owned());
                Ok(())
            })
            .unwrap();
        out
    }

    #[test]
    fn what_a_crash_left_of_a_line_is_neither_read_nor_built_upon() {
        let dir = Scratch::new();
        let journal = Journal::at(dir.path("issued.jsonl"));
        assert_eq!(lines(&journal), [""; 0]);
        journal.append(&["one".into(), "two".into()]).unwrap();
        let whole = fs::read(journal.path()).unwrap();
        for torn in ["t", "thre", "{\"serial\":\"0"] {
            fs::write(journal.path(), [&whole, torn.as_bytes()].concat()).unwrap();
            assert_eq!(lines(&journal), ["one", "two"], "{torn}");
        }
        journal.append(&["three".into()]).unwrap();
        assert_eq!(lines(&journal), ["one", "two", "three"]);
    }

    #[test]
    fn a_full_file_is_put_aside_and_still_read() {
        let dir = Scratch::new();
        let mut journal = Journal::at(dir.path("issued.jsonl"));
        journal.full = 8;
        let all: Vec<String> = (0..7).map(|number| format!("line {number}")).collect();
        for line in &all {
            journal.append(std::slice::from_ref(line)).unwrap();
        }
        assert_eq!(lines(&journal), all);
        assert!(dir.path("issued-000003.jsonl").exists());
        assert!(!dir.path("issued-000004.jsonl").exists());
    }

    #[test]
    fn writers_at_once_lose_no_line() {
        let dir = Scratch::new();
        let journal = Journal::at(dir.path("issued.jsonl"));
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let journal = &journal;
                scope.spawn(move || {
                    for line in 0..5 {
                        journal.append(&[format!("{writer} {line}")]).unwrap();
                    }
                });
            }
        });
        let mut found = lines(&journal);
        found.sort();
        found.dedup();
        assert_eq!(found.len(), 20);
    }

    #[test]
    fn lines_without_end_and_foreign_files_are_refused() {
        let dir = Scratch::new();
        let journal = Journal::at(dir.path("issued.jsonl"));
        let long = "x".repeat(limits::LEDGER_LINE_BYTES);
        assert!(journal.append(std::slice::from_ref(&long)).is_err());
        assert!(journal.append(&["a\nb".into()]).is_err());
        assert!(!journal.path().exists());
        fs::write(journal.path(), long.repeat(3)).unwrap();
        assert!(journal.each(|_| Ok(())).is_err());
        let before = fs::read(journal.path()).unwrap();
        assert!(journal.append(&["one".into()]).is_err());
        assert_eq!(fs::read(journal.path()).unwrap(), before);
    }
}
