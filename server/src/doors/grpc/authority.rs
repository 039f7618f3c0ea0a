//! Makes kube-apiserver's requests acceptable to our HTTP/2 library.
//!
//! grpc-go takes the path of a Unix socket for the name of the server and sends it, `/` written as
//! `%2F`, as `:authority`. That is allowed there, but the library we use takes no `%` in a name
//! and resets the stream. The door does not look at the name at all, so every literal one is
//! replaced by a single letter on its way in. A table of headers that both ends keep stays in step:
//! entries are counted from the newest, and a smaller one is never dropped earlier.
//!
//! Only frames of headers are looked at; the rest passes where it lies.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of HTTP/2's preface, which is no frame.
const PREFACE: usize = 24;
/// Bytes of a frame's head.
const HEAD: usize = 9;
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Longest frame of headers that is looked at: what we allow for one frame.
const LONGEST: usize = 16 * 1024;

/// A front end's connection with names that our library takes.
pub struct Named<S> {
    io: S,
    /// Bytes to pass before the next frame begins.
    pass: usize,
    /// A frame of headers, or a head, that is not whole.
    held: BytesMut,
    /// Looked at, and not taken yet.
    out: BytesMut,
}

impl<S> Named<S> {
    /// From the first byte of the preface on.
    pub fn new(io: S) -> Self {
        Self {
            io,
            pass: PREFACE,
            held: BytesMut::new(),
            out: BytesMut::new(),
        }
    }

    /// Looks at bytes and changes them in place. Gives how many of them are to be passed on; what
    /// is missing its end is kept.
    fn look(&mut self, bytes: &mut [u8]) -> usize {
        let mut end = bytes.len();
        let mut at = 0;
        loop {
            let step = self.pass.min(end - at);
            at += step;
            self.pass -= step;
            if at == end {
                return end;
            }
            let rest = &bytes[at..end];
            let Some((head, _)) = rest.split_first_chunk::<HEAD>() else {
                break;
            };
            let len = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let whole = HEAD + len;
            let headers = head[3] == HEADERS && head[4] & END_HEADERS != 0 && len <= LONGEST;
            if !headers {
                self.pass = whole;
                continue;
            }
            if rest.len() < whole {
                break;
            }
            if let Some(frame) = renamed(&rest[..whole]) {
                let saved = whole - frame.len();
                bytes[at..at + frame.len()].copy_from_slice(&frame);
                bytes.copy_within(at + whole..end, at + frame.len());
                end -= saved;
                self.pass = frame.len();
            } else {
                self.pass = whole;
            }
        }
        self.held.extend_from_slice(&bytes[at..end]);
        at
    }
}

/// The frame with another name, if it has one.
fn renamed(frame: &[u8]) -> Option<Vec<u8>> {
    let flags = frame[4];
    let mut start = HEAD;
    let mut end = frame.len();
    if flags & PADDED != 0 {
        end = end.checked_sub(usize::from(*frame.get(start)?))?;
        start += 1;
    }
    if flags & PRIORITY != 0 {
        start += 5;
    }
    let block = frame.get(start..end)?;
    let (from, to) = name_in(block)?;
    if to - from < 2 {
        return None;
    }
    let mut out = Vec::with_capacity(frame.len());
    out.extend_from_slice(&frame[..start + from]);
    out.extend_from_slice(&[1, b'a']);
    out.extend_from_slice(&frame[start + to..]);
    let len = u32::try_from(out.len() - HEAD).ok()?.to_be_bytes();
    out[..3].copy_from_slice(&len[1..]);
    Some(out)
}

/// Where the text of a literal `:authority` stands in a block of headers, its length included.
/// `None` also for a block that is none, which is for the library to judge.
fn name_in(block: &[u8]) -> Option<(usize, usize)> {
    const AUTHORITY: usize = 1;
    let mut at = 0;
    while at < block.len() {
        let first = block[at];
        let (prefix, literal) = match first {
            0x80.. => (7, false),
            0x40..0x80 => (6, true),
            0x20..0x40 => (5, false),
            _ => (4, true),
        };
        let (index, next) = integer(block, at, prefix)?;
        at = next;
        if !literal {
            continue;
        }
        if index == 0 {
            at = text_end(block, at)?;
        }
        let end = text_end(block, at)?;
        if index == AUTHORITY {
            return Some((at, end));
        }
        at = end;
    }
    None
}

fn text_end(block: &[u8], at: usize) -> Option<usize> {
    let (len, start) = integer(block, at, 7)?;
    let end = start.checked_add(len)?;
    (end <= block.len()).then_some(end)
}

/// A number of RFC 7541 section 5.1, and where it ends.
fn integer(block: &[u8], at: usize, prefix: u32) -> Option<(usize, usize)> {
    let mask = (1usize << prefix) - 1;
    let mut value = usize::from(*block.get(at)?) & mask;
    if value < mask {
        return Some((value, at + 1));
    }
    for (place, byte) in block[at + 1..].iter().take(4).enumerate() {
        value += usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some((value, at + 2 + place));
        }
    }
    None
}

