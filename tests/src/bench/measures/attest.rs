//! What the attestation of kubelets costs: a dial whose verdict is fresh, beside one without any
//! verification, and the time in which a server has verified the kubelets of many nodes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use towline_link::process::ask;

use super::super::failure::{During, Failure, Result};
use super::super::load::Job;
use super::super::peers::{Chain, Place, Route, towline};
use super::super::process::Process;
use super::super::stats::Latency;
use super::{SLACK, Turn, Value};

/// Pairs of samples, one without and one with verification, back to back.
const PAIRS: usize = 8;
/// What a dial with a fresh attestation may cost more, microseconds, or the spread of the samples
/// without verification if that is more.
const ALLOWED: f64 = 10.0;
/// How often the server's numbers are looked at.
const LOOK: Duration = Duration::from_millis(25);
/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

pub async fn dial(turn: &mut Turn<'_>) -> Result<Vec<Value>> {
    let off = chain(turn, "off", false).await?;
    let enforce = chain(turn, "enforce", true).await?;
    let seconds = turn.times.latency / 4.0;
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        // Who comes first changes, so that whatever drifts falls on both.
        let order = if pair % 2 == 0 {
            [(&off, &mut before), (&enforce, &mut after)]
        } else {
            [(&enforce, &mut after), (&off, &mut before)]
        };
        for (chain, samples) in order {
            samples.push(p50(turn, chain, seconds).await?);
        }
    }
    let mut extra: Vec<f64> = before.iter().zip(&after).map(|(b, a)| a - b).collect();
    let extra = median(&mut extra);
    let (off, spread) = (median(&mut before), spread(&before));
    Ok(vec![
        turn.value("off.p50", "us", off),
        turn.value("enforce.p50", "us", median(&mut after)),
        turn.value("extra", "us", extra),
        turn.value("spread", "us", spread),
        turn.value("excess", "us", (extra - ALLOWED.max(spread)).max(0.0)),
    ])
}

async fn p50(turn: &mut Turn<'_>, chain: &Chain, seconds: f64) -> Result<f64> {
    let job = Job::Dial {
        workers: 1,
        seconds,
    };
    let latency: Latency = turn.load(&chain.door, &job).await?;
    super::latency::note_errors(turn, &latency);
    if latency.count == 0 {
        let error = latency.error.unwrap_or_default();
        return Err(Failure::new(format!("nothing came back: {error}")));
    }
    Ok(latency.p50)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn spread(values: &[f64]) -> f64 {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    values.iter().copied().fold(0.0, f64::max) - least
}

pub async fn all(turn: &mut Turn<'_>) -> Result<Vec<Value>> {
    let chain = chain(turn, "all", true).await?;
    let (Some(server), Some(address), Some(carrier)) =
        (&chain.front, chain.link, turn.peer.carrier())
    else {
        return Err(Failure::new("no server"));
    };
    let port = chain.door.port()?;
    let count = turn.times.idle_links;
    let mut kubelets = towline::kubelets(turn.stage, turn.directory, port, count)?;
    kubelets.ready(SLACK).await?;
    let place = turn.path("all");
    let socket = place.join("server-admin");

    let began = Instant::now();
    let mut agents = towline::idle_agents(
        turn.stage,
        turn.directory,
        carrier,
        address,
        count,
        Some(port),
    )?;
    let watched = watch(&socket, server, count as f64 + 1.0, 0.0);
    let (linked, watched) = tokio::join!(
        async {
            let linked = agents.ready(SLACK + SLACK).await;
            linked.map(|_| began.elapsed().as_secs_f64())
        },
        watched
    );
    let (linked, first) = (linked?, watched?);
    let start = began.elapsed().as_secs_f64();

    // Another authority beside ours: every verdict counts for nothing, all at once.
    change_authority(&place)?;
    let busy = server.cpu_seconds()?;
    let began = Instant::now();
    server.signal(Signal::HUP)?;
    let wanted = first.handshakes + count as f64 + 1.0;
    let second = watch(&socket, server, count as f64 + 1.0, wanted).await?;
    let again = began.elapsed().as_secs_f64();
    let busy = server.cpu_seconds()? - busy;
    kubelets.hang_up();
    Ok(vec![
        turn.value("linked", "s", linked),
        turn.value("start", "s", start),
        turn.value("again", "s", again),
        turn.value("again.cpu.front", "s", busy),
        turn.value("at-once", "", first.at_once.max(second.at_once)),
    ])
}

async fn chain(turn: &Turn<'_>, name: &str, enforce: bool) -> Result<Chain> {
    let carrier = turn.peer.carrier();
    let carrier = carrier.ok_or_else(|| Failure::new("a peer without attestation"))?;
    let directory = turn.path(name);
    fs::create_dir(&directory).during(directory.display())?;
    let place = Place {
        directory,
        route: Route::Loopback,
        udp_buffer: None,
    };
    towline::start_attesting(turn.stage, &place, carrier, enforce).await
}

fn change_authority(place: &Path) -> Result<()> {
    let path = place.join("kubelets.pem");
    let mut text = fs::read_to_string(&path).during(path.display())?;
    text.push_str(crate::authority::Ca::made_up("another authority").pem());
    crate::scratch::replace(&path, text).during(path.display())
}

/// What was seen of the server's numbers.
struct Watched {
    handshakes: f64,
    at_once: f64,
}

/// Looks until so many kubelets are verified and so many handshakes were done.
async fn watch(socket: &Path, server: &Process, verified: f64, handshakes: f64) -> Result<Watched> {
    let began = Instant::now();
    let mut at_once: f64 = 0.0;
    loop {
        let text = metrics(socket.to_owned()).await?;
        let number = |line: &str| -> f64 {
            let found = text.lines().find_map(|at| at.strip_prefix(line));
            found
                .and_then(|number| number.trim().parse().ok())
                .unwrap_or(0.0)
        };
        at_once = at_once.max(number("towline_server_kubelet_handshakes_in_flight "));
        let done = number("towline_server_kubelet_attestations_total{verdict=\"verified\"} ");
        let now = number("towline_server_kubelets{verdict=\"verified\"} ");
        if now >= verified && done >= handshakes {
            return Ok(Watched {
                handshakes: done,
                at_once,
            });
        }
        if began.elapsed() > PATIENCE {
            let refused: Vec<&str> = text
                .lines()
                .filter(|line| {
                    line.starts_with("towline_server_kubelets{") && !line.ends_with(" 0")
                })
                .collect();
            return Err(server.failure(&format!("{now} of {verified} verified: {refused:?}")));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn metrics(socket: PathBuf) -> Result<String> {
    let asked = tokio::task::spawn_blocking(move || ask::get(&socket, "/metrics")).await;
    let body = asked.during("metrics")?.during("metrics")?;
    String::from_utf8(body).during("metrics")
}
