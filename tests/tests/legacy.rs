//! Legacy agents at the compatibility door: what they may do, what they are never believed, and
//! what one of them cannot do to the others.

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towline_link::carrier::CarrierKind;
use towline_link::grpc::Code;
use towline_proto::id::Role;
use towline_proto::konnectivity::{Packet, SERVER_COUNT, SERVER_ID};
use towline_proto::limits;
use towline_tests::apiserver::Pipe;
use towline_tests::cluster::{Cluster, Plan, node_ip};
use towline_tests::pattern::Check;
use towline_tests::scenario::{eventually, expect};
use towline_tests::scenarios;
use towline_tests::target::{Behaviour, End, Target, read_all, send_pattern};

async fn alone() -> Cluster {
    alone_with(&[]).await
}

async fn alone_with(flags: &[&str]) -> Cluster {
    Plan::on(CarrierKind::Tls)
        .agents(0)
        .compatible()
        .server_flags(flags)
        .start()
        .await
}

async fn echoes(pipe: &mut Pipe) {
    let mut echo = [0; 4];
    pipe.write_all(b"ping").await.unwrap();
    expect("the echo", pipe.read_exact(&mut echo))
        .await
        .unwrap();
    assert_eq!(&echo, b"ping");
}

/// Everything up to the end.
async fn all_of(pipe: &mut Pipe) -> Check {
    let mut seen = Check::default();
    let end = read_all(pipe, &mut seen, u64::MAX);
    assert_eq!(expect("the end", end).await, End::Closed);
    seen
}

/// Resolves when so many streams are listed.
async fn listed(cluster: &Cluster, count: usize) {
    eventually("the streams in the table", || async {
        let status = cluster.server(0).status();
        let legacy = status.compatibility.expect("the profile").legacy_agents;
        (legacy.len() == count).then_some(())
    })
    .await;
}

async fn metric(cluster: &Cluster, line: &str) -> u64 {
    let health = cluster.server(0).health_address();
    let mut stream = tokio::net::TcpStream::connect(health).await.unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let found = text.lines().find_map(|l| l.strip_prefix(line));
    found.map_or(0, |value| value.trim().parse().unwrap())
}

fn data(connect_id: i64, data: impl Into<Bytes>) -> Packet {
    let data = data.into();
    Packet::Data { connect_id, data }
}

#[tokio::test]
async fn an_agent_is_told_who_we_are_and_serves_dials() {
    let cluster = alone_with(&["--server-count", "3", "--server-id", "kon-1"]).await;
    let agent = cluster.legacy("a", "ipv4=10.9.0.1").await;
    assert_eq!(agent.metadata[SERVER_ID], "kon-1");
    assert_eq!(agent.metadata[SERVER_COUNT], "3");
    let target = Target::start(Behaviour::Echo).await.unwrap();
    let _serving = agent.serve(&[("10.9.0.1:10250", target.address())]);
    listed(&cluster, 1).await;
    let mut pipe = cluster.apiserver().pipe("10.9.0.1:10250").await;
    echoes(&mut pipe).await;
    // Konnectivity reaches an agent's own loopback, too.
    let here = target.address().to_string();
    echoes(&mut cluster.apiserver().pipe(&here).await).await;
    drop(pipe);
    assert_eq!(target.outcome().await.end, End::Closed);
}

#[tokio::test]
async fn bytes_of_both_directions_are_intact_and_nothing_is_lost_at_the_end() {
    const BYTES: u64 = 8 << 20;
    let cluster = alone().await;
    let source = Target::start(Behaviour::Source(BYTES)).await.unwrap();
    let sink = Target::start(Behaviour::Sink).await.unwrap();
    let _serving = cluster.legacy("a", "").await.serve(&[
        ("10.9.0.1:1", source.address()),
        ("10.9.0.1:2", sink.address()),
    ]);
    let mut pipe = cluster.apiserver().pipe("10.9.0.1:1").await;
    let seen = all_of(&mut pipe).await;
    assert!(seen.is_exactly(BYTES), "{seen:?}");
    let mut pipe = cluster.apiserver().pipe("10.9.0.1:2").await;
    send_pattern(&mut pipe, BYTES).await.unwrap();
    // The end of our direction cannot be told; the bytes before it arrive all the same.
    pipe.shutdown().await.unwrap();
    let outcome = sink.outcome().await;
    assert!(outcome.check.is_exactly(BYTES), "{outcome:?}");
}

