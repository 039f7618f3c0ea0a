//! Round trips on open connections, and new connections with one round trip each.

use std::io;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::super::door::Door;
use super::super::failure::{During, Result};
use super::super::stats::Latency;
use super::{open, round_trip};

/// What one worker measured.
struct Worked {
    nanos: Vec<u64>,
    errors: u64,
    error: Option<io::Error>,
}

/// Asks on `connections` open connections after a silence, at least once; what happens during
/// `warmup` does not count.
pub async fn ask(
    door: &Door,
    connections: usize,
    [silence, warmup, time]: [Duration; 3],
) -> Result<Latency> {
    let mut pipes = Vec::with_capacity(connections);
    for _ in 0..connections {
        pipes.push(open(door).await.during("load: dial")?);
    }
    tokio::time::sleep(silence).await;
    let started = Instant::now();
    let mut workers = JoinSet::new();
    for mut pipe in pipes {
        workers.spawn(async move {
            let mut worked = Worked {
                nanos: Vec::new(),
                errors: 0,
                error: None,
            };
            loop {
                let sent = Instant::now();
                if let Err(error) = round_trip(&mut pipe).await {
                    worked.errors += 1;
                    worked.error = Some(error);
                    break;
                }
                if started.elapsed() >= warmup {
                    worked.nanos.push(nanos(sent));
                }
                if started.elapsed() >= warmup + time {
                    break;
                }
            }
            worked
        });
    }
    Ok(gather(workers, started + warmup).await)
}

/// Dials, asks once and closes, over and over, `workers` at once.
pub async fn dial(door: &Door, workers: usize, time: Duration) -> Result<Latency> {
    let started = Instant::now();
    let mut set = JoinSet::new();
    for _ in 0..workers {
        let door = door.clone();
        set.spawn(async move {
            let mut worked = Worked {
                nanos: Vec::new(),
                errors: 0,
                error: None,
            };
            while started.elapsed() < time {
                let began = Instant::now();
                let done = async {
                    let mut pipe = open(&door).await?;
                    round_trip(&mut pipe).await
                };
                match done.await {
                    Ok(()) => worked.nanos.push(nanos(began)),
                    Err(error) => {
                        worked.errors += 1;
                        worked.error = Some(error);
                        // A refusing peer must not turn the generator into a spinning one.
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
            }
            worked
        });
    }
    Ok(gather(set, started).await)
}

fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

async fn gather(mut workers: JoinSet<Worked>, started: Instant) -> Latency {
    let (mut nanos, mut errors, mut error) = (Vec::new(), 0, None);
    while let Some(worked) = workers.join_next().await {
        match worked {
            Ok(worked) => {
                nanos.extend(worked.nanos);
                errors += worked.errors;
                error = worked.error.map(|error| error.to_string()).or(error);
            }
            Err(failed) => {
                errors += 1;
                error = Some(failed.to_string());
            }
        }
    }
    Latency {
        errors,
        error,
        ..Latency::of(nanos, started.elapsed().as_secs_f64())
    }
}
