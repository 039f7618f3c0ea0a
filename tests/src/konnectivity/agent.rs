//! `proxy-agent`: the real one, or ours in its place.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use towline_proto::id::Role;

use super::metrics::{self, Page};
use super::process::{self, Program};
use super::programs::Maker;
use crate::authority::{Authority, PairFiles};
use crate::scenario::eventually;
use crate::scratch::Scratch;

/// How often a start is tried again after a lost race for a port.
const STARTS: usize = 5;

/// The files it is started from.
pub struct AgentFiles {
    /// Client pair; none with a token.
    pub pair: Option<PairFiles>,
    /// Who signs servers.
    pub servers_ca: PathBuf,
    /// Service-account token.
    pub token: Option<PathBuf>,
}

impl AgentFiles {
    /// A pair without an identity of ours, as Konnectivity's agents have it, by a cluster's authorities.
    pub fn write(authority: &Authority, scratch: &Scratch, name: &str) -> Self {
        let pair = authority.leaf(Role::Agent, name).identities(&[]).sign();
        let ca = authority.issuer(Role::Server).pem();
        Self {
            pair: Some(pair.write(scratch, name).expect("files")),
            servers_ca: scratch
                .write(&format!("{name}-servers.ca"), ca)
                .expect("a file"),
            token: None,
        }
    }
}

/// An agent that is going to be started.
pub struct AgentPlan<'a> {
    maker: Maker,
    name: &'a str,
    server: SocketAddr,
    environment: Vec<(&'static str, String)>,
    flags: Vec<String>,
}

impl<'a> AgentPlan<'a> {
    /// An agent that announces itself as `name` to whoever takes agents at `server`.
    pub fn new(maker: Maker, name: &'a str, server: SocketAddr) -> Self {
        Self {
            maker,
            name,
            server,
            environment: Vec::new(),
            flags: Vec::new(),
        }
    }

    /// Is told its id by the environment, and by no flag.
    pub fn named_by_environment(mut self, id: &str) -> Self {
        self.environment.push(("PROXY_AGENT_ID", id.to_owned()));
        self
    }

    /// More flags, as `--name=value`.
    pub fn flags(mut self, flags: &[&str]) -> Self {
        self.flags
            .extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    /// Starts it and waits until it has a server.
    pub async fn start(self, files: &AgentFiles, scratch: &Scratch) -> ProxyAgent {
        let agent = self.start_alone(files, scratch).await;
        agent.connected().await;
        agent
    }

    /// Starts it and waits until it is alive.
    pub async fn start_alone(self, files: &AgentFiles, scratch: &Scratch) -> ProxyAgent {
        let (path, first) = self.maker.agent().await;
        let mut said = String::new();
        for _ in 0..STARTS {
            let mut agent = self.once(&path, &first, files, scratch);
            let health = agent.health;
            let alive = agent.program.until(|| async move {
                matches!(metrics::get(health, "/healthz").await, Some((200, _)))
            });
            if alive.await.is_some() {
                return agent;
            }
            said = agent.program.last_words();
            if !said.contains("address already in use") {
                break;
            }
        }
        panic!("proxy-agent does not start; {said}");
    }

    fn once(
        &self,
        path: &Path,
        first: &[OsString],
        files: &AgentFiles,
        scratch: &Scratch,
    ) -> ProxyAgent {
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (health, admin) = (local(process::free_port()), local(process::free_port()));
        let mut args: Vec<OsString> = first.to_vec();
        let mut flag = |name: &str, value: &dyn std::fmt::Display| {
            args.push(format!("--{name}={value}").into())
        };
        if self.environment.is_empty() {
            flag("agent-id", &self.name);
        }
        flag("proxy-server-host", &self.server.ip());
        flag("proxy-server-port", &self.server.port());
        flag("ca-cert", &files.servers_ca.display());
        if let Some(pair) = &files.pair {
            flag("agent-cert", &pair.cert.display());
            flag("agent-key", &pair.key.display());
        }
        if let Some(token) = &files.token {
            flag("service-account-token-path", &token.display());
        }
        flag("health-server-host", &"127.0.0.1");
        flag("health-server-port", &health.port());
        flag("admin-bind-address", &"127.0.0.1");
        flag("admin-server-port", &admin.port());
        // What a test waits for should come soon.
        flag("sync-interval", &"100ms");
        flag("sync-interval-cap", &"500ms");
        flag("probe-interval", &"100ms");
        args.extend(self.flags.iter().map(OsString::from));
        let log = scratch.join(format!("{}.log", self.name));
        ProxyAgent {
            program: Program::start(self.name, path, &args, &self.environment, &log),
            health,
            admin,
        }
    }
}

/// A running agent.
pub struct ProxyAgent {
    program: Program,
    /// `/healthz`, `/readyz`, `/metrics`.
    pub health: SocketAddr,
    /// Profiles.
    pub admin: SocketAddr,
}

impl ProxyAgent {
    /// The process.
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    /// Waits until it has a stream to a server.
    pub async fn connected(&self) {
        let health = self.health;
        eventually("the agent's stream to a server", || async move {
            matches!(metrics::get(health, "/readyz").await, Some((200, _))).then_some(())
        })
        .await;
    }

    /// What it counts now.
    pub async fn metrics(&self) -> Page {
        Page::of(self.health).await
    }

    /// Asks it to drain, as a first signal does.
    pub fn drain(&self) {
        self.program.signal(Signal::TERM);
    }

    /// Ends it at once, as a crash does, and waits for that.
    pub async fn end(&mut self) {
        self.program.end().await;
    }
}
