//! A legacy server that breaks the rules: the stream to it ends, is counted and is made anew, and the stream
//! to another server goes on.

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use towline_link::grpc::{Code, Status};
use towline_proto::konnectivity::{DATA_UNKNOWN, Packet, SERVER_COUNT, SERVER_ID};
use towline_proto::limits;
use towline_tests::legacy_server::{AgentCall, Script};
use towline_tests::legacy_world::{Target, World, page, until};
use towline_tests::scenario::expect;

fn frame(flag: u8, length: u32, body: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(flag);
    bytes.put_u32(length);
    bytes.put(body);
    bytes.freeze()
}

/// A connection through the good server, both ways.
async fn echoes(call: &mut AgentCall, stream: &mut TcpStream) {
    call.data(1, &b"ping"[..]).await;
    let mut four = [0; 4];
    expect("the ping", stream.read_exact(&mut four))
        .await
        .unwrap();
    stream.write_all(&four).await.unwrap();
    assert_eq!(call.read(1, 4).await, b"ping");
}

/// One server behind the address at first, then the other, again and again.
fn good_and_bad() -> Script {
    Script {
        ids: ["good", "bad"].map(str::to_owned).to_vec(),
        count: "2".to_owned(),
        ..Script::default()
    }
}

#[tokio::test]
async fn a_server_that_asks_much_and_reads_nothing_is_called_anew() {
    let world = World::new();
    let mut server = world.server(good_and_bad()).await;
    let agent = world.agent(server.address(), &[]).await;
    let target = Target::new().await;
    let mut good = server.call().await;
    assert_eq!(good.dial("tcp", &target.address()).await, Ok(1));
    let mut beside = target.accept().await;
    let mut bad = server.call().await;
    // Each is answered with CLOSE_RSP, which waits.
    let mut said = 0;
    while server.called().is_none() {
        for _ in 0..1000 {
            bad.data(99, &b"x"[..]).await;
        }
        said += 1000;
        echoes(&mut good, &mut beside).await;
        assert!(said <= 8 * limits::LEGACY_CONTROL, "it may ask for ever");
    }
    let metrics = page(&agent, "/metrics").await;
    assert!(
        said > limits::LEGACY_CONTROL,
        "{said} were too many\n{metrics}"
    );
    echoes(&mut good, &mut beside).await;
}

#[tokio::test]
async fn bytes_that_are_no_packets_end_that_stream_only() {
    let world = World::new();
    let mut server = world.server(good_and_bad()).await;
    let agent = world.agent(server.address(), &[]).await;
    let target = Target::new().await;
    let mut good = server.call().await;
    assert_eq!(good.dial("tcp", &target.address()).await, Ok(1));
    let mut beside = target.accept().await;

    let over = limits::GRPC_MESSAGE_BYTES as u32 + 1;
    let too_long = (Code::ResourceExhausted, frame(0, over, b""));
    let wrong = [
        // Compressed, and nobody agreed to that.
        frame(1, 0, b""),
        frame(7, 0, b""),
        // A number, and a text, without their ends.
        frame(0, 2, b"\x08\xff"),
        frame(0, 3, b"\x12\x7fa"),
    ]
    .map(|bytes| (Code::Internal, bytes));
    let errors = "konnectivity_network_proxy_agent_stream_errors_total";
    let (mut exhausted, mut internal) = (0, 0);
    for (code, bytes) in [too_long].into_iter().chain(wrong) {
        let mut bad = server.call().await;
        assert_eq!(bad.dial("tcp", &target.address()).await, Ok(1));
        let mut held = target.accept().await;
        bad.send_raw(bytes.clone()).await;
        bad.gone().await;
        // What was open on it is broken off, visibly.
        let cut = expect("the reset", held.read(&mut [0; 8])).await;
        assert!(cut.is_err(), "{bytes:?}: {cut:?}");
        match code {
            Code::ResourceExhausted => exhausted += 1,
            _ => internal += 1,
        }
        echoes(&mut good, &mut beside).await;
    }
    // One that ends in the middle of a message, with the best of statuses.
    let mut cut = server.call().await;
    cut.send_raw(frame(0, 5, b"ab")).await;
    cut.finish(&Status::new(Code::Ok, ""));
    internal += 1;

    // A message of exactly the bound is one: DATA of a connection that is not there.
    let mut large = server.call().await;
    let head = 1 + 1 + 1 + 4 + 1 + 1 + 1 + 4;
    large
        .data(3, vec![7; limits::GRPC_MESSAGE_BYTES - head])
        .await;
    let error = DATA_UNKNOWN.to_owned();
    let connect_id = 3;
    assert_eq!(
        large.next().await,
        Packet::CloseResponse { error, connect_id }
    );
    echoes(&mut good, &mut beside).await;
    let metrics = page(&agent, "/metrics").await;
    for (code, count) in [("ResourceExhausted", exhausted), ("Internal", internal)] {
        let line = format!(
            "{errors}{{code=\"{code}\",packet_type=\"Unknown\",segment=\"to_agent\"}} {count}"
        );
        assert!(metrics.lines().any(|one| one == line), "{line}\n{metrics}");
    }
    let old = "konnectivity_network_proxy_agent_server_connection_failure_count{direction=\"from_server\"}";
    let line = format!("{old} {}", exhausted + internal);
    assert!(metrics.lines().any(|one| one == line), "{line}\n{metrics}");
}

#[tokio::test]
async fn a_server_that_says_too_little_or_too_much_of_itself_is_not_served() {
    let world = World::new();
    let mut server = world.server(Script::default()).await;
    let said = |said: &[(&'static str, &str)]| {
        let said = said.iter().map(|(key, value)| (*key, (*value).to_owned()));
        let said = Some(said.collect());
        server.change(|script| script.said = said);
    };
    let (id, count) = (SERVER_ID, SERVER_COUNT);
    said(&[]);
    let agent = world.agent(server.address(), &[]).await;
    for (metadata, words) in [
        (&[][..], "expected one server ID in the context, got []"),
        (
            &[(id, "a"), (id, "b"), (count, "1")],
            "expected one server ID in the context, got [a b]",
        ),
        (&[(id, "a")], "expected one server count, got 0"),
        (
            &[(id, "a"), (count, "1"), (count, "2")],
            "expected one server count, got 2",
        ),
        (&[(id, "a"), (count, "many")], "many"),
        (&[(id, "a"), (count, "70000")], "70000"),
    ] {
        said(metadata);
        until(&agent, words, |report, _| report.contains(words)).await;
        let metrics = page(&agent, "/metrics").await;
        let none = "konnectivity_network_proxy_agent_open_server_connections 1";
        assert!(!metrics.contains(none), "{words}: it is served");
    }
    let failed = "towline_agent_attempts_failed_total{reason=\"protocol\"}";
    let metrics = page(&agent, "/metrics").await;
    assert!(metrics.contains(failed), "{metrics}");
    // The next one is served.
    server.change(|script| script.said = None);
    let one = "konnectivity_network_proxy_agent_open_server_connections 1\n";
    until(&agent, "a stream", |_, metrics| metrics.contains(one)).await;
    let mut served = None;
    while let Some(call) = server.called() {
        served = Some(call);
    }
    let target = Target::new().await;
    let mut served = served.expect("a call");
    assert_eq!(served.dial("tcp", &target.address()).await, Ok(1));
}
