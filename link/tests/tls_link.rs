//! Links on the tls carrier: real TLS over loopback TCP, certificates made for the test.

mod pair;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pair::{Cluster, LOOPBACK, Sides, fill, read_all};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use towline_link::carrier::{Carrier, CarrierKind, Stream, StreamError};
use towline_link::error::ConnectError;
use towline_link::tls::{self, HttpProxy, TlsOptions};
use towline_pki::PeerError;
use towline_proto::limits;
use towline_proto::reason::Reason;
use towline_proto::target::Target;

type Link = Arc<dyn Carrier>;

/// Both ends of a link.
struct Ends {
    agent: Link,
    server: Link,
}

async fn listener() -> (TcpListener, Target) {
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let address = listener.local_addr().unwrap().to_string().parse().unwrap();
    (listener, address)
}

/// What each end says to a connection attempt.
async fn attempt(
    agent: Sides<rustls::ClientConfig>,
    server: Sides<rustls::ServerConfig>,
    options: TlsOptions,
) -> (Result<Link, ConnectError>, Result<Link, ConnectError>) {
    let (listener, address) = listener().await;
    tokio::join!(
        tls::connect(&address, agent.0, agent.1, None, &options),
        async {
            let (tcp, _) = listener.accept().await.unwrap();
            tls::accept(tcp, server.0, server.1, &TlsOptions::server()).await
        }
    )
}

impl Ends {
    async fn with(options: TlsOptions) -> Self {
        let cluster = Cluster::new("prod");
        let agent = cluster.agent_side(&cluster.agent("node-1"));
        let server = cluster.server_side(&cluster.server("server-1"));
        let (agent, server) = attempt(agent, server, options).await;
        Self {
            agent: agent.unwrap(),
            server: server.unwrap(),
        }
    }

    async fn new() -> Self {
        Self::with(TlsOptions::agent()).await
    }

    /// A stream that the server opened and the agent accepted.
    async fn dial(&self) -> (Stream, Stream) {
        let mut here = self.server.open().await.unwrap();
        here.send.send(Bytes::from_static(b"!")).await.unwrap();
        let mut there = self.agent.accept().await.unwrap();
        assert_eq!(there.recv.recv(1).await.unwrap().unwrap(), "!");
        (here, there)
    }
}

async fn send_all(stream: &mut Stream, bytes: &[u8]) -> Result<(), StreamError> {
    for chunk in bytes.chunks(60_000) {
        stream.send.send(Bytes::copy_from_slice(chunk)).await?;
    }
    stream.send.finish();
    Ok(())
}

