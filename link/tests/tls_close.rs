//! Closing a tls link: of a peer that reads nothing, and at the end of the process.

mod pair;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use pair::{Cluster, LOOPBACK};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use towline_link::tls::{self, TlsOptions};
use towline_proto::limits::CLOSE_LINGER;
use towline_proto::reason::Reason;

/// A connection that takes no more bytes from some moment on, and says when it is dropped.
struct Stuck {
    stream: DuplexStream,
    stuck: Arc<AtomicBool>,
    _dropped: oneshot::Sender<()>,
}

impl AsyncRead for Stuck {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stuck {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.stuck.load(Ordering::SeqCst) {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_reads_nothing_does_not_keep_a_closed_connection() {
    let cluster = Cluster::new("prod");
    let agent = cluster.agent_side(&cluster.agent("node-1"));
    let server = cluster.server_side(&cluster.server("server-1"));
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (dropped, mut gone) = oneshot::channel::<()>();
    let stuck = Arc::new(AtomicBool::new(false));
    let far = Stuck {
        stream: far,
        stuck: stuck.clone(),
        _dropped: dropped,
    };
    let target = "server.example:8091".parse().unwrap();
    let (options, taking) = (TlsOptions::agent(), TlsOptions::server());
    let (_agent, server) = tokio::join!(
        tls::connect_on(near, LOOPBACK, &target, agent.0, agent.1, &options),
        tls::accept_on(far, LOOPBACK, server.0, server.1, &taking),
    );
    let server = server.unwrap();
    let mut dial = server.open().await.unwrap();
    stuck.store(true, Ordering::SeqCst);
    // More than every buffer on the way: the connection's task is blocked in the middle of it.
    let sending = dial.send.send(vec![1; 1 << 20].into());
    let blocked = timeout(Duration::from_secs(5), sending).await;
    assert!(blocked.is_err() && gone.try_recv().is_err());
    let begun = Instant::now();
    server.close(Reason::Denied);
    assert_eq!(server.closed().await, Reason::Denied);
    let ended = timeout(Duration::from_secs(60), gone).await;
    assert!(ended.expect("the connection is let go").is_err());
    assert!(begun.elapsed() < CLOSE_LINGER + Duration::from_secs(1));
}

/// One end of a connection, with a runtime of its own that ends behind it as a process does.
fn in_a_process<T>(what: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    runtime.block_on(what)
}

#[test]
fn who_waits_for_a_closed_link_has_said_why() {
    let cluster = Cluster::new("prod");
    let agent = cluster.agent_side(&cluster.agent("node-1"));
    let server = cluster.server_side(&cluster.server("server-1"));
    let (near, far) = tokio::io::duplex(64 * 1024);
    let agent = std::thread::spawn(move || {
        in_a_process(async move {
            let target = "server.example:8091".parse().unwrap();
            let options = TlsOptions::agent();
            let met = tls::connect_on(near, LOOPBACK, &target, agent.0, agent.1, &options).await;
            match met {
                Ok(link) => link.closed().await,
                Err(error) => error.reason(),
            }
        })
    });
    in_a_process(async move {
        let options = TlsOptions::server();
        let link = tls::accept_on(far, LOOPBACK, server.0, server.1, &options);
        let link = link.await.unwrap();
        link.close(Reason::Shutdown);
        let gone = timeout(Duration::from_secs(20), link.gone());
        gone.await.expect("it ends within its time");
    });
    assert_eq!(agent.join().unwrap(), Reason::Shutdown);
}
