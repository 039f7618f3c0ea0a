//! What is measured: one row for each measure, one file for each kind.

pub mod attest;
pub mod audit;
pub mod enrolment;
pub mod gateway;
pub mod intact;
pub mod latency;
pub mod long_path;
pub mod memory;
pub mod policy;
pub mod reconnect;
pub mod revocation;
pub mod stalled;
pub mod throughput;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::door::Door;
use super::failure::{During, Failure, Result};
use super::load::Job;
use super::load::bulk::Direction;
use super::load::intact::What;
use super::options::{Options, Times};
use super::peers::towline::Stage;
use super::peers::{Chain, Peer, Place, Route};
use super::process::{Launch, Process};

/// Beyond the sample's own length, a load generator may take this long.
const SLACK: Duration = Duration::from_secs(30);

/// One row of the table of measures.
#[derive(Clone, Debug)]
pub struct Measure {
    pub name: String,
    pub kind: Kind,
}

/// How it is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// One round trip after another on an open connection, idle.
    Ask,
    /// Dials with an audit trail beside dials without.
    AuditedDial,
    /// Dials with a fresh attestation beside dials without verification.
    AttestedDial,
    /// Every kubelet of many nodes verified at start, and again.
    AttestAll,
    /// Thousands of new nodes that all want a certificate at once.
    Enrolment,
    /// The first round trip beside a bulk download that was alone until then.
    AskAfterBulkAlone,
    /// Round trips beside a bulk download.
    AskBesideBulk,
    /// Bulk bytes, and processor time for them.
    Bulk {
        direction: Direction,
        streams: usize,
    },
    /// Sixteen workers dial as fast as they can.
    Connects,
    /// One dial and one round trip after another.
    Dial,
    /// Connections that are not plain questions and answers, in percent of all.
    Intact(What),
    /// The kubelet gateway beside the same chain without it.
    Gateway,
    /// Bulk beside small requests on an emulated path.
    LongPath(long_path::Cell),
    /// Memory at rest and with idle dials.
    MemoryDials,
    /// Memory of a server with many idle agents.
    MemoryLinks,
    /// Decisions over 1,000 rules, without any chain.
    Policy,
    /// A server that is ended and started again.
    Reconnect(reconnect::End),
    /// Live links that end because their certificates were revoked.
    Revocation,
    /// Round trips and dials while other readers are stalled.
    Stalled { readers: usize },
}

/// All measures in the order in which they are taken.
#[must_use]
pub fn all(options: &Options) -> Vec<Measure> {
    let mut all = Vec::new();
    let mut add = |name: String, kind| all.push(Measure { name, kind });
    for (word, direction) in [("down", Direction::Down), ("up", Direction::Up)] {
        for streams in [1, 64] {
            add(
                format!("bulk.{word}.{streams}"),
                Kind::Bulk { direction, streams },
            );
        }
    }
    add("dial".into(), Kind::Dial);
    add("ask".into(), Kind::Ask);
    add("ask-beside-bulk".into(), Kind::AskBesideBulk);
    add("ask-after-bulk-alone".into(), Kind::AskAfterBulkAlone);
    add("connects".into(), Kind::Connects);
    for (word, what) in [
        ("speaks-first", What::SpeaksFirst),
        ("half-close", What::HalfClose),
        ("bytes-before-close", What::BytesBeforeClose),
    ] {
        add(format!("intact.{word}"), Kind::Intact(what));
    }
    for readers in [1, 8, 64] {
        add(format!("stalled.{readers}"), Kind::Stalled { readers });
    }
    add("attested-dial".into(), Kind::AttestedDial);
    add("attest-all".into(), Kind::AttestAll);
    add("audited-dial".into(), Kind::AuditedDial);
    add("memory.dials".into(), Kind::MemoryDials);
    add("memory.links".into(), Kind::MemoryLinks);
    add(
        "reconnect.sigterm".into(),
        Kind::Reconnect(reconnect::End::Term),
    );
    add(
        "reconnect.sigkill".into(),
        Kind::Reconnect(reconnect::End::Kill),
    );
    add("revocation".into(), Kind::Revocation);
    add("enrolment".into(), Kind::Enrolment);
    add("policy".into(), Kind::Policy);
    add("gateway".into(), Kind::Gateway);
    for cell in long_path::cells(options.quick) {
        add(cell.name(), Kind::LongPath(cell));
    }
    all
}

