//! From a DIAL_REQ to a connected target: address, policy, permit, connection.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use towline_proto::limits;
use towline_proto::target::{Class, Host};

use super::text::{DialFailure, shown, split};
use crate::connect::{ConnectFailure, connect_each};
use crate::policy::Lookup;
use crate::serve::Serve;

/// Which addresses a protocol may use.
#[derive(Clone, Copy)]
enum Family {
    Any,
    V4,
    V6,
}

impl Family {
    fn of(protocol: &str) -> Option<Self> {
        match protocol {
            "tcp" => Some(Family::Any),
            "tcp4" => Some(Family::V4),
            "tcp6" => Some(Family::V6),
            _ => None,
        }
    }

    fn has(self, ip: &IpAddr) -> bool {
        match self {
            Family::Any => true,
            Family::V4 => ip.is_ipv4(),
            Family::V6 => ip.is_ipv6(),
        }
    }
}

/// A target that is connected.
pub(super) struct Connected {
    pub(super) target: TcpStream,
    pub(super) slot: OwnedSemaphorePermit,
    pub(super) class: Class,
    pub(super) address: SocketAddr,
}

/// Connects, within the agent's own limit.
pub(super) async fn dial(
    serve: &Serve,
    protocol: &str,
    address: &str,
) -> Result<Connected, DialFailure> {
    let family = Family::of(protocol).ok_or(DialFailure::Protocol)?;
    let slot = serve.slot().ok_or(DialFailure::Busy)?;
    let limit = serve.connect_timeout();
    let begun = tokio::time::Instant::now();
    let late = || DialFailure::Timeout(shown(address));
    let resolve = resolve(serve, family, address);
    let (resolved, name, port) = tokio::time::timeout(limit, resolve)
        .await
        .map_err(|_| late())??;
    let policy = serve.policy();
    let permits = policy
        .check_open(&resolved, name.as_deref(), port, serve)
        .map_err(|denial| {
            serve.metrics().denied(Class::Other, &denial);
            DialFailure::Denied(shown(address), denial.to_string())
        })?;
    let class = permits
        .first()
        .map_or(Class::Other, |permit| permit.class());
    let left = limit.saturating_sub(begun.elapsed());
    match connect_each(serve.network(), permits, left).await {
        Ok((target, address)) => {
            serve.metrics().connected(begun.elapsed());
            Ok(Connected {
                target,
                slot,
                class,
                address,
            })
        }
        Err(ConnectFailure::Io(address, error)) => Err(DialFailure::Connect(address, error)),
        Err(ConnectFailure::Timeout(_) | ConnectFailure::Nothing) => Err(late()),
    }
}

async fn resolve(
    serve: &Serve,
    family: Family,
    address: &str,
) -> Result<(Vec<IpAddr>, Option<String>, u16), DialFailure> {
    let (host, port) = split(address)?;
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let port = match port.parse::<u16>() {
        Ok(port) if port != 0 => port,
        _ if digits => return Err(DialFailure::Address(shown(port), "invalid port")),
        _ => {
            let name = format!("tcp/{}", shown(port));
            return Err(DialFailure::Lookup(name, "unknown port"));
        }
    };
    let missing = || DialFailure::Lookup(shown(host), "no such host");
    let target: Host = host.parse().map_err(|_| missing())?;
    let policy = serve.policy();
    let mut found = match policy.lookup_host(&target) {
        Lookup::Known(addresses) => addresses,
        Lookup::Resolve(name) => {
            serve
                .network()
                .resolve(name)
                .await
                .map_err(|error| match error.kind() {
                    io::ErrorKind::TimedOut => DialFailure::Lookup(shown(host), "i/o timeout"),
                    _ => missing(),
                })?
        }
    };
    found.truncate(limits::RESOLVED_ADDRESSES);
    if found.is_empty() {
        return Err(missing());
    }
    found.retain(|ip| family.has(ip));
    match found.is_empty() {
        true => Err(DialFailure::Address(
            shown(host),
            "no suitable address found",
        )),
        false => {
            let name = match &target {
                Host::Name(name) => Some(name.to_string()),
                Host::Ip(_) => None,
            };
            Ok((found, name, port))
        }
    }
}
