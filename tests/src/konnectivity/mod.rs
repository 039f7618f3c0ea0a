//! The real thing beside ours: Konnectivity's own `proxy-server` and `proxy-agent` as processes,
//! and the real front ends as programs that are driven by lines.
//!
//! Reading order: [`programs`] (built once, by Go), [`process`] (started on free ports, ended on drop),
//! [`server`] and [`agent`] (their flags), [`front_end`] (dials and what is done with a connection),
//! [`metrics`] (what they count).

pub mod agent;
pub mod front_end;
pub mod metrics;
pub mod process;
pub mod programs;
pub mod server;

pub use agent::GoAgent;
pub use front_end::{Answer, Dialler, FrontEnd, Verb};
pub use server::{GoServer, Mode};
