//! Arbitrary operations on a pair of multiplexers against a naive oracle, and the fuzz body
//! over a corpus.
//!
//! The oracle knows for each direction of each stream what was taken by `send`, and whether
//! that direction was ended, reset or stopped. It knows nothing of frames, credit or turns.

use std::collections::VecDeque;

use bytes::Bytes;
use proptest::prelude::*;
use towline_proto::mux::fuzz::fuzz_mux;
use towline_proto::mux::{
    Batch, Config, Event, Mux, OpenError, RecvError, SendError, Side, StreamKey,
};
use towline_proto::reason::Reason;

const WINDOW: u32 = 40_000;
const SEND_QUEUE: usize = 30_000;
const STREAMS: u32 = 3;

#[derive(Clone, Debug)]
enum Step {
    Open(usize),
    Send(usize, usize, usize),
    Finish(usize, usize),
    Reset(usize, usize, u16),
    Stop(usize, usize, u16),
    Recv(usize, usize, usize),
    Priority(usize, usize, i32),
    Release(usize, usize),
    Deliver(usize, usize),
    Transmit(usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (end, which) = (0_usize..2, 0_usize..8);
    let step = prop_oneof![
        2 => end.clone().prop_map(Step::Open),
        6 => (end.clone(), which.clone(), 0_usize..60_000).prop_map(|(e, w, n)| Step::Send(e, w, n)),
        1 => (end.clone(), which.clone()).prop_map(|(e, w)| Step::Finish(e, w)),
        1 => (end.clone(), which.clone(), 0_u16..30).prop_map(|(e, w, r)| Step::Reset(e, w, r)),
        1 => (end.clone(), which.clone(), 0_u16..30).prop_map(|(e, w, r)| Step::Stop(e, w, r)),
        6 => (end.clone(), which.clone(), 0_usize..50_000).prop_map(|(e, w, n)| Step::Recv(e, w, n)),
        1 => (end.clone(), which.clone(), -2_i32..3).prop_map(|(e, w, p)| Step::Priority(e, w, p)),
        1 => (end.clone(), which).prop_map(|(e, w)| Step::Release(e, w)),
        8 => (end.clone(), 1_usize..50_000).prop_map(|(e, n)| Step::Deliver(e, n)),
        4 => (end, 1_usize..50_000).prop_map(|(e, n)| Step::Transmit(e, n)),
    ];
    proptest::collection::vec(step, 1..200)
}

/// One direction of one stream, as the oracle sees it.
#[derive(Default)]
struct Direction {
    taken: Vec<u8>,
    read: usize,
    ended: bool,
    reset: Option<Reason>,
    stopped: Option<Reason>,
}

/// A stream: its keys at both ends (by end), the end that opened it, its directions by sender.
struct Pipe {
    keys: [Option<StreamKey>; 2],
    released: [bool; 2],
    directions: [Direction; 2],
}

struct World {
    ends: [Mux; 2],
    wire: [VecDeque<u8>; 2],
    pipes: Vec<Pipe>,
    /// Accepted at an end, and not yet known which pipe it is.
    nameless: [Vec<StreamKey>; 2],
    next_byte: u8,
}

impl World {
    fn new() -> Self {
        let config = |side| Config {
            side,
            streams: STREAMS,
            window: WINDOW,
            send_queue: SEND_QUEUE,
        };
        let mut world = Self {
            ends: [
                Mux::new(config(Side::Connector)),
                Mux::new(config(Side::Acceptor)),
            ],
            wire: [VecDeque::new(), VecDeque::new()],
            pipes: Vec::new(),
            nameless: [Vec::new(), Vec::new()],
            next_byte: 0,
        };
        world.settle();
        world
    }

    fn events(&mut self) {
        for end in 0..2 {
            while let Some(event) = self.ends[end].poll_event() {
                assert_ne!(event, Event::Closed, "the pair never breaks its own rules");
            }
        }
    }

    fn transmit(&mut self, end: usize, max: usize) -> bool {
        let mut batch = Batch::default();
        self.ends[end].transmit(&mut batch, max);
        let wire = &mut self.wire[end];
        let before = wire.len();
        batch.slices().for_each(|slice| wire.extend(slice));
        self.events();
        self.wire[end].len() > before
    }

    fn deliver(&mut self, end: usize, most: usize) -> bool {
        let length = most.min(self.wire[end].len());
        let bytes: Vec<u8> = self.wire[end].drain(..length).collect();
        self.ends[1 - end].handle(&bytes).expect("own frames");
        self.events();
        while let Some(key) = self.ends[1 - end].accept() {
            self.nameless[1 - end].push(key);
        }
        self.adopt(1 - end);
        length > 0
    }

    /// Finds the pipes of accepted streams: each one's first byte is its own index. A stream
    /// that was given up before that byte came is dropped.
    fn adopt(&mut self, end: usize) {
        for key in std::mem::take(&mut self.nameless[end]) {
            match self.ends[end].recv(key, 1) {
                Ok(Some(first)) => {
                    let pipe = &mut self.pipes[usize::from(first[0])];
                    pipe.directions[1 - end].read = 1;
                    pipe.keys[end] = Some(key);
                }
                Err(RecvError::Blocked) => self.nameless[end].push(key),
                _ => {
                    self.ends[end].release_send(key);
                    self.ends[end].release_recv(key);
                }
            }
        }
        self.events();
    }

