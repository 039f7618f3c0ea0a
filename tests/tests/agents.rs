//! Which agent gets a dial, and what shows when agents replace each other: whole servers and
//! agents, a grants file as an operator writes it.

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, Once};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use towline_tests::cluster::{Cluster, Plan, links_of};
use towline_tests::scenario::{eventually, expect};
use towline_tests::scenarios;
use towline_tests::scratch::{self, Scratch};
use towline_tests::target::Behaviour;

/// A pod whose node nobody knows.
const POD: &str = "10.244.1.7:8080";

async fn metrics(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.expect("the health port");
    let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.expect("a request");
    let mut page = String::new();
    stream.read_to_string(&mut page).await.expect("a page");
    page
}

/// The value of a series without labels.
fn series(page: &str, name: &str) -> Option<u64> {
    let line = page.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().parse().ok()
}

/// Dials the pod and tells which agents carry a dial then.
async fn carried_by(cluster: &Cluster) -> Vec<&'static str> {
    let mut pipe = cluster.apiserver().pipe(POD).await;
    pipe.write_all(b"ping").await.expect("sent");
    let mut echo = [0; 4];
    let read = expect("the echo", pipe.read_exact(&mut echo)).await;
    read.expect("an echo");
    let carrying = ["n1", "n2"]
        .into_iter()
        .filter(|name| cluster.agent(name).live_dials() > 0)
        .collect();
    pipe.shutdown().await.expect("half-closed");
    let end = expect("the end", pipe.read(&mut [0])).await;
    assert_eq!(end.expect("in order"), 0);
    eventually("the end of the dial", || async {
        let live = ["n1", "n2"].map(|name| cluster.agent(name).live_dials());
        (live == [0, 0]).then_some(())
    })
    .await;
    carrying
}

/// Bytes that come back through the only agent.
async fn carried_by_n1(cluster: &Cluster) -> usize {
    let mut pipe = cluster.apiserver().pipe(POD).await;
    pipe.write_all(b"ping").await.expect("sent");
    let mut echo = [0; 4];
    let read = expect("the echo", pipe.read_exact(&mut echo)).await;
    read.expect("an echo")
}

static ERRORS: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Where the log's errors of all scenarios of this file go.
struct Errors;

impl io::Write for Errors {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        ERRORS.lock().expect("no panic inside").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn listen_to_errors() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::ERROR)
            .with_ansi(false)
            .with_writer(|| Errors)
            .init();
    });
}

fn errors() -> String {
    let bytes = ERRORS.lock().expect("no panic inside").clone();
    String::from_utf8(bytes).expect("the log is text")
}

fn grants(gateway: &str) -> String {
    format!("agents:\n  - name: {gateway}\n    gateway: true\n")
}

