//! Two ends of a QUIC link in one process, with certificates that were made for the test.

// Every test file compiles its own copy and uses a part of it.
#![allow(dead_code, unreachable_pub)]

pub mod wire;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use towline_link::carrier::{Carrier, RecvStream, Stream, StreamError};
use towline_link::error::ConnectError;
use towline_link::quic::{EndpointKeys, Options, QuicEndpoint, QuicLink, QuicListener};
use towline_pki::{
    Anchors, Authority, AuthoritySpec, DenyList, Identity, KeyKind, LeafSpec, PeerVerifier,
    PrivateKey, Usage, tls,
};
use towline_proto::id::Role;

pub const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const HOUR: Duration = Duration::from_secs(3600);

/// Authorities of a cluster: one for agents, one for servers.
pub struct Cluster {
    name: String,
    agents: Authority,
    servers: Authority,
}

/// A certificate and its key.
pub struct Holder {
    identity: String,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKey,
}

pub type Sides<C> = (Arc<C>, Arc<PeerVerifier>);

impl Cluster {
    pub fn new(name: &str) -> Self {
        let authority = |purpose: &str, usage| {
            let now = SystemTime::now();
            let spec = AuthoritySpec {
                purpose: purpose.into(),
                organisation: name.into(),
                not_before: now - 2 * HOUR,
                not_after: now + 2 * HOUR,
                path_length: Some(0),
                usages: vec![usage],
            };
            Authority::create(&spec, PrivateKey::generate(KeyKind::EcdsaP256).unwrap()).unwrap()
        };
        Self {
            name: name.into(),
            agents: authority("agents", Usage::ClientAuth),
            servers: authority("servers", Usage::ServerAuth),
        }
    }

    fn issue(&self, role: Role, name: &str, ends: SystemTime) -> Holder {
        let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
        let identity = format!("spiffe://{}/towline/{role}/{name}", self.name);
        let (authority, usage) = match role {
            Role::Server => (&self.servers, Usage::ServerAuth),
            _ => (&self.agents, Usage::ClientAuth),
        };
        let spec = LeafSpec {
            common_name: name.into(),
            uris: vec![identity.clone()],
            dns: Vec::new(),
            ips: Vec::new(),
            usages: vec![usage],
            not_before: SystemTime::now() - HOUR,
            not_after: ends,
        };
        let chain = vec![authority.issue_raw(&spec, &key.public()).unwrap()];
        Holder {
            identity,
            chain,
            key,
        }
    }

    pub fn agent(&self, name: &str) -> Holder {
        self.issue(Role::Agent, name, SystemTime::now() + HOUR)
    }

    pub fn agent_expired(&self, name: &str) -> Holder {
        self.issue(
            Role::Agent,
            name,
            SystemTime::now() - Duration::from_secs(60),
        )
    }

    pub fn server(&self, name: &str) -> Holder {
        self.issue(Role::Server, name, SystemTime::now() + HOUR)
    }

    fn verifier(&self, role: Role, deny: DenyList) -> Arc<PeerVerifier> {
        let authority = if role == Role::Server {
            &self.servers
        } else {
            &self.agents
        };
        let anchors = Anchors::new(std::slice::from_ref(authority.der())).unwrap();
        let identity: Identity = format!("spiffe://{}/towline/{role}/x", self.name)
            .parse()
            .unwrap();
        PeerVerifier::new(identity.cluster, role, anchors, deny)
    }

    /// What an agent of this cluster connects with, whatever it holds.
    pub fn agent_side(&self, own: &Holder) -> Sides<rustls::ClientConfig> {
        let verifier = self.verifier(Role::Server, DenyList::default());
        let presented = Some((own.chain.clone(), own.key()));
        (
            tls::presenting::link_client(presented, verifier.clone()).unwrap(),
            verifier,
        )
    }

    /// What a server of this cluster listens with.
    pub fn server_side(&self, own: &Holder) -> Sides<rustls::ServerConfig> {
        let verifier = self.verifier(Role::Agent, DenyList::default());
        (
            tls::presenting::link_server(own.chain.clone(), own.key(), verifier.clone()).unwrap(),
            verifier,
        )
    }

    /// The same with a deny list that names one peer.
    pub fn server_side_denying(&self, denied: &Holder) -> Sides<rustls::ServerConfig> {
        let own = self.server("server-1");
        let deny = DenyList::parse(denied.identity.as_bytes()).unwrap();
        let verifier = self.verifier(Role::Agent, deny);
        (
            tls::presenting::link_server(own.chain.clone(), own.key(), verifier.clone()).unwrap(),
            verifier,
        )
    }
}

