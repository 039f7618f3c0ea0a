//! Who may use the doors, and what becomes of requests that no kube-apiserver would send.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use towline_link::carrier::CarrierKind;
use towline_pki::tls::presenting;
use towline_proto::id::Role;
use towline_tests::apiserver::{FakeApiserver, Refused, read_answer};
use towline_tests::authority::Flaw;
use towline_tests::cluster::{Cluster, Plan};
use towline_tests::rogue;
use towline_tests::scenario::{NOISE, expect};
use towline_tests::target::Behaviour;

const POD: &str = "10.244.0.5:8080";

async fn cluster() -> Cluster {
    Plan::on(CarrierKind::Tls)
        .unverified_kubelets()
        .start()
        .await
}

/// The answer to a request that must not be granted.
async fn refusal(front: &FakeApiserver, request: &[u8]) -> Refused {
    match expect("the door's answer", front.ask(request)).await {
        Ok(Err(refused)) => refused,
        Ok(Ok(_)) => panic!("granted: {:?}", String::from_utf8_lossy(request)),
        Err(error) => panic!("{error}: {:?}", String::from_utf8_lossy(request)),
    }
}

#[tokio::test]
async fn the_unix_door_is_for_its_owner_only() {
    let cluster = cluster().await;
    let mode =
        |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(cluster.server(0).door_unix().unwrap()), 0o600);
    let wider = Plan::on(CarrierKind::Tls)
        .server_flags(&["--door-unix-mode", "0660"])
        .start()
        .await;
    assert_eq!(mode(wider.server(0).door_unix().unwrap()), 0o660);
}

