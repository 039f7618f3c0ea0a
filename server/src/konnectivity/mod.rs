//! What dashboards and probes of Konnectivity's `proxy-server` find here: its metrics and its
//! readiness. Doors, dialer and the room of legacy agents count; only the compatibility profile
//! shows it.

pub mod metrics;

pub use metrics::{Counted, DialFailure, Method, Segment};
