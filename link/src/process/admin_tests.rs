//! The admin listener over real sockets, as a prober, a scraper and an operator see it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use prometheus_client::metrics::counter::Counter;

use super::*;
use crate::process::ready::Condition;

#[derive(Default)]
struct Fake {
    drains: AtomicU32,
}

#[async_trait]
impl Daemon for Fake {
    fn status(&self) -> serde_json::Value {
        serde_json::json!({ "links": 3 })
    }

    async fn reload(&self) -> Result<(), String> {
        Err("certificate /a.crt has ended".to_owned())
    }

    fn drain(&self) {
        self.drains.fetch_add(1, Ordering::Relaxed);
    }

    fn stop_now(&self) {}
}

struct Running {
    admin: Option<Admin>,
    socket: PathBuf,
    daemon: Arc<Fake>,
    links: Condition,
    _folder: tempfile::TempDir,
    _data: tokio::runtime::Runtime,
}

fn running(allowed: AllowedUids) -> Running {
    running_as(allowed, None, None)
}

fn running_as(allowed: AllowedUids, second: Option<Second>, compat: Option<Compat>) -> Running {
    let folder = tempfile::tempdir().expect("folder");
    let socket = folder.path().join("admin.sock");
    let data = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .expect("built");
    let config = AdminConfig {
        health: ([127, 0, 0, 1], 0).into(),
        socket: Some(socket.clone()),
        allowed,
        second,
    };
    let mut registry = Registry::default();
    let accepted = AcceptMetrics::register(&mut registry);
    registry.register("towline_test", "A test", Counter::<u64>::default());
    let readiness = Readiness::new();
    let links = readiness.condition("links", "no agent is linked");
    let daemon = Arc::new(Fake::default());
    let live = LiveProbe::new(data.handle().clone());
    let parts = AdminParts {
        registry,
        readiness,
        live,
        daemon: daemon.clone(),
        accepted,
        compat,
    };
    let admin = AdminSockets::bind(config)
        .expect("bound")
        .serve(parts)
        .expect("served");
    Running {
        admin: Some(admin),
        socket,
        daemon,
        links,
        _folder: folder,
        _data: data,
    }
}

impl Running {
    fn tcp(&self, request: &str) -> String {
        let address = self.admin.as_ref().expect("running").health_address();
        exchange(TcpStream::connect(address).expect("connected"), request)
    }

    fn unix(&self, request: &str) -> String {
        exchange(
            UnixStream::connect(&self.socket).expect("connected"),
            request,
        )
    }

