//! What the owners of streams, and of the connection, do with the machine.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use crate::limits::MUX_RETURN;
use crate::reason::Reason;

use super::receive::Decoder;
use super::schedule::Schedule;
use super::stream::{Interest, Receiving, Sending, Stream};
use super::{Config, Event, Mux, OpenError, RecvError, STREAMS_EVER, SendError, StreamKey};

impl Mux {
    /// A machine at the start of a connection; its first transmission is LIMITS.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            in_flight: u32::MAX,
            streams: Vec::new(),
            free: Vec::new(),
            numbers: HashMap::new(),
            accepted: VecDeque::new(),
            events: VecDeque::new(),
            decoder: Decoder::default(),
            schedule: Schedule::default(),
            control: VecDeque::new(),
            peer_limits: None,
            opened: 0,
            unseen: 0,
            peer_opened: 0,
            peer_over: 0,
            announced: config.streams.min(STREAMS_EVER),
            announce: true,
            closed: None,
            say_close: false,
        }
    }

    // ---- the connection ---------------------------------------------------------------------

    /// What happened; to be drained after every other call.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Why the connection is over, once it is.
    pub fn closed(&self) -> Option<Reason> {
        self.closed
    }

    /// Whether the peer's first frame came.
    pub fn is_greeted(&self) -> bool {
        self.peer_limits.is_some()
    }

    /// Streams that exist here, in whatever state.
    pub fn stream_count(&self) -> usize {
        self.streams.len() - self.free.len()
    }

    /// Ends the connection and everything on it; CLOSE is the last thing transmitted.
    pub fn close(&mut self, reason: Reason) {
        if self.closed.is_none() {
            self.say_close = true;
            self.end(reason);
        }
    }

    /// The pipe under us is gone: like [`Mux::close`] without a CLOSE to send.
    pub fn lost(&mut self, reason: Reason) {
        if self.closed.is_none() {
            self.end(reason);
        }
        self.say_close = false;
    }

    /// How many streams the peer may have open at once from now on. A lower limit takes hold
    /// as streams end.
    pub fn set_stream_limit(&mut self, streams: u32) {
        self.config.streams = streams;
        let limit = self.peer_over.saturating_add(streams).min(STREAMS_EVER);
        if limit > self.announced {
            self.announced = limit;
            self.announce = true;
        }
    }

    /// Unreturned bytes from which on a stream sends no more, although the peer would take them.
    /// A stream that is beyond it already waits until enough came back.
    pub fn set_in_flight(&mut self, bytes: u32) {
        // Less would never be returned.
        self.in_flight = bytes.max(2 * MUX_RETURN);
    }

    /// Bytes that a stream may send now: its credit, and no more than may be in flight.
    pub(super) fn may_send(&mut self, key: StreamKey) -> u32 {
        let in_flight = self.in_flight;
        let window = self.peer_limits.map_or(0, |(_, window)| window);
        let credit = self.stream(key).map_or(0, |stream| stream.credit);
        let unreturned = window.saturating_sub(credit);
        credit.min(in_flight.saturating_sub(unreturned))
    }

    pub(super) fn end(&mut self, reason: Reason) {
        self.closed = Some(reason);
        self.events.push_back(Event::Closed);
        for key in (0..self.streams.len())
            .filter_map(|index| u32::try_from(index).ok())
            .map(StreamKey)
        {
            let Some(stream) = self.stream(key) else {
                continue;
            };
            stream.send_queue.clear();
            if stream.receiving != Receiving::Ended {
                stream.recv_queue.clear();
            }
            self.notify(key, Interest::ALL);
        }
        self.schedule = Schedule::default();
        self.control = VecDeque::new();
        self.accepted = VecDeque::new();
    }

    // ---- streams ----------------------------------------------------------------------------

    /// Opens a stream. The peer sees it with its first byte, end, reset or stop.
    pub fn open(&mut self) -> Result<StreamKey, OpenError> {
        if let Some(reason) = self.closed {
            return Err(OpenError::Closed(reason));
        }
        let ever = self.opened + self.unseen;
        if ever >= STREAMS_EVER {
            return Err(OpenError::UsedUp);
        }
        let (streams, window) = self.peer_limits.ok_or(OpenError::Blocked)?;
        if ever >= streams {
            return Err(OpenError::Blocked);
        }
        self.unseen += 1;
        Ok(self.insert(Stream::new(0, true, window, self.config.window)))
    }

    /// The next stream that the peer opened.
    pub fn accept(&mut self) -> Option<StreamKey> {
        self.accepted.pop_front()
    }

    /// Takes as many bytes off the front of `chunk` as there is credit and room for: at least
    /// one, or `Blocked`.
    pub fn send(&mut self, key: StreamKey, chunk: &mut Bytes) -> Result<(), SendError> {
        let closed = self.closed;
        let bound = self.config.send_queue;
        let may_send = self.may_send(key);
        let Some(stream) = self.stream(key) else {
            return Err(SendError::Ended);
        };
        if let Some(reason) = stream.stopped {
            return Err(SendError::Stopped(reason));
        }
        if let Some(reason) = closed {
            return Err(SendError::Closed(reason));
        }
        if stream.sending != Sending::Open {
            return Err(SendError::Ended);
        }
        if chunk.is_empty() {
            return Ok(());
        }
        let room = bound
            .saturating_sub(stream.send_queue.len())
            .min(may_send as usize);
        if room == 0 {
            stream.interest.add(Interest::SEND);
            return Err(SendError::Blocked);
        }
        let taken = if room < chunk.len() {
            chunk.split_to(room)
        } else {
            std::mem::take(chunk)
        };
        // `taken` is at most `may_send` long, and that is at most `credit`.
        stream.credit -= taken.len() as u32;
        stream.send_queue.push(taken);
        self.schedule(key);
        Ok(())
    }

    /// Everything was sent.
    pub fn finish(&mut self, key: StreamKey) {
        let Some(stream) = self.stream(key) else {
            return;
        };
        if stream.sending == Sending::Open {
            stream.sending = Sending::Ending;
            self.schedule(key);
        }
    }

    /// Gives our sending up, unless its end is already out.
    pub fn reset(&mut self, key: StreamKey, reason: Reason) {
        let Some(stream) = self.stream(key) else {
            return;
        };
        if matches!(stream.sending, Sending::Open | Sending::Ending) {
            stream.sending = Sending::Resetting(reason);
            stream.send_queue.clear();
            self.queue_control(key);
        }
    }

    /// The next bytes, at most `max`; `None` at the end.
    pub fn recv(&mut self, key: StreamKey, max: usize) -> Result<Option<Bytes>, RecvError> {
        let (closed, window) = (self.closed, self.config.window);
        let Some(stream) = self.stream(key) else {
            return Err(RecvError::Stopped);
        };
        match stream.receiving {
            Receiving::Reset(reason) => return Err(RecvError::Reset(reason)),
            Receiving::Stopped | Receiving::StoppedOver => return Err(RecvError::Stopped),
            Receiving::Open | Receiving::Ended => {}
        }
        if let Some(bytes) = stream.recv_queue.pop(max) {
            // At most a window was granted, so the sum stays within it.
            stream.unreturned = stream.unreturned.saturating_add(bytes.len() as u32);
            if stream.returns_credit(window) {
                self.queue_control(key);
            }
            return Ok(Some(bytes));
        }
        if stream.receiving == Receiving::Ended {
            return Ok(None);
        }
        if let Some(reason) = closed {
            return Err(RecvError::Closed(reason));
        }
        stream.interest.add(Interest::RECV);
        Err(RecvError::Blocked)
    }

    /// Takes no more bytes; the peer is told, unless it had ended.
    pub fn stop(&mut self, key: StreamKey, reason: Reason) {
        let Some(stream) = self.stream(key) else {
            return;
        };
        stream.recv_queue.clear();
        match stream.receiving {
            Receiving::Open => {
                stream.receiving = Receiving::Stopped;
                stream.stopping = Some(reason);
                self.queue_control(key);
            }
            Receiving::Ended => stream.receiving = Receiving::StoppedOver,
            Receiving::Reset(_) | Receiving::Stopped | Receiving::StoppedOver => {}
        }
    }

    /// Why the peer reads no more, or why the connection is over; else registers
    /// [`Interest::STOPPED`].
    pub fn stopped(&mut self, key: StreamKey) -> Option<SendError> {
        let closed = self.closed;
        let stream = self.stream(key)?;
        let answer = stream
            .stopped
            .map(SendError::Stopped)
            .or(closed.map(SendError::Closed));
        if answer.is_none() {
            stream.interest.add(Interest::STOPPED);
        }
        answer
    }

    /// Higher goes first; 0 is normal. Holds from the stream's next turn on.
    pub fn set_priority(&mut self, key: StreamKey, priority: i32) {
        if let Some(stream) = self.stream(key) {
            stream.priority = priority;
        }
    }

    /// The owner of the sending half is gone. A direction that was not ended is reset: a task
    /// that dies never makes its bytes look complete.
    pub fn release_send(&mut self, key: StreamKey) {
        if self
            .stream(key)
            .is_some_and(|stream| stream.sending == Sending::Open)
        {
            self.reset(key, Reason::Aborted);
        }
        if let Some(stream) = self.stream(key) {
            stream.send_held = false;
            stream.interest.remove(Interest::SEND);
            stream.interest.remove(Interest::STOPPED);
        }
        self.forget_if_over(key);
    }

    /// The owner of the receiving half is gone. A direction that had not ended is stopped.
    pub fn release_recv(&mut self, key: StreamKey) {
        self.stop(key, Reason::Aborted);
        if let Some(stream) = self.stream(key) {
            stream.recv_held = false;
            stream.interest.remove(Interest::RECV);
        }
        self.forget_if_over(key);
    }

    // ---- shared by the files of this module ---------------------------------------------------

    pub(super) fn stream(&mut self, key: StreamKey) -> Option<&mut Stream> {
        self.streams.get_mut(key.index())?.as_deref_mut()
    }

    pub(super) fn insert(&mut self, stream: Stream) -> StreamKey {
        if let Some(index) = self.free.pop() {
            if let Some(place) = self.streams.get_mut(index as usize) {
                *place = Some(Box::new(stream));
            }
            return StreamKey(index);
        }
        // Both ends' limits keep the count far below u32::MAX.
        let index = self.streams.len() as u32;
        self.streams.push(Some(Box::new(stream)));
        StreamKey(index)
    }

    /// Passes on what of `what` is waited for.
    pub(super) fn notify(&mut self, key: StreamKey, what: Interest) {
        let Some(stream) = self.stream(key) else {
            return;
        };
        let due = stream.interest.and(what);
        if due != Interest::NONE {
            stream.interest.remove(due);
            self.events.push_back(Event::Stream(key, due));
        }
    }

    pub(super) fn schedule(&mut self, key: StreamKey) {
        if self.closed.is_some() {
            return;
        }
        let Some(stream) = self.stream(key) else {
            return;
        };
        if stream.has_data() && !stream.in_schedule {
            stream.in_schedule = true;
            let priority = stream.priority;
            self.schedule.push(priority, key);
        }
    }

    pub(super) fn queue_control(&mut self, key: StreamKey) {
        if self.closed.is_some() {
            return;
        }
        let Some(stream) = self.stream(key) else {
            return;
        };
        if !stream.in_control {
            stream.in_control = true;
            self.control.push_back(key);
        }
    }

    pub(super) fn forget_if_over(&mut self, key: StreamKey) {
        let closed = self.closed.is_some();
        let Some(stream) = self.stream(key) else {
            return;
        };
        let released = !stream.send_held && !stream.recv_held;
        if !(stream.is_over() || closed && released) {
            return;
        }
        let (number, ours) = (stream.number, stream.ours);
        if let Some(place) = self.streams.get_mut(key.index()) {
            *place = None;
            self.free.push(key.0);
        }
        if number != 0 {
            self.numbers.remove(&number);
        }
        if closed {
        } else if !ours {
            self.peer_over += 1;
            self.raise_limit();
        } else if number == 0 {
            self.unseen -= 1;
            self.events.push_back(Event::MayOpen(1));
        }
        if self.streams.len() == self.free.len() {
            self.streams = Vec::new();
            self.free = Vec::new();
        }
    }

    /// Announces a higher limit once it pays for a frame.
    fn raise_limit(&mut self) {
        let limit = self
            .peer_over
            .saturating_add(self.config.streams)
            .min(STREAMS_EVER);
        if limit > self.announced && limit - self.announced >= (self.config.streams / 8).max(1) {
            self.announced = limit;
            self.announce = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Batch, Side};
    use super::*;

    #[test]
    fn numbers_are_never_used_twice() {
        let mut server = Mux::new(Config::new(Side::Acceptor, 1));
        server
            .handle(&[4, 0, 0, 8, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 9])
            .expect("limits");
        server.opened = STREAMS_EVER - 1;
        let last = server.open().expect("the last number");
        server
            .send(last, &mut Bytes::from_static(b"x"))
            .expect("credit");
        assert_eq!(server.open(), Err(OpenError::UsedUp));
        let mut batch = Batch::default();
        server.transmit(&mut batch, usize::MAX);
        let bytes: Vec<u8> = batch.slices().flatten().copied().collect();
        assert_eq!(bytes[16..], [0, 1, 0, 1, 0xff, 0xff, 0xff, 0xfc, b'x']);
        server.reset(last, Reason::Done);
        server.release_send(last);
        server.release_recv(last);
        server.transmit(&mut batch, usize::MAX);
        assert_eq!(server.open(), Err(OpenError::UsedUp), "for ever");
    }
}
