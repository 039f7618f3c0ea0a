//! The certificate files again: a set that loads is put in force, one that does not is reported
//! and the old one stays.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tracing::{info, warn};

use crate::config::PolicyConfig;
use crate::metrics::Metrics;
use crate::serve::Serve;
use crate::trust::{Snapshot, Trust, TrustError};

/// Reads the files when it is told to.
pub struct Reload {
    trust: Arc<Trust>,
    serve: Arc<Serve>,
    policy: PolicyConfig,
    health: Option<SocketAddr>,
    metrics: Metrics,
    /// One reading at a time, so that an older one never replaces a newer one.
    reading: Mutex<()>,
}

impl Reload {
    /// The policy is made anew with each set, because node name and addresses come from the
    /// certificate.
    pub fn new(
        trust: Arc<Trust>,
        serve: Arc<Serve>,
        policy: PolicyConfig,
        health: Option<SocketAddr>,
        metrics: Metrics,
    ) -> Self {
        Self {
            trust,
            serve,
            policy,
            health,
            metrics,
            reading: Mutex::new(()),
        }
    }

    /// Reads every file now. Blocks for as long as the disk does.
    pub fn read(&self) -> Result<(), TrustError> {
        let _one = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = Snapshot::load(self.trust.files(), SystemTime::now());
        self.metrics.reloaded(loaded.is_ok());
        let snapshot = loaded.inspect_err(|error| {
            warn!(%error, "the changed files cannot be used, what was loaded before stays in force");
        })?;
        let leaf = snapshot.material.credentials().leaf();
        info!(identity = %leaf.identity, serial = %leaf.serial, "certificate files are in force");
        self.serve
            .set_policy(self.policy.policy(&snapshot, self.health));
        self.trust.replace(snapshot);
        Ok(())
    }
}
