//! The whole agent in start order, and in stop order.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use towline_link::connect::CarrierMemory;
use towline_link::live::LiveDials;
use towline_link::process::drain::{Drain, DrainView, Outcome};
use towline_link::quic::{BindError, QuicEndpoint};
use towline_proto::limits;
use towline_proto::reason::Reason;
use tracing::{error, warn};

use crate::attempt::{Keeping, instance};
use crate::config::{Config, ReachConfig};
use crate::connect::Network;
use crate::links::Links;
use crate::metrics::Metrics;
use crate::reach::{CarrierMode, Reach, ServerAddresses};
use crate::reconnect::Keeper;
use crate::reload::Reload;
use crate::serve::Serve;
use crate::trust::{Trust, TrustError};

/// Why the agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// quic is the only carrier, and there is no UDP.
    #[error(transparent)]
    Udp(#[from] BindError),
    /// The health listener.
    #[error("cannot serve health: {0}")]
    Health(#[source] io::Error),
}

/// Why the agent ended other than by order.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Some dials did not end before the deadline.
    #[error("the drain ended with {dials} dials cut")]
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
    drain_timeout: Duration,
    links: Links,
    serve: Arc<Serve>,
    reload: Arc<Reload>,
    quic: Option<Arc<QuicEndpoint>>,
    failed: Arc<OnceLock<String>>,
    tasks: JoinSet<()>,
}

impl Agent {
    /// Starts everything and returns; links come up in the background.
    pub async fn start(config: Config, network: Arc<dyn Network>) -> Result<Self, StartError> {
        let Config {
            files,
            trust,
            reach,
            policy,
            serve,
            drain_timeout,
            process,
        } = config;
        let mut registry = Registry::default();
        let drain = Drain::new();

        let quic = udp(&reach)?;
        if let Some(endpoint) = &quic {
            endpoint.register(&mut registry);
        }
        let node_policy = policy.policy(&trust, Some(process.health));
        let trust = Arc::new(Trust::new(files, trust));
        let links = Links::new(&reach.servers);
        let metrics = Metrics::default();
        let carrier_probe = reach.carrier_probe;
        let reach = Arc::new(Reach {
            mode: reach.carrier,
            quic: quic.clone(),
            proxy: reach.proxy,
            memory: CarrierMemory::default(),
            addresses: ServerAddresses::default(),
        });
        let serve = Arc::new(Serve::new(
            serve,
            network,
            node_policy,
            Arc::clone(&reach),
            metrics.clone(),
        ));
        metrics.register(&mut registry, links.clone(), serve.live().clone());

        let reload = Arc::new(Reload::new(
            Arc::clone(&trust),
            Arc::clone(&serve),
            policy,
            Some(process.health),
            metrics.clone(),
        ));
        let keeping = Arc::new(Keeping {
            reach,
            trust,
            serve: Arc::clone(&serve),
            metrics,
            instance: instance(),
            drain_timeout,
            carrier_probe,
        });
        let mut keepers = JoinSet::new();
        for index in 0..links.servers() {
            let keeper = Keeper::new(Arc::clone(&keeping), links.slot(index), drain.watch());
            keepers.spawn(keeper.run());
        }
        let mut tasks = JoinSet::new();
        tasks.spawn(serve.live().clone().keep_budget());
        tasks.spawn(cut_when_forced(drain.view(), serve.live().clone()));
        let failed = Arc::new(OnceLock::new());
        tasks.spawn(supervise(keepers, drain.clone(), Arc::clone(&failed)));
        Ok(Self {
            drain,
            drain_timeout,
            links,
            serve,
            reload,
            quic,
            failed,
            tasks,
        })
    }

    /// What is known about the links.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// Live dials.
    pub fn live_dials(&self) -> usize {
        self.serve.live().len()
    }

    /// Reads the certificate files again, now.
    pub fn reload(&self) -> Result<(), TrustError> {
        self.reload.read()
    }

    /// Stops gracefully: servers choose us no more, live dials end, then the links.
    pub fn drain(&self) {
        self.drain.begin(self.drain_timeout);
    }

    /// Stops at once.
    pub fn stop_now(&self) {
        self.drain.force();
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
