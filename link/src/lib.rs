//! The I/O shell that both daemons share.
//!
//! Admission rule: a file belongs here when both daemons need it *and* it touches a socket, a
//! clock, a task, a signal or a log sink. It asks `proto` what to do and never decides: no
//! routing, no policy, no parsing of peers' bytes.

pub mod carrier;
mod company;
pub mod connect;
pub mod dial;
pub mod driver;
pub mod edge;
pub mod error;
pub mod grpc;
pub mod kube;
pub mod live;
pub mod process;
pub mod quic;
pub mod splice;
pub mod tls;
