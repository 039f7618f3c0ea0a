//! The two keys that outlive a process, kept in its state directory.
//!
//! A server that was killed cannot say goodbye. With the same keys its successor recognises the
//! packets of lost links (connection-id key) and can prove that it is the one who lost them
//! (reset key), so agents reconnect within a second instead of waiting for silence.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::{hmac, rand};
use quinn::crypto::HmacKey;

const RESET_FILE: &str = "reset.key";
const RESET_BYTES: usize = 64;
const CONNECTION_ID_FILE: &str = "connection-id.key";
const CONNECTION_ID_BYTES: usize = 8;
/// Anyone but the owner.
const OTHERS: u32 = 0o077;

/// Why the keys could not be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The state directory or a file in it cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody else may read the file.
    #[error(
        "{} can be read by others (mode {mode:04o}): run chmod 600 on it, or delete it to get a new one",
        path.display()
    )]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Somebody else may read and replace it.
    #[error(
        "{} belongs to user id {owner}, not to root or to user id {us}, which runs this: run chown {us} on it, or delete it",
        path.display()
    )]
    Foreign {
        /// The file or directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        us: u32,
    },
    /// Not the bytes of a key.
    #[error("{} is not a key of {expected} bytes: delete it to get a new one", path.display())]
    Malformed {
        /// The key file.
        path: PathBuf,
        /// Bytes that it should have.
        expected: usize,
    },
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    NoRandomness,
}

/// The reset key and the connection-id key of an endpoint.
#[derive(Clone)]
pub struct EndpointKeys {
    reset: Arc<hmac::Key>,
    connection_id: u64,
}

impl fmt::Debug for EndpointKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointKeys").finish_non_exhaustive()
    }
}

impl EndpointKeys {
    /// Reads both keys from the state directory; makes what is not there yet.
    pub fn load_or_create(directory: &Path) -> Result<Self, KeysError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(io_error("create", directory))?;
        let metadata = fs::metadata(directory).map_err(io_error("look at", directory))?;
        owned(directory, &metadata, us())?;
        Ok(Self::from_bytes(
            &load_or_create::<RESET_BYTES>(directory, RESET_FILE)?,
            &load_or_create::<CONNECTION_ID_BYTES>(directory, CONNECTION_ID_FILE)?,
        ))
    }

    /// Keys that die with the process: for agents, and for servers without a state directory.
    pub fn ephemeral() -> Result<Self, KeysError> {
        Ok(Self::from_bytes(
            &random::<RESET_BYTES>()?,
            &random::<CONNECTION_ID_BYTES>()?,
        ))
    }

    fn from_bytes(reset: &[u8; RESET_BYTES], connection_id: &[u8; CONNECTION_ID_BYTES]) -> Self {
        Self {
            reset: Arc::new(hmac::Key::new(hmac::HMAC_SHA256, reset)),
            connection_id: u64::from_be_bytes(*connection_id),
        }
    }

    pub(super) fn reset_key(&self) -> Arc<dyn HmacKey> {
        self.reset.clone()
    }

    pub(super) fn connection_id_key(&self) -> u64 {
        self.connection_id
    }
}

fn load_or_create<const N: usize>(directory: &Path, name: &str) -> Result<[u8; N], KeysError> {
    let path = directory.join(name);
    match load(&path) {
        Err(KeysError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            create(directory, name, &random::<N>()?)?;
            // Read back: when two processes met here, both go on with the one that stayed.
            load(&path)
        }
        loaded => loaded,
    }
}

fn us() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Whoever owns a file can read and replace it, whatever its mode says. Root can anyhow.
fn owned(path: &Path, metadata: &fs::Metadata, us: u32) -> Result<(), KeysError> {
    match metadata.uid() {
        owner if owner == us || owner == 0 => Ok(()),
        owner => Err(KeysError::Foreign {
            path: path.to_owned(),
            owner,
            us,
        }),
    }
}

