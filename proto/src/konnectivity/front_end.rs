//! One stream of a front end: what its packets mean, what it is answered, and when the target's
//! bytes may go out.
//!
//! A stream carries one dial. Ids of the front end are keys and nothing more; the id of the
//! connection is ours, and DATA that names another one ends the connection, as the reference says.
//!
//! **The hazard.** The real client makes the connection known to itself in another task than the
//! one that reads our packets. What comes right behind DIAL_RSP can meet a reader that does not
//! know the connection yet: DATA is then dropped and answered with CLOSE_REQ, CLOSE_RSP is
//! dropped without a word. A pause makes that rare and proves nothing, so a proof is looked for:
//! - DATA of the front end is one: only a known connection is written to. Most targets wait for
//!   it, so most dials pass here without any delay.
//! - When the target speaks first, its first bytes are sent and kept ([`Room::First`]), and behind
//!   them an empty DATA for an id that never existed. The client answers that with CLOSE_REQ in
//!   any case and in order: none for our connection before it says that the bytes were taken; one
//!   says that they were dropped, or that the client closes the connection at this very moment.
//! - To tell these two apart the bytes are sent once more, at once, and again until they are not
//!   dropped. Who then writes has not closed; silence for [`limits::GRPC_DOUBT`] makes it a close.
//!   A client that was not ready [`limits::GRPC_FIRST_HOLD`] after it was told, and that only ever
//!   listens, is the one that is taken for one that closed. So is one that drops them
//!   [`limits::GRPC_FIRST_ROUNDS`] times.
//! - When the target ends without a byte, CLOSE_RSP is repeated until the client leaves.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::misuse::Misuse;
use super::{
    CLOSE_BEFORE_DIAL, CLOSE_UNKNOWN, DATA_BEFORE_DIAL, DATA_UNKNOWN, MISMATCHED, Packet, TCP,
};
use crate::limits;

/// What a packet asks of us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing, or nothing but an answer.
    None,
    /// A byte pipe to this address.
    Dial(String),
    /// The dial is not wanted any more.
    GivenUp,
    /// These bytes are for the target.
    Bytes(Bytes),
    /// The front end has said everything: [`FrontEnd::closed`] when that was handed on.
    Closed,
    /// The stream cannot go on; why is said in the answers.
    Refused,
    /// The stream cannot go on: too many packets that mean nothing.
    Flooded,
}

/// Whether bytes of the target may go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// As many as there are.
    Any,
    /// At most [`limits::GRPC_FIRST_BYTES`], by [`FrontEnd::first`].
    First,
    /// Not before this time; a packet may come first.
    Until(Instant),
    /// The connection is over.
    Never,
}

/// How sure we are that the front end knows the connection.
#[derive(Debug)]
enum Proof {
    /// It was told.
    Told { until: Instant },
    /// It was sent the first bytes and is asked about them.
    Asked(Question),
    /// It had dropped them more than once.
    Again { question: Question, at: Instant },
    /// It has them, and may have closed.
    Doubt { until: Instant },
    /// It knows.
    Known,
    /// The target has ended without a byte: told so until it leaves.
    Ending {
        at: Instant,
        pause: Duration,
        until: Instant,
    },
}

/// The first bytes, and what is known of their fate.
#[derive(Debug)]
struct Question {
    kept: Bytes,
    /// How often they were sent.
    round: u32,
    /// A CLOSE_REQ for the connection has come since they were sent last.
    refused: bool,
    /// The front end has written since: no CLOSE_REQ before that was a close.
    alive: bool,
    until: Instant,
    pause: Duration,
}

#[derive(Debug)]
enum State {
    Idle,
    Dialling { random: i64 },
    Open { id: i64, proof: Proof },
    Over,
}

/// See the head of this file.
#[derive(Debug)]
pub struct FrontEnd {
    state: State,
    answers: VecDeque<Packet>,
    /// Packets that meant nothing.
    senseless: u32,
    misuse: Option<Misuse>,
    /// The target has ended.
    ending: bool,
}

/// An id that no connection has: ours are numbers of dials.
const NOBODY: i64 = i64::MAX;

impl Default for FrontEnd {
    fn default() -> Self {
        Self::new()
    }
}

