//! Certificates for agents: the server as the issuing authority of its cluster's nodes.
//!
//! Reading order: [`door`] (a connection of ALPN `towline-enrol/1`, its place and its bounds),
//! [`desk`] (one request from its bytes to its answer), the proofs [`account`] (a service-account
//! token) and [`join`] (a one-time token), [`names`] over [`writer`] (who holds which name, and the ledger), `holders` (what that means for the next), [`nodes`] (which
//! addresses are a node's), `sign` over [`issuer`] (the signature), [`told`] (metrics, log, trail), [`flags`].
//!
//! What is never done: believe a name or an address because the peer says it, remember that a
//! token was good, hand a certificate out before it is on the disk that it was issued.

pub mod account;
pub mod desk;
pub mod door;
pub mod flags;
mod holders;
pub mod issuer;
pub mod join;
pub mod names;
pub mod nodes;
mod sign;
pub mod told;
pub mod writer;

use towline_proto::enrol::Refusal;

pub use desk::Desk;
pub use door::EnrolDoor;
pub use flags::{EnrolArgs, EnrolConfig, EnrolFlagError};

/// No, in a word for machines and a sentence for people, which never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct No {
    /// The word.
    pub refusal: Refusal,
    /// The sentence.
    pub text: String,
}

impl No {
    /// Both.
    pub fn new(refusal: Refusal, text: impl Into<String>) -> Self {
        Self {
            refusal,
            text: text.into(),
        }
    }
}
