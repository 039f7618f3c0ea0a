//! The real daemons as processes, with throw-away certificates, as an operator would start them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use towline_proto::id::Role;

use super::super::door::{Door, KubeletFiles, TlsFiles};
use super::super::failure::{During, Failure, Result};
use super::super::process::{Launch, Process, START};
use super::super::{agents, kubelets};
use super::konnectivity::{self, Programs};
use super::{Carrier, Chain, Front, Place, Route, free_port, text};
use crate::audit::make_key;
use crate::authority::Authority;
use crate::gateway::GatewayKit;
use crate::scratch::Scratch;

/// The node. It is dialled by name: the agent knows its own kubelet's addresses, and a server refuses
/// every loopback address.
const NODE: &str = "node-1";
/// Largest datagram of the two QUIC peers, as the daemons' `--quic-payload` takes it.
const PAYLOAD: &str = "1452";
const PAYLOAD_JUMBO: &str = "6500";

/// What all chains share: where things are, and who signs.
pub struct Stage {
    pub scratch: Scratch,
    pub authority: Authority,
    /// Konnectivity's programs, built when they are first asked for.
    pub konnectivity: LazyLock<Programs>,
    /// What a front end over TCP shows.
    pub front_end: TlsFiles,
    /// Of the chains that are verified.
    gateway: GatewayKit,
    server: Result<PathBuf>,
    agent: Result<PathBuf>,
}

impl Stage {
    /// Our server's program.
    pub fn server(&self) -> Result<&PathBuf> {
        self.server
            .as_ref()
            .map_err(|error| Failure::new(error.to_string()))
    }

    /// Looks for the daemons beside this program and makes an authority.
    pub fn new() -> Result<Self> {
        let scratch = Scratch::new().during("scratch directory")?;
        let authority = Authority::new("bench.towline.test");
        let here = std::env::current_exe().during("path of this program")?;
        let write = |name: &str, content: &str| scratch.write(name, content).during(name);
        write("agents.pem", authority.issuer(Role::Agent).pem())?;
        write("servers.pem", authority.issuer(Role::Server).pem())?;
        authority
            .leaf(Role::Server, "bench")
            .sign()
            .write(&scratch, "server")
            .during("server")?;
        let kubelet = [IpAddr::from(Ipv4Addr::LOCALHOST)];
        let agent = authority.leaf(Role::Agent, NODE).ips(&kubelet).sign();
        agent.write(&scratch, "agent").during("agent")?;
        let mut stage = Self {
            konnectivity: LazyLock::new(Programs::build),
            front_end: TlsFiles::default(),
            server: daemon(&here, "towline-server"),
            agent: daemon(&here, "towline-agent"),
            gateway: GatewayKit::make(&authority, &scratch),
            scratch,
            authority,
        };
        stage.front_end = konnectivity::papers(&stage)?;
        Ok(stage)
    }

    /// Why Towline cannot be measured, if it cannot.
    #[must_use]
    pub fn obstacle(&self) -> Option<String> {
        let missing = [&self.server, &self.agent]
            .into_iter()
            .filter_map(|path| path.as_ref().err());
        missing.map(ToString::to_string).next()
    }

    /// A file of this stage as text.
    pub(super) fn file(&self, name: &str) -> Result<String> {
        text(&self.scratch.join(name))
    }
}

fn daemon(here: &Path, name: &str) -> Result<PathBuf> {
    let path = here.with_file_name(name);
    if path.is_file() {
        return Ok(path);
    }
    let release = if cfg!(debug_assertions) {
        ""
    } else {
        " --release"
    };
    Err(Failure::new(format!(
        "{name} is not beside the bench: run `cargo build{release} -p {name}` and start again"
    )))
}

fn found(path: &Result<PathBuf>) -> Result<&Path> {
    path.as_deref()
        .map_err(|failure| Failure::new(failure.to_string()))
}

impl Carrier {
    fn flag(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tls => "tls",
        }
    }
}

