//! A YAML file of another shape than its type: told in our words, with the path of keys to the place,
//! what is expected there and what was found.
//!
//! The parser tells a place and, for itself, what it wanted. The path and what stands there are read
//! from the text again, as a tree without a type; a text that is no YAML has neither.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::{DefaultMessageFormatter, Error, Location, MessageFormatter, Options, Spanned};

/// Any YAML, with its places.
enum Node {
    Nothing,
    Truth(bool),
    Number(String),
    Text(String),
    List(Vec<Spanned<Node>>),
    Mapping(Vec<(Spanned<String>, Spanned<Node>)>),
}

/// Longest piece of a scalar that is shown, characters.
const SHOWN: usize = 40;

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Node::Nothing => f.write_str("nothing"),
            Node::Truth(truth) => write!(f, "{truth}"),
            Node::Number(number) => write!(f, "the number {number}"),
            Node::Text(text) if text.is_empty() => f.write_str("an empty text"),
            Node::Text(text) => {
                let cut: String = text.chars().take(SHOWN).collect();
                write!(f, "the text {cut:?}")
            }
            Node::List(_) => f.write_str("a list"),
            Node::Mapping(_) => f.write_str("a mapping (key: value)"),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reading)
    }
}

struct Reading;

impl<'de> Visitor<'de> for Reading {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Nothing)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Nothing)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Node, E> {
        Ok(Node::Truth(truth))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Node, E> {
        Ok(Node::Number(number.to_string()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Node, E> {
        Ok(Node::Number(number.to_string()))
    }

    fn visit_i128<E>(self, number: i128) -> Result<Node, E> {
        Ok(Node::Number(number.to_string()))
    }

    fn visit_u128<E>(self, number: u128) -> Result<Node, E> {
        Ok(Node::Number(number.to_string()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Node, E> {
        Ok(Node::Number(number.to_string()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(Node::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Mapping(entries))
    }
}

/// A way to a node: `rules[0].ports`.
#[derive(Clone, Default)]
struct Path(String);

impl Path {
    fn key(&self, key: &str) -> Self {
        let cut: String = key.chars().take(SHOWN).collect();
        match self.0.is_empty() {
            true => Self(cut),
            false => Self(format!("{}.{cut}", self.0)),
        }
    }

    fn item(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }
}

/// What a place is.
struct Found<'a> {
    path: Path,
    node: &'a Node,
}

fn place(location: &Location) -> (u64, u64) {
    (location.line(), location.column())
}

/// The innermost node that begins at a place; where a key is meant, the mapping that begins there or
/// holds a key there.
fn find<'a>(
    node: &'a Spanned<Node>,
    path: &Path,
    at: (u64, u64),
    mapping: bool,
    found: &mut Option<Found<'a>>,
) {
    let fits = matches!(node.value, Node::Mapping(_)) || !mapping;
    if place(&node.referenced) == at && fits {
        *found = Some(Found {
            path: path.clone(),
            node: &node.value,
        });
    }
    match &node.value {
        Node::List(items) => {
            for (index, item) in items.iter().enumerate() {
                find(item, &path.item(index), at, mapping, found);
            }
        }
        Node::Mapping(entries) => {
            for (key, value) in entries {
                if place(&key.referenced) == at && mapping {
                    // The fault is of the key itself: what holds it is meant.
                    *found = Some(Found {
                        path: path.clone(),
                        node: &node.value,
                    });
                }
                find(value, &path.key(&key.value), at, mapping, found);
            }
        }
        _ => {}
    }
}

/// What is wrong, in one sentence. `options` are those that the text was read with.
pub(super) fn cause(error: &Error, text: &str, options: Options) -> String {
    let error = error.without_snippet();
    let trees = match is_about_shape(error) {
        true => serde_saphyr::from_multiple_with_options::<Spanned<Node>>(text, options),
        false => Ok(Vec::new()),
    };
    let trees = trees.unwrap_or_default();
    let of_key = matches!(
        error,
        Error::SerdeUnknownField { .. }
            | Error::SerdeMissingField { .. }
            | Error::DuplicateMappingKey { .. }
    );
    let mut found = None;
    if let Some(location) = error.location() {
        for tree in &trees {
            find(tree, &Path::default(), place(&location), of_key, &mut found);
        }
    }
    let said = words(error, found.as_ref().map(|found| found.node));
    match found.map(|found| found.path.0) {
        Some(path) if !path.is_empty() => format!("{path}: {said}"),
        _ => said,
    }
}

/// What is too large, or no YAML, is not read again.
fn is_about_shape(error: &Error) -> bool {
    matches!(
        error,
        Error::SerdeUnknownField { .. }
            | Error::SerdeMissingField { .. }
            | Error::SerdeInvalidType { .. }
            | Error::SerdeInvalidValue { .. }
            | Error::SerdeUnknownVariant { .. }
            | Error::Unexpected { .. }
            | Error::InvalidScalar { .. }
            | Error::NullIntoString { .. }
            | Error::InvalidBooleanStrict { .. }
            | Error::Message { .. }
    )
}

fn words(error: &Error, found: Option<&Node>) -> String {
    let wanted = |expected: &str| match found {
        Some(found) => format!("expected {}, found {found}", wanted(expected)),
        None => format!("expected {}", wanted(expected)),
    };
    match error {
        Error::SerdeUnknownField {
            field, expected, ..
        } => {
            let field: String = field.chars().take(SHOWN).collect();
            format!(
                "there is no key {field:?} here; the keys are {}",
                expected.join(", ")
            )
        }
        Error::SerdeMissingField { field, .. } => format!("the key {field} is missing"),
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            let key: String = key.chars().take(SHOWN).collect();
            format!("the key {key} is given twice")
        }
        Error::DuplicateMappingKey { key: None, .. } => "a key is given twice".to_owned(),
        Error::SerdeInvalidType { expected, .. } | Error::SerdeInvalidValue { expected, .. } => {
            wanted(expected)
        }
        Error::Unexpected { expected, .. } => wanted(expected),
        Error::InvalidScalar { ty, .. } => wanted(ty),
        Error::NullIntoString { .. } => wanted("string"),
        Error::InvalidBooleanStrict { .. } => wanted("boolean"),
        Error::SerdeUnknownVariant { expected, .. } => wanted(&expected.join(" or ")),
        Error::UnsupportedTag { tag, .. } => format!("the tag {tag} is not taken"),
        Error::Eof { .. } => "the file ends in the middle".to_owned(),
        Error::MultipleDocuments { .. } => MANY_DOCUMENTS.to_owned(),
        Error::MergeKeyNotAllowed { .. } | Error::MergeValueNotMapOrSeqOfMaps { .. } => {
            "merge keys (<<) are not taken: write out what they stand for".to_owned()
        }
        Error::UnknownAnchor { .. } => NO_ANCHORS.to_owned(),
        Error::Budget { breach, .. } => match breach {
            BudgetBreach::Aliases { .. } | BudgetBreach::Anchors { .. } => NO_ANCHORS.to_owned(),
            BudgetBreach::MergeKeys { .. } => {
                "merge keys (<<) are not taken: write out what they stand for".to_owned()
            }
            BudgetBreach::Documents { .. } => MANY_DOCUMENTS.to_owned(),
            BudgetBreach::Depth { .. } => {
                "nested more deeply than a file of ours may be".to_owned()
            }
            _ => "larger than a file of ours may be".to_owned(),
        },
        other => DefaultMessageFormatter.format_message(other).into_owned(),
    }
}

const NO_ANCHORS: &str =
    "anchors and aliases (&name, *name) are not taken: write out what they stand for";
const MANY_DOCUMENTS: &str = "another document begins here (---): one file has one";

/// What the parser and serde call a thing, in the words of whoever writes the file.
fn wanted(expected: &str) -> &str {
    match expected {
        "a sequence" | "sequence start" | "seq" => "a list",
        "a map" | "mapping start" | "map" => "a mapping (key: value)",
        text if text.starts_with("struct ") => "a mapping (key: value)",
        "a string" | "string" => "a text",
        // So it asks for numbers, too.
        "string scalar" | "scalar" => "a single value",
        "a boolean" | "boolean" | "bool" => "true or false",
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" | "u64" | "usize" | "an integer" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "floating point" => "a number",
        other => other,
    }
}
