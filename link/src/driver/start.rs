//! What a link begins with: its number, and until when its peer's certificate is good.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use towline_proto::id::LinkId;

use super::now;
use crate::carrier::Carrier;

/// The moment on our clock at which a certificate ends; `None` beyond what a clock can hold.
pub(super) fn certificate_end(carrier: &dyn Carrier) -> Option<Instant> {
    let not_after = carrier.peer().valid_until();
    let left = not_after
        .duration_since(SystemTime::now())
        .unwrap_or_default();
    now().checked_add(left)
}

/// Numbers a process's links.
pub(super) fn next_link_id() -> LinkId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    loop {
        if let Some(id) = LinkId::new(NEXT.fetch_add(1, Ordering::Relaxed)) {
            return id;
        }
    }
}
