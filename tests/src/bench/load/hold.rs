//! Connections that stay open: idle ones, or readers that ask for bytes and never read them.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::door::Door;
use super::super::failure::{During, Result};
use super::super::process;
use super::super::wire::Request;
use super::{open, round_trip};

/// Time for the windows along the way to fill after the last stalled reader stopped reading.
const FILL: Duration = Duration::from_millis(1500);

/// How the held connections ended.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Held {
    pub count: usize,
    /// Connections that the peer had closed or reset by the end.
    pub lost: usize,
}

/// Opens them, says `ready`, and keeps them until standard input ends.
pub async fn hold(door: &Door, count: usize, stalled: bool) -> Result<Held> {
    let mut pipes = Vec::with_capacity(count);
    for number in 0..count {
        let mut pipe = open(door)
            .await
            .during(format_args!("load: dial {number} of {count}"))?;
        if stalled {
            let forever = Request::Down { millis: u64::MAX }.encode();
            pipe.write_all(&forever)
                .await
                .during("load: stalled reader")?;
            // The first byte proves that the bytes flow.
            pipe.read_u8().await.during("load: stalled reader")?;
        } else {
            round_trip(&mut pipe).await.during("load: round trip")?;
        }
        pipes.push(pipe);
    }
    if stalled {
        tokio::time::sleep(FILL).await;
    }
    process::say_ready(&count.to_string());
    tokio::task::spawn_blocking(process::wait_for_the_end)
        .await
        .during("load: standard input")??;
    let mut lost = 0;
    for pipe in &pipes {
        lost += usize::from(pipe.is_lost().await);
    }
    Ok(Held { count, lost })
}
