//! What goes on beside the dials: every linked node's kubelet is looked at once soon after its
//! agent came, those in use before their verdict ends, the others now and then, and all of them
//! again when the files changed or an agent has a new link, and one that a connection of the gateway
//! found to be another.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use towline_link::process::drain::DrainView;
use towline_proto::limits;
use towline_proto::target::Host;

use super::memory::Kubelet;
use super::{Attestor, Mode};
use crate::agents::{Agents, Node};

/// A look without a change, for what has become due.
const LOOK: Duration = Duration::from_millis(500);
/// Between two looks, so that ten thousand agents that come at once are not gone through each time.
const PAUSE: Duration = Duration::from_millis(100);

type Due = (Arc<Node>, Arc<Kubelet>);

impl Attestor {
    /// Keeps attestations until the server stops. Handshakes under way end with the task.
    pub async fn keep(self: Arc<Self>, agents: Arc<Agents>, drain: DrainView) {
        if self.mode() == Mode::Off {
            return;
        }
        let mut running = JoinSet::new();
        let mut changes = agents.changes();
        loop {
            changes.mark_unchanged();
            for (node, kubelet) in self.due(&agents) {
                let Some(place) = self.place_beside().await else {
                    return;
                };
                let attestor = Arc::clone(&self);
                running.spawn(async move { attestor.renew(&node, &kubelet, place).await });
            }
            while let Some(ended) = running.try_join_next() {
                if let Err(error) = ended
                    && error.is_panic()
                {
                    tracing::error!(%error, "an attestation panicked; the kubelet is looked at again");
                }
            }
            tokio::select! {
                _ = drain.signalled() => return,
                _ = changes.changed() => {}
                () = self.hurry.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn due(&self, agents: &Agents) -> Vec<Due> {
        let (now, clock) = (Instant::now(), self.clock());
        let mut due = Vec::new();
        for node in agents.nodes() {
            if node.choose(None).is_none() {
                continue;
            }
            let mut all = node.attested().all();
            if all.is_empty() {
                let host = agents.address_of(node.name()).map_or_else(
                    || node.name().as_str().parse().ok(),
                    |address| Some(Host::Ip(address)),
                );
                // A node's name is always a host name; if not, there is nothing to ask.
                let Some(host) = host else { continue };
                node.attested().place(&host, clock + spread());
                all = node.attested().all();
            }
            for kubelet in all.iter() {
                if self.is_due(&node, kubelet, now, clock) {
                    due.push((Arc::clone(&node), Arc::clone(kubelet)));
                }
            }
        }
        self.doubted(agents, now, &mut due);
        due
    }

    /// Those that a connection found to be others. One that was looked at a moment ago is not looked
    /// at again: what comes next says so once more.
    fn doubted(&self, agents: &Agents, now: Instant, due: &mut Vec<Due>) {
        for (name, host) in self.take_doubts() {
            let Some(node) = agents.nodes().into_iter().find(|node| *node.name() == name) else {
                continue;
            };
            let kubelet = self.kubelet(&node, &host);
            let recent = kubelet.last.load().as_ref().is_some_and(|last| {
                now.saturating_duration_since(last.checked) < limits::ATTESTATION_DOUBT_PAUSE
            });
            let already = due.iter().any(|(_, other)| Arc::ptr_eq(other, &kubelet));
            if !recent && !already {
                due.push((node, kubelet));
            }
        }
    }

    fn is_due(&self, node: &Node, kubelet: &Kubelet, now: Instant, clock: u64) -> bool {
        if clock < kubelet.due() || kubelet.turn.try_lock().is_err() {
            return false;
        }
        let Some(last) = kubelet.last.load_full() else {
            return true;
        };
        if last.stamp != self.stamp(node) {
            return true;
        }
        let age = now.saturating_duration_since(last.checked);
        let since_asked = Duration::from_millis(clock.saturating_sub(kubelet.asked()));
        let asked = kubelet.asked() > 0;
        let in_use = asked && since_asked < limits::ATTESTATION_IN_USE;
        let patience = match last.is_verified() {
            true if in_use => limits::ATTESTATION_RENEW,
            true => limits::ATTESTATION_IDLE,
            // Somebody wanted it since: as soon as the verdict does not count any more.
            false if asked && since_asked < age => last.until.duration_since(last.checked),
            false => limits::ATTESTATION_FAILED,
        };
        // A verdict that ends early does so because its certificate does.
        let ended = now >= last.until && last.until < last.checked + limits::ATTESTATION_LIFE;
        age >= patience || (last.is_verified() && ended)
    }
}

/// Some part of [`limits::ATTESTATION_SPREAD`], milliseconds.
fn spread() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    let most = limits::ATTESTATION_SPREAD.as_millis() as u64;
    RandomState::new().hash_one(0_u8) % most.max(1)
}
