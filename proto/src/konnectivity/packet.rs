//! The one message of both services.
//!
//! `DIAL_REQ` is type 0, which proto3 does not write: an empty message is a `DIAL_REQ` without
//! address. The type decides; a payload of another type counts as absent. Unknown types are kept
//! as such, because ignoring them is the protocol's only version negotiation.

use bytes::{Bytes, BytesMut};

use super::fields::{self, put_length, put_number, put_text, varint_bytes};
use crate::limits;

/// Why bytes are not a packet. Always the peer's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    #[error("packet ends in the middle of a field")]
    Short,
    #[error("packet has a field of a form that is not allowed")]
    Form,
    #[error("packet has a text that is not UTF-8")]
    Text,
}

/// What a packet is, for metrics and rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PacketKind {
    DialRequest,
    DialResponse,
    CloseRequest,
    CloseResponse,
    Data,
    CloseDial,
    Drain,
    Unknown,
}

impl PacketKind {
    /// The name of the type as Konnectivity's metrics write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            PacketKind::DialRequest => "DIAL_REQ",
            PacketKind::DialResponse => "DIAL_RSP",
            PacketKind::CloseRequest => "CLOSE_REQ",
            PacketKind::CloseResponse => "CLOSE_RSP",
            PacketKind::Data => "DATA",
            PacketKind::CloseDial => "DIAL_CLS",
            PacketKind::Drain => "DRAIN",
            PacketKind::Unknown => "Unknown",
        }
    }
}

/// A packet. `random` is a dial's id, chosen by who asks; `connect_id` a connection's, chosen by
/// the agent and unique on one agent stream only; 0 is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// Somebody asks for a connection.
    DialRequest {
        /// `tcp`.
        protocol: String,
        /// `host:port`.
        address: String,
        random: i64,
    },
    /// The agent's answer: a connection, or the text of an error.
    DialResponse {
        error: String,
        connect_id: i64,
        random: i64,
    },
    /// End this connection, please.
    CloseRequest { connect_id: i64 },
    /// This connection has ended.
    CloseResponse { error: String, connect_id: i64 },
    /// Bytes of a connection.
    Data { connect_id: i64, data: Bytes },
    /// Forget this dial.
    CloseDial { random: i64 },
    /// This agent wants no new dials.
    Drain,
    /// A type of a later version.
    Unknown(i64),
}

impl Packet {
    /// What it is.
    pub const fn kind(&self) -> PacketKind {
        match self {
            Packet::DialRequest { .. } => PacketKind::DialRequest,
            Packet::DialResponse { .. } => PacketKind::DialResponse,
            Packet::CloseRequest { .. } => PacketKind::CloseRequest,
            Packet::CloseResponse { .. } => PacketKind::CloseResponse,
            Packet::Data { .. } => PacketKind::Data,
            Packet::CloseDial { .. } => PacketKind::CloseDial,
            Packet::Drain => PacketKind::Drain,
            Packet::Unknown(_) => PacketKind::Unknown,
        }
    }

    /// Reads a whole message. Bytes of DATA are shared with it, not copied.
    pub fn decode(mut message: Bytes) -> Result<Self, PacketError> {
        let (mut kind, mut payload) = (0, (0, Bytes::new()));
        while let Some((field, value)) = fields::next(&mut message)? {
            match field {
                // An enum is an int32: what does not fit is cut, as protobuf does.
                1 => kind = i64::from(value.number()? as i32),
                2..=8 => payload = (field, value.bytes()?),
                _ => {}
            }
        }
        let body = |field| match payload {
            (of, body) if of == field => body,
            _ => Bytes::new(),
        };
        Ok(match kind {
            0 => {
                let (protocol, address, random) = decode_request(body(2))?;
                Packet::DialRequest {
                    protocol,
                    address,
                    random,
                }
            }
            1 => {
                let (error, connect_id, random) = decode_response(body(3))?;
                Packet::DialResponse {
                    error,
                    connect_id,
                    random,
                }
            }
            2 => Packet::CloseRequest {
                connect_id: decode_number(body(5))?,
            },
            3 => {
                let (error, connect_id, _) = decode_response(body(6))?;
                Packet::CloseResponse { error, connect_id }
            }
            4 => decode_data(body(4))?,
            5 => Packet::CloseDial {
                random: decode_number(body(7))?,
            },
            6 => Packet::Drain,
            other => Packet::Unknown(other),
        })
    }

