//! Signing requests of the Kubernetes API: which of them are approved, denied, signed.
//!
//! Reading order: [`office`] (what is decided about one request, and by whom), `serving` (the
//! rules for kubelets' serving certificates), [`agents`] (those for agents' own certificates), `names` over [`crate::nodes`] (which names and addresses are a
//! node's), `issuer` (our own signature, where it is asked for), `queue` and [`desk`] (a request
//! from the watch to its end, whatever goes wrong between), [`told`] (metrics, log, trail).
//!
//! Requests are named, not kept: each is read anew when its turn comes, so that what is decided is
//! what the API server holds, and a write that another was faster than is a conflict and no harm.

pub mod agents;
pub mod desk;
pub mod flags;
pub mod issuer;
pub mod names;
pub mod office;
pub mod queue;
pub mod serving;
pub mod start;
pub mod told;

pub use desk::Desk;
pub use flags::{SigningArgs, SigningConfig, SigningError};
pub use start::{Around, Signing, SigningFiles};
