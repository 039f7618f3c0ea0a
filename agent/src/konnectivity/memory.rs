//! Which servers have spoken `towline/1`: they are never again spoken to in the legacy protocol,
//! unless the operator says so. Kept in the state directory, so that a restart does not forget.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use towline_pki::store::{self, Replace, StoreError};
use towline_proto::limits;
use towline_proto::target::Target;
use tracing::warn;

/// The file's name.
const FILE: &str = "towline-servers";

/// The memory.
#[derive(Debug, Default)]
pub struct SpokenTo {
    path: Option<PathBuf>,
    servers: Mutex<BTreeSet<String>>,
}

impl SpokenTo {
    /// Reads what is remembered in `folder`; without a folder it lasts as long as the process.
    pub fn load(folder: Option<&Path>) -> Result<Self, StoreError> {
        let Some(folder) = folder else {
            return Ok(Self::default());
        };
        let path = folder.join(FILE);
        let text = match path.exists() {
            true => store::read(&path)?,
            false => {
                store::make_private_directory(folder)?;
                Vec::new()
            }
        };
        let text = String::from_utf8_lossy(&text);
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        Ok(Self {
            path: Some(path),
            servers: Mutex::new(lines.take(limits::SERVERS).map(str::to_owned).collect()),
        })
    }

    /// Whether this server has spoken `towline/1`.
    pub fn has(&self, server: &Target) -> bool {
        let servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        servers.contains(&server.to_string())
    }

    /// It has.
    pub fn note(&self, server: &Target) {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if !servers.insert(server.to_string()) {
            return;
        }
        let Some(path) = &self.path else {
            return;
        };
        let text: String = servers.iter().map(|server| format!("{server}\n")).collect();
        if let Err(error) = store::write_public(path, &text, Replace::Atomically) {
            warn!(%error, "a restart will forget which servers speak towline/1");
        }
    }
}
