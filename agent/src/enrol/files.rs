//! The files of an enrolled agent, in its state directory.
//!
//! | file | what |
//! |---|---|
//! | `agent.crt`, `agent.key` | the pair in force |
//! | `agent.key.next` | a new key while the pair is replaced (`pki::store::replace_pair`) |
//! | `agent.key.asked` | the key of a request that was not answered yet |
//! | `server-ca.crt` | the servers' authority, from a join token's first contact |
//!
//! A request is made with one key until it is answered, so an answer that was lost can be asked
//! for again: a join token is spent for that very key. After a crash between any two steps either
//! the old pair works, or the new one.

use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use towline_pki::store::{self, Replace, StoreError};
use towline_pki::{KeyKind, PrivateKey, pem};

use super::EnrolError;
use super::flags::EnrolConfig;

/// Where the key of an unanswered request lies.
pub fn asked_key(key: &Path) -> PathBuf {
    let mut name = key.as_os_str().to_owned();
    name.push(".asked");
    name.into()
}

fn wrong(path: &Path) -> impl FnOnce(StoreError) -> EnrolError {
    let path = path.to_owned();
    // The error names the file itself.
    move |error| {
        let what = error.to_string();
        let named = format!("{}: ", path.display());
        EnrolError::File {
            what: what.strip_prefix(&named).unwrap_or(&what).to_owned(),
            path,
        }
    }
}

/// The key to ask with: that of the last request, if it was not answered, or a new one.
pub fn key_to_ask_with(config: &EnrolConfig) -> Result<PrivateKey, EnrolError> {
    let path = asked_key(&config.files.key);
    if let Some(directory) = config.files.key.parent() {
        store::make_private_directory(directory).map_err(wrong(directory))?;
    }
    if path.exists()
        && let Ok(der) = store::read_private_key(&path)
        && let Ok(key) = PrivateKey::from_der(&der)
    {
        return Ok(key);
    }
    let key = PrivateKey::generate(KeyKind::default()).map_err(|error| EnrolError::File {
        path: path.clone(),
        what: error.to_string(),
    })?;
    // One that does not read is worth nothing: no certificate was ever made for it.
    store::write_secret(&path, &key.to_pem(), Replace::Atomically).map_err(wrong(&path))?;
    Ok(key)
}

/// Puts the answer in place: roots first, so that the pair never stands there without them.
pub fn put(
    config: &EnrolConfig,
    chain: &[CertificateDer<'static>],
    authorities: &[CertificateDer<'static>],
    key: &PrivateKey,
) -> Result<(), EnrolError> {
    if !config.pinned_by_file
        && !authorities.is_empty()
        && let Some(path) = config.server_ca()
    {
        let text = pem::write_certificates(authorities);
        store::write_public(path, &text, Replace::Atomically).map_err(wrong(path))?;
    }
    let files = &config.files;
    let text = pem::write_certificates(chain);
    store::replace_pair(&files.cert, &text, &files.key, &key.to_pem())
        .map_err(wrong(&files.cert))?;
    let asked = asked_key(&files.key);
    match store::remove(&asked) {
        Ok(()) => Ok(()),
        // The pair is in place; that key is asked with once more and then replaced.
        Err(error) => {
            tracing::warn!(%error, "the key of an answered request could not be removed");
            Ok(())
        }
    }
}
