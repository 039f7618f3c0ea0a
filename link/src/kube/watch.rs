//! A watch: one long answer, an event a line.

use std::marker::PhantomData;

use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio_util::task::AbortOnDropHandle;
use towline_proto::limits;

use super::error::{KubeError, Refusal};

/// What happened to an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<T> {
    /// It is there, new or changed.
    Is(T),
    /// It is gone; this was its last state.
    Was(T),
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a serde_json::value::RawValue,
}

/// Events until the API server ends the watch.
pub struct Watch<T> {
    pub(super) server: String,
    pub(super) path: String,
    pub(super) body: Incoming,
    pub(super) rest: BytesMut,
    pub(super) _connection: AbortOnDropHandle<()>,
    pub(super) of: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Watch<T> {
    /// The next event; `None` when the API server ended the watch in order. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Event<T>>, KubeError> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line = self.rest.split_to(end + 1);
                if line.trim_ascii().is_empty() {
                    continue;
                }
                if let Some(event) = self.event(&line)? {
                    return Ok(Some(event));
                }
                continue;
            }
            if self.rest.len() > limits::KUBE_EVENT_BYTES {
                return Err(KubeError::TooLarge {
                    server: self.server.clone(),
                    max: limits::KUBE_EVENT_BYTES,
                });
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(source)) => {
                    return Err(KubeError::Http {
                        server: self.server.clone(),
                        source,
                    });
                }
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.rest.extend_from_slice(data);
                    }
                }
            }
        }
    }

    /// The same. The API server ends a watch in time; one that it does not end is a connection
    /// that broke without a word.
    pub async fn next_in_time(&mut self) -> Result<Option<Event<T>>, KubeError> {
        let silent = limits::KUBE_WATCH + limits::KUBE_REQUEST;
        tokio::time::timeout(silent, self.next())
            .await
            .unwrap_or_else(|_| {
                Err(KubeError::Timeout {
                    server: self.server.clone(),
                })
            })
    }

    fn event(&self, line: &[u8]) -> Result<Option<Event<T>>, KubeError> {
        let wrong = |source| KubeError::Body {
            server: self.server.clone(),
            request: format!("watch {}", self.path),
            source,
        };
        let line: Line<'_> = serde_json::from_slice(line).map_err(wrong)?;
        let object = || serde_json::from_str(line.object.get()).map_err(wrong);
        match line.kind {
            "ADDED" | "MODIFIED" => Ok(Some(Event::Is(object()?))),
            "DELETED" => Ok(Some(Event::Was(object()?))),
            "ERROR" => {
                let refusal: Refusal = serde_json::from_str(line.object.get()).map_err(wrong)?;
                Err(match refusal.code {
                    410 => KubeError::Gone {
                        path: self.path.clone(),
                    },
                    _ => KubeError::Refused {
                        request: format!("watch {}", self.path),
                        refusal,
                    },
                })
            }
            _ => Ok(None),
        }
    }
}
