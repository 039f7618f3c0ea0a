//! One request to the Kubernetes API and its answer, within their bounds.
//!
//! A connection that is done with an answer waits for the next request. When the API server has
//! closed it meanwhile, a request that was not sent, or that changes nothing, goes out again on a
//! new one; any other is reported as failed.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;
use towline_proto::limits;
use tracing::debug;

use super::access::Access;
use super::error::{KubeError, Refusal};
use super::watch::Watch;
use crate::tls::{addresses, socket};

const JSON: &str = "application/json";
const AGENT: &str = concat!("towline/", env!("CARGO_PKG_VERSION"));

type Ask = Request<Full<Bytes>>;

/// A connection to the API server, and the task that moves its bytes.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    task: AbortOnDropHandle<()>,
}

struct Inner {
    access: Access,
    server: String,
    idle: Mutex<Vec<Connection>>,
}

/// The API, as whoever the [`Access`] says that we are. Cheap to clone.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({})", self.0.server)
    }
}

#[derive(Serialize)]
struct DeleteOptions<'a> {
    #[serde(rename = "apiVersion")]
    version: &'static str,
    kind: &'static str,
    #[serde(skip_serializing_if = "Preconditions::is_empty")]
    preconditions: Preconditions<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Preconditions<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    uid: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    resource_version: &'a str,
}

impl Preconditions<'_> {
    fn is_empty(&self) -> bool {
        self.uid.is_empty() && self.resource_version.is_empty()
    }
}

impl Client {
    /// Connects when something is asked for.
    pub fn new(access: Access) -> Self {
        Self(Arc::new(Inner {
            server: access.server(),
            access,
            idle: Mutex::default(),
        }))
    }

    /// `host:port` of the API.
    pub fn server(&self) -> &str {
        &self.0.server
    }

