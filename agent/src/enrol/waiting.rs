//! The agent before its first certificate: nothing but health, metrics, signals, and attempts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use towline_link::process::accept::AcceptMetrics;
use towline_link::process::admin::{Admin, AdminConfig, AdminError, AdminParts, AdminSockets};
use towline_link::process::daemon::Daemon;
use towline_link::process::drain::{Drain, DrainView};
use towline_link::process::live::LiveProbe;
use towline_link::process::panics;
use towline_link::process::ready::{Condition, Readiness};
use towline_link::process::unix::AllowedUids;

use super::Enrolling;
use crate::config::{Config, OwnIdentity};

/// How often what is not ready is put into words again.
const LOOK: Duration = Duration::from_millis(250);

struct WaitingDaemon {
    enrolling: Arc<Enrolling>,
    drain: Drain,
}

#[async_trait]
impl Daemon for WaitingDaemon {
    fn status(&self) -> serde_json::Value {
        serde_json::json!({
            "software": crate::attempt::SOFTWARE,
            "stage": self.drain.view().stage().as_str(),
            "identity": null,
            "enrolment": self.enrolling.status(),
        })
    }

    async fn reload(&self) -> Result<(), String> {
        // Every file is read again at each attempt.
        Ok(())
    }

    fn drain(&self) {
        self.drain.begin(Duration::ZERO);
    }

    fn stop_now(&self) {
        self.drain.force();
    }
}

/// An agent that has no certificate yet.
pub struct Waiting {
    enrolling: Arc<Enrolling>,
    daemon: Arc<WaitingDaemon>,
    readiness: Readiness,
    condition: Condition,
    drain: Drain,
    admin: Admin,
}

impl Waiting {
    /// Serves health and metrics, with more of them than its own; `None` when there is nothing to
    /// wait for.
    pub fn begin(
        config: &Config,
        more: impl FnOnce(&mut Registry),
    ) -> Result<Option<Self>, AdminError> {
        let Some(enrolling) = config
            .enrolling
            .as_ref()
            .filter(|_| config.identity.is_none())
        else {
            return Ok(None);
        };
        let mut registry = Registry::default();
        more(&mut registry);
        panics::register(&mut registry);
        enrolling.metrics().register(&mut registry);
        let readiness = Readiness::new();
        let condition = readiness.condition("certificate", "no certificate yet");
        let drain = Drain::new();
        let daemon = Arc::new(WaitingDaemon {
            enrolling: Arc::clone(enrolling),
            drain: drain.clone(),
        });
        let sockets = AdminSockets::bind(AdminConfig {
            health: config.process.health,
            socket: config.process.admin_socket.clone(),
            allowed: AllowedUids::default_set(),
            second: None,
        })?;
        let admin = sockets.serve(AdminParts {
            accepted: AcceptMetrics::register(&mut registry),
            registry,
            readiness: readiness.clone(),
            live: LiveProbe::new(Handle::current()),
            daemon: Arc::clone(&daemon) as _,
            compat: None,
        })?;
        Ok(Some(Self {
            enrolling: Arc::clone(enrolling),
            daemon,
            readiness,
            condition,
            drain,
            admin,
        }))
    }

    /// Where health is served.
    pub fn health_address(&self) -> SocketAddr {
        self.admin.health_address()
    }

    /// For signals.
    pub fn daemon(&self) -> Arc<dyn Daemon> {
        Arc::clone(&self.daemon) as _
    }

    /// For the service manager.
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// How far stopping has come.
    pub fn stage(&self) -> DrainView {
        self.drain.view()
    }

    /// Resolves with a certificate, or with `None` when the agent is told to stop.
    pub async fn certificate(self) -> Option<OwnIdentity> {
        let stage = self.drain.view();
        let told = async {
            loop {
                let why = self.enrolling.why();
                self.condition.unmet(format!("no certificate: {why}"));
                tokio::time::sleep(LOOK).await;
            }
        };
        let enrolled = tokio::select! {
            identity = self.enrolling.first() => Some(identity),
            _ = stage.signalled() => None,
            () = told => None,
        };
        // The ports are free again for the agent itself.
        self.admin.stop().await;
        enrolled
    }
}
