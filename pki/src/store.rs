//! Files: bounded reads, keys that nobody else may read, and writes that are whole or not there.
//!
//! A write goes to a temporary file in the same directory, is flushed to the disk, gets its mode
//! before its first byte, and is then linked or renamed into place. A reader sees the old file or
//! the new one, never half of one. Nothing outside this module opens a file.

mod compact;
mod journal;
mod look;
mod staging;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use towline_proto::limits;

use crate::pem::{self, PemError};
use crate::seal::hex;
use crate::secret::Secret;
use crate::tls;

pub use compact::Compacted;
pub use journal::{Journal, Lock};
pub use look::{is_there, names_in, read_if_there, read_secret_if_there};
pub use staging::{DirectoryLock, Staged, is_left_over, lock, remove_all, take_away};

/// Mode bits that make a key file public: anything for others, writing for the group. Reading by
/// the group is allowed, because Kubernetes gives a Secret to a non-root process that way.
const FORBIDDEN_KEY_BITS: u32 = 0o027;

/// What is wrong with a file. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{path}: cannot be read: {source}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}: cannot be written: {source}", path = path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{path}: has more than {max} bytes", path = path.display())]
    TooLarge { path: PathBuf, max: u64 },
    #[error("{path}: {source}", path = path.display())]
    Pem { path: PathBuf, source: PemError },
    #[error(
        "{path}: mode {mode:04o} lets others at the secret in it; run `chmod 0600 {path}`",
        path = path.display()
    )]
    PublicKeyFile { path: PathBuf, mode: u32 },
    #[error(
        "{path}: more than {} files, or folders more than {} deep: name fewer",
        limits::SURVEY_FILES, limits::SURVEY_DEPTH, path = path.display()
    )]
    TooMany { path: PathBuf },
    #[error("{path}: another process is changing it; wait for it to end", path = path.display())]
    Busy { path: PathBuf },
    #[error("{path}: is there already and is never overwritten", path = path.display())]
    Exists { path: PathBuf },
    #[error(
        "{path}: somebody else has been holding this lock for {} s; try again when that \
         towline-pki has ended",
        limits::AUTHORITY_LOCK.as_secs(), path = path.display()
    )]
    Locked { path: PathBuf },
    #[error("{path}: line {line}: {cause}", path = path.display())]
    Line {
        path: PathBuf,
        line: usize,
        cause: String,
    },
}

/// The whole file, or an error when it is larger than a file of ours can be.
pub fn read(path: &Path) -> Result<Vec<u8>, StoreError> {
    let failed = |source| StoreError::Read {
        path: path.into(),
        source,
    };
    read_bounded(File::open(path).map_err(failed)?, path)
}

fn read_bounded(file: File, path: &Path) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    file.take(limits::FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| StoreError::Read {
            path: path.into(),
            source,
        })?;
    if bytes.len() as u64 > limits::FILE_BYTES {
        return Err(StoreError::TooLarge {
            path: path.into(),
            max: limits::FILE_BYTES,
        });
    }
    Ok(bytes)
}

/// Every certificate of a PEM file.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, StoreError> {
    pem::certificates(&read(path)?).map_err(|source| StoreError::Pem {
        path: path.into(),
        source,
    })
}

/// Every certificate revocation list of a PEM file.
pub fn read_revocation_lists(
    path: &Path,
) -> Result<Vec<CertificateRevocationListDer<'static>>, StoreError> {
    pem::revocation_lists(&read(path)?).map_err(|source| StoreError::Pem {
        path: path.into(),
        source,
    })
}

/// The private key of a PEM file that only its owner (and perhaps its group) can read. The mode
/// is that of the file that was opened, behind any symbolic link.
pub fn read_private_key(path: &Path) -> Result<PrivateKeyDer<'static>, StoreError> {
    let text = read_secret(path)?;
    pem::private_key(text.expose()).map_err(|source| StoreError::Pem {
        path: path.into(),
        source,
    })
}

/// The whole of a secret file that only its owner (and perhaps its group) can read.
pub fn read_secret(path: &Path) -> Result<Secret, StoreError> {
    Ok(Secret::new(read_bounded(open_secret(path)?, path)?))
}

