//! What signals and the admin listener ask of the agent, and what readiness follows.

use std::time::Duration;

use async_trait::async_trait;
use towline_link::process::daemon::Daemon;
use towline_link::process::drain::{Drain, DrainView};
use towline_link::process::ready::Condition;
use towline_link::process::reload::ReloadHandle;
use towline_proto::limits;

use crate::konnectivity::servers::LegacyServers;
use crate::links::Links;
use crate::status::Sources;

/// The agent as they see it.
pub(crate) struct AgentDaemon {
    pub(crate) sources: Sources,
    pub(crate) reload: Option<ReloadHandle>,
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
        // Both are read, whatever becomes of the first; the files of the legacy mode are read
        // again for each attempt.
        let mut result = Ok(());
        for reload in self.reload.iter().chain(&self.reload_policy) {
            result = result.and(reload.reload_now().await);
        }
        result.map_err(|error| error.to_string())
    }

    fn drain(&self) {
        self.drain.begin(self.drain_timeout);
    }

    fn stop_now(&self) {
        self.drain.force();
    }
}

/// Ready while there is a line to one server at least that works; a worse one is the note.
pub(crate) async fn follow_links(
    links: Links,
    legacy: Option<LegacyServers>,
    condition: Condition,
) {
    let mut changes = links.watch();
    let mut streams = legacy.as_ref().map(LegacyServers::watch);
    loop {
        changes.borrow_and_update();
        match line(&links, legacy.as_ref()) {
            Ok(None) => condition.met(),
            Ok(Some(note)) => condition.note(note),
            Err(why) => condition.unmet(why),
        }
        let stream = async {
            match &mut streams {
                Some(streams) => streams.changed().await,
                None => std::future::pending().await,
            }
        };
        let changed = tokio::select! {
            changed = changes.changed() => changed,
            changed = stream => changed,
            // What does not happen has no event.
            () = tokio::time::sleep(limits::READY_LOOK) => Ok(()),
        };
        if changed.is_err() {
            return;
        }
    }
}

fn line(links: &Links, legacy: Option<&LegacyServers>) -> Result<Option<String>, String> {
    let readiness = links.readiness();
    let Some(legacy) = legacy else {
        return readiness;
    };
    if readiness.is_ok() || !legacy.is_empty() {
        return Ok(readiness.ok().flatten());
    }
    let cause = legacy.error().or_else(|| links.worst());
    let cause = cause.unwrap_or_else(|| "no attempt has ended yet".to_owned());
    Err(format!("no line to any server: {cause}"))
}

/// Not ready from the moment at which stopping begins.
pub(crate) async fn follow_stage(stage: DrainView, condition: Condition) {
    condition.met();
    stage.signalled().await;
    condition.stopping("the agent is stopping");
    std::future::pending().await
}
