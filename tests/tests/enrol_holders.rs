//! Who holds a name, and with which key: certificates that were made elsewhere, keys that were
//! revoked, and holders without measure.

use std::time::{Duration, SystemTime};

use towline_link::carrier::CarrierKind;
use towline_pki::Leaf;
use towline_proto::enrol::{EnrolReply, Proof, Refusal};
use towline_tests::cluster::links_of;
use towline_tests::enrol::{EnrolWorld, Node, refusal};
use towline_tests::scenario::{eventually, expect};

const HOUR: Duration = Duration::from_secs(3600);

async fn world() -> EnrolWorld {
    let world = EnrolWorld::start(CarrierKind::Tls, &[]).await;
    for number in 1..=2 {
        let ip = format!("10.0.0.{number}");
        world.kube.put_node(&format!("n{number}"), &[&ip]);
    }
    world
}

/// The certificate was made by the tool, or by another server: no ledger here knows it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_token_is_refused_for_a_name_that_was_linked_with_a_valid_certificate() {
    let world = world().await;
    let agent = world.certified_agent(2, "n2").await;
    expect("the link", links_of(&agent, 1)).await;
    let shown = agent.links().all()[0].1.id();
    let (_, join) = world.join_token("n*", SystemTime::now() + HOUR).await;
    let refused = world.refused(join.clone(), Some("n2")).await;
    assert_eq!(refused, Refusal::NameTaken, "{shown:?}");
    // Nor once it is gone: its machine may be down, and its certificate still counts.
    drop(agent);
    let refused = world.refused(join.clone(), Some("n2")).await;
    assert_eq!(refused, Refusal::NameTaken);
    let leaf = Leaf::parse(
        &towline_pki::store::read_certificates(&world.scratch.join("n2.crt")).unwrap()[0],
    );
    world
        .deny(&format!("serial:{}\n", leaf.unwrap().serial))
        .await;
    world.enrolled(join, Some("n2")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_whose_certificate_was_revoked_gets_no_other() {
    let world = world().await;
    let (_, join) = world.join_token("n1", SystemTime::now() + HOUR).await;
    let node = world.enrolled(join.clone(), None).await;
    world
        .deny(&format!("serial:{}\n", node.leaf().serial))
        .await;
    // The join token is spent for this very key, and the token of the pod is good.
    let again = world.ask(&node, join, None, None).await;
    assert_eq!(refusal(again), Refusal::Denied);
    let proof = world.account_token("t1", "n1");
    let again = world.ask(&node, proof.clone(), None, None).await;
    assert_eq!(refusal(again), Refusal::Denied);
    world.enrolled(proof, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_holds_a_certificate_does_not_renew_without_end() {
    let world = world().await;
    let proof = world.account_token("t1", "n1");
    let node = world.enrolled(proof, None).await;
    let own = node.credentials();
    let next = Node::new();
    let renew = || world.ask(&next, Proof::Certificate, None, Some(&own));
    for _ in 1..towline_proto::limits::ENROL_NAME {
        assert!(matches!(renew().await, Ok(EnrolReply::Issued(_))));
    }
    assert_eq!(refusal(renew().await), Refusal::Busy);
    // Others are not concerned.
    let proof = world.account_token("t2", "n2");
    world.enrolled(proof, None).await;
}

/// The ledger of a server that has run for long: what ended goes, what counts is known as before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_forgets_what_ended_long_ago_and_nothing_else() {
    let mut world = world().await;
    let proof = world.account_token("t1", "n1");
    let held = world.enrolled(proof, None).await;
    let path = world.scratch.join("state/issued.jsonl");
    let now = std::fs::read_to_string(&path).unwrap();
    let over = now
        .replace(&held.leaf().serial.to_string(), "0a")
        .replace("\"not_after\":\"20", "\"not_after\":\"19");
    std::fs::write(&path, over.repeat(1000) + &now).unwrap();
    world.restart().await.unwrap();
    world
        .counted("towline_server_enrolment_ledger_lines 1")
        .await;
    world
        .counted("towline_server_enrolment_ledger_tidied_total{outcome=\"done\"} 1")
        .await;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), now);
    // Who holds the name is still known, with its key.
    let (_, join) = world.join_token("n1", SystemTime::now() + HOUR).await;
    let refused = world.refused(join.clone(), None).await;
    assert_eq!(refused, Refusal::NameTaken);
    let again = world.ask(&held, join, None, None).await;
    assert!(matches!(again, Ok(EnrolReply::Issued(_))), "{again:?}");
}

/// Somebody has the token of its pod, a new one that the agent never used: beside the agent that is no use.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_makes_no_second_holder_beside_a_linked_agent() {
    let world = world().await;
    let _ = world.account_token("token-1", "n1");
    let token = world.token_file("token", "token-1");
    let ca = world.scratch.join("servers.ca");
    let flags = [
        "--enrol-token-file",
        token.to_str().unwrap(),
        "--server-ca",
        ca.to_str().unwrap(),
    ];
    let agent = expect(
        "the certificate",
        world.agent(1, &world.agent_args("n1", &flags)),
    )
    .await;
    expect("the link", links_of(&agent, 1)).await;
    let stolen = world.account_token("token-1-next", "n1");
    let refused = world.refused(stolen.clone(), None).await;
    assert_eq!(refused, Refusal::NameTaken);
    let record = world
        .audit()
        .record("the refusal", |line| line["reason"] == "name-taken")
        .await;
    assert_eq!(
        (&record["node"], &record["proof"]),
        (&"n1".into(), &"service-account".into()),
        "{record}"
    );
    let line = "towline_server_enrolments_refused_total{proof=\"service-account\",reason=\"name-taken\"} 1";
    world.counted(line).await;
    // Another node is not concerned.
    let other = world.account_token("token-2", "n2");
    world.enrolled(other, None).await;
    // Its certificate is revoked: the agent has nothing any more, and may ask for another.
    let chain = towline_pki::store::read_certificates(&world.scratch.join("n1/agent.crt")).unwrap();
    let serial = Leaf::parse(&chain[0]).unwrap().serial;
    world.deny(&format!("serial:{serial}\n")).await;
    world.enrolled(stolen, None).await;
}

/// An agent that went, or is gone for longer than links take to come back, may have lost its key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_said_goodbye_may_come_with_another_key() {
    let world = world().await;
    let agent = world.certified_agent(2, "n2").await;
    expect("the link", links_of(&agent, 1)).await;
    // It was issued elsewhere; a link shows it all the same.
    let proof = world.account_token("token-2", "n2");
    let refused = world.refused(proof.clone(), None).await;
    assert_eq!(refused, Refusal::NameTaken);
    agent.drain();
    expect("the agent's end", agent.wait()).await.unwrap();
    let new = Node::new();
    eventually("its certificate", || async {
        let asked = world.ask(&new, proof.clone(), None, None).await;
        matches!(asked, Ok(EnrolReply::Issued(_))).then_some(())
    })
    .await;
}
