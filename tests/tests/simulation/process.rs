//! The two processes of a story, made of the same parts as the daemons: carriers, driver, dial
//! streams, splice. Routing and policy are left out, and the agent's reconnecting is a loop of its
//! own here, with the daemons' back-off and nothing beside it: the agent's keeper itself is what
//! `heal.rs` runs. Each process can be killed and started again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;
use towline_link::carrier::{Carrier, CarrierKind};
use towline_link::dial::{self, PendingDial};
use towline_link::driver::{Link, greet_agent, greet_server};
use towline_link::live::LiveDials;
use towline_link::quic::{EndpointKeys, Options, QuicEndpoint, QuicListener};
use towline_link::splice::{Early, LocalSide, splice};
use towline_link::tls::{self, TlsOptions};
use towline_pki::{Anchors, Credentials, DenyList, PeerVerifier};
use towline_proto::backoff::Backoff;
use towline_proto::control::{Hello, Welcome};
use towline_proto::dial::{Dial, DialRequest};
use towline_proto::id::{InstanceId, Role};
use towline_proto::target::Target;
use towline_proto::version::{Capabilities, VERSION_MAX, VERSION_MIN};
use towline_tests::authority::Authority;

use crate::chance::Chance;
use crate::local::{self, Local};
use crate::network::Network;

pub(crate) const SERVER: ([u8; 4], u16) = ([10, 0, 0, 1], 8091);

/// What both processes know of each other, made once for all seeds.
pub(crate) struct Trust {
    pub(crate) authority: Authority,
    pub(crate) server: Arc<rustls::ServerConfig>,
    pub(crate) agents: Arc<PeerVerifier>,
    pub(crate) agent: Arc<rustls::ClientConfig>,
    pub(crate) servers: Arc<PeerVerifier>,
}

impl Trust {
    pub(crate) fn new() -> Self {
        let authority = Authority::new("sim.example");
        let verifier = |role| {
            let anchors = Anchors::new(&[authority.issuer(role).der().clone()]).unwrap();
            let cluster = authority.cluster().parse().unwrap();
            PeerVerifier::new(cluster, role, anchors, DenyList::default())
        };
        let own = |role, name| {
            let pair = authority.leaf(role, name).sign();
            Credentials::new(pair.chain.clone(), pair.key(), role, SystemTime::now()).unwrap()
        };
        let (agents, servers) = (verifier(Role::Agent), verifier(Role::Server));
        Self {
            server: towline_pki::tls::link_server(&own(Role::Server, "s1"), Arc::clone(&agents))
                .unwrap(),
            agent: towline_pki::tls::link_client(&own(Role::Agent, "n1"), Arc::clone(&servers))
                .unwrap(),
            agents,
            servers,
            authority,
        }
    }
}

/// The newest live link of the server, and where its greeted links go.
pub(crate) type Current = watch::Sender<Option<Link>>;

/// A running server.
pub(crate) struct ServerProcess {
    _task: AbortOnDropHandle<()>,
}

impl ServerProcess {
    pub(crate) fn start(
        kind: CarrierKind,
        network: &Network,
        trust: &Arc<Trust>,
        keys: &EndpointKeys,
        seed: [u8; 32],
        current: &Arc<Current>,
    ) -> Self {
        current.send_replace(None);
        let (trust, current) = (Arc::clone(trust), Arc::clone(current));
        let task = match kind {
            CarrierKind::Quic => {
                let options = Options {
                    seed: Some(seed),
                    ..Options::default()
                };
                let socket = network.socket(SERVER.into());
                let listener = QuicListener::with_socket(
                    socket,
                    Arc::clone(&trust.server),
                    Arc::clone(&trust.agents),
                    keys,
                    options,
                );
                tokio::spawn(serve_quic(listener.unwrap(), current))
            }
            CarrierKind::Tls => {
                tokio::spawn(serve_tls(network.listen(SERVER.into()), trust, current))
            }
        };
        Self {
            _task: AbortOnDropHandle::new(task),
        }
    }
}

