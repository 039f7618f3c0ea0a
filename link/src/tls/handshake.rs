//! From a TCP connection to a verified link, at both ends.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use rustls::server::Acceptor;
use rustls::{AlertDescription, Error as TlsFailure};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_rustls::{LazyConfigAcceptor, StartHandshake, TlsAcceptor, TlsConnector, TlsStream};
use towline_pki::tls::server_name;
use towline_pki::{PeerError, PeerVerifier};
use towline_proto::limits;
use towline_proto::mux::{Config, Mux, Side};
use towline_proto::reason::Reason;
use towline_proto::target::Target;
use towline_proto::version::ALPN_LINK;

use super::driver::Driver;
use super::link::TlsLink;
use super::proxy::HttpProxy;
use super::read_ahead::{Counters, ReadAhead};
use super::shared::{Flight, Shared};
use super::{TlsOptions, addresses, socket, tunnel};
use crate::carrier::Carrier;
use crate::error::{ConnectError, detail};

/// Takes a connection that a listener accepted: handshake, verification, link. The whole of it
/// has [`limits::HANDSHAKE_TIMEOUT`].
pub async fn accept(
    tcp: TcpStream,
    config: Arc<rustls::ServerConfig>,
    verifier: Arc<PeerVerifier>,
    options: &TlsOptions,
) -> Result<Arc<dyn Carrier>, ConnectError> {
    let unreachable = |source| ConnectError::Unreachable {
        server: "a connection that ended at once".to_owned(),
        source,
    };
    let remote = tcp.peer_addr().map_err(unreachable)?;
    socket::prepare(&tcp).map_err(unreachable)?;
    accept_on(tcp, remote, config, verifier, options).await
}

/// A connection whose first message was read and nothing was answered yet: what it wants to speak
/// decides which door it has come to.
pub struct Arrived {
    start: StartHandshake<ReadAhead<TcpStream>>,
    counters: Arc<Counters>,
    remote: SocketAddr,
}

impl Arrived {
    /// Reads the first message. The caller bounds the time of everything here.
    pub async fn read(tcp: TcpStream) -> Result<Self, ConnectError> {
        let unreachable = |source| ConnectError::Unreachable {
            server: "a connection that ended at once".to_owned(),
            source,
        };
        let remote = tcp.peer_addr().map_err(unreachable)?;
        socket::prepare(&tcp).map_err(unreachable)?;
        let counters = Arc::new(Counters::default());
        let io = ReadAhead::new(tcp, counters.clone());
        let start = LazyConfigAcceptor::new(Acceptor::default(), io)
            .await
            .map_err(|error| handshake_error(&remote.to_string(), &error))?;
        Ok(Self {
            start,
            counters,
            remote,
        })
    }

    /// Whether it offers this protocol (ALPN).
    pub fn offers(&self, alpn: &[u8]) -> bool {
        let hello = self.start.client_hello();
        let mut offered = hello.alpn().into_iter().flatten();
        offered.any(|name| name == alpn)
    }

    /// Bytes that were read so far: its first message, and what came with it.
    pub fn received(&self) -> u64 {
        self.counters.received.load(Ordering::Relaxed)
    }

    /// Goes on as a link.
    pub async fn link(
        self,
        config: Arc<rustls::ServerConfig>,
        verifier: &PeerVerifier,
        options: &TlsOptions,
    ) -> Result<Arc<dyn Carrier>, ConnectError> {
        let peer = self.remote.to_string();
        let begun = Instant::now();
        let tls = self.start.into_stream(config).await;
        let tls = tls.map_err(|error| handshake_error(&peer, &error))?;
        let handshake = begun.elapsed();
        let remote = self.remote;
        let counters = self.counters;
        let side = Side::Acceptor;
        let link = begin(tls.into(), side, remote, &peer, counters, verifier, options)?;
        link.shared.set_flight(flight(handshake));
        Ok(Arc::new(link))
    }

    /// Goes on as something else: the bytes, and the certificates that the peer showed.
    pub async fn other(
        self,
        config: Arc<rustls::ServerConfig>,
    ) -> Result<
        (
            impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
            Vec<CertificateDer<'static>>,
        ),
        ConnectError,
    > {
        let peer = self.remote.to_string();
        let tls = self.start.into_stream(config).await;
        let tls = tls.map_err(|error| handshake_error(&peer, &error))?;
        let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
        let chain = chain.to_vec();
        Ok((tls, chain))
    }
}