impl FrontEnd {
    /// A stream that has just begun.
    pub fn new() -> Self {
        Self {
            state: State::Idle,
            answers: VecDeque::new(),
            senseless: 0,
            misuse: None,
            ending: false,
        }
    }

    /// Takes a packet of the front end.
    pub fn receive(&mut self, now: Instant, packet: Packet) -> Step {
        match packet {
            Packet::DialRequest {
                protocol,
                address,
                random,
            } => self.dial(&protocol, address, random),
            Packet::Data { connect_id, data } => self.data(now, connect_id, data),
            Packet::CloseRequest { connect_id } => self.close(now, connect_id),
            Packet::CloseDial { random } => match self.state {
                State::Dialling { random: ours } if ours == random => {
                    self.state = State::Over;
                    Step::GivenUp
                }
                // It crossed our answer.
                _ => Step::None,
            },
            Packet::DialResponse { .. } | Packet::CloseResponse { .. } | Packet::Drain => {
                self.senseless(Misuse::OfAnAgent)
            }
            Packet::Unknown(_) => self.senseless(Misuse::UnknownType),
        }
    }

    fn dial(&mut self, protocol: &str, address: String, random: i64) -> Step {
        let refuse = |what: &str| Packet::DialResponse {
            error: what.to_owned(),
            connect_id: 0,
            random,
        };
        match self.state {
            State::Idle if random < 0 => {
                self.misuse = Some(Misuse::DialId);
                self.end_with(refuse("dial id is out of range"));
                Step::Refused
            }
            State::Idle if protocol != TCP => {
                self.misuse = Some(Misuse::Protocol);
                self.end_with(refuse("protocol not supported"));
                Step::Refused
            }
            State::Idle => {
                self.state = State::Dialling { random };
                Step::Dial(address)
            }
            State::Over => Step::None,
            State::Dialling { .. } | State::Open { .. } => {
                self.answers.push_back(refuse("this stream has its dial"));
                self.senseless(Misuse::SecondDial)
            }
        }
    }

    fn data(&mut self, now: Instant, connect_id: i64, data: Bytes) -> Step {
        match &mut self.state {
            _ if connect_id == 0 => self.senseless(Misuse::DataOfNone),
            State::Idle => {
                self.misuse = Some(Misuse::DataBeforeDial);
                self.end_with(close_response(connect_id, DATA_BEFORE_DIAL));
                Step::Refused
            }
            State::Dialling { .. } => {
                let answer = close_response(connect_id, DATA_UNKNOWN);
                self.answers.push_back(answer);
                self.senseless(Misuse::DataOfAnother)
            }
            State::Open { id, proof } if *id == connect_id => {
                let id = *id;
                match proof {
                    Proof::Told { .. } | Proof::Doubt { .. } => *proof = Proof::Known,
                    // Who writes has not closed, so the bytes were dropped.
                    Proof::Asked(question) if question.refused && question.round == 1 => {
                        let kept = std::mem::take(&mut question.kept);
                        *proof = Proof::Known;
                        self.answers.push_back(bytes(id, kept));
                    }
                    Proof::Asked(question) => question.alive |= question.round > 1,
                    Proof::Again { question, .. } => {
                        let kept = std::mem::take(&mut question.kept);
                        *proof = Proof::Known;
                        self.answers.push_back(bytes(id, kept));
                    }
                    Proof::Known => {}
                    // It knows the connection now, so this one is heard.
                    Proof::Ending { at, .. } => *at = now,
                }
                self.settle();
                match data.is_empty() {
                    true => self.senseless(Misuse::EmptyData),
                    false => Step::Bytes(data),
                }
            }
            State::Open { id, .. } => {
                let ours = *id;
                self.misuse = Some(Misuse::DataOfAnother);
                self.answers
                    .push_back(close_response(connect_id, MISMATCHED));
                self.end_with(close_response(ours, MISMATCHED));
                Step::Refused
            }
            State::Over => Step::None,
        }
    }

