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
        .data_frame_budget(limits::LEGACY_FRAMES)
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use h2::server;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
    use tokio::sync::oneshot;
    use tokio::time::Instant;

    use super::*;
    use crate::grpc::server::accept;

    /// Passes on what a client says and counts its pings, answers to others not among them.
    async fn count(
        mut from: ReadHalf<DuplexStream>,
        mut to: WriteHalf<DuplexStream>,
        pings: Arc<AtomicUsize>,
    ) {
        let mut preface = [0; 24];
        from.read_exact(&mut preface).await.unwrap();
        to.write_all(&preface).await.unwrap();
        let mut head = [0; 9];
        while from.read_exact(&mut head).await.is_ok() {
            let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let mut rest = vec![0; len];
            from.read_exact(&mut rest).await.unwrap();
            if head[3] == 6 && head[4] & 1 == 0 {
                pings.fetch_add(1, Ordering::Relaxed);
            }
            to.write_all(&head).await.unwrap();
            to.write_all(&rest).await.unwrap();
        }
    }

    /// Takes a call, and answers pings until it is told to be gone.
    async fn serve(io: DuplexStream, mut gone: oneshot::Receiver<()>) {
        let mut connection = server::handshake(io).await.unwrap();
        // A call that is let go would be reset.
        let mut kept = Vec::new();
        loop {
            tokio::select! {
                call = connection.accept() => {
                    let Some(Ok((_, mut respond))) = call else { return };
                    let sink = accept(&mut respond, &[]).unwrap();
                    kept.push((respond, sink));
                }
                _ = &mut gone => std::future::pending().await,
            }
        }
    }

    struct Met {
        taken: Taken,
        leave: oneshot::Sender<()>,
        pings: Arc<AtomicUsize>,
        _tasks: [AbortOnDropHandle<()>; 3],
    }

    async fn meet(keepalive: Duration) -> Met {
        let (near, passed) = tokio::io::duplex(64 * 1024);
        let (passing, far) = tokio::io::duplex(64 * 1024);
        let (leave, gone) = oneshot::channel();
        let pings = Arc::<AtomicUsize>::default();
        // Only the client's direction is looked at.
        let (from, mut back) = tokio::io::split(passed);
        let (mut answers, to) = tokio::io::split(passing);
        let there = tokio::spawn(count(from, to, Arc::clone(&pings)));
        let here = tokio::spawn(async move {
            let _ = tokio::io::copy(&mut answers, &mut back).await;
        });
        let serving = tokio::spawn(serve(far, gone));
        let asked = Call {
            authority: "server:1",
            method: towline_proto::konnectivity::CONNECT_METHOD,
            metadata: Vec::new(),
            keepalive,
        };
        let taken = call(near, asked).await.unwrap();
        Met {
            taken,
            leave,
            pings,
            _tasks: [there, here, serving].map(AbortOnDropHandle::new),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_is_kept_while_its_machine_answers_and_no_longer() {
        const EVERY: Duration = Duration::from_secs(3600);
        let mut met = meet(EVERY).await;
        tokio::time::sleep(10 * EVERY + limits::GRPC_PING_TIMEOUT).await;
        assert_eq!(met.pings.load(Ordering::Relaxed), 10);
        assert!(!met.taken.connection.is_finished());
        met.leave.send(()).unwrap();
        let gone = Instant::now();
        let end = met.taken.source.next().await;
        assert!(end.is_err(), "{end:?}");
        let stayed = gone.elapsed();
        let most = EVERY + limits::GRPC_PING_TIMEOUT;
        assert!(
            stayed >= limits::GRPC_PING_TIMEOUT && stayed <= most,
            "{stayed:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn pings_never_come_closer_than_the_other_program_bears() {
        let met = meet(Duration::from_millis(1)).await;
        let most = 10;
        tokio::time::sleep(limits::GRPC_PING_LEAST * most + Duration::from_secs(1)).await;
        assert_eq!(met.pings.load(Ordering::Relaxed), most as usize);
    }
}
