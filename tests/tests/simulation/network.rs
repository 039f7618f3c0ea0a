//! A network in memory on tokio's paused clock: datagrams that are lost, delayed, reordered and
//! cut off, and byte pipes (what TCP makes of the same network) that are delayed, held back and
//! broken.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::chance::Chance;

/// Datagrams that wait for one socket. Overflow: the newest is dropped, as a kernel does.
const INBOX: usize = 4096;
/// Bytes in flight of one direction of a pipe. Overflow: the writer waits.
const PIPE: usize = 256 * 1024;
/// What a lost segment costs a TCP connection.
const RETRANSMISSION: Duration = Duration::from_millis(200);

/// How the network is at the moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    pub(crate) delay: Duration,
    /// Added by chance to each packet; larger than the gap between packets it reorders them.
    pub(crate) jitter: Duration,
    /// Lost packets in a thousand.
    pub(crate) loss: u64,
    /// Packets in a thousand that arrive twice.
    pub(crate) doubled: u64,
    pub(crate) cut: bool,
}

impl Weather {
    pub(crate) const FAIR: Weather = Weather {
        delay: Duration::from_millis(1),
        jitter: Duration::ZERO,
        loss: 0,
        doubled: 0,
        cut: false,
    };
}

struct Packet {
    due: Instant,
    number: u64,
    from: SocketAddr,
    bytes: Vec<u8>,
}

