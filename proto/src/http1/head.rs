//! One request or response head, read strictly.
//!
//! Before the grammar the bytes are looked at: every line ends with CR LF and with nothing else,
//! and no line begins with a blank. Then: one length or chunked, never both, never twice; one
//! host; a path and no other form of target. What a message may switch to is known by name.

use crate::http1::body::Framing;
use crate::limits;

/// What is known of a request from its head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// In capitals.
    pub method: Method,
    /// Path and query as they were sent: printable ASCII that begins with a slash.
    pub target: String,
    /// How its body ends.
    pub framing: Framing,
    /// It asks to speak something else on this connection.
    pub upgrade: bool,
    /// It waits for leave to send its body.
    pub expects: bool,
    /// It says that no request follows.
    pub closes: bool,
}

/// What is known of an answer from its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// The number.
    pub status: u16,
    /// How its body ends.
    pub framing: Framing,
}

/// Methods that pass. CONNECT and TRACE are not among them: no kubelet serves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
}

impl Method {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Patch => "PATCH",
            Method::Delete => "DELETE",
            Method::Options => "OPTIONS",
        }
    }

    fn of(text: &str) -> Option<Self> {
        [
            Method::Get,
            Method::Head,
            Method::Post,
            Method::Put,
            Method::Patch,
            Method::Delete,
            Method::Options,
        ]
        .into_iter()
        .find(|method| method.as_str() == text)
    }
}

/// Why a head is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum HeadError {
    /// It does not end.
    #[error("a head of more than {} bytes", limits::GATEWAY_HEAD_BYTES)]
    TooLarge,
    /// Too many headers.
    #[error("more than {} headers", limits::GATEWAY_HEADERS)]
    ManyHeaders,
    /// LF without CR before it.
    #[error("a line that ends with LF alone")]
    BareLf,
    /// CR without LF behind it.
    #[error("a CR that ends no line")]
    BareCr,
    /// A line that continues the one before.
    #[error("a header folded over two lines")]
    Fold,
    /// Not HTTP/1.
    #[error("not HTTP/1.1")]
    NotHttp,
    /// HTTP/2 with prior knowledge.
    #[error("HTTP/2, which is not spoken here: offer http/1.1 only")]
    Http2,
    /// HTTP/1.0 or a number that does not exist.
    #[error("a version other than HTTP/1.1")]
    Version,
    /// Anything else that the grammar forbids.
    #[error("a malformed head")]
    Syntax,
    /// A method that no kubelet serves.
    #[error("a method that no kubelet serves")]
    Method,
    /// Not a path.
    #[error("a target that is not a path")]
    Target,
    /// `Host` is missing, or there are two.
    #[error("not exactly one Host header")]
    Host,
    /// `Content-Length` twice, in one line or in two.
    #[error("two lengths")]
    TwoLengths,
    /// `Content-Length` is not a number.
    #[error("a length that is not a decimal number")]
    Length,
    /// `Content-Length` and `Transfer-Encoding`.
    #[error("a length and a transfer encoding")]
    LengthAndEncoding,
    /// Anything but one `Transfer-Encoding: chunked`.
    #[error("a transfer encoding other than chunked")]
    Encoding,
    /// Something else than SPDY/3.1 or WebSocket.
    #[error("an upgrade to something else than SPDY/3.1 or WebSocket")]
    Upgrade,
}

impl HeadError {
    /// The word for metrics and audit records.
    pub const fn as_str(self) -> &'static str {
        match self {
            HeadError::TooLarge => "too-large",
            HeadError::ManyHeaders => "many-headers",
            HeadError::BareLf => "bare-lf",
            HeadError::BareCr => "bare-cr",
            HeadError::Fold => "fold",
            HeadError::NotHttp => "not-http",
            HeadError::Http2 => "http2",
            HeadError::Version => "version",
            HeadError::Syntax => "syntax",
            HeadError::Method => "method",
            HeadError::Target => "target",
            HeadError::Host => "host",
            HeadError::TwoLengths => "two-lengths",
            HeadError::Length => "length",
            HeadError::LengthAndEncoding => "length-and-encoding",
            HeadError::Encoding => "encoding",
            HeadError::Upgrade => "upgrade",
        }
    }
}

/// The place behind the empty line, once it is there; an error as early as it can be told.
/// `from` is where an earlier look at the same bytes ended.
pub fn find_end(bytes: &[u8], from: usize) -> Result<Option<usize>, HeadError> {
    let mut at = from.saturating_sub(3);
    while at < bytes.len() {
        match bytes[at] {
            b'\n' if at == 0 || bytes[at - 1] != b'\r' => return Err(HeadError::BareLf),
            b'\r' => match bytes.get(at + 1) {
                None => break,
                Some(b'\n') => match bytes.get(at + 2..at + 4) {
                    Some(b"\r\n") if at > 0 => return bounded(at + 4),
                    _ if matches!(bytes.get(at + 2), Some(b' ' | b'\t')) => {
                        return Err(HeadError::Fold);
                    }
                    _ => {}
                },
                Some(_) => return Err(HeadError::BareCr),
            },
            _ => {}
        }
        at += 1;
    }
    if bytes.len() > limits::GATEWAY_HEAD_BYTES {
        return Err(HeadError::TooLarge);
    }
    Ok(None)
}

fn bounded(end: usize) -> Result<Option<usize>, HeadError> {
    if end > limits::GATEWAY_HEAD_BYTES {
        return Err(HeadError::TooLarge);
    }
    Ok(Some(end))
}

