//! Frames on their way to the connection: headers packed together, payloads as they are.
//!
//! The connection's driver asks the multiplexer to fill a batch, writes its slices with one
//! vectored write, and says how much of it went.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use super::frame::Small;

/// Payload pieces below this are copied beside their header: one slice less costs more than
/// the copy.
const INLINE: usize = 1024;

#[derive(Debug)]
enum Part {
    /// The next so many bytes of `packed`.
    Packed(usize),
    Payload(Bytes),
}

/// Bytes to be written, as few slices as possible. Empty again after it was written whole.
#[derive(Debug, Default)]
pub struct Batch {
    packed: Vec<u8>,
    /// Where the first `Packed` part begins in `packed`.
    at: usize,
    parts: VecDeque<Part>,
    bytes: usize,
}

impl Batch {
    /// Bytes left to be written.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether everything was written.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// What is left, in order.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let mut at = self.at;
        self.parts.iter().map(move |part| match part {
            Part::Packed(length) => {
                let slice = self.packed.get(at..at + length).unwrap_or_default();
                at += length;
                slice
            }
            Part::Payload(payload) => payload.as_ref(),
        })
    }

    /// The first `written` bytes are done.
    pub fn advance(&mut self, mut written: usize) {
        self.bytes = self.bytes.saturating_sub(written);
        while let Some(part) = self.parts.front_mut() {
            let length = match part {
                Part::Packed(length) => *length,
                Part::Payload(payload) => payload.len(),
            };
            let done = length.min(written);
            match part {
                Part::Packed(left) => {
                    *left -= done;
                    self.at += done;
                }
                Part::Payload(payload) => payload.advance(done),
            }
            written -= done;
            if done < length {
                break;
            }
            self.parts.pop_front();
        }
        if self.parts.is_empty() {
            self.packed.clear();
            self.at = 0;
        }
    }

    /// Gives memory beyond a few frames' worth back; for a connection that has nothing to do.
    pub fn release(&mut self) {
        if self.is_empty() && (self.packed.capacity() > INLINE || self.parts.capacity() > 8) {
            *self = Self::default();
        }
    }

    pub(super) fn push_small(&mut self, frame: Small) {
        self.pack(|packed| frame.write(packed));
    }

    pub(super) fn push_bytes(&mut self, bytes: &[u8]) {
        self.pack(|packed| packed.extend_from_slice(bytes));
    }

    pub(super) fn push_payload(&mut self, payload: Bytes) {
        if payload.len() < INLINE {
            self.push_bytes(&payload);
        } else {
            self.bytes += payload.len();
            self.parts.push_back(Part::Payload(payload));
        }
    }

    fn pack(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.packed.len();
        write(&mut self.packed);
        let added = self.packed.len() - before;
        self.bytes += added;
        match self.parts.back_mut() {
            Some(Part::Packed(length)) => *length += added,
            _ => self.parts.push_back(Part::Packed(added)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_gives_its_bytes_in_order_however_they_are_written() {
        for step in [1, 3, 700, 1_000_000] {
            let mut batch = Batch::default();
            let mut given = Vec::new();
            for round in 0_u8..5 {
                batch.push_bytes(&[round; 8]);
                batch.push_payload(Bytes::from(vec![round; 10]));
                batch.push_payload(Bytes::from(vec![round + 100; 2000]));
                given.extend_from_slice(&[round; 18]);
                given.extend_from_slice(&[round + 100; 2000]);
            }
            assert_eq!(batch.len(), given.len());
            assert_eq!(batch.slices().count(), 10);
            let mut taken = Vec::new();
            while !batch.is_empty() {
                let before = taken.len();
                for slice in batch.slices() {
                    let room = step - (taken.len() - before);
                    taken.extend_from_slice(&slice[..slice.len().min(room)]);
                }
                batch.advance(taken.len() - before);
            }
            assert_eq!(taken, given);
        }
    }
}
