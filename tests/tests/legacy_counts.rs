//! How many servers an agent of the legacy mode keeps a stream to: what they say, what Leases say, and
//! looking on for ever.

use std::time::{Duration, SystemTime};

use serde_json::json;
use towline_agent::run::Agent;
use towline_link::kube::moment::Moment;
use towline_tests::konnectivity::metrics::Page;
use towline_tests::kube::FakeKube;
use towline_tests::legacy_server::{FakeProxyServer, Script};
use towline_tests::legacy_world::{World, page, until};

const NAMESPACE: &str = "kube-system";

fn ids(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

/// Waits until the agent wants so many streams and has them.
async fn keeps(agent: &Agent, count: usize) {
    let of = |name| format!("konnectivity_network_proxy_agent_{name} {count}\n");
    let (wants, has) = (of("known_server_count"), of("open_server_connections"));
    let what = format!("{count} servers");
    until(agent, &what, |_, metrics| {
        metrics.contains(&wants) && metrics.contains(&has)
    })
    .await;
}

#[tokio::test]
async fn sync_forever_finds_a_server_that_nobody_has_announced() {
    let world = World::new();
    // The balancer chooses the same one for a while; it says that there is one server.
    let script = Script {
        ids: ids(&["a", "a", "a", "b"]),
        ..Script::default()
    };
    let server = world.server(script).await;
    let agent = world.agent(server.address(), &["--sync-forever"]).await;
    let attempts = "towline_agent_legacy_attempts_total";
    until(&agent, "both servers", |_, metrics| {
        let page = Page(metrics.to_owned());
        let of = |outcome| page.sum(attempts, &[("outcome", outcome)]);
        // And it goes on looking.
        of("connected") == Some(2.0) && of("duplicate") >= Some(4.0)
    })
    .await;
    // It wants one, as it was told, and keeps all that it has met.
    until(&agent, "one wanted, two kept", |_, metrics| {
        metrics.contains("konnectivity_network_proxy_agent_known_server_count 1\n")
            && metrics.contains("konnectivity_network_proxy_agent_open_server_connections 2\n")
    })
    .await;
}

/// An agent that counts Leases, and a server that says how many there are.
struct Counted {
    kube: FakeKube,
    agent: Agent,
    _server: FakeProxyServer,
    _world: World,
}

impl Counted {
    async fn start(leases: usize, said: usize, more: &[&str]) -> Self {
        let world = World::new();
        let kube = FakeKube::start(&world.authority).await.expect("an API");
        kube.caller("ours", "system:serviceaccount:kube-system:agent");
        let (kubeconfig, _) = kube.kubeconfig(&world.scratch, "ours").unwrap();
        let script = Script {
            ids: ids(&["a", "b", "c", "d", "e", "f"]),
            count: said.to_string(),
            ..Script::default()
        };
        let server = world.server(script).await;
        for number in 0..leases {
            put(&kube, number);
        }
        let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
        let flags = [&["--count-server-leases", kubeconfig.as_str()], more].concat();
        let agent = world.agent(server.address(), &flags).await;
        Self {
            kube,
            agent,
            _server: server,
            _world: world,
        }
    }
}

fn put(kube: &FakeKube, number: usize) {
    let name = format!("lease-{number}");
    let renewed = Moment(SystemTime::now() + Duration::from_secs(600));
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name, "labels": {"k8s-app": "konnectivity-server"}},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 30, "renewTime": renewed},
    });
    kube.put_lease(NAMESPACE, lease);
}

#[tokio::test]
async fn leases_count_and_not_what_servers_say() {
    for source in [
        &[][..],
        &["--server-count-source=default"],
        &["--server-count-source="],
    ] {
        let counted = Counted::start(1, 3, source).await;
        keeps(&counted.agent, 1).await;
        // It has been told of three by now; another Lease makes two.
        put(&counted.kube, 1);
        keeps(&counted.agent, 2).await;
        // What it asked of the API is counted: one list, and a watch that goes on.
        let metrics = Page(page(&counted.agent, "/metrics").await);
        let good = [("http_response_code", "200"), ("reason", "")];
        for (family, labels, count) in [
            ("lease_lists_total", &good[..], 1.0),
            ("lease_watches_total", &good, 1.0),
            ("lease_list_latency_seconds_count", &good[..1], 1.0),
        ] {
            let name = format!("konnectivity_network_proxy_agent_{family}");
            assert_eq!(metrics.sum(&name, labels), Some(count), "{name}");
        }
    }
}

#[tokio::test]
async fn with_max_the_larger_number_counts() {
    let counted = Counted::start(1, 3, &["--server-count-source=max"]).await;
    keeps(&counted.agent, 3).await;
    for number in 1..4 {
        put(&counted.kube, number);
    }
    keeps(&counted.agent, 4).await;
    // Without Leases to count, what servers say is all there is.
    let world = World::new();
    let script = Script {
        ids: ids(&["a", "b", "c"]),
        count: "2".to_owned(),
        ..Script::default()
    };
    let server = world.server(script).await;
    let source = ["--server-count-source=max"];
    let agent = world.agent(server.address(), &source).await;
    keeps(&agent, 2).await;
}
