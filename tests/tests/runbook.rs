//! The pages of `pki/`, block by block as an operator pastes them: every fence that says `sh run`,
//! in the order of the page, with the programs of the workspace. The chapters share one directory,
//! the runbook at the end begins in a new one.
//!
//! Words behind `run` say what the world around the block is like: `server` has a towline-server
//! up at `$SERVER` and `$SOCKET` with the files that the blocks before have made; `linked` also an
//! agent node-1 with a link; `gone`: when the block is over that link ends. At `expired`,
//! everything in the directory ended yesterday.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use towline_pki::store::{self, Replace};
use towline_pki::{Authority, AuthoritySpec, LeafSpec, PrivateKey, Usage, pem};
use towline_proto::id::Role;
use towline_tests::program::program;
use towline_tests::scenario::eventually;
use towline_tests::scratch::Scratch;

const DAY: Duration = Duration::from_secs(86_400);

/// Fences for a shell that nothing runs: the first line, and why.
const NOT_RUN: &[(&str, &str)] = &[];

/// One fence of a page.
struct Block {
    line: usize,
    world: String,
    text: String,
    /// Below the heading "Runbook".
    runbook: bool,
}

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../pki")
        .join(name);
    fs::read_to_string(path).expect("the page")
}

/// The fences for a shell: those that are run, and the first lines of the others.
fn blocks(page: &str) -> (Vec<Block>, Vec<String>) {
    let (mut run, mut left) = (Vec::new(), Vec::new());
    let mut runbook = false;
    let mut lines = page.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        runbook |= line == "## Runbook";
        let Some(word) = line.trim_start().strip_prefix("```") else {
            continue;
        };
        let mut text = String::new();
        loop {
            let (_, line) = lines.next().expect("a block ends");
            if line.trim_start() == "```" {
                break;
            }
            text.push_str(line);
            text.push('\n');
        }
        let shell = ["sh", "bash", "shell", "console"];
        match word.strip_prefix("sh run") {
            Some(world) => run.push(Block {
                line: index + 1,
                world: world.trim().to_owned(),
                text,
                runbook,
            }),
            None if shell.iter().any(|shell| word.trim().starts_with(shell)) => {
                left.push(text.lines().next().unwrap_or_default().trim().to_owned());
            }
            None => assert!(
                !text
                    .lines()
                    .any(|line| line.trim_start().starts_with("towline-")),
                "line {}: commands in a block that is not for a shell: {text}",
                index + 1
            ),
        }
    }
    (run, left)
}

#[tokio::test]
async fn every_block_of_the_pages_runs() {
    let (all, _) = blocks(&page("README.md"));
    assert!(all.iter().filter(|block| block.runbook).count() >= 14);
    assert!(all.iter().filter(|block| !block.runbook).count() >= 14);
    for runbook in [false, true] {
        let scratch = Scratch::new().unwrap();
        for block in all.iter().filter(|block| block.runbook == runbook) {
            run("README.md", block, scratch.path()).await;
        }
        if !runbook {
            // What stands on the page of revocation is about the same cluster.
            for block in blocks(&page("REVOCATION.md")).0 {
                run("REVOCATION.md", &block, scratch.path()).await;
            }
        }
    }
}

async fn run(page: &str, block: &Block, dir: &Path) {
    let place = format!("pki/{page}:{} ({})", block.line, block.world);
    let mut daemons = None;
    for word in block.world.split_whitespace() {
        match word {
            "server" => daemons = Some(Daemons::start(dir, false).await),
            "linked" => daemons = Some(Daemons::start(dir, true).await),
            "expired" => let_everything_end(dir),
            "gone" => {}
            other => panic!("{place}: no such world: {other}"),
        }
    }
    let programs = program("towline-pki");
    let programs = programs.parent().unwrap().to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(programs).chain(std::env::split_paths(&path)))
        .unwrap();
    let mut command = Command::new("bash");
    command
        .args(["-euo", "pipefail", "-c", &block.text])
        .current_dir(dir)
        .env("PATH", &path)
        .env("TOWLINE_HEALTH_BIND", "127.0.0.1:0")
        .env_remove("TOWLINE_PKI_DIR")
        .kill_on_drop(true)
        // Not one letter is waited for: what asks at a terminal ends at once.
        .stdin(Stdio::null());
    if let Some(daemons) = &daemons {
        command.env("SERVER", daemons.address.to_string());
        command.env("SOCKET", &daemons.socket);
    }
    let limit = Duration::from_secs(90);
    let output = tokio::time::timeout(limit, command.output()).await;
    let output = output.unwrap_or_else(|_| panic!("{place}: does not end"));
    let output = output.expect("bash runs");
    assert!(
        output.status.success(),
        "{place}: {}\n{}\n{}{}",
        output.status,
        block.text,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    if let Some(daemons) = daemons.filter(|_| block.world.contains("gone")) {
        eventually("node-1 has no link", async || {
            (!daemons.is_linked().await).then_some(())
        })
        .await;
    }
}

