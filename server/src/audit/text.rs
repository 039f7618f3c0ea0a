//! JSON of one line: plain ASCII whatever a peer sent, every text within a bound.
//!
//! Everything but the printable characters of ASCII is written as `\u` and four digits: no control character,
//! no direction mark and no half of a letter reaches a terminal or a log shipper. A text that was
//! cut ends with `...`.

use std::fmt::{self, Write};

/// The fields of a JSON object, in the order in which they are added.
#[derive(Debug, Default)]
pub struct Fields {
    text: String,
}

impl Fields {
    /// None yet.
    pub fn new() -> Self {
        Self {
            text: String::with_capacity(512),
        }
    }

    /// A text, cut to `max` bytes as written.
    pub fn text(&mut self, key: &'static str, value: &str, max: usize) -> &mut Self {
        self.key(key);
        self.text.push('"');
        escape(value, max, &mut self.text);
        self.text.push('"');
        self
    }

    /// What prints as text, cut like a text.
    pub fn shown(&mut self, key: &'static str, value: impl fmt::Display, max: usize) -> &mut Self {
        self.text(key, &value.to_string(), max)
    }

    /// A word of ours.
    pub fn word(&mut self, key: &'static str, value: &'static str) -> &mut Self {
        self.text(key, value, usize::MAX)
    }

    /// A number.
    pub fn number(&mut self, key: &'static str, value: impl Into<u64>) -> &mut Self {
        self.key(key);
        let _ = write!(self.text, "{}", value.into());
        self
    }

    /// True or false.
    pub fn flag(&mut self, key: &'static str, value: bool) -> &mut Self {
        self.key(key);
        let _ = write!(self.text, "{value}");
        self
    }

    /// An object.
    pub fn object(&mut self, key: &'static str, inner: &Fields) -> &mut Self {
        self.key(key);
        self.text.push('{');
        self.text.push_str(&inner.text);
        self.text.push('}');
        self
    }

    /// Texts in a list, cut to `max` bytes as written, all of them together.
    pub fn list<'a>(
        &mut self,
        key: &'static str,
        values: impl IntoIterator<Item = &'a str>,
        max: usize,
    ) -> &mut Self {
        self.key(key);
        self.text.push('[');
        let mut left = max;
        let mut first = true;
        for value in values {
            if !std::mem::take(&mut first) {
                self.text.push(',');
            }
            let before = self.text.len();
            self.text.push('"');
            let whole = escape(value, left, &mut self.text);
            self.text.push('"');
            left = left.saturating_sub(self.text.len() - before);
            if !whole {
                break;
            }
        }
        self.text.push(']');
        self
    }

    /// `"a":1,"b":2`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn key(&mut self, key: &'static str) {
        if !self.text.is_empty() {
            self.text.push(',');
        }
        self.text.push('"');
        self.text.push_str(key);
        self.text.push_str("\":");
    }
}

/// Writes a text's characters; whether all of it fitted.
fn escape(value: &str, max: usize, out: &mut String) -> bool {
    let begun = out.len();
    for character in value.chars() {
        let needs = match character {
            '"' | '\\' => 2,
            ' '..='~' => 1,
            wide => 6 * wide.len_utf16(),
        };
        if out.len() - begun + needs > max {
            out.push_str("...");
            return false;
        }
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            ' '..='~' => out.push(character),
            wide => {
                for unit in wide.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn json(fields: &Fields) -> serde_json::Value {
        serde_json::from_str(&format!("{{{}}}", fields.as_str())).expect("JSON")
    }

    #[test]
    fn hostile_text_is_plain_ascii() {
        let mut fields = Fields::new();
        fields.text("a", "x\u{1b}[2J\r\n\u{7f}\u{9b}\u{202e}\"\\\u{1f600}", 600);
        assert_eq!(
            fields.as_str(),
            "\"a\":\"x\\u001b[2J\\u000d\\u000a\\u007f\\u009b\\u202e\\\"\\\\\\ud83d\\ude00\""
        );
    }

    #[test]
    fn lists_share_one_bound() {
        let mut fields = Fields::new();
        fields.list("c", ["sh", "-c", "0123456789"], 12);
        assert_eq!(
            json(&fields)["c"],
            serde_json::json!(["sh", "-c", "0123..."])
        );
        let mut none = Fields::new();
        none.list("c", [], 12);
        assert_eq!(none.as_str(), "\"c\":[]");
    }

    proptest! {
        #[test]
        fn every_text_reads_back_or_says_that_it_was_cut(value in "\\PC*|.*", max in 0usize..40) {
            let mut fields = Fields::new();
            fields.text("a", &value, max).number("n", 7u32);
            prop_assert!(fields.as_str().bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            let read = json(&fields);
            let text = read["a"].as_str().unwrap_or_default();
            prop_assert_eq!(&read["n"], &serde_json::json!(7));
            match text.strip_suffix("...") {
                Some(cut) if !value.ends_with("...") => prop_assert!(value.starts_with(cut)),
                _ => prop_assert_eq!(text, value),
            }
            prop_assert!(fields.as_str().len() <= max + 20);
        }
    }
}
