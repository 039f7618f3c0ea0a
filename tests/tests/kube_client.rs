//! Our client of the Kubernetes API against a fake one over real TLS: credentials, bounds,
//! conflicts, watches.

use std::time::{Duration, SystemTime};

use serde_json::json;
use towline_link::kube::count::{LeaseCount, Verb};
use towline_link::kube::lease::{Lease, Leases};
use towline_link::kube::moment::Moment;
use towline_link::kube::watch::Event;
use towline_link::kube::{Access, Client, KubeError, review};
use towline_proto::limits;
use towline_tests::authority::{Authority, Flaw};
use towline_tests::kube::{FakeKube, Mood, Token};
use towline_tests::scratch::{self, Scratch};

const NS: &str = "kube-system";
const LABEL: &str = "k8s-app=konnectivity-server";

struct World {
    kube: FakeKube,
    client: Client,
    scratch: Scratch,
    token: std::path::PathBuf,
}

async fn world() -> World {
    let authority = Authority::new("kube.example");
    let kube = FakeKube::start(&authority).await.unwrap();
    kube.caller("secret", "towline");
    let scratch = Scratch::new().unwrap();
    let (config, token) = kube.kubeconfig(&scratch, "secret\n").unwrap();
    let access = Access::load(Some(&config), &|_| None).unwrap();
    World {
        kube,
        client: Client::new(access),
        scratch,
        token,
    }
}

fn lease(name: &str, age: u64) -> Lease {
    let renewed = SystemTime::now() - Duration::from_secs(age);
    let mut lease = Lease::default();
    lease.metadata.name = name.to_owned();
    let (key, value) = LABEL.split_once('=').unwrap();
    lease
        .metadata
        .labels
        .insert(key.to_owned(), value.to_owned());
    lease.spec.holder_identity = Some(name.to_owned());
    lease.spec.lease_duration_seconds = Some(30);
    lease.spec.renew_time = Some(Moment(renewed));
    lease
}

fn object(lease: &Lease) -> serde_json::Value {
    serde_json::to_value(lease).unwrap()
}

#[tokio::test]
async fn leases_are_made_changed_and_removed_under_the_rules_of_versions() {
    let world = world().await;
    let leases = Leases::new(world.client.clone(), NS);
    let missing = leases.get("a").await.unwrap_err();
    assert!(missing.is_not_found(), "{missing}");

    let made = leases.create(&lease("a", 0)).await.unwrap();
    assert!(!made.metadata.resource_version.is_empty() && !made.metadata.uid.is_empty());
    let twice = leases.create(&lease("a", 0)).await.unwrap_err();
    assert!(
        twice.is_conflict() && twice.reason() == Some("AlreadyExists"),
        "{twice}"
    );

    let mut changed = made.clone();
    changed.spec.renew_time = Some(Moment(SystemTime::now()));
    let newer = leases.update(&changed).await.unwrap();
    assert_ne!(
        newer.metadata.resource_version,
        made.metadata.resource_version
    );
    let late = leases.update(&changed).await.unwrap_err();
    assert!(
        late.is_conflict() && late.reason() == Some("Conflict"),
        "{late}"
    );

    let stale = leases.delete(&made).await.unwrap_err();
    assert!(stale.is_conflict(), "{stale}");
    leases.delete(&newer).await.unwrap();
    assert!(world.kube.leases(NS).is_empty());
    assert!(leases.delete(&newer).await.unwrap_err().is_not_found());
    // One connection carried all of it.
    assert_eq!(world.kube.connections(), 1);
}

#[tokio::test]
async fn a_list_obeys_the_selector() {
    let world = world().await;
    world.kube.put_lease(NS, object(&lease("a", 0)));
    world
        .kube
        .put_lease(NS, json!({"metadata": {"name": "other"}, "spec": {}}));
    world.kube.put_lease("elsewhere", object(&lease("b", 0)));
    let leases = Leases::new(world.client.clone(), NS);
    let names = |list: Vec<Lease>| -> Vec<String> {
        list.into_iter().map(|lease| lease.metadata.name).collect()
    };
    assert_eq!(names(leases.list(LABEL).await.unwrap().items), ["a"]);
    assert_eq!(names(leases.list("").await.unwrap().items), ["a", "other"]);
}

