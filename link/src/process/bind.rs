//! TCP listeners of every kind, made in one way: both address families on one socket, a port
//! that is taken over from a process that just ended, and machines without IPv6.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use rustix::io::Errno;
use socket2::{Domain, Socket, Type};
use towline_proto::limits;

/// Listens, not blocking. `[::]` takes IPv4 too, and means every IPv4 address where there is no
/// IPv6.
pub fn tcp(address: SocketAddr) -> io::Result<TcpListener> {
    any(address, listen)
}

/// Makes something at `address`; where that is `[::]` on a machine without IPv6, at every IPv4
/// address instead.
pub fn any<T>(
    address: SocketAddr,
    mut make: impl FnMut(SocketAddr) -> io::Result<T>,
) -> io::Result<T> {
    match make(address) {
        Err(error) if is_without_ipv6(address, &error) => {
            make((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        made => made,
    }
}

/// No such family at all, or no address of it (`disable_ipv6`). Only who asked for every address
/// gets others than those asked for.
fn is_without_ipv6(address: SocketAddr, error: &io::Error) -> bool {
    let code = error.raw_os_error();
    let missing = [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL].map(|errno| Some(errno.raw_os_error()));
    address.is_ipv6() && address.ip().is_unspecified() && missing.contains(&code)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None)?;
    if address.is_ipv6() {
        // Whatever the machine's default is (net.ipv6.bindv6only).
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // A restarted daemon takes its port back while old connections are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(limits::LISTEN_BACKLOG).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv6Addr, TcpStream};

    const EVERYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::UNSPECIFIED), 7);

    /// Where things are made on a machine whose IPv6 fails with this.
    fn made(address: SocketAddr, errno: Errno) -> (Vec<SocketAddr>, io::Result<()>) {
        let mut asked = Vec::new();
        let result = any(address, |at| {
            asked.push(at);
            match at.is_ipv6() {
                true => Err(errno.into()),
                false => Ok(()),
            }
        });
        (asked, result)
    }

    #[test]
    fn without_ipv6_every_address_is_every_ipv4_address() {
        for errno in [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL] {
            let (asked, result) = made(EVERYWHERE, errno);
            assert_eq!(asked, [EVERYWHERE, "0.0.0.0:7".parse().unwrap()]);
            result.unwrap();
        }
    }

    #[test]
    fn what_is_asked_for_by_name_or_taken_is_not_given_elsewhere() {
        let one = "[fd00::7]:7".parse().unwrap();
        for (address, errno) in [(one, Errno::ADDRNOTAVAIL), (EVERYWHERE, Errno::ADDRINUSE)] {
            let (asked, result) = made(address, errno);
            assert_eq!(asked, [address]);
            assert_eq!(
                result.unwrap_err().raw_os_error(),
                Some(errno.raw_os_error())
            );
        }
    }

    #[test]
    fn every_address_takes_both_families_and_one_takes_its_own() {
        let listener = tcp((Ipv6Addr::UNSPECIFIED, 0).into()).unwrap();
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        TcpStream::connect((Ipv6Addr::LOCALHOST, port)).unwrap();
        let one = tcp((Ipv6Addr::LOCALHOST, 0).into()).unwrap();
        assert!(Socket::from(one).only_v6().unwrap());
        tcp((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    }
}
