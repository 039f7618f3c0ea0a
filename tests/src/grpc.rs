//! A front end that speaks Konnectivity's gRPC, by hand: one HTTP/2 connection, streams on it,
//! packets as they are. It behaves like the real client where that matters (DATA for what it does
//! not know is answered with CLOSE_REQ and dropped) and can say what the real one never would.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio_util::io::poll_read_buf;
use tokio_util::task::AbortOnDropHandle;
use towline_link::grpc::Status;
use towline_proto::konnectivity::frame::{self, Messages};
use towline_proto::konnectivity::{CONTENT_TYPE, PROXY_METHOD, Packet};

use crate::apiserver::FakeApiserver;
use crate::scenario::expect;

/// The dial id of every dial; each has a stream of its own.
pub const RANDOM: i64 = 77;

/// One HTTP/2 connection to a door.
pub struct GrpcFrontEnd {
    client: SendRequest<Bytes>,
    connection: AbortOnDropHandle<Result<(), h2::Error>>,
}

/// What cannot be said of a connection or stream but its own error.
fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::other(error)
}

impl GrpcFrontEnd {
    /// Connects to the door that `front` uses.
    pub async fn connect(front: &FakeApiserver) -> io::Result<Self> {
        Self::with_window(front, 65_535).await
    }

    /// The same, with so many bytes that may wait unread on one stream; on all together it is as
    /// with grpc-go, which reads whatever comes.
    pub async fn with_window(front: &FakeApiserver, window: u32) -> io::Result<Self> {
        Self::over(front.connect().await?, window).await
    }

    /// The same over a connection that was made.
    pub async fn over<S>(stream: S, window: u32) -> io::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (client, connection) = h2::client::Builder::new()
            .initial_window_size(window)
            .initial_connection_window_size(1 << 30)
            .handshake(stream)
            .await
            .map_err(other)?;
        Ok(Self {
            client,
            connection: AbortOnDropHandle::new(tokio::spawn(connection)),
        })
    }

    /// A stream of the real method.
    pub async fn stream(&self) -> Call {
        self.call(PROXY_METHOD, &[("content-type", CONTENT_TYPE)])
            .await
            .expect("the door takes a stream")
    }

    /// A stream of any method with any headers.
    pub async fn call(&self, path: &str, headers: &[(&str, &str)]) -> io::Result<Call> {
        let mut request = Request::post(format!("http://localhost{path}")).header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).map_err(other)?;
        let mut client = self.client.clone().ready().await.map_err(other)?;
        let (response, send) = client.send_request(request, false).map_err(other)?;
        Ok(Call {
            send,
            response: Some(response),
            head: None,
            recv: None,
            messages: Messages::new(1 << 23),
        })
    }

    /// Dials as the real client does.
    pub async fn dial(&self, target: &str) -> Result<GrpcPipe, String> {
        self.dial_late(target, 0).await
    }

    /// The same, but the connection becomes known only after so many packets have come.
    pub async fn dial_late(&self, target: &str, packets: usize) -> Result<GrpcPipe, String> {
        let mut call = self.stream().await;
        call.send(&request(target));
        match expect("DIAL_RSP", call.packet()).await {
            Ok(Some(Packet::DialResponse {
                error,
                connect_id,
                random: RANDOM,
            })) => match error.is_empty() {
                true => Ok(GrpcPipe {
                    call,
                    id: connect_id,
                    unknown_for: packets,
                    closed: None,
                }),
                false => Err(error),
            },
            other => panic!("{target}: not DIAL_RSP: {other:?}"),
        }
    }

    /// The pipe of a dial that must succeed.
    pub async fn pipe(&self, target: &str) -> GrpcPipe {
        match self.dial(target).await {
            Ok(pipe) => pipe,
            Err(error) => panic!("{target}: {error}"),
        }
    }

    /// The error text of a dial that must fail.
    pub async fn refusal(&self, target: &str) -> String {
        match self.dial(target).await {
            Ok(_) => panic!("{target} was dialled"),
            Err(error) => error,
        }
    }

    /// Resolves when the server has closed the connection.
    pub async fn ended(self) -> Result<(), h2::Error> {
        drop(self.client);
        self.connection.await.expect("the task does not panic")
    }
}

