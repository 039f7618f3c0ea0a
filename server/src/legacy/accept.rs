//! A connection of a legacy agent after its handshake: HTTP/2, one call in general, a ping now
//! and then.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use h2::server::Builder;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::Instant;
use towline_link::process::drain::DrainWatch;
use towline_link::process::shares::Share;
use towline_proto::limits;

use super::serve::{Caller, Reception, call};
use super::trust::LegacyTrust;

/// The door for legacy agents.
pub struct LegacyDoor {
    /// What we show and whom we believe.
    pub trust: LegacyTrust,
    /// What calls need.
    pub reception: Arc<Reception>,
    /// `--keepalive-time`: silence after which the agent is asked whether it is there.
    pub keep_alive: Duration,
}

impl LegacyDoor {
    /// Ends streams whose certificates the files no longer allow; how many.
    pub fn check(&self, now: std::time::SystemTime) -> usize {
        let snapshot = self.trust.snapshot();
        let Some(clients) = snapshot
            .agents
            .as_ref()
            .and_then(|door| door.clients.clone())
        else {
            return 0;
        };
        let mut ended = 0;
        for stream in self.reception.agents.streams() {
            let super::admit::Proof::Certificate(chain) = stream.proof() else {
                continue;
            };
            if let Err(error) = clients.verify(chain, now) {
                tracing::warn!(agent = ?stream.id(), %error, "legacy agent is no longer trusted");
                stream.end(super::serve::NO_LONGER_TRUSTED);
                ended += 1;
            }
        }
        ended
    }

    /// Serves one connection to its end.
    pub async fn serve<IO>(
        self: Arc<Self>,
        io: IO,
        chain: Vec<CertificateDer<'static>>,
        address: std::net::SocketAddr,
        drain: DrainWatch,
        unproven: Share<IpAddr>,
    ) where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = Builder::new();
        builder
            .initial_window_size(limits::LEGACY_WINDOW)
            .initial_connection_window_size(limits::LEGACY_WINDOW)
            .max_concurrent_streams(limits::LEGACY_CALLS)
            .max_header_list_size(limits::GRPC_HEADER_BYTES)
            .max_send_buffer_size(limits::MUX_SEND_QUEUE);
        let shaking = tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, builder.handshake(io));
        let Ok(Ok(mut connection)) = shaking.await else {
            tracing::debug!(%address, "a connection of the legacy door spoke no HTTP/2");
            return;
        };
        let caller = Caller {
            address,
            chain: chain.into(),
            unproven: Arc::new(Mutex::new(Some(unproven))),
        };
        let mut pings = connection.ping_pong();
        let mut calls = JoinSet::new();
        // A connection without a call is given up.
        let mut idle_since = Instant::now();
        loop {
            let idle_until = match calls.is_empty() {
                true => idle_since + limits::LEGACY_ADMIT,
                false => Instant::now() + self.keep_alive,
            };
            tokio::select! {
                accepted = connection.accept() => match accepted {
                    Some(Ok((request, respond))) => {
                        let serving = call(
                            request,
                            respond,
                            caller.clone(),
                            Arc::clone(&self.reception),
                            drain.clone(),
                        );
                        calls.spawn(Box::pin(serving));
                    }
                    Some(Err(_)) | None => break,
                },
                Some(ended) = calls.join_next() => {
                    // Who is refused again and again does not stay for that.
                    if caller.is_proven() {
                        idle_since = Instant::now();
                    }
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "the task of a legacy agent panicked; its stream is closed");
                    }
                }
                () = tokio::time::sleep_until(idle_until) => {
                    if calls.is_empty() {
                        break;
                    }
                    let Some(pings) = &mut pings else { continue };
                    // The connection has to be driven while the answer is waited for.
                    let mut pong = Box::pin(tokio::time::timeout(
                        limits::GRPC_PING_TIMEOUT,
                        pings.ping(h2::Ping::opaque()),
                    ));
                    let answered = tokio::select! {
                        answered = &mut pong => matches!(answered, Ok(Ok(_))),
                        closed = std::future::poll_fn(|cx| connection.poll_closed(cx)) => closed.is_ok(),
                    };
                    if !answered {
                        tracing::info!(%address, "legacy agent does not answer pings, its connection is closed");
                        break;
                    }
                }
            }
            if drain.is_signalled() && calls.is_empty() {
                break;
            }
        }
        // Calls see by themselves that the connection ends, and what they say last has to go out.
        connection.graceful_shutdown();
        let last = async {
            let flush = std::future::poll_fn(|cx| connection.poll_closed(cx));
            let end = async { while calls.join_next().await.is_some() {} };
            let _ = tokio::join!(flush, end);
        };
        let _ = tokio::time::timeout(limits::CLOSE_LINGER, last).await;
    }
}
