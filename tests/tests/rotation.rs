//! Files change under running daemons: renewals keep links, revocations end them.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
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
/// From a new file to the end of what it forbids.
const REVOKED_WITHIN: Duration = Duration::from_secs(5);

async fn echoes(pipe: &mut Pipe) {
    let mut echo = [0; 4];
    pipe.write_all(b"ping").await.unwrap();
    expect("the echo", pipe.read_exact(&mut echo))
        .await
        .unwrap();
    assert_eq!(&echo, b"ping");
}

/// Numbers and serials of the server's links of `n1`.
fn links(cluster: &Cluster) -> Vec<(String, String)> {
    let status = cluster.server(0).status();
    let agent = status.agents.iter().find(|agent| agent.name == "n1");
    let links = agent.into_iter().flat_map(|agent| &agent.links);
    links
        .map(|link| (link.id.clone(), link.serial.clone()))
        .collect()
}

/// Waits until the open dial has ended otherwise than in order.
async fn cut_within_limit(mut pipe: Pipe, begun: Instant) {
    let mut check = Check::default();
    let end = expect(
        "the end of the dial",
        read_all(&mut pipe, &mut check, u64::MAX),
    )
    .await;
    assert_eq!(end, End::Reset);
    assert!(begun.elapsed() < REVOKED_WITHIN, "{:?}", begun.elapsed());
}

