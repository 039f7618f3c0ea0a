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

/// Takes one element of this tag apart: its content, and what comes after it. Lengths as DER has
/// them only: short, or in as few bytes as they need.
pub(crate) fn take(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = if length < 0x80 {
        (usize::from(length), rest)
    } else {
        let count = usize::from(length & 0x7f);
        let (digits, rest) = rest.split_at_checked(count)?;
        if !(1..=4).contains(&count) || digits.first() == Some(&0) {
            return None;
        }
        let value = digits
            .iter()
            .fold(0usize, |value, digit| value << 8 | usize::from(*digit));
        (value, rest)
    };
    (first == tag).then(|| rest.split_at_checked(length))?
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
    fn what_was_written_is_taken_apart_again() {
        for len in [0, 1, 127, 128, 255, 256, 70_000] {
            let content = vec![7; len];
            let mut bytes = element(0x30, &content);
            bytes.push(9);
            assert_eq!(take(0x30, &bytes), Some((&content[..], &[9][..])), "{len}");
            assert_eq!(take(0x31, &bytes), None);
            assert_eq!(take(0x30, &bytes[..len]), None, "{len}");
        }
        assert_eq!(take(0x30, &[0x30, 0x80, 0, 0]), None);
        assert_eq!(take(0x30, &[0x30, 0x82, 0, 1, 5]), None);
    }

    #[test]
    fn integers_stay_positive() {
        assert_eq!(positive_integer(&[0x80]), [2, 2, 0, 0x80]);
        assert_eq!(positive_integer(&[0, 0, 1]), [2, 1, 1]);
        assert_eq!(positive_integer(&[]), [2, 1, 0]);
    }
}
