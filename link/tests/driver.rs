//! The life of a link on both carriers: greeting, drain, goodbye, silence, and peers that do not
//! keep to it.

#[path = "pair/both.rs"]
mod both;
mod pair;

use std::time::Duration;

use both::Ends;
use pair::{fill, read_all};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use towline_link::carrier::Stream;
use towline_link::driver::{Link, LinkState, greet_agent, greet_server};
use towline_proto::control::{Drain, Framer, Goodbye, Hello, Message, Welcome};
use towline_proto::id::InstanceId;
use towline_proto::limits;
use towline_proto::reason::Reason;
use towline_proto::version::Capabilities;

on_both_carriers_paused!(
    a_greeted_link_is_ready_and_says_goodbye_with_its_reason,
    a_refusal_reaches_the_agent_with_its_reason,
    a_name_that_is_not_the_certificates_is_an_excess_claim,
    bytes_accepted_before_a_drain_are_delivered,
    an_agents_drain_ends_with_its_last_dial,
    the_deadline_of_a_drain_cuts_what_is_left,
    a_silent_agent_is_dead_after_three_heartbeats,
    a_silent_agent_is_dead_also_while_it_drains,
    a_peer_that_never_greets_is_sent_away,
    a_drain_without_end_neither_holds_the_server_nor_hides_from_it,
    a_server_that_said_goodbye_does_not_keep_a_denied_link,
    health_and_round_trips_are_passed_on,
);

const SECOND: Duration = Duration::from_secs(1);

fn hello(name: &str) -> Hello {
    Hello {
        versions: (1, 1),
        capabilities: Capabilities::OURS,
        instance: InstanceId::new(7).unwrap(),
        name: name.parse().unwrap(),
        addresses: Vec::new(),
        prefixes: Vec::new(),
        software: "test".into(),
    }
}

fn welcome() -> Welcome {
    Welcome {
        version: 1,
        capabilities: Capabilities::OURS,
        server: "server-1".parse().unwrap(),
        servers: Vec::new(),
        routes: Vec::new(),
        max_dials: 16,
        software: "test".into(),
    }
}

/// A link of two drivers.
struct Greeted {
    agent: Link,
    server: Link,
    agent_runs: JoinHandle<Reason>,
    server_runs: JoinHandle<Reason>,
}

async fn greeted(ends: &Ends) -> Greeted {
    // Welcome is written by the driver, so the server's has to run for the agent to read it.
    let server = async {
        let greeting = greet_server(ends.server.clone(), |_| Ok(welcome()));
        let (server, said, run) = greeting.await.unwrap();
        (server, said, tokio::spawn(run))
    };
    let agent = greet_agent(ends.agent.clone(), hello("node-1"));
    let (agent, (server, said, server_runs)) = tokio::join!(agent, server);
    let (agent, got, agent_runs) = agent.unwrap();
    assert_eq!((got, said), (welcome(), hello("node-1")));
    Greeted {
        agent,
        server,
        agent_runs: tokio::spawn(agent_runs),
        server_runs,
    }
}

/// An agent that is nothing but a control stream.
struct RawAgent {
    control: Stream,
    framer: Framer,
    server: Link,
    server_runs: JoinHandle<Reason>,
}

impl RawAgent {
    async fn greet(ends: &Ends) -> Self {
        let mut control = ends.agent.open().await.unwrap();
        let greeting = Message::Hello(hello("node-1")).encode();
        control.send.send(greeting.into()).await.unwrap();
        let (server, _, run) = greet_server(ends.server.clone(), |_| Ok(welcome()))
            .await
            .unwrap();
        let server_runs = tokio::spawn(run);
        let mut agent = Self {
            control,
            framer: Framer::default(),
            server,
            server_runs,
        };
        assert_eq!(agent.next().await, Some(Message::Welcome(welcome())));
        agent
    }

    async fn say(&mut self, message: Message) {
        self.control
            .send
            .send(message.encode().into())
            .await
            .unwrap();
    }

    /// The next message that is no heartbeat; `None` at the end.
    async fn next(&mut self) -> Option<Message> {
        loop {
            match self.framer.next_message().unwrap() {
                Some(Message::Heartbeat(_)) => {}
                Some(message) => return Some(message),
                None => {
                    let bytes = self.control.recv.recv(4096).await.ok()??;
                    self.framer.push(&bytes);
                }
            }
        }
    }
}

fn is_draining(link: &Link) -> bool {
    matches!(link.state(), LinkState::Draining { .. })
}

async fn until_draining(link: &Link) {
    let mut state = link.watch();
    let draining = state.wait_for(|state| matches!(state, LinkState::Draining { .. }));
    timeout(SECOND, draining).await.unwrap().unwrap();
}

