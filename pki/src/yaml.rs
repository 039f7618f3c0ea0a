//! YAML files of operators, read within a budget: one value, or one error with its place.
//!
//! What makes YAML large or ambiguous is refused: anchors and aliases (a few lines of which
//! expand to gigabytes), merge keys, duplicate keys, several documents, deep nesting, tags that
//! nobody knows. Unknown keys are refused by the types that are read. What has another shape than its
//! type is told with the path of keys, what is expected there and what was found.

mod shape;

use std::fmt;

use serde::de::DeserializeOwned;
use serde_saphyr::{DuplicateKeyPolicy, Location, MergeKeyPolicy};
use towline_proto::limits;

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// From 1; 0 when the fault is of the whole file.
    pub line: u32,
    /// From 1; 0 when the fault is of the whole file.
    pub column: u32,
    /// In one line, escaped and bounded.
    pub cause: String,
}

impl Fault {
    /// At a place that the parser told.
    pub fn at(place: Location, cause: impl fmt::Display) -> Self {
        Self {
            line: number(place.line()),
            column: number(place.column()),
            cause: clean(&cause),
        }
    }

    fn of_all(cause: impl fmt::Display) -> Self {
        Self {
            line: 0,
            column: 0,
            cause: clean(&cause),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.cause),
            line => write!(f, "{line}:{}: {}", self.column, self.cause),
        }
    }
}

/// One line that a terminal takes for text, bounded.
fn clean(text: impl fmt::Display) -> String {
    let text = text.to_string();
    let mut kept = String::new();
    for c in text.chars().take(limits::FAULT_CHARS) {
        match c.is_control() || c == '\u{2028}' || c == '\u{2029}' {
            true => kept.extend(c.escape_debug()),
            false => kept.push(c),
        }
    }
    if text.chars().nth(limits::FAULT_CHARS).is_some() {
        kept.push_str("...");
    }
    kept
}

/// Lines and columns as we keep them.
pub fn number(place: u64) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX)
}

/// Reads one value.
pub fn read<T: DeserializeOwned>(text: &[u8]) -> Result<T, Fault> {
    let text = bounded(text)?;
    if is_empty(text) {
        return Err(Fault {
            line: 1,
            column: 1,
            cause: "the file is empty".to_owned(),
        });
    }
    serde_saphyr::from_str_with_options(text, options(1)).map_err(|error| fault(&error, text, 1))
}

/// Nothing but comments and blanks: what a redirection that failed leaves behind.
fn is_empty(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim);
    lines.all(|line| line.is_empty() || line.starts_with('#') || line == "---")
}

/// Reads the documents of a file, as Kubernetes manifests come. Empty ones are left out.
pub fn read_all<T: DeserializeOwned>(text: &[u8]) -> Result<Vec<T>, Fault> {
    let (text, most) = (bounded(text)?, limits::YAML_DOCUMENTS);
    serde_saphyr::from_multiple_with_options(text, options(most))
        .map_err(|error| fault(&error, text, most))
}

fn bounded(text: &[u8]) -> Result<&str, Fault> {
    if text.len() as u64 > limits::FILE_BYTES {
        return Err(Fault::of_all("larger than a file of ours may be"));
    }
    std::str::from_utf8(text).map_err(|error| {
        let line = text[..error.valid_up_to()].iter().filter(|b| **b == b'\n');
        Fault {
            line: number(line.count() as u64 + 1),
            column: 1,
            cause: "not text (UTF-8)".to_owned(),
        }
    })
}

fn options(documents: usize) -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: limits::YAML_NODES * 3,
            max_nodes: limits::YAML_NODES,
            max_depth: limits::YAML_DEPTH,
            flow_nesting_limit: limits::YAML_DEPTH,
            max_total_scalar_bytes: limits::FILE_BYTES as usize,
            max_documents: documents,
            max_aliases: 0,
            max_anchors: 0,
            max_recorded_anchor_events: 0,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Error,
        strict_booleans: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    }
}