/// Only root can become somebody else.
#[tokio::test]
#[ignore = "needs root and python3"]
async fn the_unix_door_knows_its_callers() {
    const OTHER: u32 = 4242;
    for (allowed, granted) in [(false, false), (true, true)] {
        let folder = towline_tests::scratch::Scratch::new().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let door = folder.join("door").display().to_string();
        let mut flags = vec!["--door-unix", &door, "--door-unix-mode", "0666"];
        if allowed {
            flags.extend(["--door-unix-uid", "4242"]);
        }
        let cluster = Plan::on(CarrierKind::Tls)
            .server_flags(&flags)
            .start()
            .await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let request = format!("CONNECT {POD} HTTP/1.1\r\n\r\n");
        let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\ns.sendall(sys.argv[2].encode())\nprint(s.recv(100))";
        let asking = tokio::task::spawn_blocking(move || {
            Command::new("python3")
                .args(["-c", script, &door, &request])
                .uid(OTHER)
                .output()
        });
        let output = expect("the other user", asking).await.unwrap();
        let output = output.expect("python3, and the right to be another user");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let answer = match granted {
            true => "HTTP/1.1 200",
            false => "HTTP/1.1 403 user id 4242 may not use this socket (allowed: 0); add it",
        };
        assert!(
            said.contains(answer),
            "{said} {:?}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[tokio::test]
async fn the_tcp_door_is_for_named_clients_only() {
    let cluster = cluster().await;
    let _target = cluster.target(POD, Behaviour::SpeaksFirst("hi")).await;
    cluster.apiserver_tcp().pipe(POD).await;
    let authority = &cluster.authority;
    let client = || authority.leaf(Role::Client, "kube-apiserver");
    let mut strangers = vec![
        ("no certificate", None),
        (
            "another name",
            Some(authority.leaf(Role::Client, "someone-else").sign()),
        ),
        (
            "an agent",
            Some(authority.leaf(Role::Agent, "kube-apiserver").sign()),
        ),
        (
            "an operator",
            Some(authority.leaf(Role::Operator, "kube-apiserver").sign()),
        ),
        (
            "a server",
            Some(authority.leaf(Role::Server, "kube-apiserver").sign()),
        ),
    ];
    // Who is known and not on the list is told so, in words that reach kubectl.
    let another = cluster.apiserver_with(strangers[1].1.as_ref());
    let refused = another.refusal(POD).await;
    assert_eq!(refused.status, 403);
    let words = "/towline/client/someone-else is not named by --door-allow";
    assert!(refused.phrase.ends_with(words), "{}", refused.phrase);
    for flaw in Flaw::ALL {
        strangers.push((
            "a flawed certificate",
            Some(client().flawed(flaw, authority, &cluster.stranger).sign()),
        ));
    }
    for (who, pair) in strangers {
        let front = cluster.apiserver_with(pair.as_ref());
        let granted = matches!(
            expect("the door's answer", front.dial(POD)).await,
            Ok(Ok(_))
        );
        assert!(!granted, "{who} was let in");
    }
}

/// Whichever protocol is offered, or none: who shows no certificate hears nothing but that.
#[tokio::test]
async fn every_protocol_of_the_tcp_door_demands_a_certificate() {
    let cluster = cluster().await;
    let address = cluster.server(0).door_tcp().unwrap();
    let servers = rogue::verifier(&cluster.authority, Role::Server);
    let offers: [&[&[u8]]; 7] = [
        &[b"http/1.1"],
        &[b"h2"],
        &[b"h2", b"http/1.1"],
        &[b"towline/1"],
        &[b"towline-enrol/1"],
        &[b"other"],
        &[],
    ];
    for alpn in offers {
        let config = presenting::client_of(None, Arc::clone(&servers), alpn).unwrap();
        let tcp = TcpStream::connect(address).await.unwrap();
        let name = towline_pki::tls::server_name();
        let verdict = async {
            let mut tls = TlsConnector::from(config).connect(name, tcp).await?;
            // In TLS 1.3 the refusal of a client comes behind the handshake.
            tls.read_u8().await
        };
        let verdict = expect("the verdict", verdict).await;
        let error = verdict.expect_err("a byte for nobody").to_string();
        let refused =
            error.contains("CertificateRequired") || error.contains("NoApplicationProtocol");
        assert!(refused, "{alpn:?}: {error}");
    }
}

#[tokio::test]
async fn a_revoked_client_loses_its_dial() {
    let cluster = cluster().await;
    let _sink = cluster.target(POD, Behaviour::Sink).await;
    let mut pipe = cluster.apiserver_tcp().pipe(POD).await;
    cluster.deny(&cluster.authority.identity(Role::Client, "kube-apiserver"));
    cluster.reload().await;
    let mut buffer = [0; 1];
    assert!(
        expect("the end of the dial", pipe.read(&mut buffer))
            .await
            .is_err()
    );
    assert!(!matches!(
        cluster.apiserver_tcp().dial(POD).await,
        Ok(Ok(_))
    ));
}

#[tokio::test]
async fn a_front_end_that_dawdles_is_told_and_holds_nobody_up() {
    let cluster = cluster().await;
    let _target = cluster.target(POD, Behaviour::SpeaksFirst("hi")).await;
    let mut slow = Vec::new();
    for _ in 0..50 {
        let mut stream = cluster.apiserver().connect().await.unwrap();
        stream.write_all(b"CONN").await.unwrap();
        slow.push(stream);
    }
    let begun = Instant::now();
    cluster.apiserver().pipe(POD).await;
    assert!(
        begun.elapsed() < NOISE * Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    let answer = expect("the time-out", read_answer(slow.remove(0)))
        .await
        .unwrap();
    assert_eq!(answer.err().unwrap().status, 408);
}

#[tokio::test]
async fn heads_without_end_are_refused() {
    let cluster = cluster().await;
    let front = cluster.apiserver();
    let long = [
        b"CONNECT 10.0.0.1:1 HTTP/1.1\r\nX: ".to_vec(),
        vec![b'a'; 40_000],
    ]
    .concat();
    assert_eq!(refusal(&front, &long).await.status, 431);
    let many = format!(
        "CONNECT 10.0.0.1:1 HTTP/1.1\r\n{}\r\n",
        "a: b\r\n".repeat(200)
    );
    assert_eq!(refusal(&front, many.as_bytes()).await.status, 431);
}

#[tokio::test]
async fn other_protocols_are_told_what_this_door_speaks() {
    let cluster = cluster().await;
    let front = cluster.apiserver();
    for (request, status, words) in [
        (
            &b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"[..],
            405,
            "CONNECT",
        ),
        (
            b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
            405,
            "CONNECT",
        ),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", 400, "TLS"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", 400, ""),
        (b"CONNECT 10.0.0.1:1 HTTP/3.7\r\n\r\n", 400, ""),
        (b"CONNECT\r\n\r\n", 400, ""),
        (b"CONNECT 10.0.0.1:1 HTTP/1.1\r\n: x\r\n\r\n", 400, ""),
    ] {
        let refused = refusal(&front, request).await;
        assert!(
            refused.status == status && refused.phrase.contains(words),
            "{:?}: {refused:?}",
            String::from_utf8_lossy(request)
        );
    }
}

#[tokio::test]
async fn odd_authorities_are_refused_before_anybody_resolves_them() {
    let cluster = cluster().await;
    let front = cluster.apiserver();
    for target in [
        "2130706433:80",
        "0177.0.0.1:80",
        "0x7f.0.0.1:80",
        "127.1:80",
        "0x7f000001:80",
        "10.0.0.256:1",
        "010.0.0.1:10250",
        "[fe80::1%eth0]:80",
        "[::1:80",
        "::1:80",
        "10.0.0.1",
        "10.0.0.1:",
        "10.0.0.1:0",
        "10.0.0.1:65536",
        "10.0.0.1:+1",
        "10.0.0.1:80:80",
        "user@10.0.0.1:80",
        "http://10.0.0.1:80/",
        "10.0.0.1:80/path",
        "-a:1",
        "a..b:1",
        "*:1",
        ":80",
        "a\u{e4}:1",
    ] {
        let request = format!("CONNECT {target} HTTP/1.1\r\n\r\n");
        assert_eq!(
            refusal(&front, request.as_bytes()).await.status,
            400,
            "{target}"
        );
    }
    assert!(cluster.wire.resolved().is_empty() && cluster.wire.tried().is_empty());
}

#[tokio::test]
async fn bytes_behind_the_request_belong_to_the_target() {
    let cluster = cluster().await;
    let _echo = cluster.target(POD, Behaviour::Echo).await;
    for (head, body) in [
        ("", "at once"),
        ("Content-Length: 3\r\n", "at once"),
        (
            "Transfer-Encoding: chunked\r\n",
            "0\r\n\r\nCONNECT 169.254.169.254:80 HTTP/1.1\r\n\r\n",
        ),
    ] {
        let request = format!("CONNECT {POD} HTTP/1.1\r\n{head}\r\n{body}");
        let mut pipe = expect("the answer", cluster.apiserver().ask(request.as_bytes()))
            .await
            .unwrap()
            .unwrap();
        let mut echo = vec![0; body.len()];
        expect("the echo", pipe.read_exact(&mut echo))
            .await
            .unwrap();
        assert_eq!(String::from_utf8(echo).unwrap(), body);
    }
    assert_eq!(cluster.wire.tried().len(), 3);
}

#[tokio::test]
async fn the_request_line_decides_whatever_the_host_header_says() {
    let cluster = cluster().await;
    let _target = cluster.target(POD, Behaviour::SpeaksFirst("pod")).await;
    let request =
        format!("CONNECT {POD} HTTP/1.1\r\nHost: 169.254.169.254:80\r\nHost: 10.0.0.1:22\r\n\r\n");
    let mut pipe = expect("the answer", cluster.apiserver().ask(request.as_bytes()))
        .await
        .unwrap()
        .unwrap();
    let mut said = [0; 3];
    expect("the greeting", pipe.read_exact(&mut said))
        .await
        .unwrap();
    assert_eq!(&said, b"pod");
}

#[tokio::test]
async fn a_front_end_that_leaves_gives_its_dial_up() {
    let cluster = Plan::on(CarrierKind::Tls)
        .unverified_kubelets()
        .start()
        .await;
    cluster.wire.swallow("10.244.9.8:1".parse().unwrap());
    let mut stream = cluster.apiserver().connect().await.unwrap();
    stream
        .write_all(b"CONNECT 10.244.9.8:1 HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    towline_tests::scenario::eventually("the attempt", || async {
        (!cluster.wire.tried().is_empty()).then_some(())
    })
    .await;
    let begun = Instant::now();
    drop(stream);
    towline_tests::scenario::eventually("the end of the attempt", || async {
        let dials: u32 = cluster
            .server(0)
            .status()
            .agents
            .iter()
            .flat_map(|agent| &agent.links)
            .map(|link| link.dials)
            .sum();
        (dials == 0).then_some(())
    })
    .await;
    assert!(
        begun.elapsed() < NOISE * Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
}
