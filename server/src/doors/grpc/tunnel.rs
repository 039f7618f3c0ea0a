//! A front end's stream as the splice sees it: bytes to take, bytes to give, an end.
//!
//! Back-pressure is HTTP/2's: what the target does not take stays in the stream's window, which
//! no other stream shares (the connection's covers all of them); what the front end does not read
//! is not taken from the link. An idle tunnel holds no buffer.
//!
//! CLOSE_REQ, and an orderly end of the stream, end the front end's direction; everything before
//! it goes to the target first, also when the front end has left meanwhile. A reset, or a lost
//! connection, is an abort.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::HeaderMap;
use tokio::time::Sleep;
use towline_link::splice::{Edge, Presence};
use towline_proto::konnectivity::frame::{DATA_HEAD, FrameError, Messages};
use towline_proto::konnectivity::front_end::{FrontEnd, Room, Step};
use towline_proto::konnectivity::{Packet, PacketError, PacketKind};
use towline_proto::limits;
use towline_proto::queue::Queue;
use towline_proto::reason::Reason;

use super::piece::{Piece, take};
use crate::konnectivity::{Counted, DialFailure, Segment};
use crate::metrics::Strays;
use towline_link::grpc::{Code, Status};

/// How the front end's direction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// In order: it has said everything.
    Closed,
    /// It gave up, or broke the protocol.
    Broken,
}

/// What comes next from a front end.
#[derive(Debug)]
pub enum Event {
    /// A packet asked for something.
    Step(Step),
    /// Nothing comes any more.
    Ended(Ended),
}

