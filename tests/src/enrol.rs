//! A server that enrols agents, a Kubernetes API that knows their tokens, agents that enrol, and
//! callers that ask for what they should not get.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Parser;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towline_agent::enrol::waiting::Waiting;
use towline_agent::run::Agent;
use towline_link::carrier::CarrierKind;
use towline_link::tls;
use towline_pki::first_contact::{Pinned, key_hash};
use towline_pki::join::JoinEntry;
use towline_pki::{
    Anchors, Credentials, DenyList, FirstContact, JoinFile, JoinToken, KeyKind, Leaf, PrivateKey,
    Request,
};
use towline_proto::enrol::{EnrolReply, EnrolRequest, Proof, Refusal, Token};
use towline_proto::id::Role;
use towline_proto::limits;
use towline_server::run::Server;

use crate::apiserver::FakeApiserver;
use crate::audit::{self, AuditTrail};
use crate::authority::{Authority, Pair};
use crate::cluster::{NODE_PREFIX, POD_PREFIX, SERVICE_PREFIX, node_ip, start_server};
use crate::kube::FakeKube;
use crate::network::{MappedNetwork, Wire};
use crate::scenario::eventually;
use crate::scratch::{self, Scratch};

/// Namespace and name of the agents' service account.
pub const ACCOUNT: &str = "kube-system/towline-agent";
/// The same as a token's user has it.
pub const ACCOUNT_USER: &str = "kube-system:towline-agent";
/// What tokens are for.
pub const AUDIENCE: &str = "towline-enrol";

/// See the head of this file.
pub struct EnrolWorld {
    /// Who signs.
    pub authority: Authority,
    /// The Kubernetes API.
    pub kube: FakeKube,
    /// Where targets are.
    pub wire: Wire,
    /// Files.
    pub scratch: Scratch,
    /// The server, while it runs.
    pub server: Option<Server>,
    carrier: CarrierKind,
    flags: Vec<String>,
    address: Option<SocketAddr>,
}

/// A key and what was issued for it.
pub struct Node {
    /// The key.
    pub key: PrivateKey,
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
}

impl Node {
    /// A new key and nothing else.
    pub fn new() -> Self {
        Self {
            key: PrivateKey::generate(KeyKind::default()).expect("a key"),
            chain: Vec::new(),
        }
    }

    /// What the certificate says.
    pub fn leaf(&self) -> Leaf {
        Leaf::parse(&self.chain[0]).expect("a leaf")
    }

    /// To show it.
    pub fn credentials(&self) -> Credentials {
        let now = SystemTime::now();
        Credentials::new(self.chain.clone(), self.key.to_der(), Role::Agent, now).expect("a pair")
    }
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

impl EnrolWorld {
    /// A server on this carrier, with more flags.
    pub async fn start(carrier: CarrierKind, flags: &[&str]) -> Self {
        let mut world = Self::prepared(carrier, flags).await;
        world.restart().await.expect("the server starts");
        world
    }

    /// Everything but the server.
    pub async fn prepared(carrier: CarrierKind, flags: &[&str]) -> Self {
        let authority = Authority::new("kit.example");
        let scratch = Scratch::new().expect("a directory");
        for (name, role) in [("agents.ca", Role::Agent), ("servers.ca", Role::Server)] {
            scratch
                .write(name, authority.issuer(role).pem())
                .expect("a file");
        }
        let issuer = authority.issuer(Role::Agent).key_pem();
        scratch.write("agents.key", issuer).expect("a file");
        scratch.write("deny", "").expect("a file");
        scratch.write("join-tokens", "").expect("a file");
        audit::make_key(&scratch);
        let kube = FakeKube::start(&authority).await.expect("an API");
        kube.caller("server", "system:serviceaccount:kube-system:towline-server");
        kube.kubeconfig(&scratch, "server").expect("a kubeconfig");
        authority
            .leaf(Role::Server, "s0")
            .ips(&[[127, 0, 0, 1].into()])
            .sign()
            .write(&scratch, "s0")
            .expect("files");
        Self {
            authority,
            kube,
            wire: Wire::default(),
            scratch,
            server: None,
            carrier,
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            address: None,
        }
    }

