//! The whole agent in start order, and in stop order.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use towline_link::carrier::CarrierMode;
use towline_link::connect::CarrierMemory;
use towline_link::live::LiveDials;
use towline_link::process::accept::AcceptMetrics;
use towline_link::process::admin::{Admin, AdminConfig, AdminError, AdminParts, AdminSockets};
use towline_link::process::classic::Families;
use towline_link::process::compat::Compat;
use towline_link::process::daemon::Daemon;
use towline_link::process::drain::{Drain, DrainView, Outcome};
use towline_link::process::live::LiveProbe;
use towline_link::process::policy_file::PolicyFile;
use towline_link::process::ready::Readiness;
use towline_link::process::reload::{ReloadError, ReloadMetrics, Reloader};
use towline_link::process::unix::AllowedUids;
use towline_link::process::watch::Seen;
use towline_link::process::{expiry, panics, revocation};
use towline_link::quic::{BindError, QuicEndpoint};
use towline_proto::limits;
use towline_proto::reason::Reason;
use tracing::{error, warn};

use crate::attempt::{Keeping, instance};
use crate::config::{Config, ReachConfig};
use crate::connect::Network;
use crate::daemon::{AgentDaemon, follow_links, follow_stage};
use crate::endpoints::ServerAddresses;
use crate::health::Health;
use crate::konnectivity::auto::Towline;
use crate::konnectivity::health;
use crate::konnectivity::metrics::LegacyMetrics;
use crate::konnectivity::servers::LegacyServers;
use crate::konnectivity::sync::{Legacy, LegacyParts};
use crate::links::Links;
use crate::metrics::Metrics;
use crate::reach::{KernelTcp, Reach};
use crate::reconnect::Keeper;
use crate::reload::{self, PolicyReload, Reload};
use crate::serve::Serve;
use crate::status::Sources;
use crate::trust::Trust;

/// Why the agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// quic is the only carrier, and there is no UDP.
    #[error(transparent)]
    Udp(#[from] BindError),
    /// Health and admin.
    #[error(transparent)]
    Admin(#[from] AdminError),
}

/// Why the agent ended other than by order.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Some dials did not end before the deadline.
    #[error("the drain ended with live dials cut: {dials}")]
    Cut {
        /// How many.
        dials: usize,
    },
    /// A defect.
    #[error("a task of the agent panicked: {0}")]
    Panicked(String),
}

/// A running agent. Dropping it ends everything at once.
pub struct Agent {
    drain: Drain,
    daemon: Arc<dyn Daemon>,
    links: Links,
    serve: Arc<Serve>,
    reloader: Option<Reloader>,
    policy_reloader: Option<Reloader>,
    readiness: Readiness,
    quic: Option<Arc<QuicEndpoint>>,
    failed: Arc<OnceLock<String>>,
    /// Dials that were live when the drain was forced.
    cut: Arc<AtomicUsize>,
    profile: bool,
    _tasks: JoinSet<()>,
    admin: Admin,
}

impl Agent {
    /// Starts everything and returns; links come up in the background.
    pub async fn start(config: Config, network: Arc<dyn Network>) -> Result<Self, StartError> {
        Box::pin(Self::start_with(config, network, |_| ())).await
    }

