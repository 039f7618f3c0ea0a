//! What comes in: bytes cut anywhere, turned into frames and carried out.

use crate::reason::Reason;

use super::frame::{FIN, HEADER_BYTES, Header, Kind, OPEN, SMALL_BYTES, Small};
use super::stream::{Interest, Receiving, Sending, Stream};
use super::{Event, Mux, RecvError, StreamKey, Violation};

/// Where in a frame the last call ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Decoder {
    /// In a header, of which so many bytes came.
    Header {
        bytes: [u8; HEADER_BYTES],
        have: usize,
    },
    /// In the payload of DATA. `to` is `None` where the bytes are discarded.
    Data {
        to: Option<StreamKey>,
        left: usize,
        last: bool,
    },
    /// In the payload of another frame.
    Small {
        header: Header,
        bytes: [u8; SMALL_BYTES],
        have: usize,
    },
    /// In a payload that is skipped.
    Skipping { left: usize },
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder::Header {
            bytes: [0; HEADER_BYTES],
            have: 0,
        }
    }
}

impl Mux {
    /// Takes bytes from the connection, all of them. Fails once, when the peer breaks the
    /// rules; the machine is closed then, with CLOSE to transmit. A closed machine ignores
    /// everything.
    pub fn handle(&mut self, mut bytes: &[u8]) -> Result<(), Violation> {
        while !bytes.is_empty() && self.closed.is_none() {
            let mut decoder = std::mem::take(&mut self.decoder);
            let step = self.step(&mut decoder, &mut bytes);
            self.decoder = decoder;
            if let Err(violation) = step {
                self.close(Reason::Protocol);
                return Err(violation);
            }
        }
        Ok(())
    }

    /// Whether bytes that were not taken yet are lost, without taking any; else registers
    /// [`Interest::RECV`], as long as that can still happen.
    pub fn broken(&mut self, key: StreamKey) -> Option<RecvError> {
        let closed = self.closed;
        let stream = self.stream(key)?;
        match (stream.receiving, closed) {
            (Receiving::Reset(reason), _) => Some(RecvError::Reset(reason)),
            (Receiving::Open, Some(reason)) => Some(RecvError::Closed(reason)),
            (Receiving::Open, None) => {
                stream.interest.add(Interest::RECV);
                None
            }
            (Receiving::Ended | Receiving::Stopped | Receiving::StoppedOver, _) => None,
        }
    }

    fn step(&mut self, decoder: &mut Decoder, bytes: &mut &[u8]) -> Result<(), Violation> {
        match decoder {
            Decoder::Header { bytes: head, have } => {
                if fill(head, HEADER_BYTES, have, bytes) {
                    *decoder = self.begin(Header::parse(*head)?)?;
                }
            }
            Decoder::Data { to, left, last } => {
                let (payload, rest) = bytes.split_at((*left).min(bytes.len()));
                *bytes = rest;
                *left -= payload.len();
                if let Some(stream) = to.and_then(|key| self.stream(key))
                    && stream.receiving == Receiving::Open
                {
                    stream.recv_queue.push_copy(payload);
                }
                if *left == 0 {
                    let (to, last) = (*to, *last);
                    *decoder = Decoder::default();
                    self.payload_came(to, last);
                }
            }
            Decoder::Small {
                header,
                bytes: payload,
                have,
            } => {
                if fill(payload, header.length, have, bytes) {
                    let frame = Small::parse(*header, payload);
                    *decoder = Decoder::default();
                    if let Some(frame) = frame {
                        self.carry_out(frame)?;
                    }
                }
            }
            Decoder::Skipping { left } => {
                let skipped = (*left).min(bytes.len());
                *bytes = &bytes[skipped..];
                *left -= skipped;
                if *left == 0 {
                    *decoder = Decoder::default();
                }
            }
        }
        Ok(())
    }

    /// A header came: what its payload is for.
    fn begin(&mut self, header: Header) -> Result<Decoder, Violation> {
        if self.peer_limits.is_none() && header.kind != Kind::Limits {
            return Err(Violation::NoLimits);
        }
        Ok(match header.kind {
            Kind::Data => {
                let key = self.find_receiving(header)?;
                let last = header.flags & FIN != 0;
                if header.length == 0 {
                    self.payload_came(Some(key), last);
                    return Ok(Decoder::default());
                }
                Decoder::Data {
                    to: Some(key),
                    left: header.length,
                    last,
                }
            }
            Kind::Skipped if header.length == 0 => Decoder::default(),
            Kind::Skipped => Decoder::Skipping {
                left: header.length,
            },
            _ => Decoder::Small {
                header,
                bytes: [0; SMALL_BYTES],
                have: 0,
            },
        })
    }

    /// The stream that DATA is for; its credit is charged for the whole frame.
    fn find_receiving(&mut self, header: Header) -> Result<StreamKey, Violation> {
        let number = header.stream;
        let key = self
            .find(number, header.flags & OPEN != 0)?
            .ok_or(Violation::AfterEnd { stream: number })?;
        let Some(stream) = self.stream(key) else {
            return Err(Violation::AfterEnd { stream: number });
        };
        if stream.receiving.is_over() {
            return Err(Violation::AfterEnd { stream: number });
        }
        // `length` is at most MUX_FRAME_BYTES.
        let length = header.length as u32;
        match stream.granted.checked_sub(length) {
            Some(left) => stream.granted = left,
            None => {
                let excess = u64::from(length) - u64::from(stream.granted);
                return Err(Violation::BeyondCredit {
                    stream: number,
                    excess,
                });
            }
        }
        Ok(key)
    }

