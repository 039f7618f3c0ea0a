//! Certificates from enrolment: by token, by join token, by renewal, and the links that they make.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towline_agent::enrol::keep::renews_at;
use towline_pki::Leaf;
use towline_proto::enrol::{EnrolReply, Proof, Refusal, Token};
use towline_proto::id::Role;
use towline_tests::cluster::{Plan, links_of, node_ip};
use towline_tests::enrol::{ACCOUNT_USER, AUDIENCE, EnrolWorld, Node, refusal};
use towline_tests::kube::{Mood, Token as Known};
use towline_tests::scenario::{eventually, expect};
use towline_tests::scenarios;
use towline_tests::scratch;
use towline_tests::target::{Behaviour, Target};

const POD: &str = "10.244.0.5:8080";
const HOUR: Duration = Duration::from_secs(3600);

async fn echoes(pipe: &mut towline_tests::apiserver::Pipe) {
    let mut echo = [0; 4];
    pipe.write_all(b"ping").await.unwrap();
    expect("the echo", pipe.read_exact(&mut echo))
        .await
        .unwrap();
    assert_eq!(&echo, b"ping");
}

async fn echo(world: &EnrolWorld) -> Target {
    let target = Target::start(Behaviour::Echo).await.unwrap();
    world.wire.lead(POD.parse().unwrap(), target.address());
    target
}

fn serial(world: &EnrolWorld, state: &str) -> String {
    let path = world.scratch.join(state).join("agent.crt");
    let chain = towline_pki::store::read_certificates(&path).unwrap();
    Leaf::parse(&chain[0]).unwrap().serial.to_string()
}

