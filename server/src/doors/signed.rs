//! The TCP door of the compatibility profile: mutual TLS, and any certificate of one authority,
//! as Konnectivity has it. Whose certificate it is decides nothing, it is only logged. Who is
//! connected is checked again when files change, and when certificates end.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use towline_link::error::detail;
use towline_link::process::accept::{AcceptMetrics, AcceptOptions, Slot, accept_loop};
use towline_link::process::drain::DrainWatch;
use towline_link::process::ratelimit::RateLimited;
use towline_link::process::shares::{Shares, network};
use towline_pki::chain;
use towline_proto::limits;

use super::connect::{Desk, Visit, serve};
use super::front_ends::{FrontEnds, Proof};
use super::tcp::keep_alive;
use crate::caller::Caller;
use crate::dial::Door;
use crate::legacy::trust::LegacyTrust;

/// See the head of this file.
pub struct SignedDoor {
    trust: LegacyTrust,
    front_ends: FrontEnds,
    desk: Arc<Desk>,
    refused: RateLimited<&'static str>,
    unproven: Shares<IpAddr>,
}

/// Lines about refused front ends in a minute, for each cause.
const REFUSAL_LINES: u32 = 10;

impl SignedDoor {
    /// A door for whoever these files let in.
    pub fn new(trust: LegacyTrust, front_ends: FrontEnds, desk: Arc<Desk>) -> Self {
        Self {
            trust,
            front_ends,
            desk,
            refused: RateLimited::new(REFUSAL_LINES, Duration::from_secs(60)),
            unproven: Shares::new(limits::UNPROVEN_PER_ADDRESS),
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
                let shown = stream.get_ref().1.peer_certificates();
                let chain: Vec<_> = shown.unwrap_or_default().to_vec();
                let subject: Arc<str> =
                    chain.first().map(chain::subject).unwrap_or_default().into();
                let certified = door
                    .front_ends
                    .add(Proof::Signed(chain.clone(), subject.clone()));
                // A reload may have come since the handshake; it checks only who is in the list.
                if let Err(error) = door.check_again(&chain) {
                    tracing::warn!(%address, %error, "front end is no longer trusted");
                    return;
                }
                drop(chain);
                let visit = Visit {
                    door: Door::ConnectTcp,
                    caller: Caller::Signed { subject, address },
                    drain,
                    certified: Some(certified),
                };
                serve(stream, Arc::clone(&door.desk), visit).await;
                drop(slot);
            }
        })
        .await;
    }

    fn check_again(&self, chain: &[CertificateDer<'static>]) -> Result<(), rustls::Error> {
        let snapshot = self.trust.snapshot();
        match snapshot
            .front_ends
            .as_ref()
            .and_then(|door| door.clients.as_ref())
        {
            Some(clients) => clients.verify(chain, SystemTime::now()),
            None => Ok(()),
        }
    }

    async fn handshake(
        &self,
        tcp: TcpStream,
        address: SocketAddr,
        slot: &Slot,
    ) -> Option<TlsStream<TcpStream>> {
        keep_alive(&tcp);
        let Some(_unproven) = self.unproven.take(&network(address.ip())) else {
            slot.refused("crowded");
            let metrics = self.desk.metrics();
            metrics.front_end_refused(Door::ConnectTcp, "crowded");
            return None;
        };
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
