//! Gateway connections that are open now. What counted when they were made is looked at again
//! when files change and from time to time: the front end's certificate, the kubelet's, and the
//! rules about what is asked at the moment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use towline_link::live::LiveDial;
use towline_pki::gateway::{FrontEndVerifier, VerifiedFrontEnd};
use towline_pki::kubelet::{Expected, KubeletTrust};
use towline_proto::kubelet::{Call, Rules, Verdict};
use towline_proto::reason::Reason;

/// The list. Clones are the same list.
#[derive(Clone, Default)]
pub(super) struct Connections {
    shared: Arc<Mutex<List>>,
}

#[derive(Default)]
struct List {
    next: u64,
    entries: HashMap<u64, Arc<Entry>>,
}

struct Entry {
    connection: Connection,
    /// What is, or was last, asked.
    call: Mutex<Option<Call>>,
}

impl Entry {
    fn call(&self) -> MutexGuard<'_, Option<Call>> {
        self.call.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who is connected with whom.
pub(super) struct Connection {
    pub(super) front_end: VerifiedFrontEnd,
    pub(super) kubelet: Vec<CertificateDer<'static>>,
    pub(super) expected: Expected,
    pub(super) dial: Arc<LiveDial>,
}

/// A connection's place in the list.
pub(super) struct ConnectionGuard {
    list: Connections,
    key: u64,
    entry: Arc<Entry>,
}

impl Connections {
    pub(super) fn add(&self, connection: Connection) -> ConnectionGuard {
        let mut list = self.lock();
        list.next += 1;
        let key = list.next;
        let entry = Arc::new(Entry {
            connection,
            call: Mutex::new(None),
        });
        list.entries.insert(key, Arc::clone(&entry));
        ConnectionGuard {
            list: self.clone(),
            key,
            entry,
        }
    }

    /// Looks at all of them; gives the number of those that were ended. Nobody waits for it: it
    /// looks at a copy of the list, and who comes in meanwhile has seen the new files.
    pub(super) fn check(
        &self,
        front_ends: &FrontEndVerifier,
        kubelets: Option<&KubeletTrust>,
        rules: Option<&Rules>,
        now: SystemTime,
    ) -> usize {
        let mut ended = 0;
        let entries: Vec<Arc<Entry>> = self.lock().entries.values().cloned().collect();
        for entry in entries {
            let (connection, call) = (&entry.connection, entry.call().clone());
            let Some(reason) = connection.check(call.as_ref(), front_ends, kubelets, rules, now)
            else {
                continue;
            };
            ended += 1;
            let node = &connection.expected.node;
            tracing::warn!(%node, front_end = ?connection.front_end, %reason, "a gateway connection is no longer allowed");
            connection.dial.end(reason);
        }
        ended
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    fn check(
        &self,
        call: Option<&Call>,
        front_ends: &FrontEndVerifier,
        kubelets: Option<&KubeletTrust>,
        rules: Option<&Rules>,
        now: SystemTime,
    ) -> Option<Reason> {
        if front_ends.verify(self.front_end.chain(), now).is_err() {
            return Some(Reason::FrontEndUnverified);
        }
        if let Some(trust) = kubelets {
            let verdict = trust.check(&self.kubelet, &self.expected, now);
            if let Some(cause) = verdict.cause() {
                return Some(cause.reason());
            }
        }
        let verdict = rules?.judge(call?, self.expected.node.as_str());
        matches!(verdict, Verdict::Refused(_)).then_some(Reason::PolicyChanged)
    }
}

impl ConnectionGuard {
    /// What passes now.
    pub(super) fn asks(&self, call: &Call) {
        *self.entry.call() = Some(call.clone());
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.list.lock().entries.remove(&self.key);
    }
}
