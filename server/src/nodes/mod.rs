//! Node objects of the Kubernetes API: one watch for everybody in this server who asks whose a name
//! or an address is by their word.
//!
//! Reading order: [`book`] (which Node claims what, and who did first), [`watch`] (how it is kept).

pub mod book;
pub mod watch;

pub use book::{Book, Claim};
pub use watch::{Hears, NodeWatch};
