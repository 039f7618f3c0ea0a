//! What Konnectivity's parties say to each other: names, packets, identifiers. Only the doors
//! and the legacy mode of the agent, which speak it, use this module; its types go no further.
//!
//! One gRPC stream carries packets of all connections between two parties. There is no flow
//! control for a single connection, no half-close and no difference between an end and a reset.
//! [`packet`] has the messages as they are on the wire and [`Message`], what a well-formed one
//! means; [`frame`] cuts a stream of bytes into gRPC messages; [`names`] has paths, metadata keys
//! and texts. Ids are numbers of the other party: never believed to be anything but keys.

pub mod frame;
pub mod identifiers;
pub mod names;
pub mod packet;

pub use frame::{FrameError, Messages};
pub use identifiers::{Identifiers, IdentifiersError};
pub use packet::{Malformed, Message, Packet, PacketType};
