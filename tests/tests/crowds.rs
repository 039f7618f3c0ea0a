//! Many connections of one peer: it gets its share, and everybody else theirs.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use towline_link::carrier::CarrierKind;
use towline_proto::id::Role;
use towline_proto::limits;
use towline_proto::reason::Reason;
use towline_tests::cluster::{Cluster, Plan, node_ip};
use towline_tests::legacy::metric;
use towline_tests::rogue;
use towline_tests::scenario::{eventually, expect};
use towline_tests::scenarios;

/// A connection of somebody whom nobody else on this machine is mistaken for.
async fn stranger(to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 66], 0).into()).unwrap();
    expect("a connection", socket.connect(to)).await.unwrap()
}

/// A client hello that promises more than it brings.
const HALF: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];

async fn counts(cluster: &Cluster, line: &str, least: u64) {
    eventually(line, || async {
        (metric(cluster, line).await >= least).then_some(())
    })
    .await;
}

#[tokio::test]
async fn half_a_client_hello_holds_places_of_its_own_address_only() {
    let mut cluster = Plan::on(CarrierKind::Tls).start().await;
    let server = cluster.server(0).link_address();
    let mut halves = Vec::new();
    // More than all places there are.
    let all = limits::HANDSHAKES + 44;
    for _ in 0..all {
        let mut half = stranger(server).await;
        half.write_all(HALF).await.unwrap();
        halves.push(half);
    }
    let waiting = (all - limits::HANDSHAKES_PER_ADDRESS) as u64;
    let waited = "towline_server_tls_handshakes_waited_total";
    counts(&cluster, waited, waiting).await;
    let in_flight = metric(&cluster, "towline_server_tls_handshakes_in_flight").await;
    assert!(
        in_flight <= limits::HANDSHAKES_PER_ADDRESS as u64,
        "{in_flight} in flight"
    );
    cluster.start_agent("n2").await;
    cluster.linked().await;
    drop(halves);
}

#[tokio::test]
async fn silent_connections_of_one_address_are_bounded() {
    let mut cluster = Plan::on(CarrierKind::Tls).start().await;
    let door = cluster.server(0).door_tcp().unwrap();
    for (port, line) in [
        (
            cluster.server(0).link_address(),
            "towline_server_tls_handshakes_failed_total{reason=\"crowded\"}",
        ),
        (
            door,
            "towline_server_front_ends_refused_total{door=\"connect-tcp\",reason=\"crowded\"}",
        ),
    ] {
        let mut silent = Vec::new();
        for _ in 0..limits::UNPROVEN_PER_ADDRESS + 20 {
            silent.push(stranger(port).await);
        }
        counts(&cluster, line, 1).await;
        // One more is closed at once, without a word.
        let mut more = stranger(port).await;
        let _ = expect("the end", more.read(&mut [0])).await;
        drop(silent);
    }
    cluster.start_agent("n2").await;
    cluster.linked().await;
}

scenarios! {
    async fn an_agent_that_greets_nobody_takes_its_own_places_only(carrier) {
        let mut cluster = Plan::on(carrier).start().await;
        let pair = cluster.authority.leaf(Role::Agent, "n9").ips(&[node_ip(9)]).sign();
        let server = cluster.server(0).link_address();
        let (mut silent, mut turned_away) = (Vec::new(), 0);
        // The last that has a place may not have been counted when the next one comes.
        for _ in 0..2 * limits::GREETINGS_PER_AGENT {
            match rogue::connect(carrier, server, &cluster.authority, Some(&pair)).await {
                Ok(link) => silent.push(link),
                // On tls it may be told before it is through.
                Err(error) => {
                    assert!(error.contains("overloaded"), "{error}");
                    turned_away += 1;
                }
            }
        }
        for link in silent {
            let reason = expect("the end of the link", link.closed()).await;
            assert!(
                matches!(reason, Reason::Overloaded | Reason::GreetingTimeout),
                "{reason}"
            );
            turned_away += usize::from(reason == Reason::Overloaded);
        }
        assert!(turned_away > 0, "all of them were let in");
        let refused = format!(
            "towline_server_links_refused_total{{carrier=\"{carrier}\",reason=\"overloaded\"}}"
        );
        counts(&cluster, &refused, 1).await;
        cluster.start_agent("n2").await;
        cluster.linked().await;
    }

    async fn every_refused_greeting_is_counted_with_its_cause(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let pair = cluster.authority.leaf(Role::Agent, "n9").ips(&[node_ip(9)]).sign();
        let server = cluster.server(0).link_address();
        let enter = |hello| rogue::enter(carrier, server, &cluster.authority, Some(&pair), hello);
        let mut newer = rogue::hello("n9");
        newer.versions = (200, 201);
        assert!(expect("a verdict", enter(newer)).await.is_err());
        let mut more = rogue::hello("n9");
        more.addresses = vec![node_ip(1)];
        assert!(expect("a verdict", enter(more)).await.is_err());
        assert!(expect("a verdict", enter(rogue::hello("n1"))).await.is_err());
        let silent = rogue::connect(carrier, server, &cluster.authority, Some(&pair)).await.unwrap();
        expect("the end of the link", silent.closed()).await;
        for (reason, times) in [
            (Reason::Version, 1),
            (Reason::ExcessClaim, 2),
            (Reason::GreetingTimeout, 1),
        ] {
            let line = format!(
                "towline_server_links_refused_total{{carrier=\"{carrier}\",reason=\"{reason}\"}}"
            );
            counts(&cluster, &line, times).await;
            assert_eq!(metric(&cluster, &line).await, times, "{reason}");
        }
    }
}
