//! One TCP connection to a host that may have several addresses: the next address is tried when
//! the one before failed or took [`ADDRESS_STAGGER`], and the first connection wins.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::timeout;
use towline_proto::limits::{ADDRESS_STAGGER, SERVER_ADDRESSES};

use crate::error::ConnectError;

/// Connects to `host`, a name or an address (IPv6 without brackets or with).
pub(crate) async fn connect(host: &str, port: u16) -> Result<TcpStream, ConnectError> {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    let resolve = |source| ConnectError::Resolve {
        host: bare.to_owned(),
        source,
    };
    let found = lookup_host((bare, port)).await.map_err(resolve)?;
    let addresses = alternate(found.take(SERVER_ADDRESSES));
    if addresses.is_empty() {
        return Err(resolve(io::Error::from(io::ErrorKind::NotFound)));
    }
    first(addresses)
        .await
        .map_err(|source| ConnectError::Unreachable {
            server: format!("{host}:{port}"),
            source,
        })
}

/// The resolver's order, with the families taking turns.
fn alternate(found: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let all: Vec<SocketAddr> = found.collect();
    let Some(leading) = all.first().map(SocketAddr::is_ipv6) else {
        return all;
    };
    let (lead, rest): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|address| address.is_ipv6() == leading);
    let (mut lead, mut rest) = (lead.into_iter(), rest.into_iter());
    let mut order = Vec::new();
    loop {
        match (lead.next(), rest.next()) {
            (None, None) => return order,
            (one, other) => order.extend(one.into_iter().chain(other)),
        }
    }
}

/// The first connection, or the last error. Attempts that are left over end with the set.
async fn first(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut attempts = JoinSet::new();
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    let mut waiting = addresses.into_iter();
    loop {
        let next = waiting.next();
        let more = next.is_some();
        if let Some(address) = next {
            attempts.spawn(TcpStream::connect(address));
        }
        let joined = if more {
            match timeout(ADDRESS_STAGGER, attempts.join_next()).await {
                Ok(joined) => joined,
                Err(_) => continue,
            }
        } else {
            attempts.join_next().await
        };
        match joined {
            Some(Ok(Ok(tcp))) => return Ok(tcp),
            Some(Ok(Err(error))) => last = error,
            Some(Err(error)) => last = io::Error::other(error),
            None if waiting.len() == 0 => return Err(last),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns_and_the_resolvers_first_stays_first() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let found = ["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"].map(address);
        let order = alternate(found.into_iter());
        assert_eq!(
            order,
            ["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"].map(address)
        );
    }

    #[tokio::test]
    async fn a_dead_address_does_not_hide_a_live_one() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a free port");
        let live = listener.local_addr().expect("bound");
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a free port");
        let dead = closed.local_addr().expect("bound");
        drop(closed);
        let tcp = first(vec![dead, live])
            .await
            .expect("the second address answers");
        assert_eq!(tcp.peer_addr().expect("connected"), live);
        assert!(first(vec![dead]).await.is_err());
    }
}