#[tokio::test]
async fn a_watch_tells_what_happens_and_when_it_fell_behind() {
    let world = world().await;
    let leases = Leases::new(world.client.clone(), NS);
    let begin = leases.list(LABEL).await.unwrap().metadata.resource_version;
    let mut watch = leases.watch(LABEL, &begin).await.unwrap();
    world
        .kube
        .put_lease(NS, json!({"metadata": {"name": "other"}, "spec": {}}));
    world.kube.put_lease(NS, object(&lease("a", 0)));
    let Some(Event::Is(seen)) = watch.next().await.unwrap() else {
        panic!("an addition");
    };
    assert_eq!(seen.metadata.name, "a");
    world.kube.remove_lease(NS, "a");
    assert!(matches!(watch.next().await.unwrap(), Some(Event::Was(_))));
    world.kube.end_watches();
    assert!(watch.next().await.unwrap().is_none());

    world.kube.compact();
    let mut late = leases.watch(LABEL, &begin).await.unwrap();
    let error = late.next().await.unwrap_err();
    assert!(matches!(error, KubeError::Gone { .. }), "{error}");
}

#[tokio::test]
async fn leases_are_counted_while_they_are_valid() {
    let world = world().await;
    world.kube.put_lease(NS, object(&lease("a", 0)));
    world.kube.put_lease(NS, object(&lease("old", 31)));
    let leases = Leases::new(world.client.clone(), NS);
    let count = LeaseCount::default();
    assert_eq!(count.valid(SystemTime::now()), None);
    let mut changed = count.watch();
    let (told, mut calls) = tokio::sync::mpsc::unbounded_channel();
    let follow = {
        let count = count.clone();
        tokio::spawn(async move {
            count
                .follow(leases, LABEL.to_owned(), |called| {
                    let _ = told.send((called.verb, called.error.is_none()));
                })
                .await;
        })
    };
    let mut until = async |wanted| {
        while count.valid(SystemTime::now()) != Some(wanted) {
            changed.changed().await.unwrap();
        }
    };
    until(1).await;
    world.kube.put_lease(NS, object(&lease("b", 0)));
    until(2).await;
    world.kube.remove_lease(NS, "a");
    until(1).await;
    assert_eq!(calls.recv().await, Some((Verb::List, true)));
    assert_eq!(calls.recv().await, Some((Verb::Watch, true)));
    // A watch that ended is begun anew, from where it was.
    world.kube.end_watches();
    assert_eq!(calls.recv().await, Some((Verb::Watch, true)));
    world.kube.put_lease(NS, object(&lease("c", 0)));
    until(2).await;
    // In a minute nobody has renewed.
    assert_eq!(
        count.valid(SystemTime::now() + Duration::from_secs(60)),
        Some(0)
    );
    follow.abort();
}

#[tokio::test]
async fn a_token_is_reviewed_for_its_audience() {
    let world = world().await;
    let username = "system:serviceaccount:kube-system:konnectivity-agent";
    let good = Token {
        username: username.to_owned(),
        audiences: vec!["system:konnectivity-server".to_owned()],
        expired: false,
        extra: Default::default(),
    };
    world.kube.token("good", good.clone());
    world.kube.token(
        "late",
        Token {
            expired: true,
            ..good
        },
    );
    let ask = async |token: &str, audience: &str| {
        review::token(&world.client, token, &[audience.to_owned()])
            .await
            .unwrap()
    };
    let verdict = ask("good", "system:konnectivity-server").await;
    assert!(verdict.authenticated && verdict.user.username == username);
    assert!(!ask("good", "elsewhere").await.authenticated);
    assert!(
        !ask("unknown", "system:konnectivity-server")
            .await
            .authenticated
    );
    let late = ask("late", "system:konnectivity-server").await;
    assert!(!late.authenticated && late.error.contains("expired"));
}

