//! Round trips on open connections, new connections, and both as fast as they go.

use super::super::failure::{Failure, Result};
use super::super::load::Job;
use super::super::load::bulk::{Bulk, Direction, Moved};
use super::super::peers::Chain;
use super::super::stats::Latency;
use super::{Turn, Value, result};
use towline_proto::limits::COMPANY;

/// How many workers dial at once.
const WORKERS: usize = 16;
/// The bulk transfer starts first and ends last by this many seconds.
const BESIDE: f64 = 0.3;

pub async fn ask(turn: &mut Turn<'_>, chain: &mut Chain) -> Result<Vec<Value>> {
    let job = Job::Ask {
        connections: 1,
        silence: 0.0,
        warmup: 0.1,
        seconds: turn.times.latency,
    };
    let latency: Latency = turn.load(&chain.door, &job).await?;
    percentiles(turn, &latency, "")
}

pub async fn dial(turn: &mut Turn<'_>, chain: &mut Chain) -> Result<Vec<Value>> {
    let job = Job::Dial {
        workers: 1,
        seconds: turn.times.latency,
    };
    let latency: Latency = turn.load(&chain.door, &job).await?;
    percentiles(turn, &latency, "")
}

pub async fn ask_beside_bulk(turn: &mut Turn<'_>, chain: &mut Chain) -> Result<Vec<Value>> {
    let seconds = turn.times.latency;
    let bulk = Job::Bulk(Bulk {
        direction: Direction::Down,
        streams: 1,
        warmup: BESIDE,
        seconds: seconds + BESIDE,
    });
    let mut beside = turn.generator(&chain.door, &bulk)?;
    let job = Job::Ask {
        connections: 1,
        silence: 0.0,
        warmup: BESIDE,
        seconds,
    };
    let latency: Latency = turn.load(&chain.door, &job).await?;
    let moved: Moved = result(&mut beside, bulk.length()).await?;
    let mut values = percentiles(turn, &latency, "")?;
    values.push(turn.value("bulk", "MB/s", moved.rate()));
    Ok(values)
}

/// The first question after a time in which bulk was alone on its link.
pub async fn ask_after_bulk_alone(turn: &mut Turn<'_>, chain: &mut Chain) -> Result<Vec<Value>> {
    let silence = COMPANY.as_secs_f64() + BESIDE;
    let bulk = Job::Bulk(Bulk {
        direction: Direction::Down,
        streams: 1,
        warmup: 0.0,
        seconds: silence + BESIDE,
    });
    let mut beside = turn.generator(&chain.door, &bulk)?;
    let job = Job::Ask {
        connections: 1,
        silence,
        warmup: 0.0,
        seconds: 0.0,
    };
    let latency: Latency = turn.load(&chain.door, &job).await?;
    let _: Moved = result(&mut beside, bulk.length()).await?;
    note_errors(turn, &latency);
    Ok(vec![turn.value("", "us", latency.p50)])
}

pub async fn connects(turn: &mut Turn<'_>, chain: &mut Chain) -> Result<Vec<Value>> {
    let job = Job::Dial {
        workers: WORKERS,
        seconds: turn.times.latency,
    };
    let latency: Latency = turn.load(&chain.door, &job).await?;
    note_errors(turn, &latency);
    Ok(vec![
        turn.value("", "1/s", latency.count as f64 / latency.seconds),
        turn.value("errors", "", latency.errors as f64),
    ])
}

/// Median and 99th percentile under `prefix`. Errors are a note; nothing measured is a failure.
pub fn percentiles(turn: &mut Turn<'_>, latency: &Latency, prefix: &str) -> Result<Vec<Value>> {
    note_errors(turn, latency);
    if latency.count == 0 {
        let error = latency.error.clone().unwrap_or_default();
        return Err(Failure::new(format!("nothing came back: {error}")));
    }
    Ok(vec![
        turn.value(&format!("{prefix}p50"), "us", latency.p50),
        turn.value(&format!("{prefix}p99"), "us", latency.p99),
    ])
}

pub fn note_errors(turn: &mut Turn<'_>, latency: &Latency) {
    if latency.errors > 0 {
        turn.notes.push(format!(
            "run {}, {}/{}: {} errors, such as: {}",
            turn.run,
            turn.measure.name,
            turn.peer.name,
            latency.errors,
            latency.error.as_deref().unwrap_or("?")
        ));
    }
}
