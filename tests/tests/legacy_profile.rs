//! The compatibility profile as a whole: manifests from the field, tokens, Leases, the TCP door,
//! what is told to operators.

use std::net::TcpListener;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Parser;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towline_link::carrier::CarrierKind;
use towline_link::grpc::Code;
use towline_proto::id::Role;
use towline_proto::limits;
use towline_server::compat::doctor;
use towline_server::run::Server;
use towline_tests::apiserver::FakeApiserver;
use towline_tests::authority::{Authority, Pair};
use towline_tests::cluster::{Plan, start_server};
use towline_tests::kube::{FakeKube, Mood, Token};
use towline_tests::legacy::{LegacyAgent, LegacyPlan};
use towline_tests::scenario::{eventually, expect};
use towline_tests::scratch::Scratch;
use towline_tests::target::{Behaviour, Target};

const AUDIENCE: &str = "system:konnectivity-server";
const NS: &str = "kube-system";

/// A port that Konnectivity takes, free a moment ago.
fn port() -> u16 {
    loop {
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        if (1024..=49151).contains(&port) {
            return port;
        }
    }
}

/// Files of an ordinary Konnectivity: one authority for servers, one for clients.
struct World {
    authority: Authority,
    kube: FakeKube,
    scratch: Scratch,
}

impl World {
    async fn new() -> Self {
        let authority = Authority::new("kube.example");
        let scratch = Scratch::new().unwrap();
        let kube = FakeKube::start(&authority).await.unwrap();
        kube.caller("secret", "konnectivity-server");
        kube.kubeconfig(&scratch, "secret").unwrap();
        let own = authority
            .leaf(Role::Server, "apiserver")
            .ips(&[[127, 0, 0, 1].into()])
            .name("localhost")
            .sign();
        scratch.write("server.crt", &own.cert_pem).unwrap();
        scratch.write("server.key", &own.key_pem).unwrap();
        for (name, role) in [("agents.ca", Role::Agent), ("clients.ca", Role::Client)] {
            scratch.write(name, authority.issuer(role).pem()).unwrap();
        }
        Self {
            authority,
            kube,
            scratch,
        }
    }

    fn file(&self, name: &str) -> String {
        self.scratch.join(name).display().to_string()
    }

    /// The flags of a manifest of the field, with our program's name and one flag more. Ports are
    /// free ones, because a test shares its machine.
    fn manifest(&self, more: &[&str]) -> Vec<String> {
        let mut flags: Vec<String> = [
            "towline-server",
            "--compatibility=konnectivity",
            "--logtostderr=true",
            "--log-file-max-size=0",
            "--v=4",
            "--mode=http-connect",
            "--delete-existing-uds-file",
            "--server-port=0",
            "--agent-bind-address=127.0.0.1",
            "--health-bind-address=127.0.0.1",
            "--keepalive-time=1h0m0s",
            "--frontend-keepalive-time=1h",
            "--xfr-channel-size=10",
            "--cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
            "--enable-profiling=false",
            "--enable-contention-profiling=false",
        ]
        .map(str::to_owned)
        .into();
        flags.extend([
            format!("--uds-name={}", self.file("konnectivity.socket")),
            format!("--cluster-cert={}", self.file("server.crt")),
            format!("--cluster-key={}", self.file("server.key")),
            format!("--kubeconfig={}", self.file("kubeconfig")),
            format!("--agent-port={}", port()),
            format!("--health-port={}", port()),
            format!("--admin-port={}", port()),
        ]);
        flags.extend(more.iter().map(|flag| (*flag).to_owned()));
        flags
    }

    fn token_manifest(&self, more: &[&str]) -> Vec<String> {
        let mut flags = self.manifest(more);
        flags.extend(
            [
                "--agent-namespace=kube-system",
                "--agent-service-account=konnectivity-agent",
                "--authentication-audience=system:konnectivity-server",
            ]
            .map(str::to_owned),
        );
        flags
    }

