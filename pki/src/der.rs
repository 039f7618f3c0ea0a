//! The few forms of DER that a certificate needs, written from the inside out.

/// One element: tag, length, content.
pub(crate) fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 6);
    out.push(tag);
    let len = content.len();
    if len < 0x80 {
        out.push(len as u8);
    } else {
        let bytes = len.to_be_bytes();
        let skip = bytes.iter().take_while(|b| **b == 0).count();
        out.push(0x80 | (bytes.len() - skip) as u8);
        out.extend_from_slice(&bytes[skip..]);
    }
    out.extend_from_slice(content);
    out
}

/// SEQUENCE of elements that are already encoded.
pub(crate) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    element(0x30, &parts.concat())
}

/// INTEGER, positive, from big-endian bytes of any length.
pub(crate) fn positive_integer(bytes: &[u8]) -> Vec<u8> {
    let skip = bytes.iter().take_while(|b| **b == 0).count();
    let digits = &bytes[skip..];
    let mut content = Vec::with_capacity(digits.len() + 1);
    if digits.first().is_none_or(|b| b & 0x80 != 0) {
        content.push(0);
    }
    content.extend_from_slice(digits);
    element(0x02, &content)
}

/// BIT STRING with `unused` bits at its end.
pub(crate) fn bit_string(unused: u8, bytes: &[u8]) -> Vec<u8> {
    element(0x03, &[&[unused], bytes].concat())
}

/// BOOLEAN TRUE.
pub(crate) const TRUE: &[u8] = &[0x01, 0x01, 0xff];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_take_as_few_bytes_as_they_can() {
        assert_eq!(element(4, &[0; 127])[..2], [4, 127]);
        assert_eq!(element(4, &[0; 128])[..3], [4, 0x81, 128]);
        assert_eq!(element(4, &[0; 256])[..4], [4, 0x82, 1, 0]);
    }

    #[test]
    fn integers_stay_positive() {
        assert_eq!(positive_integer(&[0x80]), [2, 2, 0, 0x80]);
        assert_eq!(positive_integer(&[0, 0, 1]), [2, 1, 1]);
        assert_eq!(positive_integer(&[]), [2, 1, 0]);
    }
}
