//! Two multiplexers joined by a pipe that cuts bytes anywhere, told by hand what to do.

use bytes::Bytes;
use towline_proto::limits::{MUX_FLIGHT, MUX_FRAME_BYTES, STREAM_WINDOW};
use towline_proto::mux::{
    Batch, Config, Event, Interest, Mux, OpenError, RecvError, SendError, Side, StreamKey,
    Violation,
};
use towline_proto::reason::Reason;

struct Pair {
    agent: Mux,
    server: Mux,
}

fn config(side: Side, streams: u32, window: u32) -> Config {
    Config {
        side,
        streams,
        window,
        send_queue: 256 * 1024,
    }
}

/// A pair that has exchanged its limits: the server may open 8 streams, the agent 1.
fn pair(window: u32) -> Pair {
    let mut pair = Pair {
        agent: Mux::new(config(Side::Connector, 8, window)),
        server: Mux::new(config(Side::Acceptor, 1, window)),
    };
    pair.deliver();
    pair
}

fn bytes_of(mux: &mut Mux) -> Vec<u8> {
    let mut batch = Batch::default();
    mux.transmit(&mut batch, usize::MAX);
    batch.slices().flatten().copied().collect()
}

fn pass(from: &mut Mux, to: &mut Mux) -> bool {
    let bytes = bytes_of(from);
    to.handle(&bytes).expect("own frames are well formed");
    !bytes.is_empty()
}

impl Pair {
    fn deliver(&mut self) {
        while pass(&mut self.agent, &mut self.server) | pass(&mut self.server, &mut self.agent) {}
    }

    /// A stream opened by the server and seen by the agent, with `first` as its first bytes.
    fn dial(&mut self, first: &'static [u8]) -> (StreamKey, StreamKey) {
        let here = self.server.open().expect("within the limit");
        self.server
            .send(here, &mut Bytes::from_static(first))
            .expect("credit");
        self.deliver();
        (
            here,
            self.agent.accept().expect("opened by its first bytes"),
        )
    }
}

fn all(mux: &mut Mux, key: StreamKey) -> Result<Vec<u8>, RecvError> {
    let mut bytes = Vec::new();
    loop {
        match mux.recv(key, 1000) {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) | Err(RecvError::Blocked) => return Ok(bytes),
            Err(error) => return Err(error),
        }
    }
}

fn events(mux: &mut Mux) -> Vec<Event> {
    std::iter::from_fn(|| mux.poll_event()).collect()
}

#[test]
fn bytes_and_the_end_arrive_and_each_direction_ends_on_its_own() {
    let mut pair = pair(STREAM_WINDOW);
    let (here, there) = pair.dial(b"hello");
    pair.server.finish(here);
    pair.deliver();
    assert_eq!(
        pair.agent.recv(there, 3),
        Ok(Some(Bytes::from_static(b"hel")))
    );
    assert_eq!(
        pair.agent.recv(there, 99),
        Ok(Some(Bytes::from_static(b"lo")))
    );
    assert_eq!(pair.agent.recv(there, 99), Ok(None));
    pair.agent
        .send(there, &mut Bytes::from_static(b"answer"))
        .expect("the other direction is open");
    pair.deliver();
    assert_eq!(
        pair.server.recv(here, 99),
        Ok(Some(Bytes::from_static(b"answer")))
    );
    assert_eq!(pair.server.recv(here, 99), Err(RecvError::Blocked));
    pair.agent.finish(there);
    pair.deliver();
    assert_eq!(pair.server.recv(here, 99), Ok(None));
}

#[test]
fn a_reset_discards_and_carries_its_reason() {
    let mut pair = pair(STREAM_WINDOW);
    let (here, there) = pair.dial(b"unread");
    pair.server.reset(here, Reason::TargetReset);
    pair.deliver();
    assert_eq!(
        pair.agent.recv(there, 99),
        Err(RecvError::Reset(Reason::TargetReset))
    );
}

