//! Who holds which name, as far as this server issued it: the ledger of enrolment, in memory and
//! on the disk.
//!
//! A certificate is in the ledger before it is handed out. Many that are issued at once wait for
//! the disk together. What has ended is forgotten.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use tokio::sync::{mpsc, oneshot};
use towline_pki::{Identity, Leaf, Ledger, LedgerError, Serial};
use towline_proto::enrol::Refusal;
use towline_proto::id::{Name, Role};
use towline_proto::limits;

use super::No;

/// A certificate that was issued here.
#[derive(Clone, Debug)]
pub struct Holding {
    /// Its serial number.
    pub serial: Serial,
    /// When it ends.
    pub not_after: SystemTime,
    /// Hash of its key; not known of those from before a restart.
    pub key: Option<[u8; 32]>,
    /// Its addresses; not known of those from before a restart.
    pub ips: Vec<IpAddr>,
}

#[derive(Debug, Default)]
struct Inner {
    names: HashMap<Name, Holding>,
    /// Names that are being enrolled.
    busy: HashSet<Name>,
}

type Line = (CertificateDer<'static>, oneshot::Sender<bool>);

/// See the head of this file.
#[derive(Debug)]
pub struct Names {
    inner: Arc<Mutex<Inner>>,
    lines: mpsc::Sender<Line>,
}

/// A name that nobody else can be given meanwhile.
pub struct Reserved {
    inner: Arc<Mutex<Inner>>,
    name: Name,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        lock(&self.inner).busy.remove(&self.name);
    }
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes lines to the ledger until nobody can send any more.
pub struct Writer {
    ledger: Ledger,
    lines: mpsc::Receiver<Line>,
}

impl Names {
    /// Reads what was issued before.
    pub fn open(ledger: Ledger, now: SystemTime) -> Result<(Self, Writer), LedgerError> {
        let mut inner = Inner::default();
        for entry in ledger.find(|entry| !entry.has_ended(now))? {
            let identity = entry.identity.as_ref().map(|text| text.parse::<Identity>());
            let (Some(Ok(identity)), Ok(serial)) = (identity, entry.serial()) else {
                continue;
            };
            if identity.role == Role::Agent {
                let holding = Holding {
                    serial,
                    not_after: entry.not_after(),
                    key: None,
                    ips: Vec::new(),
                };
                inner.names.insert(identity.name, holding);
            }
        }
        let (lines, incoming) = mpsc::channel(limits::ENROL_PLACES);
        let names = Self {
            inner: Arc::new(Mutex::new(inner)),
            lines,
        };
        let writer = Writer {
            ledger,
            lines: incoming,
        };
        Ok((names, writer))
    }

    /// Takes a name for one enrolment.
    pub fn reserve(&self, name: &Name) -> Result<Reserved, No> {
        match lock(&self.inner).busy.insert(name.clone()) {
            true => Ok(Reserved {
                inner: Arc::clone(&self.inner),
                name: name.clone(),
            }),
            false => Err(No::new(
                Refusal::Busy,
                format!("{name} is being enrolled on another connection"),
            )),
        }
    }

    /// The certificate of this name that has not ended.
    pub fn holding(&self, name: &Name, now: SystemTime) -> Option<Holding> {
        let inner = lock(&self.inner);
        let holding = inner.names.get(name);
        holding.filter(|holding| holding.not_after >= now).cloned()
    }

    /// Another name whose certificate has this address.
    pub fn holder_of(&self, ip: IpAddr, but: &Name, now: SystemTime) -> Option<Name> {
        let inner = lock(&self.inner);
        let held = |(name, holding): &(&Name, &Holding)| {
            *name != but && holding.not_after >= now && holding.ips.contains(&ip)
        };
        inner.names.iter().find(held).map(|(name, _)| name.clone())
    }

    /// How many names are held.
    pub fn len(&self) -> usize {
        lock(&self.inner).names.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is room for one more.
    pub fn has_room(&self, name: &Name, now: SystemTime) -> bool {
        let mut inner = lock(&self.inner);
        if inner.names.len() >= limits::ENROL_NAMES && !inner.names.contains_key(name) {
            inner.names.retain(|_, holding| holding.not_after >= now);
        }
        inner.names.len() < limits::ENROL_NAMES || inner.names.contains_key(name)
    }

    /// Records what was signed; only then may it be handed out.
    pub async fn record(
        &self,
        leaf: &Leaf,
        der: CertificateDer<'static>,
        key: [u8; 32],
    ) -> Result<(), No> {
        let (done, written) = oneshot::channel();
        let sent = self.lines.send((der, done)).await.is_ok();
        if !sent || !written.await.unwrap_or(false) {
            return Err(No::new(
                Refusal::Unavailable,
                "the server cannot record what it issues",
            ));
        }
        let holding = Holding {
            serial: leaf.serial.clone(),
            not_after: leaf.not_after,
            key: Some(key),
            ips: leaf.ip_sans.clone(),
        };
        let mut inner = lock(&self.inner);
        inner.names.insert(leaf.identity.name.clone(), holding);
        Ok(())
    }
}

impl Writer {
    /// Writes for as long as it is polled.
    pub async fn run(mut self) {
        let mut waiting: Vec<Line> = Vec::new();
        while self
            .lines
            .recv_many(&mut waiting, limits::ENROL_LEDGER_BATCH)
            .await
            > 0
        {
            let ledger = self.ledger.clone();
            let ders: Vec<_> = waiting.iter().map(|(der, _)| der.clone()).collect();
            let now = SystemTime::now();
            let writing = tokio::task::spawn_blocking(move || {
                ledger.record(ders.iter().map(AsRef::as_ref), "enrol", now)
            });
            let result = writing.await;
            let good = matches!(result, Ok(Ok(())));
            if let Ok(Err(error)) = &result {
                tracing::error!(%error, "nothing can be issued");
            }
            for (_, done) in waiting.drain(..) {
                // Whoever asked may be gone.
                let _ = done.send(good);
            }
        }
    }
}
