//! The agent's legacy mode against a fake of Konnectivity's proxy-server whose packets are in
//! the hands of the test. What kind of server it is, and flags: `legacy_auto`.

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towline_link::grpc::{Code, Status};
use towline_proto::id::Role;
use towline_proto::konnectivity::Packet;
use towline_tests::authority::{Authority, Flaw};
use towline_tests::legacy_server::{FakeProxyServer, Script, loopback_pair};
use towline_tests::legacy_world::{Target, World, anywhere, free_port, page, until};
use towline_tests::scratch;

#[tokio::test]
async fn bytes_pass_both_ways_and_ids_count_from_one() {
    let world = World::new();
    let mut server = world.server(Script::default()).await;
    let query = "ipv4=10.0.0.7&host=node-7";
    let agent = world
        .agent(server.address(), &[&format!("--agent-identifiers={query}")])
        .await;
    let mut call = server.call().await;
    assert_eq!(call.value("agentid"), "agent-7");
    assert_eq!(call.value("agentidentifiers"), query);
    assert!(!call.metadata.contains_key("authorization") && !call.certified);

    let target = Target::new().await;
    assert_eq!(call.dial("tcp", &target.address()).await, Ok(1));
    let mut first = target.accept().await;
    call.data(1, &b"hello"[..]).await;
    let mut five = [0; 5];
    first.read_exact(&mut five).await.unwrap();
    assert_eq!(&five, b"hello");
    first.write_all(b"world!").await.unwrap();
    assert_eq!(call.read(1, 6).await, b"world!");

    // A failed dial uses up a number too.
    assert!(call.dial("tcp", "127.0.0.1:1").await.is_err());
    assert_eq!(call.dial("tcp4", &target.address()).await, Ok(3));

    // A large transfer each way, whole.
    let mut third = target.accept().await;
    let big: Vec<u8> = (0..8 << 20).map(|n: u32| (n % 251) as u8).collect();
    let sent = Bytes::from(big.clone());
    let reading = tokio::spawn(async move {
        let mut got = vec![0; 8 << 20];
        third.read_exact(&mut got).await.unwrap();
        third.write_all(&got).await.unwrap();
        (third, got)
    });
    for chunk in sent.chunks(60_000) {
        call.data(3, Bytes::copy_from_slice(chunk)).await;
    }
    assert!(call.read(3, big.len()).await == big);
    let (_third, got) = reading.await.unwrap();
    assert!(got == big);
    drop(agent);
}

#[tokio::test]
async fn a_close_delivers_what_was_sent_and_says_what_was_read() {
    let world = World::new();
    let mut server = world.server(Script::default()).await;
    let _agent = world.agent(server.address(), &[]).await;
    let mut call = server.call().await;
    let target = Target::new().await;

    // By the server: 8 MiB and a close; the target gets all of it, then the end.
    let id = call.dial("tcp", &target.address()).await.unwrap();
    let mut stream = target.accept().await;
    let big = vec![7u8; 8 << 20];
    for chunk in big.chunks(1 << 20) {
        call.data(id, Bytes::copy_from_slice(chunk)).await;
    }
    call.send(Packet::CloseRequest { connect_id: id }).await;
    assert_eq!(call.rest(id).await, (Vec::new(), String::new()));
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.unwrap();
    assert!(got == big);

    // By the target: everything it said comes before CLOSE_RSP.
    let id = call.dial("tcp", &target.address()).await.unwrap();
    let mut stream = target.accept().await;
    let speaking = async {
        stream.write_all(&big).await.unwrap();
        drop(stream);
    };
    let ((got, error), ()) = tokio::join!(call.rest(id), speaking);
    assert!(got == big);
    assert_eq!(error, "");

    // By a reset of the target: an error is named.
    let id = call.dial("tcp", &target.address()).await.unwrap();
    let stream = target.accept().await;
    call.data(id, &b"x"[..]).await;
    stream.set_zero_linger().unwrap();
    drop(stream);
    let (_, error) = call.rest(id).await;
    assert!(!error.is_empty());
}

