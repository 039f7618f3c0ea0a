//! UDP in memory, for tests on a paused clock: delivers at once, can be cut.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

pub struct Wire {
    inboxes: Mutex<HashMap<SocketAddr, Arc<Mutex<Inbox>>>>,
    left: AtomicI64,
}

impl Default for Wire {
    fn default() -> Self {
        Self {
            inboxes: Mutex::default(),
            left: AtomicI64::new(i64::MAX),
        }
    }
}

#[derive(Default)]
struct Inbox {
    datagrams: VecDeque<(SocketAddr, Vec<u8>)>,
    waker: Option<Waker>,
}

impl Wire {
    pub fn socket(self: &Arc<Self>, port: u16) -> Arc<WireSocket> {
        let address = SocketAddr::from((Ipv4Addr::new(10, 0, 0, 1), port));
        let inbox = Arc::<Mutex<Inbox>>::default();
        self.inboxes.lock().unwrap().insert(address, inbox.clone());
        Arc::new(WireSocket {
            address,
            inbox,
            wire: self.clone(),
        })
    }

    /// Everything arrives again.
    pub fn mend(&self) {
        self.left.store(i64::MAX, Ordering::SeqCst);
    }

    /// So many more sends arrive, and then nothing.
    pub fn cut_after(&self, sends: i64) {
        self.left.store(sends, Ordering::SeqCst);
    }
}

pub struct WireSocket {
    address: SocketAddr,
    inbox: Arc<Mutex<Inbox>>,
    wire: Arc<Wire>,
}

impl fmt::Debug for WireSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WireSocket({})", self.address)
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for WireSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.wire.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            return Ok(());
        }
        let inbox = self
            .wire
            .inboxes
            .lock()
            .unwrap()
            .get(&transmit.destination)
            .cloned();
        if let Some(inbox) = inbox {
            let mut inbox = inbox.lock().unwrap();
            let size = transmit.segment_size.unwrap_or(transmit.contents.len());
            for segment in transmit.contents.chunks(size) {
                inbox.datagrams.push_back((self.address, segment.to_vec()));
            }
            if let Some(waker) = inbox.waker.take() {
                waker.wake();
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inbox = self.inbox.lock().unwrap();
        let mut count = 0;
        while count < bufs.len() {
            let Some((from, datagram)) = inbox.datagrams.pop_front() else {
                break;
            };
            bufs[count][..datagram.len()].copy_from_slice(&datagram);
            meta[count] = RecvMeta {
                addr: from,
                len: datagram.len(),
                stride: datagram.len(),
                ecn: None,
                dst_ip: None,
            };
            count += 1;
        }
        if count > 0 {
            return Poll::Ready(Ok(count));
        }
        inbox.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}
