//! Bytes in order that wait for somebody, in no more memory than they need.
//!
//! Small pieces are packed together by copying, so that neither a pinned read buffer nor a
//! list of one-byte pieces stands for a few bytes; large pieces travel as they are. An empty
//! queue owns no memory.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Pieces from this size on are kept as they are; smaller ones are copied.
const LARGE: usize = 8 * 1024;
/// The largest buffer that small pieces are packed into.
const PACK: usize = 64 * 1024;
/// Bytes copied by one call. Many C libraries (glibc before 2.39) copy more than 2 KiB by
/// `rep movsb`, which on AMD processors of 2020 to 2023 is several times slower whenever the two
/// addresses are alike in their low bits; it was a sixth of an agent's time.
const STEP: usize = 1024;
/// An empty queue keeps the list's own memory up to this many places.
const KEPT_PLACES: usize = 8;

/// A first-in first-out of bytes. Its bound is its owner's: in [`crate::mux`] credit on the
/// receiving side, [`MUX_SEND_QUEUE`](crate::limits::MUX_SEND_QUEUE) on the sending side.
#[derive(Debug, Default)]
pub struct Queue {
    pieces: VecDeque<Bytes>,
    /// Follows `pieces`; small pieces are packed here.
    tail: BytesMut,
    bytes: usize,
}

impl Queue {
    /// Bytes in it.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Appends a piece, keeping it whole when it is large.
    pub fn push(&mut self, piece: Bytes) {
        if piece.len() < LARGE {
            self.push_copy(&piece);
        } else {
            self.end_tail();
            self.bytes += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// Appends a copy. A first piece gets memory of its own size; the more bytes wait, the
    /// larger the buffers become, so that a reader that lags takes them in few pieces.
    pub fn push_copy(&mut self, piece: &[u8]) {
        if self.tail.capacity() - self.tail.len() < piece.len() {
            self.end_tail();
            self.tail = BytesMut::with_capacity(piece.len().max(self.bytes.min(PACK)));
        }
        for step in piece.chunks(STEP) {
            self.tail.extend_from_slice(step);
        }
        self.bytes += piece.len();
    }

    /// Takes the next bytes, at most `max` (at least one byte is taken).
    pub fn pop(&mut self, max: usize) -> Option<Bytes> {
        let max = max.max(1);
        let taken = match self.pieces.front_mut() {
            Some(piece) if piece.len() > max => piece.split_to(max),
            Some(_) => self.pieces.pop_front()?,
            None if self.tail.is_empty() => return None,
            None if self.tail.len() > max => self.tail.split_to(max).freeze(),
            None => std::mem::take(&mut self.tail).freeze(),
        };
        self.bytes -= taken.len();
        if self.bytes == 0 && self.pieces.capacity() > KEPT_PLACES {
            self.pieces = VecDeque::new();
        }
        Some(taken)
    }

    fn end_tail(&mut self) {
        if !self.tail.is_empty() {
            self.pieces
                .push_back(std::mem::take(&mut self.tail).freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn large_pieces_are_not_copied_and_small_ones_are_packed() {
        let mut queue = Queue::default();
        let large = Bytes::from(vec![7; LARGE]);
        queue.push(large.clone());
        for _ in 0..1000 {
            queue.push(Bytes::from_static(b"x"));
        }
        assert_eq!(
            queue.pop(usize::MAX).expect("first").as_ptr(),
            large.as_ptr()
        );
        let mut pieces = 0;
        while queue.pop(usize::MAX).is_some() {
            pieces += 1;
        }
        assert_eq!(pieces, 1);
        assert_eq!(queue.len(), 0);
    }

    proptest! {
        #[test]
        fn bytes_come_out_in_the_order_in_which_they_went_in(
            pieces in proptest::collection::vec((0_usize..20_000, any::<bool>(), 1_usize..40_000), 0..20)
        ) {
            let (mut queue, mut given, mut taken) = (Queue::default(), Vec::new(), Vec::new());
            for (length, copied, max) in pieces {
                let piece: Vec<u8> = (0..length).map(|n| (given.len() + n) as u8).collect();
                given.extend_from_slice(&piece);
                if copied { queue.push_copy(&piece) } else { queue.push(Bytes::from(piece)) }
                if let Some(bytes) = queue.pop(max) {
                    prop_assert!(bytes.len() <= max);
                    taken.extend_from_slice(&bytes);
                }
                prop_assert_eq!(queue.len(), given.len() - taken.len());
            }
            while let Some(bytes) = queue.pop(1000) {
                taken.extend_from_slice(&bytes);
            }
            prop_assert!(queue.is_empty());
            prop_assert_eq!(given, taken);
        }
    }
}
