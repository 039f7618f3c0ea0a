//! Paths, metadata keys and texts of Konnectivity's protocol: the words by which other programs
//! recognise things, so none of them may change.

/// The method of front ends.
pub const PROXY_METHOD: &str = "/ProxyService/Proxy";
/// The method of agents.
pub const CONNECT_METHOD: &str = "/AgentService/Connect";

/// ALPN of gRPC.
pub const ALPN_GRPC: &[u8] = b"h2";
/// Content type of every request and answer.
pub const CONTENT_TYPE: &str = "application/grpc";

/// Agent to server: its id, exactly once. gRPC lower-cases keys on the wire.
pub const AGENT_ID: &str = "agentid";
/// Agent to server: its identifiers as a URL query, at most once.
pub const AGENT_IDENTIFIERS: &str = "agentidentifiers";
/// Agent to server: [`BEARER`] and a service account's token.
pub const AUTHORIZATION: &str = "authorization";
/// Before the token.
pub const BEARER: &str = "Bearer ";
/// Server to agent, in the header of the answer: its id.
pub const SERVER_ID: &str = "serverid";
/// Server to agent, in the header of the answer: how many servers there are, decimal.
pub const SERVER_COUNT: &str = "servercount";

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
