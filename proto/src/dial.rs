//! The first bytes of a dial stream.
//!
//! The server opens a stream and writes a request; the agent answers with one byte of success,
//! or with a refusal. After success both directions carry raw bytes with no framing.
//!
//! ```text
//! request:  length u16 | kind u8 (1 dial, 2 probe) | record
//! accepted: 0 u8
//! refused:  1 u8 | length u16 | record, then end of stream
//! ```

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::codec::{CodecError, Reader, Writer, once};
use crate::control::read_ip;
use crate::id::DialId;
use crate::limits;
use crate::reason::Reason;
use crate::target::{Class, Target};

/// W3C trace context (`traceparent` version 00), checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// 16 bytes, not all zero.
    pub trace: [u8; 16],
    /// 8 bytes, not all zero.
    pub parent: [u8; 8],
    /// Bit 0: sampled.
    pub flags: u8,
}

/// What the server asks of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialRequest {
    /// A byte pipe to a target.
    Dial(Dial),
    /// Only an answer: proves that streams pass in both directions.
    Probe,
}

/// A request for a byte pipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dial {
    /// For logs and audit at both ends.
    pub id: DialId,
    /// Where to.
    pub target: Target,
    /// What the server takes the target for; the agent judges again.
    pub class: Class,
    /// Time left until the server gives up, from receipt.
    pub timeout: Duration,
    /// Trace context of the front end's request, if it had one.
    pub trace: Option<TraceContext>,
}

/// The agent's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialReply {
    /// Connected: raw bytes follow.
    Accepted,
    /// Not connected.
    Refused(Refused),
}

/// Why the agent did not connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub reason: Reason,
    /// The resolved address that was at fault, when one was.
    pub address: Option<IpAddr>,
}

mod kind {
    pub(super) const DIAL: u8 = 1;
    pub(super) const PROBE: u8 = 2;
}

mod tag {
    pub(super) const ID: u8 = 1;
    pub(super) const TARGET: u8 = 2;
    pub(super) const CLASS: u8 = 3;
    pub(super) const TIMEOUT_MS: u8 = 4;
    pub(super) const TRACE: u8 = 5;
    pub(super) const REASON: u8 = 1;
    pub(super) const ADDRESS: u8 = 2;
}

/// First byte of an acceptance.
pub const ACCEPTED: u8 = 0;
/// First byte of a refusal.
pub const REFUSED: u8 = 1;

impl DialRequest {
    /// The request with its length in front.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Writer::new();
        match self {
            DialRequest::Probe => {
                body.raw(&[kind::PROBE]);
            }
            DialRequest::Dial(dial) => {
                let ms = u32::try_from(dial.timeout.as_millis()).unwrap_or(u32::MAX);
                body.raw(&[kind::DIAL])
                    .field(tag::ID, &dial.id.get().to_be_bytes())
                    .field(tag::TARGET, dial.target.to_string().as_bytes())
                    .field(tag::CLASS, &[dial.class.code()])
                    .field(tag::TIMEOUT_MS, &ms.to_be_bytes());
                if let Some(trace) = dial.trace {
                    let mut bytes = [0; 25];
                    bytes[..16].copy_from_slice(&trace.trace);
                    bytes[16..24].copy_from_slice(&trace.parent);
                    bytes[24] = trace.flags;
                    body.field(tag::TRACE, &bytes);
                }
            }
        }
        prefixed(body.into_bytes())
    }

    /// Reads a body (kind and record, without the length).
    pub fn decode(body: &[u8]) -> Result<Self, CodecError> {
        let mut record = Reader::new(body);
        match record.u8("dial kind")? {
            kind::PROBE => Ok(DialRequest::Probe),
            kind::DIAL => read_dial(record).map(DialRequest::Dial),
            _ => Err(CodecError::Value("dial kind")),
        }
    }
}

fn prefixed(body: Vec<u8>) -> Vec<u8> {
    let len = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let mut out = Vec::with_capacity(2 + body.len());
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(&body);
    out
}

