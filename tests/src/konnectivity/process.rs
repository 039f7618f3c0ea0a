//! A program of Konnectivity as a process: its output in a file, its end with ours.

use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::scenario::expect;

/// Their flags take ports from 1,024 to 49,151 only, and the system gives clients those from 32,768 on.
const PORTS: std::ops::Range<u16> = 18_000..32_000;
/// Lines of a log that are shown with a failure.
const LOG_LINES: usize = 15;

/// A loopback port for a program that must be told one. Nobody holds it: whoever loses a race says so and
/// is started again on others.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = PORTS.end - PORTS.start;
    let own = (std::process::id() % u32::from(span)) as u16;
    loop {
        // Processes of one test run have neighbouring ids; they start far from each other.
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.start + (own.wrapping_mul(97).wrapping_add(step)) % span;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A running program.
pub struct Program {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts it with nothing but this environment, writing to `log`.
    pub fn start(
        name: &str,
        program: &Path,
        arguments: &[OsString],
        environment: &[(&str, String)],
        log: &Path,
    ) -> Self {
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .expect("a log");
        let mut command = dying_with_us(program);
        command
            .args(arguments)
            .env_clear()
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a log"))
            .stderr(file)
            .kill_on_drop(true);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("not waited for yet")
    }

    /// Everything it has said.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The end of what it has said, for a failure.
    pub fn last_words(&self) -> String {
        let said = self.said();
        let lines: Vec<&str> = said.lines().collect();
        let end = &lines[lines.len().saturating_sub(LOG_LINES)..];
        format!("{}'s last words:\n  {}", self.name, end.join("\n  "))
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid() as i32).expect("a process id");
        kill_process(pid, signal).expect("a signal to our own child");
    }

    /// Ends it at once, as a crash does, and waits for that.
    pub async fn end(&mut self) {
        expect("the end of a killed program", self.child.kill())
            .await
            .expect("our own child");
    }

    /// Waits for it to end by itself.
    pub async fn wait(&mut self) -> ExitStatus {
        expect("the end of a program", self.child.wait())
            .await
            .expect("our own child")
    }

    /// Waits until `up` says so; `None` when the program ended before that.
    pub async fn until<F: Future<Output = bool>>(
        &mut self,
        mut up: impl FnMut() -> F,
    ) -> Option<()> {
        let name = self.name.clone();
        let waiting = async {
            loop {
                if up().await {
                    return Some(());
                }
                if self.ended().is_some() {
                    return None;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let what = format!("{name}'s start");
        expect(&what, waiting).await
    }
}

/// A command that the kernel ends with the thread that has started it, where there is the tool for it:
/// a test that is killed leaves nothing behind.
pub(super) fn dying_with_us(program: &Path) -> Command {
    let setpriv = Path::new("/usr/bin/setpriv");
    if !setpriv.exists() {
        return Command::new(program);
    }
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}
