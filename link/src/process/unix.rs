//! Unix sockets that only the right processes can use: made with their final mode, never wider
//! for an instant; a socket of a dead process is replaced, one of a live process never; the
//! caller's user id is checked on every connection.
//!
//! The overflow user 65534 is always refused: inside a container with a user namespace it
//! stands for every user that is not mapped, so allowing it would allow strangers.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;
use tokio::net::unix::UCred;
use towline_proto::limits;

/// The kernel's stand-in for users that are not mapped (`/proc/sys/kernel/overflowuid`).
pub const OVERFLOW_UID: u32 = 65534;

/// Why a Unix socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum UnixSocketError {
    /// Somebody answers there.
    #[error("{}: another process is listening on this socket; stop it or choose another path", .0.display())]
    Live(PathBuf),
    /// A file that is no socket.
    #[error("{}: exists and is not a socket; it is left alone, remove it or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The kernel's limit.
    #[error("{}: the path of a Unix socket must be shorter than 108 bytes", .0.display())]
    PathTooLong(PathBuf),
    /// A mode that is no permission.
    #[error("socket mode {0:#o} is not allowed: use 0600, 0660 or 0666 or a part of them")]
    Mode(u32),
    /// There is no place for it.
    #[error("{}: the directory {} does not exist: make it, or name another path", path.display(), directory.display())]
    NoDirectory {
        /// The socket.
        path: PathBuf,
        /// Where it should be.
        directory: PathBuf,
    },
    /// Anything else from the kernel.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A listening Unix socket; its file is removed when it is dropped.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    file: SocketFile,
}

impl UnixSocket {
    /// Listens at `path` with exactly `mode`. Must be called inside a runtime.
    pub fn bind(path: &Path, mode: u32) -> Result<Self, UnixSocketError> {
        let (listener, file) = bind(path, mode)?;
        Self::from_std(listener, file).map_err(failed(path, "register the socket"))
    }

    /// From [`bind`], inside the runtime that will use it.
    pub(super) fn from_std(
        listener: std::os::unix::net::UnixListener,
        file: SocketFile,
    ) -> io::Result<Self> {
        Ok(Self {
            listener: UnixListener::from_std(listener)?,
            file,
        })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

/// The socket's file, removed on drop if it is still the one that was made.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode));
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The same without a runtime, for a listener that is handed to another thread.
pub(super) fn bind(
    path: &Path,
    mode: u32,
) -> Result<(std::os::unix::net::UnixListener, SocketFile), UnixSocketError> {
    if mode == 0 || mode & !0o666 != 0 {
        return Err(UnixSocketError::Mode(mode));
    }
    let address =
        SockAddr::unix(path).map_err(|_| UnixSocketError::PathTooLong(path.to_owned()))?;
    remove_stale(path, &address)?;
    let socket = new_socket(path)?;
    // On Linux the file is made with the mode of the unbound socket less the umask: at most
    // `mode` from its first instant. What the umask took away is given back afterwards.
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(mode))
        .map_err(|e| failed(path, "set the mode")(e.into()))?;
    match socket.bind(&address) {
        Err(e) if e.kind() == ErrorKind::AddrInUse => {
            return Err(UnixSocketError::Live(path.to_owned()));
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(UnixSocketError::NoDirectory {
                path: path.to_owned(),
                directory: path.parent().unwrap_or(Path::new("/")).to_owned(),
            });
        }
        bound => bound.map_err(failed(path, "create the socket"))?,
    }
    let made = std::fs::symlink_metadata(path).map_err(failed(path, "look at the socket"))?;
    let file = SocketFile {
        path: path.to_owned(),
        device: made.dev(),
        inode: made.ino(),
    };
    if made.permissions().mode() & 0o7777 != mode {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
            .map_err(failed(path, "set the mode"))?;
    }
    let backlog = i32::try_from(limits::LISTEN_BACKLOG).unwrap_or(i32::MAX);
    socket.listen(backlog).map_err(failed(path, "listen"))?;
    Ok((socket.into(), file))
}

/// Removes what lies in the place of a socket and holds nothing: an empty file or directory, as
/// container runtimes make them for a mount, or a symbolic link, whatever it leads to. What holds
/// something stays, and [`UnixSocket::bind`] says so.
pub fn clear(path: &Path) -> Result<(), UnixSocketError> {
    let Ok(found) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    let kind = found.file_type();
    let removed = match () {
        () if kind.is_symlink() || (kind.is_file() && found.len() == 0) => {
            std::fs::remove_file(path)
        }
        () if kind.is_dir() => match std::fs::remove_dir(path) {
            Err(e) if e.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
            removed => removed,
        },
        () => Ok(()),
    };
    removed.map_err(failed(path, "remove what lies there"))
}

/// Removes what a dead process left; refuses to touch anything else.
fn remove_stale(path: &Path, address: &SockAddr) -> Result<(), UnixSocketError> {
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(path, "look at the path")(e)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(UnixSocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match new_socket(path)?.connect(address) {
        // Nobody has it open: refused is the only answer that proves it.
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed(path, "remove the stale socket"))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        // Connected, or its queue is full: alive.
        Ok(()) => Err(UnixSocketError::Live(path.to_owned())),
        Err(e) if e.kind() == ErrorKind::WouldBlock => Err(UnixSocketError::Live(path.to_owned())),
        Err(e) => Err(failed(path, "find out whether the socket is in use")(e)),
    }
}

fn new_socket(path: &Path) -> Result<Socket, UnixSocketError> {
    // Non-blocking and close-on-exec from the start.
    Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)
        .map_err(failed(path, "make a socket"))
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> UnixSocketError {
    let path = path.to_owned();
    move |source| UnixSocketError::Io {
        path,
        action,
        source,
    }
}

/// The kernel's word on who is at the other end of a Unix connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// User id, as this process's user namespace sees it.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Process id, where it is visible.
    pub pid: Option<i32>,
}

