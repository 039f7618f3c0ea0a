//! The life of one link at the server, in one task: greeting, a place in the table, probes of
//! its data path, stopping, the end.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use towline_link::carrier::Carrier;
use towline_link::dial;
use towline_link::driver::{LinkState, greet_server};
use towline_link::error::detail;
use towline_link::process::drain::{DrainWatch, Stage};
use towline_proto::dial::DialRequest;
use towline_proto::limits;
use towline_proto::reason::Reason;
use towline_proto::version::Capabilities;

use super::greet::Greeter;
use crate::agents::{AgentLink, Agents};
use crate::metrics::Metrics;

/// From a verified connection to its end.
pub async fn serve(carrier: Arc<dyn Carrier>, greeter: Arc<Greeter>, drain: DrainWatch) {
    let kind = carrier.kind();
    let peer = carrier.peer().clone();
    if drain.is_signalled() {
        carrier.close(Reason::Shutdown);
        return;
    }
    let Some(greeting_place) = greeter.place(&peer) else {
        greeter.metrics.link_refused(kind, Reason::Overloaded);
        carrier.close(Reason::Overloaded);
        return;
    };
    let mut admission = None;
    let greeting = greet_server(carrier, |hello| {
        let (welcome, place) = greeter.decide(&peer, hello)?;
        admission = Some(place);
        Ok(welcome)
    });
    let (link, hello, run) = match Box::pin(greeting).await {
        Ok(greeted) => greeted,
        Err(error) => {
            let reason = error.reason;
            greeter.metrics.link_refused(kind, reason);
            tracing::info!(peer = %peer.identity(), carrier = %kind, %reason, "agent did not become a link");
            return;
        }
    };
    let Some(admission) = admission else {
        // Cannot be: without a place there is no Welcome.
        link.close(Reason::Aborted);
        return;
    };
    let entry = admission.register(link, &hello);
    drop(greeting_place);
    if let Err(reason) = greeter.check_again(&peer) {
        entry.link.close(reason);
    }
    greeter.metrics.link_greeted(kind);
    tracing::info!(
        agent = %peer.identity().name,
        link = %entry.link.id(),
        carrier = %kind,
        address = %entry.link.carrier().remote_address(),
        instance = %entry.instance,
        software = entry.software,
        serial = %peer.leaf().serial,
        "link ready"
    );
    let retire = Retire {
        agents: Arc::clone(&greeter.agents),
        entry: Arc::clone(&entry),
        reason: Reason::Aborted,
    };
    let probes = hello.capabilities.has(Capabilities::PROBE);
    drop((hello, peer));
    let reason = tokio::select! {
        reason = run => reason,
        () = probe(&entry, &greeter.agents, &greeter.metrics), if probes => Reason::Aborted,
        () = follow(&entry, &drain) => Reason::Shutdown,
    };
    greeter.metrics.link_ended(kind, reason);
    tracing::info!(
        agent = %entry.peer().identity().name,
        link = %entry.link.id(),
        carrier = %kind,
        %reason,
        lasted = ?entry.since.elapsed().unwrap_or_default(),
        "link ended"
    );
    retire.with(reason);
    // A process that ends waits for this task, and the agent is told why first.
    let carrier = Arc::clone(entry.link.carrier());
    drop(entry);
    carrier.gone().await;
}

/// Takes the link out of the table however its task ends.
struct Retire {
    agents: Arc<Agents>,
    entry: Arc<AgentLink>,
    reason: Reason,
}

impl Retire {
    fn with(mut self, reason: Reason) {
        self.reason = reason;
    }
}

impl Drop for Retire {
    fn drop(&mut self) {
        self.agents.retire(&self.entry, self.reason);
    }
}

/// Tells the agent that we stop; returns only when everything must end at once.
async fn follow(entry: &AgentLink, drain: &DrainWatch) {
    if let Stage::Draining { deadline } = drain.signalled().await {
        // A little longer than the process's own deadline, which decides and counts what it cuts.
        let left = deadline.saturating_duration_since(Instant::now()) + limits::CLOSE_LINGER;
        entry.link.drain(Reason::Shutdown, left);
    }
    if drain.closing().await == Stage::Closing {
        // The driver closes an idle drained link by itself; this is for one that is not idle in
        // the driver's eyes, for example because another drain was asked for before.
        entry.link.close(Reason::Shutdown);
    }
    drain.forced().await;
    entry.link.carrier().close(Reason::Shutdown);
}

/// Probes the data path for as long as the link lives.
async fn probe(entry: &AgentLink, agents: &Agents, metrics: &Metrics) {
    let mut pause = Duration::ZERO;
    loop {
        tokio::time::sleep(pause).await;
        pause = jittered(limits::PROBE_EVERY);
        if !matches!(entry.link.state(), LinkState::Ready) {
            continue;
        }
        let before = entry.probe();
        let result = Box::pin(probe_once(entry)).await;
        metrics.probed(match result {
            Ok(_) => "passed",
            Err(Reason::AgentBusy) => "busy",
            Err(_) => "failed",
        });
        match result {
            Ok(time) => entry.set_probe(Some(time)),
            // As many streams as the agent allows: says nothing about the path.
            Err(Reason::AgentBusy) => {}
            Err(reason) => {
                tracing::warn!(
                    agent = %entry.peer().identity().name,
                    link = %entry.link.id(),
                    reason = detail(reason),
                    "data-path probe failed"
                );
                entry.set_probe(None);
            }
        }
        if entry.probe() != before {
            agents.touch();
        }
    }
}

async fn probe_once(entry: &AgentLink) -> Result<Duration, Reason> {
    let begun = Instant::now();
    let deadline = begun + limits::PROBE_TIMEOUT;
    let carrier = entry.link.carrier();
    match dial::open(&**carrier, &DialRequest::Probe, deadline).await {
        Ok(mut open) => {
            let time = begun.elapsed();
            // Both directions end in order: nothing is left of a probe that passed.
            open.stream.send.finish();
            let end = open.stream.recv.recv(1);
            let _ = tokio::time::timeout_at(deadline, end).await;
            Ok(time)
        }
        Err(error) => Err(error.reason),
    }
}

/// A fifth more or less, so that a thousand links are not probed at once.
fn jittered(every: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let lot = RandomState::new().hash_one(0u8) % 400;
    every.mul_f64(0.8 + lot as f64 / 1000.0)
}
