//! The knobs of a TCP socket under a link.

use std::io;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use towline_proto::limits;

/// Sets what every link wants: no delay, few unsent bytes in the kernel, an end to silence.
pub(crate) fn prepare(tcp: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(tcp);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(limits::TCP_UNSENT)?;
    socket.set_tcp_user_timeout(Some(limits::TCP_UNACKNOWLEDGED))?;
    let (idle, interval) = limits::TCP_KEEP_ALIVE;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle).with_interval(interval))
}
