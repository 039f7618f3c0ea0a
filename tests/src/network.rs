//! Addresses as a real cluster has them, on loopback: the agent resolves, judges and permits
//! `10.x` addresses, and only the last step, opening the socket, is led to a port of ours.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use tokio::net::TcpStream;
use towline_agent::connect::Network;
use towline_agent::policy::Permit;
use towline_proto::target::HostName;

/// What lies behind the nodes. Clones share.
#[derive(Clone, Default)]
pub struct Wire {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    places: HashMap<SocketAddr, SocketAddr>,
    black_holes: HashSet<SocketAddr>,
    names: HashMap<String, VecDeque<Vec<IpAddr>>>,
    /// Every address to which a connection was tried, in order.
    tried: Vec<SocketAddr>,
    /// Names that were looked up, in order.
    resolved: Vec<String>,
}

impl Wire {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the wire panics")
    }

    /// Connections to `address` end at `place`.
    pub fn lead(&self, address: SocketAddr, place: SocketAddr) {
        self.lock().places.insert(address, place);
    }

    /// Connection attempts to `address` are never answered.
    pub fn swallow(&self, address: SocketAddr) {
        self.lock().black_holes.insert(address);
    }

    /// Each look-up of `name` gives the next of these answers; the last one stays.
    pub fn name(&self, name: &str, answers: &[&[IpAddr]]) {
        let answers = answers.iter().map(|answer| answer.to_vec()).collect();
        self.lock().names.insert(name.to_owned(), answers);
    }

    /// Every address to which a connection was tried.
    pub fn tried(&self) -> Vec<SocketAddr> {
        self.lock().tried.clone()
    }

    /// Every name that was looked up.
    pub fn resolved(&self) -> Vec<String> {
        self.lock().resolved.clone()
    }
}

/// One node's view of the wire.
pub struct MappedNetwork {
    wire: Wire,
    local: Vec<IpAddr>,
}

impl MappedNetwork {
    /// For a node with these addresses of its own, loopback aside.
    pub fn new(wire: &Wire, local: &[IpAddr]) -> Arc<Self> {
        Arc::new(Self {
            wire: wire.clone(),
            local: local.to_vec(),
        })
    }
}

#[async_trait]
impl Network for MappedNetwork {
    async fn resolve(&self, name: &HostName) -> io::Result<Vec<IpAddr>> {
        let mut state = self.wire.lock();
        state.resolved.push(name.to_string());
        match state.names.get_mut(name.as_str()) {
            Some(answers) if answers.len() > 1 => Ok(answers.pop_front().unwrap_or_default()),
            Some(answers) => Ok(answers.front().cloned().unwrap_or_default()),
            None => Err(io::Error::new(io::ErrorKind::NotFound, "no such name")),
        }
    }

    async fn connect(&self, permit: Permit) -> io::Result<TcpStream> {
        let address = permit.address();
        let (place, swallowed) = {
            let mut state = self.wire.lock();
            state.tried.push(address);
            (
                state.places.get(&address).copied(),
                state.black_holes.contains(&address),
            )
        };
        if swallowed {
            std::future::pending::<()>().await;
        }
        let Some(place) = place else {
            return Err(io::ErrorKind::HostUnreachable.into());
        };
        let stream = TcpStream::connect(place).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn is_local(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.local.contains(&ip)
    }
}
