//! A network path on loopback between an agent and a server: one port, UDP and TCP, that a
//! scenario can block, cut, heal, or give a new source address. No root, no kernel feature.
//!
//! A cut loses UDP packets and holds TCP bytes back, as a pulled cable does; nothing is told to
//! either end. `kill_tcp` resets instead.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// What the path lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Weather {
    udp: bool,
    tcp: bool,
    /// Counts kills; a TCP connection of an older count is reset.
    age: u64,
    /// Counts moves; UDP clients of an older count get a new source address.
    place: u8,
}

/// The path.
pub struct Forwarder {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    passed: Arc<Passed>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

/// How much went through.
#[derive(Default)]
struct Passed {
    udp_packets: AtomicU64,
    tcp_connections: AtomicU64,
}

impl Forwarder {
    /// A clear path to `server`.
    pub async fn start(server: SocketAddr) -> io::Result<Self> {
        Self::start_as(server, true, true).await
    }

    /// A path on which UDP never works.
    pub async fn start_without_udp(server: SocketAddr) -> io::Result<Self> {
        Self::start_as(server, false, true).await
    }

    async fn start_as(server: SocketAddr, udp: bool, tcp: bool) -> io::Result<Self> {
        let (listener, socket) = both_on_one_port().await?;
        let address = listener.local_addr()?;
        let weather = watch::Sender::new(Weather {
            udp,
            tcp,
            age: 0,
            place: 1,
        });
        let passed = Arc::new(Passed::default());
        let tasks = [
            tokio::spawn(forward_tcp(
                listener,
                server,
                weather.subscribe(),
                Arc::clone(&passed),
            )),
            tokio::spawn(forward_udp(
                Arc::new(socket),
                server,
                weather.subscribe(),
                Arc::clone(&passed),
            )),
        ];
        Ok(Self {
            address,
            weather,
            passed,
            _tasks: tasks.map(AbortOnDropHandle::new),
        })
    }

    /// What an agent is told as the server's address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether UDP passes from now on.
    pub fn set_udp(&self, open: bool) {
        self.weather.send_modify(|weather| weather.udp = open);
    }

    /// Nothing passes any more.
    pub fn cut(&self) {
        self.weather
            .send_modify(|weather| (weather.udp, weather.tcp) = (false, false));
    }

    /// Everything passes again.
    pub fn heal(&self) {
        self.weather
            .send_modify(|weather| (weather.udp, weather.tcp) = (true, true));
    }

    /// Resets every TCP connection.
    pub fn kill_tcp(&self) {
        self.weather.send_modify(|weather| weather.age += 1);
    }

    /// From now on the server sees every client's UDP packets come from another address.
    pub fn move_clients(&self) {
        self.weather.send_modify(|weather| weather.place += 1);
    }

    /// UDP packets that went through so far, both ways.
    pub fn udp_packets(&self) -> u64 {
        self.passed.udp_packets.load(Ordering::Relaxed)
    }

    /// TCP connections that were made so far.
    pub fn tcp_connections(&self) -> u64 {
        self.passed.tcp_connections.load(Ordering::Relaxed)
    }
}

/// A TCP listener and a UDP socket with the same port number.
pub async fn both_on_one_port() -> io::Result<(TcpListener, UdpSocket)> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..64 {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        match UdpSocket::bind(listener.local_addr()?).await {
            Ok(socket) => return Ok((listener, socket)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn forward_tcp(
    listener: TcpListener,
    server: SocketAddr,
    mut weather: watch::Receiver<Weather>,
    passed: Arc<Passed>,
) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { return };
                passed.tcp_connections.fetch_add(1, Ordering::Relaxed);
                connections.spawn(one_connection(client, server, weather.clone()));
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            changed = weather.changed() => if changed.is_err() { return },
        }
    }
}

async fn one_connection(
    client: TcpStream,
    server: SocketAddr,
    mut weather: watch::Receiver<Weather>,
) {
    let age = weather.borrow_and_update().age;
    let killed = weather.clone();
    let relay = async {
        // In a cut even the server's SYN-ACK is lost; here the client only sees silence.
        weather.wait_for(|weather| weather.tcp).await.ok()?;
        let server = TcpSocket::new_v4().ok()?.connect(server).await.ok()?;
        for stream in [&client, &server] {
            stream.set_nodelay(true).ok()?;
        }
        Some(server)
    };
    let mut killed_early = killed.clone();
    let server = tokio::select! {
        server = relay => server,
        _ = killed_early.wait_for(|weather| weather.age != age) => None,
    };
    let Some(server) = server else {
        let _ = client.set_zero_linger();
        return;
    };
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let mut up_weather = killed.clone();
    let mut down_weather = killed.clone();
    let mut killed = killed;
    tokio::select! {
        () = async {
            tokio::join!(
                one_way(client_read, server_write, &mut up_weather),
                one_way(server_read, client_write, &mut down_weather),
            );
        } => {}
        _ = killed.wait_for(|weather| weather.age != age) => {}
    }
}

/// Copies while the path is open; an error of one side becomes an end of the other, and both
/// are dropped, which resets what was unread.
async fn one_way(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    weather: &mut watch::Receiver<Weather>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(n) = from.read(&mut buffer).await else {
            let _ = to.as_ref().set_zero_linger();
            return;
        };
        if weather.wait_for(|weather| weather.tcp).await.is_err() {
            return;
        }
        if n == 0 {
            let _ = to.shutdown().await;
            return;
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            let _ = from.as_ref().set_zero_linger();
            return;
        }
    }
}