impl<S: AsyncRead + Unpin> AsyncRead for Named<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.out.is_empty() {
                let count = this.out.len().min(buffer.remaining());
                buffer.put_slice(&this.out[..count]);
                this.out.advance(count);
                if this.out.is_empty() {
                    this.out = BytesMut::new();
                }
                return Poll::Ready(Ok(()));
            }
            let start = buffer.filled().len();
            if this.held.is_empty() {
                ready!(Pin::new(&mut this.io).poll_read(cx, buffer))?;
                let read = &mut buffer.filled_mut()[start..];
                if read.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                let passed = this.look(read);
                buffer.set_filled(start + passed);
                if passed > 0 {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            // The rest of a frame of headers: seldom, and small.
            let mut more = [0; 1024];
            let mut more = ReadBuf::new(&mut more);
            ready!(Pin::new(&mut this.io).poll_read(cx, &mut more))?;
            if more.filled().is_empty() {
                // It ended in the middle; the library says what is wrong with that.
                this.out = std::mem::take(&mut this.held);
                continue;
            }
            let mut whole = std::mem::take(&mut this.held);
            whole.extend_from_slice(more.filled());
            let passed = this.look(&mut whole);
            whole.truncate(passed);
            this.out = whole;
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Named<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Fuzz body: any bytes, cut anywhere, come out the same way, no longer than they were, and
/// unchanged where there is no name.
pub fn fuzz_authority(data: &[u8]) {
    let at_once = looked_at(data, data.len().max(1));
    let in_pieces = looked_at(data, 1 + data.first().map_or(0, |byte| usize::from(*byte)));
    assert_eq!(at_once, in_pieces);
    assert!(at_once.len() <= data.len());
}

fn looked_at(data: &[u8], step: usize) -> Vec<u8> {
    let mut named = Named::new(());
    let mut all = Vec::new();
    for piece in data.chunks(step) {
        let mut bytes = std::mem::take(&mut named.held);
        bytes.extend_from_slice(piece);
        let passed = named.look(&mut bytes);
        all.extend_from_slice(&bytes[..passed]);
    }
    all.extend_from_slice(&named.held);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let len = (payload.len() as u32).to_be_bytes();
        let mut frame = vec![len[1], len[2], len[3], kind, flags, 0, 0, 0, 1];
        frame.extend_from_slice(payload);
        frame
    }

    /// What grpc-go says, its texts without Huffman's code.
    fn block(name: &[u8]) -> Vec<u8> {
        let mut block = vec![0x83, 0x86, 0x44, 2, b'/', b'p', 0x41, name.len() as u8];
        block.extend_from_slice(name);
        block.extend_from_slice(&[0x40, 2, b't', b'e', 1, b'x', 0x3f, 0xe1, 0x1f]);
        block
    }

    fn stream(name: &[u8]) -> Vec<u8> {
        let mut all = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        all.extend(frame(4, 0, &[0, 3, 0, 0, 0, 9]));
        all.extend(frame(HEADERS, END_HEADERS, &block(name)));
        all.extend(frame(0, 0, &[7; 300]));
        let padded = [&[3, 0, 0, 0, 0, 9][..], &block(name), &[0; 3]].concat();
        all.extend(frame(HEADERS, END_HEADERS | PADDED | PRIORITY, &padded));
        all.extend(frame(0, 1, &[8; 20]));
        all
    }

    #[tokio::test]
    async fn the_name_is_replaced_wherever_the_bytes_are_cut() {
        let sent = stream(b"%2Frun%2Fdoor.sock");
        let mut want = stream(b"a");
        for step in [1, 5, 9, 24, 33, 64, sent.len()] {
            assert_eq!(looked_at(&sent, step), want, "{step}");
        }
        let mut got = Vec::new();
        Named::new(&sent[..]).read_to_end(&mut got).await.unwrap();
        assert_eq!(got, want);
        // A frame that never ends is passed on as it is.
        let cut = sent.len() - 30;
        got.clear();
        Named::new(&sent[..cut])
            .read_to_end(&mut got)
            .await
            .unwrap();
        want.truncate(got.len());
        assert!(got.len() >= cut - 40 && got[..24 + 15 + 30] == want[..24 + 15 + 30]);
    }

    #[test]
    fn blocks_that_are_none_are_left_alone() {
        for block in [
            &b"\x41"[..],
            b"\x41\x05ab",
            b"\x40\x7f\xff\xff\xff\xff\xff",
            b"\x7f\xff\xff\xff\xff\xff\x01",
        ] {
            let mut all = vec![b'x'; PREFACE];
            all.extend(frame(HEADERS, END_HEADERS, block));
            assert_eq!(looked_at(&all, all.len()), all);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_pass(data in proptest::collection::vec(any::<u8>(), 0..600)) {
            fuzz_authority(&data);
        }

        #[test]
        fn any_block_passes(block in proptest::collection::vec(any::<u8>(), 0..80), step in 1..40usize) {
            let mut all = vec![b'x'; PREFACE];
            all.extend(frame(HEADERS, END_HEADERS, &block));
            all.extend(frame(0, 0, b"data"));
            let out = looked_at(&all, step);
            prop_assert!(out.ends_with(b"data"));
            prop_assert_eq!(looked_at(&all, all.len()), out);
        }
    }
}
