//! Which legacy servers there is a stream to, and when the next attempt is made.
//!
//! There is one address for all servers, behind which a balancer may choose any of them: reaching
//! all of them is a matter of trying again, and of closing what leads to a server that there is a
//! stream to already. Try, pause, try: `--sync-interval` after a success or a duplicate, growing
//! up to `--sync-interval-cap` after errors, with a jitter of a tenth.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;
use towline_link::error::detail;
use towline_link::kube::count::LeaseCount;
use towline_link::process::drain::{DrainView, DrainWatch};
use towline_link::process::ratelimit::RateLimited;
use tracing::{debug, info, warn};

use super::attempt::{Attempts, Greeted, LegacyAttemptError, Outcome};
use super::auto::Towline;
use super::config::LegacyConfig;
use super::count::Wanted;
use super::metrics::LegacyMetrics;
use super::servers::LegacyServers;
use super::session::{self, Common};
use super::stream::ServerStream;
use crate::attempt::jitter;
use crate::metrics::Metrics;
use crate::reach::Reach;
use crate::serve::Serve;
use crate::trust::Trust;

/// Grows after each error.
const FACTOR: f64 = 1.5;
/// Part of a pause that is added by lot.
const JITTER: f64 = 0.1;

/// What the legacy mode is made of.
pub struct LegacyParts {
    /// Flags.
    pub config: LegacyConfig,
    /// Dials.
    pub serve: Arc<Serve>,
    /// Proxy and addresses.
    pub reach: Arc<Reach>,
    /// Our identity, where there is one.
    pub trust: Option<Arc<Trust>>,
    /// What is done with a Towline server.
    pub towline: Option<Towline>,
    /// Konnectivity's numbers.
    pub legacy_metrics: LegacyMetrics,
    /// Our numbers.
    pub metrics: Metrics,
    /// Streams.
    pub servers: LegacyServers,
}

/// The legacy mode of an agent.
pub struct Legacy {
    config: Arc<LegacyConfig>,
    attempts: Attempts,
    common: Arc<Common>,
    towline: Option<Towline>,
    metrics: Metrics,
    legacy_metrics: LegacyMetrics,
    servers: LegacyServers,
    leases: LeaseCount,
    wanted: Wanted,
    failures: RateLimited<&'static str>,
}

/// What is to be done next.
enum Next {
    Pause(Duration),
    Towline,
}

impl Legacy {
    /// Nothing runs yet; see [`Legacy::run`].
    pub fn new(parts: LegacyParts) -> Self {
        let config = Arc::new(parts.config);
        let leases = LeaseCount::default();
        let counted = config.leases.is_some().then(|| leases.clone());
        Self {
            attempts: Attempts {
                config: Arc::clone(&config),
                reach: parts.reach,
                trust: parts.trust,
            },
            common: Arc::new(Common::new(parts.serve, parts.legacy_metrics.clone())),
            towline: parts.towline,
            metrics: parts.metrics,
            legacy_metrics: parts.legacy_metrics,
            wanted: Wanted::new(parts.servers.clone(), counted, config.source),
            servers: parts.servers,
            leases,
            failures: RateLimited::new(3, Duration::from_secs(60)),
            config,
        }
    }

    /// Keeps streams until the agent stops and the last of them has ended.
    pub async fn run(self, drain: DrainWatch) {
        let _follower = self.follow_leases();
        let mut streams = JoinSet::new();
        let view = drain.view();
        tokio::select! {
            () = self.look(&mut streams, &drain) => {}
            _ = view.signalled() => {}
        }
        while let Some(ended) = streams.join_next().await {
            report(ended);
        }
    }

    fn follow_leases(&self) -> Option<AbortOnDropHandle<()>> {
        let (leases, selector) = self.config.leases.clone()?;
        let (count, metrics) = (self.leases.clone(), self.legacy_metrics.clone());
        let task = tokio::spawn(async move {
            count
                .follow(leases, selector, |called| metrics.leases(&called))
                .await;
        });
        Some(AbortOnDropHandle::new(task))
    }

