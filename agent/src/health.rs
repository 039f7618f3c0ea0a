//! What this agent knows of itself, told to every server in its heartbeats. Deciding is pure; the
//! task only looks and passes on.

use std::sync::Arc;
use std::time::SystemTime;

use towline_link::process::drain::{DrainView, Stage};
use towline_link::process::expiry;
use towline_link::process::reload::ReloadHandle;
use towline_pki::Expiry;
use towline_proto::limits;
use towline_proto::notes::Notes;

use crate::links::Links;
use crate::serve::Serve;

/// Where it is looked.
pub(crate) struct Health {
    pub(crate) links: Links,
    pub(crate) serve: Arc<Serve>,
    pub(crate) expiries: expiry::Source,
    pub(crate) files: Option<ReloadHandle>,
    pub(crate) policy: Option<ReloadHandle>,
    pub(crate) stage: DrainView,
}

/// What was seen.
struct Seen {
    slots: usize,
    files_failing: bool,
    policy_failing: bool,
    stopping: bool,
}

fn judge(seen: &Seen, expiries: &[Expiry], now: SystemTime) -> Notes {
    let ends = expiries.iter().any(|one| expiry::ends_soon(one, now));
    Notes::NONE
        .with(Notes::BUSY, seen.slots == 0)
        .with(Notes::CERTIFICATE_ENDS, ends)
        .with(Notes::FILES_STALE, seen.files_failing)
        .with(Notes::POLICY_STALE, seen.policy_failing)
        .with(Notes::STOPPING, seen.stopping)
}

impl Health {
    /// Looks and tells until the task is dropped.
    pub(crate) async fn keep(self) {
        loop {
            let notes = self.look(SystemTime::now());
            for (_, link, _) in self.links.all() {
                link.set_notes(notes);
                // A server that may choose goes elsewhere.
                link.set_healthy(!notes.has(Notes::BUSY));
            }
            tokio::time::sleep(limits::HEALTH_LOOK).await;
        }
    }

    fn look(&self, now: SystemTime) -> Notes {
        let failing = |handle: &Option<ReloadHandle>| {
            let handle = handle.as_ref();
            handle.is_some_and(ReloadHandle::is_failing)
        };
        let seen = Seen {
            slots: self.serve.slots_left(),
            files_failing: failing(&self.files),
            policy_failing: failing(&self.policy),
            stopping: self.stage.stage() != Stage::Running,
        };
        judge(&seen, &(self.expiries)(), now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn each_fault_is_one_note() {
        let well = || Seen {
            slots: 1,
            files_failing: false,
            policy_failing: false,
            stopping: false,
        };
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let expiry = Expiry {
            what: "certificate".into(),
            path: "x".into(),
            not_before: at(0),
            not_after: at(1000),
        };
        let all = [expiry];
        assert_eq!(judge(&well(), &all, at(899)), Notes::NONE);
        assert_eq!(judge(&well(), &all, at(900)), Notes::CERTIFICATE_ENDS);
        assert_eq!(judge(&well(), &all, at(2000)), Notes::CERTIFICATE_ENDS);
        for (seen, note) in [
            (Seen { slots: 0, ..well() }, Notes::BUSY),
            (
                Seen {
                    files_failing: true,
                    ..well()
                },
                Notes::FILES_STALE,
            ),
            (
                Seen {
                    policy_failing: true,
                    ..well()
                },
                Notes::POLICY_STALE,
            ),
            (
                Seen {
                    stopping: true,
                    ..well()
                },
                Notes::STOPPING,
            ),
        ] {
            assert_eq!(judge(&seen, &[], at(0)), note);
        }
    }
}
