//! Messages of the control stream.
//!
//! On the wire each message is `length u16 | type u8 | record`, where length counts the type and
//! the record and a record is a list of fields (see [`crate::codec`]). A type that a reader does
//! not know is skipped. `PROTOCOL.md` draws every message.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::codec::{CodecError, Reader, Writer, once};
use crate::id::{InstanceId, Name};
use crate::limits;
use crate::notes::Notes;
use crate::reason::Reason;
use crate::version::Capabilities;

/// The agent's first message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Lowest and highest version it speaks.
    pub versions: (u16, u16),
    /// What it can do beyond the version.
    pub capabilities: Capabilities,
    /// This agent process.
    pub instance: InstanceId,
    /// Who it says it is; must equal the name in its certificate.
    pub name: Name,
    /// Node addresses it wants to serve; each must be granted.
    pub addresses: Vec<IpAddr>,
    /// Prefixes it wants to serve; each must lie inside a granted one.
    pub prefixes: Vec<IpNet>,
    /// Name and version of the program, for people.
    pub software: String,
}

/// The server's answer to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The version that both ends speak from here on.
    pub version: u16,
    /// What the server can do beyond the version.
    pub capabilities: Capabilities,
    /// The server's name; equals the name in its certificate.
    pub server: Name,
    /// Where servers of this cluster can be reached (`host:port`).
    pub servers: Vec<String>,
    /// Prefixes that the server will route to this agent.
    pub routes: Vec<IpNet>,
    /// Dials that the server will have open at once on this link.
    pub max_dials: u32,
    /// Name and version of the program, for people.
    pub software: String,
}

/// Says that the sender lives, and how well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Counts up from 1.
    pub sequence: u64,
    /// Highest sequence seen from the peer, 0 before any.
    pub echo: u64,
    /// Dials open at the sender.
    pub live_dials: u32,
    /// Whether the sender's last data-path probe succeeded.
    pub healthy: bool,
    /// What else the sender knows of itself.
    pub notes: Notes,
}

/// Take no new dials on this link; let old ones finish until the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// Why.
    pub reason: Reason,
    /// Time left for live dials, from receipt.
    pub deadline: Duration,
}

/// The last message in either direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goodbye {
    /// Why.
    pub reason: Reason,
}

/// One message of the control stream.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Message {
    Hello(Hello),
    Welcome(Welcome),
    Heartbeat(Heartbeat),
    Drain(Drain),
    Goodbye(Goodbye),
}

mod kind {
    pub(super) const HELLO: u8 = 1;
    pub(super) const WELCOME: u8 = 2;
    pub(super) const HEARTBEAT: u8 = 3;
    pub(super) const DRAIN: u8 = 4;
    pub(super) const GOODBYE: u8 = 5;
}

mod tag {
    pub(super) const VERSIONS: u8 = 1;
    pub(super) const CAPABILITIES: u8 = 2;
    pub(super) const INSTANCE: u8 = 3;
    pub(super) const NAME: u8 = 4;
    pub(super) const ADDRESS: u8 = 5;
    pub(super) const PREFIX: u8 = 6;
    pub(super) const SOFTWARE: u8 = 7;
    pub(super) const SERVER_ADDRESS: u8 = 8;
    pub(super) const MAX_DIALS: u8 = 9;
    pub(super) const SEQUENCE: u8 = 10;
    pub(super) const ECHO: u8 = 11;
    pub(super) const LIVE_DIALS: u8 = 12;
    pub(super) const HEALTHY: u8 = 13;
    pub(super) const REASON: u8 = 14;
    pub(super) const DEADLINE_MS: u8 = 15;
    pub(super) const NOTES: u8 = 16;
}

