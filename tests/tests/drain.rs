//! Stopping: nothing new is taken, what lives may end, a deadline cuts the rest, a second order
//! ends everything; and one instance of an agent takes over from another.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use towline_tests::apiserver::Pipe;
use towline_tests::cluster::{Plan, links_of};
use towline_tests::pattern::Check;
use towline_tests::scenario::{NOISE, eventually, expect};
use towline_tests::scenarios;
use towline_tests::target::{Behaviour, End, read_all, send_pattern};

const POD: &str = "10.244.0.5:8080";

async fn echoes(pipe: &mut Pipe) {
    let mut echo = [0; 4];
    pipe.write_all(b"ping").await.unwrap();
    expect("the echo", pipe.read_exact(&mut echo))
        .await
        .unwrap();
    assert_eq!(&echo, b"ping");
}

async fn ends(mut pipe: Pipe) {
    pipe.shutdown().await.unwrap();
    assert_eq!(expect("the end", pipe.read(&mut [0])).await.unwrap(), 0);
}

scenarios! {
    async fn a_draining_server_finishes_what_lives_and_takes_nothing_new(carrier) {
        let mut cluster = Plan::on(carrier).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let front = cluster.apiserver();
        let mut pipe = front.pipe(POD).await;
        let server = cluster.take_server(0);
        server.drain();
        echoes(&mut pipe).await;
        // The door is closed or says why; it never dials.
        assert!(!matches!(front.dial(POD).await, Ok(Ok(_))));
        echoes(&mut pipe).await;
        ends(pipe).await;
        expect("the server's end", server.wait()).await.unwrap();
    }

    async fn a_drain_under_load_loses_no_byte(carrier) {
        let mut cluster = Plan::on(carrier).start().await;
        let _source = cluster.target(POD, Behaviour::Source(20_000_000)).await;
        let mut dials = JoinSet::new();
        for _ in 0..20 {
            let mut pipe = cluster.apiserver().pipe(POD).await;
            dials.spawn(async move {
                let mut check = Check::default();
                pipe.shutdown().await.unwrap();
                let end = read_all(&mut pipe, &mut check, u64::MAX).await;
                assert!(end == End::Closed && check.is_exactly(20_000_000), "{end:?} {check:?}");
            });
        }
        let server = cluster.take_server(0);
        server.drain();
        expect("the server's end", server.wait()).await.unwrap();
        while let Some(result) = dials.join_next().await {
            result.unwrap();
        }
    }

    async fn the_deadline_of_a_drain_cuts_what_is_left(carrier) {
        let mut cluster = Plan::on(carrier).server_flags(&["--drain-timeout", "300ms"]).start().await;
        let target = cluster.target(POD, Behaviour::Sink).await;
        let mut pipe = cluster.apiserver_tcp().pipe(POD).await;
        send_pattern(&mut pipe, 10).await.unwrap();
        expect("the connection", target.accepted()).await;
        let server = cluster.take_server(0);
        let begun = Instant::now();
        server.drain();
        expect("the server's end", server.wait()).await.unwrap_err();
        assert!(begun.elapsed() < NOISE * Duration::from_secs(3), "{:?}", begun.elapsed());
        let mut check = Check::default();
        assert_eq!(expect("the end of the dial", read_all(&mut pipe, &mut check, u64::MAX)).await, End::Reset);
        assert_eq!(expect("the target's report", target.outcome()).await.end, End::Reset);
    }

    async fn a_second_order_ends_the_server_at_once(carrier) {
        let mut cluster = Plan::on(carrier).start().await;
        let target = cluster.target(POD, Behaviour::Sink).await;
        let _pipe = cluster.apiserver().pipe(POD).await;
        expect("the connection", target.accepted()).await;
        let server = cluster.take_server(0);
        server.drain();
        server.stop_now();
        let begun = Instant::now();
        let _ = expect("the server's end", server.wait()).await;
        assert!(begun.elapsed() < NOISE * Duration::from_secs(3), "{:?}", begun.elapsed());
        assert_eq!(expect("the target's report", target.outcome()).await.end, End::Reset);
    }

    async fn a_draining_agent_finishes_what_lives(carrier) {
        let mut cluster = Plan::on(carrier).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let mut pipe = cluster.apiserver().pipe(POD).await;
        let agent = cluster.take_agent("n1");
        agent.drain();
        for _ in 0..10 {
            echoes(&mut pipe).await;
        }
        ends(pipe).await;
        expect("the agent's end", agent.wait()).await.unwrap();
        let refused = eventually("the refusal", || async { cluster.apiserver().dial(POD).await.ok()?.err() }).await;
        assert_eq!(refused.status, 503, "{refused:?}");
    }

    async fn a_service_is_reached_through_another_agent_while_one_drains(carrier) {
        let mut cluster = Plan::on(carrier).agents(2).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let agent = cluster.take_agent("n1");
        agent.drain();
        eventually("the drain at the server", || async {
            let status = cluster.server(0).status();
            let n1 = status.agents.iter().find(|agent| agent.name == "n1")?;
            n1.links.iter().all(|link| link.state != "ready").then_some(())
        }).await;
        for _ in 0..20 {
            let pipe = cluster.apiserver().pipe(POD).await;
            assert_eq!(agent.live_dials(), 0);
            ends(pipe).await;
        }
        expect("the agent's end", agent.wait()).await.unwrap();
    }

    async fn an_agent_moves_to_the_other_server_when_one_stops(carrier) {
        let mut cluster = Plan::on(carrier).servers(2).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let server = cluster.take_server(0);
        server.drain();
        expect("the server's end", server.wait()).await.unwrap();
        ends(cluster.apiserver_of(1).pipe(POD).await).await;
    }

    async fn a_newer_instance_takes_new_dials_and_the_older_keeps_its_own(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let mut old = cluster.apiserver().pipe(POD).await;
        let newer = cluster.second_agent("n1", cluster.files("n1")).await;
        expect("the newer instance's link", links_of(&newer, 1)).await;
        let mut new = cluster.apiserver().pipe(POD).await;
        echoes(&mut new).await;
        assert_eq!(newer.live_dials(), 1);
        echoes(&mut old).await;
        assert_eq!(cluster.agent("n1").live_dials(), 1);
    }
}