    async fn look(&self, streams: &mut JoinSet<()>, drain: &DrainWatch) {
        let (first, cap) = self.config.sync;
        let mut pause = first;
        loop {
            let next = match self.turn(streams, drain).await {
                Ok(Next::Pause(length)) => {
                    pause = first;
                    length
                }
                Ok(Next::Towline) => {
                    let Some(towline) = &self.towline else {
                        continue;
                    };
                    let kept = towline.keep(&self.attempts, drain);
                    tokio::pin!(kept);
                    loop {
                        tokio::select! {
                            () = &mut kept => break,
                            Some(ended) = streams.join_next() => report(ended),
                        }
                    }
                    continue;
                }
                Err(error) => {
                    self.failed(&error);
                    let length = pause;
                    pause = pause.mul_f64(FACTOR).min(cap);
                    length
                }
            };
            let length = next + jitter(next.mul_f64(JITTER));
            let sleep = tokio::time::sleep(length);
            tokio::pin!(sleep);
            loop {
                tokio::select! {
                    () = &mut sleep => break,
                    Some(ended) = streams.join_next() => report(ended),
                }
            }
        }
    }

    async fn turn(
        &self,
        streams: &mut JoinSet<()>,
        drain: &DrainWatch,
    ) -> Result<Next, LegacyAttemptError> {
        let config = &self.config;
        let may = config.allow_downgrade || !config.spoken.has(&config.server);
        if !may && self.towline.is_some() {
            return Ok(Next::Towline);
        }
        let wanted = self.wanted.count(SystemTime::now());
        self.legacy_metrics.wanted(wanted);
        if !config.sync_forever && self.servers.len() >= wanted {
            return Ok(Next::Pause(config.sync.0));
        }
        if !may {
            return Err(LegacyAttemptError::Downgrade(config.server.to_string()));
        }
        match self.attempts.attempt().await? {
            Outcome::Legacy(greeted) => self.begin(*greeted, streams, drain),
            Outcome::Towline => {
                self.metrics.legacy_attempt("towline");
                info!(server = %config.server, "the server speaks towline/1, the legacy protocol is not used any more");
                config.spoken.note(&config.server);
                return Ok(Next::Towline);
            }
        }
        Ok(Next::Pause(config.sync.0))
    }

    fn begin(&self, greeted: Greeted, streams: &mut JoinSet<()>, drain: &DrainWatch) {
        let Greeted {
            server_id,
            server_count,
            taken,
        } = greeted;
        let live = self.common.serve.live().clone();
        let stream = ServerStream::new(server_id, live);
        let Ok(listed) = self.servers.add(&stream, server_count) else {
            self.metrics.legacy_attempt("duplicate");
            debug!(server = ?stream.server_id(), "duplicate server: the connection is closed");
            return;
        };
        self.metrics.legacy_attempt("connected");
        info!(
            server = ?stream.server_id(),
            servers = server_count,
            address = %self.config.server,
            "connected to a legacy server, known by name alone"
        );
        let common = Arc::clone(&self.common);
        let drain = drain.clone();
        let gauge = self.metrics.legacy_stream();
        streams.spawn(async move {
            session::run(common, stream, taken, drain, listed).await;
            drop(gauge);
        });
    }

    fn failed(&self, error: &LegacyAttemptError) {
        let reason = error.reason();
        self.metrics.legacy_attempt("failed");
        self.metrics.attempt_failed(reason);
        let text = detail(error);
        if let Some(suppressed) = self.failures.allow(reason.as_str()) {
            warn!(server = %self.config.server, %reason, suppressed, "no stream to a legacy server: {text}");
        }
        self.servers.failed(text);
    }
}

/// Resolves when there is a stream, or the agent stops.
pub async fn connected(servers: &LegacyServers, drain: DrainView) {
    let mut changed = servers.watch();
    let any = async {
        while servers.is_empty() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = any => {}
        _ = drain.signalled() => {}
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        warn!(%error, "the task of a stream panicked; its dials are closed, a new one is made");
    }
}
