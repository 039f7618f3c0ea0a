//! The programs as an operator has them: started from flags, stopped by signals, killed, asked
//! over HTTP. They are those of the last build of the workspace; `cargo test --workspace` makes
//! them anew.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use towline_link::carrier::CarrierKind;
use towline_proto::id::Role;
use towline_tests::apiserver::{FakeApiserver, Pipe};
use towline_tests::authority::Authority;
use towline_tests::kubectl::Kubelet;
use towline_tests::kubelet::FakeKubelet;
use towline_tests::program::program;
use towline_tests::scenario::{NOISE, eventually, expect};
use towline_tests::scenarios;
use towline_tests::scratch::Scratch;

const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

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

/// One server and one agent as programs, and the kubelet of the agent's node.
struct World {
    carrier: CarrierKind,
    authority: Authority,
    scratch: Scratch,
    link: SocketAddr,
    health: [SocketAddr; 2],
    kubelet: FakeKubelet,
}

impl World {
    async fn new(carrier: CarrierKind) -> Self {
        let authority = Authority::new("kit.example");
        let scratch = Scratch::new().unwrap();
        scratch
            .write("agents.ca", authority.issuer(Role::Agent).pem())
            .unwrap();
        scratch
            .write("servers.ca", authority.issuer(Role::Server).pem())
            .unwrap();
        authority
            .leaf(Role::Server, "s1")
            .sign()
            .write(&scratch, "s1")
            .unwrap();
        authority
            .leaf(Role::Agent, "n1")
            .ips(&[NODE])
            .sign()
            .write(&scratch, "n1")
            .unwrap();
        scratch
            .write("kubelets.ca", authority.kubelets().pem())
            .unwrap();
        let kubelet = FakeKubelet::start(&authority, "n1", &[NODE], (NODE, 0).into())
            .await
            .unwrap();
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self {
            carrier,
            authority,
            scratch,
            link: local(free_port()),
            health: [local(free_port()), local(free_port())],
            kubelet,
        }
    }

    fn flags(&self, own: &str, more: &[(&str, String)]) -> Vec<String> {
        let file = |name: &str| self.scratch.join(name).display().to_string();
        let mut flags = vec![
            "--cert".to_owned(),
            file(&format!("{own}.crt")),
            "--key".to_owned(),
            file(&format!("{own}.key")),
        ];
        flags.extend([
            "--kubelet-port".to_owned(),
            self.kubelet.address().port().to_string(),
        ]);
        for (flag, value) in more {
            flags.extend([(*flag).to_owned(), value.clone()]);
        }
        flags
    }

    fn server_flags(&self) -> Vec<String> {
        let file = |name: &str| self.scratch.join(name).display().to_string();
        self.flags(
            "s1",
            &[
                ("--agent-ca", file("agents.ca")),
                ("--kubelet-certificate-authority", file("kubelets.ca")),
                ("--listen", self.link.to_string()),
                ("--state-dir", file("state")),
                ("--door-unix", file("door")),
                ("--health-bind", self.health[0].to_string()),
            ],
        )
    }

    fn agent_flags(&self) -> Vec<String> {
        self.flags(
            "n1",
            &[
                ("--server", self.link.to_string()),
                (
                    "--server-ca",
                    self.scratch.join("servers.ca").display().to_string(),
                ),
                ("--carrier", self.carrier.to_string()),
                ("--http-proxy", "off".into()),
                ("--health-bind", self.health[1].to_string()),
            ],
        )
    }

    fn start(&self, name: &str, flags: &[String]) -> Child {
        let mut command = Command::new(program(name));
        command
            .args(flags)
            .args(["--log-level", "error"])
            .kill_on_drop(true);
        command.spawn().expect("the program starts")
    }

    fn server(&self) -> Child {
        self.start("towline-server", &self.server_flags())
    }

    fn agent(&self) -> Child {
        self.start("towline-agent", &self.agent_flags())
    }

    fn front(&self) -> FakeApiserver {
        FakeApiserver::unix(&self.scratch.join("door"))
    }

    /// The first dial that works.
    async fn pipe(&self) -> Pipe {
        let front = self.front();
        let target = self.kubelet.address().to_string();
        eventually("a dial", || async { front.dial(&target).await.ok()?.ok() }).await
    }

    async fn kubelet(&self) -> Kubelet {
        let connecting = Kubelet::connect(self.pipe().await, NODE, self.authority.kubelets().der());
        expect("the kubelet's handshake", connecting).await.unwrap()
    }

    /// Status code of a page of the health listener, and the page.
    async fn page(&self, of: usize, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.health[of]).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        Some((status, answer))
    }
}