fn load<const N: usize>(path: &Path) -> Result<[u8; N], KeysError> {
    let file = File::open(path).map_err(io_error("read", path))?;
    let metadata = file.metadata().map_err(io_error("read", path))?;
    let mode = metadata.mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(KeysError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    owned(path, &metadata, us())?;
    let mut bytes = Vec::with_capacity(N + 1);
    if metadata.is_file() {
        file.take(N as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(io_error("read", path))?;
    }
    bytes.try_into().map_err(|_| KeysError::Malformed {
        path: path.to_owned(),
        expected: N,
    })
}

fn create(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), KeysError> {
    let path = directory.join(name);
    let draft = directory.join(format!(".{name}.{}", std::process::id()));
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("delete", &draft)(error));
        }
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .map_err(io_error("create", &draft))?;
    let written = file
        .set_permissions(fs::Permissions::from_mode(0o600))
        .and_then(|()| file.write_all(bytes))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&draft, &path));
    if let Err(error) = written {
        // The draft holds a key that nobody uses.
        let _ = fs::remove_file(&draft);
        return Err(io_error("write", &path)(error));
    }
    Ok(())
}

fn random<const N: usize>() -> Result<[u8; N], KeysError> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| KeysError::NoRandomness)?;
    Ok(bytes)
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeysError {
    let path = path.to_owned();
    move |source| KeysError::Io {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("towline-keys-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn same(a: &EndpointKeys, b: &EndpointKeys) -> bool {
        hmac::sign(&a.reset, b"x").as_ref() == hmac::sign(&b.reset, b"x").as_ref()
            && a.connection_id == b.connection_id
    }

    #[test]
    fn keys_are_made_once_and_read_again() {
        let scratch = Scratch::new("again");
        let first = EndpointKeys::load_or_create(&scratch.0).unwrap();
        let second = EndpointKeys::load_or_create(&scratch.0).unwrap();
        assert!(same(&first, &second));
        assert!(!same(&first, &EndpointKeys::ephemeral().unwrap()));
        let mut names: Vec<_> = fs::read_dir(&scratch.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, [CONNECTION_ID_FILE, RESET_FILE]);
        for name in names {
            assert_eq!(
                fs::metadata(scratch.0.join(name)).unwrap().mode() & 0o777,
                0o600
            );
        }
        assert_eq!(fs::metadata(&scratch.0).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let scratch = Scratch::new("exposed");
        EndpointKeys::load_or_create(&scratch.0).unwrap();
        let path = scratch.0.join(RESET_FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = EndpointKeys::load_or_create(&scratch.0).unwrap_err();
        assert!(matches!(&error, KeysError::Exposed { mode: 0o640, .. }));
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_key_of_somebody_else_is_refused() {
        let scratch = Scratch::new("foreign");
        EndpointKeys::load_or_create(&scratch.0).unwrap();
        let path = scratch.0.join(RESET_FILE);
        let metadata = fs::metadata(&path).unwrap();
        assert!(owned(&path, &metadata, metadata.uid()).is_ok());
        let root = metadata.uid() == 0;
        let judged = owned(&path, &metadata, metadata.uid() + 1);
        assert_eq!(judged.is_ok(), root, "only root may own what others use");
        // Given away, where we may do that.
        let stranger = Some(metadata.uid() + 4242);
        if std::os::unix::fs::chown(&path, stranger, None).is_ok() {
            let error = EndpointKeys::load_or_create(&scratch.0).unwrap_err();
            assert!(matches!(&error, KeysError::Foreign { owner, .. } if Some(*owner) == stranger));
            assert!(error.to_string().contains("chown"), "{error}");
            std::os::unix::fs::chown(&path, Some(metadata.uid()), None).unwrap();
            std::os::unix::fs::chown(&scratch.0, stranger, None).unwrap();
            let error = EndpointKeys::load_or_create(&scratch.0).unwrap_err();
            assert!(matches!(error, KeysError::Foreign { .. }), "{error}");
        }
    }

    #[test]
    fn a_key_of_another_size_is_refused() {
        let scratch = Scratch::new("size");
        EndpointKeys::load_or_create(&scratch.0).unwrap();
        for size in [0, 63, 65, 100_000] {
            fs::write(scratch.0.join(RESET_FILE), vec![7; size]).unwrap();
            let error = EndpointKeys::load_or_create(&scratch.0).unwrap_err();
            assert!(
                matches!(error, KeysError::Malformed { expected: 64, .. }),
                "{error}"
            );
        }
    }

    #[test]
    fn keys_do_not_show_in_debug() {
        assert_eq!(
            format!("{:?}", EndpointKeys::ephemeral().unwrap()),
            "EndpointKeys { .. }"
        );
    }
}