/// Server, link and agent in front of a target that plays the kubelet.
pub async fn start(
    stage: &Stage,
    (target, kubelet): (Process, SocketAddr),
    place: &Place,
    carrier: Carrier,
    jumbo: bool,
    front: Front,
) -> Result<Chain> {
    let payload = if jumbo { PAYLOAD_JUMBO } else { PAYLOAD };
    let listen = SocketAddr::new(place.route.host(), free_port()?);
    let (server, path) = server(stage, place, carrier, listen, kubelet.port())?;
    let server = server.args(["--quic-payload", payload]).start()?;
    let (line, dialled) = line(place, listen).await?;
    let agent = agent(stage, place, carrier, dialled, kubelet.port())?;
    let agent = agent.args(["--quic-payload", payload]).start()?;
    let target_name = format!("{NODE}:{}", kubelet.port());
    let door = match front {
        Front::Connect => Door::Connect {
            path,
            target: target_name,
        },
        Front::Grpc => Door::Grpc {
            path,
            target: target_name,
        },
    };
    Ok(Chain {
        door,
        target,
        front: Some(server),
        back: Some(agent),
        line,
        link: Some(listen),
    })
}

/// The same in front of a target that is a kubelet with TLS, which the server verifies; with a
/// gateway or without one.
pub async fn start_verified(
    stage: &Stage,
    place: &Place,
    carrier: Carrier,
    gateway: bool,
) -> Result<Chain> {
    let (target, address) = kubelet(stage, place).await?;
    let kit = &stage.gateway;
    let front_end = kit.front_end.write(&stage.scratch, "front-end");
    let front_end = front_end.during("front-end")?;
    let listen = SocketAddr::new(place.route.host(), free_port()?);
    let (server, path) = any_server(stage, place, carrier, listen, address.port())?;
    let server = server.args([
        "--kubelet-certificate-authority",
        &stage.file("kubelets.pem")?,
    ]);
    let server = match gateway {
        true => server.args(kit.flags(&stage.scratch, true)),
        false => server,
    };
    let server = server.start()?;
    let agent = agent(stage, place, carrier, listen, address.port())?.start()?;
    let root = if gateway {
        "gateway.crt"
    } else {
        "kubelets.pem"
    };
    let door = Door::Kubelet {
        path,
        target: format!("{NODE}:{}", address.port()),
        files: KubeletFiles {
            host: NODE.to_owned(),
            cert: front_end.cert,
            key: front_end.key,
            root: stage.scratch.join(root),
        },
    };
    let mut chain = Chain {
        door,
        target,
        front: Some(server),
        back: Some(agent),
        line: None,
        link: Some(listen),
    };
    chain.wait_until_it_works(START).await?;
    Ok(chain)
}

/// A target that is a kubelet with TLS, of the node, and where it listens. Who does not begin with
/// TLS is served as any target serves.
async fn kubelet(stage: &Stage, place: &Place) -> Result<(Process, SocketAddr)> {
    let kubelet = stage.authority.kubelet_leaf(NODE, &[]).sign();
    let kubelet = kubelet.write(&stage.scratch, "kubelet").during("kubelet")?;
    let roots = stage.authority.kubelets().pem();
    let written = stage.scratch.write("kubelets.pem", roots);
    written.during("kubelets.pem")?;
    let arguments = ["target", "--listen", "127.0.0.1:0"];
    let target = Launch::own("target", &place.directory, &arguments)?.args([
        "--cert",
        &text(&kubelet.cert)?,
        "--key",
        &text(&kubelet.key)?,
    ]);
    let mut target = target.start()?;
    let address = target.ready(START).await?;
    let address = address.parse().during("target: address")?;
    Ok((target, address))
}

