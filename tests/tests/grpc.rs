//! The door for front ends that speak Konnectivity's gRPC, on both carriers.

use std::time::Duration;

use bytes::Bytes;
use towline_link::grpc::Code;
use towline_proto::konnectivity::Packet;
use towline_proto::limits;
use towline_tests::cluster::{Cluster, Plan};
use towline_tests::grpc::{GrpcFrontEnd, RANDOM, request};
use towline_tests::pattern;
use towline_tests::scenario::{eventually, expect};
use towline_tests::target::{Behaviour, End};

const POD: &str = "10.244.0.5:8080";
const OTHER_POD: &str = "10.244.0.6:8080";

async fn front_end(cluster: &Cluster) -> GrpcFrontEnd {
    GrpcFrontEnd::connect(&cluster.apiserver())
        .await
        .expect("the Unix door")
}

fn bytes_of_pattern(from: u64, count: usize) -> Vec<u8> {
    let mut all = Vec::with_capacity(count);
    while all.len() < count {
        let (at, left) = (from + all.len() as u64, (count - all.len()) as u64);
        all.extend_from_slice(pattern::bytes(at, left));
    }
    all
}

towline_tests::scenarios! {
    async fn bytes_go_both_ways_intact(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _target = cluster.target(POD, Behaviour::Echo).await;
        let front = front_end(&cluster).await;
        let mut pipe = front.pipe(POD).await;
        for round in 0..24u64 {
            let sent = bytes_of_pattern(round * 100_000, 100_000);
            pipe.write(&sent).await.unwrap();
            let got = expect("the echo", pipe.read_exact(sent.len())).await.unwrap();
            assert!(got == sent, "round {round}");
        }
        assert_eq!(expect("CLOSE_RSP", pipe.close()).await.unwrap(), "");
        let status = expect("trailers", pipe.call.status()).await.unwrap();
        assert_eq!(status.code, Code::Ok);
    }

    async fn everything_before_an_end_is_delivered(carrier) {
        let cluster = Plan::on(carrier).start().await;
        // The target's last bytes, then CLOSE_RSP.
        let source = cluster.target(POD, Behaviour::Source(5_000_000)).await;
        let front = front_end(&cluster).await;
        let mut pipe = front.pipe(POD).await;
        let got = expect("the source's bytes", pipe.read_all()).await.unwrap();
        assert!(got == bytes_of_pattern(0, 5_000_000), "{}", got.len());
        assert_eq!(pipe.closed(), Some(""));
        drop((pipe, source));
        // The front end's last bytes, then CLOSE_REQ; it does not wait for the answer.
        let sink = cluster.target(OTHER_POD, Behaviour::Sink).await;
        let mut pipe = front.pipe(OTHER_POD).await;
        pipe.write(&bytes_of_pattern(0, 3_000_000)).await.unwrap();
        pipe.call.send(&Packet::CloseRequest { connect_id: pipe.id });
        let outcome = expect("the sink's end", sink.outcome()).await;
        assert!(outcome.check.is_exactly(3_000_000), "{outcome:?}");
        assert_eq!(outcome.end, End::Closed);
    }

    async fn a_target_that_speaks_first_is_heard_however_late_the_client_is(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _target = cluster.target(POD, Behaviour::SpeaksFirst("banner")).await;
        let front = front_end(&cluster).await;
        for late in [0, 1, 2, 3, 7] {
            let mut pipe = front.dial_late(POD, late).await.unwrap();
            let banner = expect("the banner", pipe.read_exact(6)).await.unwrap();
            assert_eq!(banner, b"banner", "{late}");
            pipe.write(b"hello").await.unwrap();
            let echo = expect("the echo", pipe.read_exact(5)).await.unwrap();
            assert_eq!(echo, b"hello");
            assert_eq!(expect("CLOSE_RSP", pipe.close()).await.unwrap(), "");
        }
    }

    async fn an_end_without_a_byte_is_heard_however_late_the_client_is(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _target = cluster.target(POD, Behaviour::Source(0)).await;
        let front = front_end(&cluster).await;
        for late in [0, 1, 5] {
            let mut pipe = front.dial_late(POD, late).await.unwrap();
            let got = expect("the end", pipe.read_all()).await.unwrap();
            assert!(got.is_empty());
            assert_eq!(pipe.closed(), Some(""), "{late}");
        }
    }

    async fn a_stalled_stream_stalls_only_itself(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _source = cluster.target(POD, Behaviour::Source(64 << 20)).await;
        let _silent = cluster.target(OTHER_POD, Behaviour::Silent).await;
        let _echo = cluster.target("10.244.0.7:80", Behaviour::Echo).await;
        let front = front_end(&cluster).await;
        // Nobody reads these.
        let unread = [front.pipe(POD).await, front.pipe(POD).await];
        // Nobody takes what these send: the window of each fills up.
        let mut stuck = Vec::new();
        for _ in 0..2 {
            let mut pipe = front.pipe(OTHER_POD).await;
            let sent = vec![7; 32 << 20];
            let writing = tokio::time::timeout(Duration::from_millis(500), pipe.write(&sent));
            assert!(writing.await.is_err(), "a silent target took 32 MiB");
            stuck.push(pipe);
        }
        let mut pipe = front.pipe("10.244.0.7:80").await;
        for round in 0..200u64 {
            let sent = bytes_of_pattern(round, 1000);
            pipe.write(&sent).await.unwrap();
            let got = expect("the echo", pipe.read_exact(1000)).await.unwrap();
            assert!(got == sent);
        }
        drop((unread, stuck));
    }

    async fn a_cancelled_stream_is_an_abort_at_the_target(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let sink = cluster.target(POD, Behaviour::Sink).await;
        let front = front_end(&cluster).await;
        let mut pipe = front.pipe(POD).await;
        pipe.write(&bytes_of_pattern(0, 1000)).await.unwrap();
        sink.accepted().await;
        pipe.call.cancel();
        let outcome = expect("the target's end", sink.outcome()).await;
        assert_eq!(outcome.end, End::Reset);
        // The connection is none the worse.
        let _echo = cluster.target(OTHER_POD, Behaviour::Echo).await;
        let mut pipe = front.pipe(OTHER_POD).await;
        pipe.write(b"x").await.unwrap();
        assert_eq!(expect("the echo", pipe.read_exact(1)).await.unwrap(), b"x");
    }

    async fn a_lost_connection_is_an_abort_at_the_target(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let sink = cluster.target(POD, Behaviour::Sink).await;
        let front = front_end(&cluster).await;
        let mut pipe = front.pipe(POD).await;
        pipe.write(&bytes_of_pattern(0, 1000)).await.unwrap();
        sink.accepted().await;
        drop((pipe, front));
        let outcome = expect("the target's end", sink.outcome()).await;
        assert_eq!(outcome.end, End::Reset);
    }

    async fn a_target_that_breaks_off_is_told_apart(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _target = cluster.target(POD, Behaviour::BreaksOffAfter(100_000)).await;
        let front = front_end(&cluster).await;
        let mut pipe = front.pipe(POD).await;
        pipe.write(b"x").await.unwrap();
        let _some = expect("the end", pipe.read_all()).await.unwrap();
        let text = pipe.closed().expect("CLOSE_RSP").to_owned();
        assert!(text.contains("target-reset"), "{text}");
        let status = expect("trailers", pipe.call.status()).await.unwrap();
        assert_eq!(status.code, Code::Unavailable);
    }

    async fn a_dial_that_is_not_wanted_any_more_is_given_up(carrier) {
        let cluster = Plan::on(carrier).start().await;
        cluster.wire.swallow(POD.parse().unwrap());
        let front = front_end(&cluster).await;
        let dial = |_| async {
            let mut call = front.stream().await;
            call.send(&request(POD));
            call
        };
        let pending = || async {
            let text = metric(&cluster, "pending_backend_dials").await;
            (text == "1").then_some(())
        };
        let over = || async {
            let text = metric(&cluster, "pending_backend_dials").await;
            (text == "0").then_some(())
        };
        let mut call = dial(()).await;
        eventually("the dial", pending).await;
        call.send(&Packet::CloseDial { random: RANDOM });
        eventually("its end by DIAL_CLS", over).await;
        let mut call = dial(()).await;
        eventually("the dial", pending).await;
        call.cancel();
        eventually("its end by a reset", over).await;
        let failures = metric(&cluster, "dial_failure_count{reason=\"frontend_close\"}").await;
        assert_eq!(failures, "2");
    }

    async fn refusals_have_the_words_that_callers_look_for(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let refusing = towline_tests::target::refusing_address().await.unwrap();
        cluster.wire.lead(POD.parse().unwrap(), refusing);
        let front = front_end(&cluster).await;
        for (target, words) in [
            (POD, "dial tcp 10.244.0.5:8080: connect: connection refused"),
            ("10.0.0.99:10250", "No agent available: "),
            ("10.0.0.7", "missing port in address"),
            ("10.0.0.7:99999", "address 99999: invalid port"),
            ("no-such-name.default.svc:80", "no such host"),
            ("169.254.169.254:80", "never a target"),
        ] {
            let text = front.refusal(target).await;
            assert!(text.contains(words), "{target}: {text}");
        }
    }
}

