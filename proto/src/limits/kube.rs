//! Bounds of our small client of the Kubernetes API.

use std::time::Duration;

/// One request to the Kubernetes API: name, connection, handshake, answer. Overflow: an error.
pub const KUBE_REQUEST: Duration = Duration::from_secs(10);
/// Head of an answer of the Kubernetes API. Overflow: an error.
pub const KUBE_HEAD_BYTES: usize = 32 * 1024;
/// Headers of an answer of the Kubernetes API. Overflow: an error.
pub const KUBE_HEADERS: usize = 64;
/// Body of an answer of the Kubernetes API. Overflow: an error.
pub const KUBE_BODY_BYTES: usize = 4 * 1024 * 1024;
/// One event of a watch. Overflow: the watch ends and is begun anew.
pub const KUBE_EVENT_BYTES: usize = 1024 * 1024;
/// After this time the API server ends a watch by itself; it is begun anew.
pub const KUBE_WATCH: Duration = Duration::from_secs(300);
/// Connections to the Kubernetes API that wait for the next request. Overflow: closed.
pub const KUBE_IDLE: usize = 32;
/// Leases that are counted. Overflow: further ones are not.
pub const KUBE_LEASES: usize = 1024;
/// A bearer token, bytes. Overflow: an error.
pub const KUBE_TOKEN_BYTES: usize = 16 * 1024;
/// Text of an error of the Kubernetes API that is shown, bytes. Overflow: cut.
pub const KUBE_TEXT_BYTES: usize = 512;
/// Pause before a list or watch of the Kubernetes API is tried again, first and longest.
pub const KUBE_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
