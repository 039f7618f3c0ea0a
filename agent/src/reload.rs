//! The files again: what loads is put in force. When that happens, and what is said about it, is
//! `link::process::reload`'s. The certificates and the policy file are two sets, so that a fault in
//! one keeps nothing new of the other out.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use towline_link::process::policy_file::{PolicyFile, PolicyFileError};
use towline_link::process::ready::Condition;
use towline_link::process::reload::{ReloadMetrics, Reloader};
use towline_link::process::watch::{Seen, Watch};

use crate::config::PolicyConfig;
use crate::metrics::Metrics;
use crate::serve::Serve;
use crate::trust::{Snapshot, Trust, TrustError};

/// What the set is called in metrics and logs.
pub const WHAT: &str = "certificates";

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
    pub fn start(self, seen: Seen, metrics: ReloadMetrics, noted: Condition) -> Reloader {
        let paths: Vec<_> = self.trust.files().paths().cloned().collect();
        metrics.count(WHAT, true);
        let watch = Watch::since(paths, seen);
        Reloader::start(WHAT, watch, metrics, Some(noted), move || self.read())
    }

    fn read(&self) -> Result<(), TrustError> {
        let before = self.trust.current();
        let files = self.trust.files();
        let read = Snapshot::load(files, Some(&before.material), SystemTime::now());
        let snapshot = match read {
            Ok(snapshot) => snapshot,
            Err(error) => {
                // A revocation does not wait until another file is mended.
                self.trust.replace(before.revoked_anew(files)?);
                return Err(error);
            }
        };
        let fault = snapshot.material.crl_faults().first().cloned();
        self.serve.change_policy(|rules| {
            let allowed = Arc::clone(&rules.rules);
            let health = Some(self.health);
            *rules = self.policy.rules(Some(&snapshot), health, allowed);
        });
        self.trust.replace(snapshot);
        match fault {
            Some(fault) => Err(TrustError::Crl(fault.what, fault.error)),
            None => Ok(()),
        }
    }
}

/// The policy file. One that cannot be used leaves the old one in force and raises an alarm: an
/// error in the log, the metrics, and the readiness condition `policy`.
pub struct PolicyReload {
    /// Where it is.
    pub path: PathBuf,
    /// Whom it concerns.
    pub serve: Arc<Serve>,
    /// The alarm.
    pub condition: Condition,
    /// The alarm, too.
    pub gauges: Metrics,
}

impl PolicyReload {
    /// Follows the file from the moment at which `seen` was taken; `first` was read since.
    pub fn start(self, first: &PolicyFile, seen: Seen, metrics: ReloadMetrics) -> Reloader {
        metrics.count("policy", true);
        self.condition.met();
        self.gauges.policy_rules(first.rules.rules().len());
        say(first);
        let watch = Watch::since([self.path.clone()], seen);
        Reloader::start("policy", watch, metrics, None, move || self.read())
    }

    fn read(&self) -> Result<(), PolicyFileError> {
        let read = PolicyFile::load(&self.path);
        self.gauges.policy_stale(read.is_err());
        // An older one is in force, so dials are judged: turning away would help nobody.
        match &read {
            Ok(_) => self.condition.met(),
            Err(error) => self.condition.note(format!(
                "the policy file is not in force, an older one is: {error}"
            )),
        }
        let file = read?;
        let ended = self.serve.change_policy(|rules| {
            rules.rules = Arc::clone(&file.rules);
        });
        self.gauges.policy_rules(file.rules.rules().len());
        say(&file);
        if ended > 0 {
            tracing::warn!(
                dials = ended,
                "live dials were ended that are no longer allowed"
            );
        }
        Ok(())
    }
}

/// What of the file an agent cannot keep is said, not passed over.
fn say(file: &PolicyFile) {
    let asking = file.rules.asking_front_end();
    if asking > 0 {
        tracing::info!(
            rules = asking,
            "rules ask who the front end is, which only servers see: here such an allow rule counts \
             for every front end, and such a deny rule is left to the servers"
        );
    }
    if file.kubelet.is_some() {
        tracing::info!("the kubelet section of the policy file is kept by the servers' gateway");
    }
}
