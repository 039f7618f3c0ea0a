//! Two network namespaces for one path, each held by a process of ours.
//!
//! They have no name anywhere: a namespace ends with its last process, and its processes end with the
//! bench. So nothing is left behind, whatever ends the bench, and two benches never meet.

use std::path::Path as FilePath;
use std::time::Duration;

use rustix::process::geteuid;

use super::tun::DEVICE;
use crate::bench::failure::{Failure, Result};
use crate::bench::process::{Launch, Process, START};

/// Address of the near end (the server), inside its namespace only.
pub const NEAR: &str = "10.77.0.1";
/// Address of the far end (the agent), inside its namespace only.
pub const FAR: &str = "10.77.0.2";

const SETTING: Duration = Duration::from_secs(5);

/// A network namespace and the process that holds it.
#[derive(Debug)]
pub struct Namespace {
    holder: Process,
}

/// Why namespaces cannot be made here, if they cannot.
#[must_use]
pub fn obstacle() -> Option<String> {
    if !geteuid().is_root() {
        return Some("namespaces and TUN devices need root".to_owned());
    }
    if !FilePath::new("/dev/net/tun").exists() {
        return Some("there is no /dev/net/tun".to_owned());
    }
    let missing = ["ip", "unshare"]
        .into_iter()
        .find(|tool| find(tool).is_none());
    missing.map(|tool| format!("the tool `{tool}` is missing"))
}

fn find(tool: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(tool))
        .find(|path| path.is_file())
}

fn tool(name: &str) -> Result<std::path::PathBuf> {
    find(name).ok_or_else(|| Failure::new(format!("the tool `{name}` is missing")))
}

impl Namespace {
    /// A new one with a working loopback.
    pub async fn new(name: &str, directory: &FilePath) -> Result<Self> {
        let own = Launch::own(name, directory, &["hold"])?;
        let inner = own.program.clone();
        let mut launch = own;
        launch.program = tool("unshare")?;
        launch.arguments = vec!["--net".into(), "--".into(), inner.into(), "hold".into()];
        let mut holder = launch.start()?;
        holder.ready(START).await?;
        let namespace = Self { holder };
        namespace
            .ip(directory, &["link", "set", "lo", "up"])
            .await?;
        Ok(namespace)
    }

    /// The process whose namespace it is.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.holder.pid()
    }

    /// Runs `ip` inside.
    pub async fn ip(&self, directory: &FilePath, arguments: &[&str]) -> Result<()> {
        let launch = Launch::new("ip", &tool("ip")?, directory);
        launch
            .within(Some(self.pid()))
            .args(arguments.iter().copied())
            .finish(SETTING)
            .await
    }

    /// Gives the path's device its address.
    pub async fn address(&self, directory: &FilePath, address: &str) -> Result<()> {
        let address = format!("{address}/24");
        self.ip(directory, &["addr", "add", &address, "dev", DEVICE])
            .await?;
        self.ip(directory, &["link", "set", DEVICE, "up"]).await
    }
}