impl Kind {
    /// Whether this peer is measured in this way.
    #[must_use]
    pub fn suits(self, peer: &Peer) -> bool {
        match self {
            Self::Ask | Self::AskBesideBulk | Self::Bulk { .. } | Self::Connects | Self::Dial => {
                true
            }
            Self::Intact(What::HalfClose) => !peer.speaks_grpc(),
            Self::Intact(_) => true,
            // One is enough to stop Konnectivity.
            Self::Stalled { readers } => readers == 1 || !peer.is_konnectivity(),
            Self::LongPath(cell) => cell.suits(peer),
            Self::MemoryDials => peer.name != "direct" && !peer.is_jumbo(),
            Self::AskAfterBulkAlone | Self::MemoryLinks | Self::Reconnect(_) | Self::Revocation => {
                peer.carrier().is_some() && !peer.is_jumbo() && !peer.speaks_grpc()
            }
            // The carrier makes no difference; one peer stands for all.
            Self::Policy => peer.name == "towline-quic",
            // Over TCP, whatever carries links.
            Self::Enrolment => peer.name == "towline-tls",
            Self::AttestAll | Self::AttestedDial | Self::AuditedDial | Self::Gateway => {
                peer.carrier().is_some() && !peer.is_jumbo() && !peer.speaks_grpc()
            }
        }
    }

    /// Whether it runs on the chain that lives through all runs, or on one of its own.
    #[must_use]
    pub fn shares_chain(self) -> bool {
        matches!(
            self,
            Self::Ask
                | Self::AskAfterBulkAlone
                | Self::AskBesideBulk
                | Self::Bulk { .. }
                | Self::Connects
                | Self::Dial
        )
    }
}

/// One number of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Value {
    pub metric: String,
    pub unit: &'static str,
    pub value: f64,
}

/// One peer's turn at one measure.
pub struct Turn<'a> {
    pub options: &'a Options,
    pub times: Times,
    pub stage: &'a Stage,
    pub peer: &'static Peer,
    pub measure: &'a Measure,
    pub run: u32,
    /// For sockets and logs of this turn; exists.
    pub directory: &'a Path,
    pub notes: &'a mut Vec<String>,
}

impl Turn<'_> {
    /// Takes the measure, on the shared chain if it is one that shares.
    pub async fn take(&mut self, shared: Option<&mut Chain>) -> Result<Vec<Value>> {
        let shared = shared.ok_or_else(|| Failure::new("no chain"));
        match self.measure.kind {
            Kind::Ask => latency::ask(self, shared?).await,
            Kind::AskBesideBulk => latency::ask_beside_bulk(self, shared?).await,
            Kind::AskAfterBulkAlone => latency::ask_after_bulk_alone(self, shared?).await,
            Kind::AttestAll => attest::all(self).await,
            Kind::AttestedDial => attest::dial(self).await,
            Kind::AuditedDial => audit::run(self).await,
            Kind::Bulk { direction, streams } => {
                throughput::run(self, shared?, direction, streams).await
            }
            Kind::Connects => latency::connects(self, shared?).await,
            Kind::Dial => latency::dial(self, shared?).await,
            Kind::Intact(what) => intact::run(self, what).await,
            Kind::Enrolment => enrolment::run(self).await,
            Kind::Gateway => gateway::run(self).await,
            Kind::LongPath(cell) => long_path::run(self, cell).await,
            Kind::MemoryDials => memory::dials(self).await,
            Kind::MemoryLinks => memory::links(self).await,
            Kind::Policy => policy::run(self),
            Kind::Reconnect(end) => reconnect::run(self, end).await,
            Kind::Revocation => revocation::run(self).await,
            Kind::Stalled { readers } => stalled::run(self, readers).await,
        }
    }

    /// A chain of its own on loopback.
    async fn chain(&self) -> Result<Chain> {
        let place = Place {
            directory: self.directory.to_owned(),
            route: Route::Loopback,
            udp_buffer: None,
        };
        self.peer.start(self.stage, &place).await
    }

    /// A number under this measure's name.
    fn value(&self, metric: &str, unit: &'static str, value: f64) -> Value {
        let name = &self.measure.name;
        let metric = if metric.is_empty() {
            name.clone()
        } else {
            format!("{name}.{metric}")
        };
        Value {
            metric,
            unit,
            value,
        }
    }

    /// Starts a load generator.
    fn generator(&self, door: &Door, job: &Job) -> Result<Process> {
        let door = serde_json::to_string(door).during("door")?;
        let job = serde_json::to_string(job).during("job")?;
        Launch::own(
            "load",
            self.directory,
            &["load", "--door", &door, "--job", &job],
        )?
        .start()
    }

    /// Runs a load generator to its end.
    async fn load<T: DeserializeOwned>(&self, door: &Door, job: &Job) -> Result<T> {
        let mut process = self.generator(door, job)?;
        result(&mut process, job.length()).await
    }

    /// A file of this turn.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// What a load generator says at its end.
async fn result<T: DeserializeOwned>(process: &mut Process, length: Duration) -> Result<T> {
    let line = process.line(length + SLACK).await?;
    serde_json::from_str(&line).during(format_args!("load: answer {line:?}"))
}