/// Whatever is on the pages for a shell is run, or is on the list with its reason.
#[test]
fn no_block_is_left_out() {
    for name in ["README.md", "REVOCATION.md"] {
        let (_, left) = blocks(&page(name));
        for first in left {
            let known = NOT_RUN.iter().any(|(line, _)| *line == first);
            assert!(
                known,
                "pki/{name}: nobody runs the block that begins: {first}"
            );
        }
    }
}

/// Every heading of the issue has a block of its own.
#[test]
fn the_runbook_has_a_page_for_every_bad_day() {
    let text = page("README.md");
    let (_, runbook) = text.split_once("\n## Runbook\n").expect("a runbook");
    let runbook = runbook.split("\n## ").next().unwrap();
    for heading in [
        "A new cluster",
        "A new node",
        "A kubelet's certificate",
        "Look after it",
        "Renew",
        "Hand over",
        "Revoke",
        "A lost or stolen key",
        "Change an authority",
        "Everything has expired",
    ] {
        let (_, section) = runbook
            .split_once(&format!("\n### {heading}\n"))
            .unwrap_or_else(|| panic!("no section {heading}"));
        let section = section.split("\n### ").next().unwrap();
        assert!(section.contains("```sh run"), "{heading}: nothing is run");
    }
}

/// The programs as an operator starts them, with what the blocks before have made.
struct Daemons {
    address: SocketAddr,
    socket: PathBuf,
    _children: Vec<Child>,
}

impl Daemons {
    async fn start(dir: &Path, linked: bool) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let socket = dir.join("admin.sock");
        let here = |name: &str| dir.join(name).exists();
        let mut flags: Vec<String> = [
            "--cert server-cp-1.crt --key server-cp-1.key --agent-ca prod/trust/agents.pem",
            "--kubelet-verification off --door-unix door.sock --admin-socket admin.sock",
            "--node-cidr 10.0.0.0/16 --pod-cidr 10.244.0.0/16 --state-dir state",
            "--enrol-issuer-certificate prod/issuers/agents.crt",
            "--enrol-issuer-key prod/issuers/agents.key",
            "--enrol-join-tokens join-tokens --enrol-server-ca prod/trust/servers.pem",
        ]
        .iter()
        .flat_map(|line| line.split(' '))
        .map(str::to_owned)
        .collect();
        flags.extend(["--listen".to_owned(), address.to_string()]);
        for (flag, file) in [
            ("--agent-crl", "prod/trust/agents.crl"),
            ("--deny-list", "prod/trust/denied"),
        ] {
            if here(file) {
                flags.extend([flag.to_owned(), file.to_owned()]);
            }
        }
        if !here("join-tokens") {
            fs::write(dir.join("join-tokens"), "").unwrap();
        }
        fs::create_dir_all(dir.join("state")).unwrap();
        let mut children = vec![spawn(dir, "towline-server", &flags)];
        let this = |children| Self {
            address,
            socket: socket.clone(),
            _children: children,
        };
        let server = this(Vec::new());
        eventually("the server answers", async || server.status().await).await;
        if linked {
            let flags = format!(
                "--server {address} --cert agent-node-1.crt --key agent-node-1.key \
                 --server-ca prod/trust/servers.pem"
            );
            let flags: Vec<String> = flags.split_whitespace().map(str::to_owned).collect();
            children.push(spawn(dir, "towline-agent", &flags));
            eventually("node-1 is linked", async || {
                server.is_linked().await.then_some(())
            })
            .await;
        }
        this(children)
    }

    async fn is_linked(&self) -> bool {
        let status = self.status().await.unwrap_or_default();
        let agents = status["agents"].as_array().cloned().unwrap_or_default();
        let of = |agent: &&Value| agent["name"] == "node-1";
        let node = agents.iter().find(of);
        node.is_some_and(|node| node["links"].as_array().is_some_and(|all| !all.is_empty()))
    }

    /// `GET /status`.
    async fn status(&self) -> Option<Value> {
        let mut stream = UnixStream::connect(&self.socket).await.ok()?;
        let request = b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        serde_json::from_str(body).ok()
    }
}

fn spawn(dir: &Path, name: &str, flags: &[String]) -> Child {
    let log = fs::File::create(dir.join(format!("{name}.log"))).unwrap();
    Command::new(program(name))
        .args(flags)
        .args(["--health-bind", "127.0.0.1:0"])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .expect("the program starts")
}

/// A TCP and UDP port that was free a moment ago.
fn free_port() -> u16 {
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        if UdpSocket::bind(address).is_ok() {
            return address.port();
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