    /// Where the server is to be, or is when it is another process.
    pub fn at(&mut self, address: SocketAddr) {
        self.address = Some(address);
    }

    /// More flags for its next start.
    pub fn flags(&mut self, flags: &[&str]) {
        let more = flags.iter().map(|flag| (*flag).to_owned());
        self.flags.extend(more);
    }

    /// The command line of the server.
    pub fn server_args(&self) -> Vec<String> {
        let file = |name: &str| self.scratch.join(name).display().to_string();
        let listen = self
            .address
            .map_or("127.0.0.1:0".to_owned(), |one| one.to_string());
        let mut args: Vec<String> = vec!["towline-server".into()];
        for (flag, value) in [
            ("--cert", file("s0.crt")),
            ("--key", file("s0.key")),
            ("--agent-ca", file("agents.ca")),
            ("--deny-list", file("deny")),
            ("--state-dir", file("state")),
            ("--listen", listen),
            ("--door-unix", file("door")),
            ("--kubelet-verification", "off".into()),
            ("--pod-cidr", POD_PREFIX.into()),
            ("--service-cidr", SERVICE_PREFIX.into()),
            ("--node-cidr", NODE_PREFIX.into()),
            ("--health-bind", "127.0.0.1:0".into()),
            ("--audit-log", file("audit")),
            ("--audit-key", file("audit.key")),
            ("--enrol-issuer-certificate", file("agents.ca")),
            ("--enrol-issuer-key", file("agents.key")),
            ("--enrol-service-account", ACCOUNT.into()),
            ("--kubeconfig", file("kubeconfig")),
            ("--enrol-join-tokens", file("join-tokens")),
            ("--enrol-server-ca", file("servers.ca")),
        ] {
            args.extend([flag.to_owned(), value]);
        }
        args.extend(self.flags.iter().cloned());
        args
    }

    /// Ends the server, if it runs, and starts it again at its address.
    pub async fn restart(&mut self) -> Result<(), String> {
        self.server = None;
        let mut tries = 0;
        let server = loop {
            match start_server(&self.server_args()).await {
                Ok(server) => break server,
                // The sockets of a killed server go when its tasks do.
                Err(_) if self.address.is_some() && tries < 400 => {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) => return Err(error),
            }
        };
        self.address = Some(server.link_address());
        self.server = Some(server);
        Ok(())
    }

    /// The running server.
    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("a running server")
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        match (&self.server, self.address) {
            (Some(server), _) => server.link_address(),
            (None, address) => address.expect("an address"),
        }
    }

    /// Its trail.
    pub fn audit(&self) -> AuditTrail {
        AuditTrail::at(self.scratch.join("audit"), self.scratch.join("audit.pub"))
    }

    /// A front end.
    pub fn apiserver(&self) -> FakeApiserver {
        FakeApiserver::unix(&self.scratch.join("door"))
    }

    /// A page of its health port.
    pub async fn page(&self, path: &str) -> String {
        let address = self.server().health_address();
        let mut stream = tokio::net::TcpStream::connect(address)
            .await
            .expect("a port");
        let ask = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.expect("written");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("an answer");
        text
    }

    /// Waits until a line of the metrics begins like this.
    pub async fn counted(&self, line: &str) {
        eventually(line, || async {
            let text = self.page("/metrics").await;
            text.lines().any(|one| one.starts_with(line)).then_some(())
        })
        .await;
    }

    /// Has the server read all its files now.
    pub async fn reload(&self) -> Result<(), String> {
        use towline_link::process::daemon::Daemon;
        self.server().control().reload().await
    }

    /// Puts entries on its deny list, in force when this returns.
    pub async fn deny(&self, entries: &str) {
        scratch::replace(&self.scratch.join("deny"), entries).expect("a file");
        self.reload().await.expect("good files");
    }