impl Holder {
    fn key(&self) -> PrivateKeyDer<'static> {
        self.key.to_der()
    }
}

pub fn listener_for(cluster: &Cluster, options: Options) -> QuicListener {
    let (tls, verifier) = cluster.server_side(&cluster.server("server-1"));
    let keys = EndpointKeys::ephemeral().unwrap();
    QuicListener::bind(LOOPBACK, tls, verifier, &keys, options).unwrap()
}

/// A link on loopback, both ends.
pub struct Pair {
    pub cluster: Cluster,
    pub listener: QuicListener,
    pub endpoint: QuicEndpoint,
    pub holder: Holder,
    pub server: Arc<QuicLink>,
    pub agent: Arc<QuicLink>,
}

impl Pair {
    pub async fn new() -> Self {
        Self::with(Options::default()).await
    }

    pub async fn with(options: Options) -> Self {
        let cluster = Cluster::new("prod");
        let listener = listener_for(&cluster, options.clone());
        let endpoint = QuicEndpoint::new(options).unwrap();
        let holder = cluster.agent("node-1");
        let (tls, verifier) = cluster.agent_side(&holder);
        let server = listener.local_address().unwrap();
        let (agent, server) =
            tokio::join!(endpoint.connect(server, tls, &verifier), listener.accept());
        let (agent, server) = (Arc::new(agent.unwrap()), Arc::new(server.unwrap()));
        Self {
            cluster,
            listener,
            endpoint,
            holder,
            server,
            agent,
        }
    }

    /// A stream that the server opened and the agent accepted. A stream shows at the other end
    /// with its first byte, so one is sent and taken.
    pub async fn stream(&self) -> (Stream, Stream) {
        let mut ours = self.server.open().await.unwrap();
        ours.send.send("!".into()).await.unwrap();
        let mut theirs = self.agent.accept().await.unwrap();
        assert_eq!(theirs.recv.recv(1).await.unwrap().unwrap(), "!");
        (ours, theirs)
    }

    /// Another attempt from the same endpoint.
    pub async fn try_again(&self) -> Result<QuicLink, ConnectError> {
        let (tls, verifier) = self.cluster.agent_side(&self.holder);
        let server = self.listener.local_address().unwrap();
        self.endpoint.connect(server, tls, &verifier).await
    }

    /// A second link.
    pub async fn again(&self) -> QuicLink {
        let (link, taken) = tokio::join!(self.try_again(), self.listener.accept());
        taken.unwrap();
        link.unwrap()
    }

    pub async fn until(&self, condition: impl Fn(&Self) -> bool) {
        until(|| condition(self)).await;
    }
}

/// Waits for something that shows in a number only.
pub async fn until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting)
        .await
        .expect("it never came true");
}

/// Everything up to the end of the stream.
pub async fn read_all(recv: &mut RecvStream) -> Result<Vec<u8>, StreamError> {
    let mut all = Vec::new();
    while let Some(chunk) = recv.recv(64 * 1024).await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

/// Bytes that show when one is missing or out of place.
pub fn fill(length: usize, seed: u8) -> Vec<u8> {
    let mut state = u32::from(seed) | 0x9e37_7900;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

/// The first packets of as many connection attempts, recorded.
pub async fn first_flights(cluster: &Cluster, count: usize) -> Vec<Vec<Vec<u8>>> {
    let endpoint = QuicEndpoint::new(Options::default()).unwrap();
    let (tls, verifier) = cluster.agent_side(&cluster.agent("node-1"));
    let mut flights = Vec::new();
    for _ in 0..count {
        let recorder = tokio::net::UdpSocket::bind(LOOPBACK).await.unwrap();
        let address = recorder.local_addr().unwrap();
        let mut flight = Vec::new();
        tokio::select! {
            _ = endpoint.connect(address, tls.clone(), &verifier) => panic!("nobody answers"),
            () = async {
                // The post-quantum key share does not fit into one datagram.
                while flight.len() < 2 {
                    let mut datagram = vec![0; 2048];
                    let length = recorder.recv(&mut datagram).await.unwrap();
                    datagram.truncate(length);
                    flight.push(datagram);
                }
            } => {}
        }
        flights.push(flight);
    }
    flights
}
