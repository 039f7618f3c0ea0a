//! The kit: everything a scenario needs to build a cluster in one line and to look at it.
//!
//! Reading order: [`cluster`] (servers, agents and their surroundings in one process),
//! [`apiserver`] (the front end), [`kubelet`] and [`target`] (what is dialled), [`authority`]
//! (throw-away certificates, good and bad), [`network`] (real-looking addresses on loopback),
//! [`forwarder`] (a network path that can be cut). `tests/README.md` says which layer of tests
//! proves what.

pub mod apiserver;
pub mod audit;
pub mod authority;
pub mod bench;
pub mod cluster;
pub mod demo;
pub mod emulator;
pub mod enrol;
pub mod forwarder;
pub mod gateway;
pub mod grpc;
pub mod konnectivity;
pub mod kube;
pub mod kubectl;
pub mod kubelet;
pub mod legacy;
pub mod legacy_server;
pub mod legacy_world;
pub mod lists;
pub mod network;
pub mod pattern;
pub mod program;
pub mod real_kubernetes;
pub mod rogue;
pub mod scenario;
pub mod scratch;
pub mod target;
pub mod websocket;