#[tokio::test]
async fn a_half_closed_target_still_gets_what_was_sent_before() {
    let world = World::new();
    let mut server = world.server(Script::default()).await;
    let _agent = world.agent(server.address(), &[]).await;
    let mut call = server.call().await;
    let target = Target::new().await;
    let id = call.dial("tcp", &target.address()).await.unwrap();
    let mut stream = target.accept().await;
    let big = vec![9u8; 3 << 20];
    call.data(id, big.clone()).await;
    // An answer to something said later: the agent has all of it.
    call.send(Packet::CloseRequest { connect_id: -1 }).await;
    assert!(matches!(call.next().await, Packet::CloseResponse { .. }));
    stream.write_all(b"done").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(call.rest(id).await, (b"done".to_vec(), String::new()));
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.unwrap();
    assert!(got == big);
}

#[tokio::test]
async fn a_target_that_speaks_first_is_heard_after_the_answer() {
    let world = World::new();
    let mut server = world.server(Script::default()).await;
    let _agent = world.agent(server.address(), &[]).await;
    let mut call = server.call().await;
    let target = Target::new().await;
    let address = target.address();
    for _ in 0..20 {
        let speaking = async {
            let mut stream = target.accept().await;
            stream.write_all(b"220 ready\r\n").await.unwrap();
        };
        // `dial` fails on anything that comes before the answer only by losing it.
        let (id, ()) = tokio::join!(call.dial("tcp", &address), speaking);
        let (got, _) = call.rest(id.unwrap()).await;
        assert_eq!(got, b"220 ready\r\n");
    }
}

#[tokio::test]
async fn one_stalled_target_stalls_nobody_and_is_ended_for_memory() {
    let world = World::new();
    let mut server = world.server(Script::default()).await;
    let agent = world
        .agent(server.address(), &["--memory-budget=16MiB"])
        .await;
    let mut call = server.call().await;
    let target = Target::new().await;
    let stalled = call.dial("tcp", &target.address()).await.unwrap();
    let _never_read = target.accept().await;
    let id = call.dial("tcp", &target.address()).await.unwrap();
    let mut other = target.accept().await;
    let chunk = Bytes::from(vec![1; 64 * 1024]);
    let mut ended = None;
    // Far more than every buffer on the way and the budget hold.
    for round in 0..1024 {
        call.data(stalled, chunk.clone()).await;
        if round % 64 != 0 {
            continue;
        }
        call.data(id, &b"ping"[..]).await;
        let mut four = [0; 4];
        other.read_exact(&mut four).await.unwrap();
        other.write_all(&four).await.unwrap();
        loop {
            match call.next().await {
                Packet::Data { connect_id, .. } if connect_id == id => break,
                Packet::CloseResponse { error, connect_id } if connect_id == stalled => {
                    ended.get_or_insert(error);
                }
                other => panic!("{other:?}"),
            }
        }
    }
    let error = match ended {
        Some(error) => error,
        None => call.rest(stalled).await.1,
    };
    assert!(!error.is_empty());
    call.data(id, &b"ping"[..]).await;
    let mut four = [0; 4];
    other.read_exact(&mut four).await.unwrap();
    assert_eq!(agent.live_dials(), 1);
}

