//! Konnectivity with itself: its server, its agent, its front ends. Proves the harness, and that what the
//! pairings with ours ask for is what the real thing does. What is broken there is asserted nowhere.

use std::time::Duration;

use towline_tests::konnectivity::pair::Makers;
use towline_tests::konnectivity::{Mode, Pairing, Verb};
use towline_tests::scenario::{eventually, run};
use towline_tests::target::{Behaviour, Target, refusing_address};

async fn world(mode: Mode) -> Pairing {
    Pairing::start(Makers::THEIRS, mode).await
}

#[ignore = "needs Go"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_own_parts_work_with_each_other_in_every_mode() {
    run("reference", async {
        for mode in Mode::ALL {
            let world = world(mode).await;
            let echo = Target::start(Behaviour::Echo).await.unwrap();
            let target = echo.address().to_string();
            let ask = Verb::ask(&target, "question").times(20).workers(4);
            assert_eq!(world.front_end.fine(ask).await.good, 20, "{mode:?}");
            let nobody = refusing_address().await.unwrap().to_string();
            let error = world.front_end.refused(Verb::dial(&nobody)).await;
            let said = match mode {
                Mode::GrpcUnix | Mode::GrpcTcp => "connection refused",
                Mode::ConnectUnix | Mode::ConnectTcp => "502",
            };
            assert!(error.contains(said), "{mode:?}: {error}");
            let many = world.front_end.fine(Verb::many(&target, 20)).await;
            assert_eq!(many.good, 20, "{mode:?}");
            let both = world.front_end.fine(Verb::both(&target, 2 << 20)).await;
            assert_eq!(both.received, 2 << 20, "{mode:?}");
        }
    })
    .await;
}

#[ignore = "needs Go"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_newer_client_shares_one_connection() {
    run("reusable", async {
        let world = world(Mode::GrpcUnix).await;
        let front_end = world.reusable().await;
        let echo = Target::start(Behaviour::Echo).await.unwrap();
        let target = echo.address().to_string();
        assert_eq!(front_end.fine(Verb::many(&target, 50)).await.good, 50);
    })
    .await;
}

#[ignore = "needs Go"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_metrics_and_health_are_read() {
    run("metrics", async {
        let mut world = world(Mode::GrpcUnix).await;
        let echo = Target::start(Behaviour::Echo).await.unwrap();
        let target = echo.address().to_string();
        world.front_end.fine(Verb::open("held", &target)).await;
        let server = world.server.metrics().await;
        let name = "konnectivity_network_proxy_server_established_connections";
        assert_eq!(server.sum(name, &[]), Some(1.0));
        let agent = world.agent.metrics().await;
        let name = "konnectivity_network_proxy_agent_open_endpoint_connections";
        assert_eq!(agent.sum(name, &[]), Some(1.0));
        assert!(world.server.ready().await);
        world.agent.end().await;
        eventually("not ready without an agent", || async {
            (!world.server.ready().await).then_some(())
        })
        .await;
        let error = world.front_end.refused(Verb::dial(&target)).await;
        assert!(error.contains("No agent available"), "{error}");
    })
    .await;
}

/// What the real thing does where ours must do better: printed, for the record.
#[ignore = "needs Go"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_broken_there_is_noted() {
    run("record", async {
        for mode in [Mode::GrpcUnix, Mode::ConnectUnix] {
            let world = world(mode).await;
            let front_end = &world.front_end;
            let speaks = Target::start(Behaviour::SpeaksFirst("220 hello\r\n"))
                .await
                .unwrap();
            let hear = Verb::hear(&speaks.address().to_string(), "220 hello\r\n").times(100);
            let heard = front_end
                .run(hear.limit(Duration::from_secs(60)).workers(8))
                .await;
            println!(
                "{mode:?}: a target that speaks first: {} of 100; {:?}",
                heard.good, heard.errors
            );
            let answers = Target::start(Behaviour::AnswersAtEnd("answer"))
                .await
                .unwrap();
            let half = Verb::half(&answers.address().to_string(), "question", "answer").times(5);
            let half = front_end.run(half).await;
            println!(
                "{mode:?}: half close: {} of 5; {:?}",
                half.good, half.errors
            );
            let sink = Target::start(Behaviour::Sink).await.unwrap();
            let sent = front_end
                .run(Verb::up(&sink.address().to_string(), 8 << 20))
                .await;
            let arrived = sink.outcome().await.check.received;
            println!(
                "{mode:?}: {} bytes written and closed, {arrived} arrived; {:?}",
                sent.sent, sent.error
            );
        }
    })
    .await;
}
