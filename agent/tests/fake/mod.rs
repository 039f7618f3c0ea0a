//! A server that is no server: carriers and sessions as `towline-link` makes them, and no door,
//! table or policy behind them. Tests hold each link and say themselves what is dialled.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use clap::Parser;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use towline_agent::args::Args;
use towline_agent::config::Config;
use towline_agent::connect::Network;
use towline_agent::policy::Permit;
use towline_agent::run::Agent;
use towline_link::carrier::Carrier;
use towline_link::dial::{self, OpenDial, OpenError};
use towline_link::driver::{self, Link};
use towline_link::quic::{BindError, EndpointKeys, Options, QuicListener};
use towline_link::tls::{self, TlsOptions};
use towline_pki::store::{self, Replace};
use towline_pki::{
    Authority, AuthoritySpec, Files, Identity, Issue, KeyKind, Material, PrivateKey, Usage,
};
use towline_proto::control::Welcome;
use towline_proto::dial::{Dial, DialRequest};
use towline_proto::id::{DialId, Role};
use towline_proto::target::{Class, HostName};
use towline_proto::version::{Capabilities, VERSION_MAX};

/// The node of the agent under test; its kubelet is an echo on loopback.
pub(crate) const NODE: &str = "10.0.0.7";

/// Files of one cluster with one agent and one server, gone when dropped.
pub(crate) struct Cluster {
    pub(crate) dir: PathBuf,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "towline-agent-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = std::env::temp_dir().join(name);
        store::make_private_directory(&dir).unwrap();
        let cluster = Self { dir };
        cluster.issue(Role::Server, "s1", &[]);
        cluster.issue(Role::Agent, "n7", &[NODE.parse().unwrap()]);
        cluster
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A certificate of the role, by the cluster's one authority for it.
    pub(crate) fn issue(&self, role: Role, name: &str, ips: &[IpAddr]) {
        let now = SystemTime::now();
        let write = |file: String, text: &str| {
            store::write_public(&self.path(&file), text, Replace::Atomically).unwrap();
        };
        let (ca, ca_key) = (
            format!("{role}-ca.pem"),
            self.path(&format!("{role}-ca.key")),
        );
        if !ca_key.exists() {
            let spec = AuthoritySpec {
                purpose: format!("towline {role}s"),
                organisation: "c1".into(),
                not_before: now - Duration::from_secs(60),
                not_after: now + Duration::from_secs(3600),
                path_length: Some(0),
                usages: vec![Usage::of(role)],
            };
            let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
            let authority = Authority::create(&spec, key).unwrap();
            write(ca.clone(), &authority.to_pem());
            store::write_secret(&ca_key, &authority.key_to_pem(), Replace::Never).unwrap();
        }
        let authority = Authority::load(&self.path(&ca), &ca_key, now).unwrap();
        let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
        let issue = Issue {
            identity: Identity::new("c1".parse().unwrap(), role, name.parse().unwrap()),
            dns: Vec::new(),
            ips: ips.to_vec(),
            life: Some(Duration::from_secs(1800)),
            public_key: key.public(),
        };
        let issued = authority.issue(&issue, now).unwrap();
        write(format!("{role}.pem"), &issued.to_pem());
        let key_file = self.path(&format!("{role}.key"));
        store::write_secret(&key_file, &key.to_pem(), Replace::Atomically).unwrap();
    }

    fn material(&self) -> Material {
        let files = Files {
            cert: self.path("server.pem"),
            key: self.path("server.key"),
            anchors: vec![(Role::Agent, self.path("agent-ca.pem"))],
            deny_list: None,
            crls: Vec::new(),
            crl_policy: Default::default(),
            shared_roots: Default::default(),
        };
        Material::load(&files, Role::Server, SystemTime::now()).unwrap()
    }