scenarios! {
    async fn an_agent_enrols_by_the_token_of_its_pod_and_serves(carrier) {
        let world = EnrolWorld::start(carrier, &[]).await;
        let _target = echo(&world).await;
        world.kube.put_node("n1", &["10.0.0.1", "10.244.0.9", "192.0.2.7"]);
        let _ = world.account_token("token-1", "n1");
        let token = world.token_file("token", "token-1\n");
        let ca = world.scratch.join("servers.ca");
        let flags = ["--enrol-token-file", token.to_str().unwrap(), "--server-ca", ca.to_str().unwrap()];
        let args = world.agent_args("n1", &flags);
        let agent = expect("the certificate", world.agent(1, &args)).await;
        expect("the link", links_of(&agent, 1)).await;
        echoes(&mut world.apiserver().pipe(POD).await).await;
        let state = world.scratch.join("n1");
        assert_eq!(std::fs::metadata(&state).unwrap().mode() & 0o777, 0o700);
        assert_eq!(std::fs::metadata(state.join("agent.key")).unwrap().mode() & 0o777, 0o600);
        assert!(!state.join("agent.key.asked").exists());
        let chain = towline_pki::store::read_certificates(&state.join("agent.crt")).unwrap();
        let leaf = Leaf::parse(&chain[0]).unwrap();
        assert_eq!(leaf.identity.to_string(), "spiffe://kit.example/towline/agent/n1");
        // Of three addresses that the Node claims one is a node's.
        assert_eq!(leaf.ip_sans, [node_ip(1)]);
        let record = world.audit().record("enrolment", |line| line["event"] == "enrolment").await;
        assert_eq!((&record["node"], &record["outcome"], &record["proof"]), (&"n1".into(), &"issued".into(), &"service-account".into()), "{record}");
        assert_eq!(record["agent_serial"], leaf.serial.to_string());
        let ledger = std::fs::read_to_string(world.scratch.join("state/issued.jsonl")).unwrap();
        assert!(ledger.contains(&leaf.serial.to_string()) && ledger.contains("\"enrol\""), "{ledger}");
        // A second start needs no second certificate.
        let before = serial(&world, "n1");
        drop(agent);
        let agent = expect("the start", world.agent(1, &args)).await;
        expect("the link", links_of(&agent, 1)).await;
        assert_eq!(serial(&world, "n1"), before);
    }

    async fn an_agent_joins_with_no_more_than_a_token(carrier) {
        let world = EnrolWorld::start(carrier, &[]).await;
        let _target = echo(&world).await;
        let (join, _) = world.join_token("worker-*", SystemTime::now() + HOUR).await;
        let text = join.to_text();
        let file = world.token_file("join", std::str::from_utf8(text.expose()).unwrap());
        let flags = ["--join-token-file", file.to_str().unwrap(), "--node-name", "worker-1"];
        let agent = expect("the certificate", world.agent(1, &world.agent_args("w1", &flags))).await;
        expect("the link", links_of(&agent, 1)).await;
        echoes(&mut world.apiserver().pipe(POD).await).await;
        let pinned = std::fs::read_to_string(world.scratch.join("w1/server-ca.crt")).unwrap();
        let ours = towline_pki::pem::certificates(world.authority.issuer(Role::Server).pem().as_bytes()).unwrap();
        assert_eq!(towline_pki::pem::certificates(pinned.as_bytes()).unwrap(), ours);
    }

    async fn renewal_keeps_links_and_dials(carrier) {
        let world = EnrolWorld::start(carrier, &["--enrol-certificate-life", "60s"]).await;
        let _target = echo(&world).await;
        world.kube.put_node("n1", &["10.0.0.1"]);
        let _ = world.account_token("token-1", "n1");
        let token = world.token_file("token", "token-1");
        let ca = world.scratch.join("servers.ca");
        let flags = ["--enrol-token-file", token.to_str().unwrap(), "--server-ca", ca.to_str().unwrap()];
        let agent = expect("the certificate", world.agent(1, &world.agent_args("n1", &flags))).await;
        expect("the link", links_of(&agent, 1)).await;
        let mut pipe = world.apiserver().pipe(POD).await;
        let before = serial(&world, "n1");
        let link = agent.links().all()[0].1.id();
        eventually("a renewed certificate", || async { (serial(&world, "n1") != before).then_some(()) }).await;
        world.audit().record("the renewal", |line| line["proof"] == "certificate" && line["outcome"] == "issued").await;
        echoes(&mut pipe).await;
        assert_eq!(agent.links().all()[0].1.id(), link);
    }

    async fn a_link_moves_to_the_renewed_certificate_before_the_old_one_ends(carrier) {
        let mut cluster = Plan::on(carrier).agents(0).start().await;
        let old = cluster.authority.leaf(Role::Agent, "n1").ips(&[node_ip(1)]).ends_in(Duration::from_secs(30)).sign();
        cluster.start_agent_with("n1", &old).await;
        cluster.linked().await;
        let _target = cluster.target(POD, Behaviour::Echo).await;
        let mut pipe = cluster.apiserver().pipe(POD).await;
        let new = cluster.agent_pair("n1");
        new.replace(cluster.files("n1")).unwrap();
        assert_eq!(cluster.reload().await, [""; 0]);
        let serial = new.serial.trim_start_matches('0').to_owned();
        eventually("a link with the new certificate", || async {
            let status = cluster.server(0).status();
            let links = status.agents.iter().flat_map(|agent| &agent.links);
            let newest = links.map(|link| link.serial.trim_start_matches('0').to_owned());
            newest.into_iter().any(|found| found == serial).then_some(())
        }).await;
        echoes(&mut pipe).await;
        echoes(&mut cluster.apiserver().pipe(POD).await).await;
    }

    async fn an_agent_whose_certificate_ended_comes_back_by_itself(carrier) {
        let world = EnrolWorld::start(carrier, &[]).await;
        world.kube.put_node("n1", &["10.0.0.1"]);
        let _ = world.account_token("token-2", "n1");
        let token = world.token_file("token", "token-2");
        let ended = world.authority.leaf(Role::Agent, "n1").ends_in(Duration::from_secs(1)).sign();
        let state = world.scratch.join("n1");
        std::fs::create_dir(&state).unwrap();
        ended.replace(&towline_tests::authority::PairFiles { cert: state.join("agent.crt"), key: state.join("agent.key") }).unwrap();
        tokio::time::sleep(Duration::from_millis(2_100)).await;
        let ca = world.scratch.join("servers.ca");
        let flags = ["--enrol-token-file", token.to_str().unwrap(), "--server-ca", ca.to_str().unwrap()];
        let agent = expect("a new certificate", world.agent(1, &world.agent_args("n1", &flags))).await;
        expect("the link", links_of(&agent, 1)).await;
        assert_ne!(serial(&world, "n1"), ended.serial);
    }

    async fn what_the_api_cannot_say_yet_is_asked_again(carrier) {
        let world = EnrolWorld::start(carrier, &[]).await;
        world.kube.put_node("n1", &["10.0.0.1"]);
        let token = world.token_file("token", "token-3");
        let ca = world.scratch.join("servers.ca");
        let flags = ["--enrol-token-file", token.to_str().unwrap(), "--server-ca", ca.to_str().unwrap()];
        let args = world.agent_args("n1", &flags);
        let mut starting = Box::pin(world.agent(1, &args));
        let refused = world.audit();
        let refused = refused.record("a refusal", |line| line["outcome"] == "refused");
        let record = tokio::select! {
            record = refused => record,
            _ = &mut starting => panic!("no token is known"),
        };
        assert_eq!(record["reason"], "bad-token", "{record}");
        let _ = world.account_token("token-3", "n1");
        let agent = expect("the certificate", starting).await;
        expect("the link", links_of(&agent, 1)).await;
    }
}

