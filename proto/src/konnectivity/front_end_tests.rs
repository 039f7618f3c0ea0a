//! The machine of a front-end stream: texts of the reference, and a model of the real client in
//! which the connection becomes known late.

use super::*;
use proptest::prelude::*;

const ID: i64 = 7;

fn now() -> Instant {
    Instant::now()
}

fn request(random: i64) -> Packet {
    Packet::DialRequest {
        protocol: TCP.to_owned(),
        address: "10.0.0.7:10250".to_owned(),
        random,
    }
}

fn data(connect_id: i64, text: &'static str) -> Packet {
    bytes(connect_id, Bytes::from_static(text.as_bytes()))
}

fn close(connect_id: i64) -> Packet {
    Packet::CloseRequest { connect_id }
}

fn open(at: Instant) -> FrontEnd {
    let mut stream = FrontEnd::new();
    let dial = Step::Dial("10.0.0.7:10250".to_owned());
    assert_eq!(stream.receive(at, request(5)), dial);
    stream.dialled(at, ID);
    assert_eq!(
        stream.answer(),
        Some(Packet::DialResponse {
            error: String::new(),
            connect_id: ID,
            random: 5
        })
    );
    stream
}

fn answers(stream: &mut FrontEnd) -> Vec<Packet> {
    std::iter::from_fn(|| stream.answer()).collect()
}

#[test]
fn what_fits_nothing_has_a_name_once() {
    let other = || FrontEnd::new();
    let dialled = || open(now());
    let by = |protocol: &str, random| Packet::DialRequest {
        protocol: protocol.to_owned(),
        address: "a:1".to_owned(),
        random,
    };
    for (mut stream, packet, name) in [
        (other(), close(3), "close-before-dial"),
        (other(), data(3, "x"), "data-before-dial"),
        (other(), by("tcp", -1), "dial-id"),
        (other(), by("udp", 1), "protocol"),
        (dialled(), close(3), "close-of-another-connection"),
        (dialled(), data(3, "x"), "data-of-another-connection"),
        (dialled(), data(0, "x"), "data-without-connection"),
        (dialled(), data(ID, ""), "empty-data"),
        (dialled(), Packet::Drain, "packet-of-an-agent"),
        (dialled(), request(6), "second-dial"),
        (dialled(), Packet::Unknown(9), "unknown-type"),
    ] {
        stream.receive(now(), packet);
        assert_eq!(stream.misused().map(Misuse::as_str), Some(name));
        assert_eq!(stream.misused(), None);
    }
    // And what does, has none.
    let mut stream = dialled();
    for packet in [data(ID, "x"), close(NOBODY), close(ID)] {
        stream.receive(now(), packet);
        assert_eq!(stream.misused(), None);
    }
}

#[test]
fn a_front_end_that_speaks_first_is_never_held_up() {
    let at = now();
    let mut stream = open(at);
    assert_eq!(stream.room(at), Room::Until(at + limits::GRPC_FIRST_HOLD));
    let sent = Step::Bytes(Bytes::from_static(b"hello"));
    assert_eq!(stream.receive(at, data(ID, "hello")), sent);
    assert_eq!(stream.room(at), Room::Any);
    stream.target_ended(at);
    assert_eq!(answers(&mut stream), [close_response(ID, "")]);
    assert!(stream.is_over());
}

#[test]
fn misuse_gets_the_words_of_the_reference() {
    let at = now();
    let mut stream = FrontEnd::new();
    assert_eq!(stream.receive(at, close(3)), Step::None);
    assert_eq!(stream.receive(at, data(3, "x")), Step::Refused);
    assert_eq!(
        answers(&mut stream),
        [
            close_response(3, "backend uninitialized"),
            close_response(3, "backend not initialized")
        ]
    );

    let mut stream = FrontEnd::new();
    stream.receive(at, request(5));
    assert_eq!(stream.receive(at, data(3, "x")), Step::None);
    assert_eq!(stream.receive(at, close(3)), Step::None);
    assert_eq!(
        answers(&mut stream),
        [
            close_response(3, "unrecognized connectID"),
            close_response(3, "Unknown connectID")
        ]
    );

    let mut stream = open(at);
    assert_eq!(stream.receive(at, data(0, "x")), Step::None);
    assert_eq!(stream.receive(at, close(3)), Step::None);
    assert_eq!(stream.receive(at, data(3, "x")), Step::Refused);
    assert_eq!(
        answers(&mut stream),
        [
            close_response(3, "Unknown connectID"),
            close_response(3, "mismatched connection IDs"),
            close_response(ID, "mismatched connection IDs")
        ]
    );
    assert!(stream.is_over());
}