impl From<UCred> for PeerCredentials {
    fn from(credentials: UCred) -> Self {
        Self {
            uid: credentials.uid(),
            gid: credentials.gid(),
            pid: credentials.pid(),
        }
    }
}

impl fmt::Display for PeerCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uid {} gid {}", self.uid, self.gid)?;
        self.pid.map_or(Ok(()), |pid| write!(f, " pid {pid}"))
    }
}

/// Why a connection or a setting was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UidError {
    /// Not on the list.
    #[error(
        "user id {uid} may not use this socket (allowed: {allowed}); add it with the socket's uid flag"
    )]
    NotAllowed {
        /// Who called.
        uid: u32,
        /// Who may.
        allowed: String,
    },
    /// The overflow user.
    #[error(
        "user id 65534 is refused always: it stands for every user that is not mapped into this user namespace; \
         run both sides in the same user namespace (hostUsers: true) or map the caller's user id"
    )]
    Overflow,
}

/// The user ids that may use a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedUids(Option<BTreeSet<u32>>);

impl AllowedUids {
    /// Root and our own user.
    pub fn default_set() -> Self {
        let listed = [0, rustix::process::geteuid().as_raw()];
        let listed = listed.into_iter().filter(|uid| *uid != OVERFLOW_UID);
        Self(Some(listed.collect()))
    }

    /// Whoever the mode of the socket lets in; for another program's place only.
    pub fn everybody() -> Self {
        Self(None)
    }

    /// The listed ids, or the default when none is listed. The overflow user is refused.
    pub fn from_flags(listed: &[u32]) -> Result<Self, UidError> {
        if listed.is_empty() {
            return Ok(Self::default_set());
        }
        if listed.contains(&OVERFLOW_UID) {
            return Err(UidError::Overflow);
        }
        Ok(Self(Some(listed.iter().copied().collect())))
    }

    /// Whether this caller may use the socket.
    pub fn check(&self, caller: PeerCredentials) -> Result<(), UidError> {
        let Some(listed) = &self.0 else {
            return Ok(());
        };
        match caller.uid {
            OVERFLOW_UID => Err(UidError::Overflow),
            uid if listed.contains(&uid) => Ok(()),
            uid => Err(UidError::NotAllowed {
                uid,
                allowed: self.to_string(),
            }),
        }
    }
}

