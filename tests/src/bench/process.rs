//! Processes that the bench starts: each one dies with the bench, whatever ends it.
//!
//! Everything is started through the hidden `child` subcommand of the bench, which asks the kernel to
//! kill the process when its parent ends, enters a network namespace if told to, and then becomes the
//! program, so that the process id stays. Nothing is ever killed by name.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use rustix::thread::LinkNameSpaceType;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::failure::{During, Failure, Result};
use super::procfs::{self, Memory};

/// A part of a chain that is not up by then never will be.
pub const START: Duration = Duration::from_secs(15);
/// Lines of a log that are shown when a process failed.
const LOG_LINES: usize = 12;

/// Tells the parent that this process serves, and at which address.
pub fn say_ready(address: &str) {
    say(&format!("ready {address}"));
}

/// Writes one line to the parent. A parent that is gone ends this process by itself.
pub fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Blocks until standard input ends: the bench has hung up, or is gone.
pub fn wait_for_the_end() -> Result<()> {
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())
        .map(drop)
        .during("standard input")
}

/// Body of the `child` subcommand. Returns only when the program cannot be started.
pub fn become_program(netns_of: Option<u32>, command: &[OsString]) -> Failure {
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        return Failure::new(format!("child: die with the parent: {error}"));
    }
    if let Some(pid) = netns_of
        && let Err(failure) = enter(pid)
    {
        return failure;
    }
    let Some((program, arguments)) = command.split_first() else {
        return Failure::new("child: no program");
    };
    let error = std::process::Command::new(program).args(arguments).exec();
    Failure::new(format!("child: {}: {error}", program.display()))
}

/// Moves this thread into the network namespace of another process.
pub fn enter(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/ns/net");
    let file = fs::File::open(&path).during(&path)?;
    rustix::thread::move_into_link_name_space(
        std::os::fd::AsFd::as_fd(&file),
        Some(LinkNameSpaceType::Network),
    )
    .during(format_args!("enter {path}"))
}

/// What to start.
#[derive(Clone, Debug)]
pub struct Launch {
    /// For people and for the name of the log.
    pub name: String,
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    /// Run in the network namespace of this process.
    pub netns_of: Option<u32>,
    /// Where standard error, and output unless it is a pipe, goes.
    pub log: PathBuf,
    /// Whether the bench talks with it over standard input and output.
    pub piped: bool,
}

impl Launch {
    /// A program whose output goes to a log in `directory`.
    pub fn new(name: &str, program: &Path, directory: &Path) -> Self {
        Self {
            name: name.to_owned(),
            program: program.to_owned(),
            arguments: Vec::new(),
            netns_of: None,
            log: directory.join(format!("{name}.log")),
            piped: false,
        }
    }

    /// A subcommand of the bench, with pipes.
    pub fn own(name: &str, directory: &Path, arguments: &[&str]) -> Result<Self> {
        let program = std::env::current_exe().during("path of this program")?;
        let mut launch = Self::new(name, &program, directory);
        launch.piped = true;
        launch.arguments = arguments.iter().map(OsString::from).collect();
        Ok(launch)
    }

    /// More arguments.
    #[must_use]
    pub fn args<S: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// In the network namespace of this process.
    #[must_use]
    pub fn within(mut self, netns_of: Option<u32>) -> Self {
        self.netns_of = netns_of;
        self
    }

