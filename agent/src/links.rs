//! What is known about the links to each configured server at this moment: written by the
//! keepers, read by status, readiness and metrics.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;
use towline_link::driver::{Link, LinkState};
use towline_proto::id::Name;
use towline_proto::limits;
use towline_proto::reason::Reason;
use towline_proto::target::Target;

use crate::probed::Probed;

/// The links of one agent.
#[derive(Clone, Debug)]
pub struct Links {
    servers: Arc<[Server]>,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct Server {
    server: Target,
    /// Nobody keeps a link to it at the moment.
    unused: AtomicBool,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    current: Option<Link>,
    /// How the current link's data path does.
    probed: Option<Arc<Probed>>,
    /// Links that take no new dials, oldest first.
    retired: Vec<Link>,
    /// Since when there is no current link, and why.
    down_since: Instant,
    error: Option<(Reason, String)>,
    software: String,
}

impl Links {
    /// One entry for each configured server, none of them linked.
    pub fn new(servers: &[Target]) -> Self {
        let entry = |server: &Target| Server {
            server: server.clone(),
            unused: AtomicBool::new(false),
            known: Mutex::new(Known {
                current: None,
                probed: None,
                retired: Vec::new(),
                down_since: Instant::now(),
                error: None,
                software: String::new(),
            }),
        };
        Self {
            servers: servers.iter().map(entry).collect(),
            changed: watch::Sender::new(()),
        }
    }

    /// How many servers are configured.
    pub fn servers(&self) -> usize {
        self.servers.len()
    }

    /// The entry of one server, for its keeper.
    pub fn slot(&self, index: usize) -> Slot {
        Slot {
            links: self.clone(),
            index,
        }
    }

    /// Changes whenever a link comes or goes.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Whether a link is to be kept to this server: one that may be of another kind is listed
    /// from the start, and missed only while it is used.
    pub fn use_slot(&self, index: usize, used: bool) {
        if let Some(server) = self.servers.get(index) {
            server.unused.store(!used, Ordering::Relaxed);
            server.lock().down_since = Instant::now();
            self.changed.send_replace(());
        }
    }

    /// Whether this server has a link that takes dials.
    pub fn is_ready(&self, index: usize) -> bool {
        self.servers.get(index).is_some_and(Server::is_ready)
    }

    /// Servers with a link that takes dials.
    pub fn ready(&self) -> usize {
        self.servers
            .iter()
            .filter(|server| server.is_ready())
            .count()
    }

    /// Every live link: server, link, and whether it is the current one.
    pub fn all(&self) -> Vec<(Target, Link, bool)> {
        let mut out = Vec::new();
        for server in self.servers.iter() {
            let known = server.lock();
            let current = known.current.iter().map(|link| (link, true));
            let retired = known.retired.iter().map(|link| (link, false));
            out.extend(
                current
                    .chain(retired)
                    .map(|(link, is)| (server.server.clone(), link.clone(), is)),
            );
        }
        out
    }

    /// Ready while the link to one server works; a worse one is named in the note.
    pub fn readiness(&self) -> Result<Option<String>, String> {
        if self.servers.iter().any(|server| server.fault().is_none()) {
            // A server that restarts is no news.
            Ok(self.worst_since(limits::SERVER_MISSED))
        } else {
            Err(self.worst().unwrap_or_default())
        }
    }

    /// The server that is worst off, in words; `None` when all are linked and probe us.
    pub fn worst(&self) -> Option<String> {
        self.worst_since(Duration::ZERO)
    }

    fn worst_since(&self, least: Duration) -> Option<String> {
        let used = |server: &&Server| !server.unused.load(Ordering::Relaxed);
        let used = self.servers.iter().filter(used);
        let faults = used.filter_map(|server| Some((&server.server, server.fault()?)));
        let faults = faults.filter(|(_, fault)| fault.lasts() >= least);
        let (server, fault) = faults.max_by_key(|(_, fault)| fault.clone())?;
        Some(fault.words(server))
    }

    /// Two `--server` flags that lead to the same server, seen by its identity.
    pub fn same_server(&self, index: usize, name: &Name) -> Option<Target> {
        let others = self
            .servers
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != index);
        others
            .filter(|(_, server)| {
                let known = server.lock();
                known
                    .current
                    .as_ref()
                    .is_some_and(|link| link.carrier().peer().identity().name == *name)
            })
            .map(|(_, server)| server.server.clone())
            .next()
    }