fn read_dial(mut record: Reader<'_>) -> Result<Dial, CodecError> {
    let (mut id, mut target, mut class, mut timeout, mut trace) = (None, None, None, None, None);
    while let Some((tag, mut value)) = record.field()? {
        match tag {
            tag::ID => {
                let raw = value.u64("dial id")?;
                value.end("dial id")?;
                once(
                    &mut id,
                    DialId::new(raw).ok_or(CodecError::Value("dial id"))?,
                    "dial id",
                )?;
            }
            tag::TARGET => {
                let text = value.text(limits::HOST_BYTES + 8, "target")?;
                once(
                    &mut target,
                    text.parse::<Target>()
                        .map_err(|_| CodecError::Value("target"))?,
                    "target",
                )?;
            }
            tag::CLASS => {
                let code = value.u8("class")?;
                value.end("class")?;
                once(
                    &mut class,
                    Class::from_code(code).ok_or(CodecError::Value("class"))?,
                    "class",
                )?;
            }
            tag::TIMEOUT_MS => {
                let ms = value.u32("timeout")?;
                value.end("timeout")?;
                once(
                    &mut timeout,
                    Duration::from_millis(u64::from(ms)),
                    "timeout",
                )?;
            }
            tag::TRACE => {
                let context = TraceContext {
                    trace: value.array("trace")?,
                    parent: value.array("trace")?,
                    flags: value.u8("trace")?,
                };
                value.end("trace")?;
                if context.trace == [0; 16] || context.parent == [0; 8] {
                    return Err(CodecError::Value("trace"));
                }
                once(&mut trace, context, "trace")?;
            }
            _ => {}
        }
    }
    Ok(Dial {
        id: id.ok_or(CodecError::Missing("dial id"))?,
        target: target.ok_or(CodecError::Missing("target"))?,
        class: class.ok_or(CodecError::Missing("class"))?,
        timeout: timeout
            .ok_or(CodecError::Missing("timeout"))?
            .min(limits::DIAL_TIMEOUT_MAX),
        trace,
    })
}

impl DialReply {
    /// The answer's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let DialReply::Refused(refused) = self else {
            return vec![ACCEPTED];
        };
        let mut body = Writer::new();
        body.field(tag::REASON, &refused.reason.code().to_be_bytes());
        match refused.address {
            Some(IpAddr::V4(ip)) => {
                body.field(tag::ADDRESS, &ip.octets());
            }
            Some(IpAddr::V6(ip)) => {
                body.field(tag::ADDRESS, &ip.octets());
            }
            None => {}
        }
        let mut out = vec![REFUSED];
        out.extend(prefixed(body.into_bytes()));
        out
    }
}

impl Refused {
    /// A refusal without an address.
    pub const fn new(reason: Reason) -> Self {
        Self {
            reason,
            address: None,
        }
    }

    /// Reads the record of a refusal.
    pub fn decode(body: &[u8]) -> Result<Self, CodecError> {
        let mut record = Reader::new(body);
        let (mut reason, mut address) = (None, None);
        while let Some((tag, mut value)) = record.field()? {
            match tag {
                tag::REASON => {
                    let code = value.u16("reason")?;
                    value.end("reason")?;
                    once(&mut reason, Reason::from_code(code), "reason")?;
                }
                tag::ADDRESS => once(&mut address, read_ip(value, "address")?, "address")?,
                _ => {}
            }
        }
        Ok(Refused {
            reason: reason.ok_or(CodecError::Missing("reason"))?,
            address,
        })
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(ip) => write!(f, "{} ({ip})", self.reason),
            None => self.reason.fmt(f),
        }
    }
}

/// Collects a length-prefixed body from pieces of a stream; what follows it is kept.
#[derive(Debug)]
pub struct Prefixed {
    held: Vec<u8>,
    max: usize,
}

impl Prefixed {
    /// For a body of at most `max` bytes.
    pub fn new(max: usize) -> Self {
        Self {
            held: Vec::new(),
            max,
        }
    }

    /// Adds bytes. `Ok(Some(body, rest))` once the body is whole.
    #[allow(clippy::type_complexity)]
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<(Vec<u8>, Vec<u8>)>, CodecError> {
        self.held.extend_from_slice(bytes);
        let Some(head) = self.held.first_chunk::<2>() else {
            return Ok(None);
        };
        let len = usize::from(u16::from_be_bytes(*head));
        if len > self.max {
            return Err(CodecError::TooLong("body"));
        }
        if self.held.len() < 2 + len {
            return Ok(None);
        }
        let rest = self.held.split_off(2 + len);
        self.held.drain(..2);
        Ok(Some((std::mem::take(&mut self.held), rest)))
    }
}

