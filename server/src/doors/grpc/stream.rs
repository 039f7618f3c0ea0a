//! One stream of a front end, from its headers to its trailers.
//!
//! 1. headers: our method, gRPC's content type, no compression; else refused;
//! 2. DIAL_REQ, within [`limits::CONNECT_HEAD_TIMEOUT`];
//! 3. the dial; DIAL_CLS, a reset or a lost connection give it up at once;
//! 4. DIAL_RSP; then bytes, until both sides have ended.
//!
//! While bytes are idle nothing of the first three is held in memory.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use h2::RecvStream;
use h2::server::SendResponse;
use http::{Method as HttpMethod, Request, Response, StatusCode};
use tokio::time::Instant;
use towline_link::grpc::server::head;
use towline_link::grpc::{Code, Status, refuse};
use towline_link::process::drain::{DrainWatch, WorkGuard};
use towline_link::splice::{Early, LocalSide, splice};
use towline_proto::konnectivity::PROXY_METHOD;
use towline_proto::konnectivity::front_end::Step;
use towline_proto::limits;
use towline_proto::reason::Reason;
use towline_proto::target::Target;

use super::super::connect::Desk;
use super::super::front_ends::FrontEndGuard;
use super::super::status;
use super::piece::Piece;
use super::text;
use super::tunnel::{Event, Tunnel};
use super::wire::Wire;
use crate::caller::Caller as Who;
use crate::dial::{Ask, Detail, Door, OpenDial};
use crate::gateway;
use crate::konnectivity::{DialFailure, Method};

/// Whose stream it is, and what may end it.
#[derive(Clone)]
pub struct Caller {
    /// Which door.
    pub door: Door,
    /// Who, as the door proved it.
    pub who: Who,
    /// Stopping.
    pub drain: DrainWatch,
    /// Its place among front ends with a certificate.
    pub certified: Option<Arc<FrontEndGuard>>,
}

impl Caller {
    /// Resolves when the front end is no longer trusted.
    fn untrusted(&self) -> impl Future<Output = Reason> + Send + 'static {
        let ending = self.certified.as_ref().map(|guard| guard.ending());
        async move {
            match ending {
                Some(ending) => ending.await,
                None => std::future::pending().await,
            }
        }
    }
}

/// Serves one stream to its end.
pub async fn serve(
    request: Request<RecvStream>,
    respond: SendResponse<Piece>,
    desk: Arc<Desk>,
    caller: Caller,
) {
    let Some((tunnel, deadline)) = take_call(request, respond, &desk, &caller) else {
        return;
    };
    let _counted = desk.counted().stream(Method::Proxy);
    // Boxed, so that what the greeting needs is given back before the bytes flow.
    let Some(Greeted { tunnel, open, work }) =
        Box::pin(greet(tunnel, deadline, &desk, &caller)).await
    else {
        return;
    };
    let Caller {
        door,
        who,
        drain,
        certified,
    } = caller;
    let OpenDial {
        id,
        class,
        agent,
        stream,
        early,
        on_link,
        mut record,
        live,
        judged,
        rule,
        kubelet,
    } = open;
    if let Some(certified) = &certified {
        certified.carries(live.dial());
    }
    record.counts(live.dial());
    tracing::debug!(dial = %id, door = door.as_str(), front_end = %who, %class, %agent, %rule, kubelet = kubelet.as_ref().map(|found| found.word()), "dial open");
    let stage = drain.view();
    drop((who, drain, rule, kubelet));
    let target = &judged.judged().target;
    let kubelet = gateway::through(desk.gateway(), id, target, class, &agent, stage);
    let established = desk.counted().established();
    let early = Early {
        to_local: early,
        ..Early::default()
    };
    let ended = {
        let joined = async {
            match kubelet {
                Some((gateway, request)) => {
                    let tunnel = Wire::new(tunnel);
                    Box::pin(gateway.serve(tunnel, stream, request, early, &live)).await
                }
                None => splice(tunnel, stream, LocalSide::FrontEnd, early, &live).await,
            }
        };
        let mut joined = std::pin::pin!(joined);
        match deadline {
            None => joined.await,
            Some(at) => tokio::select! {
                ended = &mut joined => ended,
                () = tokio::time::sleep_until(at) => {
                    live.dial().end(Reason::FrontEndGone);
                    joined.await
                }
            },
        }
    };
    record.ended(ended);
    drop((on_link, work, certified, judged, established));
    desk.metrics().dial_ended(door, Some(class), ended.reason);
    tracing::debug!(
        dial = %id, %agent, reason = %ended.reason,
        bytes_in = ended.to_peer, bytes_out = ended.from_peer,
        "dial ended"
    );
}