scenarios! {
    async fn only_a_gateway_of_the_grants_file_serves_what_nobody_owns(carrier) {
        let scratch = Scratch::new().expect("a folder");
        let file = scratch.write("grants.yaml", grants("n2")).expect("a file");
        let flags = ["--grants", file.to_str().expect("a name in UTF-8")];
        let cluster = Plan::on(carrier).agents(2).server_flags(&flags).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        for _ in 0..6 {
            assert_eq!(carried_by(&cluster).await, ["n2"]);
        }
        // A broken file changes nothing and is told.
        scratch::replace(&file, "agents:\n  - name: n1\n    gatway: true\n").expect("a file");
        let errors = cluster.reload().await;
        assert!(errors.iter().any(|error| error.contains("gatway")), "{errors:?}");
        assert_eq!(carried_by(&cluster).await, ["n2"]);
        // A sound one counts from the next dial on.
        scratch::replace(&file, grants("n1")).expect("a file");
        assert_eq!(cluster.reload().await, [""; 0]);
        for _ in 0..6 {
            assert_eq!(carried_by(&cluster).await, ["n1"]);
        }
        // And one that names nobody leaves nobody.
        scratch::replace(&file, grants("other-*")).expect("a file");
        assert_eq!(cluster.reload().await, [""; 0]);
        let refused = cluster.apiserver().refusal(POD).await;
        assert_eq!(refused.status, 503, "{refused:?}");
    }

    async fn an_agent_says_what_is_wrong_with_it(carrier) {
        let scratch = Scratch::new().expect("a folder");
        let good = "version: 1\nrules:\n  - {name: all, action: allow}\n";
        let file = scratch.write("policy.yaml", good).expect("a file");
        let flags = ["--policy", file.to_str().expect("a name in UTF-8")];
        let cluster = Plan::on(carrier).agent_flags(&flags).start().await;
        let said = || {
            let agents = cluster.server(0).status().agents;
            let links = agents.into_iter().flat_map(|agent| agent.links);
            links.flat_map(|link| link.reports).collect::<Vec<_>>()
        };
        let line = "towline_server_agents_reporting{condition=\"policy-stale\"}";
        assert_eq!(said(), [""; 0]);
        scratch::replace(&file, "version: 1\nrules: {}\n").expect("a file");
        assert_eq!(cluster.reload().await.len(), 1);
        eventually("a word about it", || async { (said() == ["policy-stale"]).then_some(()) }).await;
        let page = metrics(cluster.server(0).health_address()).await;
        assert_eq!(series(&page, line), Some(1), "{page}");
        eventually("a note, and no more", || async {
            let report = cluster.server(0).readiness().report();
            let noted = report.to_string().contains("[!]links 1 agents report something about themselves (n1: policy-stale)");
            (report.is_ready() && noted).then_some(())
        }).await;
        // It is asked as before.
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        assert_eq!(carried_by_n1(&cluster).await, 4);
        scratch::replace(&file, good).expect("a file");
        assert_eq!(cluster.reload().await, [""; 0]);
        eventually("silence about it", || async { said().is_empty().then_some(()) }).await;
    }

    async fn bytes_are_counted_while_a_dial_goes_on(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let mut pipe = cluster.apiserver().pipe(POD).await;
        pipe.write_all(b"ping").await.expect("sent");
        let mut echo = [0; 4];
        let read = expect("the echo", pipe.read_exact(&mut echo)).await;
        read.expect("an echo");
        eventually("the server's count", || async {
            let status = cluster.server(0).status();
            let page = metrics(cluster.server(0).health_address()).await;
            let shown = ["to-target", "from-target"].map(|direction| {
                series(&page, &format!("towline_server_bytes_total{{direction=\"{direction}\"}}"))
            });
            let told = (status.bytes_to_targets, status.bytes_from_targets);
            (told == (4, 4) && shown == [Some(4), Some(4)]).then_some(())
        }).await;
        eventually("the agent's count", || async {
            let page = metrics(cluster.agent("n1").health_address()).await;
            let shown = ["in", "out"].map(|direction| {
                series(&page, &format!("towline_agent_dial_bytes_total{{direction=\"{direction}\"}}"))
            });
            (shown == [Some(4), Some(4)]).then_some(())
        }).await;
        drop(pipe);
        eventually("the end of the dial", || async {
            (cluster.agent("n1").live_dials() == 0).then_some(())
        }).await;
        // What is over counts on, once.
        let page = metrics(cluster.agent("n1").health_address()).await;
        assert_eq!(series(&page, "towline_agent_dial_bytes_total{direction=\"in\"}"), Some(4));
    }

    async fn more_than_three_replacements_a_minute_raise_an_alarm(carrier) {
        listen_to_errors();
        let cluster = Plan::on(carrier).start().await;
        // Two machines that hold a certificate of one name each.
        let other = cluster.agent_pair("n1").write(cluster.scratch(), "other").expect("files");
        let newest = || {
            let agents = cluster.server(0).status().agents;
            let link = agents.into_iter().flat_map(|agent| agent.links).next().expect("a link");
            (link.serial, link.address)
        };
        let mut came = Vec::new();
        let page = || metrics(cluster.server(0).health_address());
        let count = |page: &str| {
            ["towline_server_agent_replacements_total", "towline_server_agent_replacement_alarms_total"]
                .map(|name| series(page, name).expect("a counter"))
        };
        let mut instances = Vec::new();
        for newer in 1..=4 {
            let files = if newer % 2 == 0 { &other } else { cluster.files("n1") };
            let instance = cluster.second_agent("n1", files).await;
            expect("the newer instance's link", links_of(&instance, 1)).await;
            // One that merely drains is still connected: kept, as on a second machine.
            instances.push(instance);
            let alarms = u64::from(newer > 3);
            eventually("the replacement", || async {
                (count(&page().await) == [newer, alarms]).then_some(())
            }).await;
            came.push(newest());
        }
        let ((serial_before, before), (serial, address)) = (&came[2], &came[3]);
        assert_ne!(serial, serial_before);
        let told = [
            format!("serial={serial} address={address} "),
            format!("serial_before={serial_before} address_before={before} "),
        ];
        let said = errors();
        let alarm = said.lines().find(|line| told.iter().all(|words| line.contains(words)));
        let alarm = alarm.unwrap_or_else(|| panic!("no alarm with {told:?} in:\n{said}"));
        assert!(alarm.contains("agent=n1 ") && alarm.contains("hold the same key"), "{alarm}");
    }
}
