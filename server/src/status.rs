//! What the server says about itself to an operator, as JSON for the admin socket.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use towline_link::live::LiveDials;
use towline_link::process::expiry;

use crate::agents::{AgentLink, Agents};
use crate::attest::report::{Reporter, Summary};
use crate::compat::running::Told;
use crate::legacy::AgentStream;
use crate::links::greet::SOFTWARE;
use crate::metrics::standing_word;
use crate::trust::Trust;

/// The whole answer.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Name and version of the program.
    pub software: &'static str,
    /// Who we are; empty without an identity of our own.
    pub identity: String,
    /// `running`, `draining`, `closing` or `forced`.
    pub stage: &'static str,
    /// Where agents connect.
    pub listen: SocketAddr,
    /// Dials now.
    pub live_dials: usize,
    /// Dials whose front end takes no bytes.
    pub stalled_dials: usize,
    /// Of all dials since the start, those that go on included.
    pub bytes_to_targets: u64,
    /// The other direction.
    pub bytes_from_targets: u64,
    /// `enforce`, `observe` or `off`: whether kubelets are verified.
    pub kubelet_verification: &'static str,
    /// What is known of the kubelets of linked nodes; `towline-server kubelets` has each of them.
    pub kubelets: Summary,
    /// Everything loaded that ends.
    pub expiries: Vec<Expiry>,
    /// Authorities that peers may come from; `towline-pki rotate activate` asks for them.
    pub trust: Vec<Anchor>,
    /// By name.
    pub agents: Vec<Agent>,
    /// Agents that are not verified; only in the compatibility profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compatibility: Option<Compatibility>,
}

/// The compatibility profile.
#[derive(Clone, Debug, Serialize)]
pub struct Compatibility {
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
    /// Oldest first.
    pub legacy_agents: Vec<LegacyAgent>,
}

/// One stream of a legacy agent.
#[derive(Clone, Debug, Serialize)]
pub struct LegacyAgent {
    /// What it calls itself.
    pub id: String,
    /// What it proved.
    pub proof: String,
    /// What it says it serves.
    pub hosts: Vec<String>,
    /// Whether it says that it serves everything.
    pub default_route: bool,
    /// Where it comes from.
    pub address: SocketAddr,
    /// `ready`, `draining` or `stuck`.
    pub state: &'static str,
    /// Seconds since 1970.
    pub since: u64,
    /// Dials now.
    pub dials: usize,
}

fn legacy_agent(stream: &AgentStream) -> LegacyAgent {
    LegacyAgent {
        id: stream.id().to_owned(),
        proof: stream.proof().to_string(),
        hosts: stream.hosts().iter().map(ToString::to_string).collect(),
        default_route: stream.identifiers().default_route,
        address: stream.address(),
        state: stream.state(),
        since: seconds(stream.since()),
        dials: stream.dials(),
    }
}

/// Something that ends.
#[derive(Clone, Debug, Serialize)]
pub struct Expiry {
    /// What it is.
    pub what: String,
    /// The file.
    pub path: String,
    /// Seconds since 1970.
    pub not_after: u64,
}

/// An authority that peers may come from.
#[derive(Clone, Debug, Serialize)]
pub struct Anchor {
    /// The role of those peers.
    pub role: &'static str,
    /// The file.
    pub path: String,
    /// Which it is.
    pub sha256: String,
}

/// One agent.
#[derive(Clone, Debug, Serialize)]
pub struct Agent {
    /// Its node's name.
    pub name: String,
    /// Newest first.
    pub links: Vec<Link>,
    /// When there is none: for how many seconds.
    pub gone_for_seconds: Option<u64>,
    /// When there is none: why the last one ended.
    pub last_end: Option<&'static str>,
}