#[test]
fn a_dial_is_refused_by_what_is_wrong_with_it() {
    let at = now();
    for (packet, error) in [
        (request(-1), "dial id is out of range"),
        (
            Packet::DialRequest {
                protocol: "udp".to_owned(),
                address: "a:1".to_owned(),
                random: 5,
            },
            "protocol not supported",
        ),
    ] {
        let mut stream = FrontEnd::new();
        assert_eq!(stream.receive(at, packet), Step::Refused);
        let told = answers(&mut stream);
        assert!(
            matches!(&told[..], [Packet::DialResponse { error: said, .. }] if said == error),
            "{told:?}"
        );
    }
    // A second dial does not disturb the first.
    let mut stream = open(at);
    assert_eq!(stream.receive(at, request(6)), Step::None);
    assert_eq!(stream.id(), Some(ID));
}

#[test]
fn a_dial_is_given_up_by_its_own_id_only() {
    let at = now();
    let mut stream = FrontEnd::new();
    stream.receive(at, request(5));
    let give_up = |random| Packet::CloseDial { random };
    assert_eq!(stream.receive(at, give_up(6)), Step::None);
    assert_eq!(stream.receive(at, give_up(5)), Step::GivenUp);
    // What the dialer says afterwards is heard by nobody.
    stream.dialled(at, ID);
    assert!(stream.is_over() && stream.answer().is_none());
    let mut stream = open(at);
    assert_eq!(stream.receive(at, give_up(5)), Step::None);
    assert_eq!(stream.id(), Some(ID));
}

#[test]
fn packets_without_sense_are_bounded() {
    let at = now();
    let mut stream = open(at);
    for _ in 0..limits::GRPC_SENSELESS {
        assert_eq!(stream.receive(at, Packet::Unknown(99)), Step::None);
    }
    assert_eq!(stream.receive(at, Packet::Drain), Step::Flooded);
    assert!(stream.is_over());
}

#[test]
fn a_close_before_anything_was_sent_is_a_close() {
    let at = now();
    let mut stream = open(at);
    assert_eq!(stream.receive(at, close(ID)), Step::Closed);
    stream.closed();
    assert_eq!(answers(&mut stream), [close_response(ID, "")]);
}

/// The first bytes have just been sent.
fn asked(at: Instant) -> FrontEnd {
    let mut stream = open(at);
    stream.first(at, Bytes::from_static(b"first"));
    assert_eq!(answers(&mut stream), [data(ID, "first"), data(NOBODY, "")]);
    stream
}

#[test]
fn a_close_behind_the_first_bytes_is_a_close() {
    // The answer was faster than the close.
    let at = now();
    let mut stream = asked(at);
    assert_eq!(stream.receive(at, close(NOBODY)), Step::None);
    assert_eq!(stream.room(at), Room::Any);
    assert_eq!(stream.receive(at, close(ID)), Step::Closed);
    // The close was faster than the answer.
    let mut stream = asked(at);
    assert_eq!(stream.receive(at, close(ID)), Step::None);
    assert_eq!(stream.receive(at, close(NOBODY)), Step::None);
    assert_eq!(answers(&mut stream), [data(ID, "first"), data(NOBODY, "")]);
    assert_eq!(stream.receive(at, close(NOBODY)), Step::None);
    assert!(stream.left_in_order());
    let until = at + limits::GRPC_DOUBT.0;
    assert_eq!(stream.timer(), Some(until));
    assert_eq!(stream.on_time(until), Step::Closed);
    stream.closed();
    assert_eq!(answers(&mut stream), [close_response(ID, "")]);
    // It left at once.
    let mut stream = asked(at);
    stream.receive(at, close(ID));
    assert!(stream.left_in_order());
}

