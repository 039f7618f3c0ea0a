//! What the admin listener asks of the server: status, reload, drain.

use std::time::Duration;

use async_trait::async_trait;
use towline_link::process::daemon::Daemon;
use towline_link::process::drain::Drain;
use towline_link::process::reload::ReloadHandle;

use crate::status::Source;

/// The server as its admin listener sees it.
pub struct Control {
    /// For `GET /status`.
    pub status: Source,
    /// For `POST /reload`.
    pub files: ReloadHandle,
    /// For `POST /drain`.
    pub drain: Drain,
    /// How long live dials may go on then.
    pub drain_timeout: Duration,
}

#[async_trait]
impl Daemon for Control {
    fn status(&self) -> serde_json::Value {
        serde_json::to_value(self.status.status()).unwrap_or_default()
    }

    async fn reload(&self) -> Result<(), String> {
        let done = self.files.reload_now().await;
        done.map_err(|error| error.to_string())
    }

    fn drain(&self) {
        self.drain.begin(self.drain_timeout);
    }

    fn stop_now(&self) {
        self.drain.force();
    }
}