scenarios! {
    async fn a_renewed_certificate_keeps_links_and_dials(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let mut pipe = cluster.apiserver().pipe(POD).await;
        let before = links(&cluster);
        let renewed = cluster.agent_pair("n1");
        renewed.replace(cluster.files("n1")).unwrap();
        cluster.server_pair(0).replace(cluster.files("s0")).unwrap();
        assert_eq!(cluster.reload().await, [""; 0]);
        echoes(&mut pipe).await;
        assert_eq!(links(&cluster), before);
        // What connects from now on shows the new one.
        let link = cluster.agent("n1").links().all().remove(0).1;
        link.close(towline_proto::reason::Reason::Shutdown);
        eventually("a link with the new serial", || async {
            links(&cluster).iter().any(|(_, serial)| serial.trim_start_matches('0') == renewed.serial.trim_start_matches('0')).then_some(())
        }).await;
    }

    async fn a_broken_file_changes_nothing(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let mut pipe = cluster.apiserver().pipe(POD).await;
        let before = links(&cluster);
        for name in ["n1", "s0"] {
            scratch::replace(&cluster.files(name).cert, "-----BEGIN CERTIFICATE-----\nnonsense\n").unwrap();
        }
        let errors = cluster.reload().await;
        assert!(errors.len() == 2 && errors[0].contains("s0.crt") && errors[1].contains("n1.crt"), "{errors:?}");
        echoes(&mut pipe).await;
        echoes(&mut cluster.apiserver().pipe(POD).await).await;
        assert_eq!(links(&cluster), before);
        // Nobody is turned away, and whoever looks is told which file, since when and what to do.
        let reports = || [cluster.server(0).readiness().report(), cluster.agent("n1").readiness().report()];
        for (at, set, file) in [(0, "files", "s0.crt"), (1, "certificates", "n1.crt")] {
            let note = eventually("a note", || async {
                let report = &reports()[at];
                report.notes().find(|(name, _)| *name == set).map(|(_, note)| note.to_owned())
            }).await;
            assert!(note.contains(file) && note.contains("kept out since 20") && note.contains("mend it"), "{note}");
        }
        eventually("readiness all the same", || async { reports().iter().all(|report| report.is_ready()).then_some(()) }).await;
        cluster.agent_pair("n1").replace(cluster.files("n1")).unwrap();
        cluster.server_pair(0).replace(cluster.files("s0")).unwrap();
        assert_eq!(cluster.reload().await, [""; 0]);
        for (at, line) in [(0, "[+]files ok"), (1, "[+]certificates ok")] {
            eventually(line, || async { reports()[at].to_string().contains(line).then_some(()) }).await;
        }
    }

    async fn a_server_stays_who_it_is(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let before = links(&cluster);
        cluster.authority.leaf(Role::Server, "s7").sign().replace(cluster.files("s0")).unwrap();
        let errors = cluster.reload().await;
        assert!(errors.len() == 1 && errors[0].contains("/s7"), "{errors:?}");
        assert_eq!(links(&cluster), before);
    }

    async fn an_agent_that_became_another_links_anew_under_its_new_name(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let other = cluster.authority.leaf(Role::Agent, "n7").ips(&[node_ip(7)]).sign();
        other.replace(cluster.files("n1")).unwrap();
        cluster.reload().await;
        eventually("the link of n7", || async {
            let status = cluster.server(0).status();
            let of = |name: &str| status.agents.iter().find(|agent| agent.name == name).map_or(0, |agent| agent.links.len());
            (of("n7") == 1 && of("n1") == 0).then_some(())
        }).await;
    }

    async fn reloads_under_load_lose_no_byte(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _source = cluster.target(POD, Behaviour::Source(10_000_000)).await;
        let before = links(&cluster);
        let mut dials = JoinSet::new();
        for _ in 0..20 {
            let mut pipe = cluster.apiserver().pipe(POD).await;
            dials.spawn(async move {
                let mut check = Check::default();
                pipe.shutdown().await.unwrap();
                let end = read_all(&mut pipe, &mut check, u64::MAX).await;
                assert!(end == End::Closed && check.is_exactly(10_000_000), "{end:?} {check:?}");
            });
        }
        for _ in 0..20 {
            cluster.agent_pair("n1").replace(cluster.files("n1")).unwrap();
            cluster.server_pair(0).replace(cluster.files("s0")).unwrap();
            assert_eq!(cluster.reload().await, [""; 0]);
        }
        while let Some(result) = expect("the dials", dials.join_next()).await {
            result.unwrap();
        }
        assert_eq!(links(&cluster), before);
    }

    async fn a_denied_identity_loses_its_link_and_dials_within_five_seconds(carrier) {
        let cluster = Plan::on(carrier).agents(2).unverified_kubelets().start().await;
        let _sinks = [cluster.target("10.0.0.1:10250", Behaviour::Sink).await, cluster.target("10.0.0.2:10250", Behaviour::Echo).await];
        let pipe = cluster.apiserver_tcp().pipe("10.0.0.1:10250").await;
        let mut other = cluster.apiserver_tcp().pipe("10.0.0.2:10250").await;
        let begun = Instant::now();
        cluster.deny(&cluster.authority.identity(Role::Agent, "n1"));
        cut_within_limit(pipe, begun).await;
        echoes(&mut other).await;
        // A dial may come between the end of the link and the note of its reason.
        eventually("a refusal that says why", || async {
            let refused = cluster.apiserver().refusal("10.0.0.1:10250").await;
            refused.phrase.contains("denied").then_some(())
        }).await;
        let status = eventually("the agent's verdict", || async {
            cluster.agent("n1").links().status().into_iter().find(|server| server.reason.is_some())
        }).await;
        assert_eq!(status.reason.as_deref(), Some("denied"), "{status:?}");
    }

    async fn a_denied_serial_is_refused_and_a_new_certificate_is_not(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let stolen = cluster.authority.leaf(Role::Agent, "n9").ips(&[node_ip(9)]).sign();
        let server = cluster.server(0).link_address();
        cluster.deny(&format!("serial:{} # stolen\n", stolen.serial));
        cluster.reload().await;
        let entering = rogue::enter(carrier, server, &cluster.authority, Some(&stolen), rogue::hello("n9"));
        assert!(expect("the verdict", entering).await.is_err());
        let fresh = cluster.authority.leaf(Role::Agent, "n9").ips(&[node_ip(9)]).sign();
        let entering = rogue::enter(carrier, server, &cluster.authority, Some(&fresh), rogue::hello("n9"));
        expect("the verdict", entering).await.unwrap();
    }

    async fn a_removed_root_ends_links_and_dials_within_five_seconds(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _sink = cluster.target(POD, Behaviour::Sink).await;
        let pipe = cluster.apiserver_tcp().pipe(POD).await;
        let begun = Instant::now();
        let stranger = cluster.stranger.issuer(Role::Agent).pem();
        scratch::replace(&cluster.scratch().join("agents.ca"), stranger).unwrap();
        cut_within_limit(pipe, begun).await;
    }

    async fn an_agent_that_trusts_its_server_no_more_leaves_it(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _sink = cluster.target(POD, Behaviour::Sink).await;
        let pipe = cluster.apiserver().pipe(POD).await;
        let begun = Instant::now();
        let stranger = cluster.stranger.issuer(Role::Server).pem();
        scratch::replace(&cluster.scratch().join("servers.ca"), stranger).unwrap();
        eventually("the end of the link", || async { (cluster.agent("n1").links().ready() == 0).then_some(()) }).await;
        assert!(begun.elapsed() < REVOKED_WITHIN, "{:?}", begun.elapsed());
        drop(pipe);
    }

    async fn a_certificate_that_ends_ends_its_link(carrier) {
        let mut cluster = Plan::on(carrier).agents(0).start().await;
        let life = Duration::from_secs(4);
        let pair = cluster.authority.leaf(Role::Agent, "n1").ips(&[node_ip(1)]).ends_in(life).sign();
        let begun = Instant::now();
        cluster.start_agent_with("n1", &pair).await;
        cluster.linked().await;
        let _sink = cluster.target(POD, Behaviour::Sink).await;
        let mut pipe = cluster.apiserver_tcp().pipe(POD).await;
        let mut check = Check::default();
        let end = expect("the end of the dial", read_all(&mut pipe, &mut check, u64::MAX)).await;
        assert_eq!(end, End::Reset);
        assert!(begun.elapsed() < life + REVOKED_WITHIN, "{:?}", begun.elapsed());
        let refused = cluster.apiserver().refusal("10.0.0.1:10250").await;
        assert_eq!(refused.status, 503, "{refused:?}");
    }
}