    /// Starts it.
    pub fn start(&self) -> Result<Process> {
        let own = std::env::current_exe().during("path of this program")?;
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .during(self.log.display())?;
        let mut command = Command::new(own);
        command.arg("child");
        if let Some(pid) = self.netns_of {
            command.arg("--netns-of").arg(pid.to_string());
        }
        command.arg("--").arg(&self.program).args(&self.arguments);
        // The daemons read their environment; nothing of ours may leak into a measurement.
        command
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| name == "PATH"));
        if self.piped {
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
        } else {
            let out = log.try_clone().during(self.log.display())?;
            command.stdin(Stdio::null()).stdout(out);
        }
        command.stderr(log).kill_on_drop(true);
        let mut child = command
            .spawn()
            .during(format_args!("start {}", self.name))?;
        let pid = child
            .id()
            .ok_or_else(|| Failure::new(format!("{}: no process id", self.name)))?;
        Ok(Process {
            pid,
            stdin: child.stdin.take(),
            lines: child.stdout.take().map(|out| BufReader::new(out).lines()),
            child,
            launch: self.clone(),
        })
    }

    /// Runs it to its end, which must be a success.
    pub async fn finish(&self, limit: Duration) -> Result<()> {
        let mut process = self.start()?;
        let status = process.wait(limit).await?;
        if status.success() {
            Ok(())
        } else {
            Err(process.failure(&format!("ended with {status}")))
        }
    }
}

/// A process that the bench started. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Option<Lines<BufReader<ChildStdout>>>,
    launch: Launch,
}

impl Process {
    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn name(&self) -> &str {
        &self.launch.name
    }

    pub fn launch(&self) -> &Launch {
        &self.launch
    }

    /// Processor time used so far.
    pub fn cpu_seconds(&self) -> Result<f64> {
        procfs::cpu_seconds(self.pid).map_err(|failure| self.failure(&failure.to_string()))
    }

    /// Memory held now.
    pub fn memory(&self) -> Result<Memory> {
        procfs::memory(self.pid).map_err(|failure| self.failure(&failure.to_string()))
    }

    /// The next line it says.
    pub async fn line(&mut self, limit: Duration) -> Result<String> {
        let read = async {
            match &mut self.lines {
                Some(lines) => lines.next_line().await,
                None => Ok(None),
            }
        };
        match timeout(limit, read).await {
            Ok(Ok(Some(line))) => Ok(line),
            Ok(Ok(None)) => Err(self.failure("ended before it said what was asked")),
            Ok(Err(error)) => Err(self.failure(&error.to_string())),
            Err(_) => Err(self.failure(&format!("said nothing for {} s", limit.as_secs()))),
        }
    }

    /// Says one line to it.
    pub async fn tell(&mut self, line: &str) -> Result<()> {
        let said = match &mut self.stdin {
            Some(stdin) => stdin.write_all(format!("{line}\n").as_bytes()).await,
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        };
        said.map_err(|error| self.failure(&error.to_string()))
    }

    /// What it says after `ready`.
    pub async fn ready(&mut self, limit: Duration) -> Result<String> {
        let line = self.line(limit).await?;
        match line.strip_prefix("ready") {
            Some(rest) => Ok(rest.trim().to_owned()),
            None => Err(self.failure(&format!("said {line:?} instead of ready"))),
        }
    }

    /// Closes its standard input, by which our own subcommands are told to end.
    pub fn hang_up(&mut self) {
        self.stdin = None;
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| self.failure("has an odd process id"))?;
        rustix::process::kill_process(pid, signal).map_err(|error| self.failure(&error.to_string()))
    }

    /// Waits for its end.
    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        match timeout(limit, self.child.wait()).await {
            Ok(Ok(status)) => Ok(status),
            Ok(Err(error)) => Err(self.failure(&error.to_string())),
            Err(_) => Err(self.failure(&format!("did not end within {} s", limit.as_secs()))),
        }
    }

    /// Fails when it has already ended.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.failure(&format!("ended with {status}"))),
            Err(error) => Err(self.failure(&error.to_string())),
        }
    }

    /// A failure of this process, with the end of its log.
    pub fn failure(&self, what: &str) -> Failure {
        let log = fs::read_to_string(&self.launch.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n    ");
        let name = &self.launch.name;
        if end.is_empty() {
            Failure::new(format!("{name}: {what}"))
        } else {
            Failure::new(format!("{name}: {what}; its last words:\n    {end}"))
        }
    }
}
