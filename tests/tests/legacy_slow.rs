//! A legacy agent that reads nothing: its own dials end in time, and neither the server nor the agent beside
//! it notices. And one whose bytes wait for a slow front end, which costs its other dials nothing.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::task::AbortOnDropHandle;
use towline_link::grpc::Code;
use towline_proto::limits;
use towline_proto::reason::Reason;
use towline_tests::apiserver::Pipe;
use towline_tests::cluster::Cluster;
use towline_tests::legacy::{LegacyAgent, Serving, alone_with, data, listed, metric};
use towline_tests::scenario::{eventually, expect};
use towline_tests::target::{Behaviour, Target};

const SLOW: &str = "10.9.0.1:1";
const GOOD: &str = "10.9.0.2:1";

/// Two agents: to one of them bytes are sent that it does not read, the other one serves.
struct Two {
    cluster: Cluster,
    slow: LegacyAgent,
    flood: AbortOnDropHandle<std::io::Error>,
    beside: Pipe,
    _good: Serving,
    _echo: Target,
}

async fn two(flags: &[&str], good_announces: &str) -> Two {
    let flags = [&["--proxy-strategies", "destHost"], flags].concat();
    let cluster = alone_with(&flags).await;
    let mut slow = cluster.legacy("slow", "ipv4=10.9.0.1").await;
    listed(&cluster, 1).await;
    let good = cluster.legacy("good", good_announces).await;
    listed(&cluster, 2).await;
    let echo = Target::start(Behaviour::Echo).await.unwrap();
    let lead = [(GOOD, echo.address()), (SLOW, echo.address())];
    let good = good.serve(&lead);
    let front = cluster.apiserver();
    let asking = tokio::spawn(async move { front.pipe(SLOW).await });
    slow.accept(1).await;
    let mut pipe = asking.await.unwrap();
    let flood = tokio::spawn(async move {
        let block = vec![7; 64 * 1024];
        loop {
            if let Err(error) = pipe.write_all(&block).await {
                return error;
            }
        }
    });
    let beside = cluster.apiserver().pipe(GOOD).await;
    Two {
        cluster,
        slow,
        flood: AbortOnDropHandle::new(flood),
        beside,
        _good: good,
        _echo: echo,
    }
}

impl Two {
    /// A new dial and an old one through the good agent.
    async fn nobody_notices(&mut self) {
        let mut fresh = self.cluster.apiserver().pipe(GOOD).await;
        for pipe in [&mut self.beside, &mut fresh] {
            let mut echo = [0; 4];
            pipe.write_all(b"ping").await.unwrap();
            expect("the echo", pipe.read_exact(&mut echo))
                .await
                .unwrap();
            assert_eq!(&echo, b"ping");
        }
    }

    /// How many agents are listed as `stuck`.
    fn stuck(&self) -> usize {
        let status = self.cluster.server(0).status();
        let agents = status.compatibility.expect("the profile").legacy_agents;
        agents.iter().filter(|one| one.state == "stuck").count()
    }

    /// The end of the slow agent's stream.
    async fn slow_is_ended(mut self) {
        listed(&self.cluster, 1).await;
        expect("the end of its dial", self.flood).await.unwrap();
        // It hears of it when it reads on.
        let status = self.slow.status().await.expect("a status");
        assert_eq!(status.code, Code::Unavailable);
        assert_eq!(status.message, Reason::PeerSilent.as_str());
    }
}

#[tokio::test]
async fn an_agent_that_takes_no_request_in_time_loses_its_stream() {
    let mut two = two(&["--backend-dial-timeout", "1s"], "ipv4=10.9.0.2").await;
    two.nobody_notices().await;
    // The first may have been said before the flood.
    eventually("the end of the stream", || async {
        let refused = two.cluster.apiserver().refusal("10.9.0.1:2").await;
        assert_eq!(refused.status, 504, "{refused:?}");
        let status = two.cluster.server(0).status();
        let left = status.compatibility.expect("the profile").legacy_agents;
        (left.len() == 1).then_some(())
    })
    .await;
    two.nobody_notices().await;
    two.slow_is_ended().await;
}