impl Message {
    /// The message with its length in front.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Writer::new();
        match self {
            Message::Hello(hello) => {
                let (low, high) = hello.versions;
                body.raw(&[kind::HELLO])
                    .field(
                        tag::VERSIONS,
                        &[low.to_be_bytes(), high.to_be_bytes()].concat(),
                    )
                    .field(tag::CAPABILITIES, &hello.capabilities.bits().to_be_bytes())
                    .field(tag::INSTANCE, &hello.instance.get().to_be_bytes())
                    .field(tag::NAME, hello.name.as_str().as_bytes());
                for ip in &hello.addresses {
                    write_ip(&mut body, tag::ADDRESS, *ip);
                }
                for prefix in &hello.prefixes {
                    write_prefix(&mut body, *prefix);
                }
                body.field(tag::SOFTWARE, cut(&hello.software, limits::SOFTWARE_BYTES));
            }
            Message::Welcome(welcome) => {
                body.raw(&[kind::WELCOME])
                    .field(tag::VERSIONS, &welcome.version.to_be_bytes())
                    .field(
                        tag::CAPABILITIES,
                        &welcome.capabilities.bits().to_be_bytes(),
                    )
                    .field(tag::NAME, welcome.server.as_str().as_bytes());
                for server in &welcome.servers {
                    body.field(tag::SERVER_ADDRESS, cut(server, SERVER_ADDRESS_BYTES));
                }
                for prefix in &welcome.routes {
                    write_prefix(&mut body, *prefix);
                }
                body.field(tag::MAX_DIALS, &welcome.max_dials.to_be_bytes())
                    .field(
                        tag::SOFTWARE,
                        cut(&welcome.software, limits::SOFTWARE_BYTES),
                    );
            }
            Message::Heartbeat(beat) => {
                body.raw(&[kind::HEARTBEAT])
                    .field(tag::SEQUENCE, &beat.sequence.to_be_bytes())
                    .field(tag::ECHO, &beat.echo.to_be_bytes())
                    .field(tag::LIVE_DIALS, &beat.live_dials.to_be_bytes())
                    .field(tag::HEALTHY, &[u8::from(beat.healthy)]);
                if beat.notes != Notes::NONE {
                    body.field(tag::NOTES, &beat.notes.bits().to_be_bytes());
                }
            }
            Message::Drain(drain) => {
                let ms = u32::try_from(drain.deadline.as_millis()).unwrap_or(u32::MAX);
                body.raw(&[kind::DRAIN])
                    .field(tag::REASON, &drain.reason.code().to_be_bytes())
                    .field(tag::DEADLINE_MS, &ms.to_be_bytes());
            }
            Message::Goodbye(goodbye) => {
                body.raw(&[kind::GOODBYE])
                    .field(tag::REASON, &goodbye.reason.code().to_be_bytes());
            }
        }
        let body = body.into_bytes();
        let len = u16::try_from(body.len()).unwrap_or(u16::MAX);
        let mut out = Vec::with_capacity(2 + body.len());
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(&body);
        out
    }

    /// Reads one message body (type and record, without the length). `Ok(None)` for a type that
    /// this build does not know.
    pub fn decode(body: &[u8]) -> Result<Option<Message>, CodecError> {
        let mut reader = Reader::new(body);
        let message = match reader.u8("message type")? {
            kind::HELLO => Message::Hello(read_hello(reader)?),
            kind::WELCOME => Message::Welcome(read_welcome(reader)?),
            kind::HEARTBEAT => Message::Heartbeat(read_heartbeat(reader)?),
            kind::DRAIN => Message::Drain(read_drain(reader)?),
            kind::GOODBYE => Message::Goodbye(Goodbye {
                reason: read_reason(reader)?,
            }),
            _ => return Ok(None),
        };
        Ok(Some(message))
    }
}

/// `host:port` in Welcome, bytes.
const SERVER_ADDRESS_BYTES: usize = limits::HOST_BYTES + 8;

fn cut(text: &str, max: usize) -> &[u8] {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text.as_bytes()[..end]
}

fn write_ip(out: &mut Writer, tag: u8, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => out.field(tag, &ip.octets()),
        IpAddr::V6(ip) => out.field(tag, &ip.octets()),
    };
}

fn write_prefix(out: &mut Writer, prefix: IpNet) {
    let mut bytes = vec![prefix.prefix_len()];
    match prefix.network() {
        IpAddr::V4(ip) => bytes.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => bytes.extend_from_slice(&ip.octets()),
    }
    out.field(tag::PREFIX, &bytes);
}

/// Four or sixteen bytes as an address.
pub(crate) fn read_ip(mut value: Reader<'_>, what: &'static str) -> Result<IpAddr, CodecError> {
    let mut long = value.clone();
    let ip = match long.array::<16>(what) {
        Ok(octets) => {
            value = long;
            IpAddr::from(octets)
        }
        Err(_) => IpAddr::from(value.array::<4>(what)?),
    };
    value.end(what)?;
    Ok(ip)
}

