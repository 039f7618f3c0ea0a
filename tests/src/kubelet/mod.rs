//! A fake kubelet: a real HTTPS server with `/healthz`, container logs that follow, and exec
//! over WebSocket, as kube-apiserver uses them. HTTP/1.1, one task per connection.

mod http;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use crate::authority::{Authority, Pair};
use crate::websocket::{self, Message, WebSocket};
use http::Request;

/// A running fake kubelet.
pub struct FakeKubelet {
    node: String,
    address: SocketAddr,
    logs: Arc<Logs>,
    seen: Arc<Seen>,
    _task: AbortOnDropHandle<()>,
}

/// What came to a kubelet.
#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    handshakes: AtomicUsize,
    requests: AtomicUsize,
    /// Method and path of each.
    lines: Mutex<Vec<String>>,
    /// The leaf that each client showed, where the kubelet asks for one.
    clients: Mutex<Vec<Option<CertificateDer<'static>>>>,
}

/// The lines of the one log that every container of this node has.
struct Logs {
    lines: Mutex<Vec<String>>,
    changed: watch::Sender<usize>,
}

impl FakeKubelet {
    /// Serves node `node` on `bind` with a good certificate for `ips`.
    pub async fn start(
        authority: &Authority,
        node: &str,
        ips: &[IpAddr],
        bind: SocketAddr,
    ) -> io::Result<Self> {
        Self::start_with(node, &authority.kubelet_leaf(node, ips).sign(), bind).await
    }

    /// The same with a certificate of the caller's choice.
    pub async fn start_with(node: &str, pair: &Pair, bind: SocketAddr) -> io::Result<Self> {
        Self::start_speaking(node, pair, bind, rustls::DEFAULT_VERSIONS).await
    }

    /// The same, in these versions of TLS.
    pub async fn start_speaking(
        node: &str,
        pair: &Pair,
        bind: SocketAddr,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> io::Result<Self> {
        let clients = rustls::server::WebPkiClientVerifier::no_client_auth();
        Self::start_asking(node, pair, bind, versions, clients).await
    }

    /// The same, asking clients for a certificate of `root` as a kubelet does: one that shows
    /// none is served, too.
    pub async fn start_with_clients(
        node: &str,
        pair: &Pair,
        bind: SocketAddr,
        root: &CertificateDer<'static>,
    ) -> io::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(root.clone()).map_err(io::Error::other)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clients =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()
                .map_err(io::Error::other)?;
        Self::start_asking(node, pair, bind, rustls::DEFAULT_VERSIONS, clients).await
    }

    async fn start_asking(
        node: &str,
        pair: &Pair,
        bind: SocketAddr,
        versions: &[&'static rustls::SupportedProtocolVersion],
        clients: Arc<dyn rustls::server::danger::ClientCertVerifier>,
    ) -> io::Result<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .and_then(|builder| {
                builder
                    .with_client_cert_verifier(clients)
                    .with_single_cert(pair.chain.clone(), pair.key())
            })
            .map_err(io::Error::other)?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let listener = TcpListener::bind(bind).await?;
        let address = listener.local_addr()?;
        let logs = Arc::new(Logs {
            lines: Mutex::new(Vec::new()),
            changed: watch::Sender::new(0),
        });
        let seen = Arc::new(Seen::default());
        let attend = Attend {
            node: node.to_owned(),
            logs: Arc::clone(&logs),
            seen: Arc::clone(&seen),
        };
        let tls = TlsAcceptor::from(Arc::new(tls));
        let task = tokio::spawn(accept(listener, tls, Arc::new(attend)));
        Ok(Self {
            node: node.to_owned(),
            address,
            logs,
            seen,
            _task: AbortOnDropHandle::new(task),
        })
    }

    /// The node it serves.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections that came.
    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    /// Handshakes that the other side brought to their end.
    pub fn handshakes(&self) -> usize {
        self.seen.handshakes.load(Ordering::SeqCst)
    }

    /// Method and path of every request that came.
    pub fn lines(&self) -> Vec<String> {
        let lines = self.seen.lines.lock();
        lines.expect("no holder of the lines panics").clone()
    }

    /// What each client showed.
    pub fn clients(&self) -> Vec<Option<CertificateDer<'static>>> {
        let clients = self.seen.clients.lock();
        clients.expect("no holder of the clients panics").clone()
    }

    /// Requests that came.
    pub fn requests(&self) -> usize {
        self.seen.requests.load(Ordering::SeqCst)
    }

    /// Adds a line to the log; followers get it at once.
    pub fn log(&self, line: impl Into<String>) {
        let mut lines = self.logs.lines.lock().expect("no holder of the log panics");
        lines.push(line.into());
        self.logs.changed.send_replace(lines.len());
    }
}

