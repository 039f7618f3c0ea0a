//! gRPC on an HTTP/2 stream, the server's side: headers, messages, trailers.

use std::future::poll_fn;

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use towline_proto::konnectivity::frame::{FrameError, Messages, put};
use towline_proto::konnectivity::{CONTENT_TYPE, Packet, PacketError};
use towline_proto::limits;

/// How a call ended, as gRPC numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// In order.
    Ok = 0,
    /// What Go gives an error that is no status.
    Unknown = 2,
    /// Too long a message, or too many of something.
    ResourceExhausted = 8,
    /// No such method.
    Unimplemented = 12,
    /// Not the protocol.
    Internal = 13,
    /// Not now.
    Unavailable = 14,
}

impl Code {
    /// The name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Code::Ok => "OK",
            Code::Unknown => "Unknown",
            Code::ResourceExhausted => "ResourceExhausted",
            Code::Unimplemented => "Unimplemented",
            Code::Internal => "Internal",
            Code::Unavailable => "Unavailable",
        }
    }
}

/// A code and its text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    /// The number.
    pub code: Code,
    /// The words.
    pub message: String,
}

impl Status {
    /// A status.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    fn put(&self, headers: &mut HeaderMap) {
        headers.insert("grpc-status", HeaderValue::from(self.code as u16));
        let text = percent(&self.message);
        if !text.is_empty()
            && let Ok(text) = HeaderValue::from_str(&text)
        {
            headers.insert("grpc-message", text);
        }
    }
}

/// As gRPC writes a message into a header: printable ASCII but `%`, the rest as `%XX`.
fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes().take(limits::KONNECTIVITY_TEXT_BYTES) {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            other => {
                out.push('%');
                out.push_str(&format!("{other:02X}"));
            }
        }
    }
    out
}

fn head() -> Response<()> {
    let mut head = Response::new(());
    *head.status_mut() = StatusCode::OK;
    let kind = HeaderValue::from_static(CONTENT_TYPE);
    head.headers_mut().insert("content-type", kind);
    head
}

/// Answers with a status and nothing else.
pub fn refuse(respond: &mut SendResponse<Bytes>, status: &Status) {
    let mut head = head();
    status.put(head.headers_mut());
    // Fails only on a stream that is gone.
    let _ = respond.send_response(head, true);
}

/// Takes the call: our headers go out, messages follow.
pub fn accept(
    respond: &mut SendResponse<Bytes>,
    metadata: &[(&'static str, HeaderValue)],
) -> Result<PacketSink, h2::Error> {
    let mut head = head();
    for (name, value) in metadata {
        head.headers_mut().insert(*name, value.clone());
    }
    let stream = respond.send_response(head, false)?;
    Ok(PacketSink { stream })
}

/// The sending side of a call.
pub struct PacketSink {
    stream: SendStream<Bytes>,
}

/// Below this size a packet goes out in one piece.
const JOINED: usize = 8 * 1024;

impl PacketSink {
    /// Sends a packet when the peer has room for it. Not cancel-safe.
    pub async fn send(&mut self, packet: &Packet) -> Result<(), h2::Error> {
        let (head, data) = put(packet);
        if data.len() > JOINED {
            self.write(head).await?;
            return self.write(data).await;
        }
        let mut whole = BytesMut::with_capacity(head.len() + data.len());
        whole.extend_from_slice(&head);
        whole.extend_from_slice(&data);
        self.write(whole.freeze()).await
    }

    async fn write(&mut self, mut bytes: Bytes) -> Result<(), h2::Error> {
        while !bytes.is_empty() {
            self.stream.reserve_capacity(bytes.len());
            let room = match self.stream.capacity() {
                0 => poll_fn(|cx| self.stream.poll_capacity(cx)).await,
                some => Some(Ok(some)),
            };
            let room = match room {
                Some(room) => room?,
                None => return Err(h2::Reason::CANCEL.into()),
            };
            let chunk = bytes.split_to(room.min(bytes.len()));
            self.stream.send_data(chunk, false)?;
        }
        Ok(())
    }

    /// Ends the call.
    pub fn finish(mut self, status: &Status) {
        let mut trailers = HeaderMap::new();
        status.put(&mut trailers);
        let _ = self.stream.send_trailers(trailers);
    }

    /// Resolves when the peer gave the call up. Cancel-safe.
    pub async fn gone(&mut self) {
        let _ = poll_fn(|cx| self.stream.poll_reset(cx)).await;
    }
}

/// Why no further packet comes.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The peer or the connection gave up.
    #[error("{0}")]
    Stream(#[from] h2::Error),
    /// No gRPC.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// No packet.
    #[error("{0}")]
    Packet(#[from] PacketError),
}

impl ReceiveError {
    /// What the peer is told.
    pub fn status(&self) -> Status {
        let code = match self {
            ReceiveError::Stream(_) => Code::Unavailable,
            ReceiveError::Frame(FrameError::TooLong { .. }) => Code::ResourceExhausted,
            ReceiveError::Frame(_) | ReceiveError::Packet(_) => Code::Internal,
        };
        Status::new(code, self.to_string())
    }
}

/// The receiving side of a call.
pub struct PacketSource {
    stream: RecvStream,
    messages: Messages,
}

impl PacketSource {
    /// Reads what comes on `stream`.
    pub fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            messages: Messages::new(limits::GRPC_MESSAGE_BYTES),
        }
    }

    /// The next packet; `None` when the peer ended its side. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Packet>, ReceiveError> {
        loop {
            if let Some(message) = self.messages.pop()? {
                return Ok(Some(Packet::decode(message)?));
            }
            match self.stream.data().await {
                None => {
                    self.messages.finish()?;
                    return Ok(None);
                }
                Some(chunk) => {
                    let chunk = chunk?;
                    // What waits for us here is bounded by one message and this chunk.
                    self.stream.flow_control().release_capacity(chunk.len())?;
                    self.messages.push(chunk);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_written_as_grpc_wants() {
        assert_eq!(percent("a b~"), "a b~");
        assert_eq!(percent("100%\n\u{e9}"), "100%25%0A%C3%A9");
        assert_eq!(
            percent(&"x".repeat(9000)).len(),
            limits::KONNECTIVITY_TEXT_BYTES
        );
    }
}