/// The value of a series of Konnectivity's server, by what follows its prefix.
async fn metric(cluster: &Cluster, series: &str) -> String {
    let mut text = String::new();
    let counted = cluster.server(0).counted();
    counted.families().write(&mut text);
    let prefix = format!("konnectivity_network_proxy_server_{series} ");
    text.lines()
        .find_map(|line| line.strip_prefix(&prefix))
        .unwrap_or_default()
        .to_owned()
}

/// A message with its prefix, of exactly `len` bytes: DATA for `connect_id`.
fn data_message(connect_id: i64, len: usize) -> Vec<u8> {
    let whole = |payload: usize| {
        let packet = Packet::Data {
            connect_id,
            data: Bytes::from(vec![7; payload]),
        };
        packet.encode()
    };
    let head = whole(len).len() - len;
    let message = whole(len - head);
    assert_eq!(message.len(), len);
    let mut bytes = vec![0];
    bytes.extend_from_slice(&(len as u32).to_be_bytes());
    bytes.extend_from_slice(&message);
    bytes
}

#[tokio::test]
async fn bad_messages_end_their_stream_and_no_other() {
    let cluster = Plan::on(towline_link::carrier::CarrierKind::Tls)
        .start()
        .await;
    let _echo = cluster.target(POD, Behaviour::Echo).await;
    let front = front_end(&cluster).await;
    let mut bystander = front.pipe(POD).await;
    let mut check = async || {
        bystander.write(b"still here").await.unwrap();
        let echo = expect("the echo", bystander.read_exact(10)).await.unwrap();
        assert_eq!(echo, b"still here");
    };
    let too_long = (limits::GRPC_MESSAGE_BYTES as u32 + 1).to_be_bytes();
    for (bytes, code, words) in [
        (
            [&[0][..], &too_long].concat(),
            Code::ResourceExhausted,
            "received message larger than max (4194305 vs. 4194304)",
        ),
        (vec![1, 0, 0, 0, 0], Code::Internal, "compressed"),
        (vec![9, 0, 0, 0, 0], Code::Internal, "flag"),
        (vec![0, 0, 0, 0, 1, 0xff], Code::Internal, "unmarshalling"),
        (
            vec![0, 0, 0, 0, 2, 0x12, 0x7f],
            Code::Internal,
            "unmarshalling",
        ),
    ] {
        // Before a dial, and on an open connection.
        let mut call = front.stream().await;
        call.send_raw(bytes.clone());
        let status = expect("trailers", call.status()).await.unwrap();
        assert!(
            status.code == code && status.message.contains(words),
            "{status:?}"
        );
        let mut pipe = front.pipe(POD).await;
        pipe.call.send_raw(bytes);
        while expect("CLOSE_RSP", pipe.read()).await.unwrap().is_some() {}
        assert!(pipe.closed().unwrap().contains(words));
        let status = expect("trailers", pipe.call.status()).await.unwrap();
        assert_eq!(status.code, code);
        check().await;
    }
    // Cut in the middle.
    let mut call = front.stream().await;
    call.send_raw(vec![0, 0, 0]);
    call.end();
    let status = expect("trailers", call.status()).await.unwrap();
    assert_eq!(status.code, Code::Internal);
    let errors =
        "stream_errors_total{code=\"Internal\",packet_type=\"Unknown\",segment=\"from_client\"}";
    assert_eq!(metric(&cluster, errors).await, "9");
    check().await;
}

