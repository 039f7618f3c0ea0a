//! gRPC's message framing: one byte of flags, four of length, then the message; cut at arbitrary
//! places by what carries it.
//!
//! [`Messages`] takes the carrier's chunks as they come and gives whole messages back: a slice of
//! the chunk where a message lies in one, else one copy. What it holds is bounded by the longest
//! message plus one chunk, however small the chunks are; who feeds it stops feeding while a
//! message is ready. [`put`] does the opposite, and leaves bulk data where they are.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::fields::{put_length, put_number, varint_bytes};
use super::packet::Packet;

/// Bytes before each message.
pub const PREFIX: usize = 5;

/// Why the bytes are no gRPC messages. The stream cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than allowed; gRPC's `RESOURCE_EXHAUSTED`.
    #[error("received message larger than max ({len} vs. {max})")]
    TooLong {
        /// What the prefix says.
        len: u32,
        /// What is allowed.
        max: usize,
    },
    /// The flag of a compressed message, and no compression was agreed; gRPC's `INTERNAL`.
    #[error("a compressed message, and no compression was agreed")]
    Compressed,
    /// A flag that gRPC does not know; gRPC's `INTERNAL`.
    #[error("received message with an unknown flag {0:#04x}")]
    Flag(u8),
    /// The stream ended within a message; gRPC's `INTERNAL`.
    #[error("the stream ended in the middle of a message")]
    Cut,
}

/// Cuts chunks into messages.
#[derive(Debug)]
pub struct Messages {
    rope: Rope,
    max: usize,
    /// Length of the message whose prefix was read.
    pending: Option<usize>,
}

impl Messages {
    /// For messages of at most `max` bytes.
    pub fn new(max: usize) -> Self {
        Self {
            rope: Rope::default(),
            max,
            pending: None,
        }
    }

    /// What the carrier received.
    pub fn push(&mut self, chunk: Bytes) {
        self.rope.push(chunk);
    }

    /// The next whole message. `Ok(None)`: more bytes are needed.
    pub fn pop(&mut self) -> Result<Option<Bytes>, FrameError> {
        let len = match self.pending {
            Some(len) => len,
            None if self.rope.len < PREFIX => {
                self.rope.pack();
                return Ok(None);
            }
            None => {
                let mut prefix = self.rope.split_to(PREFIX);
                let flag = prefix.get_u8();
                let len = prefix.get_u32();
                match flag {
                    0 => {}
                    1 => return Err(FrameError::Compressed),
                    other => return Err(FrameError::Flag(other)),
                }
                if len as usize > self.max {
                    let max = self.max;
                    return Err(FrameError::TooLong { len, max });
                }
                *self.pending.insert(len as usize)
            }
        };
        if self.rope.len < len {
            self.rope.pack();
            return Ok(None);
        }
        self.pending = None;
        Ok(Some(self.rope.split_to(len)))
    }

    /// The carrier ended: nothing may be left over.
    pub fn finish(&self) -> Result<(), FrameError> {
        match self.pending.is_none() && self.rope.len == 0 {
            true => Ok(()),
            false => Err(FrameError::Cut),
        }
    }

    /// Bytes held: the beginning of a message that is not whole.
    pub fn held(&self) -> usize {
        self.rope.len
    }
}

/// What waits in a chunk of fewer bytes is copied: a chunk is a part of the carrier's read buffer
/// and keeps all of it alive, and a list of one-byte chunks is larger than what is in them.
const PACKED: usize = 8 * 1024;

/// Chunks in a row. None of them is empty.
#[derive(Debug, Default)]
struct Rope {
    chunks: VecDeque<Bytes>,
    /// Behind the chunks: small ones, packed.
    tail: BytesMut,
    len: usize,
}

impl Rope {
    fn push(&mut self, chunk: Bytes) {
        if chunk.is_empty() {
            return;
        }
        self.len += chunk.len();
        if !self.tail.is_empty() && chunk.len() < PACKED {
            self.tail.extend_from_slice(&chunk);
            return;
        }
        self.end_tail();
        self.chunks.push_back(chunk);
    }

