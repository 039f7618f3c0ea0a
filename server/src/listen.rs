//! All sockets, bound before anything else begins: a taken port or path is a start error that
//! leaves nothing behind.

use std::net::SocketAddr;
use std::path::PathBuf;

use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use towline_link::process::admin::{AdminConfig, AdminError, AdminSockets};
use towline_link::process::unix::{self, AllowedUids, UnixSocket, UnixSocketError};
use towline_proto::id::Name;

use crate::config::{DoorConfig, LinkConfig, ProcessConfig};
use crate::links::bind::{self, ListenError, Sockets};
use crate::trust::Snapshot;

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener of links, or of front ends over TCP.
    #[error("{flag}: {source}")]
    Listen {
        /// What said where.
        flag: &'static str,
        /// Why not there.
        source: ListenError,
    },
    /// The keys of links; it says its flag by itself.
    #[error(transparent)]
    Keys(ListenError),
    /// The Unix door.
    #[error("{flag}: {source}")]
    DoorUnix {
        /// What said where.
        flag: &'static str,
        /// Why not there.
        source: UnixSocketError,
    },
    /// Health and admin.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// What was issued before.
    #[error(transparent)]
    Enrol(#[from] crate::enrol::EnrolFlagError),
    /// The audit trail.
    #[error(transparent)]
    Audit(#[from] crate::audit::open::OpenError),
}

fn of(flag: &'static str) -> impl Fn(ListenError) -> StartError + Copy {
    move |source| match source {
        keys @ ListenError::Keys(_) => StartError::Keys(keys),
        source => StartError::Listen { flag, source },
    }
}

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// Agents.
    pub link: SocketAddr,
    /// Front ends.
    pub door_unix: Option<PathBuf>,
    /// Front ends.
    pub door_tcp: Option<SocketAddr>,
    /// Front ends that only have to be signed.
    pub door_signed: Option<SocketAddr>,
}

/// Everything that was bound.
pub struct Listening {
    /// Health and admin.
    pub admin: AdminSockets,
    /// Agents.
    pub links: Sockets,
    /// Front ends, and who may use it.
    pub door_unix: Option<(UnixSocket, AllowedUids)>,
    /// Front ends, and whose names may use it.
    pub door_tcp: Option<(TcpListener, Vec<Name>)>,
    /// Front ends that only have to be signed.
    pub door_signed: Option<TcpListener>,
    /// Where.
    pub addresses: Addresses,
}

impl Listening {
    /// Binds every socket. Must be called inside a runtime.
    pub fn bind(
        links: &LinkConfig,
        doors: DoorConfig,
        process: &ProcessConfig,
        trust: Option<&Snapshot>,
    ) -> Result<Self, StartError> {
        let admin = AdminSockets::bind(AdminConfig {
            health: process.health,
            socket: process.admin_socket.clone(),
            allowed: AllowedUids::default_set(),
            second: process.second,
        })?;
        let links = bind::bind(links, trust).map_err(of("--listen"))?;
        let mut addresses = Addresses {
            link: links.address,
            door_unix: None,
            door_tcp: None,
            door_signed: None,
        };
        let door_unix = match doors.unix {
            Some(door) => {
                let flag = door.flag;
                let cleared = match door.clears {
                    true => unix::clear(&door.path),
                    false => Ok(()),
                };
                let socket = cleared
                    .and_then(|()| UnixSocket::bind(&door.path, door.mode))
                    .map_err(|source| StartError::DoorUnix { flag, source })?;
                addresses.door_unix = Some(door.path);
                Some((socket, door.allowed))
            }
            None => None,
        };
        let door_tcp = match doors.tcp {
            Some(door) => {
                let of = of("--door-tcp");
                let listener = bind::bind_tcp(door.address).map_err(of)?;
                addresses.door_tcp = Some(bind::local(&listener, door.address).map_err(of)?);
                Some((listener, door.allow))
            }
            None => None,
        };
        let door_signed = match doors.signed {
            Some(address) => {
                let of = of("--server-port");
                let listener = bind::bind_tcp(address).map_err(of)?;
                addresses.door_signed = Some(bind::local(&listener, address).map_err(of)?);
                Some(listener)
            }
            None => None,
        };
        Ok(Self {
            admin,
            links,
            door_unix,
            door_tcp,
            door_signed,
            addresses,
        })
    }

    /// Adds what is known about the UDP socket to what a scrape shows, and warns when the kernel
    /// granted it too little.
    pub fn register(&self, registry: &mut Registry) {
        let Some(quic) = &self.links.quic else { return };
        quic.register(registry);
        if let Some(warning) = quic.buffers().and_then(|buffers| buffers.warning()) {
            tracing::warn!("{warning}");
        }
    }
}
