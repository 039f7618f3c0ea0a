//! A message's body followed to its end, byte for byte, without keeping any of it.
//!
//! Chunks are read strictly: sizes of at most 16 hexadecimal digits, no extensions, line ends of
//! two bytes. Nobody who speaks to a kubelet sends anything else, and lenient readers that
//! disagree about the rest are how requests are smuggled.

use crate::limits;

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    Nothing,
    /// `Content-Length`.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// Everything until the connection ends; answers only.
    UntilClose,
}

/// A chunk that two readers could take differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Not `<1 to 16 hexadecimal digits> CR LF`.
    #[error("malformed chunk size")]
    Size,
    /// No line end behind a chunk's bytes.
    #[error("a chunk is not followed by a line end")]
    End,
    /// Lines behind the last chunk.
    #[error("malformed or too long trailers")]
    Trailers,
}

/// Where we are in a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Body(At);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Done,
    Left(u64),
    UntilClose,
    Size {
        digits: u8,
        value: u64,
    },
    SizeLf {
        value: u64,
    },
    Chunk {
        left: u64,
    },
    ChunkCr,
    ChunkLf,
    /// At the start of a line behind the last chunk.
    TrailerStart {
        bytes: usize,
    },
    Trailer {
        bytes: usize,
    },
    TrailerLf {
        bytes: usize,
    },
    LastLf,
}

impl Body {
    /// The start of a body of this kind.
    pub const fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::Nothing | Framing::Length(0) => At::Done,
            Framing::Length(left) => At::Left(left),
            Framing::Chunked => At::Size {
                digits: 0,
                value: 0,
            },
            Framing::UntilClose => At::UntilClose,
        })
    }

    /// Whether what comes next belongs to another message.
    pub const fn is_done(self) -> bool {
        matches!(self.0, At::Done)
    }

    /// Whether it may end with the connection.
    pub const fn may_end(self) -> bool {
        matches!(self.0, At::Done | At::UntilClose)
    }

    /// How many of these bytes, from the first on, belong to it.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, BodyError> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            at += match self.0 {
                At::Done => break,
                At::UntilClose => rest.len(),
                At::Left(left) => {
                    let (taken, left) = part(rest, left);
                    self.0 = if left == 0 { At::Done } else { At::Left(left) };
                    taken
                }
                At::Chunk { left } => {
                    let (taken, left) = part(rest, left);
                    self.0 = match left {
                        0 => At::ChunkCr,
                        left => At::Chunk { left },
                    };
                    taken
                }
                _ => {
                    self.0 = self.step(rest[0])?;
                    1
                }
            };
        }
        Ok(at)
    }

    /// One byte of the framing itself.
    fn step(self, byte: u8) -> Result<At, BodyError> {
        Ok(match (self.0, byte) {
            (At::Size { digits: 1.., value }, b'\r') => At::SizeLf { value },
            (At::Size { digits, value }, byte) if digits < 16 => {
                let digit = char::from(byte).to_digit(16).ok_or(BodyError::Size)?;
                At::Size {
                    digits: digits + 1,
                    value: value << 4 | u64::from(digit),
                }
            }
            (At::SizeLf { value: 0 }, b'\n') => At::TrailerStart { bytes: 0 },
            (At::SizeLf { value }, b'\n') if value <= i64::MAX as u64 => At::Chunk { left: value },
            (At::Size { .. } | At::SizeLf { .. }, _) => return Err(BodyError::Size),
            (At::ChunkCr, b'\r') => At::ChunkLf,
            (At::ChunkLf, b'\n') => At::Size {
                digits: 0,
                value: 0,
            },
            (At::TrailerStart { .. }, b'\r') => At::LastLf,
            (At::LastLf, b'\n') => At::Done,
            (At::TrailerStart { bytes }, byte)
                if bytes < limits::GATEWAY_TRAILER_BYTES && byte.is_ascii_alphanumeric() =>
            {
                At::Trailer { bytes: bytes + 1 }
            }
            (At::Trailer { bytes }, b'\r') => At::TrailerLf { bytes },
            (At::Trailer { bytes }, byte)
                if bytes < limits::GATEWAY_TRAILER_BYTES && (byte == b'\t' || byte >= b' ') =>
            {
                At::Trailer { bytes: bytes + 1 }
            }
            (At::TrailerLf { bytes }, b'\n') => At::TrailerStart { bytes },
            (At::ChunkCr | At::ChunkLf, _) => return Err(BodyError::End),
            _ => return Err(BodyError::Trailers),
        })
    }
}