    /// Links by server, carrier and state.
    pub fn counts(&self) -> HashMap<(String, &'static str, &'static str), i64> {
        let mut counts = HashMap::new();
        for (server, link, current) in self.all() {
            let state = state_word(&link, current);
            *counts
                .entry((server.to_string(), link.carrier().kind().as_str(), state))
                .or_default() += 1;
        }
        counts
    }

    /// For the admin socket.
    pub fn status(&self) -> Vec<ServerStatus> {
        let used = |server: &&Server| !server.unused.load(Ordering::Relaxed);
        self.servers
            .iter()
            .filter(used)
            .map(Server::status)
            .collect()
    }
}

fn state_word(link: &Link, current: bool) -> &'static str {
    match link.state() {
        LinkState::Ready if current => "ready",
        LinkState::Ready | LinkState::Draining { .. } => "draining",
        LinkState::Closed(_) => "closed",
    }
}

impl Server {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_ready(&self) -> bool {
        let known = self.lock();
        known
            .current
            .as_ref()
            .is_some_and(|link| link.state() == LinkState::Ready)
    }

    fn fault(&self) -> Option<Fault> {
        let known = self.lock();
        let ready = known.current.as_ref();
        let ready = ready.filter(|link| link.state() == LinkState::Ready);
        let Some(link) = ready else {
            let cause = match &known.error {
                Some((reason, text)) => format!("{reason}: {text}"),
                None => "no attempt has ended yet".to_owned(),
            };
            return Some(Fault::Down(known.down_since.elapsed(), cause));
        };
        let probed = known.probed.as_ref()?;
        Fault::of_probes(probed.unanswered_for(link.dials()))
    }

    fn status(&self) -> ServerStatus {
        let known = self.lock();
        let probed = known.probed.as_ref();
        let link = |(link, current): (&Link, bool)| {
            let carrier = link.carrier();
            let stats = carrier.stats();
            LinkStatus {
                link: link.id().to_string(),
                carrier: carrier.kind().as_str(),
                state: state_word(link, current),
                peer: carrier.peer().identity().to_string(),
                serial: carrier.peer().leaf().serial.to_string(),
                address: carrier.remote_address().to_string(),
                dials: link.dials(),
                age_seconds: link.since().elapsed().as_secs(),
                unprobed_seconds: probed
                    .filter(|_| current)
                    .and_then(|probed| probed.unanswered_for(link.dials()))
                    .map(|time| time.as_secs()),
                round_trip_ms: link.rtt().or(stats.rtt).map(|rtt| rtt.as_secs_f64() * 1e3),
                sent_bytes: stats.sent_bytes,
                received_bytes: stats.received_bytes,
                lost_packets: stats.lost_packets,
                mtu: stats.mtu,
            }
        };
        let current = known.current.iter().map(|link| (link, true));
        let retired = known.retired.iter().map(|link| (link, false));
        ServerStatus {
            server: self.server.to_string(),
            software: known.software.clone(),
            down_seconds: known
                .current
                .is_none()
                .then(|| known.down_since.elapsed().as_secs()),
            reason: known.error.as_ref().map(|(reason, _)| reason.to_string()),
            error: known.error.as_ref().map(|(_, text)| text.clone()),
            links: current.chain(retired).map(link).collect(),
        }
    }
}

/// What is wrong with one server. The later variant is worse, then the longer one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// The link is there, and no probe of the server came through of late.
    Unprobed(Duration),
    /// There is no link that takes dials, and why.
    Down(Duration, String),
}

impl Fault {
    fn of_probes(unanswered: Option<Duration>) -> Option<Self> {
        let missed = unanswered.filter(|time| *time > limits::PROBES_MISSED);
        missed.map(Fault::Unprobed)
    }

    fn lasts(&self) -> Duration {
        match self {
            Fault::Unprobed(time) | Fault::Down(time, _) => *time,
        }
    }

    fn words(&self, server: &Target) -> String {
        let seconds = self.lasts().as_secs();
        match self {
            Fault::Unprobed(_) => format!(
                "no data-path probe of server {server} has come through for {seconds}s, though its link is up"
            ),
            Fault::Down(_, cause) => {
                format!("no link to server {server} for {seconds}s, last error {cause}")
            }
        }
    }
}

/// One server's entry, held by its keeper.
pub struct Slot {
    links: Links,
    index: usize,
}

impl Slot {
    /// Which server.
    pub fn server(&self) -> &Target {
        &self.entry().server
    }

