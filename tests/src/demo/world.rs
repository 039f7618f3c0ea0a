//! What the demo runs: authority, server, three agents with the kernel's own network, two kubelets
//! on 127.0.0.2 and 127.0.0.3, and on 127.0.0.4 somebody who would like to be the third.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use clap::Parser;
use tokio::net::TcpListener;
use towline_agent::connect::KernelNetwork;
use towline_agent::run::Agent;
use towline_link::carrier::CarrierKind;
use towline_proto::id::Role;
use towline_server::run::Server;

use super::page::Page;
use super::{Failure, soon};
use crate::apiserver::FakeApiserver;
use crate::authority::{Authority, Pair};
use crate::cluster::{links_of, start_server};
use crate::kubelet::FakeKubelet;
use crate::scratch::{self, Scratch};

/// What the agents' links run on.
pub(super) const CARRIERS: [CarrierKind; 2] = [CarrierKind::Quic, CarrierKind::Tls];
/// The node whose kubelet is none, and its carrier.
const HIJACKED: (usize, CarrierKind) = (2, CarrierKind::Tls);

/// Everything that runs.
pub(super) struct World {
    pub(super) authority: Authority,
    pub(super) server: Server,
    pub(super) agents: Vec<Agent>,
    pub(super) agent_serials: Vec<String>,
    pub(super) kubelets: Vec<FakeKubelet>,
    pub(super) impostor: FakeKubelet,
    pub(super) kubelet_port: u16,
    client: Pair,
    scratch: Scratch,
}

/// What the demo wants to know of a link.
pub(super) struct LinkFacts {
    pub(super) id: String,
    pub(super) carrier: &'static str,
}

fn ip(node: usize) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, 2 + node as u8).into()
}

impl World {
    pub(super) fn node_name(node: usize) -> String {
        format!("n{}", node + 1)
    }

    pub(super) fn node_ip(&self, node: usize) -> IpAddr {
        ip(node)
    }

    pub(super) async fn start(page: &Page) -> Result<Self, Failure> {
        page.step("A throw-away cluster");
        let scratch = Scratch::new()?;
        let authority = Authority::new("demo.example");
        for (name, role) in [("agents.ca", Role::Agent), ("servers.ca", Role::Server)] {
            scratch.write(name, authority.issuer(role).pem())?;
        }
        scratch.write("kubelets.ca", authority.kubelets().pem())?;
        scratch.write("deny", "")?;
        page.hop(
            "authority",
            "demo.example: one issuer for agents, one for the rest",
            "pki/src/verify.rs",
            "PeerVerifier",
        );

        let (kubelets, impostor) = start_kubelets(&authority).await?;
        let kubelet_port = impostor.address().port();
        for kubelet in &kubelets {
            let text = format!("{} on https://{}", kubelet.node(), kubelet.address());
            page.hop(
                "kubelet",
                &text,
                "tests/src/kubelet/mod.rs",
                "FakeKubelet::start",
            );
        }

        let loopback = Ipv4Addr::LOCALHOST.into();
        let pair = authority
            .leaf(Role::Server, "s1")
            .ips(&[loopback])
            .name("localhost")
            .sign();
        let server = start_server(&server_args(&scratch, &pair, kubelet_port)?).await?;
        let client = authority.leaf(Role::Client, "kube-apiserver").sign();
        client.write(&scratch, "client")?;
        let listen = server.link_address();
        page.hop(
            "server",
            &format!("s1: links on {listen}, UDP and TCP"),
            "server/src/run.rs",
            "Server::start",
        );

        let mut agents = Vec::new();
        let mut agent_serials = Vec::new();
        let nodes = CARRIERS.into_iter().enumerate().chain([HIJACKED]);
        for (node, carrier) in nodes {
            let name = Self::node_name(node);
            let pair = authority.leaf(Role::Agent, &name).ips(&[ip(node)]).sign();
            let args = agent_args(&scratch, &name, &pair, carrier, listen, kubelet_port)?;
            let args = towline_agent::args::Args::try_parse_from(args)?;
            let config = towline_agent::config::Config::from_args(args)?;
            let agent = Agent::start(config, Arc::new(KernelNetwork::default())).await?;
            soon("the link", links_of(&agent, 1)).await?;
            let text = format!("{name}: dialled out, linked on {carrier}");
            page.hop("agent", &text, "agent/src/reconnect.rs", "Keeper::run");
            agents.push(agent);
            agent_serials.push(pair.serial);
        }
        Ok(Self {
            authority,
            server,
            agents,
            agent_serials,
            kubelets,
            impostor,
            kubelet_port,
            client,
            scratch,
        })
    }

    pub(super) fn kubelet_target(&self, node: usize) -> String {
        format!("{}:{}", ip(node), self.kubelet_port)
    }

    pub(super) fn front_unix(&self) -> FakeApiserver {
        FakeApiserver::unix(&self.scratch.join("door"))
    }

    pub(super) fn front_tcp(&self) -> Result<FakeApiserver, Failure> {
        let door = self.server.door_tcp().ok_or("no TCP door")?;
        Ok(FakeApiserver::tcp(
            door,
            Some(&self.client),
            self.authority.issuer(Role::Server).der(),
        ))
    }

