//! README, units and manifests say what the programs really take and tell.
//!
//! The tables in README are made from the programs: when this test fails it prints the block
//! that belongs there.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towline_link::carrier::CarrierKind;
use towline_proto::enrol::{Proof, Token};
use towline_tests::cluster::{Cluster, Plan, node_ip};
use towline_tests::enrol::EnrolWorld;
use towline_tests::target::Behaviour;

const POD: &str = "10.244.0.5:8080";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
        .to_path_buf()
}

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).expect("a README")
}

fn commands() -> [Command; 2] {
    [
        towline_server::args::Args::command(),
        towline_agent::args::Args::command(),
    ]
}

fn cell(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}

fn flag_table(command: &Command) -> String {
    let mut table = String::from("| flag | environment | default | meaning |\n|---|---|---|---|\n");
    for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
        let Some(long) = arg
            .get_long()
            .filter(|long| !["help", "version"].contains(long))
        else {
            continue;
        };
        let env = arg
            .get_env()
            .and_then(|name| name.to_str())
            .expect("every flag has an environment name");
        let default: Vec<_> = arg
            .get_default_values()
            .iter()
            .map(|value| value.to_string_lossy())
            .collect();
        let default = match default.join(", ") {
            none if none.is_empty() => String::new(),
            some => format!("`{some}`"),
        };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        writeln!(
            table,
            "| `--{long}` | `{env}` | {default} | {} |",
            cell(&help)
        )
        .expect("a string");
    }
    table
}

fn assert_in_readme(what: &str, block: &str) {
    assert!(
        readme().contains(block),
        "README.md does not hold the {what}. It is:\n\n{block}"
    );
}

#[test]
fn readme_lists_every_flag() {
    for command in commands() {
        assert_in_readme(
            &format!("flags of {}", command.get_name()),
            &flag_table(&command),
        );
    }
}

/// `--flag` words of a file, without those of comments.
fn flags_in(path: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(path).expect("a file");
    text.lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(|line| line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')))
        .filter_map(|word| word.strip_prefix("--"))
        .filter(|word| word.chars().any(|c| c != '-'))
        .map(str::to_owned)
        .collect()
}

#[test]
fn manifests_and_units_use_only_flags_that_exist() {
    let [server, agent] = commands();
    let known = |command: &Command| -> BTreeSet<String> {
        command
            .get_arguments()
            .filter_map(|arg| arg.get_long())
            .map(str::to_owned)
            .collect()
    };
    // kube-apiserver's own.
    let foreign = "egress-selector-config-file";
    for (command, files) in [
        (
            &server,
            &[
                "server/deploy/static-pod.yaml",
                "server/deploy/sidecar.yaml",
                "systemd/towline-server.service",
            ][..],
        ),
        (
            &agent,
            &[
                "agent/deploy/daemonset.yaml",
                "agent/deploy/daemonset-enrol.yaml",
                "agent/deploy/daemonset-enrol-kubernetes.yaml",
                "systemd/towline-agent.service",
            ][..],
        ),
    ] {
        for file in files {
            let (used, known) = (flags_in(&root().join(file)), known(command));
            let unknown: Vec<_> = used
                .difference(&known)
                .filter(|flag| *flag != foreign)
                .collect();
            assert!(unknown.is_empty(), "{file}: {unknown:?}");
        }
    }
}

/// Nodes come only to a control plane whose pods are ready, and `/readyz` needs a node.
#[test]
fn no_pod_of_the_control_plane_waits_for_a_node_to_become_ready() {
    for file in ["sidecar", "static-pod"] {
        let text = fs::read_to_string(root().join(format!("server/deploy/{file}.yaml"))).unwrap();
        let (_, probe) = text.split_once("readinessProbe:").expect("a probe");
        let get = probe.lines().find(|line| line.contains("httpGet:"));
        assert!(
            get.is_some_and(|line| line.contains("path: /healthz")),
            "{file}: {get:?}"
        );
        assert!(!text.contains("path: /readyz"), "{file}");
    }
}

#[test]
fn environment_files_of_the_units_name_only_variables_that_exist() {
    for command in commands() {
        let known: BTreeSet<_> = command
            .get_arguments()
            .filter_map(|arg| arg.get_env())
            .map(|env| env.to_string_lossy().into_owned())
            .collect();
        let name = command.get_name().trim_start_matches("towline-").to_owned();
        let text = fs::read_to_string(root().join(format!("systemd/towline-{name}.env.example")))
            .or_else(|_| fs::read_to_string(root().join(format!("systemd/{name}.env.example"))))
            .expect("an example");
        for line in text.lines().map(|line| line.trim_start_matches(['#', ' '])) {
            if let Some((variable, _)) = line
                .split_once('=')
                .filter(|(variable, _)| variable.starts_with("TOWLINE_"))
            {
                assert!(known.contains(variable), "{name}: {variable}");
            }
        }
    }
}

async fn scrape(address: std::net::SocketAddr) -> String {
    let mut stream = tokio::net::TcpStream::connect(address)
        .await
        .expect("the health port");
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .expect("a request");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("an answer");
    text
}

/// Every family of both daemons after a dial and a refusal: name, type, help.
fn families(scraped: &str, into: &mut BTreeSet<(String, String, String)>) {
    for line in scraped.lines() {
        let Some((name, help)) = line
            .strip_prefix("# HELP ")
            .and_then(|rest| rest.split_once(' '))
        else {
            continue;
        };
        let kind = scraped
            .lines()
            .find_map(|line| {
                line.strip_prefix("# TYPE ")?
                    .strip_prefix(name)?
                    .strip_prefix(' ')
            })
            .unwrap_or("unknown");
        into.insert((name.to_owned(), kind.to_owned(), cell(help)));
    }
}

/// Families that only show when something failed: read where they are registered. All are counters.
fn failures(into: &mut BTreeSet<(String, String, String)>) {
    let mut folders: Vec<_> = ["link", "server", "agent"]
        .map(|part| root().join(part).join("src"))
        .into();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                registered(&fs::read_to_string(path).expect("a source"), into);
            }
        }
    }
}

