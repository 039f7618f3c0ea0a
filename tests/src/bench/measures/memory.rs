//! Resident memory: at rest, with idle dials, and (server) with idle agents.

use std::time::{Duration, Instant};

use super::super::failure::{Failure, Result};
use super::super::load::Job;
use super::super::load::hold::Held;
use super::super::peers::{Chain, towline};
use super::super::process::Process;
use super::super::procfs::Memory;
use super::{SLACK, Turn, Value, result};

/// Memory is read when nothing has happened for this long.
const SETTLE: Duration = Duration::from_millis(1000);

/// Two heartbeats of every link: what so many idle agents cost in processor time.
const BEATS: Duration = Duration::from_secs(6);

pub async fn dials(turn: &mut Turn<'_>) -> Result<Vec<Value>> {
    let chain = turn.chain().await?;
    let idle = idle(turn, &chain).await?;
    let mut values = Vec::new();
    for Daemon { name, before, each } in &idle.daemons {
        let anonymous = before.anonymous / 1024.0;
        values.push(turn.value(&format!("idle.{name}"), "MiB", before.rss / 1024.0));
        values.push(turn.value(&format!("idle-anonymous.{name}"), "MiB", anonymous));
        values.push(turn.value(&format!("each.{name}"), "KiB", *each));
    }
    let both = idle.daemons.iter().map(|daemon| daemon.each).sum();
    values.push(turn.value("each.relays", "KiB", both));
    values.push(turn.value("reset", "", idle.lost as f64));
    Ok(values)
}

/// What idle dials cost a chain.
pub(super) struct Idle {
    pub(super) daemons: Vec<Daemon>,
    /// Dials that did not live to the end.
    pub(super) lost: usize,
}

pub(super) struct Daemon {
    pub(super) name: &'static str,
    /// Before the first dial.
    pub(super) before: Memory,
    /// KiB for each dial.
    pub(super) each: f64,
}

/// Holds idle dials, each after one request.
pub(super) async fn idle(turn: &Turn<'_>, chain: &Chain) -> Result<Idle> {
    let parts: Vec<(&'static str, &Process)> = [("front", &chain.front), ("back", &chain.back)]
        .into_iter()
        .filter_map(|(name, process)| Some((name, process.as_ref()?)))
        .collect();
    tokio::time::sleep(SETTLE).await;
    let before = memories(&parts)?;

    let count = turn.times.idle_dials;
    let hold = Job::Hold {
        count,
        stalled: false,
    };
    let mut holder = turn.generator(&chain.door, &hold)?;
    holder.ready(SLACK).await?;
    tokio::time::sleep(SETTLE).await;
    let after = memories(&parts)?;
    holder.hang_up();
    let held: Held = result(&mut holder, hold.length()).await?;

    let grown = parts.iter().zip(before.into_iter().zip(after));
    let daemons = grown.map(|((name, _), (before, after))| Daemon {
        name,
        each: (after.rss - before.rss) / count as f64,
        before,
    });
    Ok(Idle {
        daemons: daemons.collect(),
        lost: held.lost,
    })
}

pub async fn links(turn: &mut Turn<'_>) -> Result<Vec<Value>> {
    let chain = turn.chain().await?;
    let (Some(server), Some(address), Some(carrier)) =
        (&chain.front, chain.link, turn.peer.carrier())
    else {
        return Err(Failure::new("no server"));
    };
    tokio::time::sleep(SETTLE).await;
    let before = server.memory()?;
    let count = turn.times.idle_links;
    let began = Instant::now();
    let mut agents =
        towline::idle_agents(turn.stage, turn.directory, carrier, address, count, None)?;
    agents.ready(SLACK + SLACK).await?;
    let linked = began.elapsed().as_secs_f64();
    tokio::time::sleep(SETTLE).await;
    let after = server.memory()?;
    let busy = server.cpu_seconds()?;
    tokio::time::sleep(BEATS).await;
    let busy = server.cpu_seconds()? - busy;
    Ok(vec![
        turn.value("each.front", "KiB", (after.rss - before.rss) / count as f64),
        turn.value("all-linked", "s", linked),
        turn.value("cpu.front", "%", 100.0 * busy / BEATS.as_secs_f64()),
    ])
}

fn memories(parts: &[(&str, &Process)]) -> Result<Vec<Memory>> {
    parts.iter().map(|(_, process)| process.memory()).collect()
}
