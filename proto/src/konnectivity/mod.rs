//! What Konnectivity's parties say to each other: names, packets, identifiers. Only the doors
//! and the legacy mode of the agent, which speak it, use this module; its types go no further.
//!
//! One gRPC stream carries packets of all connections between two parties. There is no flow
//! control for a single connection, no half-close and no difference between an end and a reset.

mod fields;
pub mod frame;
pub mod front_end;
pub mod identifiers;
pub mod misuse;
pub mod packet;

pub use identifiers::{Identifiers, IdentifiersError};
pub use packet::{Packet, PacketError, PacketKind};

/// The method that front ends call at a server.
pub const PROXY_METHOD: &str = "/ProxyService/Proxy";
/// The method that agents call at a server.
pub const CONNECT_METHOD: &str = "/AgentService/Connect";

/// Request metadata: the agent's id. gRPC lower-cases keys on the wire.
pub const AGENT_ID: &str = "agentid";
/// Request metadata: what the agent says it serves, see [`identifiers`].
pub const AGENT_IDENTIFIERS: &str = "agentidentifiers";
/// Request metadata: a service account's token.
pub const AUTHORIZATION: &str = "authorization";
/// Before the token.
pub const BEARER: &str = "Bearer ";
/// Response metadata: the server's id.
pub const SERVER_ID: &str = "serverid";
/// Response metadata: how many servers an agent should look for, decimal.
pub const SERVER_COUNT: &str = "servercount";

/// ALPN of gRPC.
pub const ALPN_GRPC: &[u8] = b"h2";

/// Content type of every request and answer.
pub const CONTENT_TYPE: &str = "application/grpc";

/// The only protocol that a dial may ask for.
pub const TCP: &str = "tcp";

/// In DIAL_RSP: nobody can serve this target.
pub const NO_AGENT: &str = "No agent available";
/// In DIAL_RSP: the agent did not answer within `--backend-dial-timeout`.
pub const DIAL_TIMED_OUT: &str = "timed out waiting for backend dial";
/// In CLOSE_RSP: DATA before any DIAL_REQ.
pub const DATA_BEFORE_DIAL: &str = "backend not initialized";
/// In CLOSE_RSP: CLOSE_REQ before any DIAL_REQ.
pub const CLOSE_BEFORE_DIAL: &str = "backend uninitialized";
/// In CLOSE_RSP: one stream used two connection ids.
pub const MISMATCHED: &str = "mismatched connection IDs";
/// In CLOSE_RSP, server to front end: the agent could not be told.
pub const CLOSE_FAILED: &str = "CLOSE_REQ to backend failed";
/// In CLOSE_RSP, agent to server: DATA for a connection that is not there.
pub const DATA_UNKNOWN: &str = "unrecognized connectID";
/// In CLOSE_RSP, agent to server: CLOSE_REQ for a connection that is not there.
pub const CLOSE_UNKNOWN: &str = "Unknown connectID";
