//! The target at the far end of every chain: answers, sends or swallows, as asked. Own process, one thread.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::failure::{During, Result};
use super::process;
use super::wire::{self, CHUNK_BYTES, LAST, MESSAGE_BYTES, Request};

static CHUNK: [u8; CHUNK_BYTES] = [0x5a; CHUNK_BYTES];

/// Listens and serves until the process ends; says its address on standard output.
pub async fn run(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen)
        .await
        .during(format_args!("target: bind {listen}"))?;
    process::say_ready(
        &listener
            .local_addr()
            .during("target: local address")?
            .to_string(),
    );
    let memory = Arc::new(Memory::default());
    loop {
        // A failed accept (a client that left at once) concerns that client only.
        if let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            let memory = Arc::clone(&memory);
            // An ended connection is the client's business: it counts what it missed.
            tokio::spawn(async move { drop(serve(stream, &memory).await) });
        }
    }
}

/// What outlives a connection.
struct Memory {
    /// Connections on which the target is to speak first.
    first: watch::Sender<u64>,
    /// Bytes that came after the last [`Request::Leave`], once its connection has ended.
    left: watch::Sender<Option<u64>>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            first: watch::Sender::new(0),
            left: watch::Sender::new(None),
        }
    }
}

async fn serve(mut stream: TcpStream, memory: &Memory) -> io::Result<()> {
    let mut message = [0; MESSAGE_BYTES];
    if memory.first.send_if_modified(|left| {
        let speaks = *left > 0;
        *left = left.saturating_sub(1);
        speaks
    }) {
        stream.write_all(&wire::reply(0)).await?;
    }
    loop {
        stream.read_exact(&mut message).await?;
        match Request::decode(&message) {
            Some(Request::Ask) => stream.write_all(&wire::reply(0)).await?,
            Some(Request::Down { millis }) => return send(stream, millis).await,
            Some(Request::Up) => return take_chunks(stream).await,
            Some(Request::Half) => return swallow(stream).await,
            Some(Request::Leave) => {
                memory.left.send_replace(None);
                let mut count = 0;
                let ended = count_all(&mut stream, &mut count).await;
                memory.left.send_replace(Some(count));
                return ended;
            }
            Some(Request::Left) => {
                let mut left = memory.left.subscribe();
                let count = left.wait_for(Option::is_some).await;
                let count = count.ok().and_then(|count| *count).unwrap_or(0);
                stream.write_all(&wire::reply(count)).await?;
            }
            Some(Request::SpeakFirst { count }) => {
                memory.first.send_replace(count);
                stream.write_all(&wire::reply(0)).await?;
            }
            None => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

async fn send(mut stream: TcpStream, millis: u64) -> io::Result<()> {
    let started = Instant::now();
    let time = Duration::from_millis(millis);
    while started.elapsed() < time {
        stream.write_all(&CHUNK).await?;
    }
    stream.shutdown().await
}

/// Reads chunks to the last one, then replies with the number of bytes.
async fn take_chunks(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let (mut count, mut last) = (0, false);
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // The buffer is no longer than a chunk, so at most one begins in it.
        let into = count % CHUNK_BYTES;
        let begins = (CHUNK_BYTES - into) % CHUNK_BYTES;
        if buffer[..n].get(begins) == Some(&LAST) {
            last = true;
        }
        count += n;
        if last && count.is_multiple_of(CHUNK_BYTES) {
            break;
        }
    }
    stream.write_all(&wire::reply(count as u64)).await?;
    stream.shutdown().await
}

async fn count_all(stream: &mut TcpStream, count: &mut u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            n => *count += n as u64,
        }
    }
}

async fn swallow(mut stream: TcpStream) -> io::Result<()> {
    let mut count = 0;
    count_all(&mut stream, &mut count).await?;
    stream.write_all(&wire::reply(count)).await?;
    stream.shutdown().await
}