async fn a_greeted_link_is_ready_and_says_goodbye_with_its_reason(ends: Ends) {
    let link = greeted(&ends).await;
    assert_eq!(link.server.state(), LinkState::Ready);
    assert_ne!(link.server.id(), link.agent.id());
    link.server.close(Reason::Superseded);
    assert_eq!(link.agent_runs.await.unwrap(), Reason::Superseded);
    assert_eq!(link.server_runs.await.unwrap(), Reason::Superseded);
    assert_eq!(link.agent.closed().await, Reason::Superseded);
    assert_eq!(ends.agent.closed().await, Reason::Superseded);
}

async fn a_refusal_reaches_the_agent_with_its_reason(ends: Ends) {
    let (agent, server) = tokio::join!(
        greet_agent(ends.agent.clone(), hello("node-1")),
        greet_server(ends.server.clone(), |_| Err(Reason::Overloaded)),
    );
    assert_eq!(agent.err().unwrap().reason, Reason::Overloaded);
    assert_eq!(server.err().unwrap().reason, Reason::Overloaded);
    assert_eq!(ends.agent.closed().await, Reason::Overloaded);
}

async fn a_name_that_is_not_the_certificates_is_an_excess_claim(ends: Ends) {
    let (agent, server) = tokio::join!(
        greet_agent(ends.agent.clone(), hello("node-2")),
        greet_server(ends.server.clone(), |_| panic!("nobody is asked")),
    );
    assert_eq!(agent.err().unwrap().reason, Reason::ExcessClaim);
    assert_eq!(server.err().unwrap().reason, Reason::ExcessClaim);
}

async fn bytes_accepted_before_a_drain_are_delivered(ends: Ends) {
    let link = greeted(&ends).await;
    // No more than a carrier takes of a dial that nobody reads.
    let bytes = fill(1 << 20, 5);
    let counted = link.server.begin_dial(1).unwrap();
    assert!(link.server.begin_dial(1).is_none(), "the limit holds");
    let (mut here, mut there) = ends.dial().await;
    let counted_there = link.agent.begin_dial(u32::MAX).unwrap();
    here.send.send(bytes.clone().into()).await.unwrap();
    here.send.finish();
    there.send.finish();
    assert_eq!(read_all(&mut here.recv).await.unwrap(), b"");
    // The server's part is done while the agent has read nothing yet.
    drop((here, counted));
    link.server.drain(Reason::Draining, 30 * SECOND);
    until_draining(&link.agent).await;
    tokio::time::sleep(5 * SECOND).await;
    assert!(is_draining(&link.agent) && is_draining(&link.server));
    assert!(read_all(&mut there.recv).await.unwrap() == bytes);
    drop((there, counted_there));
    assert_eq!(link.server_runs.await.unwrap(), Reason::Draining);
    assert_eq!(link.agent_runs.await.unwrap(), Reason::Draining);
}

async fn an_agents_drain_ends_with_its_last_dial(ends: Ends) {
    let link = greeted(&ends).await;
    let dial = link.server.begin_dial(8).unwrap();
    let begun = Instant::now();
    link.agent.drain(Reason::Draining, 30 * SECOND);
    until_draining(&link.server).await;
    assert!(matches!(
        link.server.state(),
        LinkState::Draining { by_peer: true, .. }
    ));
    tokio::time::sleep(12 * SECOND).await;
    assert!(is_draining(&link.agent));
    drop(dial);
    assert_eq!(link.agent_runs.await.unwrap(), Reason::Draining);
    assert_eq!(link.server_runs.await.unwrap(), Reason::Draining);
    assert!(begun.elapsed() < 15 * SECOND, "{:?}", begun.elapsed());
}

async fn the_deadline_of_a_drain_cuts_what_is_left(ends: Ends) {
    let link = greeted(&ends).await;
    let _here = link.server.begin_dial(8).unwrap();
    let _there = link.agent.begin_dial(8).unwrap();
    let begun = Instant::now();
    link.server.drain(Reason::Draining, 20 * SECOND);
    assert_eq!(link.server_runs.await.unwrap(), Reason::Draining);
    assert_eq!(link.agent_runs.await.unwrap(), Reason::Draining);
    let took = begun.elapsed();
    assert!((20 * SECOND..22 * SECOND).contains(&took), "{took:?}");
}

async fn a_silent_agent_is_dead_after_three_heartbeats(ends: Ends) {
    let agent = RawAgent::greet(&ends).await;
    let begun = Instant::now();
    assert_eq!(agent.server.closed().await, Reason::PeerSilent);
    let took = begun.elapsed();
    let least = limits::PEER_SILENT - SECOND;
    assert!(
        (least..limits::PEER_SILENT + SECOND).contains(&took),
        "{took:?}"
    );
    assert_eq!(ends.agent.closed().await, Reason::PeerSilent);
    agent.server_runs.await.unwrap();
}

