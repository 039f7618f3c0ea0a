//! The peers without Towline: no relay at all, and two plain ones.

use std::net::SocketAddr;

use super::super::door::Door;
use super::super::failure::{During, Failure, Result};
use super::super::process::{Launch, Process, START};
use super::{Chain, Place, Route, text};

type Target = (Process, SocketAddr);

/// The target itself.
pub fn direct((target, address): Target, place: &Place) -> Result<Chain> {
    match place.route {
        Route::Loopback => Ok(Chain {
            door: Door::Tcp(address),
            target,
            front: None,
            back: None,
            line: None,
            link: None,
        }),
        Route::Namespaces { .. } | Route::Udp { .. } => Err(Failure::new("only on loopback")),
    }
}

/// Unix socket, relay, TCP, relay, target.
pub async fn relay((target, address): Target, place: &Place) -> Result<Chain> {
    let (near, far, host) = match place.route {
        Route::Loopback => (None, None, std::net::Ipv4Addr::LOCALHOST.into()),
        // Between namespaces the front end connects outward, to the far address.
        Route::Namespaces { near, far, .. } => {
            let host = crate::emulator::namespace::FAR
                .parse()
                .during("far address")?;
            (Some(near), Some(far), host)
        }
        Route::Udp { .. } => return Err(Failure::new("needs namespaces")),
    };
    let back = SocketAddr::new(host, 0).to_string();
    let arguments = ["relay", "--tcp", &back, "--to", &address.to_string()];
    let mut back = Launch::own("relay-back", &place.directory, &arguments)?
        .within(far)
        .start()?;
    let middle = back.ready(START).await?;

    let path = place.directory.join("door");
    let arguments = ["relay", "--unix", &text(&path)?, "--to", &middle];
    let mut front = Launch::own("relay-front", &place.directory, &arguments)?
        .within(near)
        .start()?;
    front.ready(START).await?;
    Ok(Chain {
        door: Door::Unix(path),
        target,
        front: Some(front),
        back: Some(back),
        line: None,
        link: None,
    })
}