    /// A token of an agent's pod, known to the API.
    pub fn account_token(&self, text: &str, node: &str) -> Proof {
        self.kube.agent_token(text, ACCOUNT_USER, AUDIENCE, node);
        Proof::ServiceAccount(Token::new(text).expect("a token"))
    }

    /// Makes a join token and puts it into the server's file, beside those that are there.
    pub async fn join_token(&self, node: &str, until: SystemTime) -> (JoinToken, Proof) {
        self.join_token_with(node, until, &[]).await
    }

    /// The same with addresses by the operator's word.
    pub async fn join_token_with(
        &self,
        node: &str,
        until: SystemTime,
        ips: &[IpAddr],
    ) -> (JoinToken, Proof) {
        let servers = self.authority.issuer(Role::Server).der().clone();
        let anchors = Anchors::new(&[servers]).expect("an authority");
        let hashes = anchors.certificates().map(key_hash).collect();
        let cluster = self.authority.cluster().parse().expect("a cluster");
        let token = JoinToken::make(cluster, hashes).expect("a token");
        let pattern = node.parse().expect("a pattern");
        let entry = JoinEntry::new(&token, pattern, until, ips.to_vec()).expect("an entry");
        let path = self.scratch.join("join-tokens");
        let mut entries = JoinFile::load(&path).expect("a file").entries().to_vec();
        entries.push(entry);
        JoinFile::with(entries).write(&path).expect("written");
        self.reload().await.expect("good files");
        let text = token.to_text();
        let text = std::str::from_utf8(text.expose()).expect("text");
        let proof = Proof::Join(Token::new(text).expect("a token"));
        (token, proof)
    }

    /// Asks as an agent with this key would.
    pub async fn ask(
        &self,
        node: &Node,
        proof: Proof,
        name: Option<&str>,
        shown: Option<&Credentials>,
    ) -> Result<EnrolReply, String> {
        let csr = Request::make_der(&node.key, "test").expect("a request");
        let request = EnrolRequest {
            csr,
            proof,
            name: name.map(|name| name.parse().expect("a name")),
            software: "test".into(),
        };
        self.send(&request.encode(), shown).await
    }

