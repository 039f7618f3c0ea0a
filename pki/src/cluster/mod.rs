//! A whole cluster from one file: `cluster.yaml` to authorities, certificates, keys and kubeconfigs.
//!
//! Reading order: [`mod@file`] (what the operator writes), [`wanted`] (every file that follows from it, and
//! what must stand in each), [`present`] (what is there, read and checked; the first damaged file
//! ends it), [`mod@plan`] (the difference and its [`reason`]s, pure, `now` is an argument), `write`
//! (the only part that changes anything). `kubeconfig` and `asking` are forms of files.
//!
//! What holds: a second run changes nothing, not even a time stamp; an authority is never written
//! over; a run that is cut off anywhere leaves each file old or new, and the next run finishes it.

mod asking;
mod compare;
pub mod file;
mod kubeconfig;
pub mod layout;
pub mod plan;
pub mod present;
pub mod reason;
mod revoked;
pub mod wanted;
mod write;

pub use file::{ClusterFile, ClusterFileError};
pub use layout::Purpose;
pub use plan::{Change, Kind, Note, Plan, PlanError, plan};
pub use present::{Present, PresentError};
pub use reason::Reason;
pub use wanted::Wanted;
pub use write::{Done, WriteError, write};

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod external_tests;
#[cfg(test)]
mod tests;
