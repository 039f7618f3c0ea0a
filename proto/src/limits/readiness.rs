//! When something that is missing is worth a word at `/readyz`.

use std::time::Duration;

/// A server without a link for this long is a note of the agent's readiness: shorter is a restart.
pub const SERVER_MISSED: Duration = Duration::from_secs(5);
/// So long no probe of the server has come through and been answered, then an agent takes the data
/// path of a link for broken: two probes, each as late as it may be, and a third that failed.
pub const PROBES_MISSED: Duration = Duration::from_secs(30);
/// How often it is looked at without an event.
pub const READY_LOOK: Duration = Duration::from_secs(1);