    pub(crate) fn config(&self, server: SocketAddr, more: &[&str]) -> Config {
        let (cert, key, ca) = (
            self.path("agent.pem"),
            self.path("agent.key"),
            self.path("server-ca.pem"),
        );
        let server = server.to_string();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let (cert, key, ca) = (text(&cert), text(&key), text(&ca));
        let base = [
            "towline-agent",
            "--server",
            &server,
            "--cert",
            &cert,
            "--key",
            &key,
            "--server-ca",
            &ca,
            "--health-bind",
            "127.0.0.1:0",
            "--http-proxy",
            "off",
        ];
        Config::from_args(Args::try_parse_from(base.iter().chain(more)).unwrap()).unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Which listeners a fake server opens.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listen {
    Both,
    Tcp,
    Udp,
}

/// Dropping it closes every socket and link.
pub(crate) struct FakeServer {
    pub(crate) address: SocketAddr,
    pub(crate) links: mpsc::Receiver<Link>,
    _tasks: JoinSet<()>,
}

impl FakeServer {
    pub(crate) async fn start(cluster: &Cluster, address: SocketAddr, listen: Listen) -> Self {
        let material = cluster.material();
        let verifier = material.verifier(Role::Agent).unwrap().clone();
        let config =
            towline_pki::tls::link_server(material.credentials(), verifier.clone()).unwrap();
        let (sender, links) = mpsc::channel(16);
        let mut tasks = JoinSet::new();
        // The TCP port first: a free UDP port of the same number is likelier than the reverse.
        let tcp = match listen {
            Listen::Udp => None,
            _ => Some(bind_again(address).await),
        };
        let address = tcp
            .as_ref()
            .map_or(address, |tcp| tcp.local_addr().unwrap());
        if listen != Listen::Tcp {
            let keys = EndpointKeys::ephemeral().unwrap();
            // The socket of a server that was dropped lives until its peers are told.
            let quic = loop {
                let (config, verifier) = (config.clone(), verifier.clone());
                match QuicListener::bind(address, config, verifier, &keys, Options::default()) {
                    Ok(listener) => break listener,
                    Err(BindError::Socket { source, .. })
                        if source.kind() == io::ErrorKind::AddrInUse =>
                    {
                        tokio::task::yield_now().await;
                    }
                    Err(error) => panic!("{error}"),
                }
            };
            let sender = sender.clone();
            tasks.spawn(async move {
                let mut links = JoinSet::new();
                while let Some(link) = quic.accept().await {
                    links.spawn(greet(Arc::new(link), sender.clone()));
                }
            });
        }
        if let Some(tcp) = tcp {
            tasks.spawn(async move {
                let mut links = JoinSet::new();
                while let Ok((stream, _)) = tcp.accept().await {
                    let (config, verifier, sender) =
                        (config.clone(), verifier.clone(), sender.clone());
                    links.spawn(async move {
                        if let Ok(link) =
                            tls::accept(stream, config, verifier, &TlsOptions::server()).await
                        {
                            greet(link, sender).await;
                        }
                    });
                }
            });
        }
        Self {
            address,
            links,
            _tasks: tasks,
        }
    }

    /// UDP opens at the port of another one.
    pub(crate) async fn start_udp(cluster: &Cluster, address: SocketAddr) -> Self {
        Self::start(cluster, address, Listen::Udp).await
    }

    pub(crate) async fn link(&mut self) -> Link {
        tokio::time::timeout(Duration::from_secs(10), self.links.recv())
            .await
            .expect("a link in time")
            .unwrap()
    }
}

async fn bind_again(address: SocketAddr) -> TcpListener {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                tokio::task::yield_now().await
            }
            Err(error) => panic!("{error}"),
        }
    }
}

async fn greet(carrier: Arc<dyn Carrier>, sender: mpsc::Sender<Link>) {
    let welcome = Welcome {
        version: VERSION_MAX,
        capabilities: Capabilities::OURS,
        server: "s1".parse().unwrap(),
        servers: Vec::new(),
        routes: Vec::new(),
        max_dials: 100,
        software: "fake".into(),
    };
    if let Ok((link, _, run)) = driver::greet_server(carrier, |_| Ok(welcome)).await {
        let _ = sender.send(link).await;
        run.await;
    }
}

/// Every permitted address leads to one echo; nothing but [`NODE`] is the node's own.
pub(crate) struct EchoNetwork {
    echo: SocketAddr,
    _task: JoinSet<()>,
}

