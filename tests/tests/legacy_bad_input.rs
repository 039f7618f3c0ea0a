//! Any packets, any bytes and any metadata at the door for legacy agents: refused with the texts
//! that people know, counted, and no other stream disturbed.

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towline_link::carrier::CarrierKind;
use towline_link::grpc::Code;
use towline_proto::id::Role;
use towline_proto::konnectivity::Packet;
use towline_proto::limits;
use towline_tests::apiserver::Pipe;
use towline_tests::cluster::Plan;
use towline_tests::legacy::{LegacyPlan, alone, data, listed, metric};
use towline_tests::scenario::expect;
use towline_tests::target::{Behaviour, Target};

async fn echoes(pipe: &mut Pipe) {
    let mut echo = [0; 4];
    pipe.write_all(b"ping").await.unwrap();
    expect("the echo", pipe.read_exact(&mut echo))
        .await
        .unwrap();
    assert_eq!(&echo, b"ping");
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
    let counted =
        "konnectivity_network_proxy_server_dial_failure_count{reason=\"unrecognized_response\"}";
    assert_eq!(metric(&cluster, counted).await, 2);
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
        let plan = LegacyPlan::new(pair, root, "evil");
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
async fn other_protocols_have_no_door_here() {
    let cluster = alone().await;
    let pair = cluster.authority.leaf(Role::Agent, "legacy").sign();
    let mut plan = cluster.legacy_agent(&pair, "a");
    plan.alpn = vec![b"http/1.1".to_vec()];
    let come = plan.connect(cluster.server(0).link_address()).await;
    assert!(come.is_err());
}
