//! What holds at the gRPC door because both doors end in the same dialer: the kubelet gateway,
//! the audit trail, the policy, the certificate of a front end; and that the compatibility profile
//! gives none of it away.

use std::io::Read;

use rustls::ClientConnection;
use rustls_pki_types::ServerName;
use tokio::io::AsyncReadExt;
use towline_link::carrier::CarrierKind;
use towline_link::grpc::Code;
use towline_tests::apiserver::client_config;
use towline_tests::cluster::{Cluster, Plan, node_ip};
use towline_tests::grpc::{Deaf, GrpcFrontEnd, GrpcPipe, request};
use towline_tests::scenario::{eventually, expect};
use towline_tests::scenarios;
use towline_tests::scratch::{self, Scratch};
use towline_tests::target::{Behaviour, End};

const KUBELET: &str = "10.0.0.1:10250";
const POD: &str = "10.244.0.5:8080";
const OTHER_POD: &str = "10.244.0.6:8080";

async fn grpc(cluster: &Cluster) -> GrpcFrontEnd {
    let front = GrpcFrontEnd::connect(&cluster.apiserver()).await;
    front.expect("the Unix door")
}

/// One request over TLS inside a tunnel, up to the end of the answer's head.
async fn ask(pipe: &mut GrpcPipe, tls: &mut ClientConnection, request: &str) -> String {
    let mut answer = Vec::new();
    let mut sent = false;
    while !answer.windows(4).any(|window| window == b"\r\n\r\n") {
        if !tls.is_handshaking() && !std::mem::replace(&mut sent, true) {
            std::io::Write::write_all(&mut tls.writer(), request.as_bytes()).expect("room");
        }
        let mut out = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut out).expect("a buffer");
        }
        pipe.write(&out).await.expect("sent");
        if tls.is_handshaking() || sent {
            let came = pipe.read().await.expect("bytes").expect("no end");
            let mut came = &came[..];
            while !came.is_empty() {
                tls.read_tls(&mut came).expect("a buffer");
                tls.process_new_packets().expect("TLS");
            }
        }
        let mut plain = [0; 4096];
        while let Ok(count @ 1..) = tls.reader().read(&mut plain) {
            answer.extend_from_slice(&plain[..count]);
        }
    }
    String::from_utf8(answer).expect("text")
}

