//! The audit trail of a server that is a process: killed in the middle, on a disk that is full.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use towline_agent::run::Agent;
use towline_link::carrier::CarrierKind;
use towline_proto::id::Role;
use towline_tests::apiserver::{FakeApiserver, Pipe};
use towline_tests::audit::{self, AuditTrail};
use towline_tests::authority::Authority;
use towline_tests::cluster::{POD_PREFIX, node_ip, start_agent};
use towline_tests::network::{MappedNetwork, Wire};
use towline_tests::program::program;
use towline_tests::scenario::{eventually, expect};
use towline_tests::scenarios;
use towline_tests::scratch::Scratch;
use towline_tests::target::{Behaviour, Target};

const POD: &str = "10.244.0.5:8080";

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

/// A server as a process, an agent beside it, a pod that echoes.
struct World {
    scratch: Scratch,
    link: SocketAddr,
    health: SocketAddr,
    folder: PathBuf,
    agent: Agent,
    _echo: Target,
}

impl World {
    async fn new(carrier: CarrierKind) -> Self {
        let authority = Authority::new("kit.example");
        let scratch = Scratch::new().unwrap();
        for (name, role) in [("agents.ca", Role::Agent), ("servers.ca", Role::Server)] {
            scratch.write(name, authority.issuer(role).pem()).unwrap();
        }
        authority
            .leaf(Role::Server, "s0")
            .sign()
            .write(&scratch, "s0")
            .unwrap();
        let node = authority.leaf(Role::Agent, "n1").ips(&[node_ip(1)]).sign();
        let node = node.write(&scratch, "n1").unwrap();
        audit::make_key(&scratch);
        let folder = scratch.join("trail");
        std::fs::create_dir(&folder).unwrap();
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let link = local(free_port());
        let wire = Wire::default();
        let echo = Target::start(Behaviour::Echo).await.unwrap();
        wire.lead(POD.parse().unwrap(), echo.address());
        let file = |path: &Path| path.display().to_string();
        let args: Vec<String> = [
            "towline-agent",
            "--cert",
            &file(&node.cert),
            "--key",
            &file(&node.key),
            "--server-ca",
            &file(&scratch.join("servers.ca")),
            "--carrier",
            carrier.as_str(),
            "--http-proxy",
            "off",
            "--health-bind",
            "127.0.0.1:0",
            "--server",
            &link.to_string(),
        ]
        .map(str::to_owned)
        .into();
        let network = MappedNetwork::new(&wire, &[node_ip(1)]);
        let agent = start_agent(&args, network).await.unwrap();
        Self {
            link,
            health: local(free_port()),
            folder,
            agent,
            _echo: echo,
            scratch,
        }
    }

    fn flags(&self) -> Vec<String> {
        let file = |name: &str| self.scratch.join(name).display().to_string();
        [
            "--cert",
            &file("s0.crt"),
            "--key",
            &file("s0.key"),
            "--agent-ca",
            &file("agents.ca"),
            "--state-dir",
            &file("state"),
            "--listen",
            &self.link.to_string(),
            "--door-unix",
            &file("door"),
            "--pod-cidr",
            POD_PREFIX,
            "--kubelet-verification",
            "off",
            "--audit-log",
            &self.folder.join("audit.log").display().to_string(),
            "--audit-key",
            &file("audit.key"),
            "--health-bind",
            &self.health.to_string(),
            "--log-level",
            "error",
        ]
        .map(str::to_owned)
        .into()
    }

    fn server(&self) -> Child {
        let mut command = Command::new(program("towline-server"));
        command.args(self.flags()).kill_on_drop(true);
        command.spawn().expect("the program starts")
    }

    /// The same, with the trail on a disk of its own of this size, which nobody else sees.
    fn server_on_small_disk(&self, size: &str) -> Child {
        let script = format!("mount -t tmpfs -o size={size} none \"$1\" && shift && exec \"$@\"");
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                &script,
                "sh",
            ])
            .arg(&self.folder)
            .arg(program("towline-server"))
            .args(self.flags())
            .kill_on_drop(true);
        command.spawn().expect("unshare runs")
    }

    fn front(&self) -> FakeApiserver {
        FakeApiserver::unix(&self.scratch.join("door"))
    }

    async fn pipe(&self) -> Pipe {
        let front = self.front();
        eventually("a dial", || async { front.dial(POD).await.ok()?.ok() }).await
    }

    fn trail(&self) -> AuditTrail {
        let log = self.folder.join("audit.log");
        AuditTrail::at(log, self.scratch.join("audit.pub"))
    }

    async fn ready(&self) -> Option<String> {
        page(self.health, "/readyz?verbose").await
    }
}

