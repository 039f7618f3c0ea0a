//! One gateway connection, from the dial that opened to the last byte.
//!
//! Both handshakes go on at once. The front end's decides whether anything is said at all; when
//! the kubelet's fails, the front end's first request is answered with the cause.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use towline_link::carrier::Stream;
use towline_link::live::LiveGuard;
use towline_link::process::drain::DrainView;
use towline_link::splice::{Early, LocalEnd, SpliceEnd};
use towline_pki::gateway::{FrontEndError, ServingNames, VerifiedFrontEnd};
use towline_pki::kubelet::{Cause, Expected, KubeletCheck, Verdict};
use towline_pki::tls;
use towline_proto::http1::{HeadError, RequestHead, head};
use towline_proto::id::{DialId, Name};
use towline_proto::limits;
use towline_proto::reason::Reason;
use towline_proto::target::Target;

use super::Gateway;
use super::answer::Answer;
use super::certificates::Certificates;
use super::connections::Connection;
use super::event::FrontEndCertificate;
use super::judge::{About, Judge};
use super::pipe::{Front, Pipe};
use super::relay::Relay;

/// A dial of class kubelet that is open.
#[derive(Clone)]
pub struct Request {
    /// Its number.
    pub id: DialId,
    /// What was dialled.
    pub target: Target,
    /// The agent's name: the node that has to answer.
    pub node: Name,
    /// How far stopping has come.
    pub stage: DrainView,
}

/// Why there is no connection with the kubelet.
struct KubeletFailure {
    reason: Reason,
    word: &'static str,
    message: String,
    verdict: Option<Verdict>,
}

type FrontTls<L> = server::TlsStream<Front<L>>;
type KubeletTls = client::TlsStream<Pipe>;

impl Gateway {
    /// Serves one connection to its end.
    pub async fn serve<L: LocalEnd>(
        &self,
        local: L,
        stream: Stream,
        request: Request,
        early: Early,
        live: &LiveGuard,
    ) -> SpliceEnd {
        self.metrics.open.inc();
        let serving = self.serve_until(local, stream, request, early, live);
        let reason = Box::pin(serving).await;
        self.metrics.open.dec();
        let (to_peer, from_peer) = live.dial().bytes();
        SpliceEnd {
            to_peer,
            from_peer,
            reason,
        }
    }

    async fn serve_until<L: LocalEnd>(
        &self,
        local: L,
        stream: Stream,
        request: Request,
        early: Early,
        live: &LiveGuard,
    ) -> Reason {
        let begun = Instant::now();
        let certificates = self.certificates.load_full();
        let front = Front::new(local, early.to_peer);
        let pipe = Pipe::new(stream, early.to_local);
        // Boxed: the state of handshakes is large and over before bytes flow.
        let shaking = Box::pin(self.shake(&certificates, front, pipe, &request));
        let shaken = tokio::select! {
            biased;
            reason = std::future::poll_fn(|cx| live.dial().poll_ended(cx)) => return reason,
            shaken = shaking => shaken,
        };
        let (front, kubelet) = match shaken {
            Ok(both) => both,
            Err(reason) => return reason,
        };
        self.metrics.shaken(begun.elapsed());
        let chain = front.get_ref().1.peer_certificates().unwrap_or_default();
        let verified = certificates
            .material
            .front_ends
            .verify(chain, SystemTime::now());
        let front_end = match verified {
            Ok(front_end) => front_end,
            Err(error) => return self.refuse_front_end(&request, &error),
        };
        let mut about = About {
            dial: request.id,
            target: request.target.clone(),
            node: request.node.clone(),
            front_end: certificate(&front_end),
            kubelet_key: None,
        };
        let (kubelet, verdict) = match kubelet {
            Ok(done) => done,
            Err(failure) => {
                about.kubelet_key = failure
                    .verdict
                    .as_ref()
                    .and_then(|verdict| verdict.presented.as_ref())
                    .map(|presented| presented.key);
                let judge = Judge::new(self, about, None);
                return Box::pin(answer_only(front, judge, failure)).await;
            }
        };
        about.kubelet_key = verdict.presented.as_ref().map(|presented| presented.key);
        let seen = kubelet.get_ref().1.peer_certificates().unwrap_or_default();
        let connection = self.connections.add(Connection {
            front_end,
            kubelet: seen.iter().map(|der| der.clone().into_owned()).collect(),
            expected: expected(&request),
            dial: Arc::clone(live.dial()),
        });
        // Files may have changed since the handshakes; a check looks only at who is in the list.
        if !Arc::ptr_eq(&certificates, &self.certificates.load()) {
            self.check_again(SystemTime::now());
        }
        drop(certificates);
        let judge = Judge::new(self, about, Some(connection));
        let stopping = Box::pin(async move {
            request.stage.signalled().await;
        });
        Relay::new(front, kubelet, judge, live, stopping)
            .run()
            .await
    }

