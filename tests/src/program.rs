//! The programs of the workspace, for tests that start them as an operator does.

use std::path::PathBuf;
use std::sync::OnceLock;

/// Where a program of the workspace is; built when there is none yet.
pub fn program(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    let mut folder = std::env::current_exe().expect("a path of our own");
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    let path = folder.join(name);
    BUILT.get_or_init(|| {
        let all = ["towline-server", "towline-agent", "towline-pki"];
        if all.iter().any(|name| !folder.join(name).exists()) {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let built = std::process::Command::new(cargo)
                .args([
                    "build",
                    "--quiet",
                    "--package",
                    "towline-server",
                    "--package",
                    "towline-agent",
                    "--package",
                    "towline-pki",
                ])
                .status();
            assert!(
                built.is_ok_and(|status| status.success()),
                "the programs cannot be built"
            );
        }
    });
    path
}