/// A connection on which the server's wish to end it is not heard: neither GOAWAY, nor the PING
/// whose answer says that it was understood.
pub struct Deaf<S> {
    io: S,
    came: BytesMut,
    heard: BytesMut,
}

const PING: u8 = 6;
const GOAWAY: u8 = 7;

impl<S> Deaf<S> {
    /// Around a connection that says nothing yet.
    pub fn new(io: S) -> Self {
        Self {
            io,
            came: BytesMut::new(),
            heard: BytesMut::new(),
        }
    }

    fn hear(&mut self) {
        while let Some((head, _)) = self.came.split_first_chunk::<9>() {
            let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let kind = head[3];
            if self.came.len() < 9 + len {
                return;
            }
            let frame = self.came.split_to(9 + len);
            if kind != PING && kind != GOAWAY {
                self.heard.extend_from_slice(&frame);
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Deaf<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.heard.is_empty() {
            if ready!(poll_read_buf(Pin::new(&mut this.io), cx, &mut this.came))? == 0 {
                return Poll::Ready(Ok(()));
            }
            this.hear();
        }
        let count = this.heard.len().min(buffer.remaining());
        buffer.put_slice(&this.heard.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Deaf<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A connection on which the other end's pings are counted.
pub struct Pings<S> {
    io: S,
    /// Of the frame that has begun.
    head: Vec<u8>,
    /// What is left of it behind that.
    left: usize,
    count: watch::Sender<usize>,
}

impl<S> Pings<S> {
    /// Around a connection that says nothing yet; how many have come.
    pub fn new(io: S) -> (Self, watch::Receiver<usize>) {
        let (count, counted) = watch::channel(0);
        let head = Vec::new();
        let left = 0;
        let pings = Self {
            io,
            head,
            left,
            count,
        };
        (pings, counted)
    }

    fn look(&mut self, mut bytes: &[u8]) {
        while let [first, rest @ ..] = bytes {
            if self.left > 0 {
                let passed = self.left.min(bytes.len());
                self.left -= passed;
                bytes = &bytes[passed..];
                continue;
            }
            self.head.push(*first);
            bytes = rest;
            if let [a, b, c, kind, flags, ..] = self.head[..]
                && self.head.len() == 9
            {
                if kind == PING && flags & 1 == 0 {
                    self.count.send_modify(|count| *count += 1);
                }
                self.left = u32::from_be_bytes([0, a, b, c]) as usize;
                self.head.clear();
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Pings<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        self.look(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Pings<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// The packet that asks for `target`.
pub fn request(target: &str) -> Packet {
    Packet::DialRequest {
        protocol: "tcp".to_owned(),
        address: target.to_owned(),
        random: RANDOM,
    }
}

/// One stream.
pub struct Call {
    send: SendStream<Bytes>,
    response: Option<ResponseFuture>,
    head: Option<Response<()>>,
    recv: Option<RecvStream>,
    messages: Messages,
}

impl Call {
    /// Sends a packet without waiting for the window.
    pub fn send(&mut self, packet: &Packet) {
        let (head, data) = frame::put(packet);
        self.send_raw([head, data].concat());
    }

    /// Sends bytes as they stand.
    pub fn send_raw(&mut self, bytes: impl Into<Bytes>) {
        // Fails on a stream that was ended, which shows when it is read.
        let _ = self.send.send_data(bytes.into(), false);
    }

    /// Sends a packet when there is room for it.
    pub async fn send_when_taken(&mut self, packet: &Packet) -> io::Result<()> {
        let (head, data) = frame::put(packet);
        let mut bytes = Bytes::from([head, data].concat());
        while !bytes.is_empty() {
            self.send.reserve_capacity(bytes.len());
            let room = match self.send.capacity() {
                0 => match poll_fn(|cx| self.send.poll_capacity(cx)).await {
                    Some(room) => room.map_err(other)?,
                    None => return Err(io::ErrorKind::BrokenPipe.into()),
                },
                room => room,
            };
            let piece = bytes.split_to(room.min(bytes.len()));
            self.send.send_data(piece, false).map_err(other)?;
        }
        Ok(())
    }

    /// Ends our direction.
    pub fn end(&mut self) {
        let _ = self.send.send_data(Bytes::new(), true);
    }

    /// Gives the stream up.
    pub fn cancel(&mut self) {
        self.send.send_reset(h2::Reason::CANCEL);
    }

    async fn answered(&mut self) -> io::Result<&mut RecvStream> {
        if let Some(response) = self.response.take() {
            let (head, body) = response.await.map_err(other)?.into_parts();
            self.head = Some(Response::from_parts(head, ()));
            self.recv = Some(body);
        }
        self.recv.as_mut().ok_or_else(|| other("no answer"))
    }

    /// The next packet; `None` when the server has ended its direction.
    pub async fn packet(&mut self) -> io::Result<Option<Packet>> {
        loop {
            if let Some(message) = self.messages.pop().map_err(other)? {
                return Packet::decode(message).map(Some).map_err(other);
            }
            let recv = self.answered().await?;
            match recv.data().await {
                Some(chunk) => {
                    let chunk = chunk.map_err(other)?;
                    let credit = recv.flow_control();
                    credit.release_capacity(chunk.len()).map_err(other)?;
                    self.messages.push(chunk);
                }
                None => return Ok(None),
            }
        }
    }

    /// The HTTP status and headers of the answer.
    pub async fn head(&mut self) -> io::Result<Response<()>> {
        self.answered().await?;
        self.head.clone().ok_or_else(|| other("no answer"))
    }

    /// How the server ended the stream; packets before that are read and dropped.
    pub async fn status(&mut self) -> io::Result<Status> {
        while self.packet().await?.is_some() {}
        let recv = self.answered().await?;
        let trailers = recv.trailers().await.map_err(other)?;
        let of_head = || {
            self.head
                .as_ref()
                .and_then(|head| Status::read(head.headers()))
        };
        trailers
            .as_ref()
            .and_then(|trailers: &HeaderMap| Status::read(trailers))
            .or_else(of_head)
            .ok_or_else(|| other("no grpc-status"))
    }
}

/// A connection through the door.
pub struct GrpcPipe {
    /// Its stream.
    pub call: Call,
    /// Its id.
    pub id: i64,
    /// Packets that the client takes for an unknown connection's.
    unknown_for: usize,
    closed: Option<String>,
}

impl GrpcPipe {
    /// Sends bytes when there is room for them, 32 KiB a packet.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        for chunk in bytes.chunks(32 * 1024) {
            let packet = Packet::Data {
                connect_id: self.id,
                data: Bytes::copy_from_slice(chunk),
            };
            self.call.send_when_taken(&packet).await?;
        }
        Ok(())
    }

    /// The next bytes; `None` after CLOSE_RSP, or at the end of the stream.
    pub async fn read(&mut self) -> io::Result<Option<Bytes>> {
        while self.closed.is_none() {
            let Some(packet) = self.call.packet().await? else {
                return Ok(None);
            };
            let known = self.unknown_for == 0;
            self.unknown_for = self.unknown_for.saturating_sub(1);
            match packet {
                Packet::Data { connect_id, data } if connect_id == self.id && known => {
                    return Ok(Some(data));
                }
                Packet::Data { connect_id, .. } => {
                    self.call.send(&Packet::CloseRequest { connect_id });
                }
                Packet::CloseResponse { connect_id, error } if connect_id == self.id && known => {
                    self.closed = Some(error);
                }
                Packet::CloseResponse { .. } => {}
                other => panic!("not for an open connection: {other:?}"),
            }
        }
        Ok(None)
    }

    /// Everything up to the end.
    pub async fn read_all(&mut self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(bytes) = self.read().await? {
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }

    /// So many bytes.
    pub async fn read_exact(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        while all.len() < count {
            match self.read().await? {
                Some(bytes) => all.extend_from_slice(&bytes),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        Ok(all)
    }

    /// What CLOSE_RSP said, once it has come.
    pub fn closed(&self) -> Option<&str> {
        self.closed.as_deref()
    }

    /// Asks for the end as the real client does, and waits for the answer's text. What comes
    /// meanwhile is dropped.
    pub async fn close(&mut self) -> io::Result<String> {
        self.call.send(&Packet::CloseRequest {
            connect_id: self.id,
        });
        while self.read().await?.is_some() {}
        Ok(self.closed.clone().unwrap_or_default())
    }
}
