//! The compatibility profile at work: its table, its door, its files.

use std::sync::Arc;

use towline_link::live::LiveDials;
use towline_link::process::compat::{Compat, Page};

use super::lease::LeaseKeeper;
use super::profile::{LeaseConfig, Profile};
use crate::agents::Agents;
use crate::doors::front_ends::FrontEnds;
use crate::konnectivity::Counted;
use crate::legacy::accept::LegacyDoor;
use crate::legacy::serve::Reception;
use crate::legacy::token::Reviewer;
use crate::legacy::trust::{LegacyFiles, LegacyTrust};
use crate::legacy::{LegacyAgents, LegacyRoute, Strategy};
use crate::metrics::Metrics;
use crate::reload::LegacyReload;

/// What status tells of it.
#[derive(Clone)]
pub struct Told {
    /// Who is there.
    pub agents: LegacyAgents,
    /// What is not verified, one line each.
    pub unverified: Vec<String>,
    /// Whether legacy agents may come in.
    pub legacy_door: bool,
    /// Whether any certificate of an authority is a front end.
    pub signed_door: bool,
    /// Whether whoever may open the Unix socket is a front end.
    pub open_socket: bool,
    /// `--allow-downgrade`.
    pub downgrade: bool,
}

/// See the head of this file.
pub struct Running {
    /// What the dialer asks.
    pub route: LegacyRoute,
    /// Where legacy agents come in; closed without a certificate to show them.
    pub door: Option<Arc<LegacyDoor>>,
    /// Files in force.
    pub trust: LegacyTrust,
    /// Who is connected to the signed TCP door.
    pub front_ends: FrontEnds,
    files: LegacyFiles,
    told: Told,
    lease: Option<(LeaseConfig, String)>,
    without_effect: Vec<&'static str>,
    notes: Vec<String>,
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
        let agents = LegacyAgents::new(profile.strategies.clone(), max_streams);
        let told = Told {
            agents: agents.clone(),
            unverified: profile.unverified(),
            legacy_door: profile.files.agents.is_some(),
            signed_door: profile.front_ends.is_some(),
            open_socket: profile.socket.is_some(),
            downgrade: profile.downgrade,
        };
        let lease = profile
            .lease
            .map(|lease| (lease, profile.server_id.clone()));
        let trust = LegacyTrust::new(profile.trust);
        let reviewer = profile
            .tokens
            .map(|(rule, client)| Reviewer::new(client, rule));
        let us = (profile.server_id, profile.server_count);
        let reception = Reception::new(agents.clone(), reviewer, us, live, metrics);
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
            front_ends: FrontEnds::default(),
            files: profile.files,
            told,
            lease,
            without_effect: profile.without_effect,
            notes: profile.notes,
        }
    }

    /// Keeps the count of agents by strategy, until the task is dropped. Verified agents stand
    /// with those that any target may go to.
    pub fn count(
        &self,
        verified: Arc<Agents>,
        counted: Arc<Counted>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let legacy = self.route.agents.clone();
        async move {
            let (mut theirs, mut ours) = (legacy.watch(), verified.changes());
            loop {
                theirs.borrow_and_update();
                ours.borrow_and_update();
                for strategy in legacy.strategies().iter() {
                    let count = backends(&legacy, &verified, strategy);
                    counted.ready(strategy.as_str(), count);
                }
                let changed = tokio::select! {
                    changed = theirs.changed() => changed,
                    changed = ours.changed() => changed,
                };
                if changed.is_err() {
                    return;
                }
            }
        }
    }

    /// Konnectivity's pages: metrics, and ready as soon as the first strategy knows an agent.
    pub fn pages(&self, verified: &Arc<Agents>, counted: &Arc<Counted>) -> Compat {
        let (legacy, verified) = (self.route.agents.clone(), Arc::clone(verified));
        let ready =
            move |_verbose: bool| match backends(&legacy, &verified, legacy.strategies().first()) {
                0 => Page {
                    status: 500,
                    text: "no connection to any proxy agent".to_owned(),
                },
                _ => Page {
                    status: 200,
                    text: "ok".to_owned(),
                },
            };
        Compat {
            families: counted.families(),
            ready: Arc::new(ready),
        }
    }

    /// Says what is not verified, and which flags do less than they say, or nothing.
    pub fn shout(&self) {
        for line in &self.told.unverified {
            tracing::warn!("NOT VERIFIED (--compatibility=konnectivity): {line}");
        }
        for note in &self.notes {
            tracing::warn!("{note}");
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
            front_ends: self.front_ends.clone(),
        }
    }

    /// For status.
    pub fn told(&self) -> Told {
        self.told.clone()
    }

    /// The Lease's keeper, if there is one; once.
    pub fn lease(&mut self, counted: Arc<Counted>) -> Option<LeaseKeeper> {
        let (config, server_id) = self.lease.take()?;
        Some(LeaseKeeper::new(config, &server_id, counted))
    }
}

/// Keys of a strategy, as Konnectivity counts them.
fn backends(legacy: &LegacyAgents, verified: &Agents, strategy: Strategy) -> usize {
    let linked = || {
        let nodes = verified.nodes();
        nodes.iter().filter(|node| node.ended().is_none()).count()
    };
    match strategy {
        // A verified agent has at least its node's name.
        Strategy::Default | Strategy::DestHost => legacy.backends(strategy) + linked(),
        Strategy::DefaultRoute => legacy.backends(strategy),
    }
}
