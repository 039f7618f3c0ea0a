//! Which files prove who we are and decide whom we believe.

use std::path::PathBuf;
use std::time::SystemTime;

use towline_link::process::watch::Seen;
use towline_pki::{CrlPolicy, Files, SharedRoots};
use towline_proto::id::Role;
use towline_proto::target::Target;

use super::ConfigError;
use crate::trust::Snapshot;

/// Who we are to Towline servers.
#[derive(Debug)]
pub struct OwnIdentity {
    /// Which files.
    pub files: Files,
    /// What was in them.
    pub trust: Snapshot,
    /// As which they were read; what changed after that is not missed.
    pub seen: Seen,
}

/// The flags that say which servers are refused although they verify.
pub(super) struct Refusals {
    pub(super) deny_list: Option<PathBuf>,
    pub(super) crls: Vec<PathBuf>,
    pub(super) crl_policy: CrlPolicy,
    pub(super) shared_roots: SharedRoots,
}

/// The identity, if it is asked for. In the compatibility profile its certificate may come
/// later, as that of a Secret that is optional.
pub(super) fn identity(
    servers: &[Target],
    given: (Option<PathBuf>, Option<PathBuf>, Option<PathBuf>),
    refusals: Refusals,
    now: SystemTime,
) -> Result<Option<OwnIdentity>, ConfigError> {
    let part = |given, missing| Err(ConfigError::PartOfIdentity { given, missing });
    let (cert, key, server_ca) = match given {
        (Some(cert), Some(key), Some(server_ca)) => (cert, key, server_ca),
        (None, None, None) => {
            return match servers.first() {
                Some(server) => Err(ConfigError::NoIdentity(server.clone())),
                None => Ok(None),
            };
        }
        (None, ..) => return part("--key or --server-ca", "--cert"),
        (_, None, _) => return part("--cert", "--key"),
        (.., None) => return part("--cert", "--server-ca"),
    };
    if servers.is_empty() && !cert.exists() {
        tracing::debug!(cert = %cert.display(), "no identity yet");
        return Ok(None);
    }
    let files = Files {
        cert,
        key,
        anchors: vec![(Role::Server, server_ca)],
        deny_list: refusals.deny_list,
        crls: vec![(Role::Server, refusals.crls)],
        crl_policy: refusals.crl_policy,
        shared_roots: refusals.shared_roots,
    };
    let paths: Vec<_> = files.paths().cloned().collect();
    let seen = Seen::now(&paths);
    let trust = Snapshot::load(&files, None, now)?;
    Ok(Some(OwnIdentity { files, trust, seen }))
}
