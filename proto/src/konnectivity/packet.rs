//! The packets: [`Packet`] is the wire, [`Message`] is what a well-formed packet means.
//!
//! Wire facts: no proto package; `DIAL_REQ` is 0, so that a dial request carries no type field
//! and an empty packet is one without a body; ids are plain varints and never negative. A packet
//! whose type we do not know is skipped by every party, which is the protocol's only way to grow.

use bytes::{BufMut, Bytes};
use prost::Message as _;

/// What a packet says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PacketType {
    /// Front end to agent: connect.
    DialRequest = 0,
    /// Agent to front end: connected, or why not.
    DialResponse = 1,
    /// End this connection.
    CloseRequest = 2,
    /// This connection has ended.
    CloseResponse = 3,
    /// Bytes of a connection.
    Data = 4,
    /// The dial was given up.
    DialClose = 5,
    /// Agent to server: no new dials, please.
    Drain = 6,
}

impl PacketType {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::DialRequest,
        Self::DialResponse,
        Self::CloseRequest,
        Self::CloseResponse,
        Self::Data,
        Self::DialClose,
        Self::Drain,
    ];

    /// The type of a number, if it is a known one.
    pub fn from_number(number: i32) -> Option<Self> {
        let index = usize::try_from(number).ok()?;
        Self::ALL.get(index).copied()
    }

    /// The name used by the protocol and by metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DialRequest => "DIAL_REQ",
            Self::DialResponse => "DIAL_RSP",
            Self::CloseRequest => "CLOSE_REQ",
            Self::CloseResponse => "CLOSE_RSP",
            Self::Data => "DATA",
            Self::DialClose => "DIAL_CLS",
            Self::Drain => "DRAIN",
        }
    }
}

/// One message of a stream, as it is on the wire. Read it with [`Packet::read`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Packet {
    /// A [`PacketType`]. Plain, so that an unknown number cannot turn into a known type.
    #[prost(int32, tag = "1")]
    pub kind: i32,
    /// The body.
    #[prost(oneof = "Payload", tags = "2, 3, 4, 5, 6, 7, 8")]
    pub payload: Option<Payload>,
}

/// The body of a packet.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Payload {
    /// Goes with `DIAL_REQ`.
    #[prost(message, tag = "2")]
    DialRequest(DialRequest),
    /// Goes with `DIAL_RSP`.
    #[prost(message, tag = "3")]
    DialResponse(DialResponse),
    /// Goes with `DATA`.
    #[prost(message, tag = "4")]
    Data(Data),
    /// Goes with `CLOSE_REQ`.
    #[prost(message, tag = "5")]
    CloseRequest(CloseRequest),
    /// Goes with `CLOSE_RSP`.
    #[prost(message, tag = "6")]
    CloseResponse(CloseResponse),
    /// Goes with `DIAL_CLS`.
    #[prost(message, tag = "7")]
    DialClose(DialClose),
    /// Goes with `DRAIN`.
    #[prost(message, tag = "8")]
    Drain(Drain),
}

/// Connect to an address.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DialRequest {
    /// `tcp`.
    #[prost(string, tag = "1")]
    pub protocol: String,
    /// `host:port`.
    #[prost(string, tag = "2")]
    pub address: String,
    /// The id of the dial, chosen by who dials.
    #[prost(int64, tag = "3")]
    pub random: i64,
}

/// The answer to a dial.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DialResponse {
    /// Empty, or why there is no connection.
    #[prost(string, tag = "1")]
    pub error: String,
    /// The id of the connection, chosen by who connected; 0 with an error.
    #[prost(int64, tag = "2")]
    pub connect_id: i64,
    /// The id of the dial.
    #[prost(int64, tag = "3")]
    pub random: i64,
}

/// End a connection.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct CloseRequest {
    /// Which.
    #[prost(int64, tag = "1")]
    pub connect_id: i64,
}