/// [`accept`] on any byte pipe.
pub async fn accept_on<IO>(
    io: IO,
    remote: SocketAddr,
    config: Arc<rustls::ServerConfig>,
    verifier: Arc<PeerVerifier>,
    options: &TlsOptions,
) -> Result<Arc<dyn Carrier>, ConnectError>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let peer = remote.to_string();
    let counters = Arc::new(Counters::default());
    let io = ReadAhead::new(io, counters.clone());
    let begun = Instant::now();
    let tls = in_time(&peer, TlsAcceptor::from(config).accept(io))
        .await?
        .map_err(|error| handshake_error(&peer, &error))?;
    let handshake = begun.elapsed();
    let link = begin(
        tls.into(),
        Side::Acceptor,
        remote,
        &peer,
        counters,
        &verifier,
        options,
    )?;
    // A round trip, and what both ends did in it.
    link.shared.set_flight(flight(handshake));
    Ok(Arc::new(link))
}

/// Connects to a server, through `proxy` where one is given: name, TCP, handshake, verification
/// by us, verification by the server, all within [`limits::HANDSHAKE_TIMEOUT`].
pub async fn connect(
    server: &Target,
    config: Arc<rustls::ClientConfig>,
    verifier: Arc<PeerVerifier>,
    proxy: Option<&HttpProxy>,
    options: &TlsOptions,
) -> Result<Arc<dyn Carrier>, ConnectError> {
    let name = server.to_string();
    in_time(&name, async {
        let tcp = match proxy {
            Some(proxy) => tunnel::open(proxy, server).await?,
            None => addresses::connect(&server.host.to_string(), server.port()).await?,
        };
        let unreachable = |source| ConnectError::Unreachable {
            server: name.clone(),
            source,
        };
        let remote = tcp.peer_addr().map_err(unreachable)?;
        socket::prepare(&tcp).map_err(unreachable)?;
        connect_on(tcp, remote, server, config, verifier, options).await
    })
    .await?
}

/// A server after a handshake in which it could choose its protocol.
pub struct Met {
    /// The bytes behind the handshake.
    pub stream: tokio_rustls::client::TlsStream<TcpStream>,
    /// What it chose, if anything.
    pub alpn: Option<Vec<u8>>,
    /// What it showed, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Where it is.
    pub remote: SocketAddr,
}

/// Meets a server with a configuration that is not a link's: name, TCP, handshake, all within
/// [`limits::HANDSHAKE_TIMEOUT`]. What the certificate is good for is for the caller to judge.
pub async fn meet(
    server: &Target,
    name: ServerName<'static>,
    config: Arc<rustls::ClientConfig>,
    proxy: Option<&HttpProxy>,
) -> Result<Met, ConnectError> {
    let after = limits::HANDSHAKE_TIMEOUT;
    Box::pin(meet_within(after, server, name, config, proxy)).await
}

/// The same within another time.
pub async fn meet_within(
    after: Duration,
    server: &Target,
    name: ServerName<'static>,
    config: Arc<rustls::ClientConfig>,
    proxy: Option<&HttpProxy>,
) -> Result<Met, ConnectError> {
    let text = server.to_string();
    within(after, &text, async {
        let tcp = match proxy {
            Some(proxy) => tunnel::open(proxy, server).await?,
            None => addresses::connect(&server.host.to_string(), server.port()).await?,
        };
        let unreachable = |source| ConnectError::Unreachable {
            server: text.clone(),
            source,
        };
        let remote = tcp.peer_addr().map_err(unreachable)?;
        socket::prepare(&tcp).map_err(unreachable)?;
        let stream = TlsConnector::from(config)
            .connect(name, tcp)
            .await
            .map_err(|error| handshake_error(&text, &error))?;
        let session = stream.get_ref().1;
        let certificates = session.peer_certificates().unwrap_or_default();
        let chain = certificates.iter().map(|one| one.clone().into_owned());
        Ok(Met {
            alpn: session.alpn_protocol().map(<[u8]>::to_vec),
            chain: chain.collect(),
            remote,
            stream,
        })
    })
    .await?
}

/// [`connect`] on any byte pipe that leads to the server.
pub async fn connect_on<IO>(
    io: IO,
    remote: SocketAddr,
    server: &Target,
    config: Arc<rustls::ClientConfig>,
    verifier: Arc<PeerVerifier>,
    options: &TlsOptions,
) -> Result<Arc<dyn Carrier>, ConnectError>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let name = server.to_string();
    in_time(&name, async {
        let counters = Arc::new(Counters::default());
        let io = ReadAhead::new(io, counters.clone());
        let tls = TlsConnector::from(config)
            .connect(server_name(), io)
            .await
            .map_err(|error| handshake_error(&name, &error))?;
        let link = begin(
            tls.into(),
            Side::Connector,
            remote,
            &name,
            counters,
            &verifier,
            options,
        )?;
        // In TLS 1.3 the server looks at our certificate after we are done; only its first
        // frame says that it took us.
        let done = Instant::now();
        match link.shared.greeted().await {
            Ok(()) => {
                link.shared.set_flight(flight(done.elapsed()));
                Ok(Arc::new(link) as Arc<dyn Carrier>)
            }
            Err(reason) => Err(ConnectError::Handshake {
                server: name.clone(),
                reason,
                detail: "the server closed the connection instead of greeting".to_owned(),
            }),
        }
    })
    .await?
}

