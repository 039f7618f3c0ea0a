//! One server, one agent and the front end of their mode, each from whoever makes it.

use std::net::SocketAddr;

use towline_proto::id::Role;

use super::agent::{AgentFiles, AgentPlan, ProxyAgent};
use super::front_end::{Dialler, FrontEnd, TlsFiles};
use super::programs::Maker;
use super::server::{Mode, ProxyServer, ServerFiles, ServerPlan};
use crate::authority::Authority;
use crate::scenario::eventually;
use crate::scratch::Scratch;

/// Who makes the server and who the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Makers {
    /// The server's maker.
    pub server: Maker,
    /// The agent's maker.
    pub agent: Maker,
}

impl Makers {
    /// Our server, their agent.
    pub const OUR_SERVER: Makers = Makers {
        server: Maker::Towline,
        agent: Maker::Konnectivity,
    };
    /// Their server, our agent.
    pub const OUR_AGENT: Makers = Makers {
        server: Maker::Konnectivity,
        agent: Maker::Towline,
    };
    /// Both ours.
    pub const OURS: Makers = Makers {
        server: Maker::Towline,
        agent: Maker::Towline,
    };
    /// Both theirs.
    pub const THEIRS: Makers = Makers {
        server: Maker::Konnectivity,
        agent: Maker::Konnectivity,
    };
}

/// A running pairing.
pub struct Pairing {
    /// Who signs everybody.
    pub authority: Authority,
    /// Where files are.
    pub scratch: Scratch,
    /// Named `ps`.
    pub server: ProxyServer,
    /// Named `pa`, connected.
    pub agent: ProxyAgent,
    /// As kube-apiserver in this mode.
    pub front_end: FrontEnd,
    server_files: ServerFiles,
    /// What its agents are started from.
    pub agent_files: AgentFiles,
    makers: Makers,
    mode: Mode,
}

impl Pairing {
    /// Starts it.
    pub async fn start(makers: Makers, mode: Mode) -> Self {
        Self::with(makers, mode, &[], &[]).await
    }

    /// Starts it with more flags.
    pub async fn with(makers: Makers, mode: Mode, server: &[&str], agent: &[&str]) -> Self {
        let scratch = Scratch::new().expect("a temporary directory");
        let authority = Authority::new("kit.example");
        let server_files = ServerFiles::write(&authority, &scratch, "ps");
        let plan = ServerPlan::new(makers.server, "ps", mode).flags(server);
        let server = plan.start(&server_files, &scratch).await;
        let agent_files = AgentFiles::write(&authority, &scratch, "pa");
        let plan = AgentPlan::new(makers.agent, "pa", server.agents).flags(agent);
        let agent = plan.start(&agent_files, &scratch).await;
        let dialler = dialler(mode, &server, &authority, &scratch);
        let front_end = FrontEnd::start(&dialler, &scratch).await;
        Self {
            authority,
            scratch,
            server,
            agent,
            front_end,
            server_files,
            agent_files,
            makers,
            mode,
        }
    }

    /// Another agent of the same maker and certificate, connected.
    pub async fn another_agent(&self, name: &str, flags: &[&str]) -> ProxyAgent {
        self.agent_of(self.makers.agent, name, self.server.agents, flags)
            .await
    }

    /// Another agent with the same certificate, connected.
    pub async fn agent_of(
        &self,
        maker: Maker,
        name: &str,
        server: SocketAddr,
        flags: &[&str],
    ) -> ProxyAgent {
        let plan = AgentPlan::new(maker, name, server).flags(flags);
        plan.start(&self.agent_files, &self.scratch).await
    }

    /// Another server with the same certificate.
    pub async fn server_of(&self, maker: Maker, name: &str, flags: &[&str]) -> ProxyServer {
        let plan = ServerPlan::new(maker, name, self.mode).flags(flags);
        plan.start(&self.server_files, &self.scratch).await
    }

    /// Ends the server and puts one of this maker in its place, for agents and front ends.
    pub async fn replace_server(&mut self, maker: Maker) {
        self.replace_server_with(maker, &[]).await;
    }

    /// The same with more flags.
    pub async fn replace_server_with(&mut self, maker: Maker, flags: &[String]) {
        self.server.end().await;
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let plan = ServerPlan::new(maker, "ps", self.mode).flags(&flags);
        let plan = plan.in_place_of(&self.server);
        self.server = plan.start(&self.server_files, &self.scratch).await;
    }

    /// A front end of this pairing's mode at another server.
    pub async fn front_end_of(&self, server: &ProxyServer) -> FrontEnd {
        let dialler = dialler(self.mode, server, &self.authority, &self.scratch);
        FrontEnd::start(&dialler, &self.scratch).await
    }

    /// Waits until nothing is open or pending any more at the server.
    pub async fn quiet(&self) {
        self.has("pending_backend_dials", 0.0).await;
        self.has("established_connections", 0.0).await;
    }

    /// Waits until this gauge of the server has this value. A family that was never used is not there.
    pub async fn has(&self, gauge: &str, value: f64) {
        let name = format!("konnectivity_network_proxy_server_{gauge}");
        eventually(&name, || async {
            let page = self.server.metrics().await;
            (page.sum(&name, &[]).unwrap_or(0.0) == value).then_some(())
        })
        .await;
    }

    /// The newer client at this pairing's server: one connection for all its dials.
    pub async fn reusable(&self) -> FrontEnd {
        let dialler = match (&self.server.door_unix, self.server.door_tcp) {
            (Some(socket), _) => Dialler::Reusable(socket.clone()),
            (None, Some(address)) => {
                Dialler::ReusableTcp(address, papers(&self.authority, &self.scratch))
            }
            (None, None) => panic!("the server has no door"),
        };
        FrontEnd::start(&dialler, &self.scratch).await
    }
}

fn papers(authority: &Authority, scratch: &Scratch) -> TlsFiles {
    let pair = authority.leaf(Role::Client, "kube-apiserver").sign();
    TlsFiles {
        pair: pair.write(scratch, "front-end").expect("files"),
        ca: scratch
            .write("front-end.ca", authority.issuer(Role::Server).pem())
            .expect("a file"),
    }
}

/// What kube-apiserver dials with in this mode.
pub fn dialler(
    mode: Mode,
    server: &ProxyServer,
    authority: &Authority,
    scratch: &Scratch,
) -> Dialler {
    let socket = || server.door_unix.clone().expect("a socket");
    let tcp = || (server.door_tcp.expect("a port"), papers(authority, scratch));
    match mode {
        Mode::GrpcUnix => Dialler::ApiserverGrpc(socket()),
        Mode::ConnectUnix => Dialler::ApiserverConnect(socket()),
        Mode::GrpcTcp => {
            let (address, files) = tcp();
            Dialler::SingleTcp(address, files)
        }
        Mode::ConnectTcp => {
            let (address, files) = tcp();
            Dialler::ApiserverConnectTcp(address, files)
        }
    }
}
