//! Konnectivity's own server and agent, built by Go from its module, as an operator would start them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use towline_proto::id::Role;

use super::super::door::{Door, TlsFiles};
use super::super::failure::{During, Failure, Result};
use super::super::process::{Launch, Process};
use super::towline::Stage;
use super::{Chain, Place, Route, free_port, text};
use crate::konnectivity::programs::Program;

/// How the front end speaks to the server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    Grpc,
    Connect,
    ConnectTls,
}

/// Its programs, or why there are none.
pub struct Programs {
    server: Result<PathBuf>,
    agent: Result<PathBuf>,
}

impl Programs {
    /// Builds them unless that was done before.
    #[must_use]
    pub fn build() -> Self {
        let build = |program: Program| program.build().during(format_args!("{program:?}"));
        Self {
            server: build(Program::ProxyServer),
            agent: build(Program::ProxyAgent),
        }
    }

    /// Why it cannot be measured, if it cannot.
    #[must_use]
    pub fn obstacle(&self) -> Option<String> {
        let missing = [&self.server, &self.agent]
            .into_iter()
            .filter_map(|path| path.as_ref().err());
        missing.map(ToString::to_string).next()
    }
}

fn found(path: &Result<PathBuf>) -> Result<&PathBuf> {
    path.as_ref()
        .map_err(|failure| Failure::new(failure.to_string()))
}

/// Writes what its server and a front end over TCP need beside the stage's own files.
pub fn papers(stage: &Stage) -> Result<TlsFiles> {
    let (authority, scratch) = (&stage.authority, &stage.scratch);
    let local = [Ipv4Addr::LOCALHOST.into()];
    let server = authority.leaf(Role::Server, "proxy-server").ips(&local);
    server
        .sign()
        .write(scratch, "proxy-server")
        .during("proxy-server")?;
    let front_end = authority.leaf(Role::Client, "kube-apiserver").sign();
    let files = front_end.write(scratch, "front-end").during("front-end")?;
    Ok(TlsFiles {
        cert: files.cert,
        key: files.key,
        ca: scratch.join("servers.pem"),
    })
}

/// Server and agent in front of the target.
pub fn start(
    stage: &Stage,
    (target, address): (Process, SocketAddr),
    place: &Place,
    mode: Mode,
) -> Result<Chain> {
    if !matches!(place.route, Route::Loopback) {
        return Err(Failure::new("only on loopback"));
    }
    let agents = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let (server, door) = server(stage, place, mode, agents, address)?;
    let agent = agent(stage, place, agents)?;
    Ok(Chain {
        door,
        target,
        front: Some(server.start()?),
        back: Some(agent.start()?),
        line: None,
        link: Some(agents),
    })
}

fn server(
    stage: &Stage,
    place: &Place,
    mode: Mode,
    agents: SocketAddr,
    target: SocketAddr,
) -> Result<(Launch, Door)> {
    let (cert, key) = (
        stage.file("proxy-server.crt")?,
        stage.file("proxy-server.key")?,
    );
    let launch = Launch::new(
        "proxy-server",
        found(&stage.konnectivity.server)?,
        &place.directory,
    )
    .args([
        format!("--agent-port={}", agents.port()),
        format!("--health-port={}", free_port()?),
        format!("--admin-port={}", free_port()?),
        format!("--cluster-cert={cert}"),
        format!("--cluster-key={key}"),
        format!("--cluster-ca-cert={}", stage.file("agents.pem")?),
        // Its default is 4, which writes a line for every packet; ours run at `warn`, too.
        "--v=0".to_owned(),
    ])
    .args(
        ["server", "agent", "health", "admin"]
            .map(|part| format!("--{part}-bind-address=127.0.0.1")),
    );
    let target = target.to_string();
    Ok(match mode {
        Mode::Grpc | Mode::Connect => {
            let path = place.directory.join("door");
            let launch = launch.args([
                format!("--uds-name={}", text(&path)?),
                "--server-port=0".to_owned(),
                format!("--mode={}", mode.flag()),
            ]);
            let door = match mode {
                Mode::Grpc => Door::Grpc { path, target },
                _ => Door::Connect { path, target },
            };
            (launch, door)
        }
        Mode::ConnectTls => {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
            let launch = launch.args([
                format!("--server-port={}", address.port()),
                format!("--server-cert={cert}"),
                format!("--server-key={key}"),
                format!("--server-ca-cert={}", stage.file("servers.pem")?),
                format!("--mode={}", mode.flag()),
            ]);
            let files = stage.front_end.clone();
            let door = Door::ConnectTls {
                address,
                target,
                files,
            };
            (launch, door)
        }
    })
}

fn agent(stage: &Stage, place: &Place, server: SocketAddr) -> Result<Launch> {
    let launch = Launch::new(
        "proxy-agent",
        found(&stage.konnectivity.agent)?,
        &place.directory,
    );
    Ok(launch.args([
        format!("--proxy-server-host={}", server.ip()),
        format!("--proxy-server-port={}", server.port()),
        format!("--ca-cert={}", stage.file("servers.pem")?),
        format!("--agent-cert={}", stage.file("agent.crt")?),
        format!("--agent-key={}", stage.file("agent.key")?),
        "--health-server-host=127.0.0.1".to_owned(),
        format!("--health-server-port={}", free_port()?),
        format!("--admin-server-port={}", free_port()?),
        "--v=0".to_owned(),
    ]))
}

impl Mode {
    fn flag(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Connect | Self::ConnectTls => "http-connect",
        }
    }
}
