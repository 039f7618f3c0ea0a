//! A network path in user space: delay, random loss, a rate and a queue, for kernels without netem.
//!
//! [`mod@line`] is the path as a state machine without clock or socket; [`forward`] runs two of them, one
//! each way; [`tun`] puts them between two network namespaces (real packets of any protocol, root only)
//! and [`udp`] between two loopback ports (no privileges). [`namespace`] makes the two namespaces.

pub mod forward;
pub mod line;
pub mod namespace;
pub mod tun;
pub mod udp;
