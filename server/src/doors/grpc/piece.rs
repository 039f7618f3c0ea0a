//! What goes into one DATA frame of HTTP/2: a head and bytes of a target that lie where the link
//! put them, so that nothing is copied.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};
use towline_proto::konnectivity::Packet;
use towline_proto::konnectivity::frame;

/// One message, or what is left of it to write.
#[derive(Debug, Default)]
pub struct Piece {
    head: Bytes,
    chunks: VecDeque<Bytes>,
    len: usize,
}

impl Piece {
    /// Several packets that are not bulk, so that they arrive together.
    pub fn packets<'a>(packets: impl Iterator<Item = &'a Packet>) -> Self {
        let mut chunks = VecDeque::new();
        for packet in packets {
            let (head, data) = frame::put(packet);
            chunks.push_back(head);
            chunks.extend((!data.is_empty()).then_some(data));
        }
        Self::new(Bytes::new(), chunks)
    }

    /// The first `len` bytes of `chunks` as DATA of a connection; they are removed there.
    pub fn data(connect_id: i64, len: usize, chunks: &mut VecDeque<Bytes>) -> Self {
        let taken = take(len, chunks);
        let len = taken.iter().map(Bytes::len).sum();
        Self::new(frame::data_head(connect_id, len), taken)
    }

    fn new(head: Bytes, chunks: VecDeque<Bytes>) -> Self {
        let len = head.len() + chunks.iter().map(Bytes::len).sum::<usize>();
        Self { head, chunks, len }
    }
}

/// The first `len` bytes, or all there are.
pub fn take(len: usize, chunks: &mut VecDeque<Bytes>) -> VecDeque<Bytes> {
    let all: usize = chunks.iter().map(Bytes::len).sum();
    if all <= len {
        return std::mem::take(chunks);
    }
    let mut taken = VecDeque::new();
    let mut left = len;
    while left > 0 {
        let Some(first) = chunks.front_mut() else {
            break;
        };
        if first.len() > left {
            taken.push_back(first.split_to(left));
            break;
        }
        left -= first.len();
        taken.extend(chunks.pop_front());
    }
    taken
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        match self.head.is_empty() {
            true => self.chunks.front().map_or(&[], |chunk| chunk),
            false => &self.head,
        }
    }

    fn chunks_vectored<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        let head = (!self.head.is_empty()).then_some(&self.head);
        let mut count = 0;
        for (slot, chunk) in out.iter_mut().zip(head.into_iter().chain(&self.chunks)) {
            *slot = IoSlice::new(chunk);
            count += 1;
        }
        count
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.len, "no more than there is");
        self.len -= count;
        let of_head = count.min(self.head.len());
        self.head.advance(of_head);
        count -= of_head;
        while count > 0 {
            let Some(first) = self.chunks.front_mut() else {
                return;
            };
            let step = count.min(first.len());
            first.advance(step);
            count -= step;
            if first.is_empty() {
                self.chunks.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_reads_as_the_packet_however_it_is_cut() {
        let text = Bytes::from_static(b"some bytes of a target");
        for cut in 1..text.len() {
            let chunks = || VecDeque::from([text.slice(..cut), text.slice(cut..)]);
            for len in 1..=text.len() + 3 {
                let mut left = chunks();
                let mut piece = Piece::data(7, len, &mut left);
                let sent = text.slice(..len.min(text.len()));
                let packet = Packet::Data {
                    connect_id: 7,
                    data: sent.clone(),
                };
                let whole = Piece::packets(std::iter::once(&packet));
                assert_eq!(
                    left.iter().map(Bytes::len).sum::<usize>(),
                    text.len() - sent.len()
                );
                let mut slices = [IoSlice::new(&[]); 8];
                let count = piece.chunks_vectored(&mut slices);
                let vectored: usize = slices[..count].iter().map(|slice| slice.len()).sum();
                assert_eq!(vectored, piece.remaining());
                let remaining = whole.remaining();
                let mut whole = whole;
                assert_eq!(
                    piece.copy_to_bytes(piece.remaining()),
                    whole.copy_to_bytes(remaining)
                );
            }
        }
    }
}