/// One link.
#[derive(Clone, Debug, Serialize)]
pub struct Link {
    /// Its number in our log.
    pub id: String,
    /// `quic` or `tls`.
    pub carrier: &'static str,
    /// `ready`, `unhealthy`, `draining` or `ending`.
    pub state: &'static str,
    /// Where the agent's packets come from now.
    pub address: SocketAddr,
    /// The agent process.
    pub instance: String,
    /// Its program.
    pub software: String,
    /// Of its certificate.
    pub serial: String,
    /// End of its certificate, seconds since 1970.
    pub certificate_ends: u64,
    /// Seconds since 1970.
    pub since: u64,
    /// Dials now.
    pub dials: u32,
    /// Round trip on the network, where the carrier measures it.
    pub rtt_microseconds: Option<u64>,
    /// How long the last probe of the data path took.
    pub probe_microseconds: Option<u64>,
    /// `none`, `passed` or `failed`.
    pub probe: &'static str,
    /// What the agent says of itself in its heartbeats.
    pub reports: Vec<&'static str>,
    /// Bytes on the wire.
    pub sent_bytes: u64,
    /// Bytes on the wire.
    pub received_bytes: u64,
    /// quic: packets lost.
    pub lost_packets: u64,
    /// quic: largest UDP payload in use.
    pub mtu: Option<u16>,
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// What it is made of.
#[derive(Clone)]
pub struct Source {
    /// Agents and their links.
    pub agents: std::sync::Arc<Agents>,
    /// Dials.
    pub live: LiveDials,
    /// Who we are.
    pub trust: Option<Trust>,
    /// Kubelets.
    pub reporter: Reporter,
    /// Everything loaded that ends.
    pub expiries: expiry::Source,
    /// The compatibility profile.
    pub compat: Option<Told>,
    /// Stopping.
    pub drain: towline_link::process::drain::DrainView,
    /// Where agents connect.
    pub listen: SocketAddr,
}

impl Source {
    /// Looks at everything now.
    pub fn status(&self) -> Status {
        let snapshot = self.trust.as_ref().map(Trust::snapshot);
        let mut agents: Vec<Agent> = self.agents.nodes().iter().map(|n| agent(n)).collect();
        agents.sort_by(|a, b| a.name.cmp(&b.name));
        let (bytes_to_targets, bytes_from_targets) = self.live.bytes();
        Status {
            software: SOFTWARE,
            identity: snapshot
                .as_ref()
                .map_or_else(String::new, |own| own.identity().to_string()),
            stage: self.drain.stage().as_str(),
            listen: self.listen,
            live_dials: self.live.len(),
            stalled_dials: self.live.stalled(),
            bytes_to_targets,
            bytes_from_targets,
            kubelet_verification: self.reporter.attestor.mode().as_str(),
            kubelets: self.reporter.summary(),
            expiries: (self.expiries)()
                .into_iter()
                .map(|expiry| Expiry {
                    what: expiry.what,
                    path: expiry.path.display().to_string(),
                    not_after: seconds(expiry.not_after),
                })
                .collect(),
            trust: snapshot.as_ref().map_or_else(Vec::new, |own| {
                let trusted = own.material.trusted().into_iter();
                trusted
                    .map(|(role, path, sha256)| Anchor {
                        role: role.as_str(),
                        path: path.display().to_string(),
                        sha256: sha256.to_string(),
                    })
                    .collect()
            }),
            agents,
            compatibility: self.compat.as_ref().map(|told| Compatibility {
                unverified: told.unverified.clone(),
                legacy_door: told.legacy_door,
                signed_door: told.signed_door,
                open_socket: told.open_socket,
                downgrade: told.downgrade,
                legacy_agents: told
                    .agents
                    .streams()
                    .iter()
                    .map(|s| legacy_agent(s))
                    .collect(),
            }),
        }
    }
}

fn agent(node: &crate::agents::Node) -> Agent {
    let ended = node.ended();
    Agent {
        name: node.name().to_string(),
        links: node.links().iter().map(|entry| link(entry)).collect(),
        gone_for_seconds: ended.map(|ended| ended.at.elapsed().as_secs()),
        last_end: ended.map(|ended| ended.reason.as_str()),
    }
}

fn link(entry: &AgentLink) -> Link {
    let carrier = entry.link.carrier();
    let stats = carrier.stats();
    let leaf = entry.peer().leaf();
    let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    Link {
        id: entry.link.id().to_string(),
        carrier: carrier.kind().as_str(),
        state: standing_word(entry.standing()),
        address: carrier.remote_address(),
        instance: entry.instance.to_string(),
        software: entry.software.clone(),
        serial: leaf.serial.to_string(),
        certificate_ends: seconds(leaf.not_after),
        since: seconds(entry.since),
        dials: entry.link.dials(),
        rtt_microseconds: stats.rtt.map(us),
        probe_microseconds: entry.probe_time().map(us),
        probe: entry.probe().as_str(),
        reports: entry.link.peer_notes().words().collect(),
        sent_bytes: stats.sent_bytes,
        received_bytes: stats.received_bytes,
        lost_packets: stats.lost_packets,
        mtu: stats.mtu,
    }
}