/// The private key of such a file, encrypted or not.
#[derive(Debug)]
pub enum KeyFile {
    /// As it is used.
    Plain(PrivateKeyDer<'static>),
    /// To be opened by [`crate::encrypted::decrypt`].
    Encrypted(Vec<u8>),
}

/// As [`read_private_key`], and takes an encrypted key as well.
pub fn read_key_file(path: &Path) -> Result<KeyFile, StoreError> {
    let text = read_secret(path)?;
    let read = match pem::encrypted_key(text.expose()) {
        Ok(Some(sealed)) => Ok(KeyFile::Encrypted(sealed)),
        Ok(None) => pem::private_key(text.expose()).map(KeyFile::Plain),
        Err(error) => Err(error),
    };
    read.map_err(|source| StoreError::Pem {
        path: path.into(),
        source,
    })
}

/// A file that others cannot read, opened. What is no regular file (a pipe) has no such modes.
pub(crate) fn open_secret(path: &Path) -> Result<File, StoreError> {
    let failed = |source| StoreError::Read {
        path: path.into(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.mode() & 0o7777;
    if metadata.is_file() && mode & FORBIDDEN_KEY_BITS != 0 {
        return Err(StoreError::PublicKeyFile {
            path: path.into(),
            mode,
        });
    }
    Ok(file)
}

/// An open descriptor of this process, as the kernel shows it.
pub(crate) fn open_descriptor(number: u32) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{number}"))
}

/// The terminal that this process was started from.
pub(crate) fn open_terminal() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/tty")
}

/// Every file below a directory, by name, without the temporary ones of our own writes. Symbolic
/// links to files count, those to folders are not followed.
pub fn files_below(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut files = Vec::new();
    let mut folders = vec![(directory.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let failed = |source| StoreError::Read {
            path: folder.clone(),
            source,
        };
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_dir() && depth < limits::SURVEY_DEPTH {
                folders.push((path, depth + 1));
            } else if kind.is_dir() || files.len() == limits::SURVEY_FILES {
                return Err(StoreError::TooMany { path: folder });
            } else if path.is_file() && !entry.file_name().as_encoded_bytes().ends_with(b".new") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Whether a write may replace what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// An existing file is an error.
    Never,
    /// An existing file is replaced in one step.
    Atomically,
}

/// Writes a file that only its owner can read.
pub fn write_secret(path: &Path, secret: &Secret, replace: Replace) -> Result<(), StoreError> {
    write_mode(path, secret.expose(), 0o600, replace)
}

/// Writes a file that everybody can read.
pub fn write_public(path: &Path, text: &str, replace: Replace) -> Result<(), StoreError> {
    write_mode(path, text.as_bytes(), 0o644, replace)
}

/// Where the next key of a pair waits until its certificate is in place.
pub fn next_key(key: &Path) -> PathBuf {
    let mut name = key.as_os_str().to_owned();
    name.push(".next");
    name.into()
}

/// Replaces a certificate and its key. Two files cannot change in one step, so the new key is
/// first written beside the old one: at every moment in between, and after a crash there, the
/// certificate fits the key at `key` or the one at [`next_key`].
pub fn replace_pair(
    cert: &Path,
    text: &str,
    key: &Path,
    secret: &Secret,
) -> Result<(), StoreError> {
    let next = next_key(key);
    write_secret(&next, secret, Replace::Atomically)?;
    write_public(cert, text, Replace::Atomically)?;
    finish_pair(key)
}

/// Puts the key that waits beside into its place: the last step of [`replace_pair`].
pub fn finish_pair(key: &Path) -> Result<(), StoreError> {
    let renamed = step().and_then(|()| fs::rename(next_key(key), key));
    renamed
        .and_then(|()| sync_directory_of(key))
        .map_err(|source| StoreError::Write {
            path: key.into(),
            source,
        })
}

/// Gives a file a second name, which must be free: a copy that takes one step.
pub fn link(from: &Path, to: &Path) -> Result<(), StoreError> {
    place(to, || fs::hard_link(from, to))
}

/// Gives a file another name, over whatever had it.
pub fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    place(to, || fs::rename(from, to))
}

/// Removes a file. It is no error when there is none.
pub fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => place(path, || fs::remove_file(path)),
    }
}

fn place(path: &Path, change: impl FnOnce() -> io::Result<()>) -> Result<(), StoreError> {
    step()
        .and_then(|()| may_change())
        .and_then(|()| change())
        .and_then(|()| sync_directory_of(path))
        .map_err(|source| StoreError::Write {
            path: path.into(),
            source,
        })
}

/// Makes a directory that only its owner can enter, and its parents.
pub fn make_private_directory(path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::DirBuilderExt;
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    let made = match path.is_dir() {
        true => Ok(()),
        false => step().and_then(|()| builder.create(path)),
    };
    made.map_err(|source| StoreError::Write {
        path: path.into(),
        source,
    })
}

fn write_mode(path: &Path, bytes: &[u8], mode: u32, replace: Replace) -> Result<(), StoreError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => StoreError::Exists { path: path.into() },
        _ => StoreError::Write {
            path: path.into(),
            source,
        },
    };
    let name = path
        .file_name()
        .ok_or_else(|| failed(io::Error::from(io::ErrorKind::InvalidInput)))?;
    let directory = directory_of(path);
    let mut temporary_name = std::ffi::OsString::from(".");
    temporary_name.push(name);
    temporary_name.push(format!(".{}.new", lot().map_err(failed)?));
    let temporary = directory.join(temporary_name);
    let result = write_and_place(&temporary, path, bytes, mode, replace);
    if result.is_err() || replace == Replace::Never {
        // Of a link into place the temporary name is left over; of a failure everything is.
        let _ = step().and_then(|()| fs::remove_file(&temporary));
    }
    result.map_err(failed)?;
    sync_directory_of(path).map_err(failed)
}

