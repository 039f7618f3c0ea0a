//! The agent on every node: keeps links to the servers and connects what they ask for.
//!
//! Reading order: [`args`] and [`config`] (all input), [`run`] (the whole program in start
//! order), [`reconnect`] (one keeper per server) with [`reach`] (one attempt), [`serve`] (one
//! dial), [`policy`] (which targets this node may reach; pure) and [`connect`] (the kernel).
//! Beside them: [`trust`] and [`reload`] (certificate files), [`links`], [`status`] and
//! [`metrics`] (what is shown), [`enrol`] (the node's own certificate). [`konnectivity`] is the legacy mode.

pub mod args;
pub mod attempt;
mod attempts;
pub mod config;
pub mod connect;
mod daemon;
pub mod endpoints;
pub mod enrol;
mod farewell;
mod health;
pub mod judged;
pub mod konnectivity;
pub mod links;
pub mod metrics;
pub mod policy;
pub mod probed;
mod probes;
pub mod reach;
pub mod reconnect;
pub mod reload;
pub mod run;
pub mod serve;
pub mod starting;
pub mod status;
pub mod trust;
