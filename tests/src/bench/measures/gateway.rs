//! What the kubelet gateway costs: the same chain with and without it, side by side. In both the
//! front end speaks TLS with what it takes for the kubelet, and the server verifies the kubelet.
//!
//! A dial is a new request on a new connection: CONNECT, TLS, an upgrade and one round trip. An
//! ask is a round trip on a connection that is open. Idle connections are upgraded ones, each after
//! one round trip.

use std::fs;

use super::super::failure::{During, Failure, Result};
use super::super::load::Job;
use super::super::load::bulk::{Bulk, Direction, Moved};
use super::super::peers::{Chain, Place, Route, towline};
use super::super::stats::Latency;
use super::{Turn, Value, memory};

pub async fn run(turn: &mut Turn<'_>) -> Result<Vec<Value>> {
    let without = chain(turn, false).await?;
    let with = chain(turn, true).await?;
    let mut values = Vec::new();
    // First: what bulk leaves behind in a daemon is used again.
    for (word, chain) in [("without", &without), ("with", &with)] {
        let idle = memory::idle(turn, chain).await?;
        for daemon in &idle.daemons {
            let name = format!("each.{}.{word}", daemon.name);
            values.push(turn.value(&name, "KiB", daemon.each));
        }
        values.push(turn.value(&format!("reset.{word}"), "", idle.lost as f64));
    }
    for (word, direction) in [("down", Direction::Down), ("up", Direction::Up)] {
        let before = bulk(turn, &without, direction).await?;
        let after = bulk(turn, &with, direction).await?;
        values.push(turn.value(&format!("bulk.{word}.without"), "MB/s", before));
        values.push(turn.value(&format!("bulk.{word}.with"), "MB/s", after));
        values.push(turn.value(&format!("bulk.{word}.ratio"), "x", after / before));
    }
    let seconds = turn.times.latency;
    let dial = Job::Dial {
        workers: 1,
        seconds,
    };
    let ask = Job::Ask {
        connections: 1,
        silence: 0.0,
        warmup: 0.1,
        seconds,
    };
    for (word, job) in [("dial", dial), ("ask", ask)] {
        let before = latency(turn, &without, &job).await?;
        let after = latency(turn, &with, &job).await?;
        values.push(turn.value(&format!("{word}.without"), "us", before));
        values.push(turn.value(&format!("{word}.with"), "us", after));
        values.push(turn.value(&format!("{word}.adds"), "us", after - before));
    }
    Ok(values)
}

async fn chain(turn: &Turn<'_>, gateway: bool) -> Result<Chain> {
    let carrier = turn.peer.carrier();
    let carrier = carrier.ok_or_else(|| Failure::new("a peer without a gateway"))?;
    let directory = turn.path(if gateway { "with" } else { "without" });
    fs::create_dir(&directory).during(directory.display())?;
    let place = Place {
        directory,
        route: Route::Loopback,
        udp_buffer: None,
    };
    towline::start_verified(turn.stage, &place, carrier, gateway).await
}

async fn bulk(turn: &Turn<'_>, chain: &Chain, direction: Direction) -> Result<f64> {
    let job = Job::Bulk(Bulk::whole(direction, 1, turn.times.bulk));
    let moved: Moved = turn.load(&chain.door, &job).await?;
    Ok(moved.rate())
}

/// The median; nothing measured is a failure.
async fn latency(turn: &mut Turn<'_>, chain: &Chain, job: &Job) -> Result<f64> {
    let latency: Latency = turn.load(&chain.door, job).await?;
    super::latency::note_errors(turn, &latency);
    if latency.count == 0 {
        let error = latency.error.unwrap_or_default();
        return Err(Failure::new(format!("nothing came back: {error}")));
    }
    Ok(latency.p50)
}
