//! The accept loop of every listener, TCP or Unix.
//!
//! 1. A slot is taken before a connection is: when [`AcceptOptions::connections`] are open the
//!    loop waits and the kernel's listen queue holds the rest.
//! 2. Each connection is a task of its own, owned by the loop. Nothing of a connection happens
//!    on the loop, so a peer that is slow to shake hands is slow alone.
//! 3. When accepting fails for want of descriptors or memory the loop pauses, longer each
//!    time, and says so once a minute.
//! 4. When stopping begins the listener closes and the loop waits for its tasks; when it is
//!    forced, or when the loop's future is dropped, the tasks are aborted.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use towline_proto::limits;
use tracing::{debug, warn};

use super::drain::DrainWatch;
use super::ratelimit::RateLimited;
use super::unix::{PeerCredentials, UnixSocket};

/// Where connections come from.
#[async_trait]
pub trait Listen: Send + Sync + 'static {
    /// The connection.
    type Stream: Send + 'static;
    /// Who is at its other end, as far as the kernel knows.
    type Peer: Send + 'static;

    /// The next connection. Cancel-safe.
    async fn accept(&self) -> io::Result<(Self::Stream, Self::Peer)>;
}

#[async_trait]
impl Listen for TcpListener {
    type Stream = TcpStream;
    type Peer = SocketAddr;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, peer) = TcpListener::accept(self).await?;
        stream.set_nodelay(true)?;
        Ok((stream, peer))
    }
}

#[async_trait]
impl Listen for UnixSocket {
    type Stream = UnixStream;
    type Peer = PeerCredentials;

    async fn accept(&self) -> io::Result<(UnixStream, PeerCredentials)> {
        let (stream, _) = self.listener().accept().await?;
        let peer = stream.peer_cred()?.into();
        Ok((stream, peer))
    }
}

/// What an accept loop is told.
#[derive(Clone)]
pub struct AcceptOptions {
    /// The listener's name in metrics and logs, e.g. `door-unix`.
    pub name: &'static str,
    /// Connections at once. Overflow: the loop waits.
    pub connections: usize,
    /// Where it is counted.
    pub metrics: AcceptMetrics,
}

/// Held by a connection's task: its slot, counted as active until it is dropped.
pub struct Slot {
    _permit: OwnedSemaphorePermit,
    name: &'static str,
    metrics: AcceptMetrics,
}

impl Slot {
    /// Counts a refusal, by a fixed word such as `uid`, `handshake`, `identity`.
    pub fn refused(&self, why: &'static str) {
        self.metrics
            .refused
            .get_or_create(&Refusal {
                listener: self.name,
                why,
            })
            .inc();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.metrics
            .active
            .get_or_create(&Listener {
                listener: self.name,
            })
            .dec();
    }
}

/// Accepts until stopping begins, then waits for the connections. Dropping the future aborts
/// everything. `serve` makes the future of one connection's whole life.
pub async fn accept_loop<L, F>(
    listener: L,
    options: AcceptOptions,
    drain: DrainWatch,
    serve: impl Fn(L::Stream, L::Peer, Slot) -> F,
) where
    L: Listen,
    F: Future<Output = ()> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(options.connections));
    let mut tasks = JoinSet::new();
    let mut pause = Pause::new();
    loop {
        tokio::select! {
            biased;
            _ = drain.signalled() => break,
            Some(_) = tasks.join_next() => {}
            accepted = accept_one(&listener, &slots) => match accepted {
                Ok((stream, peer, permit)) => {
                    pause.reset();
                    let slot = options.metrics.accepted(options.name, permit);
                    tasks.spawn(serve(stream, peer, slot));
                }
                Err(e) => pause.after(options.name, &e).await,
            },
        }
    }
    drop(listener);
    tokio::select! {
        () = async { while tasks.join_next().await.is_some() {} } => {}
        () = drain.forced() => tasks.shutdown().await,
    }
}

