//! Certificates of agents by signing requests of the Kubernetes API, from the request to a dial:
//! by the API alone, renewed, recovered, and what a person reads when there is none.

use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towline_agent::enrol::files::asked_key;
use towline_agent::enrol::{EnrolError, Enrolling};
use towline_link::carrier::CarrierKind;
use towline_link::kube::csr::encoded;
use towline_pki::Leaf;
use towline_proto::id::Role;
use towline_tests::authority::PairFiles;
use towline_tests::cluster::{links_of, node_ip};
use towline_tests::enrol::EnrolWorld;
use towline_tests::kube::Mood;
use towline_tests::kube::signing::decisions;
use towline_tests::scenario::{eventually, expect};
use towline_tests::scenarios;
use towline_tests::target::{Behaviour, Target};

const POD: &str = "10.244.0.5:8080";
const ON: &str = "--enrol-signing-requests";

fn enrolling(args: &[String]) -> Arc<Enrolling> {
    let args = towline_agent::args::Args::try_parse_from(args).unwrap();
    let config = towline_agent::config::Config::from_args(args).unwrap();
    config.enrolling.unwrap()
}

fn leaf(world: &EnrolWorld, state: &str) -> Leaf {
    let path = world.scratch.join(state).join("agent.crt");
    let chain = towline_pki::store::read_certificates(&path).unwrap();
    Leaf::parse(&chain[0]).unwrap()
}

async fn echo(world: &EnrolWorld) -> Target {
    let target = Target::start(Behaviour::Echo).await.unwrap();
    world.wire.lead(POD.parse().unwrap(), target.address());
    target
}

async fn echoes(pipe: &mut towline_tests::apiserver::Pipe) {
    let mut echo = [0; 4];
    pipe.write_all(b"ping").await.unwrap();
    expect("the echo", pipe.read_exact(&mut echo))
        .await
        .unwrap();
    assert_eq!(&echo, b"ping");
}

