//! Reading and writing bounded binary values: every length is checked before it is believed.
//!
//! A record is a list of fields, each `tag u8 | length u16 | bytes`, big-endian. A reader skips
//! tags it does not know, so that a newer peer may say more; it refuses a known field of a wrong
//! size and a field that appears twice where one is meant.

/// Why bytes are not a value. Always the peer's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("message ends in the middle of {0}")]
    Short(&'static str),
    #[error("{0} is longer than allowed")]
    TooLong(&'static str),
    #[error("{0} has a value that is not allowed")]
    Value(&'static str),
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{0} appears twice")]
    Twice(&'static str),
}

/// Takes values from the front of a byte slice.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from `bytes`, whose length the caller has bounded.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Whether everything was taken.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// How many bytes are left.
    pub fn len(&self) -> usize {
        self.rest.len()
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], CodecError> {
        let (head, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(CodecError::Short(what))?;
        self.rest = rest;
        Ok(head)
    }

    /// The next N bytes as an array.
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], CodecError> {
        let (head, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(CodecError::Short(what))?;
        self.rest = rest;
        Ok(*head)
    }

    /// One byte.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, CodecError> {
        Ok(u8::from_be_bytes(self.array(what)?))
    }

    /// Two bytes, big-endian.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, CodecError> {
        Ok(u16::from_be_bytes(self.array(what)?))
    }

    /// Four bytes, big-endian.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, CodecError> {
        Ok(u32::from_be_bytes(self.array(what)?))
    }

    /// Eight bytes, big-endian.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, CodecError> {
        Ok(u64::from_be_bytes(self.array(what)?))
    }

    /// The next field of a record: its tag and a reader of its bytes.
    pub fn field(&mut self) -> Result<Option<(u8, Reader<'a>)>, CodecError> {
        if self.is_empty() {
            return Ok(None);
        }
        let tag = self.u8("field tag")?;
        let len = self.u16("field length")?;
        let bytes = self.take(usize::from(len), "field")?;
        Ok(Some((tag, Reader::new(bytes))))
    }

    /// All that is left, as UTF-8 of at most `max` bytes.
    pub fn text(self, max: usize, what: &'static str) -> Result<&'a str, CodecError> {
        if self.rest.len() > max {
            return Err(CodecError::TooLong(what));
        }
        std::str::from_utf8(self.rest).map_err(|_| CodecError::Value(what))
    }

    /// Refuses bytes after the last value of a field.
    pub fn end(self, what: &'static str) -> Result<(), CodecError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(CodecError::TooLong(what))
        }
    }
}

/// Sets a field that may be set once.
pub fn once<T>(slot: &mut Option<T>, value: T, what: &'static str) -> Result<(), CodecError> {
    if slot.is_some() {
        return Err(CodecError::Twice(what));
    }
    *slot = Some(value);
    Ok(())
}

/// Appends values to a buffer.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty writer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Appends a field. Bytes past 65,535 are a caller's error and are cut, which the reader
    /// notices; every caller bounds its values far below.
    pub fn field(&mut self, tag: u8, bytes: &[u8]) -> &mut Self {
        let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        self.bytes.push(tag);
        self.bytes.extend_from_slice(&len.to_be_bytes());
        self.bytes.extend_from_slice(&bytes[..usize::from(len)]);
        self
    }

    /// What was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_in_order_and_end() {
        let mut writer = Writer::new();
        writer.field(1, b"ab").field(9, b"");
        let bytes = writer.into_bytes();
        let mut reader = Reader::new(&bytes);
        let (tag, value) = reader.field().unwrap().unwrap();
        assert_eq!((tag, value.text(2, "x").unwrap()), (1, "ab"));
        assert_eq!(reader.field().unwrap().unwrap().0, 9);
        assert!(reader.field().unwrap().is_none());
    }

    #[test]
    fn a_length_that_lies_is_short_not_a_panic() {
        assert_eq!(
            Reader::new(&[1, 0xff, 0xff, 0]).field().unwrap_err(),
            CodecError::Short("field")
        );
        assert_eq!(
            Reader::new(&[1]).field().unwrap_err(),
            CodecError::Short("field length")
        );
    }
}
