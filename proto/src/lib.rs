//! What the two ends of a link say to each other, as values and state machines.
//!
//! This crate performs no I/O: no socket, clock, task, file, environment or randomness.
//! Whoever needs the time passes `now`; whoever needs chance passes a seed.
//!
//! Reading order: [`id`] and [`target`] (the nouns), [`reason`] (why something ended),
//! [`limits`] (every bound), [`codec`] and [`control`] (messages of the control stream),
//! [`dial`] (first bytes of a dial stream), [`enrol`] (a certificate for a node), [`session`] (one link's life), [`mux`] (streams
//! over one TLS connection), [`queue`] (bytes that wait), [`backoff`] (when to try again), [`address`] (what no dial may
//! reach), [`policy`] with [`pattern`] (which dials are allowed), [`http1`] and [`kubelet`] (what
//! the gateway has to know of requests to kubelets), [`konnectivity`] (what the doors for its front
//! ends and agents speak). `PROTOCOL.md` draws the bytes.

pub mod address;
pub mod backoff;
pub mod codec;
pub mod control;
pub mod dial;
pub mod enrol;
pub mod http1;
pub mod id;
pub mod konnectivity;
pub mod kubelet;
pub mod limits;
pub mod mux;
pub mod notes;
pub mod pattern;
pub mod policy;
pub mod queue;
pub mod reason;
pub mod session;
pub mod target;
pub mod version;
