//! The audit trail as an auditor finds it: who reached what, through whom, how it ended, and that
//! nobody changed it since.

use std::path::Path;
use std::process::Output;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use towline_link::carrier::CarrierKind;
use towline_proto::id::Role;
use towline_tests::cluster::{Cluster, Plan, start_server};
use towline_tests::grpc::GrpcFrontEnd;
use towline_tests::program::program;
use towline_tests::scenario::{eventually, expect};
use towline_tests::scenarios;
use towline_tests::target::{Behaviour, refusing_address};

const POD: &str = "10.244.0.5:8080";
const METADATA: &str = "169.254.169.254:80";

fn text<'a>(record: &'a Value, field: &str) -> &'a str {
    record[field]
        .as_str()
        .unwrap_or_else(|| panic!("{field} in {record}"))
}

async fn echo_once(cluster: &Cluster, front: towline_tests::apiserver::FakeApiserver) {
    let _echo = cluster.target(POD, Behaviour::Echo).await;
    let mut pipe = front.pipe(POD).await;
    pipe.write_all(b"seven b").await.unwrap();
    pipe.shutdown().await.unwrap();
    let mut back = String::new();
    expect("the echo", pipe.read_to_string(&mut back))
        .await
        .unwrap();
    assert_eq!(back, "seven b");
}

/// `towline-server audit verify` over these files.
async fn verify(files: &[&Path], more: &[&str]) -> Output {
    Command::new(program("towline-server"))
        .args(["audit", "verify"])
        .args(files)
        .args(more)
        .output()
        .await
        .expect("the program runs")
}

