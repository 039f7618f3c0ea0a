//! The tls carrier: one TLS 1.3 connection over TCP, cut into streams by Towline's multiplexer
//! ([`towline_proto::mux`]).
//!
//! Both ends verify each other; both functions that make a link return only after that:
//! [`accept`] holds the proof made from the certificate, and [`connect`] waits for the first
//! frame of the server, which it sends only to a client that it verified.
//!
//! One task per connection, the driver, owns the socket: it encrypts what streams have queued
//! and hands up what came. Streams and driver meet in one short lock. A bulk transfer costs one
//! copy of the bytes more than TLS itself.

pub(crate) mod addresses;
mod driver;
mod handshake;
mod link;
mod proxy;
mod read_ahead;
mod shared;
pub(crate) mod socket;
mod stream;
mod tunnel;

pub use handshake::{
    Arrived, Met, accept, accept_on, connect, connect_on, handshake_error, meet, meet_within,
};
pub use proxy::{HttpProxy, ProxyError};

use towline_proto::limits;

/// What one end gives to its peer.
#[derive(Clone, Copy, Debug)]
pub struct TlsOptions {
    /// Streams that the peer may have open at once, until
    /// [`set_stream_limit`](crate::carrier::Carrier::set_stream_limit).
    pub streams: u32,
    /// Unread bytes that the peer may have sent on one stream.
    pub window: u32,
}

impl TlsOptions {
    /// For the end that agents connect to: an agent opens the control stream and nothing else.
    pub const fn server() -> Self {
        Self {
            streams: 1,
            window: limits::STREAM_WINDOW,
        }
    }

    /// For an agent: dials come from the server.
    pub const fn agent() -> Self {
        Self {
            streams: limits::STREAMS_AT_START,
            window: limits::STREAM_WINDOW,
        }
    }
}
