//! What the tls carrier costs, beside what it stands on: `cargo bench -p towline-link`.
//!
//! Every row runs both ends of one hop, or both relays of a chain, on a thread of their own with
//! a current-thread runtime, and counts the processor time of those threads. Rows take turns, and
//! the median of the rounds is printed. The whole chain of the product is `tests/bench`.
//!
//! `ROUNDS=5 MIB=512 ROWS=hop,chain` change it.

#[path = "../tests/pair/mod.rs"]
#[allow(unused)]
mod pair;

use std::future::Future;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pair::{Cluster, LOOPBACK};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use towline_link::live::LiveDials;
use towline_link::splice::{Early, LocalSide, splice};
use towline_link::tls::{self, TlsOptions};

const CHUNK: usize = 64 * 1024;
const REQUEST: usize = 200;

fn number(name: &str, default: usize) -> usize {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Runs `work` on a thread with a runtime of its own, says what it made, and how much processor
/// time the thread took since `work` said that it is ready.
fn thread<F, Fut>(work: F) -> JoinHandle<f64>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = ()>,
{
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(work());
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    })
}

/// One measurement: bytes a second and processor seconds for a GiB.
struct Bulk {
    rate: f64,
    cpu: f64,
}

fn bulk(bytes: usize, took: Duration, cpu: f64) -> Bulk {
    Bulk {
        rate: bytes as f64 / took.as_secs_f64() / 1e6,
        cpu: cpu / (bytes as f64 / (1_u64 << 30) as f64),
    }
}

// ---- one hop: writer and reader ------------------------------------------------------------------

/// A listener that a thread's runtime can take over, and its address.
fn bound() -> (std::net::TcpListener, std::net::SocketAddr) {
    let listener = std::net::TcpListener::bind(LOOPBACK).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn accepted(listener: std::net::TcpListener) -> TcpStream {
    let listener = TcpListener::from_std(listener).unwrap();
    let (tcp, _) = listener.accept().await.unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp
}

async fn write_all(mut to: impl tokio::io::AsyncWrite + Unpin, bytes: usize) {
    let chunk = vec![7; CHUNK];
    for _ in 0..bytes / CHUNK {
        to.write_all(&chunk).await.unwrap();
    }
    to.flush().await.unwrap();
    to.shutdown().await.unwrap();
}

async fn read_all(mut from: impl tokio::io::AsyncRead + Unpin, bytes: usize) {
    let mut buffer = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let read = from.read(&mut buffer).await.unwrap();
        assert!(read > 0);
        left -= read;
    }
}

fn hop_tcp(bytes: usize) -> Bulk {
    let (listener, address) = bound();
    let start = Instant::now();
    let writer = thread(move || async move {
        write_all(accepted(listener).await, bytes).await;
    });
    let reader = thread(move || async move {
        read_all(TcpStream::connect(address).await.unwrap(), bytes).await;
    });
    let cpu = writer.join().unwrap() + reader.join().unwrap();
    bulk(bytes, start.elapsed(), cpu)
}

fn hop_raw_tls(cluster: &Cluster, bytes: usize) -> Bulk {
    let (listener, address) = bound();
    let (server, _) = cluster.server_side(&cluster.server("server-1"));
    let (agent, _) = cluster.agent_side(&cluster.agent("node-1"));
    let start = Instant::now();
    let writer = thread(move || async move {
        let tcp = accepted(listener).await;
        let tls = tokio_rustls::TlsAcceptor::from(server)
            .accept(tcp)
            .await
            .unwrap();
        write_all(tls, bytes).await;
    });
    let reader = thread(move || async move {
        let tcp = TcpStream::connect(address).await.unwrap();
        let name = towline_pki::tls::server_name();
        let tls = tokio_rustls::TlsConnector::from(agent)
            .connect(name, tcp)
            .await
            .unwrap();
        read_all(tls, bytes).await;
    });
    let cpu = writer.join().unwrap() + reader.join().unwrap();
    bulk(bytes, start.elapsed(), cpu)
}