/// A connection has ended.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CloseResponse {
    /// Empty, or what went wrong.
    #[prost(string, tag = "1")]
    pub error: String,
    /// Which.
    #[prost(int64, tag = "2")]
    pub connect_id: i64,
}

/// A dial was given up.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct DialClose {
    /// Which.
    #[prost(int64, tag = "1")]
    pub random: i64,
}

/// The agent takes no new dials.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Drain {}

/// Bytes of a connection.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Data {
    /// Which.
    #[prost(int64, tag = "1")]
    pub connect_id: i64,
    /// Nobody sets or reads it.
    #[prost(string, tag = "2")]
    pub error: String,
    /// The bytes; a slice of what was received.
    #[prost(bytes = "bytes", tag = "3")]
    pub data: Bytes,
}

/// What a well-formed packet means.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// See [`DialRequest`].
    DialRequest(DialRequest),
    /// See [`DialResponse`].
    DialResponse(DialResponse),
    /// The id of the connection that shall end.
    CloseRequest(i64),
    /// See [`CloseResponse`].
    CloseResponse(CloseResponse),
    /// The id of a connection and bytes of it.
    Data(i64, Bytes),
    /// The id of the dial that was given up.
    DialClose(i64),
    /// No new dials.
    Drain,
    /// A type of a newer protocol: to be skipped.
    Unknown(i32),
}

/// Why bytes are no packet. Always the sender's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not protobuf, or not these messages.
    #[error("a packet does not decode: {0}")]
    Wire(#[from] prost::DecodeError),
    /// The body is not there, or belongs to another type.
    #[error("a {} packet without its body", .0.as_str())]
    Body(PacketType),
    /// An id below zero.
    #[error("a {} packet with a negative id", .0.as_str())]
    Negative(PacketType),
}

impl Packet {
    /// Reads one message's bytes. Data are slices of `bytes`.
    pub fn read(bytes: Bytes) -> Result<Message, Malformed> {
        Packet::decode(bytes)?.open()
    }

    /// What it means.
    pub fn open(self) -> Result<Message, Malformed> {
        let Some(kind) = PacketType::from_number(self.kind) else {
            return Ok(Message::Unknown(self.kind));
        };
        let message = match (kind, self.payload) {
            (PacketType::DialRequest, Some(Payload::DialRequest(body))) => {
                Message::DialRequest(body)
            }
            (PacketType::DialResponse, Some(Payload::DialResponse(body))) => {
                Message::DialResponse(body)
            }
            (PacketType::CloseRequest, Some(Payload::CloseRequest(body))) => {
                Message::CloseRequest(body.connect_id)
            }
            (PacketType::CloseResponse, Some(Payload::CloseResponse(body))) => {
                Message::CloseResponse(body)
            }
            (PacketType::Data, Some(Payload::Data(body))) => {
                Message::Data(body.connect_id, body.data)
            }
            (PacketType::DialClose, Some(Payload::DialClose(body))) => {
                Message::DialClose(body.random)
            }
            (PacketType::Drain, None | Some(Payload::Drain(_))) => Message::Drain,
            (kind, _) => return Err(Malformed::Body(kind)),
        };
        match message.ids().into_iter().all(|id| id >= 0) {
            true => Ok(message),
            false => Err(Malformed::Negative(kind)),
        }
    }
}

impl Message {
    /// `None` for a type that we do not know.
    pub fn kind(&self) -> Option<PacketType> {
        Some(match self {
            Message::DialRequest(_) => PacketType::DialRequest,
            Message::DialResponse(_) => PacketType::DialResponse,
            Message::CloseRequest(_) => PacketType::CloseRequest,
            Message::CloseResponse(_) => PacketType::CloseResponse,
            Message::Data(..) => PacketType::Data,
            Message::DialClose(_) => PacketType::DialClose,
            Message::Drain => PacketType::Drain,
            Message::Unknown(_) => return None,
        })
    }