    /// Reads an object or a list.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, KubeError> {
        self.read(Method::GET, path, Bytes::new()).await
    }

    /// Makes an object in the collection at `path`.
    pub async fn create<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        object: &B,
    ) -> Result<T, KubeError> {
        self.read(Method::POST, path, json(path, object)?).await
    }

    /// Replaces the object at `path`.
    pub async fn update<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        object: &B,
    ) -> Result<T, KubeError> {
        self.read(Method::PUT, path, json(path, object)?).await
    }

    /// Removes the object at `path`; where `uid` or `version` is not empty, only if it is that
    /// very one.
    pub async fn delete(&self, path: &str, uid: &str, version: &str) -> Result<(), KubeError> {
        let options = DeleteOptions {
            version: "v1",
            kind: "DeleteOptions",
            preconditions: Preconditions {
                uid,
                resource_version: version,
            },
        };
        let body = json(path, &options)?;
        self.whole(Method::DELETE, path, body).await.map(|_| ())
    }

    /// Watches the list at `path`, which has its query already. The connection is its own.
    pub async fn watch<T>(&self, path: &str) -> Result<Watch<T>, KubeError> {
        let seconds = limits::KUBE_WATCH.as_secs();
        let full = format!("{path}&watch=true&allowWatchBookmarks=false&timeoutSeconds={seconds}");
        let (answer, connection) = self
            .in_time(self.answer(Method::GET, &full, Bytes::new()))
            .await?;
        if !answer.status().is_success() {
            let refused = self.refused(Method::GET, path, answer);
            return Err(self.in_time(refused).await?);
        }
        Ok(Watch {
            server: self.0.server.clone(),
            path: path.to_owned(),
            body: answer.into_body(),
            rest: BytesMut::new(),
            _connection: connection.task,
            of: PhantomData,
        })
    }

    async fn read<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, KubeError> {
        let request = format!("{method} {path}");
        let answer = self.whole(method, path, body).await?;
        serde_json::from_slice(&answer).map_err(|source| KubeError::Body {
            server: self.0.server.clone(),
            request,
            source,
        })
    }

    async fn whole(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, KubeError> {
        self.in_time(async {
            let (answer, connection) = self.answer(method.clone(), path, body).await?;
            let done = match answer.status().is_success() {
                true => Ok(self.body(answer).await?),
                false => Err(self.refused(method, path, answer).await?),
            };
            // The answer was read to its end, also one that refuses.
            self.keep(connection);
            done
        })
        .await
    }

    async fn in_time<T>(
        &self,
        call: impl Future<Output = Result<T, KubeError>>,
    ) -> Result<T, KubeError> {
        tokio::time::timeout(limits::KUBE_REQUEST, call)
            .await
            .unwrap_or_else(|_| {
                Err(KubeError::Timeout {
                    server: self.0.server.clone(),
                })
            })
    }

    /// The head of the answer, and the connection on which its body comes.
    async fn answer(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(Response<Incoming>, Connection), KubeError> {
        let harmless = method == Method::GET;
        let mut request = self.request(method, path, body).await?;
        while let Some(mut connection) = self.take() {
            // Its task may still be done with the answer before, or have seen the end.
            if connection.sender.ready().await.is_err() {
                continue;
            }
            let again = request.clone();
            match connection.sender.try_send_request(request).await {
                Ok(answer) => return Ok((answer, connection)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None if harmless => request = again,
                    None => return Err(self.http(error.into_error())),
                },
            }
        }
        let mut connection = self.connect().await?;
        match connection.sender.send_request(request).await {
            Ok(answer) => Ok((answer, connection)),
            Err(error) => Err(self.http(error)),
        }
    }

    async fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Ask, KubeError> {
        let inner = Arc::clone(&self.0);
        let bearer = blocking(move || inner.access.bearer()).await?;
        let wrong = || KubeError::Request {
            path: path.to_owned(),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.0.access.prefix))
            .header(HOST, &self.0.server)
            .header(USER_AGENT, AGENT)
            .header(ACCEPT, JSON);
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, JSON);
        }
        if let Some(bearer) = bearer {
            let mut value = HeaderValue::from_bytes(bearer.expose()).map_err(|_| wrong())?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        request.body(Full::new(body)).map_err(|_| wrong())
    }

    async fn connect(&self) -> Result<Connection, KubeError> {
        let inner = Arc::clone(&self.0);
        let config = blocking(move || inner.access.client_config()).await?;
        let access = &self.0.access;
        let tcp = addresses::connect(&access.host, access.port).await?;
        let failed = |source| KubeError::Handshake {
            server: self.0.server.clone(),
            source,
        };
        socket::prepare(&tcp).map_err(failed)?;
        let tls = TlsConnector::from(config)
            .connect(access.name.clone(), tcp)
            .await
            .map_err(failed)?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(limits::KUBE_HEAD_BYTES)
            .max_headers(limits::KUBE_HEADERS)
            .handshake(TokioIo::new(tls))
            .await
            .map_err(|error| self.http(error))?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "connection to the Kubernetes API ended");
            }
        });
        Ok(Connection {
            sender,
            task: AbortOnDropHandle::new(task),
        })
    }

    async fn body(&self, answer: Response<Incoming>) -> Result<Bytes, KubeError> {
        let max = limits::KUBE_BODY_BYTES;
        match Limited::new(answer.into_body(), max).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) => {
                let server = self.0.server.clone();
                match error.downcast::<hyper::Error>() {
                    Ok(source) => Err(KubeError::Http {
                        server,
                        source: *source,
                    }),
                    Err(error) => {
                        debug_assert!(error.is::<LengthLimitError>());
                        Err(KubeError::TooLarge { server, max })
                    }
                }
            }
        }
    }

    /// The error that an answer stands for. What stands in its body is a `Status`, mostly.
    async fn refused(
        &self,
        method: Method,
        path: &str,
        answer: Response<Incoming>,
    ) -> Result<KubeError, KubeError> {
        let code = answer.status().as_u16();
        let body = self.body(answer).await?;
        let mut refusal: Refusal = serde_json::from_slice(&body).unwrap_or_default();
        refusal.code = code;
        Ok(KubeError::Refused {
            request: format!("{method} {path}"),
            refusal,
        })
    }

    fn http(&self, source: hyper::Error) -> KubeError {
        KubeError::Http {
            server: self.0.server.clone(),
            source,
        }
    }

    fn take(&self) -> Option<Connection> {
        let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|connection| !connection.sender.is_closed());
        idle.pop()
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < limits::KUBE_IDLE && !connection.sender.is_closed() {
            idle.push(connection);
        }
    }
}

/// Files are read beside the threads that carry bytes.
async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, KubeError> + Send + 'static,
) -> Result<T, KubeError> {
    tokio::task::spawn_blocking(read).await?
}

fn json<B: Serialize>(path: &str, object: &B) -> Result<Bytes, KubeError> {
    let written = serde_json::to_vec(object).map_err(|_| KubeError::Request {
        path: path.to_owned(),
    })?;
    Ok(written.into())
}

/// A name or a selector as part of a path or a query.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place_in_a_path() {
        assert_eq!(escape("a/../b?c=d&e"), "a%2F..%2Fb%3Fc%3Dd%26e");
        assert_eq!(escape("k8s-app=x,y"), "k8s-app%3Dx%2Cy");
    }
}
