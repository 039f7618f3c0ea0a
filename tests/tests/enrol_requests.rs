//! What a server does about signing requests of agents: each rule and its refusal, requests that
//! are not ours, and an API that does not do as it should.

use serde_json::{Value, json};
use towline_link::carrier::CarrierKind;
use towline_link::kube::csr::{SigningRequest, encoded};
use towline_pki::agent_request::AgentRequest;
use towline_pki::{KeyKind, Leaf, PrivateKey, RequestSpec, pem};
use towline_proto::limits;
use towline_tests::cluster::node_ip;
use towline_tests::enrol::{ACCOUNT_USER, EnrolWorld};
use towline_tests::kube::signing::{decisions, pod_extra};
use towline_tests::scenario::{eventually, expect};

const ON: &str = "--enrol-signing-requests";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

async fn world(flags: &[&str]) -> EnrolWorld {
    let mut all = vec![ON];
    all.extend(flags);
    let world = EnrolWorld::start(CarrierKind::Tls, &all).await;
    for node in ["n1", "n2", "n3"] {
        let number = node.trim_start_matches('n');
        world.kube.put_node(node, &[&format!("10.0.0.{number}")]);
    }
    world
}

fn spec(node: &str) -> RequestSpec {
    let cluster = "kit.example".parse().unwrap();
    AgentRequest::spec(&node.parse().unwrap(), Some(&cluster))
}

fn pem_of(spec: &RequestSpec) -> String {
    let key = PrivateKey::generate(KeyKind::default()).unwrap();
    spec.make(&key).unwrap()
}

/// As the API server writes what the agent's pod on a node sent.
fn object(name: &str, node: &str, spec: &RequestSpec) -> Value {
    json!({
        "metadata": {"name": name, "annotations": {"kept": "yes"}},
        "spec": {
            "request": encoded(pem_of(spec).as_bytes()),
            "signerName": "towline.dev/agent",
            "usages": ["digital signature", "client auth"],
            "username": format!("system:serviceaccount:{ACCOUNT_USER}"),
            "groups": ["system:serviceaccounts", "system:authenticated"],
            "extra": pod_extra(node),
        },
        "status": {},
    })
}

async fn decided(world: &EnrolWorld, name: &str, what: &str) -> Value {
    let seen = |all: &[Value]| {
        all.iter()
            .filter(|one| one["metadata"]["name"] == name)
            .any(|one| match what {
                "certificate" => one["status"]["certificate"].is_string(),
                word => decisions(one).contains(&word.to_owned()),
            })
    };
    let what = format!("{name}: {what}");
    expect(&what, world.kube.until_requests(seen)).await;
    world.kube.request(name).unwrap()
}

fn condition(request: &Value) -> (String, String) {
    let last = request["status"]["conditions"].as_array().unwrap().last();
    let text = |key: &str| last.unwrap()[key].as_str().unwrap_or_default().to_owned();
    (text("reason"), text("message"))
}

fn leaf(request: &Value) -> Leaf {
    let read: SigningRequest = serde_json::from_value(request.clone()).unwrap();
    let text = read.certificate().unwrap();
    Leaf::parse(&pem::certificates(&text).unwrap()[0]).unwrap()
}

