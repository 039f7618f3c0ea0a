//! What signals and the admin listener ask of the agent, and what readiness follows.

use std::time::Duration;

use async_trait::async_trait;
use towline_link::process::daemon::Daemon;
use towline_link::process::drain::{Drain, DrainView};
use towline_link::process::ready::Condition;
use towline_link::process::reload::ReloadHandle;

use crate::links::Links;
use crate::status::Sources;

/// The agent as they see it.
pub(crate) struct AgentDaemon {
    pub(crate) sources: Sources,
    pub(crate) reload: ReloadHandle,
    pub(crate) reload_policy: Option<ReloadHandle>,
    pub(crate) drain: Drain,
    pub(crate) drain_timeout: Duration,
}

#[async_trait]
impl Daemon for AgentDaemon {
    fn status(&self) -> serde_json::Value {
        let status = serde_json::to_value(self.sources.status());
        status.unwrap_or_else(|error| serde_json::json!({ "error": error.to_string() }))
    }

    async fn reload(&self) -> Result<(), String> {
        // Both are read, whatever becomes of the first.
        let certificates = self.reload.reload_now().await;
        let policy = match &self.reload_policy {
            Some(reload) => reload.reload_now().await,
            None => Ok(()),
        };
        certificates.and(policy).map_err(|error| error.to_string())
    }

    fn drain(&self) {
        self.drain.begin(self.drain_timeout);
    }

    fn stop_now(&self) {
        self.drain.force();
    }
}

/// Ready while one server at least is linked; one that is not shows in status and metrics.
pub(crate) async fn follow_links(links: Links, condition: Condition) {
    let mut changes = links.watch();
    loop {
        changes.borrow_and_update();
        condition.set(links.readiness());
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Not ready from the moment at which stopping begins.
pub(crate) async fn follow_stage(stage: DrainView, condition: Condition) {
    condition.met();
    stage.signalled().await;
    condition.unmet("the agent is stopping");
    std::future::pending().await
}
