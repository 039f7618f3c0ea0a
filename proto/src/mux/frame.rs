//! The eight bytes in front of every frame, and the frames themselves as values.
//!
//! The drawings are in the module's front page ([`super`]); this file is the only one that
//! turns them into bytes and back. Nothing here knows a stream's state.

use crate::limits::MUX_FRAME_BYTES;
use crate::reason::Reason;

use super::violation::Violation;

/// Bytes in front of every payload.
pub const HEADER_BYTES: usize = 8;
/// The longest payload of a frame other than DATA.
pub(super) const SMALL_BYTES: usize = 8;

/// The sender opens the stream with this frame.
pub(super) const OPEN: u8 = 0x01;
/// The sender's direction ends after this payload.
pub(super) const FIN: u8 = 0x02;

/// Frame types from here on may be skipped by whoever does not know them.
const SKIPPABLE: u8 = 0x80;

/// What a frame is, checked against its flags, length and stream number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Data,
    Window,
    Reset,
    Stop,
    Limits,
    Close,
    /// An extension that this build does not know: its payload is skipped.
    Skipped,
}

impl Kind {
    const fn code(self) -> u8 {
        match self {
            Kind::Data => 0,
            Kind::Window => 1,
            Kind::Reset => 2,
            Kind::Stop => 3,
            Kind::Limits => 4,
            Kind::Close => 5,
            Kind::Skipped => SKIPPABLE,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Kind::Data,
            1 => Kind::Window,
            2 => Kind::Reset,
            3 => Kind::Stop,
            4 => Kind::Limits,
            5 => Kind::Close,
            SKIPPABLE.. => Kind::Skipped,
            _ => return None,
        })
    }

    /// The flags that may be set.
    const fn flags(self) -> u8 {
        match self {
            Kind::Data => OPEN | FIN,
            Kind::Reset | Kind::Stop => OPEN,
            Kind::Window | Kind::Limits | Kind::Close => 0,
            Kind::Skipped => u8::MAX,
        }
    }

    /// Whether the frame speaks about one stream (and not about the connection).
    const fn of_a_stream(self) -> bool {
        matches!(self, Kind::Data | Kind::Window | Kind::Reset | Kind::Stop)
    }

    const fn length_fits(self, length: usize) -> bool {
        match self {
            Kind::Data | Kind::Skipped => length <= MUX_FRAME_BYTES,
            Kind::Window => length == 4,
            Kind::Reset | Kind::Stop | Kind::Close => length == 2,
            Kind::Limits => length == 8,
        }
    }
}

/// A header whose parts fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) flags: u8,
    pub(super) length: usize,
    pub(super) stream: u32,
}

impl Header {
    pub(super) fn parse(bytes: [u8; HEADER_BYTES]) -> Result<Self, Violation> {
        let [code, flags, l1, l0, s3, s2, s1, s0] = bytes;
        let kind = Kind::from_code(code).ok_or(Violation::UnknownFrame { code })?;
        let length = usize::from(u16::from_be_bytes([l1, l0]));
        let stream = u32::from_be_bytes([s3, s2, s1, s0]);
        if flags & !kind.flags() != 0 {
            return Err(Violation::Flags { code, flags });
        }
        if !kind.length_fits(length) {
            return Err(Violation::Length { code, length });
        }
        if kind != Kind::Skipped && kind.of_a_stream() != (stream != 0) {
            return Err(Violation::StreamNumber { code, stream });
        }
        if kind == Kind::Data && length == 0 && flags == 0 {
            return Err(Violation::Length { code, length });
        }
        Ok(Self {
            kind,
            flags,
            length,
            stream,
        })
    }

    pub(super) fn bytes(self) -> [u8; HEADER_BYTES] {
        // Every caller keeps `length` within MUX_FRAME_BYTES, which fits (asserted in limits).
        let length = u16::try_from(self.length).unwrap_or(u16::MAX).to_be_bytes();
        let stream = self.stream.to_be_bytes();
        [
            self.kind.code(),
            self.flags,
            length[0],
            length[1],
            stream[0],
            stream[1],
            stream[2],
            stream[3],
        ]
    }
}

/// A whole frame other than DATA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Small {
    Window {
        stream: u32,
        credit: u32,
    },
    Reset {
        stream: u32,
        open: bool,
        reason: Reason,
    },
    Stop {
        stream: u32,
        open: bool,
        reason: Reason,
    },
    Limits {
        streams: u32,
        window: u32,
    },
    Close {
        reason: Reason,
    },
}

impl Small {
    /// Takes a payload apart. `payload` has the length that [`Header::parse`] checked.
    pub(super) fn parse(header: Header, payload: &[u8]) -> Option<Self> {
        let open = header.flags & OPEN != 0;
        let stream = header.stream;
        Some(match header.kind {
            Kind::Window => Small::Window {
                stream,
                credit: u32_at(payload, 0)?,
            },
            Kind::Reset => Small::Reset {
                stream,
                open,
                reason: reason_at(payload)?,
            },
            Kind::Stop => Small::Stop {
                stream,
                open,
                reason: reason_at(payload)?,
            },
            Kind::Limits => Small::Limits {
                streams: u32_at(payload, 0)?,
                window: u32_at(payload, 4)?,
            },
            Kind::Close => Small::Close {
                reason: reason_at(payload)?,
            },
            Kind::Data | Kind::Skipped => return None,
        })
    }

