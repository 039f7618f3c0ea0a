//! One HTTP/2 connection of a front end: settings, streams, GOAWAY.
//!
//! kube-apiserver makes one connection for one dial; newer clients keep one and open a stream for
//! each. Streams share nothing: the connection's window covers all of theirs, so one whose target
//! takes nothing stops nobody else. The connection's own task only moves frames and hands new
//! streams to tasks it owns; those may outlive the front end, for as long as the target takes to
//! read what it said last.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use h2::server::Builder;
use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::Instant;
use towline_proto::limits;

use super::super::connect::{Desk, Visit};
use super::authority::Named;
use super::piece::Piece;
use super::stream::{self, Caller};

/// Serves one connection to its end.
pub async fn serve<IO>(io: IO, desk: Arc<Desk>, visit: Visit)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Visit {
        door,
        caller,
        drain,
        certified,
    } = visit;
    let shaking = settings().handshake::<_, Piece>(Named::new(io));
    let shaken = tokio::time::timeout(limits::CONNECT_HEAD_TIMEOUT, shaking).await;
    let Ok(Ok(mut connection)) = shaken else {
        desk.metrics().front_end_refused(door, "syntax");
        desk.dialer().audit().bad_request(door, &caller, "syntax");
        return;
    };
    let stage = drain.view();
    let certified = certified.map(Arc::new);
    let untrusted = {
        let ending = certified.as_ref().map(|guard| guard.ending());
        async move {
            match ending {
                Some(ending) => ending.await,
                None => std::future::pending().await,
            }
        }
    };
    let caller = Caller {
        door,
        who: caller,
        drain,
        certified,
    };
    let mut streams = JoinSet::new();
    let mut untrusted = std::pin::pin!(untrusted);
    let mut stopping = std::pin::pin!(async {
        stage.signalled().await;
    });
    let (mut stopped, mut refused) = (false, false);
    let mut leaves = std::pin::pin!(tokio::time::sleep(limits::CLOSE_LINGER));
    let mut alive = std::pin::pin!(keep_alive(connection.ping_pong(), desk.keep_alive()));
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    let stream = stream::serve(request, respond, Arc::clone(&desk), caller.clone());
                    streams.spawn(boxed(stream));
                }
                Some(Err(error)) => {
                    tracing::debug!(door = door.as_str(), %error, "a front end's connection failed");
                    break;
                }
                None => break,
            },
            Some(ended) = streams.join_next() => report(ended),
            () = &mut stopping, if !stopped => {
                stopped = true;
                connection.graceful_shutdown();
            }
            () = &mut alive => {
                tracing::debug!(door = door.as_str(), "a front end does not answer pings");
                break;
            }
            // Its dials are ended where they are counted; new ones are not taken.
            _ = &mut untrusted, if !refused => {
                refused = true;
                connection.graceful_shutdown();
                leaves.as_mut().reset(Instant::now() + limits::CLOSE_LINGER);
            }
            // It need not agree to that.
            () = &mut leaves, if refused && streams.is_empty() => break,
        }
    }
    drop(connection);
    while let Some(ended) = streams.join_next().await {
        report(ended);
    }
}

/// Resolves when the front end has not answered a ping: its machine is gone.
async fn keep_alive(pings: Option<PingPong>, every: Duration) {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(every).await;
        let answer = pings.ping(Ping::opaque());
        match tokio::time::timeout(limits::GRPC_PING_TIMEOUT, answer).await {
            Ok(Ok(_)) => {}
            // The connection ends by itself.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "the task of a front end's stream panicked; its dial is reset");
    }
}

/// A stream's task is one allocation of the size it needs, and no more of the loop's.
fn boxed<F: Future<Output = ()> + Send + 'static>(future: F) -> std::pin::Pin<Box<F>> {
    Box::pin(future)
}

fn settings() -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(limits::GRPC_WINDOW)
        .initial_connection_window_size((limits::GRPC_STREAMS + 1) * limits::GRPC_WINDOW)
        .max_concurrent_streams(limits::GRPC_STREAMS)
        .max_header_list_size(limits::GRPC_HEADER_BYTES)
        .max_pending_accept_reset_streams(limits::GRPC_RESETS)
        .max_send_buffer_size(limits::GRPC_SEND_BUFFER);
    builder
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::sync::oneshot;

    use super::*;

    const EVERY: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn a_front_end_stays_while_its_machine_answers_and_no_longer() {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (leave, told) = oneshot::channel::<()>();
        let client = tokio::spawn(async move {
            let (_sender, mut connection) = h2::client::handshake(near).await.unwrap();
            tokio::select! {
                _ = &mut connection => {}
                _ = told => std::future::pending().await,
            }
        });
        let shaken = settings().handshake::<_, Bytes>(far).await;
        let mut connection = shaken.unwrap();
        let alive = keep_alive(connection.ping_pong(), EVERY);
        let serving = tokio::spawn(async move {
            tokio::select! {
                () = alive => true,
                _ = connection.accept() => false,
            }
        });
        tokio::time::sleep(10 * EVERY).await;
        assert!(!serving.is_finished());
        leave.send(()).unwrap();
        let gone = Instant::now();
        assert!(serving.await.unwrap(), "the connection ended by itself");
        let stayed = gone.elapsed();
        let most = EVERY + limits::GRPC_PING_TIMEOUT;
        assert!(
            stayed >= limits::GRPC_PING_TIMEOUT && stayed <= most,
            "{stayed:?}"
        );
        client.abort();
    }
}
