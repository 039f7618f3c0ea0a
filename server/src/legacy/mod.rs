//! Agents that speak Konnectivity's protocol, in a room of their own.
//!
//! What such an agent proves is that it holds a certificate of one authority, or a token of one
//! service account: not which node it is. What it says it serves is believed, as Konnectivity
//! does, so none of it meets what verified agents own: the [`table`] is another one, its keys are
//! streams, and the dialer looks here only for targets that no verified agent owns.
//!
//! Reading order: [`accept`] (a connection after its handshake), [`admit`] (who may be an agent),
//! [`stream`] (one agent stream: packets in, packets out), [`pipe`] (one connection of it as the
//! byte pipe that doors know), [`table`] and [`strategy`] (who is asked), [`route`] (when), [`trust`] (files).

pub mod accept;
pub mod admit;
pub mod error;
pub mod pipe;
pub mod route;
pub mod serve;
pub mod strategy;
pub mod stream;
pub mod table;
pub mod token;
pub mod trust;

pub use error::DialFailure;
pub use route::LegacyRoute;
pub use strategy::{Strategies, Strategy};
pub use stream::{AgentStream, Place};
pub use table::LegacyAgents;
