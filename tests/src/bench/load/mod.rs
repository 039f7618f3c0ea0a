//! The load generator: one job, one process, one thread, one line of JSON.
//!
//! [`ask`] measures round trips and dials, [`bulk`] moves bytes, [`hold`] keeps dials open and does
//! nothing, [`intact`] looks at what arrives. A job is given as JSON on the command line.

pub mod ask;
pub mod bulk;
pub mod hold;
pub mod intact;

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::door::{Door, Pipe};
use super::failure::{During, Result};
use super::process;
use super::wire::{MESSAGE_BYTES, Request};

/// One dial or one round trip that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(15);

/// What to do.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub enum Job {
    /// Round trips on open connections, each connection one after another.
    Ask {
        connections: usize,
        /// Nothing is asked for so long after the connections are open.
        silence: f64,
        warmup: f64,
        seconds: f64,
    },
    /// Bytes.
    Bulk(bulk::Bulk),
    /// New connections with one round trip each.
    Dial { workers: usize, seconds: f64 },
    /// Connections that stay open until standard input ends.
    Hold { count: usize, stalled: bool },
    /// Connections that are looked at one by one.
    Intact { what: intact::What, count: usize },
}

impl Job {
    /// How long it takes if nothing goes wrong; holding lasts until it is told to end.
    #[must_use]
    pub fn length(&self) -> Duration {
        Duration::from_secs_f64(match self {
            Self::Ask {
                silence,
                warmup,
                seconds,
                ..
            } => silence + warmup + seconds,
            Self::Bulk(bulk) => bulk.warmup + bulk.seconds,
            Self::Dial { seconds, .. } => *seconds,
            Self::Hold { .. } => 0.0,
            // The faulty ones take their patience.
            Self::Intact { count, .. } => *count as f64 / 5.0,
        })
    }
}

/// Does the job that this JSON describes and says the result.
pub async fn run(door: &str, job: &str) -> Result<()> {
    let door: Door = serde_json::from_str(door).during("load: door")?;
    let job: Job = serde_json::from_str(job).during("load: job")?;
    let result = match job {
        Job::Ask {
            connections,
            silence,
            warmup,
            seconds,
        } => {
            let times = [silence, warmup, seconds].map(Duration::from_secs_f64);
            serde_json::to_string(&ask::ask(&door, connections, times).await?)
        }
        Job::Bulk(bulk) => serde_json::to_string(&bulk.run(&door).await?),
        Job::Dial { workers, seconds } => {
            let latency = ask::dial(&door, workers, Duration::from_secs_f64(seconds)).await;
            serde_json::to_string(&latency?)
        }
        Job::Intact { what, count } => {
            serde_json::to_string(&intact::run(&door, what, count).await?)
        }
        Job::Hold { count, stalled } => {
            serde_json::to_string(&hold::hold(&door, count, stalled).await?)
        }
    };
    process::say(&result.during("load: result")?);
    Ok(())
}

/// A pipe, or an error after [`PATIENCE`].
async fn open(door: &Door) -> io::Result<Pipe> {
    timeout(PATIENCE, door.open())
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// One round trip of 200 bytes each way.
async fn round_trip(pipe: &mut Pipe) -> io::Result<()> {
    let mut reply = [0; MESSAGE_BYTES];
    let trip = async {
        pipe.write_all(&Request::Ask.encode()).await?;
        pipe.read_exact(&mut reply).await
    };
    timeout(PATIENCE, trip)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok(())
}