    /// What is here has to wait for more.
    fn pack(&mut self) {
        if self.tail.is_empty()
            && let Some(last) = self.chunks.pop_back_if(|last| last.len() < PACKED)
        {
            self.tail = BytesMut::from(&last[..]);
        }
        if self.len == 0 {
            // An idle stream holds no memory for chunks.
            self.chunks = VecDeque::new();
        }
    }

    fn end_tail(&mut self) {
        if !self.tail.is_empty() {
            let tail = std::mem::take(&mut self.tail);
            self.chunks.push_back(tail.freeze());
        }
    }

    /// The first `len` bytes, of which there are so many.
    fn split_to(&mut self, len: usize) -> Bytes {
        self.end_tail();
        let len = len.min(self.len);
        self.len -= len;
        match self.chunks.front_mut() {
            Some(first) if first.len() > len => first.split_to(len),
            Some(first) if first.len() == len => self.chunks.pop_front().unwrap_or_default(),
            _ => self.gather(len),
        }
    }

    fn gather(&mut self, len: usize) -> Bytes {
        let mut copy = BytesMut::with_capacity(len);
        while copy.len() < len {
            let Some(first) = self.chunks.front_mut() else {
                break;
            };
            let piece = first.len().min(len - copy.len());
            copy.put(first.split_to(piece));
            if first.is_empty() {
                self.chunks.pop_front();
            }
        }
        copy.freeze()
    }
}

/// A packet with its prefix, in two parts; the second are the bytes of DATA, shared.
pub fn put(packet: &Packet) -> (Bytes, Bytes) {
    let (head, data) = packet.encode_parts();
    let mut out = BytesMut::with_capacity(PREFIX + head.len());
    out.put_u8(0);
    out.put_u32((head.len() + data.len()) as u32);
    out.put(head);
    (out.freeze(), data)
}

/// What stands before `len` bytes of DATA: the prefix, the packet's and the body's heads; at most
/// [`DATA_HEAD`] bytes. For bytes that are in pieces, or not cut yet.
pub fn data_head(connect_id: i64, len: usize) -> Bytes {
    let mut body = BytesMut::with_capacity(DATA_HEAD);
    put_number(&mut body, 1, connect_id);
    if len > 0 {
        put_length(&mut body, 3, len);
    }
    let inner = body.len() + len;
    let mut out = BytesMut::with_capacity(DATA_HEAD);
    out.put_u8(0);
    out.put_u32((3 + varint_bytes(inner as u64) + inner) as u32);
    put_number(&mut out, 1, 4);
    put_length(&mut out, 4, inner);
    out.put(body);
    out.freeze()
}

