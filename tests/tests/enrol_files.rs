//! What lies in the state directory of an agent that enrols: after a crash at any point, and after
//! a first contact with a server that is not the one.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Parser;
use towline_agent::enrol::files::{asked_key, key_to_ask_with, put};
use towline_agent::enrol::{EnrolError, Enrolling};
use towline_link::carrier::CarrierKind;
use towline_link::error::ConnectError;
use towline_pki::join::JoinEntry;
use towline_pki::{JoinFile, JoinToken, PeerError, PrivateKey, store};
use towline_proto::id::Role;
use towline_tests::authority::PairFiles;
use towline_tests::enrol::EnrolWorld;
use towline_tests::scenario::expect;

fn enrolling(args: &[String]) -> Arc<Enrolling> {
    let args = towline_agent::args::Args::try_parse_from(args).unwrap();
    let config = towline_agent::config::Config::from_args(args).unwrap();
    config.enrolling.unwrap()
}

async fn world() -> (EnrolWorld, Vec<String>) {
    let world = EnrolWorld::start(CarrierKind::Tls, &[]).await;
    world.kube.put_node("n1", &["10.0.0.1"]);
    let _ = world.account_token("token", "n1");
    let token = world.token_file("token", "token").display().to_string();
    let ca = world.scratch.join("servers.ca").display().to_string();
    let args = world.agent_args("n1", &["--enrol-token-file", &token, "--server-ca", &ca]);
    (world, args)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_point_leaves_a_pair_that_works() {
    let (world, args) = world().await;
    let enrolling = enrolling(&args);
    let now = SystemTime::now();
    let old = expect("a certificate", enrolling.once(None)).await.unwrap();
    let files = enrolling.config().files.clone();
    let (key, next, asked) = (
        files.key.clone(),
        store::next_key(&files.key),
        asked_key(&files.key),
    );
    let renewed = world.authority.leaf(Role::Agent, "n1").sign();
    let paths = PairFiles {
        cert: world.scratch.join("r.crt"),
        key: world.scratch.join("r.key"),
    };
    renewed.replace(&paths).unwrap();
    let read = |path: &std::path::Path| fs::read(path).unwrap();
    let (old_cert, old_key) = (read(&files.cert), read(&key));
    let (new_cert, new_key) = (read(&paths.cert), read(&paths.key));
    let serial = |what: &str| {
        let loaded = enrolling
            .load(now)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        loaded
            .trust
            .material
            .credentials()
            .leaf()
            .serial
            .to_string()
    };
    // The key of a request that was not answered.
    store::write_secret(
        &asked,
        &towline_pki::Secret::new(new_key.clone()),
        store::Replace::Atomically,
    )
    .unwrap();
    assert_eq!(serial("asked"), old.serial.to_string());
    // The new key waits beside the old pair.
    store::write_secret(
        &next,
        &towline_pki::Secret::new(new_key.clone()),
        store::Replace::Atomically,
    )
    .unwrap();
    assert_eq!(serial("next"), old.serial.to_string());
    // The new certificate is there, the new key still waits.
    fs::write(&files.cert, &new_cert).unwrap();
    assert_eq!(serial("certificate"), renewed.serial);
    // The new pair, and the request's key was not removed.
    fs::rename(&next, &key).unwrap();
    assert_eq!(serial("pair"), renewed.serial);
    // From here the next request is made and put in place as any other, with the kubelet's next
    // token: the first one was used for another key.
    let renew_token = |text: &str| {
        let _ = world.account_token(text, "n1");
        world.token_file("token", text);
    };
    renew_token("token-2");
    expect("a certificate", enrolling.once(None)).await.unwrap();
    assert!(!asked.exists() && !next.exists());
    // Half of a file is no pair: a new certificate is asked for.
    fs::write(&files.cert, &old_cert[..old_cert.len() / 2]).unwrap();
    fs::write(&key, &old_key).unwrap();
    assert!(enrolling.load(now).is_err());
    renew_token("token-3");
    expect("a certificate", enrolling.once(None)).await.unwrap();
    assert!(enrolling.load(SystemTime::now()).is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unanswered_request_is_repeated_with_its_key_and_a_damaged_key_is_not() {
    let (_world, args) = world().await;
    let enrolling = enrolling(&args);
    let config = enrolling.config();
    let first = key_to_ask_with(config).unwrap().public().hash();
    assert_eq!(key_to_ask_with(config).unwrap().public().hash(), first);
    fs::write(asked_key(&config.files.key), "nonsense").unwrap();
    let second = key_to_ask_with(config).unwrap();
    assert_ne!(second.public().hash(), first);
    // What does not belong together is never put in place.
    let other = PrivateKey::generate(Default::default()).unwrap();
    assert!(enrolling.load(SystemTime::now()).is_err());
    assert!(put(config, &[], &[], &other).is_ok());
    assert!(enrolling.load(SystemTime::now()).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_authority_the_join_token_does_not_name_gets_no_token() {
    let world = EnrolWorld::start(CarrierKind::Tls, &[]).await;
    let cluster = "kit.example".parse().unwrap();
    let token = JoinToken::make(cluster, vec![[7; 32]]).unwrap();
    let hour = Duration::from_secs(3600);
    let entry = JoinEntry::new(
        &token,
        "n1".parse().unwrap(),
        SystemTime::now() + hour,
        Vec::new(),
    );
    JoinFile::with(vec![entry.unwrap()])
        .write(&world.scratch.join("join-tokens"))
        .unwrap();
    world.reload().await.unwrap();
    let text = token.to_text();
    let file = world.token_file("join", std::str::from_utf8(text.expose()).unwrap());
    let args = world.agent_args("n1", &["--join-token-file", file.to_str().unwrap()]);
    let error = expect("the verdict", enrolling(&args).once(None))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            EnrolError::Connect(ConnectError::Peer {
                source: PeerError::UnknownIssuer,
                ..
            })
        ),
        "{error:?}"
    );
    assert!(!world.scratch.join("n1/server-ca.crt").exists());
    assert!(world.audit().of("enrolment").is_empty());
    // Another cluster's server below the right authority.
    let (good, _) = world.join_token("n1", SystemTime::now() + hour).await;
    let text = good.to_text();
    let text = std::str::from_utf8(text.expose())
        .unwrap()
        .replace("kit.example", "other.example");
    let file = world.token_file("join-2", &text);
    let args = world.agent_args("n2", &["--join-token-file", file.to_str().unwrap()]);
    let error = expect("the verdict", enrolling(&args).once(None))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            EnrolError::Connect(ConnectError::Peer {
                source: PeerError::WrongCluster { .. },
                ..
            })
        ),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_token_that_others_can_read_is_refused_with_the_remedy() {
    use std::os::unix::fs::PermissionsExt;
    let world = EnrolWorld::start(CarrierKind::Tls, &[]).await;
    let file = world.token_file("join", "towline-join:x");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let args = world.agent_args("n1", &["--join-token-file", file.to_str().unwrap()]);
    let error = enrolling(&args).once(None).await.unwrap_err().to_string();
    assert!(error.contains("chmod 0600"), "{error}");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let error = enrolling(&args).once(None).await.unwrap_err().to_string();
    assert!(
        error.contains("token create") && !error.contains("join:x"),
        "{error}"
    );
}