fn hop_carrier(cluster: &Cluster, bytes: usize) -> Bulk {
    let (listener, address) = bound();
    let server = cluster.server_side(&cluster.server("server-1"));
    let agent = cluster.agent_side(&cluster.agent("node-1"));
    let start = Instant::now();
    let writer = thread(move || async move {
        let tcp = accepted(listener).await;
        let link = tls::accept(tcp, server.0, server.1, &TlsOptions::server())
            .await
            .unwrap();
        let mut stream = link.open().await.unwrap();
        let chunk = Bytes::from(vec![7; CHUNK]);
        for _ in 0..bytes / CHUNK {
            stream.send.send(chunk.clone()).await.unwrap();
        }
        stream.send.finish();
        link.closed().await;
    });
    let reader = thread(move || async move {
        let target = address.to_string().parse().unwrap();
        let link = tls::connect(&target, agent.0, agent.1, None, &TlsOptions::agent())
            .await
            .unwrap();
        let mut stream = link.accept().await.unwrap();
        let mut left = bytes;
        while let Some(chunk) = stream.recv.recv(CHUNK).await.unwrap() {
            left -= chunk.len();
        }
        assert_eq!(left, 0);
    });
    let cpu = writer.join().unwrap() + reader.join().unwrap();
    bulk(bytes, start.elapsed(), cpu)
}

// ---- chain: client, two relays, target -----------------------------------------------------------

/// Two relays on their threads; a client that connects to `door` reaches `target`.
struct Chain {
    door: std::net::SocketAddr,
    stop: Vec<oneshot::Sender<()>>,
    relays: Vec<JoinHandle<f64>>,
}

impl Chain {
    fn end(self) -> f64 {
        drop(self.stop);
        self.relays
            .into_iter()
            .map(|relay| relay.join().unwrap())
            .sum()
    }
}

/// The same for every relay: accept, do something with each connection, until told to stop.
fn relay<F, Fut>(listener: std::net::TcpListener, each: F) -> (oneshot::Sender<()>, JoinHandle<f64>)
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let (stop, stopped) = oneshot::channel();
    let handle = thread(move || async move {
        let listener = TcpListener::from_std(listener).unwrap();
        let serve = async {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                tcp.set_nodelay(true).unwrap();
                tokio::spawn(each(tcp));
            }
        };
        tokio::select! { _ = stopped => {}, () = serve => {} }
    });
    (stop, handle)
}

fn chain_tcp(target: std::net::SocketAddr) -> Chain {
    let (first, door) = bound();
    let (second, between) = bound();
    let forward = |to: std::net::SocketAddr| {
        move |mut near: TcpStream| async move {
            let mut far = TcpStream::connect(to).await.unwrap();
            far.set_nodelay(true).unwrap();
            let _ =
                tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, CHUNK, CHUNK).await;
        }
    };
    let (stop, server) = relay(first, forward(between));
    let (stop_too, agent) = relay(second, forward(target));
    Chain {
        door,
        stop: vec![stop, stop_too],
        relays: vec![server, agent],
    }
}

fn chain_carrier(cluster: &Cluster, target: std::net::SocketAddr) -> Chain {
    let (door_listener, door) = bound();
    let (link_listener, address) = bound();
    let server = cluster.server_side(&cluster.server("server-1"));
    let agent = cluster.agent_side(&cluster.agent("node-1"));
    let (stop, stopped) = oneshot::channel::<()>();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let server = thread(move || async move {
        let tcp = accepted(link_listener).await;
        let link = tls::accept(tcp, server.0, server.1, &TlsOptions::server())
            .await
            .unwrap();
        let live = LiveDials::new(1 << 40);
        let listener = TcpListener::from_std(door_listener).unwrap();
        ready.send(()).unwrap();
        let serve = async {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                tcp.set_nodelay(true).unwrap();
                let (link, live) = (link.clone(), live.clone());
                tokio::spawn(async move {
                    let mut stream = link.open().await.unwrap();
                    stream.send.send(Bytes::from_static(b"dial")).await.unwrap();
                    let guard = live.register();
                    splice(tcp, stream, LocalSide::FrontEnd, Early::default(), &guard).await;
                });
            }
        };
        tokio::select! { _ = stopped => {}, () = serve => {} }
    });
    let agent = thread(move || async move {
        let name = address.to_string().parse().unwrap();
        let link = tls::connect(&name, agent.0, agent.1, None, &TlsOptions::agent())
            .await
            .unwrap();
        link.set_stream_limit(4096);
        let live = LiveDials::new(1 << 40);
        while let Ok(mut stream) = link.accept().await {
            let live = live.clone();
            tokio::spawn(async move {
                stream.recv.recv(4).await.unwrap();
                let tcp = TcpStream::connect(target).await.unwrap();
                tcp.set_nodelay(true).unwrap();
                let guard = live.register();
                splice(tcp, stream, LocalSide::Target, Early::default(), &guard).await;
            });
        }
    });
    is_ready.recv().unwrap();
    Chain {
        door,
        stop: vec![stop],
        relays: vec![server, agent],
    }
}

