//! What is approved, denied and left alone, whatever the API does meanwhile.

use std::net::IpAddr;

use serde_json::{Value, json};
use towline_pki::RequestSpec;
use towline_proto::limits;
use towline_tests::kube::Mood;

use crate::world::*;

#[tokio::test]
async fn what_a_node_asks_for_itself_is_approved_and_nothing_else_is_touched() {
    let world = World::new().await;
    world.kube.put_node("n1", &["10.0.0.1", "n1"]);
    world.kube.put_request(object("before", &asked()));
    let approver = world.approver(Options::default());
    world.decided("before", "Approved").await;
    world.kube.put_request(object("after", &asked()));
    world.decided("after", "Approved").await;
    let request = world.kube.request("after").unwrap();
    assert_eq!(request["metadata"]["annotations"]["kept"], "yes");
    assert_eq!(request["status"]["certificate"], Value::Null);
    let (reason, message) = world.reason("after");
    assert!(
        reason == "TowlineApproved" && message.contains("n1"),
        "{message}"
    );
    // Other signers' requests are nobody's business here.
    let mut other = object("other", &asked());
    other["spec"]["signerName"] = json!("kubernetes.io/kube-apiserver-client");
    world.kube.put_request(other);
    approver
        .counted(
            "towline_server_csr_decisions_total{signer=\"kubelet-serving\",outcome=\"approved\"} 2",
        )
        .await;
    assert!(world.decisions("other").is_empty());
    let written = world.kube.requests();
    let approvals = written.iter().filter(|one| one.starts_with("PUT")).count();
    assert_eq!(approvals, 2, "{written:?}");
}

#[tokio::test]
async fn what_can_never_be_right_is_denied_with_its_reason() {
    let world = World::new().await;
    world.kube.put_node("n1", &["10.0.0.1", "n1"]);
    let approver = world.approver(Options::default());
    let spec = |change: fn(&mut RequestSpec)| {
        let mut spec = asked();
        change(&mut spec);
        spec
    };
    let with = |name: &str, change: fn(&mut Value)| {
        let mut object = object(name, &asked());
        change(&mut object);
        object
    };
    let cases: Vec<(&str, Value)> = vec![
        (
            "Organization",
            object("o", &spec(|s| s.organisation = "system:masters".into())),
        ),
        (
            "CommonName",
            object("cn", &spec(|s| s.common_name = "kubernetes-admin".into())),
        ),
        (
            "OtherNode",
            object("node", &spec(|s| s.common_name = "system:node:n2".into())),
        ),
        (
            "NameKind",
            object("uri", &spec(|s| s.uris = vec!["spiffe://x/y".into()])),
        ),
        (
            "NoNames",
            object(
                "none",
                &spec(|s| {
                    s.dns.clear();
                    s.ips.clear();
                }),
            ),
        ),
        (
            "BadName",
            object("wild", &spec(|s| s.dns.push("*.corp.example".into()))),
        ),
        (
            "ReservedName",
            object(
                "svc",
                &spec(|s| s.dns.push("kubernetes.default.svc".into())),
            ),
        ),
        (
            "ForbiddenAddress",
            object("lo", &spec(|s| s.ips.push([127, 0, 0, 1].into()))),
        ),
        (
            "Usages",
            with("usages", |o| {
                o["spec"]["usages"] = json!(["digital signature", "client auth"])
            }),
        ),
        (
            "Expiration",
            with("life", |o| {
                o["spec"]["expirationSeconds"] = json!(367 * 86_400)
            }),
        ),
        (
            "Unreadable",
            with("junk", |o| o["spec"]["request"] = json!("bm90aGluZw==")),
        ),
    ];
    for (cause, object) in cases {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        world.kube.put_request(object);
        world.decided(&name, "Denied").await;
        let (reason, message) = world.reason(&name);
        assert_eq!(reason, cause, "{message}");
        assert!(message.len() <= limits::KUBE_TEXT_BYTES && !message.contains('\u{1b}'));
        approver.refused(cause).await;
    }
    let advertised = object("cp", &spec(|s| s.dns.push("cp.corp.example".into())));
    world.kube.put_request(advertised);
    world.decided("cp", "Denied").await;
}

#[tokio::test]
async fn what_may_become_right_waits_and_is_approved_when_it_is() {
    let world = World::new().await;
    let approver = world.approver(Options::default());
    world.kube.put_request(object("early", &asked()));
    approver.refused("NoNode").await;
    world.kube.put_node("n1", &["n1"]);
    approver.refused("NotOfNode").await;
    assert!(world.decisions("early").is_empty());
    world.kube.put_node("n1", &["10.0.0.1", "n1"]);
    world.decided("early", "Approved").await;
}

