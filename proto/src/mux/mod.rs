//! Many streams over one ordered, reliable, secret byte pipe (one TLS connection).
//!
//! A state machine without I/O and without a clock. It behaves like QUIC's streams: either end
//! opens, each direction ends on its own, a reset discards and carries a reason, every stream
//! has credit of its own and **nothing is shared between streams**, so a reader that stalls
//! stops nobody but itself. There is no ping: the session above has its heartbeat.
//!
//! # The bytes
//!
//! All numbers are big-endian. Every frame begins with eight bytes:
//!
//! ```text
//!  0        1        2                 4                                   8
//! +--------+--------+-----------------+-----------------------------------+----------
//! | type   | flags  | length          | stream                            | payload
//! | u8     | u8     | u16             | u32                               | length bytes
//! +--------+--------+-----------------+-----------------------------------+----------
//! ```
//!
//! | type | name | stream | flags | payload |
//! |---|---|---|---|---|
//! | 0 | DATA | yes | OPEN 0x01, FIN 0x02 | 0 to 16,376 bytes of the stream; empty only with a flag |
//! | 1 | WINDOW | yes | none | credit u32: so many more bytes may be sent on this stream |
//! | 2 | RESET | yes | OPEN | reason u16: the sender of this frame gives up sending; unread bytes are discarded |
//! | 3 | STOP | yes | OPEN | reason u16: the sender of this frame reads no more; the peer answers with RESET or its end |
//! | 4 | LIMITS | 0 | none | streams u32: how many the peer may have opened *since the connection began*; window u32: first credit of every stream towards the sender of this frame |
//! | 5 | CLOSE | 0 | none | reason u16: the connection is over, nothing follows |
//! | 6-127 | | | | unknown: protocol error |
//! | 128-255 | | any | any | unknown: the frame is skipped (extensions; at most 16,376 bytes) |
//!
//! A full DATA frame and its header are 16,384 bytes: one TLS record. Reasons are the numbers
//! of [`Reason`].
//!
//! # The rules
//!
//! 1. Each end's first frame is LIMITS. Later ones may raise `streams`, never lower it, and
//!    never change `window`.
//! 2. The end that made the connection numbers its streams 1, 3, 5, ...; the end that took it
//!    2, 4, 6, .... The first frame of a stream, sent by its opener, carries OPEN and the next
//!    number of that row. A number is never used twice; when a row is used up, `open` fails for
//!    ever and the link has to be replaced.
//! 3. A stream may be opened when fewer than `streams` were opened before. The limit rises as
//!    streams end *at the end that took them*, in steps of an eighth.
//! 4. Each direction ends once: by FIN (after the last byte) or by RESET. DATA or RESET after
//!    that is a protocol error. WINDOW and STOP may cross the end and are then ignored.
//! 5. DATA beyond the credit is a protocol error, also on a direction that was stopped.
//!    Credit goes back at the latest when 64 KiB were read, so an end may use less of it than it has.
//! 6. A STOP is answered by RESET with the same reason, unless the direction had ended.
//! 7. Any violation closes the connection with CLOSE(`protocol`).
//! 8. After CLOSE nothing is sent and everything received is ignored. Streams whose end had not
//!    been received end with an error: a lost connection never looks like an end.
//!
//! # Bounds
//!
//! There is no queue of frames. What has to be said stands in the stream it is about (a flag, a
//! number, queued bytes) and becomes a frame when the connection takes bytes; a peer that
//! provokes answers without reading them makes nothing grow. Memory is bounded by streams x
//! (window + [`MUX_SEND_QUEUE`]).
//!
//! # Order of calls
//!
//! The connection's driver feeds [`Mux::handle`] and drains [`Mux::transmit`]; stream owners use
//! the verbs. After **any** call the caller drains [`Mux::poll_event`] before it lets another
//! thread at the machine. An operation that answers `Blocked` registers its interest, and one
//! event follows. After [`Mux::handle`] fails the machine is closed, and stays usable to send
//! its CLOSE.

mod batch;
mod frame;
#[doc(hidden)]
pub mod fuzz;
mod receive;
mod schedule;
mod stream;
mod streams;
mod transmit;
mod violation;

use std::collections::{HashMap, VecDeque};

use crate::limits::{MUX_SEND_QUEUE, STREAM_WINDOW};
use crate::reason::Reason;

pub use batch::Batch;
pub use frame::HEADER_BYTES;
pub use stream::Interest;
pub use violation::Violation;

