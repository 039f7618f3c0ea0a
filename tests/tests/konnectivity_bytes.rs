//! What becomes of bytes between the real front ends and a target, beside Konnectivity's parts and with ours
//! only: all of them arrive, in either direction, also of who speaks first, ends first or takes nothing.

use std::time::Duration;

use towline_tests::konnectivity::metrics::Page;
use towline_tests::konnectivity::pair::Makers;
use towline_tests::konnectivity::{Mode, Pairing, Verb};
use towline_tests::pairings;
use towline_tests::scenario::{eventually, run};
use towline_tests::target::{Behaviour, End, target};

const MIB: u64 = 1 << 20;
const GREETING: &str = "220 hello\r\n";

pairings! { all [our_server OUR_SERVER, our_agent OUR_AGENT, ours OURS] {
    async fn a_hundred_mebibytes_each_way_arrive_as_they_were(makers, mode) {
        const BYTES: u64 = 100 * MIB;
        let pairing = Pairing::start(makers, mode).await;
        let (_echo, echo) = target(Behaviour::Echo).await;
        let both = Verb::both(&echo, BYTES).limit(Duration::from_secs(100));
        let answer = pairing.front_end.fine(both).await;
        assert_eq!((answer.sent, answer.received), (BYTES, BYTES));
    }

    async fn a_target_that_ends_first_is_heard_to_its_end(makers, mode) {
        let pairing = Pairing::start(makers, mode).await;
        let (_source, source) = target(Behaviour::Source(8 * MIB)).await;
        let down = pairing.front_end.fine(Verb::down(&source)).await;
        assert_eq!((down.received, down.end.as_str()), (8 * MIB, "eof"));
        // It ends its own direction and goes on reading: the end is one in order all the same.
        let (_target, address) = target(Behaviour::AnswersAndCloses("bye")).await;
        for name in ["first", "second", "third"] {
            pairing.front_end.fine(Verb::open(name, &address)).await;
            pairing.front_end.fine(Verb::write(name, "x")).await;
            let rest = pairing.front_end.fine(Verb::rest(name)).await;
            assert_eq!((rest.text.as_str(), rest.end.as_str()), ("bye", "eof"));
        }
        pairing.quiet().await;
    }
} }

pairings! { by_our_server [our_server OUR_SERVER, ours OURS] {
    async fn a_target_that_speaks_first_is_heard_a_thousand_times_of_a_thousand(makers, mode) {
        let pairing = Pairing::start(makers, mode).await;
        let (_target, greeting) = target(Behaviour::SpeaksFirst(GREETING)).await;
        let hear = Verb::hear(&greeting, GREETING).times(1000);
        let hear = hear.workers(4).limit(Duration::from_secs(60));
        if mode.is_grpc() {
            let answer = pairing.reusable().await.run(hear.clone()).await;
            assert_eq!(answer.good, 1000, "the newer client: {answer:?}");
        }
        let answer = pairing.front_end.run(hear).await;
        assert_eq!(answer.good, 1000, "{answer:?}");
    }

    async fn one_stalled_reader_stops_nobody_else(makers, mode) {
        let pairing = Pairing::start(makers, mode).await;
        let (_source, source) = target(Behaviour::Source(1024 * MIB)).await;
        pairing.front_end.fine(Verb::open("stalled", &source)).await;
        pairing.front_end.fine(Verb::read("stalled", 1)).await;
        let (_echo, echo) = target(Behaviour::Echo).await;
        let ask = Verb::ask(&echo, "beside it").times(200).workers(4);
        assert_eq!(pairing.front_end.fine(ask).await.good, 200);
    }
} }

pairings! { by_our_agent [our_agent OUR_AGENT, ours OURS] {
    async fn bytes_before_a_close_arrive(makers, mode) {
        let pairing = Pairing::start(makers, mode).await;
        let (sink, address) = target(Behaviour::Sink).await;
        pairing.front_end.fine(Verb::up(&address, 8 * MIB)).await;
        let outcome = sink.outcome().await;
        assert!(outcome.check.is_exactly(8 * MIB), "{outcome:?}");
        assert_eq!(outcome.end, End::Closed);
    }
} }

