//! The thread that writes the trail. It takes what waits, makes lines of it, writes them in one
//! call, and looks after checkpoints, the disk and the file.
//!
//! - A line is given to the kernel at once, or within [`limits::AUDIT_GATHER`] while many come, so a
//!   crash of the process loses no more than that. It is put on the disk within
//!   [`limits::AUDIT_SYNC`], and before each checkpoint is told: a sync for each line would cost a
//!   rotation of a disk each, and a loss of power takes one second either way of a machine that
//!   lost power.
//! - What could not be written is kept and tried again every [`limits::AUDIT_RETRY`]. While it
//!   waits nothing more is taken from the queue, so memory is bounded, and [`Shared::obstacle`]
//!   tells the dialer. The first line after it says what is missing (`gap`).
//! - Half a line is taken back from the file before it is written again, so lines stay whole.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use prometheus_client::registry::Registry;
use towline_pki::SealKey;
use towline_proto::limits;

use super::chain::{Chain, Head};
use super::file::Resumed;
use super::record::{Checkpoint, Gap, Opening, Rotation, Teller};
use super::store::{Moved, Store};
use super::text::Fields;
use super::trail::{Audit, Lost, Message, OnFailure, Shared};

/// What a writer is made of.
pub struct Parts {
    /// Who writes.
    pub teller: Teller,
    /// With what checkpoints are signed.
    pub key: Arc<SealKey>,
    /// Where to.
    pub store: Box<dyn Store>,
    /// Where an earlier process stopped.
    pub resumed: Option<Resumed>,
    /// Name of a trail that begins.
    pub new_trail: String,
    /// `--audit-failure`.
    pub on_failure: OnFailure,
}

/// The running thread. Dropped, it is told to end and not waited for.
pub struct Trail {
    audit: Audit,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    ended: tokio::sync::oneshot::Receiver<()>,
}

impl Trail {
    /// Starts the thread.
    pub fn start(parts: Parts) -> io::Result<Self> {
        let (queue, received) = std::sync::mpsc::channel();
        let shared = Shared::new(queue, parts.on_failure);
        let (tell_ended, ended) = tokio::sync::oneshot::channel();
        let writer = Writer::new(parts, Arc::clone(&shared));
        let thread = thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || {
                writer.run(&received);
                let _ = tell_ended.send(());
            })?;
        Ok(Self {
            audit: Audit::on(Arc::clone(&shared)),
            shared,
            thread: Some(thread),
            ended,
        })
    }

    /// The way into it.
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Adds its numbers to what a scrape shows.
    pub fn register(&self, registry: &mut Registry) {
        let metrics = &self.shared.metrics;
        metrics.register(registry, Arc::clone(&self.shared));
    }

    /// Has everything written and signed, within [`limits::AUDIT_FLUSH`].
    pub async fn finish(&mut self) {
        self.shared.tell(Message::Close);
        // Longer than the thread itself tries, so that it says what is lost.
        let limit = limits::AUDIT_FLUSH + limits::AUDIT_RETRY;
        if tokio::time::timeout(limit, &mut self.ended).await.is_err() {
            tracing::error!(
                waiting = self.shared.waiting(),
                "the audit trail could not be written to its end"
            );
        } else if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        self.shared.tell(Message::Close);
    }
}

/// A checkpoint that is told when it is on the disk.
struct Told {
    head: Head,
    signature: Vec<u8>,
}

struct Writer {
    teller: Teller,
    key: Arc<SealKey>,
    key_id: String,
    store: Box<dyn Store>,
    shared: Arc<Shared>,
    trail: String,
    chain: Chain,
    /// Lines that are not written yet, and how much of them is.
    pending: Vec<u8>,
    written: usize,
    /// Lines since the last checkpoint.
    unsigned: u64,
    checkpoint_due: Instant,
    to_tell: Option<Told>,
    /// Since when something is written and not synced.
    unsynced: Option<Instant>,
    look_due: Instant,
    rotate_due: Instant,
    failing_since: Option<Instant>,
    said_at: Option<Instant>,
    closing: Option<Instant>,
}

