//! Sessions joined by a perfect wire and a clock that the test owns.

use super::*;
use crate::id::InstanceId;
use crate::notes::Notes;
use proptest::prelude::*;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn hello() -> Hello {
    Hello {
        versions: (1, 1),
        capabilities: Capabilities::OURS,
        instance: InstanceId::new(1).unwrap(),
        name: name("n1"),
        addresses: vec![],
        prefixes: vec![],
        software: "agent".into(),
    }
}

fn welcome() -> Welcome {
    Welcome {
        version: 1,
        capabilities: Capabilities::OURS,
        server: name("cp-1"),
        servers: vec![],
        routes: vec![],
        max_dials: 10,
        software: "server".into(),
    }
}

/// Both ends and the time.
struct Pair {
    now: Instant,
    agent: Session,
    server: Session,
    /// What came out at each end, bytes left out.
    seen: Vec<(&'static str, Output)>,
    /// Nothing passes while set.
    cut: bool,
}

impl Pair {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            now,
            agent: Session::agent(now, name("cp-1"), hello()),
            server: Session::server(now, name("n1")),
            seen: Vec::new(),
            cut: false,
        }
    }

    fn ready() -> Self {
        let mut pair = Self::new();
        pair.settle();
        pair.server.welcome(pair.now, welcome());
        pair.settle();
        assert_eq!(
            (pair.agent.state(), pair.server.state()),
            (State::Ready, State::Ready)
        );
        pair.seen.clear();
        pair
    }

    /// Passes bytes until nothing comes out of either end.
    fn settle(&mut self) {
        loop {
            let (from_agent, from_server) = (self.agent.poll(), self.server.poll());
            if from_agent.is_none() && from_server.is_none() {
                return;
            }
            match from_agent {
                Some(Output::Send(bytes)) if !self.cut => {
                    self.server.handle_bytes(self.now, &bytes)
                }
                Some(Output::Send(_)) | None => {}
                Some(other) => self.seen.push(("agent", other)),
            }
            match from_server {
                Some(Output::Send(bytes)) if !self.cut => self.agent.handle_bytes(self.now, &bytes),
                Some(Output::Send(_)) | None => {}
                Some(other) => self.seen.push(("server", other)),
            }
        }
    }

    /// Lets `time` pass, waking both ends exactly at their deadlines.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = [self.agent.deadline(), self.server.deadline()]
            .into_iter()
            .flatten()
            .min()
            && next <= end
        {
            self.now = next;
            self.agent.handle_time(next);
            self.server.handle_time(next);
            self.settle();
        }
        self.now = end;
    }

    fn closed(&self, end: &str) -> Option<Reason> {
        self.seen.iter().find_map(|(who, output)| match output {
            Output::Closed(reason) if *who == end => Some(*reason),
            _ => None,
        })
    }
}

#[test]
fn a_greeted_link_lives_on_heartbeats_alone() {
    let mut pair = Pair::ready();
    pair.pass(Duration::from_secs(3600));
    assert_eq!((pair.closed("agent"), pair.closed("server")), (None, None));
    assert!(
        pair.seen
            .iter()
            .any(|(who, out)| *who == "agent" && matches!(out, Output::RoundTrip(_)))
    );
    assert!(
        pair.seen
            .iter()
            .any(|(who, out)| *who == "server" && matches!(out, Output::RoundTrip(_)))
    );
}

#[test]
fn a_cut_is_noticed_by_both_ends_within_nine_seconds() {
    let mut pair = Pair::ready();
    pair.cut = true;
    pair.pass(limits::PEER_SILENT);
    assert_eq!(pair.closed("agent"), Some(Reason::PeerSilent));
    assert_eq!(pair.closed("server"), Some(Reason::PeerSilent));
}

#[test]
fn a_cut_shorter_than_that_is_nothing() {
    let mut pair = Pair::ready();
    pair.cut = true;
    pair.pass(limits::PEER_SILENT - limits::HEARTBEAT - Duration::from_millis(1));
    pair.cut = false;
    pair.pass(Duration::from_secs(60));
    assert_eq!((pair.closed("agent"), pair.closed("server")), (None, None));
}

#[test]
fn a_peer_that_sends_but_does_not_read_is_dead_too() {
    let mut pair = Pair::ready();
    let begun = pair.now;
    for sequence in 100.. {
        if pair.server.state() == State::Closed {
            break;
        }
        let beat = Heartbeat {
            sequence,
            echo: 0,
            live_dials: 0,
            healthy: true,
            notes: Notes::NONE,
        };
        pair.now += limits::HEARTBEAT;
        let bytes = Message::Heartbeat(beat).encode();
        pair.server.handle_bytes(pair.now, &bytes);
        pair.server.handle_time(pair.now);
        while let Some(output) = pair.server.poll() {
            pair.seen.push(("server", output));
        }
    }
    assert_eq!(pair.closed("server"), Some(Reason::PeerSilent));
    assert!(pair.now - begun <= limits::PEER_SILENT + 3 * limits::HEARTBEAT);
}

#[test]
fn a_greeting_that_does_not_come_ends_the_link() {
    let mut pair = Pair::new();
    pair.cut = true;
    pair.pass(limits::GREETING);
    assert_eq!(pair.closed("agent"), Some(Reason::GreetingTimeout));
    assert_eq!(pair.closed("server"), Some(Reason::GreetingTimeout));
}

#[test]
fn a_name_that_is_not_the_certificates_is_refused() {
    let mut pair = Pair::new();
    pair.server = Session::server(pair.now, name("n2"));
    pair.settle();
    assert_eq!(pair.closed("agent"), Some(Reason::ExcessClaim));
    assert_eq!(pair.closed("server"), Some(Reason::ExcessClaim));
}