/// What nobody else puts into the name of a temporary file: in containers that share a directory
/// every process may have the same number.
fn lot() -> io::Result<String> {
    let mut random = [0; 8];
    tls::fill_random(&mut random).map_err(|_| io::Error::other("the random source failed"))?;
    Ok(hex(&random))
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

pub(crate) fn sync_directory_of(path: &Path) -> io::Result<()> {
    flush(&File::open(directory_of(path))?)
}

fn write_and_place(
    temporary: &Path,
    path: &Path,
    bytes: &[u8],
    mode: u32,
    replace: Replace,
) -> io::Result<()> {
    write_file(temporary, bytes, mode)?;
    step()?;
    may_change()?;
    match replace {
        // A link fails when the name is taken, and does so in one step; a rename would not.
        Replace::Never => fs::hard_link(temporary, path),
        Replace::Atomically => fs::rename(temporary, path),
    }
}

/// A new file, flushed to the disk.
fn write_file(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    step()?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    step()?;
    file.write_all(bytes)?;
    flush(&file)
}

fn flush(file: &File) -> io::Result<()> {
    step()?;
    #[cfg(test)]
    if faults::are_on() {
        return Ok(());
    }
    file.sync_all()
}

/// Stands before each thing that changes the disk: tests cut a run off there.
fn step() -> io::Result<()> {
    #[cfg(test)]
    faults::step()?;
    Ok(())
}

/// Tests end the program, as it were, before one of its changes.
#[cfg(not(test))]
fn may_change() -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(crate) mod faults;

#[cfg(test)]
use tests::may_change;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicU32, Ordering};

    thread_local! {
        static LEFT: std::cell::Cell<Option<usize>> = const { std::cell::Cell::new(None) };
    }

    /// From now on this thread changes so many files and no more, as if it had crashed.
    pub(crate) fn fail_after(changes: Option<usize>) {
        LEFT.set(changes);
    }

    pub(super) fn may_change() -> io::Result<()> {
        match LEFT.get() {
            Some(0) => Err(io::Error::other("a crash, for a test")),
            Some(left) => {
                LEFT.set(Some(left - 1));
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// A directory of its own for one test, removed at the end.
    pub(crate) struct Scratch(PathBuf);

    impl Scratch {
        pub(crate) fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let path = std::env::temp_dir().join(format!(
                "towline-pki-{}-{}",
                std::process::id(),
                NEXT.fetch_add(1, Ordering::Relaxed)
            ));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        pub(crate) fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_secret_is_written_for_its_owner_only_and_never_over_another() {
        let dir = Scratch::new();
        let path = dir.path("a.key");
        write_secret(&path, &Secret::new(b"one".to_vec()), Replace::Never).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        let again = write_secret(&path, &Secret::new(b"two".to_vec()), Replace::Never);
        assert!(matches!(again, Err(StoreError::Exists { .. })), "{again:?}");
        assert_eq!(fs::read(&path).unwrap(), b"one");
        write_secret(&path, &Secret::new(b"two".to_vec()), Replace::Atomically).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(
            fs::read_dir(dir.path("")).unwrap().count(),
            1,
            "nothing is left over"
        );
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_remedy() {
        let dir = Scratch::new();
        let path = dir.path("a.key");
        fs::write(&path, "x").unwrap();
        for (mode, refused) in [
            (0o644, true),
            (0o604, true),
            (0o660, true),
            (0o600, false),
            (0o440, false),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let result = read_private_key(&path);
            let public = matches!(result, Err(StoreError::PublicKeyFile { .. }));
            assert_eq!(public, refused, "{mode:o}");
            if refused {
                assert!(result.unwrap_err().to_string().contains("chmod 0600"));
            }
        }
    }

    /// Servers in containers, each of which is process 1, share a directory of spent tokens.
    #[test]
    fn of_many_who_claim_a_name_at_once_one_has_it_with_its_own_content() {
        let dir = Scratch::new();
        for round in 0..20 {
            let path = dir.path(&format!("mark-{round}"));
            let start = std::sync::Barrier::new(8);
            let claim = |text: String| {
                start.wait();
                let won = write_public(&path, &text, Replace::Never).is_ok();
                won.then_some(text)
            };
            let winners: Vec<String> = std::thread::scope(|scope| {
                let claims: Vec<_> = (0..8)
                    .map(|number| {
                        let claim = &claim;
                        scope.spawn(move || claim(format!("server {number}")))
                    })
                    .collect();
                claims
                    .into_iter()
                    .filter_map(|claim| claim.join().unwrap())
                    .collect()
            });
            assert_eq!(winners.len(), 1, "{winners:?}");
            assert_eq!(fs::read_to_string(&path).unwrap(), winners[0]);
        }
        assert_eq!(
            fs::read_dir(dir.path("")).unwrap().count(),
            20,
            "nothing is left over"
        );
    }

    #[test]
    fn a_file_without_end_is_refused() {
        let error = read(Path::new("/dev/zero")).unwrap_err();
        assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
    }
}
