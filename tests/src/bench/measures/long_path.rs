//! Bulk beside small requests over an emulated path: delay by loss by UDP buffer, both carriers.

use std::net::IpAddr;
use std::time::Duration;

use super::super::failure::{During, Result};
use super::super::load::Job;
use super::super::load::bulk::{Bulk, Direction, Moved};
use super::super::options::{Emulator, Options};
use super::super::peers::{Carrier, Chain, Front, Kind, Peer, Place, Route};
use super::super::process::{Launch, Process, START};
use super::super::stats::Latency;
use super::{Turn, Value, latency, result};
use crate::emulator::forward::Traffic;
use crate::emulator::line::Path;
use crate::emulator::namespace::{self, Namespace};

/// Clients that ask beside the bulk download.
const CLIENTS: usize = 16;
/// UDP buffers: a tuned host, and what a kernel gives by default.
const BUFFERS: [(&str, &str); 2] = [("4MiB", "4MiB"), ("208KiB", "208KiB")];

/// One cell of the matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    /// Round trip in milliseconds.
    rtt: u32,
    /// Loss each way, in tenths of a percent.
    loss: u32,
    /// UDP buffer: name and flag.
    buffer: (&'static str, &'static str),
}

/// The matrix.
#[must_use]
pub fn cells(quick: bool) -> Vec<Cell> {
    let mut cells = Vec::new();
    for buffer in BUFFERS {
        for rtt in [0, 20, 100] {
            for loss in [0, 5, 20] {
                // Quick: one clean cell, and the one that has a target.
                if !quick || (rtt, loss) == (20, 5) || (rtt, loss, buffer) == (0, 0, BUFFERS[0]) {
                    cells.push(Cell { rtt, loss, buffer });
                }
            }
        }
    }
    cells
}

/// Which emulator is used, or why none can be.
pub fn emulator(options: &Options) -> std::result::Result<Emulator, String> {
    match (options.emulator, namespace::obstacle()) {
        (Emulator::Tun | Emulator::Auto, None) => Ok(Emulator::Tun),
        (Emulator::Tun, Some(obstacle)) => Err(obstacle),
        (Emulator::Auto | Emulator::Udp, _) => Ok(Emulator::Udp),
    }
}

impl Cell {
    /// Such as `long.20ms.0.5%.4MiB`.
    #[must_use]
    pub fn name(&self) -> String {
        let loss = f64::from(self.loss) / 10.0;
        format!("long.{}ms.{loss}%.{}", self.rtt, self.buffer.0)
    }

    /// Both carriers, and the plain relay for comparison; the buffer concerns QUIC only.
    #[must_use]
    pub fn suits(&self, peer: &Peer) -> bool {
        match peer.kind {
            Kind::Direct
            | Kind::Konnectivity(_)
            | Kind::Towline { jumbo: true, .. }
            | Kind::Towline {
                door: Front::Grpc, ..
            } => false,
            Kind::Relay
            | Kind::Towline {
                carrier: Carrier::Tls,
                ..
            } => self.buffer == BUFFERS[0],
            Kind::Towline {
                carrier: Carrier::Quic,
                ..
            } => true,
        }
    }

    /// Outward (agent to server) and inward path of one run.
    fn paths(&self, options: &Options, run: u32) -> (Path, Path) {
        let seed = u64::from(run) << 32 | u64::from(self.rtt) << 16 | u64::from(self.loss) << 1;
        let path = |seed| Path {
            rate: options.rate,
            queue: options.queue,
            ..Path::new(
                Duration::from_millis(self.rtt.into()) / 2,
                f64::from(self.loss) / 1000.0,
                seed,
            )
        };
        (path(seed), path(seed + 1))
    }
}

