//! The seam to the node's kernel: names to addresses, permits to connections. Nothing here
//! judges; what may be reached was decided in `policy`, and only a [`Permit`] opens a socket.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustix::io::Errno;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use towline_proto::limits;
use towline_proto::reason::Reason;
use towline_proto::target::HostName;

use crate::policy::Permit;

/// What the agent needs of the machine below it. Tests put their own in its place, so that the
/// policy is proved on real addresses without being root.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// All addresses of a name, as the node resolves it.
    async fn resolve(&self, name: &HostName) -> io::Result<Vec<IpAddr>>;
    /// Connects to the address of the permit, and to no other.
    async fn connect(&self, permit: Permit) -> io::Result<TcpStream>;
    /// Whether the address is one of the node's own. In doubt it is.
    fn is_local(&self, ip: IpAddr) -> bool;
}

/// The node's own kernel and resolver.
#[derive(Debug)]
pub struct KernelNetwork {
    /// The C library resolves on threads: a slow name server must not use up all of them.
    lookups: Arc<Semaphore>,
    /// Binding to foreign addresses is allowed here, so binding proves nothing.
    any_bind: bool,
}

impl Default for KernelNetwork {
    fn default() -> Self {
        let set = |path| fs::read_to_string(path).is_ok_and(|text| text.trim() != "0");
        Self {
            lookups: Arc::new(Semaphore::new(limits::LOOKUPS)),
            any_bind: set("/proc/sys/net/ipv4/ip_nonlocal_bind")
                || set("/proc/sys/net/ipv6/ip_nonlocal_bind"),
        }
    }
}

#[async_trait]
impl Network for KernelNetwork {
    async fn resolve(&self, name: &HostName) -> io::Result<Vec<IpAddr>> {
        let name = name.clone();
        let lookup = on_thread(&self.lookups, move || {
            let found = (name.as_str(), 0).to_socket_addrs()?;
            Ok(found.map(|address| address.ip()).collect())
        });
        tokio::time::timeout(limits::LOOKUP_TIMEOUT, lookup)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn connect(&self, permit: Permit) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(permit.address()).await?;
        tune(&stream)?;
        Ok(stream)
    }

    fn is_local(&self, ip: IpAddr) -> bool {
        if self.any_bind {
            return listed(ip).unwrap_or(true);
        }
        // The kernel's own answer, for this one address, without reading a list of thousands
        // (IPVS binds every service address of the cluster on the node).
        match UdpSocket::bind((ip, 0)) {
            Ok(_) => true,
            Err(error) => !errno(&error, &[Errno::ADDRNOTAVAIL, Errno::AFNOSUPPORT]),
        }
    }
}

/// Does on a thread what may block. It has its place until it returns, also when nobody waits for
/// it any more: a thread that hangs cannot be taken back, and the next one would be one more.
async fn on_thread<T: Send + 'static>(
    places: &Arc<Semaphore>,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    // The semaphore is never closed; if it were, nothing would be looked up.
    let place = Arc::clone(places).acquire_owned().await;
    let place = place.map_err(io::Error::other)?;
    let working = tokio::task::spawn_blocking(move || {
        let _place = place;
        work()
    });
    working.await.map_err(io::Error::other)?
}

/// Small writes go at once; a target that vanished is noticed.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// An idle `kubectl exec` lives for hours; its target is asked this often whether it still does.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

