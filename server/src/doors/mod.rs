//! How front ends speak to the server, on a Unix socket and over TCP with mutual TLS: HTTP CONNECT
//! and Konnectivity's gRPC, told apart by the first bytes. A door turns what it reads into an
//! [`Ask`](crate::dial::Ask) and what it gets back into bytes, a status line or a packet; nothing
//! behind it knows which door a dial came through.

mod alone;
mod as_konnectivity;
pub mod command;
pub mod connect;
pub mod front_ends;
pub mod grpc;
pub mod head;
pub mod rewound;
pub mod signed;
pub mod status;
pub mod tcp;
mod timed;
mod turned_away;
pub mod unix;

/// What a door takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speaks {
    /// HTTP CONNECT.
    pub connect: bool,
    /// Konnectivity's gRPC.
    pub grpc: bool,
    /// Refusals in the words of Konnectivity's proxy-server, to the letter.
    pub as_konnectivity: bool,
}

impl Speaks {
    /// Both, in our words.
    pub const BOTH: Self = Self {
        connect: true,
        grpc: true,
        as_konnectivity: false,
    };
}
