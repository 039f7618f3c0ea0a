//! The chain: pure. Each line holds its number and the hash of the line before it, so that none
//! can be changed, taken out, put in or moved without every later line changing too.
//!
//! ```text
//! {"seq":2,"prev":"<SHA-256 of line 1, its line feed included>","time":...}
//! ```
//!
//! The hash is over the exact bytes, so `sed -n 1p FILE | sha256sum` gives what line 2 holds. A
//! checkpoint is a line that ends with a signature over the rest of it, and so over the hash of the
//! line before it: whoever changes lines and mends every later hash has to sign anew, and cannot.

use std::fmt;
use std::str::FromStr;

use towline_pki::seal;

/// SHA-256 of a line.
pub type Hash = [u8; 32];

/// The last line of a chain: its number and its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Number of the line; the first is 1.
    pub seq: u64,
    /// Hash of the line.
    pub hash: Hash,
}

impl Head {
    /// Before the first line.
    pub const NONE: Head = Head {
        seq: 0,
        hash: [0; 32],
    };
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, seal::hex(&self.hash))
    }
}

/// A text that is no head.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a head: write SEQ:HASH as the server's log has it, a number and 64 hexadecimal digits"
)]
pub struct HeadError;

impl FromStr for Head {
    type Err = HeadError;
    fn from_str(text: &str) -> Result<Self, HeadError> {
        let (seq, hash) = text.split_once(':').ok_or(HeadError)?;
        let digits = !seq.is_empty() && seq.bytes().all(|byte| byte.is_ascii_digit());
        let seq = seq.parse().ok().filter(|_| digits).ok_or(HeadError)?;
        let hash = seal::unhex(hash.as_bytes()).and_then(|hash| hash.try_into().ok());
        Ok(Head {
            seq,
            hash: hash.ok_or(HeadError)?,
        })
    }
}

/// Makes lines.
#[derive(Clone, Debug)]
pub struct Chain {
    head: Head,
}

impl Chain {
    /// Goes on after this line.
    pub const fn after(head: Head) -> Self {
        Self { head }
    }

    /// The last line so far.
    pub const fn head(&self) -> Head {
        self.head
    }

    /// Adds a line with these fields (`"a":1,"b":2`) to `out`.
    pub fn append(&mut self, fields: &str, out: &mut Vec<u8>) {
        let begun = self.begin(fields, out);
        self.end(begun, out);
    }

    /// Adds a line that ends with a seal over everything before it.
    pub fn append_sealed<E>(
        &mut self,
        fields: &str,
        seal: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
        out: &mut Vec<u8>,
    ) -> Result<(), E> {
        let begun = self.begin(fields, out);
        let seal = seal(&sealed(&out[begun..])).inspect_err(|_| out.truncate(begun))?;
        out.extend_from_slice(SEAL_FIELD);
        out.extend_from_slice(seal::hex(&seal).as_bytes());
        out.push(b'"');
        self.end(begun, out);
        Ok(())
    }

    fn begin(&self, fields: &str, out: &mut Vec<u8>) -> usize {
        let begun = out.len();
        let seq = self.head.seq.saturating_add(1);
        let prev = seal::hex(&self.head.hash);
        out.extend_from_slice(format!("{{\"seq\":{seq},\"prev\":\"{prev}\",").as_bytes());
        out.extend_from_slice(fields.as_bytes());
        begun
    }

    fn end(&mut self, begun: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(b"}\n");
        self.head = Head {
            seq: self.head.seq.saturating_add(1),
            hash: seal::sha256(&out[begun..]),
        };
    }
}

const SEAL_FIELD: &[u8] = b",\"signature\":\"";

/// What a seal is made over: it cannot be taken for one of anything else that a key may sign.
fn sealed(line: &[u8]) -> Vec<u8> {
    [b"towline audit checkpoint 1\n", line].concat()
}

/// Takes a line that [`Chain::append_sealed`] made apart: what was sealed, and the seal.
pub fn unseal(line: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let at = line
        .windows(SEAL_FIELD.len())
        .rposition(|window| window == SEAL_FIELD)?;
    let (before, rest) = line.split_at_checked(at)?;
    let hex = rest.strip_prefix(SEAL_FIELD)?.strip_suffix(b"\"}\n")?;
    Some((sealed(before), seal::unhex(hex)?))
}

/// What every line begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub seq: u64,
    /// Hash of the line before it.
    pub prev: Hash,
}

impl Link {
    /// Reads the beginning of a line, exactly as [`Chain::append`] writes it.
    pub fn read(line: &[u8]) -> Option<Self> {
        let rest = line.strip_prefix(b"{\"seq\":")?;
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (seq, rest) = rest.split_at_checked(digits)?;
        let leading_zero = seq.first() == Some(&b'0');
        let seq = std::str::from_utf8(seq).ok()?.parse().ok()?;
        let rest = rest.strip_prefix(b",\"prev\":\"")?;
        let (prev, rest) = rest.split_at_checked(64)?;
        let prev = seal::unhex(prev)?.try_into().ok()?;
        let ends = rest.starts_with(b"\",") && line.ends_with(b"}\n");
        (ends && !leading_zero).then_some(Self { seq, prev })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_holds_the_hash_of_the_one_before() {
        let mut chain = Chain::after(Head::NONE);
        let mut out = Vec::new();
        chain.append("\"a\":1", &mut out);
        let first = out.clone();
        chain.append("\"a\":2", &mut out);
        assert_eq!(
            Link::read(&first),
            Some(Link {
                seq: 1,
                prev: [0; 32]
            })
        );
        let second = Link::read(&out[first.len()..]).unwrap();
        assert_eq!(
            second,
            Link {
                seq: 2,
                prev: seal::sha256(&first)
            }
        );
        assert_eq!(chain.head().hash, seal::sha256(&out[first.len()..]));
    }

    #[test]
    fn heads_read_as_they_print() {
        let head = Head {
            seq: 17,
            hash: [0xab; 32],
        };
        assert_eq!(head.to_string().parse(), Ok(head));
        let zeros = "0".repeat(64);
        for bad in [
            "",
            "17",
            "17:",
            ":ab",
            &format!("+1:{zeros}"),
            &format!("1:{zeros}0"),
            &format!("99999999999999999999:{zeros}"),
        ] {
            assert_eq!(bad.parse::<Head>(), Err(HeadError), "{bad}");
        }
    }

    #[test]
    fn only_what_the_chain_writes_is_a_beginning() {
        let prev = "0".repeat(64);
        let good = format!("{{\"seq\":1,\"prev\":\"{prev}\",\"a\":1}}\n");
        assert!(Link::read(good.as_bytes()).is_some());
        for bad in [
            good.replace("\"seq\":1", "\"seq\": 1"),
            good.replace("\"seq\":1", "\"seq\":01"),
            good.replace("\"seq\":1", "\"seq\":-1"),
            good.replace("\"seq\":1", "\"seq\":99999999999999999999"),
            good.replace("000", "00A"),
            good.trim_end().to_owned(),
            good.replace("{", " {"),
            String::new(),
        ] {
            assert!(Link::read(bad.as_bytes()).is_none(), "{bad}");
        }
    }
}
