//! Protocol buffers as far as packets need them: varints, lengths, skipping.

use bytes::{Buf, Bytes, BytesMut};

use super::packet::PacketError;

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH: u8 = 2;
const FIXED32: u8 = 5;

/// The value of one field.
pub(super) enum Value {
    Number(u64),
    Bytes(Bytes),
    /// A form that no field of ours has.
    Other,
}

impl Value {
    pub(super) fn number(self) -> Result<i64, PacketError> {
        match self {
            Value::Number(value) => Ok(value.cast_signed()),
            _ => Err(PacketError::Form),
        }
    }

    pub(super) fn bytes(self) -> Result<Bytes, PacketError> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(PacketError::Form),
        }
    }

    /// UTF-8, cut at `max` bytes: what is longer is of no use, and is peers' text.
    pub(super) fn text(self, max: usize) -> Result<String, PacketError> {
        let bytes = self.bytes()?;
        let text = std::str::from_utf8(&bytes).map_err(|_| PacketError::Text)?;
        let end = (0..=max.min(text.len()))
            .rev()
            .find(|at| text.is_char_boundary(*at));
        Ok(text[..end.unwrap_or(0)].to_owned())
    }
}

/// The next field of a message: its number and value.
pub(super) fn next(message: &mut Bytes) -> Result<Option<(u64, Value)>, PacketError> {
    if message.is_empty() {
        return Ok(None);
    }
    let key = varint(message)?;
    let (number, form) = (key >> 3, (key & 7) as u8);
    if number == 0 || number > 0x1fff_ffff {
        return Err(PacketError::Form);
    }
    let value = match form {
        VARINT => Value::Number(varint(message)?),
        LENGTH => {
            let length = usize::try_from(varint(message)?).map_err(|_| PacketError::Short)?;
            if length > message.len() {
                return Err(PacketError::Short);
            }
            Value::Bytes(message.split_to(length))
        }
        FIXED64 => skip(message, 8)?,
        FIXED32 => skip(message, 4)?,
        _ => return Err(PacketError::Form),
    };
    Ok(Some((number, value)))
}

fn skip(message: &mut Bytes, length: usize) -> Result<Value, PacketError> {
    if length > message.len() {
        return Err(PacketError::Short);
    }
    message.advance(length);
    Ok(Value::Other)
}

fn varint(message: &mut Bytes) -> Result<u64, PacketError> {
    let mut value = 0u64;
    for place in 0..10 {
        if message.is_empty() {
            return Err(PacketError::Short);
        }
        let byte = message.get_u8();
        if place == 9 && byte > 1 {
            return Err(PacketError::Form);
        }
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(PacketError::Form)
}

pub(super) fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.extend_from_slice(&[(value & 0x7f) as u8 | 0x80]);
        value >>= 7;
    }
    out.extend_from_slice(&[value as u8]);
}

/// A number; nothing when it is 0, as proto3 has it.
pub(super) fn put_number(out: &mut BytesMut, field: u8, value: i64) {
    if value != 0 {
        out.extend_from_slice(&[field << 3 | VARINT]);
        put_varint(out, value.cast_unsigned());
    }
}

/// Text; nothing when it is empty.
pub(super) fn put_text(out: &mut BytesMut, field: u8, value: &str) {
    if !value.is_empty() {
        put_length(out, field, value.len());
        out.extend_from_slice(value.as_bytes());
    }
}

pub(super) fn put_length(out: &mut BytesMut, field: u8, length: usize) {
    out.extend_from_slice(&[field << 3 | LENGTH]);
    put_varint(out, length as u64);
}

pub(super) const fn varint_bytes(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}
