//! How a peer can break the multiplexer's rules. Each one closes the connection with
//! [`Reason::Protocol`](crate::reason::Reason::Protocol); the text is for logs only.

/// What the peer did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A frame type below 0x80 that this version does not have.
    #[error("the peer sent a multiplexer frame of unknown type {code}")]
    UnknownFrame {
        /// The type.
        code: u8,
    },
    /// Flags that the frame type does not have.
    #[error("the peer sent flags {flags:#04x} on a multiplexer frame of type {code}")]
    Flags {
        /// The type.
        code: u8,
        /// The flags.
        flags: u8,
    },
    /// A length that the frame type cannot have.
    #[error("the peer sent a multiplexer frame of type {code} with {length} bytes")]
    Length {
        /// The type.
        code: u8,
        /// Payload bytes.
        length: usize,
    },
    /// A stream number on a frame of the connection, or none on a frame of a stream.
    #[error("the peer sent a multiplexer frame of type {code} for stream {stream}")]
    StreamNumber {
        /// The type.
        code: u8,
        /// The number.
        stream: u32,
    },
    /// The first frame was not LIMITS.
    #[error("the peer did not begin with its limits")]
    NoLimits,
    /// A later LIMITS took something back.
    #[error("the peer took back limits that it had given")]
    LimitsTakenBack,
    /// A frame for a stream that nobody opened.
    #[error("the peer sent a frame for stream {stream}, which was never opened")]
    NeverOpened {
        /// The number.
        stream: u32,
    },
    /// An opening frame whose number is not the next one of the peer's.
    #[error("the peer opened stream {stream} where {expected} was next")]
    OutOfTurn {
        /// The number.
        stream: u32,
        /// The number that was due.
        expected: u32,
    },
    /// More streams than were allowed.
    #[error("the peer opened stream {stream} beyond the limit of {limit} in total")]
    TooManyStreams {
        /// The number.
        stream: u32,
        /// Streams allowed since the connection began.
        limit: u32,
    },
    /// More bytes than there was credit for.
    #[error("the peer sent {excess} bytes beyond the credit of stream {stream}")]
    BeyondCredit {
        /// The number.
        stream: u32,
        /// Bytes too many.
        excess: u64,
    },
    /// Bytes or a reset after the direction had ended.
    #[error("the peer sent more on stream {stream} after its end")]
    AfterEnd {
        /// The number.
        stream: u32,
    },
    /// Credit that adds up to more than 2^32 - 1 bytes.
    #[error("the peer gave more credit than can be counted on stream {stream}")]
    CreditOverflow {
        /// The number.
        stream: u32,
    },
}
