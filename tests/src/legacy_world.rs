//! What every test of the agent's legacy mode begins with: an authority, flags, an agent, a
//! target, and ways to wait for what the agent shows.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use towline_agent::args::Args;
use towline_agent::config::Config;
use towline_agent::connect::KernelNetwork;
use towline_agent::run::Agent;
use towline_proto::id::Role;

use crate::authority::Authority;
use crate::legacy_server::{FakeProxyServer, Script, loopback_pair};
use crate::scratch::Scratch;

/// A free port of loopback.
pub fn anywhere() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// A place for one test of the legacy mode.
pub struct World {
    /// Signs legacy servers as it signs kubelets.
    pub authority: Authority,
    /// Files.
    pub scratch: Scratch,
    /// Who signs legacy servers.
    pub ca: PathBuf,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// A new one.
    pub fn new() -> Self {
        let authority = Authority::new("legacy.example");
        let scratch = Scratch::new().unwrap();
        let ca = scratch.write("ca.crt", authority.kubelets().pem()).unwrap();
        Self {
            authority,
            scratch,
            ca,
        }
    }

    /// A fake server on a free port.
    pub async fn server(&self, script: Script) -> FakeProxyServer {
        self.server_at(script, anywhere()).await
    }

    /// A fake server.
    pub async fn server_at(&self, script: Script, bind: SocketAddr) -> FakeProxyServer {
        let pair = loopback_pair(&self.authority, None);
        FakeProxyServer::start(&pair, script, bind).await.unwrap()
    }

    /// Flags of an agent.
    pub fn args(&self, server: SocketAddr, more: &[&str]) -> Vec<String> {
        let mut args: Vec<String> = [
            "towline-agent",
            "--compatibility=konnectivity",
            "--proxy-server-host=127.0.0.1",
            "--health-bind=127.0.0.1:0",
            "--sync-interval=100ms",
            "--sync-interval-cap=200ms",
            "--agent-id=agent-7",
            "--drain-timeout=10s",
        ]
        .map(str::to_owned)
        .to_vec();
        args.push(format!("--admin-server-port={}", free_port()));
        args.push(format!("--proxy-server-port={}", server.port()));
        args.push(format!("--ca-cert={}", self.ca.display()));
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        args
    }

    /// A running agent.
    pub async fn agent(&self, server: SocketAddr, more: &[&str]) -> Agent {
        start(&self.args(server, more)).await
    }

    /// Flags of a Towline identity of this node, and the server's side of it.
    pub fn identity(&self) -> Vec<String> {
        let pair = self
            .authority
            .leaf(Role::Agent, "n7")
            .ips(&[[10, 0, 0, 7].into()])
            .sign();
        let files = pair.write(&self.scratch, "n7").unwrap();
        let issuer = self.authority.issuer(Role::Server);
        let ca = self.scratch.write("servers.crt", issuer.pem()).unwrap();
        vec![
            format!("--cert={}", files.cert.display()),
            format!("--key={}", files.key.display()),
            format!("--server-ca={}", ca.display()),
        ]
    }
}

/// The admin port cannot be 0, so one that was free a moment ago is taken.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A running agent of these flags.
pub async fn start(args: &[String]) -> Agent {
    let args = Args::try_parse_from(args).unwrap();
    let config = Config::from_args(args).unwrap();
    Agent::start(config, Arc::new(KernelNetwork::default()))
        .await
        .unwrap()
}

/// A page of the health port, head included.
pub async fn page(agent: &Agent, path: &str) -> String {
    let mut stream = TcpStream::connect(agent.health_address()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Waits until readiness and metrics are as wanted.
pub async fn until(agent: &Agent, what: &str, seen: impl Fn(&str, &str) -> bool) {
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let report = agent.readiness().report().to_string();
        let metrics = page(agent, "/metrics").await;
        if seen(&report, &metrics) {
            return;
        }
        assert!(
            tokio::time::Instant::now() < end,
            "{what}\n{report}\n{metrics}"
        );
        tokio::task::yield_now().await;
    }
}

/// Accepts one connection of the agent.
pub struct Target {
    listener: TcpListener,
}

impl Target {
    /// On a free port.
    pub async fn new() -> Self {
        Self {
            listener: TcpListener::bind(anywhere()).await.unwrap(),
        }
    }

    /// As a dial names it.
    pub fn address(&self) -> String {
        self.listener.local_addr().unwrap().to_string()
    }

    /// The next connection.
    pub async fn accept(&self) -> TcpStream {
        self.listener.accept().await.unwrap().0
    }
}
