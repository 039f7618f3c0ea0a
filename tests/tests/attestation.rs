//! Kubelets that are verified through their agents: who gets between an agent and its kubelet is
//! refused by name before a byte of a front end reaches it, and everything that may change is
//! looked at again. `enforce` is the mode unless a scenario says otherwise.

use std::time::Duration;

use towline_link::carrier::CarrierKind;
use towline_tests::apiserver::Refused;
use towline_tests::authority::{Ca, Flaw, LeafPlan, Pair};
use towline_tests::cluster::{Cluster, Plan, node_ip};
use towline_tests::kubectl::Kubelet;
use towline_tests::kubelet::FakeKubelet;
use towline_tests::scenario::{eventually, expect};
use towline_tests::scenarios;
use towline_tests::target::Behaviour;

const KUBELET: &str = "10.0.0.1:10250";

async fn reads_a_page(cluster: &Cluster) {
    let pipe = cluster.apiserver().pipe(KUBELET).await;
    let root = cluster.authority.kubelets().der();
    let mut kubelet = expect("the handshake", Kubelet::connect(pipe, node_ip(1), root))
        .await
        .unwrap();
    let (status, _) = expect("the page", kubelet.get("/healthz")).await.unwrap();
    assert_eq!(status, "HTTP/1.1 200 OK");
}

/// That a refusal says this cause, in one printable line.
#[track_caller]
fn says(refused: &Refused, word: &str) {
    let said = format!("kubelet verification says {word}: ");
    assert!(refused.phrase.contains(&said), "{word}: {refused:?}");
    assert_eq!(refused.status, 502, "{refused:?}");
    assert!(refused.phrase.len() <= 200);
    assert!(refused.phrase.bytes().all(|b| (b' '..=b'~').contains(&b)));
}

async fn refused(cluster: &Cluster, word: &str) {
    says(&cluster.apiserver().refusal(KUBELET).await, word);
}

/// The number of a metric of the first server.
async fn metric(cluster: &Cluster, line: &str) -> f64 {
    let text = scrape(cluster).await;
    let found = text
        .lines()
        .find_map(|at| at.strip_prefix(line)?.strip_prefix(' '));
    found.map_or(0.0, |number| number.parse().unwrap())
}

async fn scrape(cluster: &Cluster) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(cluster.server(0).health_address())
        .await
        .unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// A certificate of whoever sits between agent and kubelet, and the word of its refusal.
type Impostor = (&'static str, fn(&Cluster, u8) -> Pair);

/// The faultless certificate of a node, to be spoilt.
fn good(cluster: &Cluster, node: u8) -> LeafPlan<'_> {
    cluster
        .authority
        .kubelet_leaf(&format!("n{node}"), &[node_ip(node)])
}

fn flawed(cluster: &Cluster, node: u8, flaw: Flaw) -> Pair {
    let (own, stranger) = (&cluster.authority, &cluster.stranger);
    good(cluster, node).flawed(flaw, own, stranger).sign()
}

const IMPOSTORS: [Impostor; 11] = [
    // Everything as it should be, from an authority of its own.
    ("wrong-ca", |c, n| {
        good(c, n).signed_by(c.stranger.kubelets()).sign()
    }),
    ("self-signed", |c, n| {
        let made_up = Ca::made_up("node-ca@1700000000");
        let own = good(c, n).common_name("node@1700000000");
        own.signed_by(&made_up).sign()
    }),
    // Stolen from another node of this cluster, key and all.
    ("missing-ip-san", |c, _| good(c, 99).sign()),
    // The right authority was talked into our address for another node.
    ("other-node", |c, n| good(c, 99).ips(&[node_ip(n)]).sign()),
    ("other-node", |c, n| {
        let names = good(c, 99).name(&format!("n{n}"));
        names.ips(&[node_ip(n)]).sign()
    }),
    ("no-node-name", |c, n| {
        let nameless = good(c, n).common_name("kubelet");
        nameless.only_names(&[], &[node_ip(n)]).sign()
    }),
    ("expired", |c, n| flawed(c, n, Flaw::Expired)),
    ("not-yet-valid", |c, n| flawed(c, n, Flaw::NotYetValid)),
    ("wrong-usage", |c, n| flawed(c, n, Flaw::WrongUsage)),
    ("ip-in-dns-name", |c, n| {
        let names = [format!("n{n}"), node_ip(n).to_string()];
        good(c, n).only_names(&[&names[0], &names[1]], &[]).sign()
    }),
    // Text for terminals and logs in the name that is told.
    ("other-node", |c, n| {
        good(c, n)
            .common_name("system:node:\u{1b}[2J\r\nX: y")
            .sign()
    }),
];

