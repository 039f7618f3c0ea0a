//! The writer over a store that is full, slow, broken or moved.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use towline_link::process::unix::PeerCredentials;
use towline_proto::id::DialId;
use towline_proto::kubelet::Call;
use towline_proto::limits;
use towline_proto::reason::Reason;

use super::chain::Head;
use super::record::Teller;
use super::store::{Moved, Store};
use super::trail::{Audit, OnFailure, OpenRecord};
use super::verify::{Findings, Verifier, Wanted};
use super::verify_tests::key;
use super::writer::{Parts, Trail};
use crate::caller::Caller;
use crate::dial::{Ask, Door};
use crate::gateway::event::{FrontEndCertificate, Outcome, RequestEvent, RequestSink};

/// What a store is told to do, and what it was given.
#[derive(Default)]
struct Disk {
    bytes: Vec<u8>,
    /// Bytes that still fit.
    room: Option<usize>,
    /// Writes wait.
    held: bool,
    sync_fails: bool,
    rotate_at: Option<usize>,
    files: Vec<Vec<u8>>,
}

#[derive(Clone, Default)]
struct FaultStore {
    disk: Arc<Mutex<Disk>>,
    changed: Arc<Condvar>,
    writes: Arc<AtomicUsize>,
}

impl FaultStore {
    fn with<T>(&self, change: impl FnOnce(&mut Disk) -> T) -> T {
        let done = change(&mut self.disk.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
        done
    }

    fn text(&self) -> String {
        self.with(|disk| {
            let all: Vec<u8> = disk
                .files
                .iter()
                .flatten()
                .chain(&disk.bytes)
                .copied()
                .collect();
            String::from_utf8(all).expect("text")
        })
    }
}

impl Store for FaultStore {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let mut disk = self
            .changed
            .wait_while(disk, |disk| disk.held)
            .unwrap_or_else(PoisonError::into_inner);
        let fits = disk.room.unwrap_or(usize::MAX).min(bytes.len());
        if fits == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if let Some(room) = &mut disk.room {
            *room -= fits;
        }
        disk.bytes.extend_from_slice(&bytes[..fits]);
        Ok(fits)
    }

    fn take_back(&mut self, bytes: u64) -> bool {
        self.with(|disk| {
            let length = disk.bytes.len() - bytes as usize;
            disk.bytes.truncate(length);
            if let Some(room) = &mut disk.room {
                *room += bytes as usize;
            }
        });
        true
    }

    fn sync(&mut self) -> io::Result<()> {
        self.with(|disk| match disk.sync_fails {
            true => Err(io::Error::other("the disk is gone")),
            false => Ok(()),
        })
    }

    fn is_full(&self, _: SystemTime) -> bool {
        self.with(|disk| disk.rotate_at.is_some_and(|at| disk.bytes.len() >= at))
    }

    fn rotate(&mut self, head: Head, _: SystemTime) -> io::Result<Moved> {
        self.with(|disk| {
            let whole = std::mem::take(&mut disk.bytes);
            disk.files.push(whole);
        });
        Ok(Moved::NewFile {
            cause: "size",
            kept_as: Some(format!("audit.log.{:012}", head.seq)),
            removed: Vec::new(),
        })
    }

    fn look(&mut self, _: SystemTime) -> io::Result<Option<Moved>> {
        Ok(None)
    }
}

struct Bench {
    store: FaultStore,
    trail: Trail,
    audit: Audit,
    public: towline_pki::SealPublic,
    next: u64,
}

impl Bench {
    fn new(on_failure: OnFailure, prepare: impl FnOnce(&mut Disk)) -> Self {
        let store = FaultStore::default();
        store.with(prepare);
        let (key, public) = key();
        let trail = Trail::start(Parts {
            teller: Teller {
                cluster: "c.example".into(),
                server: "s1".into(),
                run: 1,
                commands: super::requests::Commands::default(),
            },
            key: Arc::new(key),
            store: Box::new(store.clone()),
            resumed: None,
            new_trail: "0".repeat(32),
            on_failure,
        })
        .unwrap();
        Self {
            audit: trail.audit().clone(),
            store,
            trail,
            public,
            next: 0,
        }
    }

    fn open(&mut self) -> Option<OpenRecord> {
        self.begin().map(super::Draft::opened)
    }

    fn refuse(&mut self) {
        if let Some(draft) = self.begin() {
            draft.refused(Reason::ServerPolicy, None);
        }
    }

    fn begin(&mut self) -> Option<super::Draft> {
        self.next += 1;
        let ask = Ask {
            target: "10.0.0.1:10250".parse().unwrap(),
            door: Door::ConnectUnix,
            caller: Caller::Local(PeerCredentials {
                uid: 0,
                gid: 0,
                pid: None,
            }),
            trace: None,
        };
        self.audit.begin(DialId::new(self.next).unwrap(), &ask).ok()
    }