/// A chain to a kubelet with TLS whose front end sends plain bytes, with the server verifying it or
/// not: the same work at both, but for what a dial asks of the attestation.
pub async fn start_attesting(
    stage: &Stage,
    place: &Place,
    carrier: Carrier,
    enforce: bool,
) -> Result<Chain> {
    let (target, address) = kubelet(stage, place).await?;
    let authority = place.directory.join("kubelets.pem");
    fs::copy(stage.scratch.join("kubelets.pem"), &authority).during("kubelets.pem")?;
    let listen = SocketAddr::new(place.route.host(), free_port()?);
    let (server, path) = any_server(stage, place, carrier, listen, address.port())?;
    let server = match enforce {
        true => server.args(["--kubelet-certificate-authority", &text(&authority)?]),
        false => server.args(["--kubelet-verification", "off"]),
    };
    let server = server.start()?;
    let agent = agent(stage, place, carrier, listen, address.port())?.start()?;
    let mut chain = Chain {
        door: Door::Connect {
            path,
            target: format!("{NODE}:{}", address.port()),
        },
        target,
        front: Some(server),
        back: Some(agent),
        line: None,
        link: Some(listen),
    };
    chain.wait_until_it_works(START).await?;
    Ok(chain)
}

/// A chain whose server has a revocation list of the agents' issuer, `agents.crl` in the place.
pub async fn start_listed(stage: &Stage, place: &Place, carrier: Carrier) -> Result<Chain> {
    let arguments = ["target", "--listen", "127.0.0.1:0"];
    let mut target = Launch::own("target", &place.directory, &arguments)?.start()?;
    let address: SocketAddr = target
        .ready(START)
        .await?
        .parse()
        .during("target: address")?;
    let list = place.directory.join("agents.crl");
    let empty = stage.authority.issuer(Role::Agent).revocation_list(&[]);
    fs::write(&list, empty).during("agents.crl")?;
    let listen = SocketAddr::new(place.route.host(), free_port()?);
    let (server, path) = any_server(stage, place, carrier, listen, address.port())?;
    let server = server.args(["--kubelet-verification", "off"]);
    let server = server.args(["--agent-crl", &text(&list)?]).start()?;
    let agent = agent(stage, place, carrier, listen, address.port())?.start()?;
    let mut chain = Chain {
        door: Door::Connect {
            path,
            target: format!("{NODE}:{}", address.port()),
        },
        target,
        front: Some(server),
        back: Some(agent),
        line: None,
        link: Some(listen),
    };
    chain.wait_until_it_works(START).await?;
    Ok(chain)
}

/// A chain whose server records every dial, or none.
pub async fn start_recorded(
    stage: &Stage,
    place: &Place,
    carrier: Carrier,
    audit: bool,
) -> Result<Chain> {
    let (target, address) = kubelet(stage, place).await?;
    let listen = SocketAddr::new(place.route.host(), free_port()?);
    let (server, path) = server(stage, place, carrier, listen, address.port())?;
    let server = if audit {
        let keys = Scratch::new().during("scratch directory")?;
        make_key(&keys);
        let key = place.directory.join("audit.key");
        fs::copy(keys.join("audit.key"), &key).during("audit.key")?;
        let log = text(&place.directory.join("audit.log"))?;
        server.args(["--audit-log", &log, "--audit-key", &text(&key)?])
    } else {
        server
    };
    let server = server.start()?;
    let agent = agent(stage, place, carrier, listen, address.port())?.start()?;
    let mut chain = Chain {
        door: Door::Connect {
            path,
            target: format!("{NODE}:{}", address.port()),
        },
        target,
        front: Some(server),
        back: Some(agent),
        line: None,
        link: Some(listen),
    };
    chain.wait_until_it_works(START).await?;
    Ok(chain)
}

/// Kubelets with certificates of their own, one for each of so many nodes, on this port.
pub fn kubelets(stage: &Stage, directory: &Path, port: u16, count: usize) -> Result<Process> {
    kubelets::mint(&stage.authority, directory, count)?;
    Launch::own("kubelets", directory, &["kubelets"])?
        .args(["--port", &port.to_string(), "--count", &count.to_string()])
        .args(["--directory", &text(directory)?])
        .start()
}