/// Answers the headers: a tunnel, and until when the caller wants it.
fn take_call(
    request: Request<RecvStream>,
    mut respond: SendResponse<Piece>,
    desk: &Desk,
    caller: &Caller,
) -> Option<(Tunnel, Option<Instant>)> {
    let headers = request.headers();
    let text_of = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let kind = text_of("content-type").unwrap_or_default();
    let encoding = text_of("grpc-encoding").unwrap_or("identity");
    let path = request.uri().path();
    let refused = |word: &'static str| {
        desk.metrics().front_end_refused(caller.door, word);
        let audit = desk.dialer().audit();
        audit.bad_request(caller.door, &caller.who, word);
        let front_end = tracing::field::display(&caller.who);
        tracing::debug!(
            door = caller.door.as_str(),
            front_end,
            word,
            "stream refused"
        );
    };
    if !is_grpc(kind) || request.method() != HttpMethod::POST {
        refused("not-grpc");
        let mut answer = Response::new(());
        *answer.status_mut() = match request.method() == HttpMethod::POST {
            true => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            false => StatusCode::METHOD_NOT_ALLOWED,
        };
        let _ = respond.send_response(answer, true);
        return None;
    }
    if path != PROXY_METHOD {
        refused("method");
        let path: String = path.chars().take(100).collect();
        let text = match path.trim_start_matches('/').rsplit_once('/') {
            Some(("ProxyService", method)) => {
                format!("unknown method {method} for service ProxyService")
            }
            Some((service, _)) => format!("unknown service {service}"),
            None => format!("malformed method name: {path:?}"),
        };
        refuse(&mut respond, &Status::new(Code::Unimplemented, text));
        return None;
    }
    if encoding != "identity" {
        refused("compressed");
        let encoding: String = encoding.chars().take(40).collect();
        let text = format!("grpc: Decompressor is not installed for grpc-encoding {encoding:?}");
        refuse(&mut respond, &Status::new(Code::Unimplemented, text));
        return None;
    }
    let deadline = match text_of("grpc-timeout").map(timeout) {
        None => None,
        Some(Some(timeout)) => Instant::now().checked_add(timeout),
        Some(None) => {
            refused("syntax");
            let text = "malformed grpc-timeout";
            refuse(&mut respond, &Status::new(Code::Internal, text));
            return None;
        }
    };
    let send = respond.send_response(head(), false).ok()?;
    let strays = desk.metrics().front_end_strays();
    let counted = Arc::clone(desk.counted());
    let tunnel = Tunnel::new(request.into_body(), send, counted, strays);
    Some((tunnel, deadline))
}

/// `application/grpc`, or that and a format or parameters behind it.
fn is_grpc(kind: &str) -> bool {
    kind.strip_prefix("application/grpc")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']))
}

/// `grpc-timeout`: at most eight digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// What steps 2 and 3 end with.
struct Greeted {
    tunnel: Tunnel,
    open: OpenDial,
    /// A graceful stop waits for it, from before the dial.
    work: WorkGuard,
}