    /// The same, with more metrics than its own.
    pub async fn start_with(
        config: Config,
        network: Arc<dyn Network>,
        more: impl FnOnce(&mut Registry),
    ) -> Result<Self, StartError> {
        let Config {
            identity,
            enrolling,
            compatible,
            reach,
            policy,
            policy_file,
            serve,
            drain_timeout,
            process,
        } = config;
        let profile = compatible.is_some();
        let drain = Drain::new();
        let mut registry = Registry::default();
        more(&mut registry);
        panics::register(&mut registry);

        // What can fail comes first: sockets.
        let admin = AdminSockets::bind(AdminConfig {
            health: process.health,
            socket: process.admin_socket,
            allowed: AllowedUids::default_set(),
            second: compatible.as_ref().map(|compatible| compatible.second),
        })?;
        let health = admin.health_address();
        let quic = match identity {
            Some(_) => udp(&reach)?,
            // Legacy servers are reached over TCP only.
            None => None,
        };
        if let Some(endpoint) = &quic {
            endpoint.register(&mut registry);
        }

        // What the keepers of the links share. A server that may be of either kind has the last
        // place among them.
        let metrics = Metrics::default();
        let legacy = compatible.and_then(|compatible| compatible.legacy);
        let mut listed = reach.servers.clone();
        let either = match (&legacy, &identity) {
            (Some(legacy), Some(_)) => {
                listed.push(legacy.server.clone());
                Some(listed.len() - 1)
            }
            _ => None,
        };
        let links = Links::new(&listed);
        if let Some(index) = either {
            links.use_slot(index, false);
        }
        let carrier_probe = reach.carrier_probe;
        let reach = Arc::new(Reach {
            mode: reach.carrier,
            quic: quic.clone(),
            tcp: Arc::new(KernelTcp),
            proxy: reach.proxy,
            memory: CarrierMemory::default(),
            addresses: ServerAddresses::new(&listed),
        });
        if let Some(enrolling) = &enrolling {
            enrolling.metrics().register(&mut registry);
        }
        let first = identity.as_ref().map(|identity| &identity.trust);
        let serve = Arc::new(Serve::new(
            serve,
            network,
            policy.policy(first, Some(health), file_of(&policy_file)),
            Arc::clone(&reach),
            metrics.clone(),
        ));
        metrics.register(&mut registry, links.clone(), serve.live().clone());
        let (trust, seen) = match identity {
            Some(identity) => {
                let trust = Arc::new(Trust::new(identity.files, identity.trust));
                (Some(trust), Some(identity.seen))
            }
            None => (None, None),
        };
        let instance = instance();
        let keeping = trust.as_ref().map(|trust| {
            Arc::new(Keeping {
                reach: Arc::clone(&reach),
                trust: Arc::clone(trust),
                serve: Arc::clone(&serve),
                metrics: metrics.clone(),
                instance,
                drain_timeout,
                carrier_probe,
            })
        });

        // Another program's place.
        let mut families = Families::default();
        let legacy_metrics = LegacyMetrics::register(&mut families);
        let servers = LegacyServers::new(legacy_metrics.clone());
        let in_place = profile.then(|| in_place(families, &links, &servers));
        let legacy = legacy.map(|config| {
            let towline = keeping
                .as_ref()
                .zip(either)
                .map(|(keeping, index)| Towline {
                    keeping: Arc::clone(keeping),
                    links: links.clone(),
                    index,
                });
            Legacy::new(LegacyParts {
                config,
                serve: Arc::clone(&serve),
                reach: Arc::clone(&reach),
                trust: trust.clone(),
                towline,
                legacy_metrics,
                metrics: metrics.clone(),
                servers: servers.clone(),
            })
        });

        // Tasks beside the links.
        let reloads = ReloadMetrics::register(&mut registry);
        let readiness = Readiness::new();
        let reloader = trust.as_ref().zip(seen).map(|(trust, seen)| {
            let reload = Reload {
                trust: Arc::clone(trust),
                serve: Arc::clone(&serve),
                policy,
                health,
            };
            let noted = readiness.condition(reload::WHAT, "not read yet");
            reload.start(seen, reloads.clone(), noted)
        });
        let policy_reloader = policy_file.map(|((path, file), seen)| {
            let reload = PolicyReload {
                path,
                serve: Arc::clone(&serve),
                condition: readiness.condition("policy", "not read yet"),
                gauges: metrics.clone(),
            };
            reload.start(&file, seen, reloads)
        });
        let expiring = trust.clone();
        let expiries: expiry::Source = Arc::new(move || {
            let trust = expiring.as_ref().map(|trust| trust.current());
            trust.map_or_else(Vec::new, |trust| trust.material.expiries())
        });
        expiry::register(&mut registry, Arc::clone(&expiries));
        let listing = trust.clone();
        let lists: revocation::Source = Arc::new(move || {
            let own = listing.as_ref().map(|trust| trust.current());
            own.map_or_else(Default::default, |own| {
                let faults = own.material.crl_faults().to_vec();
                (own.material.crl_states(), faults)
            })
        });
        revocation::register(&mut registry, Arc::clone(&lists));
        let linked = readiness.condition("links", "no link yet");
        let running = readiness.condition("running", "starting");
        let mut tasks = JoinSet::new();
        let streams = legacy.as_ref().map(|_| servers);
        if let (Some(enrolling), Some(trust), Some(reloader)) = (&enrolling, &trust, &reloader) {
            let keeping = Arc::clone(enrolling).keep(Arc::clone(trust), reloader.handle());
            tasks.spawn(keeping);
        }
        tasks.spawn(expiry::warn_in_time(Arc::clone(&expiries)));
        let health = Health {
            links: links.clone(),
            serve: Arc::clone(&serve),
            expiries,
            files: reloader.as_ref().map(Reloader::handle),
            policy: policy_reloader.as_ref().map(Reloader::handle),
            stage: drain.view(),
        };
        tasks.spawn(health.keep());
        if let Some(trust) = trust.clone() {
            let noted = readiness.condition("revocation", "not looked at yet");
            tasks.spawn(revocation::keep_noted(lists, noted));
            tasks.spawn(async move { trust.keep_fresh().await });
        }
        tasks.spawn(follow_links(links.clone(), streams.clone(), linked));
        tasks.spawn(follow_stage(drain.view(), running));
        tasks.spawn(serve.live().clone().keep_budget());
        let cut = Arc::new(AtomicUsize::new(0));
        let cutting = cut_when_forced(drain.view(), serve.live().clone(), Arc::clone(&cut));
        tasks.spawn(cutting);

        // Health answers before the first link is tried, and until the very end.
        let sources = Sources {
            links: links.clone(),
            serve: Arc::clone(&serve),
            trust,
            enrolling,
            legacy: streams,
            reach,
            stage: drain.view(),
            instance,
        };
        let daemon: Arc<dyn Daemon> = Arc::new(AgentDaemon {
            sources,
            reload: reloader.as_ref().map(Reloader::handle),
            reload_policy: policy_reloader.as_ref().map(Reloader::handle),
            drain: drain.clone(),
            drain_timeout,
        });
        let admin = admin.serve(AdminParts {
            accepted: AcceptMetrics::register(&mut registry),
            registry,
            readiness: readiness.clone(),
            live: LiveProbe::new(Handle::current()),
            daemon: Arc::clone(&daemon),
            compat: in_place,
        })?;

        let mut keepers = JoinSet::new();
        for index in (0..links.servers()).filter(|index| Some(*index) != either) {
            if let Some(keeping) = &keeping {
                let keeper = Keeper::new(Arc::clone(keeping), links.slot(index), drain.watch());
                keepers.spawn(keeper.run());
            }
        }
        if let Some(legacy) = legacy {
            keepers.spawn(legacy.run(drain.watch()));
        }
        let failed = Arc::new(OnceLock::new());
        tasks.spawn(supervise(keepers, drain.clone(), Arc::clone(&failed)));
        Ok(Self {
            drain,
            daemon,
            links,
            serve,
            reloader,
            policy_reloader,
            readiness,
            quic,
            failed,
            cut,
            profile,
            _tasks: tasks,
            admin,
        })
    }