/// A name or address that a Node object alone cannot give.
async fn waits(spec: RequestSpec, node: &[&str], options: Options, cause: &str) {
    let world = World::new().await;
    world.kube.put_node("n1", node);
    world
        .kube
        .put_node("n2", &["10.0.0.2", "n2", "shared.corp.example"]);
    let approver = world.approver(options);
    world.kube.put_request(object("a", &spec));
    approver.refused(cause).await;
    assert!(world.decisions("a").is_empty(), "{cause}");
}

fn with_ip(ip: &str) -> RequestSpec {
    let mut spec = asked();
    spec.ips = vec![ip.parse::<IpAddr>().unwrap()];
    spec
}

#[tokio::test]
async fn addresses_that_are_not_the_nodes_wait() {
    let none = Options::default;
    waits(with_ip("10.0.0.9"), &["10.0.0.1"], none(), "NotOfNode").await;
    waits(with_ip("10.0.0.2"), &["10.0.0.2"], none(), "Contested").await;
    waits(
        with_ip("203.0.113.1"),
        &["203.0.113.1"],
        none(),
        "OutsideNodes",
    )
    .await;
    let control = Options {
        control_plane: vec!["10.0.255.0/24".parse().unwrap()],
        ..none()
    };
    waits(with_ip("10.0.255.1"), &["10.0.255.1"], control, "Reserved").await;
    let grants = Options {
        grants: Some("agents:\n  - name: n2\n    addresses: [10.0.0.7]\n"),
        ..none()
    };
    waits(with_ip("10.0.0.7"), &["10.0.0.7"], grants, "OfOther").await;
}

#[tokio::test]
async fn names_that_are_not_the_nodes_wait() {
    let domain = || Options {
        domains: vec!["corp.example".parse().unwrap()],
        ..Options::default()
    };
    waits(with_dns("n2"), &["10.0.0.1", "n2"], domain(), "OfOther").await;
    waits(
        with_dns("x.corp.example"),
        &["10.0.0.1"],
        domain(),
        "NotOfNode",
    )
    .await;
    let shared = "shared.corp.example";
    waits(
        with_dns(shared),
        &["10.0.0.1", shared],
        domain(),
        "Contested",
    )
    .await;
    let (odd, own) = ("n1.other.example", ["10.0.0.1", "n1.other.example"]);
    waits(with_dns(odd), &own, domain(), "OutsideNodes").await;
    let alike = "n1.evilcorp.example";
    waits(
        with_dns(alike),
        &["10.0.0.1", alike],
        domain(),
        "OutsideNodes",
    )
    .await;
}

#[tokio::test]
async fn a_node_whose_agent_is_denied_gets_nothing() {
    let options = Options {
        denied: Some("n1"),
        ..Options::default()
    };
    waits(asked(), &["10.0.0.1", "n1"], options, "DenyListed").await;
}

#[tokio::test]
async fn domains_and_grants_give_what_a_node_object_does_not() {
    let world = World::new().await;
    world.kube.put_node("n1", &["10.0.0.1", "N1.corp.example"]);
    let _approver = world.approver(Options {
        domains: vec!["corp.example".parse().unwrap()],
        grants: Some("agents:\n  - name: n1\n    addresses: [203.0.113.1]\n"),
        ..Options::default()
    });
    let mut spec = with_ip("203.0.113.1");
    spec.dns.push("n1.corp.example".into());
    world.kube.put_request(object("a", &spec));
    world.decided("a", "Approved").await;
}

#[tokio::test]
async fn requests_that_no_node_made_are_left_to_people() {
    let world = World::new().await;
    world.kube.put_node("n1", &["10.0.0.1", "n1"]);
    let approver = world.approver(Options::default());
    for (name, user, groups) in [
        ("person", "alice", json!(["system:nodes"])),
        ("group", "system:node:n1", json!(["system:authenticated"])),
    ] {
        let mut object = object(name, &asked());
        object["spec"]["username"] = json!(user);
        object["spec"]["groups"] = groups;
        world.kube.put_request(object);
    }
    let labels = "{signer=\"kubelet-serving\",outcome=\"not-ours\"}";
    approver
        .counted(&format!("towline_server_csr_decisions_total{labels} 2"))
        .await;
    for name in ["person", "group"] {
        assert!(world.decisions(name).is_empty(), "{name}");
    }
}

