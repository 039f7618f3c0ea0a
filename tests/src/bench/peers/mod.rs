//! Who is measured. One row for each peer; another one is a row, a kind and a file.

pub mod konnectivity;
pub mod plain;
pub mod towline;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::door::Door;
use super::failure::{During, Failure, Result};
use super::process::{Launch, Process, START};
use super::wire::{MESSAGE_BYTES, Request};
use crate::emulator::line::Path as LinePath;

/// One attempt to get through a chain takes no longer.
const TRY: Duration = Duration::from_secs(3);

/// The peer that ratios are taken against.
pub const BASE: &str = "relay";

/// One way to reach the target.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    pub name: &'static str,
    pub about: &'static str,
    pub kind: Kind,
}

/// How a peer is started.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    Direct,
    Relay,
    Towline {
        carrier: Carrier,
        jumbo: bool,
        door: Front,
    },
    Konnectivity(konnectivity::Mode),
}

/// Which of our doors the front end uses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Front {
    Connect,
    Grpc,
}

/// The carrier that the daemons are told to use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Carrier {
    Quic,
    Tls,
}

/// The table.
pub const PEERS: &[Peer] = &[
    Peer {
        name: "direct",
        about: "client to target, TCP",
        kind: Kind::Direct,
    },
    Peer {
        name: BASE,
        about: "Unix socket, relay, TCP, relay, target: no crypto",
        kind: Kind::Relay,
    },
    Peer {
        name: "towline-quic",
        about: "datagrams of at most 1,452 bytes",
        kind: Kind::Towline {
            carrier: Carrier::Quic,
            jumbo: false,
            door: Front::Connect,
        },
    },
    Peer {
        name: "towline-quic-jumbo",
        about: "datagrams of at most 6,500 bytes",
        kind: Kind::Towline {
            carrier: Carrier::Quic,
            jumbo: true,
            door: Front::Connect,
        },
    },
    Peer {
        name: "towline-tls",
        about: "TLS 1.3 over TCP",
        kind: Kind::Towline {
            carrier: Carrier::Tls,
            jumbo: false,
            door: Front::Connect,
        },
    },
    Peer {
        name: "towline-quic-grpc",
        about: "datagrams of at most 1,452 bytes, the front end speaks gRPC",
        kind: Kind::Towline {
            carrier: Carrier::Quic,
            jumbo: false,
            door: Front::Grpc,
        },
    },
    Peer {
        name: "towline-tls-grpc",
        about: "TLS 1.3 over TCP, the front end speaks gRPC",
        kind: Kind::Towline {
            carrier: Carrier::Tls,
            jumbo: false,
            door: Front::Grpc,
        },
    },
    Peer {
        name: "konnectivity-grpc",
        about: "Konnectivity 0.36, gRPC over a Unix socket",
        kind: Kind::Konnectivity(konnectivity::Mode::Grpc),
    },
    Peer {
        name: "konnectivity-connect",
        about: "Konnectivity 0.36, CONNECT over a Unix socket",
        kind: Kind::Konnectivity(konnectivity::Mode::Connect),
    },
    Peer {
        name: "konnectivity-connect-tls",
        about: "Konnectivity 0.36, CONNECT over TCP with mutual TLS",
        kind: Kind::Konnectivity(konnectivity::Mode::ConnectTls),
    },
];

/// What lies between the two halves of a chain.
#[derive(Clone, Debug)]
pub enum Route {
    /// Everything on the loopback device.
    Loopback,
    /// Two namespaces, held by these processes; the near half is reached at this address.
    Namespaces { near: u32, far: u32, host: IpAddr },
    /// A UDP forwarder on loopback: outward and inward path.
    Udp { outward: LinePath, inward: LinePath },
}

impl Route {
    /// Whose namespace the front end runs in.
    fn near(&self) -> Option<u32> {
        match self {
            Self::Namespaces { near, .. } => Some(*near),
            Self::Loopback | Self::Udp { .. } => None,
        }
    }

    /// Whose namespace the target and its relay or agent run in.
    fn far(&self) -> Option<u32> {
        match self {
            Self::Namespaces { far, .. } => Some(*far),
            Self::Loopback | Self::Udp { .. } => None,
        }
    }

    /// Address at which the far half reaches the near one.
    fn host(&self) -> IpAddr {
        match self {
            Self::Namespaces { host, .. } => *host,
            Self::Loopback | Self::Udp { .. } => Ipv4Addr::LOCALHOST.into(),
        }
    }
}

/// Where a chain is built.
#[derive(Clone, Debug)]
pub struct Place {
    /// For sockets and logs; exists.
    pub directory: PathBuf,
    pub route: Route,
    /// UDP socket buffer, as the daemons' flag takes it.
    pub udp_buffer: Option<&'static str>,
}

