//! The policy file under running daemons: whom it lets reach what, at both ends, and what becomes
//! of live dials when it changes.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;
use towline_link::carrier::CarrierKind;
use towline_link::driver::greet_agent;
use towline_link::process::policy_file::PolicyFile;
use towline_proto::dial::ACCEPTED;
use towline_proto::id::Role;
use towline_proto::policy::Asker;
use towline_proto::reason::Reason;
use towline_proto::target::Class;
use towline_server::policy::Policy;
use towline_tests::apiserver::Pipe;
use towline_tests::cluster::{Cluster, Plan, node_ip, start_agent};
use towline_tests::network::MappedNetwork;
use towline_tests::pattern::Check;
use towline_tests::rogue::{self, RogueServer};
use towline_tests::scenario::{eventually, expect};
use towline_tests::scenarios;
use towline_tests::scratch::{Scratch, replace};
use towline_tests::target::{Behaviour, End, read_all};

const POD: &str = "10.244.0.5:8080";
const OTHER_POD: &str = "10.244.0.6:8080";
/// From a new file to the end of what it forbids.
const ENDED_WITHIN: Duration = Duration::from_secs(5);

const EVERYTHING: &str = "  - {name: everything, action: allow}\n";

/// A policy file of a scenario's own.
struct File {
    scratch: Scratch,
}

impl File {
    fn new(rules: &str) -> Self {
        let file = Self {
            scratch: Scratch::new().unwrap(),
        };
        file.write(rules);
        file
    }

    fn write(&self, rules: &str) {
        let text = match rules {
            "" => "version: 1\nrules: []\n".to_owned(),
            rules => format!("version: 1\nrules:\n{rules}"),
        };
        replace(&self.scratch.join("policy.yaml"), text).unwrap();
    }

    fn path(&self) -> String {
        self.scratch.join("policy.yaml").display().to_string()
    }
}

fn at_server(carrier: CarrierKind, file: &File) -> Plan {
    Plan::on(carrier).server_flags(&["--policy", &file.path()])
}

fn at_agent(carrier: CarrierKind, file: &File) -> Plan {
    Plan::on(carrier).agent_flags(&["--policy", &file.path()])
}

async fn echoes(pipe: &mut Pipe) {
    let mut echo = [0; 4];
    pipe.write_all(b"ping").await.unwrap();
    expect("the echo", pipe.read_exact(&mut echo))
        .await
        .unwrap();
    assert_eq!(&echo, b"ping");
}

async fn cut_within_limit(mut pipe: Pipe, begun: Instant) {
    let mut check = Check::default();
    let reading = read_all(&mut pipe, &mut check, u64::MAX);
    assert_eq!(expect("the end of the dial", reading).await, End::Reset);
    assert!(begun.elapsed() < ENDED_WITHIN, "{:?}", begun.elapsed());
}