scenarios! {
    async fn an_agent_enrols_by_a_signing_request_and_serves(carrier) {
        let world = EnrolWorld::start(carrier, &[ON]).await;
        let _target = echo(&world).await;
        world.kube.put_node("n1", &["10.0.0.1", "10.244.0.9", "192.0.2.7"]);
        let args = world.kube_agent_args("n1", &["--cluster", "kit.example"]);
        let agent = expect("the certificate", world.agent(1, &args)).await;
        expect("the link", links_of(&agent, 1)).await;
        echoes(&mut world.apiserver().pipe(POD).await).await;
        let leaf = leaf(&world, "n1");
        assert_eq!(leaf.identity.to_string(), "spiffe://kit.example/towline/agent/n1");
        assert_eq!(leaf.ip_sans, [node_ip(1)]);
        let made = world.kube.signing_requests();
        let [request] = &made[..] else { panic!("{made:?}") };
        assert_eq!(decisions(request), ["Approved"]);
        assert_eq!(request["spec"]["signerName"], "towline.dev/agent");
        let name = request["metadata"]["name"].as_str().unwrap();
        assert!(name.starts_with("towline-agent-"), "{name}");
        // Counted, recorded and written down as every enrolment is.
        let record = world.audit().record("enrolment", |line| line["event"] == "enrolment").await;
        assert_eq!(
            (&record["node"], &record["outcome"], &record["proof"], &record["request"]),
            (&"n1".into(), &"issued".into(), &"signing-request".into(), &name.into()),
            "{record}"
        );
        assert_eq!(record["agent_serial"], leaf.serial.to_string());
        world.audit().record("the approval", |line| line["event"] == "signing" && line["outcome"] == "approved").await;
        let ledger = std::fs::read_to_string(world.scratch.join("state/issued.jsonl")).unwrap();
        assert!(ledger.contains(&leaf.serial.to_string()), "{ledger}");
        assert!(!world.scratch.join("n1/agent.key.asked").exists());
        // Somebody else with a token of its pod makes no second holder beside it.
        let mut theirs = request.clone();
        theirs["metadata"] = json!({"name": "stolen"});
        theirs["status"] = json!({});
        let key = towline_pki::PrivateKey::generate(towline_pki::KeyKind::default()).unwrap();
        let spec = towline_pki::agent_request::AgentRequest::spec(&"n1".parse().unwrap(), None);
        theirs["spec"]["request"] = json!(encoded(spec.make(&key).unwrap().as_bytes()));
        theirs["spec"]["extra"] = json!(towline_tests::kube::signing::pod_extra("n1"));
        world.kube.put_request(theirs);
        let denied = |all: &[serde_json::Value]| {
            all.iter().any(|one| one["status"]["conditions"][0]["reason"] == "NameTaken" && decisions(one) == ["Denied"])
        };
        expect("the denial", world.kube.until_requests(denied)).await;
        // No connection for enrolment was made, no token was sent to the server.
        assert!(world.kube.requests().iter().all(|one| !one.contains("tokenreviews")));
    }

    async fn renewal_is_another_request_and_keeps_links_and_dials(carrier) {
        let world = EnrolWorld::start(carrier, &[ON, "--enrol-certificate-life", "60s"]).await;
        let _target = echo(&world).await;
        world.kube.put_node("n1", &["10.0.0.1"]);
        let args = world.kube_agent_args("n1", &[]);
        let agent = expect("the certificate", world.agent(1, &args)).await;
        expect("the link", links_of(&agent, 1)).await;
        let mut pipe = world.apiserver().pipe(POD).await;
        let before = leaf(&world, "n1").serial;
        eventually("a renewed certificate", || async {
            (leaf(&world, "n1").serial != before).then_some(())
        }).await;
        assert!(world.kube.signing_requests().len() >= 2);
        echoes(&mut pipe).await;
    }

    async fn an_agent_whose_certificate_ended_recovers_by_a_request(carrier) {
        let world = EnrolWorld::start(carrier, &[ON]).await;
        let _target = echo(&world).await;
        world.kube.put_node("n1", &["10.0.0.1"]);
        let ended = world.authority.leaf(Role::Agent, "n1").ends_in(Duration::from_secs(1)).sign();
        let state = world.scratch.join("n1");
        std::fs::create_dir(&state).unwrap();
        ended.replace(&PairFiles { cert: state.join("agent.crt"), key: state.join("agent.key") }).unwrap();
        let path = state.join("agent.crt");
        eventually("its end", || async {
            let chain = towline_pki::store::read_certificates(&path).unwrap();
            // Valid to the last moment of that second.
            let end = Leaf::parse(&chain[0]).unwrap().not_after + Duration::from_secs(1);
            let over = end < std::time::SystemTime::now();
            over.then_some(())
        }).await;
        let args = world.kube_agent_args("n1", &[]);
        let agent = expect("a new certificate", world.agent(1, &args)).await;
        expect("the link", links_of(&agent, 1)).await;
        echoes(&mut world.apiserver().pipe(POD).await).await;
        assert_ne!(leaf(&world, "n1").serial.to_string(), ended.serial);
    }

    async fn an_api_that_was_away_is_asked_again(carrier) {
        let world = EnrolWorld::start(carrier, &[ON]).await;
        world.kube.put_node("n1", &["10.0.0.1"]);
        world.kube.mood(Mood::Refuses(503, "ServiceUnavailable".into()));
        let args = world.kube_agent_args("n1", &[]);
        let before = world.kube.requests().len();
        let mut starting = Box::pin(world.agent(1, &args));
        let asked = world.kube.until("x", |requests, _| {
            requests[before..].iter().any(|one| one.starts_with("POST") && one.contains("certificatesigningrequests"))
        });
        tokio::select! {
            () = asked => {}
            _ = &mut starting => panic!("nobody answered"),
        }
        world.kube.mood(Mood::Good);
        let agent = expect("the certificate", starting).await;
        expect("the link", links_of(&agent, 1)).await;
    }
}

