//! UDP sockets: both address families on one, large buffers, and what was really granted.

use std::fs;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;

use rustix::net::sockopt;
use socket2::{Domain, Protocol, Socket, Type};
use towline_proto::limits;

use super::keys::KeysError;
use super::transport::OptionsError;
use crate::process::bind;

/// Why an endpoint could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address cannot be used.
    #[error("cannot listen on UDP {address}: {source}")]
    Socket {
        /// What was asked for.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// QUIC cannot run with these values.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// No keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
}

/// UDP socket buffers in bytes that can be used. The kernel reports twice that, for its own
/// book-keeping; these numbers are halved, so that they compare with what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpBuffers {
    /// What was asked for, each way.
    pub asked: usize,
    /// What the kernel granted for receiving.
    pub granted_recv: usize,
    /// What the kernel granted for sending.
    pub granted_send: usize,
}

impl UdpBuffers {
    /// Whether packets will be lost in bursts: QUIC is then slower than TLS.
    pub fn low(&self) -> bool {
        self.granted_recv.min(self.granted_send) < limits::UDP_BUFFER_LOW
    }

    /// The one warning about it, with the lines that mend it.
    pub fn warning(&self) -> Option<String> {
        self.low().then(|| {
            format!(
                "UDP buffers are {} KiB (receive) and {} KiB (send) where {} KiB were asked for: QUIC \
                 will lose packets in bursts. Run: sysctl -w net.core.rmem_max={} && sysctl -w \
                 net.core.wmem_max={}  (or grant CAP_NET_ADMIN), then restart",
                self.granted_recv / 1024,
                self.granted_send / 1024,
                self.asked / 1024,
                self.asked,
                self.asked,
            )
        })
    }
}

/// A bound socket and what is known about it.
pub(super) struct BoundSocket {
    pub(super) socket: UdpSocket,
    pub(super) buffers: UdpBuffers,
    pub(super) drops: Option<DropCounter>,
}

/// Binds UDP. An unspecified IPv6 address serves IPv4 too, and falls back to IPv4 alone on
/// machines without IPv6.
pub(super) fn bind(address: SocketAddr, buffer: usize) -> Result<BoundSocket, BindError> {
    bind::any(address, |at| bind_one(at, buffer))
        .map_err(|source| BindError::Socket { address, source })
}

fn bind_one(address: SocketAddr, buffer: usize) -> io::Result<BoundSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    let buffers = set_buffers(&socket, buffer)?;
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    let socket = UdpSocket::from(socket);
    let drops = DropCounter::of(&socket);
    Ok(BoundSocket {
        socket,
        buffers,
        drops,
    })
}

/// With CAP_NET_ADMIN the limit of the machine does not apply; without it the kernel silently
/// grants less, so the result is read back.
fn set_buffers(socket: &Socket, asked: usize) -> io::Result<UdpBuffers> {
    let fd = socket.as_fd();
    if sockopt::set_socket_recv_buffer_size_force(fd, asked).is_err() {
        socket.set_recv_buffer_size(asked)?;
    }
    if sockopt::set_socket_send_buffer_size_force(fd, asked).is_err() {
        socket.set_send_buffer_size(asked)?;
    }
    Ok(UdpBuffers {
        asked,
        granted_recv: socket.recv_buffer_size()? / 2,
        granted_send: socket.send_buffer_size()? / 2,
    })
}

/// Finds how many datagrams the kernel dropped because the receive buffer was full.
#[derive(Clone, Copy, Debug)]
pub struct DropCounter {
    inode: u64,
    table: &'static str,
}

impl DropCounter {
    fn of(socket: &UdpSocket) -> Option<Self> {
        let table = match socket.local_addr().ok()? {
            SocketAddr::V4(_) => "/proc/self/net/udp",
            SocketAddr::V6(_) => "/proc/self/net/udp6",
        };
        let inode = rustix::fs::fstat(socket).ok()?.st_ino;
        Some(Self { inode, table })
    }

    /// Datagrams dropped since the socket was made. Reads a table of the kernel: for scrapes,
    /// not for the data path.
    pub fn read(&self) -> Option<u64> {
        drops_in(&fs::read_to_string(self.table).ok()?, self.inode)
    }
}

/// Columns of the kernel's table: `sl local remote st queues timer retransmits uid timeout inode
/// ref pointer drops`.
fn drops_in(table: &str, inode: u64) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let mut columns = line.split_ascii_whitespace().skip(9);
        if columns.next()?.parse::<u64>() != Ok(inode) {
            return None;
        }
        columns.nth(2)?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    const TABLE: &str = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  431: 0100007F:1F9B 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0000000000000000 0
  500: 0100007F:1F9C 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4712 2 0000000000000000 52391
  501: short
";

    #[test]
    fn drops_are_read_from_the_row_of_the_socket() {
        assert_eq!(drops_in(TABLE, 4711), Some(0));
        assert_eq!(drops_in(TABLE, 4712), Some(52391));
        assert_eq!(drops_in(TABLE, 4713), None);
        assert_eq!(drops_in("", 4711), None);
    }

    #[test]
    fn a_new_socket_has_dropped_nothing() {
        for address in [
            SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            (Ipv6Addr::UNSPECIFIED, 0).into(),
        ] {
            let bound = bind(address, 256 * 1024).unwrap();
            assert_eq!(bound.drops.unwrap().read(), Some(0), "{address}");
        }
    }

    #[test]
    fn a_socket_on_any_address_takes_both_families() {
        let bound = bind((Ipv6Addr::UNSPECIFIED, 0).into(), limits::UDP_BUFFER).unwrap();
        let port = bound.socket.local_addr().unwrap().port();
        let v4 = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        v4.send_to(b"x", (Ipv4Addr::LOCALHOST, port)).unwrap();
        bound.socket.set_nonblocking(false).unwrap();
        let (_, from) = bound.socket.recv_from(&mut [0; 8]).unwrap();
        assert_eq!(from.ip().to_canonical(), Ipv4Addr::LOCALHOST);
    }

    #[test]
    fn the_warning_names_the_lines_to_run() {
        let fine = UdpBuffers {
            asked: 8 << 20,
            granted_recv: 1 << 20,
            granted_send: 8 << 20,
        };
        assert_eq!(fine.warning(), None);
        let low = UdpBuffers {
            granted_recv: 212_992,
            ..fine
        };
        let warning = low.warning().unwrap();
        assert!(
            warning.contains("sysctl -w net.core.rmem_max=8388608"),
            "{warning}"
        );
        assert!(warning.contains("208 KiB"), "{warning}");
    }
}