async fn scrape(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

async fn measured(address: SocketAddr, line: &str) {
    eventually(line, || async {
        scrape(address).await.contains(line).then_some(())
    })
    .await;
}

/// An agent whose one server asks for whatever it likes.
async fn hostile(
    cluster: &Cluster,
    carrier: CarrierKind,
) -> (RogueServer, towline_agent::run::Agent) {
    let pair = cluster.authority.leaf(Role::Server, "s9").sign();
    let rogue = RogueServer::start(carrier, &cluster.authority, &pair)
        .await
        .unwrap();
    let files = cluster
        .agent_pair("n1")
        .write(cluster.scratch(), "hostile")
        .unwrap();
    let mut args = cluster.agent_args(&files);
    let at = args.iter().position(|arg| arg == "--server").unwrap();
    args[at + 1] = rogue.address().to_string();
    let network = MappedNetwork::new(&cluster.wire, &[node_ip(1)]);
    let agent = start_agent(&args, network).await.unwrap();
    (rogue, agent)
}

/// The user as whom the Unix door sees this process.
fn own_uid() -> u32 {
    std::fs::metadata("/proc/self").unwrap().uid()
}

scenarios! {
    async fn each_front_end_has_rules_of_its_own(carrier) {
        let file = File::new(&format!(
            "  - {{name: local, action: allow, from: [uid:{}], to: [10.244.0.5]}}\n  - {{name: certified, action: allow, from: [client:kube-*], to: [10.244.0.6]}}\n",
            own_uid()
        ));
        let cluster = at_server(carrier, &file).start().await;
        let _pods = [cluster.target(POD, Behaviour::Echo).await, cluster.target(OTHER_POD, Behaviour::Echo).await];
        let (local, certified) = (cluster.apiserver(), cluster.apiserver_tcp());
        echoes(&mut local.pipe(POD).await).await;
        echoes(&mut certified.pipe(OTHER_POD).await).await;
        for (front, target) in [(&local, OTHER_POD), (&certified, POD)] {
            let refused = front.refusal(target).await;
            assert!(refused.status == 403 && refused.phrase.contains("no rule of the server's policy"), "{refused:?}");
        }
    }

    async fn without_a_rule_nothing_is_sent_to_an_agent(carrier) {
        let file = File::new("");
        let cluster = at_server(carrier, &file).unverified_kubelets().start().await;
        for target in [POD, "10.0.0.1:10250", "10.96.1.1:443", "hook.ns.svc:443", "10.0.0.1:22", "8.8.8.8:53"] {
            let refused = cluster.apiserver().refusal(target).await;
            assert_eq!(refused.status, 403, "{target}: {refused:?}");
        }
        assert!(cluster.wire.tried().is_empty() && cluster.wire.resolved().is_empty());
        measured(cluster.server(0).health_address(), "towline_server_policy_decisions_total{outcome=\"default\"} 6").await;
    }

    async fn a_rule_that_denies_is_named_to_the_front_end(carrier) {
        let file = File::new(&format!("{EVERYTHING}  - {{name: no-debugger, action: deny, ports: [8000-8100]}}\n"));
        let cluster = at_server(carrier, &file).start().await;
        let refused = cluster.apiserver().refusal(POD).await;
        assert!(refused.status == 403 && refused.phrase.contains("\"no-debugger\" (line 4)"), "{refused:?}");
    }

    async fn no_rule_opens_what_is_never_a_target(carrier) {
        let file = File::new(EVERYTHING);
        let path = file.path();
        let cluster = at_server(carrier, &file).agent_flags(&["--policy", &path]).unverified_kubelets().start().await;
        let (rogue, _agent) = hostile(&cluster, carrier).await;
        let link = expect("the link", rogue.link()).await;
        for target in ["169.254.169.254:80", "127.0.0.1:22", "[::ffff:127.0.0.1]:22", "[fd00:ec2::254]:80", "224.0.0.1:80", "0.0.0.0:80"] {
            assert_eq!(cluster.apiserver().refusal(target).await.status, 403, "{target}");
            for class in Class::ALL {
                let refused = expect("the agent's answer", rogue::ask(&link, target, class)).await;
                assert_eq!(refused.err().map(|error| error.reason), Some(Reason::ForbiddenAddress), "{target} {class}");
            }
        }
        // Nor does it make an address what it is not: a port of the node is no pod.
        let refused = expect("the agent's answer", rogue::ask(&link, "10.0.0.1:22", Class::Pod)).await;
        assert_eq!(refused.err().map(|error| error.reason), Some(Reason::AgentPolicy));
        assert!(cluster.wire.tried().is_empty(), "{:?}", cluster.wire.tried());
    }

    async fn the_agent_keeps_its_own_file_on_the_resolved_address(carrier) {
        let file = File::new("  - {name: hooks, action: allow, to: [\"*.prod.svc\"]}\n  - {name: no-dns, action: deny, to: [10.96.0.10]}\n  - {name: root, action: allow, classes: [pod], from: [uid:4000000000]}\n");
        let cluster = at_agent(carrier, &file).unverified_kubelets().start().await;
        let _hook = cluster.target("10.96.1.1:443", Behaviour::Echo).await;
        let _pod = cluster.target(POD, Behaviour::Echo).await;
        let (good, bad): (IpAddr, IpAddr) = ([10, 96, 1, 1].into(), [10, 96, 0, 10].into());
        cluster.wire.name("good.prod.svc", &[&[good]]);
        cluster.wire.name("bad.prod.svc", &[&[bad]]);
        cluster.wire.name("both.prod.svc", &[&[good, bad]]);
        cluster.wire.name("rebind.prod.svc", &[&[good], &[bad]]);
        let front = cluster.apiserver();
        echoes(&mut front.pipe("good.prod.svc:443").await).await;
        echoes(&mut front.pipe("rebind.prod.svc:443").await).await;
        for name in ["bad.prod.svc:443", "both.prod.svc:443", "rebind.prod.svc:443", "10.96.1.1:443"] {
            let refused = front.refusal(name).await;
            assert!(refused.status == 403 && refused.phrase.contains("agent n1 refused"), "{name}: {refused:?}");
        }
        // Who asks is not visible at the agent: that condition is the servers'.
        echoes(&mut front.pipe(POD).await).await;
        assert!(cluster.wire.tried().iter().all(|address| address.ip() != bad));
    }

    async fn a_new_policy_ends_the_live_dials_that_it_forbids_and_no_others(carrier) {
        let file = File::new(EVERYTHING);
        let cluster = at_server(carrier, &file).start().await;
        let forbidden = cluster.target(POD, Behaviour::Echo).await;
        let _other = cluster.target(OTHER_POD, Behaviour::Echo).await;
        let front = cluster.apiserver_tcp();
        let (mut ending, mut staying) = (front.pipe(POD).await, front.pipe(OTHER_POD).await);
        echoes(&mut ending).await;
        echoes(&mut staying).await;
        // The file alone: events or the look every two seconds find it.
        let begun = Instant::now();
        file.write(&format!("{EVERYTHING}  - {{name: closed, action: deny, to: [10.244.0.5]}}\n"));
        cut_within_limit(ending, begun).await;
        assert_eq!(expect("the target's end", forbidden.outcome()).await.end, End::Reset);
        echoes(&mut staying).await;
        let refused = front.refusal(POD).await;
        assert!(refused.phrase.contains("\"closed\""), "{refused:?}");
        let server = cluster.server(0).health_address();
        measured(server, "towline_server_policy_dials_ended_total{reason=\"policy-changed\"} 1").await;
        measured(server, "reason=\"policy-changed\"} 1").await;
        // And back again.
        file.write(EVERYTHING);
        eventually("the dial", || async { front.dial(POD).await.unwrap().ok() }).await;
    }

    async fn a_front_end_that_does_not_read_the_answer_keeps_no_dial_that_is_forbidden(carrier) {
        let file = File::new(EVERYTHING);
        let cluster = at_server(carrier, &file).start().await;
        let forbidden = cluster.target(POD, Behaviour::Echo).await;
        let mut silent = cluster.apiserver().connect().await.unwrap();
        silent.write_all(format!("CONNECT {POD} HTTP/1.1\r\n\r\n").as_bytes()).await.unwrap();
        cluster.audit(0).record("the start", |record| record["event"] == "start").await;
        let begun = Instant::now();
        file.write("  - {name: closed, action: deny}\n");
        assert_eq!(expect("the target's end", forbidden.outcome()).await.end, End::Reset);
        assert!(begun.elapsed() <= ENDED_WITHIN, "{:?}", begun.elapsed());
        let end = cluster.audit(0).record("the end", |record| record["event"] == "end").await;
        assert_eq!(end["reason"], "policy-changed");
    }

    async fn a_dial_that_was_being_opened_when_the_policy_changed_is_not_let_through(carrier) {
        let file = File::new(EVERYTHING);
        let cluster = at_server(carrier, &file).unverified_kubelets().start().await;
        let pair = cluster.authority.leaf(Role::Agent, "n9").ips(&[node_ip(9)]).sign();
        let server = cluster.server(0).link_address();
        let rogue = rogue::connect(carrier, server, &cluster.authority, Some(&pair)).await.unwrap();
        let (link, _, run) = greet_agent(rogue, rogue::hello("n9")).await.unwrap();
        let _driver = AbortOnDropHandle::new(tokio::spawn(run));
        let front = cluster.apiserver();
        for allowed in [true, false] {
            let dialling = { let front = front.clone(); tokio::spawn(async move { front.dial("10.0.0.9:10250").await.unwrap() }) };
            let carrier = link.carrier();
            // Probes come in between; a dial's request is longer.
            let mut stream = loop {
                let mut stream = expect("a stream", carrier.accept()).await.unwrap();
                let request = expect("a request", stream.recv.recv(512)).await.unwrap();
                if request.is_some_and(|bytes| bytes.len() > 16) {
                    break stream;
                }
            };
            if !allowed {
                file.write("  - {name: closed, action: deny}\n");
                cluster.server(0).policy().reload().unwrap();
            }
            stream.send.send(Bytes::from_static(&[ACCEPTED])).await.unwrap();
            let answer = expect("the door's answer", dialling).await.unwrap();
            match answer {
                Ok(_) => assert!(allowed),
                Err(refused) => assert!(!allowed && refused.status == 403 && refused.phrase.contains("has changed since"), "{refused:?}"),
            }
        }
    }

    async fn a_new_policy_of_an_agent_ends_live_dials_too(carrier) {
        let file = File::new(EVERYTHING);
        let cluster = at_agent(carrier, &file).start().await;
        let forbidden = cluster.target(POD, Behaviour::Echo).await;
        let _other = cluster.target(OTHER_POD, Behaviour::Echo).await;
        let front = cluster.apiserver_tcp();
        let (mut ending, mut staying) = (front.pipe(POD).await, front.pipe(OTHER_POD).await);
        echoes(&mut ending).await;
        echoes(&mut staying).await;
        let begun = Instant::now();
        file.write("  - {name: one, action: allow, to: [10.244.0.6]}\n");
        cut_within_limit(ending, begun).await;
        assert_eq!(expect("the target's end", forbidden.outcome()).await.end, End::Reset);
        echoes(&mut staying).await;
        assert_eq!(front.refusal(POD).await.status, 403);
        measured(cluster.agent("n1").health_address(), "towline_agent_policy_dials_ended_total 1").await;
        measured(cluster.server(0).health_address(), "reason=\"policy-changed\"} 1").await;
    }

    async fn a_file_that_cannot_be_used_keeps_the_old_one_and_raises_an_alarm(carrier) {
        let file = File::new(EVERYTHING);
        let path = file.path();
        let cluster = at_server(carrier, &file).agent_flags(&["--policy", &path]).start().await;
        let _pod = cluster.target(POD, Behaviour::Echo).await;
        let mut pipe = cluster.apiserver().pipe(POD).await;
        let (server, agent) = (cluster.server(0), cluster.agent("n1"));
        let ready = || (server.readiness().report().to_string(), agent.readiness().report().to_string());
        assert!(ready().0.contains("[+]policy ok") && ready().1.contains("[+]policy ok"), "{:?}", ready());
        for bad in ["  - {name: x, action: permit}\n", "  - {name: x}\n", "  - [\n", "\u{0}"] {
            file.write(bad);
            let errors = cluster.reload().await;
            let told = |error: &String| error.contains("policy.yaml:");
            assert!(errors.len() == 2 && errors.iter().all(told), "{bad:?}: {errors:?}");
            echoes(&mut pipe).await;
            echoes(&mut cluster.apiserver().pipe(POD).await).await;
            for report in [ready().0, ready().1] {
                assert!(report.contains("[!]policy the policy file is not in force"), "{report}");
            }
        }
        measured(server.health_address(), "towline_server_policy_stale 1").await;
        measured(agent.health_address(), "towline_agent_policy_stale 1").await;
        file.write(EVERYTHING);
        assert_eq!(cluster.reload().await, [""; 0]);
        assert!(ready().0.contains("[+]policy ok") && ready().1.contains("[+]policy ok"), "{:?}", ready());
        measured(server.health_address(), "towline_server_policy_stale 0").await;
    }

    async fn rules_about_nodes_choose_the_gateway(carrier) {
        let file = File::new("  - {name: by-n2, action: allow, classes: [service], nodes: [n2]}\n  - {name: pods, action: allow, classes: [pod]}\n  - {name: not-n1, action: deny, classes: [pod], nodes: [n1]}\n");
        let cluster = at_server(carrier, &file).agents(2).start().await;
        let _service = cluster.target("10.96.1.1:443", Behaviour::Echo).await;
        let _pod = cluster.target(POD, Behaviour::Echo).await;
        for _ in 0..4 {
            echoes(&mut cluster.apiserver().pipe("10.96.1.1:443").await).await;
            echoes(&mut cluster.apiserver().pipe(POD).await).await;
        }
        measured(cluster.agent("n2").health_address(), "towline_agent_connect_seconds_count 8").await;
        file.write("  - {name: by-n3, action: allow, nodes: [n3]}\n");
        cluster.reload().await;
        let refused = cluster.apiserver().refusal("10.96.1.1:443").await;
        assert_eq!(refused.status, 403, "{refused:?}");
    }

    async fn dials_to_a_prefix_that_grants_no_longer_give_are_ended(carrier) {
        let scratch = Scratch::new().unwrap();
        let grants = scratch.join("grants.yaml");
        let write = |prefixes: &str| {
            let text = format!("agents:\n  - name: n1\n    prefixes: [{prefixes}]\n");
            replace(&grants, text).unwrap();
        };
        write("10.244.0.5/32, 10.244.0.6/32");
        let path = grants.display().to_string();
        let cluster = Plan::on(carrier).server_flags(&["--grants", &path]).start().await;
        let _pods = [cluster.target(POD, Behaviour::Echo).await, cluster.target(OTHER_POD, Behaviour::Echo).await];
        let front = cluster.apiserver_tcp();
        let (mut ending, mut staying) = (front.pipe(POD).await, front.pipe(OTHER_POD).await);
        echoes(&mut ending).await;
        echoes(&mut staying).await;
        let begun = Instant::now();
        write("10.244.0.6/32");
        cut_within_limit(ending, begun).await;
        echoes(&mut staying).await;
        assert_eq!(front.refusal(POD).await.status, 503);
        measured(cluster.server(0).health_address(), "towline_server_policy_dials_ended_total{reason=\"route-withdrawn\"} 1").await;
    }
}

fn command(args: &[&str]) -> (Option<i32>, String, String) {
    let output = std::process::Command::new(towline_tests::program::program("towline-server"))
        .arg("policy")
        .args(args)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn check_and_explain_answer_people_and_machines() {
    let file = File::new("  - {name: hooks, action: allow, classes: [service], from: [uid:0]}\n");
    let path = file.path();
    let (code, out, _) = command(&["check", &path]);
    assert!(
        code == Some(0) && out.contains("good: 1 rules (1 allow, 0 deny)"),
        "{out}"
    );
    let explain = |target: &str, front_end: &str| {
        let args = [
            "explain",
            target,
            "--as",
            front_end,
            "--policy",
            &path,
            "--service-cidr",
            "10.96.0.0/12",
            "-o",
            "json",
        ];
        let (code, out, err) = command(&args);
        let told: serde_json::Value =
            serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"));
        (code, told)
    };
    let (code, told) = explain("10.96.1.1:443", "uid:0");
    assert!(
        code == Some(0) && told["rule"]["line"] == 3 && told["class"] == "service",
        "{told}"
    );
    let (code, told) = explain("10.96.1.1:443", "client:kube-apiserver");
    assert!(
        code == Some(4) && told["near"][0]["unmet"][0] == "from",
        "{told}"
    );
    let (code, told) = explain("169.254.169.254:80", "uid:0");
    assert!(
        code == Some(4) && told["decided_by"] == "built-in",
        "{told}"
    );
    file.write("  - {name: hooks, action: permit}\n");
    let (code, out, err) = command(&["check", &path]);
    assert!(
        code == Some(3) && out.is_empty() && err.contains("policy.yaml:3:27: "),
        "{out}{err}"
    );
    assert_eq!(err.lines().count(), 1);
    let (code, out, _) = command(&["check", &path, "-o", "json"]);
    let told: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(code == Some(3) && told["good"] == false, "{told}");
    assert_eq!(command(&["explain", "x"]).0, Some(2));
    let nowhere = Path::new(&path).with_extension("sock");
    let args = [
        "explain",
        POD,
        "--admin-socket",
        &nowhere.display().to_string(),
    ];
    assert_eq!(command(&args).0, Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_server_explains_what_it_does() {
    let file = File::new("  - {name: root, action: allow, classes: [kubelet], nodes: [n1]}\n");
    let cluster = at_server(CarrierKind::Tls, &file).start().await;
    let socket = cluster.admin_socket(0).display().to_string();
    let explain = |target: &'static str| {
        let socket = socket.clone();
        let run = move || command(&["explain", target, "--admin-socket", &socket]);
        tokio::task::spawn_blocking(run)
    };
    let (code, out, err) = explain("10.0.0.1:10250").await.unwrap();
    assert!(
        code == Some(0) && out.contains("node n1") && out.contains("policy.yaml:3)"),
        "{out}{err}"
    );
    assert!(out.contains("through: agent n1, which owns it"), "{out}");
    let (_, out, _) = explain("10.0.0.9:10250").await.unwrap();
    assert!(out.contains("through: nobody now: no agent"), "{out}");
    let (_, out, _) = explain("web.prod.svc:443").await.unwrap();
    assert!(
        out.contains("through: agent n1 or another of the 1 agents that are gateways"),
        "{out}"
    );
    let (code, out, _) = explain("[fd00::1]:443").await.unwrap();
    assert!(
        code == Some(4) && out.contains("add an allow rule"),
        "{out}"
    );
}

/// The `yaml` blocks of a page.
fn examples(page: &str) -> Vec<String> {
    let mut blocks = page.split("```yaml\n").skip(1);
    let mut found = Vec::new();
    for block in blocks.by_ref() {
        found.extend(block.split("```").next().map(str::to_owned));
    }
    found
}

#[test]
fn every_example_of_the_page_is_a_policy_and_its_dialogue_is_true() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = std::fs::read_to_string(root.join("server/POLICY.md")).unwrap();
    let examples = examples(&page);
    assert_eq!(examples.len(), 5);
    for example in &examples {
        if let Err(fault) = PolicyFile::parse(example.as_bytes()) {
            panic!("{fault}\n{example}");
        }
    }
    PolicyFile::load(&root.join("server/deploy/policy.yaml")).unwrap();
    let scratch = Scratch::new().unwrap();
    scratch.write("policy.yaml", &examples[1]).unwrap();
    let (_, told) = page.split_once("$ towline-server policy explain ").unwrap();
    let (args, told) = told.split_once('\n').unwrap();
    let told = told.split("```").next().unwrap();
    let output = std::process::Command::new(towline_tests::program::program("towline-server"))
        .args(["policy", "explain"])
        .args(args.split(' '))
        .current_dir(scratch.path())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), told);
    assert_eq!(output.status.code(), Some(4));
}

#[test]
fn the_first_example_is_what_counts_without_a_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = std::fs::read_to_string(root.join("server/POLICY.md")).unwrap();
    let file = PolicyFile::parse(examples(&page)[0].as_bytes()).unwrap();
    let (written, built_in) = (Policy::new(file.rules), Policy::default());
    for class in Class::ALL {
        for target in [
            "10.0.0.7:10250",
            "127.0.0.1:10250",
            "a.b.svc:443",
            "169.254.169.254:80",
        ] {
            let target = target.parse().unwrap();
            let asked = |policy: &Policy| {
                policy
                    .check_asker(&target, class, Asker::Client("any"), Some("n1"))
                    .is_ok()
            };
            assert_eq!(asked(&written), asked(&built_in), "{target} {class}");
        }
    }
}