async fn one_certificate(args: &[String]) -> Result<Leaf, EnrolError> {
    expect("an answer", enrolling(args).once(None)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_request_is_told_to_the_person_and_may_succeed_later() {
    let world = EnrolWorld::start(CarrierKind::Tls, &[ON]).await;
    world.kube.put_node("n1", &["10.0.0.1"]);
    let args = world.kube_agent_args("n1", &[]);
    world.deny("spiffe://kit.example/towline/agent/n1\n").await;
    let error = one_certificate(&args).await.unwrap_err();
    let EnrolError::Decided { reason, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(reason, "DenyListed");
    let text = error.to_string();
    for word in ["towline-agent-", "denied", "n1", "--lift"] {
        assert!(text.contains(word), "{text}");
    }
    assert_eq!(error.as_str(), "signing-request-denied");
    let refused = |line: &Value| line["outcome"] == "refused" && line["reason"] == "denied";
    let record = world.audit().record("the refusal", refused).await;
    assert_eq!(record["proof"], "signing-request", "{record}");
    assert_eq!(record["node"], "n1");
    world.deny("").await;
    one_certificate(&args).await.unwrap();
    // Each attempt is a request of its own: what is denied stays denied.
    assert_eq!(world.kube.signing_requests().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_waits_for_a_server_and_is_not_made_twice() {
    let mut world = EnrolWorld::prepared(CarrierKind::Tls, &[ON]).await;
    world.at(([127, 0, 0, 1], 1).into());
    world.kube.put_node("n1", &["10.0.0.1"]);
    let args = world.kube_agent_args("n1", &[]);
    let enrolling = enrolling(&args);
    // Given up once, as at the end of an attempt: the next one goes on with the same request.
    let first = enrolling.once(None);
    let watched = |one: &String| one.contains("metadata.name");
    let made = world
        .kube
        .until("x", |requests, _| requests.iter().any(watched));
    tokio::select! {
        () = made => {}
        _ = first => panic!("nobody signs yet"),
    }
    let name = world.kube.signing_requests()[0]["metadata"]["name"].clone();
    let why = enrolling.why();
    assert!(
        why.contains(name.as_str().unwrap()) && why.contains("not decided"),
        "{why}"
    );
    let asking = Arc::clone(&enrolling);
    let again = tokio::spawn(async move { asking.once(None).await });
    world.at(([127, 0, 0, 1], 0).into());
    world.restart().await.unwrap();
    expect("the certificate", again).await.unwrap().unwrap();
    assert_eq!(world.kube.signing_requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_rights_are_named_with_the_remedy() {
    let world = EnrolWorld::start(CarrierKind::Tls, &[ON]).await;
    world.kube.put_node("n1", &["10.0.0.1"]);
    let args = world.kube_agent_args("n1", &[]);
    world.kube.withdraw("create");
    let error = one_certificate(&args).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("403") && text.contains("daemonset-enrol-kubernetes.yaml"),
        "{text}"
    );
    assert!(error.is_temporary() && error.as_str() == "api");
}

/// What somebody who may sign, but is none of our servers, puts into the request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_is_not_this_nodes_is_not_put_in_place() {
    let mut world = EnrolWorld::prepared(CarrierKind::Tls, &[]).await;
    world.at(([127, 0, 0, 1], 1).into());
    let other = ["--cluster", "other.example"];
    let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    // Another node's, another cluster's, of a key that is not ours, and no certificate.
    let cases = [
        ("n1", &[][..], world.pair("n2").cert_pem, "identity"),
        ("n2", &other, world.pair("n2").cert_pem, "identity"),
        ("n3", &[], world.pair("n3").cert_pem, "certificate"),
        ("n4", &[], nonsense.to_owned(), "answer"),
    ];
    for (number, (node, flags, pem, word)) in cases.into_iter().enumerate() {
        let args = world.kube_agent_args(node, flags);
        let enrolling = enrolling(&args);
        let asking = Arc::clone(&enrolling);
        let answer = tokio::spawn(async move { asking.once(None).await });
        expect(
            "the request",
            world.kube.until_requests(|all| all.len() == number + 1),
        )
        .await;
        let mut object = world.kube.signing_requests().pop().unwrap();
        object["status"]["certificate"] = json!(encoded(pem.as_bytes()));
        world.kube.put_request(object);
        let error = expect("the verdict", answer).await.unwrap().unwrap_err();
        assert_eq!(error.as_str(), word, "{error}");
        let files = &enrolling.config().files;
        assert!(!files.cert.exists() && !files.key.exists(), "{node}");
        assert!(asked_key(&files.key).exists());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_or_contradicts_itself_is_refused_at_the_start() {
    let world = EnrolWorld::start(CarrierKind::Tls, &[ON]).await;
    let good = world.kube_agent_args("n1", &[]);
    let error = |change: &dyn Fn(&mut Vec<String>)| {
        let mut args = good.clone();
        change(&mut args);
        match towline_agent::args::Args::try_parse_from(&args) {
            Err(error) => error.to_string(),
            Ok(args) => towline_agent::config::Config::from_args(args)
                .map(|_| ())
                .unwrap_err()
                .to_string(),
        }
    };
    let without = |flag: &'static str| {
        move |args: &mut Vec<String>| {
            let at = args.iter().position(|arg| arg == flag).unwrap();
            args.drain(at..at + 2);
        }
    };
    assert!(error(&without("--node-name")).contains("spec.nodeName"));
    assert!(error(&without("--server-ca")).contains("--server-ca"));
    assert!(error(&without("--kubeconfig")).contains("--kubeconfig"));
    assert!(error(&without("--state-dir")).contains("--state-dir"));
    let with = |flags: &'static [&'static str]| {
        move |args: &mut Vec<String>| args.extend(flags.iter().map(ToString::to_string))
    };
    assert!(error(&with(&["--enrol-token-file", "/t"])).contains("--enrol kubernetes"));
    assert!(error(&with(&["--enrol-signer", "kubernetes.io/x"])).contains("not ours"));
}
