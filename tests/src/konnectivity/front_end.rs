//! The real front ends: kube-apiserver's dialler and konnectivity-client, in a process that does what a
//! line of JSON asks for. `tests/interop/verbs` is the other end.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::process;
use super::programs::Program;
use crate::authority::PairFiles;
use crate::scenario::expect;
use crate::scratch::Scratch;

/// Who dials, and where the door is.
#[derive(Clone, Debug)]
pub enum Dialler {
    /// kube-apiserver, `proxyProtocol: GRPC` over a Unix socket.
    ApiserverGrpc(PathBuf),
    /// kube-apiserver, `proxyProtocol: HTTPConnect` over a Unix socket.
    ApiserverConnect(PathBuf),
    /// kube-apiserver, `proxyProtocol: HTTPConnect` over TCP.
    ApiserverConnectTcp(SocketAddr, TlsFiles),
    /// The single-use tunnel of kube-apiserver's release, over TCP.
    SingleTcp(SocketAddr, TlsFiles),
    /// The newer client's single-use tunnel.
    NewSingle(PathBuf),
    /// The newer client's reusable tunnel: one connection, a stream for each dial.
    Reusable(PathBuf),
    /// The same over TCP.
    ReusableTcp(SocketAddr, TlsFiles),
}

/// What a front end over TCP shows and trusts.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Its own pair.
    pub pair: PairFiles,
    /// Who signs the server.
    pub ca: PathBuf,
}

/// One thing to do.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verb {
    id: i64,
    verb: &'static str,
    target: String,
    name: String,
    say: String,
    want: String,
    count: usize,
    workers: usize,
    bytes: u64,
    dial_ms: u64,
    limit_ms: u64,
}

impl Verb {
    fn new(verb: &'static str, target: &str) -> Self {
        Self {
            verb,
            target: target.to_owned(),
            ..Self::default()
        }
    }

    /// Dials and closes.
    pub fn dial(target: &str) -> Self {
        Self::new("dial", target)
    }

    /// Dials, writes `say`, wants it back, closes.
    pub fn ask(target: &str, say: &str) -> Self {
        Self::new("ask", target).say(say)
    }

    /// Dials, writes nothing, wants `want`, closes.
    pub fn hear(target: &str, want: &str) -> Self {
        Self::new("hear", target).want(want)
    }

    /// Holds `count` connections open at the same time, asks on each, closes them.
    pub fn many(target: &str, count: usize) -> Self {
        Self::new("many", target).say("one of many").times(count)
    }

    /// Reads the pattern to the end of the stream.
    pub fn down(target: &str) -> Self {
        Self::new("down", target)
    }

    /// Writes so many bytes of the pattern, then closes at once.
    pub fn up(target: &str, bytes: u64) -> Self {
        Self::new("up", target).bytes(bytes)
    }

    /// Writes so many bytes of the pattern and reads them back at the same time.
    pub fn both(target: &str, bytes: u64) -> Self {
        Self::new("both", target).bytes(bytes)
    }

    /// Writes `say`, ends its own direction, reads to the end, which must be `want`.
    pub fn half(target: &str, say: &str, want: &str) -> Self {
        Self::new("half", target).say(say).want(want)
    }

    /// Opens a connection that is kept under `name`.
    pub fn open(name: &str, target: &str) -> Self {
        Self::new("open", target).named(name)
    }

    /// Writes on a kept connection.
    pub fn write(name: &str, say: &str) -> Self {
        Self::new("write", "").named(name).say(say)
    }

    /// Reads so many bytes from a kept connection.
    pub fn read(name: &str, bytes: u64) -> Self {
        Self::new("read", "").named(name).bytes(bytes)
    }

    /// Reads a kept connection to its end.
    pub fn rest(name: &str) -> Self {
        Self::new("rest", "").named(name)
    }

    /// Ends our direction of a kept connection.
    pub fn close_write(name: &str) -> Self {
        Self::new("close-write", "").named(name)
    }

    /// Closes a kept connection.
    pub fn close(name: &str) -> Self {
        Self::new("close", "").named(name)
    }

    fn named(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    fn say(mut self, text: &str) -> Self {
        self.say = text.to_owned();
        self
    }

    /// Wants this text.
    pub fn want(mut self, text: &str) -> Self {
        self.want = text.to_owned();
        self
    }

    fn bytes(mut self, bytes: u64) -> Self {
        self.bytes = bytes;
        self
    }

    /// So often.
    pub fn times(mut self, count: usize) -> Self {
        self.count = count;
        self
    }

    /// So many at the same time.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// The dial's context ends after this time.
    pub fn within(mut self, limit: Duration) -> Self {
        self.dial_ms = limit.as_millis() as u64;
        self
    }

    /// The whole thing may take this long instead of 20 s.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit_ms = limit.as_millis() as u64;
        self
    }
}

/// What came of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Answer {
    id: i64,
    /// What went wrong, in the dialler's own words.
    pub error: Option<String>,
    /// How long it took.
    pub ms: f64,
    /// Connections that did what was wanted.
    pub good: usize,
    /// Those that did not.
    pub bad: usize,
    /// Why, and how often.
    pub errors: BTreeMap<String, usize>,
    /// Bytes written.
    pub sent: u64,
    /// Bytes read.
    pub received: u64,
    /// Position of the first byte that was not the pattern's.
    pub wrong_at: Option<u64>,
    /// What was read.
    pub text: String,
    /// How reading ended: `eof` or an error.
    pub end: String,
}

