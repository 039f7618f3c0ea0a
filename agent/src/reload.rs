//! The certificate files again: a set that loads is put in force. When that happens, and what is
//! said about it, is `link::process::reload`'s.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use towline_link::process::reload::{ReloadMetrics, Reloader};
use towline_link::process::watch::{Seen, Watch};

use crate::config::PolicyConfig;
use crate::serve::Serve;
use crate::trust::{Snapshot, Trust, TrustError};

/// What the set is called in metrics and logs.
const WHAT: &str = "certificates";

/// What a new set of files touches.
pub struct Reload {
    /// Handshakes and live links.
    pub trust: Arc<Trust>,
    /// Dials.
    pub serve: Arc<Serve>,
    /// Made anew with each set: node name and addresses come from the certificate.
    pub policy: PolicyConfig,
    /// Where this process serves health.
    pub health: SocketAddr,
}

impl Reload {
    /// Follows the files from the moment at which `seen` was taken.
    pub fn start(self, seen: Seen, metrics: ReloadMetrics) -> Reloader {
        let paths: Vec<_> = self.trust.files().paths().cloned().collect();
        metrics.count(WHAT, true);
        Reloader::start(WHAT, Watch::since(paths, seen), metrics, move || {
            self.read()
        })
    }

    fn read(&self) -> Result<(), TrustError> {
        let snapshot = Snapshot::load(self.trust.files(), SystemTime::now())?;
        self.serve
            .set_policy(self.policy.policy(Some(&snapshot), Some(self.health)));
        self.trust.replace(snapshot);
        Ok(())
    }
}