/// See the head of this file.
pub struct Tunnel {
    recv: RecvStream,
    send: SendStream<Piece>,
    messages: Messages,
    machine: FrontEnd,
    counted: Arc<Counted>,
    strays: Strays,
    /// Bytes of the target wait for the front end since.
    since: Option<Instant>,
    /// Taken from the stream ahead of the target; packed, because the front end chooses how much
    /// each packet holds.
    ahead: Queue,
    ended: Option<Ended>,
    /// The target was told the end of the front end's direction.
    told: bool,
    /// Bytes of the target wait for a sign of the front end.
    waiting: bool,
    /// Trailers were sent.
    finished: bool,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Tunnel {
    /// A stream whose headers were answered.
    pub fn new(
        recv: RecvStream,
        send: SendStream<Piece>,
        counted: Arc<Counted>,
        strays: Strays,
    ) -> Self {
        Self {
            recv,
            send,
            messages: Messages::new(limits::GRPC_MESSAGE_BYTES),
            machine: FrontEnd::new(),
            counted,
            strays,
            since: None,
            ahead: Queue::default(),
            ended: None,
            told: false,
            waiting: false,
            finished: false,
            timer: None,
        }
    }

    /// The next packet that asks for something. Cancel-safe.
    pub async fn event(&mut self) -> Event {
        std::future::poll_fn(|cx| self.poll_event(cx)).await
    }

    /// The dial worked. When the front end cannot be told, what follows finds the stream broken and
    /// ends the dial.
    pub fn dialled(&mut self, id: i64) {
        self.machine.dialled(now(), id);
        if !self.say() {
            self.counted.dial_failed(DialFailure::SendResponse);
        }
    }

    /// The dial did not work; the stream ends.
    pub fn dial_failed(mut self, error: &str) {
        self.machine.dial_failed(error);
        self.say();
        self.finish(&Status::new(Code::Ok, ""));
    }

    /// Ends the stream.
    pub fn finish(&mut self, status: &Status) {
        if !std::mem::replace(&mut self.finished, true) {
            let mut trailers = HeaderMap::new();
            status.put(&mut trailers);
            // Fails on a stream that is gone, and then nobody needs them.
            let _ = self.send.send_trailers(trailers);
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        loop {
            let packet = match self.messages.pop() {
                Ok(Some(message)) => Packet::decode(message),
                Ok(None) => match ready!(self.recv.poll_data(cx)) {
                    Some(Ok(chunk)) => {
                        // What is held here is bounded by one message and this chunk.
                        let released = self.recv.flow_control().release_capacity(chunk.len());
                        if released.is_err() {
                            return Poll::Ready(Event::Ended(Ended::Broken));
                        }
                        self.messages.push(chunk);
                        continue;
                    }
                    Some(Err(_)) => return Poll::Ready(Event::Ended(self.left())),
                    None => {
                        let ended = match self.messages.finish() {
                            Ok(()) => Ended::Closed,
                            Err(error) => self.malformed(&error),
                        };
                        return Poll::Ready(Event::Ended(ended));
                    }
                },
                Err(error) => return Poll::Ready(Event::Ended(self.malformed(&error))),
            };
            let packet = match packet {
                Ok(packet) => packet,
                Err(error) => return Poll::Ready(Event::Ended(self.undecodable(&error))),
            };
            self.counted.packet(Segment::FromClient, packet.kind());
            let step = self.machine.receive(now(), packet);
            if let Some(what) = self.machine.misused() {
                self.strays.saw(what);
            }
            self.say();
            self.stir(cx);
            match step {
                Step::None => {}
                Step::Flooded => {
                    let what = "too many packets without sense";
                    self.finish(&Status::new(Code::ResourceExhausted, what));
                    return Poll::Ready(Event::Step(step));
                }
                step => return Poll::Ready(Event::Step(step)),
            }
        }
    }

    /// The stream was reset, or the connection is lost.
    fn left(&self) -> Ended {
        self.lost(Segment::FromClient, PacketKind::Unknown);
        match self.machine.left_in_order() {
            true => Ended::Closed,
            false => Ended::Broken,
        }
    }

    fn malformed(&mut self, error: &FrameError) -> Ended {
        let (code, text) = match error {
            FrameError::TooLong { .. } => (Code::ResourceExhausted, format!("grpc: {error}")),
            FrameError::Compressed => (
                Code::Internal,
                "grpc: compressed flag set with identity or empty encoding".to_owned(),
            ),
            FrameError::Flag(_) | FrameError::Cut => (Code::Internal, format!("grpc: {error}")),
        };
        self.refuse(code, text)
    }

    fn undecodable(&mut self, error: &PacketError) -> Ended {
        self.refuse(
            Code::Internal,
            format!("grpc: error unmarshalling request: {error}"),
        )
    }

    fn refuse(&mut self, code: Code, text: String) -> Ended {
        let kind = PacketKind::Unknown;
        self.counted.stream_error(Segment::FromClient, code, kind);
        self.machine.broke(&text);
        self.say();
        self.finish(&Status::new(code, text));
        Ended::Broken
    }

    /// The front end has left: this is what it was about.
    fn lost(&self, segment: Segment, kind: PacketKind) {
        self.counted.stream_error(segment, Code::Canceled, kind);
    }

    /// Sends what the machine has to say. These packets are small and bounded in number, so they
    /// need not wait for the window. What is said together arrives together. False when the front
    /// end is gone, or was told the end.
    fn say(&mut self) -> bool {
        let said: Vec<Packet> = std::iter::from_fn(|| self.machine.answer()).collect();
        if said.is_empty() || self.finished {
            return !self.finished;
        }
        let begun = Instant::now();
        for packet in &said {
            self.counted.packet(Segment::ToClient, packet.kind());
        }
        let sent = self.send.send_data(Piece::packets(said.iter()), false);
        self.counted.front_end_took(begun.elapsed());
        if sent.is_err() {
            for packet in &said {
                self.lost(Segment::ToClient, packet.kind());
            }
        }
        sent.is_ok()
    }

    /// Reads ahead of the target until `limit` bytes wait for it. Ready when there are any, or
    /// nothing comes any more.
    fn poll_ahead(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<()> {
        while self.ended.is_none() && self.ahead.len() < limit {
            let event = match self.poll_event(cx) {
                Poll::Ready(event) => event,
                Poll::Pending if self.ahead.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            };
            match event {
                Event::Step(Step::Bytes(bytes)) => self.ahead.push(bytes),
                Event::Step(Step::Closed) => self.ended = Some(Ended::Closed),
                Event::Step(Step::None | Step::Dial(_)) => {}
                Event::Step(Step::Refused | Step::Flooded | Step::GivenUp) => {
                    self.ended = Some(Ended::Broken);
                }
                Event::Ended(ended) => self.ended = Some(ended),
            }
        }
        Poll::Ready(())
    }

    /// Lets the machine know that time has passed, and wakes us when it wants to know.
    fn clock(&mut self, cx: &mut Context<'_>, also: Option<Instant>) {
        loop {
            let next = match (self.machine.timer(), also) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            let Some(next) = next else {
                self.timer = None;
                return;
            };
            let at = tokio::time::Instant::from_std(next);
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            if timer.deadline() != at {
                timer.as_mut().reset(at);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return;
            }
            self.timer = None;
            if self.machine.on_time(now()) == Step::Closed {
                self.ended.get_or_insert(Ended::Closed);
                cx.waker().wake_by_ref();
            }
            self.say();
            self.stir(cx);
            if also.is_some_and(|also| also <= now()) {
                return;
            }
        }
    }

    /// Bytes of the target may go on: whoever waited for that is woken.
    fn stir(&mut self, cx: &mut Context<'_>) {
        if self.waiting && !matches!(self.machine.room(now()), Room::Until(_)) {
            self.waiting = false;
            cx.waker().wake_by_ref();
        }
    }

    /// Our direction of the stream is gone: what the front end said before is looked at.
    fn gone(&mut self, cx: &mut Context<'_>) -> Ended {
        // Bounded by the stream's window: nothing new can come.
        let _ = self.poll_ahead(cx, usize::MAX);
        *self.ended.get_or_insert(Ended::Broken)
    }

    /// What becomes of bytes that nobody will read.
    fn unheard(&mut self, chunks: &mut VecDeque<Bytes>) -> Poll<io::Result<usize>> {
        match self.ended {
            // The target still gets what the front end said last; it has lost its own reader.
            Some(Ended::Closed) if !self.told => {
                let dropped = chunks.iter().map(Bytes::len).sum();
                chunks.clear();
                Poll::Ready(Ok(dropped))
            }
            _ => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn room(&mut self, cx: &mut Context<'_>) -> Poll<Room> {
        if matches!(self.machine.room(now()), Room::Until(_)) {
            // The sign may stand behind bytes that the target does not take.
            let _ = self.poll_ahead(cx, limits::GRPC_WINDOW as usize / 2);
        }
        if let Room::Until(at) = self.machine.room(now()) {
            self.clock(cx, Some(at));
        }
        match self.machine.room(now()) {
            _ if self.ended.is_some() => Poll::Ready(Room::Never),
            Room::Until(_) => {
                self.waiting = true;
                Poll::Pending
            }
            room => Poll::Ready(room),
        }
    }

    fn give_first(&mut self, chunks: &mut VecDeque<Bytes>) -> usize {
        let mut first = BytesMut::new();
        for chunk in take(limits::GRPC_FIRST_BYTES, chunks) {
            first.extend_from_slice(&chunk);
        }
        let len = first.len();
        self.machine.first(now(), first.freeze());
        self.say();
        len
    }
}

impl Edge for Tunnel {
    fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            if let Some(bytes) = self.ahead.pop(usize::MAX) {
                return Poll::Ready(Ok(Some(bytes)));
            }
            match self.ended {
                Some(Ended::Broken) => {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                Some(Ended::Closed) => {
                    if !std::mem::replace(&mut self.told, true) {
                        self.machine.closed();
                        self.say();
                        self.finish(&Status::new(Code::Ok, ""));
                    }
                    return Poll::Ready(Ok(None));
                }
                None => {
                    if self.poll_ahead(cx, 1).is_pending() {
                        if self.machine.timer().is_some() {
                            self.clock(cx, None);
                        }
                        if self.ended.is_none() {
                            return Poll::Pending;
                        }
                    }
                }
            }
        }
    }

    fn poll_give(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut VecDeque<Bytes>,
    ) -> Poll<io::Result<usize>> {
        if self.ended.is_some() || self.finished {
            return self.unheard(chunks);
        }
        match ready!(self.room(cx)) {
            Room::Any => {}
            Room::First => return Poll::Ready(Ok(self.give_first(chunks))),
            Room::Until(_) | Room::Never => return self.unheard(chunks),
        }
        self.timer = None;
        let Some(id) = self.machine.id() else {
            return self.unheard(chunks);
        };
        let begun = *self.since.get_or_insert_with(Instant::now);
        let all: usize = chunks.iter().map(Bytes::len).sum();
        let wanted = all.min(limits::GRPC_DATA_BYTES - DATA_HEAD);
        let room = loop {
            self.send.reserve_capacity(wanted + DATA_HEAD);
            let capacity = self.send.capacity();
            if capacity > DATA_HEAD {
                break wanted.min(capacity - DATA_HEAD);
            }
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => {
                    self.lost(Segment::ToClient, PacketKind::Data);
                    self.gone(cx);
                    return self.unheard(chunks);
                }
            }
        };
        self.counted.packet(Segment::ToClient, PacketKind::Data);
        let piece = Piece::data(id, room, chunks);
        let sent = self.send.send_data(piece, false);
        self.since = None;
        self.counted.front_end_took(begun.elapsed());
        if sent.is_err() {
            self.lost(Segment::ToClient, PacketKind::Data);
            self.gone(cx);
        }
        Poll::Ready(Ok(room))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.clock(cx, None);
        // A front end that gives up is noticed also while its own bytes wait for the target.
        if self.ended.is_none() && self.send.poll_reset(cx).is_ready() {
            self.gone(cx);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.machine.target_ended(now());
        self.say();
        self.clock(cx, None);
        if !self.machine.is_over() && self.ended.is_none() {
            let _ = self.poll_ahead(cx, limits::GRPC_WINDOW as usize / 2);
        }
        if !self.machine.is_over() && self.ended.is_none() {
            return Poll::Pending;
        }
        self.machine.closed();
        self.say();
        self.finish(&Status::new(Code::Ok, ""));
        Poll::Ready(Ok(()))
    }

    fn give_up(mut self, reason: Reason) {
        let text = format!("the connection was lost: {reason}");
        self.machine.broke(&text);
        self.say();
        self.finish(&Status::new(Code::Unavailable, text));
    }

    fn seen(&self) -> Presence {
        match self.ended {
            None => Presence::There,
            Some(Ended::Closed) => Presence::Closed,
            Some(Ended::Broken) => Presence::Broken,
        }
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
#[path = "tunnel_tests.rs"]
mod tests;