#[tokio::test]
async fn failed_dials_are_told_in_gos_words() {
    let world = World::new();
    let mut server = world.server(Script::default()).await;
    let agent = world.agent(server.address(), &[]).await;
    let mut call = server.call().await;
    let closed = free_port();
    let refused = format!("127.0.0.1:{closed}");
    for (protocol, address, text) in [
        (
            "tcp",
            refused.as_str(),
            format!("dial tcp 127.0.0.1:{closed}: connect: connection refused"),
        ),
        (
            "tcp",
            "127.0.0.1",
            "dial tcp: address 127.0.0.1: missing port in address".to_owned(),
        ),
        (
            "tcp",
            "127.0.0.1:99999",
            "dial tcp: address 99999: invalid port".to_owned(),
        ),
        (
            "tcp",
            "::1:80",
            "dial tcp: address ::1:80: too many colons in address".to_owned(),
        ),
        (
            "udp",
            "127.0.0.1:53",
            "dial udp: unknown network udp".to_owned(),
        ),
        (
            "unix",
            "/run/x.sock",
            "dial unix: unknown network unix".to_owned(),
        ),
        (
            "tcp6",
            "127.0.0.1:80",
            "dial tcp6: address 127.0.0.1: no suitable address found".to_owned(),
        ),
        (
            "tcp",
            "no.such.invalid:80",
            "dial tcp: lookup no.such.invalid: no such host".to_owned(),
        ),
    ] {
        assert_eq!(call.dial(protocol, address).await, Err(text));
    }
    // What no rule can allow stays forbidden, and so is the tunnel itself.
    let own = server.address().to_string();
    let health = agent.health_address().to_string();
    for address in [
        "169.254.169.254:80",
        "0.0.0.0:80",
        "224.0.0.1:80",
        &own,
        &health,
    ] {
        let error = call.dial("tcp", address).await.unwrap_err();
        assert!(error.contains("permission denied"), "{address}: {error}");
    }
    let metrics = page(&agent, "/metrics").await;
    for line in [
        "# HELP konnectivity_network_proxy_agent_endpoint_dial_failure_total Number of failures dialing the remote endpoint, by reason (example: timeout).",
        "# TYPE konnectivity_network_proxy_agent_endpoint_dial_failure_total counter",
        "konnectivity_network_proxy_agent_open_server_connections 1",
        "konnectivity_network_proxy_agent_known_server_count 1",
        "konnectivity_network_proxy_agent_stream_packets_total{packet_type=\"DIAL_REQ\",segment=\"to_agent\"} 13",
        "konnectivity_network_proxy_agent_stream_packets_total{packet_type=\"DIAL_RSP\",segment=\"from_agent\"} 13",
        "konnectivity_network_proxy_agent_endpoint_dial_failure_total{reason=\"unknown\"} 13",
        "towline_agent_legacy_streams 1",
    ] {
        assert!(metrics.lines().any(|one| one == line), "{line}\n{metrics}");
    }
    assert!(!metrics.contains("reason=\"timeout\""), "{metrics}");
}

#[tokio::test]
async fn packets_about_nothing_are_answered_and_disturb_nobody() {
    let world = World::new();
    let mut server = world.server(Script::default()).await;
    let agent = world.agent(server.address(), &[]).await;
    let mut call = server.call().await;
    let target = Target::new().await;
    let id = call.dial("tcp", &target.address()).await.unwrap();
    let mut stream = target.accept().await;
    call.data(99, &b"x"[..]).await;
    let unknown = Packet::CloseResponse {
        error: "unrecognized connectID".to_owned(),
        connect_id: 99,
    };
    assert_eq!(call.next().await, unknown);
    call.send(Packet::CloseRequest { connect_id: -3 }).await;
    let unknown = Packet::CloseResponse {
        error: "Unknown connectID".to_owned(),
        connect_id: -3,
    };
    assert_eq!(call.next().await, unknown);
    for ignored in [
        Packet::Data {
            connect_id: 0,
            data: Bytes::from_static(b"x"),
        },
        Packet::Drain,
        Packet::CloseDial { random: 1 },
        Packet::Unknown(9),
    ] {
        call.send(ignored).await;
    }
    call.data(id, &b"still here"[..]).await;
    let mut ten = [0; 10];
    stream.read_exact(&mut ten).await.unwrap();
    assert_eq!(&ten, b"still here");
    let page = page(&agent, "/metrics").await;
    for (what, count) in [
        ("data-of-unknown-connection", 1),
        ("data-without-connection", 1),
        ("drain-by-a-server", 1),
        ("unknown-type", 1),
    ] {
        let line = format!("towline_agent_legacy_stray_packets_total{{reason=\"{what}\"}} {count}");
        assert!(page.lines().any(|one| one == line), "{line}\n{page}");
    }
}