    fn get(&self, path: &str) -> String {
        self.tcp(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
    }
}

/// Sends all, reads to the end: the listener closes after one answer.
fn exchange(mut stream: impl Read + Write, request: &str) -> String {
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = Vec::new();
    // A reset after the answer is as good as an end.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).expect("text")
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("no answer")
}

/// A connection from this address of loopback.
fn connect_from(own: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = socket.expect("a socket");
    let own = SocketAddr::from((own, 0));
    socket.bind(&own.into()).expect("bound");
    socket.connect(&to.into()).expect("connected");
    socket.into()
}

#[test]
fn one_address_that_says_nothing_keeps_no_probe_out() {
    let running = running(AllowedUids::default_set());
    let address = running.admin.as_ref().expect("running").health_address();
    let from = |_| connect_from([127, 0, 0, 2], address);
    let silent: Vec<TcpStream> = (0..2 * limits::ADMIN_CONNECTIONS).map(from).collect();
    let begun = std::time::Instant::now();
    assert_eq!(status(&running.get("/healthz")), "200");
    let took = begun.elapsed();
    assert!(took < limits::ADMIN_HEAD_TIMEOUT, "{took:?}");
    let crowded = "towline_connections_refused_total{listener=\"health\",why=\"crowded\"}";
    assert!(running.get("/metrics").contains(crowded));
    drop(silent);
}

#[test]
fn probes_see_life_and_readiness() {
    let running = running(AllowedUids::default_set());
    for path in ["/healthz", "/livez", "/livez?verbose"] {
        assert_eq!(status(&running.get(path)), "200");
    }
    let unready = running.get("/readyz");
    assert_eq!(status(&unready), "503");
    assert!(
        unready.ends_with("[-]links no agent is linked\nnot ready\n"),
        "{unready}"
    );
    running.links.met();
    assert!(running.get("/readyz").ends_with("\r\n\r\nok\n"));
    assert!(
        running
            .get("/readyz?verbose")
            .ends_with("[+]links ok\nready\n")
    );
}

#[test]
fn metrics_are_what_prometheus_asks_for() {
    let running = running(AllowedUids::default_set());
    let answer = running.get("/metrics");
    assert_eq!(status(&answer), "200");
    assert!(
        answer.contains(
            "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"
        )
    );
    assert!(answer.contains("towline_test_total 0\n"), "{answer}");
    assert!(
        answer.contains("towline_connections_total{listener=\"health\"} 1\n"),
        "{answer}"
    );
    assert!(answer.ends_with("# EOF\n"));
    let head = running.tcp("HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(status(&head), "200");
    assert!(head.ends_with("\r\n\r\n"));
}

#[test]
fn strangers_get_looks_only_and_clear_refusals() {
    let running = running(AllowedUids::default_set());
    let post = |path: &str| {
        running.tcp(&format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        ))
    };
    for path in ["/reload", "/drain", "/status", "/", "/metrics/x"] {
        assert_eq!(status(&post(path)), "404", "{path}");
    }
    let answer = post("/metrics");
    assert_eq!(status(&answer), "405");
    assert!(
        answer
            .to_ascii_lowercase()
            .contains("\r\nallow: get, head\r\n"),
        "{answer}"
    );
    let body = running.tcp("GET /readyz HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(status(&body), "413");
    let long = format!(
        "GET /readyz HTTP/1.1\r\nHost: {}\r\n\r\n",
        "x".repeat(limits::ADMIN_HEAD_BYTES * 2)
    );
    assert!(["431", "400", "no answer"].contains(&status(&running.tcp(&long))));
    assert_eq!(status(&running.tcp("\x16\x03\x01 hello\r\n\r\n")), "400");
    assert_eq!(running.daemon.drains.load(Ordering::Relaxed), 0);
}

#[test]
fn an_operator_sees_status_and_gives_orders() {
    let running = running(AllowedUids::default_set());
    let status_page = running.unix("GET /status HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(status_page.ends_with("{\"links\":3}\n"), "{status_page}");
    let reload = running.unix("POST /reload HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(status(&reload), "422");
    assert!(reload.ends_with("certificate /a.crt has ended\n"));
    assert_eq!(
        status(&running.unix("GET /drain HTTP/1.1\r\nHost: x\r\n\r\n")),
        "405"
    );
    assert_eq!(running.daemon.drains.load(Ordering::Relaxed), 0);
    assert_eq!(
        status(&running.unix("POST /drain HTTP/1.1\r\nHost: x\r\n\r\n")),
        "202"
    );
    assert_eq!(running.daemon.drains.load(Ordering::Relaxed), 1);
    assert_eq!(
        status(&running.unix("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")),
        "200"
    );
}

#[test]
fn another_user_is_told_why_not() {
    let other = rustix::process::geteuid().as_raw() + 1;
    let running = running(AllowedUids::from_flags(&[other]).expect("allowed"));
    let answer = running.unix("POST /drain HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(status(&answer), "403");
    assert!(answer.contains("may not use this socket"), "{answer}");
    assert_eq!(running.daemon.drains.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn stopping_closes_both_and_removes_the_socket_although_a_client_stalls() {
    let mut running = running(AllowedUids::default_set());
    let admin = running.admin.take().expect("running");
    let address = admin.health_address();
    let mut stalled = TcpStream::connect(address).expect("connected");
    stalled
        .write_all(b"GET /readyz HTTP/1.1\r\n")
        .expect("sent");
    tokio::time::timeout(Duration::from_secs(20), admin.stop())
        .await
        .expect("stopped");
    assert!(!running.socket.exists());
    assert!(TcpStream::connect(address).is_err());
    let _ = stalled.shutdown(Shutdown::Both);
    // The runtime inside must not be dropped in async code.
    tokio::task::spawn_blocking(move || drop(running))
        .await
        .expect("joined");
}

#[test]
fn a_taken_port_is_a_clear_error() {
    let running = running(AllowedUids::default_set());
    let health = running.admin.as_ref().expect("running").health_address();
    let config = AdminConfig {
        health,
        socket: None,
        allowed: AllowedUids::default_set(),
        second: None,
    };
    let error = AdminSockets::bind(config).err().expect("taken").to_string();
    assert!(
        error.starts_with(&format!("--health-bind {health}: cannot listen: ")),
        "{error}"
    );
}

#[test]
fn in_another_programs_place_its_pages_and_metrics_are_served() {
    use crate::process::classic::{Counter, Description, Families};
    use crate::process::compat::{MetricsAt, Page};
    let mut families = Families::default();
    let family = families.family::<Counter>(Description {
        name: "other_failures_count",
        help: "Failures.",
        labels: &["reason"],
        buckets: &[],
    });
    family.with(&["timeout"]).inc();
    let compat = Compat {
        families,
        ready: Arc::new(|verbose| Page {
            status: if verbose { 200 } else { 503 },
            text: "[+]ping ok\n".to_owned(),
        }),
    };
    let second = Second {
        address: ([127, 0, 0, 1], 0).into(),
        metrics: MetricsAt::Port(8093),
        profiling: true,
    };
    let running = running_as(AllowedUids::default_set(), Some(second), Some(compat));
    let page = running.get("/metrics");
    assert!(
        page.contains("content-type: text/plain; version=0.0.4"),
        "{page}"
    );
    assert!(
        page.contains("# TYPE towline_test_total counter\ntowline_test_total 0\n"),
        "{page}"
    );
    assert!(
        page.contains("# TYPE other_failures_count counter\n"),
        "{page}"
    );
    assert!(
        page.contains("other_failures_count{reason=\"timeout\"} 1\n"),
        "{page}"
    );
    assert!(!page.contains("# EOF"), "{page}");
    assert!(
        running
            .get("/ready?verbose")
            .ends_with("\r\n\r\n[+]ping ok\n")
    );
    assert_eq!(status(&running.get("/ready")), "503");
    assert!(running.get("/healthz").ends_with("\r\n\r\nok"));

    let second = |path: &str| {
        let address = running.admin.as_ref().and_then(Admin::second_address);
        let stream = TcpStream::connect(address.expect("a second port")).expect("connected");
        exchange(
            stream,
            &format!("GET {path} HTTP/1.1\r\nHost: node-1:8094\r\n\r\n"),
        )
    };
    let moved = second("/metrics?x=y");
    assert_eq!(status(&moved), "301");
    assert!(
        moved.contains("location: //node-1:8093/metrics?x=y\r\n"),
        "{moved}"
    );
    assert_eq!(status(&second("/debug/pprof/")), "501");
    assert_eq!(status(&second("/readyz")), "404");
}