fn read_prefix(mut value: Reader<'_>) -> Result<IpNet, CodecError> {
    const WHAT: &str = "prefix";
    let len = value.u8(WHAT)?;
    let net = match read_ip(value, WHAT)? {
        IpAddr::V4(ip) => Ipv4Net::new(ip, len).map(IpNet::V4),
        IpAddr::V6(ip) => Ipv6Net::new(ip, len).map(IpNet::V6),
    };
    let net = net.map_err(|_| CodecError::Value(WHAT))?;
    if net.trunc() != net {
        return Err(CodecError::Value(WHAT));
    }
    Ok(net)
}

fn push<T>(list: &mut Vec<T>, item: T, what: &'static str) -> Result<(), CodecError> {
    if list.len() >= limits::LIST_ITEMS {
        return Err(CodecError::TooLong(what));
    }
    list.push(item);
    Ok(())
}

fn number<const N: usize>(
    mut value: Reader<'_>,
    what: &'static str,
) -> Result<[u8; N], CodecError> {
    let bytes = value.array(what)?;
    value.end(what)?;
    Ok(bytes)
}

fn read_name(value: Reader<'_>) -> Result<Name, CodecError> {
    value
        .text(Name::MAX_BYTES, "name")?
        .parse()
        .map_err(|_| CodecError::Value("name"))
}

fn read_text(value: Reader<'_>, max: usize, what: &'static str) -> Result<String, CodecError> {
    let text = value.text(max, what)?;
    if text.chars().any(char::is_control) {
        return Err(CodecError::Value(what));
    }
    Ok(text.to_owned())
}

fn read_hello(mut record: Reader<'_>) -> Result<Hello, CodecError> {
    let (mut versions, mut capabilities, mut instance, mut name, mut software) =
        (None, None, None, None, None);
    let (mut addresses, mut prefixes) = (Vec::new(), Vec::new());
    while let Some((tag, mut value)) = record.field()? {
        match tag {
            tag::VERSIONS => {
                let pair = (value.u16("versions")?, value.u16("versions")?);
                value.end("versions")?;
                once(&mut versions, pair, "versions")?;
            }
            tag::CAPABILITIES => {
                let bits = u64::from_be_bytes(number(value, "capabilities")?);
                once(
                    &mut capabilities,
                    Capabilities::from_bits(bits),
                    "capabilities",
                )?;
            }
            tag::INSTANCE => {
                let id = InstanceId::new(u64::from_be_bytes(number(value, "instance")?));
                once(
                    &mut instance,
                    id.ok_or(CodecError::Value("instance"))?,
                    "instance",
                )?;
            }
            tag::NAME => once(&mut name, read_name(value)?, "name")?,
            tag::ADDRESS => push(&mut addresses, read_ip(value, "address")?, "addresses")?,
            tag::PREFIX => push(&mut prefixes, read_prefix(value)?, "prefixes")?,
            tag::SOFTWARE => once(
                &mut software,
                read_text(value, limits::SOFTWARE_BYTES, "software")?,
                "software",
            )?,
            _ => {}
        }
    }
    Ok(Hello {
        versions: versions.ok_or(CodecError::Missing("versions"))?,
        capabilities: capabilities.unwrap_or_default(),
        instance: instance.ok_or(CodecError::Missing("instance"))?,
        name: name.ok_or(CodecError::Missing("name"))?,
        addresses,
        prefixes,
        software: software.unwrap_or_default(),
    })
}

fn read_welcome(mut record: Reader<'_>) -> Result<Welcome, CodecError> {
    let (mut version, mut capabilities, mut server, mut max_dials, mut software) =
        (None, None, None, None, None);
    let (mut servers, mut routes) = (Vec::new(), Vec::new());
    while let Some((tag, value)) = record.field()? {
        match tag {
            tag::VERSIONS => once(
                &mut version,
                u16::from_be_bytes(number(value, "version")?),
                "version",
            )?,
            tag::CAPABILITIES => {
                let bits = u64::from_be_bytes(number(value, "capabilities")?);
                once(
                    &mut capabilities,
                    Capabilities::from_bits(bits),
                    "capabilities",
                )?;
            }
            tag::NAME => once(&mut server, read_name(value)?, "name")?,
            tag::SERVER_ADDRESS => {
                push(
                    &mut servers,
                    read_text(value, SERVER_ADDRESS_BYTES, "server address")?,
                    "servers",
                )?;
            }
            tag::PREFIX => push(&mut routes, read_prefix(value)?, "routes")?,
            tag::MAX_DIALS => once(
                &mut max_dials,
                u32::from_be_bytes(number(value, "max dials")?),
                "max dials",
            )?,
            tag::SOFTWARE => once(
                &mut software,
                read_text(value, limits::SOFTWARE_BYTES, "software")?,
                "software",
            )?,
            _ => {}
        }
    }
    Ok(Welcome {
        version: version.ok_or(CodecError::Missing("version"))?,
        capabilities: capabilities.unwrap_or_default(),
        server: server.ok_or(CodecError::Missing("name"))?,
        servers,
        routes,
        max_dials: max_dials.ok_or(CodecError::Missing("max dials"))?,
        software: software.unwrap_or_default(),
    })
}