scenarios! {
    async fn a_kubelet_is_reached_through_the_gateway_by_grpc_too(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        let kubelet = cluster.asking_kubelet().await;
        let front = grpc(&cluster).await;
        let mut pipe = front.pipe(KUBELET).await;
        let gateway = &cluster.gateway;
        let config = client_config(Some(&gateway.front_end), &gateway.issuer);
        let name = ServerName::from(node_ip(1));
        let mut tls = ClientConnection::new(config.into(), name).expect("a configuration");
        let asking = ask(&mut pipe, &mut tls, "GET /healthz HTTP/1.1\r\nHost: n\r\n\r\n");
        let answer = expect("the answer", asking).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(kubelet.lines(), ["GET /healthz"]);
        let shown: Vec<_> = kubelet.clients().into_iter().flatten().collect();
        assert_eq!(shown, [gateway.kubelet_client.chain[0].clone()]);
        // And who speaks to it without TLS does not reach the kubelet.
        let mut plain = front.pipe(KUBELET).await;
        plain.write(b"GET /pods HTTP/1.1\r\nHost: n\r\n\r\n").await.expect("sent");
        let _ = expect("the end", plain.read_all()).await;
        assert_eq!(kubelet.lines(), ["GET /healthz"]);
    }

    async fn a_dial_by_grpc_is_in_the_trail(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let front = grpc(&cluster).await;
        let mut pipe = front.pipe(POD).await;
        pipe.write(b"four").await.expect("sent");
        let echo = expect("the echo", pipe.read_exact(4)).await;
        assert_eq!(echo.expect("bytes"), b"four");
        expect("CLOSE_RSP", pipe.close()).await.expect("in order");
        let audit = cluster.audit(0);
        let start = audit.record("its start", |record| {
            record["event"] == "start" && record["target"] == POD
        }).await;
        assert_eq!(start["door"], "grpc-unix", "{start}");
        let end = audit.record("its end", |record| {
            record["event"] == "end" && record["id"] == start["id"]
        }).await;
        assert_eq!((end["to_target"].as_u64(), end["from_target"].as_u64()), (Some(4), Some(4)), "{end}");
    }

    async fn a_policy_counts_in_the_compatibility_profile(carrier) {
        let scratch = Scratch::new().expect("a folder");
        let open = "version: 1\nrules:\n  - {name: all, action: allow}\n";
        let none = "version: 1\nrules:\n  - {name: s, action: allow, classes: [service]}\n";
        let file = scratch.write("policy.yaml", open).expect("a file");
        let flags = ["--policy", file.to_str().expect("a name in UTF-8")];
        let cluster = Plan::on(carrier).compatible().server_flags(&flags).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let front = grpc(&cluster).await;
        let mut pipe = front.pipe(POD).await;
        pipe.write(b"four").await.expect("sent");
        expect("the echo", pipe.read_exact(4)).await.expect("bytes");
        // A live dial that the new file forbids is ended, and new ones are refused.
        scratch::replace(&file, none).expect("a file");
        let _ = expect("the end of the dial", pipe.read_all()).await;
        let text = front.refusal(POD).await;
        assert!(text.contains("policy"), "{text}");
    }

    async fn rules_about_nodes_open_nothing_through_a_legacy_agent(carrier) {
        let scratch = Scratch::new().expect("a folder");
        // The first is met by no verified node but n1, the second by what may be any.
        let rules = "version: 1\nrules:\n  \
            - {name: by-n1, action: allow, classes: [pod], nodes: [n1]}\n  \
            - {name: nodes, action: allow, classes: [node]}\n  \
            - {name: not-n9, action: deny, classes: [node], ports: [22], nodes: [n9]}\n";
        let file = scratch.write("policy.yaml", rules).expect("a file");
        let flags = ["--policy", file.to_str().expect("a name in UTF-8"), "--allow-downgrade=true"];
        let mut cluster = Plan::on(carrier)
            .compatible()
            .agents(2)
            .server_flags(&flags)
            .start()
            .await;
        let _liar = cluster.legacy("n1", "ipv4=10.244.0.5&default-route=true").await;
        cluster.kill_agent("n1");
        cluster.kill_agent("n2");
        eventually("the end of the links", || async {
            let agents = cluster.server(0).status().agents;
            agents.iter().all(|agent| agent.links.is_empty()).then_some(())
        }).await;
        let node = node_ip(2);
        for (target, word) in [
            ("10.244.0.5:8080".to_owned(), "policy"),
            (format!("{node}:22"), "not-n9"),
        ] {
            let refused = cluster.apiserver().refusal(&target).await;
            assert_eq!(refused.status, 403, "{refused:?}");
            assert!(refused.phrase.contains(word), "{refused:?}");
        }
        let audit = cluster.audit(0);
        audit.record("the refusal", |record| record["event"] == "refused" && record["target"] == "10.244.0.5:8080").await;
    }

    async fn a_kubelet_of_nobody_is_reached_through_no_agent(carrier) {
        let cluster = Plan::on(carrier)
            .compatible()
            .server_flags(&["--kubelet-verification", "enforce"])
            .agent_flags(&["--allow-class", "other"])
            .start()
            .await;
        let _impostor = cluster.target("192.0.2.7:10250", Behaviour::SpeaksFirst("impostor")).await;
        let refused = cluster.apiserver().refusal("192.0.2.7:10250").await;
        assert_eq!(refused.status, 502, "{refused:?}");
        assert!(refused.phrase.contains("no known node"), "{refused:?}");
        // Another port of it is what the profile is for.
        let _other = cluster.target("192.0.2.7:443", Behaviour::SpeaksFirst("real")).await;
        let mut pipe = cluster.apiserver().pipe("192.0.2.7:443").await;
        let mut got = [0; 4];
        expect("the answer", pipe.read_exact(&mut got)).await.expect("bytes");
        assert_eq!(&got, b"real");
    }

    async fn a_legacy_agent_carries_no_kubelet_that_must_be_verified(carrier) {
        let cluster = Plan::on(carrier)
            .compatible()
            .server_flags(&["--kubelet-verification", "enforce"])
            .start()
            .await;
        let _agent = cluster.legacy("somewhere", "ipv4=10.0.0.9&default-route=true").await;
        for host in ["10.0.0.9:10250", "somewhere:10250", "192.0.2.7:10250"] {
            let refused = cluster.apiserver().refusal(host).await;
            assert_eq!(refused.status, 502, "{refused:?}");
            assert!(refused.phrase.contains("legacy agent"), "{refused:?}");
        }
    }
}

