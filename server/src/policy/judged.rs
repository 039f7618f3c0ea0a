//! Live dials with what they were allowed by, so that they can be judged again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use towline_link::live::LiveDial;
use towline_pki::VerifiedPeer;
use towline_proto::reason::Reason;
use towline_proto::target::{Class, Target};

use crate::caller::Caller;

/// A live dial, as it was judged.
#[derive(Debug)]
pub struct Judged {
    /// Where to.
    pub target: Target,
    /// What that is.
    pub class: Class,
    /// For whom.
    pub caller: Caller,
    /// Through whom; `None`: a legacy agent, which has proved nothing.
    pub agent: Option<VerifiedPeer>,
    /// The dial.
    pub dial: Arc<LiveDial>,
}

/// All of them. Clones are the same list.
#[derive(Clone, Default)]
pub struct JudgedDials {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    next: AtomicU64,
    /// Moves on before live dials are judged again.
    round: AtomicU64,
    dials: Mutex<HashMap<u64, Arc<Judged>>>,
}

/// A dial's place in the list.
pub struct JudgedGuard {
    list: JudgedDials,
    key: u64,
    judged: Arc<Judged>,
}

impl JudgedGuard {
    /// What it was judged by.
    pub fn judged(&self) -> &Judged {
        &self.judged
    }
}

impl Drop for JudgedGuard {
    fn drop(&mut self) {
        self.list.lock().remove(&self.key);
    }
}

impl JudgedDials {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Judged>>> {
        let dials = &self.shared.dials;
        dials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often dials have been judged again. A dial that sees another number after it was added
    /// than before it was judged has to be judged once more: the round may have missed it.
    pub fn round(&self) -> u64 {
        self.shared.round.load(Ordering::Acquire)
    }

    /// Adds a dial.
    pub fn add(&self, judged: Judged) -> JudgedGuard {
        let key = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let judged = Arc::new(judged);
        self.lock().insert(key, Arc::clone(&judged));
        JudgedGuard {
            list: self.clone(),
            key,
            judged,
        }
    }

    /// Ends every dial for which `verdict` gives a reason, and gives their number. Call it when
    /// the new rules are in force. Nobody waits for it: it judges a copy of the list.
    pub fn judge(&self, verdict: impl Fn(&Judged) -> Option<Reason>) -> usize {
        self.shared.round.fetch_add(1, Ordering::AcqRel);
        let dials: Vec<Arc<Judged>> = self.lock().values().cloned().collect();
        let mut ended = 0;
        for judged in dials {
            if let Some(reason) = verdict(&judged) {
                judged.dial.end(reason);
                ended += 1;
            }
        }
        ended
    }
}
