//! A legacy agent made by hand: TLS, HTTP/2, Konnectivity's packets. It serves dials like the real
//! one, or says whatever a scenario wants, bytes that are no packets included.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::task::AbortOnDropHandle;
use towline_link::carrier::CarrierKind;
use towline_link::grpc::Status;
use towline_proto::id::Role;
use towline_proto::konnectivity::frame::{self, Messages};
use towline_proto::konnectivity::{
    AGENT_ID, AGENT_IDENTIFIERS, ALPN_GRPC, CONNECT_METHOD, CONTENT_TYPE, Packet,
};

use crate::apiserver::client_config;
use crate::authority::{Pair, PairFiles};
use crate::cluster::{Cluster, Plan};
use crate::scenario::{eventually, expect};

/// Who comes, and what it says of itself.
pub struct LegacyPlan<'a> {
    /// Its certificate, if it shows one.
    pub pair: Option<&'a Pair>,
    /// Whom it takes for the server.
    pub root: &'a CertificateDer<'static>,
    /// What it wants to speak.
    pub alpn: Vec<Vec<u8>>,
    /// The method.
    pub method: &'static str,
    /// Metadata, also several times the same.
    pub metadata: Vec<(&'static str, String)>,
}

impl<'a> LegacyPlan<'a> {
    /// An agent of this id.
    pub fn new(pair: Option<&'a Pair>, root: &'a CertificateDer<'static>, id: &str) -> Self {
        Self {
            pair,
            root,
            alpn: vec![ALPN_GRPC.to_vec()],
            method: CONNECT_METHOD,
            metadata: vec![(AGENT_ID, id.to_owned())],
        }
    }

    /// What it says it serves.
    pub fn identifiers(self, text: &str) -> Self {
        self.with(AGENT_IDENTIFIERS, text)
    }

    /// More metadata.
    pub fn with(mut self, key: &'static str, value: &str) -> Self {
        self.metadata.push((key, value.to_owned()));
        self
    }

    /// Connects and calls. The inner error is the server's status.
    pub async fn connect(self, server: SocketAddr) -> std::io::Result<Result<LegacyAgent, Status>> {
        let mut connection = self.only_connect(server).await?;
        connection.call(&self).await
    }

    /// Connects and says nothing yet.
    pub async fn only_connect(&self, server: SocketAddr) -> std::io::Result<LegacyConnection> {
        self.over(self.secure(server).await?, server).await
    }

    /// Only the handshake of TLS.
    pub async fn secure(&self, server: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
        let mut config = client_config(self.pair, self.root);
        config.alpn_protocols = self.alpn.clone();
        let tcp = TcpStream::connect(server).await?;
        let name = ServerName::IpAddress(server.ip().into());
        TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
    }

    /// The rest, over a connection that was made.
    pub async fn over<S>(&self, io: S, server: SocketAddr) -> std::io::Result<LegacyConnection>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (client, connection) = h2::client::Builder::new()
            .initial_window_size(1 << 20)
            .initial_connection_window_size(1 << 20)
            .handshake::<_, Bytes>(io)
            .await
            .map_err(std::io::Error::other)?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            let _ = connection.await;
        }));
        Ok(LegacyConnection {
            client,
            server,
            connection: Arc::new(connection),
        })
    }
}

/// A connection of an agent.
pub struct LegacyConnection {
    client: SendRequest<Bytes>,
    server: SocketAddr,
    connection: Arc<AbortOnDropHandle<()>>,
}

impl LegacyConnection {
    /// One call on it.
    pub async fn call(
        &mut self,
        plan: &LegacyPlan<'_>,
    ) -> std::io::Result<Result<LegacyAgent, Status>> {
        let other = std::io::Error::other::<h2::Error>;
        let mut request = Request::post(format!("https://{}{}", self.server, plan.method))
            .header("content-type", CONTENT_TYPE)
            .header("te", "trailers");
        for (key, value) in &plan.metadata {
            request = request.header(*key, value.as_str());
        }
        let request = request.body(()).expect("a request");
        let (answer, send) = self.client.send_request(request, false).map_err(other)?;
        let answer = expect("the server's answer", answer).await.map_err(other)?;
        let (head, recv) = answer.into_parts();
        if let Some(status) = Status::read(&head.headers) {
            return Ok(Err(status));
        }
        Ok(Ok(LegacyAgent {
            metadata: head.headers,
            send,
            recv,
            messages: Messages::new(8 << 20),
            _connection: Arc::clone(&self.connection),
        }))
    }
}