#[tokio::test]
async fn a_replaced_token_file_is_used_at_the_next_request() {
    let world = world().await;
    let leases = Leases::new(world.client.clone(), NS);
    leases.list(LABEL).await.unwrap();
    world.kube.forget_caller("secret");
    world.kube.caller("newer", "towline");
    let error = leases.list(LABEL).await.unwrap_err();
    assert_eq!(error.status(), Some(401), "{error}");
    scratch::replace(&world.token, "newer").unwrap();
    leases.list(LABEL).await.unwrap();
    scratch::replace(&world.token, "").unwrap();
    let error = leases.list(LABEL).await.unwrap_err();
    assert!(matches!(error, KubeError::Token { .. }), "{error}");
}

#[tokio::test]
async fn a_client_certificate_is_enough() {
    let authority = Authority::new("kube.example");
    let kube = FakeKube::start(&authority).await.unwrap();
    let scratch = Scratch::new().unwrap();
    let pair = authority
        .leaf(towline_proto::id::Role::Operator, "towline")
        .sign();
    let files = pair.write(&scratch, "client").unwrap();
    let user = format!(
        "{{client-certificate: {:?}, client-key: {:?}}}",
        files.cert.display().to_string(),
        files.key.display().to_string()
    );
    let config = kube.write_kubeconfig(&scratch, &user).unwrap();
    let client = Client::new(Access::load(Some(&config), &|_| None).unwrap());
    Leases::new(client, NS).list("").await.unwrap();
}

#[tokio::test]
async fn only_the_right_server_is_spoken_to() {
    let authority = Authority::new("kube.example");
    let stranger = Authority::new("kube.example");
    let scratch = Scratch::new().unwrap();
    let name = "kubernetes.default.svc";
    let here = &[[127, 0, 0, 1].into()][..];
    let elsewhere = &[[127, 0, 0, 2].into()][..];
    let usage = authority
        .kubelet_leaf(name, here)
        .flawed(Flaw::WrongUsage, &authority, &stranger);
    for (what, pair) in [
        ("another CA", stranger.kubelet_leaf(name, here).sign()),
        (
            "another name",
            authority.kubelet_leaf(name, elsewhere).sign(),
        ),
        ("another usage", usage.sign()),
    ] {
        let kube = FakeKube::start_with(&authority, &pair).await.unwrap();
        kube.caller("secret", "towline");
        let (config, _) = kube.kubeconfig(&scratch, "secret").unwrap();
        let client = Client::new(Access::load(Some(&config), &|_| None).unwrap());
        let error = Leases::new(client, NS).list("").await.unwrap_err();
        assert!(
            matches!(error, KubeError::Handshake { .. }),
            "{what}: {error}"
        );
        assert!(kube.requests().is_empty(), "{what}");
    }
}

#[tokio::test]
async fn answers_are_bounded_and_their_text_is_escaped() {
    let world = world().await;
    let leases = Leases::new(world.client.clone(), NS);
    world.kube.mood(Mood::Verbose(limits::KUBE_BODY_BYTES + 1));
    let error = leases.list("").await.unwrap_err();
    assert!(matches!(error, KubeError::TooLarge { .. }), "{error}");
    world.kube.mood(Mood::Refuses(403, "Forbidden".to_owned()));
    let error = leases.list("").await.unwrap_err();
    let text = error.to_string();
    assert!(
        error.status() == Some(403) && !text.contains('\u{1b}'),
        "{text}"
    );
    let error = leases.watch("", "0").await.map(|_| ()).unwrap_err();
    assert_eq!(error.reason(), Some("Forbidden"));
}

#[tokio::test]
async fn an_api_that_does_not_answer_is_given_up() {
    let world = world().await;
    let leases = Leases::new(world.client.clone(), NS);
    leases.list("").await.unwrap();
    world.kube.mood(Mood::Silent);
    let asked = tokio::spawn(async move { leases.list("").await });
    world
        .kube
        .until(NS, |requests, _| requests.len() == 2)
        .await;
    tokio::time::pause();
    let error = asked.await.unwrap().unwrap_err();
    assert!(matches!(error, KubeError::Timeout { .. }), "{error}");
    drop(world.scratch);
}
