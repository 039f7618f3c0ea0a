//! Ends of a link that break rules: a server with any certificate that asks for any target, an
//! agent with any certificate. Made of the parts that the daemons are made of, without their
//! judgement.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc};
use tokio_util::task::AbortOnDropHandle;
use towline_link::carrier::{Carrier, CarrierKind};
use towline_link::dial::{self, OpenDial, OpenError};
use towline_link::driver::{Link, greet_agent, greet_server};
use towline_link::quic::{EndpointKeys, Options, QuicEndpoint, QuicListener};
use towline_link::tls::{self, TlsOptions};
use towline_pki::tls::presenting;
use towline_pki::{Anchors, DenyList, PeerVerifier};
use towline_proto::control::{Hello, Welcome};
use towline_proto::dial::{ACCEPTED, Dial, DialRequest, Prefixed, Refused};
use towline_proto::id::{DialId, InstanceId, Name, Role};
use towline_proto::limits;
use towline_proto::reason::Reason;
use towline_proto::target::{Class, Target};
use towline_proto::version::{Capabilities, VERSION_MAX, VERSION_MIN};

use crate::authority::{Authority, Pair};

/// A verifier that takes this authority's peers of this role.
pub fn verifier(authority: &Authority, role: Role) -> Arc<PeerVerifier> {
    let anchor = authority.issuer(role).der().clone();
    let anchors = Anchors::new(&[anchor]).expect("the kit's CA certificates are sound");
    let cluster = authority.cluster().parse().expect("a cluster name");
    PeerVerifier::new(cluster, role, anchors, DenyList::default())
}

/// A server of ours that behaves as the scenario wants.
pub struct RogueServer {
    address: SocketAddr,
    links: Mutex<mpsc::UnboundedReceiver<Link>>,
    _task: AbortOnDropHandle<()>,
}