impl Answer {
    /// This answer, which must be free of errors.
    #[track_caller]
    pub fn fine(self) -> Self {
        assert!(
            self.error.is_none() && self.bad == 0 && self.wrong_at.is_none(),
            "{self:?}"
        );
        self
    }

    /// The text of the error that there must be.
    #[track_caller]
    pub fn refused(self) -> String {
        match self.error {
            Some(error) => error,
            None => panic!("there was no error: {self:?}"),
        }
    }
}

type Waiting = Arc<Mutex<HashMap<i64, oneshot::Sender<Answer>>>>;

/// A running front end.
pub struct FrontEnd {
    stdin: tokio::sync::Mutex<ChildStdin>,
    waiting: Waiting,
    next: AtomicI64,
    _reader: AbortOnDropHandle<()>,
    _child: Child,
}

impl FrontEnd {
    /// Starts the program of this dialler.
    pub async fn start(dialler: &Dialler, scratch: &Scratch) -> Self {
        let (program, args) = arguments(dialler, scratch);
        let path = program.path().await;
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(scratch.join("front-end.log"))
            .expect("a log");
        let mut child = process::dying_with_us(&path)
            .args(&args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("the program starts");
        let stdin = child.stdin.take().expect("a pipe");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let first = expect("the front end's first line", lines.next_line()).await;
        assert!(
            matches!(&first, Ok(Some(line)) if line.contains("ready")),
            "{first:?}: {}",
            std::fs::read_to_string(scratch.join("front-end.log")).unwrap_or_default()
        );
        let waiting = Waiting::default();
        let answers = Arc::clone(&waiting);
        let reader = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let answer: Answer = serde_json::from_str(&line).expect("an answer");
                let asked = answers.lock().expect("no holder panics").remove(&answer.id);
                if let Some(asked) = asked {
                    // Who asked may have left.
                    let _ = asked.send(answer);
                }
            }
            // Whoever still waits hears that there will be no answer.
            answers.lock().expect("no holder panics").clear();
        });
        Self {
            stdin: tokio::sync::Mutex::new(stdin),
            waiting,
            next: AtomicI64::new(1),
            _reader: AbortOnDropHandle::new(reader),
            _child: child,
        }
    }

    /// Has it done. The program itself ends what takes too long.
    pub async fn run(&self, mut verb: Verb) -> Answer {
        verb.id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, heard) = oneshot::channel();
        self.waiting
            .lock()
            .expect("no holder panics")
            .insert(verb.id, answer);
        let mut line = serde_json::to_string(&verb).expect("a verb is JSON");
        line.push('\n');
        let mut stdin = self.stdin.lock().await;
        stdin
            .write_all(line.as_bytes())
            .await
            .expect("the front end reads");
        drop(stdin);
        heard.await.expect("the front end lives")
    }

    /// The same, which must work.
    pub async fn fine(&self, verb: Verb) -> Answer {
        let what = format!("{verb:?}");
        let answer = self.run(verb).await;
        let good = answer.error.is_none() && answer.bad == 0 && answer.wrong_at.is_none();
        assert!(good, "{what}: {answer:?}");
        answer
    }

    /// The same, which must fail; gives the error's text.
    pub async fn refused(&self, verb: Verb) -> String {
        let what = format!("{verb:?}");
        let answer = self.run(verb).await;
        match answer.error {
            Some(error) => error,
            None => panic!("{what} did not fail: {answer:?}"),
        }
    }
}

fn arguments(dialler: &Dialler, scratch: &Scratch) -> (Program, Vec<String>) {
    let path = |path: &Path| path.display().to_string();
    let tls = |verb: &str, address: &SocketAddr, files: &TlsFiles| {
        vec![
            verb.to_owned(),
            address.to_string(),
            path(&files.ca),
            path(&files.pair.cert),
            path(&files.pair.key),
        ]
    };
    let egress = |protocol: &str, transport: String| {
        let file = egress_file(scratch, protocol, &transport);
        (Program::FrontEnd, vec!["egress".to_owned(), path(&file)])
    };
    let uds = |socket: &Path| format!("      uds:\n        udsName: {}\n", socket.display());
    match dialler {
        Dialler::ApiserverGrpc(socket) => egress("GRPC", uds(socket)),
        Dialler::ApiserverConnect(socket) => egress("HTTPConnect", uds(socket)),
        Dialler::ApiserverConnectTcp(address, files) => egress(
            "HTTPConnect",
            format!(
                "      tcp:\n        url: https://{address}\n        tlsConfig:\n          caBundle: {}\n          \
                 clientCert: {}\n          clientKey: {}\n",
                path(&files.ca),
                path(&files.pair.cert),
                path(&files.pair.key)
            ),
        ),
        Dialler::SingleTcp(address, files) => {
            (Program::FrontEnd, tls("single-tls", address, files))
        }
        Dialler::NewSingle(socket) => (Program::Reusable, vec!["single".to_owned(), path(socket)]),
        Dialler::Reusable(socket) => (Program::Reusable, vec!["reusable".to_owned(), path(socket)]),
        Dialler::ReusableTcp(address, files) => {
            (Program::Reusable, tls("reusable-tls", address, files))
        }
    }
}

fn egress_file(scratch: &Scratch, protocol: &str, transport: &str) -> PathBuf {
    let text = format!(
        "apiVersion: apiserver.k8s.io/v1beta1\nkind: EgressSelectorConfiguration\negressSelections:\n\
         - name: cluster\n  connection:\n    proxyProtocol: {protocol}\n    transport:\n{transport}"
    );
    static NEXT: AtomicI64 = AtomicI64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    scratch
        .write(&format!("egress-{number}.yaml"), text)
        .expect("a file")
}
