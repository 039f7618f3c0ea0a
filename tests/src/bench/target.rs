//! The target at the far end of every chain: answers, sends or swallows, as asked. Own process, one thread.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::failure::{During, Result};
use super::process;
use super::wire::{self, CHUNK_BYTES, LAST, MESSAGE_BYTES, Request};

static CHUNK: [u8; CHUNK_BYTES] = [0x5a; CHUNK_BYTES];

/// Listens and serves until the process ends; says its address on standard output.
/// With a certificate it is a kubelet: TLS, and an upgrade before everything else; who does not
/// begin with TLS is served plainly.
pub async fn run(listen: SocketAddr, pair: Option<(PathBuf, PathBuf)>) -> Result<()> {
    let tls = match &pair {
        Some((cert, key)) => Some(acceptor(cert, key).during("target: certificate")?),
        None => None,
    };
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
            let tls = tls.clone();
            tokio::spawn(async move {
                drop(match tls {
                    Some(tls) => upgraded(tls, stream, &memory).await,
                    None => serve(stream, &memory).await,
                });
            });
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

/// TLS of a kubelet with this certificate.
pub fn acceptor(cert: &Path, key: &Path) -> io::Result<TlsAcceptor> {
    let chain = towline_pki::store::read_certificates(cert).map_err(io::Error::other)?;
    let key = towline_pki::store::read_private_key(key).map_err(io::Error::other)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(io::Error::other)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The first byte of a TLS connection.
const HANDSHAKE: u8 = 0x16;

async fn upgraded(tls: TlsAcceptor, stream: TcpStream, memory: &Memory) -> io::Result<()> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 || first != [HANDSHAKE] {
        return serve(stream, memory).await;
    }
    let mut stream = tls.accept(stream).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let answer =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n";
    stream.write_all(answer.as_bytes()).await?;
    stream.flush().await?;
    serve(stream, memory).await
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    memory: &Memory,
) -> io::Result<()> {
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
            Some(Request::Ask) => {
                stream.write_all(&wire::reply(0)).await?;
                stream.flush().await?;
            }
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

async fn send<S: AsyncWrite + Unpin>(mut stream: S, millis: u64) -> io::Result<()> {
    let started = Instant::now();
    let time = Duration::from_millis(millis);
    while started.elapsed() < time {
        stream.write_all(&CHUNK).await?;
    }
    stream.shutdown().await
}

/// Reads chunks to the last one, then replies with the number of bytes.
async fn take_chunks<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> io::Result<()> {
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

async fn count_all<S: AsyncRead + Unpin>(stream: &mut S, count: &mut u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            n => *count += n as u64,
        }
    }
}

async fn swallow<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> io::Result<()> {
    let mut count = 0;
    count_all(&mut stream, &mut count).await?;
    stream.write_all(&wire::reply(count)).await?;
    stream.shutdown().await
}