    /// Its place among the configured ones.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Another server with the same identity, if there is one.
    pub fn twin(&self, name: &Name) -> Option<Target> {
        self.links.same_server(self.index, name)
    }

    /// This link takes dials from now on; the one before it, if any, is retired.
    pub fn set_current(&self, link: Link, probed: Arc<Probed>, software: String) {
        self.retire();
        let mut known = self.entry().lock();
        known.current = Some(link);
        known.probed = Some(probed);
        known.error = None;
        known.software = software;
        drop(known);
        self.links.changed.send_replace(());
    }

    /// The current link takes no more dials but lives on.
    pub fn retire(&self) {
        let mut known = self.entry().lock();
        let Some(link) = known.current.take() else {
            return;
        };
        known.down_since = Instant::now();
        known.retired.push(link);
        known
            .retired
            .retain(|link| !matches!(link.state(), LinkState::Closed(_)));
        let excess = known.retired.len().saturating_sub(limits::RETIRED_LINKS);
        let oldest: Vec<_> = known.retired.drain(..excess).collect();
        drop(known);
        for link in oldest {
            link.close(Reason::Moved);
        }
        self.links.changed.send_replace(());
    }

    /// The current link is gone.
    pub fn lost(&self, reason: Reason) {
        let mut known = self.entry().lock();
        known.current = None;
        known.down_since = Instant::now();
        known.error = Some((reason, "the link ended".to_owned()));
        drop(known);
        self.links.changed.send_replace(());
    }

    /// An attempt failed.
    pub fn failed(&self, reason: Reason, text: String) {
        self.entry().lock().error = Some((reason, text));
        self.links.changed.send_replace(());
    }

    /// Forgets links that have ended.
    pub fn sweep(&self) {
        let mut known = self.entry().lock();
        known
            .retired
            .retain(|link| !matches!(link.state(), LinkState::Closed(_)));
    }

    /// Every live link of this server.
    pub fn all(&self) -> Vec<Link> {
        let known = self.entry().lock();
        known
            .current
            .iter()
            .chain(&known.retired)
            .cloned()
            .collect()
    }

    fn entry(&self) -> &Server {
        &self.links.servers[self.index]
    }
}

/// One server in the status.
#[derive(Clone, Debug, Serialize)]
pub struct ServerStatus {
    /// As it was configured.
    pub server: String,
    /// What the server says that it runs.
    pub software: String,
    /// How long there has been no link.
    pub down_seconds: Option<u64>,
    /// Last error, as a word.
    pub reason: Option<String>,
    /// Last error, for people.
    pub error: Option<String>,
    /// Its links, the current one first.
    pub links: Vec<LinkStatus>,
}

/// One link in the status.
#[derive(Clone, Debug, Serialize)]
pub struct LinkStatus {
    /// Number of the link.
    pub link: String,
    /// `quic` or `tls`.
    pub carrier: &'static str,
    /// `ready`, `draining` or `closed`.
    pub state: &'static str,
    /// Identity of the server.
    pub peer: String,
    /// Serial number of its certificate.
    pub serial: String,
    /// Where it is.
    pub address: String,
    /// Live dials.
    pub dials: u32,
    /// Since the greeting.
    pub age_seconds: u64,
    /// Since a probe of the server came through and was answered, or since the greeting; of the
    /// current link.
    pub unprobed_seconds: Option<u64>,
    /// Last measured.
    pub round_trip_ms: Option<f64>,
    /// To the network.
    pub sent_bytes: u64,
    /// From the network.
    pub received_bytes: u64,
    /// quic only.
    pub lost_packets: u64,
    /// quic only.
    pub mtu: Option<u16>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_server_is_said_and_the_worst_first() {
        let server: Target = "10.0.0.1:8091".parse().unwrap();
        let second = Duration::from_secs(1);
        assert_eq!(Fault::of_probes(None), None);
        assert_eq!(Fault::of_probes(Some(limits::PROBES_MISSED)), None);
        let late = Fault::of_probes(Some(limits::PROBES_MISSED + second)).unwrap();
        assert_eq!(
            late.words(&server),
            "no data-path probe of server 10.0.0.1:8091 has come through for 31s, though its link is up"
        );
        let down = Fault::Down(7 * second, "unreachable: x".to_owned());
        assert!(down > late && Fault::Down(8 * second, String::new()) > down);
        assert_eq!(
            down.words(&server),
            "no link to server 10.0.0.1:8091 for 7s, last error unreachable: x"
        );
    }
}