type Accepted<L> = (
    <L as Listen>::Stream,
    <L as Listen>::Peer,
    OwnedSemaphorePermit,
);

async fn accept_one<L: Listen>(listener: &L, slots: &Arc<Semaphore>) -> io::Result<Accepted<L>> {
    // The semaphore is never closed; if it were, accepting would end with this error.
    let permit = slots
        .clone()
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, permit))
}

/// How long to wait after an error, and whether to say so.
struct Pause {
    next: Duration,
    said: RateLimited<()>,
}

impl Pause {
    fn new() -> Self {
        Self {
            next: limits::ACCEPT_PAUSE_FIRST,
            said: RateLimited::new(1, Duration::from_secs(60)),
        }
    }

    fn reset(&mut self) {
        self.next = limits::ACCEPT_PAUSE_FIRST;
    }

    async fn after(&mut self, name: &'static str, error: &io::Error) {
        if is_of_one_connection(error) {
            debug!(listener = name, %error, "a connection ended before it was accepted");
            return;
        }
        if let Some(suppressed) = self.said.allow(()) {
            warn!(
                listener = name,
                %error,
                suppressed,
                "cannot accept connections; trying again (is LimitNOFILE large enough?)"
            );
        }
        tokio::time::sleep(self.next).await;
        self.next = (self.next * 2).min(limits::ACCEPT_PAUSE_CAP);
    }
}

/// accept(2) also reports what went wrong with the one connection it would have returned.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::NotConnected
    )
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Listener {
    listener: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    listener: &'static str,
    why: &'static str,
}

/// Connections by listener. One set for a daemon, registered once.
#[derive(Clone, Default)]
pub struct AcceptMetrics {
    accepted: Family<Listener, Counter>,
    active: Family<Listener, Gauge>,
    refused: Family<Refusal, Counter>,
}