    /// The server's view of a node's link.
    pub(super) fn link(&self, node: usize) -> Result<LinkFacts, Failure> {
        let name = Self::node_name(node);
        let status = self.server.status();
        let agent = status.agents.into_iter().find(|agent| agent.name == name);
        let link = agent
            .and_then(|agent| agent.links.into_iter().next())
            .ok_or("no link")?;
        Ok(LinkFacts {
            id: link.id,
            carrier: link.carrier,
        })
    }

    pub(super) fn deny(&self, entries: &str) -> Result<(), Failure> {
        Ok(scratch::replace(&self.scratch.join("deny"), entries)?)
    }

    /// Waits until a node's agent has tried to link again and was turned away, and says why.
    pub(super) async fn refused(&self, node: usize) -> String {
        let mut changes = self.agents[node].links().watch();
        loop {
            changes.borrow_and_update();
            let status = self.agents[node].links().status();
            let tried = status
                .into_iter()
                .filter_map(|server| server.error)
                .find(|error| error != "the link ended");
            if let Some(error) = tried {
                return error;
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Requests through the TCP door that work as they stand.
    pub(super) fn curl_lines(&self) -> Vec<String> {
        let Some(door) = self.server.door_tcp() else {
            return Vec::new();
        };
        let file = |name: &str| self.scratch.join(name).display().to_string();
        let proxy = format!(
            "curl --noproxy '' --proxy https://{door} --proxy-cacert {} \\\n     --proxy-cert {} --proxy-key {} \\\n     --cacert {}",
            file("servers.ca"),
            file("client.crt"),
            file("client.key"),
            file("kubelets.ca"),
        );
        let line = |rest: String| format!("{proxy} {rest}");
        vec![
            line(format!("https://{}/healthz", self.kubelet_target(0))),
            line(format!(
                "-N 'https://{}/containerLogs/default/web/app?follow=true'",
                self.kubelet_target(1)
            )),
            line(format!("-v https://127.0.0.9:{}/", self.kubelet_port)),
        ]
    }
}

/// All on one port, because all kubelets of a cluster have one port. The impostor's certificate
/// has the right names, from an authority of its own.
async fn start_kubelets(authority: &Authority) -> Result<(Vec<FakeKubelet>, FakeKubelet), Failure> {
    let stranger = Authority::new("demo.example");
    let hijacked = HIJACKED.0;
    let names = World::node_name(hijacked);
    let forged = stranger.kubelet_leaf(&names, &[ip(hijacked)]).sign();
    for _ in 0..64 {
        let port = TcpListener::bind((ip(0), 0)).await?.local_addr()?.port();
        let mut kubelets = Vec::new();
        for node in 0..2 {
            let bind = SocketAddr::new(ip(node), port);
            match FakeKubelet::start(authority, &World::node_name(node), &[ip(node)], bind).await {
                Ok(kubelet) => kubelets.push(kubelet),
                Err(_) => break,
            }
        }
        let bind = SocketAddr::new(ip(hijacked), port);
        let impostor = FakeKubelet::start_with(&names, &forged, bind).await;
        if let (2, Ok(impostor)) = (kubelets.len(), impostor) {
            return Ok((kubelets, impostor));
        }
    }
    Err("no port is free on 127.0.0.2, 127.0.0.3 and 127.0.0.4".into())
}

fn server_args(scratch: &Scratch, pair: &Pair, kubelet_port: u16) -> Result<Vec<String>, Failure> {
    let files = pair.write(scratch, "s1")?;
    let file = |name: &str| scratch.join(name).display().to_string();
    let mut args = vec!["towline-server".to_owned()];
    for (flag, value) in [
        ("--cert", files.cert.display().to_string()),
        ("--key", files.key.display().to_string()),
        ("--agent-ca", file("agents.ca")),
        ("--kubelet-certificate-authority", file("kubelets.ca")),
        ("--client-ca", file("servers.ca")),
        ("--deny-list", file("deny")),
        ("--state-dir", file("state")),
        ("--listen", "127.0.0.1:0".into()),
        ("--door-unix", file("door")),
        ("--door-tcp", "127.0.0.1:0".into()),
        ("--door-allow", "kube-apiserver".into()),
        ("--kubelet-port", kubelet_port.to_string()),
        ("--service-cidr", "10.96.0.0/12".into()),
        ("--health-bind", "127.0.0.1:0".into()),
    ] {
        args.extend([flag.to_owned(), value]);
    }
    Ok(args)
}

fn agent_args(
    scratch: &Scratch,
    name: &str,
    pair: &Pair,
    carrier: CarrierKind,
    server: SocketAddr,
    kubelet_port: u16,
) -> Result<Vec<String>, Failure> {
    let files = pair.write(scratch, name)?;
    let mut args = vec!["towline-agent".to_owned()];
    for (flag, value) in [
        ("--server", server.to_string()),
        ("--cert", files.cert.display().to_string()),
        ("--key", files.key.display().to_string()),
        (
            "--server-ca",
            scratch.join("servers.ca").display().to_string(),
        ),
        ("--carrier", carrier.to_string()),
        ("--http-proxy", "off".into()),
        ("--kubelet-port", kubelet_port.to_string()),
        ("--health-bind", "127.0.0.1:0".into()),
    ] {
        args.extend([flag.to_owned(), value]);
    }
    Ok(args)
}
