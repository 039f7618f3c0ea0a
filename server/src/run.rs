//! The whole server in start order, and in stop order.
//!
//! Stop: on the first signal doors and carriers close their listeners, agents are told that no
//! new dials come, readiness turns; live dials go on to their end or the deadline; then links
//! say goodbye. On the second signal, or at the deadline, dials are ended with a reason.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use towline_link::live::LiveDials;
use towline_link::process::accept::AcceptMetrics;
use towline_link::process::admin::{Admin, AdminParts};
use towline_link::process::drain::{Drain, DrainView, Outcome};
use towline_link::process::expiry;
use towline_link::process::live::LiveProbe;
use towline_link::process::panics;
use towline_link::process::ready::Readiness;
use towline_link::process::reload::{self, ReloadMetrics};
use towline_link::process::watch::Watch;
use towline_link::quic::QuicListener;
use towline_proto::limits;
use towline_proto::reason::Reason;

use crate::agents::Agents;
use crate::compat::running::Running;
use crate::config::Config;
use crate::control::Control;
use crate::dial::Dialer;
use crate::directory::FileDirectory;
use crate::doors::connect::Desk;
use crate::doors::front_ends::FrontEnds;
use crate::doors::signed::SignedDoor;
use crate::doors::{tcp, unix};
use crate::konnectivity::Counted;
use crate::links::accept::{self, TlsLinks};
use crate::links::bind::Sockets;
use crate::links::greet::Greeter;
use crate::listen::{Addresses, Listening};
use crate::metrics::{Live, Metrics};
use crate::policy::Policy;
use crate::ready;
use crate::reload::Reloader;
use crate::status::{Source, Status};
use crate::trust::Trust;

pub use crate::listen::StartError;

/// Why the server ended other than by order.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Some dials did not end before the deadline.
    #[error("the drain ended with {dials} dials cut")]
    Cut {
        /// How many.
        dials: usize,
    },
    /// A defect.
    #[error("a task of the server panicked: {0}")]
    Panicked(String),
}

/// A running server. Dropping it ends everything at once.
pub struct Server {
    admin: Admin,
    drain: Drain,
    addresses: Addresses,
    control: Arc<Control>,
    readiness: Readiness,
    reloader: Arc<Reloader>,
    _files: reload::Reloader,
    quic: Option<Arc<QuicListener>>,
    failed: Arc<OnceLock<String>>,
    counted: Arc<Counted>,
    _tasks: JoinSet<()>,
}