    fn ids(&self) -> [i64; 2] {
        match self {
            Message::DialRequest(body) => [body.random, 0],
            Message::DialResponse(body) => [body.random, body.connect_id],
            Message::CloseRequest(id) | Message::DialClose(id) | Message::Data(id, _) => [*id, 0],
            Message::CloseResponse(body) => [body.connect_id, 0],
            Message::Drain | Message::Unknown(_) => [0, 0],
        }
    }

    /// A dial over TCP.
    pub fn dial(address: impl Into<String>, random: i64) -> Self {
        Message::DialRequest(DialRequest {
            protocol: super::names::TCP.to_owned(),
            address: address.into(),
            random,
        })
    }

    /// The answer to a dial that worked.
    pub fn dialled(random: i64, connect_id: i64) -> Self {
        Message::DialResponse(DialResponse {
            error: String::new(),
            connect_id,
            random,
        })
    }

    /// The answer to a dial that did not.
    pub fn dial_failed(random: i64, error: impl Into<String>) -> Self {
        Message::DialResponse(DialResponse {
            error: error.into(),
            connect_id: 0,
            random,
        })
    }

    /// The end of a connection; `error` is empty after an end in order.
    pub fn closed(connect_id: i64, error: impl Into<String>) -> Self {
        Message::CloseResponse(CloseResponse {
            error: error.into(),
            connect_id,
        })
    }

    /// The packet that says it.
    pub fn packet(self) -> Packet {
        let kind = match &self {
            Message::Unknown(number) => *number,
            known => known.kind().map_or(0, |kind| kind as i32),
        };
        let payload = match self {
            Message::DialRequest(body) => Some(Payload::DialRequest(body)),
            Message::DialResponse(body) => Some(Payload::DialResponse(body)),
            Message::CloseRequest(connect_id) => {
                Some(Payload::CloseRequest(CloseRequest { connect_id }))
            }
            Message::CloseResponse(body) => Some(Payload::CloseResponse(body)),
            Message::Data(connect_id, data) => Some(Payload::Data(Data {
                connect_id,
                error: String::new(),
                data,
            })),
            Message::DialClose(random) => Some(Payload::DialClose(DialClose { random })),
            Message::Drain => Some(Payload::Drain(Drain {})),
            Message::Unknown(_) => None,
        };
        Packet { kind, payload }
    }
}

/// The bytes that stand before the data of a DATA packet on a gRPC stream: gRPC's prefix, the
/// packet's and the body's headers; at most [`DATA_HEAD`] of them. So data travel uncopied.
pub fn data_head(connect_id: i64, len: usize) -> DataHead {
    let number = |value: u64| prost::encoding::encoded_len_varint(value);
    let (id, size) = (connect_id.cast_unsigned(), len as u64);
    let id_bytes = if id == 0 { 0 } else { 1 + number(id) };
    let data_bytes = if len == 0 { 0 } else { 1 + number(size) + len };
    let body = id_bytes + data_bytes;
    let packet = 3 + number(body as u64) + body;
    let mut bytes = [0; DATA_HEAD];
    let mut out = &mut bytes[..];
    out.put_u8(0);
    out.put_u32(packet as u32);
    out.put_slice(&[0x08, PacketType::Data as u8, 0x22]);
    prost::encoding::encode_varint(body as u64, &mut out);
    if id != 0 {
        out.put_u8(0x08);
        prost::encoding::encode_varint(id, &mut out);
    }
    if len != 0 {
        out.put_u8(0x1a);
        prost::encoding::encode_varint(size, &mut out);
    }
    let len = DATA_HEAD - out.len();
    DataHead { bytes, len }
}

/// Most bytes of a [`DataHead`].
pub const DATA_HEAD: usize = super::frame::PREFIX + 2 + 1 + 5 + 1 + 10 + 1 + 5;

/// See [`data_head`].
#[derive(Clone, Copy, Debug)]
pub struct DataHead {
    bytes: [u8; DATA_HEAD],
    len: usize,
}

impl AsRef<[u8]> for DataHead {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wire(message: Message) -> Vec<u8> {
        message.packet().encode_to_vec()
    }