#[tokio::test]
async fn an_agent_that_is_stuck_is_not_asked_until_it_reads_on() {
    let mut two = two(&["--dial-timeout", "2s"], "ipv4=10.9.0.1&ipv4=10.9.0.2").await;
    assert_eq!(two.stuck(), 0);
    // It is the older one of two that announce the address, so it is asked.
    eventually("an agent that is stuck", || async {
        let refused = two.cluster.apiserver().refusal(SLOW).await;
        assert_eq!(refused.status, 504, "{refused:?}");
        (two.stuck() == 1).then_some(())
    })
    .await;
    // From now on the other one is.
    for _ in 0..3 {
        drop(two.cluster.apiserver().pipe(SLOW).await);
    }
    two.nobody_notices().await;
    // Its stream has lived on, with the dial on it.
    assert!(!two.flood.is_finished());
    for _ in 0..100 {
        two.slow.next().await.expect("its stream is open");
    }
    eventually("an agent that moves", || async {
        (two.stuck() == 0).then_some(())
    })
    .await;
    two.nobody_notices().await;
}

#[tokio::test]
async fn an_agent_that_asks_much_and_reads_nothing_is_ended() {
    let mut two = two(&[], "ipv4=10.9.0.2").await;
    // Each is answered with CLOSE_REQ, which waits.
    let mut said = 0;
    while two
        .cluster
        .server(0)
        .status()
        .compatibility
        .is_some_and(|told| told.legacy_agents.len() == 2)
    {
        for _ in 0..1000 {
            two.slow.send(data(99, "x")).await;
        }
        said += 1000;
        two.nobody_notices().await;
        assert!(said <= 8 * limits::LEGACY_CONTROL, "it may ask for ever");
    }
    let stray = "towline_server_legacy_stray_packets_total{reason=\"data-of-unknown-connection\"}";
    // The one too many is counted behind the end that it brings about.
    eventually("all of them in the count", || async {
        (metric(&two.cluster, stray).await > limits::LEGACY_CONTROL as u64).then_some(())
    })
    .await;
    two.nobody_notices().await;
    two.slow_is_ended().await;
}

/// While the agent is held back for a front end that is slow, small packets of its other dials pile up.
#[tokio::test]
async fn small_packets_that_wait_behind_a_slow_front_end_end_nothing() {
    const BULK: usize = 16 << 20;
    const SMALL: usize = 40_000;
    let cluster = alone_with(&[]).await;
    let mut agent = cluster.legacy("a", "").await;
    let mut pipes = Vec::new();
    for (id, target) in [(1, SLOW), (2, GOOD)] {
        let front = cluster.apiserver();
        let asking = tokio::spawn(async move { front.pipe(target).await });
        agent.accept(id).await;
        pipes.push(asking.await.unwrap());
    }
    let (mut small, mut bulk) = (pipes.remove(1), pipes.remove(0));
    let slowly = tokio::spawn(async move {
        let (mut read, mut block) = (0, vec![0; 256 * 1024]);
        while read < BULK {
            read += bulk.read(&mut block).await.expect("more bytes");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    });
    let at_once = tokio::spawn(async move {
        let mut all = vec![0; SMALL];
        small.read_exact(&mut all).await.map(|_| all)
    });
    let chunk = vec![7; 64 * 1024];
    for _ in 0..BULK / chunk.len() {
        agent.send(data(1, chunk.clone())).await;
    }
    for _ in 0..SMALL {
        agent.send(data(2, "x")).await;
    }
    let all = expect("the small packets", at_once).await.unwrap();
    assert!(all.is_ok_and(|all| all.iter().all(|&byte| byte == b'x')));
    expect("the bulk", slowly).await.unwrap();
    let held = metric(&cluster, "towline_server_legacy_held_back_total ").await;
    assert!(held > 0, "the agent was never held back");
}
