//! From a DIAL_REQ to a connected target: address, policy, permit, connection.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use towline_proto::limits;
use towline_proto::target::{Class, Host, Target};

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
    /// What was asked for, and what that is.
    pub(super) asked: Target,
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
    let (resolved, asked) = tokio::time::timeout(limit, resolve)
        .await
        .map_err(|_| late())??;
    let name = match &asked.host {
        Host::Name(name) => Some(name.as_str()),
        Host::Ip(_) => None,
    };
    let policy = serve.policy();
    let permits = policy
        .check_open(&resolved, name, asked.port(), serve)
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
                asked,
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
) -> Result<(Vec<IpAddr>, Target), DialFailure> {
    let (host, port) = split(address)?;
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let number = match port.parse::<u16>() {
        Ok(number) => number,
        _ if digits => return Err(DialFailure::Address(shown(port), "invalid port")),
        _ => {
            let name = format!("tcp/{}", shown(port));
            return Err(DialFailure::Lookup(name, "unknown port"));
        }
    };
    let missing = || DialFailure::Lookup(shown(host), "no such host");
    let target: Host = host.parse().map_err(|_| missing())?;
    let invalid = || DialFailure::Address(shown(port), "invalid port");
    let target = Target::new(target, number).ok_or_else(invalid)?;
    let policy = serve.policy();
    let mut found = match policy.lookup(&target) {
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
        false => Ok((found, target)),
    }
}
