//! Whole directories in one step: filled under another name, flushed, and then renamed into place;
//! and taken away in one step, too.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::{StoreError, directory_of, flush, step, sync_directory_of};
use crate::secret::Secret;

/// A directory that nobody sees yet. Dropped before it is finished, it is gone.
#[derive(Debug)]
pub struct Staged {
    temporary: PathBuf,
    target: PathBuf,
    folders: BTreeSet<PathBuf>,
    finished: bool,
}

impl Staged {
    /// Begins beside where it will be; the directory above is made when it is missing.
    pub fn begin(target: &Path) -> Result<Self, StoreError> {
        let above = directory_of(target);
        super::make_private_directory(above)?;
        let staged = Self {
            temporary: hidden(target, &format!("{}.new", std::process::id())),
            target: target.into(),
            folders: BTreeSet::new(),
            finished: false,
        };
        // Left over from a process of the same number that was killed.
        remove_directory(&staged.temporary)?;
        super::make_private_directory(&staged.temporary)?;
        Ok(staged)
    }

    /// Writes a file inside that only its owner can read.
    pub fn secret(&mut self, name: &Path, secret: &Secret) -> Result<(), StoreError> {
        self.write(name, secret.expose(), 0o600)
    }

    /// Writes a file inside that everybody can read.
    pub fn public(&mut self, name: &Path, text: &str) -> Result<(), StoreError> {
        self.write(name, text.as_bytes(), 0o644)
    }

    fn write(&mut self, name: &Path, bytes: &[u8], mode: u32) -> Result<(), StoreError> {
        let path = self.temporary.join(name);
        let folder = directory_of(&path).to_owned();
        super::make_private_directory(&folder)?;
        let inside = |folder: &&Path| folder.starts_with(&self.temporary);
        let folders = folder.ancestors().take_while(inside).map(Path::to_owned);
        self.folders.extend(folders);
        super::write_file(&path, bytes, mode).map_err(|source| StoreError::Write { path, source })
    }

    /// Shows it under its name. Nothing of that name may be there.
    pub fn finish(mut self) -> Result<(), StoreError> {
        let failed = |source| StoreError::Write {
            path: self.target.clone(),
            source,
        };
        for folder in &self.folders {
            File::open(folder)
                .and_then(|folder| flush(&folder))
                .map_err(failed)?;
        }
        step()
            .and_then(|()| fs::rename(&self.temporary, &self.target))
            .map_err(failed)?;
        sync_directory_of(&self.target).map_err(failed)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.finished {
            let _ = remove_directory(&self.temporary);
        }
    }
}

/// Whether a name is one that a run which was cut off left behind.
pub fn is_left_over(name: &str) -> bool {
    name.starts_with('.') && (name.ends_with(".new") || name.ends_with(".gone"))
}

/// Takes a directory and all that is in it away: first from sight, in one step.
pub fn take_away(directory: &Path) -> Result<(), StoreError> {
    let hidden = hidden(directory, "gone");
    remove_directory(&hidden)?;
    let failed = |source| StoreError::Write {
        path: directory.into(),
        source,
    };
    step()
        .and_then(|()| fs::rename(directory, &hidden))
        .map_err(failed)?;
    sync_directory_of(directory).map_err(failed)?;
    remove_directory(&hidden)
}

/// Removes a file, or a directory with all that is in it, if it is there.
pub fn remove_all(path: &Path) -> Result<(), StoreError> {
    if path.is_dir() && !path.is_symlink() {
        return remove_directory(path);
    }
    let removed = step().and_then(|()| gone(fs::remove_file(path)));
    removed
        .and_then(|()| sync_directory_of(path))
        .map_err(|source| StoreError::Write {
            path: path.into(),
            source,
        })
}

fn remove_directory(path: &Path) -> Result<(), StoreError> {
    step()
        .and_then(|()| gone(fs::remove_dir_all(path)))
        .map_err(|source| StoreError::Write {
            path: path.into(),
            source,
        })
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn hidden(path: &Path, end: &str) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{end}"));
    directory_of(path).join(name)
}

/// Held while one process changes a directory; another one is refused.
#[derive(Debug)]
pub struct DirectoryLock {
    held: File,
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        // Closing is not enough: a child that was forked and has not begun its program holds it, too.
        let _ = self.held.unlock();
    }
}

/// Takes a directory for this process alone, until the lock is dropped. Nothing is written.
pub fn lock(directory: &Path) -> Result<DirectoryLock, StoreError> {
    let failed = |source| StoreError::Write {
        path: directory.into(),
        source,
    };
    let held = File::open(directory).map_err(failed)?;
    match held.try_lock() {
        Ok(()) => Ok(DirectoryLock { held }),
        Err(fs::TryLockError::WouldBlock) => Err(StoreError::Busy {
            path: directory.into(),
        }),
        Err(fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}
