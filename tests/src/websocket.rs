//! As much of RFC 6455 as `kubectl exec` needs: the key of the upgrade, and binary messages of
//! the `v5.channel.k8s.io` subprotocol, whose first byte names a channel. Both sides, because
//! the kit plays the kubelet and kubectl.

use std::io::{self, Cursor};

use aws_lc_rs::digest;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Chain};

/// The subprotocol of remote commands.
pub const SUBPROTOCOL: &str = "v5.channel.k8s.io";
/// Channel of the client's input.
pub const STDIN: u8 = 0;
/// Channel of the command's output.
pub const STDOUT: u8 = 1;
/// Channel on which the kubelet says how the command ended.
pub const STATUS: u8 = 3;
/// Channel on which a v5 client says that another channel is closed.
pub const CLOSE: u8 = 255;

/// Longest message that is accepted, bytes.
const MESSAGE_BYTES: u64 = 1024 * 1024;
const BINARY: u8 = 0x2;
const CLOSE_FRAME: u8 = 0x8;
const PING: u8 = 0x9;

/// The value of `Sec-WebSocket-Accept` for a client's key (RFC 6455 section 4.2.2).
pub fn accept_key(key: &str) -> String {
    let mut text = key.trim().to_owned();
    text.push_str("258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    base64(hash.as_ref())
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let number = group
            .iter()
            .fold(0_u32, |number, byte| number << 8 | u32::from(*byte))
            << (8 * (3 - group.len()));
        for place in 0..4 {
            let symbol = ALPHABET[(number >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= group.len() {
                symbol as char
            } else {
                '='
            });
        }
    }
    text
}

/// A message as this subprotocol has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Bytes of one channel.
    Data(u8, Vec<u8>),
    /// The other side closes.
    Close,
}

/// One side of an open connection.
pub struct WebSocket<S> {
    stream: Chain<Cursor<Vec<u8>>, S>,
    /// A client masks what it sends, a server must not.
    masks: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// The side that asked for the upgrade.
    pub fn client(stream: S) -> Self {
        Self::client_with(stream, Vec::new())
    }

    /// The same when bytes behind the upgrade's head have been read already.
    pub fn client_with(stream: S, early: Vec<u8>) -> Self {
        Self::new(stream, early, true)
    }

    /// The side that granted it.
    pub fn server(stream: S) -> Self {
        Self::new(stream, Vec::new(), false)
    }

    fn new(stream: S, early: Vec<u8>, masks: bool) -> Self {
        let stream = Cursor::new(early).chain(stream);
        Self { stream, masks }
    }

    /// Sends bytes on one channel.
    pub async fn send(&mut self, channel: u8, bytes: &[u8]) -> io::Result<()> {
        let mut payload = vec![channel];
        payload.extend_from_slice(bytes);
        self.frame(BINARY, payload).await
    }

    /// Says that this side is done (status 1000).
    pub async fn close(&mut self) -> io::Result<()> {
        self.frame(CLOSE_FRAME, 1000_u16.to_be_bytes().to_vec())
            .await?;
        self.stream.get_mut().1.shutdown().await
    }

    async fn frame(&mut self, kind: u8, mut payload: Vec<u8>) -> io::Result<()> {
        let mut frame = vec![0x80 | kind];
        let mask_bit = if self.masks { 0x80 } else { 0 };
        match payload.len() {
            len @ 0..=125 => frame.push(mask_bit | len as u8),
            len @ 126..=0xffff => {
                frame.push(mask_bit | 126);
                frame.extend_from_slice(&(len as u16).to_be_bytes());
            }
            len => {
                frame.push(mask_bit | 127);
                frame.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        if self.masks {
            // Masking protects old proxies from scripts in browsers; any value will do here.
            let mask = [0x4b, 0x69, 0x74, 0x21];
            frame.extend_from_slice(&mask);
            for (at, byte) in payload.iter_mut().enumerate() {
                *byte ^= mask[at % 4];
            }
        }
        frame.extend_from_slice(&payload);
        let stream = self.stream.get_mut().1;
        stream.write_all(&frame).await?;
        stream.flush().await
    }

    /// The next message. Fragmented messages are refused: no Kubernetes client sends them.
    pub async fn receive(&mut self) -> io::Result<Message> {
        loop {
            let mut head = [0; 2];
            self.stream.read_exact(&mut head).await?;
            let len = match head[1] & 0x7f {
                126 => u64::from(self.stream.read_u16().await?),
                127 => self.stream.read_u64().await?,
                short => u64::from(short),
            };
            let masked = head[1] & 0x80 != 0;
            if len > MESSAGE_BYTES || head[0] & 0x80 == 0 || masked == self.masks {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut mask = [0; 4];
            if masked {
                self.stream.read_exact(&mut mask).await?;
            }
            let mut payload = vec![0; len as usize];
            self.stream.read_exact(&mut payload).await?;
            for (at, byte) in payload.iter_mut().enumerate() {
                *byte ^= mask[at % 4];
            }
            match head[0] & 0xf {
                BINARY if !payload.is_empty() => {
                    let channel = payload.remove(0);
                    return Ok(Message::Data(channel, payload));
                }
                CLOSE_FRAME => return Ok(Message::Close),
                PING => self.frame(0xa, payload).await?,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_key_is_that_of_the_standard() {
        // RFC 6455 section 1.3.
        assert_eq!(
            accept_key("dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[tokio::test]
    async fn messages_of_every_length_class_arrive() {
        let (a, b) = tokio::io::duplex(1 << 20);
        let (mut client, mut server) = (WebSocket::client(a), WebSocket::server(b));
        for len in [0, 124, 125, 65_534, 65_535, 70_000] {
            let bytes = vec![7; len];
            client.send(STDIN, &bytes).await.unwrap();
            assert_eq!(
                server.receive().await.unwrap(),
                Message::Data(STDIN, bytes.clone())
            );
            server.send(STDOUT, &bytes).await.unwrap();
            assert_eq!(
                client.receive().await.unwrap(),
                Message::Data(STDOUT, bytes)
            );
        }
    }
}