    fn read(bytes: &[u8]) -> Result<Message, Malformed> {
        Packet::read(Bytes::copy_from_slice(bytes))
    }

    #[test]
    fn bytes_are_those_of_the_reference() {
        // Written out by hand from field numbers.
        for (message, bytes) in [
            (
                Message::dial("a:1", 300),
                &b"\x12\x0d\x0a\x03tcp\x12\x03a:1\x18\xac\x02"[..],
            ),
            (Message::dialled(5, 7), b"\x08\x01\x1a\x04\x10\x07\x18\x05"),
            (
                Message::dial_failed(5, "x"),
                b"\x08\x01\x1a\x05\x0a\x01x\x18\x05",
            ),
            (Message::CloseRequest(7), b"\x08\x02\x2a\x02\x08\x07"),
            (
                Message::closed(7, "x"),
                b"\x08\x03\x32\x05\x0a\x01x\x10\x07",
            ),
            (
                Message::Data(7, Bytes::from_static(b"hi")),
                b"\x08\x04\x22\x06\x08\x07\x1a\x02hi",
            ),
            (Message::DialClose(5), b"\x08\x05\x3a\x02\x08\x05"),
            (Message::Drain, b"\x08\x06\x42\x00"),
        ] {
            assert_eq!(wire(message.clone()), bytes, "{message:?}");
        }
    }

    #[test]
    fn every_message_survives_the_wire() {
        for message in [
            Message::dial("10.0.0.7:10250", i64::MAX),
            Message::dialled(1, 2),
            Message::dial_failed(1, "refused"),
            Message::CloseRequest(3),
            Message::closed(3, ""),
            Message::Data(3, Bytes::from_static(b"bytes")),
            Message::DialClose(1),
            Message::Drain,
            Message::Unknown(99),
        ] {
            assert_eq!(read(&wire(message.clone())), Ok(message));
        }
    }

    #[test]
    fn a_packet_without_its_body_is_malformed() {
        assert_eq!(read(b""), Err(Malformed::Body(PacketType::DialRequest)));
        // The body of a CLOSE_REQ under the type of DATA.
        assert_eq!(
            read(b"\x08\x04\x2a\x02\x08\x07"),
            Err(Malformed::Body(PacketType::Data))
        );
        assert_eq!(
            read(&wire(Message::CloseRequest(-1))),
            Err(Malformed::Negative(PacketType::CloseRequest))
        );
        assert!(matches!(read(b"\xff"), Err(Malformed::Wire(_))));
        // Unknown fields are skipped.
        assert_eq!(read(b"\x08\x06\x7a\x01\x00"), Ok(Message::Drain));
    }

    #[test]
    fn data_are_slices_of_what_was_received() {
        let bytes = Bytes::from(wire(Message::Data(7, Bytes::from(vec![1; 4096]))));
        let range = bytes.as_ptr_range();
        let Ok(Message::Data(7, data)) = Packet::read(bytes.clone()) else {
            panic!("not DATA");
        };
        assert!(range.contains(&data.as_ptr()));
    }

    #[test]
    fn a_head_written_by_hand_is_what_prost_writes() {
        for id in [0, 1, 127, 128, 1 << 40, i64::MAX, -1] {
            for len in [0, 1, 127, 128, 16 * 1024, 4 << 20] {
                let data = Bytes::from(vec![9; len]);
                let packet = wire(Message::Data(id, data.clone()));
                let mut by_hand = data_head(id, len).as_ref().to_vec();
                by_hand.extend_from_slice(&data);
                assert_eq!(by_hand[0], 0);
                assert_eq!(by_hand[1..5], (packet.len() as u32).to_be_bytes());
                assert!(by_hand[5..] == packet, "{id} {len}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(message) = read(&body)
                && message.kind().is_some()
            {
                // What we understood means the same when we say it.
                prop_assert_eq!(read(&wire(message.clone())), Ok(message));
            }
        }
    }
}