    fn close(&mut self, now: Instant, connect_id: i64) -> Step {
        match &mut self.state {
            State::Idle => {
                let answer = close_response(connect_id, CLOSE_BEFORE_DIAL);
                self.answers.push_back(answer);
                self.senseless(Misuse::CloseBeforeDial)
            }
            State::Open { id, proof } if *id == connect_id => match proof {
                Proof::Asked(question) if !question.refused => {
                    question.refused = true;
                    Step::None
                }
                _ => Step::Closed,
            },
            State::Open { .. } if connect_id == NOBODY => self.answered(now),
            State::Open { .. } | State::Dialling { .. } => {
                let answer = close_response(connect_id, CLOSE_UNKNOWN);
                self.answers.push_back(answer);
                self.senseless(Misuse::CloseOfAnother)
            }
            State::Over => Step::None,
        }
    }

    /// The front end has answered what stood behind the first bytes.
    fn answered(&mut self, now: Instant) -> Step {
        let State::Open { proof, .. } = &mut self.state else {
            return Step::None;
        };
        let question = match std::mem::replace(proof, Proof::Known) {
            Proof::Asked(question) => question,
            other => {
                *proof = other;
                return Step::None;
            }
        };
        match (question.refused, question.round) {
            (false, 1) => {}
            (false, _) if question.alive => {}
            (false, _) => {
                let (once, often) = limits::GRPC_DOUBT;
                let until = now + if question.round == 2 { once } else { often };
                *proof = Proof::Doubt { until };
            }
            (true, 1) => {
                self.ask(now, question);
                return Step::None;
            }
            // Nobody drops them so often who still wants them.
            (true, limits::GRPC_FIRST_ROUNDS..) => return Step::Closed,
            (true, _) => {
                let at = now + question.pause;
                let question = Question {
                    pause: (question.pause * 2).min(limits::GRPC_REPEAT.1),
                    ..question
                };
                *proof = Proof::Again { question, at };
            }
        }
        self.settle();
        Step::None
    }

    /// The dial worked: `id` is the connection's from now on.
    pub fn dialled(&mut self, now: Instant, id: i64) {
        if let State::Dialling { random } = self.state {
            self.answers.push_back(Packet::DialResponse {
                error: String::new(),
                connect_id: id,
                random,
            });
            let until = now + limits::GRPC_FIRST_HOLD;
            self.state = State::Open {
                id,
                proof: Proof::Told { until },
            };
        }
    }

    /// The dial did not work.
    pub fn dial_failed(&mut self, error: &str) {
        if let State::Dialling { random } = self.state {
            self.end_with(Packet::DialResponse {
                error: error.to_owned(),
                connect_id: 0,
                random,
            });
        }
    }

    /// Whether bytes of the target may go out.
    pub fn room(&self, now: Instant) -> Room {
        let State::Open { proof, .. } = &self.state else {
            return Room::Never;
        };
        match proof {
            Proof::Known => Room::Any,
            Proof::Told { until } if *until <= now => Room::First,
            Proof::Told { until } | Proof::Doubt { until } => Room::Until(*until),
            Proof::Asked(question) => Room::Until(question.until),
            Proof::Again { at, .. } => Room::Until(*at),
            Proof::Ending { .. } => Room::Never,
        }
    }

    /// The connection's id, while there is one.
    pub fn id(&self) -> Option<i64> {
        match &self.state {
            State::Open { id, .. } => Some(*id),
            _ => None,
        }
    }

    /// The first bytes of the target, when there is [`Room::First`].
    pub fn first(&mut self, now: Instant, kept: Bytes) {
        let question = Question {
            kept,
            round: 0,
            refused: false,
            alive: false,
            until: now,
            pause: limits::GRPC_REPEAT.0,
        };
        self.ask(now, question);
    }

    fn ask(&mut self, now: Instant, question: Question) {
        let State::Open { id, proof } = &mut self.state else {
            return;
        };
        self.answers.push_back(bytes(*id, question.kept.clone()));
        self.answers.push_back(bytes(NOBODY, Bytes::new()));
        *proof = Proof::Asked(Question {
            round: question.round + 1,
            refused: false,
            until: now + limits::GRPC_FIRST_ANSWER,
            ..question
        });
    }

    /// The target has ended in order; all its bytes went out.
    pub fn target_ended(&mut self, now: Instant) {
        self.ending = true;
        if let State::Open { proof, .. } = &mut self.state
            && let Proof::Told { until } = proof
        {
            let at = *until;
            *proof = Proof::Ending {
                at,
                pause: limits::GRPC_REPEAT.0,
                until: now + limits::GRPC_END,
            };
        }
        self.settle();
    }

