//! Revocation lists and deny lists at whole daemons: who is revoked loses live links, dials and the
//! way back, nobody else notices; what is no good as a list changes nothing.

use std::time::{Duration, Instant, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use towline_pki::{Certificate, pem};
use towline_proto::id::Role;
use towline_tests::apiserver::Pipe;
use towline_tests::cluster::{Cluster, Plan, node_ip};
use towline_tests::pattern::Check;
use towline_tests::rogue;
use towline_tests::scenario::{eventually, expect};
use towline_tests::scenarios;
use towline_tests::scratch;
use towline_tests::target::{Behaviour, End, read_all};

const POD: &str = "10.244.0.5:8080";
const NODES: [&str; 2] = ["10.0.0.1:10250", "10.0.0.2:10250"];
/// From a new file to the end of what it forbids.
const WITHIN: Duration = Duration::from_secs(5);
const HOUR: Duration = Duration::from_secs(3600);

async fn echoes(pipe: &mut Pipe) {
    let mut echo = [0; 4];
    pipe.write_all(b"ping").await.unwrap();
    expect("the echo", pipe.read_exact(&mut echo))
        .await
        .unwrap();
    assert_eq!(&echo, b"ping");
}

/// Waits until the open dial has ended otherwise than in order.
async fn cut(mut pipe: Pipe, begun: Instant, within: Duration) {
    let mut check = Check::default();
    let reading = read_all(&mut pipe, &mut check, u64::MAX);
    assert_eq!(expect("the end of the dial", reading).await, End::Reset);
    assert!(begun.elapsed() < within, "{:?}", begun.elapsed());
}

/// What the agent says of its only server.
async fn told(cluster: &Cluster, reason: &str) {
    let what = format!("the agent's word {reason:?}");
    eventually(&what, || async {
        let status = cluster.agent("n1").links().status().remove(0);
        (status.reason.as_deref() == Some(reason)).then_some(())
    })
    .await;
}

/// The serial number of a pair that the kit wrote.
fn serial(cluster: &Cluster, name: &str) -> String {
    let text = std::fs::read(&cluster.files(name).cert).unwrap();
    let leaf = pem::certificates(&text).unwrap().swap_remove(0);
    Certificate::parse(&leaf).unwrap().serial.to_string()
}

/// Whether this pair gets in as `n9`.
async fn enters(
    cluster: &Cluster,
    carrier: towline_link::carrier::CarrierKind,
    pair: &towline_tests::authority::Pair,
) -> bool {
    let server = cluster.server(0).link_address();
    let entering = rogue::enter(
        carrier,
        server,
        &cluster.authority,
        Some(pair),
        rogue::hello("n9"),
    );
    expect("the verdict", entering).await.is_ok()
}

/// A series of the server's metrics.
async fn series(cluster: &Cluster, name: &str) -> Option<i64> {
    let mut stream = TcpStream::connect(cluster.server(0).health_address())
        .await
        .unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).await.unwrap();
    let line = page.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().parse().ok()
}

