//! What goes out: the machine's state turned into frames, as much as the connection takes.

use crate::limits::MUX_FRAME_BYTES;

use super::frame::{FIN, Header, Kind, OPEN, Small};
use super::stream::{Interest, Sending};
use super::{Batch, Mux, StreamKey};

impl Mux {
    /// Fills `batch` up to about `max` bytes (one frame may go beyond). Connection frames go
    /// first, then RESET, STOP and WINDOW, then DATA by priority and in turns.
    pub fn transmit(&mut self, batch: &mut Batch, max: usize) {
        if let Some(reason) = self.closed {
            if std::mem::take(&mut self.say_close) {
                // Also of who closes at once: without it the peer would hear of a broken rule.
                self.transmit_limits(batch);
                batch.push_small(Small::Close { reason });
            }
            return;
        }
        self.transmit_limits(batch);
        while batch.len() < max
            && let Some(key) = self.control.pop_front()
        {
            self.transmit_control(key, batch);
        }
        while batch.len() < max
            && let Some(key) = self.schedule.pop()
        {
            self.transmit_data(key, batch);
        }
    }

    /// Whether [`Mux::transmit`] has something.
    pub fn wants_transmit(&self) -> bool {
        match self.closed {
            Some(_) => self.say_close,
            None => self.announce || !self.control.is_empty() || !self.schedule.is_empty(),
        }
    }

    fn transmit_limits(&mut self, batch: &mut Batch) {
        if std::mem::take(&mut self.announce) {
            batch.push_small(Small::Limits {
                streams: self.announced,
                window: self.config.window,
            });
        }
    }

    fn transmit_control(&mut self, key: StreamKey, batch: &mut Batch) {
        let window = self.config.window;
        if let Some(stream) = self.stream(key) {
            stream.in_control = false;
        }
        // Opened, never used and dropped: nobody needs to know.
        self.forget_if_over(key);
        let Some(stream) = self.stream(key) else {
            return;
        };
        if stream.is_unseen() {
            // It is forgotten when its turn to send comes.
            return;
        }
        let resetting = match stream.sending {
            Sending::Resetting(reason) => Some(reason),
            _ => None,
        };
        let stopping = stream.stopping.take();
        let credit = if stream.returns_credit(window) {
            std::mem::take(&mut stream.unreturned)
        } else {
            0
        };
        stream.granted = stream.granted.saturating_add(credit);
        if let Some(reason) = stopping {
            let (stream, open) = self.number(key);
            batch.push_small(Small::Stop {
                stream,
                open,
                reason,
            });
        }
        if let Some(reason) = resetting {
            let (number, open) = self.number(key);
            batch.push_small(Small::Reset {
                stream: number,
                open,
                reason,
            });
            if let Some(stream) = self.stream(key) {
                stream.sending = Sending::Reset;
            }
        }
        if credit > 0 {
            let (stream, _) = self.number(key);
            batch.push_small(Small::Window { stream, credit });
        }
        self.forget_if_over(key);
    }

    fn transmit_data(&mut self, key: StreamKey, batch: &mut Batch) {
        let wake_below = self.config.send_queue.div_ceil(2);
        let Some(stream) = self.stream(key) else {
            return;
        };
        stream.in_schedule = false;
        if !stream.has_data() {
            // Reset since it was scheduled: this was the last list that it stood in.
            return self.forget_if_over(key);
        }
        let length = stream.send_queue.len().min(MUX_FRAME_BYTES);
        let last = stream.sending == Sending::Ending && length == stream.send_queue.len();
        let (number, open) = self.number(key);
        let flags = if open { OPEN } else { 0 } | if last { FIN } else { 0 };
        batch.push_bytes(
            &Header {
                kind: Kind::Data,
                flags,
                length,
                stream: number,
            }
            .bytes(),
        );
        let Some(stream) = self.stream(key) else {
            return;
        };
        let mut left = length;
        while left > 0
            && let Some(piece) = stream.send_queue.pop(left)
        {
            left -= piece.len();
            batch.push_payload(piece);
        }
        if last {
            stream.sending = Sending::Ended;
        }
        let room = stream.send_queue.len() < wake_below;
        if room && self.may_send(key) > 0 {
            self.notify(key, Interest::SEND);
        }
        self.schedule(key);
        if last {
            self.forget_if_over(key);
        }
    }

    /// The stream's number, and whether this frame opens it.
    fn number(&mut self, key: StreamKey) -> (u32, bool) {
        let next = self.config.side.number(self.opened);
        let Some(stream) = self.stream(key) else {
            return (next, false);
        };
        if stream.number != 0 {
            return (stream.number, false);
        }
        stream.number = next;
        self.numbers.insert(next, key);
        self.opened += 1;
        self.unseen -= 1;
        (next, true)
    }
}