    /// The whole message.
    pub fn encode(&self) -> Bytes {
        let (head, data) = self.encode_parts();
        if data.is_empty() {
            return head;
        }
        let mut out = BytesMut::with_capacity(head.len() + data.len());
        out.extend_from_slice(&head);
        out.extend_from_slice(&data);
        out.freeze()
    }

    /// The message in two parts, the second of which are the bytes of DATA, shared.
    pub fn encode_parts(&self) -> (Bytes, Bytes) {
        let mut body = BytesMut::new();
        let mut data = Bytes::new();
        let (kind, field) = match self {
            Packet::DialRequest {
                protocol,
                address,
                random,
            } => {
                put_text(&mut body, 1, protocol);
                put_text(&mut body, 2, address);
                put_number(&mut body, 3, *random);
                (0, 2)
            }
            Packet::DialResponse {
                error,
                connect_id,
                random,
            } => {
                put_text(&mut body, 1, error);
                put_number(&mut body, 2, *connect_id);
                put_number(&mut body, 3, *random);
                (1, 3)
            }
            Packet::CloseRequest { connect_id } => {
                put_number(&mut body, 1, *connect_id);
                (2, 5)
            }
            Packet::CloseResponse { error, connect_id } => {
                put_text(&mut body, 1, error);
                put_number(&mut body, 2, *connect_id);
                (3, 6)
            }
            Packet::Data {
                connect_id,
                data: bytes,
            } => {
                put_number(&mut body, 1, *connect_id);
                if !bytes.is_empty() {
                    put_length(&mut body, 3, bytes.len());
                    data = bytes.clone();
                }
                (4, 4)
            }
            Packet::CloseDial { random } => {
                put_number(&mut body, 1, *random);
                (5, 7)
            }
            Packet::Drain => (6, 8),
            Packet::Unknown(kind) => {
                let mut out = BytesMut::new();
                put_number(&mut out, 1, *kind);
                return (out.freeze(), Bytes::new());
            }
        };
        let length = body.len() + data.len();
        let mut out = BytesMut::with_capacity(4 + varint_bytes(length as u64) + body.len());
        put_number(&mut out, 1, kind);
        put_length(&mut out, field, length);
        out.extend_from_slice(&body);
        (out.freeze(), data)
    }
}

fn decode_request(mut body: Bytes) -> Result<(String, String, i64), PacketError> {
    let (mut protocol, mut address, mut random) = (String::new(), String::new(), 0);
    while let Some((field, value)) = fields::next(&mut body)? {
        match field {
            1 => protocol = value.text(limits::KONNECTIVITY_TEXT_BYTES)?,
            2 => address = value.text(limits::KONNECTIVITY_TEXT_BYTES)?,
            3 => random = value.number()?,
            _ => {}
        }
    }
    Ok((protocol, address, random))
}

/// Of `DIAL_RSP` and `CLOSE_RSP`: error text, connection, dial.
fn decode_response(mut body: Bytes) -> Result<(String, i64, i64), PacketError> {
    let (mut error, mut connect_id, mut random) = (String::new(), 0, 0);
    while let Some((field, value)) = fields::next(&mut body)? {
        match field {
            1 => error = value.text(limits::KONNECTIVITY_TEXT_BYTES)?,
            2 => connect_id = value.number()?,
            3 => random = value.number()?,
            _ => {}
        }
    }
    Ok((error, connect_id, random))
}

fn decode_number(mut body: Bytes) -> Result<i64, PacketError> {
    let mut number = 0;
    while let Some((field, value)) = fields::next(&mut body)? {
        if field == 1 {
            number = value.number()?;
        }
    }
    Ok(number)
}

