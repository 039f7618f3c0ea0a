//! How the load generator gets a byte pipe to the target through one peer.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::failure::{During, Failure, Result};
use super::grpc::Tunnel;

/// Longest answer to CONNECT that is read.
const ANSWER_BYTES: usize = 1024;

/// The front end of a peer.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub enum Door {
    /// HTTP CONNECT to `target` over a Unix socket.
    Connect { path: PathBuf, target: String },
    /// The same over TCP with mutual TLS.
    ConnectTls {
        address: SocketAddr,
        target: String,
        files: TlsFiles,
    },
    /// gRPC over a Unix socket: a connection for each dial, as kube-apiserver does.
    Grpc { path: PathBuf, target: String },
    /// The same, then TLS with what answers there and an upgrade, as kube-apiserver does for
    /// `kubectl port-forward`.
    Kubelet {
        path: PathBuf,
        target: String,
        files: KubeletFiles,
    },
    /// The target itself.
    Tcp(SocketAddr),
    /// A Unix socket that is already the pipe.
    Unix(PathBuf),
}

/// What a front end over TCP shows and trusts.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
}

/// What a front end shows kubelets, and whom it believes.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct KubeletFiles {
    /// The host that is dialled.
    pub host: String,
    /// Certificate and key.
    pub cert: PathBuf,
    pub key: PathBuf,
    /// The one authority.
    pub root: PathBuf,
}

impl Door {
    /// A pipe to the target.
    pub async fn open(&self) -> io::Result<Pipe> {
        match self {
            Self::Connect { path, target } => {
                let stream = connect(UnixStream::connect(path).await?, target).await?;
                Ok(Pipe::Unix(stream))
            }
            Self::ConnectTls {
                address,
                target,
                files,
            } => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                let name = address.ip().into();
                let stream = files.connector()?.connect(name, stream).await?;
                Ok(Pipe::Tls(Box::new(connect(stream, target).await?)))
            }
            Self::Grpc { path, target } => {
                Ok(Pipe::Grpc(Box::new(Tunnel::open(path, target).await?)))
            }
            Self::Kubelet {
                path,
                target,
                files,
            } => {
                let pipe = connect(UnixStream::connect(path).await?, target).await?;
                upgrade(pipe, files).await
            }
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(Pipe::Tcp(stream))
            }
            Self::Unix(path) => Ok(Pipe::Unix(UnixStream::connect(path).await?)),
        }
    }

    /// The port of the target.
    pub fn port(&self) -> Result<u16> {
        let text = match self {
            Self::Connect { target, .. }
            | Self::ConnectTls { target, .. }
            | Self::Grpc { target, .. }
            | Self::Kubelet { target, .. } => target.rsplit(':').next().unwrap_or_default(),
            Self::Tcp(address) => return Ok(address.port()),
            Self::Unix(_) => return Err(Failure::new("a socket has no port")),
        };
        text.parse().during("door: port")
    }

    /// Whether the front end's socket takes connections, without a dial.
    pub async fn listens(&self) -> bool {
        match self {
            Self::Connect { path, .. }
            | Self::Grpc { path, .. }
            | Self::Kubelet { path, .. }
            | Self::Unix(path) => UnixStream::connect(path).await.is_ok(),
            Self::Tcp(address) | Self::ConnectTls { address, .. } => {
                TcpStream::connect(address).await.is_ok()
            }
        }
    }
}

