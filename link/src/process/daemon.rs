//! What signals and the admin listener ask of their daemon: the same few things for both
//! daemons, so that neither way knows which one it serves.

use async_trait::async_trait;

/// A running daemon. Nothing here may wait for a lock of the data path for long.
#[async_trait]
pub trait Daemon: Send + Sync + 'static {
    /// Everything worth knowing, for `GET /status`.
    fn status(&self) -> serde_json::Value;

    /// What is known of every kubelet, for `GET /kubelets`; `None`: not this daemon's business.
    fn kubelets(&self) -> Option<serde_json::Value> {
        None
    }

    /// What the policy says about the target in the query, for `GET /policy/explain`; the error is
    /// for the person who asked. `None`: not this daemon's business.
    fn explain(&self, _query: &str) -> Option<Result<serde_json::Value, String>> {
        None
    }

    /// Reads the files again; the error is for the person who asked.
    async fn reload(&self) -> Result<(), String>;

    /// Begins a graceful stop; does nothing when one has begun.
    fn drain(&self);

    /// Stops at once.
    fn stop_now(&self);
}
