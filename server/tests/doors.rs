//! Front ends at the doors, with an agent that the test plays.

mod fake;

use std::sync::Arc;
use std::time::SystemTime;

use fake::{Cluster, FakeAgent, answer, connect, front_end, hello, refusal, rest, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use towline_link::carrier::CarrierKind::{self, Quic, Tls};
use towline_link::carrier::StreamError;
use towline_proto::dial::Refused;
use towline_proto::id::Role;
use towline_proto::limits::ANSWER_ALONE;
use towline_proto::reason::Reason;
use towline_proto::target::Class;

const ESTABLISHED: &str = "HTTP/1.1 200 Connection Established\r\n";

async fn bytes_pass_and_half_close_travels(kind: CarrierKind) {
    let cluster = Cluster::new();
    let server = cluster.server(&[]).await;
    let mut agent = FakeAgent::start(&cluster, &server, "n1", 1, kind).await;
    let mut stream = connect(&server, "10.0.0.1:10250").await;
    let dial = agent.echo().await;
    assert_eq!(dial.class, Class::Kubelet);
    assert_eq!(dial.target.to_string(), "10.0.0.1:10250");
    assert!(answer(&mut stream).await.starts_with(ESTABLISHED));
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(rest(&mut stream).await, b"hello");
}

#[tokio::test]
async fn bytes_pass_and_half_close_travels_on_quic() {
    bytes_pass_and_half_close_travels(Quic).await;
}

#[tokio::test]
async fn bytes_pass_and_half_close_travels_on_tls() {
    bytes_pass_and_half_close_travels(Tls).await;
}

#[tokio::test]
async fn bytes_behind_the_head_and_of_a_target_that_speaks_first_are_kept() {
    let cluster = Cluster::new();
    let server = cluster.server(&[]).await;
    let mut agent = FakeAgent::start(&cluster, &server, "n1", 1, Quic).await;
    let request = "CONNECT n1:10250 HTTP/1.1\r\n\r\nearly";
    let mut stream = front_end(&server, request).await;
    agent.echo().await;
    assert!(answer(&mut stream).await.starts_with(ESTABLISHED));
    let mut back = [0; 5];
    soon("early bytes", stream.read_exact(&mut back))
        .await
        .unwrap();
    assert_eq!(&back, b"early");

    let mut stream = connect(&server, "n1:10250").await;
    let (_, pending) = agent.dial().await;
    let mut open = pending.accepted().await.unwrap();
    open.stream.send.send("banner".into()).await.unwrap();
    // A front end that is slow to read gets the answer alone all the same: nothing can come of
    // waiting, so here a test may.
    tokio::time::sleep(20 * ANSWER_ALONE).await;
    let mut first = [0; 4096];
    let read = soon("200", stream.read(&mut first)).await.unwrap();
    let head = std::str::from_utf8(&first[..read]).unwrap();
    assert!(head.starts_with(ESTABLISHED) && head.ends_with("\r\n\r\n"));
    assert!(!head.contains("banner"), "{head}");
    let mut banner = [0; 6];
    soon("the banner", stream.read_exact(&mut banner))
        .await
        .unwrap();
    assert_eq!(&banner, b"banner");
}

#[tokio::test]
async fn every_refusal_has_its_line() {
    let cluster = Cluster::new();
    let server = cluster.server(&[]).await;
    let line = refusal(&server, "10.0.0.1:10250").await;
    assert!(
        line.starts_with("HTTP/1.1 503 ") || line.starts_with("HTTP/1.1 403 "),
        "{line}"
    );
    let line = refusal(&server, "10.96.0.1:443").await;
    assert!(
        line.starts_with("HTTP/1.1 503 no agent may serve"),
        "{line}"
    );
    let line = refusal(&server, "169.254.169.254:80").await;
    assert!(
        line.starts_with("HTTP/1.1 403 169.254.169.254:80 is a cloud metadata"),
        "{line}"
    );
    let line = refusal(&server, "127.1:80").await;
    assert!(line.starts_with("HTTP/1.1 400 bad target"), "{line}");
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "405"),
        ("\u{16}\u{3}\u{1}", "400"),
    ] {
        let mut stream = front_end(&server, request).await;
        let head = answer(&mut stream).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    }

    let mut agent = FakeAgent::start(&cluster, &server, "n1", 1, Tls).await;
    let line = refusal(&server, "10.0.0.1:22").await;
    assert_eq!(
        line,
        "HTTP/1.1 403 10.0.0.1:22: no rule of the server's policy allows it (class node)"
    );
    let mut stream = connect(&server, "10.0.0.1:10250").await;
    let (_, pending) = agent.dial().await;
    let refused = Refused {
        reason: Reason::TargetRefused,
        address: Some([10, 0, 0, 1].into()),
    };
    pending.refused(refused).await;
    let head = answer(&mut stream).await;
    assert!(
        head.starts_with("HTTP/1.1 502 10.0.0.1:10250 (10.0.0.1) refused the connection"),
        "{head}"
    );

    let link = agent.link.clone();
    drop(agent);
    soon("the link's end", link.closed()).await;
    let line = loop {
        let line = refusal(&server, "10.0.0.1:10250").await;
        if line.contains("since") {
            break line;
        }
    };
    assert!(
        line.starts_with("HTTP/1.1 503 node n1 has no live link since 0s (last error: "),
        "{line}"
    );
}

