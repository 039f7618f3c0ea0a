//! The file of a trail: one writer by a lock beside it, mode 0600, resumed where the last process
//! stopped, put aside by size or age, followed when somebody else moves it.
//!
//! A file that is put aside is named by the number of its last line, `audit.log.000000001000`, so
//! that the names sort in the order of the chain. The lock is a file of its own (`audit.log.lock`),
//! because the file itself changes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, OFlags, flock};
use towline_proto::limits;

use super::chain::Head;
use super::record::Torn;
use super::store::{Moved, Store};
use super::tail;

/// Mode bits that let others read the trail or write to it. Its group may read it.
const FORBIDDEN_BITS: u32 = 0o027;

/// Why a trail cannot be begun or resumed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system says no.
    #[error("--audit-log {path}: cannot {what}: {source}", path = path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Another process writes it.
    #[error("--audit-log {path}: another process writes this trail (it holds {path}.lock); each server needs a file of its own", path = path.display())]
    Locked {
        /// Which file.
        path: PathBuf,
    },
    /// A device, a pipe, a directory, a symbolic link.
    #[error("--audit-log {path}: is no regular file; use - for standard output", path = path.display())]
    Special {
        /// Which file.
        path: PathBuf,
    },
    /// Others can read it, or write to it.
    #[error("--audit-log {path}: mode {mode:04o} lets others at the trail; run `chmod 0600 {path}`", path = path.display())]
    Public {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Something else is in it.
    #[error("--audit-log {path}: holds something else than an audit trail, or one damaged beyond its last {} MiB; move it away", limits::AUDIT_TAIL_BYTES >> 20, path = path.display())]
    Foreign {
        /// Which file.
        path: PathBuf,
    },
}

/// When files are put aside, and how many are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotate {
    /// Bytes of one file.
    pub max_size: u64,
    /// Age of one file; zero is none.
    pub max_age: Duration,
    /// Files put aside; zero keeps all.
    pub keep: u32,
}

/// Where an earlier process stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// Name of its trail.
    pub trail: String,
    /// Its last whole line.
    pub head: Head,
    /// What stands behind it.
    pub torn: Option<Torn>,
}

/// The file. See the head of this module.
pub struct FileStore {
    path: PathBuf,
    rotate: Rotate,
    file: File,
    identity: (u64, u64),
    size: u64,
    begun: SystemTime,
    _lock: File,
}

impl FileStore {
    /// Takes the lock, opens or makes the file, and says where an earlier process stopped.
    pub fn open(
        path: &Path,
        rotate: Rotate,
        now: SystemTime,
    ) -> Result<(Self, Option<Resumed>), FileError> {
        let lock = lock(path)?;
        let (mut file, made) = open_or_make(path)?;
        let metadata = file.metadata().map_err(io_error(path, "look at it"))?;
        let mut resumed = resume(&mut file, path, metadata.len())?;
        if resumed.is_none() {
            // Put aside or moved away a moment before a crash: the chain goes on all the same.
            resumed = newest_beside(path);
        }
        if made {
            sync_directory(path).map_err(io_error(path, "sync its directory"))?;
        }
        let begun = match metadata.len() {
            0 => now,
            _ => metadata.created().unwrap_or(now).min(now),
        };
        drop_second_names(path, (metadata.dev(), metadata.ino()));
        let store = Self {
            path: path.to_owned(),
            rotate,
            identity: (metadata.dev(), metadata.ino()),
            size: file.metadata().map_err(io_error(path, "look at it"))?.len(),
            begun,
            file,
            _lock: lock,
        };
        Ok((store, resumed))
    }

    fn aside(&self, seq: u64) -> PathBuf {
        beside(&self.path, &format!("{seq:012}"))
    }

    /// Uses a file that was just made.
    fn adopt(&mut self, file: File, now: SystemTime) -> io::Result<()> {
        let metadata = file.metadata()?;
        self.identity = (metadata.dev(), metadata.ino());
        self.size = 0;
        self.begun = now;
        self.file = file;
        sync_directory(&self.path)
    }