/// One client's way to the server.
struct Way {
    socket: Arc<UdpSocket>,
    place: u8,
    _back: AbortOnDropHandle<()>,
}

async fn forward_udp(
    front: Arc<UdpSocket>,
    server: SocketAddr,
    weather: watch::Receiver<Weather>,
    passed: Arc<Passed>,
) {
    let ways: Mutex<HashMap<SocketAddr, Way>> = Mutex::new(HashMap::new());
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok((n, client)) = front.recv_from(&mut buffer).await else {
            // A port-unreachable of a client that has gone; the socket itself is well.
            continue;
        };
        let now = *weather.borrow();
        if !now.udp {
            continue;
        }
        let known = {
            let ways = ways.lock().expect("no holder panics");
            ways.get(&client)
                .filter(|way| way.place == now.place)
                .map(|way| Arc::clone(&way.socket))
        };
        let socket = match known {
            Some(socket) => socket,
            None => {
                let from = Ipv4Addr::new(127, 0, 0, now.place);
                let Ok(socket) = UdpSocket::bind((from, 0)).await else {
                    continue;
                };
                let socket = Arc::new(socket);
                let back = tokio::spawn(bring_back(
                    Arc::clone(&socket),
                    Arc::clone(&front),
                    client,
                    weather.clone(),
                    Arc::clone(&passed),
                ));
                let way = Way {
                    socket: Arc::clone(&socket),
                    place: now.place,
                    _back: AbortOnDropHandle::new(back),
                };
                ways.lock().expect("no holder panics").insert(client, way);
                socket
            }
        };
        if socket.send_to(&buffer[..n], server).await.is_ok() {
            passed.udp_packets.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn bring_back(
    socket: Arc<UdpSocket>,
    front: Arc<UdpSocket>,
    client: SocketAddr,
    weather: watch::Receiver<Weather>,
    passed: Arc<Passed>,
) {
    let mut buffer = vec![0; 65_536];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((n, _)) if weather.borrow().udp => {
                if front.send_to(&buffer[..n], client).await.is_ok() {
                    passed.udp_packets.fetch_add(1, Ordering::Relaxed);
                }
            }
            // Lost in the cut, or the server's port was closed for a moment.
            Ok(_) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::expect;
    use crate::target::{Behaviour, Target};

    #[tokio::test]
    async fn a_cut_holds_tcp_bytes_until_it_heals() {
        let target = Target::start(Behaviour::Echo).await.unwrap();
        let path = Forwarder::start(target.address()).await.unwrap();
        let mut stream = TcpStream::connect(path.address()).await.unwrap();
        let mut buffer = [0; 4];
        stream.write_all(b"ping").await.unwrap();
        expect("the echo", stream.read_exact(&mut buffer))
            .await
            .unwrap();
        path.cut();
        stream.write_all(b"pong").await.unwrap();
        path.heal();
        expect("the echo", stream.read_exact(&mut buffer))
            .await
            .unwrap();
        assert_eq!(&buffer, b"pong");
        path.kill_tcp();
        assert!(!matches!(
            expect("the reset", stream.read(&mut buffer)).await,
            Ok(1..)
        ));
    }

    #[tokio::test]
    async fn a_moved_client_comes_from_another_address() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let path = Forwarder::start(server.local_addr().unwrap())
            .await
            .unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut buffer = [0; 16];
        let mut seen = Vec::new();
        for _ in 0..2 {
            client.send_to(b"x", path.address()).await.unwrap();
            let (_, from) = expect("the packet", server.recv_from(&mut buffer))
                .await
                .unwrap();
            server.send_to(b"y", from).await.unwrap();
            expect("the answer", client.recv_from(&mut buffer))
                .await
                .unwrap();
            seen.push(from.ip());
            path.move_clients();
        }
        assert_ne!(seen[0], seen[1]);
    }
}
