//! Whether connections arrive as they were: a target that speaks first, an answer after a half-close, the
//! last bytes before a close.

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::super::door::{Door, Pipe};
use super::super::failure::{During, Failure, Result};
use super::super::wire::{self, CHUNK_BYTES, MESSAGE_BYTES, Request};
use super::open;

/// One connection that takes longer is broken.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes sent before the client ends its direction.
const HALF_BYTES: usize = 64 * 1024;
/// Bytes sent before a close: more than any buffer on the way holds.
const LEFT_BYTES: usize = 8 * 1024 * 1024;

static CHUNK: [u8; CHUNK_BYTES] = [0x5a; CHUNK_BYTES];

/// What is looked at.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum What {
    /// The target sends 200 bytes before it has heard anything.
    SpeaksFirst,
    /// The client ends its direction; the target answers after that.
    HalfClose,
    /// The client writes and closes.
    BytesBeforeClose,
}

/// How many connections were intact.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Intact {
    pub count: usize,
    pub good: usize,
    /// One of the faults, for people.
    pub fault: Option<String>,
}

/// Makes `count` connections, one after another.
pub async fn run(door: &Door, what: What, count: usize) -> Result<Intact> {
    let mut intact = Intact {
        count,
        ..Intact::default()
    };
    if what == What::SpeaksFirst {
        speak_first(door, count as u64).await?;
    }
    for number in 0..count {
        let once = async {
            match what {
                What::SpeaksFirst => hear(door).await,
                What::HalfClose => half(door).await,
                What::BytesBeforeClose => leave(door, LEFT_BYTES + number).await,
            }
        };
        match timeout(PATIENCE, once).await {
            Ok(Ok(())) => intact.good += 1,
            Ok(Err(error)) => intact.fault = Some(error.to_string()),
            Err(_) => intact.fault = Some("nothing came".to_owned()),
        }
    }
    Ok(intact)
}

/// Tells the target that it speaks first on the next so many connections.
pub async fn speak_first(door: &Door, count: u64) -> Result<()> {
    let told = async {
        let mut pipe = open(door).await?;
        ask(&mut pipe, Request::SpeakFirst { count }).await
    };
    match timeout(PATIENCE, told).await {
        Ok(told) => told.map(drop).during("load: the target's instructions"),
        Err(_) => Err(Failure::new("load: the target takes no instructions")),
    }
}

async fn ask(pipe: &mut Pipe, request: Request) -> io::Result<Option<u64>> {
    pipe.write_all(&request.encode()).await?;
    reply(pipe).await
}

async fn reply(pipe: &mut Pipe) -> io::Result<Option<u64>> {
    let mut reply = [0; MESSAGE_BYTES];
    pipe.read_exact(&mut reply).await?;
    Ok(wire::count(&reply))
}

async fn hear(door: &Door) -> io::Result<()> {
    let mut pipe = door.open().await?;
    same(reply(&mut pipe).await?, 0)
}

async fn half(door: &Door) -> io::Result<()> {
    let mut pipe = door.open().await?;
    pipe.write_all(&Request::Half.encode()).await?;
    pipe.write_all(&CHUNK[..HALF_BYTES]).await?;
    pipe.shutdown().await?;
    same(reply(&mut pipe).await?, HALF_BYTES)
}

async fn leave(door: &Door, bytes: usize) -> io::Result<()> {
    let mut pipe = door.open().await?;
    pipe.write_all(&Request::Leave.encode()).await?;
    let mut left = bytes;
    while left > 0 {
        let now = left.min(CHUNK.len());
        pipe.write_all(&CHUNK[..now]).await?;
        left -= now;
    }
    pipe.flush().await?;
    pipe.leave().await?;
    let mut pipe = door.open().await?;
    same(ask(&mut pipe, Request::Left).await?, bytes)
}

fn same(count: Option<u64>, wanted: usize) -> io::Result<()> {
    match count {
        Some(count) if count == wanted as u64 => Ok(()),
        other => Err(io::Error::other(format!(
            "{wanted} bytes were sent, the target says {other:?}"
        ))),
    }
}
