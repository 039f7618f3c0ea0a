//! A flood of handshakes and of garbage: bounded, counted, and the true agent gets in.

mod pair;

use std::net::UdpSocket;

use pair::{Cluster, listener_for, until};
use towline_link::carrier::Carrier;
use towline_link::quic::{Options, QuicEndpoint};
use towline_proto::reason::Reason;

fn few_handshakes() -> Options {
    Options {
        handshakes: 8,
        ..Options::default()
    }
}

/// From two handshakes in flight (a quarter of eight) a peer has to prove its address; at eight
/// it is refused. Handshakes stay in flight here because nobody takes the links.
#[tokio::test]
async fn peers_prove_their_address_and_are_refused_when_it_is_full() {
    let cluster = Cluster::new("prod");
    let listener = listener_for(&cluster, few_handshakes());
    let server = listener.local_address().unwrap();
    let endpoint = QuicEndpoint::new(Options::default()).unwrap();
    let (tls, verifier) = cluster.agent_side(&cluster.agent("node-1"));
    let metrics = listener.metrics();
    let mut links = Vec::new();
    // One link waits in the queue without a permit.
    for _ in 0..9 {
        links.push(
            endpoint
                .connect(server, tls.clone(), &verifier)
                .await
                .unwrap(),
        );
        let so_far = links.len() as u64;
        until(|| metrics.verified() == so_far).await;
    }
    assert!(metrics.retried() >= 5, "{} retries", metrics.retried());
    assert_eq!(metrics.refused(), 0);

    let error = endpoint
        .connect(server, tls.clone(), &verifier)
        .await
        .err()
        .unwrap();
    assert_eq!(error.reason(), Reason::Overloaded, "{error}");
    assert_eq!(metrics.refused(), 1);
    // Refusing costs no place: those who were let in are served, and then there is room again.
    for _ in 0..9 {
        listener.accept().await.unwrap();
    }
    endpoint.connect(server, tls, &verifier).await.unwrap();
}

/// Of the places for which an address has to be proved, one address has its share.
#[tokio::test]
async fn one_address_has_its_share_and_no_more() {
    let cluster = Cluster::new("prod");
    let options = Options {
        handshakes_per_address: 2,
        ..few_handshakes()
    };
    let listener = listener_for(&cluster, options);
    let server = listener.local_address().unwrap();
    let endpoint = QuicEndpoint::new(Options::default()).unwrap();
    let (tls, verifier) = cluster.agent_side(&cluster.agent("node-1"));
    let metrics = listener.metrics();
    let mut links = Vec::new();
    let refused = loop {
        match endpoint.connect(server, tls.clone(), &verifier).await {
            Ok(link) => links.push(link),
            Err(error) => break error,
        }
        let so_far = links.len() as u64;
        until(|| metrics.verified() == so_far).await;
    };
    assert_eq!(refused.reason(), Reason::Overloaded, "{refused}");
    assert_eq!((metrics.crowded(), metrics.refused()), (1, 0));
    assert!(links.len() < 8, "{} links of eight places", links.len());
    // Somebody else has a share of his own.
    let elsewhere = ([127, 0, 0, 66], 0).into();
    let other = QuicEndpoint::bind(elsewhere, Options::default()).unwrap();
    let link = other.connect(server, tls.clone(), &verifier).await.unwrap();
    // Who is served gives his place back.
    for _ in 0..=links.len() {
        listener.accept().await.unwrap();
    }
    links.push(endpoint.connect(server, tls, &verifier).await.unwrap());
    drop(link);
}

/// Initial packets from addresses that never answer hold a place for the handshake's time limit,
/// but only a quarter of the places: above it they cost one Retry and no memory.
#[tokio::test]
async fn silent_peers_take_a_quarter_of_the_places() {
    let cluster = Cluster::new("prod");
    let listener = listener_for(&cluster, few_handshakes());
    let server = listener.local_address().unwrap();
    let metrics = listener.metrics();
    // Real first flights, recorded, then sent from as many sockets that read nothing.
    let silent: Vec<_> = pair::first_flights(&cluster, 50)
        .await
        .iter()
        .map(|flight| {
            let socket = UdpSocket::bind(pair::LOOPBACK).unwrap();
            for datagram in flight {
                socket.send_to(datagram, server).unwrap();
            }
            socket
        })
        .collect();
    until(|| metrics.retried() > 0).await;
    assert!(
        metrics.in_flight() <= 3,
        "{} in flight",
        metrics.in_flight()
    );

    let endpoint = QuicEndpoint::new(Options::default()).unwrap();
    let (tls, verifier) = cluster.agent_side(&cluster.agent("node-1"));
    let (link, taken) = tokio::join!(endpoint.connect(server, tls, &verifier), listener.accept());
    assert_eq!(link.unwrap().peer().identity().name.to_string(), "server-1");
    taken.unwrap();
    drop(silent);
}

#[tokio::test]
async fn garbage_disturbs_nobody() {
    let pair = pair::Pair::new().await;
    let server = pair.listener.local_address().unwrap();
    let socket = UdpSocket::bind(pair::LOOPBACK).unwrap();
    for length in (0..1500).step_by(7) {
        let mut datagram = pair::fill(length, length as u8);
        socket.send_to(&datagram, server).unwrap();
        // The shape of a long header with a version that does not exist.
        if let Some(first) = datagram.first_mut() {
            *first = 0xc0;
        }
        socket.send_to(&datagram, server).unwrap();
    }
    let (mut ours, mut theirs) = pair.stream().await;
    ours.send.send("fine".into()).await.unwrap();
    ours.send.finish();
    assert_eq!(pair::read_all(&mut theirs.recv).await.unwrap(), b"fine");
    pair.again().await;
}

/// An agent may open one stream towards the server and no more.
#[tokio::test]
async fn an_agent_opens_one_stream_only() {
    let pair = pair::Pair::new().await;
    let mut control = pair.agent.open().await.unwrap();
    control.send.send("hello".into()).await.unwrap();
    let mut at_server = pair.server.accept().await.unwrap();
    assert_eq!(at_server.recv.recv(16).await.unwrap().unwrap(), "hello");
    tokio::select! {
        biased;
        _ = pair.agent.open() => panic!("a second stream of the agent was opened"),
        // A round trip later it would have been.
        () = async {
            let (mut ours, mut theirs) = pair.stream().await;
            ours.send.send("x".into()).await.unwrap();
            theirs.recv.recv(1).await.unwrap();
            theirs.send.send("y".into()).await.unwrap();
            ours.recv.recv(1).await.unwrap();
        } => {}
    }
}
