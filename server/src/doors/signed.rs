//! The TCP door of the compatibility profile: mutual TLS, and any certificate of one authority,
//! as Konnectivity has it. Whose certificate it is decides nothing, it is only logged.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use towline_link::error::detail;
use towline_link::process::accept::{AcceptMetrics, AcceptOptions, Slot, accept_loop};
use towline_link::process::drain::DrainWatch;
use towline_link::process::ratelimit::RateLimited;
use towline_pki::chain;
use towline_proto::limits;

use super::connect::{Desk, Visit, serve};
use super::tcp::keep_alive;
use crate::caller::Caller;
use crate::dial::Door;
use crate::legacy::trust::LegacyTrust;

/// See the head of this file.
pub struct SignedDoor {
    trust: LegacyTrust,
    desk: Arc<Desk>,
    refused: RateLimited<&'static str>,
}

/// Lines about refused front ends in a minute, for each cause.
const REFUSAL_LINES: u32 = 10;

impl SignedDoor {
    /// A door for whoever these files let in.
    pub fn new(trust: LegacyTrust, desk: Arc<Desk>) -> Self {
        Self {
            trust,
            desk,
            refused: RateLimited::new(REFUSAL_LINES, Duration::from_secs(60)),
        }
    }

    /// Serves the door until stopping begins and its connections have ended.
    pub async fn run(
        self,
        listener: TcpListener,
        connections: usize,
        metrics: AcceptMetrics,
        drain: DrainWatch,
    ) {
        let options = AcceptOptions {
            name: "door-signed",
            connections,
            metrics,
        };
        let watch = drain.clone();
        let door = Arc::new(self);
        accept_loop(listener, options, drain, move |tcp, address, slot| {
            let door = Arc::clone(&door);
            let drain = watch.clone();
            async move {
                // Boxed: a handshake's state is large and over before bytes flow.
                let Some(stream) = Box::pin(door.handshake(tcp, address, &slot)).await else {
                    return;
                };
                let leaf = stream.get_ref().1.peer_certificates();
                let subject = leaf.and_then(|chain| chain.first()).map(chain::subject);
                let visit = Visit {
                    door: Door::ConnectTcp,
                    caller: Caller::Signed {
                        subject: subject.unwrap_or_default().into(),
                        address,
                    },
                    drain,
                    certified: None,
                };
                serve(stream, Arc::clone(&door.desk), visit).await;
                drop(slot);
            }
        })
        .await;
    }

    async fn handshake(
        &self,
        tcp: TcpStream,
        address: SocketAddr,
        slot: &Slot,
    ) -> Option<TlsStream<TcpStream>> {
        keep_alive(&tcp);
        let tls = self.trust.snapshot().front_ends.as_ref()?.tls.clone();
        let accepting = TlsAcceptor::from(tls).accept(tcp);
        let (word, text) = match tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, accepting).await {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => ("handshake", detail(&error)),
            Err(_) => ("late", "no TLS handshake in time".to_owned()),
        };
        slot.refused(word);
        let metrics = self.desk.metrics();
        metrics.front_end_refused(Door::ConnectTcp, word);
        if let Some(suppressed) = self.refused.allow(word) {
            tracing::warn!(%address, reason = word, suppressed, "front end refused: {text}");
        }
        None
    }
}