    fn settle(&mut self) {
        loop {
            let moved =
                [0, 1].map(|end| self.transmit(end, usize::MAX) | self.deliver(end, usize::MAX));
            if moved == [false, false] {
                break;
            }
        }
    }

    fn pick(&self, end: usize, which: usize) -> Option<(usize, StreamKey)> {
        let live: Vec<usize> = (0..self.pipes.len())
            .filter(|at| self.pipes[*at].keys[end].is_some() && !self.pipes[*at].released[end])
            .collect();
        let at = *live.get(which % live.len().max(1))?;
        Some((at, self.pipes[at].keys[end]?))
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Open(end) => {
                if self.pipes.len() >= 200 {
                    return;
                }
                match self.ends[end].open() {
                    Ok(key) => {
                        let index = self.pipes.len();
                        let mut pipe = Pipe {
                            keys: [None; 2],
                            released: [false; 2],
                            directions: Default::default(),
                        };
                        pipe.keys[end] = Some(key);
                        self.pipes.push(pipe);
                        let name = u8::try_from(index).expect("at most 200");
                        self.ends[end]
                            .send(key, &mut Bytes::from(vec![name]))
                            .expect("a new stream has credit");
                        self.pipes[index].directions[end].taken.push(name);
                    }
                    Err(error) => assert_eq!(error, OpenError::Blocked),
                }
            }
            Step::Send(end, which, length) => {
                let Some((at, key)) = self.pick(end, which) else {
                    return;
                };
                let first = self.next_byte;
                let whole: Vec<u8> = (0..length).map(|n| first.wrapping_add(n as u8)).collect();
                let mut chunk = Bytes::from(whole.clone());
                let outcome = self.ends[end].send(key, &mut chunk);
                let taken = length - chunk.len();
                let nameless = self.pipes[at].keys[1 - end].is_none();
                let direction = &mut self.pipes[at].directions[end];
                match outcome {
                    Ok(()) => {
                        assert!(taken > 0 || length == 0);
                        assert!(!direction.ended && direction.reset.is_none());
                        direction.taken.extend_from_slice(&whole[..taken]);
                        assert!(
                            direction.taken.len() - direction.read <= WINDOW as usize + 1,
                            "beyond the window"
                        );
                        self.next_byte = first.wrapping_add(taken as u8);
                    }
                    Err(SendError::Blocked) => assert_eq!(taken, 0),
                    Err(SendError::Ended) => assert!(direction.ended || direction.reset.is_some()),
                    Err(SendError::Stopped(reason)) => {
                        assert!(
                            direction.stopped == Some(reason)
                                || nameless && reason == Reason::Aborted
                        );
                    }
                    Err(SendError::Closed(reason)) => panic!("closed: {reason}"),
                }
            }
            Step::Finish(end, which) => {
                let Some((at, key)) = self.pick(end, which) else {
                    return;
                };
                self.ends[end].finish(key);
                let direction = &mut self.pipes[at].directions[end];
                direction.ended |= direction.reset.is_none();
            }
            Step::Reset(end, which, code) => {
                let Some((at, key)) = self.pick(end, which) else {
                    return;
                };
                let reason = Reason::from_code(code);
                self.ends[end].reset(key, reason);
                self.pipes[at].directions[end].reset.get_or_insert(reason);
            }
            Step::Stop(end, which, code) => {
                let Some((at, key)) = self.pick(end, which) else {
                    return;
                };
                let reason = Reason::from_code(code);
                self.ends[end].stop(key, reason);
                self.pipes[at].directions[1 - end]
                    .stopped
                    .get_or_insert(reason);
            }
            Step::Recv(end, which, max) => self.recv(end, which, max),
            Step::Priority(end, which, priority) => {
                let Some((_, key)) = self.pick(end, which) else {
                    return;
                };
                self.ends[end].set_priority(key, priority);
            }
            Step::Release(end, which) => {
                let Some((at, key)) = self.pick(end, which) else {
                    return;
                };
                self.release(end, at, key);
            }
            Step::Deliver(end, most) => {
                self.deliver(end, most);
            }
            Step::Transmit(end, max) => {
                self.transmit(end, max);
            }
        }
        self.events();
        for end in 0..2 {
            let (ours, theirs) = (STREAMS as usize, STREAMS as usize);
            assert!(
                self.ends[end].stream_count() <= 2 * (ours + theirs),
                "streams pile up"
            );
        }
    }

    fn release(&mut self, end: usize, at: usize, key: StreamKey) {
        self.ends[end].release_send(key);
        self.ends[end].release_recv(key);
        self.pipes[at].released[end] = true;
        let pipe = &mut self.pipes[at];
        if !pipe.directions[end].ended {
            pipe.directions[end].reset.get_or_insert(Reason::Aborted);
        }
        pipe.directions[1 - end]
            .stopped
            .get_or_insert(Reason::Aborted);
    }