fn account(text: &str) -> Proof {
    Proof::ServiceAccount(Token::new(text).unwrap())
}

async fn world() -> EnrolWorld {
    let world = EnrolWorld::start(towline_link::carrier::CarrierKind::Tls, &[]).await;
    for node in ["n1", "n2", "n3"] {
        let number = node.trim_start_matches('n');
        world.kube.put_node(node, &[&format!("10.0.0.{number}")]);
    }
    // So that an API that is away hides none of them.
    world.counted("towline_server_nodes 3").await;
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_prove_nothing_are_refused_and_recorded() {
    let world = world().await;
    assert_eq!(
        world.refused(account("unknown"), None).await,
        Refusal::BadToken
    );
    let known = |user: &str, audience: &str, expired: bool, keys: &[(&str, &str)]| Known {
        username: user.to_owned(),
        audiences: vec![audience.to_owned()],
        expired,
        extra: keys
            .iter()
            .map(|(key, value)| {
                (
                    format!("authentication.kubernetes.io/{key}"),
                    vec![(*value).to_owned()],
                )
            })
            .collect(),
    };
    let user = format!("system:serviceaccount:{ACCOUNT_USER}");
    let bound = [("pod-name", "p"), ("pod-uid", "u"), ("node-name", "n1")];
    for (what, expected) in [
        (known(&user, AUDIENCE, true, &bound), Refusal::BadToken),
        (
            known(&user, "https://kubernetes.default", false, &bound),
            Refusal::BadToken,
        ),
        (
            known(
                "system:serviceaccount:default:towline-agent",
                AUDIENCE,
                false,
                &bound,
            ),
            Refusal::ServiceAccount,
        ),
        (
            known(
                "system:serviceaccount:kube-system:other",
                AUDIENCE,
                false,
                &bound,
            ),
            Refusal::ServiceAccount,
        ),
        (
            known("system:node:n1", AUDIENCE, false, &bound),
            Refusal::ServiceAccount,
        ),
        (known(&user, AUDIENCE, false, &[]), Refusal::Unbound),
        (known(&user, AUDIENCE, false, &bound[..1]), Refusal::Unbound),
        (
            known(&user, AUDIENCE, false, &bound[1..2]),
            Refusal::Unbound,
        ),
        (known(&user, AUDIENCE, false, &bound[..2]), Refusal::Unbound),
        (
            known(
                &user,
                AUDIENCE,
                false,
                &[("pod-name", "p"), ("pod-uid", "u"), ("node-name", "N/1")],
            ),
            Refusal::Unbound,
        ),
    ] {
        let shown = format!("{what:?}");
        world.kube.token("t", what);
        assert_eq!(world.refused(account("t"), None).await, expected, "{shown}");
    }
    // Another node's name.
    let proof = world.account_token("t1", "n1");
    assert_eq!(
        world.refused(proof.clone(), Some("n2")).await,
        Refusal::OtherName
    );
    let record = world
        .audit()
        .record("the refusal", |line| line["reason"] == "other-name")
        .await;
    assert_eq!(
        (&record["node"], &record["outcome"]),
        (&"n1".into(), &"refused".into()),
        "{record}"
    );
    // A node that is not there.
    let gone = world.account_token("t9", "n9");
    assert_eq!(world.refused(gone, None).await, Refusal::NoNode);
    // The API on a bad day.
    world.kube.mood(Mood::Refuses(500, "InternalError".into()));
    assert_eq!(
        world.refused(proof.clone(), None).await,
        Refusal::Unavailable
    );
    world.kube.mood(Mood::Good);
    assert_eq!(
        world
            .enrolled(proof, None)
            .await
            .leaf()
            .identity
            .name
            .as_str(),
        "n1"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_without_a_node_name_is_looked_up_by_its_pod() {
    let world = world().await;
    let what = Known {
        username: format!("system:serviceaccount:{ACCOUNT_USER}"),
        audiences: vec![AUDIENCE.to_owned()],
        expired: false,
        extra: [("pod-name", "p1"), ("pod-uid", "u1")]
            .into_iter()
            .map(|(key, value)| {
                (
                    format!("authentication.kubernetes.io/{key}"),
                    vec![value.to_owned()],
                )
            })
            .collect(),
    };
    world.kube.token("old", what);
    let pod = |uid: &str, account: &str, node: &str| {
        serde_json::json!({
            "kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p1", "uid": uid},
            "spec": {"serviceAccountName": account, "nodeName": node},
        })
    };
    let path = "/api/v1/namespaces/kube-system/pods/p1";
    for (object, expected) in [
        (pod("u2", "towline-agent", "n2"), Refusal::Unbound),
        (pod("u1", "other", "n2"), Refusal::ServiceAccount),
        (pod("u1", "towline-agent", ""), Refusal::Unbound),
    ] {
        world.kube.plain(path, Some(object));
        assert_eq!(world.refused(account("old"), None).await, expected);
    }
    world.kube.plain(path, None);
    assert_eq!(world.refused(account("old"), None).await, Refusal::Unbound);
    world
        .kube
        .plain(path, Some(pod("u1", "towline-agent", "n2")));
    assert_eq!(
        world
            .enrolled(account("old"), None)
            .await
            .leaf()
            .identity
            .name
            .as_str(),
        "n2"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_counts_for_one_key() {
    let world = world().await;
    let proof = world.account_token("t1", "n1");
    let node = world.enrolled(proof.clone(), None).await;
    assert_eq!(world.refused(proof.clone(), None).await, Refusal::Replayed);
    // The same agent again, whose answer was lost.
    assert!(matches!(
        world.ask(&node, proof, None, None).await,
        Ok(EnrolReply::Issued(_))
    ));
    // The kubelet has renewed it meanwhile, and the agent lost its key.
    let renewed = world.account_token("t1-renewed", "n1");
    world.enrolled(renewed, None).await;
    // One token, its signature spelled in two ways that the API takes.
    let spelled = [
        world.account_token("head.claims.sigA", "n1"),
        world.account_token("head.claims.sigB", "n1"),
    ];
    world.enrolled(spelled[0].clone(), None).await;
    assert_eq!(
        world.refused(spelled[1].clone(), None).await,
        Refusal::Replayed
    );
    let other = world.account_token("head.claims-2.sigA", "n1");
    world.enrolled(other, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_token_is_good_once_for_its_node_and_its_time() {
    let mut world = world().await;
    let (_, proof) = world.join_token("n1", SystemTime::now() + HOUR).await;
    assert_eq!(
        world.refused(proof.clone(), Some("n2")).await,
        Refusal::OtherName
    );
    let node = world.enrolled(proof.clone(), None).await;
    assert_eq!(node.leaf().identity.name.as_str(), "n1");
    // Its certificate was issued: a retry by the same key is the same use, another key is none.
    assert!(matches!(
        world.ask(&node, proof.clone(), None, None).await,
        Ok(EnrolReply::Issued(_))
    ));
    assert_eq!(world.refused(proof.clone(), None).await, Refusal::NameTaken);
    let (_, over) = world
        .join_token("n2", SystemTime::now() - Duration::from_secs(2))
        .await;
    assert_eq!(world.refused(over, None).await, Refusal::JoinExpired);
    let (_, many) = world.join_token("n*", SystemTime::now() + HOUR).await;
    // A name that holds a certificate, by whatever proof.
    assert_eq!(
        world.refused(many.clone(), Some("n1")).await,
        Refusal::NameTaken
    );
    world.enrolled(many.clone(), Some("n3")).await;
    assert_eq!(
        world.refused(many.clone(), Some("n2")).await,
        Refusal::JoinUsed
    );
    // Also after a restart.
    world.restart().await.unwrap();
    assert_eq!(world.refused(many, Some("n2")).await, Refusal::JoinUsed);
    let (_, again) = world.join_token("n1", SystemTime::now() + HOUR).await;
    assert_eq!(world.refused(again.clone(), None).await, Refusal::NameTaken);
    // The certificate of a machine that burnt down is denied; its successor may join.
    world
        .deny(&format!("serial:{}\n", node.leaf().serial))
        .await;
    let serials = world.scratch.join("state/issued.jsonl");
    let serials: Vec<String> = std::fs::read_to_string(serials)
        .unwrap()
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|entry| {
            entry["identity"]
                .as_str()
                .is_some_and(|one| one.ends_with("/n1"))
        })
        .filter_map(|entry| {
            entry["serial"]
                .as_str()
                .map(|serial| format!("serial:{serial}\n"))
        })
        .collect();
    world.deny(&serials.concat()).await;
    world.enrolled(again, None).await;
    // Nobody knows it.
    let (_, gone) = world.join_token("n2", SystemTime::now() + HOUR).await;
    scratch::replace(&world.scratch.join("join-tokens"), "").unwrap();
    world.reload().await.unwrap();
    assert_eq!(world.refused(gone, None).await, Refusal::JoinUnknown);
    world
        .audit()
        .record("a refusal", |line| {
            line["reason"] == "join-used" && line["join_token"].is_string()
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewal_is_for_the_name_and_the_life_of_the_certificate_that_is_shown() {
    let world = world().await;
    let proof = world.account_token("t1", "n1");
    let node = world.enrolled(proof, None).await;
    let own = node.credentials();
    let renewed = world
        .ask(&Node::new(), Proof::Certificate, None, Some(&own))
        .await;
    let Ok(EnrolReply::Issued(chain)) = renewed else {
        panic!("{renewed:?}");
    };
    let leaf = Leaf::parse(&chain[0].clone().into()).unwrap();
    assert_eq!(
        (leaf.identity.clone(), &leaf.ip_sans),
        (node.leaf().identity, &vec![node_ip(1)])
    );
    assert!(renews_at(&leaf, 0.5) > SystemTime::now());
    let other = world
        .ask(&Node::new(), Proof::Certificate, Some("n2"), Some(&own))
        .await;
    assert_eq!(refusal(other), Refusal::OtherName);
    // Nothing was shown.
    let nothing = world
        .ask(&Node::new(), Proof::Certificate, None, None)
        .await;
    assert_eq!(refusal(nothing), Refusal::NoCertificate);
    // A Node that was removed.
    world.kube.remove_node("n1");
    let removed = world
        .ask(&Node::new(), Proof::Certificate, None, Some(&own))
        .await;
    assert_eq!(refusal(removed), Refusal::NoNode);
    // While the API is away, what was found before goes on.
    world
        .kube
        .mood(Mood::Refuses(503, "ServiceUnavailable".into()));
    let away = world
        .ask(&Node::new(), Proof::Certificate, None, Some(&own))
        .await;
    let Ok(EnrolReply::Issued(chain)) = away else {
        panic!("{away:?}");
    };
    let leaf = Leaf::parse(&chain[0].clone().into()).unwrap();
    assert_eq!(leaf.ip_sans, [node_ip(1)]);
    // Somebody else's certificate is none.
    let stranger = towline_tests::authority::Authority::new("kit.example");
    let pair = stranger.leaf(Role::Agent, "n1").sign();
    let shown = towline_pki::Credentials::new(
        pair.chain.clone(),
        pair.key(),
        Role::Agent,
        SystemTime::now(),
    )
    .unwrap();
    assert!(
        world
            .ask(&Node::new(), Proof::Certificate, None, Some(&shown))
            .await
            .is_err()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_denied_gets_nothing_until_that_is_lifted() {
    let world = world().await;
    let proof = world.account_token("t1", "n1");
    let node = world.enrolled(proof.clone(), None).await;
    let own = node.credentials();
    world.deny("spiffe://kit.example/towline/agent/n1\n").await;
    let again = world.ask(&node, proof.clone(), None, None).await;
    assert_eq!(refusal(again), Refusal::Denied);
    assert!(
        world
            .ask(&node, Proof::Certificate, None, Some(&own))
            .await
            .is_err()
    );
    let (_, join) = world.join_token("n1", SystemTime::now() + HOUR).await;
    assert_eq!(world.refused(join, None).await, Refusal::Denied);
    world.deny("").await;
    assert!(matches!(
        world.ask(&node, proof, None, None).await,
        Ok(EnrolReply::Issued(_))
    ));
    assert!(matches!(
        world.ask(&node, Proof::Certificate, None, Some(&own)).await,
        Ok(EnrolReply::Issued(_))
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_of_another_node_is_refused_with_an_alarm() {
    let world = world().await;
    let first = world.account_token("t1", "n1");
    world.enrolled(first, None).await;
    world.kube.put_node("n2", &["10.0.0.1"]);
    let second = world.account_token("t2", "n2");
    assert_eq!(
        world.refused(second.clone(), None).await,
        Refusal::AddressTaken
    );
    // A cloud gave the address of a machine that is gone to the next one.
    world.kube.remove_node("n1");
    let node = world.enrolled(second, None).await;
    assert_eq!(node.leaf().ip_sans, [node_ip(1)]);
}
