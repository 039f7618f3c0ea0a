//! Packets as gRPC messages on an HTTP/2 stream, either way.

use std::future::poll_fn;

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::HeaderMap;
use towline_proto::konnectivity::frame::{FrameError, Messages, put};
use towline_proto::konnectivity::{Packet, PacketError};
use towline_proto::limits;

use super::status::{Code, Status};

/// The sending side of a call.
pub struct PacketSink {
    stream: SendStream<Bytes>,
}

/// Below this size a packet goes out in one piece.
const JOINED: usize = 8 * 1024;

impl PacketSink {
    pub(super) fn new(stream: SendStream<Bytes>) -> Self {
        Self { stream }
    }

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

    /// Ends our side of the call, as its caller.
    pub fn close(mut self) {
        // Fails only on a stream that is gone.
        let _ = self.stream.send_data(Bytes::new(), true);
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

    /// How the peer ended the call, after its last packet. Without a word it is
    /// [`Code::Unknown`].
    pub async fn status(&mut self) -> Result<Status, h2::Error> {
        let trailers = self.stream.trailers().await?;
        let status = trailers.as_ref().and_then(Status::read);
        Ok(status.unwrap_or_else(|| Status::new(Code::Unknown, "the call ended without a status")))
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