/// The second to write is refused with a conflict and finds the work done.
#[tokio::test]
async fn several_servers_do_it_once() {
    let world = World::new().await;
    world.kube.put_node("n1", &["10.0.0.1", "n1"]);
    let approvers: Vec<Approver> = (0..3).map(|_| world.approver(Options::default())).collect();
    for n in 0..20 {
        world.kube.put_request(object(&format!("r{n}"), &asked()));
    }
    for n in 0..20 {
        world.decided(&format!("r{n}"), "Approved").await;
    }
    for n in 0..20 {
        assert_eq!(world.decisions(&format!("r{n}")), ["Approved"]);
    }
    let approved = || {
        let count = |text: String| -> u64 {
            let labels = "towline_server_csr_decisions_total{signer=\"kubelet-serving\",outcome=\"approved\"} ";
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(labels).map(str::to_owned));
            line.map_or(0, |count| count.parse().unwrap())
        };
        approvers.iter().map(|one| count(one.text())).sum::<u64>()
    };
    until("each is approved by one", || approved() == 20).await;
    for approver in &approvers {
        assert!(
            !approver.text().contains("call=\"approve\""),
            "a conflict is no error"
        );
    }
}

#[tokio::test]
async fn what_was_decided_stays_decided() {
    let world = World::new().await;
    world.kube.put_node("n1", &["10.0.0.1", "n1"]);
    let mut denied = object("denied", &asked());
    denied["status"]["conditions"] = json!([{"type": "Denied", "status": "True", "reason": "No"}]);
    world.kube.put_request(denied);
    let _approver = world.approver(Options::default());
    world.kube.put_request(object("after", &asked()));
    world.decided("after", "Approved").await;
    assert_eq!(world.decisions("denied"), ["Denied"]);
}

#[tokio::test]
async fn a_missing_right_is_told_and_made_up_for() {
    let world = World::new().await;
    world.kube.put_node("n1", &["10.0.0.1", "n1"]);
    world.kube.withdraw("approve");
    let approver = world.approver(Options::default());
    world.kube.put_request(object("a", &asked()));
    until("a refused call", || {
        approver.text().contains("call=\"approve\"")
    })
    .await;
    assert!(world.decisions("a").is_empty());
    world.kube.grant("approve");
    world.decided("a", "Approved").await;
    // And the right to list Nodes: who begins without it decides nothing.
    drop(approver);
    world.kube.withdraw("nodes");
    let other = world.approver(Options::default());
    world.kube.put_request(object("b", &asked()));
    other.refused("NodesUnknown").await;
}

/// A watch that fell behind or broke begins with a list; nothing is missed.
#[tokio::test]
async fn nothing_is_missed_when_the_watch_ends() {
    let world = World::new().await;
    world.kube.put_node("n1", &["10.0.0.1", "n1"]);
    let _approver = world.approver(Options::default());
    world.kube.put_request(object("a", &asked()));
    world.decided("a", "Approved").await;
    for n in 0..3 {
        world.kube.end_watches();
        if n == 1 {
            world.kube.compact();
        }
        let name = format!("while-away-{n}");
        world.kube.put_request(object(&name, &asked()));
        world.decided(&name, "Approved").await;
    }
    world
        .kube
        .mood(Mood::Refuses(503, "ServiceUnavailable".into()));
    world.kube.end_watches();
    world.kube.put_request(object("down", &asked()));
    world.kube.mood(Mood::Good);
    world.decided("down", "Approved").await;
}

/// More than a page, and one that is as large as the API takes: asked for in halves.
#[tokio::test]
async fn many_and_large_requests_are_listed() {
    let world = World::new().await;
    let count = limits::KUBE_PAGE + 20;
    for n in 0..count {
        let node = format!("n{n}");
        world.kube.put_node(&node, &[]);
        let mut spec = asked();
        (spec.dns, spec.ips) = (vec![node.clone()], vec![]);
        spec.common_name = format!("system:node:{node}");
        let mut object = object(&format!("r{n:04}"), &spec);
        object["spec"]["username"] = json!(spec.common_name);
        if n < 6 {
            object["metadata"]["annotations"] = json!({"large": "x".repeat(900 * 1024)});
        }
        world.kube.put_request(object);
    }
    let _approver = world.approver(Options::default());
    for n in 0..count {
        world.decided(&format!("r{n:04}"), "Approved").await;
    }
}

/// A node that was broken into makes requests without end.
#[tokio::test]
async fn one_node_does_not_take_the_room_of_others() {
    let world = World::new().await;
    world.kube.put_node("n1", &["10.0.0.1", "n1"]);
    for n in 0..limits::CSR_PENDING_EACH * 2 {
        let mut object = object(&format!("a{n:04}"), &asked());
        object["spec"]["username"] = json!("system:node:evil");
        object["spec"]["groups"] = json!([]);
        world.kube.put_request(object);
    }
    let approver = world.approver(Options::default());
    world.kube.put_request(object("own", &asked()));
    world.decided("own", "Approved").await;
    let most = limits::CSR_PENDING_EACH;
    let counted = format!(
        "towline_server_csr_decisions_total{{signer=\"kubelet-serving\",outcome=\"not-ours\"}} {most}"
    );
    approver.counted(&counted).await;
}
