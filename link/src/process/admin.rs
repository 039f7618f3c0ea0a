//! Health, metrics and orders, on a thread with a runtime of its own: a scrape never delays a
//! byte, and a flood of bytes never delays a probe.
//!
//! | Request | TCP (`--health-bind`) | Unix (`--admin-socket`) |
//! |---|---|---|
//! | `GET /healthz`, `/livez` | the data runtime runs tasks | same |
//! | `GET /readyz`, `?verbose` | every condition is met, else 503 and the list | same |
//! | `GET /metrics` | OpenMetrics text, as Prometheus asks for | same |
//! | `GET /status` | - | JSON |
//! | `GET /kubelets` | - | JSON, of a server |
//! | `GET /policy/explain?target=` | - | JSON, of a server |
//! | `POST /reload`, `/drain` | - | done, or why not |
//!
//! In the place of another program ([`compat`](super::compat)) readiness and metrics have its form,
//! and there may be a second TCP listener with `/metrics` alone.
//!
//! The Unix socket is 0600 and checks the caller's user id. One request per connection, heads
//! and times bounded, bodies refused, so that no client can hold anything for long. It answers
//! until [`Admin::stop`], which the daemon calls last.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdTcpListener};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use towline_proto::limits;
use tracing::{debug, error, warn};

use super::accept::{AcceptMetrics, AcceptOptions, Slot, accept_loop};
use super::answer::{Access, Answers};
use super::bind;
use super::compat::{Compat, Second};
use super::daemon::Daemon;
use super::drain::Drain;
use super::live::LiveProbe;
use super::ratelimit::RateLimited;
use super::ready::Readiness;
use super::runtime;
use super::shares::{Share, Shares, network};
use super::unix::{self, AllowedUids, PeerCredentials, SocketFile, UnixSocket, UnixSocketError};

/// Where to listen.
#[derive(Clone, Debug)]
pub struct AdminConfig {
    /// `--health-bind`.
    pub health: SocketAddr,
    /// `--admin-socket`.
    pub socket: Option<PathBuf>,
    /// Who may use the Unix socket.
    pub allowed: AllowedUids,
    /// The second TCP listener of the compatibility profile.
    pub second: Option<Second>,
}

/// What is shown and who is asked.
pub struct AdminParts {
    /// All metrics. Registration is over when it is handed over.
    pub registry: Registry,
    /// For `/readyz`.
    pub readiness: Readiness,
    /// For `/livez`.
    pub live: LiveProbe,
    /// For the Unix socket.
    pub daemon: Arc<dyn Daemon>,
    /// Its listeners are counted like all others.
    pub accepted: AcceptMetrics,
    /// Pages and metrics of another program, where we stand in its place.
    pub compat: Option<Compat>,
}

