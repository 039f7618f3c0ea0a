//! Bytes whose value follows from their position, so that a reader can prove that a transfer
//! was complete, in order and unchanged, at the speed of a memory comparison.

use std::sync::OnceLock;

/// Length of the repeating block: a prime, so that no buffer size divides it and a chunk that
/// is dropped, doubled or swapped cannot go unseen.
const BLOCK: usize = 1_048_573;
/// Longest slice that can be asked for at once.
const CHUNK: usize = 64 * 1024;

fn table() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut table: Vec<u8> = (0..BLOCK)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .collect();
        table.extend_from_within(..CHUNK);
        table
    })
}

/// The bytes from `position` on, at most `len` and at most 64 KiB of them.
pub fn bytes(position: u64, len: u64) -> &'static [u8] {
    let start = (position % BLOCK as u64) as usize;
    let len = len.min(CHUNK as u64) as usize;
    &table()[start..start + len]
}

/// Checks what arrives, piece by piece.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Check {
    /// Bytes seen so far.
    pub received: u64,
    /// Position of the first byte that was not what it had to be.
    pub wrong_at: Option<u64>,
}

impl Check {
    /// The next bytes of the transfer.
    pub fn feed(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            let (now, rest) = piece.split_at(piece.len().min(CHUNK));
            let wanted = bytes(self.received, now.len() as u64);
            if now != wanted && self.wrong_at.is_none() {
                let offset = now
                    .iter()
                    .zip(wanted)
                    .position(|(a, b)| a != b)
                    .unwrap_or(0);
                self.wrong_at = Some(self.received + offset as u64);
            }
            self.received += now.len() as u64;
            piece = rest;
        }
    }

    /// Whether exactly the first `len` bytes of the pattern came.
    pub fn is_exactly(&self, len: u64) -> bool {
        self.received == len && self.wrong_at.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_transfer_is_recognised_whatever_the_pieces() {
        let mut check = Check::default();
        let mut at = 0;
        for size in [1_u64, 65_536, 1_000, 17, 65_535]
            .into_iter()
            .cycle()
            .take(200)
        {
            let piece = bytes(at, size);
            check.feed(piece);
            at += piece.len() as u64;
        }
        assert!(check.is_exactly(at));
    }

    #[test]
    fn a_lost_or_doubled_piece_is_seen() {
        let mut check = Check::default();
        check.feed(bytes(0, 1_000));
        check.feed(bytes(2_000, 1_000));
        assert_eq!(check.wrong_at.map(|at| at / 1_000), Some(1));
        let mut check = Check::default();
        check.feed(bytes(0, 1_000));
        check.feed(bytes(0, 1_000));
        assert!(check.wrong_at.is_some());
    }
}