/// `register("towline_...", "help", ...)`, on as many lines as it takes.
fn registered(source: &str, into: &mut BTreeSet<(String, String, String)>) {
    for part in source.split("register(").skip(1) {
        let mut texts = part.split('"');
        let [space, name, comma, help] = [(); 4].map(|()| texts.next().unwrap_or_default());
        let counts = space.trim().is_empty() && comma.trim() == ",";
        if !counts
            || name == "towline_test"
            || !name.starts_with("towline_")
            || into.iter().any(|known| known.0 == name)
        {
            continue;
        }
        assert!(
            [
                "failed",
                "failures",
                "refused",
                "denied",
                "ended",
                "closed",
                "dropped",
                "reconnects",
                "attempts",
                "packets",
                "probes"
            ]
            .iter()
            .any(|word| name.ends_with(word)),
            "{name} is not seen in the scenario above and does not look like a counter"
        );
        into.insert((
            name.to_owned(),
            "counter".to_owned(),
            cell(&format!("{help}.")),
        ));
    }
}

async fn used_cluster(carrier: CarrierKind) -> Cluster {
    let cluster = Plan::on(carrier).gateway().start().await;
    let _echo = cluster.target(POD, Behaviour::SpeaksFirst("hello")).await;
    drop(cluster.apiserver().pipe(POD).await);
    drop(cluster.apiserver_tcp().pipe(POD).await);
    cluster.apiserver().refusal("n9:10250").await;
    let _kubelet = cluster.asking_kubelet().await;
    cluster.front_end().await.ask("GET", "/healthz").await;
    let pair = cluster.stranger.kubelet_leaf("n1", &[node_ip(1)]).sign();
    let _impostor = cluster.kubelet_with(1, &pair).await;
    cluster.front_end().await.ask("GET", "/healthz").await;
    cluster
}

/// What is counted of one agent that enrols, after one that is refused.
async fn enrolment(into: &mut BTreeSet<(String, String, String)>) {
    let world = EnrolWorld::start(CarrierKind::Tls, &[]).await;
    let nothing = Token::new("nothing").expect("a token");
    world.refused(Proof::ServiceAccount(nothing), None).await;
    world.kube.put_node("n1", &["10.0.0.1"]);
    let _ = world.account_token("token", "n1");
    let token = world.token_file("token", "token").display().to_string();
    let ca = world.scratch.join("servers.ca").display().to_string();
    let flags = ["--enrol-token-file", &token, "--server-ca", &ca];
    let agent = world.agent(1, &world.agent_args("n1", &flags)).await;
    families(&scrape(world.server().health_address()).await, into);
    families(&scrape(agent.health_address()).await, into);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readme_lists_every_metric() {
    let mut all = BTreeSet::new();
    for carrier in [CarrierKind::Quic, CarrierKind::Tls] {
        let cluster = used_cluster(carrier).await;
        families(&scrape(cluster.server(0).health_address()).await, &mut all);
        families(
            &scrape(cluster.agent("n1").health_address()).await,
            &mut all,
        );
    }
    enrolment(&mut all).await;
    failures(&mut all);
    assert!(all.len() > 20, "{all:?}");
    let mut table = String::from("| metric | type | meaning |\n|---|---|---|\n");
    for (name, kind, help) in &all {
        writeln!(table, "| `{name}` | {kind} | {help} |").expect("a string");
    }
    assert_in_readme("metrics", &table);
}
