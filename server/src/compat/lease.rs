//! The Lease by which agents count servers: ours is renewed while we take agents, those of servers
//! that are gone are deleted, ours is deleted when we stop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use towline_link::error::detail;
use towline_link::kube::KubeError;
use towline_link::kube::lease::{Lease, Leases};
use towline_link::kube::moment::Moment;
use towline_link::process::drain::DrainWatch;
use towline_link::process::ratelimit::RateLimited;
use towline_proto::limits;

use super::profile::LeaseConfig;
use crate::konnectivity::Counted;

/// Keeps one Lease. See the head of this file.
pub struct LeaseKeeper {
    leases: Leases,
    name: String,
    holder: String,
    labels: BTreeMap<String, String>,
    counted: Arc<Counted>,
    failed: RateLimited<&'static str>,
}

impl LeaseKeeper {
    /// For the server of this id.
    pub fn new(config: LeaseConfig, server_id: &str, counted: Arc<Counted>) -> Self {
        Self {
            leases: Leases::new(config.client, &config.namespace),
            name: format!("konnectivity-proxy-server-{server_id}"),
            holder: server_id.to_owned(),
            labels: config.labels,
            counted,
            failed: RateLimited::new(1, Duration::from_secs(60)),
        }
    }

    /// Keeps it until stopping begins.
    pub async fn keep(self, drain: DrainWatch) {
        loop {
            let round = async {
                self.note("renew", self.renew(SystemTime::now()).await);
                self.note("clean up", self.cull(SystemTime::now()).await);
                tokio::time::sleep(limits::LEASE_RENEW).await;
            };
            tokio::select! {
                () = round => {}
                _ = drain.signalled() => break,
            }
        }
        let released = tokio::time::timeout(limits::LEASE_RELEASE, self.release());
        if let Ok(result) = released.await {
            self.note("release", result);
        }
    }

    fn note(&self, what: &'static str, result: Result<(), KubeError>) {
        if let Err(error) = result
            && let Some(suppressed) = self.failed.allow(what)
        {
            tracing::warn!(
                lease = self.name,
                suppressed,
                "cannot {what} leases: {}",
                detail(error)
            );
        }
    }

    async fn renew(&self, now: SystemTime) -> Result<(), KubeError> {
        let mut lease = match self.leases.get(&self.name).await {
            Ok(lease) => lease,
            Err(error) if error.is_not_found() => Lease::default(),
            Err(error) => return Err(error),
        };
        let new = lease.metadata.name.is_empty();
        lease.metadata.name.clone_from(&self.name);
        lease.metadata.labels.extend(self.labels.clone());
        lease.spec.holder_identity = Some(self.holder.clone());
        lease.spec.lease_duration_seconds = Some(limits::LEASE_SECONDS);
        lease.spec.renew_time = Some(Moment(now));
        if new {
            lease.spec.acquire_time = Some(Moment(now));
            self.leases.create(&lease).await.map(drop)
        } else {
            self.leases.update(&lease).await.map(drop)
        }
    }

    /// Deletes what has ended. A lease that was renewed since it was read stays: its version
    /// differs.
    async fn cull(&self, now: SystemTime) -> Result<(), KubeError> {
        let labels = self
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"));
        let selector = labels.collect::<Vec<_>>().join(",");
        let begun = Instant::now();
        let listed = self.leases.list(&selector).await;
        let (status, reason) = outcome(listed.as_ref().err(), "200");
        self.counted
            .leases_listed(&status, &reason, begun.elapsed());
        for lease in listed?.items {
            if lease.is_valid(now) || lease.metadata.name == self.name {
                continue;
            }
            let begun = Instant::now();
            let deleted = self.leases.delete(&lease).await;
            let (status, reason) = outcome(deleted.as_ref().err(), "200");
            self.counted
                .lease_deleted(&status, &reason, begun.elapsed());
            match deleted {
                Ok(()) => {
                    self.counted.culled();
                    tracing::info!(
                        lease = lease.metadata.name,
                        "deleted the lease of a server that is gone"
                    );
                }
                // Somebody else was faster, or it was renewed.
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn release(&self) -> Result<(), KubeError> {
        let mut lease = Lease::default();
        lease.metadata.name.clone_from(&self.name);
        match self.leases.delete(&lease).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }
}

/// Status code and word for metrics; a call that reached nobody has neither.
fn outcome(error: Option<&KubeError>, ok: &str) -> (String, String) {
    match error {
        None => (ok.to_owned(), String::new()),
        Some(error) => {
            let status = error.status().map_or(0, i32::from);
            (
                status.to_string(),
                error.reason().unwrap_or("Unknown").to_owned(),
            )
        }
    }
}