impl Writer {
    fn new(parts: Parts, shared: Arc<Shared>) -> Self {
        let now = Instant::now();
        let (trail, head, torn) = match parts.resumed {
            Some(resumed) if !resumed.trail.is_empty() => {
                (resumed.trail, resumed.head, resumed.torn)
            }
            Some(resumed) => (parts.new_trail, Head::NONE, resumed.torn),
            None => (parts.new_trail, Head::NONE, None),
        };
        let key_id = parts.key.public().id().to_owned();
        let mut writer = Self {
            teller: parts.teller,
            key: parts.key,
            store: parts.store,
            shared,
            trail,
            chain: Chain::after(head),
            pending: Vec::new(),
            written: 0,
            unsigned: 0,
            checkpoint_due: now + limits::AUDIT_CHECKPOINT,
            to_tell: None,
            unsynced: None,
            look_due: now + limits::AUDIT_LOOK,
            rotate_due: now,
            failing_since: None,
            said_at: None,
            closing: None,
            key_id,
        };
        if torn.is_some() || head.seq > 0 {
            tracing::info!(head = %head, torn_bytes = torn.map_or(0, |torn| torn.bytes), "audit trail resumed");
        }
        let opening = Opening {
            trail: &writer.trail,
            software: concat!("towline-server ", env!("CARGO_PKG_VERSION")),
            key: &writer.key_id,
            on_failure: writer.shared.on_failure().as_str(),
            torn,
        };
        let fields = writer.teller.trail(SystemTime::now(), &opening);
        writer.line("trail", &fields);
        // Lines of an earlier process behind its last checkpoint, however many, are covered.
        writer.checkpoint();
        writer
    }

