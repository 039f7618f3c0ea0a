//! One hop of the plain relay that Towline is compared with: no crypto, no framing, 64 KiB buffers.
//!
//! Two of these make the chain `client -> relay -> TCP -> relay -> target`, one process each, one thread each.

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream, UnixListener};

use super::failure::{During, Result};
use super::process;

/// Beyond 32 KiB larger buffers gained nothing when measured; this is on the safe side.
const BUFFER_BYTES: usize = 64 * 1024;

/// Where a hop listens.
#[derive(Clone, Debug)]
pub enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Relays until the process ends.
pub async fn run(listen: Listen, to: SocketAddr) -> Result<()> {
    match listen {
        Listen::Tcp(address) => {
            let listener = TcpListener::bind(address)
                .await
                .during(format_args!("relay: bind {address}"))?;
            process::say_ready(
                &listener
                    .local_addr()
                    .during("relay: local address")?
                    .to_string(),
            );
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    let _ = stream.set_nodelay(true);
                    tokio::spawn(relay(stream, to));
                }
            }
        }
        Listen::Unix(path) => {
            let listener =
                UnixListener::bind(&path).during(format_args!("relay: bind {}", path.display()))?;
            process::say_ready(&path.display().to_string());
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(relay(stream, to));
                }
            }
        }
    }
}

async fn relay<S: AsyncRead + AsyncWrite + Unpin>(mut near: S, to: SocketAddr) {
    // Either end may leave at any time; the other end then sees its connection closed.
    if let Ok(mut far) = TcpStream::connect(to).await {
        let _ = far.set_nodelay(true);
        let _ =
            copy_bidirectional_with_sizes(&mut near, &mut far, BUFFER_BYTES, BUFFER_BYTES).await;
    }
}