fn part(bytes: &[u8], left: u64) -> (usize, u64) {
    let taken = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
    (taken, left - taken as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same answer whole and byte by byte.
    fn follow(framing: Framing, text: &[u8]) -> Result<(usize, bool), BodyError> {
        let mut whole = Body::new(framing);
        let taken = whole.take(text).map(|taken| (taken, whole.is_done()));
        let mut slow = Body::new(framing);
        let mut count = 0;
        let mut by_byte = Ok(());
        for byte in text {
            match slow.take(&[*byte]) {
                Ok(taken) => count += taken,
                Err(error) => {
                    by_byte = Err(error);
                    break;
                }
            }
        }
        assert_eq!(taken, by_byte.map(|()| (count, slow.is_done())));
        taken
    }

    #[test]
    fn an_end_is_found_where_it_is() {
        assert_eq!(follow(Framing::Nothing, b"GET"), Ok((0, true)));
        assert_eq!(follow(Framing::Length(3), b"abcGET"), Ok((3, true)));
        assert_eq!(follow(Framing::Length(9), b"abc"), Ok((3, false)));
        assert_eq!(follow(Framing::UntilClose, b"abc"), Ok((3, false)));
        let chunks = b"3\r\nabc\r\n0a\r\n0123456789\r\n0\r\n\r\nGET";
        assert_eq!(
            follow(Framing::Chunked, chunks),
            Ok((chunks.len() - 3, true))
        );
        let trailers = b"0\r\nX: y\r\nGrpc: 0\r\n\r\n";
        assert_eq!(
            follow(Framing::Chunked, trailers),
            Ok((trailers.len(), true))
        );
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        let long = format!(
            "0\r\nx: {}\r\n\r\n",
            "y".repeat(limits::GATEWAY_TRAILER_BYTES)
        );
        let many = format!(
            "0\r\n{}\r\n",
            "x\r\n".repeat(limits::GATEWAY_TRAILER_BYTES + 1)
        );
        for (text, error) in [
            (&b"\r\n"[..], BodyError::Size),
            (b" 3\r\nabc", BodyError::Size),
            (b"3 \r\nabc", BodyError::Size),
            (b"3;a=b\r\nabc", BodyError::Size),
            (b"0x3\r\nabc", BodyError::Size),
            (b"+3\r\nabc", BodyError::Size),
            (b"-1\r\n", BodyError::Size),
            (b"3\nabc", BodyError::Size),
            (b"3\rabc", BodyError::Size),
            (b"ffffffffffffffff\r\n", BodyError::Size),
            (b"00000000000000003\r\n", BodyError::Size),
            (b"3\r\nabcd\r\n", BodyError::End),
            (b"3\r\nabc\n", BodyError::End),
            (b"0\r\n\n", BodyError::Trailers),
            (b"0\r\n x: y\r\n\r\n", BodyError::Trailers),
            (b"0\r\nx: \x00\r\n\r\n", BodyError::Trailers),
            (b"0\r\nx: y\nz: 1\r\n\r\n", BodyError::Trailers),
            (long.as_bytes(), BodyError::Trailers),
            (many.as_bytes(), BodyError::Trailers),
        ] {
            let text_shown = String::from_utf8_lossy(&text[..text.len().min(30)]).into_owned();
            assert_eq!(follow(Framing::Chunked, text), Err(error), "{text_shown:?}");
        }
    }
}