async fn greet(
    mut tunnel: Tunnel,
    deadline: Option<Instant>,
    desk: &Desk,
    caller: &Caller,
) -> Option<Greeted> {
    let late = async {
        match deadline {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(late);
    let untrusted = caller.untrusted();
    tokio::pin!(untrusted);
    let stage = caller.drain.view();
    let asked = tokio::time::timeout(limits::CONNECT_HEAD_TIMEOUT, tunnel.event());
    let refused = |tunnel: &mut Tunnel, word: &'static str, code: Code, text: &str| {
        desk.metrics().front_end_refused(caller.door, word);
        tunnel.finish(&Status::new(code, text));
    };
    let malformed = |word| {
        let audit = desk.dialer().audit();
        audit.bad_request(caller.door, &caller.who, word);
    };
    let asked = tokio::select! {
        biased;
        // The connection takes no new streams then, but only once its other end has agreed.
        _ = &mut untrusted => {
            refused(&mut tunnel, "untrusted", Code::Unauthenticated, UNTRUSTED);
            return None;
        }
        asked = asked => asked,
        _ = stage.signalled() => {
            refused(&mut tunnel, "draining", Code::Unavailable, STOPPING);
            return None;
        }
        () = &mut late => {
            refused(&mut tunnel, "late", Code::DeadlineExceeded, LATE);
            return None;
        }
    };
    let address = match asked {
        Ok(Event::Step(Step::Dial(address))) => address,
        Ok(Event::Step(_)) => {
            malformed("protocol");
            refused(&mut tunnel, "protocol", Code::Ok, "");
            return None;
        }
        // It only looked, or what it sent was answered where it was read.
        Ok(Event::Ended(_)) => {
            refused(&mut tunnel, "gone", Code::Ok, "");
            return None;
        }
        Err(_) => {
            malformed("late");
            refused(
                &mut tunnel,
                "late",
                Code::DeadlineExceeded,
                "no DIAL_REQ in time",
            );
            return None;
        }
    };
    let target: Target = match address.parse() {
        Ok(target) => target,
        Err(error) => {
            desk.metrics().front_end_refused(caller.door, "bad-target");
            malformed("bad-target");
            desk.counted().dial_failed(DialFailure::ErrorResponse);
            let text = text::of_target(&address, &error);
            desk.refused(caller.door, &caller.who, "bad-target", &text);
            tunnel.dial_failed(&text);
            return None;
        }
    };
    let work = caller.drain.guard();
    let ask = Ask {
        target: target.clone(),
        door: caller.door,
        caller: caller.who.clone(),
        trace: None,
    };
    let mut out_of_time = false;
    let gone = async {
        tokio::select! {
            () = given_up(&mut tunnel) => Reason::FrontEndGone,
            () = stage.forced() => Reason::Shutdown,
            reason = &mut untrusted => reason,
            () = &mut late => {
                out_of_time = true;
                Reason::FrontEndGone
            }
        }
    };
    let dialled = desk.dialer().dial_until(ask, gone).await;
    match dialled {
        Ok(open) => {
            tunnel.dialled(i64::try_from(open.id.get()).unwrap_or(1));
            Some(Greeted { tunnel, open, work })
        }
        Err(error) if matches!(error.detail, Detail::GivenUp) => {
            tracing::debug!(%target, reason = %error.reason, "given up while dialling");
            if error.reason == Reason::Shutdown {
                tunnel.dial_failed(STOPPING);
                return None;
            }
            tunnel.finish(&match error.reason {
                _ if out_of_time => Status::new(Code::DeadlineExceeded, LATE),
                Reason::FrontEndGone => Status::new(Code::Ok, ""),
                _ => Status::new(Code::Unauthenticated, UNTRUSTED),
            });
            None
        }
        Err(error) => {
            let text = match desk.speaks().as_konnectivity {
                true => text::exactly(&error),
                false => text::of_dial(&error),
            };
            let ours = status::of_dial(&error).phrase;
            desk.refused(caller.door, &caller.who, error.reason.as_str(), &ours);
            tunnel.dial_failed(&text);
            None
        }
    }
}

const STOPPING: &str = "this towline-server is stopping and takes no new dials";
const LATE: &str = "context deadline exceeded";
const UNTRUSTED: &str = "the certificate of this front end is no longer good";

/// Resolves when the front end does not want its dial any more.
async fn given_up(tunnel: &mut Tunnel) {
    loop {
        match tunnel.event().await {
            Event::Ended(_) => return,
            Event::Step(Step::GivenUp | Step::Refused | Step::Flooded | Step::Closed) => return,
            Event::Step(Step::None | Step::Bytes(_) | Step::Dial(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        assert_eq!(timeout("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(timeout("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for wrong in ["", "1", "S", "123456789S", "-1S", "1s", "1\u{e9}"] {
            assert_eq!(timeout(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn content_types_are_told_apart() {
        for (kind, is) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=x", true),
            ("application/grpc-web", false),
            ("application/json", false),
            ("", false),
        ] {
            assert_eq!(is_grpc(kind), is, "{kind}");
        }
    }
}