async fn serve_quic(listener: QuicListener, current: Arc<Current>) {
    let mut links = JoinSet::new();
    while let Some(carrier) = listener.accept().await {
        links.spawn(serve_link(Arc::new(carrier), Arc::clone(&current)));
    }
}

async fn serve_tls(
    mut incoming: mpsc::UnboundedReceiver<crate::network::Pipe>,
    trust: Arc<Trust>,
    current: Arc<Current>,
) {
    let mut links = JoinSet::new();
    while let Some(pipe) = incoming.recv().await {
        let (trust, current) = (Arc::clone(&trust), Arc::clone(&current));
        links.spawn(async move {
            let remote = SocketAddr::from(([10, 0, 0, 9], 40_000));
            let (config, verifier) = (Arc::clone(&trust.server), Arc::clone(&trust.agents));
            if let Ok(carrier) =
                tls::accept_on(pipe, remote, config, verifier, &TlsOptions::server()).await
            {
                serve_link(carrier, current).await;
            }
        });
    }
}

async fn serve_link(carrier: Arc<dyn Carrier>, current: Arc<Current>) {
    let welcome = Welcome {
        version: VERSION_MAX,
        capabilities: Capabilities::OURS,
        server: "s1".parse().unwrap(),
        servers: Vec::new(),
        routes: Vec::new(),
        max_dials: 1000,
        software: "simulation".into(),
    };
    let Ok((link, _, run)) = greet_server(carrier, |_| Ok(welcome)).await else {
        return;
    };
    let id = link.id();
    current.send_replace(Some(link));
    run.await;
    current.send_if_modified(|now| {
        let ours = now.as_ref().is_some_and(|link| link.id() == id);
        if ours {
            *now = None;
        }
        ours
    });
}

/// Opens a dial on `link` and joins it with a local connection whose other end is returned.
pub(crate) async fn dial(
    link: &Link,
    number: u16,
    live: &LiveDials,
    tasks: &mut JoinSet<()>,
) -> Result<Local, dial::OpenError> {
    let guard = link.begin_dial(u32::MAX);
    let timeout = std::time::Duration::from_secs(10);
    let target = Target::new(
        towline_proto::target::Host::Ip([10, 1, 0, 1].into()),
        number,
    )
    .unwrap();
    let request = DialRequest::Dial(Dial {
        id: towline_proto::id::DialId::new(u64::from(number)).unwrap(),
        target,
        class: towline_proto::target::Class::Pod,
        timeout,
        trace: None,
    });
    let open = dial::open(
        &**link.carrier(),
        &request,
        tokio::time::Instant::now() + timeout,
    )
    .await?;
    let (ours, theirs) = local::pair();
    let live = live.register();
    tasks.spawn(async move {
        let early = Early {
            to_peer: Bytes::new(),
            to_local: open.early,
        };
        splice(theirs, open.stream, LocalSide::FrontEnd, early, &live).await;
        drop(guard);
    });
    Ok(ours)
}

/// A connection that the agent made for dial `number`.
pub(crate) struct Reached {
    pub(crate) number: u16,
    pub(crate) end: Local,
}

/// A running agent.
pub(crate) struct AgentProcess {
    endpoint: Option<Arc<QuicEndpoint>>,
    _task: AbortOnDropHandle<()>,
}

impl AgentProcess {
    pub(crate) fn start(
        kind: CarrierKind,
        network: &Network,
        trust: &Arc<Trust>,
        address: SocketAddr,
        mut chance: Chance,
        live: &LiveDials,
        reached: &mpsc::UnboundedSender<Reached>,
    ) -> Self {
        let endpoint = (kind == CarrierKind::Quic).then(|| {
            let options = Options {
                seed: Some(chance.bytes()),
                ..Options::default()
            };
            Arc::new(QuicEndpoint::with_socket(network.socket(address), options).unwrap())
        });
        let agent = Agent {
            endpoint: endpoint.clone(),
            network: network.clone(),
            trust: Arc::clone(trust),
            live: live.clone(),
            reached: reached.clone(),
        };
        Self {
            endpoint,
            _task: AbortOnDropHandle::new(tokio::spawn(agent.run(chance))),
        }
    }

