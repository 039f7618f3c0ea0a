//! Links come in here: connections on both carriers, the greeting, and the life of one link.

pub mod accept;
pub mod bind;
pub mod greet;
pub mod serve;