fn decode_data(mut body: Bytes) -> Result<Packet, PacketError> {
    let (mut connect_id, mut data) = (0, Bytes::new());
    while let Some((field, value)) = fields::next(&mut body)? {
        match field {
            1 => connect_id = value.number()?,
            3 => data = value.bytes()?,
            _ => {}
        }
    }
    Ok(Packet::Data { connect_id, data })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_packet() -> impl Strategy<Value = Packet> {
        let text = || "[a-z:0-9 é]{0,40}";
        let id = || prop_oneof![Just(0i64), any::<i64>(), 0i64..300];
        prop_oneof![
            (text(), text(), id()).prop_map(|(protocol, address, random)| Packet::DialRequest {
                protocol,
                address,
                random
            }),
            (text(), id(), id()).prop_map(|(error, connect_id, random)| Packet::DialResponse {
                error,
                connect_id,
                random
            }),
            id().prop_map(|connect_id| Packet::CloseRequest { connect_id }),
            (text(), id())
                .prop_map(|(error, connect_id)| Packet::CloseResponse { error, connect_id }),
            (id(), prop::collection::vec(any::<u8>(), 0..300)).prop_map(|(connect_id, data)| {
                Packet::Data {
                    connect_id,
                    data: data.into(),
                }
            }),
            id().prop_map(|random| Packet::CloseDial { random }),
            Just(Packet::Drain),
            (7i64..1000).prop_map(Packet::Unknown),
        ]
    }

    #[test]
    fn the_bytes_are_those_of_protobuf() {
        let request = Packet::DialRequest {
            protocol: "tcp".to_owned(),
            address: "a:1".to_owned(),
            random: 300,
        };
        assert_eq!(
            request.encode().as_ref(),
            b"\x12\x0d\x0a\x03tcp\x12\x03a:1\x18\xac\x02"
        );
        let response = Packet::DialResponse {
            error: String::new(),
            connect_id: 1,
            random: 2,
        };
        assert_eq!(
            response.encode().as_ref(),
            b"\x08\x01\x1a\x04\x10\x01\x18\x02"
        );
        let data = Packet::Data {
            connect_id: 1,
            data: Bytes::from_static(b"hi"),
        };
        assert_eq!(
            data.encode().as_ref(),
            b"\x08\x04\x22\x06\x08\x01\x1a\x02hi"
        );
        assert_eq!(Packet::Drain.encode().as_ref(), b"\x08\x06\x42\x00");
    }

    #[test]
    fn an_empty_message_is_a_dial_request() {
        let packet = Packet::decode(Bytes::new()).unwrap();
        assert_eq!(packet.kind(), PacketKind::DialRequest);
    }

    #[test]
    fn the_type_decides_and_unknown_fields_are_skipped() {
        // CLOSE_REQ with a payload of DATA, an unknown varint, a fixed64 and a fixed32.
        let bytes = b"\x08\x02\x22\x02\x08\x07\x78\x01\x81\x01\0\0\0\0\0\0\0\0\x8d\x01\0\0\0\0";
        let packet = Packet::decode(Bytes::from_static(bytes)).unwrap();
        assert_eq!(packet, Packet::CloseRequest { connect_id: 0 });
    }

    #[test]
    fn bytes_that_are_no_packet_are_refused() {
        for (bytes, error) in [
            (&b"\x12\x7f"[..], PacketError::Short),
            (b"\x08", PacketError::Short),
            (b"\x0b", PacketError::Form),
            (b"\x00\x00", PacketError::Form),
            (b"\x0a\x01a", PacketError::Form),
            (
                b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
                PacketError::Form,
            ),
            (b"\x12\x03\x0a\x01\xff", PacketError::Text),
            (
                b"\x22\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
                PacketError::Short,
            ),
        ] {
            assert_eq!(Packet::decode(Bytes::copy_from_slice(bytes)), Err(error));
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let packet = Packet::CloseResponse {
            error: format!("x{}", "é".repeat(2000)),
            connect_id: 1,
        };
        let Ok(Packet::CloseResponse { error, .. }) = Packet::decode(packet.encode()) else {
            panic!("a packet");
        };
        assert_eq!(error.len(), limits::KONNECTIVITY_TEXT_BYTES - 1);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(packet in any_packet()) {
            let (head, data) = packet.encode_parts();
            prop_assert_eq!([head, data].concat(), packet.encode());
            prop_assert_eq!(Packet::decode(packet.encode()), Ok(packet));
        }

        #[test]
        fn any_bytes_are_a_packet_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Packet::decode(bytes.into());
        }
    }
}
