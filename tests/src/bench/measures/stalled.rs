//! Readers that stall for ever, on other dials of the same link: they may stop nobody but themselves.

use super::super::failure::Result;
use super::super::load::Job;
use super::super::load::hold::Held;
use super::super::peers::Chain;
use super::super::stats::Latency;
use super::{SLACK, Turn, Value, latency, result};

/// What came back beside the stalled readers; a generator that could not even dial has got nothing.
async fn beside(turn: &mut Turn<'_>, chain: &Chain, job: &Job) -> Latency {
    match turn.load(&chain.door, job).await {
        Ok(latency) => latency,
        Err(failure) => Latency {
            errors: 1,
            error: Some(failure.to_string()),
            ..Latency::default()
        },
    }
}

pub async fn run(turn: &mut Turn<'_>, readers: usize) -> Result<Vec<Value>> {
    let chain = turn.chain().await?;
    let ask = Job::Ask {
        connections: 1,
        silence: 0.0,
        warmup: 0.1,
        seconds: turn.times.stalled,
    };
    let dial = Job::Dial {
        workers: 1,
        seconds: turn.times.stalled,
    };

    let idle_ask: Latency = turn.load(&chain.door, &ask).await?;
    let idle_dial: Latency = turn.load(&chain.door, &dial).await?;

    let hold = Job::Hold {
        count: readers,
        stalled: true,
    };
    let mut holder = turn.generator(&chain.door, &hold)?;
    holder.ready(SLACK).await?;
    let beside_ask = beside(turn, &chain, &ask).await;
    let beside_dial = beside(turn, &chain, &dial).await;
    holder.hang_up();
    let held: Held = result(&mut holder, hold.length()).await?;

    let (asked, dialled) = (beside_ask.count, beside_dial.count);
    let part = |beside: u64, idle: u64| 100.0 * beside as f64 / idle.max(1) as f64;
    let mut values = vec![
        turn.value("ask.returned", "% of idle", part(asked, idle_ask.count)),
        turn.value("dial.returned", "% of idle", part(dialled, idle_dial.count)),
    ];
    if asked == 0 || dialled == 0 {
        // That is the finding, not a failure of the bench.
        latency::note_errors(turn, &beside_ask);
        latency::note_errors(turn, &beside_dial);
        return Ok(values);
    }
    values.extend(latency::percentiles(turn, &beside_ask, "ask.")?);
    values.extend(latency::percentiles(turn, &beside_dial, "dial.")?);
    values.push(turn.value("ask.idle-p99", "us", idle_ask.p99));
    values.push(turn.value("dial.idle-p99", "us", idle_dial.p99));
    values.push(turn.value("ask.p99-ratio", "x", beside_ask.p99 / idle_ask.p99));
    values.push(turn.value("dial.p99-ratio", "x", beside_dial.p99 / idle_dial.p99));
    values.push(turn.value(
        "errors",
        "",
        (beside_ask.errors + beside_dial.errors) as f64,
    ));
    values.push(turn.value("reset", "", held.lost as f64));
    Ok(values)
}
