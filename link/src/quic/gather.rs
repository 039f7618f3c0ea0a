//! Larger sends than quinn makes.
//!
//! quinn hands the socket 10 datagrams at a time, at 1,452 bytes less than a quarter of what one
//! segmented send can carry, and a bulk transfer pays for each call: system call, route, queue,
//! a wake-up of the receiver. This socket keeps a full batch until the task that made it has
//! run, and lets the batches that follow in the same run join it. Nothing is kept
//! longer than that, so no datagram waits for one that may never come; the order stays.
//!
//! Batches live in the thread for as long as quinn's task runs on it. What the kernel does not
//! take then stays with the task, and goes out first when the socket has room.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// What one segmented send carries at most, bytes: below the largest UDP payload on IPv6.
const BATCH: usize = 65_000;
/// Segments of one send at most; kernels before 6.9 take no more.
const SEGMENTS: usize = 64;

/// What quinn sends before it yields, datagrams (`MAX_TRANSMIT_DATAGRAMS`).
const RUN_DATAGRAMS: usize = 20;
/// How often a task that has more to send is run again at once.
const TURNS: usize = 2;

thread_local! {
    /// Set while one of quinn's tasks runs on this thread.
    static RUN: RefCell<Option<Batch>> = const { RefCell::new(None) };
    /// The last batch's memory.
    static SPARE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// tokio's runtime, with sockets that gather and tasks that send what was gathered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gathering;

impl Runtime for Gathering {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(Task {
            task,
            batch: None,
            room: None,
        });
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Ok(Arc::new(Socket(Arc::new(Inner::new(socket)?))))
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

type Room = Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>;

/// One of quinn's tasks.
struct Task {
    task: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// What the kernel did not take.
    batch: Option<Batch>,
    /// Until it does.
    room: Option<Room>,
}

impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let run = Run::begin(self.batch.take().unwrap_or_default());
        let mut done = self.task.as_mut().poll(cx);
        for _ in 0..TURNS {
            // quinn yields after 20 datagrams although it has more.
            if done.is_ready() || !run.has_more() {
                break;
            }
            done = self.task.as_mut().poll(cx);
        }
        let mut batch = run.end();
        if batch.send().is_ok() {
            self.room = None;
            return done;
        }
        // The kernel has no room. A task that ends leaves its last packets behind, as a full
        // queue of a network would.
        if let (true, Some(inner)) = (done.is_pending(), batch.socket.clone()) {
            self.batch = Some(batch);
            let room = self
                .room
                .get_or_insert_with(|| Box::pin(async move { inner.socket.writable().await }));
            if room.as_mut().poll(cx).is_ready() {
                self.room = None;
                cx.waker().wake_by_ref();
            }
        }
        done
    }
}

/// One of quinn's tasks runs on this thread.
struct Run {
    outer: Option<Batch>,
}

impl Run {
    fn begin(batch: Batch) -> Self {
        Self {
            outer: RUN.replace(Some(batch)),
        }
    }

    fn has_more(&self) -> bool {
        RUN.with_borrow(|run| run.as_ref().is_some_and(Batch::is_growing))
    }

    /// What was gathered.
    fn end(mut self) -> Batch {
        RUN.replace(self.outer.take()).unwrap_or_default()
    }
}

impl Drop for Run {
    /// After a panic nothing may gather that nobody sends. After [`Run::end`] there is nothing.
    fn drop(&mut self) {
        if std::thread::panicking() {
            RUN.set(self.outer.take());
        }
    }
}

/// Whole datagrams of one size to one place.
#[derive(Default)]
struct Batch {
    socket: Option<Arc<Inner>>,
    bytes: Vec<u8>,
    segment: usize,
    to: Option<SocketAddr>,
    ecn: Option<EcnCodepoint>,
    from: Option<IpAddr>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether the last run filled what quinn sends in one run, and as much again has room.
    fn is_growing(&self) -> bool {
        let segments = self.bytes.len().checked_div(self.segment).unwrap_or(0);
        segments > 0
            && segments.is_multiple_of(RUN_DATAGRAMS)
            && self.bytes.len() + RUN_DATAGRAMS * self.segment <= BATCH
            && segments + RUN_DATAGRAMS <= SEGMENTS
    }

