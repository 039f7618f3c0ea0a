//! Numbers for dials, those of front ends and those of the server itself (attestations) from one
//! row, so that a number in the logs of both ends means one dial.

use std::sync::atomic::{AtomicU64, Ordering};

use towline_proto::id::DialId;

/// Gives each dial of this process its number.
#[derive(Debug)]
pub struct DialIds(AtomicU64);

impl Default for DialIds {
    fn default() -> Self {
        Self(AtomicU64::new(1))
    }
}

impl DialIds {
    /// A number that no dial of this process has had.
    pub fn next(&self) -> DialId {
        loop {
            if let Some(id) = DialId::new(self.0.fetch_add(1, Ordering::Relaxed)) {
                return id;
            }
        }
    }
}