/// Why the admin listener did not start.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// TCP.
    #[error("--health-bind {address}: cannot listen: {source}")]
    Health {
        /// What was asked for.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The second one.
    #[error("the admin port {address}: cannot listen: {source}")]
    Second {
        /// What was asked for.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// Unix.
    #[error("--admin-socket: {0}")]
    Socket(#[from] UnixSocketError),
    /// No thread or no runtime.
    #[error("the admin thread did not start: {0}")]
    Thread(#[source] io::Error),
}

/// The sockets, bound and not served yet: a taken port is a start error, found before anything
/// else is begun.
pub struct AdminSockets {
    health: StdTcpListener,
    health_address: SocketAddr,
    socket: Option<(StdUnixListener, SocketFile)>,
    allowed: AllowedUids,
    second: Option<(StdTcpListener, Second)>,
}

impl AdminSockets {
    /// Binds both.
    pub fn bind(config: AdminConfig) -> Result<Self, AdminError> {
        let AdminConfig {
            health: address,
            socket,
            allowed,
            second,
        } = config;
        let failed = |source| AdminError::Health { address, source };
        let health = bind::tcp(address).map_err(failed)?;
        let health_address = health.local_addr().map_err(failed)?;
        let second = second
            .map(|second| match bind::tcp(second.address) {
                Ok(listener) => Ok((listener, second)),
                Err(source) => Err(AdminError::Second {
                    address: second.address,
                    source,
                }),
            })
            .transpose()?;
        let socket = socket.map(|path| unix::bind(&path, 0o600)).transpose()?;
        Ok(Self {
            health,
            health_address,
            socket,
            allowed,
            second,
        })
    }

    /// Where the second listener is, if there is one.
    pub fn second_address(&self) -> Option<SocketAddr> {
        let (listener, _) = self.second.as_ref()?;
        listener.local_addr().ok()
    }

    /// Where health is served.
    pub fn health_address(&self) -> SocketAddr {
        self.health_address
    }

    /// Serves them on a thread of their own.
    pub fn serve(self, parts: AdminParts) -> Result<Admin, AdminError> {
        let health_address = self.health_address;
        let second_address = self.second_address();
        let drain = Drain::new();
        let runtime = runtime::admin().map_err(AdminError::Thread)?;
        let serving = drain.clone();
        let thread = std::thread::Builder::new()
            .name("towline-admin".to_owned())
            .spawn(move || {
                runtime.block_on(self.run(parts, serving));
                // Blocking work (there is none to speak of) is not waited for.
                runtime.shutdown_background();
            })
            .map_err(AdminError::Thread)?;
        Ok(Admin {
            health_address,
            second_address,
            drain,
            thread: Some(thread),
        })
    }

    async fn run(self, parts: AdminParts, drain: Drain) {
        let Self {
            health,
            socket,
            allowed,
            second,
            ..
        } = self;
        let AdminParts {
            registry,
            readiness,
            live,
            daemon,
            accepted,
            compat,
        } = parts;
        let answers = Arc::new(Answers {
            registry,
            readiness,
            live,
            daemon,
            compat,
        });
        let loops = async {
            let tcp = serve_tcp(health, Arc::clone(&answers), accepted.clone(), &drain);
            let second = serve_second(second, Arc::clone(&answers), accepted.clone(), &drain);
            let unix = serve_unix(socket, allowed, answers, accepted, &drain);
            if let Err(error) = tokio::try_join!(tcp, second, unix) {
                error!(%error, "health and admin are not served");
            }
        };
        loops.await;
    }
}

/// The running admin listener. Dropping it stops it.
pub struct Admin {
    health_address: SocketAddr,
    second_address: Option<SocketAddr>,
    drain: Drain,
    thread: Option<JoinHandle<()>>,
}

impl Admin {
    /// Where health is served.
    pub fn health_address(&self) -> SocketAddr {
        self.health_address
    }

    /// Where the second TCP listener is, if there is one.
    pub fn second_address(&self) -> Option<SocketAddr> {
        self.second_address
    }

    /// Closes the listeners and ends; answers that are being written have
    /// [`limits::ADMIN_STOP`] to be finished.
    pub async fn stop(mut self) {
        self.drain.begin(limits::ADMIN_STOP);
        let Some(thread) = self.thread.take() else {
            return;
        };
        let mut joined = tokio::task::spawn_blocking(move || thread.join());
        if tokio::time::timeout(limits::ADMIN_STOP, &mut joined)
            .await
            .is_err()
        {
            self.drain.force();
            let _ = joined.await;
        }
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.drain.force();
        // Its loops end at once; answering blocks nowhere.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn options(name: &'static str, metrics: AcceptMetrics) -> AcceptOptions {
    AcceptOptions {
        name,
        connections: limits::ADMIN_CONNECTIONS,
        metrics,
    }
}

async fn serve_tcp(
    listener: StdTcpListener,
    answers: Arc<Answers>,
    metrics: AcceptMetrics,
    drain: &Drain,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let shares = Shares::new(limits::ADMIN_PER_ADDRESS);
    accept_loop(
        listener,
        options("health", metrics),
        drain.watch(),
        |stream, peer: SocketAddr, slot| {
            let share = shares.take(&network(peer.ip()));
            serve_shared(stream, slot, share, Arc::clone(&answers), Access::Anybody)
        },
    )
    .await;
    Ok(())
}

async fn serve_second(
    second: Option<(StdTcpListener, Second)>,
    answers: Arc<Answers>,
    metrics: AcceptMetrics,
    drain: &Drain,
) -> io::Result<()> {
    let Some((
        listener,
        Second {
            metrics: at,
            profiling,
            ..
        },
    )) = second
    else {
        return Ok(());
    };
    let shares = Shares::new(limits::ADMIN_PER_ADDRESS);
    accept_loop(
        TcpListener::from_std(listener)?,
        options("admin-tcp", metrics),
        drain.watch(),
        |stream, peer: SocketAddr, slot| {
            let share = shares.take(&network(peer.ip()));
            let access = Access::Second(at, profiling);
            serve_shared(stream, slot, share, Arc::clone(&answers), access)
        },
    )
    .await;
    Ok(())
}

async fn serve_unix(
    socket: Option<(StdUnixListener, SocketFile)>,
    allowed: AllowedUids,
    answers: Arc<Answers>,
    metrics: AcceptMetrics,
    drain: &Drain,
) -> io::Result<()> {
    let Some((listener, file)) = socket else {
        return Ok(());
    };
    let socket = UnixSocket::from_std(listener, file)?;
    let refused = RateLimited::new(1, Duration::from_secs(60));
    accept_loop(
        socket,
        options("admin", metrics),
        drain.watch(),
        |stream, caller: PeerCredentials, slot| {
            let verdict = allowed.check(caller);
            if let Err(error) = &verdict {
                slot.refused("uid");
                if let Some(suppressed) = refused.allow(caller.uid) {
                    warn!(%caller, %error, suppressed, "admin connection refused");
                }
            }
            let answers = Arc::clone(&answers);
            async move {
                let access = verdict.map_or_else(
                    |error| Access::Nobody(error.to_string()),
                    |()| Access::Operator,
                );
                serve_one(stream, slot, answers, access).await;
            }
        },
    )
    .await;
    Ok(())
}

/// One connection of an address that has its share of them.
async fn serve_shared(
    stream: TcpStream,
    slot: Slot,
    share: Option<Share<IpAddr>>,
    answers: Arc<Answers>,
    access: Access,
) {
    match &share {
        Some(_) => serve_one(stream, slot, answers, access).await,
        None => slot.refused("crowded"),
    }
    drop(share);
}

/// One connection, one request.
async fn serve_one(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    slot: Slot,
    answers: Arc<Answers>,
    access: Access,
) {
    let _held = slot;
    let access = &access;
    let service = service_fn(|request: Request<Incoming>| {
        let answers = Arc::clone(&answers);
        async move { Ok::<Response<Full<Bytes>>, Infallible>(answers.answer(&request, access).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(limits::ADMIN_HEAD_TIMEOUT)
        .max_buf_size(limits::ADMIN_HEAD_BYTES)
        .max_headers(limits::ADMIN_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(limits::ADMIN_CONNECTION, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "health or admin connection ended early"),
        Err(_) => debug!("health or admin connection took too long"),
    }
}

#[cfg(test)]
#[path = "admin_tests.rs"]
mod tests;
