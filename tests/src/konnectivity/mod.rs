//! The real thing beside ours: Konnectivity's own `proxy-server` and `proxy-agent` as processes, ours in
//! their place from the same command line, and the real front ends as programs that are driven by lines.
//!
//! Reading order: [`programs`] (built once, by Go), [`process`] (started on free ports, ended on drop),
//! [`server`] and [`agent`] (their flags), [`front_end`] (dials and what is done with a connection),
//! [`metrics`] (what they count), [`pair`] (all of it in one line), [`matrix`] (one test, every pairing and mode),
//! [`balancer`] (one address, many servers).

pub mod agent;
pub mod balancer;
pub mod front_end;
pub mod matrix;
pub mod metrics;
pub mod pair;
pub mod process;
pub mod programs;
pub mod server;

pub use agent::ProxyAgent;
pub use front_end::{Answer, Dialler, FrontEnd, Verb};
pub use pair::Pairing;
pub use programs::Maker;
pub use server::{Mode, ProxyServer};
