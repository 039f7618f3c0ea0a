//! `proxy-server`: the real one, or ours in its place.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use tokio::net::UnixStream;
use towline_proto::id::Role;

use super::metrics::{self, Page};
use super::process::{self, Program};
use super::programs::Maker;
use crate::authority::{Authority, PairFiles};
use crate::scratch::Scratch;

/// How often a start is tried again after a lost race for a port.
const STARTS: usize = 5;

/// What its front-end door speaks, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// gRPC on a Unix socket.
    GrpcUnix,
    /// gRPC on TCP with mutual TLS.
    GrpcTcp,
    /// CONNECT on a Unix socket.
    ConnectUnix,
    /// CONNECT on TCP with mutual TLS.
    ConnectTcp,
}

impl Mode {
    /// All of them.
    pub const ALL: [Mode; 4] = [
        Mode::GrpcUnix,
        Mode::GrpcTcp,
        Mode::ConnectUnix,
        Mode::ConnectTcp,
    ];

    fn flag(self) -> &'static str {
        match self {
            Self::GrpcUnix | Self::GrpcTcp => "--mode=grpc",
            Self::ConnectUnix | Self::ConnectTcp => "--mode=http-connect",
        }
    }

    /// Whether front ends speak gRPC, else CONNECT.
    pub fn is_grpc(self) -> bool {
        matches!(self, Self::GrpcUnix | Self::GrpcTcp)
    }

    fn is_unix(self) -> bool {
        matches!(self, Self::GrpcUnix | Self::ConnectUnix)
    }
}

/// The files it is started from.
pub struct ServerFiles {
    /// Serving pair towards front ends and agents.
    pub pair: PairFiles,
    /// Who signs agents.
    pub agents_ca: PathBuf,
    /// Who signs front ends.
    pub clients_ca: PathBuf,
}

impl ServerFiles {
    /// A serving pair and trust files by the authorities of a cluster, under names of `name`.
    pub fn write(authority: &Authority, scratch: &Scratch, name: &str) -> Self {
        let leaf = authority.leaf(Role::Server, name).identities(&[]);
        let pair = leaf.ips(&[[127, 0, 0, 1].into()]).name("localhost").sign();
        let ca = |name: String, role| {
            let pem = authority.issuer(role).pem();
            scratch.write(&name, pem).expect("a file")
        };
        Self {
            pair: pair.write(scratch, name).expect("files"),
            agents_ca: ca(format!("{name}-agents.ca"), Role::Agent),
            clients_ca: ca(format!("{name}-clients.ca"), Role::Client),
        }
    }
}

/// A running server.
pub struct ProxyServer {
    program: Program,
    /// Where agents connect.
    pub agents: SocketAddr,
    /// Where front ends connect, unless it is the socket.
    pub door_tcp: Option<SocketAddr>,
    /// The front ends' socket.
    pub door_unix: Option<PathBuf>,
    /// `/healthz`, `/readyz`, `/metrics`.
    pub health: SocketAddr,
    /// `/metrics`, profiles.
    pub admin: SocketAddr,
}

/// A server that is going to be started.
pub struct ServerPlan<'a> {
    maker: Maker,
    name: &'a str,
    mode: Mode,
    agents: Option<SocketAddr>,
    door: Option<SocketAddr>,
    environment: Vec<(&'static str, String)>,
    flags: Vec<String>,
}

impl<'a> ServerPlan<'a> {
    /// A server that announces itself as `name`.
    pub fn new(maker: Maker, name: &'a str, mode: Mode) -> Self {
        Self {
            maker,
            name,
            mode,
            agents: None,
            door: None,
            environment: Vec::new(),
            flags: Vec::new(),
        }
    }

    /// Takes agents and front ends where this one did.
    pub fn in_place_of(mut self, earlier: &ProxyServer) -> Self {
        self.agents = Some(earlier.agents);
        self.door = earlier.door_tcp;
        self
    }

