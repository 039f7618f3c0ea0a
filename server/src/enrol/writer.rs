//! The writer of the ledger: many lines with one wait for the disk, and no line for longer than
//! somebody may need it.
//!
//! At the start, and whenever as many lines are new as were left the last time, the lines of
//! certificates that ended more than [`limits::ENROL_LEDGER_KEPT`] ago go. So the ledger has no more
//! than twice what is needed. It has a bound all the same: when so many certificates have not ended,
//! nothing is issued, and that is an alarm.

use std::time::SystemTime;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rustls_pki_types::CertificateDer;
use tokio::sync::{mpsc, oneshot};
use towline_pki::Ledger;
use towline_proto::limits;

/// A certificate, and who waits for it to be on the disk.
pub type Line = (
    CertificateDer<'static>,
    oneshot::Sender<Result<(), Unwritten>>,
);

/// Why a certificate is not in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwritten {
    /// The disk.
    Failed,
    /// The bound.
    Full,
}

impl Unwritten {
    /// For who asked.
    pub const fn as_str(self) -> &'static str {
        match self {
            Unwritten::Failed => "the server cannot record what it issues",
            Unwritten::Full => "the server's record of what it issued is full",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    outcome: &'static str,
}

/// When lines are looked for that nobody needs, and when there is no room. Values, so that tests
/// need not write millions of lines.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    new: u64,
    most: u64,
}

/// Writes lines to the ledger until nobody can send any more.
pub struct Writer {
    ledger: Ledger,
    incoming: mpsc::Receiver<Line>,
    bounds: Bounds,
    /// Lines in the ledger.
    count: u64,
    /// Of those, written since it was last tidied.
    new: u64,
    lines: Gauge,
    tidied: Family<Ended, Counter>,
}

impl Writer {
    /// For a ledger that has so many lines.
    pub fn new(ledger: Ledger, count: u64) -> (mpsc::Sender<Line>, Self) {
        let (lines, incoming) = mpsc::channel(limits::ENROL_PLACES);
        let writer = Self {
            ledger,
            incoming,
            bounds: Bounds {
                new: limits::ENROL_LEDGER_NEW,
                most: limits::ENROL_LEDGER_LINES,
            },
            count,
            new: count,
            lines: Gauge::default(),
            tidied: Family::default(),
        };
        (lines, writer)
    }

    /// Adds its numbers to what a scrape shows.
    pub fn register(&self, registry: &mut Registry) {
        for outcome in ["done", "failed"] {
            self.tidied.get_or_create(&Ended { outcome }).inc_by(0);
        }
        registry.register(
            "towline_server_enrolment_ledger_lines",
            "Certificates in the ledger of this server; at its bound nothing is issued",
            self.lines.clone(),
        );
        registry.register(
            "towline_server_enrolment_ledger_tidied",
            "Times that certificates which ended long ago were left out of the ledger, by outcome",
            self.tidied.clone(),
        );
    }

    /// Writes for as long as it is polled.
    pub async fn run(mut self) {
        self.tidy(SystemTime::now()).await;
        let mut waiting: Vec<Line> = Vec::new();
        while self
            .incoming
            .recv_many(&mut waiting, limits::ENROL_LEDGER_BATCH)
            .await
            > 0
        {
            let now = SystemTime::now();
            let new = u64::try_from(waiting.len()).unwrap_or(u64::MAX);
            let full = self.count.saturating_add(new) > self.bounds.most;
            if full || self.new >= self.bounds.new.max(self.count - self.new) {
                self.tidy(now).await;
            }
            let result = match self.count.saturating_add(new) > self.bounds.most {
                true => {
                    tracing::error!(
                        most = self.bounds.most,
                        ledger = %self.ledger.path().display(),
                        "nothing can be issued: so many certificates are in the ledger; give them \
                         a shorter life (--enrol-certificate-life), or look who asks for so many"
                    );
                    Err(Unwritten::Full)
                }
                false => self.write(&waiting, now).await,
            };
            if result.is_ok() {
                self.count += new;
                self.new += new;
                self.show();
            }
            for (_, done) in waiting.drain(..) {
                // Whoever asked may be gone.
                let _ = done.send(result);
            }
        }
    }

    fn show(&self) {
        self.lines
            .set(i64::try_from(self.count).unwrap_or(i64::MAX));
    }

