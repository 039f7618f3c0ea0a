//! Whose an address is when two Node objects claim it and no certificate tells: who came first, who
//! holds it already, what an operator says, and a watch of Nodes that is late, broken or not allowed.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use towline_link::carrier::CarrierKind;
use towline_pki::Leaf;
use towline_proto::enrol::{EnrolReply, Proof, Refusal};
use towline_tests::cluster::node_ip;
use towline_tests::enrol::{EnrolWorld, Node, refusal};
use towline_tests::kube::Mood;
use towline_tests::scenario::eventually;

const HOUR: Duration = Duration::from_secs(3600);
const BY_NODE: &str = "towline_server_enrolment_addresses_contested_total{by=\"node\"}";

fn node(number: u8) -> String {
    format!("n{number}")
}

/// Node objects that are there before the server is, and these flags.
async fn world(nodes: &[(u8, &[IpAddr])], flags: &[&str]) -> EnrolWorld {
    let mut world = EnrolWorld::prepared(CarrierKind::Tls, flags).await;
    for (number, ips) in nodes {
        put(&world, *number, ips);
    }
    world.restart().await.unwrap();
    world.counted("towline_server_nodes_followed 1").await;
    world
}

fn put(world: &EnrolWorld, number: u8, ips: &[IpAddr]) {
    let texts: Vec<String> = ips.iter().map(ToString::to_string).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    world.kube.put_node(&node(number), &texts);
}

fn proof(world: &EnrolWorld, number: u8) -> Proof {
    world.account_token(&format!("token-{number}"), &node(number))
}