async fn denied(world: &EnrolWorld, object: Value, cause: &str) {
    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
    world.kube.put_request(object);
    let request = decided(world, &name, "Denied").await;
    let (reason, message) = condition(&request);
    assert_eq!(reason, cause, "{name}: {message}");
    assert!(message.len() <= limits::KUBE_TEXT_BYTES && !message.contains('\u{1b}'));
    assert_eq!(request["status"]["certificate"], Value::Null, "{name}");
    let refused = |line: &Value| line["event"] == "enrolment" && line["request"] == name.as_str();
    let record = world.audit().record("a refusal", refused).await;
    assert_eq!(
        (&record["outcome"], &record["proof"]),
        (&"refused".into(), &"signing-request".into()),
        "{record}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_never_be_right_is_denied_with_its_reason_and_recorded() {
    let world = world(&[]).await;
    let with = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut object = object(name, "n1", &spec("n1"));
        change(&mut object);
        object
    };
    let asks = |name: &str, change: &dyn Fn(&mut RequestSpec)| {
        let mut spec = spec("n1");
        change(&mut spec);
        object(name, "n1", &spec)
    };
    let user = |name: &'static str| {
        move |o: &mut Value| o["spec"]["username"] = json!(format!("system:serviceaccount:{name}"))
    };
    let cases: Vec<(&str, Value)> = vec![
        ("OtherNode", object("node", "n1", &spec("n2"))),
        (
            "ServiceAccount",
            with("account", &user("kube-system:default")),
        ),
        (
            "ServiceAccount",
            with("namespace", &user("default:towline-agent")),
        ),
        (
            "ServiceAccount",
            with("person", &|o| {
                o["spec"]["username"] = json!("alice\u{1b}[31m")
            }),
        ),
        (
            "ServiceAccount",
            with("kubelet", &|o| {
                o["spec"]["username"] = json!("system:node:n1")
            }),
        ),
        (
            "Unbound",
            with("legacy", &|o| o["spec"]["extra"] = json!({})),
        ),
        (
            "Unbound",
            with("two-pods", &|o| {
                o["spec"]["extra"][POD_UID] = json!(["a", "b"])
            }),
        ),
        // The node-name is not one: it is not guessed from the pod whose name nobody gave.
        (
            "Unbound",
            with("two-nodes", &|o| {
                o["spec"]["extra"] = json!({POD_UID: ["u"], NODE_NAME: ["n1", "n2"]});
            }),
        ),
        (
            "Usages",
            with("server", &|o| {
                o["spec"]["usages"] = json!(["digital signature", "server auth"]);
            }),
        ),
        (
            "Usages",
            with("more", &|o| {
                o["spec"]["usages"] = json!(["digital signature", "client auth", "server auth"]);
            }),
        ),
        (
            "Expiration",
            with("short", &|o| o["spec"]["expirationSeconds"] = json!(599)),
        ),
        (
            "Unreadable",
            with("junk", &|o| o["spec"]["request"] = json!("bm90aGluZw==")),
        ),
        (
            "Subject",
            asks("masters", &|s| s.organisation = "system:masters".into()),
        ),
        (
            "Subject",
            asks("user", &|s| s.common_name = "system:node:n1".into()),
        ),
        (
            "Names",
            asks("role", &|s| {
                s.uris = vec!["spiffe://kit.example/towline/server/n1".into()]
            }),
        ),
        (
            "Names",
            asks("cluster", &|s| {
                s.uris = vec!["spiffe://other.example/towline/agent/n1".into()]
            }),
        ),
        (
            "Names",
            asks("dns", &|s| s.dns.push("kubernetes.default.svc".into())),
        ),
        ("Names", asks("ip", &|s| s.ips.push(node_ip(2)))),
        ("NoNode", object("gone", "n9", &spec("n9"))),
    ];
    for (cause, object) in cases {
        denied(&world, object, cause).await;
    }
    world.deny("spiffe://kit.example/towline/agent/n1\n").await;
    denied(&world, object("deny-list", "n1", &spec("n1")), "DenyListed").await;
    world
        .counted("towline_server_csr_refusals_total{signer=\"agent\",cause=\"DenyListed\"} 1")
        .await;
    let line =
        "towline_server_enrolments_refused_total{proof=\"signing-request\",reason=\"denied\"} 1";
    world.counted(line).await;
    // Each denial was an answer.
    let seconds = "towline_server_enrolment_seconds_count{proof=\"signing-request\"} 20";
    world.counted(seconds).await;
    // Nothing was issued, and nothing written down.
    let ledger = std::fs::read_to_string(world.scratch.join("state/issued.jsonl"));
    assert!(ledger.unwrap_or_default().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_for_other_signers_are_not_touched() {
    let world = world(&[]).await;
    for (name, signer) in [
        ("serving", "kubernetes.io/kubelet-serving"),
        ("client", "kubernetes.io/kube-apiserver-client"),
        ("alike", "towline.dev/agents"),
        ("other", "other.example/agent"),
    ] {
        let mut object = object(name, "n1", &spec("n2"));
        object["spec"]["signerName"] = json!(signer);
        world.kube.put_request(object);
    }
    world.kube.put_request(object("ours", "n1", &spec("n1")));
    decided(&world, "ours", "certificate").await;
    for name in ["serving", "client", "alike", "other"] {
        let request = world.kube.request(name).unwrap();
        assert!(decisions(&request).is_empty(), "{name}");
        assert_eq!(request["status"]["certificate"], Value::Null);
    }
    let written = world.kube.requests();
    let written: Vec<_> = written
        .iter()
        .filter(|one| one.starts_with("PUT"))
        .collect();
    assert!(
        written.iter().all(|one| one.contains("/ours/")),
        "{written:?}"
    );
    let request = world.kube.request("ours").unwrap();
    assert_eq!(request["metadata"]["annotations"]["kept"], "yes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_name_of_ones_own_is_the_only_one_that_counts() {
    let world = world(&["--enrol-signer", "corp.example/towline/agents"]).await;
    world.kube.put_request(object("default", "n1", &spec("n1")));
    let mut object = object("own", "n1", &spec("n1"));
    object["spec"]["signerName"] = json!("corp.example/towline/agents");
    world.kube.put_request(object);
    decided(&world, "own", "certificate").await;
    assert!(decisions(&world.kube.request("default").unwrap()).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_life_is_what_is_asked_for_and_at_most_ours() {
    let world = world(&[]).await;
    for (name, seconds, expected) in [
        ("none", None, 86_400),
        ("least", Some(600), 600),
        ("hour", Some(3_600), 3_600),
        ("year", Some(365 * 86_400), 86_400),
    ] {
        let mut object = object(name, "n1", &spec("n1"));
        if let Some(seconds) = seconds {
            object["spec"]["expirationSeconds"] = json!(seconds);
        }
        let before = std::time::SystemTime::now();
        world.kube.put_request(object);
        let leaf = leaf(&decided(&world, name, "certificate").await);
        let life = leaf.not_after.duration_since(before).unwrap().as_secs();
        assert!(
            (expected - 5..=expected + 30).contains(&life),
            "{name}: {life}"
        );
        assert_eq!(leaf.ip_sans, [node_ip(1)]);
    }
}

/// Clusters before 1.30 do not say on which node a pod is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_nodes_name_the_pod_says_it() {
    let world = world(&[]).await;
    let pod = |uid: &str, account: &str, node: &str| json!({"metadata": {"uid": uid}, "spec": {"nodeName": node, "serviceAccountName": account}});
    let path = "/api/v1/namespaces/kube-system/pods/agent-n1";
    let old = |name: &str, node: &str| {
        let mut object = object(name, "n1", &spec(node));
        let extra = object["spec"]["extra"].as_object_mut().unwrap();
        extra.remove(NODE_NAME);
        object
    };
    denied(&world, old("no-pod", "n1"), "Unbound").await;
    world
        .kube
        .plain(path, Some(pod("another", "towline-agent", "n1")));
    denied(&world, old("other-pod", "n1"), "Unbound").await;
    world.kube.plain(path, Some(pod("uid-n1", "default", "n1")));
    denied(&world, old("other-account", "n1"), "ServiceAccount").await;
    world
        .kube
        .plain(path, Some(pod("uid-n1", "towline-agent", "")));
    denied(&world, old("unscheduled", "n1"), "Unbound").await;
    world
        .kube
        .plain(path, Some(pod("uid-n1", "towline-agent", "n1")));
    denied(&world, old("other-node", "n2"), "OtherNode").await;
    world.kube.put_request(old("good", "n1"));
    let leaf = leaf(&decided(&world, "good", "certificate").await);
    assert_eq!(leaf.identity.name.as_str(), "n1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_of_another_node_refuses_the_newcomer() {
    let world = world(&[]).await;
    world.kube.put_request(object("first", "n1", &spec("n1")));
    decided(&world, "first", "certificate").await;
    world.kube.put_node("n2", &["10.0.0.2", "10.0.0.1"]);
    denied(&world, object("second", "n2", &spec("n2")), "AddressTaken").await;
    world.kube.put_node("n2", &["10.0.0.2"]);
    world.kube.put_request(object("third", "n2", &spec("n2")));
    let leaf = leaf(&decided(&world, "third", "certificate").await);
    assert_eq!(leaf.ip_sans, [node_ip(2)]);
}

/// Neither of the two has an agent yet: the one whose Node came first has the address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_of_another_node_object_refuses_the_newcomer() {
    let world = world(&[]).await;
    // Before that it is not known who was first.
    world.counted("towline_server_nodes 3").await;
    world.kube.put_node("n2", &["10.0.0.2", "10.0.0.1"]);
    denied(&world, object("second", "n2", &spec("n2")), "AddressTaken").await;
    world
        .counted("towline_server_enrolment_addresses_contested_total{by=\"node\"} 1")
        .await;
    world.kube.put_request(object("first", "n1", &spec("n1")));
    let leaf = leaf(&decided(&world, "first", "certificate").await);
    assert_eq!(leaf.ip_sans, [node_ip(1)]);
}

const TOKEN: &str = "authentication.kubernetes.io/credential-id";

/// As at the door: the API says which token it was, if not what it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_was_used_makes_no_second_holder() {
    let world = world(&[]).await;
    let with = |name: &str, token: Option<&str>| {
        let mut object = object(name, "n1", &spec("n1"));
        let extra = &mut object["spec"]["extra"];
        match token {
            Some(token) => extra[TOKEN] = json!([token]),
            None => drop(extra.as_object_mut().unwrap().remove(TOKEN)),
        }
        object
    };
    world.kube.put_request(with("first", Some("JTI=a")));
    decided(&world, "first", "certificate").await;
    denied(&world, with("stolen", Some("JTI=a")), "Replayed").await;
    // Its own key again, whose certificate was lost on the way.
    let mut again = world.kube.request("first").unwrap();
    again["metadata"] = json!({"name": "again"});
    again["status"] = json!({});
    world.kube.put_request(again);
    decided(&world, "again", "certificate").await;
    // The kubelet has made another one since, and the agent lost its key.
    world.kube.put_request(with("renewed", Some("JTI=b")));
    decided(&world, "renewed", "certificate").await;
    // Before Kubernetes 1.30 nothing is said of it.
    world.kube.put_request(with("old", None));
    decided(&world, "old", "certificate").await;
}

/// Both are judged before either has a certificate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_requests_by_one_token_at_once_one_is_served() {
    let world = world(&[]).await;
    let names: Vec<String> = (0..8).map(|number| format!("r{number}")).collect();
    for name in &names {
        let mut object = object(name, "n1", &spec("n1"));
        object["spec"]["extra"][TOKEN] = json!(["JTI=a"]);
        world.kube.put_request(object);
    }
    let served = |all: &[Value]| {
        let served = all
            .iter()
            .filter(|one| one["status"]["certificate"].is_string());
        served.count()
    };
    let first = world.kube.until_requests(|all| served(all) > 0);
    expect("a certificate", first).await;
    let refused = |all: &[Value]| {
        let refused = |one: &&Value| {
            let words = decisions(one);
            words.contains(&"Denied".to_owned()) || words.contains(&"Failed".to_owned())
        };
        all.iter().filter(refused).count()
    };
    // Those that were approved meanwhile are looked at again a minute later.
    let approved = |all: &[Value]| {
        let waits = |one: &&Value| {
            decisions(one) == ["Approved"] && !one["status"]["certificate"].is_string()
        };
        all.iter().filter(waits).count()
    };
    let all = world
        .kube
        .until_requests(|all| refused(all) + approved(all) + served(all) == names.len());
    expect("the others", all).await;
    let line = "towline_server_enrolments_total{proof=\"signing-request\"} 1";
    world.counted(line).await;
    assert_eq!(served(&world.kube.signing_requests()), 1);
    let ledger = std::fs::read_to_string(world.scratch.join("state/issued.jsonl")).unwrap();
    assert_eq!(ledger.lines().count(), 1, "{ledger}");
}

/// It waits for the list, not for its next turn a minute later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_nodes_are_not_known_a_request_waits() {
    let mut world = EnrolWorld::prepared(CarrierKind::Tls, &[ON]).await;
    world.kube.withdraw("all-nodes");
    world.kube.put_node("n1", &["10.0.0.1"]);
    world.restart().await.unwrap();
    world.kube.put_request(object("early", "n1", &spec("n1")));
    let waits = "towline_server_csr_refusals_total{signer=\"agent\",cause=\"Unavailable\"} 1";
    world.counted(waits).await;
    assert!(decisions(&world.kube.request("early").unwrap()).is_empty());
    // Not before it has an answer.
    let seconds = "towline_server_enrolment_seconds_count{proof=\"signing-request\"}";
    assert!(!world.page("/metrics").await.contains(seconds));
    world.kube.grant("all-nodes");
    let leaf = leaf(&decided(&world, "early", "certificate").await);
    assert_eq!(leaf.ip_sans, [node_ip(1)]);
}

