//! The approver in a whole server: its flags, the certificates of linked agents, its records.

use serde_json::json;
use towline_link::kube::csr::encoded;
use towline_pki::{KeyKind, PrivateKey, RequestSpec};
use towline_tests::cluster::{Plan, node_ip};
use towline_tests::kube::FakeKube;
use towline_tests::kube::signing::decisions;
use towline_tests::scenario::{eventually, expect};
use towline_tests::scenarios;
use towline_tests::scratch::Scratch;

fn object(name: &str, node: &str, ip: std::net::IpAddr) -> serde_json::Value {
    let spec = RequestSpec {
        organisation: "system:nodes".into(),
        common_name: format!("system:node:{node}"),
        dns: vec![node.into()],
        ips: vec![ip],
        ..RequestSpec::default()
    };
    let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
    json!({
        "metadata": {"name": name},
        "spec": {
            "request": encoded(spec.make(&key).unwrap().as_bytes()),
            "signerName": "kubernetes.io/kubelet-serving",
            "usages": ["digital signature", "key encipherment", "server auth"],
            "username": format!("system:node:{node}"),
            "groups": ["system:nodes"],
        },
    })
}

scenarios! {
    async fn a_linked_agents_certificate_decides_over_node_objects(carrier) {
        let authority = towline_tests::authority::Authority::new("kube.example");
        let kube = FakeKube::start(&authority).await.unwrap();
        kube.caller("secret", "towline-server");
        let scratch = Scratch::new().unwrap();
        let (config, _) = kube.kubeconfig(&scratch, "secret").unwrap();
        // n2 says that it has n1's address; neither says where nodes are.
        kube.put_node("n1", &[]);
        kube.put_node("n2", &[&node_ip(1).to_string()]);
        let cluster = Plan::on(carrier)
            .agents(1)
            .server_flags(&[
                "--kubelet-serving-approver",
                "--kubeconfig",
                &config.display().to_string(),
            ])
            .start()
            .await;
        kube.put_request(object("theirs", "n2", node_ip(1)));
        kube.put_request(object("own", "n1", node_ip(1)));
        let approved = |all: &[serde_json::Value]| {
            all.iter().any(|one| decisions(one) == ["Approved"])
        };
        expect("an approval", kube.until_requests(approved)).await;
        let records = || async {
            let lines = std::fs::read_to_string(cluster.audit(0).log()).unwrap_or_default();
            let signing: Vec<_> = lines
                .lines()
                .filter(|line| line.contains("\"event\":\"signing\""))
                .map(str::to_owned)
                .collect();
            (signing.len() >= 2).then_some(signing)
        };
        let records = eventually("two records", records).await;
        let of = |name: &str| {
            let key = format!("\"request\":\"{name}\"");
            records.iter().find(|line| line.contains(&key)).cloned().unwrap()
        };
        assert!(of("own").contains("\"outcome\":\"approved\""), "{records:?}");
        assert!(of("own").contains("\"node\":\"n1\""));
        assert!(of("theirs").contains("\"outcome\":\"waiting\""));
        assert!(of("theirs").contains("\"reason\":\"OfOther\""));
        assert!(decisions(&kube.request("theirs").unwrap()).is_empty());
    }
}

#[tokio::test]
async fn flags_that_do_not_fit_are_refused_with_what_to_do() {
    for (flags, wanted) in [
        (
            &["--kubelet-serving-domain", "x.example"][..],
            "--kubelet-serving-approver",
        ),
        (&["--kubeconfig", "/none"], "--kubeconfig"),
        (
            &[
                "--kubelet-serving-approver",
                "--kubelet-serving-signer-key",
                "/none",
            ],
            "--kubelet-serving-signer-certificate",
        ),
        (
            &["--kubelet-serving-approver", "--kubeconfig", "/none"],
            "/none",
        ),
    ] {
        let cluster = Plan::on(towline_link::carrier::CarrierKind::Tls)
            .agents(0)
            .servers(0)
            .start_unlinked()
            .await;
        let pair = cluster
            .server_pair(0)
            .write(cluster.scratch(), "server")
            .unwrap();
        let mut args = cluster.server_args(0, &pair, "127.0.0.1:0");
        args.extend(flags.iter().map(ToString::to_string));
        let error = towline_tests::cluster::start_server(&args).await;
        let error = error.map(|_| ()).unwrap_err();
        assert!(error.contains(wanted), "{flags:?}: {error}");
    }
}
