//! The head of a CONNECT request: read within bounds, parsed once it is whole.
//!
//! What stands in the request line decides; the Host header is neither needed nor looked at, as
//! in Konnectivity. Bytes behind the empty line belong to the target and are kept.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use towline_proto::dial::TraceContext;
use towline_proto::limits;
use towline_proto::target::{Target, TargetError};

/// A request that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Where to.
    pub target: Target,
    /// From a `traceparent` header that is one.
    pub trace: Option<TraceContext>,
    /// What came behind it.
    pub rest: Bytes,
}

/// What a connection begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum First {
    /// A CONNECT request.
    Connect(Head),
    /// HTTP/2, and the bytes of it that were read.
    Http2(Bytes),
}

/// Why there is no request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// Nothing, or not all of it, in time.
    #[error("no request head within {} s", limits::CONNECT_HEAD_TIMEOUT.as_secs())]
    Late,
    /// It does not end.
    #[error("request head of more than {} bytes", limits::CONNECT_HEAD_BYTES)]
    TooLarge,
    /// Too many headers.
    #[error("more than {} request headers", limits::CONNECT_HEADERS)]
    ManyHeaders,
    /// Not HTTP/1.
    #[error("not an HTTP/1.1 request: {0}")]
    Syntax(&'static str),
    /// gRPC, most likely, where it is not taken.
    #[error("this door speaks HTTP CONNECT only, not HTTP/2 or gRPC")]
    Http2,
    /// CONNECT, where it is not taken.
    #[error("this door speaks gRPC only, not HTTP CONNECT")]
    Connect,
    /// Another method.
    #[error("method {0} is not served: only CONNECT host:port")]
    Method(String),
    /// Not `host:port`.
    #[error("bad target: {0}")]
    Target(#[from] TargetError),
    /// The front end ended its side first.
    #[error("the front end left before its request was whole")]
    Gone,
}

impl HeadError {
    /// The word for metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            HeadError::Late => "late",
            HeadError::TooLarge | HeadError::ManyHeaders => "too-large",
            HeadError::Syntax(_) => "syntax",
            HeadError::Http2 => "http2",
            HeadError::Connect => "connect",
            HeadError::Method(_) => "method",
            HeadError::Target(_) => "bad-target",
            HeadError::Gone => "gone",
        }
    }
}

/// Reads a head. Not cancel-safe: what was read is lost with the future.
pub async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<First, HeadError> {
    let reading = read_whole(stream);
    match tokio::time::timeout(limits::CONNECT_HEAD_TIMEOUT, reading).await {
        Ok(done) => done,
        Err(_) => Err(HeadError::Late),
    }
}

/// Room for the request that kube-apiserver sends.
const FIRST_READ: usize = 512;

async fn read_whole<S: AsyncRead + Unpin>(stream: &mut S) -> Result<First, HeadError> {
    let mut bytes = BytesMut::with_capacity(FIRST_READ);
    let mut searched = 0;
    loop {
        match stream.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => return Err(HeadError::Gone),
            Ok(_) => {}
        }
        if let Some(first) = take(&mut bytes, &mut searched)? {
            return Ok(first);
        }
    }
}

/// What the bytes so far are; `None` when there have to be more. `searched` is how far they were
/// looked at before.
fn take(bytes: &mut BytesMut, searched: &mut usize) -> Result<Option<First>, HeadError> {
    if bytes.starts_with(HTTP2) {
        return Ok(Some(First::Http2(bytes.split().freeze())));
    }
    check_start(bytes)?;
    if let Some(end) = find_end(bytes, *searched) {
        if end > limits::CONNECT_HEAD_BYTES {
            return Err(HeadError::TooLarge);
        }
        let head = bytes.split_to(end);
        let connect = parse(&head, bytes.split().freeze())?;
        return Ok(Some(First::Connect(connect)));
    }
    if bytes.len() > limits::CONNECT_HEAD_BYTES {
        return Err(HeadError::TooLarge);
    }
    *searched = bytes.len().saturating_sub(3);
    Ok(None)
}

/// The beginning of HTTP/2's preface; no method of HTTP/1 is called so.
const HTTP2: &[u8] = b"PRI ";