#[tokio::test]
async fn words_of_the_agent_reach_the_front_end() {
    let cluster = alone().await;
    let mut agent = cluster.legacy("a", "").await;
    let front = cluster.apiserver();
    let asking = tokio::spawn(async move { front.refusal("10.9.0.1:1").await });
    let Some(Packet::DialRequest { random, .. }) = agent.next().await else {
        panic!("no dial");
    };
    let error = "dial tcp 10.9.0.1:1: connect: connection refused".to_owned();
    let connect_id = 0;
    agent
        .send(Packet::DialResponse {
            error: error.clone(),
            connect_id,
            random,
        })
        .await;
    let refused = asking.await.unwrap();
    assert_eq!((refused.status, refused.phrase), (502, error));
}

#[tokio::test]
async fn without_an_agent_the_dial_fails_at_once_and_with_its_stream_a_pending_one() {
    let cluster = alone().await;
    let refused = cluster.apiserver().refusal("10.9.0.1:1").await;
    assert_eq!(refused.status, 503, "{refused:?}");
    let mut agent = cluster.legacy("a", "").await;
    let front = cluster.apiserver();
    let asking = tokio::spawn(async move { front.refusal("10.9.0.1:1").await });
    assert!(matches!(
        agent.next().await,
        Some(Packet::DialRequest { .. })
    ));
    drop(agent);
    let refused = expect("the end of the pending dial", asking).await.unwrap();
    assert_eq!(refused.status, 502, "{refused:?}");
    listed(&cluster, 0).await;
}