scenarios! {
    async fn nobody_between_agent_and_kubelet_is_dialled(carrier) {
        let mut cluster = Plan::on(carrier).agents(IMPOSTORS.len() as u8).start().await;
        let mut impostors = Vec::new();
        for (node, (_, pair)) in (1..).zip(IMPOSTORS) {
            impostors.push(cluster.kubelet_with(node, &pair(&cluster, node)).await);
        }
        for (node, (word, _)) in (1..).zip(IMPOSTORS) {
            let target = format!("{}:10250", node_ip(node));
            // It may have been looked at before the impostor was there.
            let refused = eventually("the verdict", || async {
                let refused = cluster.apiserver().refusal(&target).await;
                refused.phrase.contains("verification says").then_some(refused)
            }).await;
            says(&refused, word);
            let impostor = &impostors[usize::from(node) - 1];
            assert_eq!((impostor.handshakes(), impostor.requests()), (0, 0), "{word}: the server ends the handshake");
        }
        // The true one comes back with the agent.
        let _kubelet = cluster.kubelet(1).await;
        cluster.kill_agent("n1");
        cluster.start_agent("n1").await;
        cluster.linked().await;
        eventually("the verified kubelet", || async { cluster.apiserver().dial(KUBELET).await.unwrap().ok() }).await;
        reads_a_page(&cluster).await;
    }

    async fn what_is_no_kubelet_at_all_is_named(carrier) {
        for (behaviour, word) in [
            (Behaviour::SpeaksFirst("HTTP/1.1 400 Bad Request\r\n\r\nClient sent an HTTP request"), "not-tls"),
            (Behaviour::HalfCloses(""), "hung-up"),
            (Behaviour::ResetsAfter(1), "hung-up"),
        ] {
            let cluster = Plan::on(carrier).start().await;
            let _target = cluster.target(KUBELET, behaviour).await;
            let refusal = cluster.apiserver().refusal(KUBELET).await;
            assert!(refusal.phrase.contains(&format!("says {word}: ")), "{word}: {refusal:?}");
        }
        // Nobody there: the words of a dial that finds nobody.
        let cluster = Plan::on(carrier).start().await;
        let refusal = cluster.apiserver().refusal(KUBELET).await;
        assert!(refusal.phrase.contains("is unreachable from node n1"), "{refusal:?}");
    }

    async fn a_kubelet_that_only_speaks_tls_1_2_is_verified(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let pair = cluster.authority.kubelet_leaf("n1", &[node_ip(1)]).sign();
        let bind = ([127, 0, 0, 1], 0).into();
        let kubelet = FakeKubelet::start_speaking("n1", &pair, bind, &[&rustls::version::TLS12]).await.unwrap();
        cluster.at_node(1, kubelet.address());
        cluster.apiserver().pipe(KUBELET).await;
        eventually("the kubelet's side of the handshake", || async { (kubelet.handshakes() >= 1).then_some(()) }).await;
        assert_eq!(kubelet.handshakes(), 1);
    }

    async fn dials_that_wait_cost_one_handshake_and_the_next_ones_none(carrier) {
        let cluster = Plan::on(carrier).agents(0).start().await;
        let kubelet = cluster.kubelet(1).await;
        let mut cluster = cluster;
        cluster.start_agent("n1").await;
        cluster.linked().await;
        let mut dials = tokio::task::JoinSet::new();
        for _ in 0..40 {
            let front = cluster.apiserver();
            dials.spawn(async move { front.dial(KUBELET).await.unwrap().map(drop).unwrap() });
        }
        while let Some(done) = expect("the dials", dials.join_next()).await {
            done.unwrap();
        }
        for _ in 0..10 {
            cluster.apiserver().pipe(KUBELET).await;
        }
        eventually("the kubelet's side of the handshake", || async { (kubelet.handshakes() >= 1).then_some(()) }).await;
        assert_eq!(kubelet.handshakes(), 1);
        eventually("every connection", || async { (kubelet.connections() >= 51).then_some(()) }).await;
        assert_eq!(kubelet.connections(), 51);
        assert_eq!(metric(&cluster, "towline_server_kubelet_attestations_total{verdict=\"verified\"}").await, 1.0);
        assert_eq!(metric(&cluster, "towline_server_kubelet_dials_total{verdict=\"verified\"}").await, 50.0);
    }

    async fn a_front_end_that_leaves_hands_the_handshake_on(carrier) {
        let cluster = Plan::on(carrier).start().await;
        // A kubelet that never answers: the first dial waits in its handshake.
        let silent = cluster.target(KUBELET, Behaviour::Silent).await;
        let mut front = cluster.apiserver().connect().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut front, format!("CONNECT {KUBELET} HTTP/1.1\r\n\r\n").as_bytes()).await.unwrap();
        expect("the first handshake", silent.accepted()).await;
        let waiting = cluster.apiserver();
        let waiting = tokio::spawn(async move { waiting.dial(KUBELET).await.unwrap().map(drop) });
        let _kubelet = cluster.kubelet(1).await;
        drop(front);
        expect("the second dial", waiting).await.unwrap().unwrap();
    }

    async fn every_kubelet_is_looked_at_again_when_the_authority_changes(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _kubelet = cluster.kubelet(1).await;
        reads_a_page(&cluster).await;
        cluster.kubelet_authority(cluster.stranger.kubelets().pem());
        assert_eq!(cluster.reload().await, [""; 0]);
        refused(&cluster, "wrong-ca").await;
        cluster.kubelet_authority(&format!("{}{}", cluster.stranger.kubelets().pem(), cluster.authority.kubelets().pem()));
        assert_eq!(cluster.reload().await, [""; 0]);
        reads_a_page(&cluster).await;
        // A file that cannot be read leaves what is in force.
        cluster.kubelet_authority("-----BEGIN CERTIFICATE-----\nAAAA\n");
        let errors = cluster.reload().await;
        assert!(errors[0].contains("--kubelet-certificate-authority") && errors[0].contains("kubelets.ca"), "{errors:?}");
        reads_a_page(&cluster).await;
    }

    async fn a_revoked_kubelet_is_refused_once_the_list_is_there(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let pair = cluster.authority.kubelet_leaf("n1", &[node_ip(1)]).sign();
        let _kubelet = cluster.kubelet_with(1, &pair).await;
        reads_a_page(&cluster).await;
        let ca = cluster.authority.kubelets();
        cluster.kubelet_revocations(&ca.revocation_list(&[&pair]));
        assert_eq!(cluster.reload().await, [""; 0]);
        refused(&cluster, "revoked").await;
        cluster.kubelet_revocations(&cluster.stranger.kubelets().revocation_list(&[]));
        assert_eq!(cluster.reload().await, [""; 0]);
        refused(&cluster, "revocation-unknown").await;
        cluster.kubelet_revocations(&ca.revocation_list(&[]));
        assert_eq!(cluster.reload().await, [""; 0]);
        reads_a_page(&cluster).await;
    }

    async fn a_new_link_of_the_agent_is_trusted_with_nothing_seen_before(carrier) {
        let mut cluster = Plan::on(carrier).start().await;
        let kubelet = cluster.kubelet(1).await;
        reads_a_page(&cluster).await;
        assert_eq!(metric(&cluster, "towline_server_kubelet_key_changes_total").await, 0.0);
        // The agent comes back, and somebody with another key of the right names is there.
        cluster.kill_agent("n1");
        drop(kubelet);
        let renewed = cluster.kubelet(1).await;
        cluster.start_agent("n1").await;
        cluster.linked().await;
        eventually("the page", || async { cluster.apiserver().dial(KUBELET).await.unwrap().ok() }).await;
        eventually("the kubelet's side of the handshake", || async { (renewed.handshakes() >= 1).then_some(()) }).await;
        assert_eq!(metric(&cluster, "towline_server_kubelet_key_changes_total").await, 1.0);
    }

    async fn observing_refuses_nothing_and_counts_everything(carrier) {
        let cluster = Plan::on(carrier).agents(2).server_flags(&["--kubelet-verification", "observe"]).start().await;
        let bad = cluster.authority.kubelet_leaf("n1", &[node_ip(1)]).signed_by(cluster.stranger.kubelets()).sign();
        let _kubelets = (cluster.kubelet_with(1, &bad).await, cluster.kubelet(2).await);
        cluster.apiserver().pipe(KUBELET).await;
        eventually("the verdicts", || async {
            let status = cluster.server(0).status().kubelets;
            (status.would_be_refused == 1 && status.verified == 1).then_some(())
        }).await;
        cluster.apiserver().pipe(KUBELET).await;
        cluster.apiserver().pipe("10.0.0.2:10250").await;
        assert_eq!(metric(&cluster, "towline_server_kubelet_dials_total{verdict=\"wrong-ca\"}").await, 1.0);
        assert_eq!(metric(&cluster, "towline_server_kubelets{verdict=\"wrong-ca\"}").await, 1.0);
        assert_eq!(metric(&cluster, "towline_server_kubelets{verdict=\"verified\"}").await, 1.0);
        assert_eq!(metric(&cluster, "towline_server_kubelets_refused_by_enforce").await, 1.0);
        assert_eq!(metric(&cluster, "towline_server_kubelet_verification{mode=\"observe\"}").await, 1.0);
        eventually("the note", || async {
            let report = cluster.server(0).readiness().report();
            let noted = report.notes().any(|(name, text)| name == "kubelets" && text.contains("n1: wrong-ca"));
            (noted && report.is_ready()).then_some(())
        }).await;
    }

    async fn a_server_whose_every_kubelet_is_refused_is_not_ready(carrier) {
        let cluster = Plan::on(carrier).start().await;
        cluster.kubelet_authority(cluster.stranger.kubelets().pem());
        assert_eq!(cluster.reload().await, [""; 0]);
        let _kubelet = cluster.kubelet(1).await;
        refused(&cluster, "wrong-ca").await;
        expect("unready", cluster.server(0).readiness().unready()).await;
        eventually("the reason", || async {
            let report = cluster.server(0).readiness().report().to_string();
            report.contains("[-]kubelets 1 of 1 kubelets are refused (n1: wrong-ca)").then_some(())
        }).await;
        cluster.kubelet_authority(cluster.authority.kubelets().pem());
        assert_eq!(cluster.reload().await, [""; 0]);
        expect("ready again", cluster.server(0).readiness().ready()).await;
    }

    async fn off_is_said_wherever_somebody_looks(carrier) {
        let cluster = Plan::on(carrier).unverified_kubelets().start().await;
        let bad = cluster.authority.kubelet_leaf("n1", &[]).signed_by(cluster.stranger.kubelets()).sign();
        let kubelet = cluster.kubelet_with(1, &bad).await;
        cluster.apiserver().pipe(KUBELET).await;
        assert_eq!(cluster.server(0).status().kubelet_verification, "off");
        assert_eq!(metric(&cluster, "towline_server_kubelet_verification{mode=\"off\"}").await, 1.0);
        assert_eq!(metric(&cluster, "towline_server_kubelet_dials_total{verdict=\"off\"}").await, 1.0);
        eventually("the note", || async {
            let report = cluster.server(0).readiness().report().to_string();
            report.contains("[!]kubelets kubelets are not verified").then_some(())
        }).await;
        assert_eq!(kubelet.handshakes(), 0);
    }

    async fn handshakes_are_bounded_however_many_nodes_come(carrier) {
        const NODES: u8 = 80;
        let mut cluster = Plan::on(carrier).agents(0).start().await;
        let silent = cluster.target("10.0.0.1:10250", Behaviour::Silent).await;
        for number in 1..=NODES {
            cluster.at_node(number, silent.address());
        }
        for number in 1..=NODES {
            cluster.start_agent(&format!("n{number}")).await;
        }
        let line = "towline_server_kubelet_handshakes_in_flight";
        // On its own account the server leaves some places to dials.
        eventually("many handshakes at once", || async {
            let now = metric(&cluster, line).await;
            assert!(now <= 48.0, "{now} at once");
            (now >= 48.0).then_some(())
        }).await;
        let mut dials = tokio::task::JoinSet::new();
        for number in 1..=NODES {
            let front = cluster.apiserver();
            let target = format!("{}:10250", node_ip(number));
            dials.spawn(async move { front.dial(&target).await.map(drop) });
        }
        let most = eventually("all the handshakes there may be", || async {
            let now = metric(&cluster, line).await;
            assert!(now <= 64.0, "{now} at once");
            (now >= 64.0).then_some(now)
        }).await;
        assert_eq!(most, 64.0);
    }
}

