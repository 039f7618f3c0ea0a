//! What the health and admin listeners say in the place of another program: its readiness page,
//! its metrics beside ours, and its second port.

use std::net::SocketAddr;
use std::sync::Arc;

use super::classic::Families;

/// Pages and metrics of the program that we stand in for. With it `/metrics` is in Prometheus'
/// classic text format, ours too, and `/ready` is another name of `/readyz`.
#[derive(Clone)]
pub struct Compat {
    /// Its metrics.
    pub families: Families,
    /// Its readiness page; asked with whether `?verbose` was.
    pub ready: Arc<dyn Fn(bool) -> Page + Send + Sync>,
}

/// An answer of a readiness page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// HTTP status.
    pub status: u16,
    /// Body, to the letter.
    pub text: String,
}

/// The second TCP listener: `/metrics`, and where profiling would be.
#[derive(Clone, Copy, Debug)]
pub struct Second {
    /// Where it listens.
    pub address: SocketAddr,
    /// What `/metrics` answers there.
    pub metrics: MetricsAt,
    /// Whether its paths are said to be missing (501) instead of unknown (404).
    pub profiling: bool,
}

/// Where metrics are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsAt {
    /// Here.
    Here,
    /// At this port of the same host: the answer is a redirection.
    Port(u16),
}
