//! Why a dial failed, in the words of Go's net package: front ends show them to people, and
//! match on parts of them.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use rustix::io::Errno;

/// Why a legacy dial failed.
#[derive(Debug)]
pub(super) enum DialFailure {
    /// Not `tcp`, `tcp4` or `tcp6`.
    Protocol,
    /// The address is not `host:port`.
    Address(String, &'static str),
    /// The name does not resolve.
    Lookup(String, &'static str),
    /// Connecting failed.
    Connect(SocketAddr, io::Error),
    /// Connecting took too long.
    Timeout(String),
    /// Our policy says no.
    Denied(String, String),
    /// As many dials as there may be.
    Busy,
}

impl DialFailure {
    /// Whether it counts as a timeout.
    pub(super) fn is_timeout(&self) -> bool {
        match self {
            DialFailure::Timeout(_) | DialFailure::Lookup(_, "i/o timeout") => true,
            DialFailure::Connect(_, error) => error.kind() == io::ErrorKind::TimedOut,
            _ => false,
        }
    }

    /// The whole text; `protocol` is what was asked for.
    pub(super) fn text(&self, protocol: &str) -> String {
        let protocol: String = protocol.chars().take(16).collect();
        match self {
            DialFailure::Protocol => format!("dial {protocol}: unknown network {protocol}"),
            DialFailure::Address(address, why) => {
                format!("dial {protocol}: address {address}: {why}")
            }
            DialFailure::Lookup(name, why) => format!("dial {protocol}: lookup {name}: {why}"),
            DialFailure::Connect(address, error) => {
                format!("dial {protocol} {address}: {}", Kernel(error))
            }
            DialFailure::Timeout(address) => format!("dial {protocol} {address}: i/o timeout"),
            DialFailure::Denied(address, why) => {
                format!("dial {protocol} {address}: connect: permission denied ({why})")
            }
            DialFailure::Busy => format!("dial {protocol}: socket: too many open files"),
        }
    }
}

/// An error of the kernel as Go prints it.
struct Kernel<'a>(&'a io::Error);

impl fmt::Display for Kernel<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errno = self.0.raw_os_error().map(Errno::from_raw_os_error);
        let text = match errno {
            Some(Errno::CONNREFUSED) => "connect: connection refused",
            Some(Errno::CONNRESET) => "connect: connection reset by peer",
            Some(Errno::HOSTUNREACH) => "connect: no route to host",
            Some(Errno::NETUNREACH) => "connect: network is unreachable",
            Some(Errno::TIMEDOUT) => "connect: connection timed out",
            Some(Errno::ACCESS) => "connect: permission denied",
            Some(Errno::PERM) => "connect: operation not permitted",
            Some(Errno::ADDRNOTAVAIL) => "connect: cannot assign requested address",
            Some(Errno::INVAL) => "connect: invalid argument",
            Some(Errno::MFILE | Errno::NFILE) => "socket: too many open files",
            Some(Errno::NOBUFS) => "socket: no buffer space available",
            _ => return write!(f, "connect: {}", self.0),
        };
        f.write_str(text)
    }
}

/// Host and port as Go splits them; the port may be a name.
pub(super) fn split(address: &str) -> Result<(&str, &str), DialFailure> {
    let wrong = |why| Err(DialFailure::Address(shown(address), why));
    let Some(colon) = address.rfind(':') else {
        return wrong("missing port in address");
    };
    let (host, port) = (&address[..colon], &address[colon + 1..]);
    if let Some(inside) = host.strip_prefix('[') {
        return match inside.strip_suffix(']') {
            Some(host) if !host.contains(['[', ']']) => Ok((host, port)),
            _ if address.contains(']') => match address.ends_with(']') {
                true => wrong("missing port in address"),
                false => wrong("too many colons in address"),
            },
            _ => wrong("missing ']' in address"),
        };
    }
    if host.contains(':') {
        return wrong("too many colons in address");
    }
    if address.contains('[') {
        return wrong("unexpected '[' in address");
    }
    if address.contains(']') {
        return wrong("unexpected ']' in address");
    }
    Ok((host, port))
}

/// An address of the server in a text: bounded, and on one line.
pub(super) fn shown(text: &str) -> String {
    let kept = text.chars().take(towline_proto::limits::HOST_BYTES);
    kept.filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_read_like_gos() {
        let address: SocketAddr = "10.0.0.7:10250".parse().unwrap();
        let os = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        for (failure, text) in [
            (
                DialFailure::Connect(address, os(Errno::CONNREFUSED)),
                "dial tcp 10.0.0.7:10250: connect: connection refused",
            ),
            (
                DialFailure::Connect(address, os(Errno::HOSTUNREACH)),
                "dial tcp 10.0.0.7:10250: connect: no route to host",
            ),
            (
                DialFailure::Connect(address, os(Errno::MFILE)),
                "dial tcp 10.0.0.7:10250: socket: too many open files",
            ),
            (
                DialFailure::Timeout("10.0.0.7:10250".to_owned()),
                "dial tcp 10.0.0.7:10250: i/o timeout",
            ),
            (
                DialFailure::Lookup("n7".to_owned(), "no such host"),
                "dial tcp: lookup n7: no such host",
            ),
            (
                DialFailure::Address("99999".to_owned(), "invalid port"),
                "dial tcp: address 99999: invalid port",
            ),
        ] {
            assert_eq!(failure.text("tcp"), text);
        }
        assert_eq!(
            DialFailure::Protocol.text("udp"),
            "dial udp: unknown network udp"
        );
    }

    #[test]
    fn addresses_are_split_like_gos() {
        let why = |address| match split(address) {
            Err(DialFailure::Address(_, why)) => why,
            other => panic!("{address}: {other:?}"),
        };
        assert_eq!(split("a:1").unwrap(), ("a", "1"));
        assert_eq!(split("[::1]:2").unwrap(), ("::1", "2"));
        assert_eq!(split(":80").unwrap(), ("", "80"));
        assert_eq!(why("a"), "missing port in address");
        assert_eq!(why("::1:80"), "too many colons in address");
        assert_eq!(why("[::1]"), "missing port in address");
        assert_eq!(why("[::1:80"), "missing ']' in address");
        assert_eq!(why("a]:80"), "unexpected ']' in address");
    }
}