impl PartialEq for Packet {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Packet {}
impl PartialOrd for Packet {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Packet {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

#[derive(Default)]
struct Inbox {
    /// Which socket it belongs to; those of a killed process are cut off.
    owner: u64,
    packets: BinaryHeap<Reverse<Packet>>,
    reader: Option<Waker>,
}

struct State {
    weather: Weather,
    chance: Chance,
    number: u64,
    inboxes: BTreeMap<SocketAddr, Inbox>,
    listeners: BTreeMap<SocketAddr, mpsc::UnboundedSender<Pipe>>,
    /// Pipes that wait for the cut to end.
    waiting: Vec<Waker>,
    /// Counts breaks; older pipes are reset.
    breaks: u64,
    sockets: u64,
}

/// The network. Clones share.
#[derive(Clone)]
pub(crate) struct Network(Arc<Mutex<State>>);

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Network")
    }
}

impl Network {
    pub(crate) fn new(chance: Chance) -> Self {
        Self(Arc::new(Mutex::new(State {
            weather: Weather::FAIR,
            chance,
            number: 0,
            inboxes: BTreeMap::new(),
            listeners: BTreeMap::new(),
            waiting: Vec::new(),
            breaks: 0,
            sockets: 0,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder panics")
    }

    /// Changes the weather.
    pub(crate) fn set(&self, weather: Weather) {
        let mut state = self.lock();
        state.weather = weather;
        if !weather.cut {
            state.waiting.drain(..).for_each(Waker::wake);
        }
    }

    pub(crate) fn weather(&self) -> Weather {
        self.lock().weather
    }

    /// Resets every pipe there is.
    pub(crate) fn break_pipes(&self) {
        let mut state = self.lock();
        state.breaks += 1;
        state.waiting.drain(..).for_each(Waker::wake);
    }

    /// Packets and segments sent so far: with the clock, what tells two runs apart.
    pub(crate) fn sent(&self) -> u64 {
        self.lock().number
    }

    /// A UDP socket; an older one on the same address is cut off.
    pub(crate) fn socket(&self, address: SocketAddr) -> Arc<dyn AsyncUdpSocket> {
        let mut state = self.lock();
        state.sockets += 1;
        let owner = state.sockets;
        state.inboxes.insert(
            address,
            Inbox {
                owner,
                ..Inbox::default()
            },
        );
        Arc::new(Socket {
            network: self.clone(),
            address,
            owner,
            timer: Mutex::new(None),
        })
    }

    /// Pipes that are connected to `address` from now on.
    pub(crate) fn listen(&self, address: SocketAddr) -> mpsc::UnboundedReceiver<Pipe> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.lock().listeners.insert(address, sender);
        receiver
    }

    /// Connects a pipe, after one round trip and not during a cut.
    pub(crate) async fn connect(&self, address: SocketAddr) -> io::Result<Pipe> {
        let delay = self.weather().delay;
        tokio::time::sleep(2 * delay).await;
        std::future::poll_fn(|cx| self.lock().poll_clear(cx)).await;
        let mut state = self.lock();
        let up = Arc::new(Mutex::new(Direction::default()));
        let down = Arc::new(Mutex::new(Direction::default()));
        let end = |write: &Arc<_>, read: &Arc<_>, breaks| Pipe {
            network: self.clone(),
            write: Arc::clone(write),
            read: Arc::clone(read),
            breaks,
            timer: None,
        };
        let (ours, theirs) = (end(&up, &down, state.breaks), end(&down, &up, state.breaks));
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        match state.listeners.get(&address) {
            Some(listener) if !listener.is_closed() => {
                let sent = listener.send(theirs);
                drop(state);
                sent.map(|()| ours).map_err(|_| refused)
            }
            _ => {
                state.listeners.remove(&address);
                drop(state);
                Err(refused)
            }
        }
    }
}

impl State {
    /// When something sent now arrives; `None` when it does not.
    fn arrival(&mut self) -> Option<Instant> {
        let Weather {
            delay,
            jitter,
            loss,
            cut,
            ..
        } = self.weather;
        let arrives = Instant::now() + delay + self.chance.time(jitter);
        let lost = self.chance.per_mille(loss);
        (!cut && !lost).then_some(arrives)
    }

    fn send(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let copies =
            1 + u64::from(self.weather.doubled > 0 && self.chance.per_mille(self.weather.doubled));
        for _ in 0..copies {
            self.number += 1;
            let number = self.number;
            let Some(due) = self.arrival() else { continue };
            // Nobody there: a closed port is silent, as behind a firewall.
            let Some(inbox) = self.inboxes.get_mut(&to) else {
                continue;
            };
            if inbox.packets.len() < INBOX {
                inbox.packets.push(Reverse(Packet {
                    due,
                    number,
                    from,
                    bytes: bytes.to_vec(),
                }));
            }
            if let Some(reader) = inbox.reader.take() {
                reader.wake();
            }
        }
    }

    fn poll_clear(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.weather.cut {
            self.waiting.push(cx.waker().clone());
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }
}

/// A UDP socket of the network.
struct Socket {
    network: Network,
    address: SocketAddr,
    owner: u64,
    timer: Mutex<Option<Pin<Box<Sleep>>>>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Socket({})", self.address)
    }
}

/// Sending never blocks here.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut state = self.network.lock();
        if state
            .inboxes
            .get(&self.address)
            .is_none_or(|inbox| inbox.owner != self.owner)
        {
            return Ok(());
        }
        let segment = transmit
            .segment_size
            .unwrap_or(transmit.contents.len())
            .max(1);
        for datagram in transmit.contents.chunks(segment) {
            state.send(self.address, transmit.destination, datagram);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.network.lock();
        let Some(inbox) = state
            .inboxes
            .get_mut(&self.address)
            .filter(|inbox| inbox.owner == self.owner)
        else {
            return Poll::Pending;
        };
        let now = Instant::now();
        let mut count = 0;
        for (buffer, meta) in bufs.iter_mut().zip(meta.iter_mut()) {
            if inbox.packets.peek().is_none_or(|next| next.0.due > now) {
                break;
            }
            let Some(Reverse(packet)) = inbox.packets.pop() else {
                break;
            };
            let len = packet.bytes.len().min(buffer.len());
            buffer[..len].copy_from_slice(&packet.bytes[..len]);
            *meta = RecvMeta {
                addr: packet.from,
                len,
                stride: len,
                ecn: None,
                dst_ip: None,
            };
            count += 1;
        }
        if count > 0 {
            return Poll::Ready(Ok(count));
        }
        inbox.reader = Some(cx.waker().clone());
        let next = inbox.packets.peek().map(|next| next.0.due);
        drop(state);
        let mut timer = self.timer.lock().expect("no holder panics");
        *timer = next.map(|due| Box::pin(sleep_until(due)));
        if let Some(sleep) = timer.as_mut() {
            // It is in the future, so this only registers the wake-up.
            let _ = sleep.as_mut().poll(cx);
        }
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// How the writer ended its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closed {
    Finished,
    Broken,
}

#[derive(Default)]
struct Direction {
    pieces: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    last: Option<Instant>,
    closed: Option<Closed>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Direction {
    fn close(&mut self, how: Closed) {
        self.closed.get_or_insert(how);
        for waker in [self.reader.take(), self.writer.take()]
            .into_iter()
            .flatten()
        {
            waker.wake();
        }
    }
}

/// One end of a byte pipe.
pub(crate) struct Pipe {
    network: Network,
    write: Arc<Mutex<Direction>>,
    read: Arc<Mutex<Direction>>,
    breaks: u64,
    timer: Option<Pin<Box<Sleep>>>,
}

fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let next = {
            let mut state = self.network.lock();
            if state.breaks != self.breaks {
                return Poll::Ready(Err(reset()));
            }
            if state.poll_clear(cx).is_pending() {
                return Poll::Pending;
            }
            // For a break that comes while nothing else does.
            state.waiting.push(cx.waker().clone());
            let mut read = self.read.lock().expect("no holder panics");
            let read = &mut *read;
            let now = Instant::now();
            match read.pieces.front_mut() {
                Some((due, piece)) if *due <= now => {
                    let n = piece.len().min(buf.remaining());
                    buf.put_slice(&piece[..n]);
                    piece.drain(..n);
                    if piece.is_empty() {
                        read.pieces.pop_front();
                    }
                    read.bytes -= n;
                    if let Some(writer) = read.writer.take() {
                        writer.wake();
                    }
                    return Poll::Ready(Ok(()));
                }
                Some((due, _)) => {
                    read.reader = Some(cx.waker().clone());
                    Some(*due)
                }
                None => match read.closed {
                    Some(Closed::Finished) => return Poll::Ready(Ok(())),
                    Some(Closed::Broken) => return Poll::Ready(Err(reset())),
                    None => {
                        read.reader = Some(cx.waker().clone());
                        None
                    }
                },
            }
        };
        self.timer = next.map(|due| Box::pin(sleep_until(due)));
        if let Some(sleep) = self.timer.as_mut() {
            let _ = sleep.as_mut().poll(cx);
        }
        Poll::Pending
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.network.lock();
        let mut write = self.write.lock().expect("no holder panics");
        if state.breaks != self.breaks || write.closed.is_some() {
            return Poll::Ready(Err(reset()));
        }
        if write.bytes >= PIPE {
            write.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let n = bytes.len().min(PIPE - write.bytes);
        state.number += 1;
        let due = match state.arrival() {
            Some(due) => due,
            None => Instant::now() + RETRANSMISSION + state.weather.delay,
        };
        let due = write.last.map_or(due, |last| last.max(due));
        write.last = Some(due);
        write.bytes += n;
        write.pieces.push_back((due, bytes[..n].to_vec()));
        if let Some(reader) = write.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write
            .lock()
            .expect("no holder panics")
            .close(Closed::Finished);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        for direction in [&self.write, &self.read] {
            direction
                .lock()
                .expect("no holder panics")
                .close(Closed::Broken);
        }
    }
}