impl RogueServer {
    /// Listens with this certificate, greets as server `s9` and takes agents of `authority`.
    pub async fn start(kind: CarrierKind, authority: &Authority, pair: &Pair) -> io::Result<Self> {
        let agents = verifier(authority, Role::Agent);
        let config = presenting::link_server(pair.chain.clone(), pair.key(), Arc::clone(&agents))
            .map_err(io::Error::other)?;
        let server: Name = "s9".parse().map_err(io::Error::other)?;
        let (deliver, links) = mpsc::unbounded_channel();
        let (address, task) = match kind {
            CarrierKind::Quic => {
                let keys = EndpointKeys::ephemeral().map_err(io::Error::other)?;
                let any = SocketAddr::from(([127, 0, 0, 1], 0));
                let listener = QuicListener::bind(any, config, agents, &keys, Options::default())
                    .map_err(io::Error::other)?;
                let address = listener.local_address()?;
                let accepting = async move {
                    let mut links = tokio::task::JoinSet::new();
                    while let Some(carrier) = listener.accept().await {
                        links.spawn(greet(Arc::new(carrier), server.clone(), deliver.clone()));
                    }
                };
                (address, tokio::spawn(accepting))
            }
            CarrierKind::Tls => {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                let address = listener.local_addr()?;
                let accepting = async move {
                    let mut links = tokio::task::JoinSet::new();
                    while let Ok((tcp, _)) = listener.accept().await {
                        let (config, agents) = (Arc::clone(&config), Arc::clone(&agents));
                        let (server, deliver) = (server.clone(), deliver.clone());
                        links.spawn(async move {
                            if let Ok(carrier) =
                                tls::accept(tcp, config, agents, &TlsOptions::server()).await
                            {
                                greet(carrier, server, deliver).await;
                            }
                        });
                    }
                };
                (address, tokio::spawn(accepting))
            }
        };
        Ok(Self {
            address,
            links: Mutex::new(links),
            _task: AbortOnDropHandle::new(task),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next agent that was greeted.
    pub async fn link(&self) -> Link {
        self.links
            .lock()
            .await
            .recv()
            .await
            .expect("the rogue runs as long as this value lives")
    }
}

async fn greet(carrier: Arc<dyn Carrier>, server: Name, deliver: mpsc::UnboundedSender<Link>) {
    let welcome = Welcome {
        version: VERSION_MAX,
        capabilities: Capabilities::OURS,
        server,
        servers: Vec::new(),
        routes: Vec::new(),
        max_dials: 100,
        software: "rogue".into(),
    };
    if let Ok((link, _, run)) = greet_server(carrier, |_| Ok(welcome)).await
        && deliver.send(link).is_ok()
    {
        run.await;
    }
}

/// Asks the agent behind `link` for a target, calling it what the scenario wants.
pub async fn ask(link: &Link, target: &str, class: Class) -> Result<OpenDial, OpenError> {
    let timeout = Duration::from_secs(10);
    let request = DialRequest::Dial(Dial {
        id: DialId::new(1).expect("not zero"),
        target: target.parse::<Target>().expect("a target"),
        class,
        timeout,
        trace: None,
    });
    dial::open(
        &**link.carrier(),
        &request,
        tokio::time::Instant::now() + timeout,
    )
    .await
}

/// Asks for a host that no honest server could write down: the request is made with a name of the
/// same length, and its bytes are put in the name's place.
pub async fn ask_form(link: &Link, host: &str, port: u16, class: Class) -> Result<(), Reason> {
    let stand_in = "x".repeat(host.len());
    let timeout = Duration::from_secs(10);
    let request = DialRequest::Dial(Dial {
        id: DialId::new(1).expect("not zero"),
        target: format!("{stand_in}:{port}").parse().expect("a target"),
        class,
        timeout,
        trace: None,
    });
    let mut bytes = request.encode();
    let at = bytes
        .windows(stand_in.len())
        .position(|window| window == stand_in.as_bytes())
        .expect("the name as it is");
    bytes[at..at + host.len()].copy_from_slice(host.as_bytes());
    let mut stream = link.carrier().open().await.map_err(|e| e.reason())?;
    let sent = stream.send.send(bytes.into()).await;
    sent.map_err(|error| error.reason())?;
    let mut answer = Vec::new();
    loop {
        let next = stream.recv.recv(limits::READ_CHUNK).await;
        let Some(next) = next.map_err(|error| error.reason())? else {
            return Err(Reason::Protocol);
        };
        answer.extend_from_slice(&next);
        if answer.first() == Some(&ACCEPTED) {
            return Ok(());
        }
        let mut reply = Prefixed::new(limits::DIAL_REPLY_BYTES);
        let body = answer.get(1..).map(|body| reply.push(body));
        if let Some(Ok(Some((body, _)))) = body {
            return Err(Refused::decode(&body).map_or(Reason::Protocol, |told| told.reason));
        }
    }
}

/// A greeting that an honest agent of this name would send.
pub fn hello(name: &str) -> Hello {
    Hello {
        versions: (VERSION_MIN, VERSION_MAX),
        capabilities: Capabilities::OURS,
        instance: InstanceId::new(0x0bad).expect("not zero"),
        name: name.parse().expect("a name"),
        addresses: Vec::new(),
        prefixes: Vec::new(),
        software: "rogue".into(),
    }
}

/// A link to `server` as somebody with this certificate, or with none, not greeted yet.
pub async fn connect(
    kind: CarrierKind,
    server: SocketAddr,
    authority: &Authority,
    pair: Option<&Pair>,
) -> Result<Arc<dyn Carrier>, String> {
    let servers = verifier(authority, Role::Server);
    let own = pair.map(|pair| (pair.chain.clone(), pair.key()));
    let config =
        presenting::link_client(own, Arc::clone(&servers)).map_err(|error| error.to_string())?;
    match kind {
        CarrierKind::Quic => {
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            let endpoint =
                QuicEndpoint::bind(any, Options::default()).map_err(|error| error.to_string())?;
            let link = endpoint
                .connect(server, config, &servers)
                .await
                .map_err(|error| error.to_string())?;
            Ok(Arc::new(link))
        }
        CarrierKind::Tls => {
            let target = server
                .to_string()
                .parse()
                .map_err(|_| "an address is a target".to_owned())?;
            let options = TlsOptions::agent();
            tls::connect(&target, config, servers, None, &options)
                .await
                .map_err(|error| error.to_string())
        }
    }
}

/// Tries to become a link of `server`; the driver of a link that came to be is ended at once.
pub async fn enter(
    kind: CarrierKind,
    server: SocketAddr,
    authority: &Authority,
    pair: Option<&Pair>,
    hello: Hello,
) -> Result<(), String> {
    let carrier = connect(kind, server, authority, pair).await?;
    match greet_agent(carrier, hello).await {
        Ok((link, _, _)) => {
            link.close(Reason::Done);
            Ok(())
        }
        Err(error) => Err(error.to_string()),
    }
}