    /// The node's address changes under the process (QUIC only).
    pub(crate) fn move_to(&self, network: &Network, address: SocketAddr) {
        if let Some(endpoint) = &self.endpoint {
            endpoint
                .rebind_with_socket(network.socket(address))
                .unwrap();
        }
    }
}

struct Agent {
    endpoint: Option<Arc<QuicEndpoint>>,
    network: Network,
    trust: Arc<Trust>,
    live: LiveDials,
    reached: mpsc::UnboundedSender<Reached>,
}

impl Agent {
    async fn run(self, mut chance: Chance) {
        let hello = Hello {
            versions: (VERSION_MIN, VERSION_MAX),
            capabilities: Capabilities::OURS,
            instance: InstanceId::new(chance.next() | 1).unwrap(),
            name: "n1".parse().unwrap(),
            addresses: Vec::new(),
            prefixes: Vec::new(),
            software: "simulation".into(),
        };
        let mut lost = tokio::time::Instant::now();
        let mut backoff = Backoff::new(chance.next());
        loop {
            if let Some(carrier) = self.connect().await
                && let Ok((link, _, run)) = greet_agent(carrier, hello.clone()).await
            {
                backoff = Backoff::new(chance.next());
                self.serve(link, run).await;
                lost = tokio::time::Instant::now();
            }
            tokio::time::sleep(backoff.pause(lost.elapsed())).await;
        }
    }

    async fn connect(&self) -> Option<Arc<dyn Carrier>> {
        let tls_config = Arc::clone(&self.trust.agent);
        match &self.endpoint {
            Some(endpoint) => {
                let link = endpoint
                    .connect(SERVER.into(), tls_config, &self.trust.servers)
                    .await;
                link.ok().map(|link| Arc::new(link) as Arc<dyn Carrier>)
            }
            None => {
                let pipe = self.network.connect(SERVER.into());
                let pipe = tokio::time::timeout(towline_proto::limits::HANDSHAKE_TIMEOUT, pipe)
                    .await
                    .ok()?
                    .ok()?;
                let address = SocketAddr::from(SERVER);
                let name: Target = address.to_string().parse().unwrap();
                let verifier = Arc::clone(&self.trust.servers);
                tls::connect_on(
                    pipe,
                    address,
                    &name,
                    tls_config,
                    verifier,
                    &TlsOptions::agent(),
                )
                .await
                .ok()
            }
        }
    }

    async fn serve(&self, link: Link, run: impl Future<Output = towline_proto::reason::Reason>) {
        let mut dials = JoinSet::new();
        tokio::pin!(run);
        loop {
            tokio::select! {
                _ = &mut run => return,
                stream = link.carrier().accept() => {
                    let Ok(stream) = stream else {
                        // The driver ends too, with the reason.
                        run.await;
                        return;
                    };
                    let (live, reached) = (self.live.clone(), self.reached.clone());
                    dials.spawn(async move {
                        if let Ok((DialRequest::Dial(dial), pending)) = dial::accept(stream).await {
                            answer(dial, pending, &live, &reached).await;
                        }
                    });
                }
            }
            while dials.try_join_next().is_some() {}
        }
    }
}

async fn answer(
    dial: Dial,
    pending: PendingDial,
    live: &LiveDials,
    reached: &mpsc::UnboundedSender<Reached>,
) {
    let (ours, theirs) = local::pair();
    let live = live.register();
    let Ok(open) = pending.accepted().await else {
        return;
    };
    let number = dial.target.port();
    if reached
        .send(Reached {
            number,
            end: theirs,
        })
        .is_ok()
    {
        let early = Early {
            to_peer: Bytes::new(),
            to_local: open.early,
        };
        splice(ours, open.stream, LocalSide::Target, early, &live).await;
    }
}
