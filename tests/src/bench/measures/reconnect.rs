//! A server that is ended and started again: how long after its socket is back a dial works.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::super::failure::{Failure, Result};
use super::super::process::START;
use super::{Turn, Value};

/// A server without dials that does not end by then is stuck.
const END: Duration = Duration::from_secs(10);

/// How the server ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    Kill,
    Term,
}

pub async fn run(turn: &mut Turn<'_>, end: End) -> Result<Vec<Value>> {
    let mut chain = turn.chain().await?;
    let Some(mut server) = chain.front.take() else {
        return Err(Failure::new("no server"));
    };
    let asked = Instant::now();
    server.signal(match end {
        End::Kill => Signal::KILL,
        End::Term => Signal::TERM,
    })?;
    server.wait(END).await?;
    let ended = asked.elapsed();
    tokio::time::sleep(Duration::from_secs_f64(turn.times.away)).await;

    chain.front = Some(server.launch().start()?);
    let started = Instant::now();
    while !chain.door.listens().await {
        if started.elapsed() > START {
            return Err(server.failure("the door is not back"));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let back = started.elapsed();
    let works = chain.wait_until_it_works(START).await?;
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    Ok(vec![
        turn.value("", "ms", millis(works)),
        turn.value("end", "ms", millis(ended)),
        turn.value("start", "ms", millis(back)),
    ])
}
