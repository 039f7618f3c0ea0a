//! What a dial asks for: a host and a port, read strictly.
//!
//! One text form for one address. Forms that different resolvers read differently (a decimal or
//! octal IPv4 address, a short one, a zone id) are refused instead of guessed at, because a check
//! on one reading and a connection by another is how such checks are passed by.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use crate::limits;

/// Why a text is not a target. The message says what is allowed; hostile text is escaped and cut.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("target is empty: use host:port")]
    Empty,
    #[error("target has {0} bytes, more than a host name and a port can have")]
    TooLong(usize),
    #[error("{0:?} is a URL: use host:port")]
    Url(String),
    #[error("target {0:?} has no port: use host:port")]
    NoPort(String),
    #[error("port {0:?} is not a number from 1 to 65535")]
    Port(String),
    #[error("IPv6 address in {0:?} needs brackets: use [address]:port")]
    Brackets(String),
    #[error("{0:?} is not an IPv6 address (zone ids are not allowed)")]
    Ipv6(String),
    #[error(
        "{0:?} looks like an IPv4 address but is not four decimal numbers without leading zeros"
    )]
    Ipv4Form(String),
    #[error("{0:?} is not a host name: letters, digits, '-' and '.' only")]
    Name(String),
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

/// A DNS name, lower-cased, without a trailing dot, and never readable as an IP address.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Arc<str>);

impl HostName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = TargetError;
    fn from_str(text: &str) -> Result<Self, TargetError> {
        if text.len() > limits::HOST_BYTES + 1 {
            return Err(TargetError::TooLong(text.len()));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        let label_ok = |label: &str| {
            let bytes = label.as_bytes();
            // '_' is no host name in RFC 1123 but stands in real service records.
            let inner = |b: &u8| b.is_ascii_alphanumeric() || *b == b'-' || *b == b'_';
            !bytes.is_empty()
                && bytes.len() <= 63
                && bytes.iter().all(inner)
                && bytes[0] != b'-'
                && bytes[bytes.len() - 1] != b'-'
        };
        if name.is_empty() || name.len() > limits::HOST_BYTES || !name.split('.').all(label_ok) {
            return Err(TargetError::Name(cut(text)));
        }
        // The C library reads "127.1", "2130706433" and "0x7f.1" as addresses. A last label that
        // begins like a number cannot be a top-level domain, so nothing real is lost.
        let last = name.rsplit('.').next().unwrap_or(name);
        let numeric = last.bytes().all(|b| b.is_ascii_digit())
            || (last.len() > 1
                && last[..2].eq_ignore_ascii_case("0x")
                && last[2..].bytes().all(|b| b.is_ascii_hexdigit()));
        if numeric {
            return Err(TargetError::Ipv4Form(cut(text)));
        }
        Ok(HostName(name.to_ascii_lowercase().into()))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a target is: an address, or a name that the agent resolves.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// An address; IPv4-mapped IPv6 addresses are kept as they were written.
    Ip(IpAddr),
    /// A name.
    Name(HostName),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Ip(ip) => ip.fmt(f),
            Host::Name(name) => name.fmt(f),
        }
    }
}

impl FromStr for Host {
    type Err = TargetError;
    /// Without brackets.
    fn from_str(text: &str) -> Result<Self, TargetError> {
        if text.contains(':') {
            return match text.parse::<Ipv6Addr>() {
                Ok(ip) => Ok(Host::Ip(ip.into())),
                Err(_) => Err(TargetError::Ipv6(cut(text))),
            };
        }
        // std refuses leading zeros, short and hexadecimal forms.
        if let Ok(ip) = text.parse::<Ipv4Addr>() {
            return Ok(Host::Ip(ip.into()));
        }
        text.parse().map(Host::Name)
    }
}

/// Host and port that a dial asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// Where.
    pub host: Host,
    /// Never zero.
    port: u16,
}

impl Target {
    /// `None` for port zero.
    pub fn new(host: Host, port: u16) -> Option<Self> {
        (port != 0).then_some(Self { host, port })
    }

