//! The kubelet gateway behind kube-apiserver's own egress dialler and client-go: its TLS, its kept
//! connections, its executors, and how it reads a refusal. Needs Go; `tests/interop/gateway` is the
//! program.

use std::path::{Path, PathBuf};
use std::process::Output;

use towline_tests::cluster::{Cluster, Plan};
use towline_tests::scenario::expect;
use towline_tests::scenarios;
use towline_tests::scratch::{Scratch, replace};

const NODE: &str = "10.0.0.1:10250";

/// Built once for each run; Go keeps what has not changed.
async fn built() -> PathBuf {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gateway-client");
    let built = tokio::process::Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg("./gateway")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("interop"))
        .output()
        .await
        .expect("go is on the path");
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{said}");
    program
}

/// Runs it against the gateway of this cluster, showing this certificate.
async fn client(cluster: &Cluster, name: &str, more: &[&str]) -> Output {
    let door = cluster.server(0).door_unix().expect("a Unix door");
    let egress = format!(
        "apiVersion: apiserver.k8s.io/v1beta1\nkind: EgressSelectorConfiguration\negressSelections:\n\
         - name: cluster\n  connection:\n    proxyProtocol: HTTPConnect\n    transport:\n      uds:\n        \
         udsName: {}\n",
        door.display()
    );
    let scratch = cluster.scratch();
    let egress = scratch.write("egress.yaml", egress).expect("a file");
    let own = cluster.gateway.front_end.write(scratch, "front-end");
    let own = own.expect("files");
    let run = tokio::process::Command::new(built().await)
        .arg(egress)
        .args([NODE, name])
        .arg(scratch.join("gateway.crt"))
        .arg(own.cert)
        .arg(own.key)
        .args(more)
        .kill_on_drop(true)
        .output();
    expect("client-go", run).await.expect("the program starts")
}

#[track_caller]
fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

scenarios! {
    #[ignore = "needs Go"]
    async fn it_believes_the_gateway_by_address_and_by_name(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        let kubelet = cluster.asking_kubelet().await;
        for name in ["10.0.0.1", "n1"] {
            let output = client(&cluster, name, &["get", "/healthz"]).await;
            assert_eq!(said(&output).0, "ok\nok\n", "{name}: {output:?}");
        }
        assert_eq!(kubelet.requests(), 4);
        let output = client(&cluster, "n2", &["get", "/healthz"]).await;
        assert!(!output.status.success(), "{output:?}");
    }

    #[ignore = "needs Go"]
    async fn it_runs_a_command_over_websocket(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        let _kubelet = cluster.asking_kubelet().await;
        let path = "/exec/default/web/app?command=cat&input=1&output=1";
        let output = client(&cluster, "n1", &["exec", path, "websocket", "hello"]).await;
        assert_eq!(said(&output).0, "hello\n", "{output:?}");
        assert!(output.status.success(), "{output:?}");
    }

    #[ignore = "needs Go"]
    async fn it_prints_the_sentence_of_a_refusal(carrier) {
        let scratch = Scratch::new().unwrap();
        let path = scratch.join("policy.yaml");
        let rules = "version: 1\nrules:\n  - {name: k, action: allow, classes: [kubelet]}\nkubelet:\n  default: allow\n  \
                     rules:\n    - {action: deny, verbs: [exec], namespaces: [kube-system]}\n";
        replace(&path, rules).unwrap();
        let path = path.display().to_string();
        let cluster = Plan::on(carrier).gateway().server_flags(&["--policy", &path]).start().await;
        let kubelet = cluster.asking_kubelet().await;
        let path = "/exec/kube-system/etcd/etcd?command=sh&input=1&output=1";
        for protocol in ["spdy", "websocket"] {
            let output = client(&cluster, "n1", &["exec", path, protocol, "id"]).await;
            let (_, error) = said(&output);
            assert!(!output.status.success());
            assert!(
                error.contains("towline-server refuses exec of pod \"etcd\" in namespace \"kube-system\": denied by the kubelet rule in line 7"),
                "{protocol}: {error}"
            );
            // A sentence, not an object.
            assert!(!error.contains("apiVersion"), "{protocol}: {error}");
        }
        assert_eq!(kubelet.requests(), 0);
    }
}