/// The verb of the program, over a server's admin socket.
fn kubelets(cluster: &Cluster, form: &str) -> (i32, String) {
    let output = std::process::Command::new(towline_tests::program::program("towline-server"))
        .args(["kubelets", "-o", form, "--admin-socket"])
        .arg(cluster.admin_socket(0))
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.code().unwrap(),
        String::from_utf8(said).unwrap(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_says_what_enforcing_would_break() {
    let cluster = Plan::on(CarrierKind::Tls)
        .agents(2)
        .server_flags(&["--kubelet-verification", "observe"])
        .start()
        .await;
    let own = &cluster.authority;
    let soon = Duration::from_secs(3 * 86_400 + 3600);
    let plan = |plan: LeafPlan<'_>| plan.ends_in(soon).sign();
    let first = cluster
        .kubelet_with(1, &plan(own.kubelet_leaf("n1", &[node_ip(1)])))
        .await;
    // n2 does not answer yet: nobody can say.
    let (code, text) = eventually("a verdict on n1", || async {
        let (code, text) = kubelets(&cluster, "table");
        text.contains("1 verified").then_some((code, text))
    })
    .await;
    assert_eq!(code, 5, "{text}");
    let wrong = own.kubelet_leaf("n2", &[]).name("10.0.0.2");
    let _second = cluster.kubelet_with(2, &plan(wrong)).await;
    // A dial has it looked at again.
    let (code, text) = eventually("a verdict on n2", || async {
        let _ = cluster.apiserver().dial("10.0.0.2:10250").await;
        let (code, text) = kubelets(&cluster, "table");
        text.contains("ip-in-dns-name").then_some((code, text))
    })
    .await;
    assert_eq!(code, 4, "{text}");
    let line = text.lines().find(|line| line.starts_with("n1 ")).unwrap();
    assert!(
        line.contains("10.0.0.1") && line.contains("verified") && line.contains(" 3 "),
        "{line}"
    );
    assert!(
        text.contains("ip-in-dns-name: n2") && text.contains("fix: issue the certificate"),
        "{text}"
    );
    assert!(text.contains("1 would be refused by enforce"), "{text}");
    let (code, json) = kubelets(&cluster, "json");
    assert_eq!(code, 4);
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["mode"], "observe");
    assert_eq!(report["kubelets"][0]["key"].as_str().unwrap().len(), 64);
    assert_eq!(report["kubelets"][1]["cause"], "ip-in-dns-name");
    assert!(first.requests() == 0, "looking asks for nothing");
    // Repaired.
    let _second = cluster
        .kubelet_with(2, &plan(own.kubelet_leaf("n2", &[node_ip(2)])))
        .await;
    let code = eventually("a good list", || async {
        let _ = cluster.apiserver().dial("10.0.0.2:10250").await;
        let (code, _) = kubelets(&cluster, "table");
        (code == 0).then_some(code)
    })
    .await;
    assert_eq!(code, 0);
}

#[test]
fn a_server_that_is_not_there_cannot_be_asked() {
    let output = std::process::Command::new(towline_tests::program::program("towline-server"))
        .args(["kubelets", "--admin-socket", "/no/such/socket"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("--admin-socket /no/such/socket"), "{said}");
    let output = std::process::Command::new(towline_tests::program::program("towline-server"))
        .env_remove("TOWLINE_ADMIN_SOCKET")
        .arg("kubelets")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}