    fn recv(&mut self, end: usize, which: usize, max: usize) {
        let Some((at, key)) = self.pick(end, which) else {
            return;
        };
        let outcome = self.ends[end].recv(key, max);
        let nameless = self.pipes[at].keys[1 - end].is_none();
        let direction = &mut self.pipes[at].directions[1 - end];
        match outcome {
            Ok(Some(bytes)) => {
                assert!(bytes.len() <= max.max(1));
                let sent = direction
                    .taken
                    .get(direction.read..direction.read + bytes.len());
                assert_eq!(sent, Some(&bytes[..]), "other bytes than were sent");
                direction.read += bytes.len();
            }
            Ok(None) => {
                assert!(direction.ended, "an end that nobody said");
                assert_eq!(
                    direction.read,
                    direction.taken.len(),
                    "an end before the last byte"
                );
            }
            Err(RecvError::Blocked) => {}
            Err(RecvError::Reset(reason)) => {
                let said = direction.reset == Some(reason) || direction.stopped == Some(reason);
                assert!(
                    said || nameless && reason == Reason::Aborted,
                    "a reset that nobody said"
                );
            }
            Err(RecvError::Stopped) => assert!(direction.stopped.is_some()),
            Err(RecvError::Closed(reason)) => panic!("closed: {reason}"),
        }
    }

    /// Delivers and reads everything: what was ended must arrive whole, what was reset must not
    /// look ended; then releases everything, and nothing may be left.
    fn finish(&mut self) {
        for _ in 0..400 {
            self.settle();
            for end in 0..2 {
                for which in 0..self.pipes.len() {
                    self.recv(end, which, usize::MAX);
                }
            }
        }
        for at in 0..self.pipes.len() {
            for end in 0..2 {
                let pipe = &self.pipes[at];
                let (Some(key), false) = (pipe.keys[end], pipe.released[end]) else {
                    continue;
                };
                let direction = &pipe.directions[1 - end];
                if direction.ended && direction.reset.is_none() && direction.stopped.is_none() {
                    assert_eq!(
                        self.ends[end].recv(key, 1),
                        Ok(None),
                        "a whole stream arrives whole"
                    );
                }
            }
        }
        for at in 0..self.pipes.len() {
            for end in 0..2 {
                if let (Some(key), false) = (self.pipes[at].keys[end], self.pipes[at].released[end])
                {
                    self.release(end, at, key);
                }
            }
        }
        self.settle();
        assert_eq!(
            [0, 1].map(|end| self.ends[end].stream_count()),
            [0, 0],
            "streams are left over"
        );
        for end in 0..2 {
            let opened = (0..STREAMS)
                .map(|_| self.ends[end].open())
                .filter(Result::is_ok)
                .count();
            assert_eq!(opened, STREAMS as usize, "places are left over");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_pair_does_what_the_oracle_says(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.finish();
    }
}

/// Well-formed conversations, from which the fuzzing below starts.
fn corpus() -> Vec<Vec<u8>> {
    let limits = vec![4, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0x10, 0];
    let rest: [&[u8]; 9] = [
        &[],
        &[0, 1, 0, 2, 0, 0, 0, 1, b'h', b'i'],
        &[
            0, 3, 0, 1, 0, 0, 0, 1, b'x', 0, 1, 0, 1, 0, 0, 0, 3, b'y', 0, 2, 0, 0, 0, 0, 0, 3,
        ],
        &[0, 1, 0, 1, 0, 0, 0, 2, b'x', 2, 0, 0, 2, 0, 0, 0, 2, 0, 18],
        &[2, 1, 0, 2, 0, 0, 0, 1, 0, 18, 3, 1, 0, 2, 0, 0, 0, 3, 0, 20],
        &[
            0, 1, 0, 1, 0, 0, 0, 2, b'x', 1, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0,
            2, b'z',
        ],
        &[
            0x80, 0xff, 0, 3, 1, 2, 3, 4, 5, 6, 7, 4, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0x10,
            0,
        ],
        &[5, 0, 0, 2, 0, 0, 0, 0, 0, 28, 1, 2, 3],
        &[0, 1, 0x10, 0, 0, 0, 0, 1, 0, 0],
    ];
    rest.iter()
        .map(|frames| [&limits, *frames].concat())
        .collect()
}

#[test]
fn the_fuzz_body_holds_over_the_corpus_and_everything_near_it() {
    fuzz_mux(&[]);
    for seed in corpus() {
        fuzz_mux(&seed);
        for at in 0..seed.len() {
            fuzz_mux(&seed[..at]);
            for value in [0, 1, 2, 5, 0x7f, 0x80, 0xff] {
                let mut mutant = seed.clone();
                mutant[at] = value;
                fuzz_mux(&mutant);
            }
        }
    }
}

proptest! {
    #[test]
    fn the_fuzz_body_holds_over_any_bytes(
        data in proptest::collection::vec(any::<u8>(), 0..400),
        seed in 0_usize..9,
    ) {
        fuzz_mux(&data);
        fuzz_mux(&[corpus().remove(seed), data].concat());
    }
}
