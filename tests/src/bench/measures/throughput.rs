//! Bulk bytes through a chain, and the processor time that each process spent on them.

use super::super::failure::Result;
use super::super::load::Job;
use super::super::load::bulk::{Bulk, Direction, Moved};
use super::super::peers::Chain;
use super::super::process::Process;
use super::{Turn, Value};

pub async fn run(
    turn: &mut Turn<'_>,
    chain: &mut Chain,
    direction: Direction,
    streams: usize,
) -> Result<Vec<Value>> {
    let before = times(chain)?;
    let job = Job::Bulk(Bulk::whole(direction, streams, turn.times.bulk));
    let moved: Moved = turn.load(&chain.door, &job).await?;
    let after = times(chain)?;

    let mut values = vec![turn.value("", "MB/s", moved.rate())];
    let mut relays = 0.0;
    for (name, (before, after)) in ["front", "back", "target"]
        .into_iter()
        .zip(before.into_iter().zip(after))
    {
        let (Some(before), Some(after)) = (before, after) else {
            continue;
        };
        let spent = (after - before) / moved.gib();
        if name != "target" {
            relays += spent;
        }
        values.push(turn.value(&format!("cpu.{name}"), "s/GiB", spent));
    }
    if chain.front.is_some() {
        values.push(turn.value("cpu.relays", "s/GiB", relays));
    }
    values.push(turn.value("cpu.load", "s/GiB", moved.cpu / moved.gib()));
    Ok(values)
}

/// Processor time of front, back and target so far.
fn times(chain: &Chain) -> Result<[Option<f64>; 3]> {
    let time = |process: &Option<Process>| process.as_ref().map(Process::cpu_seconds).transpose();
    Ok([
        time(&chain.front)?,
        time(&chain.back)?,
        Some(chain.target.cpu_seconds()?),
    ])
}