impl TlsFiles {
    /// A connector; made once, because reading files is not what is measured.
    fn connector(&self) -> io::Result<TlsConnector> {
        static MADE: std::sync::OnceLock<TlsConnector> = std::sync::OnceLock::new();
        if let Some(made) = MADE.get() {
            return Ok(made.clone());
        }
        let certs = CertificateDer::pem_file_iter(&self.cert)
            .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
            .map_err(io::Error::other)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(io::Error::other)?;
        let mut roots = rustls::RootCertStore::empty();
        for root in CertificateDer::pem_file_iter(&self.ca).map_err(io::Error::other)? {
            let root = root.map_err(io::Error::other)?;
            roots.add(root).map_err(io::Error::other)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_client_auth_cert(certs, key)
            .map_err(io::Error::other)?;
        Ok(MADE.get_or_init(|| Arc::new(config).into()).clone())
    }
}

/// TLS as kube-apiserver does it, read from files once for each chain.
fn config(files: &KubeletFiles) -> io::Result<Arc<rustls::ClientConfig>> {
    static READ: Mutex<BTreeMap<PathBuf, Arc<rustls::ClientConfig>>> = Mutex::new(BTreeMap::new());
    let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(config) = read.get(&files.root) {
        return Ok(Arc::clone(config));
    }
    let chain = towline_pki::store::read_certificates(&files.cert).map_err(io::Error::other)?;
    let key = towline_pki::store::read_private_key(&files.key).map_err(io::Error::other)?;
    let mut roots = rustls::RootCertStore::empty();
    for root in towline_pki::store::read_certificates(&files.root).map_err(io::Error::other)? {
        roots.add(root).map_err(io::Error::other)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(io::Error::other)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Every new connection costs what it costs kube-apiserver with a new kubelet.
    config.resumption = rustls::client::Resumption::disabled();
    let config = Arc::new(config);
    read.insert(files.root.clone(), Arc::clone(&config));
    Ok(config)
}

async fn upgrade(stream: UnixStream, files: &KubeletFiles) -> io::Result<Pipe> {
    let name = ServerName::try_from(files.host.clone()).map_err(io::Error::other)?;
    let connector = TlsConnector::from(config(files)?);
    let mut stream = connector.connect(name, stream).await?;
    let request = "POST /portForward/default/web HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut answer).await? == 0 || answer.len() > ANSWER_BYTES {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    if answer.starts_with(b"HTTP/1.1 101 ") {
        return Ok(Pipe::Kubelet(Box::new(stream)));
    }
    let text = String::from_utf8_lossy(&answer).into_owned();
    Err(io::Error::other(format!("the kubelet answers {text:?}")))
}

async fn connect<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, target: &str) -> io::Result<S> {
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
        return Ok(stream);
    }
    let line = answer.split(|byte| *byte == b'\r').next();
    let line = String::from_utf8_lossy(line.unwrap_or_default());
    Err(io::Error::other(format!("the door answers {line:?}")))
}

/// A byte pipe to the target.
#[derive(Debug)]
pub enum Pipe {
    Grpc(Box<Tunnel>),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
    Kubelet(Box<TlsStream<UnixStream>>),
}

impl Pipe {
    /// Closes as a front end does: a socket at once, a tunnel by asking for it and waiting for the answer.
    pub async fn leave(mut self) -> io::Result<()> {
        match &mut self {
            Self::Grpc(tunnel) => {
                tunnel.close()?;
                let mut rest = [0; 1024];
                while self.read(&mut rest).await? > 0 {}
                Ok(())
            }
            // TLS says its end before the socket's.
            Self::Tls(stream) => stream.shutdown().await,
            Self::Kubelet(stream) => stream.shutdown().await,
            Self::Tcp(_) | Self::Unix(_) => Ok(()),
        }
    }

    /// Whether the other end has gone, without reading what waits in the socket.
    pub async fn is_lost(&self) -> bool {
        if let Self::Grpc(tunnel) = self {
            return tunnel.is_lost();
        }
        let interest = tokio::io::Interest::WRITABLE | tokio::io::Interest::ERROR;
        let ready = async {
            match self {
                // Looked at above.
                Self::Grpc(_) => std::future::pending().await,
                Self::Tcp(stream) => stream.ready(interest).await,
                Self::Tls(stream) => stream.get_ref().0.ready(interest).await,
                Self::Unix(stream) => stream.ready(interest).await,
                Self::Kubelet(stream) => stream.get_ref().0.ready(interest).await,
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
            Self::Grpc(tunnel) => tunnel.poll_read(cx, buffer),
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Kubelet(stream) => Pin::new(stream).poll_read(cx, buffer),
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
            Self::Grpc(tunnel) => tunnel.poll_write(cx, bytes),
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Kubelet(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Grpc(_) => Poll::Ready(Ok(())),
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Kubelet(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Grpc(tunnel) => Poll::Ready(tunnel.close()),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Kubelet(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
