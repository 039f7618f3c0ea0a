//! How a trail is asked for, and how it begins.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use towline_pki::{Identity, SealKey, seal};

use super::file::{FileError, FileStore, Rotate};
use super::record::Teller;
use super::requests::Commands;
use super::store::{Store, StreamStore};
use super::trail::OnFailure;
use super::writer::{Parts, Trail};

/// `--audit-log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// `-`.
    StandardOutput,
    /// A file.
    File(PathBuf),
}

impl Place {
    /// The flag's value.
    pub fn of(path: PathBuf) -> Self {
        if path.as_os_str() == "-" {
            Place::StandardOutput
        } else {
            Place::File(path)
        }
    }
}

/// What the flags say.
#[derive(Clone, Debug)]
pub struct AuditConfig {
    /// Where lines go.
    pub place: Place,
    /// With what checkpoints are signed.
    pub key: Arc<SealKey>,
    /// What happens when they cannot.
    pub on_failure: OnFailure,
    /// When files are put aside.
    pub rotate: Rotate,
    /// How much of a command is told.
    pub commands: Commands,
}

/// Why there is no trail.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The thread, or randomness for names.
    #[error("the audit trail cannot begin: {0}")]
    Start(#[from] io::Error),
}

/// Begins or resumes a trail.
pub fn open(config: AuditConfig, who: &Identity, now: SystemTime) -> Result<Trail, OpenError> {
    let AuditConfig {
        place,
        key,
        on_failure,
        rotate,
        commands,
    } = config;
    let random: [u8; 24] = seal::random().ok_or_else(|| io::Error::other("no random numbers"))?;
    let (run, trail) = random.split_at(8);
    let (store, resumed): (Box<dyn Store>, _) = match place {
        Place::StandardOutput => (Box::new(StreamStore::new(io::stdout())), None),
        Place::File(path) => {
            let (store, resumed) = FileStore::open(Path::new(&path), rotate, now)?;
            (Box::new(store), resumed)
        }
    };
    let teller = Teller {
        cluster: who.cluster.to_string(),
        server: who.name.to_string(),
        run: run
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)),
        commands,
    };
    Ok(Trail::start(Parts {
        teller,
        key,
        store,
        resumed,
        new_trail: seal::hex(trail),
        on_failure,
    })?)
}
