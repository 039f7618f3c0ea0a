//! Live dials with what they were allowed by, so that a new policy can judge them again.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use towline_link::live::LiveDial;
use towline_proto::reason::Reason;
use towline_proto::target::{Class, Target};

/// A live dial, as it was judged.
#[derive(Debug)]
pub struct Judged {
    /// What was asked for.
    pub target: Target,
    /// What the server called it.
    pub class: Class,
    /// Where it is connected to.
    pub address: SocketAddr,
    /// The dial.
    pub dial: Arc<LiveDial>,
}

/// All of them.
#[derive(Default)]
pub struct JudgedDials {
    next: AtomicU64,
    /// Moves on before live dials are judged again.
    round: AtomicU64,
    dials: Mutex<HashMap<u64, Arc<Judged>>>,
}

/// A dial's place in the list.
pub struct JudgedGuard<'a> {
    list: &'a JudgedDials,
    key: u64,
    judged: Arc<Judged>,
}

impl JudgedGuard<'_> {
    /// What it was judged by.
    pub fn judged(&self) -> &Judged {
        &self.judged
    }
}

impl Drop for JudgedGuard<'_> {
    fn drop(&mut self) {
        self.list.lock().remove(&self.key);
    }
}

impl JudgedDials {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Judged>>> {
        self.dials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often dials have been judged again. A dial that sees another number after it was added
    /// than before it was judged has to be judged once more: the round may have missed it.
    pub fn round(&self) -> u64 {
        self.round.load(Ordering::Acquire)
    }

    /// Adds a dial.
    pub fn add(&self, judged: Judged) -> JudgedGuard<'_> {
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        let judged = Arc::new(judged);
        self.lock().insert(key, Arc::clone(&judged));
        JudgedGuard {
            list: self,
            key,
            judged,
        }
    }

    /// Ends every dial that `allows` does not allow, and gives their number. Call it when the new
    /// policy is in force.
    pub fn judge(&self, allows: impl Fn(&Judged) -> bool) -> usize {
        self.round.fetch_add(1, Ordering::AcqRel);
        let dials: Vec<Arc<Judged>> = self.lock().values().cloned().collect();
        let forbidden = dials.iter().filter(|judged| !allows(judged));
        forbidden.fold(0, |ended, judged| {
            tracing::info!(target = %judged.target, class = %judged.class, address = %judged.address, "live dial ended, the new policy does not allow it");
            judged.dial.end(Reason::PolicyChanged);
            ended + 1
        })
    }
}
