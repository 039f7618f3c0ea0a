//! The server: stands beside kube-apiserver, takes the links that agents open outward, and gives
//! front ends byte pipes through them.
//!
//! Reading order: [`run`] (everything in start and stop order), [`doors`] (front ends come in) and
//! [`caller`] (who they are), [`dial`] (a request becomes a pipe), [`classify`], [`policy`] and [`pick`] (the decisions, all
//! pure), [`agents`] (who is linked), [`links`] (agents come in), [`directory`] and [`grants`]
//! (what an agent may serve), [`nodes`] (what Node objects say), [`trust`] and [`reload`] (certificates, and when they change),
//! [`audit`] (the trail of all dials), [`verb`] (what the program does beside being a server).
//! [`legacy`] is a room of its own: agents of the compatibility profile, whose flags are in
//! [`compat`] and whose counters in [`konnectivity`].

pub mod agents;
pub mod args;
pub mod attest;
pub mod audit;
pub mod caller;
pub mod classify;
pub mod compat;
pub mod config;
pub mod control;
pub mod csr;
pub mod dial;
pub mod dial_ids;
pub mod directory;
pub mod doors;
pub mod ended;
pub mod enrol;
pub mod gateway;
pub mod grants;
pub mod konnectivity;
pub mod legacy;
pub mod links;
pub mod listen;
pub mod metrics;
pub mod node_address;
pub mod nodes;
pub mod pick;
pub mod policy;
pub mod ready;
pub mod reload;
pub mod run;
pub mod starting;
pub mod status;
pub mod trust;
pub mod verb;