    fn run(mut self, received: &Receiver<Message>) {
        loop {
            if !self.flush() {
                if self.given_up() {
                    break;
                }
                thread::park_timeout(limits::AUDIT_RETRY);
                self.while_failing();
                continue;
            }
            if self.closing.is_some() && self.shared.waiting() == 0 {
                self.close();
                break;
            }
            match received.recv_timeout(self.wait()) {
                Ok(message) => {
                    let taken = self.take(message, received);
                    self.look_after(Instant::now());
                    if taken < limits::AUDIT_BATCH && self.closing.is_none() {
                        thread::sleep(limits::AUDIT_GATHER);
                    }
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.close_by(Instant::now()),
            }
            self.look_after(Instant::now());
        }
    }

    /// While nothing can be written the queue is left alone, the order to end in it too.
    fn while_failing(&mut self) {
        if self.shared.is_closing() {
            self.close_by(Instant::now());
        }
        // A file that was moved away, perhaps to make room, is followed.
        if let Ok(Some(moved)) = self.store.look(SystemTime::now()) {
            self.note_moved(moved);
        }
    }

    fn close_by(&mut self, now: Instant) {
        self.closing.get_or_insert(now + limits::AUDIT_FLUSH);
    }

    fn given_up(&mut self) -> bool {
        let over = self.closing.is_some_and(|until| Instant::now() >= until);
        if over {
            let lines = self.pending.iter().filter(|byte| **byte == b'\n').count();
            tracing::error!(
                lines,
                waiting = self.shared.waiting(),
                cause = self.shared.lost().cause,
                "the end of the audit trail was never written"
            );
        }
        over
    }

    fn wait(&self) -> Duration {
        let sync = self.unsynced.map(|since| since + limits::AUDIT_SYNC);
        let due = [Some(self.checkpoint_due), Some(self.look_due), sync];
        let next = due.into_iter().flatten().min();
        let now = Instant::now();
        next.map_or(limits::AUDIT_LOOK, |next| {
            next.saturating_duration_since(now)
        })
    }

    /// Makes lines of what waits, at most a batch.
    fn take(&mut self, message: Message, received: &Receiver<Message>) -> usize {
        let mut next = Some(message);
        for taken in 0..limits::AUDIT_BATCH {
            let Some(message) = next.take().or_else(|| received.try_recv().ok()) else {
                return taken;
            };
            match message {
                Message::Event(timed) => {
                    self.shared.took();
                    let fields = self.teller.event(&timed);
                    self.line(timed.event.word(), &fields);
                }
                Message::Look => self.look_due = Instant::now(),
                Message::Close => self.close_by(Instant::now()),
            }
        }
        limits::AUDIT_BATCH
    }

    fn line(&mut self, event: &'static str, fields: &Fields) {
        self.chain.append(fields.as_str(), &mut self.pending);
        self.shared.metrics.record(event);
        self.unsigned += 1;
        if self.unsigned + 1 >= limits::AUDIT_CHECKPOINT_LINES {
            self.checkpoint();
        }
    }

    fn checkpoint(&mut self) {
        self.checkpoint_due = Instant::now() + limits::AUDIT_CHECKPOINT;
        let head = self.chain.head();
        let checkpoint = Checkpoint {
            trail: &self.trail,
            head,
            key: &self.key_id,
        };
        let fields = self.teller.checkpoint(SystemTime::now(), &checkpoint);
        let mut signature = Vec::new();
        let sealed = self.chain.append_sealed(
            fields.as_str(),
            |line| {
                self.key
                    .seal(line)
                    .inspect(|made| signature.clone_from(made))
            },
            &mut self.pending,
        );
        if let Err(error) = sealed {
            tracing::error!(%error, "the audit trail's checkpoint cannot be signed");
            return;
        }
        self.shared.metrics.record("checkpoint");
        self.unsigned = 0;
        self.to_tell = Some(Told { head, signature });
    }

    /// Writes what is pending; `false` when that failed.
    fn flush(&mut self) -> bool {
        while self.written < self.pending.len() {
            self.shared.writing(true);
            let done = self.store.write(&self.pending[self.written..]);
            self.shared.writing(false);
            match done {
                Ok(bytes) => {
                    self.written += bytes;
                    self.shared.metrics.bytes.inc_by(bytes as u64);
                    self.unsynced.get_or_insert_with(Instant::now);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.take_back();
                    self.failed("write", &error);
                    return false;
                }
            }
        }
        self.pending.clear();
        self.pending.shrink_to(limits::AUDIT_BATCH * 1024);
        self.written = 0;
        if self.to_tell.is_some() && !self.sync() {
            return false;
        }
        self.recovered();
        self.pending.is_empty() || self.flush()
    }

    /// The beginning of a line that was written is taken back.
    fn take_back(&mut self) {
        let done = &self.pending[..self.written];
        let begin = done
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        let half = self.written - begin;
        if half > 0 && self.store.take_back(half as u64) {
            self.written = begin;
        }
    }

    fn sync(&mut self) -> bool {
        self.shared.writing(true);
        let done = self.store.sync();
        self.shared.writing(false);
        if let Err(error) = done {
            // What the kernel could not write it may have forgotten: the next record says so.
            self.shared.lost().since.get_or_insert_with(SystemTime::now);
            self.failed("sync", &error);
            return false;
        }
        self.unsynced = None;
        if let Some(Told { head, signature }) = self.to_tell.take() {
            self.shared.checkpointed();
            tracing::info!(
                head = %head,
                key = self.key_id,
                signature = towline_pki::seal::hex(&signature),
                "audit checkpoint"
            );
        }
        true
    }

    fn failed(&mut self, what: &str, error: &io::Error) {
        let now = Instant::now();
        self.failing_since.get_or_insert(now);
        self.shared.metrics.write_failures.inc();
        let cause = format!("cannot {what} the audit trail: {error}");
        let said = self
            .said_at
            .is_some_and(|at| now < at + limits::AUDIT_CHECKPOINT);
        if !said {
            self.said_at = Some(now);
            tracing::error!(on_failure = %self.shared.on_failure(), "{cause}");
        }
        self.shared.lost().cause = cause;
        self.shared.set_failing(true);
    }

    /// Everything that was pending is written: what is missing is said, once.
    fn recovered(&mut self) {
        if let Some(since) = self.failing_since.take() {
            self.said_at = None;
            self.shared.set_failing(false);
            let lost = self.shared.lost().clone();
            tracing::info!(
                for_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
                dropped = lost.dropped,
                dials_refused = lost.dials_refused,
                "the audit trail can be written again"
            );
        }
        // While the queue is full more is lost: one gap is told, not one for each batch.
        if self.shared.waiting() < limits::AUDIT_QUEUE {
            let lost = std::mem::take(&mut *self.shared.lost());
            self.gap(lost);
        }
    }

    fn gap(&mut self, lost: Lost) {
        let Some(since) = lost.since else {
            return;
        };
        let gap = Gap {
            dropped: lost.dropped,
            dials_refused: lost.dials_refused,
            since,
            cause: lost.cause,
        };
        let fields = self.teller.gap(SystemTime::now(), &gap);
        self.line("gap", &fields);
    }

    /// What is due, when nothing is pending or what is pending can wait for it.
    fn look_after(&mut self, now: Instant) {
        if now >= self.checkpoint_due {
            self.checkpoint();
        }
        if !self.flush() {
            return;
        }
        if self
            .unsynced
            .is_some_and(|since| now >= since + limits::AUDIT_SYNC)
            && !self.sync()
        {
            return;
        }
        if now >= self.look_due {
            self.look_due = now + limits::AUDIT_LOOK;
            match self.store.look(SystemTime::now()) {
                Ok(Some(moved)) => self.note_moved(moved),
                Ok(None) => {}
                Err(error) => self.cannot_follow(now, &error),
            }
        }
        if now >= self.rotate_due && self.store.is_full(SystemTime::now()) {
            self.rotate(now);
        }
    }

    /// Lines still go to the file that was moved.
    fn cannot_follow(&mut self, now: Instant, error: &io::Error) {
        if self
            .said_at
            .is_none_or(|at| now >= at + limits::AUDIT_CHECKPOINT)
        {
            self.said_at = Some(now);
            tracing::error!(%error, "the audit trail was moved and no new file can be begun in its place");
        }
    }

    /// The last line of a file that is put aside is a checkpoint.
    fn rotate(&mut self, now: Instant) {
        self.checkpoint();
        if !self.flush() {
            return;
        }
        match self.store.rotate(self.chain.head(), SystemTime::now()) {
            Ok(moved) => self.note_moved(moved),
            Err(error) => {
                self.rotate_due = now + limits::AUDIT_CHECKPOINT;
                tracing::error!(%error, "the file of the audit trail cannot be put aside, it grows");
            }
        }
    }

    fn note_moved(&mut self, moved: Moved) {
        let at = SystemTime::now();
        match moved {
            Moved::NewFile {
                cause,
                kept_as,
                removed,
            } => {
                tracing::info!(
                    cause,
                    kept_as,
                    ?removed,
                    "the audit trail goes on in a new file"
                );
                self.shared.metrics.rotations.inc();
                let rotation = Rotation {
                    trail: &self.trail,
                    cause,
                    kept_as: kept_as.as_deref(),
                    removed: &removed,
                };
                let fields = self.teller.rotate(at, &rotation);
                self.line("rotate", &fields);
            }
            Moved::Shrunk { was, is } => {
                tracing::error!(
                    was,
                    is,
                    "the file of the audit trail was cut short by somebody"
                );
                let fields = self.teller.shrunk(at, was, is);
                self.line("shrunk", &fields);
            }
        }
    }

    fn close(&mut self) {
        let fields = self.teller.close(SystemTime::now());
        self.line("close", &fields);
        self.checkpoint();
        while !self.flush() && !self.given_up() {
            thread::park_timeout(limits::AUDIT_RETRY);
        }
    }
}
