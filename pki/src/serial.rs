//! The two numbers that name one certificate: its serial number and its fingerprint.

use std::fmt;
use std::str::FromStr;

use crate::key;

/// A certificate's serial number: big-endian bytes without leading zeros.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial(Box<[u8]>);

impl Serial {
    /// From the content of the INTEGER, or any big-endian bytes.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Self(bytes[zeros..].into())
    }

    /// Big-endian, without leading zeros.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("00");
        }
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not a serial number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a serial number: 1 to 64 hexadecimal digits, colons allowed between bytes")]
pub struct SerialError;

impl FromStr for Serial {
    type Err = SerialError;

    /// Reads what this tool, `openssl x509 -serial` and browsers print.
    fn from_str(text: &str) -> Result<Self, SerialError> {
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
        if digits.is_empty() || digits.len() > 64 {
            return Err(SerialError);
        }
        let nibble = |byte: &u8| char::from(*byte).to_digit(16).map(|digit| digit as u8);
        let mut bytes = Vec::with_capacity(digits.len() / 2 + 1);
        for pair in digits.rchunks(2) {
            let mut value = 0;
            for digit in pair {
                value = value << 4 | nibble(digit).ok_or(SerialError)?;
            }
            bytes.push(value);
        }
        bytes.reverse();
        Ok(Self::from_bytes(&bytes))
    }
}

/// SHA-256 of a whole certificate, or of a public key (its SubjectPublicKeyInfo).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of DER bytes.
    pub fn of(der: &[u8]) -> Self {
        Self(key::sha256(der))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_reads_in_every_usual_form() {
        let serial = Serial::from_bytes(&[0, 0x0a, 0xbc]);
        assert_eq!(serial.to_string(), "0abc");
        for text in ["0abc", "abc", "0A:BC", "000ABC", "00:0a:bc"] {
            assert_eq!(text.parse::<Serial>().unwrap(), serial, "{text}");
        }
        for bad in ["", ":", "xyz", "0x1", " 1", &"1".repeat(65)] {
            assert!(bad.parse::<Serial>().is_err(), "{bad}");
        }
        assert_eq!("0".parse::<Serial>().unwrap().to_string(), "00");
    }
}