impl Server {
    /// Starts everything: when it returns, doors and carriers take connections.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Box::pin(Self::start_with(config, |_| ())).await
    }

    /// The same, with more metrics than its own.
    pub async fn start_with(
        config: Config,
        more: impl FnOnce(&mut Registry),
    ) -> Result<Self, StartError> {
        let Config {
            own,
            seen,
            compat,
            links,
            doors,
            prefixes,
            grants,
            dials,
            memory_budget,
            drain_timeout,
            process,
        } = config;
        let connections = doors.max_connections;
        let (doors_speak, keep_alive) = (doors.speaks, doors.keep_alive);
        let mut registry = Registry::default();
        more(&mut registry);
        panics::register(&mut registry);
        let drain = Drain::new();
        let readiness = Readiness::new();
        let starting = readiness.task("listeners");
        let metrics = Metrics::default();
        metrics.register(&mut registry);
        let konnectivity = Arc::clone(metrics.counted());
        let accepted = AcceptMetrics::register(&mut registry);

        // What can fail comes first: sockets.
        let listening =
            Listening::bind(&links, doors, &process, own.as_ref().map(|own| &own.trust))?;
        listening.register(&mut registry);
        let Listening {
            admin,
            links: Sockets { quic, tcp, address },
            door_unix,
            door_tcp,
            door_signed,
            addresses,
        } = listening;

        // What everything else is made of.
        let (files, trust) = own.map(|own| (own.files, Trust::new(own.trust))).unzip();
        let (grants_path, grants) = grants.unzip();
        let directory = Arc::new(FileDirectory::new(prefixes.clone(), grants));
        let agents = Agents::new(links.max_links, metrics.clone());
        let live = LiveDials::new(memory_budget);
        Live::register(&mut registry, Arc::clone(&agents), live.clone());
        let max_dials = dials.per_link;
        let policy = match &compat {
            Some(_) => Policy::compatibility(),
            None => Policy::default(),
        };
        let mut dialer = Dialer::new(
            Arc::clone(&agents),
            prefixes,
            policy,
            dials,
            live.clone(),
            metrics.clone(),
        );
        let compat = compat.map(|profile| {
            Running::new(
                profile,
                links.max_links,
                max_dials,
                live.clone(),
                metrics.clone(),
            )
        });
        if let Some(compat) = &compat {
            compat.shout();
            dialer = dialer.with_legacy(compat.route.clone());
        }
        let dialer = Arc::new(dialer);
        let front_ends = FrontEnds::default();

        // Agents come in.
        let mut serving = JoinSet::new();
        let own = trust.clone().map(|trust| {
            let greeter = Greeter::new(
                Arc::clone(&agents),
                Arc::clone(&directory) as _,
                metrics.clone(),
                trust.clone(),
                links.advertise,
                max_dials,
            );
            (trust, Arc::new(greeter))
        });
        if let (Some(quic), Some((_, greeter))) = (&quic, &own) {
            let greeter = Arc::clone(greeter);
            serving.spawn(accept::quic(Arc::clone(quic), greeter, drain.watch()));
        }
        if let Some(listener) = tcp {
            let tls = TlsLinks {
                own,
                legacy: compat.as_ref().and_then(|compat| compat.door.clone()),
                counted: metrics.clone(),
                handshakes: links.quic.handshakes,
                connections: links.max_links.saturating_add(links.quic.handshakes),
                metrics: accepted.clone(),
            };
            serving.spawn(tls.run(listener, drain.watch()));
        }

        // Front ends come in.
        let desk = Arc::new(Desk::new(dialer, metrics.clone(), doors_speak, keep_alive));
        if let Some((socket, allowed)) = door_unix {
            let desk = Arc::clone(&desk);
            let (counted, watch) = (accepted.clone(), drain.watch());
            let door = unix::run(socket, allowed, connections, counted, desk, watch);
            serving.spawn(door);
        }
        if let (Some(listener), Some(compat)) = (door_signed, &compat) {
            let door = SignedDoor::new(compat.trust.clone(), Arc::clone(&desk));
            serving.spawn(door.run(listener, connections, accepted.clone(), drain.watch()));
        }
        if let (Some((listener, allow)), Some(trust)) = (door_tcp, &trust) {
            let door = tcp::TcpDoor::new(trust.clone(), allow, front_ends.clone(), desk);
            serving.spawn(door.run(listener, connections, accepted.clone(), drain.watch()));
        }

        // What goes on beside.
        let reloader = Arc::new(Reloader {
            files,
            grants: grants_path,
            trust: trust.clone(),
            legacy: compat.as_ref().map(Running::reload),
            directory,
            agents: Arc::clone(&agents),
            quic: quic.clone(),
            front_ends,
        });
        let watch = Watch::since(reloader.paths(), seen);
        let counted = ReloadMetrics::register(&mut registry);
        counted.count("files", true);
        let applying = Arc::clone(&reloader);
        let files = reload::Reloader::start("files", watch, counted, move || {
            applying.reload(SystemTime::now()).map(|_| ())
        });
        let source: expiry::Source = {
            let trust = trust.clone();
            Arc::new(move || {
                let snapshot = trust.as_ref().map(Trust::snapshot);
                snapshot.map_or_else(Vec::new, |own| own.material.expiries())
            })
        };
        expiry::register(&mut registry, Arc::clone(&source));
        let status = Source {
            agents: Arc::clone(&agents),
            live: live.clone(),
            trust,
            compat: compat.as_ref().map(Running::told),
            drain: drain.view(),
            listen: address,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(live.clone().keep_budget());
        tasks.spawn(cut_when_forced(drain.view(), live));
        tasks.spawn(Arc::clone(&reloader).keep_verifying());
        let linked = readiness.condition("links", "no agent is linked");
        let new_dials = readiness.condition("new-dials", "not started");
        tasks.spawn(expiry::warn_in_time(source));
        let legacy = compat.as_ref().map(|compat| compat.route.agents.clone());
        let linked_agents = Arc::clone(&agents);
        tasks.spawn(ready::keep(agents, legacy, drain.view(), linked, new_dials));
        let pages = compat
            .as_ref()
            .map(|compat| compat.pages(&linked_agents, &konnectivity));
        if let Some(mut compat) = compat {
            tasks.spawn(compat.count(linked_agents, Arc::clone(&konnectivity)));
            if let Some(lease) = compat.lease(Arc::clone(&konnectivity)) {
                tasks.spawn(lease.keep(drain.watch()));
            }
        }
        let failed = Arc::new(OnceLock::new());
        tasks.spawn(supervise(serving, drain.clone(), Arc::clone(&failed)));
        let control = Arc::new(Control {
            status,
            files: files.handle(),
            drain: drain.clone(),
            drain_timeout,
        });
        let admin = admin.serve(AdminParts {
            registry,
            readiness: readiness.clone(),
            live: LiveProbe::new(tokio::runtime::Handle::current()),
            daemon: Arc::clone(&control) as _,
            accepted,
            compat: pages,
        })?;
        starting.done();
        Ok(Self {
            admin,
            drain,
            addresses,
            control,
            readiness,
            reloader,
            _files: files,
            quic,
            failed,
            counted: konnectivity,
            _tasks: tasks,
        })
    }

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
        if let Some(text) = self.failed.get() {
            return Err(RunError::Panicked(text.clone()));
        }
        match outcome {
            Outcome::Clean => Ok(()),
            Outcome::Cut { work } | Outcome::Abandoned { work, .. } => {
                Err(RunError::Cut { dials: work })
            }
        }
    }
}

/// Ends live dials when the drain is forced: their splices reset both sides.
async fn cut_when_forced(stage: DrainView, live: LiveDials) {
    stage.forced().await;
    live.end_all(Reason::Shutdown);
}

/// A listener whose task panicked would be missed for ever: the process ends, and whoever
/// started it starts it again.
async fn supervise(mut serving: JoinSet<()>, drain: Drain, failed: Arc<OnceLock<String>>) {
    while let Some(ended) = serving.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            tracing::error!(%error, "a listener's task panicked, the server stops");
            let _ = failed.set(error.to_string());
            drain.force();
        }
    }
}
