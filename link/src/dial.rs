//! The first bytes of a dial stream, sent and awaited: [`open`] at the server, [`accept`] at the
//! agent. What the bytes mean is `proto`'s; how long to wait is said by the caller.

use std::net::IpAddr;

use bytes::Bytes;
use tokio::time::Instant;
use towline_proto::codec::CodecError;
use towline_proto::dial::{ACCEPTED, DialReply, DialRequest, Prefixed, REFUSED, Refused};
use towline_proto::limits;
use towline_proto::reason::Reason;

use crate::carrier::{Carrier, Stream, StreamError};

/// A dial that the agent accepted: raw bytes from here on.
pub struct OpenDial {
    /// The pipe to the target.
    pub stream: Stream,
    /// Bytes of the target that came with the answer.
    pub early: Bytes,
}

/// Why a dial did not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct OpenError {
    /// Why.
    pub reason: Reason,
    /// The resolved address that the agent found at fault.
    pub address: Option<IpAddr>,
    /// Whether the agent may have seen the request. Only a dial that never reached an agent may
    /// be tried on another one.
    pub reached: bool,
}

impl OpenError {
    const fn new(reason: Reason, reached: bool) -> Self {
        Self {
            reason,
            address: None,
            reached,
        }
    }
}

/// Opens a stream, writes the request, awaits the answer. Dropping the future resets the stream,
/// so that the agent gives the dial up too.
pub async fn open(
    carrier: &dyn Carrier,
    request: &DialRequest,
    deadline: Instant,
) -> Result<OpenDial, OpenError> {
    let opened = tokio::time::timeout_at(deadline, carrier.open()).await;
    let mut stream = match opened {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(OpenError::new(error.reason(), false)),
        // No stream within the deadline: the agent has as many dials as it allows.
        Err(_) => return Err(OpenError::new(Reason::AgentBusy, false)),
    };
    let answer = tokio::time::timeout_at(deadline, ask(&mut stream, request)).await;
    match answer {
        Ok(Ok(early)) => Ok(OpenDial { stream, early }),
        Ok(Err(error)) => {
            stream.abort(error.reason);
            Err(error)
        }
        Err(_) => {
            stream.abort(Reason::DialTimeout);
            Err(OpenError::new(Reason::DialTimeout, true))
        }
    }
}

async fn ask(stream: &mut Stream, request: &DialRequest) -> Result<Bytes, OpenError> {
    let lost = |error: StreamError| OpenError::new(error.reason(), true);
    stream
        .send
        .send(request.encode().into())
        .await
        .map_err(lost)?;
    let mut first = loop {
        match stream.recv.recv(limits::READ_CHUNK).await.map_err(lost)? {
            Some(bytes) if bytes.is_empty() => {}
            Some(bytes) => break bytes,
            None => return Err(OpenError::new(Reason::Protocol, true)),
        }
    };
    match first[0] {
        ACCEPTED => Ok(first.split_off(1)),
        REFUSED => {
            let refused = read_refusal(stream, first.split_off(1))
                .await
                .unwrap_or(Refused::new(Reason::Protocol));
            Err(OpenError {
                reason: refused.reason,
                address: refused.address,
                reached: true,
            })
        }
        _ => Err(OpenError::new(Reason::Protocol, true)),
    }
}

async fn read_refusal(stream: &mut Stream, first: Bytes) -> Option<Refused> {
    let mut prefixed = Prefixed::new(limits::DIAL_REPLY_BYTES);
    let mut next = first;
    loop {
        if let Some((body, _)) = prefixed.push(&next).ok()? {
            return Refused::decode(&body).ok();
        }
        next = stream.recv.recv(limits::DIAL_REPLY_BYTES).await.ok()??;
    }
}

/// Why no request could be read from a new stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcceptError {
    /// The request did not come within [`limits::DIAL_REQUEST_TIMEOUT`].
    #[error("the dial request did not come in time")]
    Late,
    /// The stream ended first.
    #[error("the stream ended before the dial request: {0}")]
    Stream(StreamError),
    /// The bytes are no request.
    #[error("bad dial request: {0}")]
    Codec(#[from] CodecError),
}

/// A dial that waits for the agent's answer. Dropping it resets the stream.
pub struct PendingDial {
    stream: Stream,
    early: Bytes,
}

/// Reads the request of a stream that the server opened.
pub async fn accept(mut stream: Stream) -> Result<(DialRequest, PendingDial), AcceptError> {
    let read = tokio::time::timeout(limits::DIAL_REQUEST_TIMEOUT, read_request(&mut stream)).await;
    let (request, early) = match read {
        Ok(done) => done.inspect_err(|_| stream.send.reset(Reason::Protocol))?,
        Err(_) => {
            stream.abort(Reason::Protocol);
            return Err(AcceptError::Late);
        }
    };
    Ok((request, PendingDial { stream, early }))
}

async fn read_request(stream: &mut Stream) -> Result<(DialRequest, Bytes), AcceptError> {
    let mut prefixed = Prefixed::new(limits::DIAL_REQUEST_BYTES);
    loop {
        let chunk = match stream.recv.recv(limits::READ_CHUNK).await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return Err(CodecError::Short("dial request").into()),
            Err(error) => return Err(AcceptError::Stream(error)),
        };
        if let Some((body, rest)) = prefixed.push(&chunk)? {
            return Ok((DialRequest::decode(&body)?, rest.into()));
        }
    }
}

impl PendingDial {
    /// Says yes and hands the pipe over.
    pub async fn accepted(mut self) -> Result<OpenDial, StreamError> {
        self.stream
            .send
            .send(Bytes::from_static(&[ACCEPTED]))
            .await?;
        Ok(OpenDial {
            stream: self.stream,
            early: self.early,
        })
    }

    /// Says yes and ends both directions: the answer to a probe. False when it could not be sent.
    pub async fn accepted_and_done(mut self) -> bool {
        let yes = Bytes::from_static(&[ACCEPTED]);
        let sent = self.stream.send.send(yes).await.is_ok();
        if sent {
            self.stream.send.finish();
        }
        sent
    }

    /// Says no.
    pub async fn refused(mut self, refused: Refused) {
        let bytes = DialReply::Refused(refused).encode();
        if self.stream.send.send(bytes.into()).await.is_ok() {
            self.stream.send.finish();
        }
    }

    /// Resolves when the server gave the dial up while we connect. Bytes that the server sends
    /// early are kept. Cancel-safe.
    pub async fn given_up(&mut self) -> StreamError {
        std::future::poll_fn(|cx| self.stream.send.poll_stopped(cx)).await
    }
}