    async fn write(&self, waiting: &[Line], now: SystemTime) -> Result<(), Unwritten> {
        let ledger = self.ledger.clone();
        let ders: Vec<_> = waiting.iter().map(|(der, _)| der.clone()).collect();
        let writing = tokio::task::spawn_blocking(move || {
            ledger.record(ders.iter().map(AsRef::as_ref), "enrol", now)
        });
        match writing.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                tracing::error!(%error, "nothing can be issued");
                Err(Unwritten::Failed)
            }
            Err(_) => Err(Unwritten::Failed),
        }
    }

    /// Leaves out what nobody needs any more. What fails is tried again after as many new lines.
    async fn tidy(&mut self, now: SystemTime) {
        self.new = 0;
        let ledger = self.ledger.clone();
        let before = now.checked_sub(limits::ENROL_LEDGER_KEPT);
        let before = before.unwrap_or(SystemTime::UNIX_EPOCH);
        let done = tokio::task::spawn_blocking(move || ledger.forget(before)).await;
        let outcome = match done {
            Ok(Ok(done)) => {
                self.count = done.kept;
                if done.dropped > 0 {
                    tracing::info!(
                        kept = done.kept,
                        dropped = done.dropped,
                        "certificates that ended long ago are out of the ledger"
                    );
                }
                "done"
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "the ledger grows: what ended long ago cannot be left out");
                "failed"
            }
            Err(_) => "failed",
        };
        self.tidied.get_or_create(&Ended { outcome }).inc();
        self.show();
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use towline_pki::{Authority, AuthoritySpec, Issue, KeyKind, PrivateKey};

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    struct World {
        folder: PathBuf,
        authority: Authority,
        now: SystemTime,
    }

    impl Drop for World {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }

    impl World {
        fn new(name: &str) -> Self {
            let folder =
                std::env::temp_dir().join(format!("towline-ledger-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            let now = SystemTime::now();
            let spec = AuthoritySpec {
                purpose: "agents".into(),
                organisation: "c".into(),
                not_before: now - 100 * DAY,
                not_after: now + 100 * DAY,
                path_length: Some(0),
                usages: Vec::new(),
            };
            let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
            Self {
                folder,
                authority: Authority::create(&spec, key).unwrap(),
                now,
            }
        }

        fn ledger(&self) -> Ledger {
            Ledger::at(self.folder.join("issued.jsonl"))
        }

        /// A certificate of a day that was issued so many days ago.
        fn issued(&self, days: u32) -> CertificateDer<'static> {
            let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
            let issue = Issue {
                identity: "spiffe://c/towline/agent/n1".parse().unwrap(),
                dns: Vec::new(),
                ips: Vec::new(),
                life: Some(DAY),
                public_key: key.public(),
            };
            let issued = self.authority.issue(&issue, self.now - days * DAY).unwrap();
            issued.chain[0].clone()
        }

        fn writer(&self, new: u64, most: u64) -> (mpsc::Sender<Line>, Writer, Gauge) {
            let count = self.ledger().find(|_| true).unwrap().len() as u64;
            let (lines, mut writer) = Writer::new(self.ledger(), count);
            writer.bounds = Bounds { new, most };
            let gauge = writer.lines.clone();
            (lines, writer, gauge)
        }
    }

    async fn sent(
        lines: &mpsc::Sender<Line>,
        der: CertificateDer<'static>,
    ) -> Result<(), Unwritten> {
        let (done, written) = oneshot::channel();
        lines.send((der, done)).await.unwrap();
        written.await.unwrap()
    }

    #[tokio::test]
    async fn the_ledger_does_not_grow_for_ever() {
        let world = World::new("tidy");
        // Two that ended within the time that they are kept, three before.
        for days in [30, 20, 10, 7, 2] {
            let der = world.issued(days);
            world
                .ledger()
                .record([der.as_ref()], "enrol", world.now)
                .unwrap();
        }
        let (lines, writer, gauge) = world.writer(4, 100);
        let running = tokio::spawn(writer.run());
        sent(&lines, world.issued(0)).await.unwrap();
        assert_eq!(gauge.get(), 3);
        // What is written meanwhile and has ended goes when enough is new.
        for _ in 0..40 {
            sent(&lines, world.issued(30)).await.unwrap();
            assert!(gauge.get() <= 3 + 4 + 1, "{}", gauge.get());
        }
        drop(lines);
        running.await.unwrap();
        let found = world.ledger().find(|_| true).unwrap();
        assert_eq!(found.len() as i64, gauge.get());
    }

    #[tokio::test]
    async fn at_the_bound_nothing_is_written_until_some_ended() {
        let world = World::new("full");
        let (lines, writer, gauge) = world.writer(100, 3);
        let running = tokio::spawn(writer.run());
        for days in [0, 0, 30] {
            sent(&lines, world.issued(days)).await.unwrap();
        }
        // The third has ended long ago: there is room for one.
        sent(&lines, world.issued(0)).await.unwrap();
        assert_eq!(sent(&lines, world.issued(0)).await, Err(Unwritten::Full));
        assert_eq!(gauge.get(), 3);
        drop(lines);
        running.await.unwrap();
        assert_eq!(world.ledger().find(|_| true).unwrap().len(), 3);
    }

    #[tokio::test]
    async fn a_ledger_that_cannot_be_tidied_is_still_written() {
        let world = World::new("fails");
        let (lines, writer, _) = world.writer(100, 100);
        let mut registry = Registry::default();
        writer.register(&mut registry);
        // Where the new file would be stands a folder.
        std::fs::create_dir(world.folder.join("issued.jsonl.new")).unwrap();
        let running = tokio::spawn(writer.run());
        sent(&lines, world.issued(0)).await.unwrap();
        drop(lines);
        running.await.unwrap();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let failed = "towline_server_enrolment_ledger_tidied_total{outcome=\"failed\"} 1";
        assert!(text.contains(failed), "{text}");
        assert_eq!(world.ledger().find(|_| true).unwrap().len(), 1);
    }
}