#[test]
fn a_stop_reaches_the_sender_and_is_answered_by_a_reset() {
    let mut pair = pair(STREAM_WINDOW);
    let (here, there) = pair.dial(b"unwanted");
    assert_eq!(pair.server.stopped(here), None);
    pair.agent.stop(there, Reason::ReaderGone);
    pair.deliver();
    assert!(events(&mut pair.server).contains(&Event::Stream(here, Interest::STOPPED)));
    assert_eq!(
        pair.server.stopped(here),
        Some(SendError::Stopped(Reason::ReaderGone))
    );
    assert_eq!(
        pair.server.send(here, &mut Bytes::from_static(b"more")),
        Err(SendError::Stopped(Reason::ReaderGone))
    );
}

#[test]
fn a_half_that_is_dropped_never_looks_complete() {
    let mut pair = pair(STREAM_WINDOW);
    let (here, there) = pair.dial(b"part of a body");
    pair.server.release_send(here);
    pair.server.release_recv(here);
    pair.deliver();
    assert_eq!(
        all(&mut pair.agent, there),
        Err(RecvError::Reset(Reason::Aborted))
    );
    assert_eq!(
        pair.agent.stopped(there),
        Some(SendError::Stopped(Reason::Aborted))
    );
}

#[test]
fn a_finished_half_that_is_dropped_still_delivers() {
    let mut pair = pair(STREAM_WINDOW);
    let (here, there) = pair.dial(b"whole ");
    pair.server
        .send(here, &mut Bytes::from_static(b"body"))
        .expect("credit");
    pair.server.finish(here);
    pair.server.release_send(here);
    pair.deliver();
    assert_eq!(all(&mut pair.agent, there), Ok(b"whole body".to_vec()));
    assert_eq!(pair.agent.recv(there, 99), Ok(None));
}

#[test]
fn a_connection_that_ends_leaves_whole_streams_readable_and_others_broken() {
    let mut pair = pair(STREAM_WINDOW);
    let (whole, whole_there) = pair.dial(b"whole");
    let (_, part_there) = pair.dial(b"part");
    pair.server.finish(whole);
    pair.deliver();
    pair.server.close(Reason::Shutdown);
    pair.deliver();
    assert_eq!(pair.agent.closed(), Some(Reason::Shutdown));
    assert_eq!(all(&mut pair.agent, whole_there), Ok(b"whole".to_vec()));
    assert_eq!(
        pair.agent.recv(part_there, 99),
        Err(RecvError::Closed(Reason::Shutdown))
    );
    assert_eq!(pair.agent.open(), Err(OpenError::Closed(Reason::Shutdown)));
}

#[test]
fn a_stalled_reader_stops_only_itself_and_credit_comes_back_as_it_reads() {
    let window = 100_000;
    let mut pair = pair(window);
    let (here, there) = pair.dial(b"x");
    let mut chunk = Bytes::from(vec![1; 300_000]);
    pair.server.send(here, &mut chunk).expect("credit");
    assert_eq!(chunk.len(), 300_000 - 99_999);
    assert_eq!(pair.server.send(here, &mut chunk), Err(SendError::Blocked));
    pair.deliver();
    assert_eq!(
        pair.server.send(here, &mut chunk),
        Err(SendError::Blocked),
        "nothing was read yet"
    );
    // Another stream is not concerned.
    let (_, other) = pair.dial(b"beside it");
    assert_eq!(all(&mut pair.agent, other), Ok(b"beside it".to_vec()));
    events(&mut pair.server);
    assert_eq!(
        all(&mut pair.agent, there).map(|bytes| bytes.len()),
        Ok(100_000)
    );
    pair.deliver();
    assert!(events(&mut pair.server).contains(&Event::Stream(here, Interest::SEND)));
    assert_eq!(pair.server.send(here, &mut chunk), Ok(()));
}

#[test]
fn a_sender_that_uses_less_than_its_credit_never_waits_for_nothing() {
    let mut pair = pair(STREAM_WINDOW);
    pair.agent.set_in_flight(MUX_FLIGHT);
    let (here, there) = pair.dial(b"x");
    let (mut sent, mut read) = (0, 0);
    let mut chunk = Bytes::from(vec![7; 4 * MUX_FLIGHT as usize]);
    let whole = chunk.len();
    while !chunk.is_empty() {
        let before = chunk.len();
        let taken = pair.agent.send(there, &mut chunk);
        sent += before - chunk.len();
        assert!(sent - read <= MUX_FLIGHT as usize, "beyond what it may");
        assert!(taken.is_ok(), "blocked although everything was read");
        pair.deliver();
        while let Ok(Some(bytes)) = pair.server.recv(here, usize::MAX) {
            read += bytes.len();
        }
        pair.deliver();
    }
    assert_eq!(read, whole);
}

