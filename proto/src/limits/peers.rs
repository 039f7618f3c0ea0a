//! What one peer may hold of what all of them share: an address before it has proved anything, an
//! agent by its name afterwards. An address of IPv6 stands for its /64.

/// Handshakes of one address at once: a quarter of [`super::HANDSHAKES`], and of `--max-handshakes`
/// where that is less. Overflow: on TLS they wait, within the time of a handshake; on QUIC they
/// are refused, and agents try again.
pub const HANDSHAKES_PER_ADDRESS: usize = 64;
/// TCP connections of one address that have proved nothing yet, silent ones included: twice all
/// handshakes, for agents behind one NAT that come back together. Overflow: closed at once.
pub const UNPROVEN_PER_ADDRESS: usize = 512;
/// Addresses of one server that an agent has found or reached and keeps dials away from. Overflow:
/// the one that was seen longest ago is forgotten.
pub const REACHED_ADDRESSES: usize = 64;
/// Links of one agent at once: two carriers, and instances that died without a word within
/// [`super::PEER_SILENT`]. Overflow: the new one is refused with `overloaded`.
pub const LINKS_PER_AGENT: usize = 32;
/// Verified connections of one agent that have not greeted. Overflow: closed with `overloaded`.
pub const GREETINGS_PER_AGENT: usize = 16;
/// Reviews of legacy agents' tokens at once, each of which is a question to the Kubernetes API.
/// Overflow: they wait, within [`super::LEGACY_ADMIT`].
pub const LEGACY_REVIEWS: usize = 32;
/// Of these, those for one address.
pub const LEGACY_REVIEWS_PER_ADDRESS: usize = 8;
