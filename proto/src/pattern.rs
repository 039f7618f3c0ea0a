//! Names with `*` in them: `*` stands for any letters, none included; everything else for itself.

use std::fmt;
use std::str::FromStr;

use crate::limits;

/// A name, or a pattern of names. Lower-case, as names are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: Box<str>,
    /// Where the first star and what stands behind the last one are; `None` without a star.
    stars: Option<(usize, usize)>,
}

/// A text that no name could ever fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a name or a pattern: lower-case letters, digits, '-', '.' and '*', at most {max} bytes",
    max = limits::HOST_BYTES
)]
pub struct PatternError(String);

impl Pattern {
    /// Whether the name fits.
    pub fn fits(&self, name: &str) -> bool {
        let Some((first, behind_last)) = self.stars else {
            return *self.text == *name;
        };
        // Both ends first: they refuse most names without a search.
        let (start, end) = (&self.text[..first], &self.text[behind_last..]);
        let middle = name.strip_prefix(start).and_then(|n| n.strip_suffix(end));
        let Some(mut rest) = middle else {
            return false;
        };
        if behind_last - first <= 2 {
            return true;
        }
        for part in self.text[first + 1..behind_last - 1].split('*') {
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        true
    }

    /// The one name that fits, when there is only one.
    pub fn exact(&self) -> Option<&str> {
        self.stars.is_none().then_some(&*self.text)
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.*".contains(c);
        if text.is_empty() || text.len() > limits::HOST_BYTES || !text.chars().all(ok) {
            return Err(PatternError(text.chars().take(80).collect()));
        }
        Ok(Self {
            text: text.into(),
            stars: text.find('*').zip(text.rfind('*').map(|last| last + 1)),
        })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_star_stands_for_any_letters() {
        for (pattern, name, fits) in [
            ("n1", "n1", true),
            ("n1", "n12", false),
            ("n*", "n12", true),
            ("*", "anything", true),
            ("*", "", true),
            ("*-gw", "a-gw", true),
            ("*-gw", "a-gw-b", false),
            ("a*b*c", "a-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("a*a", "a", false),
            ("**", "x", true),
            ("*.svc", "a.b.svc", true),
            ("*.svc", "svc", false),
        ] {
            let read: Pattern = pattern.parse().unwrap();
            assert_eq!(read.fits(name), fits, "{pattern:?} {name}");
            assert_eq!(read.to_string(), pattern);
        }
    }

    #[test]
    fn what_no_name_can_fit_is_refused() {
        let long = "a".repeat(limits::HOST_BYTES + 1);
        for bad in ["", "N1", "a b", "a/b", "\u{e4}", "a\n", long.as_str()] {
            let error = bad.parse::<Pattern>().unwrap_err().to_string();
            assert!(!error.contains('\n'), "{error}");
        }
    }

    /// The same by trying every split.
    fn slowly(pattern: &[u8], name: &[u8]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some((b'*', rest)) => (0..=name.len()).any(|skip| slowly(rest, &name[skip..])),
            Some((byte, rest)) => name.first() == Some(byte) && slowly(rest, &name[1..]),
        }
    }

    proptest! {
        #[test]
        fn fitting_is_what_trying_everything_says(pattern in "[ab*]{1,6}", name in "[ab]{0,8}") {
            let read: Pattern = pattern.parse().unwrap();
            prop_assert_eq!(read.fits(&name), slowly(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
