//! The two sockets of the link listener: UDP and TCP at one address and port.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use towline_link::carrier::CarrierMode;
use towline_link::process::bind;
use towline_link::quic::{BindError, EndpointKeys, KeysError, QuicListener};

use crate::config::LinkConfig;
use crate::trust::Snapshot;

/// Why a listener could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The keys of the state directory.
    #[error("--state-dir: {0}")]
    Keys(#[from] KeysError),
    /// TCP.
    #[error("cannot listen on TCP {address}: {source}")]
    Tcp {
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// UDP.
    #[error(transparent)]
    Udp(#[from] BindError),
}

/// What agents connect to.
pub struct Sockets {
    /// UDP, unless `--carrier tls`.
    pub quic: Option<Arc<QuicListener>>,
    /// TCP, unless `--carrier quic`.
    pub tcp: Option<TcpListener>,
    /// Where both are.
    pub address: SocketAddr,
}

/// Attempts to find a port that is free for both, when any port will do.
const ATTEMPTS: usize = 16;

/// Binds what `--carrier` asks for. On a machine without IPv6 `[::]` means every IPv4 address.
pub fn bind(config: &LinkConfig, trust: Option<&Snapshot>) -> Result<Sockets, ListenError> {
    let keys = match &config.state_dir {
        Some(directory) => EndpointKeys::load_or_create(directory)?,
        None => EndpointKeys::ephemeral()?,
    };
    let mut attempt = 1;
    let address = config.listen;
    loop {
        match bind_at(address, config, trust, &keys) {
            Err(error) if address.port() == 0 && attempt < ATTEMPTS && is_in_use(&error) => {
                attempt += 1;
            }
            other => return other,
        }
    }
}

fn bind_at(
    wanted: SocketAddr,
    config: &LinkConfig,
    trust: Option<&Snapshot>,
    keys: &EndpointKeys,
) -> Result<Sockets, ListenError> {
    let mut address = wanted;
    let tcp = match config.carrier {
        CarrierMode::Quic => None,
        CarrierMode::Auto | CarrierMode::Tls => {
            let listener = bind_tcp(address)?;
            address = local(&listener, address)?;
            Some(listener)
        }
    };
    let quic = match (config.carrier, trust) {
        // Without an identity of our own only legacy agents come, over TCP.
        (CarrierMode::Tls, _) | (_, None) => None,
        (CarrierMode::Auto | CarrierMode::Quic, Some(trust)) => {
            let listener = QuicListener::bind(
                address,
                Arc::clone(&trust.link_tls),
                Arc::clone(&trust.agents),
                keys,
                config.quic.clone(),
            )?;
            let bound = listener.local_address();
            address =
                bound.map_err(|source| ListenError::Udp(BindError::Socket { address, source }))?;
            Some(Arc::new(listener))
        }
    };
    Ok(Sockets { quic, tcp, address })
}

/// A TCP listener; on a machine without IPv6 `[::]` means every IPv4 address.
pub fn bind_tcp(address: SocketAddr) -> Result<TcpListener, ListenError> {
    bind::tcp(address)
        .and_then(TcpListener::from_std)
        .map_err(|source| ListenError::Tcp { address, source })
}

/// Where a listener is.
pub fn local(listener: &TcpListener, asked: SocketAddr) -> Result<SocketAddr, ListenError> {
    listener.local_addr().map_err(|source| ListenError::Tcp {
        address: asked,
        source,
    })
}

fn kind(error: &ListenError) -> Option<&io::Error> {
    match error {
        ListenError::Tcp { source, .. } | ListenError::Udp(BindError::Socket { source, .. }) => {
            Some(source)
        }
        _ => None,
    }
}

fn is_in_use(error: &ListenError) -> bool {
    kind(error).is_some_and(|source| source.kind() == io::ErrorKind::AddrInUse)
}
