//! The compatibility profile at work: its table, its door, its files.

use std::sync::Arc;

use towline_link::live::LiveDials;

use super::profile::Profile;
use crate::legacy::accept::LegacyDoor;
use crate::legacy::serve::Reception;
use crate::legacy::token::Reviewer;
use crate::legacy::trust::{LegacyFiles, LegacyTrust};
use crate::legacy::{LegacyAgents, LegacyRoute};
use crate::metrics::Metrics;
use crate::reload::LegacyReload;

/// See the head of this file.
pub struct Running {
    /// What the dialer asks.
    pub route: LegacyRoute,
    /// Where legacy agents come in; closed without a certificate to show them.
    pub door: Option<Arc<LegacyDoor>>,
    /// Files in force.
    pub trust: LegacyTrust,
    files: LegacyFiles,
    unverified: Vec<String>,
    without_effect: Vec<&'static str>,
}

impl Running {
    /// Makes it; nothing is accepted yet.
    pub fn new(
        profile: Profile,
        max_streams: usize,
        max_dials: u32,
        live: LiveDials,
        metrics: Metrics,
    ) -> Self {
        let unverified = profile.unverified();
        let agents = LegacyAgents::new(profile.strategies, max_streams);
        let trust = LegacyTrust::new(profile.trust);
        let reviewer = profile
            .tokens
            .map(|(rule, client)| Reviewer::new(client, rule));
        let told = (profile.server_id, profile.server_count);
        let reception = Reception::new(agents.clone(), reviewer, told, live, metrics);
        let door = LegacyDoor {
            trust: trust.clone(),
            reception: Arc::new(reception),
            keep_alive: profile.keep_alive,
        };
        Self {
            route: LegacyRoute {
                agents,
                per_stream: max_dials as usize,
                answer_within: profile.answer_within,
                downgrade: profile.downgrade,
            },
            door: profile.files.agents.is_some().then(|| Arc::new(door)),
            trust,
            files: profile.files,
            unverified,
            without_effect: profile.without_effect,
        }
    }

    /// Says what is not verified, and which flags do nothing.
    pub fn shout(&self) {
        for line in &self.unverified {
            tracing::warn!("NOT VERIFIED (--compatibility=konnectivity): {line}");
        }
        if !self.without_effect.is_empty() {
            let flags = self.without_effect.join(" ");
            tracing::info!(flags, "accepted, without effect here");
        }
    }

    /// For the reloader.
    pub fn reload(&self) -> LegacyReload {
        LegacyReload {
            files: self.files.clone(),
            trust: self.trust.clone(),
            door: self.door.clone(),
        }
    }

    /// For status.
    pub fn told(&self) -> (LegacyAgents, Vec<String>) {
        (self.route.agents.clone(), self.unverified.clone())
    }
}
