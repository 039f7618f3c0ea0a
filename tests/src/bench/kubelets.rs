//! The kubelets of many nodes in one process: each with an address and a certificate of its own,
//! all on one port. They do handshakes and nothing else.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::failure::{During, Result};
use super::{agents, process, target};
use crate::authority::Authority;
use crate::scratch;

/// A handshake that takes longer has been given up by the other side.
const PATIENCE: Duration = Duration::from_secs(10);

fn file(number: usize, ending: &str) -> String {
    format!("kubelet-{number}.{ending}")
}

/// Makes certificates for the kubelets of so many nodes.
pub fn mint(authority: &Authority, directory: &Path, count: usize) -> Result<()> {
    for number in 0..count {
        let ip = agents::kubelet_address(number)?;
        let name = agents::name(number);
        let pair = authority.kubelet_leaf(&name, &[ip]).sign();
        let write = |ending: &str, pem: &str| {
            scratch::replace(&directory.join(file(number, ending)), pem).during(&name)
        };
        write("crt", &pair.cert_pem)?;
        write("key", &pair.key_pem)?;
    }
    Ok(())
}

/// Listens for all of them, says `ready`, and ends with standard input.
pub async fn run(port: u16, directory: &Path, count: usize) -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).during("kubelets: descriptors")?;
    for number in 0..count {
        let address = SocketAddr::new(agents::kubelet_address(number)?, port);
        let listener = TcpListener::bind(address).await;
        let listener = listener.during(format_args!("kubelets: bind {address}"))?;
        let path = |ending: &str| directory.join(file(number, ending));
        let tls = target::acceptor(&path("crt"), &path("key")).during("kubelets")?;
        tokio::spawn(serve(listener, tls));
    }
    process::say_ready(&count.to_string());
    let end = tokio::task::spawn_blocking(process::wait_for_the_end).await;
    end.during("kubelets: standard input")?
}

async fn serve(listener: TcpListener, tls: TlsAcceptor) {
    // A failed accept (a client that left at once) concerns that client only.
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(shake(tls.clone(), stream));
        }
    }
}

/// Until the other side has said goodbye.
async fn shake(tls: TlsAcceptor, stream: TcpStream) {
    let whole = async {
        let mut stream = tls.accept(stream).await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(PATIENCE, whole).await;
}
