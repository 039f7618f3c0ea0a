//! The legacy mode: what Konnectivity's proxy-agent does, towards its proxy-server.
//!
//! One gRPC stream to each server carries all connections as packets. Such a server is known by
//! the name in its certificate and nothing else, and what it asks for is judged by a policy that
//! is open but for what no rule can allow: SECURITY.md says what is given up. Its protocol does
//! not leave this module: a connection is a [`Stream`](towline_link::carrier::Stream) like any
//! other, and the bytes of a dial pass the same splice.
//!
//! Reading order: [`args`] and [`config`] (flags), [`sync`] (which servers there are, when to try),
//! [`attempt`] (one handshake and one call), `session` and `stream` (packets),
//! `connection` (one connection of a stream), `dial` and `text` (a target, and the words in
//! which a failure is told), [`count`] (how many servers there should be), [`auto`] and [`memory`]
//! (which kind of server it is), [`metrics`] and [`health`].

pub mod args;
pub mod attempt;
pub mod auto;
pub mod config;
mod connection;
pub mod count;
mod dial;
pub mod health;
pub mod memory;
pub mod metrics;
pub mod servers;
mod session;
mod stream;
pub mod sync;
mod text;