/// A page of a health listener, its head in front.
async fn page(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

async fn echoes(pipe: &mut Pipe) {
    pipe.write_all(b"ping").await.unwrap();
    let mut back = [0; 4];
    expect("the echo", pipe.read_exact(&mut back))
        .await
        .unwrap();
    assert_eq!(&back, b"ping");
}

/// A folder as a process sees it.
fn seen_by(child: &Child, folder: &Path) -> PathBuf {
    let pid = child.id().expect("a running process");
    let inner = folder.strip_prefix("/").expect("an absolute path");
    Path::new("/proc")
        .join(pid.to_string())
        .join("root")
        .join(inner)
}

scenarios! {
    async fn a_killed_server_leaves_a_whole_chain_and_goes_on_with_it(carrier) {
        let world = World::new(carrier).await;
        for round in 0_u64..3 {
            let mut server = world.server();
            drop(world.pipe().await);
            let mut dialling = tokio::task::JoinSet::new();
            for _ in 0..8 {
                let front = world.front();
                dialling.spawn(async move { while let Ok(Ok(pipe)) = front.dial(POD).await { drop(pipe) } });
            }
            let before = world.trail().of("end").len();
            eventually("dials in the trail", || async { (world.trail().of("end").len() > before + 50).then_some(()) }).await;
            server.kill().await.unwrap();
            dialling.shutdown().await;
            let findings = world.trail().proven();
            assert_eq!(findings.runs, round + 1);
            // Every end has its start: what was handed over was handed over in order.
            let starts: std::collections::BTreeSet<String> = world.trail().of("start").iter().map(|start| start["id"].to_string()).collect();
            assert!(world.trail().of("end").iter().all(|end| starts.contains(&end["id"].to_string())));
            if round == 0 {
                // What a crash of the machine leaves: half a line.
                let mut log = std::fs::OpenOptions::new().append(true).open(world.trail().log()).unwrap();
                std::io::Write::write_all(&mut log, b"{\"seq\":99999,\"prev\":\"0000").unwrap();
            }
        }
        // The agent knows a server that is gone from one that went.
        let lost = "towline_agent_reconnects_total{reason=\"link-lost\"}";
        eventually("the lost link", || async { page(world.agent.health_address(), "/metrics").await.filter(|page| page.contains(lost)) }).await;
        let findings = world.trail().proven();
        assert!(findings.notes.iter().any(|note| note.contains("a crash tore")), "{:?}", findings.notes);
    }

    #[ignore = "needs root"]
    async fn a_full_disk_refuses_new_dials_with_a_reason_until_there_is_room(carrier) {
        let world = World::new(carrier).await;
        let mut server = world.server_on_small_disk("128k");
        let front = world.front();
        let started = expect("the server, or its end", async {
            while front.connect().await.is_err() {
                if matches!(server.try_wait(), Ok(Some(_))) {
                    return false;
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            true
        }).await;
        assert!(started, "the server needs root, to mount a small disk");
        let mut live = world.pipe().await;
        echoes(&mut live).await;
        let folder = seen_by(&server, &world.folder);
        let filler = folder.join("filler");
        let full = std::fs::write(&filler, vec![0; 1 << 20]);
        assert!(full.is_err(), "the disk is full");
        let refused = eventually("a refusal", || async { world.front().dial(POD).await.ok()?.err() }).await;
        assert_eq!(refused.status, 503);
        assert!(refused.phrase.contains("audit trail"), "{}", refused.phrase);
        eventually("the loss of readiness", || async { world.ready().await.filter(|page| page.contains("[-]audit")) }).await;
        // A live dial goes on.
        echoes(&mut live).await;
        std::fs::remove_file(&filler).unwrap();
        drop(world.pipe().await);
        eventually("readiness", || async { world.ready().await.filter(|page| page.contains("[+]audit")) }).await;
        drop(live);
        let copy = AuditTrail::at(folder.join("audit.log"), world.trail().public().to_owned());
        let gap = copy.record("the gap", |record| record["event"] == "gap").await;
        assert!(gap["dials_refused"].as_u64().unwrap() >= 1, "{gap}");
        eventually("the ends of all dials", || async { (copy.of("end").len() == copy.of("start").len()).then_some(()) }).await;
        assert_eq!(copy.proven().dropped, 0);
        let pid = server.id().and_then(|id| Pid::from_raw(id.cast_signed())).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        assert_eq!(expect("the end", server.wait()).await.unwrap().code(), Some(0));
    }
}