#[test]
fn a_sender_that_gets_company_waits_until_little_enough_is_in_flight() {
    let mut pair = pair(STREAM_WINDOW);
    let (here, there) = pair.dial(b"x");
    let mut chunk = Bytes::from(vec![7; 2 * STREAM_WINDOW as usize]);
    let mut sent = chunk.len();
    while pair.agent.send(there, &mut chunk).is_ok() {
        pair.deliver();
    }
    sent -= chunk.len();
    assert_eq!(sent, STREAM_WINDOW as usize, "alone, it fills the window");
    pair.agent.set_in_flight(MUX_FLIGHT);
    let mut read = 0;
    let enough = sent - MUX_FLIGHT as usize;
    while read < enough {
        let bytes = pair.server.recv(here, enough - read).expect("bytes");
        read += bytes.expect("no end").len();
        pair.deliver();
        events(&mut pair.agent);
        assert_eq!(
            pair.agent.send(there, &mut chunk),
            Err(SendError::Blocked),
            "{read} of {sent} bytes were read"
        );
    }
    while let Ok(Some(_)) = pair.server.recv(here, usize::MAX) {}
    pair.deliver();
    assert!(events(&mut pair.agent).contains(&Event::Stream(there, Interest::SEND)));
    assert_eq!(pair.agent.send(there, &mut chunk), Ok(()));
}

#[test]
fn streams_are_limited_and_the_limit_moves_on_as_they_end() {
    let mut pair = pair(STREAM_WINDOW);
    let first = pair.agent.open().expect("the one control stream");
    assert_eq!(pair.agent.open(), Err(OpenError::Blocked));
    // Dropped before anybody saw it: the place comes back without a word.
    pair.agent.release_send(first);
    pair.agent.release_recv(first);
    assert_eq!(bytes_of(&mut pair.agent), []);
    assert!(events(&mut pair.agent).contains(&Event::MayOpen(1)));

    for round in 0..20 {
        let dials: Vec<_> = (0..8).map(|_| pair.dial(b"x")).collect();
        assert_eq!(pair.server.open(), Err(OpenError::Blocked), "round {round}");
        for (here, there) in dials {
            for (mux, key) in [(&mut pair.server, here), (&mut pair.agent, there)] {
                mux.finish(key);
                mux.release_send(key);
                mux.release_recv(key);
            }
        }
        pair.deliver();
        assert_eq!(
            (pair.server.stream_count(), pair.agent.stream_count()),
            (0, 0)
        );
    }
    pair.agent.set_stream_limit(10);
    pair.deliver();
    for _ in 0..10 {
        pair.server.open().expect("the limit was raised");
    }
    assert_eq!(pair.server.open(), Err(OpenError::Blocked));
}

#[test]
fn streams_take_turns_and_the_control_stream_goes_first() {
    let mut pair = pair(STREAM_WINDOW);
    let bulk = pair.server.open().expect("within the limit");
    let small = pair.server.open().expect("within the limit");
    let control = pair.server.open().expect("within the limit");
    pair.server.set_priority(control, 10);
    pair.server
        .send(bulk, &mut Bytes::from(vec![b'b'; 4 * MUX_FRAME_BYTES]))
        .expect("credit");
    pair.server
        .send(small, &mut Bytes::from_static(b"s"))
        .expect("credit");
    pair.server
        .send(control, &mut Bytes::from_static(b"c"))
        .expect("credit");
    let bytes = bytes_of(&mut pair.server);
    let mut order = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let length = usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]]));
        order.push((bytes[at + 8], length));
        at += 8 + length;
    }
    let full = (b'b', MUX_FRAME_BYTES);
    assert_eq!(order, [(b'c', 1), full, (b's', 1), full, full, full]);
}

#[test]
fn a_full_frame_is_one_tls_record() {
    let mut pair = pair(STREAM_WINDOW);
    let here = pair.server.open().expect("within the limit");
    pair.server
        .send(here, &mut Bytes::from(vec![0; MUX_FRAME_BYTES]))
        .expect("credit");
    assert_eq!(bytes_of(&mut pair.server).len(), 16 * 1024);
}