    /// Both handshakes. An error is of the front end's, and there is nobody to be told.
    async fn shake<L: LocalEnd>(
        &self,
        certificates: &Certificates,
        front: Front<L>,
        pipe: Pipe,
        request: &Request,
    ) -> Result<(FrontTls<L>, Result<(KubeletTls, Verdict), KubeletFailure>), Reason> {
        let deadline = Instant::now() + limits::GATEWAY_HANDSHAKES;
        let names = ServingNames {
            host: request.target.host.clone(),
            node: request.node.clone(),
        };
        let config = certificates
            .config(&names, SystemTime::now(), &self.metrics)
            .map_err(|error| {
                self.metrics.refused("front-end", "no-certificate");
                tracing::error!(node = %request.node, %error, "the gateway has no certificate to show");
                Reason::LocalResources
            })?;
        let mut kubelet = std::pin::pin!(self.kubelet(certificates, pipe, request, deadline));
        let accepting = TlsAcceptor::from(config).accept(front);
        let mut accepting = std::pin::pin!(tokio::time::timeout_at(deadline, accepting));
        let mut connected = None;
        let accepted = loop {
            tokio::select! {
                biased;
                accepted = &mut accepting => break accepted,
                done = &mut kubelet, if connected.is_none() => connected = Some(done),
            }
        };
        let front = match accepted {
            Ok(Ok(front)) => front,
            Ok(Err(error)) => {
                return Err(match FrontEndError::from_io(&error) {
                    Some(refused) => self.refuse_front_end(request, &refused),
                    None => self.front_end_failed(request, "handshake", &error),
                });
            }
            Err(_) => {
                let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
                return Err(self.front_end_failed(request, "late", &late));
            }
        };
        let kubelet = match connected {
            Some(done) => done,
            None => kubelet.await,
        };
        Ok((front, kubelet))
    }

    fn refuse_front_end(&self, request: &Request, error: &FrontEndError) -> Reason {
        self.metrics.refused("front-end", error.as_str());
        if let Some(suppressed) = self.lines.allow(error.as_str()) {
            tracing::warn!(
                dial = %request.id, node = %request.node, suppressed,
                "the gateway refused a front end: {error}"
            );
        }
        Reason::FrontEndUnverified
    }

    fn front_end_failed(
        &self,
        request: &Request,
        word: &'static str,
        error: &std::io::Error,
    ) -> Reason {
        self.metrics.refused("front-end", word);
        if let Some(suppressed) = self.lines.allow(word) {
            let error = towline_link::error::detail(error);
            tracing::warn!(
                dial = %request.id, node = %request.node, suppressed,
                "TLS with the front end failed: {error}; does its \
                 --kubelet-certificate-authority name the gateway's authority?"
            );
        }
        Reason::FrontEndUnverified
    }

    /// TLS with the kubelet, which has to be the one of this node, on this very connection.
    async fn kubelet(
        &self,
        certificates: &Certificates,
        pipe: Pipe,
        request: &Request,
        deadline: Instant,
    ) -> Result<(KubeletTls, Verdict), KubeletFailure> {
        let node = &request.node;
        let Some(trust) = self.kubelets.trust() else {
            pipe.abort(Reason::KubeletUnverified);
            return Err(KubeletFailure::defect(
                node,
                "there is no kubelet authority",
            ));
        };
        let check = KubeletCheck::new(trust, expected(request));
        let config = tls::kubelet_client(
            Arc::clone(&check),
            Some(&certificates.material.kubelet_client),
        );
        let config = match config {
            Ok(config) => config,
            Err(error) => {
                pipe.abort(Reason::KubeletHandshake);
                return Err(KubeletFailure::defect(node, &error.to_string()));
            }
        };
        let name = tls::kubelet_name(&request.target.host);
        let connecting = TlsConnector::from(config)
            .connect(name, pipe)
            .into_fallible();
        let cause = match tokio::time::timeout_at(deadline, connecting).await {
            Ok(Ok(stream)) => match check.verdict().cloned() {
                Some(verdict) if verdict.result.is_ok() => return Ok((stream, verdict)),
                // Cannot be: no handshake ends well against the check.
                _ => Cause::NoCertificate,
            },
            Ok(Err((error, pipe))) => {
                let cause = cause_of(&check, &pipe, &error);
                pipe.abort(cause.reason());
                cause
            }
            Err(_) => Cause::Timeout,
        };
        self.metrics.refused("kubelet", cause.as_str());
        if !cause.is_passing() {
            self.kubelets.doubt(node, &request.target.host);
        }
        if let Some(suppressed) = self.lines.allow(cause.as_str()) {
            tracing::warn!(
                dial = %request.id, %node, reason = cause.as_str(), suppressed,
                "the gateway refused a kubelet: {cause}; {}", cause.fix()
            );
        }
        Err(KubeletFailure {
            reason: cause.reason(),
            word: cause.as_str(),
            message: format!("towline-server does not believe the kubelet of node {node}: {cause}"),
            verdict: check.verdict().cloned(),
        })
    }
}