fn read_heartbeat(mut record: Reader<'_>) -> Result<Heartbeat, CodecError> {
    let (mut sequence, mut echo, mut live_dials) = (None, None, None);
    let (mut healthy, mut notes) = (None, None);
    while let Some((tag, value)) = record.field()? {
        match tag {
            tag::SEQUENCE => once(
                &mut sequence,
                u64::from_be_bytes(number(value, "sequence")?),
                "sequence",
            )?,
            tag::ECHO => once(
                &mut echo,
                u64::from_be_bytes(number(value, "echo")?),
                "echo",
            )?,
            tag::LIVE_DIALS => once(
                &mut live_dials,
                u32::from_be_bytes(number(value, "live dials")?),
                "live dials",
            )?,
            tag::HEALTHY => match number(value, "healthy")? {
                [0] => once(&mut healthy, false, "healthy")?,
                [1] => once(&mut healthy, true, "healthy")?,
                _ => return Err(CodecError::Value("healthy")),
            },
            tag::NOTES => once(
                &mut notes,
                u32::from_be_bytes(number(value, "notes")?),
                "notes",
            )?,
            _ => {}
        }
    }
    Ok(Heartbeat {
        sequence: sequence.ok_or(CodecError::Missing("sequence"))?,
        echo: echo.unwrap_or(0),
        live_dials: live_dials.unwrap_or(0),
        healthy: healthy.unwrap_or(true),
        notes: Notes::from_bits(notes.unwrap_or(0)),
    })
}

fn read_drain(record: Reader<'_>) -> Result<Drain, CodecError> {
    let mut fields = record.clone();
    let mut ms = None;
    while let Some((tag, value)) = fields.field()? {
        if tag == tag::DEADLINE_MS {
            once(
                &mut ms,
                u32::from_be_bytes(number(value, "deadline")?),
                "deadline",
            )?;
        }
    }
    Ok(Drain {
        reason: read_reason(record)?,
        deadline: Duration::from_millis(u64::from(ms.ok_or(CodecError::Missing("deadline"))?)),
    })
}

fn read_reason(mut record: Reader<'_>) -> Result<Reason, CodecError> {
    let mut reason = None;
    while let Some((tag, value)) = record.field()? {
        if tag == tag::REASON {
            once(
                &mut reason,
                Reason::from_code(u16::from_be_bytes(number(value, "reason")?)),
                "reason",
            )?;
        }
    }
    reason.ok_or(CodecError::Missing("reason"))
}

/// Cuts a byte stream into message bodies, holding at most one message.
#[derive(Debug, Default)]
pub struct Framer {
    held: Vec<u8>,
}