#[test]
fn a_close_after_a_refusal_is_a_close() {
    // Dropped, sent again and taken; the client has read it and closes before it answers.
    let at = now();
    let mut stream = asked(at);
    for packet in [close(ID), close(NOBODY), close(ID), close(NOBODY)] {
        assert_eq!(stream.receive(at, packet), Step::None);
    }
    let again = stream.timer().unwrap();
    assert_eq!(stream.on_time(again), Step::None);
    assert_eq!(stream.receive(again, close(NOBODY)), Step::None);
    let until = again + limits::GRPC_DOUBT.1;
    assert_eq!(stream.timer(), Some(until));
    assert_eq!(stream.on_time(until), Step::Closed);
}

#[test]
fn who_writes_has_not_closed() {
    let at = now();
    let mut stream = asked(at);
    assert_eq!(stream.receive(at, close(ID)), Step::None);
    let said = Step::Bytes(Bytes::from_static(b"hello"));
    assert_eq!(stream.receive(at, data(ID, "hello")), said);
    assert_eq!(answers(&mut stream), [data(ID, "first")]);
    assert_eq!(stream.receive(at, close(NOBODY)), Step::None);
    assert_eq!(stream.room(at), Room::Any);
    // The same, after the second time.
    let mut stream = asked(at);
    stream.receive(at, close(ID));
    stream.receive(at, close(NOBODY));
    answers(&mut stream);
    assert_eq!(stream.receive(at, data(ID, "hello")), said);
    stream.receive(at, close(NOBODY));
    assert_eq!(stream.room(at), Room::Any);
    assert_eq!(stream.receive(at, close(ID)), Step::Closed);
}

#[test]
fn a_front_end_that_does_not_answer_gets_its_bytes_in_the_end() {
    let mut at = now();
    let mut stream = open(at);
    at += limits::GRPC_FIRST_HOLD;
    assert_eq!(stream.room(at), Room::First);
    stream.first(at, Bytes::from_static(b"first"));
    assert_eq!(answers(&mut stream).len(), 2);
    at += limits::GRPC_FIRST_ANSWER;
    assert_eq!(stream.timer(), Some(at));
    stream.on_time(at);
    assert_eq!(stream.room(at), Room::Any);
}

/// The real client as far as it matters: a reader, and a connection that becomes known after a
/// number of packets.
struct Client {
    known_after: usize,
    seen: usize,
    got: Vec<u8>,
    ended: bool,
}

impl Client {
    fn receive(&mut self, packet: Packet) -> Option<Packet> {
        self.seen += 1;
        let known = self.seen > self.known_after;
        match packet {
            Packet::Data { connect_id, data } if connect_id == ID && known => {
                assert!(!self.ended);
                self.got.extend_from_slice(&data);
                None
            }
            Packet::Data { connect_id, .. } => Some(close(connect_id)),
            Packet::CloseResponse { connect_id, .. } if connect_id == ID && known => {
                self.ended = true;
                None
            }
            Packet::CloseResponse { .. } => None,
            other => panic!("{other:?}"),
        }
    }
}

fn deliver(stream: &mut FrontEnd, client: &mut Client, at: Instant) {
    while let Some(packet) = stream.answer() {
        if let Some(reply) = client.receive(packet) {
            assert_eq!(stream.receive(at, reply), Step::None);
        }
    }
}

/// Runs a target that says `chunks` and ends against a client.
fn run(known_after: usize, speaks_at: Option<usize>, chunks: &[Vec<u8>]) -> Client {
    let mut at = now();
    let mut stream = open(at);
    let mut client = Client {
        known_after,
        seen: 0,
        got: Vec::new(),
        ended: false,
    };
    let mut chunks: VecDeque<_> = chunks.iter().cloned().map(Bytes::from).collect();
    let (mut told_end, mut answered) = (false, false);
    for turn in 0..10_000 {
        if client.ended {
            break;
        }
        // What cannot be told from a close is a client that was late and only listens.
        let answers = known_after > 0 && !client.got.is_empty() && !answered;
        if answers || speaks_at == Some(turn) && client.seen > client.known_after {
            answered = true;
            stream.receive(at, data(ID, "spoken"));
        }
        deliver(&mut stream, &mut client, at);
        match stream.room(at) {
            Room::Any => match chunks.pop_front() {
                Some(chunk) => {
                    client.receive(bytes(ID, chunk));
                }
                None if !told_end => {
                    told_end = true;
                    stream.target_ended(at);
                }
                None => {}
            },
            Room::First => match chunks.pop_front() {
                Some(chunk) => stream.first(at, chunk),
                None if !told_end => {
                    told_end = true;
                    stream.target_ended(at);
                }
                None => {}
            },
            Room::Until(_) | Room::Never => {}
        }
        deliver(&mut stream, &mut client, at);
        at += Duration::from_millis(1);
        if stream.timer().is_some_and(|timer| timer <= at) {
            assert_eq!(stream.on_time(at), Step::None);
        }
    }
    client
}