    /// Says the end of the target once the front end is sure to hear it.
    fn settle(&mut self) {
        if let State::Open { id, proof } = &self.state
            && self.ending
            && matches!(proof, Proof::Known)
        {
            let id = *id;
            self.end_with(close_response(id, ""));
        }
    }

    /// When [`FrontEnd::on_time`] has something to do.
    pub fn timer(&self) -> Option<Instant> {
        match &self.state {
            State::Open { proof, .. } => match proof {
                Proof::Asked(question) => Some(question.until),
                Proof::Again { at, .. } => Some(*at),
                Proof::Doubt { until } => Some(*until),
                Proof::Ending { at, until, .. } => Some(*at.min(until)),
                Proof::Told { .. } | Proof::Known => None,
            },
            _ => None,
        }
    }

    /// Time has passed. It can show that the front end has closed.
    pub fn on_time(&mut self, now: Instant) -> Step {
        let State::Open { id, proof } = &mut self.state else {
            return Step::None;
        };
        let id = *id;
        match proof {
            // A front end of another make, which does not answer for what it does not know.
            Proof::Asked(question) if question.until <= now => return self.answered(now),
            Proof::Again { at, question } if *at <= now => {
                let question = Question {
                    kept: std::mem::take(&mut question.kept),
                    ..*question
                };
                self.ask(now, question);
            }
            Proof::Doubt { until } if *until <= now => {
                *proof = Proof::Known;
                return Step::Closed;
            }
            Proof::Ending { until, .. } if *until <= now => {
                self.end_with(close_response(id, ""));
            }
            Proof::Ending { at, pause, .. } if *at <= now => {
                *at = now + *pause;
                *pause = (*pause * 2).min(limits::GRPC_REPEAT.1);
                self.answers.push_back(close_response(id, ""));
            }
            _ => {}
        }
        Step::None
    }

    /// All that came before [`Step::Closed`] was handed on.
    pub fn closed(&mut self) {
        if let Some(id) = self.id() {
            self.end_with(close_response(id, ""));
        }
    }

    /// The connection broke: the front end is told why.
    pub fn broke(&mut self, error: &str) {
        if let Some(id) = self.id() {
            self.end_with(close_response(id, error));
        }
    }

    /// What to send, in order, and before any bytes of the target.
    pub fn answer(&mut self) -> Option<Packet> {
        let answer = self.answers.pop_front();
        if self.answers.is_empty() {
            // An idle stream holds no memory for answers.
            self.answers = VecDeque::new();
        }
        answer
    }

    /// Nothing is expected any more, and nothing will be said once the answers are sent.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// The front end left without a CLOSE_REQ of which we are sure: whether that is an end in
    /// order all the same.
    pub fn left_in_order(&self) -> bool {
        match &self.state {
            State::Over => true,
            State::Open { proof, .. } => match proof {
                Proof::Asked(question) => question.refused || question.round > 1,
                Proof::Doubt { .. } | Proof::Ending { .. } => true,
                Proof::Told { .. } | Proof::Again { .. } | Proof::Known => false,
            },
            State::Idle | State::Dialling { .. } => false,
        }
    }

    fn end_with(&mut self, last: Packet) {
        self.answers.push_back(last);
        self.state = State::Over;
    }

    /// What the last packet was, if it fits nothing; once.
    pub fn misused(&mut self) -> Option<Misuse> {
        self.misuse.take()
    }

    fn senseless(&mut self, what: Misuse) -> Step {
        self.misuse = Some(what);
        self.senseless += 1;
        if self.senseless <= limits::GRPC_SENSELESS {
            return Step::None;
        }
        self.broke("too many packets without sense");
        self.state = State::Over;
        Step::Flooded
    }
}

fn close_response(connect_id: i64, error: &str) -> Packet {
    Packet::CloseResponse {
        error: error.to_owned(),
        connect_id,
    }
}

fn bytes(connect_id: i64, data: Bytes) -> Packet {
    Packet::Data { connect_id, data }
}

#[cfg(test)]
#[path = "front_end_tests.rs"]
mod tests;
