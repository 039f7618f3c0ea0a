//! An agent that is no agent: carriers and sessions as `towline-link` makes them, and no policy
//! or socket behind them. Tests hold each dial and say themselves what becomes of it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use clap::Parser;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use towline_link::carrier::{Carrier, CarrierKind};
use towline_link::dial::{self, PendingDial};
use towline_link::driver::{self, GreetError, Link};
use towline_link::quic::{Options, QuicEndpoint};
use towline_link::tls::{self, TlsOptions};
use towline_pki::store::{self, Replace};
use towline_pki::{
    Authority, AuthoritySpec, Files, Identity, Issue, KeyKind, Material, PrivateKey, Usage,
};
use towline_proto::control::Hello;
use towline_proto::dial::{Dial, DialRequest};
use towline_proto::id::{InstanceId, Role};
use towline_proto::target::{Host, Target};
use towline_proto::version::{Capabilities, VERSION_MAX, VERSION_MIN};
use towline_server::args::Args;
use towline_server::config::{Config, ConfigError};
use towline_server::run::Server;

/// Longer than anything that works takes, also on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// The output of `event`, or a failure that says what did not happen.
pub(crate) async fn soon<T>(what: &str, event: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIMIT, event).await {
        Ok(output) => output,
        Err(_) => panic!("{what} did not happen within {LIMIT:?}"),
    }
}

/// Files of one cluster, gone when dropped.
pub(crate) struct Cluster {
    pub(crate) dir: PathBuf,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("towline-server-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        store::make_private_directory(&dir).unwrap();
        let cluster = Self { dir };
        cluster.issue(Role::Server, "s1", &[]);
        cluster.issue(Role::Client, "kube-apiserver", &[]);
        cluster.issue(Role::Agent, "n1", &["10.0.0.1"]);
        cluster
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        store::write_public(&self.path(name), text, Replace::Atomically).unwrap();
    }