    /// A DATA frame is complete.
    fn payload_came(&mut self, to: Option<StreamKey>, last: bool) {
        let Some(key) = to else { return };
        let Some(stream) = self.stream(key) else {
            return;
        };
        if last {
            stream.receiving = match stream.receiving {
                Receiving::Open => Receiving::Ended,
                _ => Receiving::StoppedOver,
            };
        }
        self.notify(key, Interest::RECV);
        if last {
            self.forget_if_over(key);
        }
    }

    fn carry_out(&mut self, frame: Small) -> Result<(), Violation> {
        match frame {
            Small::Window { stream, credit } => self.handle_window(stream, credit),
            Small::Reset {
                stream,
                open,
                reason,
            } => self.handle_reset(stream, open, reason),
            Small::Stop {
                stream,
                open,
                reason,
            } => self.handle_stop(stream, open, reason),
            Small::Limits { streams, window } => self.handle_limits(streams, window),
            Small::Close { reason } => {
                self.end(reason);
                Ok(())
            }
        }
    }

    fn handle_window(&mut self, number: u32, credit: u32) -> Result<(), Violation> {
        let Some(key) = self.find(number, false)? else {
            return Ok(());
        };
        let Some(stream) = self.stream(key) else {
            return Ok(());
        };
        stream.credit = stream
            .credit
            .checked_add(credit)
            .ok_or(Violation::CreditOverflow { stream: number })?;
        if self.may_send(key) > 0 {
            self.notify(key, Interest::SEND);
        }
        Ok(())
    }

    fn handle_reset(&mut self, number: u32, open: bool, reason: Reason) -> Result<(), Violation> {
        let after_end = Violation::AfterEnd { stream: number };
        let key = self.find(number, open)?.ok_or(after_end)?;
        let Some(stream) = self.stream(key) else {
            return Err(after_end);
        };
        stream.receiving = match stream.receiving {
            Receiving::Open => Receiving::Reset(reason),
            Receiving::Stopped => Receiving::StoppedOver,
            Receiving::Ended | Receiving::Reset(_) | Receiving::StoppedOver => {
                return Err(after_end);
            }
        };
        stream.recv_queue.clear();
        self.notify(key, Interest::RECV);
        self.forget_if_over(key);
        Ok(())
    }

    fn handle_stop(&mut self, number: u32, open: bool, reason: Reason) -> Result<(), Violation> {
        let Some(key) = self.find(number, open)? else {
            return Ok(());
        };
        let Some(stream) = self.stream(key) else {
            return Ok(());
        };
        if stream.sending == Sending::Ended || stream.stopped.is_some() {
            return Ok(());
        }
        stream.stopped = Some(reason);
        self.reset(key, reason);
        self.notify(key, Interest::SEND);
        self.notify(key, Interest::STOPPED);
        Ok(())
    }

    fn handle_limits(&mut self, streams: u32, window: u32) -> Result<(), Violation> {
        let before = match self.peer_limits {
            None => {
                self.events.push_back(Event::Greeted);
                0
            }
            Some((before, same)) if streams >= before && window == same => before,
            Some(_) => return Err(Violation::LimitsTakenBack),
        };
        self.peer_limits = Some((streams, window));
        if streams > before {
            self.events.push_back(Event::MayOpen(streams - before));
        }
        Ok(())
    }

    /// The stream of a number: `None` where it is over and forgotten. An opening frame makes it.
    fn find(&mut self, number: u32, open: bool) -> Result<Option<StreamKey>, Violation> {
        let row = self.config.side.other();
        let peers = number % 2 == row.number(0) % 2;
        if open {
            let expected = row.number(self.peer_opened);
            if number != expected {
                return Err(Violation::OutOfTurn {
                    stream: number,
                    expected,
                });
            }
            if self.peer_opened >= self.announced {
                return Err(Violation::TooManyStreams {
                    stream: number,
                    limit: self.announced,
                });
            }
            self.peer_opened += 1;
            let credit = self.peer_limits.map_or(0, |(_, window)| window);
            let key = self.insert(Stream::new(number, false, credit, self.config.window));
            self.numbers.insert(number, key);
            self.accepted.push_back(key);
            self.events.push_back(Event::Accepted);
            return Ok(Some(key));
        }
        if let Some(key) = self.numbers.get(&number) {
            return Ok(Some(*key));
        }
        let (row, opened) = if peers {
            (row, self.peer_opened)
        } else {
            (self.config.side, self.opened)
        };
        if u64::from(number) < u64::from(row.number(0)) + 2 * u64::from(opened) {
            Ok(None)
        } else {
            Err(Violation::NeverOpened { stream: number })
        }
    }
}

/// Moves bytes into `to` until it holds `want` of them; says whether it does.
fn fill(to: &mut [u8], want: usize, have: &mut usize, from: &mut &[u8]) -> bool {
    let missing = want.saturating_sub(*have).min(from.len());
    let (now, later) = from.split_at(missing);
    if let Some(place) = to.get_mut(*have..*have + missing) {
        place.copy_from_slice(now);
    }
    *have += missing;
    *from = later;
    *have >= want
}