scenarios! {
    async fn a_revoked_certificate_ends_its_link_and_dials_and_no_other(carrier) {
        let mut cluster = Plan::on(carrier).agents(2).lists().unverified_kubelets().start().await;
        let _sinks = [cluster.target(NODES[0], Behaviour::Sink).await, cluster.target(NODES[1], Behaviour::Echo).await];
        let pipe = cluster.apiserver_tcp().pipe(NODES[0]).await;
        let mut other = cluster.apiserver_tcp().pipe(NODES[1]).await;
        echoes(&mut other).await;
        let begun = Instant::now();
        let old = serial(&cluster, "n1");
        cluster.revoke(Role::Agent, 2, &[&old]);
        cut(pipe, begun, WITHIN).await;
        echoes(&mut other).await;
        let refused = cluster.apiserver().refusal(NODES[0]).await;
        assert!(refused.phrase.contains("revoked"), "{refused:?}");
        // It comes again and is told again; the cause is counted.
        told(&cluster, "revoked").await;
        // Its successor is welcome.
        cluster.kill_agent("n1");
        cluster.start_agent("n1").await;
        cluster.linked().await;
        echoes(&mut other).await;
    }

    async fn a_revocation_does_not_wait_until_another_file_is_mended(carrier) {
        let cluster = Plan::on(carrier).agents(2).lists().unverified_kubelets().start().await;
        let _echo = cluster.target(NODES[1], Behaviour::Echo).await;
        let mut other = cluster.apiserver().pipe(NODES[1]).await;
        let old = serial(&cluster, "n1");
        // Half of a renewal, at the server and at its agents.
        for name in ["s0", "n1", "n2"] {
            scratch::replace(&cluster.files(name).cert, "nonsense").unwrap();
        }
        let errors = cluster.reload().await;
        assert!(!errors.is_empty(), "the certificate is refused");
        let begun = Instant::now();
        cluster.revoke(Role::Agent, 2, &[&old]);
        eventually("the end of one link", || async { (cluster.server(0).status().agents.iter().map(|agent| agent.links.len()).sum::<usize>() == 1).then_some(()) }).await;
        assert!(begun.elapsed() < WITHIN, "{:?}", begun.elapsed());
        told(&cluster, "revoked").await;
        echoes(&mut other).await;
        cluster.deny(&cluster.authority.identity(Role::Agent, "n2"));
        eventually("the end of the other link", || async { cluster.server(0).status().agents.iter().all(|agent| agent.links.is_empty()).then_some(()) }).await;
        cluster.deny("");
        eventually("the way back", || async { (cluster.agent("n2").links().ready() == 1).then_some(()) }).await;
        let begun = Instant::now();
        cluster.deny_servers(&cluster.authority.identity(Role::Server, "s0"));
        eventually("the agent leaves", || async { (cluster.agent("n2").links().ready() == 0).then_some(()) }).await;
        assert!(begun.elapsed() < WITHIN, "{:?}", begun.elapsed());
        // And it is mended.
        cluster.deny_servers("# nobody\n");
        cluster.server_pair(0).replace(cluster.files("s0")).unwrap();
        assert!(cluster.server(0).reloader().reload(SystemTime::now()).is_ok());
        eventually("the link", || async { (cluster.agent("n2").links().ready() == 1).then_some(()) }).await;
    }

    async fn a_revoked_server_is_left_by_its_agents(carrier) {
        let cluster = Plan::on(carrier).lists().start().await;
        let begun = Instant::now();
        cluster.revoke(Role::Server, 2, &[&serial(&cluster, "s0")]);
        eventually("the end of the link", || async { (cluster.agent("n1").links().ready() == 0).then_some(()) }).await;
        assert!(begun.elapsed() < WITHIN, "{:?}", begun.elapsed());
        told(&cluster, "revoked").await;
    }

    async fn a_denied_server_is_left_and_taken_back_when_the_denial_is_lifted(carrier) {
        let cluster = Plan::on(carrier).lists().start().await;
        cluster.deny_servers(&cluster.authority.identity(Role::Server, "s0"));
        told(&cluster, "denied").await;
        assert_eq!(cluster.agent("n1").links().ready(), 0);
        cluster.deny_servers("# nobody\n");
        cluster.linked().await;
    }

    async fn a_denied_agent_comes_back_when_the_denial_is_lifted(carrier) {
        let cluster = Plan::on(carrier).lists().start().await;
        let server = cluster.server(0);
        cluster.deny(&cluster.authority.identity(Role::Agent, "n1"));
        eventually("the end of the link", || async { server.status().agents.iter().all(|agent| agent.links.is_empty()).then_some(()) }).await;
        told(&cluster, "denied").await;
        cluster.deny("");
        let _ = cluster.reload().await;
        cluster.linked().await;
    }

    async fn a_revoked_front_end_loses_its_dials_and_no_other_does(carrier) {
        let cluster = Plan::on(carrier).lists().start().await;
        let _sink = cluster.target(POD, Behaviour::Sink).await;
        let _echo = cluster.target("10.244.0.6:80", Behaviour::Echo).await;
        let stolen = cluster.authority.leaf(Role::Client, "kube-apiserver").sign();
        let pipe = cluster.apiserver_with(Some(&stolen)).pipe(POD).await;
        let mut other = cluster.apiserver_tcp().pipe("10.244.0.6:80").await;
        let begun = Instant::now();
        cluster.revoke(Role::Client, 2, &[&stolen.serial]);
        cut(pipe, begun, WITHIN).await;
        echoes(&mut other).await;
        let again = cluster.apiserver_with(Some(&stolen)).dial(POD).await;
        assert!(again.is_err(), "a revoked front end came in");
    }

    async fn a_front_end_s_dial_ends_with_its_certificate(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _sink = cluster.target(POD, Behaviour::Sink).await;
        let life = Duration::from_secs(3);
        let short = cluster.authority.leaf(Role::Client, "kube-apiserver").ends_in(life).sign();
        let begun = Instant::now();
        let pipe = cluster.apiserver_with(Some(&short)).pipe(POD).await;
        cut(pipe, begun, life + WITHIN).await;
        assert!(begun.elapsed() > life - Duration::from_secs(1), "{:?}", begun.elapsed());
    }

    async fn a_revoked_certificate_is_refused_at_the_door_and_the_cause_is_counted(carrier) {
        let cluster = Plan::on(carrier).agents(0).lists().start().await;
        let leaf = || cluster.authority.leaf(Role::Agent, "n9").ips(&[node_ip(9)]).sign();
        let (stolen, fresh) = (leaf(), leaf());
        cluster.revoke(Role::Agent, 2, &[&stolen.serial]);
        assert_eq!(cluster.reload().await, [""; 0]);
        assert!(!enters(&cluster, carrier, &stolen).await);
        assert!(enters(&cluster, carrier, &fresh).await);
        let name = match carrier.as_str() {
            "tls" => "towline_server_tls_handshakes_failed_total{reason=\"revoked\"} ",
            _ => "towline_quic_handshake_failures_total{reason=\"revoked\"} ",
        };
        eventually("the count", || async { (series(&cluster, name).await == Some(1)).then_some(()) }).await;
    }

    async fn what_is_no_good_as_a_list_leaves_the_old_one_in_force(carrier) {
        let cluster = Plan::on(carrier).lists().start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let mut pipe = cluster.apiserver().pipe(POD).await;
        let leaf = || cluster.authority.leaf(Role::Agent, "n9").ips(&[node_ip(9)]).sign();
        let (stolen, fresh) = (leaf(), leaf());
        cluster.revoke(Role::Agent, 7, &[&stolen.serial]);
        assert_eq!(cluster.reload().await, [""; 0]);
        let now = SystemTime::now();
        let issuer = cluster.authority.issuer(Role::Agent);
        let good = issuer.list(8, &[], now - HOUR, now + HOUR);
        let stranger = cluster.stranger.issuer(Role::Agent).list(8, &[], now - HOUR, now + HOUR);
        let cases = [
            (good[..good.len() / 2].to_owned(), "cut off"),
            (good.replacen("\nM", "\nA", 1), "list"),
            ("nonsense".to_owned(), "X509 CRL"),
            (String::new(), "empty"),
            (stranger, "not signed by"),
            (cluster.authority.issuer(Role::Server).list(8, &[], now - HOUR, now + HOUR), "none of the authorities"),
            (issuer.list(6, &[], now - HOUR, now + HOUR), "rolled back"),
            (issuer.list(7, &[], now - 2 * HOUR, now + HOUR), "rolled back"),
        ];
        for (content, words) in cases {
            cluster.put_list(Role::Agent, &content);
            let errors = cluster.reload().await;
            assert!(errors.len() == 1 && errors[0].contains(words) && errors[0].contains("agent-crl"), "{words}: {errors:?}");
            assert!(!enters(&cluster, carrier, &stolen).await, "{words}");
            assert!(enters(&cluster, carrier, &fresh).await, "{words}");
            echoes(&mut pipe).await;
        }
        assert_eq!(series(&cluster, "towline_crl_alarms{cause=\"refused\"} ").await, Some(1));
        let noted = |words: &'static str| {
            let report = cluster.server(0).readiness().report();
            let note = report.notes().find(|(name, _)| *name == "revocation");
            let note = note.map_or("", |(_, note)| note);
            let met = report.lines().any(|(name, unmet)| name == "revocation" && unmet.is_none());
            (met && note.is_empty() == words.is_empty() && note.contains(words)).then_some(())
        };
        eventually("the note", || async { noted("not in force") }).await;
        // A certificate that is renewed meanwhile is not kept out by the list's fault.
        let renewed = cluster.server_pair(0);
        renewed.replace(cluster.files("s0")).unwrap();
        assert_eq!(cluster.reload().await.len(), 1);
        let trust = cluster.server(0).reloader().trust.clone().unwrap().snapshot();
        assert_eq!(trust.material.credentials().leaf().serial.to_string(), renewed.serial);
        // And the next good one counts.
        cluster.revoke(Role::Agent, 8, &[]);
        assert_eq!(cluster.reload().await, [""; 0]);
        assert!(enters(&cluster, carrier, &stolen).await);
        assert_eq!(series(&cluster, "towline_crl_alarms{cause=\"refused\"} ").await, Some(0));
        eventually("no note", || async { noted("") }).await;
    }

    async fn a_stale_list_still_counts_with_keep_last(carrier) {
        let cluster = Plan::on(carrier).lists().start().await;
        let stolen = cluster.authority.leaf(Role::Agent, "n9").ips(&[node_ip(9)]).sign();
        let fresh = cluster.authority.leaf(Role::Agent, "n9").ips(&[node_ip(9)]).sign();
        let now = SystemTime::now();
        let list = cluster.authority.issuer(Role::Agent).list(2, &[&stolen.serial], now - 2 * HOUR, now - HOUR);
        cluster.put_list(Role::Agent, &list);
        assert_eq!(cluster.reload().await, [""; 0]);
        assert!(!enters(&cluster, carrier, &stolen).await);
        assert!(enters(&cluster, carrier, &fresh).await);
        assert_eq!(cluster.agent("n1").links().ready(), 1);
        assert_eq!(series(&cluster, "towline_crl_alarms{cause=\"stale\"} ").await, Some(1));
    }

    async fn a_list_that_becomes_stale_ends_links_with_fail_closed(carrier) {
        let cluster = Plan::on(carrier).lists().server_flags(&["--crl-policy", "fail-closed"]).start().await;
        let _sink = cluster.target(POD, Behaviour::Sink).await;
        let pipe = cluster.apiserver_tcp().pipe(POD).await;
        let (begun, left) = (Instant::now(), Duration::from_secs(3));
        let now = SystemTime::now();
        let list = cluster.authority.issuer(Role::Agent).list(2, &[], now - HOUR, now + left);
        cluster.put_list(Role::Agent, &list);
        assert_eq!(cluster.reload().await, [""; 0]);
        assert_eq!(cluster.agent("n1").links().ready(), 1);
        cut(pipe, begun, left + WITHIN).await;
        assert!(begun.elapsed() > left - Duration::from_secs(1), "{:?}", begun.elapsed());
        let linked = || cluster.agent("n1").links().ready();
        eventually("no link", || async { (linked() == 0).then_some(()) }).await;
        told(&cluster, "revocation-unknown").await;
        // The agent's next attempt may take half a minute; a reload of its own files is one at once.
        cluster.revoke(Role::Agent, 3, &[]);
        assert_eq!(cluster.reload().await, [""; 0]);
        cluster.linked().await;
    }

    async fn an_agent_leaves_when_its_list_becomes_stale_with_fail_closed(carrier) {
        let cluster = Plan::on(carrier).lists().agent_flags(&["--crl-policy", "fail-closed"]).start().await;
        let now = SystemTime::now();
        let list = cluster.authority.issuer(Role::Server).list(2, &[], now - HOUR, now + Duration::from_secs(2));
        cluster.put_list(Role::Server, &list);
        told(&cluster, "revocation-unknown").await;
        cluster.revoke(Role::Server, 3, &[]);
        cluster.linked().await;
    }
}

#[tokio::test]
async fn a_daemon_does_not_start_on_a_list_that_is_no_good() {
    let mut cluster = Plan::on(towline_link::carrier::CarrierKind::Tls)
        .agents(0)
        .lists()
        .start()
        .await;
    let pair = cluster.files("s0").clone();
    let args = cluster.server_args(7, &pair, "127.0.0.1:0");
    for (content, words) in [
        ("nonsense".to_owned(), "X509 CRL"),
        (
            cluster.stranger.issuer(Role::Agent).revocation_list(&[]),
            "not signed by",
        ),
    ] {
        cluster.put_list(Role::Agent, &content);
        let error = towline_tests::cluster::start_server(&args)
            .await
            .err()
            .expect("refused");
        assert!(
            error.contains(words) && error.contains("agents.crl"),
            "{error}"
        );
    }
    cluster.kill_server(0);
}
