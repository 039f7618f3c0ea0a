//! What the admin listener asks of the server: status, reload, drain.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use towline_link::process::daemon::Daemon;
use towline_link::process::drain::Drain;
use towline_link::process::reload::ReloadHandle;

use crate::dial::Dialer;
use crate::policy::explain;
use crate::status::Source;

/// The server as its admin listener sees it.
pub struct Control {
    /// For `GET /status`.
    pub status: Source,
    /// For `POST /reload`.
    pub files: ReloadHandle,
    /// For `POST /reload`, too: the policy file is read apart from the others.
    pub policy_file: Option<ReloadHandle>,
    /// For `POST /reload`, too: what agents are issued certificates by.
    pub enrolment: Option<ReloadHandle>,
    /// For `GET /policy/explain`.
    pub dialer: Arc<Dialer>,
    /// For `POST /drain`.
    pub drain: Drain,
    /// How long live dials may go on then.
    pub drain_timeout: Duration,
}

#[async_trait]
impl Daemon for Control {
    fn status(&self) -> serde_json::Value {
        serde_json::to_value(self.status.status()).unwrap_or_default()
    }

    fn kubelets(&self) -> Option<serde_json::Value> {
        serde_json::to_value(self.status.reporter.report()).ok()
    }

    fn explain(&self, query: &str) -> Option<Result<serde_json::Value, String>> {
        let told = explain::Asked::from_query(query).map(|asked| self.dialer.explain(asked));
        Some(told.and_then(|told| serde_json::to_value(told).map_err(|e| e.to_string())))
    }

    async fn reload(&self) -> Result<(), String> {
        // All are read, whatever becomes of the first.
        let files = self.files.reload_now().await;
        let policy = match &self.policy_file {
            Some(file) => file.reload_now().await,
            None => Ok(()),
        };
        let enrolment = match &self.enrolment {
            Some(files) => files.reload_now().await,
            None => Ok(()),
        };
        files
            .and(policy)
            .and(enrolment)
            .map_err(|error| error.to_string())
    }

    fn drain(&self) {
        self.drain.begin(self.drain_timeout);
    }

    fn stop_now(&self) {
        self.drain.force();
    }
}