impl fmt::Display for AllowedUids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(listed) = &self.0 else {
            return f.write_str("everybody");
        };
        for (position, uid) in listed.iter().enumerate() {
            write!(f, "{}{uid}", if position == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path)
            .expect("made")
            .permissions()
            .mode()
            & 0o7777
    }

    #[tokio::test]
    async fn the_socket_has_exactly_its_mode_and_goes_with_its_owner() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("door.sock");
        for wanted in [0o600, 0o660, 0o666] {
            let socket = UnixSocket::bind(&path, wanted).expect("bound");
            assert_eq!(mode(&path), wanted);
            assert_eq!(socket.path(), path);
            drop(socket);
            assert!(!path.exists());
        }
        for wrong in [0, 0o777, 0o4600] {
            assert!(matches!(
                UnixSocket::bind(&path, wrong),
                Err(UnixSocketError::Mode(_))
            ));
        }
    }

    #[tokio::test]
    async fn a_directory_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = dir.path().join("run");
        let error = UnixSocket::bind(&place.join("a.sock"), 0o600).expect_err("no directory");
        assert!(
            matches!(&error, UnixSocketError::NoDirectory { directory, .. } if *directory == place),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_live_socket_is_never_stolen_and_a_stale_one_is_replaced() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("door.sock");
        let live = UnixSocket::bind(&path, 0o600).expect("bound");
        assert!(matches!(
            UnixSocket::bind(&path, 0o600),
            Err(UnixSocketError::Live(_))
        ));
        assert!(path.exists());
        drop(live);
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a process that will die"));
        assert!(path.exists(), "std leaves the file behind");
        let socket = UnixSocket::bind(&path, 0o600).expect("replaced");
        tokio::net::UnixStream::connect(socket.path())
            .await
            .expect("alive");
    }

    #[tokio::test]
    async fn other_files_and_sockets_of_others_are_left_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("door.sock");
        std::fs::write(&path, "precious").expect("written");
        assert!(matches!(
            UnixSocket::bind(&path, 0o600),
            Err(UnixSocketError::NotASocket(_))
        ));
        assert_eq!(std::fs::read_to_string(&path).expect("kept"), "precious");
        std::fs::remove_file(&path).expect("removed");

        let ours = UnixSocket::bind(&path, 0o600).expect("bound");
        std::fs::remove_file(&path).expect("removed by somebody");
        let theirs = UnixSocket::bind(&path, 0o600).expect("bound anew");
        drop(ours);
        assert!(path.exists(), "the newer socket was kept");
        drop(theirs);

        let long = folder.path().join("x".repeat(120));
        assert!(matches!(
            UnixSocket::bind(&long, 0o600),
            Err(UnixSocketError::PathTooLong(_))
        ));
    }

    #[tokio::test]
    async fn what_holds_nothing_is_cleared_and_nothing_else() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("door.sock");
        let precious = folder.path().join("precious");
        std::fs::write(&precious, "kept").expect("written");
        clear(&path).expect("nothing is there");
        let make: [fn(&Path, &Path); 4] = [
            |path, _| std::fs::write(path, "").expect("a file"),
            |path, _| std::fs::create_dir(path).expect("a directory"),
            |path, precious| std::os::unix::fs::symlink(precious, path).expect("a link"),
            |path, _| std::os::unix::fs::symlink("/no/such", path).expect("a link"),
        ];
        for make in make {
            make(&path, &precious);
            clear(&path).expect("cleared");
            drop(UnixSocket::bind(&path, 0o600).expect("bound"));
        }
        assert_eq!(std::fs::read_to_string(&precious).expect("kept"), "kept");

        std::fs::write(&path, "precious").expect("written");
        clear(&path).expect("left alone");
        assert_eq!(std::fs::read_to_string(&path).expect("kept"), "precious");
        std::fs::remove_file(&path).expect("removed");
        std::fs::create_dir_all(path.join("full")).expect("a directory");
        clear(&path).expect("left alone");
        assert!(matches!(
            UnixSocket::bind(&path, 0o600),
            Err(UnixSocketError::NotASocket(_))
        ));
        std::fs::remove_dir_all(&path).expect("removed");
        let _live = UnixSocket::bind(&path, 0o600).expect("bound");
        clear(&path).expect("left alone");
        assert!(matches!(
            UnixSocket::bind(&path, 0o600),
            Err(UnixSocketError::Live(_))
        ));
    }

    #[test]
    fn the_overflow_user_is_refused_always() {
        let caller = |uid| PeerCredentials {
            uid,
            gid: 0,
            pid: None,
        };
        let allowed = AllowedUids::default_set();
        assert_eq!(allowed.check(caller(0)), Ok(()));
        assert_eq!(allowed.check(caller(OVERFLOW_UID)), Err(UidError::Overflow));
        assert_eq!(
            AllowedUids::from_flags(&[1, OVERFLOW_UID]),
            Err(UidError::Overflow)
        );
        assert!(UidError::Overflow.to_string().contains("user namespace"));
        let allowed = AllowedUids::from_flags(&[1000, 7]).expect("fine");
        assert_eq!(allowed.check(caller(1000)), Ok(()));
        let refused = allowed.check(caller(0)).expect_err("not listed");
        assert!(
            refused.to_string().contains("allowed: 7, 1000"),
            "{refused}"
        );
    }
}