/// Fuzz body: whatever bytes come, reading neither panics nor reads back differently.
pub fn fuzz_dial(data: &[u8]) {
    if let Ok(request) = DialRequest::decode(data) {
        assert_eq!(DialRequest::decode(&request.encode()[2..]), Ok(request));
    }
    if let Ok(refused) = Refused::decode(data) {
        let bytes = DialReply::Refused(refused).encode();
        assert_eq!(Refused::decode(&bytes[3..]), Ok(refused));
    }
    let _ = Prefixed::new(limits::DIAL_REQUEST_BYTES).push(data);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dial() -> Dial {
        Dial {
            id: DialId::new(7).unwrap(),
            target: "[fd00::7]:10250".parse().unwrap(),
            class: Class::Kubelet,
            timeout: Duration::from_millis(9_500),
            trace: Some(TraceContext {
                trace: [1; 16],
                parent: [2; 8],
                flags: 1,
            }),
        }
    }

    #[test]
    fn the_longest_request_fits_its_limit() {
        let mut longest = dial();
        longest.target = format!(
            "{}:65535",
            [
                "a".repeat(63),
                "b".repeat(63),
                "c".repeat(63),
                "d".repeat(61)
            ]
            .join(".")
        )
        .parse()
        .unwrap();
        let bytes = DialRequest::Dial(longest.clone()).encode();
        assert!(bytes.len() - 2 <= limits::DIAL_REQUEST_BYTES);
        assert_eq!(
            DialRequest::decode(&bytes[2..]),
            Ok(DialRequest::Dial(longest))
        );
    }

    #[test]
    fn requests_come_back_from_any_pieces_with_what_follows() {
        let mut bytes = DialRequest::Dial(dial()).encode();
        bytes.extend_from_slice(b"early");
        let mut prefixed = Prefixed::new(limits::DIAL_REQUEST_BYTES);
        assert!(prefixed.push(&bytes[..3]).unwrap().is_none());
        let (body, rest) = prefixed.push(&bytes[3..]).unwrap().unwrap();
        assert_eq!(DialRequest::decode(&body), Ok(DialRequest::Dial(dial())));
        assert_eq!(rest, b"early");
    }

    #[test]
    fn answers_have_these_bytes() {
        assert_eq!(DialReply::Accepted.encode(), [0]);
        let refused = Refused {
            reason: Reason::TargetRefused,
            address: Some([10, 0, 0, 7].into()),
        };
        assert_eq!(
            DialReply::Refused(refused).encode(),
            [1, 0, 12, 1, 0, 2, 0, 8, 2, 0, 4, 10, 0, 0, 7]
        );
        let longest = Refused {
            reason: Reason::TargetRefused,
            address: Some([0xfd; 16].into()),
        };
        assert!(DialReply::Refused(longest).encode().len() - 3 <= limits::DIAL_REPLY_BYTES);
    }

    #[test]
    fn too_long_is_refused_before_it_is_held() {
        let mut prefixed = Prefixed::new(16);
        assert_eq!(
            prefixed.push(&[0xff, 0xff]).unwrap_err(),
            CodecError::TooLong("body")
        );
    }

    #[test]
    fn a_timeout_from_the_peer_is_bounded() {
        let long = Dial {
            timeout: Duration::from_secs(9_999),
            ..dial()
        };
        let bytes = DialRequest::Dial(long).encode();
        let Ok(DialRequest::Dial(read)) = DialRequest::decode(&bytes[2..]) else {
            panic!("not a dial")
        };
        assert_eq!(read.timeout, limits::DIAL_TIMEOUT_MAX);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(data: Vec<u8>) {
            fuzz_dial(&data);
        }

        #[test]
        fn damaged_requests_do_not_panic(at: usize, with: u8) {
            let mut bytes = DialRequest::Dial(dial()).encode();
            let at = at % bytes.len();
            bytes[at] = with;
            fuzz_dial(&bytes[2..]);
        }
    }
}
