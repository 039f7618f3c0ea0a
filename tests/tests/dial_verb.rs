//! `towline-server dial`: what a person learns of a target through a door, by each door and protocol.

use std::process::{Output, Stdio};

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use towline_link::carrier::CarrierKind;
use towline_proto::id::Role;
use towline_tests::cluster::{Cluster, Plan};
use towline_tests::program::program;
use towline_tests::scenario::expect;
use towline_tests::scenarios;
use towline_tests::scratch::Scratch;
use towline_tests::target::Behaviour;

const POD: &str = "10.244.0.5:8080";
/// Of no class that is allowed.
const FOREIGN: &str = "192.0.2.9:22";

/// Runs the verb with these words and this on its standard input.
async fn dial(words: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(program("towline-server"))
        .arg("dial")
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let sending = async move {
        // Who was refused reads nothing.
        let _ = stdin.write_all(input).await;
    };
    let both = async { tokio::join!(sending, child.wait_with_output()).1 };
    expect("the end of the verb", both).await.expect("an end")
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

fn door(cluster: &Cluster) -> String {
    let path = cluster.server(0).door_unix().expect("a Unix door");
    path.display().to_string()
}

scenarios! {
    async fn a_target_is_tried_by_each_protocol(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let door = door(&cluster);
        for more in [&[][..], &["--grpc"]] {
            let with = |target| [&["--socket", &door, target], more].concat();
            let (code, out, err) = said(&dial(&with(POD), b"").await);
            assert!(out.starts_with(&format!("open: {POD} in ")) && err.is_empty(), "{out}{err}");
            assert_eq!(code, Some(0));
            let (code, out, err) = said(&dial(&with(FOREIGN), b"").await);
            assert!(err.starts_with(&format!("refused: {FOREIGN}: ")) && out.is_empty(), "{out}{err}");
            assert!(err.contains("polic") && err.lines().count() == 1, "{err}");
            assert_eq!(code, Some(1));
        }
    }

    async fn bytes_go_through_to_the_last(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let door = door(&cluster);
        let sent: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let output = dial(&["--socket", &door, "--pipe", POD], &sent).await;
        assert!(output.stdout == sent, "{} of {} bytes", output.stdout.len(), sent.len());
        let (code, _, err) = said(&output);
        assert!(code == Some(0) && err.starts_with("open: "), "{err}");
    }

    async fn the_tcp_door_wants_a_certificate(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let scratch = Scratch::new().expect("a folder");
        let authority = &cluster.authority;
        for (name, role) in [("kube-apiserver", Role::Client), ("stranger", Role::Client), ("n1", Role::Agent)] {
            authority.leaf(role, name).sign().write(&scratch, name).expect("files");
        }
        scratch.write("servers.ca", authority.issuer(Role::Server).pem()).expect("a file");
        scratch.write("agents.ca", authority.issuer(Role::Agent).pem()).expect("a file");
        let address = cluster.server(0).door_tcp().expect("a TCP door").to_string();
        let file = |name: &str| scratch.join(name).display().to_string();
        for (who, ca, more, code, words) in [
            ("kube-apiserver", "servers.ca", "", 0, "open: "),
            ("kube-apiserver", "servers.ca", "--grpc", 0, "open: "),
            ("stranger", "servers.ca", "", 1, "refused: "),
            ("n1", "servers.ca", "", 3, "not of role client"),
            ("kube-apiserver", "agents.ca", "", 1, "--ca has to be the authority of this cluster's servers"),
        ] {
            let (cert, key, ca) = (file(&format!("{who}.crt")), file(&format!("{who}.key")), file(ca));
            let mut words_of = vec!["--connect", &address, "--cert", &cert, "--key", &key, "--ca", &ca, POD];
            words_of.extend(more.split_whitespace());
            let (ended, out, err) = said(&dial(&words_of, b"").await);
            assert!(ended == Some(code) && format!("{out}{err}").contains(words), "{who}: {ended:?} {out}{err}");
        }
    }
}

#[tokio::test]
async fn what_is_no_door_is_named() {
    let scratch = Scratch::new().expect("a folder");
    let cluster = Plan::on(CarrierKind::Tls).start().await;
    let absent = scratch.join("absent").display().to_string();
    let health = cluster.server(0).health_address().to_string();
    for (words, code, expected) in [
        (
            &["--socket", &absent, POD][..],
            1,
            "is the server running with this --door-unix",
        ),
        (&["--socket", &absent, "nowhere"], 2, "HOST:PORT"),
        (&[POD], 2, "--socket"),
        (&["--connect", &health, POD], 2, "--cert"),
        (&["--socket", &absent, "--grpc", "--pipe", POD], 2, "--grpc"),
    ] {
        let (ended, out, err) = said(&dial(words, b"").await);
        assert!(
            ended == Some(code) && err.contains(expected) && out.is_empty(),
            "{words:?}: {ended:?} {err}"
        );
    }
}
