//! The sockets of the fake API: TLS, HTTP/1.1, and the lines of a watch.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::Shared;
use super::answers::{Answer, Asked, Watched, answer, status};
use super::protobuf;

/// A whole body, or the lines of a watch.
pub(crate) enum Out {
    Whole(Option<Bytes>),
    Lines(mpsc::Receiver<Bytes>),
}

impl Body for Out {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Out::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Out::Lines(lines) => lines
                .poll_recv(cx)
                .map(|line| line.map(|line| Ok(Frame::data(line)))),
        }
    }
}

pub(crate) async fn accept(listener: TcpListener, tls: TlsAcceptor, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        connections.spawn(connection(tcp, tls.clone(), Arc::clone(&shared)));
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(tcp: TcpStream, tls: TlsAcceptor, shared: Arc<Shared>) {
    let Ok(stream) = tls.accept(tcp).await else {
        return;
    };
    shared.lock().connections += 1;
    let certified = stream.get_ref().1.peer_certificates().is_some();
    let service = service_fn(|request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(serve(request, shared, certified).await) }
    });
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn serve(request: Request<Incoming>, shared: Arc<Shared>, certified: bool) -> Response<Out> {
    let (head, body) = request.into_parts();
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => Bytes::new(),
    };
    let bearer = head.headers.get("authorization");
    let bearer = bearer.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let asked = Asked {
        verb: head.method.to_string(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().map(query).unwrap_or_default(),
        body: protobuf::read(&body)
            .or_else(|| serde_json::from_slice(&body).ok())
            .unwrap_or(Value::Null),
    };
    let answered = {
        let mut state = shared.lock();
        state.requests.push(format!("{} {}", asked.verb, head.uri));
        let by_token = bearer.and_then(|token| state.callers.get(token).cloned());
        let name = by_token.or(certified.then(|| "certified".to_owned()));
        answer(&mut state, &asked, name.as_deref())
    };
    shared.changed.send_modify(|version| *version += 1);
    match answered {
        Answer::Whole(code, body) => respond(code, Out::Whole(Some(body.to_string().into()))),
        Answer::Nothing => std::future::pending().await,
        Answer::Watch(watched, version) => {
            let (sender, lines) = mpsc::channel(16);
            tokio::spawn(watch(shared, watched, version, sender));
            respond(200, Out::Lines(lines))
        }
    }
}

fn respond(code: u16, body: Out) -> Response<Out> {
    Response::builder()
        .status(code)
        .header("content-type", "application/json")
        .body(body)
        .expect("a status and a body make an answer")
}

/// Ends when the reader is gone, when it fell behind, or when it is cut.
async fn watch(
    shared: Arc<Shared>,
    watched: Watched,
    mut version: u64,
    lines: mpsc::Sender<Bytes>,
) {
    let mut changed = shared.changed.subscribe();
    let mut cut = shared.cut.subscribe();
    loop {
        changed.borrow_and_update();
        let changes = watched.since(&shared.lock(), version);
        let Some(changes) = changes else {
            let gone = status(410, "Expired", "too old resource version");
            let line = json!({"type": "ERROR", "object": gone});
            let _ = lines.send(format!("{line}\n").into()).await;
            return;
        };
        for change in changes {
            version = change.version;
            if watched.selects(&change.object) {
                let line = json!({"type": change.kind, "object": change.object});
                if lines.send(format!("{line}\n").into()).await.is_err() {
                    return;
                }
            }
        }
        tokio::select! {
            _ = changed.changed() => {}
            _ = cut.changed() => return,
            () = lines.closed() => return,
        }
    }
}

fn query(text: &str) -> HashMap<String, String> {
    let pairs = text
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs
        .map(|(key, value)| (plain(key), plain(value)))
        .collect()
}

fn plain(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let hex = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        match byte {
            b'%' => match (hex(bytes.next()), hex(bytes.next())) {
                (Some(high), Some(low)) => out.push((high * 16 + low) as u8),
                _ => out.push(b'?'),
            },
            b'+' => out.push(b' '),
            other => out.push(other),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