#[tokio::test]
async fn a_drain_is_announced_and_waits_for_connections() {
    let world = World::new();
    let mut server = world.server(Script::default()).await;
    let agent = world.agent(server.address(), &[]).await;
    let mut call = server.call().await;
    let target = Target::new().await;
    let id = call.dial("tcp", &target.address()).await.unwrap();
    let mut stream = target.accept().await;
    agent.drain();
    assert_eq!(call.next().await, Packet::Drain);
    // Old connections go on, and even new ones are served.
    call.data(id, &b"x"[..]).await;
    let mut one = [0];
    stream.read_exact(&mut one).await.unwrap();
    let second = call.dial("tcp", &target.address()).await.unwrap();
    drop(target.accept().await);
    call.rest(second).await;
    assert!(page(&agent, "/healthz").await.ends_with("\r\n\r\nok"));
    drop(stream);
    call.rest(id).await;
    agent.wait().await.unwrap();
}

#[tokio::test]
async fn a_new_policy_ends_the_live_dials_that_it_forbids_and_no_others() {
    let world = World::new();
    let mut server = world.server(Script::default()).await;
    let file = |rules: &str| {
        let text = format!("version: 1\nrules:\n{rules}");
        scratch::replace(&world.scratch.join("policy.yaml"), text).unwrap();
    };
    let everything = "  - {name: everything, action: allow}\n";
    file(everything);
    let path = world.scratch.join("policy.yaml");
    let flag = format!("--policy={}", path.display());
    let _agent = world.agent(server.address(), &[&flag]).await;
    let mut call = server.call().await;
    let (ending, staying) = (Target::new().await, Target::new().await);
    assert_eq!(call.dial("tcp", &ending.address()).await, Ok(1));
    let mut ended = ending.accept().await;
    assert_eq!(call.dial("tcp", &staying.address()).await, Ok(2));
    let mut stays = staying.accept().await;
    call.data(1, &b"x"[..]).await;
    call.data(2, &b"x"[..]).await;
    let port = ending.address().rsplit_once(':').unwrap().1.to_owned();
    file(&format!(
        "{everything}  - {{name: closed, action: deny, ports: [\"{port}\"]}}\n"
    ));
    let mut all = Vec::new();
    let end = ended.read_to_end(&mut all);
    let end = tokio::time::timeout(std::time::Duration::from_secs(5), end).await;
    assert!(end.expect("in time").is_err(), "the target sees a reset");
    call.data(2, &b"y"[..]).await;
    let mut two = [0; 2];
    stays.read_exact(&mut two).await.unwrap();
    assert_eq!(&two, b"xy");
    assert!(call.dial("tcp", &ending.address()).await.is_err());
}

#[tokio::test]
async fn a_lost_server_is_called_again_and_its_connections_are_reset() {
    let world = World::new();
    let mut server = world.server(Script::default()).await;
    let agent = world.agent(server.address(), &[]).await;
    let mut call = server.call().await;
    let target = Target::new().await;
    call.dial("tcp", &target.address()).await.unwrap();
    let mut stream = target.accept().await;
    assert!(page(&agent, "/readyz").await.contains(" 200 "));
    drop(call);
    let address = server.stop().await;
    // A truncated stream never looks complete.
    assert!(stream.read(&mut [0; 8]).await.is_err());
    let mut server = world.server_at(Script::default(), address).await;
    let mut call = server.call().await;
    // Ids are of the stream.
    assert_eq!(call.dial("tcp", &target.address()).await, Ok(1));
    assert!(
        page(&agent, "/ready?verbose")
            .await
            .ends_with("[+]ping ok\n[+]server-connected ok\ncheck passed\n")
    );
}