/// The opening exchange, byte for byte.
#[test]
fn golden_bytes_of_an_exchange() {
    let mut server = Mux::new(config(Side::Acceptor, 1, STREAM_WINDOW));
    let mut agent = Mux::new(config(Side::Connector, 128, STREAM_WINDOW));
    let hello = bytes_of(&mut agent);
    assert_eq!(hello, [4, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 128, 0, 0x40, 0, 0]);
    server.handle(&hello).expect("limits");
    let key = server.open().expect("limit of 128");
    server
        .send(key, &mut Bytes::from_static(b"GET"))
        .expect("credit");
    server.finish(key);
    assert_eq!(
        bytes_of(&mut server),
        [
            &[4, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0x40, 0, 0][..],
            &[0, 3, 0, 3, 0, 0, 0, 2, b'G', b'E', b'T'],
        ]
        .concat()
    );
    server.stop(key, Reason::FrontEndGone);
    assert_eq!(bytes_of(&mut server), [3, 0, 0, 2, 0, 0, 0, 2, 0, 19]);
    server.close(Reason::Shutdown);
    assert_eq!(bytes_of(&mut server), [5, 0, 0, 2, 0, 0, 0, 0, 0, 28]);
}

const LIMITS: [u8; 16] = [4, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 100];

/// What a server that gave one stream of 100 bytes says to these bytes of an agent.
fn verdict(frames: &[&[u8]]) -> Option<Violation> {
    let mut server = Mux::new(config(Side::Acceptor, 1, 100));
    let outcome = server.handle(&frames.concat());
    assert_eq!(outcome.is_err(), server.closed() == Some(Reason::Protocol));
    if outcome.is_err() {
        let said = bytes_of(&mut server);
        let limits = [4, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 100];
        assert_eq!(
            said[..],
            [&limits[..], &[5, 0, 0, 2, 0, 0, 0, 0, 0, 24]].concat(),
            "a violation is answered by CLOSE, behind our own first frame"
        );
        assert_eq!(
            server.handle(b"anything at all"),
            Ok(()),
            "and then everything is ignored"
        );
    }
    outcome.err()
}

#[test]
fn who_closes_at_once_is_heard() {
    let mut server = Mux::new(config(Side::Acceptor, 1, 1024));
    let mut agent = Mux::new(config(Side::Connector, 8, 1024));
    server.close(Reason::Overloaded);
    pass(&mut server, &mut agent);
    assert_eq!(agent.closed(), Some(Reason::Overloaded));
    assert!(bytes_of(&mut server).is_empty(), "nothing follows");
}

