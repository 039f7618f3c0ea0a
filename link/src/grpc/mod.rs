//! gRPC as far as Konnectivity's two services need it: one stream of packets each way, metadata
//! before, a status after.
//!
//! Reading order: [`packets`], [`status`], [`server`] (who takes a call), [`client`] (who makes
//! one). [`queues`] is what both ends of the legacy protocol keep of one connection.

pub mod client;
pub mod packets;
pub mod queues;
pub mod server;
pub mod status;

pub use packets::{PacketSink, PacketSource, ReceiveError};
pub use queues::{Inbound, Outbound};
pub use server::{accept, refuse};
pub use status::{Code, Status};
