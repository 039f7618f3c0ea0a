//! Kubelet rules at the gateway, and what the audit trail holds of every request.

use std::time::{Duration, Instant};

use towline_link::carrier::CarrierKind;
use towline_proto::limits::GATEWAY_REFUSALS;
use towline_tests::cluster::Plan;
use towline_tests::gateway::FRONT_END;
use towline_tests::scenario::expect;
use towline_tests::scenarios;
use towline_tests::scratch::{Scratch, replace};

/// From a new file to the end of what it forbids.
const ENDED_WITHIN: Duration = Duration::from_secs(5);

/// A policy file that allows dials to kubelets, with this section about requests.
fn policy(kubelet: &str) -> String {
    format!(
        "version: 1\nrules:\n  - {{name: kubelets, action: allow, classes: [kubelet]}}\n{kubelet}"
    )
}

/// The example of the documents: no commands in kube-system, logs everywhere.
const EXAMPLE: &str = "kubelet:
  default: allow
  rules:
    - action: deny
      verbs: [exec, attach]
      namespaces: [kube-system]
    - action: allow
      verbs: [logs]
";

const ONLY_LOGS: &str = "kubelet:
  default: deny
  rules:
    - {action: allow, verbs: [logs, health]}
";

fn with_rules(carrier: CarrierKind, scratch: &Scratch, section: &str) -> Plan {
    let path = scratch.join("policy.yaml");
    replace(&path, policy(section)).unwrap();
    let path = path.display().to_string();
    Plan::on(carrier)
        .gateway()
        .server_flags(&["--policy", &path])
}

fn spdy(path: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: n\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n")
}

