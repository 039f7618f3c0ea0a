//! The run: for each run, each measure, each peer in turn, and never two at once.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use super::failure::{During, Failure, Result};
use super::measures::{self, Kind, Measure, Turn, Value};
use super::options::{Emulator, Options};
use super::peers::towline::Stage;
use super::peers::{Carrier, Chain, PEERS, Peer, Place, Route};
use super::procfs;
use super::report::{self, Circumstances};
use super::results::Results;

/// No turn takes longer, whatever hangs.
const TURN: Duration = Duration::from_secs(150);

/// One line or table for whoever reads; `head` may have read enough.
fn say(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Measures everything that was asked for, and prints and writes the results.
pub async fn run(options: &Options) -> Result<()> {
    let measures = measures::all(options);
    if options.list {
        for (measure, peer) in pairs(&measures, options, 0) {
            say(&format!("{}/{}", measure.name, peer.name));
        }
        return Ok(());
    }
    let began = Instant::now();
    let load_before = procfs::load_average()?;
    let mut bench = Bench {
        options,
        stage: Stage::new()?,
        chains: BTreeMap::new(),
        results: Results::default(),
        notes: Vec::new(),
        directories: 0,
    };
    if options.keep {
        eprintln!("logs: {}", bench.stage.scratch.path().display());
    }
    let emulator = bench.obstacles(&measures);
    let outcome = tokio::select! {
        outcome = bench.all(&measures) => outcome,
        stop = told_to_stop() => stop.and(Err(Failure::new("told to stop"))),
    };
    if let Err(failure) = outcome {
        bench
            .notes
            .push(format!("the bench ended early: {failure}"));
    }
    bench.chains.clear();
    let about = Circumstances {
        quick: options.quick,
        runs: options.runs(),
        kernel: read("/proc/sys/kernel/osrelease"),
        processor: processor(),
        processors: std::thread::available_parallelism().map_or(0, usize::from),
        congestion: read("/proc/sys/net/ipv4/tcp_congestion_control"),
        load_before,
        load_after: procfs::load_average()?,
        seconds: began.elapsed().as_secs_f64(),
        emulator,
        notes: std::mem::take(&mut bench.notes),
    };
    let table = report::markdown(&bench.results, &about);
    say(&table);
    write(options.markdown.as_ref(), &table)?;
    let json =
        serde_json::to_string_pretty(&report::json(&bench.results, &about)).during("JSON")?;
    write(options.json.as_ref(), &json)?;
    if options.keep {
        // The directory stays behind on purpose.
        std::mem::forget(bench);
    }
    Ok(())
}

/// SIGINT or SIGTERM: what was measured so far is still shown.
async fn told_to_stop() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).during("SIGTERM")?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted.during("SIGINT"),
        _ = terminate.recv() => Ok(()),
    }
}

fn write(path: Option<&PathBuf>, text: &str) -> Result<()> {
    path.map_or(Ok(()), |path| fs::write(path, text).during(path.display()))
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "?".to_owned(), |text| text.trim().to_owned())
}

fn processor() -> String {
    let text = read("/proc/cpuinfo");
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(
        || "unknown processor".to_owned(),
        |(_, name)| name.trim().to_owned(),
    )
}

/// What is wanted, measure by measure. The order of peers rotates, so that none is always the first.
fn pairs<'a>(
    measures: &'a [Measure],
    options: &'a Options,
    run: u32,
) -> impl Iterator<Item = (&'a Measure, &'static Peer)> {
    measures.iter().flat_map(move |measure| {
        let peers = PEERS
            .iter()
            .cycle()
            .skip(run as usize % PEERS.len())
            .take(PEERS.len());
        peers
            .filter(move |peer| measure.kind.suits(peer) && options.wants(&measure.name, peer.name))
            .map(move |peer| (measure, peer))
    })
}

struct Bench<'a> {
    options: &'a Options,
    stage: Stage,
    /// Chains that live through all runs.
    chains: BTreeMap<&'static str, Chain>,
    results: Results,
    notes: Vec<String>,
    directories: u32,
}

