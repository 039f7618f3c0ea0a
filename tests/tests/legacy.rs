//! Legacy agents at the compatibility door: what they may do, what they are never believed, and
//! what one of them cannot do to the others.

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towline_link::grpc::Code;
use towline_proto::id::Role;
use towline_proto::konnectivity::{Packet, SERVER_COUNT, SERVER_ID};
use towline_tests::apiserver::Pipe;
use towline_tests::cluster::{Cluster, Plan, node_ip};
use towline_tests::grpc::{GrpcFrontEnd, Pings};
use towline_tests::legacy::{alone, alone_with, data, listed, metric};
use towline_tests::pattern::Check;
use towline_tests::scenario::{eventually, expect};
use towline_tests::scenarios;
use towline_tests::target::{Behaviour, End, Target, read_all, send_pattern};

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

/// The whole answer to a CONNECT that is refused.
async fn answer(cluster: &Cluster, target: &str) -> String {
    let mut door = cluster.apiserver().connect().await.unwrap();
    let request = format!("CONNECT {target} HTTP/1.1\r\n\r\n");
    door.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let reading = door.read_to_string(&mut answer);
    expect("the answer", reading).await.unwrap();
    answer
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
    eventually("both connections in the histogram", || async {
        let counted = "konnectivity_network_proxy_server_connection_duration_seconds_count";
        (metric(&cluster, counted).await == 2).then_some(())
    })
    .await;
    // Nobody stayed for a second, or not for an hour.
    let short = "konnectivity_network_proxy_server_connection_duration_seconds_bucket{le=\"3600\"}";
    assert_eq!(metric(&cluster, short).await, 2);
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
    assert!(answer(&cluster, "10.9.0.1:1").await.ends_with(
        "\r\nContent-Type: text/plain\r\nContent-Length: 50\r\nConnection: close\r\n\r\n\
         currently no tunnels available: No agent available"
    ));
    let refused = cluster.apiserver().refusal("10.9.0.1:1").await;
    assert_eq!(refused.status, 500, "{refused:?}");
    let grpc = GrpcFrontEnd::connect(&cluster.apiserver()).await.unwrap();
    assert_eq!(grpc.refusal("10.9.0.1:1").await, "No agent available");
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
    let port = answer(&cluster, "10.9.0.1").await;
    let said = "\r\n\r\ndial tcp: address 10.9.0.1: missing port in address";
    assert!(port.starts_with("HTTP/1.1 502 ") && port.ends_with(said));
    listed(&cluster, 0).await;
    let counted = "konnectivity_network_proxy_server_dial_failure_count{reason=\"backend_close\"}";
    assert_eq!(metric(&cluster, counted).await, 1);
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
    assert_eq!(refused.status, 500);
    nobody.send(Packet::Drain).await;
    let status = nobody.end().await;
    assert_eq!(status.map(|status| status.code), Some(Code::Ok));
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
    assert_eq!(agent.next().await, Some(Packet::CloseDial { random }));
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
    let counted =
        "konnectivity_network_proxy_server_dial_failure_count{reason=\"backend_dial_timeout\"}";
    assert_eq!(metric(&cluster, counted).await, 1);
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
    let stopping = tokio::spawn(async move { server.wait().await });
    agent.send(data(1, "last")).await;
    let mut got = [0; 4];
    expect("the bytes", pipe.read_exact(&mut got))
        .await
        .unwrap();
    drop(pipe);
    let status = agent.status().await.expect("a status");
    assert_eq!(status.code, Code::Unavailable);
    expect("the stop", stopping).await.unwrap().unwrap();
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

/// Its handshake ended well when it was made, and that says nothing about now.
#[tokio::test]
async fn an_agent_of_the_old_authority_does_not_call_again_on_its_old_connection() {
    let cluster = alone().await;
    let pair = cluster.authority.leaf(Role::Agent, "legacy").sign();
    let plan = cluster.legacy_agent(&pair, "a");
    let server = cluster.server(0).link_address();
    let mut connection = plan.only_connect(server).await.expect("a connection");
    let mut early = plan.only_connect(server).await.expect("a connection");
    let called = expect("a call", connection.call(&plan)).await;
    let mut agent = called.expect("an answer").expect("a place");
    listed(&cluster, 1).await;
    let other = cluster.stranger.issuer(Role::Agent).pem();
    towline_tests::scratch::replace(&cluster.scratch().join("agents.ca"), other).unwrap();
    let errors = cluster.reload().await;
    assert!(errors.is_empty(), "{errors:?}");
    agent.status().await.expect("a status");
    // Neither who was an agent, nor who had only shaken hands.
    for connection in [&mut connection, &mut early] {
        let again = expect("the end", connection.call(&plan)).await;
        assert!(!matches!(again, Ok(Ok(_))), "it is an agent again");
    }
    listed(&cluster, 0).await;
}

#[tokio::test]
async fn who_is_silent_is_asked_whether_it_is_there() {
    let every = ["--keepalive-time=100ms", "--frontend-keepalive-time=100ms"];
    let cluster = alone_with(&every).await;
    let pair = cluster.authority.leaf(Role::Agent, "legacy").sign();
    let plan = cluster.legacy_agent(&pair, "a");
    let server = cluster.server(0).link_address();
    let secured = plan.secure(server).await.expect("a handshake");
    let (secured, mut to_agent) = Pings::new(secured);
    let mut connection = plan.over(secured, server).await.expect("a connection");
    let called = expect("a call", connection.call(&plan)).await;
    let _agent = called.expect("an answer").expect("a place");
    let door = cluster.apiserver().connect().await.expect("the door");
    let (door, mut to_front_end) = Pings::new(door);
    let _front_end = GrpcFrontEnd::over(door, 65_535)
        .await
        .expect("a connection");
    // Again and again, as long as it answers.
    for pings in [&mut to_agent, &mut to_front_end] {
        let many = expect("pings", pings.wait_for(|count| *count >= 3)).await;
        drop(many.expect("the connection is open"));
    }
    listed(&cluster, 1).await;
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
        assert_eq!(refused.status, 500, "{refused:?}");
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