#[test]
fn every_broken_rule_closes_the_connection_and_says_which() {
    let data = |flags, length: u8, stream: u8| {
        let mut frame = vec![0, flags, 0, length, 0, 0, 0, stream];
        frame.extend(std::iter::repeat_n(7, usize::from(length)));
        frame
    };
    assert_eq!(verdict(&[&LIMITS, &data(1, 100, 1)]), None);
    assert_eq!(verdict(&[&data(1, 100, 1)]), Some(Violation::NoLimits));
    assert_eq!(
        verdict(&[&LIMITS, &data(1, 101, 1)]),
        Some(Violation::BeyondCredit {
            stream: 1,
            excess: 1
        })
    );
    assert_eq!(
        verdict(&[&LIMITS, &data(1, 60, 1), &data(0, 60, 1)]),
        Some(Violation::BeyondCredit {
            stream: 1,
            excess: 20
        })
    );
    assert_eq!(
        verdict(&[&LIMITS, &data(0, 1, 1)]),
        Some(Violation::NeverOpened { stream: 1 })
    );
    assert_eq!(
        verdict(&[&LIMITS, &data(0, 1, 2)]),
        Some(Violation::NeverOpened { stream: 2 })
    );
    assert_eq!(
        verdict(&[&LIMITS, &data(1, 1, 3)]),
        Some(Violation::OutOfTurn {
            stream: 3,
            expected: 1
        })
    );
    assert_eq!(
        verdict(&[&LIMITS, &data(1, 1, 2)]),
        Some(Violation::OutOfTurn {
            stream: 2,
            expected: 1
        }),
        "our own row of numbers"
    );
    assert_eq!(
        verdict(&[&LIMITS, &data(1, 1, 1), &data(1, 1, 3)]),
        Some(Violation::TooManyStreams {
            stream: 3,
            limit: 1
        })
    );
    assert_eq!(
        verdict(&[&LIMITS, &data(3, 1, 1), &data(0, 1, 1)]),
        Some(Violation::AfterEnd { stream: 1 })
    );
    assert_eq!(
        verdict(&[&LIMITS, &data(3, 1, 1), &[2, 0, 0, 2, 0, 0, 0, 1, 0, 0]]),
        Some(Violation::AfterEnd { stream: 1 })
    );
    let credit = [1, 0, 0, 4, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff];
    assert_eq!(
        verdict(&[&LIMITS, &data(1, 1, 1), &credit]),
        Some(Violation::CreditOverflow { stream: 1 })
    );
    let mut lower = LIMITS;
    lower[11] = 7;
    assert_eq!(
        verdict(&[&LIMITS, &lower]),
        Some(Violation::LimitsTakenBack)
    );
    let mut wider = LIMITS;
    wider[15] = 101;
    assert_eq!(
        verdict(&[&LIMITS, &wider]),
        Some(Violation::LimitsTakenBack)
    );
    assert_eq!(
        verdict(&[&LIMITS, &[9; 8]]),
        Some(Violation::UnknownFrame { code: 9 })
    );
    assert_eq!(
        verdict(&[&LIMITS, &[0x90, 1, 0, 2, 9, 9, 9, 9, 1, 2], &data(1, 1, 1)]),
        None,
        "an extension"
    );
}

#[test]
fn a_peer_that_provokes_answers_without_reading_makes_nothing_grow() {
    let mut server = Mux::new(config(Side::Acceptor, 1, 100));
    server.handle(&LIMITS).expect("limits");
    server
        .handle(&[3, 1, 0, 2, 0, 0, 0, 1, 0, 20])
        .expect("a stream opened by STOP");
    for _ in 0..100_000 {
        server
            .handle(&[3, 0, 0, 2, 0, 0, 0, 1, 0, 20])
            .expect("STOP again");
        server
            .handle(&[1, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0])
            .expect("no credit");
        while server.poll_event().is_some() {}
    }
    assert_eq!(bytes_of(&mut server).len(), 16 + 10, "LIMITS and one RESET");
}

#[test]
fn a_stream_that_was_reset_leaves_no_turn_behind() {
    let mut server = Mux::new(Config::new(Side::Acceptor, 1));
    server
        .handle(&[4, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 9, 0, 1, 0, 0])
        .expect("limits");
    let mut batch = Batch::default();
    let open = |server: &mut Mux| {
        let key = server.open().expect("allowed");
        let mut bytes = Bytes::from(vec![0; 60_000]);
        server.send(key, &mut bytes).expect("credit");
        key
    };
    let first = open(&mut server);
    // LIMITS, and then one frame of the first stream; it still waits for its next turn.
    server.transmit(&mut batch, 1);
    let full = batch.len() + 1;
    server.transmit(&mut batch, full);
    server.reset(first, Reason::Done);
    server.release_send(first);
    server.release_recv(first);
    server
        .handle(&[2, 0, 0, 2, 0, 0, 0, 2, 0, 0])
        .expect("reset");
    let (unseen, other) = (open(&mut server), open(&mut server));
    server.release_send(unseen);
    server.release_recv(unseen);
    let full = batch.len() + 1;
    server.transmit(&mut batch, full);
    let next = open(&mut server);
    let before = batch.len();
    server.transmit(&mut batch, usize::MAX);
    let bytes: Vec<u8> = batch.slices().flatten().copied().collect();
    let (mut rest, mut order) = (&bytes[before..], Vec::new());
    while let [0, _, high, low, _, _, _, number, after @ ..] = rest {
        order.push(*number);
        rest = &after[usize::from(u16::from_be_bytes([*high, *low]))..];
    }
    assert!(
        rest.is_empty(),
        "DATA only, and nothing of the one that nobody saw"
    );
    assert_eq!(order, [4, 6, 4, 6, 4, 6, 4, 6]);
    assert_eq!((server.stream_count(), other == next), (2, false));
}
