//! A whole cluster changes its issuers, step by step as `towline-pki rotate` does, and at no moment
//! is an agent without a link. And who is refused below one root, and links by every algorithm.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towline_proto::id::Role;
use towline_tests::apiserver::Pipe;
use towline_tests::authority::{Algorithm, Authority, Ca};
use towline_tests::cluster::{Cluster, Plan, node_ip};
use towline_tests::rogue::{self, RogueServer};
use towline_tests::scenario::{eventually, expect};
use towline_tests::scenarios;
use towline_tests::scratch;
use towline_tests::target::Behaviour;

const POD: &str = "10.244.0.5:8080";
const AGENTS: [&str; 2] = ["n1", "n2"];

async fn echoes(pipe: &mut Pipe) {
    let mut echo = [0; 4];
    pipe.write_all(b"ping").await.unwrap();
    expect("the echo", pipe.read_exact(&mut echo))
        .await
        .unwrap();
    assert_eq!(&echo, b"ping");
}

/// Serials of the certificates behind the server's links of an agent.
fn serials(cluster: &Cluster, agent: &str) -> Vec<String> {
    let status = cluster.server(0).status();
    let found = status.agents.iter().find(|one| one.name == agent);
    let links = found.into_iter().flat_map(|one| &one.links);
    links.map(|link| link.serial.clone()).collect()
}

fn trust(cluster: &Cluster, file: &str, authorities: &[&Ca]) {
    let text: String = authorities.iter().map(|ca| ca.pem()).collect();
    scratch::replace(&cluster.scratch().join(file), text).unwrap();
}

