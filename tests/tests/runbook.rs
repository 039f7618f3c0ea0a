//! The runbook of `pki/README.md`, block by block as an operator pastes it: every fence that says
//! `sh run`, in the order of the page, in one directory, with the programs of the workspace.
//!
//! A word behind `run` says what the world around the block is like: `dial` has a server up at
//! `$SERVER`, with the files that the blocks before have made; at `expired`, everything in the
//! directory ended yesterday.

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use towline_pki::store::{self, Replace};
use towline_pki::{
    Anchors, Authority, AuthoritySpec, Credentials, DenyList, LeafSpec, PeerVerifier, PrivateKey,
    Usage, pem, tls,
};
use towline_proto::id::Role;
use towline_tests::program::program;
use towline_tests::scratch::Scratch;

const DAY: Duration = Duration::from_secs(86_400);

/// One fence of the page.
struct Block {
    line: usize,
    world: String,
    text: String,
}

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../pki/README.md")
}

/// The fences whose first line is ```` ```sh run ````, with what follows `run`.
fn blocks(page: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    for (index, line) in page.lines().enumerate() {
        match open.as_mut() {
            Some(_) if line == "```" => found.extend(open.take()),
            Some(block) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            None => {
                open = line.strip_prefix("```sh run").map(|world| Block {
                    line: index + 1,
                    world: world.trim().to_owned(),
                    text: String::new(),
                });
            }
        }
    }
    assert!(open.is_none(), "a block does not end");
    found
}

#[test]
fn every_block_of_the_runbook_runs() {
    let text = fs::read_to_string(page()).unwrap();
    let blocks = blocks(&text);
    assert!(blocks.len() >= 8, "only {} blocks", blocks.len());
    let scratch = Scratch::new().unwrap();
    let dir = scratch.path().to_owned();
    let programs = program("towline-pki");
    let programs = programs.parent().unwrap().to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(programs).chain(std::env::split_paths(&path)))
        .unwrap();
    for block in blocks {
        let mut command = Command::new("bash");
        command
            .args(["-euo", "pipefail", "-c", &block.text])
            .current_dir(&dir)
            .env("PATH", &path)
            .env_remove("TOWLINE_PKI_DIR");
        let place = format!("pki/README.md:{} ({})", block.line, block.world);
        let server = match block.world.as_str() {
            "" => None,
            "dial" => Some(Server::start(&dir)),
            "expired" => {
                let_everything_end(&dir);
                None
            }
            other => panic!("{place}: no such world: {other}"),
        };
        if let Some(server) = &server {
            command.env("SERVER", server.address.to_string());
        }
        // Not one letter is waited for: what asks at a terminal ends at once.
        let output = command.stdin(Stdio::null()).output().expect("bash runs");
        assert!(
            output.status.success(),
            "{place}: {}\n{}\n{}{}",
            output.status,
            block.text,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// Every heading of the issue has a block of its own.
#[test]
fn the_runbook_has_a_page_for_every_bad_day() {
    let text = fs::read_to_string(page()).unwrap();
    let (_, runbook) = text.split_once("\n## Runbook\n").expect("a runbook");
    let runbook = runbook.split("\n## ").next().unwrap();
    for heading in [
        "A new cluster",
        "A new node",
        "Look after it",
        "Renew",
        "Hand over",
        "Change an authority",
        "Revoke",
        "A lost or stolen key",
        "Everything has expired",
    ] {
        let (_, section) = runbook
            .split_once(&format!("\n### {heading}\n"))
            .unwrap_or_else(|| panic!("no section {heading}"));
        let section = section.split("\n### ").next().unwrap();
        assert!(section.contains("```sh run"), "{heading}: nothing is run");
        // Whatever is pasted is also run.
        assert!(
            !section.contains("```sh\n"),
            "{heading}: a block is not run"
        );
    }
}

/// The end of a towline-server that agents connect to, with `server-cp-1` and the trust files.
struct Server {
    address: SocketAddr,
    stop: Arc<std::sync::atomic::AtomicBool>,
    task: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start(dir: &Path) -> Self {
        let now = SystemTime::now();
        let (cert, key) = (dir.join("server-cp-1.crt"), dir.join("server-cp-1.key"));
        let own = Credentials::load(&cert, &key, Role::Server, now).expect("the server's files");
        let trust = Anchors::load(&dir.join("prod/trust/agents.pem")).expect("the trust file");
        let cluster = own.identity().cluster.clone();
        let peers = PeerVerifier::new(cluster, Role::Agent, trust, DenyList::default());
        let config = tls::link_server(&own, peers).expect("a configuration");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
                let Ok(mut stream) = stream else { return };
                let mut connection =
                    rustls::ServerConnection::new(Arc::clone(&config)).expect("a connection");
                // The tool says goodbye when the handshake is over, or is sent away.
                while connection.complete_io(&mut stream).is_ok() {
                    match connection.reader().read(&mut [0; 64]) {
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                        _ => break,
                    }
                }
                connection.send_close_notify();
                let _ = connection.complete_io(&mut stream);
            }
        });
        Self {
            address,
            stop,
            task: Some(task),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let _ = std::net::TcpStream::connect(self.address);
        if let Some(task) = self.task.take() {
            task.join().expect("the server's thread");
        }
    }
}

/// The same keys, the same names, and every certificate ended yesterday.
fn let_everything_end(dir: &Path) {
    let end = SystemTime::now() - DAY;
    let key = |path: &Path| {
        let der = store::read_private_key(path).expect("a key");
        PrivateKey::from_der(&der).expect("a key that signs")
    };
    let spec = |purpose: &str, usages: &[Usage]| AuthoritySpec {
        purpose: purpose.into(),
        organisation: "prod.example".into(),
        not_before: end - 300 * DAY,
        not_after: end,
        path_length: None,
        usages: usages.to_vec(),
    };
    let file = |name: &str| dir.join("prod").join(name);
    let root = Authority::create(&spec("towline root", &[]), key(&file("root/root.key"))).unwrap();
    let put = |path: &Path, text: &str| {
        store::write_public(path, text, Replace::Atomically).expect("a file");
    };
    put(&file("root/root.crt"), &root.to_pem());
    let both = [Usage::ServerAuth, Usage::ClientAuth];
    for (name, usages) in [("agents", &both[1..]), ("servers", &both[..])] {
        let path = file(&format!("issuers/{name}.key"));
        let issuer = root
            .create_below(&spec(&format!("towline {name}"), usages), key(&path))
            .unwrap();
        put(&path.with_extension("crt"), &issuer.to_pem());
        put(&file(&format!("trust/{name}.pem")), &issuer.to_pem());
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let own = path.with_extension("key");
            if path.extension().is_none_or(|end| end != "crt") || !own.exists() {
                continue;
            }
            let der = store::read_certificates(&path).unwrap().swap_remove(0);
            let Ok(old) = towline_pki::Leaf::parse(&der) else {
                continue;
            };
            if (old.identity.role == Role::Agent) != (name == "agents") {
                continue;
            }
            let leaf = LeafSpec {
                common_name: format!("towline:{}:{}", old.identity.role, old.identity.name),
                uris: vec![old.identity.to_string()],
                dns: old.dns_sans.clone(),
                ips: old.ip_sans.clone(),
                usages: old.usages.clone(),
                not_before: end - 300 * DAY,
                not_after: end,
            };
            let made = issuer.issue_raw(&leaf, &key(&own).public()).unwrap();
            put(&path, &pem::write_certificates(&[made]));
        }
    }
}