    /// Where health and metrics are served.
    pub fn health_address(&self) -> SocketAddr {
        self.admin.health_address()
    }

    /// Where the second port of the compatibility profile is.
    pub fn second_address(&self) -> Option<SocketAddr> {
        self.admin.second_address()
    }

    /// What `/readyz` says.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// What is known about the links.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// Live dials.
    pub fn live_dials(&self) -> usize {
        self.serve.live().len()
    }

    /// How far stopping has come.
    pub fn stage(&self) -> DrainView {
        self.drain.view()
    }

    /// What signals and the admin listener ask.
    pub fn daemon(&self) -> &dyn Daemon {
        &*self.daemon
    }

    /// Reads the files again, now.
    pub async fn reload(&self) -> Result<(), ReloadError> {
        // The files of the legacy mode are read again for each attempt.
        let mut result = Ok(());
        for reloader in self.reloader.iter().chain(&self.policy_reloader) {
            result = result.and(reloader.handle().reload_now().await);
        }
        result
    }

    /// Stops gracefully: servers choose us no more, live dials end, then the links.
    pub fn drain(&self) {
        self.daemon.drain();
    }

    /// Stops at once.
    pub fn stop_now(&self) {
        self.daemon.stop_now();
    }

    /// Resolves when the agent has stopped. Cancel-safe.
    pub async fn wait(&self) -> Result<(), RunError> {
        let outcome = self.drain.finish().await;
        if let Some(endpoint) = &self.quic {
            endpoint.close(Reason::Shutdown);
            // So that servers are told now instead of finding out.
            let _ = tokio::time::timeout(limits::CLOSE_LINGER, endpoint.wait_idle()).await;
        }
        if let Some(text) = self.failed.get() {
            return Err(RunError::Panicked(text.clone()));
        }
        // Links are work to the drain, too; the operator asks for dials.
        let dials = self.cut.load(Ordering::Relaxed);
        match outcome {
            Outcome::Clean => Ok(()),
            // Konnectivity's agent ends with success whatever was open, also on a second signal.
            Outcome::Cut { .. } | Outcome::Abandoned { .. } if self.profile => {
                warn!(dials, "live dials were cut");
                Ok(())
            }
            Outcome::Cut { .. } | Outcome::Abandoned { .. } => Err(RunError::Cut { dials }),
        }
    }