/// The protocol has no word for it: our server keeps the connection as long as the target speaks. The real
/// one closes it and loses the answer.
async fn half_closed(makers: Makers, mode: Mode) {
    let pairing = Pairing::start(makers, mode).await;
    let (echo, at_once) = target(Behaviour::Echo).await;
    // Speaks for longer than our server waits for a target that is silent, with pauses that are shorter.
    let (_slow, slowly) = target(Behaviour::Slow(Duration::from_secs(1))).await;
    let question = "q".repeat(100_000);
    let front_end = &pairing.front_end;
    let limit = Duration::from_secs(60);
    let (large, slow) = tokio::join!(
        front_end.fine(Verb::half(&at_once, &question, &question).limit(limit)),
        front_end.fine(Verb::half(&slowly, "seconds", "seconds").limit(limit)),
    );
    assert_eq!(
        (large.good, large.end.as_str()),
        (1, "eof"),
        "{makers:?} {mode:?}"
    );
    assert_eq!(
        (slow.good, slow.end.as_str()),
        (1, "eof"),
        "{makers:?} {mode:?}"
    );
    assert_eq!(echo.outcome().await.end, End::Closed);
    pairing.quiet().await;
}

#[ignore = "needs Go"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_front_end_that_has_said_everything_hears_the_whole_answer() {
    run("half close", async {
        // Most of it is waiting.
        tokio::join!(
            Box::pin(half_closed(Makers::OUR_SERVER, Mode::ConnectUnix)),
            Box::pin(half_closed(Makers::OUR_SERVER, Mode::ConnectTcp)),
            Box::pin(half_closed(Makers::OURS, Mode::ConnectUnix)),
            Box::pin(half_closed(Makers::OURS, Mode::ConnectTcp)),
        );
    })
    .await;
}

/// Behind their server the answer is lost, but not what was asked.
#[ignore = "needs Go"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_said_before_a_half_close_arrives_where_the_agent_is_ours() {
    run("half close", async {
        for mode in [Mode::ConnectUnix, Mode::ConnectTcp] {
            let pairing = Pairing::start(Makers::OUR_AGENT, mode).await;
            let (target, address) = target(Behaviour::AnswersAtEnd("lost")).await;
            pairing.front_end.fine(Verb::open("half", &address)).await;
            let said = "s".repeat(500_000);
            pairing.front_end.fine(Verb::write("half", &said)).await;
            pairing.front_end.fine(Verb::close_write("half")).await;
            let outcome = target.outcome().await;
            assert_eq!(outcome.check.received, 500_000, "{mode:?}: {outcome:?}");
            assert_eq!(outcome.end, End::Closed, "{mode:?}");
        }
    })
    .await;
}

/// A target that takes nothing stops the real agent as a whole. It stops neither our server nor the agent
/// beside it, and what waits for the stopped one is told so in time.
#[ignore = "needs Go"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_agent_that_is_stopped_by_one_target_costs_no_other_agent() {
    run("stopped", async {
        let server = ["--proxy-strategies=destHost", "--backend-dial-timeout=5s"];
        let here = ["--agent-identifiers=ipv4=127.0.0.1"];
        let pairing = Pairing::with(Makers::OUR_SERVER, Mode::GrpcUnix, &server, &here).await;
        let beside = ["--agent-identifiers=host=localhost"];
        let other = pairing.another_agent("pb", &beside).await;
        let (silent, stopping) = target(Behaviour::Silent).await;
        let (_echo, echo) = target(Behaviour::Echo).await;
        let named = echo.replace("127.0.0.1", "localhost");
        let front_end = &pairing.front_end;
        let ask = |target: &str| Verb::ask(target, "beside it").times(100).workers(4);
        // Both agents work, each for its own.
        front_end.fine(ask(&echo)).await;
        front_end.fine(ask(&named)).await;
        assert_eq!(dials(&other.metrics().await), 100.0);
        let upload = Verb::up(&stopping, 1024 * MIB).limit(Duration::from_secs(60));
        let flood = pairing.front_end_of(&pairing.server).await;
        let stopped = async {
            let dial = Verb::dial(&echo);
            eventually("the agent's stop", || async {
                front_end.run(dial.clone()).await.error
            })
            .await
        };
        let error = tokio::select! {
            answer = flood.run(upload) => panic!("the target has taken it: {answer:?}"),
            error = stopped => error,
        };
        assert!(!error.contains("not done within"), "{error}");
        assert_eq!(front_end.fine(ask(&named)).await.good, 100);
        assert!(pairing.server.ready().await);
        // Its target gone, it works again.
        drop(silent);
        drop(flood);
        eventually("the agent's return", || async {
            let answer = front_end.run(Verb::ask(&echo, "again")).await;
            answer.error.is_none().then_some(())
        })
        .await;
    })
    .await;
}

/// Connections to targets that an agent has made.
fn dials(page: &Page) -> f64 {
    let name = "konnectivity_network_proxy_agent_dial_duration_seconds_count";
    page.sum(name, &[]).unwrap_or(0.0)
}
