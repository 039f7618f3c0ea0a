//! Programs from the Go modules in `tests/interop`. Each is built once and kept in the target directory
//! under a name that says what it was built from, so that a run after the first starts at once.

use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Whose server or agent it is. Both take the same flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// Konnectivity's own, built by Go.
    Konnectivity,
    /// Ours, as the workspace built it last, with `--compatibility=konnectivity`.
    Towline,
}

impl Maker {
    /// The server's program, and what is put before its flags.
    pub async fn server(self) -> (PathBuf, Vec<OsString>) {
        match self {
            Self::Konnectivity => (Program::ProxyServer.path().await, Vec::new()),
            Self::Towline => (ours("towline-server"), vec![COMPATIBLE.into()]),
        }
    }

    /// The agent's program, and what is put before its flags.
    pub async fn agent(self) -> (PathBuf, Vec<OsString>) {
        match self {
            Self::Konnectivity => (Program::ProxyAgent.path().await, Vec::new()),
            Self::Towline => (ours("towline-agent"), vec![COMPATIBLE.into()]),
        }
    }
}

const COMPATIBLE: &str = "--compatibility=konnectivity";

/// A daemon of the workspace, beside the program that asks; built when there is none yet.
fn ours(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    let mut folder = std::env::current_exe().expect("a path of our own");
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    BUILT.get_or_init(|| {
        if !folder.join("towline-server").exists() || !folder.join("towline-agent").exists() {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let built = Command::new(cargo)
                .args(["build", "--quiet", "--package", "towline-server"])
                .args(["--package", "towline-agent"])
                .status();
            assert!(
                built.is_ok_and(|status| status.success()),
                "the daemons cannot be built"
            );
        }
    });
    folder.join(name)
}

/// A program that Go builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// kube-apiserver's dialler and the client of its release.
    FrontEnd,
    /// The newer client with its reusable tunnel.
    Reusable,
    /// Konnectivity's server.
    ProxyServer,
    /// Konnectivity's agent.
    ProxyAgent,
    /// A member of etcd.
    Etcd,
    /// Kubernetes' API server.
    KubeApiserver,
}

impl Program {
    /// All of them.
    pub const ALL: [Program; 6] = [
        Program::FrontEnd,
        Program::Reusable,
        Program::ProxyServer,
        Program::ProxyAgent,
        Program::Etcd,
        Program::KubeApiserver,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::FrontEnd => "frontend",
            Self::Reusable => "reusable",
            Self::ProxyServer => "proxy-server",
            Self::ProxyAgent => "proxy-agent",
            Self::Etcd => "etcd",
            Self::KubeApiserver => "kube-apiserver",
        }
    }

    /// The module's folder below `tests/interop`, the package, and the folders whose files decide about it.
    fn source(self) -> (&'static str, &'static str, &'static [&'static str]) {
        match self {
            Self::FrontEnd => ("", "./frontend", &["", "frontend", "verbs"]),
            Self::Reusable => ("reusable", ".", &["reusable", "verbs"]),
            Self::ProxyServer => (
                "konnectivity",
                "sigs.k8s.io/apiserver-network-proxy/cmd/server",
                &["konnectivity"],
            ),
            Self::ProxyAgent => (
                "konnectivity",
                "sigs.k8s.io/apiserver-network-proxy/cmd/agent",
                &["konnectivity"],
            ),
            Self::Etcd => ("etcd", "go.etcd.io/etcd/server/v3", &["etcd"]),
            Self::KubeApiserver => ("apiserver", ".", &["apiserver"]),
        }
    }

    /// Its path; built first if this source has not been built before.
    pub async fn path(self) -> PathBuf {
        let built = tokio::task::spawn_blocking(move || self.build()).await;
        match built.expect("building does not panic") {
            Ok(path) => path,
            Err(error) => panic!("{}: {error}", self.name()),
        }
    }

    /// The same without tokio.
    pub fn build(self) -> io::Result<PathBuf> {
        let (module, package, folders) = self.source();
        let interop = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop");
        let kept = target_directory()?.join("interop");
        fs::create_dir_all(&kept)?;
        let program = kept.join(format!(
            "{}-{}",
            self.name(),
            fingerprint(&interop, folders)?
        ));
        // One builder at a time, over all processes: the others find the result.
        let lock = fs::File::create(kept.join(format!("{}.lock", self.name())))?;
        lock.lock()?;
        if program.exists() {
            return Ok(program);
        }
        let fresh = kept.join(format!("{}.new", self.name()));
        let output = Command::new("go")
            .args(["build", "-buildvcs=false", "-trimpath", "-o"])
            .arg(&fresh)
            .arg(package)
            .current_dir(interop.join(module))
            .output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(io::Error::other(format!("go build fails: {said}")));
        }
        fs::rename(&fresh, &program)?;
        Ok(program)
    }
}

/// The directory of everything that is built: the one above this program that cargo has marked.
fn target_directory() -> io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let marked = own
        .ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").exists());
    Ok(marked.map_or_else(std::env::temp_dir, Path::to_owned))
}

/// What the files directly in these folders say, in a few digits.
fn fingerprint(root: &Path, folders: &[&str]) -> io::Result<String> {
    let mut files = Vec::new();
    for folder in folders {
        for entry in fs::read_dir(root.join(folder))? {
            let path = entry?.path();
            if path.is_file() {
                files.push(path);
            }
        }
    }
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in files {
        file.strip_prefix(root).unwrap_or(&file).hash(&mut hasher);
        fs::read(&file)?.hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}