#[tokio::test]
async fn a_lost_agent_breaks_its_dials_visibly() {
    let cluster = alone().await;
    let mut agent = cluster.legacy("a", "").await;
    let front = cluster.apiserver();
    let asking = tokio::spawn(async move { front.pipe("10.9.0.1:1").await });
    agent.accept(1).await;
    let mut pipe = asking.await.unwrap();
    agent.send(data(1, "half")).await;
    let mut got = [0; 4];
    expect("the bytes", pipe.read_exact(&mut got))
        .await
        .unwrap();
    drop(agent);
    let mut rest = Vec::new();
    // A Unix socket knows no reset; that the dial ended badly is counted.
    let _ = expect("the end", pipe.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());
    eventually("the count", || async {
        let line = "towline_server_dials_total{door=\"connect-unix\",class=\"other\",reason=\"link-lost\"}";
        (metric(&cluster, line).await == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn two_streams_of_one_id_have_their_own_numbers() {
    let cluster = alone().await;
    let (mut one, mut two) = (
        cluster.legacy("same", "host=one.example").await,
        cluster.legacy("same", "host=two.example").await,
    );
    listed(&cluster, 2).await;
    let front = cluster.apiserver();
    // The oldest is asked; both will say connection 1.
    let first = tokio::spawn(async move { front.pipe("10.9.0.1:1").await });
    one.accept(1).await;
    let mut first = first.await.unwrap();
    // The other stream speaks of a connection that is not its own.
    two.send(data(1, "evil")).await;
    assert_eq!(
        two.next().await,
        Some(Packet::CloseRequest { connect_id: 1 })
    );
    let error = String::new();
    let connect_id = 1;
    two.send(Packet::CloseResponse { error, connect_id }).await;
    one.send(data(1, "good")).await;
    let mut got = [0; 4];
    expect("the bytes", first.read_exact(&mut got))
        .await
        .unwrap();
    assert_eq!(&got, b"good");
    first.write_all(b"to one").await.unwrap();
    assert_eq!(one.next().await, Some(data(1, "to one")));
    // The newer stream ends; the older one keeps everything.
    drop(two);
    listed(&cluster, 1).await;
    one.send(data(1, "more")).await;
    expect("the bytes", first.read_exact(&mut got))
        .await
        .unwrap();
    assert_eq!(&got, b"more");
}

#[tokio::test]
async fn strategies_choose_by_what_was_announced() {
    let cluster = alone_with(&["--proxy-strategies", "destHost,defaultRoute"]).await;
    let mut near = cluster.legacy("near", "ipv4=10.9.0.1&host=Node-1").await;
    let mut far = cluster.legacy("far", "default-route=true").await;
    let mut nobody = cluster.legacy("nobody", "").await;
    listed(&cluster, 3).await;
    for (target, near_is_asked) in [
        ("10.9.0.1:1", true),
        ("node-1:1", true),
        ("10.9.0.2:1", false),
    ] {
        let front = cluster.apiserver();
        let asking = tokio::spawn(async move { front.pipe(target).await });
        let asked = if near_is_asked { &mut near } else { &mut far };
        let Some(Packet::DialRequest {
            address, random, ..
        }) = asked.next().await
        else {
            panic!("no dial");
        };
        assert_eq!(address, target);
        let (error, connect_id) = (String::new(), random);
        asked
            .send(Packet::DialResponse {
                error,
                connect_id,
                random,
            })
            .await;
        drop(asking.await.unwrap());
    }
    // Who drains is asked only when nobody else is there.
    let mut second = cluster.legacy("second", "ipv4=10.9.0.1").await;
    listed(&cluster, 4).await;
    near.send(Packet::Drain).await;
    eventually("the drain", || async {
        let status = cluster.server(0).status().compatibility.unwrap();
        let draining = |agent: &towline_server::status::LegacyAgent| agent.state == "draining";
        status.legacy_agents.iter().any(draining).then_some(())
    })
    .await;
    let front = cluster.apiserver();
    let asking = tokio::spawn(async move { front.pipe("10.9.0.1:1").await });
    second.accept(1).await;
    drop(asking.await.unwrap());
    drop(far);
    listed(&cluster, 3).await;
    let refused = cluster.apiserver().refusal("10.9.0.3:1").await;
    assert_eq!(refused.status, 503);
    nobody.send(Packet::Drain).await;
    let status = nobody.end().await;
    assert_eq!(status.map(|status| status.code), Some(Code::Ok));
}

#[tokio::test]
async fn packets_that_fit_nothing_are_counted_and_disturb_nobody() {
    let cluster = alone().await;
    let mut agent = cluster.legacy("a", "").await;
    let front = cluster.apiserver();
    let asking = tokio::spawn(async move { front.pipe("10.9.0.1:1").await });
    agent.accept(7).await;
    let mut pipe = asking.await.unwrap();
    let error = String::new;
    for stray in [
        Packet::Unknown(99),
        data(0, "x"),
        data(-5, "x"),
        Packet::CloseDial { random: 12345 },
        Packet::CloseRequest { connect_id: 7 },
        Packet::CloseResponse {
            error: error(),
            connect_id: 4242,
        },
        Packet::DialRequest {
            protocol: "tcp".to_owned(),
            address: "10.9.0.1:1".to_owned(),
            random: 1,
        },
        // An answer to no dial, with an id that is in use: that connection stays.
        Packet::DialResponse {
            error: error(),
            connect_id: 7,
            random: 999,
        },
        Packet::DialResponse {
            error: error(),
            connect_id: 8,
            random: i64::MIN,
        },
    ] {
        agent.send(stray).await;
    }
    assert_eq!(
        agent.next().await,
        Some(Packet::CloseRequest { connect_id: -5 })
    );
    assert_eq!(
        agent.next().await,
        Some(Packet::CloseRequest { connect_id: 8 })
    );
    agent.send(data(7, "still")).await;
    let mut got = [0; 5];
    expect("the bytes", pipe.read_exact(&mut got))
        .await
        .unwrap();
    assert_eq!(&got, b"still");
    let strays = metric(
        &cluster,
        "towline_server_legacy_stray_packets_total{reason=\"answer-to-unknown-dial\"}",
    );
    assert_eq!(strays.await, 2);
}

#[tokio::test]
async fn an_answer_with_a_bad_id_fails_its_dial_alone() {
    let cluster = alone().await;
    let mut agent = cluster.legacy("a", "").await;
    let front = cluster.apiserver();
    let asking = tokio::spawn(async move { front.pipe("10.9.0.1:1").await });
    agent.accept(1).await;
    let mut pipe = asking.await.unwrap();
    for bad in [0, 1, -1] {
        let front = cluster.apiserver();
        let asking = tokio::spawn(async move { front.refusal("10.9.0.1:2").await });
        agent.accept(bad).await;
        let refused = expect("the refusal", asking).await.unwrap();
        assert_eq!(refused.status, 502, "{bad}");
    }
    agent.send(data(1, "mine")).await;
    let mut got = [0; 4];
    expect("the bytes", pipe.read_exact(&mut got))
        .await
        .unwrap();
    assert_eq!(&got, b"mine");
}

#[tokio::test]
async fn bytes_that_are_no_packets_end_that_stream_only() {
    let cluster = alone().await;
    let target = Target::start(Behaviour::Echo).await.unwrap();
    let agent = cluster.legacy("good", "ipv4=10.9.0.1").await;
    let _serving = agent.serve(&[("10.9.0.1:1", target.address())]);
    let mut pipe = cluster.apiserver().pipe("10.9.0.1:1").await;
    let frame = |flag: u8, length: u32, body: &[u8]| {
        let mut bytes = BytesMut::new();
        bytes.put_u8(flag);
        bytes.put_u32(length);
        bytes.put(body);
        bytes.freeze()
    };
    let over = limits::GRPC_MESSAGE_BYTES as u32 + 1;
    for (bytes, code) in [
        (frame(0, over, b""), Code::ResourceExhausted),
        (frame(1, 0, b""), Code::Internal),
        (frame(7, 0, b""), Code::Internal),
        (frame(0, 2, b"\x08\xff"), Code::Internal),
        (frame(0, 3, b"\x12\x7fa"), Code::Internal),
    ] {
        let mut bad = cluster.legacy("bad", "").await;
        bad.send_raw(bytes.clone()).await;
        let status = bad.status().await.expect("a status");
        assert_eq!(status.code, code, "{bytes:?}: {status}");
    }
    // One that ends in the middle of a message.
    let mut cut = cluster.legacy("cut", "").await;
    cut.send_raw(frame(0, 5, b"ab")).await;
    let status = cut.end().await.expect("a status");
    assert_eq!(status.code, Code::Internal);
    // A message of exactly the bound is one: DATA of a connection that is not there.
    let mut large = cluster.legacy("large", "").await;
    let head = 1 + 1 + 1 + 4 + 1 + 1 + 1 + 4;
    let body = vec![7; limits::GRPC_MESSAGE_BYTES - head];
    large.send(data(3, body)).await;
    assert_eq!(
        large.next().await,
        Some(Packet::CloseRequest { connect_id: 3 })
    );
    echoes(&mut pipe).await;
}

#[tokio::test]
async fn metadata_is_refused_with_the_texts_that_people_know() {
    let cluster = alone().await;
    let pair = cluster.authority.leaf(Role::Agent, "legacy").sign();
    let address = cluster.server(0).link_address();
    let plan = |id: &str| cluster.legacy_agent(&pair, id);
    let mut nameless = plan("x");
    nameless.metadata.clear();
    let mut elsewhere = plan("x");
    elsewhere.method = "/ProxyService/Proxy";
    for (plan, code, text) in [
        (
            nameless,
            Code::Unknown,
            "expected one agent ID in the context, got []",
        ),
        (
            plan("a").with("agentid", "b"),
            Code::Unknown,
            "expected one agent ID in the context, got [a b]",
        ),
        (
            plan("a").identifiers("host=x").identifiers("host=y"),
            Code::Unknown,
            "expected at most one set of agent identifiers in the context, got [host=x host=y]",
        ),
        (
            plan("a").identifiers("ipv4=%zz"),
            Code::Unknown,
            "fail to parse url encoded string: invalid URL escape \"%zz\"",
        ),
        (
            elsewhere,
            Code::Unimplemented,
            "unknown method /ProxyService/Proxy: agents call /AgentService/Connect",
        ),
    ] {
        let refused = plan
            .connect(address)
            .await
            .unwrap()
            .err()
            .expect("a refusal");
        assert_eq!((refused.code, refused.message.as_str()), (code, text));
    }
    listed(&cluster, 0).await;
}

#[tokio::test]
async fn only_certificates_of_the_authority_come_in() {
    let cluster = alone().await;
    let address = cluster.server(0).link_address();
    let stranger = cluster.stranger.leaf(Role::Agent, "legacy").sign();
    let root = cluster.authority.issuer(Role::Server).der();
    for pair in [None, Some(&stranger)] {
        let plan = towline_tests::legacy::LegacyPlan::new(pair, root, "evil");
        let come = plan.connect(address).await;
        assert!(come.is_err(), "{:?}", pair.is_some());
    }
    // Without the profile the door is not there, whatever the certificate.
    let closed = Plan::on(CarrierKind::Tls).agents(0).start().await;
    let pair = closed.authority.leaf(Role::Agent, "legacy").sign();
    let plan = closed.legacy_agent(&pair, "a");
    assert!(plan.connect(closed.server(0).link_address()).await.is_err());
}

#[tokio::test]
async fn a_stalled_reader_stalls_nobody_else_and_gets_everything_in_the_end() {
    const BYTES: u64 = 24 << 20;
    let cluster = alone().await;
    let source = Target::start(Behaviour::Source(BYTES)).await.unwrap();
    let echo = Target::start(Behaviour::Echo).await.unwrap();
    let _serving = cluster.legacy("a", "").await.serve(&[
        ("10.9.0.1:1", source.address()),
        ("10.9.0.1:2", echo.address()),
    ]);
    let mut stalled = cluster.apiserver().pipe("10.9.0.1:1").await;
    let mut pipe = cluster.apiserver().pipe("10.9.0.1:2").await;
    // The source is done although nobody reads it: its bytes wait here.
    expect("the end of the source", source.outcome()).await;
    for _ in 0..20 {
        echoes(&mut pipe).await;
    }
    let seen = all_of(&mut stalled).await;
    assert!(seen.is_exactly(BYTES), "{seen:?}");
    assert_eq!(
        metric(&cluster, "towline_server_dials_ended_for_memory ").await,
        0
    );
}

#[tokio::test]
async fn the_memory_budget_ends_the_stalled_dial_and_not_its_neighbours() {
    let cluster = alone_with(&["--memory-budget", "16MiB"]).await;
    let mut agent = cluster.legacy("a", "").await;
    let front = cluster.apiserver();
    let asking = tokio::spawn(async move { front.pipe("10.9.0.1:1").await });
    agent.accept(1).await;
    let stalled = asking.await.unwrap();
    let front = cluster.apiserver();
    let asking = tokio::spawn(async move { front.pipe("10.9.0.1:2").await });
    agent.accept(2).await;
    let mut moving = asking.await.unwrap();
    let block = Bytes::from(vec![1; 64 * 1024]);
    // The agent goes on until it is told to stop.
    let flood = async {
        for _ in 0..10_000 {
            agent.send(data(1, block.clone())).await;
            agent.send(data(2, "tick")).await;
            let mut tick = [0; 4];
            moving.read_exact(&mut tick).await.unwrap();
            assert_eq!(&tick, b"tick");
            let ended = metric(&cluster, "towline_server_dials_ended_for_memory ").await;
            let lines = "towline_server_dials_total{door=\"connect-unix\",class=\"other\",reason=\"memory-budget\"}";
            if ended + metric(&cluster, lines).await > 0 {
                return;
            }
        }
        panic!("the budget was never kept");
    };
    expect("the budget", flood).await;
    assert_eq!(
        agent.next().await,
        Some(Packet::CloseRequest { connect_id: 1 })
    );
    // What was on its way is dropped in silence; the neighbour goes on.
    agent.send(data(1, block)).await;
    agent.send(data(2, "tock")).await;
    let mut tock = [0; 4];
    expect("the neighbour's bytes", moving.read_exact(&mut tock))
        .await
        .unwrap();
    assert_eq!(&tock, b"tock");
    drop(stalled);
}

#[tokio::test]
async fn a_target_that_ends_and_one_that_is_left_are_closed() {
    let cluster = alone().await;
    let mut agent = cluster.legacy("a", "").await;
    let front = cluster.apiserver();
    let asking = tokio::spawn(async move { front.pipe("10.9.0.1:1").await });
    agent.accept(1).await;
    let mut pipe = asking.await.unwrap();
    agent.send(data(1, "bye")).await;
    let error = String::new();
    let connect_id = 1;
    agent
        .send(Packet::CloseResponse { error, connect_id })
        .await;
    let mut got = Vec::new();
    expect("the end", pipe.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got, b"bye");
    let front = cluster.apiserver();
    let asking = tokio::spawn(async move { front.pipe("10.9.0.1:2").await });
    agent.accept(2).await;
    drop(asking.await.unwrap());
    assert_eq!(
        agent.next().await,
        Some(Packet::CloseRequest { connect_id: 2 })
    );
}

#[tokio::test]
async fn a_dial_that_is_given_up_is_closed_when_the_answer_comes() {
    let cluster = alone().await;
    let mut agent = cluster.legacy("a", "").await;
    let front = cluster.apiserver();
    let asking = tokio::spawn(async move { front.dial("10.9.0.1:1").await });
    let Some(Packet::DialRequest { random, .. }) = agent.next().await else {
        panic!("no dial");
    };
    asking.abort();
    let _ = asking.await;
    eventually("the end of the dial", || async {
        let line = "towline_server_dials_total{door=\"connect-unix\",class=\"none\",reason=\"front-end-gone\"}";
        (metric(&cluster, line).await == 1).then_some(())
    })
    .await;
    let (error, connect_id) = (String::new(), 5);
    agent
        .send(Packet::DialResponse {
            error,
            connect_id,
            random,
        })
        .await;
    assert_eq!(
        agent.next().await,
        Some(Packet::CloseRequest { connect_id: 5 })
    );
}

#[tokio::test]
async fn an_agent_that_never_answers_fails_the_dial_in_time() {
    let cluster = alone_with(&["--backend-dial-timeout", "200ms"]).await;
    let mut agent = cluster.legacy("a", "").await;
    let refused = cluster.apiserver().refusal("10.9.0.1:1").await;
    assert_eq!(refused.status, 504, "{refused:?}");
    assert!(matches!(
        agent.next().await,
        Some(Packet::DialRequest { .. })
    ));
    listed(&cluster, 1).await;
}

#[tokio::test]
async fn a_stopping_server_ends_the_streams_last() {
    let mut cluster = alone_with(&["--graceful-shutdown-timeout", "20s"]).await;
    let mut agent = cluster.legacy("a", "").await;
    let front = cluster.apiserver();
    let asking = tokio::spawn(async move { front.pipe("10.9.0.1:1").await });
    agent.accept(1).await;
    let mut pipe = asking.await.unwrap();
    let server = cluster.take_server(0);
    server.drain();
    agent.send(data(1, "last")).await;
    let mut got = [0; 4];
    expect("the bytes", pipe.read_exact(&mut got))
        .await
        .unwrap();
    drop(pipe);
    let status = agent.status().await.expect("a status");
    assert_eq!(status.code, Code::Unavailable);
    expect("the stop", server.wait()).await.unwrap();
}

#[tokio::test]
async fn a_new_authority_ends_agents_of_the_old_one() {
    let cluster = alone().await;
    let mut agent = cluster.legacy("a", "").await;
    listed(&cluster, 1).await;
    let other = cluster.stranger.issuer(Role::Agent).pem();
    towline_tests::scratch::replace(&cluster.scratch().join("agents.ca"), other).unwrap();
    let errors = cluster.reload().await;
    assert!(errors.is_empty(), "{errors:?}");
    let status = agent.status().await.expect("a status");
    assert_eq!(status.code, Code::Unavailable);
    listed(&cluster, 0).await;
}

scenarios! {
    async fn a_verified_owner_keeps_its_target_whatever_is_announced(carrier) {
        let mut cluster = Plan::on(carrier).compatible().start().await;
        let kubelet = format!("{}:10250", node_ip(1));
        let real = cluster.target(&kubelet, Behaviour::SpeaksFirst("real")).await;
        // It announces the node's address and name; it is never asked for them.
        let announced = format!("ipv4={}&host=n1", node_ip(1));
        let mut thief = cluster.legacy("n1", &announced).await;
        listed(&cluster, 1).await;
        for target in [kubelet.as_str(), "n1:10250"] {
            if target != kubelet {
                cluster.wire.name("n1", &[&[node_ip(1)]]);
            }
            let mut pipe = cluster.apiserver().pipe(target).await;
            let mut got = [0; 4];
            expect("the real answer", pipe.read_exact(&mut got)).await.unwrap();
            assert_eq!(&got, b"real");
        }
        drop(real);
        // Not while it has no link, either.
        cluster.kill_agent("n1");
        eventually("the end of the link", || async {
            let agents = cluster.server(0).status().agents;
            agents.iter().all(|agent| agent.links.is_empty()).then_some(())
        }).await;
        let refused = cluster.apiserver().refusal(&kubelet).await;
        assert_eq!(refused.status, 503, "{refused:?}");
        // What nobody verified owns is for it, and the first thing that it hears of.
        let front = cluster.apiserver();
        let asking = tokio::spawn(async move { front.pipe("10.9.0.1:1").await });
        assert_eq!(thief.accept(1).await, "10.9.0.1:1");
        drop(asking.await.unwrap());
    }

    async fn with_allow_downgrade_the_way_back_is_open(carrier) {
        let mut cluster = Plan::on(carrier)
            .compatible()
            .server_flags(&["--allow-downgrade=true"])
            .start()
            .await;
        let kubelet = format!("{}:10250", node_ip(1));
        let mut agent = cluster.legacy("n1", "").await;
        listed(&cluster, 1).await;
        cluster.kill_agent("n1");
        eventually("the end of the link", || async {
            let agents = cluster.server(0).status().agents;
            agents.iter().all(|agent| agent.links.is_empty()).then_some(())
        }).await;
        let front = cluster.apiserver();
        let asking = tokio::spawn(async move { front.pipe(&kubelet).await });
        agent.accept(1).await;
        drop(asking.await.unwrap());
    }

    async fn pods_go_through_verified_gateways_first(carrier) {
        let cluster = Plan::on(carrier).compatible().start().await;
        let pod = "10.244.0.5:8080";
        let _real = cluster.target(pod, Behaviour::SpeaksFirst("real")).await;
        let _legacy = cluster.legacy("a", "ipv4=10.244.0.5").await;
        listed(&cluster, 1).await;
        let mut pipe = cluster.apiserver().pipe(pod).await;
        let mut got = [0; 4];
        expect("the real answer", pipe.read_exact(&mut got)).await.unwrap();
        assert_eq!(&got, b"real");
    }
}

#[tokio::test]
async fn other_protocols_have_no_door_here() {
    let cluster = alone().await;
    let pair = cluster.authority.leaf(Role::Agent, "legacy").sign();
    let mut plan = cluster.legacy_agent(&pair, "a");
    plan.alpn = vec![b"http/1.1".to_vec()];
    let come = plan.connect(cluster.server(0).link_address()).await;
    assert!(come.is_err());
}