impl AcceptMetrics {
    /// Adds the metrics to a registry.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "towline_connections",
            "Connections accepted",
            metrics.accepted.clone(),
        );
        registry.register(
            "towline_connections_active",
            "Connections open now",
            metrics.active.clone(),
        );
        registry.register(
            "towline_connections_refused",
            "Connections refused after accepting, by reason",
            metrics.refused.clone(),
        );
        metrics
    }

    /// Connections of one listener that are open now.
    pub fn active(&self, name: &'static str) -> i64 {
        self.active
            .get_or_create(&Listener { listener: name })
            .get()
    }

    fn accepted(&self, name: &'static str, permit: OwnedSemaphorePermit) -> Slot {
        self.accepted
            .get_or_create(&Listener { listener: name })
            .inc();
        self.active
            .get_or_create(&Listener { listener: name })
            .inc();
        Slot {
            _permit: permit,
            name,
            metrics: self.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::sync::mpsc;
    use tokio::time::Instant;

    use super::super::drain::Drain;
    use super::*;

    type Script = mpsc::Receiver<io::Result<u32>>;

    /// Connections are numbers, scripted.
    struct Scripted(tokio::sync::Mutex<Script>);

    #[async_trait]
    impl Listen for Scripted {
        type Stream = u32;
        type Peer = ();

        async fn accept(&self) -> io::Result<(u32, ())> {
            match self.0.lock().await.recv().await {
                Some(result) => result.map(|number| (number, ())),
                None => std::future::pending().await,
            }
        }
    }

    fn scripted(results: impl IntoIterator<Item = io::Result<u32>>) -> Scripted {
        let (script, listener) = mpsc::channel(64);
        for result in results {
            script.try_send(result).expect("room");
        }
        Scripted(tokio::sync::Mutex::new(listener))
    }

    fn options(connections: usize) -> AcceptOptions {
        AcceptOptions {
            name: "test",
            connections,
            metrics: AcceptMetrics::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_loop_waits_when_all_slots_are_taken() {
        let drain = Drain::new();
        let options = options(2);
        let metrics = options.metrics.clone();
        let (begun, mut order) = mpsc::channel(8);
        let release = Arc::new(Semaphore::new(0));
        let accepting = tokio::spawn(accept_loop(
            scripted((1..=3).map(Ok)),
            options,
            drain.watch(),
            {
                let release = release.clone();
                move |number, (), slot| {
                    let (begun, release) = (begun.clone(), release.clone());
                    async move {
                        begun.send(number).await.expect("open");
                        release.acquire().await.expect("open").forget();
                        drop(slot);
                    }
                }
            },
        ));
        assert_eq!((order.recv().await, order.recv().await), (Some(1), Some(2)));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(order.try_recv().is_err());
        assert_eq!(metrics.active("test"), 2);
        release.add_permits(1);
        assert_eq!(order.recv().await, Some(3));
        release.add_permits(2);
        drain.begin(Duration::from_secs(30));
        accepting.await.expect("joined");
        assert_eq!(metrics.active("test"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn want_of_descriptors_makes_pauses_and_not_an_end() {
        let drain = Drain::new();
        let no_descriptors = || Err(io::Error::from_raw_os_error(24));
        let aborted = || Err(io::ErrorKind::ConnectionAborted.into());
        let script = [
            aborted(),
            no_descriptors(),
            no_descriptors(),
            no_descriptors(),
            Ok(7),
        ];
        let (begun, mut order) = mpsc::channel(8);
        let start = Instant::now();
        let accepting = tokio::spawn(accept_loop(
            scripted(script),
            options(8),
            drain.watch(),
            move |number, (), _slot| {
                let begun = begun.clone();
                async move { begun.send(number).await.expect("open") }
            },
        ));
        assert_eq!(order.recv().await, Some(7));
        assert_eq!(start.elapsed(), limits::ACCEPT_PAUSE_FIRST * 7);
        drain.begin(Duration::from_secs(30));
        accepting.await.expect("joined");
    }

    #[tokio::test(start_paused = true)]
    async fn force_and_drop_abort_the_connections() {
        struct Gone(mpsc::Sender<()>);
        impl Drop for Gone {
            fn drop(&mut self) {
                let _ = self.0.try_send(());
            }
        }
        let (gone, mut ended) = mpsc::channel(8);
        let (begun, mut order) = mpsc::channel(8);
        let serve = move |_number: u32, (), slot: Slot| {
            let (gone, begun) = (Gone(gone.clone()), begun.clone());
            async move {
                let _held = (gone, slot);
                begun.send(()).await.expect("open");
                std::future::pending::<()>().await;
            }
        };
        let drain = Drain::new();
        let forced = tokio::spawn(accept_loop(
            scripted([Ok(1)]),
            options(8),
            drain.watch(),
            serve.clone(),
        ));
        order.recv().await;
        drain.force();
        forced.await.expect("joined");
        assert_eq!(ended.recv().await, Some(()));

        let drain = Drain::new();
        let dropped = tokio::spawn(accept_loop(
            scripted([Ok(1)]),
            options(8),
            drain.watch(),
            serve,
        ));
        order.recv().await;
        dropped.abort();
        assert_eq!(ended.recv().await, Some(()));
    }

    #[tokio::test]
    async fn a_unix_caller_is_known_by_the_kernel() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("door.sock");
        let socket = UnixSocket::bind(&path, 0o600).expect("bound");
        let drain = Drain::new();
        let seen = Arc::new(Mutex::new(None));
        let (done, mut end) = mpsc::channel(1);
        let accepting = tokio::spawn(accept_loop(socket, options(8), drain.watch(), {
            let seen = seen.clone();
            move |_stream, peer, slot| {
                *seen.lock().expect("not poisoned") = Some(peer);
                slot.refused("uid");
                let done = done.clone();
                async move { done.send(()).await.expect("open") }
            }
        }));
        UnixStream::connect(&path).await.expect("connected");
        end.recv().await;
        let peer = seen.lock().expect("not poisoned").expect("seen");
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        drain.begin(Duration::from_secs(30));
        accepting.await.expect("joined");
        assert!(!path.exists());
    }
}
