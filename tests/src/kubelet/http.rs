//! The few lines of HTTP/1.1 that the fake kubelet speaks.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest request head, bytes.
const HEAD_BYTES: usize = 16 * 1024;

/// A request without a body.
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    headers: Vec<(String, String)>,
}

impl Request {
    /// The value of a header.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Whether it asks to switch to SPDY/3.1.
    pub(super) fn is_spdy(&self) -> bool {
        self.header("upgrade") == Some("SPDY/3.1")
    }

    /// The value of a query parameter; nothing is unescaped.
    pub(super) fn query(&self, name: &str) -> Option<&str> {
        let (_, query) = self.path.split_once('?')?;
        query
            .split('&')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }
}

/// The next request, or `None` when the client has ended in between. `rest` carries bytes that
/// came with the previous head.
pub(super) async fn read_request<S>(
    stream: &mut S,
    rest: &mut Vec<u8>,
) -> io::Result<Option<Request>>
where
    S: AsyncRead + Unpin,
{
    loop {
        if let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") {
            let head: Vec<u8> = rest.drain(..end + 4).collect();
            return parse(&head).map(Some);
        }
        if rest.len() > HEAD_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut buffer = [0; 4096];
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return if rest.is_empty() {
                Ok(None)
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            };
        }
        rest.extend_from_slice(&buffer[..n]);
    }
}

fn parse(head: &[u8]) -> io::Result<Request> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    request.parse(head).map_err(io::Error::other)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Request {
        method: request.method.unwrap_or_default().to_owned(),
        path: request.path.unwrap_or_default().to_owned(),
        headers: request
            .headers
            .iter()
            .map(|header| (header.name.to_owned(), text(header.value)))
            .collect(),
    })
}

/// A whole answer.
pub(super) async fn answer<S: AsyncWrite + Unpin>(
    stream: &mut S,
    status: u16,
    phrase: &str,
    body: &str,
) -> io::Result<()> {
    let text = format!(
        "HTTP/1.1 {status} {phrase}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes()).await?;
    stream.flush().await
}

/// The head of an answer of unknown length.
pub(super) async fn begin_chunks<S: AsyncWrite + Unpin>(stream: &mut S) -> io::Result<()> {
    stream
        .write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
        .await?;
    stream.flush().await
}

/// One piece of it.
pub(super) async fn chunk<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> io::Result<()> {
    let mut piece = format!("{:x}\r\n", bytes.len()).into_bytes();
    piece.extend_from_slice(bytes);
    piece.extend_from_slice(b"\r\n");
    stream.write_all(&piece).await?;
    stream.flush().await
}

/// Its end.
pub(super) async fn end_chunks<S: AsyncWrite + Unpin>(stream: &mut S) -> io::Result<()> {
    stream.write_all(b"0\r\n\r\n").await?;
    stream.flush().await
}

/// The body of a request, by its `Content-Length` or in chunks; 100 is said where it is waited for.
pub(super) async fn read_body<S>(
    stream: &mut S,
    rest: &mut Vec<u8>,
    request: &Request,
) -> io::Result<Vec<u8>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if request.header("expect").is_some() {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        stream.flush().await?;
    }
    if request.header("transfer-encoding") == Some("chunked") {
        let mut body = Vec::new();
        loop {
            let line = take_until(stream, rest, b"\r\n").await?;
            let text = String::from_utf8_lossy(&line);
            let size = usize::from_str_radix(text.trim(), 16).map_err(io::Error::other)?;
            body.extend(take(stream, rest, size).await?);
            take(stream, rest, 2).await?;
            if size == 0 {
                return Ok(body);
            }
        }
    }
    let length = request.header("content-length").unwrap_or("0");
    take(stream, rest, length.parse().map_err(io::Error::other)?).await
}

async fn take<S: AsyncRead + Unpin>(
    stream: &mut S,
    rest: &mut Vec<u8>,
    count: usize,
) -> io::Result<Vec<u8>> {
    while rest.len() < count {
        if stream.read_buf(rest).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(rest.drain(..count).collect())
}

async fn take_until<S: AsyncRead + Unpin>(
    stream: &mut S,
    rest: &mut Vec<u8>,
    end: &[u8],
) -> io::Result<Vec<u8>> {
    loop {
        if let Some(at) = rest.windows(end.len()).position(|window| window == end) {
            return Ok(rest.drain(..at + end.len()).collect());
        }
        if stream.read_buf(rest).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