fn signal(child: &Child, signal: Signal) {
    let pid = child
        .id()
        .and_then(|id| Pid::from_raw(id.cast_signed()))
        .expect("a running child");
    kill_process(pid, signal).expect("a child of ours");
}

async fn end_of(child: &mut Child) -> ExitStatus {
    expect("the end of the program", child.wait())
        .await
        .unwrap()
}

scenarios! {
    async fn a_killed_server_is_linked_again_within_two_seconds_of_its_return(carrier) {
        let world = World::new(carrier).await;
        let mut server = world.server();
        let _agent = world.agent();
        drop(world.pipe().await);
        server.kill().await.unwrap();
        let _server = world.server();
        let front = world.front();
        eventually("the door", || async { front.connect().await.ok() }).await;
        let begun = Instant::now();
        drop(world.pipe().await);
        assert!(begun.elapsed() < NOISE * Duration::from_secs(2), "{:?}", begun.elapsed());
    }

    async fn a_server_that_was_told_to_stop_is_linked_again_within_a_second_of_its_return(carrier) {
        let world = World::new(carrier).await;
        let mut server = world.server();
        let _agent = world.agent();
        drop(world.pipe().await);
        signal(&server, Signal::TERM);
        assert_eq!(end_of(&mut server).await.code(), Some(0));
        let _server = world.server();
        let front = world.front();
        eventually("the door", || async { front.connect().await.ok() }).await;
        let begun = Instant::now();
        drop(world.pipe().await);
        assert!(begun.elapsed() < NOISE * Duration::from_secs(1), "{:?}", begun.elapsed());
    }

    async fn sigterm_lets_an_open_log_go_on_and_the_end_is_good(carrier) {
        let world = World::new(carrier).await;
        let (mut server, mut agent) = (world.server(), world.agent());
        let mut logs = world.kubelet().await.follow().await.unwrap();
        for child in [&agent, &server] {
            signal(child, Signal::TERM);
        }
        for number in 0..5 {
            world.kubelet.log(format!("line {number}"));
            assert_eq!(expect("a line", logs.line()).await.unwrap(), Some(format!("line {number}")));
        }
        assert!(server.try_wait().unwrap().is_none() && agent.try_wait().unwrap().is_none());
        drop(logs);
        assert_eq!(end_of(&mut server).await.code(), Some(0));
        assert_eq!(end_of(&mut agent).await.code(), Some(0));
    }

    async fn a_second_sigterm_ends_at_once(carrier) {
        for stopped in ["server", "agent"] {
            let world = World::new(carrier).await;
            let (mut server, mut agent) = (world.server(), world.agent());
            let _logs = world.kubelet().await.follow().await.unwrap();
            let child = if stopped == "server" { &mut server } else { &mut agent };
            signal(child, Signal::TERM);
            // Signals of one kind that come together are one signal.
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert!(child.try_wait().unwrap().is_none(), "the first signal drains");
            signal(child, Signal::TERM);
            let begun = Instant::now();
            end_of(child).await;
            assert!(begun.elapsed() < NOISE * Duration::from_secs(3), "{stopped}: {:?}", begun.elapsed());
        }
    }

    async fn health_tells_what_a_link_is_worth(carrier) {
        let world = World::new(carrier).await;
        let _server = world.server();
        for path in ["/healthz", "/metrics"] {
            eventually(path, || async { (world.page(0, path).await?.0 == 200).then_some(()) }).await;
        }
        assert_eq!(world.page(0, "/readyz").await.unwrap().0, 503, "ready without an agent");
        let mut agent = world.agent();
        for of in 0..2 {
            eventually("readiness", || async { (world.page(of, "/readyz").await?.0 == 200).then_some(()) }).await;
            let (_, metrics) = world.page(of, "/metrics").await.unwrap();
            assert!(metrics.contains("# TYPE towline_") && metrics.trim_end().ends_with("# EOF"), "{metrics}");
            // What only the program knows, beside what its library does.
            assert!(metrics.contains("towline_log_lines_dropped_total 0\n"), "{metrics}");
        }
        agent.kill().await.unwrap();
        eventually("the loss of readiness", || async { (world.page(0, "/readyz").await?.0 == 503).then_some(()) }).await;
        assert_eq!(world.page(0, "/healthz").await.unwrap().0, 200);
    }
}

#[tokio::test]
async fn an_agent_that_misses_one_of_its_servers_is_ready_and_says_which() {
    let world = World::new(CarrierKind::Tls).await;
    let _server = world.server();
    let mut flags = world.agent_flags();
    let missed = format!("127.0.0.1:{}", free_port());
    flags.extend(["--server".to_owned(), missed.clone()]);
    let _agent = world.start("towline-agent", &flags);
    let noted = format!("[!]links no link to server {missed} for ");
    let page = eventually("the note", || async {
        let (status, page) = world.page(1, "/readyz?verbose").await?;
        (status == 200 && page.contains("[!]links")).then_some(page)
    })
    .await;
    assert!(page.contains(&noted), "{page}");
}