    /// A certificate `<role>-<name>.pem`, by the cluster's one authority for the role.
    pub(crate) fn issue(&self, role: Role, name: &str, ips: &[&str]) {
        let now = SystemTime::now();
        let ca = format!("{role}-ca.pem");
        let ca_key = self.path(&format!("{role}-ca.key"));
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
            self.write(&ca, &authority.to_pem());
            store::write_secret(&ca_key, &authority.key_to_pem(), Replace::Never).unwrap();
        }
        let authority = Authority::load(&self.path(&ca), &ca_key, now).unwrap();
        let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
        let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let issue = Issue {
            identity: Identity::new("c1".parse().unwrap(), role, name.parse().unwrap()),
            dns: Vec::new(),
            ips,
            life: Some(Duration::from_secs(1800)),
            public_key: key.public(),
        };
        let issued = authority.issue(&issue, now).unwrap();
        self.write(&format!("{role}-{name}.pem"), &issued.to_pem());
        let key_file = self.path(&format!("{role}-{name}.key"));
        store::write_secret(&key_file, &key.to_pem(), Replace::Atomically).unwrap();
    }

    /// What somebody of this role and name presents and trusts.
    pub(crate) fn material(&self, role: Role, name: &str) -> Material {
        let files = Files {
            cert: self.path(&format!("{role}-{name}.pem")),
            key: self.path(&format!("{role}-{name}.key")),
            anchors: vec![(Role::Server, self.path("server-ca.pem"))],
            deny_list: None,
            crls: Vec::new(),
            crl_policy: Default::default(),
            shared_roots: Default::default(),
        };
        Material::load(&files, role, SystemTime::now()).unwrap()
    }

    pub(crate) fn config(&self, more: &[&str]) -> Result<Config, ConfigError> {
        let (cert, key) = (self.text("server-s1.pem"), self.text("server-s1.key"));
        let (ca, door) = (self.text("agent-ca.pem"), self.text("door.sock"));
        let base = [
            "towline-server",
            "--cert",
            &cert,
            "--key",
            &key,
            "--agent-ca",
            &ca,
            "--listen",
            "127.0.0.1:0",
            "--door-unix",
            &door,
            "--health-bind",
            "127.0.0.1:0",
            "--service-cidr",
            "10.96.0.0/12",
            "--pod-cidr",
            "10.244.0.0/16",
            // Kubelets are not what is tested here.
            "--kubelet-verification",
            "off",
        ];
        Config::from_args(Args::try_parse_from(base.iter().chain(more)).unwrap())
    }

    pub(crate) async fn server(&self, more: &[&str]) -> Server {
        Server::start(self.config(more).unwrap()).await.unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A Hello of a fresh process of this node.
pub(crate) fn hello(name: &str, instance: u64) -> Hello {
    Hello {
        versions: (VERSION_MIN, VERSION_MAX),
        capabilities: Capabilities::OURS,
        instance: InstanceId::new(instance).unwrap(),
        name: name.parse().unwrap(),
        addresses: Vec::new(),
        prefixes: Vec::new(),
        software: "fake".into(),
    }
}

/// Dropping it closes its link.
pub(crate) struct FakeAgent {
    pub(crate) link: Link,
    /// Dials that wait for an answer; probes are answered by themselves.
    pub(crate) dials: mpsc::Receiver<(Dial, PendingDial)>,
    _tasks: JoinSet<()>,
}

impl FakeAgent {
    pub(crate) async fn carrier(
        cluster: &Cluster,
        server: SocketAddr,
        name: &str,
        kind: CarrierKind,
    ) -> Arc<dyn Carrier> {
        let material = cluster.material(Role::Agent, name);
        let verifier = material.verifier(Role::Server).unwrap();
        let config =
            towline_pki::tls::link_client(material.credentials(), verifier.clone()).unwrap();
        match kind {
            CarrierKind::Quic => {
                let endpoint = QuicEndpoint::new(Options::default()).unwrap();
                Arc::new(endpoint.connect(server, config, verifier).await.unwrap())
            }
            CarrierKind::Tls => {
                let target = Target::new(Host::Ip(server.ip()), server.port()).unwrap();
                let options = TlsOptions::agent();
                tls::connect(&target, config, verifier.clone(), None, &options)
                    .await
                    .unwrap()
            }
        }
    }

    pub(crate) async fn greet(
        cluster: &Cluster,
        server: SocketAddr,
        hello: Hello,
        kind: CarrierKind,
    ) -> Result<Self, GreetError> {
        let carrier = Self::carrier(cluster, server, hello.name.as_str(), kind).await;
        let (link, _, run) = driver::greet_agent(Arc::clone(&carrier), hello).await?;
        let (sender, dials) = mpsc::channel(64);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            run.await;
        });
        tasks.spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok(stream) = carrier.accept().await {
                let sender = sender.clone();
                serving.spawn(async move {
                    match dial::accept(stream).await {
                        Ok((DialRequest::Probe, pending)) => {
                            pending.accepted_and_done().await;
                        }
                        Ok((DialRequest::Dial(dial), pending)) => {
                            let _ = sender.send((dial, pending)).await;
                        }
                        Err(error) => panic!("{error}"),
                    }
                });
            }
        });
        Ok(Self {
            link,
            dials,
            _tasks: tasks,
        })
    }

    pub(crate) async fn start(
        cluster: &Cluster,
        server: &Server,
        name: &str,
        instance: u64,
        kind: CarrierKind,
    ) -> Self {
        let greeted = Self::greet(cluster, server.link_address(), hello(name, instance), kind);
        let agent = soon("greeting", greeted).await.unwrap();
        // The server has a link when it has said Welcome; the agent learns it a moment later.
        agent
    }

    pub(crate) async fn dial(&mut self) -> (Dial, PendingDial) {
        soon("a dial", self.dials.recv()).await.unwrap()
    }

    /// Accepts the next dial and sends back what comes, to its end.
    pub(crate) async fn echo(&mut self) -> Dial {
        let (dial, pending) = self.dial().await;
        let open = soon("acceptance", pending.accepted()).await.unwrap();
        self._tasks.spawn(async move {
            let mut stream = open.stream;
            if !open.early.is_empty() && stream.send.send(open.early).await.is_err() {
                return;
            }
            while let Ok(Some(bytes)) = stream.recv.recv(65_536).await {
                if stream.send.send(bytes).await.is_err() {
                    return;
                }
            }
            stream.send.finish();
        });
        dial
    }
}

/// A front end on the Unix door.
pub(crate) async fn front_end(server: &Server, request: &str) -> UnixStream {
    let path = server.door_unix().unwrap();
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

pub(crate) async fn connect(server: &Server, target: &str) -> UnixStream {
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    front_end(server, &request).await
}

/// Everything up to the empty line, by single bytes so that nothing behind it is taken.
pub(crate) async fn answer(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    let reading = async {
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => break,
            }
        }
    };
    soon("an answer", reading).await;
    String::from_utf8(head).unwrap()
}

/// The status line of a refusal.
pub(crate) async fn refusal(server: &Server, target: &str) -> String {
    let mut stream = connect(server, target).await;
    let head = answer(&mut stream).await;
    head.lines().next().unwrap_or_default().to_owned()
}

/// The whole rest of a stream.
pub(crate) async fn rest(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = soon("the end", stream.read_to_end(&mut bytes)).await;
    bytes
}
