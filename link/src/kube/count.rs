//! How many servers hold a valid Lease: a list, then a watch from it, for as long as asked.
//!
//! A Lease runs out without an event, so what is kept is the Leases, and they are counted at the
//! moment of the question. While the API is not reached, the last known Leases count on.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;
use towline_proto::limits;
use tracing::{debug, warn};

use super::error::KubeError;
use super::lease::{Lease, Leases};
use super::retry::Retry;
use super::watch::Event;

/// What was asked of the API, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Everything at once.
    List,
    /// What happens from then on.
    Watch,
}

/// How a call ended.
#[derive(Debug)]
pub struct Called<'a> {
    /// Which call.
    pub verb: Verb,
    /// How long until its answer.
    pub took: Duration,
    /// Why it failed, if it did.
    pub error: Option<&'a KubeError>,
}

#[derive(Debug, Default)]
struct Known {
    listed: bool,
    leases: BTreeMap<String, Lease>,
}

/// The Leases known at this moment.
#[derive(Clone, Debug)]
pub struct LeaseCount {
    known: Arc<Mutex<Known>>,
    changed: watch::Sender<()>,
}

impl Default for LeaseCount {
    fn default() -> Self {
        Self {
            known: Arc::default(),
            changed: watch::Sender::new(()),
        }
    }
}

impl LeaseCount {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are valid; `None` before the first answer.
    pub fn valid(&self, now: SystemTime) -> Option<usize> {
        let known = self.lock();
        let valid = known.leases.values().filter(|lease| lease.is_valid(now));
        known.listed.then(|| valid.count())
    }

    /// Changes whenever a Lease comes, goes or is renewed.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn replace(&self, leases: Vec<Lease>) {
        let named = leases.into_iter().take(limits::KUBE_LEASES);
        *self.lock() = Known {
            listed: true,
            leases: named
                .map(|lease| (lease.metadata.name.clone(), lease))
                .collect(),
        };
        self.changed.send_replace(());
    }

    fn apply(&self, event: Event<Lease>) {
        let mut known = self.lock();
        match event {
            Event::Is(lease) => {
                let name = lease.metadata.name.clone();
                if known.leases.len() < limits::KUBE_LEASES || known.leases.contains_key(&name) {
                    known.leases.insert(name, lease);
                }
            }
            Event::Was(lease) => {
                known.leases.remove(&lease.metadata.name);
            }
        }
        drop(known);
        self.changed.send_replace(());
    }

    /// Keeps the Leases with these labels up to date. Never ends by itself.
    pub async fn follow(&self, leases: Leases, selector: String, told: impl Fn(Called<'_>)) {
        let mut retry = Retry::new();
        loop {
            let begun = Instant::now();
            let Err(error) = self.once(&leases, &selector, &told).await;
            let pause = retry.after(begun.elapsed());
            match error {
                KubeError::Gone { .. } => debug!(%error, retry_in = ?pause, "listing leases again"),
                error => {
                    warn!(%error, retry_in = ?pause, "leases are not known, the last known ones count");
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// One list, and watches from it until one fails.
    async fn once(
        &self,
        leases: &Leases,
        selector: &str,
        told: &impl Fn(Called<'_>),
    ) -> Result<Infallible, KubeError> {
        let list = call(Verb::List, told, leases.list(selector)).await?;
        let mut version = list.metadata.resource_version;
        self.replace(list.items);
        loop {
            let begun = Instant::now();
            let mut watch = call(Verb::Watch, told, leases.watch(selector, &version)).await?;
            while let Some(event) = watch.next_in_time().await? {
                let (Event::Is(lease) | Event::Was(lease)) = &event;
                version.clone_from(&lease.metadata.resource_version);
                self.apply(event);
            }
            // A watch that ends as soon as it begins must not become a storm.
            let least = limits::KUBE_RETRY.0;
            tokio::time::sleep(least.saturating_sub(begun.elapsed())).await;
        }
    }
}

async fn call<T>(
    verb: Verb,
    told: &impl Fn(Called<'_>),
    call: impl Future<Output = Result<T, KubeError>>,
) -> Result<T, KubeError> {
    let begun = Instant::now();
    let answer = call.await;
    told(Called {
        verb,
        took: begun.elapsed(),
        error: answer.as_ref().err(),
    });
    answer
}
