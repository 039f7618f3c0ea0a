//! A whole cluster in one process: servers, agents, kubelets, targets, front ends. Built in one
//! line, on free ports, from flags and files as an operator gives them; gone on drop.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use clap::Parser;
use towline_agent::run::Agent;
use towline_link::carrier::CarrierKind;
use towline_proto::id::Role;
use towline_server::run::Server;

use crate::apiserver::FakeApiserver;
use crate::audit::{self, AuditTrail};
use crate::authority::{Authority, Pair, PairFiles};
use crate::forwarder::Forwarder;
use crate::gateway::GatewayKit;
use crate::kubelet::FakeKubelet;
use crate::network::{MappedNetwork, Wire};
use crate::scenario::{eventually, expect};
use crate::scratch::Scratch;
use crate::target::{Behaviour, Target};

/// The port of every kubelet.
pub const KUBELET_PORT: u16 = 10250;
/// Where pods live.
pub const POD_PREFIX: &str = "10.244.0.0/16";
/// Where services live.
pub const SERVICE_PREFIX: &str = "10.96.0.0/12";
/// Where nodes live.
pub const NODE_PREFIX: &str = "10.0.0.0/24";

/// The certificate address of node `n<number>`.
pub fn node_ip(number: u8) -> IpAddr {
    [10, 0, 0, number].into()
}

/// What a cluster is going to be.
pub struct Plan {
    carrier: String,
    servers: usize,
    agents: u8,
    path: Option<PathKind>,
    compatible: bool,
    server_flags: Vec<String>,
    agent_flags: Vec<String>,
    gateway: bool,
    lists: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PathKind {
    Clear,
    WithoutUdp,
}

impl Plan {
    /// One server and one agent, `n1`, on this carrier.
    pub fn on(carrier: CarrierKind) -> Self {
        Self::on_named(carrier.as_str())
    }

    /// The same with `--carrier auto`.
    pub fn on_auto() -> Self {
        Self::on_named("auto")
    }

    fn on_named(carrier: &str) -> Self {
        Self {
            carrier: carrier.to_owned(),
            servers: 1,
            agents: 1,
            path: None,
            compatible: false,
            server_flags: Vec::new(),
            agent_flags: Vec::new(),
            gateway: false,
            lists: false,
        }
    }

    /// So many servers.
    pub fn servers(mut self, count: usize) -> Self {
        self.servers = count;
        self
    }

    /// So many agents: `n1`, `n2`, ...
    pub fn agents(mut self, count: u8) -> Self {
        self.agents = count;
        self
    }

    /// A path between agents and the first server that can be cut.
    pub fn path(mut self) -> Self {
        self.path = Some(PathKind::Clear);
        self
    }

    /// The same, and UDP is blocked from the start.
    pub fn path_without_udp(mut self) -> Self {
        self.path = Some(PathKind::WithoutUdp);
        self
    }

    /// Servers that also take legacy agents, by certificate of the agents' authority.
    pub fn compatible(mut self) -> Self {
        self.compatible = true;
        self
    }

