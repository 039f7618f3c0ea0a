//! One attempt to reach a server: its name resolved anew, the carriers raced, the peer verified.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use async_trait::async_trait;
use rustls::ClientConfig;
use tokio::task::JoinSet;
use towline_link::carrier::{Carrier, CarrierKind, CarrierMode};
use towline_link::connect::{BothFailed, CarrierMemory, Won, connect_auto};
use towline_link::error::ConnectError;
use towline_link::quic::{QuicEndpoint, UdpBuffers};
use towline_link::tls::{self, HttpProxy, TlsOptions};
use towline_pki::PeerVerifier;
use towline_proto::limits;
use towline_proto::reason::Reason;
use towline_proto::target::{Host, Target};

use crate::endpoints::ServerAddresses;
use crate::trust::Snapshot;

/// Why no carrier led to a server.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// Only one carrier was tried.
    #[error(transparent)]
    One(#[from] ConnectError),
    /// Both were.
    #[error(transparent)]
    Both(#[from] BothFailed),
    /// Only QUIC may be used and there is no UDP socket.
    #[error("quic is the only carrier allowed, but no UDP socket could be made at the start")]
    NoUdp,
}

impl ReachError {
    /// What it means for the back-off and for metrics.
    pub fn reason(&self) -> Reason {
        match self {
            ReachError::One(error) => error.reason(),
            ReachError::Both(error) => error.reason(),
            ReachError::NoUdp => Reason::LocalResources,
        }
    }
}

/// How a server is met over TCP; another one than the kernel's is for simulations.
#[async_trait]
pub trait Tcp: Send + Sync {
    /// A verified tls link, within the time of a handshake.
    async fn connect(
        &self,
        server: &Target,
        config: Arc<ClientConfig>,
        verifier: Arc<PeerVerifier>,
        proxy: Option<&HttpProxy>,
    ) -> Result<Arc<dyn Carrier>, ConnectError>;
}

/// The kernel's.
#[derive(Debug)]
pub struct KernelTcp;

#[async_trait]
impl Tcp for KernelTcp {
    async fn connect(
        &self,
        server: &Target,
        config: Arc<ClientConfig>,
        verifier: Arc<PeerVerifier>,
        proxy: Option<&HttpProxy>,
    ) -> Result<Arc<dyn Carrier>, ConnectError> {
        tls::connect(server, config, verifier, proxy, &TlsOptions::agent()).await
    }
}

/// What all attempts have in common.
pub struct Reach {
    /// Which carriers may be used.
    pub mode: CarrierMode,
    /// The one UDP socket of the agent, where there is one.
    pub quic: Option<Arc<QuicEndpoint>>,
    /// For the tls carrier.
    pub tcp: Arc<dyn Tcp>,
    /// For the tls carrier, too.
    pub proxy: Option<HttpProxy>,
    /// What worked last.
    pub memory: CarrierMemory,
    /// Where the servers are: no dial may go there.
    pub addresses: ServerAddresses,
}

impl Reach {
    /// Granted UDP buffers, where there is a UDP socket.
    pub fn buffers(&self) -> Option<UdpBuffers> {
        self.quic.as_ref().and_then(|endpoint| endpoint.buffers())
    }

    /// Whether a link on tls should look for a way back to quic.
    pub fn prefers_quic(&self) -> bool {
        self.mode == CarrierMode::Auto
            && self.quic.is_some()
            && !self.buffers().is_some_and(|buffers| buffers.low())
    }

    /// By any carrier that is allowed.
    pub async fn any(
        &self,
        server: &Target,
        trust: &Snapshot,
    ) -> Result<Arc<dyn Carrier>, ReachError> {
        let carrier = match (self.mode, &self.quic) {
            (CarrierMode::Quic, None) => return Err(ReachError::NoUdp),
            (CarrierMode::Quic, Some(_)) => self.quic(server, trust).await?,
            (CarrierMode::Tls, _) | (CarrierMode::Auto, None) => self.tls(server, trust).await?,
            (CarrierMode::Auto, Some(_)) => {
                let name = server.to_string();
                let first = self.memory.first(&name, self.buffers());
                let quic = Box::pin(self.quic(server, trust));
                let tls = Box::pin(self.tls(server, trust));
                let Won { carrier, kind, .. } = connect_auto(first, quic, tls).await?;
                self.memory.worked(&name, kind);
                carrier
            }
        };
        if carrier.kind() == CarrierKind::Quic
            || !self
                .proxy
                .as_ref()
                .is_some_and(|proxy| proxy.applies_to(server))
        {
            self.addresses.reached(server, carrier.remote_address());
        }
        Ok(carrier)
    }

    /// By quic alone: the way back from tls.
    pub async fn only_quic(
        &self,
        server: &Target,
        trust: &Snapshot,
    ) -> Result<Arc<dyn Carrier>, ReachError> {
        let carrier = self.quic(server, trust).await?;
        self.memory.worked(&server.to_string(), CarrierKind::Quic);
        Ok(carrier)
    }

    async fn tls(
        &self,
        server: &Target,
        trust: &Snapshot,
    ) -> Result<Arc<dyn Carrier>, ConnectError> {
        let (config, verifier) = (Arc::clone(&trust.client), Arc::clone(&trust.verifier));
        let proxy = self.proxy.as_ref().filter(|proxy| proxy.applies_to(server));
        let connecting = self.tcp.connect(server, config, verifier, proxy);
        // Every address of the server's name is one of the tunnel's ends, also those that are not
        // tried and those that only the proxy reaches. Nobody waits for a slow resolver.
        let (mut connecting, lookup) = (pin!(connecting), pin!(self.resolve(server)));
        tokio::select! {
            biased;
            connected = &mut connecting => connected,
            _ = lookup => connecting.await,
        }
    }

    /// One address after the other, each with a head start; the first verified one wins.
    async fn quic(
        &self,
        server: &Target,
        trust: &Snapshot,
    ) -> Result<Arc<dyn Carrier>, ConnectError> {
        let Some(endpoint) = &self.quic else {
            return Err(unreachable(server, io::ErrorKind::Unsupported.into()));
        };
        let mut addresses = self.resolve(server).await?.into_iter();
        let mut attempts = JoinSet::new();
        let mut last = unreachable(server, io::ErrorKind::NotFound.into());
        loop {
            let next = addresses.next();
            let more = next.is_some();
            if let Some(address) = next {
                let endpoint = Arc::clone(endpoint);
                let (config, verifier) = (Arc::clone(&trust.client), Arc::clone(&trust.verifier));
                attempts.spawn(async move { endpoint.connect(address, config, &verifier).await });
            }
            let joined = if more {
                match tokio::time::timeout(limits::ADDRESS_STAGGER, attempts.join_next()).await {
                    Ok(joined) => joined,
                    Err(_) => continue,
                }
            } else {
                attempts.join_next().await
            };
            match joined {
                Some(Ok(Ok(link))) => return Ok(Arc::new(link)),
                Some(Ok(Err(error))) => last = error,
                Some(Err(error)) => last = unreachable(server, io::Error::other(error)),
                None if more => {}
                None => return Err(last),
            }
        }
    }

    async fn resolve(&self, server: &Target) -> Result<Vec<SocketAddr>, ConnectError> {
        let name = match &server.host {
            Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, server.port())]),
            Host::Name(name) => name.as_str(),
        };
        let failed = |source| ConnectError::Resolve {
            host: name.to_owned(),
            source,
        };
        let lookup = tokio::net::lookup_host((name, server.port()));
        let found: Vec<_> = tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, lookup)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(failed)?
            .take(limits::SERVER_ADDRESSES)
            .collect();
        if found.is_empty() {
            return Err(failed(io::ErrorKind::NotFound.into()));
        }
        for address in &found {
            self.addresses.reached(server, *address);
        }
        Ok(found)
    }
}

fn unreachable(server: &Target, source: io::Error) -> ConnectError {
    ConnectError::Unreachable {
        server: server.to_string(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_udp_is_a_fault_of_this_machine() {
        assert_eq!(ReachError::NoUdp.reason(), Reason::LocalResources);
    }
}
