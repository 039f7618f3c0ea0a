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
            .data_frame_budget(limits::LEGACY_FRAMES)
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
            trust: self.trust.clone(),
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
                    // Not once more by a handshake that would not end well any more.
                    Some(Ok(_)) if !caller.is_trusted() => break,
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

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use h2::SendStream;
    use h2::client::SendRequest;
    use http::Request;
    use tokio::sync::Notify;
    use tokio::task::JoinHandle;
    use towline_link::live::LiveDials;
    use towline_link::process::drain::Drain;
    use towline_link::process::shares::Shares;
    use towline_proto::konnectivity::{AGENT_ID, CONNECT_METHOD, CONTENT_TYPE};

    use crate::legacy::table::LegacyAgents;
    use crate::legacy::trust::LegacySnapshot;
    use crate::metrics::Metrics;

    const KEEP_ALIVE: Duration = Duration::from_secs(3600);

    struct Met {
        client: SendRequest<Bytes>,
        serving: JoinHandle<()>,
        unproven: Shares<IpAddr>,
        /// From now on the agent's machine is as if it were gone.
        gone: Arc<Notify>,
        _connection: JoinHandle<()>,
        _drain: Drain,
    }

    /// A connection that showed these certificates.
    async fn meet(chain: Vec<CertificateDer<'static>>) -> Met {
        let agents = LegacyAgents::new("default".parse().unwrap(), 8);
        let live = LiveDials::new(1 << 20);
        let id = ("s0".to_owned(), 1);
        let nothing = LegacySnapshot {
            agents: None,
            front_ends: None,
        };
        let door = Arc::new(LegacyDoor {
            trust: LegacyTrust::new(nothing),
            reception: Arc::new(Reception::new(agents, None, id, live, Metrics::default())),
            keep_alive: KEEP_ALIVE,
        });
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let address: std::net::SocketAddr = ([10, 0, 0, 1], 1).into();
        let (drain, unproven) = (Drain::new(), Shares::new(1));
        let share = unproven.take(&address.ip()).unwrap();
        let serving = door.serve(theirs, chain, address, drain.watch(), share);
        let serving = tokio::spawn(serving);
        let (client, mut connection) = h2::client::handshake(ours).await.unwrap();
        let gone = Arc::new(Notify::new());
        let told = Arc::clone(&gone);
        let connection = tokio::spawn(async move {
            tokio::select! {
                _ = &mut connection => {}
                () = told.notified() => std::future::pending().await,
            }
        });
        Met {
            client,
            serving,
            unproven,
            gone,
            _connection: connection,
            _drain: drain,
        }
    }

    impl Met {
        /// One call, from its headers to its end; whether there was an answer.
        async fn call(&mut self) -> bool {
            self.ask(true).await.is_some()
        }

        /// A call's headers; the stream, when there was an answer.
        async fn ask(&mut self, end: bool) -> Option<SendStream<Bytes>> {
            let mut ready = self.client.clone().ready().await.ok()?;
            let request = Request::post(format!("http://s0{CONNECT_METHOD}"))
                .header("content-type", CONTENT_TYPE)
                .header(AGENT_ID, "n1")
                .body(())
                .unwrap();
            let (answer, stream) = ready.send_request(request, end).ok()?;
            answer.await.ok().map(|_| stream)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_refused_again_and_again_does_not_stay_for_that() {
        let mut met = meet(Vec::new()).await;
        let begun = Instant::now();
        let mut refused = 0_u64;
        while met.call().await {
            refused += 1;
            assert!(refused < 100);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        met.serving.await.unwrap();
        let most = limits::LEGACY_ADMIT + limits::CLOSE_LINGER;
        let stayed = begun.elapsed();
        assert!(
            stayed >= limits::LEGACY_ADMIT && stayed <= most,
            "{stayed:?}"
        );
        assert!(refused >= limits::LEGACY_ADMIT.as_secs());
        assert_eq!(met.unproven.holders(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_proved_itself_has_its_time_after_each_call() {
        let mut met = meet(vec![CertificateDer::from(vec![0])]).await;
        let begun = Instant::now();
        let pause = limits::LEGACY_ADMIT - Duration::from_secs(1);
        for _ in 0..4 {
            assert!(met.call().await);
            // Its place among those that proved nothing is somebody else's.
            assert_eq!(met.unproven.holders(), 0);
            tokio::time::sleep(pause).await;
        }
        assert!(!met.serving.is_finished());
        met.serving.await.unwrap();
        let least = pause * 3 + limits::LEGACY_ADMIT;
        assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_stays_while_its_machine_answers_and_no_longer() {
        let mut met = meet(vec![CertificateDer::from(vec![0])]).await;
        let stream = met.ask(false).await.expect("a place");
        // It says nothing, and is there.
        tokio::time::sleep(10 * KEEP_ALIVE).await;
        assert!(!met.serving.is_finished());
        met.gone.notify_one();
        let gone = Instant::now();
        met.serving.await.unwrap();
        let most = KEEP_ALIVE + limits::GRPC_PING_TIMEOUT + limits::CLOSE_LINGER;
        let stayed = gone.elapsed();
        assert!(
            stayed >= limits::GRPC_PING_TIMEOUT && stayed <= most,
            "{stayed:?}"
        );
        drop(stream);
    }
}