    /// Flags of every server.
    pub fn server_flags(mut self, flags: &[&str]) -> Self {
        self.server_flags
            .extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    /// Nobody looks at kubelets: for targets at a kubelet's address that are none, and for
    /// scenarios that count what agents connect to.
    pub fn unverified_kubelets(self) -> Self {
        self.server_flags(&["--kubelet-verification", "off"])
    }

    /// Servers are kubelet gateways, with the files of [`Cluster::gateway`].
    pub fn gateway(mut self) -> Self {
        self.gateway = true;
        self
    }

    /// Both ends have revocation lists, and agents a deny list.
    pub fn lists(mut self) -> Self {
        self.lists = true;
        self
    }

    /// Flags of every agent.
    pub fn agent_flags(mut self, flags: &[&str]) -> Self {
        self.agent_flags
            .extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    /// Builds it and waits until every agent has a link to every server.
    pub async fn start(self) -> Cluster {
        let cluster = self.start_unlinked().await;
        cluster.linked().await;
        cluster
    }

    /// Builds it and waits for nothing.
    pub async fn start_unlinked(self) -> Cluster {
        let mut cluster = Cluster::empty(self);
        for index in 0..cluster.plan.servers {
            cluster.start_server(index).await;
        }
        if let Some(kind) = cluster.plan.path {
            let server = cluster.servers[0]
                .as_ref()
                .expect("just started")
                .link_address();
            let path = match kind {
                PathKind::Clear => Forwarder::start(server).await,
                PathKind::WithoutUdp => Forwarder::start_without_udp(server).await,
            };
            cluster.path = Some(path.expect("a path on loopback"));
        }
        for number in 1..=cluster.plan.agents {
            cluster.start_agent(&format!("n{number}")).await;
        }
        cluster
    }
}

/// A running cluster.
pub struct Cluster {
    plan: Plan,
    /// Who signs.
    pub authority: Authority,
    /// Somebody else who signs for a cluster of the same name.
    pub stranger: Authority,
    /// Who signs for the kubelet gateway.
    pub gateway: GatewayKit,
    /// Where the agents' connections lead.
    pub wire: Wire,
    path: Option<Forwarder>,
    servers: Vec<Option<Server>>,
    addresses: Vec<SocketAddr>,
    agents: BTreeMap<String, Agent>,
    pairs: BTreeMap<String, PairFiles>,
    scratch: Scratch,
}

impl Cluster {
    fn empty(plan: Plan) -> Self {
        let authority = Authority::new("kit.example");
        let scratch = Scratch::new().expect("a temporary directory");
        for (name, role) in [("agents", Role::Agent), ("servers", Role::Server)] {
            scratch
                .write(&format!("{name}.ca"), authority.issuer(role).pem())
                .expect("a file");
            let list = authority.issuer(role).revocation_list(&[]);
            scratch.write(&format!("{name}.crl"), list).expect("a file");
        }
        let kubelets = authority.kubelets().pem();
        scratch.write("kubelets.ca", kubelets).expect("a file");
        let none_revoked = authority.kubelets().revocation_list(&[]);
        scratch.write("kubelets.crl", none_revoked).expect("a file");
        for name in ["deny", "deny-servers"] {
            scratch.write(name, "").expect("a file");
        }
        audit::make_key(&scratch);
        Self {
            plan,
            stranger: Authority::new("kit.example"),
            gateway: GatewayKit::make(&authority, &scratch),
            authority,
            wire: Wire::default(),
            path: None,
            servers: Vec::new(),
            addresses: Vec::new(),
            agents: BTreeMap::new(),
            pairs: BTreeMap::new(),
            scratch,
        }
    }

    /// The temporary directory.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// The path between agents and the first server.
    pub fn path(&self) -> &Forwarder {
        self.path.as_ref().expect("the plan asked for a path")
    }

    /// The audit trail of server `index`.
    pub fn audit(&self, index: usize) -> AuditTrail {
        let log = self.scratch.join(format!("audit-{index}"));
        AuditTrail::at(log, self.scratch.join("audit.pub"))
    }

    /// The flags of server `index`; `listen` is where it takes links.
    pub fn server_args(&self, index: usize, pair: &PairFiles, listen: &str) -> Vec<String> {
        let state = self.scratch.join(format!("state-{index}"));
        let file = |name: &str| self.scratch.join(name).display().to_string();
        let mut args: Vec<String> = [
            "towline-server",
            "--cert",
            &pair.cert.display().to_string(),
            "--key",
            &pair.key.display().to_string(),
            "--agent-ca",
            &file("agents.ca"),
            "--client-ca",
            &file("servers.ca"),
            "--kubelet-certificate-authority",
            &file("kubelets.ca"),
            "--kubelet-crl",
            &file("kubelets.crl"),
            "--admin-socket",
            &file(&format!("admin-{index}")),
            "--deny-list",
            &file("deny"),
            "--state-dir",
            &state.display().to_string(),
            "--listen",
            listen,
            "--door-unix",
            &file(&format!("door-{index}")),
            "--door-tcp",
            "127.0.0.1:0",
            "--door-allow",
            "kube-apiserver",
            "--pod-cidr",
            POD_PREFIX,
            "--service-cidr",
            SERVICE_PREFIX,
            "--node-cidr",
            NODE_PREFIX,
            "--audit-log",
            &file(&format!("audit-{index}")),
            "--audit-key",
            &file("audit.key"),
            "--health-bind",
            "127.0.0.1:0",
        ]
        .map(str::to_owned)
        .into();
        if self.plan.gateway {
            let given = "--kubelet-gateway-cert".to_owned();
            let own = !self.plan.server_flags.contains(&given);
            args.extend(self.gateway.flags(&self.scratch, own));
        }
        if self.plan.lists {
            for (flag, name) in [
                ("--agent-crl", "agents.crl"),
                ("--client-crl", "servers.crl"),
            ] {
                args.extend([flag.to_owned(), file(name)]);
            }
        }
        if self.plan.compatible {
            args.extend(self.compatible_args(pair));
        }
        extend(&mut args, &self.plan.server_flags);
        args
    }

    /// The flags of an agent with this certificate.
    pub fn agent_args(&self, pair: &PairFiles) -> Vec<String> {
        let mut args: Vec<String> = [
            "towline-agent",
            "--cert",
            &pair.cert.display().to_string(),
            "--key",
            &pair.key.display().to_string(),
            "--server-ca",
            &self.scratch.join("servers.ca").display().to_string(),
            "--carrier",
            &self.plan.carrier,
            "--http-proxy",
            "off",
            "--health-bind",
            "127.0.0.1:0",
        ]
        .map(str::to_owned)
        .into();
        for (index, address) in self.addresses.iter().enumerate() {
            let address = match &self.path {
                Some(path) if index == 0 => path.address(),
                _ => *address,
            };
            args.extend(["--server".to_owned(), address.to_string()]);
        }
        if self.plan.lists {
            for (flag, name) in [
                ("--server-crl", "servers.crl"),
                ("--deny-list", "deny-servers"),
            ] {
                let path = self.scratch.join(name).display().to_string();
                args.extend([flag.to_owned(), path]);
            }
        }
        extend(&mut args, &self.plan.agent_flags);
        args
    }

    /// A certificate of a server, with what ordinary TLS clients look for.
    pub fn server_pair(&self, index: usize) -> Pair {
        let leaf = self.authority.leaf(Role::Server, &format!("s{index}"));
        leaf.ips(&[[127, 0, 0, 1].into()]).name("localhost").sign()
    }

    /// A certificate of node `n<number>`.
    pub fn agent_pair(&self, name: &str) -> Pair {
        let number = name.trim_start_matches('n').parse().unwrap_or(1);
        self.authority
            .leaf(Role::Agent, name)
            .ips(&[node_ip(number)])
            .sign()
    }

    /// Starts server `index` for the first time, or again on its old address.
    pub async fn start_server(&mut self, index: usize) {
        let pair = self
            .server_pair(index)
            .write(&self.scratch, &format!("s{index}"))
            .expect("files");
        self.pairs.insert(format!("s{index}"), pair.clone());
        let listen = match self.addresses.get(index) {
            Some(address) => address.to_string(),
            None => "127.0.0.1:0".to_owned(),
        };
        let args = self.server_args(index, &pair, &listen);
        let server = if index < self.addresses.len() {
            // The sockets of a killed server go when its aborted tasks do, a moment later.
            eventually("the server's start on its old port", || async {
                start_server(&args).await.ok()
            })
            .await
        } else {
            start_server(&args).await.expect("the server starts")
        };
        if index == self.addresses.len() {
            self.addresses.push(server.link_address());
            self.servers.push(Some(server));
        } else {
            self.servers[index] = Some(server);
        }
    }

    /// Ends server `index` at once, as a crash does.
    pub fn kill_server(&mut self, index: usize) {
        self.servers[index] = None;
    }

    /// Starts an agent with a new certificate.
    pub async fn start_agent(&mut self, name: &str) {
        let pair = self.agent_pair(name);
        self.start_agent_with(name, &pair).await;
    }

    /// Starts an agent with a certificate of the scenario's choice.
    pub async fn start_agent_with(&mut self, name: &str, pair: &Pair) {
        let files = pair.write(&self.scratch, name).expect("files");
        let agent = self.second_agent(name, &files).await;
        self.pairs.insert(name.to_owned(), files);
        self.agents.insert(name.to_owned(), agent);
    }

    /// An agent process beside those of the cluster, on the files of another one if wanted.
    pub async fn second_agent(&self, name: &str, files: &PairFiles) -> Agent {
        let number = name.trim_start_matches('n').parse().unwrap_or(1);
        let network = MappedNetwork::new(&self.wire, &[node_ip(number)]);
        start_agent(&self.agent_args(files), network)
            .await
            .expect("the agent starts")
    }

    /// Ends an agent at once, as a crash does.
    pub fn kill_agent(&mut self, name: &str) {
        self.agents.remove(name);
    }

    /// Takes an agent out, still running.
    pub fn take_agent(&mut self, name: &str) -> Agent {
        self.agents.remove(name).expect("an agent of the cluster")
    }

    /// A server of the cluster.
    pub fn server(&self, index: usize) -> &Server {
        self.servers[index].as_ref().expect("a running server")
    }

    /// Takes a server out, still running.
    pub fn take_server(&mut self, index: usize) -> Server {
        self.servers[index].take().expect("a running server")
    }

    /// An agent of the cluster.
    pub fn agent(&self, name: &str) -> &Agent {
        &self.agents[name]
    }

    /// The files from which `n1` or `s0` reads its certificate.
    pub fn files(&self, name: &str) -> &PairFiles {
        &self.pairs[name]
    }

    /// Waits until every agent has a link to every running server.
    pub async fn linked(&self) {
        let servers = self.servers.iter().flatten().count();
        for (name, agent) in &self.agents {
            let what = format!("{name}'s links");
            expect(&what, links_of(agent, servers)).await;
        }
    }

    /// A front end on the first server's Unix socket.
    pub fn apiserver(&self) -> FakeApiserver {
        self.apiserver_of(0)
    }

    /// A front end on server `index`'s Unix socket.
    pub fn apiserver_of(&self, index: usize) -> FakeApiserver {
        FakeApiserver::unix(&self.scratch.join(format!("door-{index}")))
    }

    /// A front end on the first server's TCP door, with the certificate that it allows.
    pub fn apiserver_tcp(&self) -> FakeApiserver {
        let pair = self.authority.leaf(Role::Client, "kube-apiserver").sign();
        self.apiserver_with(Some(&pair))
    }

    /// A front end on the first server's TCP door, with any certificate or none.
    pub fn apiserver_with(&self, pair: Option<&Pair>) -> FakeApiserver {
        let door = self.server(0).door_tcp().expect("the kit opens a TCP door");
        FakeApiserver::tcp(door, pair, self.authority.issuer(Role::Server).der())
    }

    /// A target with this behaviour at a pod, service or node address.
    pub async fn target(&self, address: &str, behaviour: Behaviour) -> Target {
        let target = Target::start(behaviour)
            .await
            .expect("a target on loopback");
        self.wire
            .lead(address.parse().expect("ip:port"), target.address());
        target
    }

    /// The kubelet of node `n<number>`, at its real-looking address.
    pub async fn kubelet(&self, number: u8) -> FakeKubelet {
        let node = format!("n{number}");
        let ip = node_ip(number);
        let bind = ([127, 0, 0, 1], 0).into();
        let kubelet = FakeKubelet::start(&self.authority, &node, &[ip], bind)
            .await
            .expect("a kubelet on loopback");
        self.wire
            .lead(SocketAddr::new(ip, KUBELET_PORT), kubelet.address());
        kubelet
    }

    /// The same with a certificate of the scenario's choice.
    pub async fn kubelet_with(&self, number: u8, pair: &Pair) -> FakeKubelet {
        let bind = ([127, 0, 0, 1], 0).into();
        let kubelet = FakeKubelet::start_with(&format!("n{number}"), pair, bind)
            .await
            .expect("a kubelet on loopback");
        self.at_node(number, kubelet.address());
        kubelet
    }

    /// Leads the kubelet's address of node `n<number>` to a place.
    pub fn at_node(&self, number: u8, place: SocketAddr) {
        self.wire
            .lead(SocketAddr::new(node_ip(number), KUBELET_PORT), place);
    }

    /// The admin socket of server `index`.
    pub fn admin_socket(&self, index: usize) -> std::path::PathBuf {
        self.scratch.join(format!("admin-{index}"))
    }

    /// Has every daemon look at its files now, and gives what was wrong with them.
    pub async fn reload(&self) -> Vec<String> {
        let now = std::time::SystemTime::now();
        let servers = self
            .servers
            .iter()
            .flatten()
            .filter_map(|server| server.reloader().reload(now).err());
        let mut errors: Vec<String> = servers.map(|error| error.to_string()).collect();
        let policies = self.servers.iter().flatten();
        let policies = policies.filter_map(|server| server.policy().reload().err());
        errors.extend(policies.map(|error| error.to_string()));
        for agent in self.agents.values() {
            errors.extend(agent.reload().await.err().map(|error| error.to_string()));
        }
        errors
    }
}

/// Adds a plan's flags; one that is given already is replaced.
fn extend(args: &mut Vec<String>, flags: &[String]) {
    for flag in flags.iter().filter(|flag| flag.starts_with("--")) {
        if let Some(at) = args.iter().position(|arg| arg == flag) {
            args.drain(at..at + 2);
        }
    }
    args.extend(flags.iter().cloned());
}

/// Resolves when `agent` has this many links that take dials.
pub async fn links_of(agent: &Agent, count: usize) {
    let mut changes = agent.links().watch();
    loop {
        changes.borrow_and_update();
        if agent.links().ready() == count {
            return;
        }
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// A server from a command line.
pub async fn start_server(args: &[String]) -> Result<Server, String> {
    let args =
        towline_server::args::Args::try_parse_from(args).map_err(|error| error.to_string())?;
    let config =
        towline_server::config::Config::from_args(args).map_err(|error| error.to_string())?;
    Server::start(config)
        .await
        .map_err(|error| error.to_string())
}

/// An agent from a command line.
pub async fn start_agent(args: &[String], network: Arc<MappedNetwork>) -> Result<Agent, String> {
    let args =
        towline_agent::args::Args::try_parse_from(args).map_err(|error| error.to_string())?;
    let config =
        towline_agent::config::Config::from_args(args).map_err(|error| error.to_string())?;
    Agent::start(config, network)
        .await
        .map_err(|error| error.to_string())
}
