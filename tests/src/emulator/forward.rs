//! Runs two lines, one each way, between two ports, on one thread each.
//!
//! Plain threads and `ppoll`: an async runtime's timer counts in milliseconds, and a path that releases
//! its packets in bursts of a millisecond is another path.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use super::line::{Counts, Line, Path};

/// Packets that are read before due ones are looked at again.
const BURST: usize = 64;
/// How soon a stop is noticed.
const LOOK: Duration = Duration::from_millis(200);
/// Largest packet.
const PACKET_BYTES: usize = 64 * 1024;

/// One end of the path: gives and takes whole packets and never blocks.
pub trait Port: AsFd + Send + Sync + 'static {
    /// The next packet that enters the path here.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize>;
    /// A packet that leaves the path here.
    fn send(&self, packet: &[u8]) -> io::Result<()>;
}

/// What became of the packets of both directions.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct Traffic {
    /// From the near port to the far one.
    pub outward: Counts,
    /// From the far port to the near one.
    pub inward: Counts,
}

/// A running path.
#[derive(Debug)]
pub struct Forwarder {
    stop: Arc<AtomicBool>,
    outward: thread::JoinHandle<io::Result<Counts>>,
    inward: thread::JoinHandle<io::Result<Counts>>,
}

impl Forwarder {
    /// Starts forwarding between two ports.
    pub fn start(near: Arc<dyn Port>, far: Arc<dyn Port>, outward: Path, inward: Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let run = |from: &Arc<dyn Port>, to: &Arc<dyn Port>, path| {
            let (from, to, stop) = (Arc::clone(from), Arc::clone(to), Arc::clone(&stop));
            thread::spawn(move || run(&*from, &*to, path, &stop))
        };
        let outward = run(&near, &far, outward);
        let inward = run(&far, &near, inward);
        Self {
            stop,
            outward,
            inward,
        }
    }

    /// Stops and says what became of the packets.
    pub fn stop(self) -> io::Result<Traffic> {
        self.stop.store(true, Ordering::Relaxed);
        let joined = |handle: thread::JoinHandle<io::Result<Counts>>| {
            handle
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a forwarding thread panicked")))
        };
        Ok(Traffic {
            outward: joined(self.outward)?,
            inward: joined(self.inward)?,
        })
    }
}

fn run(from: &dyn Port, to: &dyn Port, path: Path, stop: &AtomicBool) -> io::Result<Counts> {
    let mut line = Line::new(path);
    let mut buffer = vec![0; PACKET_BYTES];
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..BURST {
            match from.receive(&mut buffer) {
                Ok(length) => line.push(&buffer[..length], Instant::now()),
                Err(error) if transient(&error) => break,
                Err(error) => return Err(error),
            }
        }
        let now = Instant::now();
        while line.deliver(now, |packet| to.send(packet).is_ok()) {}
        let wait = line
            .next_due()
            .map_or(LOOK, |due| due.saturating_duration_since(Instant::now()));
        if !wait.is_zero() {
            sleep(from, wait.min(LOOK))?;
        }
    }
    Ok(line.counts())
}

/// Waits for a packet or for this long.
fn sleep(from: &dyn Port, wait: Duration) -> io::Result<()> {
    let fd = from.as_fd();
    let wait = Timespec {
        tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(wait.subsec_nanos()),
    };
    match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&wait)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Nothing there yet, or an ICMP answer to an earlier datagram (the far end is not up yet).
fn transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionRefused
    )
}