/// Most bytes before those of one DATA packet of up to 4 GiB.
pub const DATA_HEAD: usize = PREFIX + 2 + 1 + 5 + 1 + 10 + 1 + 5;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: usize = 64;

    fn data(len: usize) -> Packet {
        Packet::Data {
            connect_id: 3,
            data: vec![7; len].into(),
        }
    }

    fn wire(packet: &Packet) -> Bytes {
        let (head, data) = put(packet);
        [head, data].concat().into()
    }

    #[test]
    fn messages_come_out_however_they_are_cut() {
        let sent = [
            data(10),
            Packet::Drain,
            data(0),
            Packet::CloseDial { random: 5 },
        ];
        let bytes: Bytes = sent.iter().map(wire).collect::<Vec<_>>().concat().into();
        for cut in 1..bytes.len() {
            let mut messages = Messages::new(MAX);
            let mut got = Vec::new();
            let mut rest = bytes.clone();
            while !rest.is_empty() {
                messages.push(rest.split_to(cut.min(rest.len())));
                while let Some(message) = messages.pop().unwrap() {
                    got.push(Packet::decode(message).unwrap());
                }
            }
            assert_eq!(got, sent);
            assert_eq!(messages.finish(), Ok(()));
            assert_eq!(messages.held(), 0);
        }
    }

    #[test]
    fn a_head_without_its_bytes_is_the_same_head() {
        for connect_id in [0, 1, 127, 128, i64::MAX, -1] {
            for len in [0, 1, 100, 127, 128, 16_384, 65_500] {
                let (head, _) = put(&Packet::Data {
                    connect_id,
                    data: vec![0; len].into(),
                });
                assert_eq!(data_head(connect_id, len), head);
                assert!(head.len() <= DATA_HEAD);
            }
        }
    }

    #[test]
    fn bad_prefixes_are_told_apart() {
        let pop = |bytes: &'static [u8]| {
            let mut messages = Messages::new(MAX);
            messages.push(Bytes::from_static(bytes));
            messages.pop().map(|message| message.is_some())
        };
        assert_eq!(pop(&[1, 0, 0, 0, 0]), Err(FrameError::Compressed));
        assert_eq!(pop(&[2, 0, 0, 0, 0]), Err(FrameError::Flag(2)));
        let too_long = FrameError::TooLong { len: 65, max: MAX };
        assert_eq!(pop(&[0, 0, 0, 0, 65]), Err(too_long));
        assert_eq!(pop(&[0, 0, 0, 0]), Ok(false));
        assert_eq!(pop(&[0, 0, 0, 0, 0]), Ok(true));
        let mut messages = Messages::new(MAX);
        messages.push(Bytes::from_static(&[0, 0, 0, 0, 2, 8]));
        assert!(messages.pop().unwrap().is_none());
        assert_eq!(messages.finish(), Err(FrameError::Cut));
    }

    #[test]
    fn data_of_one_chunk_are_not_copied() {
        let bytes = wire(&data(50));
        let range = bytes.as_ptr_range();
        let mut messages = Messages::new(MAX);
        messages.push(bytes.clone());
        let message = messages.pop().unwrap().unwrap();
        let Ok(Packet::Data { data, .. }) = Packet::decode(message) else {
            panic!("not DATA");
        };
        assert!(range.contains(&data.as_ptr()));
    }

    /// Bytes that `messages` keeps alive, in buffers and in lists.
    fn kept(messages: &Messages) -> usize {
        let Rope { chunks, tail, .. } = &messages.rope;
        let lists = chunks.capacity() * size_of::<Bytes>();
        lists + tail.capacity() + chunks.iter().map(Bytes::len).sum::<usize>()
    }

    #[test]
    fn a_message_in_one_byte_chunks_takes_no_more_than_its_bytes() {
        // Each chunk is a byte of a read buffer that it would keep alive.
        let buffer = Bytes::from(vec![0; 16 * 1024]);
        let len = 100_000_u32;
        let mut messages = Messages::new(len as usize);
        messages.push(Bytes::copy_from_slice(
            &[&[0], &len.to_be_bytes()[..]].concat(),
        ));
        assert_eq!(messages.pop(), Ok(None));
        for at in 0..len as usize - 1 {
            messages.push(buffer.slice(at % 1000..at % 1000 + 1));
            assert_eq!(messages.pop(), Ok(None));
        }
        assert!(buffer.is_unique(), "no chunk of the buffer is kept");
        assert!(kept(&messages) <= 3 * len as usize, "{}", kept(&messages));
        // A large chunk, and the end of the message in a small one.
        messages.push(buffer.slice(..1));
        let whole = messages.pop().unwrap().unwrap();
        assert_eq!(whole.len(), len as usize);
        assert_eq!(messages.pop(), Ok(None));
        assert_eq!(kept(&messages), 0, "an idle stream holds nothing");
    }

    #[test]
    fn the_rest_of_a_chunk_does_not_keep_the_whole() {
        let chunk = Bytes::from(wire(&data(50)).repeat(1000));
        let first = chunk.slice(..wire(&data(50)).len() + 2);
        let mut messages = Messages::new(MAX);
        messages.push(first);
        drop(messages.pop().unwrap().unwrap());
        assert_eq!(messages.pop(), Ok(None));
        assert_eq!(messages.held(), 2);
        assert!(chunk.is_unique());
    }

    proptest! {
        #[test]
        fn any_bytes_are_messages_or_an_error(chunks in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..40), 0..20,
        )) {
            let mut messages = Messages::new(MAX);
            for chunk in chunks {
                messages.push(chunk.into());
                loop {
                    match messages.pop() {
                        Ok(Some(message)) => drop(Packet::decode(message)),
                        Ok(None) => break,
                        Err(_) => return Ok(()),
                    }
                }
                prop_assert!(messages.held() <= MAX + 40);
            }
        }
    }
}