#[tokio::test]
async fn each_end_knows_who_the_other_is() {
    let ends = Ends::new().await;
    assert_eq!(ends.agent.kind(), CarrierKind::Tls);
    assert_eq!(
        ends.agent.peer().identity().to_string(),
        "spiffe://prod/towline/server/server-1"
    );
    assert_eq!(
        ends.server.peer().identity().to_string(),
        "spiffe://prod/towline/agent/node-1"
    );
    assert!(ends.server.stats().received_bytes > 0 && ends.server.stats().sent_bytes > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_mebibytes_arrive_intact_both_ways_at_once() {
    let ends = Ends::new().await;
    let (here, there) = ends.dial().await;
    let (down, up) = (Arc::new(fill(64 << 20, 1)), Arc::new(fill(64 << 20, 2)));
    let (sent_down, sent_up) = (down.clone(), up.clone());
    let server = tokio::spawn(async move {
        let Stream { mut send, mut recv } = here;
        let sending = async {
            for chunk in sent_down.chunks(65_536) {
                send.send(Bytes::copy_from_slice(chunk)).await.unwrap();
            }
            send.finish();
        };
        tokio::join!(sending, read_all(&mut recv)).1
    });
    let Stream { mut send, mut recv } = there;
    let sending = async {
        for chunk in sent_up.chunks(1000) {
            send.send(Bytes::copy_from_slice(chunk)).await.unwrap();
        }
        send.finish();
    };
    let ((), got_down) = tokio::join!(sending, read_all(&mut recv));
    let got_up = server.await.unwrap();
    assert!(got_down.unwrap() == *down, "down");
    assert!(got_up.unwrap() == *up, "up");
}

#[tokio::test]
async fn each_direction_ends_on_its_own() {
    let ends = Ends::new().await;
    let (mut here, mut there) = ends.dial().await;
    send_all(&mut here, b"request").await.unwrap();
    assert_eq!(read_all(&mut there.recv).await.unwrap(), b"request");
    send_all(&mut there, b"answer after the end of the request")
        .await
        .unwrap();
    assert_eq!(
        read_all(&mut here.recv).await.unwrap(),
        b"answer after the end of the request"
    );
}

#[tokio::test]
async fn a_reset_and_a_stop_carry_their_reasons() {
    let ends = Ends::new().await;
    let (mut here, mut there) = ends.dial().await;
    here.send.reset(Reason::TargetReset);
    assert_eq!(
        there.recv.recv(9).await,
        Err(StreamError::Reset(Reason::TargetReset))
    );
    here.recv.stop(Reason::FrontEndGone);
    let stopped = std::future::poll_fn(|cx| there.send.poll_stopped(cx)).await;
    assert_eq!(stopped, StreamError::Stopped(Reason::FrontEndGone));
    let sent = there.send.send(Bytes::from_static(b"late")).await;
    assert_eq!(sent, Err(StreamError::Stopped(Reason::FrontEndGone)));
}

#[tokio::test]
async fn a_task_that_is_aborted_never_looks_complete() {
    let ends = Ends::new().await;
    let (mut here, mut there) = ends.dial().await;
    let task = tokio::spawn(async move {
        here.send
            .send(Bytes::from_static(b"half a body"))
            .await
            .unwrap();
        std::future::pending::<()>().await;
        here.send.finish();
    });
    assert_eq!(there.recv.recv(99).await.unwrap().unwrap(), "half a body");
    task.abort();
    assert_eq!(
        read_all(&mut there.recv).await,
        Err(StreamError::Reset(Reason::Aborted))
    );
}

#[tokio::test]
async fn a_lost_connection_never_looks_complete() {
    let ends = Ends::new().await;
    let (mut here, mut there) = ends.dial().await;
    here.send
        .send(Bytes::from_static(b"half a body"))
        .await
        .unwrap();
    assert_eq!(there.recv.recv(99).await.unwrap().unwrap(), "half a body");
    let Ends { agent, server } = ends;
    drop(server);
    assert_eq!(
        read_all(&mut there.recv).await,
        Err(StreamError::Lost(Reason::Aborted))
    );
    assert_eq!(agent.closed().await, Reason::Aborted);
    assert_eq!(
        here.send.send(Bytes::from_static(b"x")).await,
        Err(StreamError::Lost(Reason::Aborted))
    );
    assert!(agent.open().await.is_err() && agent.accept().await.is_err());
}

#[tokio::test]
async fn a_close_tells_its_reason_and_delivers_what_was_complete() {
    let ends = Ends::new().await;
    let (mut here, mut there) = ends.dial().await;
    send_all(&mut here, &fill(100_000, 3)).await.unwrap();
    assert_eq!(there.recv.recv(1).await.unwrap().map(|b| b.len()), Some(1));
    // The end has arrived once the agent answers a later stream.
    let _later = ends.dial().await;
    ends.server.close(Reason::Superseded);
    assert_eq!(ends.server.closed().await, Reason::Superseded);
    assert_eq!(ends.agent.closed().await, Reason::Superseded);
    assert_eq!(read_all(&mut there.recv).await.unwrap().len(), 99_999);
}

#[tokio::test]
async fn one_eight_and_sixty_four_stalled_readers_stop_only_themselves() {
    for stalled in [1, 8, 64] {
        let ends = Ends::new().await;
        let mut kept = Vec::new();
        for _ in 0..stalled {
            let (mut here, there) = ends.dial().await;
            // It takes what may be in flight beside others, and no more.
            let mut chunk = Bytes::from(vec![0; 5 << 20]);
            let enough = chunk.len() - limits::MUX_FLIGHT as usize + 1;
            loop {
                let polled = std::future::poll_fn(|cx| {
                    std::task::Poll::Ready(here.send.poll_send(cx, &mut chunk))
                });
                if polled.await.is_pending() && chunk.len() <= enough {
                    break;
                }
                tokio::task::yield_now().await;
            }
            kept.push((here, there));
        }
        let (mut here, mut there) = ends.dial().await;
        let body = fill(8 << 20, 4);
        let (sent, read) = tokio::join!(send_all(&mut here, &body), read_all(&mut there.recv));
        sent.unwrap();
        assert!(read.unwrap() == body, "{stalled} stalled");
        // The stalled ones lost nothing and go on when they are read.
        let (_, mut there) = kept.pop().unwrap();
        assert_eq!(
            there.recv.recv(1000).await.unwrap().map(|b| b.len()),
            Some(1000)
        );
    }
}

#[tokio::test]
async fn the_stream_limit_holds_and_rises() {
    let ends = Ends::with(TlsOptions {
        streams: 2,
        ..TlsOptions::agent()
    })
    .await;
    let first = ends.dial().await;
    let _second = ends.dial().await;
    let mut third = now(ends.server.open()).await;
    assert!(third.is_none(), "a third stream was opened");
    drop(first);
    let mut opened = ends.server.open().await.unwrap();
    opened
        .send
        .send(Bytes::from_static(b"third"))
        .await
        .unwrap();
    let accepted = ends.agent.accept().await.unwrap();
    third = now(ends.server.open()).await;
    assert!(third.is_none(), "a third stream at once");
    ends.agent.set_stream_limit(3);
    let fourth = ends.server.open().await.unwrap();
    // Never used: the agent never sees it and its place comes back.
    drop(fourth);
    drop((opened, accepted));
    ends.server.open().await.unwrap();
    // The agent may open its control stream, and no other.
    let _control = ends.agent.open().await.unwrap();
    assert!(now(ends.agent.open()).await.is_none());
}

/// The future's answer, if it has one after everything else had a chance to run.
async fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(Duration::from_millis(50), future)
        .await
        .ok()
}

#[tokio::test]
async fn a_thousand_streams_at_once() {
    let ends = Ends::with(TlsOptions {
        streams: 128,
        ..TlsOptions::agent()
    })
    .await;
    let mut dials = tokio::task::JoinSet::new();
    let agent = ends.agent.clone();
    tokio::spawn(async move {
        while let Ok(mut stream) = agent.accept().await {
            tokio::spawn(async move {
                let body = read_all(&mut stream.recv).await.unwrap();
                send_all(&mut stream, &body).await.unwrap();
            });
        }
    });
    for n in 0..1000_usize {
        let server = ends.server.clone();
        dials.spawn(async move {
            let mut stream = server.open().await.unwrap();
            let body = fill(n * 10 + 1, n as u8);
            send_all(&mut stream, &body).await.unwrap();
            assert!(read_all(&mut stream.recv).await.unwrap() == body);
        });
    }
    while let Some(done) = dials.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn peers_that_do_not_belong_are_refused_at_both_ends() {
    let cluster = Cluster::new("prod");
    let other = Cluster::new("prod");
    let server = || cluster.server_side(&cluster.server("server-1"));
    let options = TlsOptions::agent();

    let (agent, taken) = attempt(
        cluster.agent_side(&other.agent("node-1")),
        server(),
        options,
    )
    .await;
    assert_eq!(agent.err().unwrap().reason(), Reason::BadCertificate);
    assert!(matches!(
        taken,
        Err(ConnectError::Peer {
            source: PeerError::UnknownIssuer,
            ..
        })
    ));

    let (agent, taken) = attempt(
        cluster.agent_side(&cluster.agent_expired("node-1")),
        server(),
        options,
    )
    .await;
    assert_eq!(agent.err().unwrap().reason(), Reason::CertificateEnded);
    assert!(matches!(
        taken,
        Err(ConnectError::Peer {
            source: PeerError::Expired { .. },
            ..
        })
    ));

    let denied = cluster.agent("node-1");
    let (agent, taken) = attempt(
        cluster.agent_side(&denied),
        cluster.server_side_denying(&denied),
        options,
    )
    .await;
    assert!(agent.is_err());
    assert!(matches!(
        taken,
        Err(ConnectError::Peer {
            source: PeerError::DeniedInHandshake,
            ..
        })
    ));

    let strange = other.server_side(&other.server("server-1"));
    let (agent, taken) = attempt(
        cluster.agent_side(&cluster.agent("node-1")),
        strange,
        options,
    )
    .await;
    assert!(matches!(
        agent,
        Err(ConnectError::Peer {
            source: PeerError::UnknownIssuer,
            ..
        })
    ));
    assert!(taken.is_err());
}

#[tokio::test]
async fn a_session_is_never_resumed() {
    let cluster = Cluster::new("prod");
    let holder = cluster.agent("node-1");
    let agent = cluster.agent_side(&holder);
    let server = cluster.server_side(&cluster.server("server-1"));
    let (first, _) = attempt(agent.clone(), server, TlsOptions::agent()).await;
    first.unwrap();
    // The same client configuration, and a server that denies it in the meantime.
    let (again, taken) = attempt(
        agent,
        cluster.server_side_denying(&holder),
        TlsOptions::agent(),
    )
    .await;
    assert!(again.is_err(), "the verifier was passed by");
    assert!(taken.is_err());
}

#[tokio::test]
async fn bytes_that_are_not_towline_are_one_error() {
    let cluster = Cluster::new("prod");
    for bytes in [
        &b""[..],
        b"GET / HTTP/1.1\r\n\r\n",
        &[0x16, 3, 1, 0xff, 0xff, 1],
        &[0; 4096],
    ] {
        let (listener, address) = listener().await;
        let server = cluster.server_side(&cluster.server("server-1"));
        let accepted = async {
            let (tcp, _) = listener.accept().await.unwrap();
            tls::accept(tcp, server.0, server.1, &TlsOptions::server()).await
        };
        let client = async {
            let mut tcp = TcpStream::connect(address.address().unwrap())
                .await
                .unwrap();
            tcp.write_all(bytes).await.unwrap();
            tcp.shutdown().await.unwrap();
            let mut answer = Vec::new();
            let _ = tcp.read_to_end(&mut answer).await;
        };
        let (accepted, ()) = tokio::join!(accepted, client);
        assert!(
            matches!(accepted, Err(ConnectError::Handshake { .. })),
            "{bytes:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_says_nothing_is_given_up_in_time() {
    let cluster = Cluster::new("prod");
    let (near, _far) = tokio::io::duplex(65_536);
    let (config, verifier) = cluster.server_side(&cluster.server("server-1"));
    let accepted = tls::accept_on(near, LOOPBACK, config, verifier, &TlsOptions::server()).await;
    assert!(matches!(accepted, Err(ConnectError::Timeout { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_link_runs_on_any_pipe_and_on_a_paused_clock() {
    let cluster = Cluster::new("prod");
    let (near, far) = tokio::io::duplex(4096);
    let agent = cluster.agent_side(&cluster.agent("node-1"));
    let server = cluster.server_side(&cluster.server("server-1"));
    let target: Target = "server.example:8091".parse().unwrap();
    let (agents, servers) = (TlsOptions::agent(), TlsOptions::server());
    let (agent, server) = tokio::join!(
        tls::connect_on(near, LOOPBACK, &target, agent.0, agent.1, &agents),
        tls::accept_on(far, LOOPBACK, server.0, server.1, &servers),
    );
    let ends = Ends {
        agent: agent.unwrap(),
        server: server.unwrap(),
    };
    let (mut here, mut there) = ends.dial().await;
    let body = fill(3 << 20, 9);
    let (sent, read) = tokio::join!(send_all(&mut here, &body), read_all(&mut there.recv));
    sent.unwrap();
    assert!(read.unwrap() == body);
    // Silence of the pipe does not end the link: that is the session's to decide.
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let _again = ends.dial().await;
    ends.agent.close(Reason::Shutdown);
    assert_eq!(ends.server.closed().await, Reason::Shutdown);
}

#[tokio::test]
async fn an_agent_goes_through_a_proxy() {
    let cluster = Cluster::new("prod");
    let (listener, address) = listener().await;
    let proxy_listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let url = format!("http://user:pw@{}", proxy_listener.local_addr().unwrap());
    let proxy =
        HttpProxy::from_flag_or_env(None, &|name| (name == "https_proxy").then(|| url.clone()))
            .unwrap()
            .unwrap();
    let to = address.address().unwrap();
    tokio::spawn(async move {
        let (mut near, _) = proxy_listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            near.read_buf(&mut head).await.unwrap();
        }
        near.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
            .await
            .unwrap();
        let mut far = TcpStream::connect(to).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
    });
    let agent = cluster.agent_side(&cluster.agent("node-1"));
    let server = cluster.server_side(&cluster.server("server-1"));
    let options = TlsOptions::agent();
    let (agent, server) = tokio::join!(
        tls::connect(&address, agent.0, agent.1, Some(&proxy), &options),
        async {
            let (tcp, _) = listener.accept().await.unwrap();
            tls::accept(tcp, server.0, server.1, &TlsOptions::server()).await
        }
    );
    let ends = Ends {
        agent: agent.unwrap(),
        server: server.unwrap(),
    };
    ends.dial().await;
}

/// A client that is let in and then speaks for itself.
async fn raw_client() -> (tokio_rustls::client::TlsStream<TcpStream>, Link) {
    let cluster = Cluster::new("prod");
    let (listener, address) = listener().await;
    let (config, _) = cluster.agent_side(&cluster.agent("node-1"));
    let server = cluster.server_side(&cluster.server("server-1"));
    let client = async {
        let tcp = TcpStream::connect(address.address().unwrap())
            .await
            .unwrap();
        let name = towline_pki::tls::server_name();
        let tls = tokio_rustls::TlsConnector::from(config);
        tls.connect(name, tcp).await.unwrap()
    };
    let accepted = async {
        let (tcp, _) = listener.accept().await.unwrap();
        tls::accept(tcp, server.0, server.1, &TlsOptions::server()).await
    };
    let (client, link) = tokio::join!(client, accepted);
    (client, link.unwrap())
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_is_told_and_closed() {
    let (mut client, link) = raw_client().await;
    client.write_all(&[0x55; 100]).await.unwrap();
    client.flush().await.unwrap();
    assert_eq!(link.closed().await, Reason::Protocol);
    let mut said = Vec::new();
    client.read_to_end(&mut said).await.unwrap();
    assert_eq!(said[16..], [5, 0, 0, 2, 0, 0, 0, 0, 0, 24]);
}

#[tokio::test]
async fn a_connection_that_is_cut_is_a_lost_link() {
    let (client, link) = raw_client().await;
    let (tcp, _) = client.into_inner();
    tcp.set_zero_linger().unwrap();
    drop(tcp);
    assert_eq!(link.closed().await, Reason::LinkLost);

    let (mut client, link) = raw_client().await;
    client.shutdown().await.unwrap();
    assert_eq!(
        link.closed().await,
        Reason::LinkLost,
        "an end without CLOSE"
    );
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_reads_nothing_does_not_keep_a_closed_connection() {
    let cluster = Cluster::new("prod");
    let (near, far) = tokio::io::duplex(4096);
    let (config, _) = cluster.agent_side(&cluster.agent("node-1"));
    let server = cluster.server_side(&cluster.server("server-1"));
    let options = TlsOptions::server();
    let connector = tokio_rustls::TlsConnector::from(config);
    let (client, link) = tokio::join!(
        connector.connect(towline_pki::tls::server_name(), far),
        tls::accept_on(near, LOOPBACK, server.0, server.1, &options),
    );
    let (mut client, link) = (client.unwrap(), link.unwrap());
    // Its limits, and then it reads nothing.
    let limits = [4, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0x40, 0, 0];
    client.write_all(&limits).await.unwrap();
    client.flush().await.unwrap();
    let mut stream = link.open().await.unwrap();
    stream
        .send
        .send(Bytes::from(vec![0; 100_000]))
        .await
        .unwrap();
    link.close(Reason::PeerSilent);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (mut far, _) = client.into_inner();
    assert!(
        far.write_all(b"x").await.is_err(),
        "the other end is still there"
    );
}