/// A target: reads a request; the first byte says whether to answer it or to send so many MiB.
fn target() -> std::net::SocketAddr {
    let (listener, address) = bound();
    let (stop, _) = relay(listener, |mut tcp| async move {
        let mut request = [0; REQUEST];
        while tcp.read_exact(&mut request).await.is_ok() {
            if request[0] == 0 {
                tcp.write_all(&request).await.unwrap();
            } else {
                let mib = usize::from(u16::from_be_bytes([request[1], request[2]]));
                write_all(&mut tcp, mib << 20).await;
            }
        }
    });
    std::mem::forget(stop);
    address
}

fn on_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

fn chain_bulk(chain: Chain, mib: usize) -> Bulk {
    let took = on_runtime(async {
        let mut tcp = TcpStream::connect(chain.door).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let mut request = [0; REQUEST];
        request[0] = 1;
        request[1..3].copy_from_slice(&(mib as u16).to_be_bytes());
        let start = Instant::now();
        tcp.write_all(&request).await.unwrap();
        read_all(&mut tcp, mib << 20).await;
        start.elapsed()
    });
    bulk(mib << 20, took, chain.end())
}

/// Medians in microseconds: a request on an open connection, and one with its connection.
fn chain_latency(chain: Chain) -> (f64, f64) {
    let answers = on_runtime(async {
        let exchange = async |tcp: &mut TcpStream| {
            let mut answer = [0; REQUEST];
            tcp.write_all(&[0; REQUEST]).await.unwrap();
            tcp.read_exact(&mut answer).await.unwrap();
        };
        let mut tcp = TcpStream::connect(chain.door).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let (mut trips, mut dials) = (Vec::new(), Vec::new());
        for _ in 0..3000 {
            let start = Instant::now();
            exchange(&mut tcp).await;
            trips.push(start.elapsed().as_secs_f64() * 1e6);
        }
        for _ in 0..2000 {
            let start = Instant::now();
            let mut tcp = TcpStream::connect(chain.door).await.unwrap();
            tcp.set_nodelay(true).unwrap();
            exchange(&mut tcp).await;
            dials.push(start.elapsed().as_secs_f64() * 1e6);
        }
        (median(&mut trips), median(&mut dials))
    });
    chain.end();
    answers
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn row(name: &str, runs: &[Bulk]) {
    let mut rates: Vec<f64> = runs.iter().map(|run| run.rate).collect();
    let mut cpus: Vec<f64> = runs.iter().map(|run| run.cpu).collect();
    println!(
        "{name:34} {:7.0} MB/s  {:5.2} CPU-s/GiB",
        median(&mut rates),
        median(&mut cpus)
    );
}

fn main() {
    let (rounds, mib) = (number("ROUNDS", 5), number("MIB", 512));
    let rows = std::env::var("ROWS").unwrap_or_else(|_| "hop,chain,latency".to_owned());
    let bytes = mib << 20;
    let cluster = Cluster::new("bench");
    if rows.contains("hop") {
        let mut runs: [Vec<Bulk>; 3] = Default::default();
        for _ in 0..rounds {
            runs[0].push(hop_tcp(bytes));
            runs[1].push(hop_raw_tls(&cluster, bytes));
            runs[2].push(hop_carrier(&cluster, bytes));
        }
        for (name, runs) in ["hop: tcp", "hop: tokio-rustls", "hop: tls carrier"]
            .iter()
            .zip(&runs)
        {
            row(name, runs);
        }
    }
    let to = target();
    if rows.contains("chain") {
        let mut runs: [Vec<Bulk>; 2] = Default::default();
        for _ in 0..rounds {
            runs[0].push(chain_bulk(chain_tcp(to), mib));
            runs[1].push(chain_bulk(chain_carrier(&cluster, to), mib));
        }
        row("chain: two tcp relays", &runs[0]);
        row("chain: tls carrier", &runs[1]);
    }
    if rows.contains("latency") {
        let mut medians: [Vec<f64>; 4] = Default::default();
        for _ in 0..rounds {
            let (trip, dial) = chain_latency(chain_tcp(to));
            medians[0].push(trip);
            medians[1].push(dial);
            let (trip, dial) = chain_latency(chain_carrier(&cluster, to));
            medians[2].push(trip);
            medians[3].push(dial);
        }
        let names = [
            "two tcp relays: round trip",
            "two tcp relays: new connection",
            "tls carrier: round trip",
            "tls carrier: new connection",
        ];
        for (name, values) in names.iter().zip(&mut medians) {
            println!("{name:34} {:7.1} us", median(values));
        }
    }
}