    fn plan(&self, id: &str) -> LegacyPlan<'_> {
        LegacyPlan::new(None, self.authority.issuer(Role::Server).der(), id)
    }

    /// An agent with a good token.
    async fn agent(&self, server: &Server) -> LegacyAgent {
        self.kube.token("good", good());
        let plan = self.plan("a").with("authorization", "Bearer good");
        let connected = plan.connect(server.link_address()).await;
        connected.expect("a connection").expect("a place")
    }

    fn front(&self) -> FakeApiserver {
        FakeApiserver::unix(&self.scratch.join("konnectivity.socket"))
    }
}

fn good() -> Token {
    Token {
        username: "system:serviceaccount:kube-system:konnectivity-agent".to_owned(),
        audiences: vec![AUDIENCE.to_owned()],
        expired: false,
        extra: Default::default(),
    }
}

async fn get(address: std::net::SocketAddr, path: &str) -> (u16, String) {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let status = text.split(' ').nth(1).and_then(|word| word.parse().ok());
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status.expect("a status"), body.to_owned())
}

#[tokio::test]
async fn a_manifest_of_the_field_starts_and_serves() {
    let world = World::new().await;
    let server = start_server(&world.token_manifest(&[]))
        .await
        .expect("a start");
    assert!(server.status().identity.is_empty());
    let health = server.health_address();
    assert_eq!(get(health, "/healthz").await.0, 200);
    let (status, text) = get(health, "/readyz").await;
    assert_eq!(
        (status, text.trim()),
        (500, "no connection to any proxy agent")
    );
    let target = Target::start(Behaviour::SpeaksFirst("hello"))
        .await
        .unwrap();
    let _serving = world.agent(&server).await.serve(&[]);
    eventually("readiness", || async {
        (get(health, "/readyz").await.0 == 200).then_some(())
    })
    .await;
    let mut pipe = world.front().pipe(&target.address().to_string()).await;
    let mut got = [0; 5];
    expect("the greeting", pipe.read_exact(&mut got))
        .await
        .unwrap();
    assert_eq!(&got, b"hello");
    let (_, metrics) = get(health, "/metrics").await;
    for line in [
        "konnectivity_network_proxy_server_ready_backends{proxy_strategy=\"default\"} 1",
        "konnectivity_network_proxy_server_grpc_connections{service_method=\"Connect\"} 1",
        "konnectivity_network_proxy_server_established_connections 1",
        "konnectivity_network_proxy_server_stream_packets_total{packet_type=\"DIAL_REQ\",segment=\"to_agent\"} 1",
        "konnectivity_network_proxy_server_stream_packets_total{packet_type=\"DIAL_RSP\",segment=\"from_agent\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
    let told = server.status().compatibility.expect("the profile");
    assert!(told.legacy_door && told.open_socket && !told.signed_door);
    assert_eq!(
        told.legacy_agents[0].proof,
        "token of kube-system/konnectivity-agent"
    );
}

#[tokio::test]
async fn tokens_are_judged_by_the_api_and_refused_with_known_texts() {
    let world = World::new().await;
    let server = start_server(&world.token_manifest(&[]))
        .await
        .expect("a start");
    let token = |username: &str, audience: &str, expired| Token {
        username: username.to_owned(),
        audiences: vec![audience.to_owned()],
        expired,
        extra: Default::default(),
    };
    let account = "system:serviceaccount:kube-system:konnectivity-agent";
    world.kube.token(
        "elsewhere",
        token(account, "https://kubernetes.default", false),
    );
    world.kube.token("late", token(account, AUDIENCE, true));
    world.kube.token("user", token("alice", AUDIENCE, false));
    let other = "system:serviceaccount:default:konnectivity-agent";
    world.kube.token("other-ns", token(other, AUDIENCE, false));
    let lookup = "Failed to validate authentication token, err:lookup failed: ";
    for (headers, start) in [
        (
            &[][..],
            "Authentication context was not found in metadata".to_owned(),
        ),
        (
            &["Bearer good", "Bearer good"],
            "too many (2) tokens are received".to_owned(),
        ),
        (
            &["bearer good"],
            "received token does not have \"Bearer \" prefix".to_owned(),
        ),
        (&["Bearer wrong"], lookup.to_owned()),
        (&["Bearer elsewhere"], lookup.to_owned()),
        (&["Bearer late"], lookup.to_owned()),
        (
            &["Bearer user"],
            format!("{lookup}unexpected username format"),
        ),
        (
            &["Bearer other-ns"],
            format!(
                "{lookup}incoming request from \"default\" namespace. Expected \"kube-system\""
            ),
        ),
    ] {
        let mut plan = world.plan("a");
        for value in headers {
            plan = plan.with("authorization", value);
        }
        let refused = plan.connect(server.link_address()).await.unwrap();
        let refused = refused.err().expect("a refusal");
        assert_eq!(refused.code, Code::Unknown);
        assert!(
            refused.message.starts_with(&start),
            "{}: {start}",
            refused.message
        );
    }
    // The API refuses us, not the agent: nobody comes in.
    world.kube.mood(Mood::Refuses(403, "no".to_owned()));
    world.kube.token("good", good());
    let plan = world.plan("a").with("authorization", "Bearer good");
    let refused = plan.connect(server.link_address()).await.unwrap().err();
    let refused = refused.expect("a refusal").message;
    let start = "Failed to validate authentication token, err:Failed to authenticate request. err:";
    assert!(refused.starts_with(start), "{refused}");
    world.kube.mood(Mood::Good);
    drop(world.agent(&server).await);
}

#[tokio::test]
async fn one_address_makes_us_ask_the_api_so_often_and_no_more() {
    let world = World::new().await;
    let server = start_server(&world.token_manifest(&[]))
        .await
        .expect("a start");
    world.kube.mood(Mood::Silent);
    let reviews = || {
        let requests = world.kube.requests();
        let reviews = requests.iter().filter(|one| one.contains("tokenreviews"));
        reviews.count()
    };
    let address = server.link_address();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..4 * limits::LEGACY_REVIEWS_PER_ADDRESS {
        let plan = world.plan("a").with("authorization", "Bearer guess");
        let (root, metadata) = (plan.root.clone(), plan.metadata.clone());
        calls.spawn(async move {
            let mut plan = LegacyPlan::new(None, &root, "a");
            plan.metadata = metadata;
            let answer = plan.connect(address).await.expect("an answer");
            answer.err().map(|status| status.message)
        });
    }
    eventually("the first questions", || async {
        (reviews() == limits::LEGACY_REVIEWS_PER_ADDRESS).then_some(())
    })
    .await;
    let first = calls.join_next().await.expect("a call").expect("joined");
    assert!(first.is_some(), "nobody came in");
    // By now all had the time to ask.
    assert!(reviews() <= 2 * limits::LEGACY_REVIEWS_PER_ADDRESS);
    calls.shutdown().await;
}

#[tokio::test]
async fn the_lease_is_kept_while_we_serve_and_those_of_the_dead_go() {
    let world = World::new().await;
    let lease = |name: &str, renewed: &str, labels: serde_json::Value| {
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "labels": labels},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": 30, "renewTime": renewed},
        })
    };
    let ours = json!({"k8s-app": "konnectivity-server"});
    let old = "2020-01-01T00:00:00.000000Z";
    let later = SystemTime::now() + Duration::from_secs(3600);
    let fresh = towline_link::kube::moment::Moment(later);
    let fresh = serde_json::to_value(fresh).unwrap();
    world.kube.put_lease(NS, lease("dead", old, ours.clone()));
    world
        .kube
        .put_lease(NS, lease("alive", fresh.as_str().unwrap(), ours));
    world
        .kube
        .put_lease(NS, lease("foreign", old, json!({"app": "other"})));
    let flags = [
        "--enable-lease-controller",
        "--server-id=one",
        "--graceful-shutdown-timeout=5s",
    ];
    let server = start_server(&world.token_manifest(&flags))
        .await
        .expect("a start");
    let names = |leases: &[serde_json::Value]| {
        let name =
            |lease: &serde_json::Value| lease["metadata"]["name"].as_str().unwrap().to_owned();
        leases.iter().map(name).collect::<Vec<_>>()
    };
    let own = "konnectivity-proxy-server-one";
    let wanted = ["alive", "foreign", own];
    let kept = world.kube.until(NS, |_, leases| names(leases) == wanted);
    expect("the leases", kept).await;
    let mine = world.kube.leases(NS).pop().unwrap();
    assert_eq!(mine["spec"]["holderIdentity"], "one");
    assert_eq!(mine["spec"]["leaseDurationSeconds"], 30);
    assert_eq!(mine["metadata"]["labels"]["k8s-app"], "konnectivity-server");
    assert!(mine["spec"]["renewTime"].is_string() && mine["spec"]["acquireTime"].is_string());
    let (_, metrics) = get(server.health_address(), "/metrics").await;
    for counted in [
        "culled_leases_count 1",
        "lease_list_total{http_status_code=\"200\",reason=\"\"} 1",
        "lease_list_latency_seconds_count{http_status_code=\"200\"} 1",
        "lease_delete_total{http_status_code=\"200\",reason=\"\"} 1",
        "lease_delete_latency_seconds_count{http_status_code=\"200\"} 1",
    ] {
        let line = format!("konnectivity_network_proxy_server_{counted}\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
    server.drain();
    let gone = world
        .kube
        .until(NS, |_, leases| names(leases) == ["alive", "foreign"]);
    expect("the end of the own lease", gone).await;
    expect("the stop", server.wait()).await.unwrap();
}

#[tokio::test]
async fn front_ends_over_tcp_only_have_to_be_signed() {
    let world = World::new().await;
    let mut flags = world.token_manifest(&[]);
    flags.retain(|flag| !flag.starts_with("--uds-name") && !flag.starts_with("--server-port"));
    flags.extend([
        format!("--server-port={}", port()),
        "--server-bind-address=127.0.0.1".to_owned(),
        format!("--server-cert={}", world.file("server.crt")),
        format!("--server-key={}", world.file("server.key")),
        format!("--server-ca-cert={}", world.file("clients.ca")),
    ]);
    let server = start_server(&flags).await.expect("a start");
    let _serving = world.agent(&server).await.serve(&[]);
    let target = Target::start(Behaviour::SpeaksFirst("hello"))
        .await
        .unwrap();
    let root = world.authority.issuer(Role::Server).der();
    let door = server.door_signed().expect("the door");
    let front = |pair: Option<&Pair>| FakeApiserver::tcp(door, pair, root);
    // Any certificate of that authority: no name is looked at.
    let signed = world.authority.leaf(Role::Client, "whoever").sign();
    let mut pipe = front(Some(&signed))
        .pipe(&target.address().to_string())
        .await;
    let mut got = [0; 5];
    expect("the greeting", pipe.read_exact(&mut got))
        .await
        .unwrap();
    assert_eq!(&got, b"hello");
    let agent = world.authority.leaf(Role::Agent, "n1").sign();
    for pair in [None, Some(&agent)] {
        let refused = front(pair).dial("10.9.0.1:1").await;
        assert!(refused.is_err(), "{}", pair.is_some());
    }
    // What the doors show and whom they believe ends some day.
    let (_, metrics) = get(server.health_address(), "/metrics").await;
    for what in [
        "legacy-agents-certificate",
        "signed-door-certificate",
        "signed-door-ca",
    ] {
        let line = format!("towline_certificate_expiry_seconds{{what=\"{what}\"");
        let found = metrics.lines().find(|found| found.starts_with(&line));
        let left = found.and_then(|found| found.rsplit(' ').next()?.parse::<f64>().ok());
        assert!(left.is_some_and(|left| left > 0.0), "{what}: {found:?}");
    }
    // Another authority: who is connected by the old one is let go, its dial with it.
    let status = server.status();
    let known = |what: &str| status.expiries.iter().any(|one| one.what == what);
    assert!(known("signed-door-ca"), "{:?}", status.expiries);
    let other = Authority::new("other.example");
    let clients = other.issuer(Role::Client).pem();
    towline_tests::scratch::replace(&world.scratch.join("clients.ca"), clients).unwrap();
    let reloaded = server.reloader().reload(SystemTime::now());
    reloaded.expect("a reload");
    let mut rest = Vec::new();
    let _ = expect("the end of the dial", pipe.read_to_end(&mut rest)).await;
    assert!(front(Some(&signed)).dial("10.9.0.1:1").await.is_err());
}

#[tokio::test]
async fn what_konnectivity_refuses_at_its_start_is_refused_and_more() {
    let world = World::new().await;
    let ca = format!("--cluster-ca-cert={}", world.file("agents.ca"));
    let with = |more: &[&str]| {
        let mut flags = world.manifest(&[&ca]);
        for flag in more {
            let name = flag.split('=').next().unwrap_or(flag);
            flags.retain(|known| known.split('=').next() != Some(name));
            flags.push((*flag).to_owned());
        }
        flags
    };
    let contention = ["--enable-contention-profiling", "--enable-profiling=false"];
    for (flags, text) in [
        (
            world.manifest(&[]),
            "anybody who reaches the agent port would be one",
        ),
        (with(&["--agent-namespace=a"]), "belong together"),
        (with(&["--server-port=8090"]), "must be 0 with --uds-name"),
        (
            with(&["--server-cert=x", "--server-key=y"]),
            "exclude each other",
        ),
        (with(&["--agent-port=80"]), "not from 1024 to 49151"),
        (with(&["--health-port=60000"]), "not from 1024 to 49151"),
        (with(&["--agent-bind-address=nowhere"]), "not an IP address"),
        (
            with(&["--cluster-key="]),
            "--cluster-cert needs --cluster-key",
        ),
        (with(&["--cluster-cert=/none"]), "/none"),
        (with(&["--kubeconfig=/none"]), "no such file"),
        (
            with(&["--proxy-strategies=random"]),
            "unknown proxy strategy",
        ),
        (with(&contention), "needs --enable-profiling"),
        (with(&["--xfr-channel-size=0"]), "above 0"),
        (with(&["--tls-min-version=1.2"]), "VersionTLS12"),
        (
            with(&["--lease-label=x", "--enable-lease-controller"]),
            "key=value",
        ),
        (with(&["--mode=socks"]), "grpc or http-connect"),
        (with(&["--keepalive-time=1"]), "time span"),
        (with(&["--logtostderr=maybe"]), "true or false"),
        (with(&["--deny-list=/x"]), "needs an identity of our own"),
    ] {
        let error = start_server(&flags).await.err().expect(text);
        assert!(error.contains(text), "{error}: {text}");
    }
    // Both ways of proof at once.
    let both = format!("--cluster-ca-cert={}", world.file("agents.ca"));
    let error = start_server(&world.token_manifest(&[&both]))
        .await
        .err()
        .unwrap();
    assert!(error.contains("exclude each other"), "{error}");
    // And its flags say nothing without the profile.
    let mut flags = with(&[]);
    flags.retain(|flag| !flag.starts_with("--compatibility"));
    flags.extend(["--cert", "c", "--key", "k", "--agent-ca", "a"].map(str::to_owned));
    let error = start_server(&flags).await.err().unwrap();
    assert!(
        error.contains("only with --compatibility=konnectivity"),
        "{error}"
    );
}

#[derive(clap::Parser)]
struct Asked {
    #[command(flatten)]
    doctor: doctor::DoctorArgs,
}

/// The exit code of `towline-server doctor`, asked over a real admin socket.
async fn doctor_of(socket: &str) -> String {
    let asked = Asked::parse_from(["doctor", "--admin-socket", socket]);
    let code = tokio::task::spawn_blocking(move || doctor::run(&asked.doctor));
    format!("{:?}", code.await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_sees_what_is_left_and_when_nothing_is() {
    let world = World::new().await;
    let socket = world.file("admin.sock");
    let more = ["--admin-socket", &socket];
    let server = start_server(&world.token_manifest(&more))
        .await
        .expect("a start");
    let left = format!("{:?}", ExitCode::from(4));
    assert_eq!(doctor_of(&socket).await, left);
    drop(server);
    let none = format!("{:?}", ExitCode::from(1));
    assert_eq!(doctor_of(&world.file("nobody.sock")).await, none);
    let scratch = Scratch::new().unwrap();
    let socket = scratch.join("admin.sock").display().to_string();
    let verified = Plan::on(CarrierKind::Tls)
        .server_flags(&["--admin-socket", &socket])
        .start()
        .await;
    let done = format!("{:?}", ExitCode::SUCCESS);
    assert_eq!(doctor_of(&socket).await, done);
    drop(verified);
}
