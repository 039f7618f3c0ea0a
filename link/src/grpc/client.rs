//! The caller's side of a gRPC call: a connection of its own, headers, the answer's metadata.

use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use h2::{Ping, PingPong};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::AbortOnDropHandle;
use towline_proto::konnectivity::CONTENT_TYPE;
use towline_proto::limits;
use tracing::debug;

use super::packets::{PacketSink, PacketSource};
use super::status::{Code, Status};

const USER_AGENT: &str = concat!("towline/", env!("CARGO_PKG_VERSION"));

/// What is called, and how.
#[derive(Debug)]
pub struct Call<'a> {
    /// `host:port` of the server.
    pub authority: &'a str,
    /// The method's path.
    pub method: &'static str,
    /// Metadata; what is secret is marked so.
    pub metadata: Vec<(HeaderName, HeaderValue)>,
    /// After so long an HTTP/2 ping is sent, and again after each answer.
    pub keepalive: Duration,
}

/// Why there is no call.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The connection broke, or what came was no HTTP/2.
    #[error("HTTP/2: {0}")]
    Http2(#[from] h2::Error),
    /// The request cannot be written.
    #[error("no address that a request can be made for")]
    Request,
    /// The answer is not gRPC's.
    #[error("the answer is no gRPC: HTTP status {0}")]
    NotGrpc(StatusCode),
    /// The server refused.
    #[error("refused: {0}")]
    Refused(Status),
}

impl CallError {
    /// As metrics count it.
    pub fn code(&self) -> Code {
        match self {
            CallError::Http2(_) => Code::Unavailable,
            CallError::Request | CallError::NotGrpc(_) => Code::Internal,
            CallError::Refused(status) => status.code,
        }
    }
}

/// A call that was taken. Dropping it closes its connection.
pub struct Taken {
    /// The answer's metadata.
    pub metadata: HeaderMap,
    /// Towards the server.
    pub sink: PacketSink,
    /// From the server.
    pub source: PacketSource,
    /// Resolves when the connection has ended.
    pub connection: AbortOnDropHandle<()>,
}

/// Calls on a new connection, and waits for the answer's headers.
pub async fn call<IO>(io: IO, call: Call<'_>) -> Result<Taken, CallError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = request(&call)?;
    let (mut sender, connection): (SendRequest<Bytes>, _) = Builder::new()
        .initial_window_size(limits::LEGACY_WINDOW)
        .initial_connection_window_size(limits::LEGACY_WINDOW)
        .max_header_list_size(limits::GRPC_HEADER_BYTES)
        .enable_push(false)
        .handshake(io)
        .await?;
    let task = tokio::spawn(drive(connection, call.keepalive));
    let connection = AbortOnDropHandle::new(task);
    let (answer, stream) = sender.send_request(request, false)?;
    let (head, body) = answer.await?.into_parts();
    if let Some(status) = Status::read(&head.headers) {
        return Err(CallError::Refused(status));
    }
    let kind = head.headers.get("content-type");
    let grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(CONTENT_TYPE.as_bytes()));
    if head.status != StatusCode::OK || !grpc {
        return Err(CallError::NotGrpc(head.status));
    }
    Ok(Taken {
        metadata: head.headers,
        sink: PacketSink::new(stream),
        source: PacketSource::new(body),
        connection,
    })
}

fn request(call: &Call<'_>) -> Result<Request<()>, CallError> {
    let mut request = Request::builder()
        .method(Method::POST)
        .version(Version::HTTP_2)
        .uri(format!("https://{}{}", call.authority, call.method))
        .header("content-type", CONTENT_TYPE)
        .header("te", "trailers")
        .header("user-agent", USER_AGENT);
    for (name, value) in &call.metadata {
        request = request.header(name, value);
    }
    request.body(()).map_err(|_| CallError::Request)
}

/// Moves the bytes of the connection until it ends or a ping is not answered.
async fn drive<IO>(mut connection: Connection<IO>, keepalive: Duration)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let pings = connection.ping_pong();
    tokio::select! {
        ended = connection => {
            if let Err(error) = ended {
                debug!(%error, "gRPC connection ended");
            }
        }
        () = keep_alive(pings, keepalive) => debug!("gRPC connection ended: a ping was not answered"),
    }
}

async fn keep_alive(pings: Option<PingPong>, every: Duration) {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(every.max(limits::GRPC_PING_LEAST)).await;
        let pong = pings.ping(Ping::opaque());
        let answered = tokio::time::timeout(limits::GRPC_PING_TIMEOUT, pong).await;
        if !matches!(answered, Ok(Ok(_))) {
            return;
        }
    }
}
