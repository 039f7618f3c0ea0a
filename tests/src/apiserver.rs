//! A fake kube-apiserver: asks the server's `connect` door for a target over its Unix socket or
//! over TCP with mutual TLS, and can say anything that a real one would never say.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::authority::Pair;

/// Longest answer head that is read, bytes.
const HEAD_BYTES: usize = 32 * 1024;

/// Anything that carries bytes both ways.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// The front end.
#[derive(Clone)]
pub struct FakeApiserver {
    door: Door,
}

#[derive(Clone)]
enum Door {
    Unix(PathBuf),
    Tcp(SocketAddr, TlsConnector),
}

/// A door's answer that was not 200.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Status code.
    pub status: u16,
    /// Reason phrase: the only text that kube-apiserver shows a user.
    pub phrase: String,
}

impl FakeApiserver {
    /// Uses the Unix door.
    pub fn unix(path: &Path) -> Self {
        Self {
            door: Door::Unix(path.to_owned()),
        }
    }

    /// Uses the TCP door as `own` (or with no certificate at all), trusting `root`.
    pub fn tcp(address: SocketAddr, own: Option<&Pair>, root: &CertificateDer<'static>) -> Self {
        let tls = client_config(own, root);
        Self {
            door: Door::Tcp(address, TlsConnector::from(Arc::new(tls))),
        }
    }

    /// The same over TCP, offering these protocols instead of HTTP/1.1.
    pub fn offering(mut self, alpn: &[&[u8]]) -> Self {
        if let Door::Tcp(_, tls) = &mut self.door {
            let mut config = (**tls.config()).clone();
            config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
            *tls = TlsConnector::from(Arc::new(config));
        }
        self
    }

    /// An open connection to the door on which nothing has been said.
    pub async fn connect(&self) -> io::Result<Box<dyn Io>> {
        match &self.door {
            Door::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Door::Tcp(address, tls) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                let name = ServerName::from(address.ip());
                Ok(Box::new(tls.connect(name, stream).await?))
            }
        }
    }

    /// Asks for `target` as kube-apiserver does.
    pub async fn dial(&self, target: &str) -> io::Result<Result<Pipe, Refused>> {
        self.ask(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").as_bytes())
            .await
    }

    /// Sends `request` as it stands and reads one answer head.
    pub async fn ask(&self, request: &[u8]) -> io::Result<Result<Pipe, Refused>> {
        let mut stream = self.connect().await?;
        stream.write_all(request).await?;
        stream.flush().await?;
        read_answer(stream).await
    }

    /// The pipe of a dial that must succeed.
    pub async fn pipe(&self, target: &str) -> Pipe {
        match crate::scenario::expect("the door's answer", self.dial(target)).await {
            Ok(Ok(pipe)) => pipe,
            Ok(Err(refused)) => panic!("{target}: {} {}", refused.status, refused.phrase),
            Err(error) => panic!("{target}: {error}"),
        }
    }

    /// The refusal of a dial that must fail.
    pub async fn refusal(&self, target: &str) -> Refused {
        match crate::scenario::expect("the door's answer", self.dial(target)).await {
            Ok(Ok(_)) => panic!("{target} was dialled"),
            Ok(Err(refused)) => refused,
            Err(error) => panic!("{target}: {error}"),
        }
    }
}

/// TLS as an ordinary client: the server must have the right name, the client shows what it has.
pub fn client_config(own: Option<&Pair>, root: &CertificateDer<'static>) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(root.clone())
        .expect("the kit's CA certificates are sound");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider speaks TLS 1.3")
        .with_root_certificates(roots);
    let mut tls = match own {
        Some(pair) => builder
            .with_client_auth_cert(pair.chain.clone(), pair.key())
            .expect("the kit's keys fit their certificates"),
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    tls
}

/// Reads a head up to its empty line and keeps what came after it.
pub async fn read_answer(mut stream: Box<dyn Io>) -> io::Result<Result<Pipe, Refused>> {
    let mut head = Vec::new();
    let end = loop {
        if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if head.len() > HEAD_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if stream.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let early = head.split_off(end);
    let (status, phrase) = status_line(&head).ok_or(io::ErrorKind::InvalidData)?;
    if status == 200 {
        Ok(Ok(Pipe {
            early,
            at: 0,
            stream,
        }))
    } else {
        Ok(Err(Refused { status, phrase }))
    }
}

fn status_line(head: &[u8]) -> Option<(u16, String)> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let text = std::str::from_utf8(line).ok()?.strip_prefix("HTTP/1.1 ")?;
    let (status, phrase) = text.split_once(' ')?;
    Some((status.parse().ok()?, phrase.to_owned()))
}

/// An open dial, as kube-apiserver holds it.
pub struct Pipe {
    early: Vec<u8>,
    at: usize,
    stream: Box<dyn Io>,
}

impl Pipe {
    /// Bytes that came together with the answer's head.
    pub fn early(&self) -> &[u8] {
        &self.early[self.at..]
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.at < self.early.len() {
            let n = buf.remaining().min(self.early.len() - self.at);
            buf.put_slice(&self.early[self.at..self.at + n]);
            self.at += n;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