/// What the path carries in a round trip, and a little more. `greeting` is the first round trip,
/// with what both ends did in it.
fn flight(greeting: Duration) -> Flight {
    let path = greeting.saturating_sub(limits::MUX_GREETING).as_micros();
    let carried = path * u128::from(limits::MUX_FLIGHT_PER_MS) / 1000;
    let carried = u32::try_from(carried).unwrap_or(u32::MAX);
    let of = |least: u32| least.saturating_add(carried).min(limits::STREAM_WINDOW);
    Flight {
        in_company: of(limits::MUX_FLIGHT),
        alone: of(limits::MUX_FLIGHT_ALONE),
    }
}

fn in_time<T>(
    peer: &str,
    attempt: impl Future<Output = T>,
) -> impl Future<Output = Result<T, ConnectError>> {
    within(limits::HANDSHAKE_TIMEOUT, peer, attempt)
}

async fn within<T>(
    after: Duration,
    peer: &str,
    attempt: impl Future<Output = T>,
) -> Result<T, ConnectError> {
    timeout(after, attempt)
        .await
        .map_err(|_| ConnectError::Timeout {
            server: peer.to_owned(),
            after,
        })
}

/// Verifies the peer of a finished handshake and starts the driver.
fn begin<IO>(
    mut tls: TlsStream<ReadAhead<IO>>,
    side: Side,
    remote: SocketAddr,
    name: &str,
    counters: Arc<Counters>,
    verifier: &PeerVerifier,
    options: &TlsOptions,
) -> Result<TlsLink, ConnectError>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let session = tls.get_ref().1;
    if session.alpn_protocol() != Some(ALPN_LINK) {
        return Err(ConnectError::Alpn {
            server: name.to_owned(),
        });
    }
    let chain = session.peer_certificates().unwrap_or_default();
    let peer = verifier
        .verify(chain, SystemTime::now())
        .map_err(|source| ConnectError::Peer {
            server: name.to_owned(),
            source,
        })?;
    match &mut tls {
        TlsStream::Client(tls) => tls.get_mut().1.set_buffer_limit(Some(limits::TLS_QUEUE)),
        TlsStream::Server(tls) => tls.get_mut().1.set_buffer_limit(Some(limits::TLS_QUEUE)),
    }
    let mux = Mux::new(Config {
        window: options.window,
        ..Config::new(side, options.streams)
    });
    let shared = Shared::new(mux, counters);
    let driver = Driver::new(tls, shared.clone());
    let (running, task) = watch::channel(());
    tokio::spawn(async move {
        driver.await;
        drop(running);
    });
    Ok(TlsLink {
        task,
        shared,
        peer,
        remote,
        side,
    })
}

/// What an error of a TLS stream means, during its handshake and behind it: in TLS 1.3 a server says
/// what it thinks of our certificate only there.
pub fn handshake_error(peer: &str, error: &io::Error) -> ConnectError {
    let server = peer.to_owned();
    if let Some(source) = PeerError::from_io(error) {
        return ConnectError::Peer { server, source };
    }
    match tls_failure(error) {
        Some(
            TlsFailure::NoApplicationProtocol
            | TlsFailure::AlertReceived(AlertDescription::NoApplicationProtocol),
        ) => ConnectError::Alpn { server },
        _ => ConnectError::Handshake {
            server,
            reason: reason_of(error),
            detail: detail(error),
        },
    }
}

fn tls_failure(error: &io::Error) -> Option<&TlsFailure> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

/// Why a TLS connection ended with this error.
pub(super) fn reason_of(error: &io::Error) -> Reason {
    use AlertDescription as Alert;
    match tls_failure(error) {
        None => Reason::LinkLost,
        Some(TlsFailure::AlertReceived(alert)) => match alert {
            Alert::CertificateRevoked => Reason::Revoked,
            Alert::AccessDenied => Reason::Denied,
            Alert::BadCertificateStatusResponse => Reason::RevocationUnknown,
            Alert::CertificateExpired => Reason::CertificateEnded,
            Alert::ProtocolVersion | Alert::NoApplicationProtocol => Reason::Version,
            Alert::HandshakeFailure
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::DecryptError
            | Alert::CertificateRequired => Reason::BadCertificate,
            _ => Reason::Protocol,
        },
        Some(TlsFailure::NoCertificatesPresented | TlsFailure::InvalidCertificate(_)) => {
            Reason::BadCertificate
        }
        Some(TlsFailure::NoApplicationProtocol | TlsFailure::PeerIncompatible(_)) => {
            Reason::Version
        }
        Some(_) => Reason::Protocol,
    }
}