/// One agent stream.
pub struct LegacyAgent {
    /// What the server said.
    pub metadata: HeaderMap,
    send: SendStream<Bytes>,
    recv: RecvStream,
    messages: Messages,
    _connection: Arc<AbortOnDropHandle<()>>,
}

impl LegacyAgent {
    /// Says a packet.
    pub async fn send(&mut self, packet: Packet) {
        let (head, data) = frame::put(&packet);
        self.send_raw([head, data].concat().into()).await;
    }

    /// Says any bytes.
    pub async fn send_raw(&mut self, bytes: Bytes) {
        let _ = send_raw(&mut self.send, bytes).await;
    }

    /// The next packet of the server; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Packet> {
        expect(
            "a packet of the server",
            next(&mut self.recv, &mut self.messages),
        )
        .await
    }

    /// Answers the next packet, which has to be a dial, with this connection.
    pub async fn accept(&mut self, connect_id: i64) -> String {
        let Some(Packet::DialRequest {
            address, random, ..
        }) = self.next().await
        else {
            panic!("no dial");
        };
        let error = String::new();
        self.send(Packet::DialResponse {
            error,
            connect_id,
            random,
        })
        .await;
        address
    }

    /// Ends our side and waits for the server's status.
    pub async fn end(mut self) -> Option<Status> {
        let _ = self.send.send_data(Bytes::new(), true);
        self.status().await
    }

    /// Waits for the server's status.
    pub async fn status(&mut self) -> Option<Status> {
        while self.next().await.is_some() {}
        let trailers = expect("the status", self.recv.trailers()).await.ok()??;
        Status::read(&trailers)
    }

    /// Serves dials like the real agent, until it is dropped. Addresses that are listed lead
    /// elsewhere.
    pub fn serve(self, lead: &[(&str, SocketAddr)]) -> Serving {
        let lead = lead.iter().map(|(from, to)| ((*from).to_owned(), *to));
        let task = tokio::spawn(serve(self, lead.collect()));
        Serving {
            _task: AbortOnDropHandle::new(task),
        }
    }
}

/// An agent that serves dials.
pub struct Serving {
    _task: AbortOnDropHandle<()>,
}

async fn send_raw(send: &mut SendStream<Bytes>, mut bytes: Bytes) -> Result<(), h2::Error> {
    while !bytes.is_empty() {
        send.reserve_capacity(bytes.len());
        let room = match poll_fn(|cx| send.poll_capacity(cx)).await {
            Some(room) => room?,
            None => return Ok(()),
        };
        send.send_data(bytes.split_to(room.min(bytes.len())), false)?;
    }
    Ok(())
}

async fn next(recv: &mut RecvStream, messages: &mut Messages) -> Option<Packet> {
    loop {
        if let Some(message) = messages.pop().expect("a message") {
            return Some(Packet::decode(message).expect("a packet"));
        }
        let chunk = recv.data().await?.ok()?;
        let _ = recv.flow_control().release_capacity(chunk.len());
        messages.push(chunk);
    }
}

/// The real agent's habits: ids count up from 1, one reader a connection, an end of either side
/// is an end of both.
async fn serve(agent: LegacyAgent, lead: HashMap<String, SocketAddr>) {
    let LegacyAgent {
        mut send,
        mut recv,
        mut messages,
        _connection,
        ..
    } = agent;
    let (say, mut said) = mpsc::channel::<Packet>(64);
    let mut connections: HashMap<i64, mpsc::Sender<Bytes>> = HashMap::new();
    let mut tasks = tokio::task::JoinSet::new();
    let mut last = 0;
    loop {
        tokio::select! {
            Some(packet) = said.recv() => {
                if let Packet::CloseResponse { connect_id, .. } = &packet {
                    connections.remove(connect_id);
                }
                let (head, data) = frame::put(&packet);
                if send_raw(&mut send, head).await.is_err() || send_raw(&mut send, data).await.is_err() {
                    return;
                }
            }
            packet = next(&mut recv, &mut messages) => match packet {
                Some(Packet::DialRequest { address, random, .. }) => {
                    last += 1;
                    let place = lead.get(&address).map_or(address, ToString::to_string);
                    let (queue, queued) = mpsc::channel(150);
                    connections.insert(last, queue);
                    tasks.spawn(connection(last, random, place, queued, say.clone()));
                }
                Some(Packet::Data { connect_id, data }) => {
                    if let Some(queue) = connections.get(&connect_id) {
                        let _ = queue.send(data).await;
                    }
                }
                Some(Packet::CloseRequest { connect_id }) => {
                    if connections.remove(&connect_id).is_none() {
                        let error = "Unknown connectID".to_owned();
                        let say = say.clone();
                        tasks.spawn(async move {
                            let _ = say.send(Packet::CloseResponse { error, connect_id }).await;
                        });
                    }
                }
                Some(_) => {}
                None => return,
            },
        }
    }
}

