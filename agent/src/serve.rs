//! Dials of one link: request, policy, connection, answer, bytes. One task per dial, all of them
//! owned by the task of their link.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use towline_link::carrier::Stream;
use towline_link::dial::{self, PendingDial};
use towline_link::driver::{DialGuard, Link};
use towline_link::live::LiveDials;
use towline_link::process::drain::WorkGuard;
use towline_link::process::ratelimit::RateLimited;
use towline_link::splice::{Early, LocalSide, splice};
use towline_proto::dial::{Dial, DialRequest, Refused};
use towline_proto::limits;
use towline_proto::reason::Reason;
use tracing::{debug, info, warn};

use crate::connect::{Network, connect_first, lookup_reason};
use crate::judged::{Judged, JudgedDials, JudgedGuard};
use crate::metrics::Metrics;
use crate::policy::{Asked, Denial, Facts, Lookup, Permit, Policy, Rules};
use crate::probed::Probed;
use crate::reach::Reach;

/// Streams that a link may have beyond its dials: probes, and dials that are being refused.
const SPARE_STREAMS: u32 = 16;

/// Lines in the log about refused dials, for each reason in each interval.
const REFUSAL_LINES: u32 = 10;
const REFUSAL_INTERVAL: Duration = Duration::from_secs(10);

/// What all dials have in common.
pub struct Serve {
    network: Arc<dyn Network>,
    policy: ArcSwap<Policy>,
    reach: Arc<Reach>,
    live: LiveDials,
    judged: JudgedDials,
    slots: Arc<Semaphore>,
    max_dials: u32,
    connect_timeout: Duration,
    metrics: Metrics,
    refusals: RateLimited<Reason>,
}

/// What the operator allows.
#[derive(Clone, Copy, Debug)]
pub struct ServeConfig {
    /// Live dials of this process.
    pub max_dials: u32,
    /// For one connection attempt, all addresses of the target together.
    pub connect_timeout: Duration,
    /// Bytes that stalled dials may hold together.
    pub memory_budget: u64,
}

impl Serve {
    /// Nothing runs yet; see [`Serve::run`].
    pub fn new(
        config: ServeConfig,
        network: Arc<dyn Network>,
        policy: Policy,
        reach: Arc<Reach>,
        metrics: Metrics,
    ) -> Self {
        Self {
            network,
            policy: ArcSwap::from_pointee(policy),
            reach,
            live: LiveDials::new(config.memory_budget),
            judged: JudgedDials::default(),
            slots: Arc::new(Semaphore::new(config.max_dials as usize)),
            max_dials: config.max_dials,
            connect_timeout: config.connect_timeout,
            metrics,
            refusals: RateLimited::new(REFUSAL_LINES, REFUSAL_INTERVAL),
        }
    }

    /// The live dials.
    pub fn live(&self) -> &LiveDials {
        &self.live
    }

    /// Most live dials.
    pub fn max_dials(&self) -> u32 {
        self.max_dials
    }

    /// For one connection attempt, all addresses of the target together.
    pub(crate) fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// How many more dials there is room for.
    pub(crate) fn slots_left(&self) -> usize {
        self.slots.available_permits()
    }