impl Bench<'_> {
    /// Notes what cannot be measured here, and says how the long path is made.
    fn obstacles(&mut self, measures: &[Measure]) -> String {
        if let Some(obstacle) = self.stage.obstacle() {
            self.notes
                .push(format!("Towline was not measured: {obstacle}"));
        }
        let mut wanted = pairs(measures, self.options, 0);
        if wanted.any(|(_, peer)| peer.is_konnectivity())
            && let Some(obstacle) = self.stage.konnectivity.obstacle()
        {
            let note = format!("Konnectivity was not measured: {obstacle}");
            self.notes.push(note);
        }
        match measures::long_path::emulator(self.options) {
            Ok(Emulator::Tun) => "TUN devices between two network namespaces".to_owned(),
            Ok(_) => {
                let why = crate::emulator::namespace::obstacle();
                let why = why.unwrap_or_else(|| "--emulator udp was given".to_owned());
                format!(
                    "UDP forwarder on loopback; relay and towline-tls were not measured on it: {why}"
                )
            }
            Err(obstacle) => format!("not measured: {obstacle}"),
        }
    }

    /// Whether this peer can be measured in this way here.
    fn possible(&self, measure: &Measure, peer: &Peer) -> bool {
        let obstacle = match (peer.carrier(), peer.is_konnectivity()) {
            (Some(_), _) => self.stage.obstacle(),
            (None, true) => self.stage.konnectivity.obstacle(),
            (None, false) => None,
        };
        if obstacle.is_some() {
            return false;
        }
        match (measure.kind, measures::long_path::emulator(self.options)) {
            (Kind::LongPath(_), Err(_)) => false,
            (Kind::LongPath(_), Ok(Emulator::Udp)) => peer.carrier() == Some(Carrier::Quic),
            _ => true,
        }
    }

    async fn all(&mut self, measures: &[Measure]) -> Result<()> {
        let options = self.options;
        for run in 1..=options.runs() {
            for (measure, peer) in pairs(measures, options, run) {
                if !self.possible(measure, peer) {
                    continue;
                }
                eprint!("run {run}: {}/{} ... ", measure.name, peer.name);
                match self.turn(measure, peer, run).await {
                    Ok(values) => {
                        let shown = values
                            .iter()
                            .take(2)
                            .map(|value| format!("{:.1} {}", value.value, value.unit));
                        eprintln!("{}", shown.collect::<Vec<_>>().join(", "));
                        for value in values {
                            self.results.add(peer.name, value);
                        }
                    }
                    Err(failure) => {
                        eprintln!("failed: {failure}");
                        self.notes.push(format!(
                            "run {run}, {}/{}: {failure}",
                            measure.name, peer.name
                        ));
                        // Whatever state it is in, the next turn gets a new one.
                        self.chains.remove(peer.name);
                    }
                }
            }
        }
        Ok(())
    }

    async fn turn(
        &mut self,
        measure: &Measure,
        peer: &'static Peer,
        run: u32,
    ) -> Result<Vec<Value>> {
        let directory = self.directory()?;
        if measure.kind.shares_chain() && !self.chains.contains_key(peer.name) {
            let place = Place {
                directory: self.directory()?,
                route: Route::Loopback,
                udp_buffer: None,
            };
            self.chains
                .insert(peer.name, peer.start(&self.stage, &place).await?);
        }
        let mut turn = Turn {
            options: self.options,
            times: self.options.times(),
            stage: &self.stage,
            peer,
            measure,
            run,
            directory: &directory,
            notes: &mut self.notes,
        };
        let taken = timeout(TURN, turn.take(self.chains.get_mut(peer.name))).await;
        taken.map_err(|_| Failure::new(format!("did not end within {} s", TURN.as_secs())))?
    }

    fn directory(&mut self) -> Result<PathBuf> {
        self.directories += 1;
        let path = self.stage.scratch.join(self.directories.to_string());
        fs::create_dir(&path).during(path.display())?;
        Ok(path)
    }
}
