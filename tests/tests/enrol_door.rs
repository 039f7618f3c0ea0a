//! The door of enrolment: what each protocol demands of whoever comes without a certificate, and
//! what a bad request costs.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use towline_link::carrier::CarrierKind;
use towline_link::quic::{Options, QuicEndpoint};
use towline_pki::tls::presenting;
use towline_proto::enrol::{EnrolRequest, Proof, Refusal};
use towline_proto::id::Role;
use towline_proto::limits;
use towline_tests::cluster::links_of;
use towline_tests::enrol::{EnrolWorld, Node, refusal};
use towline_tests::rogue;
use towline_tests::scenario::{eventually, expect};
use towline_tests::scratch;

async fn world(flags: &[&str]) -> EnrolWorld {
    let world = EnrolWorld::start(CarrierKind::Tls, flags).await;
    world.kube.put_node("n1", &["10.0.0.1"]);
    world
}

/// What becomes of a TLS connection that shows no certificate and offers these protocols: the one
/// that was chosen, and whether the server then goes on with it.
async fn met(world: &EnrolWorld, alpn: &[&[u8]]) -> Result<Option<Vec<u8>>, String> {
    let servers = rogue::verifier(&world.authority, Role::Server);
    let config = presenting::client_of(None, servers, alpn).unwrap();
    let tcp = TcpStream::connect(world.address()).await.unwrap();
    let name = ServerName::try_from("towline").unwrap();
    let mut tls = TlsConnector::from(config)
        .connect(name, tcp)
        .await
        .map_err(|error| error.to_string())?;
    let chosen = tls.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    // In TLS 1.3 the refusal of a client comes behind the handshake.
    let mut byte = [0];
    let read = tokio::time::timeout(Duration::from_millis(500), tls.read(&mut byte)).await;
    match read {
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(0)) => Err("closed".to_owned()),
        _ => Ok(chosen),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_protocol_but_enrolment_demands_a_certificate() {
    let world = world(&[]).await;
    let enrol: &[u8] = b"towline-enrol/1";
    let cases: [&[&[u8]]; 8] = [
        &[b"towline/1"],
        &[b"towline/1", b"towline-enrol/1"],
        &[b"towline-enrol/1", b"towline/1"],
        &[b"h2"],
        &[b"http/1.1"],
        &[b"towline-enrol/2"],
        &[b"towline/2"],
        &[],
    ];
    for alpn in cases {
        let result = expect("the verdict", met(&world, alpn)).await;
        assert!(result.is_err(), "{alpn:?}: {result:?}");
    }
    let result = expect("the verdict", met(&world, &[enrol])).await;
    assert_eq!(result, Ok(Some(enrol.to_vec())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_legacy_door_is_no_way_around() {
    let world = EnrolWorld::start(CarrierKind::Tls, &[]).await;
    let file = |name: &str| world.scratch.join(name).display().to_string();
    let mut args = world.server_args();
    let state = args.iter().position(|arg| arg == "--state-dir").unwrap();
    args[state + 1] = file("state-2");
    let audit = args.iter().position(|arg| arg == "--audit-log").unwrap();
    args[audit + 1] = file("audit-2");
    let door = args.iter().position(|arg| arg == "--door-unix").unwrap();
    args[door + 1] = file("door-2");
    let listen = args.iter().position(|arg| arg == "--listen").unwrap();
    args[listen + 1] = "127.0.0.1:0".to_owned();
    for (flag, value) in [
        ("--compatibility", "konnectivity".to_owned()),
        ("--cluster-cert", file("s0.crt")),
        ("--cluster-key", file("s0.key")),
        ("--cluster-ca-cert", file("agents.ca")),
    ] {
        args.push(format!("{flag}={value}"));
    }
    let server = match towline_tests::cluster::start_server(&args).await {
        Ok(server) => server,
        Err(error) => panic!("{error}"),
    };
    let mut other = world;
    other.server = Some(server);
    for alpn in [&[&b"h2"[..]][..], &[b"towline/1"], &[b"http/1.1"], &[]] {
        let result = expect("the verdict", met(&other, alpn)).await;
        assert!(result.is_err(), "{alpn:?}: {result:?}");
    }
    let enrol: &[u8] = b"towline-enrol/1";
    assert!(expect("the verdict", met(&other, &[enrol])).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_enrols_over_quic() {
    let world = EnrolWorld::start(CarrierKind::Quic, &[]).await;
    let servers = rogue::verifier(&world.authority, Role::Server);
    for alpn in [&b"towline-enrol/1"[..], b"towline/1", b"h2"] {
        let config = presenting::client_of(None, Arc::clone(&servers), &[alpn]).unwrap();
        let any = ([127, 0, 0, 1], 0).into();
        let endpoint = QuicEndpoint::bind(any, Options::default()).unwrap();
        let link = expect(
            "the verdict",
            endpoint.connect(world.address(), config, &servers),
        )
        .await;
        if let Ok(link) = link {
            // The client is refused behind its handshake.
            use towline_link::carrier::Carrier;
            let end = expect("the refusal", link.closed()).await;
            assert!(!end.retry(), "{end:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_enrol_has_no_such_door() {
    let cluster = towline_tests::cluster::Plan::on(CarrierKind::Tls)
        .agents(0)
        .start()
        .await;
    let servers = rogue::verifier(&cluster.authority, Role::Server);
    let config = presenting::client_of(None, servers, &[b"towline-enrol/1"]).unwrap();
    let tcp = TcpStream::connect(cluster.server(0).link_address())
        .await
        .unwrap();
    let name = ServerName::try_from("towline").unwrap();
    let error = TlsConnector::from(config)
        .connect(name, tcp)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("NoApplicationProtocol")
            || error.to_string().contains("no application protocol"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_answered_or_cut_and_hurt_nobody() {
    let world = world(&[]).await;
    let malformed = |bytes: &[u8]| {
        let mut out = u16::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
        out.extend_from_slice(bytes);
        out
    };
    assert_eq!(
        refusal(world.send(&malformed(b""), None).await),
        Refusal::Malformed
    );
    assert_eq!(
        refusal(world.send(&malformed(&[1, 0xff, 0xff, 0]), None).await),
        Refusal::Malformed
    );
    let with_csr = |csr: &[u8]| {
        EnrolRequest {
            csr: csr.to_vec(),
            proof: Proof::Certificate,
            name: None,
            software: String::new(),
        }
        .encode()
    };
    for csr in [&b"nonsense"[..], &[0x30, 0x82, 0xff, 0xff]] {
        assert_eq!(
            refusal(world.send(&with_csr(csr), None).await),
            Refusal::SigningRequest
        );
    }
    // A request whose signature is not its key's.
    let mut forged = towline_pki::Request::make_der(&Node::new().key, "x").unwrap();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    assert_eq!(
        refusal(world.send(&with_csr(&forged), None).await),
        Refusal::SigningRequest
    );
    // Too long: closed, unread.
    let long = u16::MAX.to_be_bytes();
    assert!(usize::from(u16::MAX) > limits::ENROL_REQUEST_BYTES);
    assert!(world.send(&long, None).await.is_err());
    // Half a request, and then nothing: the place is given back after some seconds.
    let mut slow = world.connect(None).await.unwrap();
    slow.write_all(&[0x10, 0x00, 1]).await.unwrap();
    slow.flush().await.unwrap();
    let mut rest = Vec::new();
    let _ = expect("the end of the slow one", slow.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());
    let proof = world.account_token("t", "n1");
    world.enrolled(proof, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_refused_again_and_again_is_closed_early() {
    let world = world(&[]).await;
    for _ in 0..limits::ENROL_REFUSALS {
        assert_eq!(refusal(world.send(&[0, 0], None).await), Refusal::Malformed);
    }
    assert!(world.send(&[0, 0], None).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_issuer_counts_at_once_and_a_bad_one_never() {
    let world = world(&[]).await;
    let proof = world.account_token("t", "n1");
    let node = world.enrolled(proof.clone(), None).await;
    // One that --agent-ca does not take.
    let stranger = towline_tests::authority::Authority::new("kit.example");
    scratch::replace(&world.scratch.join("issuer.key"), "x").unwrap();
    let good = world.authority.issuer(Role::Agent).key_pem();
    scratch::replace(
        &world.scratch.join("agents.key"),
        stranger.issuer(Role::Agent).key_pem(),
    )
    .unwrap();
    let error = world.reload().await.unwrap_err();
    assert!(error.contains("agents.key"), "{error}");
    // The old one is in force.
    assert!(world.ask(&node, proof.clone(), None, None).await.is_ok());
    scratch::replace(&world.scratch.join("agents.key"), good).unwrap();
    world.reload().await.unwrap();
    assert!(world.ask(&node, proof, None, None).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flags_that_do_not_fit_are_refused_with_what_to_change() {
    let world = world(&[]).await;
    let with = |change: &dyn Fn(&mut Vec<String>)| {
        let mut args = world.server_args();
        let state = args.iter().position(|arg| arg == "--state-dir").unwrap();
        args[state + 1] = world.scratch.join("other").display().to_string();
        change(&mut args);
        args
    };
    let without = |flags: &'static [&'static str]| {
        with(&move |args: &mut Vec<String>| {
            for flag in flags {
                let at = args.iter().position(|arg| arg == flag).unwrap();
                args.drain(at..at + 2);
            }
        })
    };
    let value = |flag: &'static str, value: String| {
        with(&move |args: &mut Vec<String>| {
            let at = args.iter().position(|arg| arg == flag).unwrap();
            args[at + 1] = value.clone();
        })
    };
    let stranger = towline_tests::authority::Authority::new("kit.example");
    let servers = world.scratch.join("servers.ca").display().to_string();
    scratch::replace(
        &world.scratch.join("x.crt"),
        stranger.issuer(Role::Agent).pem(),
    )
    .unwrap();
    scratch::replace(
        &world.scratch.join("x.key"),
        stranger.issuer(Role::Agent).key_pem(),
    )
    .unwrap();
    let mut foreign = value(
        "--enrol-issuer-certificate",
        world.scratch.join("x.crt").display().to_string(),
    );
    let at = foreign
        .iter()
        .position(|arg| arg == "--enrol-issuer-key")
        .unwrap();
    foreign[at + 1] = world.scratch.join("x.key").display().to_string();
    for (args, words) in [
        (without(&["--enrol-issuer-key"]), "--enrol-issuer-key"),
        (without(&["--state-dir"]), "--state-dir"),
        (
            without(&["--enrol-issuer-certificate"]),
            "no effect without --enrol-issuer-certificate",
        ),
        (without(&["--enrol-server-ca"]), "--enrol-server-ca"),
        (
            without(&["--enrol-service-account", "--enrol-join-tokens"]),
            "needs a proof",
        ),
        (
            value("--enrol-service-account", "towline".into()),
            "NAMESPACE/NAME",
        ),
        (value("--enrol-issuer-certificate", servers), "not the one"),
        (
            value("--enrol-join-tokens", "/nonexistent".into()),
            "/nonexistent",
        ),
        (foreign, "--agent-ca does not take"),
    ] {
        let error = towline_tests::cluster::start_server(&args)
            .await
            .err()
            .expect("refused");
        assert!(error.contains(words), "{words}: {error}");
    }
}

async fn metric(world: &EnrolWorld, name: &str) -> i64 {
    let mut stream = TcpStream::connect(world.server().health_address())
        .await
        .unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).await.unwrap();
    let line = page.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.trim().parse().ok()).unwrap_or(0)
}

/// More connections than the links' listener has slots, all of them waiting for enrolment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_waits_to_enrol_takes_no_slot_from_links() {
    let world = Arc::new(world(&["--max-links", "8", "--max-handshakes", "8"]).await);
    let mut crowd = tokio::task::JoinSet::new();
    for _ in 0..limits::ENROL_PLACES_PER_ADDRESS + 40 {
        let world = Arc::clone(&world);
        // Nothing is ever asked for on them.
        crowd.spawn(async move {
            let _open = world.connect(None).await;
            std::future::pending::<()>().await;
        });
    }
    eventually("a crowd that waits", || async {
        let waiting = metric(&world, "towline_server_enrolments_waiting").await;
        (waiting >= 20).then_some(())
    })
    .await;
    let agent = world.certified_agent(2, "n2").await;
    expect("the link", links_of(&agent, 1)).await;
}

/// What waits is kept in memory, so it is short.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_message_of_many_kilobytes_is_closed_unanswered() {
    let world = world(&[]).await;
    let enrol: &[u8] = b"towline-enrol/1";
    let long = [b'x'; 250];
    let mut offered = vec![enrol];
    assert!(expect("the verdict", met(&world, &offered)).await.is_ok());
    offered.extend([&long[..]; 40]);
    assert!(offered.concat().len() as u64 > limits::ENROL_HELLO_BYTES);
    assert!(expect("the verdict", met(&world, &offered)).await.is_err());
    let closed = "towline_server_enrolment_connections_closed_total{reason=\"long-hello\"}";
    world.counted(&format!("{closed} 1")).await;
}

/// All that is shown is taken by agents, or the file is refused: never a part of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_authorities_than_an_agent_takes_are_one_error() {
    let mut world = EnrolWorld::prepared(CarrierKind::Tls, &[]).await;
    let own = world.authority.issuer(Role::Server).pem().to_owned();
    let others: Vec<String> = (0..limits::CHAIN_CERTIFICATES)
        .map(|_| {
            let other = towline_tests::authority::Authority::new("kit.example");
            other.issuer(Role::Server).pem().to_owned()
        })
        .collect();
    // Our leaf, our authority, and as many as there is room for.
    let most = limits::CHAIN_CERTIFICATES - 2;
    let path = world.scratch.join("servers.ca");
    let write = |count: usize| {
        let text = format!("{own}{}", others[..count].concat());
        scratch::replace(&path, &text).unwrap();
    };
    write(most + 1);
    let error = world.restart().await.unwrap_err();
    assert!(
        error.contains("--enrol-server-ca") && error.contains("agents take 8 at most"),
        "{error}"
    );
    write(most);
    world.restart().await.unwrap();
    let proof = |number: u8| world.account_token(&format!("t{number}"), "n1");
    world.kube.put_node("n1", &["10.0.0.1"]);
    world.enrolled(proof(1), None).await;
    // The file grew while we run: the old one stays in force.
    write(most + 1);
    let error = world.reload().await.unwrap_err();
    assert!(error.contains("--enrol-server-ca"), "{error}");
    world.enrolled(proof(2), None).await;
}