    /// Appends header and payload.
    pub(super) fn write(self, out: &mut Vec<u8>) {
        let header = |kind, flags, length, stream| {
            Header {
                kind,
                flags,
                length,
                stream,
            }
            .bytes()
        };
        let open = |open| if open { OPEN } else { 0 };
        match self {
            Small::Window { stream, credit } => {
                out.extend_from_slice(&header(Kind::Window, 0, 4, stream));
                out.extend_from_slice(&credit.to_be_bytes());
            }
            Small::Reset {
                stream,
                open: opens,
                reason,
            } => {
                out.extend_from_slice(&header(Kind::Reset, open(opens), 2, stream));
                out.extend_from_slice(&reason.code().to_be_bytes());
            }
            Small::Stop {
                stream,
                open: opens,
                reason,
            } => {
                out.extend_from_slice(&header(Kind::Stop, open(opens), 2, stream));
                out.extend_from_slice(&reason.code().to_be_bytes());
            }
            Small::Limits { streams, window } => {
                out.extend_from_slice(&header(Kind::Limits, 0, 8, 0));
                out.extend_from_slice(&streams.to_be_bytes());
                out.extend_from_slice(&window.to_be_bytes());
            }
            Small::Close { reason } => {
                out.extend_from_slice(&header(Kind::Close, 0, 2, 0));
                out.extend_from_slice(&reason.code().to_be_bytes());
            }
        }
    }
}

fn u32_at(payload: &[u8], at: usize) -> Option<u32> {
    let bytes = payload.get(at..at + 4)?;
    bytes.try_into().ok().map(u32::from_be_bytes)
}

fn reason_at(payload: &[u8]) -> Option<Reason> {
    let bytes = payload.get(..2)?;
    bytes
        .try_into()
        .ok()
        .map(u16::from_be_bytes)
        .map(Reason::from_code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(frame: Small) -> Vec<u8> {
        let mut out = Vec::new();
        frame.write(&mut out);
        out
    }

    /// The drawings of the front page, byte for byte. A change here is a change of the protocol.
    #[test]
    fn golden_bytes_of_every_frame() {
        let data = Header {
            kind: Kind::Data,
            flags: OPEN | FIN,
            length: 0x1234,
            stream: 0x0102_0304,
        };
        assert_eq!(data.bytes(), [0, 3, 0x12, 0x34, 1, 2, 3, 4]);
        assert_eq!(
            written(Small::Window {
                stream: 7,
                credit: 0x0020_0000
            }),
            [1, 0, 0, 4, 0, 0, 0, 7, 0, 0x20, 0, 0]
        );
        assert_eq!(
            written(Small::Reset {
                stream: 2,
                open: true,
                reason: Reason::Aborted
            }),
            [2, 1, 0, 2, 0, 0, 0, 2, 0, 18]
        );
        assert_eq!(
            written(Small::Stop {
                stream: 2,
                open: false,
                reason: Reason::ReaderGone
            }),
            [3, 0, 0, 2, 0, 0, 0, 2, 0, 20]
        );
        assert_eq!(
            written(Small::Limits {
                streams: 128,
                window: 0x0040_0000
            }),
            [4, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 128, 0, 0x40, 0, 0]
        );
        assert_eq!(
            written(Small::Close {
                reason: Reason::Shutdown
            }),
            [5, 0, 0, 2, 0, 0, 0, 0, 0, 28]
        );
    }

    #[test]
    fn a_small_frame_survives_the_wire() {
        let frames = [
            Small::Window {
                stream: 9,
                credit: u32::MAX,
            },
            Small::Reset {
                stream: 3,
                open: false,
                reason: Reason::Unknown(60_000),
            },
            Small::Stop {
                stream: u32::MAX,
                open: true,
                reason: Reason::Done,
            },
            Small::Limits {
                streams: 0,
                window: 1,
            },
            Small::Close {
                reason: Reason::Protocol,
            },
        ];
        for frame in frames {
            let bytes = written(frame);
            let mut head = [0; HEADER_BYTES];
            head.copy_from_slice(&bytes[..HEADER_BYTES]);
            let header = Header::parse(head).expect("own header");
            assert_eq!(header.length, bytes.len() - HEADER_BYTES);
            assert_eq!(Small::parse(header, &bytes[HEADER_BYTES..]), Some(frame));
        }
    }

    #[test]
    fn a_header_whose_parts_do_not_fit_is_refused() {
        let refused: [[u8; 8]; 10] = [
            [6, 0, 0, 0, 0, 0, 0, 1],       // no such type
            [0, 4, 0, 1, 0, 0, 0, 1],       // no such flag
            [0, 0, 0, 1, 0, 0, 0, 0],       // DATA without a stream
            [0, 0, 0, 0, 0, 0, 0, 1],       // DATA that says nothing
            [0, 0, 0xff, 0xff, 0, 0, 0, 1], // DATA beyond the frame limit
            [1, 0, 0, 3, 0, 0, 0, 1],       // WINDOW of three bytes
            [1, 1, 0, 4, 0, 0, 0, 1],       // WINDOW that opens
            [2, 2, 0, 2, 0, 0, 0, 1],       // RESET that ends
            [4, 0, 0, 8, 0, 0, 0, 1],       // LIMITS of a stream
            [5, 0, 0, 2, 0, 0, 0, 1],       // CLOSE of a stream
        ];
        for bytes in refused {
            assert!(Header::parse(bytes).is_err(), "{bytes:?} was taken");
        }
        assert_eq!(
            Header::parse([0x80, 0xff, 0, 9, 1, 2, 3, 4])
                .expect("extension")
                .kind,
            Kind::Skipped
        );
    }
}
