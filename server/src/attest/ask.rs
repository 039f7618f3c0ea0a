//! One TLS handshake with a kubelet, through a link of its node's agent: a dial of class kubelet
//! that carries a handshake and nothing else. No request is sent and no certificate shown, so a
//! kubelet learns nothing but that somebody looked.

use std::sync::Arc;

use bytes::Bytes;
use rustls::ClientConnection;
use tokio::time::Instant;
use towline_link::carrier::{Stream, StreamError};
use towline_link::dial;
use towline_pki::kubelet::{Cause, KubeletCheck, Verdict};
use towline_pki::tls;
use towline_proto::dial::{Dial, DialRequest};
use towline_proto::id::DialId;
use towline_proto::limits;
use towline_proto::reason::Reason;
use towline_proto::target::{Class, Target};

use crate::agents::AgentLink;

/// What a handshake came to.
pub(super) struct Answer {
    pub(super) verdict: Verdict,
    /// The dial never reached the agent: another link may do better.
    pub(super) never_reached: bool,
}

impl Answer {
    fn of(cause: Cause) -> Self {
        Self {
            verdict: Verdict::failed(cause),
            never_reached: false,
        }
    }
}

/// Asks the kubelet at `target`. Dropping the future gives the dial up at both ends.
pub(super) async fn ask(
    through: &AgentLink,
    id: DialId,
    target: Target,
    check: Arc<KubeletCheck>,
    deadline: Instant,
) -> Answer {
    // So that a link that drains waits for it. Beside the dials' own limit: the agent has spare
    // streams, and a node that is busy must not count as unverified.
    let Some(_on_link) = through.link.begin_dial(u32::MAX) else {
        return Answer::of(Cause::Unreachable {
            reason: Reason::AgentBusy,
        });
    };
    let request = DialRequest::Dial(Dial {
        id,
        target,
        class: Class::Kubelet,
        timeout: deadline.saturating_duration_since(Instant::now()),
        trace: None,
    });
    let carrier = through.link.carrier();
    let open = match dial::open(&**carrier, &request, deadline).await {
        Ok(open) => open,
        Err(error) => {
            return Answer {
                verdict: Verdict::failed(not_opened(error.reason)),
                never_reached: !error.reached,
            };
        }
    };
    let shaken = tokio::time::timeout_at(deadline, shake(open.stream, open.early, &check)).await;
    let failure = match shaken {
        Ok(Ok(())) => None,
        Ok(Err(cause)) => Some(cause),
        Err(_) => Some(Cause::Timeout),
    };
    let seen = check.verdict().cloned();
    let verdict = match (seen, failure) {
        // What is wrong with the certificate says more than the end of the handshake.
        (Some(seen), _) if seen.result.is_err() => seen,
        (Some(seen), None) => seen,
        (Some(seen), Some(cause)) => Verdict {
            presented: seen.presented,
            result: Err(cause),
        },
        (None, Some(cause)) => Verdict::failed(cause),
        // Cannot be: no handshake ends well without the check.
        (None, None) => Verdict::failed(Cause::NoCertificate),
    };
    Answer {
        verdict,
        never_reached: false,
    }
}

async fn shake(mut stream: Stream, early: Bytes, check: &Arc<KubeletCheck>) -> Result<(), Cause> {
    let broken = |error: &rustls::Error| Cause::of_tls(error);
    let config = tls::kubelet_client(Arc::clone(check), None).map_err(|error| {
        // A defect of ours; whoever reads it must not look for it at the kubelet.
        Cause::Handshake {
            detail: format!("towline-server: {error}"),
        }
    })?;
    let name = tls::kubelet_name(&check.expected().host);
    let mut tls = ClientConnection::new(config, name).map_err(|error| broken(&error))?;
    let mut received = early;
    let mut left = limits::ATTESTATION_BYTES;
    loop {
        while !received.is_empty() {
            left = left
                .checked_sub(received.len())
                .ok_or_else(|| Cause::Handshake {
                    detail: "the kubelet sends more than a handshake can be".into(),
                })?;
            let mut unread = &received[..];
            while !unread.is_empty() {
                let read = tls.read_tls(&mut unread).map_err(|_| Cause::NotTls)?;
                if let Err(error) = tls.process_new_packets() {
                    // The alert, so that the kubelet's log says why.
                    let _ = flush(&mut tls, &mut stream).await;
                    stream.abort(Reason::KubeletHandshake);
                    return Err(broken(&error));
                }
                if read == 0 {
                    break;
                }
            }
            received = Bytes::new();
        }
        flush(&mut tls, &mut stream).await.map_err(lost)?;
        if !tls.is_handshaking() {
            break;
        }
        received = match stream.recv.recv(limits::READ_CHUNK).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Err(Cause::HungUp),
            Err(error) => return Err(lost(error)),
        };
    }
    // An orderly end: a kubelet logs every other one.
    tls.send_close_notify();
    let _ = flush(&mut tls, &mut stream).await;
    stream.send.finish();
    Ok(())
}

fn not_opened(reason: Reason) -> Cause {
    match reason {
        Reason::AgentPolicy | Reason::ForbiddenAddress => Cause::AgentRefuses { reason },
        reason => Cause::Unreachable { reason },
    }
}

fn lost(error: StreamError) -> Cause {
    match error.reason() {
        // The kubelet's socket, not the line to it.
        Reason::TargetReset | Reason::ReaderGone => Cause::HungUp,
        reason => Cause::Unreachable { reason },
    }
}

async fn flush(tls: &mut ClientConnection, stream: &mut Stream) -> Result<(), StreamError> {
    let mut out = Vec::new();
    while tls.wants_write() {
        // Into memory: it cannot fail, and if it does nothing more comes.
        if tls.write_tls(&mut out).unwrap_or(0) == 0 {
            break;
        }
    }
    if out.is_empty() {
        return Ok(());
    }
    stream.send.send(out.into()).await
}