    /// Room for one more dial.
    pub(crate) fn slot(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.slots).try_acquire_owned().ok()
    }

    /// The machine below us.
    pub(crate) fn network(&self) -> &dyn Network {
        &*self.network
    }

    /// What is counted.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The policy in force.
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.load_full()
    }

    /// Changes what the policy goes by. Dials from now on are judged by it, and live ones that it
    /// does not allow are ended; gives their number. `change` may be asked more than once.
    pub fn change_policy(&self, change: impl Fn(&mut Rules)) -> usize {
        self.policy.rcu(|policy| {
            let mut rules = policy.rules().clone();
            change(&mut rules);
            Policy::new(rules)
        });
        let policy = self.policy();
        let ended = self.judged.judge(|judged| self.allows(&policy, judged));
        self.metrics.ended_by_policy(ended);
        ended
    }

    fn allows(&self, policy: &Policy, judged: &Judged) -> bool {
        let asked = Asked::of(&judged.target, judged.class);
        policy.check_one(judged.address.ip(), asked, self).is_ok()
    }

    /// Serves the dials of a link until it is closed and the last of them has ended.
    pub async fn run(self: Arc<Self>, link: Link, probed: Arc<Probed>, work: WorkGuard) {
        let carrier = Arc::clone(link.carrier());
        carrier.set_stream_limit(self.max_dials.saturating_add(SPARE_STREAMS));
        let mut dials = JoinSet::new();
        loop {
            tokio::select! {
                accepted = carrier.accept() => {
                    let Ok(stream) = accepted else { break };
                    let Some(guard) = link.begin_dial(u32::MAX) else { continue };
                    let held = (guard, work.clone());
                    dials.spawn(Arc::clone(&self).stream(stream, Arc::clone(&probed), held));
                }
                Some(ended) = dials.join_next() => report(ended),
            }
        }
        // The streams are lost, so the dials end by themselves.
        while let Some(ended) = dials.join_next().await {
            report(ended);
        }
    }

    async fn stream(
        self: Arc<Self>,
        stream: Stream,
        probed: Arc<Probed>,
        held: (DialGuard, WorkGuard),
    ) {
        let (request, pending) = match dial::accept(stream).await {
            Ok(request) => request,
            Err(error) => {
                debug!(%error, "no dial request");
                self.metrics.bad_request();
                return;
            }
        };
        match request {
            DialRequest::Probe => {
                if pending.accepted_and_done().await {
                    probed.answered();
                }
                self.metrics.probe_answered();
            }
            DialRequest::Dial(dial) => {
                drop(probed);
                self.dial(&dial, pending).await;
            }
        }
        drop(held);
    }

    async fn dial(&self, dial: &Dial, pending: PendingDial) {
        let begun = Instant::now();
        let round = self.round();
        let Some((target, slot, open, address)) = Box::pin(self.open(dial, pending)).await else {
            return;
        };
        let live = self.live.register();
        let judged = self.follow(
            round,
            Judged {
                target: dial.target.clone(),
                class: dial.class,
                address,
                dial: Arc::clone(live.dial()),
            },
        );
        let early = Early {
            to_local: open.early,
            ..Early::default()
        };
        let end = splice(target, open.stream, LocalSide::Target, early, &live).await;
        drop((live, slot, judged));
        self.metrics.dial_ended(dial.class, end.reason);
        debug!(
            dial = %dial.id,
            target = %dial.target,
            class = %dial.class,
            reason = %end.reason,
            bytes_in = end.from_peer,
            bytes_out = end.to_peer,
            seconds = begun.elapsed().as_secs_f64(),
            "dial ended"
        );
    }

    /// How often live dials were judged again; to be asked before a dial is judged.
    pub(crate) fn round(&self) -> u64 {
        self.judged.round()
    }

    /// A dial is open: a new policy judges it again from now on. One that came into force since
    /// `round` was asked for has missed it.
    pub(crate) fn follow(&self, round: u64, judged: Judged) -> JudgedGuard<'_> {
        let guard = self.judged.add(judged);
        let judged = guard.judged();
        if self.judged.round() != round && !self.allows(&self.policy(), judged) {
            self.metrics.ended_by_policy(1);
            judged.dial.end(Reason::PolicyChanged);
        }
        guard
    }

    /// Up to the answer. Everything that a live dial does not need is gone afterwards.
    async fn open(
        &self,
        dial: &Dial,
        mut pending: PendingDial,
    ) -> Option<(TcpStream, OwnedSemaphorePermit, dial::OpenDial, SocketAddr)> {
        let begun = Instant::now();
        let opened = tokio::select! {
            opened = self.connect(dial) => opened,
            gone = pending.given_up() => {
                self.metrics.dial_ended(dial.class, gone.reason());
                debug!(dial = %dial.id, target = %dial.target, reason = %gone.reason(), "dial given up by the server");
                return None;
            }
        };
        match opened {
            Ok((target, slot, address)) => {
                self.metrics.connected(begun.elapsed());
                debug!(dial = %dial.id, target = %dial.target, %address, "dial connected");
                match pending.accepted().await {
                    Ok(open) => Some((target, slot, open, address)),
                    Err(error) => {
                        self.metrics.dial_ended(dial.class, error.reason());
                        None
                    }
                }
            }
            Err(refused) => {
                self.metrics.dial_ended(dial.class, refused.reason);
                if let Some(suppressed) = self.refusals.allow(refused.reason) {
                    info!(
                        dial = %dial.id,
                        target = %dial.target,
                        class = %dial.class,
                        address = refused.address.map(tracing::field::display),
                        reason = %refused.reason,
                        suppressed,
                        "dial refused"
                    );
                }
                pending.refused(refused).await;
                None
            }
        }
    }

    async fn connect(
        &self,
        dial: &Dial,
    ) -> Result<(TcpStream, OwnedSemaphorePermit, SocketAddr), Refused> {
        let slot = Arc::clone(&self.slots)
            .try_acquire_owned()
            .map_err(|_| Refused::new(Reason::AgentBusy))?;
        let deadline = Instant::now() + dial.timeout;
        let permits = tokio::time::timeout_at(deadline, self.permits(dial))
            .await
            .map_err(|_| Refused::new(Reason::DialTimeout))??;
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = self.connect_timeout.min(left);
        let (stream, address) = connect_first(&*self.network, permits, limit)
            .await
            .map_err(|(reason, address)| Refused { reason, address })?;
        Ok((stream, slot, address))
    }

    async fn permits(&self, dial: &Dial) -> Result<Vec<Permit>, Refused> {
        let policy = self.policy();
        let resolved = match policy.lookup(&dial.target) {
            Lookup::Known(addresses) => addresses,
            Lookup::Resolve(name) => self.network.resolve(name).await.map_err(|error| {
                debug!(dial = %dial.id, %name, %error, "the name does not resolve");
                Refused::new(lookup_reason(&error))
            })?,
        };
        policy
            .check(&resolved, Asked::of(&dial.target, dial.class), self)
            .map_err(|denial| {
                self.denied(dial, &denial);
                denial.refused()
            })
    }

    fn denied(&self, dial: &Dial, denial: &Denial) {
        self.metrics.denied(dial.class, denial);
        debug!(dial = %dial.id, target = %dial.target, %denial, "the policy of this agent refuses the dial");
    }
}

impl Facts for Serve {
    fn is_local(&self, ip: IpAddr) -> bool {
        self.network.is_local(ip)
    }

    fn is_server(&self, address: SocketAddr) -> bool {
        self.reach.addresses.has(address)
    }

    fn is_told(&self, address: SocketAddr) -> bool {
        self.reach.addresses.has_told(address)
    }

    fn is_server_name(&self, name: &str, port: u16) -> bool {
        self.reach.addresses.has_name(name, port)
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        warn!(%error, "a dial's task panicked; its stream was reset, nothing else is touched");
    }
}

const _: () = assert!(limits::DIALS_PER_LINK > SPARE_STREAMS);

#[cfg(test)]
mod tests {
    use super::*;

    fn future_bytes<A, B, C, D, F>(_: fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_dial_has_a_small_task() {
        let bytes = future_bytes(Serve::stream);
        assert!(bytes <= 1536, "{bytes}");
    }
}