    fn wait(&self, what: &str, mut until: impl FnMut(&Self) -> bool) {
        let begun = std::time::Instant::now();
        while !until(self) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn failing(&self) -> bool {
        self.audit.state().is_err()
    }

    /// Ends it, and proves what was written.
    fn finish(mut self) -> (Vec<serde_json::Value>, Findings) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(self.trail.finish());
        let text = self.store.text();
        let mut verifier = Verifier::new(Wanted {
            keys: vec![self.public.clone()],
            head: None,
        });
        verifier.file("t").unwrap();
        verifier
            .push(text.as_bytes())
            .unwrap_or_else(|fault| panic!("{fault}\n{text}"));
        let (findings, result) = verifier.finish();
        assert_eq!(result, Ok(()), "{text}");
        let lines = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"));
        (lines.collect(), findings)
    }
}

fn count(lines: &[serde_json::Value], event: &str) -> usize {
    lines.iter().filter(|line| line["event"] == event).count()
}

fn gap(lines: &[serde_json::Value]) -> &serde_json::Value {
    lines
        .iter()
        .find(|line| line["event"] == "gap")
        .expect("a gap")
}

#[test]
fn every_dial_has_a_start_and_an_end_and_what_is_dropped_too() {
    let mut bench = Bench::new(OnFailure::Block, |_| ());
    bench.open().unwrap().ended_early(Reason::FrontEndGone);
    drop(bench.open());
    let ask_and_leave = bench.audit.clone();
    drop(ask_and_leave);
    let (lines, findings) = bench.finish();
    assert_eq!(
        (
            count(&lines, "start"),
            count(&lines, "end"),
            count(&lines, "close")
        ),
        (2, 2, 1)
    );
    let reasons: Vec<_> = lines
        .iter()
        .filter_map(|line| line["reason"].as_str())
        .collect();
    assert_eq!(reasons, ["front-end-gone", "aborted"]);
    assert_eq!(findings.dropped, 0);
}

#[test]
fn a_full_disk_refuses_dials_and_the_gap_is_told_when_there_is_room() {
    let mut bench = Bench::new(OnFailure::Block, |disk| disk.room = Some(2_000));
    let mut live = Vec::new();
    let mut refused = 0;
    bench.wait("the disk is full", |_| true);
    while refused < 3 {
        match bench.open() {
            Some(open) => live.push(open),
            None => refused += 1,
        }
        std::thread::yield_now();
    }
    assert!(bench.failing());
    // Lines stay whole, also while no more fits.
    assert!(bench.store.text().ends_with('\n'));
    // A live dial goes on, and its end is not lost.
    let opened = live.len();
    drop(live);
    bench.store.with(|disk| disk.room = None);
    bench.wait("it is written again", |bench| !bench.failing());
    bench.open().unwrap().ended_early(Reason::Done);
    let (lines, findings) = bench.finish();
    assert_eq!(count(&lines, "start"), opened + 1);
    assert_eq!(count(&lines, "end"), opened + 1);
    assert_eq!(gap(&lines)["dials_refused"], 3);
    assert_eq!(gap(&lines)["dropped"], 0);
    assert!(
        gap(&lines)["cause"].as_str().unwrap().contains("write"),
        "{}",
        gap(&lines)
    );
    assert_eq!(findings.dials_refused, 3);
}

#[test]
fn with_drop_dials_go_on_and_what_does_not_fit_the_queue_is_counted() {
    let mut bench = Bench::new(OnFailure::Drop, |disk| disk.room = Some(0));
    bench.wait("the disk is full", Bench::failing);
    let many = limits::AUDIT_QUEUE + 50;
    let live: Vec<_> = (0..many)
        .map(|_| bench.open().expect("never refused"))
        .collect();
    assert_eq!(bench.audit.shared().unwrap().waiting(), limits::AUDIT_QUEUE);
    drop(live);
    bench.store.with(|disk| disk.room = None);
    bench.wait("it is written again", |bench| {
        bench.audit.shared().unwrap().waiting() == 0
    });
    let (lines, findings) = bench.finish();
    assert_eq!(count(&lines, "start"), limits::AUDIT_QUEUE);
    assert_eq!(
        count(&lines, "end"),
        limits::AUDIT_QUEUE,
        "what began in the trail ends in it"
    );
    assert_eq!(findings.dropped, 100, "fifty starts and their ends");
}

/// A request to a kubelet that came to this.
fn request(outcome: Outcome) -> RequestEvent {
    RequestEvent {
        at: SystemTime::UNIX_EPOCH,
        dial: DialId::new(1).expect("not zero"),
        number: 1,
        target: "10.0.0.7:10250".parse().expect("a target"),
        node: "n1".parse().expect("a name"),
        method: Some("POST"),
        call: Some(Call::of("/exec/ns/p/c?command=id")),
        path: None,
        status: Some(101),
        outcome,
        front_end: FrontEndCertificate {
            subject: "CN=kube-apiserver".into(),
            serial: "0a".into(),
        },
        kubelet_key: None,
    }
}