#[tokio::test]
async fn the_longest_message_is_taken() {
    let cluster = Plan::on(towline_link::carrier::CarrierKind::Tls)
        .start()
        .await;
    let _echo = cluster.target(POD, Behaviour::Echo).await;
    let front = front_end(&cluster).await;
    let mut pipe = front.pipe(POD).await;
    let message = data_message(pipe.id, limits::GRPC_MESSAGE_BYTES);
    pipe.call.send_raw(message);
    let mut got = 0;
    while got < limits::GRPC_MESSAGE_BYTES - 64 {
        let bytes = expect("the echo", pipe.read()).await.unwrap();
        got += bytes.expect("not the end").len();
    }
}

#[tokio::test]
async fn packets_out_of_place_get_the_reference_s_words() {
    let cluster = Plan::on(towline_link::carrier::CarrierKind::Tls)
        .start()
        .await;
    let sink = cluster.target(POD, Behaviour::Sink).await;
    let front = front_end(&cluster).await;
    let data = |connect_id| Packet::Data {
        connect_id,
        data: Bytes::from_static(b"x"),
    };
    let said = |packet: Option<Packet>| match packet {
        Some(Packet::CloseResponse { error, connect_id }) => (connect_id, error),
        other => panic!("{other:?}"),
    };
    // Before a dial.
    let mut call = front.stream().await;
    call.send(&Packet::CloseRequest { connect_id: 3 });
    let answer = said(expect("CLOSE_RSP", call.packet()).await.unwrap());
    assert_eq!(answer, (3, "backend uninitialized".to_owned()));
    let mut call = front.stream().await;
    call.send(&data(3));
    let answer = said(expect("CLOSE_RSP", call.packet()).await.unwrap());
    assert_eq!(answer, (3, "backend not initialized".to_owned()));
    // On an open connection: one that is not ours, one that never was, one out of range.
    let mut victim = front.pipe(POD).await;
    victim.write(b"ab").await.unwrap();
    let mut thief = front.pipe(POD).await;
    thief.write(b"a").await.unwrap();
    let own = thief.id;
    thief.call.send(&Packet::Unknown(99));
    thief.call.send(&Packet::Drain);
    thief.call.send(&data(0));
    thief.call.send(&Packet::CloseRequest {
        connect_id: victim.id,
    });
    let answer = said(expect("CLOSE_RSP", thief.call.packet()).await.unwrap());
    assert_eq!(answer, (victim.id, "Unknown connectID".to_owned()));
    thief.call.send(&data(victim.id));
    let answers = [
        said(expect("CLOSE_RSP", thief.call.packet()).await.unwrap()),
        said(expect("CLOSE_RSP", thief.call.packet()).await.unwrap()),
    ];
    let mismatched = "mismatched connection IDs".to_owned();
    assert_eq!(
        answers,
        [(victim.id, mismatched.clone()), (own, mismatched)]
    );
    let outcome = expect("the thief's target", sink.outcome()).await;
    assert_eq!(outcome.end, End::Reset);
    for (what, count) in [
        ("close-before-dial", 1),
        ("data-before-dial", 1),
        ("unknown-type", 1),
        ("packet-of-an-agent", 1),
        ("data-without-connection", 1),
        ("close-of-another-connection", 1),
        ("data-of-another-connection", 1),
    ] {
        let line = format!("towline_server_front_end_stray_packets_total{{reason=\"{what}\"}}");
        assert_eq!(
            towline_tests::legacy::metric(&cluster, &line).await,
            count,
            "{what}"
        );
    }
    let mut negative = front.pipe(POD).await;
    negative.call.send(&data(-1));
    let answer = said(expect("CLOSE_RSP", negative.call.packet()).await.unwrap());
    assert_eq!(answer, (-1, "mismatched connection IDs".to_owned()));
    // Another protocol, a dial id out of range.
    for (protocol, random, words) in [
        ("udp", 5, "protocol not supported"),
        ("tcp", -1, "out of range"),
    ] {
        let mut call = front.stream().await;
        call.send(&Packet::DialRequest {
            protocol: protocol.to_owned(),
            address: POD.to_owned(),
            random,
        });
        match expect("DIAL_RSP", call.packet()).await.unwrap() {
            Some(Packet::DialResponse { error, .. }) => assert!(error.contains(words), "{error}"),
            other => panic!("{other:?}"),
        }
    }
    // The victim never noticed.
    assert_eq!(expect("CLOSE_RSP", victim.close()).await.unwrap(), "");
}

