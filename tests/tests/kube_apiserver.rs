//! kube-apiserver's own egress dialler, from its own module, through both transports of the
//! `connect` door. Needs Go; `tests/interop/egress` is the program.

use std::path::{Path, PathBuf};
use std::process::Output;

use towline_proto::id::Role;
use towline_tests::cluster::{Cluster, Plan};
use towline_tests::scenario::expect;
use towline_tests::scenarios;
use towline_tests::target::Behaviour;

const POD: &str = "10.244.0.5:8080";

/// Built once for each run; Go keeps what has not changed.
async fn egress() -> PathBuf {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("egress");
    let built = tokio::process::Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg("./egress")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("interop"))
        .output()
        .await
        .expect("go is on the path");
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    program
}

async fn dial(program: &Path, config: &Path, target: &str) -> Output {
    let run = tokio::process::Command::new(program)
        .arg("dial")
        .arg(config)
        .args([target, "question"])
        .kill_on_drop(true)
        .output();
    expect("the egress dialler", run)
        .await
        .expect("the program starts")
}

/// The transport's lines of an EgressSelectorConfiguration, indented for it.
fn config(cluster: &Cluster, name: &str, transport: &str) -> PathBuf {
    let text = format!(
        "apiVersion: apiserver.k8s.io/v1beta1\nkind: EgressSelectorConfiguration\negressSelections:\n\
         - name: cluster\n  connection:\n    proxyProtocol: HTTPConnect\n    transport:\n{transport}"
    );
    cluster.scratch().write(name, text).expect("a file")
}

fn unix(cluster: &Cluster) -> PathBuf {
    let door = cluster
        .server(0)
        .door_unix()
        .expect("a Unix door")
        .display()
        .to_string();
    config(
        cluster,
        "unix.yaml",
        &format!("      uds:\n        udsName: {door}\n"),
    )
}

fn tcp(cluster: &Cluster) -> PathBuf {
    let door = cluster.server(0).door_tcp().expect("a TCP door");
    let pair = cluster
        .authority
        .leaf(Role::Client, "kube-apiserver")
        .sign();
    let files = pair.write(cluster.scratch(), "front-end").expect("files");
    let root = cluster.scratch().join("servers.ca");
    config(
        cluster,
        "tcp.yaml",
        &format!(
            "      tcp:\n        url: https://{door}\n        tlsConfig:\n          caBundle: {}\n          \
             clientCert: {}\n          clientKey: {}\n",
            root.display(),
            files.cert.display(),
            files.key.display()
        ),
    )
}

scenarios! {
    #[ignore = "needs Go"]
    async fn its_own_dialler_reaches_a_pod_by_both_transports(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let program = egress().await;
        for config in [unix(&cluster), tcp(&cluster)] {
            let _echo = cluster.target(POD, Behaviour::Echo).await;
            let output = dial(&program, &config, POD).await;
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
            assert_eq!(output.stdout, b"question\n", "{said}");
        }
    }

    #[ignore = "needs Go"]
    async fn its_own_dialler_hears_a_target_that_speaks_first(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let program = egress().await;
        for config in [unix(&cluster), tcp(&cluster)] {
            let _target = cluster.target(POD, Behaviour::SpeaksFirst("220 hello\r\n")).await;
            let output = dial(&program, &config, POD).await;
            assert!(output.stdout.starts_with(b"220 hello\r\n"), "{output:?}");
        }
    }

    #[ignore = "needs Go"]
    async fn its_own_dialler_prints_the_reason_of_a_refusal(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let program = egress().await;
        for config in [unix(&cluster), tcp(&cluster)] {
            let output = dial(&program, &config, "n9:10250").await;
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success());
            assert!(said.contains("503") && said.contains("n9"), "{said}");
        }
    }
}