impl KubeletFailure {
    fn defect(node: &Name, what: &str) -> Self {
        Self {
            reason: Reason::KubeletHandshake,
            word: "handshake",
            message: format!("towline-server cannot verify the kubelet of node {node}: {what}"),
            verdict: None,
        }
    }
}

fn cause_of(check: &KubeletCheck, pipe: &Pipe, error: &std::io::Error) -> Cause {
    // What is wrong with the certificate says more than the end of the handshake.
    if let Some(cause) = check.verdict().and_then(Verdict::cause) {
        return cause.clone();
    }
    if let Some(reason) = pipe.failed() {
        return match reason {
            Reason::TargetReset | Reason::ReaderGone => Cause::HungUp,
            reason => Cause::Unreachable { reason },
        };
    }
    let inner = error.get_ref();
    match inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(error) => Cause::of_tls(error),
        None => Cause::HungUp,
    }
}

fn expected(request: &Request) -> Expected {
    Expected {
        node: request.node.clone(),
        host: request.target.host.clone(),
    }
}

fn certificate(front_end: &VerifiedFrontEnd) -> FrontEndCertificate {
    let read = front_end.certificate();
    FrontEndCertificate {
        subject: read.subject.clone(),
        serial: read.serial.to_string(),
    }
}

/// Reads one request and answers that there is no kubelet.
async fn answer_only<L: LocalEnd>(
    mut front: FrontTls<L>,
    mut judge: Judge<'_>,
    failure: KubeletFailure,
) -> Reason {
    let answering = async {
        let request = match read_head(&mut front).await {
            Some(Ok(request)) => request,
            Some(Err(error)) => {
                let answer = Answer::of_violation(error.into());
                judge.malformed(error.as_str(), Some(answer.status));
                say(&mut front, &answer).await;
                return;
            }
            None => return,
        };
        let answer = match judge.request(&request) {
            Some((refusal, _)) => refusal,
            None => {
                judge.failed(failure.word, Some(502));
                Answer::new(502, failure.message)
            }
        };
        say(&mut front, &answer).await;
    };
    let _ = tokio::time::timeout(limits::GATEWAY_HEAD_TIMEOUT, answering).await;
    failure.reason
}

/// `None` when the front end left first.
async fn read_head<L: LocalEnd>(front: &mut FrontTls<L>) -> Option<Result<RequestHead, HeadError>> {
    let mut bytes = BytesMut::new();
    let mut seen = 0;
    loop {
        if front.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let found = head::check_start(&bytes).and_then(|()| head::find_end(&bytes, seen));
        match found {
            Ok(Some(end)) => return Some(head::request(&bytes[..end])),
            Ok(None) => seen = bytes.len(),
            Err(error) => return Some(Err(error)),
        }
    }
}

/// Answers and ends; what still comes is read and dropped for a moment.
async fn say<L: LocalEnd>(front: &mut FrontTls<L>, answer: &Answer) {
    let saying = async {
        front.write_all(&answer.bytes(true)).await.ok()?;
        front.shutdown().await.ok()?;
        let mut dropped = BytesMut::new();
        let mut left = limits::REFUSED_BYTES;
        while left > 0 {
            dropped.clear();
            match front.read_buf(&mut dropped).await {
                Ok(0) | Err(_) => break,
                Ok(read) => left = left.saturating_sub(read),
            }
        }
        Some(())
    };
    let _ = tokio::time::timeout(limits::CLOSE_LINGER, saying).await;
}