    /// The port, never zero.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The socket address, when the host is an address.
    pub fn address(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Ip(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Name(_) => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

impl FromStr for Target {
    type Err = TargetError;

    /// Reads `host:port` or `[v6]:port`, the authority form of RFC 9112 section 3.2.3.
    fn from_str(text: &str) -> Result<Self, TargetError> {
        if text.is_empty() {
            return Err(TargetError::Empty);
        }
        if text.len() > limits::HOST_BYTES + 8 {
            return Err(TargetError::TooLong(text.len()));
        }
        if text.contains("://") {
            return Err(TargetError::Url(cut(text)));
        }
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (inside, after) = rest
                .split_once(']')
                .ok_or_else(|| TargetError::Ipv6(cut(text)))?;
            let port = after
                .strip_prefix(':')
                .ok_or_else(|| TargetError::NoPort(cut(text)))?;
            let ip: Ipv6Addr = inside.parse().map_err(|_| TargetError::Ipv6(cut(inside)))?;
            (Host::Ip(ip.into()), port)
        } else {
            let (host, port) = text
                .rsplit_once(':')
                .ok_or_else(|| TargetError::NoPort(cut(text)))?;
            if host.contains(':') {
                return Err(TargetError::Brackets(cut(text)));
            }
            (host.parse()?, port)
        };
        let digits =
            !port.is_empty() && port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit());
        let number = if digits { port.parse().unwrap_or(0) } else { 0 };
        Target::new(host, number).ok_or_else(|| TargetError::Port(cut(port)))
    }
}

/// What a target is to policy and routing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// The kubelet port of a node.
    Kubelet,
    /// Another port of a node.
    Node,
    /// An address in a pod prefix.
    Pod,
    /// An address in a service prefix, or a cluster-local name.
    Service,
    /// Anything else.
    Other,
}

impl Class {
    /// Every class, in order of number.
    pub const ALL: [Class; 5] = [
        Class::Kubelet,
        Class::Node,
        Class::Pod,
        Class::Service,
        Class::Other,
    ];

    /// The word used in flags, logs, metric labels and policy.
    pub const fn as_str(self) -> &'static str {
        match self {
            Class::Kubelet => "kubelet",
            Class::Node => "node",
            Class::Pod => "pod",
            Class::Service => "service",
            Class::Other => "other",
        }
    }

    /// The number on the wire.
    pub const fn code(self) -> u8 {
        match self {
            Class::Kubelet => 1,
            Class::Node => 2,
            Class::Pod => 3,
            Class::Service => 4,
            Class::Other => 5,
        }
    }

    /// The class of a number from the wire.
    pub fn from_code(code: u8) -> Option<Self> {
        Class::ALL.into_iter().find(|class| class.code() == code)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A set of classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Classes(u8);

impl Classes {
    /// The set of these.
    pub fn of(classes: &[Class]) -> Self {
        Self(classes.iter().fold(0, |set, class| set | 1 << class.code()))
    }

    /// Whether it is in the set.
    pub const fn has(self, class: Class) -> bool {
        self.0 >> class.code() & 1 == 1
    }

    /// With this one when the condition is met.
    #[must_use]
    pub fn with(self, class: Class, condition: bool) -> Self {
        if condition {
            Self(self.0 | 1 << class.code())
        } else {
            self
        }
    }
}

/// A word that names no class.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown class {0:?}: use kubelet, node, pod, service or other")]
pub struct UnknownClass(pub String);

impl FromStr for Class {
    type Err = UnknownClass;
    fn from_str(text: &str) -> Result<Self, UnknownClass> {
        Class::ALL
            .into_iter()
            .find(|class| class.as_str() == text)
            .ok_or_else(|| UnknownClass(cut(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn authorities_of_kube_apiserver_are_read() {
        for (text, host) in [
            ("10.0.0.7:10250", "10.0.0.7"),
            ("[fd00::7]:10250", "fd00::7"),
            ("node-7:10250", "node-7"),
            ("webhook.ns.svc:443", "webhook.ns.svc"),
            ("Webhook.NS.svc.:443", "webhook.ns.svc"),
        ] {
            assert_eq!(text.parse::<Target>().unwrap().host.to_string(), host);
        }
    }

    #[test]
    fn forms_that_resolvers_read_differently_are_refused() {
        for bad in [
            "",
            ":1",
            "a",
            "a:",
            "a:0",
            "a:65536",
            "a:+1",
            "a: 1",
            "a:1 ",
            "a:00000001",
            "::1:80",
            "[::1]",
            "[::1",
            "[::1%eth0]:1",
            "[a]:1",
            "127.1:1",
            "2130706433:1",
            "0177.0.0.1:1",
            "0x7f.0.0.1:1",
            "0x7f000001:1",
            "1.2.3:1",
            "1.2.3.4.5:1",
            "1.2.3.04:1",
            "a b:1",
            "a/b:1",
            "a@b:1",
            "a\r\nb:1",
            "http://a:1",
            "*.svc:1",
            "-a:1",
            "a..b:1",
            "ä:1",
            "a%00:1",
        ] {
            assert!(bad.parse::<Target>().is_err(), "{bad:?}");
        }
        assert!(format!("{}:1", "a".repeat(254)).parse::<Target>().is_err());
    }

    proptest! {
        #[test]
        fn a_target_reads_as_it_prints(text in "\\PC{0,40}") {
            if let Ok(target) = text.parse::<Target>() {
                prop_assert_eq!(target.to_string().parse::<Target>().unwrap(), target);
            }
        }

        #[test]
        fn every_address_is_a_target(ip: IpAddr, port in 1u16..) {
            let target = Target::new(Host::Ip(ip), port).unwrap();
            prop_assert_eq!(target.to_string().parse::<Target>().unwrap(), target);
        }
    }
}
