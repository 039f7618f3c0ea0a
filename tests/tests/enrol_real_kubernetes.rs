//! Enrolment against a real kube-apiserver with the manifests as they stand: what it says of tokens
//! and of who made a signing request is what the servers read. Needs Go.

use std::path::Path;

use serde_json::{Value, json};
use towline_agent::enrol::EnrolError;
use towline_link::carrier::CarrierKind;
use towline_proto::enrol::{Proof, Token};
use towline_tests::cluster::{links_of, node_ip};
use towline_tests::enrol::{AUDIENCE, EnrolWorld};
use towline_tests::real_kubernetes::World;
use towline_tests::scenario::expect;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// A Node with an address, and the agent's pod on it.
fn node(real: &World, admin: &[std::path::PathBuf; 2], name: &str, ip: &str) -> Value {
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "status": {"addresses": [{"type": "InternalIP", "address": ip}]},
    });
    let made = real.post("/api/v1/nodes", admin, &node, &[]);
    assert_eq!(made["kind"], "Node", "{made}");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("agent-{name}")},
        "spec": {
            "nodeName": name, "serviceAccountName": "towline-agent",
            "automountServiceAccountToken": false,
            "containers": [{"name": "a", "image": "towline-agent:0.1.0"}],
        },
    });
    let made = real.post("/api/v1/namespaces/kube-system/pods", admin, &pod, &[]);
    assert_eq!(made["kind"], "Pod", "{made}");
    made
}

#[ignore = "needs Go"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_kube_apiserver_says_who_enrols() {
    let real = World::new();
    let _api_server = real.api_server();
    let admin = real.user("super-admin.conf");
    for file in [
        "server/deploy/kubelet-serving.yaml",
        "server/deploy/enrol-rbac.yaml",
        "server/deploy/enrol-signer.yaml",
        "agent/deploy/daemonset-enrol-kubernetes.yaml",
    ] {
        real.apply(&repository().join(file), &admin);
    }
    let pod = node(&real, &admin, "n1", "10.0.0.1");
    let second = node(&real, &admin, "n2", "10.0.0.2");

    let mut world = EnrolWorld::prepared(CarrierKind::Tls, &["--enrol-signing-requests"]).await;
    let server = real.kubeconfig(&real.token("towline-server", None, None));
    world.scratch.write("kubeconfig", server).unwrap();
    world.restart().await.unwrap();

    // By a signing request, with the token that the pod's API volume holds.
    let args = |state: &str, node: &str, token: &str| {
        let mut args = world.kube_agent_args(state, &["--cluster", "kit.example"]);
        let file = world
            .scratch
            .write("agent-config", real.kubeconfig(token))
            .unwrap();
        let mut change = |flag: &str, value: String| {
            let at = args.iter().position(|arg| arg == flag).unwrap();
            args[at + 1] = value;
        };
        change("--kubeconfig", file.display().to_string());
        change("--node-name", node.to_owned());
        args
    };
    let token = real.token("towline-agent", None, Some(&pod));
    let agent = expect("the certificate", world.agent(1, &args("n1", "n1", &token))).await;
    expect("the link", links_of(&agent, 1)).await;
    let path = world.scratch.join("n1/agent.crt");
    let chain = towline_pki::store::read_certificates(&path).unwrap();
    let leaf = towline_pki::Leaf::parse(&chain[0]).unwrap();
    assert_eq!(
        leaf.identity.to_string(),
        "spiffe://kit.example/towline/agent/n1"
    );
    assert_eq!(leaf.ip_sans, [node_ip(1)]);

    // Another node's name, and a token that is bound to no pod.
    for (token, reason) in [
        (
            real.token("towline-agent", None, Some(&second)),
            "OtherNode",
        ),
        (real.token("towline-agent", None, None), "Unbound"),
    ] {
        let args = args("thief", "n1", &token);
        let args = <towline_agent::args::Args as clap::Parser>::try_parse_from(args).unwrap();
        let config = towline_agent::config::Config::from_args(args).unwrap();
        let enrolling = config.enrolling.unwrap();
        match expect("the refusal", enrolling.once(None)).await {
            Err(EnrolError::Decided { reason: found, .. }) => assert_eq!(found, reason),
            other => panic!("{other:?}"),
        }
    }

    // By the token itself, at the server's door.
    let token = real.token("towline-agent", Some(AUDIENCE), Some(&second));
    let proof = Proof::ServiceAccount(Token::new(&token).unwrap());
    let enrolled = world.enrolled(proof, Some("n2")).await;
    assert_eq!(enrolled.leaf().ip_sans, [node_ip(2)]);
}