/// A running chain. Dropping it kills its processes.
#[derive(Debug)]
pub struct Chain {
    pub door: Door,
    pub target: Process,
    /// Server, or front relay.
    pub front: Option<Process>,
    /// Agent, or back relay.
    pub back: Option<Process>,
    /// The UDP forwarder, if the route has one.
    pub line: Option<Process>,
    /// Where the server takes links.
    pub link: Option<SocketAddr>,
}

impl Peer {
    /// Starts a chain and proves with one round trip that it works.
    pub async fn start(&self, stage: &towline::Stage, place: &Place) -> Result<Chain> {
        let target = target(place).await?;
        let chain = match self.kind {
            Kind::Direct => plain::direct(target, place),
            Kind::Relay => plain::relay(target, place).await,
            Kind::Towline {
                carrier,
                jumbo,
                door,
            } => towline::start(stage, target, place, carrier, jumbo, door).await,
            Kind::Konnectivity(mode) => konnectivity::start(stage, target, place, mode),
        };
        let mut chain = chain.during(self.name)?;
        chain.wait_until_it_works(START).await.during(self.name)?;
        Ok(chain)
    }

    /// Whether it is Towline with large datagrams.
    #[must_use]
    pub fn is_jumbo(&self) -> bool {
        matches!(self.kind, Kind::Towline { jumbo: true, .. })
    }

    /// The carrier, if it is Towline.
    #[must_use]
    pub fn carrier(&self) -> Option<Carrier> {
        match self.kind {
            Kind::Towline { carrier, .. } => Some(carrier),
            Kind::Direct | Kind::Relay | Kind::Konnectivity(_) => None,
        }
    }

    /// Whether it is Konnectivity.
    #[must_use]
    pub fn is_konnectivity(&self) -> bool {
        matches!(self.kind, Kind::Konnectivity(_))
    }

    /// Whether its front end speaks gRPC, which has no half-close.
    #[must_use]
    pub fn speaks_grpc(&self) -> bool {
        matches!(
            self.kind,
            Kind::Konnectivity(konnectivity::Mode::Grpc)
                | Kind::Towline {
                    door: Front::Grpc,
                    ..
                }
        )
    }
}

/// A target process and where it listens, always on the loopback of its namespace.
async fn target(place: &Place) -> Result<(Process, SocketAddr)> {
    let launch = Launch::own(
        "target",
        &place.directory,
        &["target", "--listen", "127.0.0.1:0"],
    )?;
    let mut process = launch.within(place.route.far()).start()?;
    let address = process.ready(START).await?;
    let address = address.parse().during("target: address")?;
    Ok((process, address))
}

impl Chain {
    /// Waits for the first dial that works, and says how long it took.
    pub async fn wait_until_it_works(&mut self, limit: Duration) -> Result<Duration> {
        let began = Instant::now();
        loop {
            let Err(error) = try_once(&self.door).await else {
                return Ok(began.elapsed());
            };
            for process in [&mut self.front, &mut self.back].into_iter().flatten() {
                process.check()?;
            }
            if began.elapsed() > limit {
                let silent = format!("no dial works after {} s: {error}", limit.as_secs());
                let front = self
                    .front
                    .as_ref()
                    .map(|front| front.failure("").to_string());
                let back = self.back.as_ref().map(|back| back.failure("").to_string());
                return Err(Failure::new(format!(
                    "{silent}\n  {}\n  {}",
                    front.unwrap_or_default(),
                    back.unwrap_or_default()
                )));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

async fn try_once(door: &Door) -> std::io::Result<()> {
    let once = async {
        let mut pipe = door.open().await?;
        let mut reply = [0; MESSAGE_BYTES];
        pipe.write_all(&Request::Ask.encode()).await?;
        pipe.read_exact(&mut reply).await?;
        Ok(())
    };
    let tried = tokio::time::timeout(TRY, once).await;
    tried.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?
}

/// A port that is free for TCP and UDP now, below the range that the kernel hands out to clients, so
/// that it is still free when a server comes back to it.
pub fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + u16::try_from(std::process::id() % 10_000).unwrap_or(0);
    for _ in 0..1000 {
        let port = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed) % 2_000);
        let address = (Ipv4Addr::LOCALHOST, port);
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return Ok(port);
        }
    }
    Err(Failure::new("no free port between 20000 and 32000"))
}

/// The path of a file in a place, as text.
fn text(path: &Path) -> Result<String> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| Failure::new(format!("{path:?} is not UTF-8")))
}