    /// The last step: health and admin answered until now, and finish what they are writing.
    pub async fn close(self) {
        let Self { admin, _tasks, .. } = self;
        admin.stop().await;
    }
}

fn file_of(file: &Option<((PathBuf, PolicyFile), Seen)>) -> Option<&PolicyFile> {
    file.as_ref().map(|((_, file), _)| file)
}

/// What Konnectivity's agent would show.
fn in_place(families: Families, links: &Links, servers: &LegacyServers) -> Compat {
    let (links, servers) = (links.clone(), servers.clone());
    Compat {
        families,
        ready: Arc::new(move |verbose| {
            health::ready(links.ready() > 0 || !servers.is_empty(), verbose)
        }),
    }
}

/// Ends live dials when the drain is forced: their splices reset both sides.
async fn cut_when_forced(stage: DrainView, live: LiveDials, cut: Arc<AtomicUsize>) {
    stage.forced().await;
    cut.store(live.len(), Ordering::Relaxed);
    live.end_all(Reason::Shutdown);
}

/// A keeper that panicked would leave its server without a link for ever: the process ends, and
/// whoever started it starts it again.
async fn supervise(mut keepers: JoinSet<()>, drain: Drain, failed: Arc<OnceLock<String>>) {
    while let Some(ended) = keepers.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            error!(%error, "the keeper of a link panicked, the agent stops");
            let _ = failed.set(error.to_string());
            drain.force();
        }
    }
}

/// The one UDP socket. Without it `auto` runs on tls.
fn udp(reach: &ReachConfig) -> Result<Option<Arc<QuicEndpoint>>, BindError> {
    if reach.carrier == CarrierMode::Tls {
        return Ok(None);
    }
    match QuicEndpoint::new(reach.quic.clone()) {
        Ok(endpoint) => {
            if let Some(warning) = endpoint.buffers().and_then(|buffers| buffers.warning()) {
                warn!("{warning}");
            }
            Ok(Some(Arc::new(endpoint)))
        }
        Err(error) if reach.carrier == CarrierMode::Auto => {
            warn!(%error, "no UDP socket, links run on tls");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