/// Looks all the time whether every agent has a link that takes dials, once more after `stop`.
fn watch(cluster: &Arc<Cluster>) -> (Arc<AtomicBool>, tokio::task::JoinHandle<()>) {
    let stop = Arc::new(AtomicBool::new(false));
    let (cluster, stopped) = (Arc::clone(cluster), Arc::clone(&stop));
    let watching = tokio::spawn(async move {
        loop {
            let last = stopped.load(Ordering::Acquire);
            for agent in AGENTS {
                assert!(
                    cluster.agent(agent).links().ready() > 0,
                    "{agent} has no link"
                );
            }
            if last {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    (stop, watching)
}

async fn end_watch((stop, watching): (Arc<AtomicBool>, tokio::task::JoinHandle<()>)) {
    stop.store(true, Ordering::Release);
    watching.await.unwrap();
}

scenarios! {
    async fn the_issuer_of_agents_changes_and_no_link_is_lost(carrier) {
        let cluster = Arc::new(Plan::on(carrier).agents(2).start().await);
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let mut pipe = cluster.apiserver().pipe(POD).await;
        let watching = watch(&cluster);
        let next = Authority::new("kit.example");
        let (old_issuer, new_issuer) = (cluster.authority.issuer(Role::Agent), next.issuer(Role::Agent));
        // prepare
        trust(&cluster, "agents.ca", &[old_issuer, new_issuer]);
        assert_eq!(cluster.reload().await, [""; 0]);
        // activate, renew
        let mut renewed = Vec::new();
        for (number, agent) in AGENTS.iter().enumerate() {
            let ip = node_ip(number as u8 + 1);
            let pair = next.leaf(Role::Agent, agent).ips(&[ip]).sign();
            pair.replace(cluster.files(agent)).unwrap();
            renewed.push(pair.serial);
        }
        assert_eq!(cluster.reload().await, [""; 0]);
        echoes(&mut pipe).await;
        drop(pipe);
        for (agent, serial) in AGENTS.iter().zip(&renewed) {
            eventually("one link, of the new certificate", || async {
                (serials(&cluster, agent) == std::slice::from_ref(serial)).then_some(())
            }).await;
        }
        // retire
        trust(&cluster, "agents.ca", &[new_issuer]);
        assert_eq!(cluster.reload().await, [""; 0]);
        for (agent, serial) in AGENTS.iter().zip(&renewed) {
            assert_eq!(serials(&cluster, agent), std::slice::from_ref(serial));
        }
        echoes(&mut cluster.apiserver().pipe(POD).await).await;
        end_watch(watching).await;
        let old = cluster.authority.leaf(Role::Agent, "n1").ips(&[node_ip(1)]).sign();
        let server = cluster.server(0).link_address();
        let entering = rogue::enter(carrier, server, &cluster.authority, Some(&old), rogue::hello("n1"));
        assert!(expect("the verdict", entering).await.is_err());
    }

    async fn the_issuer_of_servers_changes_and_no_link_is_lost(carrier) {
        let cluster = Arc::new(Plan::on(carrier).agents(2).start().await);
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let watching = watch(&cluster);
        let next = Authority::new("kit.example");
        let (old_issuer, new_issuer) = (cluster.authority.issuer(Role::Server), next.issuer(Role::Server));
        trust(&cluster, "servers.ca", &[old_issuer, new_issuer]);
        assert_eq!(cluster.reload().await, [""; 0]);
        let pair = next.leaf(Role::Server, "s0").ips(&[[127, 0, 0, 1].into()]).name("localhost").sign();
        pair.replace(cluster.files("s0")).unwrap();
        assert_eq!(cluster.reload().await, [""; 0]);
        echoes(&mut cluster.apiserver().pipe(POD).await).await;
        let before: Vec<_> = AGENTS.iter().map(|agent| link_ids(&cluster, agent)).collect();
        // retire: the agents' links were made with the old certificate, and are made anew.
        trust(&cluster, "servers.ca", &[new_issuer]);
        assert_eq!(cluster.reload().await, [""; 0]);
        for (agent, old) in AGENTS.iter().zip(&before) {
            eventually("one link, made anew", || async {
                let now = link_ids(&cluster, agent);
                (now.len() == 1 && now.iter().all(|id| !old.contains(id))).then_some(())
            }).await;
        }
        echoes(&mut cluster.apiserver().pipe(POD).await).await;
        end_watch(watching).await;
    }

    async fn another_clusters_issuer_below_the_same_root_is_refused_at_both_ends(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let sibling = cluster.authority.sibling();
        let agent = sibling.leaf(Role::Agent, "n9").ips(&[node_ip(9)]).sign().with_root(&cluster.authority);
        let server = cluster.server(0).link_address();
        let entering = rogue::enter(carrier, server, &cluster.authority, Some(&agent), rogue::hello("n9"));
        assert!(expect("the server's verdict", entering).await.is_err());
        let of_agents = cluster.authority.leaf(Role::Server, "s9").signed_by(cluster.authority.issuer(Role::Agent));
        for pair in [sibling.leaf(Role::Server, "s9").sign(), of_agents.sign()] {
            let pair = pair.with_root(&cluster.authority);
            let rogue = RogueServer::start(carrier, &cluster.authority, &pair).await.unwrap();
            let refused = refused_by_an_agent(&cluster, &rogue).await;
            assert!(refused.contains("UnknownIssuer") || refused.contains("none of the authorities"), "{refused}");
        }
    }

    async fn keys_of_every_algorithm_link(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let server = cluster.server(0).link_address();
        for algorithm in Algorithm::ALL {
            let ca = Ca::of(algorithm);
            trust(&cluster, "agents.ca", &[cluster.authority.issuer(Role::Agent), &ca]);
            assert_eq!(cluster.reload().await, [""; 0]);
            let leaf = cluster.authority.leaf(Role::Agent, "n9").ips(&[node_ip(9)]);
            let pair = leaf.signed_by(&ca).key(algorithm).sign();
            let entering = rogue::enter(carrier, server, &cluster.authority, Some(&pair), rogue::hello("n9"));
            let verdict = expect("the server's verdict", entering).await;
            assert!(verdict.is_ok(), "agent {algorithm:?}: {verdict:?}");
            let pair = cluster.authority.leaf(Role::Server, "s9").key(algorithm).sign();
            let rogue = RogueServer::start(carrier, &cluster.authority, &pair).await.unwrap();
            let agent = agent_of(&cluster, &rogue).await;
            expect("the link", rogue.link()).await;
            expect("the agent's link", towline_tests::cluster::links_of(&agent, 1)).await;
        }
    }
}

fn link_ids(cluster: &Cluster, agent: &str) -> Vec<String> {
    let status = cluster.server(0).status();
    let found = status.agents.iter().find(|one| one.name == agent);
    let links = found.into_iter().flat_map(|one| &one.links);
    links.map(|link| link.id.clone()).collect()
}

async fn agent_of(cluster: &Cluster, rogue: &RogueServer) -> towline_agent::run::Agent {
    let files = cluster
        .agent_pair("n8")
        .write(cluster.scratch(), "n8")
        .unwrap();
    let mut args = cluster.agent_args(&files);
    let at = args.iter().position(|arg| arg == "--server").unwrap();
    args[at + 1] = rogue.address().to_string();
    let network = towline_tests::network::MappedNetwork::new(&cluster.wire, &[node_ip(8)]);
    towline_tests::cluster::start_agent(&args, network)
        .await
        .unwrap()
}

async fn refused_by_an_agent(cluster: &Cluster, rogue: &RogueServer) -> String {
    let agent = agent_of(cluster, rogue).await;
    let status = eventually("the agent's verdict", || async {
        let mut servers = agent.links().status().into_iter();
        servers.find(|server| server.error.is_some())
    })
    .await;
    assert_eq!(agent.links().ready(), 0);
    status.error.unwrap_or_default()
}