#[test]
fn versions_that_do_not_meet_are_refused() {
    let mut pair = Pair::new();
    let newer = Hello {
        versions: (2, 3),
        ..hello()
    };
    pair.agent = Session::agent(pair.now, name("cp-1"), newer);
    pair.settle();
    assert_eq!(pair.closed("agent"), Some(Reason::Version));
}

#[test]
fn a_welcome_in_another_servers_name_is_refused() {
    let mut pair = Pair::new();
    pair.settle();
    pair.server.welcome(
        pair.now,
        Welcome {
            server: name("cp-2"),
            ..welcome()
        },
    );
    pair.settle();
    assert_eq!(pair.closed("agent"), Some(Reason::Protocol));
}

#[test]
fn a_refusal_reaches_the_agent_with_its_reason() {
    let mut pair = Pair::new();
    pair.settle();
    pair.server.refuse(Reason::ExcessClaim);
    pair.settle();
    assert_eq!(pair.closed("agent"), Some(Reason::ExcessClaim));
}

#[test]
fn a_drain_keeps_the_link_until_its_deadline() {
    let mut pair = Pair::ready();
    pair.server
        .drain(pair.now, Reason::Shutdown, Duration::from_secs(30));
    pair.settle();
    assert!(
        matches!(&pair.seen[..], [("agent", Output::PeerDrains(drain))] if drain.reason == Reason::Shutdown)
    );
    pair.pass(Duration::from_secs(29));
    assert_eq!(pair.agent.state(), State::Draining);
    pair.pass(Duration::from_secs(1));
    assert_eq!(pair.closed("server"), Some(Reason::Shutdown));
    assert_eq!(pair.closed("agent"), Some(Reason::Shutdown));
}

#[test]
fn a_second_drain_can_only_shorten_the_time() {
    let mut pair = Pair::ready();
    pair.server
        .drain(pair.now, Reason::Shutdown, Duration::from_secs(10));
    pair.server
        .drain(pair.now, Reason::Shutdown, Duration::from_secs(60));
    pair.settle();
    pair.pass(Duration::from_secs(10));
    assert_eq!(pair.closed("server"), Some(Reason::Shutdown));
}

#[test]
fn a_link_ends_with_the_peers_certificate() {
    let mut pair = Pair::ready();
    pair.server
        .set_certificate_end(Some(pair.now + Duration::from_secs(100)));
    pair.pass(Duration::from_secs(100));
    assert_eq!(pair.closed("agent"), Some(Reason::CertificateEnded));
}

#[test]
fn a_change_of_health_is_told() {
    let mut pair = Pair::ready();
    pair.agent.set_load(3, false, Notes::POLICY_STALE);
    pair.pass(limits::HEARTBEAT);
    assert!(pair.seen.contains(&(
        "server",
        Output::PeerHealth {
            healthy: false,
            notes: Notes::POLICY_STALE,
        },
    )));
}

#[test]
fn messages_out_of_turn_end_the_link() {
    let beat = Heartbeat {
        sequence: 1,
        echo: 0,
        live_dials: 0,
        healthy: true,
        notes: Notes::NONE,
    };
    let replayed = Heartbeat {
        sequence: 1,
        echo: 0,
        live_dials: 0,
        healthy: true,
        notes: Notes::NONE,
    };
    let unsent = Heartbeat {
        sequence: 9,
        echo: 99,
        live_dials: 0,
        healthy: true,
        notes: Notes::NONE,
    };
    for messages in [
        vec![Message::Heartbeat(beat)],
        vec![Message::Welcome(welcome())],
        vec![Message::Hello(hello()), Message::Hello(hello())],
        vec![
            Message::Hello(hello()),
            Message::Drain(Drain {
                reason: Reason::Moved,
                deadline: Duration::ZERO,
            }),
        ],
    ] {
        let mut pair = Pair::new();
        for message in messages {
            pair.server.handle_bytes(pair.now, &message.encode());
        }
        pair.settle();
        assert_eq!(pair.closed("server"), Some(Reason::Protocol));
    }
    for beat in [replayed, unsent] {
        let mut pair = Pair::ready();
        pair.server
            .handle_bytes(pair.now, &Message::Heartbeat(beat).encode());
        pair.settle();
        assert_eq!(pair.closed("server"), Some(Reason::Protocol));
    }
}

#[test]
fn nothing_comes_out_after_closed() {
    let mut pair = Pair::ready();
    pair.server.close(Reason::Denied);
    pair.settle();
    assert_eq!(pair.closed("agent"), Some(Reason::Denied));
    pair.server
        .drain(pair.now, Reason::Shutdown, Duration::ZERO);
    pair.server.handle_bytes(pair.now, b"\0\x01\xff");
    pair.server.handle_time(pair.now + Duration::from_secs(99));
    assert_eq!(pair.server.poll(), None);
    assert_eq!(pair.server.deadline(), None);
}

proptest! {
    #[test]
    fn no_bytes_panic_and_every_session_ends(data: Vec<u8>) {
        fuzz_session(Instant::now(), hello(), &data);
    }

    #[test]
    fn what_a_peer_makes_us_queue_is_bounded(count in 0usize..200) {
        let mut pair = Pair::ready();
        for _ in 0..count {
            pair.agent.drain(pair.now, Reason::Moved, Duration::from_secs(1000 - count as u64));
            pair.agent.handle_time(pair.now + limits::HEARTBEAT);
        }
        let mut outputs = 0;
        while pair.agent.poll().is_some() {
            outputs += 1;
        }
        prop_assert!(outputs <= limits::CONTROL_QUEUE + 2);
    }
}
