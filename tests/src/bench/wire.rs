//! What the load generator and the target say to each other: requests and replies of 200 bytes.
//!
//! A connection carries any number of [`Request::Ask`]s; every other request is its last. An upload comes in
//! chunks of [`CHUNK_BYTES`], the last of which begins with [`LAST`]: not every peer can half-close.

/// Size of a request and of a reply: about what a small API call carries.
pub const MESSAGE_BYTES: usize = 200;
/// One write or read of bulk data.
pub const CHUNK_BYTES: usize = 256 * 1024;
/// First byte of the last chunk of an upload.
pub const LAST: u8 = 0xff;

const MAGIC: [u8; 4] = *b"twlb";

/// What a client wants of the target.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Request {
    /// One reply of 200 bytes.
    Ask,
    /// Bytes for this many milliseconds, then the end of the stream.
    Down { millis: u64 },
    /// The client sends chunks; the reply to the last one counts the bytes.
    Up,
    /// The client sends bytes to the end of its stream; the reply, after that, counts them.
    Half,
    /// The client sends bytes and closes; nobody replies, the target remembers how many came.
    Leave,
    /// How many came after the last [`Request::Leave`]; waits for its end.
    Left,
    /// On the next so many connections the target speaks first.
    SpeakFirst { count: u64 },
}

/// One message on the wire.
pub type Message = [u8; MESSAGE_BYTES];

fn message(kind: u8, number: u64) -> Message {
    let mut bytes = [b'.'; MESSAGE_BYTES];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4] = kind;
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn number(bytes: &Message) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[8..16]);
    u64::from_le_bytes(number)
}

impl Request {
    /// The request as bytes.
    #[must_use]
    pub fn encode(self) -> Message {
        match self {
            Self::Ask => message(b'a', 0),
            Self::Down { millis } => message(b'd', millis),
            Self::Up => message(b'u', 0),
            Self::Half => message(b'h', 0),
            Self::Leave => message(b'l', 0),
            Self::Left => message(b't', 0),
            Self::SpeakFirst { count } => message(b's', count),
        }
    }

    /// The request in these bytes, if it is one.
    #[must_use]
    pub fn decode(bytes: &Message) -> Option<Self> {
        if bytes[..4] != MAGIC {
            return None;
        }
        match bytes[4] {
            b'a' => Some(Self::Ask),
            b'd' => Some(Self::Down {
                millis: number(bytes),
            }),
            b'u' => Some(Self::Up),
            b'h' => Some(Self::Half),
            b'l' => Some(Self::Leave),
            b't' => Some(Self::Left),
            b's' => Some(Self::SpeakFirst {
                count: number(bytes),
            }),
            _ => None,
        }
    }
}

/// A reply that carries a count.
#[must_use]
pub fn reply(count: u64) -> Message {
    message(b'r', count)
}

/// The count in a reply, if it is one.
#[must_use]
pub fn count(bytes: &Message) -> Option<u64> {
    (bytes[..4] == MAGIC && bytes[4] == b'r').then(|| number(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_wire() {
        for request in [
            Request::Ask,
            Request::Down { millis: u64::MAX },
            Request::Up,
            Request::Half,
            Request::Leave,
            Request::Left,
            Request::SpeakFirst { count: 7 },
        ] {
            assert_eq!(Request::decode(&request.encode()), Some(request));
        }
        assert_eq!(Request::decode(&reply(7)), None);
        assert_eq!(count(&reply(7)), Some(7));
    }
}