/// Whoever may approve is not believed for that: what is signed has to be right all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_else_approved_is_judged_before_it_is_signed() {
    let world = world(&[]).await;
    let approved = |name: &str, node: &str| {
        let mut object = object(name, "n1", &spec(node));
        object["status"]["conditions"] =
            json!([{"type": "Approved", "status": "True", "reason": "Person"}]);
        object
    };
    world.kube.put_request(approved("wrong", "n2"));
    let request = decided(&world, "wrong", "Failed").await;
    assert_eq!(condition(&request).0, "OtherNode");
    assert_eq!(request["status"]["certificate"], Value::Null);
    world.kube.put_request(approved("right", "n1"));
    decided(&world, "right", "certificate").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_elses_signature_is_an_alarm() {
    let world = world(&[]).await;
    let mut object = object("theirs", "n1", &spec("n1"));
    let other = towline_tests::authority::Authority::new("kit.example");
    let theirs = other.leaf(towline_proto::id::Role::Agent, "n1").sign();
    object["status"]["certificate"] = json!(encoded(theirs.cert_pem.as_bytes()));
    world.kube.put_request(object);
    let line = "towline_server_csr_decisions_total{signer=\"agent\",outcome=\"foreign\"} 1";
    world.counted(line).await;
}

/// What a caller says of itself is overwritten by the API, and so it is here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_cannot_claim_another_pods_extras() {
    let world = world(&[]).await;
    world.kube.pod_caller("pod-n2", ACCOUNT_USER, "n2");
    let user = "{token: pod-n2}";
    let file = world
        .kube
        .write_kubeconfig_as(&world.scratch, "thief", user)
        .unwrap();
    let access = towline_link::kube::Access::load(Some(&file), &|_| None).unwrap();
    let client = towline_link::kube::Client::new(access);
    let requests = towline_link::kube::csr::SigningRequests::new(client);
    let forged = serde_json::from_value(object("forged", "n1", &spec("n1"))).unwrap();
    requests.create(&forged).await.unwrap();
    let request = decided(&world, "forged", "Denied").await;
    assert_eq!(condition(&request).0, "OtherNode");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_that_are_missing_and_watches_that_end_are_made_up_for() {
    let world = world(&[]).await;
    world.kube.withdraw("sign");
    world.kube.put_request(object("a", "n1", &spec("n1")));
    decided(&world, "a", "Approved").await;
    world
        .counted("towline_server_csr_api_errors_total{call=\"sign\"}")
        .await;
    // Tried again, without another certificate each time.
    eventually("a second write", || async {
        let written = world.kube.requests();
        let written = written.iter().filter(|one| one.contains("/a/status"));
        (written.count() >= 2).then_some(())
    })
    .await;
    world.kube.grant("sign");
    decided(&world, "a", "certificate").await;
    let ledger = std::fs::read_to_string(world.scratch.join("state/issued.jsonl")).unwrap();
    assert_eq!(ledger.lines().count(), 1, "{ledger}");
    world.kube.compact();
    world.kube.end_watches();
    world.kube.put_request(object("b", "n2", &spec("n2")));
    decided(&world, "b", "certificate").await;
}

/// Thousands of agents are one user to the API: each node has its own share of the room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_agents_at_once_are_all_served() {
    let count = limits::CSR_PENDING_EACH * 3;
    let world = world(&[]).await;
    let node = |n: usize| format!("m{n}");
    for n in 0..count {
        world.kube.put_node(&node(n), &[]);
        world
            .kube
            .put_request(object(&format!("r{n}"), &node(n), &spec(&node(n))));
    }
    for n in 0..count {
        decided(&world, &format!("r{n}"), "certificate").await;
    }
    let seconds = "towline_server_enrolment_seconds_count{proof=\"signing-request\"}";
    world.counted(&format!("{seconds} {count}")).await;
    let line = format!("towline_server_enrolments_total{{proof=\"signing-request\"}} {count}");
    world.counted(&line).await;
}