#[tokio::test]
async fn a_front_end_that_leaves_while_dialling_ends_the_dial() {
    let cluster = Cluster::new();
    let server = cluster.server(&[]).await;
    let mut agent = FakeAgent::start(&cluster, &server, "n1", 1, Quic).await;
    // One that only ends its direction stays.
    let mut stream = connect(&server, "n1:10250").await;
    stream.shutdown().await.unwrap();
    agent.echo().await;
    assert!(answer(&mut stream).await.starts_with(ESTABLISHED));
    assert_eq!(rest(&mut stream).await, b"");

    let stream = connect(&server, "n1:10250").await;
    let (_, mut pending) = agent.dial().await;
    drop(stream);
    let ended = soon("giving up", pending.given_up()).await;
    assert!(matches!(ended, StreamError::Stopped(_)), "{ended:?}");
}

#[tokio::test]
async fn an_aborted_dial_never_looks_complete() {
    let cluster = Cluster::new();
    let server = cluster.server(&[]).await;
    let mut agent = FakeAgent::start(&cluster, &server, "n1", 1, Tls).await;
    let mut stream = connect(&server, "n1:10250").await;
    let (_, pending) = agent.dial().await;
    let mut open = pending.accepted().await.unwrap();
    assert!(answer(&mut stream).await.starts_with(ESTABLISHED));
    stream.write_all(b"half").await.unwrap();
    assert_eq!(open.stream.recv.recv(4).await.unwrap().unwrap(), "half");
    server.stop_now();
    let end = soon("the end", open.stream.recv.recv(4)).await;
    assert!(end.is_err(), "{end:?}");
}

async fn client(
    cluster: &Cluster,
    server: &towline_server::run::Server,
    name: &str,
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let material = cluster.material(Role::Client, name);
    let verifier = Arc::clone(material.verifier(Role::Server).unwrap());
    let config = towline_pki::tls::door_client(material.credentials(), verifier).unwrap();
    let tcp = TcpStream::connect(server.door_tcp().unwrap())
        .await
        .unwrap();
    let name = towline_pki::tls::server_name();
    TlsConnector::from(config).connect(name, tcp).await.unwrap()
}

#[tokio::test]
async fn the_tcp_door_lets_named_clients_in_until_they_are_denied() {
    let cluster = Cluster::new();
    cluster.issue(Role::Client, "stranger", &[]);
    cluster.write("deny", "");
    let (clients, deny) = (cluster.text("client-ca.pem"), cluster.text("deny"));
    let server = cluster
        .server(&[
            "--door-tcp",
            "127.0.0.1:0",
            "--client-ca",
            &clients,
            "--door-allow",
            "kube-apiserver",
            "--deny-list",
            &deny,
        ])
        .await;
    let mut agent = FakeAgent::start(&cluster, &server, "n1", 1, Quic).await;
    let request = b"CONNECT n1:10250 HTTP/1.1\r\n\r\n";
    let mut stream = client(&cluster, &server, "kube-apiserver").await;
    stream.write_all(request).await.unwrap();
    agent.echo().await;
    assert!(answer(&mut stream).await.starts_with(ESTABLISHED));
    stream.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    soon("echo", stream.read_exact(&mut back)).await.unwrap();

    let mut stranger = client(&cluster, &server, "stranger").await;
    let _ = stranger.write_all(request).await;
    let told = answer(&mut stranger).await;
    let line = "HTTP/1.1 403 spiffe://c1/towline/client/stranger is not named by --door-allow\r\n";
    assert!(told.starts_with(line), "{told}");

    cluster.write("deny", "spiffe://c1/towline/client/kube-apiserver\n");
    let changed = server.reloader().reload(SystemTime::now()).unwrap();
    assert_eq!((changed.links, changed.front_ends), (0, 1));
    let end = soon("the end", stream.read(&mut back)).await;
    assert!(end.is_err(), "an abort, not an orderly end: {end:?}");
}

#[tokio::test]
async fn a_claim_beyond_the_grants_is_refused() {
    let cluster = Cluster::new();
    let server = cluster.server(&[]).await;
    let mut greedy = hello("n1", 1);
    greedy.addresses = vec!["10.0.0.9".parse().unwrap()];
    for kind in [Quic, Tls] {
        let greeting = FakeAgent::greet(&cluster, server.link_address(), greedy.clone(), kind);
        let refused = soon("an answer", greeting).await;
        assert_eq!(refused.err().unwrap().reason, Reason::ExcessClaim);
    }
    cluster.issue(Role::Agent, "n2", &["10.0.0.1"]);
    let _first = FakeAgent::start(&cluster, &server, "n1", 1, Tls).await;
    let second = FakeAgent::greet(&cluster, server.link_address(), hello("n2", 2), Tls);
    let refused = soon("an answer", second).await;
    assert_eq!(refused.err().unwrap().reason, Reason::ExcessClaim);
}