#[tokio::test]
async fn over_tcp_a_certificate_is_asked_for_and_both_protocols_are_offered() {
    let cluster = Plan::on(CarrierKind::Tls).start().await;
    let _echo = cluster.target(POD, Behaviour::Echo).await;
    for alpn in [&[&b"h2"[..]][..], &[], &[b"h2", b"grpc-exp"]] {
        let door = cluster.apiserver_tcp().offering(alpn);
        let front = GrpcFrontEnd::connect(&door).await.expect("the TCP door");
        let mut pipe = front.pipe(POD).await;
        pipe.write(b"hello").await.unwrap();
        let echo = expect("the echo", pipe.read_exact(5)).await.unwrap();
        assert_eq!(echo, b"hello", "{alpn:?}");
    }
    // CONNECT as Go sends it: without ALPN.
    let mut pipe = cluster.apiserver_tcp().offering(&[]).pipe(POD).await;
    tokio::io::AsyncWriteExt::write_all(&mut pipe, b"x")
        .await
        .unwrap();
    // Without a certificate nobody comes in.
    let door = cluster.apiserver_with(None).offering(&[b"h2"]);
    // The handshake of TLS 1.3 is over for the client before the server has looked.
    let refused = match GrpcFrontEnd::connect(&door).await {
        Err(_) => true,
        Ok(front) => match front
            .call(
                "/ProxyService/Proxy",
                &[("content-type", "application/grpc")],
            )
            .await
        {
            Err(_) => true,
            Ok(mut call) => expect("the end", call.head()).await.is_err(),
        },
    };
    assert!(refused);
}

#[tokio::test]
async fn a_front_end_that_is_denied_loses_its_streams() {
    let cluster = Plan::on(CarrierKind::Tls).start().await;
    let sink = cluster.target(POD, Behaviour::Sink).await;
    let door = cluster.apiserver_tcp().offering(&[b"h2"]);
    let front = GrpcFrontEnd::connect(&door).await.expect("the TCP door");
    let mut pipes = [front.pipe(POD).await, front.pipe(POD).await];
    for pipe in &mut pipes {
        pipe.write(b"x").await.unwrap();
    }
    cluster.deny("spiffe://kit.example/towline/client/kube-apiserver\n");
    cluster.reload().await;
    for pipe in &mut pipes {
        while let Ok(Some(_)) = expect("the end", pipe.read()).await {}
        assert_eq!(expect("its target", sink.outcome()).await.end, End::Reset);
    }
}

#[tokio::test]
async fn a_front_end_that_is_denied_dials_no_more_on_a_connection_that_it_keeps() {
    let cluster = Plan::on(CarrierKind::Tls).start().await;
    cluster.wire.swallow(POD.parse().unwrap());
    let door = cluster.apiserver_tcp().offering(&[b"h2"]);
    let stream = door.connect().await.expect("the TCP door");
    let front = GrpcFrontEnd::over(Deaf::new(stream), 65_535).await;
    let front = front.expect("HTTP/2");
    let mut under_way = front.stream().await;
    under_way.send(&request(POD));
    let pending = |wanted: &'static str| {
        let cluster = &cluster;
        move || async move {
            let mut text = String::new();
            cluster.server(0).counted().families().write(&mut text);
            let line = format!("konnectivity_network_proxy_server_pending_backend_dials {wanted}");
            text.lines().any(|one| one == line).then_some(())
        }
    };
    eventually("the dial", pending("1")).await;
    let mut waiting = front.stream().await;
    cluster.deny("spiffe://kit.example/towline/client/kube-apiserver\n");
    cluster.reload().await;
    // One that was opened before, whose dial comes after; one whose dial is under way.
    waiting.send(&request(OTHER_POD));
    for call in [&mut waiting, &mut under_way] {
        let status = expect("the end", call.status()).await.unwrap();
        assert_eq!(status.code, Code::Unauthenticated, "{status:?}");
    }
    eventually("no dial", pending("0")).await;
    // And one more, for as long as the connection is there.
    let headers = [("content-type", "application/grpc")];
    let call = expect("a stream", front.call("/ProxyService/Proxy", &headers)).await;
    if let Ok(mut call) = call {
        call.send(&request(OTHER_POD));
        let status = expect("the end", call.status()).await;
        assert!(status.is_err() || status.is_ok_and(|status| status.code == Code::Unauthenticated));
    }
    // It is closed although its other end never agreed.
    let _ = expect("the end of the connection", front.ended()).await;
    let tried = cluster.wire.tried();
    assert!(
        tried.iter().all(|one| one.to_string() != OTHER_POD),
        "{tried:?}"
    );
}
