//! The `quic` carrier: one QUIC connection is one link, one bidirectional stream is one dial.

mod endpoint;
mod gather;
mod keys;
mod link;
mod listener;
mod metrics;
mod reason;
mod short;
mod socket;
mod stream;
mod transport;

pub use endpoint::QuicEndpoint;
pub use keys::{EndpointKeys, KeysError};
pub use link::QuicLink;
pub use listener::QuicListener;
pub use metrics::QuicMetrics;
pub use socket::{BindError, DropCounter, UdpBuffers};
pub use transport::{Congestion, Options, OptionsError};