fn fault(error: &serde_saphyr::Error, text: &str, documents: usize) -> Fault {
    let cause = shape::cause(error, text, options(documents));
    match error.location() {
        Some(place) => Fault::at(place, cause),
        None => Fault::of_all(cause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Small {
        #[allow(dead_code)]
        name: String,
        #[serde(default)]
        #[allow(dead_code)]
        list: Vec<String>,
    }

    #[test]
    fn an_empty_file_is_called_empty() {
        for text in ["", "\n \n", "---\n", "# rules come here\n\n---\n"] {
            let fault = read::<Small>(text.as_bytes()).unwrap_err();
            assert_eq!(fault.to_string(), "1:1: the file is empty", "{text:?}");
        }
        assert!(read::<Small>(b"# a comment\nname: x\n").is_ok());
    }

    fn place(text: &str) -> (u32, u32) {
        let fault = read::<Small>(text.as_bytes()).unwrap_err();
        assert_eq!(fault.to_string().lines().count(), 1, "{fault}");
        (fault.line, fault.column)
    }

    #[test]
    fn every_fault_has_its_place() {
        assert!(read::<Small>(b"name: a\nlist: [b]\n").is_ok());
        for (text, at) in [
            ("name: a\nnmae: b\n", (2, 1)),
            ("name: a\nname: b\n", (2, 1)),
            ("name: a\nlist: b\n", (2, 7)),
            ("name: a\nlist:\n  - [c]\n", (3, 5)),
            ("name: &a b\n", (1, 10)),
            ("name: *a\n", (1, 7)),
            ("name: a\n<<: {list: [b]}\n", (2, 1)),
            ("name: a\n---\nname: b\n", (2, 1)),
            ("name: a\n  list: b\n", (2, 7)),
            ("name: [\n", (1, 7)),
        ] {
            let (line, _) = place(text);
            assert_eq!(line, at.0, "{text:?}: {:?}", read::<Small>(text.as_bytes()));
        }
        assert_eq!(read::<Small>(b"name: a\nlist: \xff").unwrap_err().line, 2);
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Large {
        version: u64,
        rules: Vec<serde_saphyr::Spanned<Small>>,
        #[serde(default)]
        port: Option<serde_saphyr::Spanned<u16>>,
        #[serde(default)]
        on: bool,
    }

    /// Word by word: these are read by people who look at a file and at nothing else.
    #[test]
    fn another_shape_is_told_in_our_words() {
        let mut told = String::new();
        for text in [
            "version: 1\nrules: {}\n",
            "version: 1\nrules: pods\n",
            "version: one\nrules: []\n",
            "version: 1\nrules: []\nport: 70000\n",
            "version: 1\nrules: []\nport: [80]\n",
            "version: 1\nrules: []\non: yes\n",
            "version: 1\nrules:\n  - pods\n",
            "version: 1\nrules:\n  - name: a\n  - name: [b]\n",
            "version: 1\nrules:\n  - name:\n",
            "version: 1\nrules:\n  - name: a\n    list: b\n",
            "version: 1\nrules:\n  - name: a\n    list: [{x: 1}]\n",
            "version: 1\nrules:\n  - name: a\n    lits: [b]\n",
            "version: 1\nrules:\n  - list: [b]\n",
            "version: 1\nrules:\n  - name: a\n    name: b\n",
            "version: 1\n",
            "- version: 1\n",
            "rules\n",
            "version: &v 1\nrules: []\n",
            "version: 1\nrules: []\n<<: {on: true}\n",
            "version: 1\nrules: []\n---\nversion: 1\n",
            "version: 1\nrules: [\n",
            "version: 1\n rules: []\n",
            "version: 1\nrules: !x []\n",
        ] {
            let fault = read::<Large>(text.as_bytes()).unwrap_err();
            told += &format!("{fault}\n");
        }
        let golden = include_str!("yaml/shape.golden");
        assert_eq!(told, golden, "{told}");
    }

    #[test]
    fn bombs_are_refused() {
        let mut laughs = String::from("a: &a [x,x,x,x,x,x,x,x,x]\n");
        for (one, next) in ["a", "b", "c", "d", "e", "f"]
            .iter()
            .zip(["b", "c", "d", "e", "f", "g"])
        {
            let list = vec![format!("*{one}"); 9].join(",");
            laughs += &format!("{next}: &{next} [{list}]\n");
        }
        let deep = format!("name: {}", "[".repeat(100_000));
        let wide = format!("name: a\nlist: [{}]", "x,".repeat(limits::YAML_NODES + 1));
        for bomb in [laughs, deep, wide] {
            assert!(read::<Small>(bomb.as_bytes()).is_err());
        }
    }

    #[test]
    fn hostile_text_is_escaped_and_bounded() {
        let text = format!("name: a\n\"\\e[2J{}\": b\n", "x".repeat(5_000));
        let fault = read::<Small>(text.as_bytes()).unwrap_err().to_string();
        assert!(!fault.contains('\u{1b}'), "{fault:?}");
        assert!(fault.len() < 1_000, "{}", fault.len());
    }
}
