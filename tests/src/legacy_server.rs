//! A fake of Konnectivity's proxy-server, as legacy agents see it: gRPC over TLS, one call for
//! each agent, every packet in the hands of the test.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use http::{HeaderMap, HeaderValue};
use rustls::server::WebPkiClientVerifier;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;
use towline_link::grpc::{self, Code, PacketSource, Status};
use towline_proto::konnectivity::frame;
use towline_proto::konnectivity::{CONNECT_METHOD, Packet, SERVER_COUNT, SERVER_ID};

use crate::authority::{Ca, Pair};
use crate::scenario::expect;

/// How it behaves.
#[derive(Clone)]
pub struct Script {
    /// What it calls itself, in turn for each call; the last one stays.
    pub ids: Vec<String>,
    /// How many servers it says that there are.
    pub count: String,
    /// Metadata in place of both.
    pub said: Option<Vec<(&'static str, String)>>,
    /// It refuses calls with this status.
    pub refuse: Option<Status>,
    /// What it chooses in the handshake, best first.
    pub alpn: Vec<Vec<u8>>,
    /// Who must have signed agents, if anybody.
    pub clients: Option<String>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            ids: vec!["server-1".to_owned()],
            count: "1".to_owned(),
            said: None,
            refuse: None,
            alpn: vec![b"h2".to_vec()],
            clients: None,
        }
    }
}

impl Script {
    fn metadata(&self) -> Vec<(&'static str, String)> {
        let id = self.ids.first().cloned().unwrap_or_default();
        let usual = || vec![(SERVER_ID, id), (SERVER_COUNT, self.count.clone())];
        self.said.clone().unwrap_or_else(usual)
    }
}

/// A running fake.
pub struct FakeProxyServer {
    address: SocketAddr,
    calls: mpsc::UnboundedReceiver<AgentCall>,
    script: Arc<Mutex<Script>>,
    handshakes: Arc<Mutex<Vec<Option<Vec<u8>>>>>,
    task: Option<AbortOnDropHandle<()>>,
}

/// What an agent said and says.
pub struct AgentCall {
    /// Its metadata.
    pub metadata: HeaderMap,
    /// Whether it showed a certificate.
    pub certified: bool,
    /// Its packets.
    pub source: PacketSource,
    send: SendStream<Bytes>,
}

impl FakeProxyServer {
    /// Serves on `bind` as `own`.
    pub async fn start(own: &Pair, script: Script, bind: SocketAddr) -> io::Result<Self> {
        let listener = bound(bind)?;
        let address = listener.local_addr()?;
        let tls = TlsAcceptor::from(Arc::new(server_config(own, &script)?));
        let script = Arc::new(Mutex::new(script));
        let handshakes = Arc::<Mutex<Vec<_>>>::default();
        let (sender, calls) = mpsc::unbounded_channel();
        let task = tokio::spawn(accept(
            listener,
            tls,
            Arc::clone(&script),
            Arc::clone(&handshakes),
            sender,
        ));
        Ok(Self {
            address,
            calls,
            script,
            handshakes,
            task: Some(AbortOnDropHandle::new(task)),
        })
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes its behaviour for the calls to come.
    pub fn change(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The next agent that calls.
    pub async fn call(&mut self) -> AgentCall {
        self.calls.recv().await.expect("the fake serves")
    }

    /// A call that has come already, if there is one.
    pub fn called(&mut self) -> Option<AgentCall> {
        self.calls.try_recv().ok()
    }

    /// What was chosen in each handshake so far.
    pub fn handshakes(&self) -> Vec<Option<Vec<u8>>> {
        let handshakes = self.handshakes.lock();
        handshakes.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it with every connection; gives its address, which is free again.
    pub async fn stop(mut self) -> SocketAddr {
        if let Some(task) = self.task.take() {
            task.abort();
            let _ = task.await;
        }
        self.address
    }
}

fn bound(bind: SocketAddr) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(bind);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&bind.into())?;
    socket.listen(64)?;
    TcpListener::from_std(socket.into())
}

fn server_config(own: &Pair, script: &Script) -> io::Result<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let builder = match &script.clients {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let mut roots = rustls::RootCertStore::empty();
            let ca = towline_pki::pem::certificates(pem.as_bytes()).map_err(io::Error::other)?;
            roots.add_parsable_certificates(ca);
            let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(clients.build().map_err(io::Error::other)?)
        }
    };
    let mut tls = builder
        .with_single_cert(own.chain.clone(), own.key())
        .map_err(io::Error::other)?;
    tls.alpn_protocols = script.alpn.clone();
    Ok(tls)
}

async fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    script: Arc<Mutex<Script>>,
    handshakes: Arc<Mutex<Vec<Option<Vec<u8>>>>>,
    calls: mpsc::UnboundedSender<AgentCall>,
) {
    let mut connections = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        let (tls, script) = (tls.clone(), Arc::clone(&script));
        let (handshakes, calls) = (Arc::clone(&handshakes), calls.clone());
        connections.spawn(async move {
            let _ = tcp.set_nodelay(true);
            connection(tcp, tls, script, handshakes, calls).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(
    tcp: TcpStream,
    tls: TlsAcceptor,
    script: Arc<Mutex<Script>>,
    handshakes: Arc<Mutex<Vec<Option<Vec<u8>>>>>,
    calls: mpsc::UnboundedSender<AgentCall>,
) -> Option<()> {
    let stream = tls.accept(tcp).await.ok()?;
    let session = stream.get_ref().1;
    let alpn = session.alpn_protocol().map(<[u8]>::to_vec);
    let certified = session.peer_certificates().is_some();
    handshakes
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(alpn.clone());
    if alpn.as_deref() == Some(b"towline/1") {
        return None;
    }
    // A test may leave any number of small packets unread.
    let mut builder = h2::server::Builder::new();
    builder.data_frame_budget(1 << 30);
    let mut connection = builder.handshake(stream).await.ok()?;
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let (head, body) = request.into_parts();
        let script = {
            let mut script = script.lock().unwrap_or_else(PoisonError::into_inner);
            let now = script.clone();
            if script.ids.len() > 1 {
                script.ids.remove(0);
            }
            now
        };
        if head.uri.path() != CONNECT_METHOD {
            grpc::refuse(
                &mut respond,
                &Status::new(Code::Unimplemented, "no such method"),
            );
            continue;
        }
        if let Some(status) = &script.refuse {
            grpc::refuse(&mut respond, status);
            continue;
        }
        let mut answer = grpc::server::head();
        for (key, text) in script.metadata() {
            let value = HeaderValue::from_str(&text).expect("a header");
            answer.headers_mut().append(key, value);
        }
        let call = AgentCall {
            metadata: head.headers,
            certified,
            source: PacketSource::new(body),
            send: respond.send_response(answer, false).ok()?,
        };
        let _ = calls.send(call);
    }
    Some(())
}

impl AgentCall {
    /// A value of its metadata.
    pub fn value(&self, key: &str) -> &str {
        let value = self.metadata.get(key).expect(key);
        value.to_str().expect("text")
    }

    /// Says something to the agent.
    pub async fn send(&mut self, packet: Packet) {
        let (head, data) = frame::put(&packet);
        self.send_raw([head, data].concat().into()).await;
    }

    /// Says any bytes. Fails on a stream that is gone, which shows when it is read.
    pub async fn send_raw(&mut self, mut bytes: Bytes) {
        while !bytes.is_empty() {
            self.send.reserve_capacity(bytes.len());
            let room = match poll_fn(|cx| self.send.poll_capacity(cx)).await {
                Some(Ok(room)) => room,
                Some(Err(_)) | None => return,
            };
            let piece = bytes.split_to(room.min(bytes.len()));
            let _ = self.send.send_data(piece, false);
        }
    }

    /// Resolves when the agent has ended the call.
    pub async fn gone(&mut self) {
        let ended = async { while matches!(self.source.next().await, Ok(Some(_))) {} };
        expect("the end of the call", ended).await;
    }

    /// The next packet of the agent.
    pub async fn next(&mut self) -> Packet {
        let next = tokio::time::timeout(Duration::from_secs(20), self.source.next());
        let packet = next.await.expect("a packet in time");
        packet.expect("gRPC").expect("the stream is open")
    }

    /// Ends the call with a status.
    pub fn finish(mut self, status: &Status) {
        let mut trailers = HeaderMap::new();
        status.put(&mut trailers);
        // Fails on a stream that is gone.
        let _ = self.send.send_trailers(trailers);
    }

    /// Asks for a connection; the id and no error, or the error.
    pub async fn dial(&mut self, protocol: &str, address: &str) -> Result<i64, String> {
        let random = 77;
        self.send(Packet::DialRequest {
            protocol: protocol.to_owned(),
            address: address.to_owned(),
            random,
        })
        .await;
        loop {
            match self.next().await {
                Packet::DialResponse {
                    error,
                    connect_id,
                    random: 77,
                } if error.is_empty() => return Ok(connect_id),
                Packet::DialResponse { error, .. } => return Err(error),
                _ => {}
            }
        }
    }

    /// Sends bytes on a connection.
    pub async fn data(&mut self, connect_id: i64, data: impl Into<Bytes>) {
        let data = data.into();
        self.send(Packet::Data { connect_id, data }).await;
    }

    /// Bytes of a connection until there are `length` of them.
    pub async fn read(&mut self, id: i64, length: usize) -> Vec<u8> {
        let mut got = Vec::new();
        while got.len() < length {
            match self.next().await {
                Packet::Data { connect_id, data } if connect_id == id => {
                    got.extend_from_slice(&data);
                }
                Packet::Data { .. } => {}
                other => panic!("{other:?} after {} of {length} bytes", got.len()),
            }
        }
        got
    }

    /// Everything of a connection up to its CLOSE_RSP, and that one's error.
    pub async fn rest(&mut self, id: i64) -> (Vec<u8>, String) {
        let mut got = Vec::new();
        loop {
            match self.next().await {
                Packet::Data { connect_id, data } if connect_id == id => {
                    got.extend_from_slice(&data);
                }
                Packet::CloseResponse { error, connect_id } if connect_id == id => {
                    return (got, error);
                }
                _ => {}
            }
        }
    }
}

/// A serving certificate for loopback under any CA.
pub fn loopback_pair(authority: &crate::authority::Authority, ca: Option<&Ca>) -> Pair {
    let leaf = authority.kubelet_leaf("proxy-server.example", &[[127, 0, 0, 1].into()]);
    match ca {
        Some(ca) => leaf.signed_by(ca).sign(),
        None => leaf.sign(),
    }
}
