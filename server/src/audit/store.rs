//! Where lines go: a file that is rotated, or a stream that cannot be. A trait, so that tests put
//! a disk that is full, slow or broken in its place.

use std::io;
use std::time::SystemTime;

use super::chain::Head;

/// What a store did of itself before the next line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Moved {
    /// Lines go to a new file from here on.
    NewFile {
        /// `size`, `age`, `moved` or `order`.
        cause: &'static str,
        /// Name of the file that was put aside, when we did it.
        kept_as: Option<String>,
        /// Names of files that were removed.
        removed: Vec<String>,
    },
    /// The file is shorter than what was written to it.
    Shrunk {
        /// Bytes written.
        was: u64,
        /// Bytes there.
        is: u64,
    },
}

/// Takes lines. Called by the writer's thread only.
pub trait Store: Send {
    /// Writes a part of `bytes`, at least one.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Takes back the last `bytes` written, which are the beginning of a line; `false` when it
    /// cannot.
    fn take_back(&mut self, bytes: u64) -> bool;

    /// Puts everything written on the disk.
    fn sync(&mut self) -> io::Result<()>;

    /// Whether this file is to be put aside before more is written to it.
    fn is_full(&self, now: SystemTime) -> bool;

    /// Puts the file aside, whose last line is `head`, and begins a new one.
    fn rotate(&mut self, head: Head, now: SystemTime) -> io::Result<Moved>;

    /// Looks whether somebody else moved the file or cut it short, and follows. `ordered`: an
    /// operator asked for a new look at the path.
    fn look(&mut self, now: SystemTime) -> io::Result<Option<Moved>>;
}

/// A stream: standard output.
pub struct StreamStore<W> {
    output: W,
}

impl<W: io::Write + Send> StreamStore<W> {
    /// Lines to this stream.
    pub fn new(output: W) -> Self {
        Self { output }
    }
}

impl<W: io::Write + Send> Store for StreamStore<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.output.write(bytes) {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            done => done,
        }
    }

    fn take_back(&mut self, _: u64) -> bool {
        false
    }

    fn sync(&mut self) -> io::Result<()> {
        self.output.flush()
    }

    fn is_full(&self, _: SystemTime) -> bool {
        false
    }

    fn rotate(&mut self, _: Head, _: SystemTime) -> io::Result<Moved> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn look(&mut self, _: SystemTime) -> io::Result<Option<Moved>> {
        Ok(None)
    }
}