impl EchoNetwork {
    pub(crate) async fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let echo = listener.local_addr().unwrap();
        let mut task = JoinSet::new();
        task.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    if tokio::io::copy(&mut read, &mut write).await.is_ok() {
                        let _ = write.shutdown().await;
                    }
                });
            }
        });
        Arc::new(Self { echo, _task: task })
    }
}

#[async_trait]
impl Network for EchoNetwork {
    async fn resolve(&self, name: &HostName) -> io::Result<Vec<IpAddr>> {
        match name.as_str() {
            "webhook.ns.svc" => Ok(vec![[10, 96, 0, 1].into()]),
            "evil.ns.svc" => Ok(vec![[10, 96, 0, 1].into(), [169, 254, 169, 254].into()]),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    async fn connect(&self, permit: Permit) -> io::Result<TcpStream> {
        match permit.address().port() {
            1 => Err(io::ErrorKind::ConnectionRefused.into()),
            2 => std::future::pending().await,
            _ => TcpStream::connect(self.echo).await,
        }
    }

    fn is_local(&self, ip: IpAddr) -> bool {
        NODE.parse() == Ok(ip)
    }
}

pub(crate) async fn agent(config: Config) -> Agent {
    Agent::start(config, EchoNetwork::start().await)
        .await
        .unwrap()
}

pub(crate) async fn open(link: &Link, target: &str, class: Class) -> Result<OpenDial, OpenError> {
    let timeout = Duration::from_secs(5);
    let request = DialRequest::Dial(Dial {
        id: DialId::new(1).unwrap(),
        target: target.parse().unwrap(),
        class,
        timeout,
        trace: None,
    });
    dial::open(&**link.carrier(), &request, Instant::now() + timeout).await
}

pub(crate) async fn echoes(dial: &mut OpenDial, text: &'static str) {
    dial.stream.send.send(text.into()).await.unwrap();
    let mut got = Vec::from(std::mem::take(&mut dial.early));
    while got.len() < text.len() {
        got.extend(
            dial.stream
                .recv
                .recv(1024)
                .await
                .unwrap()
                .expect("more bytes"),
        );
    }
    assert_eq!(got, text.as_bytes());
}

/// The rest of a dial: end of stream one way gives end of stream the other way.
pub(crate) async fn ends(mut dial: OpenDial) {
    dial.stream.send.finish();
    assert_eq!(dial.stream.recv.recv(1024).await, Ok(None));
}

/// Forwards UDP and TCP of one port to a server; UDP can be cut.
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    open: Arc<AtomicBool>,
    _tasks: JoinSet<()>,
}

impl Wire {
    pub(crate) async fn start(server: SocketAddr) -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let agents = UdpSocket::bind(address).await.unwrap();
        let servers = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        servers.connect(server).await.unwrap();
        let open = Arc::new(AtomicBool::new(true));
        let mut tasks = JoinSet::new();
        let passes = Arc::clone(&open);
        tasks.spawn(async move {
            let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
            let mut agent = address;
            loop {
                tokio::select! {
                    Ok((length, from)) = agents.recv_from(&mut up) => {
                        agent = from;
                        if passes.load(Ordering::SeqCst) {
                            let _ = servers.send(&up[..length]).await;
                        }
                    }
                    Ok(length) = servers.recv(&mut down) => {
                        if passes.load(Ordering::SeqCst) {
                            let _ = agents.send_to(&down[..length], agent).await;
                        }
                    }
                }
            }
        });
        tasks.spawn(async move {
            let mut pipes = JoinSet::new();
            while let Ok((mut near, _)) = tcp.accept().await {
                pipes.spawn(async move {
                    let mut far = TcpStream::connect(server).await?;
                    tokio::io::copy_bidirectional(&mut near, &mut far).await
                });
            }
        });
        Self {
            address,
            open,
            _tasks: tasks,
        }
    }

    pub(crate) fn cut_udp(&self) {
        self.open.store(false, Ordering::SeqCst);
    }
}