#[test]
fn a_request_that_passed_is_recorded_although_others_have_filled_the_queue_since() {
    let mut bench = Bench::new(OnFailure::Block, |disk| disk.held = true);
    assert!(bench.audit.takes(), "it may pass");
    let live: Vec<_> = std::iter::from_fn(|| bench.open()).collect();
    assert!(!bench.audit.takes());
    let refused = Outcome::Refused {
        why: "rule",
        line: None,
    };
    for outcome in [
        Outcome::Answered,
        Outcome::Failed("target-reset"),
        Outcome::Malformed("chunks"),
        refused,
    ] {
        bench.audit.request(request(outcome));
    }
    bench.store.with(|disk| disk.held = false);
    bench.wait("it is written again", |bench| !bench.failing());
    drop(live);
    let (lines, findings) = bench.finish();
    assert_eq!(count(&lines, "request"), 3);
    assert_eq!(findings.dropped, 1, "the refused one");
}

/// Somebody who is let in asks for nonsense, or for what is refused, without end.
#[test]
fn refusals_take_half_of_the_queue_and_dials_the_rest() {
    let mut bench = Bench::new(OnFailure::Block, |disk| disk.held = true);
    let caller = Caller::Local(PeerCredentials {
        uid: 1,
        gid: 1,
        pid: None,
    });
    for number in 0..2 * limits::AUDIT_QUEUE {
        match number % 2 {
            0 => bench
                .audit
                .bad_request(Door::ConnectUnix, &caller, "syntax"),
            _ => bench.refuse(),
        }
    }
    let shared = Arc::clone(bench.audit.shared().unwrap());
    assert_eq!(shared.waiting(), limits::AUDIT_REFUSALS);
    let live: Vec<_> = std::iter::from_fn(|| bench.open()).collect();
    assert_eq!(live.len(), limits::AUDIT_QUEUE - limits::AUDIT_REFUSALS);
    bench.store.with(|disk| disk.held = false);
    bench.wait("it is written again", |bench| !bench.failing());
    drop(live);
    let (lines, findings) = bench.finish();
    let told = count(&lines, "bad-request") + count(&lines, "refused");
    assert_eq!(told, limits::AUDIT_REFUSALS);
    let lost = 2 * limits::AUDIT_QUEUE - limits::AUDIT_REFUSALS;
    assert_eq!(findings.dropped, lost as u64);
}

#[test]
fn a_write_that_hangs_fills_the_queue_and_then_refuses_at_once() {
    let mut bench = Bench::new(OnFailure::Block, |disk| disk.held = true);
    let mut live = Vec::new();
    let begun = std::time::Instant::now();
    while let Some(open) = bench.open() {
        live.push(open);
        assert!(live.len() <= limits::AUDIT_QUEUE);
    }
    assert!(begun.elapsed() < limits::AUDIT_STUCK, "nobody waited");
    assert_eq!(live.len(), limits::AUDIT_QUEUE);
    assert!(bench.failing());
    bench.store.with(|disk| disk.held = false);
    bench.wait("it is written again", |bench| !bench.failing());
    drop(live);
    let (lines, findings) = bench.finish();
    assert_eq!(count(&lines, "end"), limits::AUDIT_QUEUE);
    assert_eq!(findings.dials_refused, 1);
    assert_eq!(count(&lines, "gap"), 1);
}

#[test]
fn a_sync_that_fails_is_a_failure_and_is_told() {
    let bench = Bench::new(OnFailure::Block, |disk| disk.sync_fails = true);
    bench.wait("it is noticed", Bench::failing);
    bench.store.with(|disk| disk.sync_fails = false);
    bench.wait("it is synced again", |bench| !bench.failing());
    let (lines, _) = bench.finish();
    assert!(
        gap(&lines)["cause"].as_str().unwrap().contains("sync"),
        "{}",
        gap(&lines)
    );
}

#[test]
fn each_thousand_lines_are_signed_and_rotation_keeps_the_chain() {
    let mut bench = Bench::new(OnFailure::Block, |disk| disk.rotate_at = Some(600_000));
    for number in 0..2_500 {
        drop(bench.open());
        if number % 100 == 0 {
            bench.wait("room", |bench| {
                bench.audit.shared().unwrap().waiting() < 1_000
            });
        }
    }
    bench.wait("all is taken", |bench| {
        bench.audit.shared().unwrap().waiting() == 0
    });
    let files = bench.store.with(|disk| disk.files.len());
    assert!(files > 1, "{files}");
    for file in bench.store.with(|disk| disk.files.clone()) {
        let text = String::from_utf8(file).unwrap();
        assert!(
            text.lines()
                .last()
                .unwrap()
                .contains("\"event\":\"checkpoint\""),
            "{text}"
        );
    }
    let (lines, findings) = bench.finish();
    assert_eq!(count(&lines, "rotate"), files);
    assert!(findings.checkpoints >= 5, "{}", findings.checkpoints);
    assert_eq!(count(&lines, "end"), 2_500);
}

#[test]
fn an_end_that_cannot_be_written_does_not_hold_the_process() {
    let bench = Bench::new(OnFailure::Block, |disk| disk.room = Some(0));
    bench.wait("it is full", Bench::failing);
    let Bench { mut trail, .. } = bench;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let begun = std::time::Instant::now();
    runtime.block_on(trail.finish());
    assert!(begun.elapsed() < 2 * limits::AUDIT_FLUSH);
}
