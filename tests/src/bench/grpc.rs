//! A dial through a `grpc` door, as kube-apiserver makes it: a connection, a stream and a tunnel for each.
//! The windows are large from the start, which is kinder to a peer than the real client's are.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use tokio::io::ReadBuf;
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;
use towline_proto::konnectivity::frame::{self, Messages};
use towline_proto::konnectivity::{CONTENT_TYPE, PROXY_METHOD, Packet};

/// HTTP/2 window of a stream and of a connection, bytes.
const WINDOW: u32 = 4 * 1024 * 1024;
/// Bytes of one DATA packet towards the target: what Go's `io.Copy` writes at once.
const WRITE: usize = 32 * 1024;
/// gRPC's own bound of a message, bytes.
const MESSAGE: usize = 4 * 1024 * 1024;
/// Room for everything of a DATA packet that is not data, bytes.
const HEAD: usize = 64;
/// Names of dials, which a server keeps in one table for all its front ends.
static RANDOM: AtomicI64 = AtomicI64::new(0);

/// An open tunnel.
#[derive(Debug)]
pub struct Tunnel {
    send: SendStream<Bytes>,
    recv: RecvStream,
    messages: Messages,
    /// Bytes that came and are not read yet.
    data: Bytes,
    connect_id: i64,
    ended: bool,
    closed: bool,
    connection: AbortOnDropHandle<()>,
}

impl Tunnel {
    /// Dials `target` through the door at `path`.
    pub async fn open(path: &Path, target: &str) -> io::Result<Self> {
        let stream = UnixStream::connect(path).await?;
        let (client, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(stream)
            .await
            .map_err(io::Error::other)?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            // Whoever uses the stream hears of it there.
            let _ = connection.await;
        }));
        let mut client = client.ready().await.map_err(io::Error::other)?;
        let request = http::Request::post(format!("http://localhost{PROXY_METHOD}"))
            .header("content-type", CONTENT_TYPE)
            .header("te", "trailers")
            .body(())
            .map_err(io::Error::other)?;
        let (response, mut send) = client
            .send_request(request, false)
            .map_err(io::Error::other)?;
        let request = Packet::DialRequest {
            protocol: "tcp".to_owned(),
            address: target.to_owned(),
            random: random(),
        };
        put(&mut send, &request)?;
        let response = response.await.map_err(io::Error::other)?;
        let mut tunnel = Self {
            send,
            recv: response.into_body(),
            messages: Messages::new(MESSAGE),
            data: Bytes::new(),
            connect_id: 0,
            ended: false,
            closed: false,
            connection,
        };
        match std::future::poll_fn(|cx| tunnel.poll_packet(cx)).await? {
            Some(Packet::DialResponse {
                error, connect_id, ..
            }) if error.is_empty() => {
                tunnel.connect_id = connect_id;
                Ok(tunnel)
            }
            other => Err(io::Error::other(format!("the door answers {other:?}"))),
        }
    }

    /// Whether the connection has ended.
    pub fn is_lost(&self) -> bool {
        self.connection.is_finished() || self.ended
    }

    fn poll_packet(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Packet>>> {
        loop {
            if let Some(message) = self.messages.pop().map_err(io::Error::other)? {
                let packet = Packet::decode(message).map_err(io::Error::other)?;
                return Poll::Ready(Ok(Some(packet)));
            }
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(chunk)) => {
                    let credit = self.recv.flow_control();
                    credit
                        .release_capacity(chunk.len())
                        .map_err(io::Error::other)?;
                    self.messages.push(chunk);
                }
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Ok(None)),
            }
        }
    }

    /// As [`tokio::io::AsyncRead`].
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.data.is_empty() && !self.ended {
            match ready!(self.poll_packet(cx))? {
                Some(Packet::Data { data, .. }) => self.data = data,
                Some(Packet::CloseResponse { .. }) => self.ended = true,
                Some(_) => {}
                None => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            }
        }
        let length = self.data.len().min(buffer.remaining());
        buffer.put_slice(&self.data[..length]);
        self.data.advance(length);
        Poll::Ready(Ok(()))
    }

    /// As [`tokio::io::AsyncWrite`].
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let length = bytes.len().min(WRITE);
        self.send.reserve_capacity(length + HEAD);
        while self.send.capacity() < length + HEAD {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let packet = Packet::Data {
            connect_id: self.connect_id,
            data: Bytes::copy_from_slice(&bytes[..length]),
        };
        put(&mut self.send, &packet)?;
        Poll::Ready(Ok(length))
    }

    /// The protocol knows no half-close: everything ends.
    pub fn close(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.closed, true) {
            return Ok(());
        }
        let connect_id = self.connect_id;
        put(&mut self.send, &Packet::CloseRequest { connect_id })
    }
}

/// Apart from those of the other generators by the process, and of this one by a counter.
fn random() -> i64 {
    (i64::from(std::process::id()) << 32) + RANDOM.fetch_add(1, Ordering::Relaxed)
}

fn put(send: &mut SendStream<Bytes>, packet: &Packet) -> io::Result<()> {
    let (head, data) = frame::put(packet);
    send.send_data(head, false).map_err(io::Error::other)?;
    if !data.is_empty() {
        send.send_data(data, false).map_err(io::Error::other)?;
    }
    Ok(())
}
