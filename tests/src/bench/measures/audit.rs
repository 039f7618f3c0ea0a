//! What the audit trail costs a dial: the same chain with and without it, side by side, in the order
//! without, with, with, without, so that a machine that gets slower slows both.

use std::fs;

use super::super::failure::{During, Failure, Result};
use super::super::load::Job;
use super::super::peers::{Chain, Place, Route, towline};
use super::super::stats::Latency;
use super::{Turn, Value};

pub async fn run(turn: &mut Turn<'_>) -> Result<Vec<Value>> {
    let without = chain(turn, false).await?;
    let with = chain(turn, true).await?;
    let mut values = Vec::new();
    for (word, workers) in [("dial", 1), ("dial-16", 16)] {
        let first = latency(turn, &without, workers).await?;
        let second = latency(turn, &with, workers).await?;
        let third = latency(turn, &with, workers).await?;
        let fourth = latency(turn, &without, workers).await?;
        let (before, after) = ((first + fourth) / 2.0, (second + third) / 2.0);
        let spread = (first - fourth).abs();
        values.push(turn.value(&format!("{word}.without"), "us", before));
        values.push(turn.value(&format!("{word}.with"), "us", after));
        values.push(turn.value(&format!("{word}.adds"), "us", after - before));
        values.push(turn.value(&format!("{word}.spread"), "us", spread));
    }
    Ok(values)
}

async fn chain(turn: &Turn<'_>, audit: bool) -> Result<Chain> {
    let carrier = turn.peer.carrier();
    let carrier = carrier.ok_or_else(|| Failure::new("a peer without an audit trail"))?;
    let directory = turn.path(if audit { "with" } else { "without" });
    fs::create_dir(&directory).during(directory.display())?;
    let place = Place {
        directory,
        route: Route::Loopback,
        udp_buffer: None,
    };
    towline::start_recorded(turn.stage, &place, carrier, audit).await
}

/// The median; nothing measured is a failure.
async fn latency(turn: &mut Turn<'_>, chain: &Chain, workers: usize) -> Result<f64> {
    let seconds = turn.times.latency;
    let job = Job::Dial { workers, seconds };
    let latency: Latency = turn.load(&chain.door, &job).await?;
    super::latency::note_errors(turn, &latency);
    if latency.count == 0 {
        let error = latency.error.unwrap_or_default();
        return Err(Failure::new(format!("nothing came back: {error}")));
    }
    Ok(latency.p50)
}