    /// Sends these bytes as a request.
    pub async fn send(
        &self,
        bytes: &[u8],
        shown: Option<&Credentials>,
    ) -> Result<EnrolReply, String> {
        let mut stream = self.connect(shown).await?;
        let _ = stream.write_all(bytes).await;
        let _ = stream.flush().await;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer).await;
        if answer.len() < 3 {
            return Err(format!("no answer: {read:?}"));
        }
        EnrolReply::decode(answer[0], &answer[3..]).map_err(|error| error.to_string())
    }

    /// A connection for enrolment, verified, nothing sent yet.
    pub async fn connect(
        &self,
        shown: Option<&Credentials>,
    ) -> Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>, String> {
        let anchor = self.authority.issuer(Role::Server).der().clone();
        let pinned = Pinned::Anchors(Anchors::new(&[anchor]).expect("an authority"));
        let contact = FirstContact::new(pinned, None, DenyList::default());
        let config = towline_pki::tls::enrol_client(shown, contact).expect("a configuration");
        let server = self.address().to_string().parse().expect("a target");
        let name = towline_pki::tls::server_name();
        let after = limits::ENROL_ATTEMPT;
        let met = Box::pin(tls::meet_within(after, &server, name, config, None)).await;
        met.map(|met| met.stream).map_err(|error| error.to_string())
    }

    /// Asks, and takes what was issued.
    pub async fn enrolled(&self, proof: Proof, name: Option<&str>) -> Node {
        let mut node = Node::new();
        match self.ask(&node, proof, name, None).await {
            Ok(EnrolReply::Issued(chain)) => {
                node.chain = chain.into_iter().map(CertificateDer::from).collect();
                node
            }
            other => panic!("no certificate: {other:?}"),
        }
    }

    /// Asks with a new key, and is refused.
    pub async fn refused(&self, proof: Proof, name: Option<&str>) -> Refusal {
        refusal(self.ask(&Node::new(), proof, name, None).await)
    }

    /// The command line of an agent with its own state directory.
    pub fn agent_args(&self, state: &str, flags: &[&str]) -> Vec<String> {
        self.args_with("server", state, flags)
    }

    /// The command line of an agent on a node whose certificate comes by the Kubernetes API.
    pub fn kube_agent_args(&self, node: &str, flags: &[&str]) -> Vec<String> {
        let token = format!("pod-{node}");
        self.kube.pod_caller(&token, ACCOUNT_USER, node);
        let name = format!("kubeconfig-{node}");
        let user = format!("{{token: {token}}}");
        let file = self.kube.write_kubeconfig_as(&self.scratch, &name, &user);
        let file = file.expect("a kubeconfig").display().to_string();
        let ca = self.scratch.join("servers.ca").display().to_string();
        let mut all = vec![
            "--kubeconfig",
            &file,
            "--server-ca",
            &ca,
            "--node-name",
            node,
        ];
        all.extend(flags);
        self.args_with("kubernetes", node, &all)
    }

    fn args_with(&self, source: &str, state: &str, flags: &[&str]) -> Vec<String> {
        let file = |name: &str| self.scratch.join(name).display().to_string();
        let mut args: Vec<String> = vec!["towline-agent".into()];
        for (flag, value) in [
            ("--server", self.address().to_string()),
            ("--carrier", self.carrier.as_str().to_owned()),
            ("--http-proxy", "off".to_owned()),
            ("--health-bind", "127.0.0.1:0".to_owned()),
            ("--enrol", source.to_owned()),
            ("--state-dir", file(state)),
        ] {
            args.extend([flag.to_owned(), value]);
        }
        args.extend(flags.iter().map(|flag| (*flag).to_owned()));
        args
    }

    /// Writes a token for an agent.
    pub fn token_file(&self, name: &str, text: &str) -> PathBuf {
        self.scratch.write(name, text).expect("a file")
    }

    /// Starts an agent that enrols first, when it has to.
    pub async fn agent(&self, number: u8, args: &[String]) -> Agent {
        let args = towline_agent::args::Args::try_parse_from(args).expect("flags");
        let mut config = towline_agent::config::Config::from_args(args).expect("a configuration");
        if let Some(waiting) = Waiting::begin(&config, |_| ()).expect("a port") {
            config.identity = waiting.certificate().await;
        }
        let network: Arc<MappedNetwork> = MappedNetwork::new(&self.wire, &[node_ip(number)]);
        Agent::start(config, network)
            .await
            .expect("the agent starts")
    }

    /// Starts an agent of this name with a certificate that was not enrolled.
    pub async fn certified_agent(&self, number: u8, name: &str) -> Agent {
        self.pair(name).write(&self.scratch, name).expect("files");
        let file = |name: &str| self.scratch.join(name).display().to_string();
        let mut args: Vec<String> = vec!["towline-agent".into()];
        for (flag, value) in [
            ("--server", self.address().to_string()),
            ("--carrier", self.carrier.as_str().to_owned()),
            ("--http-proxy", "off".to_owned()),
            ("--health-bind", "127.0.0.1:0".to_owned()),
            ("--cert", file(&format!("{name}.crt"))),
            ("--key", file(&format!("{name}.key"))),
            ("--server-ca", file("servers.ca")),
        ] {
            args.extend([flag.to_owned(), value]);
        }
        self.agent(number, &args).await
    }

    /// A certificate that somebody else made for this node.
    pub fn pair(&self, name: &str) -> Pair {
        self.authority.leaf(Role::Agent, name).sign()
    }
}

/// Why there is no certificate.
#[track_caller]
pub fn refusal(reply: Result<EnrolReply, String>) -> Refusal {
    match reply {
        Ok(EnrolReply::Refused { refusal, .. }) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}
