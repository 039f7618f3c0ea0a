//! The server while it runs: where it listens, what is known, how it is stopped.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use towline_link::process::drain::DrainView;
use towline_link::process::ready::Readiness;
use towline_proto::limits;
use towline_proto::reason::Reason;

use super::Server;
use crate::control::Control;
use crate::ended::{self, RunError};
use crate::konnectivity::Counted;
use crate::policy::in_force::InForce;
use crate::reload::Reloader;
use crate::status::Status;

impl Server {
    /// Where agents connect.
    pub fn link_address(&self) -> SocketAddr {
        self.addresses.link
    }

    /// The Unix door.
    pub fn door_unix(&self) -> Option<&Path> {
        self.addresses.door_unix.as_deref()
    }

    /// The TCP door.
    pub fn door_tcp(&self) -> Option<SocketAddr> {
        self.addresses.door_tcp
    }

    /// The TCP door of the compatibility profile.
    pub fn door_signed(&self) -> Option<SocketAddr> {
        self.addresses.door_signed
    }

    /// Health and metrics.
    pub fn health_address(&self) -> SocketAddr {
        self.admin.health_address()
    }

    /// What is known about agents, links and dials.
    pub fn status(&self) -> Status {
        self.control.status.status()
    }

    /// What Konnectivity would count.
    pub fn counted(&self) -> &Arc<Counted> {
        &self.counted
    }

    /// What signals and the admin listener ask of it.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// How far stopping has come.
    pub fn stage(&self) -> DrainView {
        self.drain.view()
    }

    /// Whether it can take dials.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Puts changed files in force, at once and in this thread.
    pub fn reloader(&self) -> &Arc<Reloader> {
        &self.reloader
    }

    /// The policy in force.
    pub fn policy(&self) -> &Arc<InForce> {
        &self.policy
    }

    /// Stops gracefully: no new dials, live ones may end, then the links.
    pub fn drain(&self) {
        self.drain.begin(self.control.drain_timeout);
    }

    /// Stops at once.
    pub fn stop_now(&self) {
        self.drain.force();
    }

    /// Resolves when the server has stopped. Cancel-safe.
    pub async fn wait(&self) -> Result<(), RunError> {
        let outcome = self.drain.finish().await;
        if let Some(quic) = &self.quic {
            quic.close(Reason::Shutdown);
            // So that agents are told now instead of finding out.
            let _ = tokio::time::timeout(limits::CLOSE_LINGER, quic.wait_idle()).await;
        }
        // Behind the last end of the last dial.
        let trail = self
            .trail
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(mut trail) = trail {
            trail.finish().await;
        }
        if let Some(text) = self.failed.get() {
            return Err(RunError::Panicked(text.clone()));
        }
        let in_profile = self.control.status.compat.is_some();
        ended::judge(outcome, self.drain.was_forced(), in_profile)
    }

    /// The last step: health and admin answered until now, and finish what they are writing.
    pub async fn close(self) {
        let Self { admin, _tasks, .. } = self;
        admin.stop().await;
    }
}