pub async fn run(turn: &mut Turn<'_>, cell: Cell) -> Result<Vec<Value>> {
    let road = Road::new(turn, cell).await?;
    let place = Place {
        directory: turn.directory.to_owned(),
        route: road.route.clone(),
        udp_buffer: Some(cell.buffer.1),
    };
    let mut chain = turn.peer.start(turn.stage, &place).await?;
    let values = measure(turn, &chain).await?;
    let traffic = road.traffic(&mut chain).await?;
    note_overflow(turn, &traffic);
    Ok(values)
}

async fn measure(turn: &mut Turn<'_>, chain: &Chain) -> Result<Vec<Value>> {
    let (warmup, seconds) = (turn.times.long_warmup, turn.times.long);
    let bulk = Job::Bulk(Bulk {
        direction: Direction::Down,
        streams: 1,
        warmup,
        seconds,
    });
    let mut beside = turn.generator(&chain.door, &bulk)?;
    let ask = Job::Ask {
        connections: CLIENTS,
        silence: 0.0,
        warmup,
        seconds,
    };
    let asked: Latency = turn.load(&chain.door, &ask).await?;
    let moved: Moved = result(&mut beside, bulk.length()).await?;
    latency::note_errors(turn, &asked);
    Ok(vec![
        turn.value("bulk", "MB/s", moved.rate()),
        turn.value("p50", "ms", asked.p50 / 1e3),
        turn.value("p99", "ms", asked.p99 / 1e3),
    ])
}

/// Only the loss that was asked for may happen; anything else is told.
fn note_overflow(turn: &mut Turn<'_>, traffic: &Traffic) {
    for (way, counts) in [("outward", traffic.outward), ("inward", traffic.inward)] {
        if counts.overflowed + counts.refused > 0 {
            turn.notes.push(format!(
                "run {}, {}/{}: the emulator dropped {} and could not deliver {} of {} packets {way}",
                turn.run,
                turn.measure.name,
                turn.peer.name,
                counts.overflowed,
                counts.refused,
                counts.forwarded
            ));
        }
    }
}

/// The emulated path of one turn.
struct Road {
    route: Route,
    /// Kept for their namespaces, which end with them.
    _ends: Option<(Namespace, Namespace)>,
    line: Option<Process>,
}

impl Road {
    async fn new(turn: &Turn<'_>, cell: Cell) -> Result<Self> {
        let (outward, inward) = cell.paths(turn.options, turn.run);
        match emulator(turn.options).map_err(super::super::failure::Failure::new)? {
            Emulator::Auto | Emulator::Udp => Ok(Self {
                route: Route::Udp { outward, inward },
                _ends: None,
                line: None,
            }),
            Emulator::Tun => Self::between_namespaces(turn, &(outward, inward)).await,
        }
    }

    async fn between_namespaces(turn: &Turn<'_>, paths: &(Path, Path)) -> Result<Self> {
        let directory = turn.directory;
        let near = Namespace::new("near", directory).await?;
        let far = Namespace::new("far", directory).await?;
        // Outward is what the agent sends, so the far namespace is where that path begins.
        let paths = serde_json::to_string(paths).during("path")?;
        let (from, to) = (far.pid().to_string(), near.pid().to_string());
        let arguments = ["line", "--near", &from, "--far", &to, "--paths", &paths];
        let mut line = Launch::own("line", directory, &arguments)?.start()?;
        line.ready(START).await?;
        near.address(directory, namespace::NEAR).await?;
        far.address(directory, namespace::FAR).await?;
        let host: IpAddr = namespace::NEAR.parse().during("near address")?;
        let route = Route::Namespaces {
            near: near.pid(),
            far: far.pid(),
            host,
        };
        Ok(Self {
            route,
            _ends: Some((near, far)),
            line: Some(line),
        })
    }

    /// Ends the path and says what became of its packets.
    async fn traffic(self, chain: &mut Chain) -> Result<Traffic> {
        let Some(mut line) = self.line.or_else(|| chain.line.take()) else {
            return Ok(Traffic::default());
        };
        line.hang_up();
        result(&mut line, Duration::ZERO).await
    }
}