    /// Removes what is beyond the number of files to keep, oldest first.
    fn remove_old(&self) -> Vec<String> {
        if self.rotate.keep == 0 {
            return Vec::new();
        }
        let mut aside: Vec<_> = siblings(&self.path)
            .into_iter()
            .filter(|(name, _)| {
                let number = name.rsplit('.').next().unwrap_or_default();
                number.len() >= 12 && number.bytes().all(|byte| byte.is_ascii_digit())
            })
            .collect();
        aside.sort();
        let excess = aside.len().saturating_sub(self.rotate.keep as usize);
        let removed = aside.into_iter().take(excess);
        removed
            .filter(|(_, path)| fs::remove_file(path).is_ok())
            .map(|(name, _)| name)
            .collect()
    }
}

impl Store for FileStore {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.size += written as u64;
        Ok(written)
    }

    fn take_back(&mut self, bytes: u64) -> bool {
        let size = self.size.saturating_sub(bytes);
        let done = self.file.set_len(size).is_ok();
        if done {
            self.size = size;
        }
        done
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn is_full(&self, now: SystemTime) -> bool {
        let age = now.duration_since(self.begun).unwrap_or_default();
        let old = !self.rotate.max_age.is_zero() && age >= self.rotate.max_age;
        self.size > 0 && (self.size >= self.rotate.max_size || old)
    }

    fn rotate(&mut self, head: Head, now: SystemTime) -> io::Result<Moved> {
        let cause = if self.size >= self.rotate.max_size {
            "size"
        } else {
            "age"
        };
        let aside = self.aside(head.seq);
        // A link fails where the name is taken, which a rename would not.
        fs::hard_link(&self.path, &aside)?;
        let new = beside(&self.path, "new");
        let made = remove_if_there(&new)
            .and_then(|()| make(&new))
            .and_then(|file| fs::rename(&new, &self.path).map(|()| file));
        let file = made.inspect_err(|_| {
            let _ = fs::remove_file(&aside);
        })?;
        self.adopt(file, now)?;
        Ok(Moved::NewFile {
            cause,
            kept_as: name_of(&aside),
            removed: self.remove_old(),
        })
    }

    fn look(&mut self, now: SystemTime) -> io::Result<Option<Moved>> {
        match fs::symlink_metadata(&self.path) {
            Ok(there) if (there.dev(), there.ino()) == self.identity => {
                let is = there.len();
                let was = std::mem::replace(&mut self.size, is);
                return Ok((is < was).then_some(Moved::Shrunk { was, is }));
            }
            // What was made in its place may be used when nothing is in it.
            Ok(there) if there.is_file() && there.len() == 0 => {}
            Ok(_) => {
                return Err(io::Error::other(
                    "another file is in its place, and something is in it; move it away",
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let _ = self.file.sync_data();
        let (file, _) = open_or_make(&self.path).map_err(io::Error::other)?;
        self.adopt(file, now)?;
        Ok(Some(Moved::NewFile {
            cause: "moved",
            kept_as: None,
            removed: Vec::new(),
        }))
    }
}

fn io_error<'a>(path: &'a Path, what: &'static str) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |source| FileError::Io {
        path: path.to_owned(),
        what,
        source,
    }
}

fn lock(path: &Path) -> Result<File, FileError> {
    let at = beside(path, "lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(no_follow())
        .open(&at)
        .map_err(io_error(path, "make its lock file"))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(FileError::Locked {
            path: path.to_owned(),
        }),
        Err(error) => Err(io_error(path, "lock it")(error.into())),
    }
}

fn no_follow() -> i32 {
    i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0)
}

fn make(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(no_follow())
        .open(path)
}

fn open_or_make(path: &Path) -> Result<(File, bool), FileError> {
    match fs::symlink_metadata(path) {
        Ok(there) if !there.is_file() => {
            return Err(FileError::Special {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let file = make(path).map_err(io_error(path, "make it"))?;
            return Ok((file, true));
        }
        Err(error) => return Err(io_error(path, "look at it")(error)),
    }
    // Not blocking: a pipe put in its place must not hold us.
    let flags = no_follow() | i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .custom_flags(flags)
        .open(path)
        .map_err(io_error(path, "open it"))?;
    let metadata = file.metadata().map_err(io_error(path, "look at it"))?;
    if !metadata.is_file() {
        return Err(FileError::Special {
            path: path.to_owned(),
        });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & FORBIDDEN_BITS != 0 {
        return Err(FileError::Public {
            path: path.to_owned(),
            mode,
        });
    }
    Ok((file, false))
}

/// Where the file stops; a torn last line is ended.
fn resume(file: &mut File, path: &Path, size: u64) -> Result<Option<Resumed>, FileError> {
    if size == 0 {
        return Ok(None);
    }
    let (bytes, from_start) = read_end(file, size).map_err(io_error(path, "read it"))?;
    let tail = tail::read(&bytes, from_start);
    let first_is_torn =
        from_start && bytes.starts_with(b"{\"seq\":") && bytes.len() <= limits::AUDIT_LINE_BYTES;
    let resumed = match (tail.head, &tail.trail) {
        (Some(head), Some(trail)) => Resumed {
            trail: trail.clone(),
            head,
            torn: tail.torn(true),
        },
        (None, None) if first_is_torn => Resumed {
            trail: String::new(),
            head: Head::NONE,
            torn: tail.torn(true),
        },
        _ => {
            return Err(FileError::Foreign {
                path: path.to_owned(),
            });
        }
    };
    if tail.is_unended() {
        file.write_all(b"\n")
            .map_err(io_error(path, "end its torn last line"))?;
    }
    Ok(Some(resumed))
}

/// The last bytes, and whether those are all.
fn read_end(file: &mut File, size: u64) -> io::Result<(Vec<u8>, bool)> {
    let from = size.saturating_sub(limits::AUDIT_TAIL_BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    Read::by_ref(file)
        .take(limits::AUDIT_TAIL_BYTES)
        .read_to_end(&mut bytes)?;
    Ok((bytes, from == 0))
}

/// The file beside it, put aside by us or by somebody else, in which the chain went farthest.
fn newest_beside(path: &Path) -> Option<Resumed> {
    let read = |at: PathBuf| {
        let mut file = File::open(&at).ok()?;
        let size = file.metadata().ok().filter(|there| there.is_file())?.len();
        let (bytes, from_start) = read_end(&mut file, size).ok()?;
        let tail = tail::read(&bytes, from_start);
        Some(Resumed {
            head: tail.head?,
            // Nobody writes to that file any more: it stays as it is.
            torn: tail.torn(false),
            trail: tail.trail?,
        })
    };
    siblings(path)
        .into_iter()
        .filter_map(|(_, at)| read(at))
        .max_by_key(|resumed| resumed.head.seq)
}

/// A crash while the file was put aside leaves it with two names; the new one is taken back.
fn drop_second_names(path: &Path, identity: (u64, u64)) {
    for (_, at) in siblings(path) {
        let same =
            fs::symlink_metadata(&at).is_ok_and(|there| (there.dev(), there.ino()) == identity);
        if same {
            let _ = fs::remove_file(at);
        }
    }
}

/// Files named as this one, a dot, and more.
fn siblings(path: &Path) -> Vec<(String, PathBuf)> {
    let (Some(directory), Some(name)) = (directory_of(path), name_of(path)) else {
        return Vec::new();
    };
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let prefix = format!("{name}.");
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let more = name.strip_prefix(&prefix)?;
            (more != "lock" && more != "new").then(|| (name.clone(), entry.path()))
        })
        .collect()
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(end);
    name.into()
}

fn name_of(path: &Path) -> Option<String> {
    path.file_name()?.to_str().map(str::to_owned)
}

fn directory_of(path: &Path) -> Option<&Path> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Some(Path::new(".")),
        parent => parent,
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match directory_of(path) {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}