/// Says no as early as it can be said.
fn check_start(bytes: &[u8]) -> Result<(), HeadError> {
    match bytes.first() {
        Some(0x16) => Err(HeadError::Syntax("this is a TLS handshake")),
        Some(first) if !first.is_ascii_uppercase() => {
            Err(HeadError::Syntax("it does not begin with a method"))
        }
        _ => Ok(()),
    }
}

/// The place behind the empty line; looks only at what is new.
fn find_end(bytes: &[u8], from: usize) -> Option<usize> {
    let new = bytes.get(from..)?;
    let crlf = new
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .map(|at| at + 4);
    let lf = new.windows(2).position(|w| w == b"\n\n").map(|at| at + 2);
    let end = match (crlf, lf) {
        (Some(a), Some(b)) => a.min(b),
        (a, b) => a.or(b)?,
    };
    Some(from + end)
}

fn parse(head: &[u8], rest: Bytes) -> Result<Head, HeadError> {
    let mut headers = [httparse::EMPTY_HEADER; limits::CONNECT_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(end)) if end == head.len() => {}
        // It ended earlier, by a line end of another kind: what lies between is nobody's.
        Ok(httparse::Status::Complete(_)) => return Err(HeadError::Syntax("malformed head")),
        Ok(httparse::Status::Partial) => return Err(HeadError::Syntax("the head is not whole")),
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::ManyHeaders),
        Err(httparse::Error::Version) => return Err(HeadError::Syntax("unknown version")),
        Err(_) => return Err(HeadError::Syntax("malformed head")),
    }
    let method = request.method.unwrap_or_default();
    if method != "CONNECT" {
        return Err(HeadError::Method(method.chars().take(20).collect()));
    }
    let target = request.path.unwrap_or_default().parse()?;
    let trace = request
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("traceparent"))
        .and_then(|header| trace_context(header.value));
    Ok(Head {
        target,
        trace,
        rest,
    })
}

/// `00-<32 hex>-<16 hex>-<2 hex>` (W3C Trace Context). Anything else is no context.
fn trace_context(value: &[u8]) -> Option<TraceContext> {
    let mut parts = value.split(|byte| *byte == b'-');
    let (version, trace) = (parts.next()?, parts.next()?);
    let (parent, flags) = (parts.next()?, parts.next()?);
    if version != b"00" || parts.next().is_some() {
        return None;
    }
    let [flags] = hex::<1>(flags)?;
    let context = TraceContext {
        trace: hex(trace)?,
        parent: hex(parent)?,
        flags,
    };
    (context.trace != [0; 16] && context.parent != [0; 8]).then_some(context)
}

fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

/// Fuzz body: any bytes, whole or in two pieces, are a request, one error, or not enough: the same
/// each way, down to the bytes that are left for the target.
pub fn fuzz_head(data: &[u8]) {
    let whole = in_pieces(&[data]);
    let middle = (1..data.len()).step_by(data.len() / 8 + 1);
    for cut in middle.chain([data.len().saturating_sub(1)]) {
        let (one, other) = data.split_at(cut);
        assert_eq!(in_pieces(&[one, other]), whole, "cut at {cut}");
    }
}