fn errno(error: &io::Error, among: &[Errno]) -> bool {
    among
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// The slow way: from the kernel's table of local routes (IPv4) and of addresses (IPv6).
fn listed(ip: IpAddr) -> io::Result<bool> {
    match ip {
        IpAddr::V4(ip) => Ok(in_fib_trie(
            &fs::read_to_string("/proc/self/net/fib_trie")?,
            ip,
        )),
        IpAddr::V6(ip) => Ok(in_if_inet6(
            &fs::read_to_string("/proc/self/net/if_inet6")?,
            ip,
        )),
    }
}

/// `|-- 10.0.0.7` followed by `/32 host LOCAL`.
fn in_fib_trie(table: &str, ip: Ipv4Addr) -> bool {
    let mut here = false;
    for line in table.lines().map(str::trim) {
        if let Some(leaf) = line.strip_prefix("|-- ") {
            here = leaf.parse() == Ok(ip);
        } else if here && line.ends_with("host LOCAL") {
            return true;
        }
    }
    ip.is_loopback()
}

/// 32 hexadecimal digits at the start of a line.
fn in_if_inet6(table: &str, ip: Ipv6Addr) -> bool {
    let digits = format!("{:032x}", u128::from(ip));
    table.lines().any(|line| line.starts_with(&digits))
}

/// Why none of several permits led to a connection: what happened to the last one.
#[derive(Debug)]
pub enum ConnectFailure {
    /// The kernel said no.
    Io(SocketAddr, io::Error),
    /// Nobody answered.
    Timeout(SocketAddr),
    /// There was no permit.
    Nothing,
}

/// Tries each permit in order within one deadline; the last failure is told.
pub async fn connect_each(
    network: &dyn Network,
    permits: Vec<Permit>,
    limit: Duration,
) -> Result<(TcpStream, SocketAddr), ConnectFailure> {
    let deadline = tokio::time::Instant::now() + limit;
    let mut left = u32::try_from(permits.len()).unwrap_or(u32::MAX).max(1);
    let mut failed = ConnectFailure::Nothing;
    for permit in permits {
        let address = permit.address();
        // A black hole among several addresses must not use up the time of the others.
        let now = tokio::time::Instant::now();
        let share = deadline.saturating_duration_since(now) / left;
        left -= 1;
        match tokio::time::timeout(share, network.connect(permit)).await {
            Ok(Ok(stream)) => return Ok((stream, address)),
            Ok(Err(error)) => failed = ConnectFailure::Io(address, error),
            Err(_) => failed = ConnectFailure::Timeout(address),
        }
    }
    Err(failed)
}

/// [`connect_each`], with the failure as a reason.
pub async fn connect_first(
    network: &dyn Network,
    permits: Vec<Permit>,
    limit: Duration,
) -> Result<(TcpStream, SocketAddr), (Reason, Option<IpAddr>)> {
    connect_each(network, permits, limit)
        .await
        .map_err(|failure| match failure {
            ConnectFailure::Io(address, error) => (reason_of(&error), Some(address.ip())),
            ConnectFailure::Timeout(address) => (Reason::TargetTimeout, Some(address.ip())),
            ConnectFailure::Nothing => (Reason::TargetUnreachable, None),
        })
}

/// What a failed connection attempt means.
pub fn reason_of(error: &io::Error) -> Reason {
    let exhausted = [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::ADDRNOTAVAIL,
    ];
    if errno(error, &exhausted) {
        return Reason::AgentBusy;
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Reason::TargetRefused,
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => Reason::TargetReset,
        io::ErrorKind::TimedOut => Reason::TargetTimeout,
        _ => Reason::TargetUnreachable,
    }
}

/// What a failed look-up means.
pub fn lookup_reason(error: &io::Error) -> Reason {
    match reason_of(error) {
        Reason::AgentBusy => Reason::AgentBusy,
        _ => Reason::NameNotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_ours_and_a_documentation_address_is_not() {
        for any_bind in [false, true] {
            let network = KernelNetwork {
                lookups: Arc::new(Semaphore::new(1)),
                any_bind,
            };
            assert!(network.is_local([127, 0, 0, 1].into()), "{any_bind}");
            assert!(!network.is_local([192, 0, 2, 1].into()), "{any_bind}");
        }
    }

    #[tokio::test]
    async fn a_lookup_that_hangs_keeps_its_place_when_nobody_waits_for_it() {
        let places = Arc::new(Semaphore::new(1));
        let (release, hangs) = std::sync::mpsc::channel::<()>();
        let (begun, mut begins) = tokio::sync::mpsc::channel(1);
        let first = on_thread(&places, move || {
            let _ = begun.blocking_send(());
            hangs.recv().map_err(io::Error::other)
        });
        tokio::select! {
            _ = first => panic!("it hangs"),
            told = begins.recv() => told.expect("it began"),
        }
        // Given up, as a dial is; another one waits instead of taking one more thread.
        assert_eq!(places.available_permits(), 0);
        release.send(()).expect("it still hangs");
        assert_eq!(on_thread(&places, || Ok(7)).await.expect("its turn"), 7);
    }

    #[test]
    fn local_addresses_are_read_from_the_kernels_tables() {
        let trie = "Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.0.0.0\n        /24 link UNICAST\n     |-- 10.0.0.7\n        /32 host LOCAL\n     |-- 10.0.0.255\n        /32 link BROADCAST\n";
        assert!(in_fib_trie(trie, [10, 0, 0, 7].into()));
        assert!(!in_fib_trie(trie, [10, 0, 0, 255].into()));
        assert!(!in_fib_trie(trie, [10, 0, 0, 0].into()));
        assert!(in_fib_trie(trie, [127, 0, 0, 9].into()));
        let inet6 = "00000000000000000000000000000001 01 80 10 80       lo\nfd000000000000000000000000000007 02 40 00 80     eth0\n";
        assert!(in_if_inet6(inet6, "fd00::7".parse().unwrap()));
        assert!(!in_if_inet6(inet6, "fd00::8".parse().unwrap()));
    }

    #[test]
    fn failures_have_reasons() {
        let os = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        for (error, expected) in [
            (os(Errno::CONNREFUSED), Reason::TargetRefused),
            (os(Errno::HOSTUNREACH), Reason::TargetUnreachable),
            (os(Errno::NETUNREACH), Reason::TargetUnreachable),
            (os(Errno::ACCESS), Reason::TargetUnreachable),
            (os(Errno::TIMEDOUT), Reason::TargetTimeout),
            (os(Errno::CONNRESET), Reason::TargetReset),
            (os(Errno::MFILE), Reason::AgentBusy),
        ] {
            assert_eq!(reason_of(&error), expected, "{error}");
        }
        assert_eq!(lookup_reason(&os(Errno::MFILE)), Reason::AgentBusy);
        assert_eq!(
            lookup_reason(&io::Error::other("no such name")),
            Reason::NameNotFound
        );
    }
}