proptest! {
    #[test]
    fn nothing_is_lost_however_late_the_connection_is_known(
        known_after in 0..30usize,
        speaks_at in proptest::option::of(0..40usize),
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 0..6),
    ) {
        let client = run(known_after, speaks_at, &chunks);
        prop_assert!(client.ended);
        prop_assert_eq!(client.got, chunks.concat());
    }

    #[test]
    fn any_packets_in_any_state(input in proptest::collection::vec(any::<u8>(), 0..400)) {
        fuzz_front_end(now(), &input);
    }
}

#[test]
fn a_front_end_that_drops_the_first_bytes_for_ever_makes_us_say_them_so_often() {
    let begun = now();
    let mut at = begun;
    let mut stream = open(at);
    stream.first(at, Bytes::from_static(b"first"));
    let (mut sent, mut step) = (0, Step::None);
    while step == Step::None {
        sent += answers(&mut stream)
            .iter()
            .filter(|packet| **packet == data(ID, "first"))
            .count();
        assert!(sent <= 1000, "there is an end to it");
        assert_eq!(stream.receive(at, close(ID)), Step::None);
        step = stream.receive(at, close(NOBODY));
        if let Room::Until(again) = stream.room(at)
            && stream.timer() == Some(again)
            && again < at + limits::GRPC_FIRST_ANSWER
        {
            at = again;
            assert_eq!(stream.on_time(at), Step::None);
        }
    }
    assert_eq!(step, Step::Closed);
    assert_eq!(sent, limits::GRPC_FIRST_ROUNDS as usize);
    let lasted = at.duration_since(begun);
    assert!(lasted >= Duration::from_millis(1500), "{lasted:?}");
    stream.closed();
    assert_eq!(answers(&mut stream), [close_response(ID, "")]);
}

/// Fuzz body: whatever packets come, in whatever state, a stream dials once, hands bytes on only
/// while its connection is open, and says a bounded number of things.
fn fuzz_front_end(begun: Instant, input: &[u8]) {
    let mut stream = FrontEnd::new();
    let (mut dials, mut said) = (0, 0usize);
    for (at, pair) in input.chunks(2).enumerate() {
        let now = begun + Duration::from_millis(at as u64);
        let [what, id] = [pair[0], *pair.last().unwrap_or(&0)];
        let id = [0, 7, 8, NOBODY, -1][usize::from(id % 5)];
        let (over, open) = (stream.is_over(), stream.id());
        let packet = match what % 16 {
            0 => Packet::DialRequest {
                protocol: TCP.to_owned(),
                address: "a:1".to_owned(),
                random: id,
            },
            1 | 2 => bytes(id, Bytes::from_static(b"x")),
            3 => Packet::CloseRequest { connect_id: id },
            4 => Packet::CloseDial { random: id },
            5 => Packet::Drain,
            6 => Packet::Unknown(9),
            7 => {
                stream.dialled(now, 7);
                continue;
            }
            8 => {
                stream.target_ended(now);
                continue;
            }
            9 => {
                if stream.room(now) == Room::First {
                    stream.first(now, Bytes::from_static(b"first"));
                }
                continue;
            }
            10 => {
                if stream.on_time(now) == Step::Closed {
                    stream.closed();
                }
                continue;
            }
            11 => {
                stream.dial_failed("no");
                continue;
            }
            _ => {
                while stream.answer().is_some() {
                    said += 1;
                }
                continue;
            }
        };
        match stream.receive(now, packet) {
            Step::Dial(_) => dials += 1,
            Step::Bytes(_) => assert!(open == Some(7)),
            Step::Closed => stream.closed(),
            Step::Refused | Step::GivenUp | Step::Flooded => assert!(stream.is_over()),
            Step::None => {}
        }
        assert!(dials <= 1);
        assert!(!over || stream.is_over());
    }
    while stream.answer().is_some() {
        said += 1;
    }
    assert!(said <= 2 * input.len() + limits::GRPC_SENSELESS as usize);
}