#[tokio::test]
async fn the_trust_file_of_another_role_is_named_at_the_start() {
    let scratch = Scratch::new().unwrap();
    let run = |name: &'static str, line: &'static str| {
        let mut command = Command::new(program(name));
        command
            .args(line.split(' '))
            .current_dir(scratch.path())
            .output()
    };
    for line in ["init pki --cluster c", "issue agent n1 --dir pki"] {
        assert!(run("towline-pki", line).await.unwrap().status.success());
    }
    for (file, code) in [("servers", 0), ("agents", 3)] {
        let line = match file {
            "servers" => {
                "--check-config --server a:1 --cert agent-n1.crt --key agent-n1.key --server-ca pki/trust/servers.pem"
            }
            _ => {
                "--check-config --server a:1 --cert agent-n1.crt --key agent-n1.key --server-ca pki/trust/agents.pem"
            }
        };
        let output = run("towline-agent", line).await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        let words = "pki/trust/agents.pem: none of these authorities may sign servers";
        assert_eq!(said.contains(words), code == 3, "{said}");
    }
}

/// In a namespace with a Service of that name Kubernetes sets these in every container.
#[tokio::test]
async fn variables_of_service_links_are_none_of_ours() {
    let world = World::new(CarrierKind::Tls).await;
    let link = "tcp://10.96.1.2:8091";
    for (name, flags, variables) in [
        (
            "towline-server",
            world.server_flags(),
            &["TOWLINE_SERVER_PORT", "TOWLINE_AGENT_PORT"][..],
        ),
        (
            "towline-agent",
            world.agent_flags(),
            &["TOWLINE_PROXY_SERVER_PORT"],
        ),
    ] {
        let output = Command::new(program(name))
            .args(flags)
            .arg("--check-config")
            .envs(variables.iter().map(|variable| (variable, link)))
            .output()
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{name}: {said}");
    }
}

#[tokio::test]
async fn exit_codes_tell_usage_from_configuration() {
    let world = World::new(CarrierKind::Tls).await;
    for (name, good) in [
        ("towline-server", world.server_flags()),
        ("towline-agent", world.agent_flags()),
    ] {
        let code = |flags: Vec<String>| async move {
            let output = Command::new(program(name))
                .args(flags)
                .output()
                .await
                .unwrap();
            (
                output.status.code(),
                String::from_utf8_lossy(&output.stderr).into_owned(),
            )
        };
        let with = |more: &[&str]| {
            [
                good.clone(),
                more.iter().map(|flag| (*flag).to_owned()).collect(),
            ]
            .concat()
        };
        assert_eq!(code(with(&["--check-config"])).await.0, Some(0), "{name}");
        let (status, said) = code(with(&["--no-such-flag"])).await;
        assert!(
            status == Some(2) && said.contains("--no-such-flag"),
            "{name}: {status:?} {said}"
        );
        // Konnectivity's programs know success and failure only.
        for profile in [
            &["--compatibility=konnectivity"][..],
            &["--compatibility", "nonsense"],
        ] {
            let (status, said) = code(with(&[profile, &["--no-such-flag"]].concat())).await;
            assert!(
                status == Some(1) && said.contains("--"),
                "{name}: {status:?} {said}"
            );
        }
        let file = ["--compatibility=konnectivity", "--deny-list=/no/such/file"];
        let (status, said) = code(with(&file)).await;
        assert!(
            status == Some(1) && said.contains("/no/such/file"),
            "{name}: {status:?} {said}"
        );
        let help = code(vec![
            "--compatibility=konnectivity".to_owned(),
            "--help".to_owned(),
        ]);
        assert_eq!(help.await.0, Some(0), "{name}");
        let (status, said) = code(with(&["--deny-list", "/no/such/file", "--check-config"])).await;
        assert!(
            status == Some(3) && said.contains("/no/such/file"),
            "{name}: {status:?} {said}"
        );
        assert_eq!(
            said.trim_end().lines().count(),
            1,
            "{name}: one clear error: {said}"
        );
    }
}