scenarios! {
    async fn a_denied_request_is_answered_and_the_connection_goes_on(carrier) {
        let scratch = Scratch::new().unwrap();
        let cluster = with_rules(carrier, &scratch, EXAMPLE).start().await;
        let kubelet = cluster.asking_kubelet().await;
        let mut front_end = cluster.front_end().await;
        assert_eq!(front_end.ask("GET", "/healthz").await.status(), 200);
        let reply = front_end.ask("POST", "/exec/kube-system/etcd-0/etcd?command=sh").await;
        assert_eq!(reply.status(), 403);
        assert_eq!(
            reply.sentence(),
            "towline-server refuses exec of pod \"etcd-0\" in namespace \"kube-system\": denied by the \
             kubelet rule in line 7"
        );
        assert!(!reply.head.contains("Connection: close"), "{reply:?}");
        assert_eq!(front_end.ask("GET", "/healthz").await.status(), 200);
        assert_eq!(kubelet.lines(), ["GET /healthz", "GET /healthz"]);
    }

    /// All of them at once, and nothing is read meanwhile: what is kept for it is bounded, too.
    async fn who_is_refused_again_and_again_is_shown_out(carrier) {
        let scratch = Scratch::new().unwrap();
        let cluster = with_rules(carrier, &scratch, EXAMPLE).start().await;
        let kubelet = cluster.asking_kubelet().await;
        let mut front_end = cluster.front_end().await;
        let one = "POST /exec/kube-system/etcd-0/etcd?command=sh HTTP/1.1\r\nHost: n\r\nContent-Length: 0\r\n\r\n";
        front_end.send(one.repeat(2 * GATEWAY_REFUSALS as usize)).await.unwrap();
        for number in 1..=GATEWAY_REFUSALS {
            let reply = front_end.reply().await;
            assert_eq!(reply.status(), 403);
            assert_eq!(reply.head.contains("Connection: close"), number == GATEWAY_REFUSALS, "{number}");
        }
        assert!(expect("the end", front_end.try_reply()).await.is_err());
        // Whoever goes on is not listened to for ever.
        let more = vec![b'x'; 256 * 1024];
        expect("the end of the connection", async {
            while front_end.send(&more[..]).await.is_ok() {}
        })
        .await;
        cluster.measured("towline_server_gateway_refused_too_often_total 1").await;
        // It may come again.
        let mut front_end = cluster.front_end().await;
        assert_eq!(front_end.ask("GET", "/healthz").await.status(), 200);
        assert_eq!(kubelet.lines(), ["GET /healthz"]);
    }

    async fn commands_are_denied_by_every_path_and_method(carrier) {
        let scratch = Scratch::new().unwrap();
        let cluster = with_rules(carrier, &scratch, EXAMPLE).start().await;
        let kubelet = cluster.asking_kubelet().await;
        let mut front_end = cluster.front_end().await;
        for path in [
            "/exec/kube-system/p/c?command=id",
            "/exec/kube-system/p/uid/c?command=id",
            "/attach/kube-system/p/c",
            "/attach/kube-system/p/uid/c",
            "/run/kube-system/p/c?cmd=id",
            "/run/kube-system/p/uid/c?cmd=id",
        ] {
            for method in ["GET", "POST", "PUT"] {
                let reply = front_end.ask(method, path).await;
                assert_eq!(reply.status(), 403, "{method} {path}");
                assert!(reply.sentence().contains("line 7"), "{method} {path}");
            }
            // The answer to HEAD has no body, and the next answer begins where it ends.
            front_end.send(format!("HEAD {path} HTTP/1.1\r\nHost: n\r\n\r\n")).await.unwrap();
            assert!(front_end.head().await.starts_with("HTTP/1.1 403 "), "{path}");
            assert_eq!(front_end.ask("GET", "/healthz").await.body, "ok", "{path}");
            // An upgrade is refused as well, and nothing may follow it.
            let mut upgrading = cluster.front_end().await;
            upgrading.send(spdy(path)).await.unwrap();
            assert_eq!(upgrading.reply().await.status(), 403, "{path}");
            upgrading.end().await.expect("an end in order");
        }
        // Elsewhere, and other things, are allowed.
        assert_eq!(front_end.ask("POST", "/run/default/p/c?cmd=id").await.status(), 200);
        assert_eq!(front_end.ask("GET", "/containerLogs/kube-system/p/c").await.status(), 200);
        let mut forward = cluster.front_end().await;
        forward.send(spdy("/portForward/kube-system/p")).await.unwrap();
        assert!(forward.head().await.starts_with("HTTP/1.1 101 "));
        assert!(kubelet.lines().iter().all(|line| !line.contains("/exec/") && !line.contains("/attach/")));
    }

    async fn with_rules_odd_paths_reach_nobody(carrier) {
        let scratch = Scratch::new().unwrap();
        let allow = "kubelet: {default: allow}\n";
        let cluster = with_rules(carrier, &scratch, allow).start().await;
        let kubelet = cluster.asking_kubelet().await;
        let mut front_end = cluster.front_end().await;
        for (path, says) in [
            ("/nosuch", "no kubelet is known to serve this path"),
            ("/Exec/a/b/c", "no kubelet is known"),
            ("/cri/exec/token", "no kubelet is known"),
            ("/exec%2fkube-system/p/c", "an encoded slash"),
            ("/healthz/%2e%2e/exec/a/b/c", "a dot segment"),
            ("/healthz/../exec/a/b/c", "a dot segment"),
            ("/./exec/a/b/c", "a dot segment"),
            ("//exec/a/b/c", "an empty segment"),
            ("/exec/a/b/c/", "an empty segment"),
            ("/exec/a/%62/c", "no Kubernetes name"),
            ("/exec/a/b\\c/d", "a backslash"),
            ("/exec/a/b", "a number of segments"),
            ("/exec/a/%zz/c", "begins no escape"),
        ] {
            for method in ["GET", "POST"] {
                let reply = front_end.ask(method, path).await;
                assert_eq!(reply.status(), 403, "{method} {path}");
                assert!(reply.sentence().contains(says), "{path}: {}", reply.sentence());
            }
        }
        assert_eq!(kubelet.lines(), Vec::<String>::new());
        assert_eq!(front_end.ask("GET", "/healthz").await.status(), 200);
    }

    async fn without_rules_paths_pass_as_they_are(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        let kubelet = cluster.asking_kubelet().await;
        let mut front_end = cluster.front_end().await;
        for path in ["/nosuch?a=%2F", "/healthz/../x", "//pods"] {
            front_end.ask("GET", path).await;
        }
        assert_eq!(kubelet.lines(), ["GET /nosuch?a=%2F", "GET /healthz/../x", "GET //pods"]);
        let odd = cluster.audit(0).record("its record", |record| record["path"] == "/healthz/../x").await;
        assert_eq!(odd["outcome"], "answered");
    }

    async fn a_new_file_ends_what_it_forbids(carrier) {
        let scratch = Scratch::new().unwrap();
        let cluster = with_rules(carrier, &scratch, EXAMPLE).start().await;
        let kubelet = cluster.asking_kubelet().await;
        let mut shell = cluster.front_end().await;
        shell.send(spdy("/exec/default/web/app?command=sh")).await.unwrap();
        assert!(shell.head().await.starts_with("HTTP/1.1 101 "));
        kubelet.log("one");
        let mut logs = cluster.through_gateway().await.follow().await.unwrap();
        assert_eq!(expect("a line", logs.line()).await.unwrap().as_deref(), Some("one"));
        let begun = Instant::now();
        replace(&scratch.join("policy.yaml"), policy(ONLY_LOGS)).unwrap();
        assert!(shell.end().await.is_err(), "ended in order");
        assert!(begun.elapsed() < ENDED_WITHIN, "{:?}", begun.elapsed());
        kubelet.log("two");
        assert_eq!(expect("a line", logs.line()).await.unwrap().as_deref(), Some("two"));
        let end = cluster.audit(0).record("the end", |record| record["event"] == "end").await;
        assert_eq!(end["reason"], "policy-changed");
    }

    async fn every_request_is_one_record(carrier) {
        let scratch = Scratch::new().unwrap();
        let cluster = with_rules(carrier, &scratch, EXAMPLE).start().await;
        let _kubelet = cluster.asking_kubelet().await;
        let mut front_end = cluster.front_end().await;
        front_end.ask("GET", "/containerLogs/default/web/app?tailLines=5").await;
        front_end.ask("POST", "/exec/kube-system/etcd/etcd?command=cat&command=/etc/secret").await;
        front_end.send("GET /pods HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").await.unwrap();
        assert_eq!(front_end.reply().await.status(), 400);
        front_end.end().await.expect("an end in order");
        let trail = cluster.audit(0);
        let (start, end) = trail.dial("10.0.0.1:10250").await;
        let requests = trail.of("request");
        assert_eq!(requests.len(), 3, "{requests:?}");
        for (at, record) in requests.iter().enumerate() {
            assert_eq!(record["dial"], start["dial"]);
            assert_eq!(record["request"], at + 1);
            assert_eq!(record["node"], "n1");
            let subject = record["gateway_front_end"]["subject"].as_str().unwrap();
            assert_eq!(subject, format!("CN={FRONT_END}"));
            let serial = record["gateway_front_end"]["serial"].as_str().unwrap();
            assert_eq!(serial, cluster.gateway.front_end.serial);
            assert!(record["kubelet_key"].as_str().unwrap().len() == 64, "{record}");
        }
        let [logs, exec, bad] = &requests[..] else { panic!() };
        for (key, value) in [("verb", "logs"), ("namespace", "default"), ("pod", "web"), ("container", "app"), ("outcome", "answered"), ("method", "GET")] {
            assert_eq!(logs[key], value, "{key}");
        }
        assert_eq!(logs["status"], 200);
        for (key, value) in [("verb", "exec"), ("namespace", "kube-system"), ("outcome", "refused"), ("detail", "rule")] {
            assert_eq!(exec[key], value, "{key}");
        }
        assert_eq!((&exec["status"], &exec["rule_line"]), (&403.into(), &7.into()));
        // A command may hold secrets: its program is told, its words are counted.
        assert_eq!((&exec["command"][0], &exec["command_words"]), (&"cat".into(), &2.into()));
        assert!(!exec.to_string().contains("/etc/secret"));
        assert_eq!((&bad["outcome"], &bad["detail"]), (&"malformed".into(), &"host".into()));
        assert_eq!(end["reason"], "bad-request");
        trail.proven();
    }

    async fn rules_without_a_gateway_are_refused(carrier) {
        let scratch = Scratch::new().unwrap();
        let path = scratch.join("policy.yaml");
        replace(&path, policy(EXAMPLE)).unwrap();
        let cluster = Plan::on(carrier).agents(0).start_unlinked().await;
        let mut args = cluster.server_args(0, cluster.files("s0"), "127.0.0.1:0");
        args.extend(["--policy".to_owned(), path.display().to_string()]);
        let Err(error) = towline_tests::cluster::start_server(&args).await else {
            panic!("it starts");
        };
        assert!(error.contains("--kubelet-gateway"), "{error}");
    }
}
