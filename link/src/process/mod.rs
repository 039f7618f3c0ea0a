//! What makes a daemon a good process, the same for both: flag values, exit codes, start and
//! readiness, live reload, logs, health and metrics, and an orderly end.
//!
//! Reading order: [`values`], [`usage`] and [`exit`] (the outside), [`drain`] (the order of stopping),
//! [`ready`], [`signal`], [`bind`], [`accept`] with [`unix`] and [`shares`] (who gets a connection, and how many), [`admin`] with
//! [`live`] and [`daemon`] (health, metrics, orders), [`ask`] (their other end), [`compat`] and
//! [`classic`] (another program's pages and metrics), [`watch`], [`reload`] and [`expiry`] (files that
//! change), [`yaml`] and [`policy_file`] (files that operators write), [`telemetry`], [`logsink`],
//! [`ratelimit`] and [`panics`] (logs), [`runtime`].

pub mod accept;
pub mod admin;
mod answer;
pub mod ask;
pub mod bind;
pub mod classic;
pub mod compat;
pub mod daemon;
pub mod drain;
pub mod exit;
pub mod expiry;
pub mod klog;
pub mod live;
pub mod logsink;
pub mod panics;
pub mod policy_file;
pub mod ratelimit;
pub mod ready;
pub mod reload;
pub mod revocation;
pub mod runtime;
pub mod shares;
pub mod signal;
pub mod telemetry;
pub mod unix;
pub mod usage;
pub mod values;
pub mod watch;
pub use towline_pki::yaml;
