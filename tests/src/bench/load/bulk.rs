//! Bytes, up or down, over one or many connections.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::ready;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::task::JoinSet;

use super::super::door::{Door, Pipe};
use super::super::failure::{During, Failure, Result};
use super::super::procfs;
use super::super::wire::{self, CHUNK_BYTES, MESSAGE_BYTES, Request};
use super::open;

static CHUNK: [u8; CHUNK_BYTES] = [0x5a; CHUNK_BYTES];

thread_local! {
    /// All connections read into the same buffer: what was read is only counted, and 64 buffers would
    /// measure the processor's cache.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK_BYTES]);
}

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Direction {
    /// From the target.
    Down,
    /// To the target.
    Up,
}

/// A bulk transfer.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Bulk {
    pub direction: Direction,
    pub streams: usize,
    /// Download only: bytes before this many seconds do not count, and the transfer is cut at the end
    /// instead of being read to its end. Zero: every byte counts, to the end of every stream.
    pub warmup: f64,
    pub seconds: f64,
}

/// What was moved.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Moved {
    pub bytes: u64,
    pub seconds: f64,
    /// Processor time of the load generator, in seconds.
    pub cpu: f64,
}

impl Moved {
    /// Megabytes (10^6) a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.seconds
    }

    /// Bytes in GiB.
    #[must_use]
    pub fn gib(&self) -> f64 {
        self.bytes as f64 / f64::from(1 << 30)
    }
}

impl Bulk {
    /// A transfer in which every byte counts.
    #[must_use]
    pub fn whole(direction: Direction, streams: usize, seconds: f64) -> Self {
        Self {
            direction,
            streams,
            warmup: 0.0,
            seconds,
        }
    }

    /// Moves the bytes.
    pub async fn run(self, door: &Door) -> Result<Moved> {
        let mut pipes = Vec::with_capacity(self.streams);
        for _ in 0..self.streams {
            pipes.push(open(door).await.during("load: dial")?);
        }
        let window = Window {
            from: Duration::from_secs_f64(self.warmup),
            to: Duration::from_secs_f64(self.warmup + self.seconds),
            cut: self.warmup > 0.0,
            started: Instant::now(),
        };
        let mut streams = JoinSet::new();
        for pipe in pipes {
            match self.direction {
                Direction::Down => streams.spawn(window.receive(pipe)),
                Direction::Up => streams.spawn(window.send(pipe)),
            };
        }
        let mut bytes = 0;
        while let Some(moved) = streams.join_next().await {
            bytes += moved.during("load: stream")?.during("load: stream")?;
        }
        let seconds = window.started.elapsed().as_secs_f64();
        if bytes == 0 {
            return Err(Failure::new(format!(
                "load: no byte came within {seconds:.1} s"
            )));
        }
        let seconds = if window.cut { self.seconds } else { seconds };
        Ok(Moved {
            bytes,
            seconds,
            cpu: procfs::cpu_seconds(std::process::id())?,
        })
    }
}

#[derive(Clone, Copy)]
struct Window {
    from: Duration,
    to: Duration,
    cut: bool,
    started: Instant,
}

impl Window {
    async fn receive(self, mut pipe: Pipe) -> io::Result<u64> {
        let millis = if self.cut {
            u64::MAX
        } else {
            u64::try_from(self.to.as_millis()).unwrap_or(u64::MAX)
        };
        pipe.write_all(&Request::Down { millis }.encode()).await?;
        let mut bytes = 0;
        if !self.cut {
            loop {
                match read_some(&mut pipe).await? {
                    0 => return Ok(bytes),
                    n => bytes += n as u64,
                }
            }
        }
        let deadline = tokio::time::Instant::from_std(self.started + self.to);
        loop {
            match tokio::time::timeout_at(deadline, read_some(&mut pipe)).await {
                Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(Ok(n)) if self.started.elapsed() >= self.from => bytes += n as u64,
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(bytes),
            }
        }
    }

    async fn send(self, mut pipe: Pipe) -> io::Result<u64> {
        pipe.write_all(&Request::Up.encode()).await?;
        let mut bytes = 0;
        while self.started.elapsed() < self.to {
            pipe.write_all(&CHUNK).await?;
            bytes += CHUNK_BYTES as u64;
        }
        pipe.write_all(&[wire::LAST]).await?;
        pipe.write_all(&CHUNK[1..]).await?;
        bytes += CHUNK_BYTES as u64;
        pipe.flush().await?;
        let mut reply = [0; MESSAGE_BYTES];
        pipe.read_exact(&mut reply).await?;
        match wire::count(&reply) {
            Some(count) if count == bytes => Ok(bytes),
            count => Err(io::Error::other(format!(
                "sent {bytes} bytes, the target counted {count:?}"
            ))),
        }
    }
}

async fn read_some(pipe: &mut Pipe) -> io::Result<usize> {
    poll_fn(|cx| {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(&mut *pipe).poll_read(cx, &mut buffer))?;
            Ok(buffer.filled().len()).into()
        })
    })
    .await
}