#[tokio::test]
async fn in_the_profile_an_ordinary_stop_is_success_and_a_second_signal_is_not() {
    for (grace, signals, code) in [("0s", 1, 0), ("1h", 2, 1)] {
        let world = World::new(CarrierKind::Tls).await;
        let profile = [
            "--compatibility=konnectivity".to_owned(),
            format!("--graceful-shutdown-timeout={grace}"),
        ];
        let flags = [world.server_flags(), profile.to_vec()].concat();
        let mut server = world.start("towline-server", &flags);
        let _agent = world.agent();
        let mut logs = world.kubelet().await.follow().await.unwrap();
        signal(&server, Signal::TERM);
        if signals == 2 {
            // Signals of one kind that come together are one: this one was heard when the port of
            // the agents is closed.
            eventually("the drain", || async {
                TcpStream::connect(world.link).await.is_err().then_some(())
            })
            .await;
            world.kubelet.log("still there".to_owned());
            let line = expect("a line", logs.line()).await.unwrap();
            assert_eq!(line.as_deref(), Some("still there"));
            signal(&server, Signal::TERM);
        }
        assert_eq!(end_of(&mut server).await.code(), Some(code), "{grace}");
    }
}

#[tokio::test]
async fn the_service_manager_is_told() {
    let world = World::new(CarrierKind::Tls).await;
    for (name, flags) in [
        ("towline-server", world.server_flags()),
        ("towline-agent", world.agent_flags()),
    ] {
        let path = world.scratch.join(format!("notify-{name}"));
        let socket = UnixDatagram::bind(&path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut child = Command::new(program(name))
            .args(flags)
            .env("NOTIFY_SOCKET", &path)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut told = String::new();
        let until = |word: &'static str, mut told: String| {
            let socket = socket.try_clone().unwrap();
            tokio::task::spawn_blocking(move || {
                let mut buffer = [0; 4096];
                while !told.contains(word) {
                    let n = socket
                        .recv(&mut buffer)
                        .unwrap_or_else(|error| panic!("{word} never came: {error}; {told}"));
                    told.push_str(&String::from_utf8_lossy(&buffer[..n]));
                    told.push('\n');
                }
                told
            })
        };
        told = until("READY=1", told).await.unwrap();
        signal(&child, Signal::TERM);
        until("STOPPING=1", told).await.unwrap();
        end_of(&mut child).await;
    }
}

/// The first lines that a program logs, up to the one with this message.
async fn first_lines(name: &str, flags: &[String], format: &str, until: &str) -> Vec<String> {
    let mut child = Command::new(program(name))
        .args(flags)
        .args(["--log-format", format])
        .env("HTTPS_PROXY", "http://me:swordfish@127.0.0.1:9")
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut seen = Vec::new();
    loop {
        let line = expect(until, lines.next_line()).await.unwrap().unwrap();
        let last = line.contains(until);
        seen.push(line);
        if last {
            return seen;
        }
    }
}

/// No dump of Rust's, no secret, and each thing under the name of its flag.
#[tokio::test]
async fn the_first_line_says_which_program_this_is_and_how_it_was_set() {
    let world = World::new(CarrierKind::Tls).await;
    let no_proxy = |flag: &String| flag != "--http-proxy" && flag != "off";
    let agent: Vec<_> = world.agent_flags().into_iter().filter(no_proxy).collect();
    for (name, flags, identity) in [
        ("towline-server", world.server_flags(), "server/s1"),
        ("towline-agent", agent, "agent/n1"),
    ] {
        let lines = first_lines(name, &flags, "json", "bounds").await;
        let [first, bounds] = [0, 1].map(|line| {
            serde_json::from_str::<serde_json::Value>(&lines[line]).expect("a line of JSON")
        });
        assert_eq!(first["message"], "starting");
        assert_eq!(first["version"], env!("CARGO_PKG_VERSION"));
        let who = first["identity"].as_str().unwrap();
        assert!(who.ends_with(identity), "{who}");
        assert!(first["cert"].as_str().unwrap().ends_with(".crt"), "{first}");
        assert_eq!(bounds["message"], "bounds");
        assert_eq!(bounds["quic_congestion"], "bbr");
        if name == "towline-server" {
            assert_eq!(first["door_unix_mode"], "0600");
            assert_eq!(first["carrier"], "auto");
            assert_eq!(first["listen"], world.link.to_string());
            assert_eq!(first["kubelet_verification"], "enforce");
            assert_eq!(
                first.get("door_tcp"),
                None,
                "what is not in use is left out"
            );
        } else {
            assert_eq!(first["server"], world.link.to_string());
            assert_eq!(first["http_proxy"], "http://127.0.0.1:9");
            assert_eq!(first["allow_class"], "kubelet,pod,service");
        }
        let human = first_lines(name, &flags, "human", "bounds").await;
        assert!(human[0].contains(" starting version="), "{}", human[0]);
        for line in lines.iter().chain(&human) {
            for word in ["swordfish", "Some(", "None", " { "] {
                assert!(!line.contains(word), "{word}: {line}");
            }
        }
    }
}