#[tokio::test]
async fn other_calls_are_refused_as_grpc_does() {
    let cluster = Plan::on(towline_link::carrier::CarrierKind::Tls)
        .start()
        .await;
    let front = front_end(&cluster).await;
    let grpc = ("content-type", "application/grpc");
    for (path, headers, code, words) in [
        (
            "/AgentService/Connect",
            vec![grpc],
            Code::Unimplemented,
            "unknown service AgentService",
        ),
        (
            "/ProxyService/Other",
            vec![grpc],
            Code::Unimplemented,
            "unknown method Other",
        ),
        (
            "/x",
            vec![grpc],
            Code::Unimplemented,
            "malformed method name",
        ),
        (
            "/ProxyService/Proxy",
            vec![grpc, ("grpc-encoding", "gzip")],
            Code::Unimplemented,
            "gzip",
        ),
        (
            "/ProxyService/Proxy",
            vec![grpc, ("grpc-timeout", "soon")],
            Code::Internal,
            "grpc-timeout",
        ),
    ] {
        let mut call = front.call(path, &headers).await.unwrap();
        let status = expect("a status", call.status()).await.unwrap();
        assert!(
            status.code == code && status.message.contains(words),
            "{path}: {status:?}"
        );
    }
    let mut call = front
        .call(
            "/ProxyService/Proxy",
            &[("content-type", "application/json")],
        )
        .await
        .unwrap();
    assert_eq!(
        expect("an answer", call.head()).await.unwrap().status(),
        415
    );
    // A caller whose time is over is told so.
    let headers = [grpc, ("grpc-timeout", "50m")];
    let mut call = front.call("/ProxyService/Proxy", &headers).await.unwrap();
    let status = expect("a status", call.status()).await.unwrap();
    assert_eq!(status.code, Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_door_can_be_told_to_speak_one_protocol_only() {
    let carrier = towline_link::carrier::CarrierKind::Tls;
    let connect = Plan::on(carrier)
        .server_flags(&["--mode", "http-connect"])
        .start()
        .await;
    let _echo = connect.target(POD, Behaviour::Echo).await;
    let _pipe = connect.apiserver().pipe(POD).await;
    let front = connect.apiserver();
    let answer = front.ask(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    let answer = expect("the answer", answer).await.unwrap();
    let refused = answer.err().expect("a refusal");
    assert!(refused.status == 505 && refused.phrase.contains("HTTP CONNECT only"));
    let grpc = Plan::on(carrier)
        .server_flags(&["--mode", "grpc"])
        .start()
        .await;
    let _echo = grpc.target(POD, Behaviour::Echo).await;
    let front = front_end(&grpc).await;
    let _pipe = front.pipe(POD).await;
    let refused = grpc.apiserver().refusal(POD).await;
    assert!(refused.status == 405 && refused.phrase.contains("gRPC only"));
}

#[tokio::test]
async fn a_drain_lets_live_streams_end_and_takes_no_new_ones() {
    let cluster = Plan::on(towline_link::carrier::CarrierKind::Tls)
        .start()
        .await;
    let _echo = cluster.target(POD, Behaviour::Echo).await;
    let front = front_end(&cluster).await;
    let mut live = front.pipe(POD).await;
    live.write(b"before").await.unwrap();
    expect("the echo", live.read_exact(6)).await.unwrap();
    let mut silent = front.stream().await;
    expect("the headers", silent.head()).await.unwrap();
    cluster.server(0).drain();
    // A stream that has asked for nothing is told; one that is open goes on.
    let status = expect("trailers", silent.status()).await.unwrap();
    assert_eq!(status.code, Code::Unavailable);
    live.write(b"after").await.unwrap();
    let echo = expect("the echo", live.read_exact(5)).await.unwrap();
    assert_eq!(echo, b"after");
    // GOAWAY: no new stream.
    eventually("the end of new streams", || async {
        let call = front
            .call(
                "/ProxyService/Proxy",
                &[("content-type", "application/grpc")],
            )
            .await;
        match call {
            Err(_) => Some(()),
            Ok(mut call) => call.packet().await.is_err().then_some(()),
        }
    })
    .await;
    assert_eq!(expect("CLOSE_RSP", live.close()).await.unwrap(), "");
    expect("the server's end", cluster.server(0).wait())
        .await
        .unwrap();
}
