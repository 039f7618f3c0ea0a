//! With an authority of its own the server signs what is right, and nothing else.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use towline_link::kube::csr::{SigningRequest, encoded};
use towline_pki::kubelet::{ServingSpec, issued_by};
use towline_pki::store::{self, Replace};
use towline_pki::{AuthoritySpec, Certificate, KeyKind, PrivateKey, Usage};
use towline_proto::limits;
use towline_server::csr::issuer::{Issuer, IssuerFiles};
use towline_tests::kube::signing::decisions;

use crate::world::*;

fn authority(world: &World, name: &str, usages: &[Usage]) -> Arc<Issuer> {
    let now = SystemTime::now();
    let spec = AuthoritySpec {
        purpose: name.into(),
        organisation: String::new(),
        not_before: now - Duration::from_secs(600),
        not_after: now + limits::SERVING_LIFE_MOST * 2,
        path_length: Some(0),
        usages: usages.to_vec(),
    };
    let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
    let made = towline_pki::Authority::create(&spec, key).unwrap();
    let files = IssuerFiles {
        cert: world.scratch.join(format!("{name}.crt")),
        key: world.scratch.join(format!("{name}.key")),
    };
    store::write_public(&files.cert, &made.to_pem(), Replace::Never).unwrap();
    store::write_secret(&files.key, &made.key_to_pem(), Replace::Never).unwrap();
    Issuer::load(files, now).unwrap()
}

fn certificate(request: &Value) -> (Vec<u8>, Certificate) {
    let request: SigningRequest = serde_json::from_value(request.clone()).unwrap();
    let text = request.certificate().expect("a certificate");
    let der = towline_pki::pem::certificates(&text).unwrap();
    let read = Certificate::parse(&der[0]).unwrap();
    (text, read)
}

#[tokio::test]
async fn with_an_authority_of_our_own_we_sign_what_is_right() {
    let world = World::new().await;
    world.kube.put_node("n1", &["10.0.0.1", "n1"]);
    let issuer = authority(&world, "kubelets", &[]);
    let _approver = world.approver(Options {
        issuer: Some(Arc::clone(&issuer)),
        ..Options::default()
    });
    let mut short = object("short", &asked());
    short["spec"]["expirationSeconds"] = json!(3_600);
    world.kube.put_request(object("a", &asked()));
    world.kube.put_request(short);
    world.decided("a", "certificate").await;
    world.decided("short", "certificate").await;
    let request = world.kube.request("a").unwrap();
    assert_eq!(decisions(&request), ["Approved"]);
    let (text, read) = certificate(&request);
    assert!(issuer.signed(&text));
    assert_eq!(read.common_names, Some(vec!["system:node:n1".into()]));
    assert_eq!(read.dns_sans, ["n1"]);
    assert_eq!(read.usages, [Usage::ServerAuth]);
    let life = |read: &Certificate| read.not_after.duration_since(SystemTime::now()).unwrap();
    assert!(life(&read) > limits::SERVING_LIFE - Duration::from_secs(600));
    let (_, read) = certificate(&world.kube.request("short").unwrap());
    assert!(life(&read) <= Duration::from_secs(3_600));
}

/// Somebody approved by hand what our rules refuse: it is not signed, and says why.
#[tokio::test]
async fn what_others_approve_is_signed_only_when_it_is_right() {
    let world = World::new().await;
    world.kube.put_node("n1", &["10.0.0.1", "n1"]);
    let _approver = world.approver(Options {
        issuer: Some(authority(&world, "kubelets", &[])),
        ..Options::default()
    });
    let approved = json!([{"type": "Approved", "status": "True", "reason": "ByHand"}]);
    let mut wrong = object("wrong", &with_dns("kubernetes.default.svc"));
    wrong["status"]["conditions"] = approved.clone();
    let mut right = object("right", &asked());
    right["status"]["conditions"] = approved;
    world.kube.put_request(wrong);
    world.kube.put_request(right);
    world.decided("right", "certificate").await;
    world.decided("wrong", "Failed").await;
    let request = world.kube.request("wrong").unwrap();
    assert_eq!(decisions(&request), ["Approved", "Failed"]);
    assert_eq!(request["status"]["certificate"], Value::Null);
}

#[tokio::test]
async fn a_second_signer_is_an_alarm() {
    let world = World::new().await;
    world.kube.put_node("n1", &["10.0.0.1", "n1"]);
    let (ours, theirs) = (
        authority(&world, "ours", &[]),
        authority(&world, "theirs", &[]),
    );
    let now = SystemTime::now();
    let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap().public();
    let spec = ServingSpec {
        node: "n1".parse().unwrap(),
        dns: vec!["n1".parse().unwrap()],
        ips: vec![],
        life: None,
    };
    let sign = |by: &Arc<Issuer>| {
        let authority = by.read_again(now).unwrap();
        let issued = spec.issue(&authority, &key, now).unwrap();
        assert!(issued_by(issued.to_pem().as_bytes(), &authority));
        encoded(issued.to_pem().as_bytes())
    };
    let approver = world.approver(Options {
        issuer: Some(Arc::clone(&ours)),
        ..Options::default()
    });
    for (name, certificate) in [("ours", sign(&ours)), ("theirs", sign(&theirs))] {
        let mut object = object(name, &asked());
        object["status"] = json!({
            "conditions": [{"type": "Approved", "status": "True"}],
            "certificate": certificate,
        });
        world.kube.put_request(object);
    }
    let labels = "{signer=\"kubelet-serving\",outcome=\"foreign\"}";
    approver
        .counted(&format!("towline_server_csr_decisions_total{labels} 1"))
        .await;
}

#[tokio::test]
async fn an_authority_that_may_not_sign_servers_signs_nothing() {
    let world = World::new().await;
    world.kube.put_node("n1", &["10.0.0.1", "n1"]);
    let approver = world.approver(Options {
        issuer: Some(authority(&world, "clients", &[Usage::ClientAuth])),
        ..Options::default()
    });
    world.kube.put_request(object("a", &asked()));
    approver.refused("NotSigned").await;
    assert_eq!(world.decisions("a"), ["Approved"]);
}