/// What every connection needs.
struct Attend {
    node: String,
    logs: Arc<Logs>,
    seen: Arc<Seen>,
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, attending: Arc<Attend>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            connection = listener.accept() => {
                let Ok((stream, _)) = connection else { return };
                let (tls, attending) = (tls.clone(), Arc::clone(&attending));
                attending.seen.connections.fetch_add(1, Ordering::SeqCst);
                connections.spawn(async move {
                    // A client that speaks no TLS or goes away is its own affair.
                    if let Ok(stream) = tls.accept(stream).await {
                        attending.seen.handshakes.fetch_add(1, Ordering::SeqCst);
                        let chain = stream.get_ref().1.peer_certificates();
                        let leaf = chain.and_then(|chain| chain.first().cloned());
                        let clients = attending.seen.clients.lock();
                        clients.expect("no holder of the clients panics").push(leaf);
                        let _ = attend(stream, &attending).await;
                    }
                });
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn attend<S>(mut stream: S, attending: &Attend) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Attend { node, logs, seen } = attending;
    let mut rest = Vec::new();
    while let Some(request) = http::read_request(&mut stream, &mut rest).await? {
        seen.requests.fetch_add(1, Ordering::SeqCst);
        let line = format!("{} {}", request.method, request.path);
        seen.lines
            .lock()
            .expect("no holder of the lines panics")
            .push(line);
        let path = request.path.split('?').next().unwrap_or_default();
        let mut parts = path.trim_start_matches('/').split('/');
        match parts.next() {
            Some("healthz") => http::answer(&mut stream, 200, "OK", "ok").await?,
            Some("containerLogs") => send_logs(&mut stream, &request, logs).await?,
            Some("exec" | "attach" | "portForward") if request.is_spdy() => {
                return spdy(stream, rest).await;
            }
            Some("exec") => return exec(stream, &request, node).await,
            Some("run") => {
                let body = http::read_body(&mut stream, &mut rest, &request).await?;
                let text = format!("{} bytes for {}", body.len(), request.path);
                http::answer(&mut stream, 200, "OK", &text).await?;
            }
            Some("silent") => std::future::pending().await,
            Some("close") => return stream.shutdown().await,
            _ => http::answer(&mut stream, 404, "Not Found", "404 page not found\n").await?,
        }
    }
    stream.shutdown().await
}

/// The log so far; with `follow=true` also what is added later, until the client goes away.
async fn send_logs<S: AsyncWrite + Unpin>(
    stream: &mut S,
    request: &Request,
    logs: &Logs,
) -> io::Result<()> {
    let follow = request.query("follow") == Some("true");
    let mut changed = logs.changed.subscribe();
    http::begin_chunks(stream).await?;
    let mut sent = 0;
    loop {
        changed.borrow_and_update();
        let new: Vec<String> = {
            let lines = logs.lines.lock().expect("no holder of the log panics");
            lines[sent..].to_vec()
        };
        for line in &new {
            http::chunk(stream, format!("{line}\n").as_bytes()).await?;
        }
        sent += new.len();
        if !follow || changed.changed().await.is_err() {
            return http::end_chunks(stream).await;
        }
    }
}

/// Agrees to SPDY/3.1 and gives back whatever comes, with the direction's end.
async fn spdy<S>(stream: S, early: Vec<u8>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut read, mut write) = tokio::io::split(stream);
    let head =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n";
    write.write_all(head.as_bytes()).await?;
    write.write_all(&early).await?;
    write.flush().await?;
    tokio::io::copy(&mut read, &mut write).await?;
    write.shutdown().await
}

/// `hostname` prints the node's name; everything else behaves as `cat`.
async fn exec<S>(mut stream: S, request: &Request, node: &str) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let upgrade = request
        .header("upgrade")
        .is_some_and(|value| value.eq_ignore_ascii_case("websocket"));
    let protocol = request.header("sec-websocket-protocol") == Some(websocket::SUBPROTOCOL);
    let Some(key) = request
        .header("sec-websocket-key")
        .filter(|_| upgrade && protocol)
    else {
        return http::answer(
            &mut stream,
            400,
            "Bad Request",
            "exec needs a WebSocket upgrade\n",
        )
        .await;
    };
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\nSec-WebSocket-Protocol: {}\r\n\r\n",
        websocket::accept_key(key),
        websocket::SUBPROTOCOL,
    );
    stream.write_all(head.as_bytes()).await?;
    stream.flush().await?;
    let mut socket = WebSocket::server(stream);
    if request.query("command") == Some("hostname") {
        socket
            .send(websocket::STDOUT, format!("{node}\n").as_bytes())
            .await?;
    } else {
        loop {
            match socket.receive().await? {
                Message::Data(websocket::STDIN, bytes) => {
                    socket.send(websocket::STDOUT, &bytes).await?
                }
                Message::Data(websocket::CLOSE, channel) if channel == [websocket::STDIN] => break,
                Message::Data(..) => {}
                Message::Close => return socket.close().await,
            }
        }
    }
    socket
        .send(websocket::STATUS, br#"{"metadata":{},"status":"Success"}"#)
        .await?;
    socket.close().await
}
