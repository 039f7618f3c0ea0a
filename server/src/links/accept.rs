//! Connections of agents, on UDP and on TCP at the same port. Handshakes never hold an accept
//! loop up and are bounded; what comes out of them is verified.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use towline_link::carrier::Carrier;
use towline_link::error::{ConnectError, detail};
use towline_link::process::accept::{AcceptMetrics, AcceptOptions, accept_loop};
use towline_link::process::drain::DrainWatch;
use towline_link::process::ratelimit::RateLimited;
use towline_link::quic::QuicListener;
use towline_link::tls::{self, TlsOptions};
use towline_proto::limits;

use super::greet::Greeter;
use super::serve::serve;
use crate::trust::Trust;

/// Serves links over QUIC until stopping begins and they have ended.
pub async fn quic(listener: Arc<QuicListener>, greeter: Arc<Greeter>, drain: DrainWatch) {
    let mut links = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            _ = drain.signalled() => break,
            Some(ended) = links.join_next() => note_panic(ended),
            accepted = listener.accept() => match accepted {
                Some(link) => {
                    let carrier: Arc<dyn Carrier> = Arc::new(link);
                    links.spawn(serve(carrier, Arc::clone(&greeter), drain.clone()));
                }
                None => break,
            },
        }
    }
    listener.stop_accepting();
    while let Some(ended) = links.join_next().await {
        note_panic(ended);
    }
}

fn note_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "the task of a link panicked; the link is closed");
    }
}

/// Links over TLS.
pub struct TlsLinks {
    /// Whom we trust.
    pub trust: Trust,
    /// Greets agents.
    pub greeter: Arc<Greeter>,
    /// Handshakes at once.
    pub handshakes: usize,
    /// Links at once, with some room for those that are shaking hands.
    pub connections: usize,
    /// Connections are counted here.
    pub metrics: AcceptMetrics,
}

/// What the connections of one listener share.
struct Shared {
    trust: Trust,
    greeter: Arc<Greeter>,
    handshakes: Semaphore,
    refused: RateLimited<&'static str>,
}

impl TlsLinks {
    /// Serves links over TLS until stopping begins and they have ended.
    pub async fn run(self, listener: TcpListener, drain: DrainWatch) {
        let options = AcceptOptions {
            name: "link-tls",
            connections: self.connections,
            metrics: self.metrics,
        };
        let shared = Arc::new(Shared {
            trust: self.trust,
            greeter: self.greeter,
            handshakes: Semaphore::new(self.handshakes),
            refused: RateLimited::new(10, Duration::from_secs(60)),
        });
        let watch = drain.clone();
        accept_loop(listener, options, drain, move |tcp, address, slot| {
            let shared = Arc::clone(&shared);
            let drain = watch.clone();
            async move {
                let shaking = handshake(&shared, tcp);
                match Box::pin(shaking).await {
                    Ok(carrier) => {
                        let greeter = Arc::clone(&shared.greeter);
                        drop(shared);
                        serve(carrier, greeter, drain).await;
                    }
                    Err(error) => {
                        let word = word(&error);
                        slot.refused(word);
                        shared.greeter.metrics.tls_handshake_failed(word);
                        if let Some(suppressed) = shared.refused.allow(word) {
                            let cause = detail(&error);
                            tracing::info!(%address, reason = word, suppressed, "TLS handshake of a link failed: {cause}");
                        }
                    }
                }
                drop(slot);
            }
        })
        .await;
    }
}

async fn handshake(
    shared: &Shared,
    tcp: tokio::net::TcpStream,
) -> Result<Arc<dyn Carrier>, ConnectError> {
    // Waiting counts towards the time of the handshake, so that a flood cannot queue up here.
    let after = limits::HANDSHAKE_TIMEOUT;
    let whole = async {
        // Who says nothing takes no place from those who do.
        tcp.peek(&mut [0])
            .await
            .map_err(|source| ConnectError::Unreachable {
                server: "an agent".to_owned(),
                source,
            })?;
        // The semaphore is never closed; if it were, there would be no bound and no harm.
        let _place = shared.handshakes.acquire().await.ok();
        let _counted = shared.greeter.metrics.tls_handshake();
        let trust = shared.trust.snapshot();
        let config = Arc::clone(&trust.link_tls);
        tls::accept(
            tcp,
            config,
            Arc::clone(&trust.agents),
            &TlsOptions::server(),
        )
        .await
    };
    match tokio::time::timeout(after, whole).await {
        Ok(done) => done,
        Err(_) => Err(ConnectError::Timeout {
            server: "an agent".to_owned(),
            after,
        }),
    }
}

/// The word for metrics.
fn word(error: &ConnectError) -> &'static str {
    match error {
        ConnectError::Peer { source, .. } => source.as_str(),
        ConnectError::Alpn { .. } => "alpn",
        ConnectError::Timeout { .. } => "late",
        ConnectError::Handshake { reason, .. } => reason.as_str(),
        _ => "unreachable",
    }
}