    /// Whether these datagrams can be part of the same send.
    fn takes(&self, socket: &Arc<Inner>, transmit: &Transmit<'_>) -> bool {
        let alike = match transmit.segment_size {
            Some(size) => size == self.segment,
            None => transmit.contents.len() <= self.segment,
        };
        let all = self.bytes.len() + transmit.contents.len();
        alike
            && all <= BATCH
            && all.div_ceil(self.segment) <= SEGMENTS.min(socket.state.max_gso_segments())
            && self.to == Some(transmit.destination)
            && self.ecn == transmit.ecn
            && self.from == transmit.src_ip
            && self
                .socket
                .as_ref()
                .is_some_and(|own| Arc::ptr_eq(own, socket))
    }

    fn start(&mut self, socket: &Arc<Inner>, transmit: &Transmit<'_>, segment: usize) {
        self.socket = Some(Arc::clone(socket));
        self.segment = segment;
        self.to = Some(transmit.destination);
        self.ecn = transmit.ecn;
        self.from = transmit.src_ip;
        self.bytes = SPARE.take();
        self.bytes.clear();
        self.bytes.extend_from_slice(transmit.contents);
    }

    /// Sends everything, or nothing where the kernel has no room.
    fn send(&mut self) -> io::Result<()> {
        if let (false, Some(socket), Some(destination)) = (self.is_empty(), &self.socket, self.to) {
            socket.send(&Transmit {
                destination,
                ecn: self.ecn,
                contents: &self.bytes,
                segment_size: Some(self.segment),
                src_ip: self.from,
            })?;
            self.bytes.clear();
            SPARE.set(std::mem::take(&mut self.bytes));
        }
        self.socket = None;
        Ok(())
    }
}

struct Inner {
    socket: UdpSocket,
    state: UdpSocketState,
    /// Plays a kernel without room.
    #[cfg(test)]
    full: std::sync::atomic::AtomicBool,
}

impl Inner {
    fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        Ok(Self {
            state: UdpSocketState::new((&socket).into())?,
            socket: UdpSocket::from_std(socket)?,
            #[cfg(test)]
            full: false.into(),
        })
    }
}

impl Inner {
    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        #[cfg(test)]
        if self.full.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.socket.try_io(Interest::WRITABLE, || {
            self.state.send((&self.socket).into(), transmit)
        })
    }
}

/// The kernel's socket.
#[derive(Clone)]
struct Socket(Arc<Inner>);

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Socket").field(&self.0.socket).finish()
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller {
            socket: Arc::clone(&self.0),
            room: None,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        RUN.with_borrow_mut(|run| {
            let Some(batch) = run else {
                return self.0.send(transmit);
            };
            if !batch.is_empty() {
                if batch.takes(&self.0, transmit) {
                    batch.bytes.extend_from_slice(transmit.contents);
                    if batch.bytes.len().is_multiple_of(batch.segment) {
                        return Ok(());
                    }
                    // Nothing can follow a short datagram.
                    let before = batch.bytes.len() - transmit.contents.len();
                    return batch.send().inspect_err(|_| batch.bytes.truncate(before));
                }
                batch.send()?;
            }
            let whole = transmit
                .segment_size
                .filter(|size| transmit.contents.len().is_multiple_of(*size));
            match whole {
                Some(segment) if transmit.contents.len() * 2 <= BATCH => {
                    batch.start(&self.0, transmit, segment);
                    Ok(())
                }
                _ => self.0.send(transmit),
            }
        })
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.socket.poll_recv_ready(cx))?;
            // An error is somebody's ICMP message about one datagram: no reason to stop listening.
            if let Ok(count) = self.0.socket.try_io(Interest::READABLE, || {
                self.0.state.recv((&self.0.socket).into(), bufs, meta)
            }) {
                return Poll::Ready(Ok(count));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.socket.local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.0.state.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.0.state.gro_segments()
    }
}

/// Tells one connection when the socket has room.
struct Poller {
    socket: Arc<Inner>,
    room: Option<Room>,
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller").finish_non_exhaustive()
    }
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = Arc::clone(&self.socket);
        let room = self
            .room
            .get_or_insert_with(|| Box::pin(async move { socket.socket.writable().await }));
        let ready = ready!(room.as_mut().poll(cx));
        self.room = None;
        Poll::Ready(ready)
    }
}

#[cfg(test)]
#[path = "gather_tests.rs"]
mod tests;
