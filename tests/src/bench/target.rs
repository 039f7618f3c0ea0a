//! The target at the far end of every chain: answers, sends or swallows, as asked. Own process, one thread.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::failure::{During, Result};
use super::process;
use super::wire::{self, CHUNK_BYTES, MESSAGE_BYTES, Request};

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
    loop {
        // A failed accept (a client that left at once) concerns that client only.
        if let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            // An ended connection is the client's business: it counts what it missed.
            tokio::spawn(async move { drop(serve(stream).await) });
        }
    }
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    let mut message = [0; MESSAGE_BYTES];
    loop {
        stream.read_exact(&mut message).await?;
        match Request::decode(&message) {
            Some(Request::Ask) => stream.write_all(&wire::reply(0)).await?,
            Some(Request::Down { millis }) => return send(stream, millis).await,
            Some(Request::Up) => return swallow(stream).await,
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

async fn swallow(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut count = 0;
    loop {
        match stream.read(&mut buffer).await? {
            0 => break,
            n => count += n as u64,
        }
    }
    stream.write_all(&wire::reply(count)).await?;
    stream.shutdown().await
}