async fn renewed(world: &EnrolWorld, held: &Node) -> Result<Vec<IpAddr>, Refusal> {
    let own = held.credentials();
    let new = Node::new();
    let asked = world.ask(&new, Proof::Certificate, None, Some(&own)).await;
    match asked.unwrap() {
        EnrolReply::Issued(chain) => Ok(Leaf::parse(&chain[0].clone().into()).unwrap().ip_sans),
        EnrolReply::Refused { refusal, .. } => Err(refusal),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_another_node_object_claimed_before_refuses_the_newcomer() {
    let world = world(&[(1, &[node_ip(1)])], &[]).await;
    put(&world, 2, &[node_ip(2), node_ip(1)]);
    let second = proof(&world, 2);
    assert_eq!(
        world.refused(second.clone(), None).await,
        Refusal::AddressTaken
    );
    world.counted(&format!("{BY_NODE} 1")).await;
    let record = world
        .audit()
        .record("the refusal", |line| line["reason"] == "address-taken")
        .await;
    assert_eq!(record["node"], "n2", "{record}");
    // The one that was there first is not hindered by it, though it has no agent yet.
    let first = world.enrolled(proof(&world, 1), None).await;
    assert_eq!(first.leaf().ip_sans, [node_ip(1)]);
    // Without the address that is another's.
    put(&world, 2, &[node_ip(2)]);
    let good = world.enrolled(second, None).await;
    assert_eq!(good.leaf().ip_sans, [node_ip(2)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_were_there_before_us_neither_has_it_until_one_lets_go() {
    let both = [node_ip(1)];
    let world = world(&[(1, &both), (2, &both), (3, &[node_ip(3)])], &[]).await;
    for number in [1, 2] {
        let asked = proof(&world, number);
        assert_eq!(world.refused(asked, None).await, Refusal::AddressTaken);
    }
    world.enrolled(proof(&world, 3), None).await;
    world.kube.remove_node("n2");
    let first = world.enrolled(proof(&world, 1), None).await;
    assert_eq!(first.leaf().ip_sans, [node_ip(1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_holds_an_address_keeps_it_whatever_another_node_claims() {
    let mut world = world(&[(1, &[node_ip(1)])], &[]).await;
    let held = world.enrolled(proof(&world, 1), None).await;
    put(&world, 2, &[node_ip(1)]);
    // By the ledger: it lost its key, and comes by the token of its new pod.
    let again = world.account_token("token-1-new", "n1");
    let again = world.enrolled(again, None).await;
    assert_eq!(again.leaf().ip_sans, [node_ip(1)]);
    // By the certificate that it shows: the server's memory is gone, and both claims look alike.
    world.restart().await.unwrap();
    world.counted("towline_server_nodes 2").await;
    assert_eq!(renewed(&world, &held).await, Ok(vec![node_ip(1)]));
    // By what the server wrote down before it was restarted.
    world.restart().await.unwrap();
    world.counted("towline_server_nodes 2").await;
    let newer = world.account_token("token-1-newer", "n1");
    let newer = world.enrolled(newer, None).await;
    assert_eq!(newer.leaf().ip_sans, [node_ip(1)]);
    let newcomer = proof(&world, 2);
    assert_eq!(world.refused(newcomer, None).await, Refusal::AddressTaken);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_renewal_only_the_contested_address_is_left_out() {
    let world = world(&[(1, &[node_ip(1)]), (2, &[node_ip(9)])], &[]).await;
    let held = world.enrolled(proof(&world, 1), None).await;
    put(&world, 1, &[node_ip(1), node_ip(8), node_ip(9)]);
    // The Node's new addresses: one is free, the other n2's.
    assert_eq!(
        renewed(&world, &held).await,
        Ok(vec![node_ip(1), node_ip(8)])
    );
    world.counted(&format!("{BY_NODE} 1")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_right_to_list_nodes_nothing_new_is_believed() {
    let mut world = EnrolWorld::prepared(CarrierKind::Tls, &[]).await;
    world.kube.withdraw("all-nodes");
    put(&world, 1, &[node_ip(1)]);
    put(&world, 2, &[]);
    put(&world, 3, &[node_ip(3), node_ip(4)]);
    world.restart().await.unwrap();
    world
        .counted("towline_server_csr_api_errors_total{call=\"nodes\"} ")
        .await;
    world.counted("towline_server_nodes_followed 0").await;
    let first = proof(&world, 1);
    let asked = world.ask(&Node::new(), first.clone(), None, None).await;
    assert_eq!(refusal(asked), Refusal::Unavailable);
    // Nothing was spent by that. What claims no address needs nobody's word.
    assert!(
        world
            .enrolled(proof(&world, 2), None)
            .await
            .leaf()
            .ip_sans
            .is_empty()
    );
    // A renewal goes on with what it had.
    let pair = world
        .authority
        .leaf(towline_proto::id::Role::Agent, "n3")
        .ips(&[node_ip(3)])
        .sign();
    let held = Node {
        key: towline_pki::PrivateKey::from_der(&pair.key()).unwrap(),
        chain: pair.chain.clone(),
    };
    assert_eq!(renewed(&world, &held).await, Ok(vec![node_ip(3)]));
    // It is said where operators look, with what to do, and makes the server no less ready.
    eventually("the note", || async {
        let page = world.page("/readyz?verbose").await;
        let note = page.lines().find(|line| line.contains("nodes"))?.to_owned();
        (note.starts_with("[!]nodes") && note.contains("enrol-rbac.yaml")).then_some(())
    })
    .await;
    world.kube.grant("all-nodes");
    world.counted("towline_server_nodes_followed 1").await;
    let first = world.enrolled(first, None).await;
    assert_eq!(first.leaf().ip_sans, [node_ip(1)]);
    eventually("the end of the note", || async {
        let page = world.page("/readyz?verbose").await;
        page.contains("[+]nodes ok").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_watch_that_broke_what_was_known_counts() {
    let world = world(&[(1, &[node_ip(1)]), (2, &[node_ip(2)])], &[]).await;
    world.kube.withdraw("all-nodes");
    world.kube.end_watches();
    world.counted("towline_server_nodes_followed 0").await;
    put(&world, 3, &[node_ip(3)]);
    // An address that was another's when all was well.
    put(&world, 2, &[node_ip(2), node_ip(1)]);
    let second = proof(&world, 2);
    assert_eq!(
        world.refused(second.clone(), None).await,
        Refusal::Unavailable
    );
    let third = proof(&world, 3);
    assert_eq!(
        world.refused(third.clone(), None).await,
        Refusal::Unavailable
    );
    // Also while one list after the other fails.
    let lists = || {
        let asked = world.kube.requests();
        let lists = asked.iter().filter(|one| one.contains("limit=250"));
        lists.count()
    };
    let before = lists();
    eventually("a list that fails", || async {
        (lists() > before).then_some(())
    })
    .await;
    let first = world.enrolled(proof(&world, 1), None).await;
    assert_eq!(first.leaf().ip_sans, [node_ip(1)]);
    world.kube.grant("all-nodes");
    world.counted("towline_server_nodes_followed 1").await;
    world.enrolled(third, None).await;
    assert_eq!(world.refused(second, None).await, Refusal::AddressTaken);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_word_counts_whatever_node_objects_claim() {
    let mut world = EnrolWorld::prepared(CarrierKind::Tls, &[]).await;
    let grants = "agents:\n- name: n4\n  addresses: [10.0.0.4]\n- name: n5\n  addresses: [10.0.0.5]\n- name: \"*\"\n";
    let grants = world.scratch.write("grants.yaml", grants).unwrap();
    world.flags(&["--grants", &grants.display().to_string()]);
    // n2 was broken into, and claims what it may want one day.
    put(&world, 2, &[node_ip(3), node_ip(4), node_ip(5)]);
    world.restart().await.unwrap();
    world.counted("towline_server_nodes 1").await;
    // A join token that names the address, also when the Node is there and claims it too late.
    put(&world, 3, &[node_ip(3)]);
    let until = SystemTime::now() + HOUR;
    let (_, join) = world.join_token_with("n3", until, &[node_ip(3)]).await;
    let joined = world.enrolled(join, None).await;
    assert_eq!(joined.leaf().ip_sans, [node_ip(3)]);
    world.counted(&format!("{BY_NODE} 1")).await;
    // The grants file.
    put(&world, 4, &[node_ip(4)]);
    let granted = world.enrolled(proof(&world, 4), None).await;
    assert_eq!(granted.leaf().ip_sans, [node_ip(4)]);
    put(&world, 2, &[node_ip(5)]);
    assert_eq!(
        world.refused(proof(&world, 2), None).await,
        Refusal::AddressTaken
    );
    world
        .counted("towline_server_enrolment_addresses_contested_total{by=\"grants\"} 1")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_that_says_nothing_about_the_other_node_is_no_reason_to_believe_the_newcomer() {
    let world = world(&[(1, &[node_ip(1)])], &[]).await;
    put(&world, 2, &[node_ip(1)]);
    let second = proof(&world, 2);
    world
        .kube
        .mood(Mood::Refuses(503, "ServiceUnavailable".into()));
    let refused = world.refused(second.clone(), None).await;
    assert_eq!(refused, Refusal::Unavailable);
    world.kube.mood(Mood::Good);
    assert_eq!(world.refused(second, None).await, Refusal::AddressTaken);
}

/// Each verb on each resource that a server used is in the manifest, and no other on Nodes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_manifest_gives_the_rights_that_are_used() {
    let world = world(&[(1, &[node_ip(1)])], &[]).await;
    world.enrolled(proof(&world, 1), None).await;
    let path = format!(
        "{}/../server/deploy/enrol-rbac.yaml",
        env!("CARGO_MANIFEST_DIR")
    );
    let text = std::fs::read_to_string(path).unwrap();
    let verbs = |resource: &str| -> Vec<String> {
        let rule = text
            .split(&format!("resources: [{resource}]"))
            .nth(1)
            .unwrap();
        let list = rule.split("verbs: [").nth(1).unwrap();
        let list = list.split(']').next().unwrap();
        list.split(", ").map(str::to_owned).collect()
    };
    let mut used: Vec<(&str, &str)> = world
        .kube
        .requests()
        .iter()
        .map(|request| match request.as_str() {
            one if one.starts_with("GET /api/v1/nodes/") => ("nodes", "get"),
            one if one.starts_with("GET /api/v1/nodes?") && one.contains("watch=") => {
                ("nodes", "watch")
            }
            one if one.starts_with("GET /api/v1/nodes?") => ("nodes", "list"),
            one if one.ends_with("/tokenreviews") => ("tokenreviews", "create"),
            other => panic!("{other}: no right for it is in the manifest"),
        })
        .collect();
    used.sort_unstable();
    used.dedup();
    for resource in ["nodes", "tokenreviews"] {
        let of = used.iter().filter(|(one, _)| *one == resource);
        let of: Vec<&str> = of.map(|(_, verb)| *verb).collect();
        assert_eq!(verbs(resource), of, "{resource}");
    }
}