/// How a server is started that verifies no kubelet, and its door: targets play the kubelet and
/// speak no TLS.
pub fn server(
    stage: &Stage,
    place: &Place,
    carrier: Carrier,
    listen: SocketAddr,
    kubelet_port: u16,
) -> Result<(Launch, PathBuf)> {
    let (launch, door) = any_server(stage, place, carrier, listen, kubelet_port)?;
    Ok((launch.args(["--kubelet-verification", "off"]), door))
}

fn any_server(
    stage: &Stage,
    place: &Place,
    carrier: Carrier,
    listen: SocketAddr,
    kubelet_port: u16,
) -> Result<(Launch, PathBuf)> {
    let door = place.directory.join("door");
    let launch = Launch::new("server", found(&stage.server)?, &place.directory)
        .within(place.route.near())
        .args([
            "--cert",
            &stage.file("server.crt")?,
            "--key",
            &stage.file("server.key")?,
        ])
        .args(["--agent-ca", &stage.file("agents.pem")?])
        .args(["--state-dir", &text(&place.directory.join("server-state"))?])
        .args(["--listen", &listen.to_string(), "--carrier", carrier.flag()])
        .args([
            "--door-unix",
            &text(&door)?,
            "--kubelet-port",
            &kubelet_port.to_string(),
        ])
        .args(["--health-bind", "127.0.0.1:0", "--log-level", "warn"])
        .args([
            "--admin-socket",
            &text(&place.directory.join("server-admin"))?,
        ])
        .args(
            place
                .udp_buffer
                .iter()
                .flat_map(|size| ["--udp-buffer", size]),
        );
    Ok((launch, door))
}

fn agent(
    stage: &Stage,
    place: &Place,
    carrier: Carrier,
    server: SocketAddr,
    kubelet_port: u16,
) -> Result<Launch> {
    Ok(Launch::new("agent", found(&stage.agent)?, &place.directory)
        .within(place.route.far())
        .args([
            "--cert",
            &stage.file("agent.crt")?,
            "--key",
            &stage.file("agent.key")?,
        ])
        .args([
            "--server-ca",
            &stage.file("servers.pem")?,
            "--server",
            &server.to_string(),
        ])
        .args([
            "--carrier",
            carrier.flag(),
            "--kubelet-port",
            &kubelet_port.to_string(),
        ])
        .args(["--health-bind", "127.0.0.1:0", "--log-level", "warn"])
        .args([
            "--admin-socket",
            &text(&place.directory.join("agent-admin"))?,
        ])
        .args(
            place
                .udp_buffer
                .iter()
                .flat_map(|size| ["--udp-buffer", size]),
        ))
}

/// The UDP forwarder in front of the server, if the route wants one, and where the agent dials.
async fn line(place: &Place, server: SocketAddr) -> Result<(Option<Process>, SocketAddr)> {
    let Route::Udp { outward, inward } = &place.route else {
        return Ok((None, server));
    };
    let paths = serde_json::to_string(&(outward, inward)).during("path")?;
    let arguments = ["line", "--server", &server.to_string(), "--paths", &paths];
    let mut line = Launch::own("line", &place.directory, &arguments)?.start()?;
    let dialled = line.ready(START).await?.parse().during("line: address")?;
    Ok((Some(line), dialled))
}

/// A process that holds this many idle links to the server at `address`, each of another agent;
/// with a port, each of a node whose kubelet is one of [`mod@kubelets`].
pub fn idle_agents(
    stage: &Stage,
    directory: &Path,
    carrier: Carrier,
    address: SocketAddr,
    count: usize,
    kubelet_port: Option<u16>,
) -> Result<Process> {
    agents::mint(&stage.authority, directory, count, kubelet_port.is_some())?;
    let arguments = ["agents", "--server", &address.to_string()];
    let port = kubelet_port.map(|port| ["--kubelet-port".to_owned(), port.to_string()]);
    Launch::own("agents", directory, &arguments)?
        .args(port.into_iter().flatten())
        .args(["--carrier", carrier.flag(), "--count", &count.to_string()])
        .args(["--roots", &stage.file("servers.pem")?])
        .args(["--directory", &text(directory)?])
        .start()
}
