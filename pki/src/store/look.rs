//! What may be there or not: files that are read when they are, and the names in a directory.

use std::fs;
use std::io;
use std::path::Path;

use towline_proto::limits;

use super::{StoreError, read, read_secret};
use crate::secret::Secret;

/// As [`read`]; `None` when there is no such file.
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    if_there(read(path))
}

/// As [`read_secret`]; `None` when there is no such file.
pub fn read_secret_if_there(path: &Path) -> Result<Option<Secret>, StoreError> {
    if_there(read_secret(path))
}

fn if_there<T>(result: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match result {
        Ok(content) => Ok(Some(content)),
        Err(StoreError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Whether the name is taken, by whatever it is.
pub fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// The names in a directory, sorted; none when there is no such directory. What is no text is
/// passed over.
pub fn names_in(directory: &Path) -> Result<Vec<String>, StoreError> {
    let failed = |source| StoreError::Read {
        path: directory.into(),
        source,
    };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        if names.len() == limits::SURVEY_FILES {
            let path = directory.into();
            return Err(StoreError::TooMany { path });
        }
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}
