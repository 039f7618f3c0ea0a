//! The path between two loopback ports, for UDP only: what can be measured without root.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use socket2::SockRef;

use super::forward::{Forwarder, Port};
use super::line::Path;

/// Enough for a burst of a fast sender; the kernel grants up to its own limit.
const BUFFER: usize = 4 * 1024 * 1024;

/// Where the client is heard. Datagrams go back to whoever spoke last: there is one agent.
struct Near {
    socket: UdpSocket,
    client: Mutex<Option<SocketAddr>>,
}

/// Connected to the server.
struct Far(UdpSocket);

impl AsFd for Near {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsFd for Far {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Port for Near {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let (length, from) = self.socket.recv_from(buffer)?;
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = Some(from);
        Ok(length)
    }

    fn send(&self, packet: &[u8]) -> io::Result<()> {
        let client = *self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let client = client.ok_or(io::ErrorKind::NotConnected)?;
        self.socket.send_to(packet, client).map(drop)
    }
}

impl Port for Far {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.recv(buffer)
    }

    fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.0.send(packet).map(drop)
    }
}

fn tuned(socket: UdpSocket) -> io::Result<UdpSocket> {
    let reference = SockRef::from(&socket);
    reference.set_recv_buffer_size(BUFFER)?;
    reference.set_send_buffer_size(BUFFER)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A path to `server`; its near end is the address that is returned.
pub fn start(
    server: SocketAddr,
    outward: Path,
    inward: Path,
) -> io::Result<(SocketAddr, Forwarder)> {
    let any = SocketAddr::new(server.ip(), 0);
    let near = tuned(UdpSocket::bind(any)?)?;
    let far = tuned(UdpSocket::bind(any)?)?;
    far.connect(server)?;
    let address = near.local_addr()?;
    let near = Arc::new(Near {
        socket: near,
        client: Mutex::new(None),
    });
    Ok((
        address,
        Forwarder::start(near, Arc::new(Far(far)), outward, inward),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_datagram_takes_the_round_trip_time() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let delay = Duration::from_millis(15);
        let path = Path::new(delay, 0.0, 1);
        let (near, forwarder) =
            start(server.local_addr().expect("address"), path, path).expect("start");
        let client = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let began = Instant::now();
        client.send_to(b"there", near).expect("send");
        let mut buffer = [0; 16];
        let (length, from) = server.recv_from(&mut buffer).expect("receive");
        assert_eq!(&buffer[..length], b"there");
        server.send_to(b"and back", from).expect("send");
        let (length, _) = client.recv_from(&mut buffer).expect("receive");
        assert_eq!(&buffer[..length], b"and back");
        assert!(began.elapsed() >= 2 * delay, "{:?}", began.elapsed());
        let traffic = forwarder.stop().expect("stop");
        assert_eq!(
            (traffic.outward.forwarded, traffic.inward.forwarded),
            (1, 1)
        );
    }
}
