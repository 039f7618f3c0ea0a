//! Front ends with a certificate that are connected now. A reload that no longer trusts one, or
//! the end of its certificate, ends its dial with a reason, within the same rules as links.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use towline_link::live::LiveDial;
use towline_pki::{VerifiedPeer, date};
use towline_proto::reason::Reason;

/// What a front end has shown.
pub enum Proof {
    /// An identity of ours.
    Identity(VerifiedPeer),
    /// Any certificate of one authority (compatibility profile), and its subject for logs.
    Signed(Vec<CertificateDer<'static>>, Arc<str>),
}

impl Proof {
    fn chain(&self) -> &[CertificateDer<'static>] {
        match self {
            Proof::Identity(peer) => peer.chain(),
            Proof::Signed(chain, _) => chain,
        }
    }

    fn name(&self) -> String {
        match self {
            Proof::Identity(peer) => peer.identity().to_string(),
            Proof::Signed(_, subject) => format!("{subject:?}"),
        }
    }
}

/// The list. Clones are the same list.
#[derive(Clone, Default)]
pub struct FrontEnds {
    shared: Arc<Mutex<List>>,
}

#[derive(Default)]
struct List {
    next: u64,
    entries: HashMap<u64, Entry>,
}

struct Entry {
    proof: Arc<Proof>,
    /// One for a CONNECT request, one for each stream of a gRPC connection.
    dials: Vec<Weak<LiveDial>>,
    ended: watch::Sender<Option<Reason>>,
}

/// A front end's place in the list.
pub struct FrontEndGuard {
    list: FrontEnds,
    key: u64,
    ended: watch::Receiver<Option<Reason>>,
}

impl FrontEnds {
    /// Adds a front end.
    pub fn add(&self, proof: Proof) -> FrontEndGuard {
        let (sender, ended) = watch::channel(None);
        let mut list = self.lock();
        list.next += 1;
        let key = list.next;
        list.entries.insert(
            key,
            Entry {
                proof: Arc::new(proof),
                dials: Vec::new(),
                ended: sender,
            },
        );
        FrontEndGuard {
            list: self.clone(),
            key,
            ended,
        }
    }

    /// Checks everyone again; gives the number of those that were ended. Nobody waits for it: it
    /// looks at a copy of the list, and at each chain once, because most front ends are several
    /// connections of one.
    pub fn check<E: fmt::Display>(
        &self,
        verify: impl Fn(&[CertificateDer<'static>]) -> Result<(), E>,
        reason: impl Fn(&E) -> Reason,
    ) -> usize {
        let list = self.lock();
        let all = list.entries.iter();
        let all: Vec<(u64, Arc<Proof>)> = all.map(|(key, e)| (*key, e.proof.clone())).collect();
        drop(list);
        let mut verdicts: HashMap<&[CertificateDer<'static>], Option<Reason>> = HashMap::new();
        let mut count = 0;
        for (key, proof) in &all {
            let verdict = verdicts.entry(proof.chain()).or_insert_with(|| {
                let error = verify(proof.chain()).err()?;
                tracing::warn!(peer = proof.name(), %error, "front end is no longer trusted");
                Some(reason(&error))
            });
            if let Some(reason) = *verdict
                && let Some(entry) = self.lock().entries.get(key)
            {
                count += 1;
                entry.end(reason);
            }
        }
        count
    }

    /// Ends those whose certificates have come to their end: cheaper than checking everyone.
    pub fn end_ended(&self, now: SystemTime) {
        for entry in self.lock().entries.values() {
            // What is known by its authority alone is verified from time to time.
            let Proof::Identity(peer) = &*entry.proof else {
                continue;
            };
            let over = date::seconds(peer.valid_until()) < date::seconds(now);
            if over && entry.ended.borrow().is_none() {
                tracing::warn!(peer = %peer.identity(), "front end's certificate has ended");
                entry.end(Reason::CertificateEnded);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, List> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn end(&self, reason: Reason) {
        for dial in self.dials.iter().filter_map(Weak::upgrade) {
            dial.end(reason);
        }
        self.ended.send_replace(Some(reason));
    }
}

impl FrontEndGuard {
    /// A dial of the front end is open: from now on it is ended with it.
    pub fn carries(&self, dial: &Arc<LiveDial>) {
        let mut list = self.list.lock();
        if let Some(entry) = list.entries.get_mut(&self.key) {
            if entry.dials.len() == entry.dials.capacity() {
                entry.dials.retain(|dial| dial.strong_count() > 0);
            }
            entry.dials.push(Arc::downgrade(dial));
            if let Some(reason) = *entry.ended.borrow() {
                dial.end(reason);
            }
        }
    }

    /// Resolves when the front end is no longer trusted. Cancel-safe.
    pub async fn ended(&mut self) -> Reason {
        self.ending().await
    }

    /// The same, for somebody who does not hold the place.
    pub fn ending(&self) -> impl Future<Output = Reason> + Send + 'static {
        let mut ended = self.ended.clone();
        async move {
            let ended = ended.wait_for(Option::is_some).await;
            match ended.map(|reason| reason.unwrap_or(Reason::Denied)) {
                Ok(reason) => reason,
                // The place was given back: nobody ends it any more.
                Err(_) => std::future::pending().await,
            }
        }
    }
}

impl Drop for FrontEndGuard {
    fn drop(&mut self) {
        self.list.lock().entries.remove(&self.key);
    }
}
