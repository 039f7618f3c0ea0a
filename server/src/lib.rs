//! The server: stands beside kube-apiserver, takes the links that agents open outward, and gives
//! front ends byte pipes through them.
//!
//! Reading order: [`run`] (everything in start and stop order), [`doors`] (front ends come in),
//! [`dial`] (a request becomes a pipe), [`classify`], [`policy`] and [`pick`] (the decisions, all
//! pure), [`agents`] (who is linked), [`links`] (agents come in), [`directory`] and [`grants`]
//! (what an agent may serve), [`trust`] and [`reload`] (certificates, and when they change).
//! [`legacy`] is a room of its own: agents of the compatibility profile, whose
//! flags are in [`compat`].

pub mod agents;
pub mod args;
pub mod classify;
pub mod compat;
pub mod config;
pub mod control;
pub mod dial;
pub mod directory;
pub mod doors;
pub mod grants;
pub mod konnectivity;
pub mod legacy;
pub mod links;
pub mod listen;
pub mod metrics;
pub mod pick;
pub mod policy;
pub mod ready;
pub mod reload;
pub mod run;
pub mod status;
pub mod trust;
pub mod verb;
