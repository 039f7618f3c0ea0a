//! One address in front of several servers, each connection to the next one: what reaching all of them
//! relies on where an agent is told of one address only.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

/// A balancer. Its connections end with it.
pub struct Balancer {
    address: SocketAddr,
    servers: Arc<Mutex<Vec<SocketAddr>>>,
    _task: AbortOnDropHandle<()>,
}

impl Balancer {
    /// In front of these servers.
    pub async fn start(servers: &[SocketAddr]) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let servers = Arc::new(Mutex::new(servers.to_vec()));
        let task = tokio::spawn(serve(listener, Arc::clone(&servers)));
        Ok(Self {
            address,
            servers,
            _task: AbortOnDropHandle::new(task),
        })
    }

    /// Where agents connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// New connections go to these servers.
    pub fn lead(&self, servers: &[SocketAddr]) {
        *self.servers.lock().expect("no holder panics") = servers.to_vec();
    }
}

async fn serve(listener: TcpListener, servers: Arc<Mutex<Vec<SocketAddr>>>) {
    let mut connections = JoinSet::new();
    let mut turn = 0;
    loop {
        tokio::select! {
            connection = listener.accept() => {
                let Ok((mut near, _)) = connection else { return };
                let server = {
                    let servers = servers.lock().expect("no holder panics");
                    servers.get(turn % servers.len().max(1)).copied()
                };
                turn += 1;
                connections.spawn(async move {
                    // A server that is away refuses, and so do we, by closing.
                    if let Some(server) = server
                        && let Ok(mut far) = TcpStream::connect(server).await
                    {
                        let _ = copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}
