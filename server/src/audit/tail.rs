//! The end of a file that an earlier process wrote, pure: its last whole record, and what stands
//! behind it. Bytes behind it are what a crash or a full disk left; they stay where they are, and
//! the next record says how many there are and what they hash to.

use towline_pki::seal::{self, Sha256};

use super::chain::{Head, Link};
use super::record::Torn;

/// What the end of a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tail<'a> {
    /// The last whole record; `None` when there is none in these bytes.
    pub head: Option<Head>,
    /// Name of the trail, from the last record that holds it.
    pub trail: Option<String>,
    /// What stands behind the last whole record.
    pub behind: &'a [u8],
}

impl Tail<'_> {
    /// Whether a line feed is missing before the next record can be written.
    pub fn is_unended(&self) -> bool {
        self.behind.last().is_some_and(|last| *last != b'\n')
    }

    /// What the next record has to tell of; `ended` when a missing line feed is added.
    pub fn torn(&self, ended: bool) -> Option<Torn> {
        if self.behind.is_empty() {
            return None;
        }
        let mut sha256 = Sha256::default();
        sha256.update(self.behind);
        let added = ended && self.is_unended();
        if added {
            sha256.update(b"\n");
        }
        Some(Torn {
            bytes: self.behind.len() as u64 + u64::from(added),
            sha256: sha256.finish(),
        })
    }
}

/// Reads the last bytes of a file. `from_start` says that these are all of them; otherwise the
/// first line may be the end of a longer one.
pub fn read(bytes: &[u8], from_start: bool) -> Tail<'_> {
    let mut tail = Tail {
        head: None,
        trail: None,
        behind: bytes,
    };
    let mut end = bytes.len();
    while let Some((begin, line)) = last_line(&bytes[..end]) {
        let complete = begin > 0 || from_start;
        let record = Link::read(line)
            .filter(|_| complete)
            .and_then(|link| Some((link, body(line)?)));
        if let Some((link, body)) = record {
            if tail.head.is_none() {
                tail.behind = &bytes[end..];
                tail.head = Some(Head {
                    seq: link.seq,
                    hash: seal::sha256(line),
                });
            }
            if let Some(trail) = body.trail.filter(|trail| is_name(trail)) {
                tail.trail = Some(trail);
                break;
            }
        }
        end = begin;
    }
    tail
}

#[derive(serde::Deserialize)]
struct Body {
    trail: Option<String>,
}

fn body(line: &[u8]) -> Option<Body> {
    serde_json::from_slice(line).ok()
}

fn is_name(trail: &str) -> bool {
    trail.len() == 32 && trail.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The last line that ends with a line feed or with the bytes, and where it begins.
fn last_line(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (_, inner) = bytes.split_last()?;
    let begin = inner
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    Some((begin, &bytes[begin..]))
}

/// The body of a fuzzer.
#[doc(hidden)]
pub fn fuzz_tail(data: &[u8]) {
    for from_start in [false, true] {
        let tail = read(data, from_start);
        assert!(data.ends_with(tail.behind));
        assert_eq!(tail.torn(true).is_none(), tail.behind.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::super::chain::Chain;
    use super::*;

    fn lines(count: usize) -> (Vec<u8>, Head) {
        let mut chain = Chain::after(Head::NONE);
        let mut out = Vec::new();
        for number in 0..count {
            chain.append(
                &format!("\"trail\":\"{:032x}\",\"n\":{number}", 7),
                &mut out,
            );
        }
        (out, chain.head())
    }

    #[test]
    fn the_last_whole_record_is_found_behind_every_cut() {
        let (whole, _) = lines(3);
        let (two, second) = lines(2);
        for cut in two.len() + 1..whole.len() {
            let tail = read(&whole[..cut], true);
            assert_eq!(tail.head, Some(second), "{cut}");
            assert!(tail.is_unended());
            assert_eq!(tail.torn(true).unwrap().bytes, (cut - two.len()) as u64 + 1);
            assert_eq!(tail.torn(false).unwrap().bytes, (cut - two.len()) as u64);
        }
        let tail = read(&two, true);
        assert_eq!((tail.head, tail.torn(true)), (Some(second), None));
    }

    #[test]
    fn garbage_behind_it_is_accounted_for_to_the_byte() {
        let (mut bytes, head) = lines(2);
        let garbage = b"\0\0\0\n{\"seq\":9}\nx\n";
        bytes.extend_from_slice(garbage);
        let tail = read(&bytes, true);
        assert_eq!(tail.head, Some(head));
        assert_eq!(
            tail.torn(true),
            Some(Torn {
                bytes: garbage.len() as u64,
                sha256: seal::sha256(garbage)
            })
        );
    }

    #[test]
    fn half_a_line_at_the_beginning_is_no_record() {
        let (whole, head) = lines(1);
        assert_eq!(read(&whole, false).head, None);
        assert_eq!(read(&whole, true).head, Some(head));
        assert_eq!(read(b"", true).torn(true), None);
        assert_eq!(read(b"hello\n", true).head, None);
    }

    #[test]
    fn some_record_names_the_trail() {
        let (whole, head) = lines(2);
        assert_eq!(read(&whole, true).trail, Some(format!("{:032x}", 7)));
        let mut chain = Chain::after(head);
        let mut more = whole.clone();
        chain.append("\"n\":1", &mut more);
        let tail = read(&more, false);
        assert_eq!(
            (tail.head, tail.trail.is_some()),
            (Some(chain.head()), true)
        );
    }
}