async fn a_silent_agent_is_dead_also_while_it_drains(ends: Ends) {
    let mut agent = RawAgent::greet(&ends).await;
    let _dial = agent.server.begin_dial(8).unwrap();
    agent
        .say(Message::Drain(Drain {
            reason: Reason::Draining,
            deadline: 600 * SECOND,
        }))
        .await;
    let begun = Instant::now();
    assert_eq!(agent.server.closed().await, Reason::PeerSilent);
    assert!(begun.elapsed() < limits::PEER_SILENT + SECOND);
}

async fn a_peer_that_never_greets_is_sent_away(ends: Ends) {
    let begun = Instant::now();
    // It opens the stream and says half a word, again and again.
    let mut control = ends.agent.open().await.unwrap();
    let drip = async {
        control.send.send(vec![1, 0].into()).await.unwrap();
        while control.send.send(vec![9].into()).await.is_ok() {
            tokio::time::sleep(SECOND).await;
        }
    };
    let greeting = greet_server(ends.server.clone(), |_| panic!("no Hello came"));
    let (greeting, ()) = tokio::join!(greeting, drip);
    assert_eq!(greeting.err().unwrap().reason, Reason::GreetingTimeout);
    assert!(begun.elapsed() < limits::GREETING + 2 * SECOND);
}

async fn a_drain_without_end_neither_holds_the_server_nor_hides_from_it(ends: Ends) {
    let mut agent = RawAgent::greet(&ends).await;
    let year = Drain {
        reason: Reason::Draining,
        deadline: Duration::from_millis(u64::from(u32::MAX)),
    };
    agent.say(Message::Drain(year)).await;
    let goodbye = Message::Goodbye(Goodbye {
        reason: Reason::Draining,
    });
    assert_eq!(agent.next().await, Some(goodbye));
    let LinkState::Draining { until, .. } = agent.server.state() else {
        panic!("{:?}", agent.server.state());
    };
    let left = until.saturating_duration_since(Instant::now().into_std());
    assert!(left <= limits::DRAIN_TIMEOUT_MAX, "{left:?}");
    // It says nothing more and closes nothing. Denied, it is gone at once.
    agent.server.close(Reason::Denied);
    let closed = timeout(SECOND, agent.server.closed()).await;
    assert_eq!(closed.expect("at once"), Reason::Denied);
    assert_eq!(ends.agent.closed().await, Reason::Denied);
}

async fn a_server_that_said_goodbye_does_not_keep_a_denied_link(ends: Ends) {
    let raw_server = async {
        let mut control = ends.server.accept().await.unwrap();
        control.recv.recv(4096).await.unwrap().unwrap();
        let drain = Drain {
            reason: Reason::Draining,
            deadline: 600 * SECOND,
        };
        control
            .send
            .send(Message::Welcome(welcome()).encode().into())
            .await
            .unwrap();
        (control, drain)
    };
    let (agent, (mut control, drain)) =
        tokio::join!(greet_agent(ends.agent.clone(), hello("node-1")), raw_server);
    let (agent, _, run) = agent.unwrap();
    let runs = tokio::spawn(run);
    let _dial = agent.begin_dial(8).unwrap();
    let goodbye = Goodbye {
        reason: Reason::Draining,
    };
    for message in [Message::Drain(drain), Message::Goodbye(goodbye)] {
        control.send.send(message.encode().into()).await.unwrap();
    }
    until_draining(&agent).await;
    // Past any silence: the dial is still let finish, until the link is closed by its owner.
    tokio::time::sleep(SECOND).await;
    assert!(is_draining(&agent));
    agent.close(Reason::Denied);
    let ended = timeout(SECOND, runs).await;
    assert_eq!(ended.expect("at once").unwrap(), Reason::Denied);
    assert_eq!(agent.state(), LinkState::Closed(Reason::Denied));
    assert_eq!(ends.server.closed().await, Reason::Denied);
}

async fn health_and_round_trips_are_passed_on(ends: Ends) {
    let link = greeted(&ends).await;
    assert!(link.server.peer_healthy());
    link.agent.set_healthy(false);
    tokio::time::sleep(3 * limits::HEARTBEAT).await;
    assert!(!link.server.peer_healthy() && link.agent.peer_healthy());
    assert!(link.server.rtt().is_some() && link.agent.rtt().is_some());
    assert!(link.server.silent_for() <= limits::HEARTBEAT);
    link.agent.close(Reason::Shutdown);
    assert_eq!(link.server.closed().await, Reason::Shutdown);
}
