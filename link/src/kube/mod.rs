//! A small client of the Kubernetes API, for both daemons: a handful of calls over HTTP/1.1 on
//! TLS 1.3.
//!
//! Why not a library: the usual one doubles a daemon's binary, takes system roots where a
//! kubeconfig names none, follows `insecure-skip-tls-verify` and has no bound on an answer. What
//! is needed here is create, get, list, update, delete and watch of three or four kinds.
//!
//! Reading order: [`access`] (where the API is and who we are), `kubeconfig` (from a file),
//! [`client`] (one request), [`watch`] (a stream of events), [`lease`], [`review`], [`count`],
//! [`follow`] (a whole collection, kept up to date), [`csr`], [`node`].
//!
//! Roots are those of the kubeconfig or of the pod, never the system's. Token, certificate and
//! roots are read again whenever they are used, so rotation needs no restart. Every answer, event
//! and wait has a bound in `proto/src/limits.rs`.

pub mod access;
pub mod client;
pub mod count;
pub mod csr;
pub mod error;
pub mod follow;
mod kubeconfig;
pub mod lease;
pub mod moment;
pub mod node;
pub mod pod;
mod retry;
pub mod review;
pub mod watch;

pub use access::Access;
pub use client::Client;
pub use error::KubeError;