/// Says no to what is no request from its first bytes.
pub fn check_start(bytes: &[u8]) -> Result<(), HeadError> {
    if bytes.starts_with(b"PRI ") {
        return Err(HeadError::Http2);
    }
    match bytes.first() {
        Some(first) if !first.is_ascii_uppercase() => Err(HeadError::NotHttp),
        _ => Ok(()),
    }
}

/// Says no to what is no answer from its first bytes.
pub fn check_answer_start(bytes: &[u8]) -> Result<(), HeadError> {
    let expected = b"HTTP/1.1 ";
    let length = bytes.len().min(expected.len());
    if bytes[..length] != expected[..length] {
        return Err(match bytes.starts_with(b"HTTP/") {
            true => HeadError::Version,
            false => HeadError::NotHttp,
        });
    }
    Ok(())
}

/// Reads a whole request head, as [`find_end`] found it.
pub fn request(head: &[u8]) -> Result<RequestHead, HeadError> {
    check_start(head)?;
    let mut headers = [httparse::EMPTY_HEADER; limits::GATEWAY_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    whole(parsed.parse(head), head.len())?;
    if parsed.version != Some(1) {
        return Err(HeadError::Version);
    }
    let method = Method::of(parsed.method.unwrap_or_default()).ok_or(HeadError::Method)?;
    let target = parsed.path.unwrap_or_default();
    let printable = |byte: u8| (b'!'..=b'~').contains(&byte) && byte != b'#';
    if !target.starts_with('/') || !target.bytes().all(printable) {
        return Err(HeadError::Target);
    }
    if values(parsed.headers, "host").count() != 1 {
        return Err(HeadError::Host);
    }
    let framing = framing(parsed.headers)?.unwrap_or(Framing::Nothing);
    Ok(RequestHead {
        method,
        target: target.to_owned(),
        framing,
        upgrade: upgrade(parsed.headers)?,
        expects: values(parsed.headers, "expect").next().is_some(),
        closes: has_token(parsed.headers, "connection", "close"),
    })
}

/// Reads a whole response head; `method` is the request's.
pub fn response(head: &[u8], method: Method) -> Result<ResponseHead, HeadError> {
    let mut headers = [httparse::EMPTY_HEADER; limits::GATEWAY_HEADERS];
    let mut parsed = httparse::Response::new(&mut headers);
    whole(parsed.parse(head), head.len())?;
    if parsed.version != Some(1) {
        return Err(HeadError::Version);
    }
    let status = parsed.code.unwrap_or_default();
    let told = framing(parsed.headers)?;
    let framing = match (status, method) {
        (0..100, _) => return Err(HeadError::Syntax),
        (100..200 | 204 | 304, _) | (_, Method::Head) => Framing::Nothing,
        _ => told.unwrap_or(Framing::UntilClose),
    };
    Ok(ResponseHead { status, framing })
}

fn whole(
    parsed: Result<httparse::Status<usize>, httparse::Error>,
    length: usize,
) -> Result<(), HeadError> {
    match parsed {
        Ok(httparse::Status::Complete(end)) if end == length => Ok(()),
        Ok(_) => Err(HeadError::Syntax),
        Err(httparse::Error::TooManyHeaders) => Err(HeadError::ManyHeaders),
        Err(httparse::Error::Version) => Err(HeadError::Version),
        Err(_) => Err(HeadError::Syntax),
    }
}

fn values<'h>(
    headers: &'h [httparse::Header<'h>],
    name: &'h str,
) -> impl Iterator<Item = &'h [u8]> {
    headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name))
        .map(|header| header.value.trim_ascii())
}

/// Whether a list header holds a word.
fn has_token(headers: &[httparse::Header<'_>], name: &str, token: &str) -> bool {
    values(headers, name)
        .flat_map(|value| value.split(|byte| *byte == b','))
        .any(|word| word.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

fn framing(headers: &[httparse::Header<'_>]) -> Result<Option<Framing>, HeadError> {
    let mut lengths = values(headers, "content-length");
    let mut encodings = values(headers, "transfer-encoding");
    let (length, encoding) = (lengths.next(), encodings.next());
    if lengths.next().is_some() || length.is_some_and(|value| value.contains(&b',')) {
        return Err(HeadError::TwoLengths);
    }
    match (length, encoding) {
        (Some(_), Some(_)) => Err(HeadError::LengthAndEncoding),
        (None, Some(encoding)) => {
            if encodings.next().is_some() || !encoding.eq_ignore_ascii_case(b"chunked") {
                return Err(HeadError::Encoding);
            }
            Ok(Some(Framing::Chunked))
        }
        (Some(length), None) => {
            let digits = (1..=19).contains(&length.len()) && length.iter().all(u8::is_ascii_digit);
            let text = std::str::from_utf8(length).map_err(|_| HeadError::Length)?;
            let value = text.parse().ok().filter(|value| *value <= i64::MAX as u64);
            match value {
                Some(value) if digits => Ok(Some(Framing::Length(value))),
                _ => Err(HeadError::Length),
            }
        }
        (None, None) => Ok(None),
    }
}

/// An `Upgrade` header without the word in `Connection` asks for nothing, but is no accident
/// either: it has to be one of those that are known, all the same.
fn upgrade(headers: &[httparse::Header<'_>]) -> Result<bool, HeadError> {
    let mut asked = values(headers, "upgrade");
    let Some(protocol) = asked.next() else {
        return Ok(false);
    };
    let known = [&b"SPDY/3.1"[..], b"websocket"]
        .iter()
        .any(|known| protocol.eq_ignore_ascii_case(known));
    if !known || asked.next().is_some() {
        return Err(HeadError::Upgrade);
    }
    Ok(has_token(headers, "connection", "upgrade"))
}
