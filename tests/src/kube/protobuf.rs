//! Bodies as Go's typed clients send them: Kubernetes' protobuf, read into the JSON of the same object.
//! Only the kinds that programs of this kit send, and of them only the fields that the fake looks at.
//! Field numbers: `generated.proto` of k8s.io/api and k8s.io/apimachinery.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use towline_link::kube::moment::Moment;

/// Before the envelope.
const MAGIC: &[u8] = b"k8s\0";

/// What is in an envelope; `None` when it is none, or of a kind that is not known here.
pub(crate) fn read(body: &[u8]) -> Option<Value> {
    let envelope = Message::read(body.strip_prefix(MAGIC)?)?;
    let kind = envelope.message(1)?.text(2)?;
    let object = envelope.message(2)?;
    let mut value = match kind.as_str() {
        "TokenReview" => {
            let spec = object.message(2)?;
            json!({"spec": {"token": spec.text(1), "audiences": spec.texts(2)}})
        }
        "Lease" => lease(&object)?,
        "DeleteOptions" => options(&object),
        _ => return None,
    };
    value["kind"] = json!(kind);
    Some(value)
}

fn lease(object: &Message<'_>) -> Option<Value> {
    let (meta, spec) = (object.message(1)?, object.message(2)?);
    let labels = meta.messages(11).into_iter();
    let labels = labels.filter_map(|label| Some((label.text(1)?, json!(label.text(2)?))));
    let mut value = json!({
        "metadata": {"name": meta.text(1), "labels": labels.collect::<Map<_, _>>()},
        "spec": {"holderIdentity": spec.text(1), "leaseDurationSeconds": spec.number(2)},
    });
    for (field, name) in [(5, "uid"), (6, "resourceVersion")] {
        if let Some(text) = meta.text(field).filter(|text| !text.is_empty()) {
            value["metadata"][name] = json!(text);
        }
    }
    for (field, name) in [(3, "acquireTime"), (4, "renewTime")] {
        if let Some(time) = spec.message(field) {
            let seconds = Duration::from_secs(time.number(1).unwrap_or(0));
            let nanos = Duration::from_nanos(time.number(2).unwrap_or(0));
            value["spec"][name] = json!(Moment(UNIX_EPOCH + seconds + nanos));
        }
    }
    Some(value)
}

fn options(object: &Message<'_>) -> Value {
    let mut preconditions = Map::new();
    if let Some(asked) = object.message(2) {
        for (field, name) in [(1, "uid"), (2, "resourceVersion")] {
            if let Some(text) = asked.text(field) {
                preconditions.insert(name.to_owned(), json!(text));
            }
        }
    }
    json!({ "preconditions": preconditions })
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Fields by number, in their order.
struct Message<'a>(Vec<(u64, Field<'a>)>);

impl<'a> Message<'a> {
    fn read(mut bytes: &'a [u8]) -> Option<Self> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let tag = varint(&mut bytes)?;
            let field = match tag & 7 {
                0 => Field::Number(varint(&mut bytes)?),
                2 => {
                    let length = usize::try_from(varint(&mut bytes)?).ok()?;
                    let (here, rest) = bytes.split_at_checked(length)?;
                    bytes = rest;
                    Field::Bytes(here)
                }
                _ => return None,
            };
            fields.push((tag >> 3, field));
        }
        Some(Self(fields))
    }

    fn all(&self, number: u64) -> impl Iterator<Item = &Field<'a>> {
        let fields = self.0.iter();
        fields.filter_map(move |(here, field)| (*here == number).then_some(field))
    }

    fn messages(&self, number: u64) -> Vec<Message<'a>> {
        let inner = self.all(number).filter_map(|field| match field {
            Field::Bytes(bytes) => Message::read(bytes),
            Field::Number(_) => None,
        });
        inner.collect()
    }

    fn message(&self, number: u64) -> Option<Message<'a>> {
        self.messages(number).pop()
    }

    fn texts(&self, number: u64) -> Vec<String> {
        let texts = self.all(number).filter_map(|field| match field {
            Field::Bytes(bytes) => String::from_utf8(bytes.to_vec()).ok(),
            Field::Number(_) => None,
        });
        texts.collect()
    }

    fn text(&self, number: u64) -> Option<String> {
        self.texts(number).pop()
    }

    fn number(&self, number: u64) -> Option<u64> {
        self.all(number).find_map(|field| match field {
            Field::Number(value) => Some(*value),
            Field::Bytes(_) => None,
        })
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
