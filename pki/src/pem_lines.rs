//! The lines of a PEM text as the decoder wants them, out of what editors, mail and `cat` make of
//! them: a byte order mark, blanks around lines, CR alone, and two files that were put behind each
//! other although the first had no last newline.
//!
//! Nothing here is a matter of taste. The decoder passes over a block whose first line it does not
//! know for one, so a bundle of two authorities would silently be a bundle of one.

use std::borrow::Cow;

use zeroize::Zeroize;

const BEGIN: &[u8] = b"-----BEGIN ";
const MARK: &[u8] = &[0xef, 0xbb, 0xbf];

/// A text that was put straight; erased on drop, because there may be a key in it.
pub(crate) struct Lines<'a>(Cow<'a, [u8]>);

impl Lines<'_> {
    pub(crate) fn text(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Lines<'_> {
    fn drop(&mut self) {
        if let Cow::Owned(text) = &mut self.0 {
            text.zeroize();
        }
    }
}

/// Puts a text straight; one that is straight is not copied.
pub(crate) fn straighten(text: &[u8]) -> Lines<'_> {
    if is_straight(text) {
        return Lines(Cow::Borrowed(text));
    }
    // No line becomes longer, but each glued block gets a line end.
    let mut out = Vec::with_capacity(text.len() + glued(text));
    for line in text.split(|byte| matches!(byte, b'\n' | b'\r')) {
        let mut line = trimmed(line);
        while let Some(at) = begin_inside(line) {
            let (before, after) = line.split_at_checked(at).unwrap_or((line, &[]));
            out.extend_from_slice(before);
            out.push(b'\n');
            line = after;
        }
        out.extend_from_slice(line);
        out.push(b'\n');
    }
    Lines(Cow::Owned(out))
}

/// Whether a block begins before the one above it has ended: its file was cut off.
pub(crate) fn is_cut_off(text: &[u8]) -> bool {
    let mut open = false;
    for line in text.split(|byte| *byte == b'\n') {
        if line.starts_with(BEGIN) {
            if open {
                return true;
            }
            open = true;
        } else if line.starts_with(b"-----END ") {
            open = false;
        }
    }
    false
}

fn is_straight(text: &[u8]) -> bool {
    text.split(|byte| *byte == b'\n').all(|line| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        trimmed(line).len() == line.len() && !line.contains(&b'\r') && begin_inside(line).is_none()
    })
}

fn trimmed(line: &[u8]) -> &[u8] {
    line.strip_prefix(MARK).unwrap_or(line).trim_ascii()
}

/// Where in a line that ends a block the next one begins.
fn begin_inside(line: &[u8]) -> Option<usize> {
    if !line.starts_with(b"-----END ") {
        return None;
    }
    line.windows(BEGIN.len())
        .position(|window| window == BEGIN)
        .filter(|at| *at > 0)
}

fn glued(text: &[u8]) -> usize {
    let begins = text.windows(BEGIN.len()).filter(|window| *window == BEGIN);
    begins.count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_straight_is_left_alone_and_the_rest_is_put_straight() {
        for text in [
            &b"-----BEGIN A-----\nxx\n-----END A-----\n"[..],
            b"",
            b"a\r\nb\r\n",
        ] {
            assert!(matches!(straighten(text).0, Cow::Borrowed(_)), "{text:?}");
        }
        for (text, expected) in [
            ("\u{feff}-----BEGIN A-----\nxx", "-----BEGIN A-----\nxx\n"),
            ("  -----BEGIN A-----\n\txx \n", "-----BEGIN A-----\nxx\n\n"),
            ("a\rb", "a\nb\n"),
            (
                "-----END A----------BEGIN B-----\n",
                "-----END A-----\n-----BEGIN B-----\n\n",
            ),
        ] {
            assert_eq!(
                straighten(text.as_bytes()).text(),
                expected.as_bytes(),
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_block_that_begins_in_another_is_found() {
        assert!(is_cut_off(
            b"-----BEGIN A-----\nxx\n-----BEGIN A-----\nyy\n-----END A-----\n"
        ));
        assert!(!is_cut_off(
            b"-----BEGIN A-----\n-----END A-----\n-----BEGIN A-----\n"
        ));
    }
}
