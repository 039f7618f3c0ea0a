//! The legacy servers that there is a stream to at this moment: one for each server id.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::watch;

use super::metrics::LegacyMetrics;
use super::stream::ServerStream;

#[derive(Default)]
struct Known {
    streams: BTreeMap<String, Arc<ServerStream>>,
    /// `serverCount` of the last new server.
    told: usize,
    error: Option<String>,
}

/// The set. Clones share it.
#[derive(Clone)]
pub struct LegacyServers {
    known: Arc<Mutex<Known>>,
    metrics: LegacyMetrics,
    changed: watch::Sender<()>,
}

/// One stream in the status.
#[derive(Clone, Debug, Serialize)]
pub struct LegacyServerStatus {
    /// What the server calls itself.
    pub server_id: String,
    /// Since the call.
    pub age_seconds: u64,
    /// Connections now.
    pub connections: usize,
}

/// There is a stream to this server.
pub(super) struct Duplicate;

impl LegacyServers {
    /// None yet.
    pub fn new(metrics: LegacyMetrics) -> Self {
        Self {
            known: Arc::default(),
            metrics,
            changed: watch::Sender::new(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().streams.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many servers the last new one said that there are; 1 before any said it.
    pub fn told(&self) -> usize {
        self.lock().told.max(1)
    }

    /// Changes whenever a stream comes or goes.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The last error of an attempt, while there is no stream.
    pub fn error(&self) -> Option<String> {
        self.lock().error.clone()
    }

    /// For the admin socket.
    pub fn status(&self) -> Vec<LegacyServerStatus> {
        let known = self.lock();
        let one = |stream: &Arc<ServerStream>| LegacyServerStatus {
            server_id: stream.server_id().to_owned(),
            age_seconds: stream.since().elapsed().as_secs(),
            connections: stream.connections(),
        };
        known.streams.values().map(one).collect()
    }

    pub(super) fn failed(&self, error: String) {
        self.lock().error = Some(error);
        self.changed.send_replace(());
    }

    pub(super) fn add(&self, stream: &Arc<ServerStream>, told: usize) -> Result<Listed, Duplicate> {
        let mut known = self.lock();
        if known.streams.contains_key(stream.server_id()) {
            return Err(Duplicate);
        }
        let key = stream.server_id().to_owned();
        known.streams.insert(key.clone(), Arc::clone(stream));
        known.told = told;
        known.error = None;
        self.metrics.servers(known.streams.len());
        drop(known);
        self.changed.send_replace(());
        Ok(Listed {
            all: self.clone(),
            key,
        })
    }
}

/// A stream's place in the set; it leaves with this value.
pub(super) struct Listed {
    all: LegacyServers,
    key: String,
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut known = self.all.lock();
        known.streams.remove(&self.key);
        self.all.metrics.servers(known.streams.len());
        drop(known);
        self.all.changed.send_replace(());
    }
}