#[tokio::test]
async fn every_server_behind_one_address_gets_one_stream() {
    let world = World::new();
    let ids = ["a", "a", "b", "b", "a", "c"].map(str::to_owned).to_vec();
    let script = Script {
        ids,
        count: "3".to_owned(),
        ..Script::default()
    };
    let mut server = world.server(script).await;
    let agent = world.agent(server.address(), &[]).await;
    let mut calls = Vec::new();
    for _ in 0..6 {
        calls.push(server.call().await);
    }
    // Three streams are left, and nobody looks for a fourth.
    until(&agent, "three streams", |_, metrics| {
        metrics.contains("konnectivity_network_proxy_agent_open_server_connections 3\n")
            && metrics.contains("konnectivity_network_proxy_agent_known_server_count 3\n")
            && metrics.contains("towline_agent_legacy_attempts_total{outcome=\"duplicate\"} 3\n")
    })
    .await;
    assert!(server.called().is_none());
}

#[tokio::test]
async fn a_token_is_read_again_for_each_call() {
    let world = World::new();
    let mut server = world.server(Script::default()).await;
    server.change(|script| script.refuse = Some(Status::new(Code::Unknown, "lookup failed: x")));
    let token = world.scratch.write("token", "first").unwrap();
    let flag = format!("--service-account-token-path={}", token.display());
    let agent = world.agent(server.address(), &[&flag]).await;
    until(&agent, "refused", |report, _| {
        report.contains("lookup failed: x")
    })
    .await;
    let unready = page(&agent, "/readyz").await;
    assert!(unready.contains(" 503 "), "{unready}");
    assert!(unready.ends_with("[+]ping ok\n[-]server-connected failed: no servers connected\n"));
    scratch::replace(&token, "second").unwrap();
    server.change(|script| script.refuse = None);
    let call = loop {
        let call = server.call().await;
        if call.value("authorization") != "Bearer first" {
            break call;
        }
    };
    assert_eq!(call.value("authorization"), "Bearer second");
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_who_asks() {
    let world = World::new();
    let script = Script {
        clients: Some(world.authority.kubelets().pem().to_owned()),
        ..Script::default()
    };
    let mut server = world.server(script).await;
    let pair = world
        .authority
        .leaf(Role::Agent, "any")
        .identities(&[])
        .signed_by(world.authority.kubelets())
        .sign();
    let files = pair.write(&world.scratch, "agent").unwrap();
    let cert = format!("--agent-cert={}", files.cert.display());
    let key = format!("--agent-key={}", files.key.display());
    let _agent = world.agent(server.address(), &[&cert, &key]).await;
    assert!(server.call().await.certified);
}

#[tokio::test]
async fn a_server_that_is_not_the_one_is_never_called() {
    let world = World::new();
    let stranger = Authority::new("legacy.example");
    let here = &[[127, 0, 0, 1].into()][..];
    let wrong_usage = world
        .authority
        .kubelet_leaf("x", here)
        .flawed(Flaw::WrongUsage, &world.authority, &stranger)
        .sign();
    let expired = world
        .authority
        .kubelet_leaf("x", here)
        .flawed(Flaw::Expired, &world.authority, &stranger)
        .sign();
    let elsewhere = world
        .authority
        .kubelet_leaf("x", &[[127, 0, 0, 2].into()])
        .sign();
    for (what, pair) in [
        ("another CA", loopback_pair(&stranger, None)),
        ("another name", elsewhere),
        ("no server", wrong_usage),
        ("expired", expired),
    ] {
        let mut server = FakeProxyServer::start(&pair, Script::default(), anywhere())
            .await
            .unwrap();
        let agent = world.agent(server.address(), &[]).await;
        let failed = |reason| format!("attempts_failed_total{{reason=\"{reason}\"}}");
        until(&agent, what, |_, metrics| {
            let reasons = ["bad-certificate", "certificate-ended"].map(failed);
            reasons.iter().any(|reason| metrics.contains(reason))
        })
        .await;
        assert!(server.called().is_none(), "{what}");
        assert!(server.handshakes().is_empty(), "{what}");
    }
}