async fn connection(
    connect_id: i64,
    random: i64,
    place: String,
    mut queued: mpsc::Receiver<Bytes>,
    say: mpsc::Sender<Packet>,
) {
    let mut target = match TcpStream::connect(&place).await {
        Ok(target) => target,
        Err(_) => {
            let error = format!("dial tcp {place}: connect: connection refused");
            let connect_id = 0;
            let _ = say
                .send(Packet::DialResponse {
                    error,
                    connect_id,
                    random,
                })
                .await;
            return;
        }
    };
    let error = String::new();
    let answer = Packet::DialResponse {
        error,
        connect_id,
        random,
    };
    let _ = say.send(answer).await;
    let mut buffer = vec![0; 4096];
    let (mut read, mut write) = target.split();
    loop {
        tokio::select! {
            data = queued.recv() => match data {
                Some(data) => {
                    if write.write_all(&data).await.is_err() {
                        break;
                    }
                }
                None => break,
            },
            came = read.read(&mut buffer) => match came {
                Ok(count) if count > 0 => {
                    let data = Bytes::copy_from_slice(&buffer[..count]);
                    if say.send(Packet::Data { connect_id, data }).await.is_err() {
                        return;
                    }
                }
                _ => break,
            },
        }
    }
    let error = String::new();
    let _ = say.send(Packet::CloseResponse { error, connect_id }).await;
}

/// A server with the door for legacy agents open, and no agent.
pub async fn alone() -> Cluster {
    alone_with(&[]).await
}

/// The same, with more flags.
pub async fn alone_with(flags: &[&str]) -> Cluster {
    Plan::on(CarrierKind::Tls)
        .agents(0)
        .compatible()
        .server_flags(flags)
        .start()
        .await
}

/// Resolves when so many streams are listed.
pub async fn listed(cluster: &Cluster, count: usize) {
    eventually("the streams in the table", || async {
        let status = cluster.server(0).status();
        let legacy = status.compatibility.expect("the profile").legacy_agents;
        (legacy.len() == count).then_some(())
    })
    .await;
}

/// A number of the first server's `/metrics`; 0 when the line is not there.
pub async fn metric(cluster: &Cluster, line: &str) -> u64 {
    let health = cluster.server(0).health_address();
    let mut stream = tokio::net::TcpStream::connect(health).await.unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let found = text.lines().find_map(|l| l.strip_prefix(line));
    found.map_or(0, |value| value.trim().parse().unwrap())
}

/// DATA of a connection.
pub fn data(connect_id: i64, data: impl Into<Bytes>) -> Packet {
    let data = data.into();
    Packet::Data { connect_id, data }
}

impl Cluster {
    /// The flags of a server with the compatibility profile.
    pub(crate) fn compatible_args(&self, pair: &PairFiles) -> Vec<String> {
        let agents = self.scratch().join("agents.ca").display().to_string();
        [
            "--compatibility",
            "konnectivity",
            "--cluster-cert",
            &pair.cert.display().to_string(),
            "--cluster-key",
            &pair.key.display().to_string(),
            "--cluster-ca-cert",
            &agents,
            // Legacy agents carry no kubelet that must be verified.
            "--kubelet-verification",
            "off",
        ]
        .map(str::to_owned)
        .into()
    }

    /// A legacy agent with a certificate of the agents' authority, not connected yet.
    pub fn legacy_agent<'a>(&'a self, pair: &'a Pair, id: &str) -> LegacyPlan<'a> {
        let root = self.authority.issuer(Role::Server).der();
        LegacyPlan::new(Some(pair), root, id)
    }

    /// The same, connected to the first server.
    pub async fn legacy(&self, id: &str, identifiers: &str) -> LegacyAgent {
        let pair = self.authority.leaf(Role::Agent, "legacy").sign();
        let plan = self.legacy_agent(&pair, id).identifiers(identifiers);
        let connected = plan.connect(self.server(0).link_address()).await;
        connected.expect("a connection").expect("a place")
    }
}
