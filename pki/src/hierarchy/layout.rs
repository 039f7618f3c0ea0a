//! Where the files of a cluster's authorities are, below the directory that `init` made.

use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;

use super::Seat;
use crate::store::{self, StoreError};

/// Which of the authorities that fill a seat one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// Signs.
    Current,
    /// Trusted already, signs nothing yet.
    Next,
    /// Still trusted, signs no certificates any more.
    Old,
}

impl Generation {
    /// Every generation, in the order of trust bundles.
    pub const ALL: [Generation; 3] = [Generation::Current, Generation::Next, Generation::Old];

    const fn suffix(self) -> &'static str {
        match self {
            Generation::Current => "",
            Generation::Next => "-next",
            Generation::Old => "-old",
        }
    }

    /// The word in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Generation::Current => "current",
            Generation::Next => "next",
            Generation::Old => "old",
        }
    }
}

/// The directory of one cluster's authorities.
#[derive(Clone, Debug)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// Nothing is read.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.into() }
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Certificate of an authority.
    pub fn cert(&self, seat: Seat, generation: Generation) -> PathBuf {
        self.file(seat, generation, "crt")
    }

    /// Private key of an authority. A root's is offline and not always there.
    pub fn key(&self, seat: Seat, generation: Generation) -> PathBuf {
        self.file(seat, generation, "key")
    }

    /// Signing request, while the certificate is awaited from elsewhere.
    pub fn request(&self, seat: Seat, generation: Generation) -> PathBuf {
        self.file(seat, generation, "csr")
    }

    /// What daemons anchor on; `None` for the root, on which nobody does.
    pub fn trust(&self, seat: Seat) -> Option<PathBuf> {
        match seat {
            Seat::Root => None,
            Seat::Agents | Seat::Servers => Some(self.dir.join(format!("trust/{seat}.pem"))),
        }
    }

    /// The file that holds the cluster's name.
    pub fn cluster(&self) -> PathBuf {
        self.dir.join("cluster")
    }

    fn file(&self, seat: Seat, generation: Generation, end: &str) -> PathBuf {
        let folder = match seat {
            Seat::Root => "root",
            Seat::Agents | Seat::Servers => "issuers",
        };
        self.dir
            .join(folder)
            .join(format!("{seat}{}.{end}", generation.suffix()))
    }

    /// The certificate that is there; `None` when there is none.
    pub fn read_cert(
        &self,
        seat: Seat,
        generation: Generation,
    ) -> Result<Option<CertificateDer<'static>>, StoreError> {
        let path = self.cert(seat, generation);
        if path.symlink_metadata().is_err() {
            return Ok(None);
        }
        Ok(Some(store::read_certificates(&path)?.swap_remove(0)))
    }
}