    /// Is told its id by the environment, and by no flag.
    pub fn named_by_environment(mut self, id: &str) -> Self {
        self.environment.push(("PROXY_SERVER_ID", id.to_owned()));
        self
    }

    /// More flags, as `--name=value`.
    pub fn flags(mut self, flags: &[&str]) -> Self {
        self.flags
            .extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    /// Starts it and waits until it serves.
    pub async fn start(self, files: &ServerFiles, scratch: &Scratch) -> ProxyServer {
        let (path, first) = self.maker.server().await;
        let mut said = String::new();
        for _ in 0..STARTS {
            let mut server = self.once(&path, &first, files, scratch);
            let (health, socket) = (server.health, server.door_unix.clone());
            let up = server.program.until(|| {
                let socket = socket.clone();
                async move {
                    let healthy = metrics::get(health, "/healthz").await;
                    let door = match socket {
                        Some(socket) => UnixStream::connect(socket).await.is_ok(),
                        None => true,
                    };
                    matches!(healthy, Some((200, _))) && door
                }
            });
            if up.await.is_some() {
                return server;
            }
            said = server.program.last_words();
            if !said.contains("address already in use") {
                break;
            }
        }
        panic!("proxy-server does not start; {said}");
    }

    fn once(
        &self,
        path: &Path,
        first: &[OsString],
        files: &ServerFiles,
        scratch: &Scratch,
    ) -> ProxyServer {
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let agents = self.agents.unwrap_or_else(|| local(process::free_port()));
        let (health, admin) = (local(process::free_port()), local(process::free_port()));
        let mut args: Vec<OsString> = first.to_vec();
        let mut flag = |name: &str, value: &dyn std::fmt::Display| {
            args.push(format!("--{name}={value}").into())
        };
        if self.environment.is_empty() {
            flag("server-id", &self.name);
        }
        for bind in ["server", "agent", "health", "admin"] {
            flag(&format!("{bind}-bind-address"), &"127.0.0.1");
        }
        flag("agent-port", &agents.port());
        flag("health-port", &health.port());
        flag("admin-port", &admin.port());
        flag("cluster-cert", &files.pair.cert.display());
        flag("cluster-key", &files.pair.key.display());
        let token = self
            .flags
            .iter()
            .any(|flag| flag.starts_with("--authentication-audience"));
        if !token {
            flag("cluster-ca-cert", &files.agents_ca.display());
        }
        let (mut door_unix, mut door_tcp) = (None, None);
        if self.mode.is_unix() {
            let socket = scratch.join(format!("{}.sock", self.name));
            flag("uds-name", &socket.display());
            flag("server-port", &0);
            door_unix = Some(socket);
        } else {
            let door = self.door.unwrap_or_else(|| local(process::free_port()));
            flag("server-port", &door.port());
            flag("server-cert", &files.pair.cert.display());
            flag("server-key", &files.pair.key.display());
            flag("server-ca-cert", &files.clients_ca.display());
            door_tcp = Some(door);
        }
        args.push(self.mode.flag().into());
        args.extend(self.flags.iter().map(OsString::from));
        let log = scratch.join(format!("{}.log", self.name));
        ProxyServer {
            program: Program::start(self.name, path, &args, &self.environment, &log),
            agents,
            door_tcp,
            door_unix,
            health,
            admin,
        }
    }
}

impl ProxyServer {
    /// The process.
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    /// What it counts now.
    pub async fn metrics(&self) -> Page {
        Page::of(self.health).await
    }

    /// Whether `/readyz` says 200: an agent is connected.
    pub async fn ready(&self) -> bool {
        matches!(metrics::get(self.health, "/readyz").await, Some((200, _)))
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        self.program.signal(Signal::TERM);
    }

    /// Ends it at once, as a crash does, and waits for that.
    pub async fn end(&mut self) {
        self.program.end().await;
    }
}