use receive::Decoder;
use schedule::Schedule;
use stream::Stream;

/// Streams that one end can open in the life of a connection: its row of numbers, less the last
/// one, so that the number after the last can still be counted.
const STREAMS_EVER: u32 = u32::MAX / 2 - 1;

/// Which row of stream numbers is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// We made the connection: odd numbers.
    Connector,
    /// We took the connection: even numbers.
    Acceptor,
}

impl Side {
    const fn number(self, nth: u32) -> u32 {
        match self {
            Side::Connector => nth * 2 + 1,
            Side::Acceptor => nth * 2 + 2,
        }
    }

    const fn other(self) -> Self {
        match self {
            Side::Connector => Side::Acceptor,
            Side::Acceptor => Side::Connector,
        }
    }
}

/// What one end gives to the other.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Which end we are.
    pub side: Side,
    /// Streams that the peer may have open at once, to begin with.
    pub streams: u32,
    /// Unread bytes that the peer may have sent on one stream.
    pub window: u32,
    /// Unsent bytes that one stream may have queued here.
    pub send_queue: usize,
}

impl Config {
    /// The limits of this version.
    pub const fn new(side: Side, streams: u32) -> Self {
        Self {
            side,
            streams,
            window: STREAM_WINDOW,
            send_queue: MUX_SEND_QUEUE,
        }
    }
}

/// A stream of this machine, valid until both its halves were released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamKey(u32);

impl StreamKey {
    /// A small number, used again after the stream was released; for parallel tables.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What the owner of the machine has to pass on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Something that was waited for on a stream may be possible now.
    Stream(StreamKey, Interest),
    /// The peer's first frame came: it has taken us for who we are.
    Greeted,
    /// The peer opened a stream: [`Mux::accept`] has one more.
    Accepted,
    /// So many more streams may be opened.
    MayOpen(u32),
    /// The connection is over; see [`Mux::closed`].
    Closed,
}

/// Why a stream could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The peer's limit is reached; [`Event::MayOpen`] follows.
    #[error("the peer's stream limit is reached")]
    Blocked,
    /// Every number was used; the link has to be replaced.
    #[error("all stream numbers of this connection are used up")]
    UsedUp,
    /// The connection is over.
    #[error("connection closed: {0}")]
    Closed(Reason),
}

/// Why bytes were not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// No credit or no room; [`Event::Stream`] with [`Interest::SEND`] follows.
    #[error("no credit")]
    Blocked,
    /// The peer reads no more.
    #[error("stopped by the peer: {0}")]
    Stopped(Reason),
    /// We had ended this direction ourselves.
    #[error("this direction was already ended here")]
    Ended,
    /// The connection is over.
    #[error("connection closed: {0}")]
    Closed(Reason),
}

/// Why there are no bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecvError {
    /// None yet; [`Event::Stream`] with [`Interest::RECV`] follows.
    #[error("no bytes yet")]
    Blocked,
    /// The peer gave up sending.
    #[error("reset by the peer: {0}")]
    Reset(Reason),
    /// We had stopped reading ourselves.
    #[error("this direction was already stopped here")]
    Stopped,
    /// The connection is over.
    #[error("connection closed: {0}")]
    Closed(Reason),
}

/// The multiplexer of one connection. See the module's front page.
#[derive(Debug)]
pub struct Mux {
    config: Config,
    /// Unreturned bytes of one stream beyond which we send no more, however much credit there is.
    in_flight: u32,
    /// By [`StreamKey`]; boxed, so that a past crowd of streams leaves little behind.
    streams: Vec<Option<Box<Stream>>>,
    free: Vec<u32>,
    numbers: HashMap<u32, StreamKey>,
    accepted: VecDeque<StreamKey>,
    events: VecDeque<Event>,
    decoder: Decoder,
    schedule: Schedule,
    /// Streams with RESET, STOP or WINDOW to send, each at most once.
    control: VecDeque<StreamKey>,
    /// What the peer's LIMITS gave: streams in total, credit of a new stream.
    peer_limits: Option<(u32, u32)>,
    /// Our streams that are on the wire, and those that are not yet.
    opened: u32,
    unseen: u32,
    /// The peer's streams: opened, over and released, and the limit that we announced.
    peer_opened: u32,
    peer_over: u32,
    announced: u32,
    /// LIMITS has to be sent.
    announce: bool,
    closed: Option<Reason>,
    /// CLOSE has to be sent.
    say_close: bool,
}