impl Framer {
    /// Adds bytes from the stream, in any pieces.
    pub fn push(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// The next whole message, skipping types that this build does not know.
    pub fn next_message(&mut self) -> Result<Option<Message>, CodecError> {
        while let Some(head) = self.held.first_chunk::<2>() {
            let len = usize::from(u16::from_be_bytes(*head));
            if len == 0 {
                return Err(CodecError::Short("message"));
            }
            if len > limits::CONTROL_MESSAGE_BYTES {
                return Err(CodecError::TooLong("message"));
            }
            let Some(body) = self.held.get(2..2 + len) else {
                return Ok(None);
            };
            let message = Message::decode(body)?;
            self.held.drain(..2 + len);
            if message.is_some() {
                return Ok(message);
            }
        }
        Ok(None)
    }
}

/// Fuzz body: whatever bytes come, framing neither panics nor reads back differently.
pub fn fuzz_control(data: &[u8]) {
    let mut framer = Framer::default();
    framer.push(data);
    while let Ok(Some(message)) = framer.next_message() {
        let encoded = message.encode();
        assert_eq!(Message::decode(&encoded[2..]), Ok(Some(message)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello() -> Hello {
        Hello {
            versions: (1, 1),
            capabilities: Capabilities::PROBE,
            instance: InstanceId::new(0x0102_0304_0506_0708).unwrap(),
            name: "n1".parse().unwrap(),
            addresses: vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
            prefixes: vec!["10.1.0.0/16".parse().unwrap()],
            software: "towline-agent 0.1.0".into(),
        }
    }

    fn samples() -> Vec<Message> {
        vec![
            Message::Hello(hello()),
            Message::Welcome(Welcome {
                version: 1,
                capabilities: Capabilities::NONE,
                server: "cp-1".parse().unwrap(),
                servers: vec!["cp-1.example:8091".into()],
                routes: vec!["fd00::/64".parse().unwrap()],
                max_dials: 4096,
                software: String::new(),
            }),
            Message::Heartbeat(Heartbeat {
                sequence: 7,
                echo: 6,
                live_dials: 3,
                healthy: false,
                notes: Notes::POLICY_STALE,
            }),
            Message::Drain(Drain {
                reason: Reason::Shutdown,
                deadline: Duration::from_secs(30),
            }),
            Message::Goodbye(Goodbye {
                reason: Reason::Moved,
            }),
        ]
    }

    #[test]
    fn messages_survive_the_wire_in_any_pieces() {
        let bytes: Vec<u8> = samples().iter().flat_map(Message::encode).collect();
        for piece in [1, 2, 3, 7, bytes.len()] {
            let mut framer = Framer::default();
            let mut seen = Vec::new();
            for chunk in bytes.chunks(piece) {
                framer.push(chunk);
                while let Some(message) = framer.next_message().unwrap() {
                    seen.push(message);
                }
            }
            assert_eq!(seen, samples());
        }
    }

    #[test]
    fn goodbye_has_these_bytes() {
        let bytes = Message::Goodbye(Goodbye {
            reason: Reason::Moved,
        })
        .encode();
        assert_eq!(bytes, [0, 6, 5, 14, 0, 2, 0, 31]);
    }

    #[test]
    fn heartbeat_has_these_bytes() {
        let beat = Heartbeat {
            sequence: 1,
            echo: 2,
            live_dials: 3,
            healthy: true,
            notes: Notes::NONE,
        };
        assert_eq!(
            Message::Heartbeat(beat).encode(),
            [
                0, 34, 3, 10, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1, 11, 0, 8, 0, 0, 0, 0, 0, 0, 0, 2, 12,
                0, 4, 0, 0, 0, 3, 13, 0, 1, 1
            ]
        );
    }

    #[test]
    fn unknown_types_and_fields_are_skipped() {
        let mut framer = Framer::default();
        framer.push(&[0, 2, 200, 9]);
        framer.push(&[0, 10, 5, 99, 0, 1, 0, 14, 0, 2, 0, 31]);
        let message = framer.next_message().unwrap();
        assert_eq!(
            message,
            Some(Message::Goodbye(Goodbye {
                reason: Reason::Moved
            }))
        );
    }

    #[test]
    fn lies_are_refused() {
        let refuse = |bytes: &[u8]| {
            let mut framer = Framer::default();
            framer.push(bytes);
            framer.next_message().unwrap_err()
        };
        assert_eq!(refuse(&[0, 0]), CodecError::Short("message"));
        assert_eq!(refuse(&[0xff, 0xff]), CodecError::TooLong("message"));
        assert_eq!(refuse(&[0, 1, 5]), CodecError::Missing("reason"));
        assert_eq!(
            refuse(&[0, 11, 5, 14, 0, 2, 0, 31, 14, 0, 2, 0, 31]),
            CodecError::Twice("reason")
        );
        let mut many = hello();
        many.addresses = vec![[10, 0, 0, 1].into(); limits::LIST_ITEMS + 1];
        assert_eq!(
            refuse(&Message::Hello(many).encode()),
            CodecError::TooLong("addresses")
        );
        let mut rude = hello();
        rude.software = "a\x1b[31m".into();
        assert_eq!(
            refuse(&Message::Hello(rude).encode()),
            CodecError::Value("software")
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic(data: Vec<u8>) {
            fuzz_control(&data);
        }

        #[test]
        fn damaged_messages_do_not_panic(which in 0usize..5, at: usize, with: u8) {
            let mut bytes = samples()[which].encode();
            let at = at % bytes.len();
            bytes[at] = with;
            fuzz_control(&bytes);
        }
    }
}
