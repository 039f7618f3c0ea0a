//! Any bytes on any socket: one error for who sent them, nothing for anybody else.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use towline_link::driver::greet_agent;
use towline_proto::id::Role;
use towline_tests::apiserver::{Io, Pipe};
use towline_tests::cluster::{Cluster, Plan, node_ip};
use towline_tests::rogue;
use towline_tests::scenario::expect;
use towline_tests::scenarios;
use towline_tests::target::Behaviour;

const POD: &str = "10.244.0.5:8080";

async fn echoes(pipe: &mut Pipe) {
    let mut echo = [0; 4];
    pipe.write_all(b"ping").await.unwrap();
    expect("the echo", pipe.read_exact(&mut echo))
        .await
        .unwrap();
    assert_eq!(&echo, b"ping");
}

/// Bytes of chance, and beginnings that look right.
fn nonsense() -> Vec<Vec<u8>> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = |len: usize| -> Vec<u8> {
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            })
            .collect()
    };
    let mut all: Vec<Vec<u8>> = [1, 7, 64, 1200, 1452, 9000].map(&mut bytes).into();
    all.push(vec![0; 1200]);
    all.push(vec![0xff; 1200]);
    // A QUIC long header, version 1, with nonsense behind it; a version that nobody has.
    all.push([vec![0xc3, 0, 0, 0, 1, 8], bytes(1194)].concat());
    all.push([vec![0xc3, 0x1a, 0x2a, 0x3a, 0x4a, 8], bytes(1194)].concat());
    all.push([vec![0x40], bytes(1199)].concat());
    // A TLS record with a client hello of nonsense, and one that promises more than it has.
    all.push([vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc], bytes(500)].concat());
    all.push(vec![0x16, 3, 1, 0x40, 0]);
    all.push(b"CONNECT ".to_vec());
    all
}

/// Sends nonsense to a stream socket and does not care how it ends.
async fn pester(stream: &mut Box<dyn Io>, bytes: &[u8]) {
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut sink = Vec::new();
    let limit = Duration::from_secs(12);
    let ended = tokio::time::timeout(limit, stream.read_to_end(&mut sink)).await;
    assert!(
        ended.is_ok(),
        "the other end keeps a connection that makes no sense: {bytes:?}"
    );
}

async fn pester_all_sockets(cluster: &Cluster) {
    let server = cluster.server(0);
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut pests = tokio::task::JoinSet::new();
    for bytes in nonsense() {
        // The tls carrier alone may have no UDP socket: then nobody is there.
        let _ = udp.send_to(&bytes, server.link_address()).await;
        let ports: [SocketAddr; 2] = [server.link_address(), server.door_tcp().unwrap()];
        for port in ports {
            let bytes = bytes.clone();
            pests.spawn(async move {
                // A listener may be behind with accepting; that is its right.
                if let Ok(stream) = TcpStream::connect(port).await {
                    pester(&mut (Box::new(stream) as Box<dyn Io>), &bytes).await;
                }
            });
        }
        let front = cluster.apiserver();
        pests.spawn(async move { pester(&mut front.connect().await.unwrap(), &bytes).await });
    }
    while let Some(result) = pests.join_next().await {
        result.unwrap();
    }
}

scenarios! {
    async fn nonsense_on_every_socket_disturbs_nobody(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let mut pipe = cluster.apiserver().pipe(POD).await;
        pester_all_sockets(&cluster).await;
        echoes(&mut pipe).await;
        echoes(&mut cluster.apiserver().pipe(POD).await).await;
        cluster.linked().await;
    }

    async fn silent_connections_keep_nobody_out(carrier) {
        let mut cluster = Plan::on(carrier).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let server = cluster.server(0).link_address();
        let door = cluster.server(0).door_tcp().unwrap();
        let mut silent = Vec::new();
        for number in 0..600 {
            let port = if number % 2 == 0 { server } else { door };
            silent.push(TcpStream::connect(port).await.unwrap());
        }
        echoes(&mut cluster.apiserver().pipe(POD).await).await;
        echoes(&mut cluster.apiserver_tcp().pipe(POD).await).await;
        cluster.start_agent("n2").await;
        cluster.linked().await;
    }

    async fn an_agent_that_talks_nonsense_loses_its_link_and_no_other_does(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let mut pipe = cluster.apiserver().pipe(POD).await;
        let pair = cluster.authority.leaf(Role::Agent, "n9").ips(&[node_ip(9)]).sign();
        let server = cluster.server(0).link_address();
        let mut liars = tokio::task::JoinSet::new();
        for bytes in nonsense() {
            let link = rogue::connect(carrier, server, &cluster.authority, Some(&pair)).await.unwrap();
            liars.spawn(async move {
                let mut control = link.open().await.unwrap();
                let _ = control.send.send(Bytes::from(bytes)).await;
                expect("the end of the link", link.closed()).await;
            });
        }
        while let Some(result) = liars.join_next().await {
            result.unwrap();
        }
        echoes(&mut pipe).await;
    }

    async fn an_agent_that_never_greets_is_let_go(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let pair = cluster.authority.leaf(Role::Agent, "n9").ips(&[node_ip(9)]).sign();
        let server = cluster.server(0).link_address();
        let silent = rogue::connect(carrier, server, &cluster.authority, Some(&pair)).await.unwrap();
        expect("the end of the link", silent.closed()).await;
        cluster.linked().await;
    }

    async fn an_agent_cannot_open_a_stream_towards_the_control_plane(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let pair = cluster.authority.leaf(Role::Agent, "n9").ips(&[node_ip(9)]).sign();
        let server = cluster.server(0).link_address();
        let carrier = rogue::connect(carrier, server, &cluster.authority, Some(&pair)).await.unwrap();
        let (link, _, run) = greet_agent(carrier, rogue::hello("n9")).await.unwrap();
        let _driver = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(run));
        let opened = tokio::time::timeout(Duration::from_secs(1), link.carrier().open()).await;
        assert!(!matches!(opened, Ok(Ok(_))), "a second stream was opened");
        cluster.linked().await;
    }

    async fn an_agent_that_answers_dials_with_nonsense_spoils_only_those(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let pair = cluster.authority.leaf(Role::Agent, "n9").ips(&[node_ip(9)]).sign();
        let server = cluster.server(0).link_address();
        let rogue = rogue::connect(carrier, server, &cluster.authority, Some(&pair)).await.unwrap();
        let (link, _, run) = greet_agent(rogue, rogue::hello("n9")).await.unwrap();
        let _driver = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(run));
        let liar = tokio::spawn(async move {
            for bytes in nonsense().into_iter().cycle() {
                let Ok(mut stream) = link.carrier().accept().await else { return };
                // Never the byte that means accepted.
                let bytes = [vec![0x7f], bytes].concat();
                let _ = stream.send.send(Bytes::from(bytes)).await;
                stream.send.finish();
            }
        });
        let _liar = tokio_util::task::AbortOnDropHandle::new(liar);
        for _ in 0..10 {
            let refused = cluster.apiserver().refusal("10.0.0.9:10250").await;
            assert_eq!(refused.status, 502, "{refused:?}");
        }
        let mut kubelet_of_another = cluster.apiserver().pipe(POD).await;
        echoes(&mut kubelet_of_another).await;
    }
}