/// What a reader that gets these pieces makes of them, with what it did not read any more behind it.
fn in_pieces(pieces: &[&[u8]]) -> Result<Option<First>, HeadError> {
    let (mut bytes, mut searched) = (BytesMut::new(), 0);
    let mut pieces = pieces.iter().filter(|piece| !piece.is_empty());
    while let Some(piece) = pieces.next() {
        bytes.extend_from_slice(piece);
        let Some(mut first) = take(&mut bytes, &mut searched)? else {
            continue;
        };
        let (First::Connect(Head { rest, .. }) | First::Http2(rest)) = &mut first;
        let unread = pieces.flat_map(|piece| piece.iter());
        *rest = rest.iter().chain(unread).copied().collect();
        return Ok(Some(first));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Gives the bytes in pieces, then the end.
    async fn read_pieces(pieces: &[&[u8]]) -> Result<Head, HeadError> {
        let mut mock = tokio_test_io(pieces);
        match read(&mut mock).await? {
            First::Connect(head) => Ok(head),
            First::Http2(bytes) => panic!("HTTP/2: {bytes:?}"),
        }
    }

    #[tokio::test]
    async fn http2_is_told_apart_and_what_was_read_is_kept() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        for cut in 0..preface.len() {
            let pieces = [&preface[..cut], &preface[cut..]];
            let mut mock = tokio_test_io(&pieces[usize::from(cut == 0)..]);
            let First::Http2(first) = read(&mut mock).await.unwrap() else {
                panic!("not HTTP/2");
            };
            assert!(preface.starts_with(&first) && first.len() >= 4, "{first:?}");
        }
    }

    fn tokio_test_io(pieces: &[&[u8]]) -> impl AsyncRead + Unpin {
        struct Pieces(std::collections::VecDeque<Vec<u8>>);
        impl AsyncRead for Pieces {
            fn poll_read(
                mut self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
                buffer: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                if let Some(mut piece) = self.0.pop_front() {
                    let rest = piece.split_off(piece.len().min(buffer.remaining()));
                    buffer.put_slice(&piece);
                    if !rest.is_empty() {
                        self.0.push_front(rest);
                    }
                }
                std::task::Poll::Ready(Ok(()))
            }
        }
        Pieces(pieces.iter().map(|piece| piece.to_vec()).collect())
    }

    #[tokio::test]
    async fn the_request_of_kube_apiserver_is_read_and_what_follows_is_kept() {
        let head = read_pieces(&[
            b"CONNECT 10.0.0.7:10250 HTTP/1.1\r\nHost: 127.0.0.1\r\n",
            b"traceparent: 00-0123456789abcdef0123456789abcdef-0123456789abcdef-01\r\n\r",
            b"\n\x16\x03\x01",
        ])
        .await
        .unwrap();
        assert_eq!(head.target.to_string(), "10.0.0.7:10250");
        assert_eq!(head.rest, &b"\x16\x03\x01"[..]);
        assert_eq!(head.trace.unwrap().flags, 1);
        let bare = read_pieces(&[b"CONNECT n1:1 HTTP/1.0\n\n"]).await.unwrap();
        assert_eq!(bare.trace, None);
        assert!(bare.rest.is_empty());
    }

    #[tokio::test]
    async fn what_is_no_request_has_its_own_error() {
        let long = [b"CONNECT a:1 HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; 20_000]].concat();
        let many = format!("CONNECT a:1 HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(65));
        for (bytes, expected) in [
            (&b""[..], "gone"),
            (b"CONNECT a:1 HTTP/1.1\r\n", "gone"),
            (b"GET / HTTP/1.1\r\n\r\n", "method"),
            (b"CONNECT a HTTP/1.1\r\n\r\n", "bad-target"),
            (b"CONNECT 127.1:80 HTTP/1.1\r\n\r\n", "bad-target"),
            (b"CONNECT a:1 HTTP/2.0\r\n\r\n", "syntax"),
            (b"CONNECT  a:1\r\n\r\n", "syntax"),
            (b"\x16\x03\x01\x02", "syntax"),
            (b"\r\n\r\n", "syntax"),
            (b"CONNECT a:1 HTTP/1.1\n\r\nlost\n\n", "syntax"),
            (&long, "too-large"),
            (many.as_bytes(), "too-large"),
        ] {
            let error = read_pieces(&[bytes]).await.unwrap_err();
            assert_eq!(error.as_str(), expected, "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_front_end_that_says_nothing_is_let_go() {
        let (_keep, mut silent) = tokio::io::duplex(64);
        let begun = tokio::time::Instant::now();
        assert_eq!(read(&mut silent).await, Err(HeadError::Late));
        assert_eq!(begun.elapsed(), limits::CONNECT_HEAD_TIMEOUT);
    }

    #[test]
    fn a_trace_context_is_one_or_none() {
        for bad in [
            "",
            "00",
            "01-0123456789abcdef0123456789abcdef-0123456789abcdef-01",
            "00-00000000000000000000000000000000-0123456789abcdef-01",
            "00-0123456789abcdef0123456789abcdef-0000000000000000-01",
            "00-0123456789ABCDEF0123456789abcdef-0123456789abcdef-01",
            "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01-x",
        ] {
            assert_eq!(trace_context(bad.as_bytes()), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(data: Vec<u8>) {
            fuzz_head(&data);
        }

        #[test]
        fn damaged_requests_do_not_panic(at in 0usize..60, with: u8) {
            let mut bytes = b"CONNECT [fd00::7]:10250 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nrest".to_vec();
            let at = at % bytes.len();
            bytes[at] = with;
            fuzz_head(&bytes);
        }
    }
}