scenarios! {
    async fn a_dial_leaves_a_start_and_an_end_that_say_everything(carrier) {
        let cluster = Plan::on(carrier).start().await;
        echo_once(&cluster, cluster.apiserver()).await;
        let (start, end) = cluster.audit(0).dial(POD).await;
        assert_eq!(start["id"], end["id"]);
        for record in [&start, &end] {
            assert_eq!(text(record, "cluster"), "kit.example");
            assert_eq!(text(record, "server"), "s0");
            assert_eq!(text(record, "door"), "connect-unix");
            assert_eq!(text(record, "class"), "pod");
            assert_eq!(text(record, "node"), "n1");
            assert_eq!(text(record, "agent"), cluster.authority.identity(Role::Agent, "n1"));
            assert!(!text(record, "agent_serial").is_empty());
            assert_eq!(text(record, "carrier"), carrier.as_str());
            assert_eq!(record["front_end"]["uid"], u64::from(rustix::process::getuid().as_raw()));
        }
        assert_eq!((&end["to_target"], &end["from_target"]), (&7.into(), &7.into()));
        assert_eq!(text(&end, "reason"), "done");
        assert!(end["duration_us"].as_u64().is_some() && start["opening_us"].as_u64().is_some());
        assert!(text(&start, "time") <= text(&end, "time"));
        cluster.audit(0).proven();
    }

    async fn a_front_end_over_tcp_is_named_by_its_certificate(carrier) {
        let cluster = Plan::on(carrier).start().await;
        echo_once(&cluster, cluster.apiserver_tcp()).await;
        let (start, _) = cluster.audit(0).dial(POD).await;
        let identity = cluster.authority.identity(Role::Client, "kube-apiserver");
        assert_eq!(start["front_end"]["identity"], identity.as_str());
        assert!(start["front_end"]["serial"].is_string() && start["front_end"]["address"].is_string());
        assert_eq!(text(&start, "door"), "connect-tcp");
    }

    async fn a_refusal_is_one_record(carrier) {
        let cluster = Plan::on(carrier).start().await;
        for (target, reason) in [
            ("n9:10250", "no-agent"),
            (METADATA, "forbidden-address"),
            ("10.0.0.1:22", "server-policy"),
        ] {
            cluster.apiserver().refusal(target).await;
            let refused = cluster.audit(0).record(target, |record| record["target"] == target).await;
            assert_eq!((text(&refused, "event"), text(&refused, "reason")), ("refused", reason));
            assert!(refused["agent"].is_null(), "nobody was asked: {refused}");
        }
        let _ = cluster.apiserver().ask(b"GET / HTTP/1.1\r\n\r\n").await;
        let bad = cluster.audit(0).record("a bad request", |record| record["event"] == "bad-request").await;
        assert_eq!(text(&bad, "reason"), "method");
        // The other protocol of the door is no way past the trail.
        let front = GrpcFrontEnd::connect(&cluster.apiserver()).await.unwrap();
        front.refusal("10.0.0.7").await;
        let bad = cluster.audit(0).record("a bad target", |record| record["reason"] == "bad-target").await;
        assert_eq!((text(&bad, "event"), text(&bad, "door")), ("bad-request", "grpc-unix"));
        let mut call = front.call("/x", &[("content-type", "application/grpc")]).await.unwrap();
        let _ = call.status().await;
        let other = |record: &Value| record["door"] == "grpc-unix" && record["reason"] == "method";
        cluster.audit(0).record("another method", other).await;
        let all = cluster.audit(0);
        assert_eq!((all.of("start").len(), all.of("end").len()), (0, 0));
        all.proven();
    }

    async fn what_the_agent_refuses_names_the_agent(carrier) {
        let cluster = Plan::on(carrier).start().await;
        cluster.wire.lead(POD.parse().unwrap(), refusing_address().await.unwrap());
        cluster.apiserver().refusal(POD).await;
        let refused = cluster.audit(0).record("the refusal", |record| record["event"] == "refused").await;
        assert_eq!(text(&refused, "reason"), "target-refused");
        assert_eq!(text(&refused, "agent"), cluster.authority.identity(Role::Agent, "n1"));
    }

    async fn a_front_end_that_leaves_while_dialling_is_told_of(carrier) {
        let cluster = Plan::on(carrier).start().await;
        cluster.wire.swallow(POD.parse().unwrap());
        let mut waiting = cluster.apiserver().connect().await.unwrap();
        waiting.write_all(format!("CONNECT {POD} HTTP/1.1\r\nHost: {POD}\r\n\r\n").as_bytes()).await.unwrap();
        eventually("the dial on its way", || async { (!cluster.wire.tried().is_empty()).then_some(()) }).await;
        drop(waiting);
        let refused = cluster.audit(0).record("the refusal", |record| record["event"] == "refused").await;
        assert_eq!(text(&refused, "reason"), "front-end-gone");
    }

    async fn a_dial_that_is_cut_has_its_bytes_and_its_reason(carrier) {
        let mut cluster = Plan::on(carrier).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let mut pipe = cluster.apiserver().pipe(POD).await;
        pipe.write_all(b"12345").await.unwrap();
        let mut back = [0; 5];
        expect("the echo", pipe.read_exact(&mut back)).await.unwrap();
        let server = cluster.take_server(0);
        server.stop_now();
        let _ = expect("the end", server.wait()).await;
        let (_, end) = cluster.audit(0).dial(POD).await;
        assert_eq!(text(&end, "reason"), "shutdown");
        assert_eq!((&end["to_target"], &end["from_target"]), (&5.into(), &5.into()));
        let findings = cluster.audit(0).proven();
        let head = findings.head.unwrap().seq;
        assert_eq!(findings.proven.unwrap().0 + 1, head, "the last line is a checkpoint");
        assert_eq!(cluster.audit(0).of("close").len(), 1);
    }

    async fn the_chain_goes_on_when_the_server_comes_back(carrier) {
        let mut cluster = Plan::on(carrier).start().await;
        for round in 1..=3 {
            echo_once(&cluster, cluster.apiserver()).await;
            eventually("its end", || async { (cluster.audit(0).of("end").len() == round).then_some(()) }).await;
            cluster.kill_server(0);
            cluster.start_server(0).await;
            cluster.linked().await;
        }
        let findings = cluster.audit(0).proven();
        assert_eq!(findings.runs, 4);
        let ids: std::collections::BTreeSet<_> = cluster.audit(0).of("start").iter().map(|start| text(start, "id").to_owned()).collect();
        assert_eq!(ids.len(), 3, "numbers of two processes are never one: {ids:?}");
    }

    async fn each_server_has_a_trail_of_its_own(carrier) {
        let cluster = Plan::on(carrier).servers(2).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        drop(cluster.apiserver_of(1).pipe(POD).await);
        cluster.audit(1).dial(POD).await;
        assert_eq!(cluster.audit(0).of("start").len(), 0);
        let pair = cluster.files("s1").clone();
        let mut args = cluster.server_args(1, &pair, "127.0.0.1:0");
        for flag in args.iter_mut() {
            *flag = flag.replace("door-1", "door-7").replace("admin-1", "admin-7").replace("audit-1", "audit-0");
        }
        let error = start_server(&args).await.map(drop).expect_err("the trail is taken");
        assert!(error.contains("another process writes this trail"), "{error}");
    }

    async fn files_put_aside_under_load_keep_the_chain(carrier) {
        let flags = ["--audit-max-size", "64KiB", "--audit-keep", "2"];
        let cluster = Plan::on(carrier).server_flags(&flags).start().await;
        let trail = cluster.audit(0);
        let mut dials = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let front = cluster.apiserver();
            dials.spawn(async move {
                for _ in 0..150 {
                    front.refusal(METADATA).await;
                }
            });
        }
        while let Some(done) = dials.join_next().await {
            done.unwrap();
        }
        let removed = trail.record("a file that was removed", |record| record["removed"].is_array()).await;
        assert!(text(&removed, "kept_as").starts_with("audit-0.0"), "{removed}");
        eventually("the last refusal", || async {
            let last = trail.records().pop()?;
            (trail.files().len() == 3 && last["seq"].as_u64()? >= 1_200).then_some(())
        }).await;
        let findings = trail.proven();
        assert!(findings.first > 1, "the oldest are gone: {}", findings.first);
        for path in trail.files() {
            let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(path).unwrap());
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    async fn the_trail_follows_a_file_that_was_moved_away(carrier) {
        let cluster = Plan::on(carrier).start().await;
        cluster.apiserver().refusal(METADATA).await;
        let trail = cluster.audit(0);
        eventually("its record", || async { (trail.of("refused").len() == 1).then_some(()) }).await;
        std::fs::rename(trail.log(), trail.log().with_extension("000000000001")).unwrap();
        trail.record("a new file", |record| record["event"] == "rotate").await;
        cluster.apiserver().refusal(METADATA).await;
        eventually("its record", || async { (trail.of("refused").len() == 2).then_some(()) }).await;
        assert_eq!(trail.of("rotate")[0]["cause"], "moved");
        trail.proven();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_proves_and_names_what_is_wrong() {
    let mut cluster = Plan::on(CarrierKind::Tls).start().await;
    for _ in 0..5 {
        cluster.apiserver().refusal(METADATA).await;
    }
    let server = cluster.take_server(0);
    server.drain();
    expect("the end", server.wait()).await.unwrap();
    let trail = cluster.audit(0);
    let (log, public) = (trail.log(), trail.public().display().to_string());
    let key = ["--key", public.as_str()];
    let code = |output: &Output| output.status.code().expect("an exit code");
    let said = |output: &Output| String::from_utf8(output.stdout.clone()).expect("text");

    let good = verify(&[log], &key).await;
    assert_eq!(code(&good), 0, "{}", said(&good));
    assert!(said(&good).contains("proven   to line"), "{}", said(&good));
    let unchecked = verify(&[log], &[]).await;
    assert!(
        code(&unchecked) == 0 && said(&unchecked).contains("NOT checked"),
        "{}",
        said(&unchecked)
    );
    let json: Value = serde_json::from_str(&said(
        &verify(&[log], &[&key[..], &["-o", "json"]].concat()).await,
    ))
    .expect("JSON");
    assert_eq!(
        (&json["good"], &json["unproven"]),
        (&true.into(), &0.into())
    );

    let whole = std::fs::read_to_string(log).unwrap();
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    let changed = |lines: Vec<String>| lines.concat();
    let own = |lines: &[&str]| {
        lines
            .iter()
            .map(|line| (*line).to_owned())
            .collect::<Vec<_>>()
    };
    let mut other = own(&lines);
    other[3] = other[3].replace("169.254", "169.255");
    let mut less = own(&lines);
    less.remove(3);
    let mut cut = own(&lines);
    cut.truncate(lines.len() - 3);
    let head = format!(
        "{}:{}",
        lines.len(),
        towline_pki::seal::hex(&towline_pki::seal::sha256(
            lines[lines.len() - 1].as_bytes()
        ))
    );
    let bad = cluster.scratch().join("bad");
    for (text, more, expected, says) in [
        (changed(other), vec![], 4, "bad:4: line 4 was changed"),
        (changed(less), vec![], 5, "bad:4: is line 5"),
        (
            changed(cut),
            vec!["--expect-head", head.as_str()],
            7,
            "the end was cut off",
        ),
        (
            whole.clone(),
            vec!["--expect-head", head.as_str()],
            0,
            "expected head is there",
        ),
        (String::new(), vec![], 4, "no record at all"),
    ] {
        std::fs::write(&bad, text).unwrap();
        let output = verify(&[&bad], &[&key[..], &more].concat()).await;
        assert!(
            code(&output) == expected && said(&output).contains(says),
            "{expected} {says}: {}",
            said(&output)
        );
    }
    let stranger = towline_tests::scratch::Scratch::new().unwrap();
    towline_tests::audit::make_key(&stranger);
    let wrong = stranger.join("audit.pub").display().to_string();
    assert_eq!(code(&verify(&[log], &["--key", &wrong]).await), 6);
    assert_eq!(code(&verify(&[log], &["--key", "/no/such"]).await), 3);
    assert_eq!(code(&verify(&[Path::new("/no/such")], &key).await), 1);
    assert_eq!(code(&verify(&[log], &["--expect-head", "x"]).await), 2);
}
