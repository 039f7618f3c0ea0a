//! Bytes arrive, once and in order, in both directions; ends and aborts are told apart; nobody
//! waits for anybody else.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use towline_tests::cluster::Plan;
use towline_tests::pattern::Check;
use towline_tests::scenario::{NOISE, eventually, expect};
use towline_tests::scenarios;
use towline_tests::target::{Behaviour, End, read_all, refusing_address, send_pattern};

const POD: &str = "10.244.0.5:8080";
const GIB: u64 = 1 << 30;

scenarios! {
    async fn bytes_arrive_once_and_in_order(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let pipe = cluster.apiserver().pipe(POD).await;
        let (mut read, mut write) = tokio::io::split(pipe);
        let mut check = Check::default();
        let sending = async {
            send_pattern(&mut write, 5_000_000).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let ((), end) = expect("the echo", async { tokio::join!(sending, read_all(&mut read, &mut check, u64::MAX)) }).await;
        assert_eq!(end, End::Closed);
        assert!(check.is_exactly(5_000_000), "{check:?}");
    }

    async fn a_gibibyte_each_way_is_intact(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let target = cluster.target(POD, Behaviour::Source(GIB)).await;
        let (mut read, mut write) = tokio::io::split(cluster.apiserver().pipe(POD).await);
        let mut check = Check::default();
        let sending = async {
            send_pattern(&mut write, GIB).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let ((), end) = tokio::join!(sending, read_all(&mut read, &mut check, u64::MAX));
        assert_eq!(end, End::Closed);
        assert!(check.is_exactly(GIB), "{check:?}");
        let outcome = expect("the target's end", target.outcome()).await;
        assert!(outcome.check.is_exactly(GIB) && outcome.end == End::Closed, "{outcome:?}");
    }

    async fn half_close_towards_the_target_leaves_the_answer_open(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _target = cluster.target(POD, Behaviour::AnswersAtEnd("all of it")).await;
        let mut pipe = cluster.apiserver().pipe(POD).await;
        pipe.write_all(b"question").await.unwrap();
        pipe.shutdown().await.unwrap();
        let mut answer = String::new();
        expect("the answer", pipe.read_to_string(&mut answer)).await.unwrap();
        assert_eq!(answer, "all of it");
    }

    async fn half_close_of_the_target_leaves_the_way_to_it_open(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let target = cluster.target(POD, Behaviour::HalfCloses("bye")).await;
        let mut pipe = cluster.apiserver().pipe(POD).await;
        let mut said = String::new();
        expect("the target's end", pipe.read_to_string(&mut said)).await.unwrap();
        assert_eq!(said, "bye");
        send_pattern(&mut pipe, 1_000_000).await.unwrap();
        pipe.shutdown().await.unwrap();
        let outcome = expect("the target's report", target.outcome()).await;
        assert!(outcome.check.is_exactly(1_000_000) && outcome.end == End::Closed, "{outcome:?}");
    }

    async fn a_target_that_speaks_first_is_heard(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _target = cluster.target(POD, Behaviour::SpeaksFirst("220 hello\r\n")).await;
        let mut pipe = cluster.apiserver().pipe(POD).await;
        let mut said = [0; 11];
        expect("the greeting", pipe.read_exact(&mut said)).await.unwrap();
        assert_eq!(&said, b"220 hello\r\n");
    }

    async fn the_answer_and_the_first_bytes_come_apart(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _target = cluster.target(POD, Behaviour::SpeaksFirst("220 hello\r\n")).await;
        for _ in 0..20 {
            let pipe = cluster.apiserver().pipe(POD).await;
            assert_eq!(pipe.early(), b"", "kube-apiserver refuses bytes in the packet of the 200");
        }
    }

    async fn a_front_end_that_aborts_resets_the_target(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let target = cluster.target(POD, Behaviour::Sink).await;
        let mut pipe = cluster.apiserver_tcp().pipe(POD).await;
        send_pattern(&mut pipe, 100_000).await.unwrap();
        expect("the connection", target.accepted()).await;
        // No close_notify: to TLS that is a truncation.
        drop(pipe);
        let outcome = expect("the target's report", target.outcome()).await;
        assert_eq!(outcome.end, End::Reset, "{outcome:?}");
        assert_eq!(outcome.check.wrong_at, None);
    }

    async fn a_target_that_resets_is_never_taken_for_complete(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _target = cluster.target(POD, Behaviour::BreaksOffAfter(500_000)).await;
        let mut pipe = cluster.apiserver_tcp().pipe(POD).await;
        pipe.write_all(b"!").await.unwrap();
        let mut check = Check::default();
        let end = expect("the end", read_all(&mut pipe, &mut check, u64::MAX)).await;
        assert_eq!(end, End::Reset, "{check:?}");
        assert_eq!(check.wrong_at, None);
    }

    async fn an_agent_killed_in_mid_stream_is_never_taken_for_an_end(carrier) {
        let mut cluster = Plan::on(carrier).start().await;
        let _target = cluster.target(POD, Behaviour::Source(u64::MAX)).await;
        let mut pipe = cluster.apiserver_tcp().pipe(POD).await;
        let mut check = Check::default();
        read_all(&mut pipe, &mut check, 1_000_000).await;
        cluster.kill_agent("n1");
        let end = expect("the end", read_all(&mut pipe, &mut check, u64::MAX)).await;
        assert_eq!(end, End::Reset);
        assert_eq!(check.wrong_at, None);
    }

    async fn a_server_killed_in_mid_stream_resets_the_target(carrier) {
        let mut cluster = Plan::on(carrier).start().await;
        let target = cluster.target(POD, Behaviour::Sink).await;
        let mut pipe = cluster.apiserver().pipe(POD).await;
        send_pattern(&mut pipe, 100_000).await.unwrap();
        expect("the connection", target.accepted()).await;
        cluster.kill_server(0);
        let outcome = expect("the target's report", target.outcome()).await;
        assert_eq!(outcome.end, End::Reset, "{outcome:?}");
    }

    async fn the_kubelet_is_reached_at_its_certificate_address(carrier) {
        let cluster = Plan::on(carrier).agents(2).unverified_kubelets().start().await;
        let targets = [
            cluster.target("10.0.0.1:10250", Behaviour::SpeaksFirst("one")).await,
            cluster.target("10.0.0.2:10250", Behaviour::SpeaksFirst("two")).await,
        ];
        for (address, wanted) in [("10.0.0.2:10250", "two"), ("10.0.0.1:10250", "one"), ("n2:10250", "two")] {
            let mut said = [0; 3];
            let mut pipe = cluster.apiserver().pipe(address).await;
            expect("the greeting", pipe.read_exact(&mut said)).await.unwrap();
            assert_eq!(std::str::from_utf8(&said).unwrap(), wanted, "{address}");
        }
        drop(targets);
    }

    async fn a_service_address_needs_no_owner(carrier) {
        let cluster = Plan::on(carrier).agents(2).start().await;
        let _service = cluster.target("10.96.0.10:443", Behaviour::SpeaksFirst("svc")).await;
        let mut said = [0; 3];
        let mut pipe = cluster.apiserver().pipe("10.96.0.10:443").await;
        expect("the greeting", pipe.read_exact(&mut said)).await.unwrap();
        assert_eq!(&said, b"svc");
    }

    async fn a_name_is_resolved_at_the_agent(carrier) {
        let cluster = Plan::on(carrier).start().await;
        cluster.wire.name("webhook.prod.svc", &[&[[10, 96, 3, 4].into()]]);
        let _service = cluster.target("10.96.3.4:443", Behaviour::SpeaksFirst("hook")).await;
        let mut said = [0; 4];
        let mut pipe = cluster.apiserver().pipe("webhook.prod.svc:443").await;
        expect("the greeting", pipe.read_exact(&mut said)).await.unwrap();
        assert_eq!(&said, b"hook");
        assert_eq!(cluster.wire.resolved(), ["webhook.prod.svc"]);
    }

    async fn each_refusal_says_why_in_one_line(carrier) {
        let cluster = Plan::on(carrier).agent_flags(&["--connect-timeout", "200ms"]).start().await;
        cluster.wire.lead("10.244.9.9:1".parse().unwrap(), refusing_address().await.unwrap());
        cluster.wire.swallow("10.244.9.8:1".parse().unwrap());
        let front = cluster.apiserver();
        for (target, status, words) in [
            ("10.244.9.9:1", 502, "refused the connection (asked from node n1)"),
            ("10.244.9.7:1", 502, "is unreachable from node n1"),
            ("10.244.9.8:1", 504, "did not answer the connection attempt of node n1"),
            ("nowhere.prod.svc:443", 502, "does not resolve on node n1"),
            ("169.254.169.254:80", 403, "is a cloud metadata address, which is never a target"),
            ("127.0.0.1:22", 403, "never a target"),
            ("10.0.0.77:10250", 503, "no agent has linked that owns 10.0.0.77"),
            ("10.0.0.1:22", 403, "no rule of the server's policy allows it (class node)"),
            ("203.0.113.5:443", 403, "no rule of the server's policy allows it (class other)"),
        ] {
            let refused = front.refusal(target).await;
            assert!(refused.status == status && refused.phrase.contains(words), "{target}: {refused:?}");
            assert!(refused.phrase.len() <= 200 && refused.phrase.bytes().all(|b| (b' '..=b'~').contains(&b)));
        }
    }

    async fn a_node_without_a_link_is_refused_at_once_and_by_name(carrier) {
        let mut cluster = Plan::on(carrier).start().await;
        cluster.kill_agent("n1");
        let front = cluster.apiserver();
        let refused = towline_tests::scenario::eventually("the refusal", || async {
            match front.dial("10.0.0.1:10250").await {
                Ok(Err(refused)) if refused.phrase.contains("has no live link since") => Some(refused),
                _ => None,
            }
        }).await;
        assert_eq!(refused.status, 503);
        assert!(refused.phrase.starts_with("node n1 "), "{refused:?}");
        let begun = Instant::now();
        front.refusal("10.0.0.1:10250").await;
        assert!(begun.elapsed() < NOISE * Duration::from_secs(1));
    }

    async fn stalled_readers_stop_only_themselves(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _source = cluster.target("10.244.0.6:80", Behaviour::Source(u64::MAX)).await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let front = cluster.apiserver();
        let mut stalled = Vec::new();
        for wanted in [1, 8, 64] {
            while stalled.len() < wanted {
                // Never read: its windows fill up and stay full.
                stalled.push(front.pipe("10.244.0.6:80").await);
            }
            // Before that their windows may have room, and nothing would be proved.
            eventually("that all of them stand still", || async {
                (cluster.server(0).status().stalled_dials == wanted).then_some(())
            }).await;
            for _ in 0..20 {
                let mut pipe = front.pipe(POD).await;
                let mut echo = [0; 4];
                pipe.write_all(b"ping").await.unwrap();
                expect("an echo beside stalled readers", pipe.read_exact(&mut echo)).await.unwrap();
            }
        }
    }

    async fn the_longest_stalled_dial_gives_way_when_memory_runs_out(carrier) {
        let cluster = Plan::on(carrier).server_flags(&["--memory-budget", "8MiB"]).start().await;
        let source = cluster.target("10.244.0.6:80", Behaviour::Source(u64::MAX)).await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let mut stalled = Vec::new();
        // Two windows fit into the budget.
        for _ in 0..3 {
            stalled.push(cluster.apiserver_tcp().pipe("10.244.0.6:80").await);
        }
        let outcome = expect("the end of one dial", source.outcome()).await;
        assert_eq!(outcome.end, End::Reset);
        expect("its front end's share", async {
            let mut cut = 0;
            for pipe in &mut stalled {
                let mut check = Check::default();
                let end = read_all(pipe, &mut check, 20_000_000).await;
                assert_eq!(check.wrong_at, None);
                cut += u32::from(end == End::Reset);
            }
            assert_eq!(cut, 1);
        }).await;
        let mut pipe = cluster.apiserver().pipe(POD).await;
        pipe.write_all(b"ping").await.unwrap();
        expect("an echo", pipe.read_exact(&mut [0; 4])).await.unwrap();
    }

    async fn more_dials_than_allowed_are_refused_as_busy(carrier) {
        let cluster = Plan::on(carrier).server_flags(&["--max-dials", "2"]).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let front = cluster.apiserver();
        let pipes = [front.pipe(POD).await, front.pipe(POD).await];
        let refused = front.refusal(POD).await;
        assert!(refused.status == 503 && refused.phrase.contains("as many dials as"), "{refused:?}");
        drop(pipes);
        towline_tests::scenario::eventually("a place", || async { front.dial(POD).await.ok()?.ok() }).await;
    }

    async fn a_thousand_dials_at_once_all_work(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let mut dials = JoinSet::new();
        for number in 0..1000_u32 {
            let front = cluster.apiserver();
            dials.spawn(async move {
                let mut pipe = front.pipe(POD).await;
                let mut echo = [0; 4];
                pipe.write_all(&number.to_be_bytes()).await.unwrap();
                pipe.read_exact(&mut echo).await.unwrap();
                assert_eq!(echo, number.to_be_bytes());
                pipe.shutdown().await.unwrap();
                assert_eq!(pipe.read(&mut echo).await.unwrap(), 0);
            });
        }
        expect("a thousand echoes", async {
            while let Some(result) = dials.join_next().await {
                result.unwrap();
            }
        }).await;
        expect("the agent's last dial to end", async {
            while cluster.agent("n1").live_dials() > 0 {
                tokio::task::yield_now().await;
            }
        }).await;
    }

    async fn two_servers_both_reach_the_node(carrier) {
        let cluster = Plan::on(carrier).servers(2).start().await;
        let _target = cluster.target(POD, Behaviour::SpeaksFirst("hi")).await;
        for index in 0..2 {
            let mut said = [0; 2];
            let mut pipe = cluster.apiserver_of(index).pipe(POD).await;
            expect("the greeting", pipe.read_exact(&mut said)).await.unwrap();
        }
    }
}
