//! What the admin listener answers: path and method to status and text. The sockets are in
//! [`super::admin`].

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Body;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue, LOCATION};
use hyper::{Method, Request, Response, StatusCode};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use super::classic::from_open_metrics;
use super::compat::{Compat, MetricsAt};
use super::daemon::Daemon;
use super::live::LiveProbe;
use super::ready::Readiness;

/// The type that Prometheus asks for first, and the only text that `prometheus-client` writes.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=values";
const PLAIN: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// Who asks.
pub(super) enum Access {
    /// TCP: looking only.
    Anybody,
    /// The second TCP listener of another program: metrics, or where they are, and profiling.
    Second(MetricsAt, bool),
    /// The Unix socket, user id allowed.
    Operator,
    /// The Unix socket, user id refused, and why.
    Nobody(String),
}

/// Everything that answers are made of.
pub(super) struct Answers {
    pub(super) registry: Registry,
    pub(super) readiness: Readiness,
    pub(super) live: LiveProbe,
    pub(super) daemon: Arc<dyn Daemon>,
    pub(super) compat: Option<Compat>,
}

type Answer = Response<Full<Bytes>>;

/// What a path is, before the method is looked at.
enum Page {
    Live,
    Ready,
    Metrics,
    Status,
    Kubelets,
    Explain,
    Reload,
    Drain,
    Profile,
}

impl Page {
    fn find(path: &str, access: &Access, compat: bool) -> Option<Self> {
        if let Access::Second(_, profiling) = access {
            return match path {
                "/metrics" => Some(Page::Metrics),
                _ if *profiling && path.starts_with("/debug/pprof") => Some(Page::Profile),
                _ => None,
            };
        }
        let page = match path {
            "/ready" if compat => Page::Ready,
            "/healthz" | "/livez" => Page::Live,
            "/readyz" => Page::Ready,
            "/metrics" => Page::Metrics,
            "/status" => Page::Status,
            "/kubelets" => Page::Kubelets,
            "/policy/explain" => Page::Explain,
            "/reload" => Page::Reload,
            "/drain" => Page::Drain,
            _ => return None,
        };
        let operators_only = matches!(
            page,
            Page::Status | Page::Kubelets | Page::Explain | Page::Reload | Page::Drain
        );
        (!operators_only || matches!(access, Access::Operator)).then_some(page)
    }

    fn allows(&self, method: &Method) -> bool {
        match self {
            Page::Reload | Page::Drain => method == Method::POST,
            _ => method == Method::GET || method == Method::HEAD,
        }
    }

    fn allowed(&self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Page::Reload | Page::Drain => "POST",
            _ => "GET, HEAD",
        })
    }
}

impl Answers {
    /// The answer. The body of a request is never read.
    pub(super) async fn answer<B: Body>(&self, request: &Request<B>, access: &Access) -> Answer {
        if let Access::Nobody(why) = access {
            return text(StatusCode::FORBIDDEN, format!("{why}\n"));
        }
        let Some(page) = Page::find(request.uri().path(), access, self.compat.is_some()) else {
            return text(StatusCode::NOT_FOUND, "no such page\n");
        };
        if !page.allows(request.method()) {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
            answer.headers_mut().insert(ALLOW, page.allowed());
            return answer;
        }
        if !request.body().is_end_stream() {
            return text(StatusCode::PAYLOAD_TOO_LARGE, "send no body\n");
        }
        match page {
            Page::Live => self.live().await,
            Page::Ready => self.ready(request.uri().query()),
            Page::Metrics => match access {
                Access::Second(MetricsAt::Port(port), _) => elsewhere(request, *port),
                _ => self.metrics(),
            },
            Page::Profile => text(
                StatusCode::NOT_IMPLEMENTED,
                "the profiling flags are accepted, but this is no Go program: there is no pprof\n",
            ),
            Page::Status => self.status(),
            Page::Kubelets => match self.daemon.kubelets() {
                Some(kubelets) => with_type(StatusCode::OK, JSON, format!("{kubelets}\n")),
                None => text(StatusCode::NOT_FOUND, "no such page\n"),
            },
            Page::Explain => self.explain(request.uri().query()),
            Page::Reload => self.reload().await,
            Page::Drain => {
                self.daemon.drain();
                text(StatusCode::ACCEPTED, "draining\n")
            }
        }
    }

    async fn live(&self) -> Answer {
        match self.live.is_alive().await {
            true if self.compat.is_some() => text(StatusCode::OK, "ok"),
            true => text(StatusCode::OK, "ok\n"),
            false => text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the data runtime does not run tasks\n",
            ),
        }
    }

    fn ready(&self, query: Option<&str>) -> Answer {
        let report = self.readiness.report();
        let verbose = query.is_some_and(|query| {
            query
                .split('&')
                .any(|part| part.split('=').next() == Some("verbose"))
        });
        if let Some(compat) = &self.compat {
            let page = (compat.ready)(verbose);
            let code = StatusCode::from_u16(page.status);
            return text(code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), page.text);
        }
        match (report.is_ready(), verbose) {
            (true, false) => text(StatusCode::OK, "ok\n"),
            (true, true) => text(StatusCode::OK, report.to_string()),
            (false, _) => text(StatusCode::SERVICE_UNAVAILABLE, report.to_string()),
        }
    }

    fn metrics(&self) -> Answer {
        let mut body = String::new();
        match encode(&mut body, &self.registry) {
            Ok(()) => match &self.compat {
                None => with_type(StatusCode::OK, OPEN_METRICS, body),
                Some(compat) => {
                    let mut body = from_open_metrics(&body);
                    compat.families.write(&mut body);
                    with_type(StatusCode::OK, CLASSIC, body)
                }
            },
            Err(_) => text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "a metric cannot be written\n",
            ),
        }
    }

    fn status(&self) -> Answer {
        with_type(StatusCode::OK, JSON, format!("{}\n", self.daemon.status()))
    }

    fn explain(&self, query: Option<&str>) -> Answer {
        match self.daemon.explain(query.unwrap_or_default()) {
            Some(Ok(told)) => with_type(StatusCode::OK, JSON, format!("{told}\n")),
            Some(Err(why)) => text(StatusCode::BAD_REQUEST, format!("{why}\n")),
            None => text(StatusCode::NOT_FOUND, "no such page\n"),
        }
    }

    async fn reload(&self) -> Answer {
        match self.daemon.reload().await {
            Ok(()) => text(StatusCode::OK, "reloaded\n"),
            Err(why) => text(StatusCode::UNPROCESSABLE_ENTITY, format!("{why}\n")),
        }
    }
}

/// The same path at another port of the host that was asked.
fn elsewhere<B>(request: &Request<B>, port: u16) -> Answer {
    let host = request
        .headers()
        .get(HOST)
        .and_then(|host| host.to_str().ok());
    let host = host.unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, digits)) if digits.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let mut answer = text(StatusCode::MOVED_PERMANENTLY, "");
    match HeaderValue::from_str(&format!("//{name}:{port}{}", request.uri())) {
        Ok(location) => {
            answer.headers_mut().insert(LOCATION, location);
            answer
        }
        Err(_) => text(StatusCode::BAD_REQUEST, "a Host header that is none\n"),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    with_type(status, PLAIN, body)
}

fn with_type(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        "x-content-type-options",
        HeaderValue::from_static("nosniff"),
    );
    answer
}
