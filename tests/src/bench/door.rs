//! How the load generator gets a byte pipe to the target through one peer.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// Longest answer to CONNECT that is read.
const ANSWER_BYTES: usize = 1024;

/// The front end of a peer.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub enum Door {
    /// HTTP CONNECT to `target` over a Unix socket.
    Connect { path: PathBuf, target: String },
    /// The target itself.
    Tcp(SocketAddr),
    /// A Unix socket that is already the pipe.
    Unix(PathBuf),
}

impl Door {
    /// A pipe to the target.
    pub async fn open(&self) -> io::Result<Pipe> {
        match self {
            Self::Connect { path, target } => {
                connect(UnixStream::connect(path).await?, target).await
            }
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(Pipe::Tcp(stream))
            }
            Self::Unix(path) => Ok(Pipe::Unix(UnixStream::connect(path).await?)),
        }
    }

    /// Whether the front end's socket takes connections, without a dial.
    pub async fn listens(&self) -> bool {
        match self {
            Self::Connect { path, .. } | Self::Unix(path) => {
                UnixStream::connect(path).await.is_ok()
            }
            Self::Tcp(address) => TcpStream::connect(address).await.is_ok(),
        }
    }
}

async fn connect(mut stream: UnixStream, target: &str) -> io::Result<Pipe> {
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = [0; ANSWER_BYTES];
    let mut filled = 0;
    // The target of the bench never speaks first, so what comes is the head and nothing else. A
    // refusal has a body and ends the connection.
    while !answer[..filled].ends_with(b"\r\n\r\n") {
        let n = match answer.get_mut(filled..) {
            Some(rest) if !rest.is_empty() => stream.read(rest).await?,
            _ => 0,
        };
        if n == 0 {
            break;
        }
        filled += n;
    }
    let answer = &answer[..filled];
    if answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(b"\r\n\r\n") {
        return Ok(Pipe::Unix(stream));
    }
    let line = answer.split(|byte| *byte == b'\r').next();
    let line = String::from_utf8_lossy(line.unwrap_or_default());
    Err(io::Error::other(format!("the door answers {line:?}")))
}

/// A byte pipe to the target.
#[derive(Debug)]
pub enum Pipe {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Pipe {
    /// Whether the other end has gone, without reading what waits in the socket.
    pub async fn is_lost(&self) -> bool {
        let interest = tokio::io::Interest::WRITABLE | tokio::io::Interest::ERROR;
        let ready = async {
            match self {
                Self::Tcp(stream) => stream.ready(interest).await,
                Self::Unix(stream) => stream.ready(interest).await,
            }
        };
        match tokio::time::timeout(std::time::Duration::from_millis(100), ready).await {
            Ok(Ok(ready)) => ready.is_write_closed() || ready.is_error(),
            Ok(Err(_)) => true,
            Err(_) => false,
        }
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
