//! Links at the server: instances, revocation, draining, readiness.

mod fake;

use std::time::SystemTime;

use fake::{Cluster, FakeAgent, answer, connect, hello, refusal, rest, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use towline_link::carrier::CarrierKind::{Quic, Tls};
use towline_link::driver::LinkState;
use towline_proto::reason::Reason;
use towline_server::run::Server;

async fn echoes(stream: &mut UnixStream) {
    stream.write_all(b"ping").await.unwrap();
    let mut back = [0; 4];
    soon("echo", stream.read_exact(&mut back)).await.unwrap();
    assert_eq!(&back, b"ping");
}

async fn open(server: &Server, agent: &mut FakeAgent, target: &str) -> UnixStream {
    let mut stream = connect(server, target).await;
    agent.echo().await;
    assert!(answer(&mut stream).await.starts_with("HTTP/1.1 200 "));
    stream
}

#[tokio::test]
async fn links_of_one_instance_stand_side_by_side_and_the_newest_is_used() {
    let cluster = Cluster::new();
    let server = cluster.server(&[]).await;
    let mut on_tls = FakeAgent::start(&cluster, &server, "n1", 1, Tls).await;
    let mut old = open(&server, &mut on_tls, "n1:10250").await;
    let mut on_quic = FakeAgent::start(&cluster, &server, "n1", 1, Quic).await;
    let mut new = open(&server, &mut on_quic, "n1:10250").await;
    echoes(&mut old).await;
    echoes(&mut new).await;
    assert_eq!(on_tls.link.state(), LinkState::Ready);
    assert_eq!(server.status().agents[0].links.len(), 2);
}

#[tokio::test]
async fn a_newer_instance_takes_new_dials_and_old_ones_go_on() {
    let cluster = Cluster::new();
    let server = cluster.server(&[]).await;
    let mut first = FakeAgent::start(&cluster, &server, "n1", 1, Tls).await;
    let mut old = open(&server, &mut first, "n1:10250").await;
    let mut second = FakeAgent::start(&cluster, &server, "n1", 2, Quic).await;
    let mut state = first.link.watch();
    soon(
        "a drain",
        state.wait_for(|state| *state != LinkState::Ready),
    )
    .await
    .unwrap();
    assert!(matches!(
        first.link.state(),
        LinkState::Draining {
            reason: Reason::Superseded,
            by_peer: true,
            ..
        }
    ));
    let mut new = open(&server, &mut second, "n1:10250").await;
    echoes(&mut old).await;
    echoes(&mut new).await;
    old.shutdown().await.unwrap();
    assert_eq!(rest(&mut old).await, b"");
    assert_eq!(
        soon("its end", first.link.closed()).await,
        Reason::Superseded
    );
    echoes(&mut new).await;
}

#[tokio::test]
async fn revocation_ends_the_link_and_its_dials_and_nobody_elses() {
    let cluster = Cluster::new();
    cluster.issue(towline_proto::id::Role::Agent, "n2", &["10.0.0.2"]);
    cluster.write("deny", "");
    let deny = cluster.text("deny");
    let server = cluster.server(&["--deny-list", &deny]).await;
    for kind in [Quic, Tls] {
        let mut bad = FakeAgent::start(&cluster, &server, "n1", 1, kind).await;
        let mut good = FakeAgent::start(&cluster, &server, "n2", 1, kind).await;
        let mut cut = open(&server, &mut bad, "10.0.0.1:10250").await;
        let mut kept = open(&server, &mut good, "10.0.0.2:10250").await;
        cluster.write("deny", "spiffe://c1/towline/agent/n1\n");
        let changed = server.reloader().reload(SystemTime::now()).unwrap();
        assert_eq!(changed.links, 1);
        assert_eq!(soon("its end", bad.link.closed()).await, Reason::Denied);
        assert_eq!(rest(&mut cut).await, b"");
        echoes(&mut kept).await;
        cluster.write("deny", "");
        server.reloader().reload(SystemTime::now()).unwrap();
    }
    // A file that does not load changes nothing.
    let _agent = FakeAgent::start(&cluster, &server, "n1", 2, Tls).await;
    cluster.write("deny", "nonsense\n");
    assert!(server.reloader().reload(SystemTime::now()).is_err());
    assert!(
        server
            .status()
            .agents
            .iter()
            .any(|agent| !agent.links.is_empty())
    );
}

#[tokio::test]
async fn a_drain_lets_dials_end_and_then_the_links() {
    for kind in [Quic, Tls] {
        let cluster = Cluster::new();
        let server = cluster.server(&[]).await;
        let mut agent = FakeAgent::start(&cluster, &server, "n1", 1, kind).await;
        let mut stream = open(&server, &mut agent, "n1:10250").await;
        server.drain();
        let mut state = agent.link.watch();
        soon(
            "a drain",
            state.wait_for(|state| *state != LinkState::Ready),
        )
        .await
        .unwrap();
        assert!(!server.readiness().is_ready());
        assert!(
            UnixStream::connect(cluster.path("door.sock"))
                .await
                .is_err()
        );
        echoes(&mut stream).await;
        stream.shutdown().await.unwrap();
        assert_eq!(rest(&mut stream).await, b"");
        soon("the end", server.wait()).await.unwrap();
        assert_eq!(soon("its end", agent.link.closed()).await, Reason::Shutdown);
    }
}

#[tokio::test]
async fn the_second_signal_cuts_dials() {
    let cluster = Cluster::new();
    let server = cluster.server(&[]).await;
    let mut agent = FakeAgent::start(&cluster, &server, "n1", 1, Quic).await;
    let mut stream = open(&server, &mut agent, "n1:10250").await;
    server.drain();
    server.stop_now();
    assert!(soon("the end", server.wait()).await.is_err());
    assert_eq!(rest(&mut stream).await, b"");
    soon("its end", agent.link.closed()).await;
}

#[tokio::test]
async fn ready_means_that_a_link_passed_its_probe() {
    let cluster = Cluster::new();
    let server = cluster.server(&[]).await;
    assert!(!server.readiness().is_ready());
    let agent = FakeAgent::start(&cluster, &server, "n1", 1, Tls).await;
    soon("readiness", server.readiness().ready()).await;
    assert_eq!(server.status().agents[0].links[0].probe, "passed");
    drop(agent);
    soon("no readiness", server.readiness().unready()).await;
}

#[tokio::test]
async fn services_go_through_gateways_and_grants_change_live() {
    let cluster = Cluster::new();
    cluster.write("grants.yaml", "agents:\n- name: n1\n  gateway: false\n");
    let grants = cluster.text("grants.yaml");
    let server = cluster.server(&["--grants", &grants]).await;
    let mut agent = FakeAgent::start(&cluster, &server, "n1", 1, Quic).await;
    let line = refusal(&server, "10.96.0.1:443").await;
    assert!(
        line.starts_with("HTTP/1.1 503 no agent may serve"),
        "{line}"
    );
    cluster.write("grants.yaml", "agents:\n- name: 'n*'\n  gateway: true\n");
    server.reloader().reload(SystemTime::now()).unwrap();
    for target in ["10.96.0.1:443", "webhook.ns.svc:443", "10.244.1.1:8080"] {
        let mut stream = open(&server, &mut agent, target).await;
        echoes(&mut stream).await;
    }
}

/// The value of a metric as a scrape shows it.
async fn metric(server: &Server, name: &str) -> Option<f64> {
    let address = server.health_address();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let text = String::from_utf8(rest(&mut stream).await).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().parse().ok()
}

#[tokio::test]
async fn instances_that_replace_each_other_raise_an_alarm() {
    const ALARMS: &str = "towline_server_agent_replacement_alarms_total ";
    let cluster = Cluster::new();
    let server = cluster.server(&[]).await;
    let mut agents = Vec::new();
    for instance in 1..=4 {
        agents.push(FakeAgent::start(&cluster, &server, "n1", instance, Tls).await);
    }
    assert_eq!(metric(&server, ALARMS).await, Some(0.0));
    agents.push(FakeAgent::start(&cluster, &server, "n1", 5, Quic).await);
    assert_eq!(metric(&server, ALARMS).await, Some(1.0));
    let replaced = "towline_server_agent_replacements_total ";
    assert_eq!(metric(&server, replaced).await, Some(4.0));
}

#[tokio::test]
async fn links_beyond_the_limit_are_refused() {
    let cluster = Cluster::new();
    cluster.issue(towline_proto::id::Role::Agent, "n2", &["10.0.0.2"]);
    let server = cluster.server(&["--max-links", "1"]).await;
    let first = FakeAgent::start(&cluster, &server, "n1", 1, Quic).await;
    let second = || FakeAgent::greet(&cluster, server.link_address(), hello("n2", 1), Tls);
    let refused = soon("an answer", second()).await;
    assert_eq!(refused.err().unwrap().reason, Reason::Overloaded);
    drop(first);
    let mut changes = server.control().status.agents.changes();
    while server
        .status()
        .agents
        .iter()
        .any(|agent| !agent.links.is_empty())
    {
        soon("the link's end", changes.changed()).await.unwrap();
    }
    assert!(soon("an answer", second()).await.is_ok());
}

#[tokio::test]
async fn changed_files_are_noticed() {
    let cluster = Cluster::new();
    cluster.write("deny", "");
    let deny = cluster.text("deny");
    let server = cluster.server(&["--deny-list", &deny]).await;
    let agent = FakeAgent::start(&cluster, &server, "n1", 1, Quic).await;
    cluster.write("deny", "spiffe://c1/towline/agent/n1\n");
    assert_eq!(soon("its end", agent.link.closed()).await, Reason::Denied);
}
