//! What kube-apiserver does for `kubectl` behind the door: TLS to the kubelet inside the dial,
//! a page, logs that follow, a command over WebSocket.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::apiserver::{Pipe, client_config};
use crate::authority::Pair;
use crate::websocket::{self, WebSocket};

/// One verified connection to a kubelet.
pub struct Kubelet {
    stream: TlsStream<Pipe>,
    host: String,
    rest: Vec<u8>,
}

impl Kubelet {
    /// TLS inside an open dial; the kubelet has to prove that it is at `ip`.
    pub async fn connect(
        pipe: Pipe,
        ip: IpAddr,
        root: &CertificateDer<'static>,
    ) -> io::Result<Self> {
        Self::connect_as(pipe, ip, None, root).await
    }

    /// The same with a client certificate, as kube-apiserver has one.
    pub async fn connect_as(
        pipe: Pipe,
        ip: IpAddr,
        own: Option<&Pair>,
        root: &CertificateDer<'static>,
    ) -> io::Result<Self> {
        let connector = TlsConnector::from(Arc::new(client_config(own, root)));
        let stream = connector.connect(ServerName::from(ip), pipe).await?;
        Ok(Self {
            stream,
            host: ip.to_string(),
            rest: Vec::new(),
        })
    }

    async fn ask(&mut self, path: &str, more: &str) -> io::Result<String> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n{more}\r\n", self.host);
        self.stream.write_all(request.as_bytes()).await?;
        self.stream.flush().await?;
        let head = self.until(b"\r\n\r\n").await?;
        Ok(String::from_utf8_lossy(&head).into_owned())
    }

    /// Bytes up to and with `end`.
    async fn until(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            if let Some(at) = self
                .rest
                .windows(end.len())
                .position(|window| window == end)
            {
                return Ok(self.rest.drain(..at + end.len()).collect());
            }
            if self.stream.read_buf(&mut self.rest).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// A page: status line and body.
    pub async fn get(&mut self, path: &str) -> io::Result<(String, String)> {
        let head = self.ask(path, "").await?;
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "));
        let length: usize = length
            .and_then(|length| length.trim().parse().ok())
            .unwrap_or(0);
        while self.rest.len() < length {
            if self.stream.read_buf(&mut self.rest).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let body: Vec<u8> = self.rest.drain(..length).collect();
        let status = head.lines().next().unwrap_or_default().to_owned();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// Begins to follow the log of a container.
    pub async fn follow(mut self) -> io::Result<Logs> {
        let head = self
            .ask("/containerLogs/default/web/app?follow=true", "")
            .await?;
        if !head.starts_with("HTTP/1.1 200 ") {
            return Err(io::Error::other(head));
        }
        Ok(Logs { kubelet: self })
    }

    /// Runs a command in a container.
    pub async fn exec(mut self, command: &str) -> io::Result<WebSocket<TlsStream<Pipe>>> {
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        let upgrade = format!(
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {}\r\n",
            websocket::SUBPROTOCOL
        );
        let path = format!("/exec/default/web/app?command={command}&input=1&output=1");
        let head = self.ask(&path, &upgrade).await?;
        let accepted = head.contains(&format!(
            "Sec-WebSocket-Accept: {}\r\n",
            websocket::accept_key(key)
        ));
        // A command that prints at once may have its first frame in the packet of the head.
        if head.starts_with("HTTP/1.1 101 ") && accepted {
            Ok(WebSocket::client_with(self.stream, self.rest))
        } else {
            Err(io::Error::other(head))
        }
    }
}

/// A log that is being followed.
pub struct Logs {
    kubelet: Kubelet,
}

impl Logs {
    /// The next line; `None` at the end of the log.
    pub async fn line(&mut self) -> io::Result<Option<String>> {
        let size = self.kubelet.until(b"\r\n").await?;
        let size = String::from_utf8_lossy(&size);
        let size = usize::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
        let mut chunk = self.kubelet.until(b"\r\n").await?;
        chunk.truncate(size);
        Ok((size > 0).then(|| String::from_utf8_lossy(&chunk).trim_end().to_owned()))
    }
}
