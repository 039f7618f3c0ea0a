//! The life of one agent stream: admitted, listed, packets both ways, the end.
//!
//! Reading goes on whatever a front end does. When the queue of one connection grows long, the
//! agent is held back for it, for [`limits::LEGACY_PAUSE`] at a time and only while that front
//! end takes bytes; for one that takes nothing nobody waits, its bytes are charged to the
//! process-wide memory budget, and on overflow the longest-stalled dial is ended.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderValue, Request};
use rustls_pki_types::CertificateDer;
use towline_link::error::detail;
use towline_link::grpc::{self, Code, PacketSink, PacketSource, Status};
use towline_link::live::LiveDials;
use towline_link::process::drain::{DrainWatch, Stage};
use towline_link::process::ratelimit::RateLimited;
use towline_link::process::shares::Share;
use towline_proto::konnectivity::{
    CONNECT_METHOD, CONTENT_TYPE, Packet, PacketKind, SERVER_COUNT, SERVER_ID,
};
use towline_proto::limits;
use towline_proto::reason::Reason;

use super::admit::{AdmitError, admit};
use super::pipe::Connection;
use super::stream::{AgentStream, Handled};
use super::table::LegacyAgents;
use super::token::Reviewer;
use super::trust::LegacyTrust;
use crate::konnectivity::{DialFailure, Method, Segment};
use crate::metrics::Metrics;

/// What every stream of the door needs.
pub struct Reception {
    /// Who is there.
    pub agents: LegacyAgents,
    /// Who judges tokens, where they are what is asked for.
    pub reviewer: Option<Reviewer>,
    /// Our id, told to agents.
    pub server_id: String,
    /// How many servers an agent should look for.
    pub server_count: u32,
    /// For queues.
    pub live: LiveDials,
    /// What is counted.
    pub metrics: Metrics,
    refused: RateLimited<&'static str>,
    strays: RateLimited<(u64, &'static str)>,
}

impl Reception {
    /// For agents of this table.
    pub fn new(
        agents: LegacyAgents,
        reviewer: Option<Reviewer>,
        (server_id, server_count): (String, u32),
        live: LiveDials,
        metrics: Metrics,
    ) -> Self {
        Self {
            agents,
            reviewer,
            server_id,
            server_count,
            live,
            metrics,
            refused: RateLimited::new(10, Duration::from_secs(60)),
            strays: RateLimited::new(3, Duration::from_secs(60)),
        }
    }

    fn refuse(&self, caller: &Caller, why: &AdmitError) -> Status {
        let word = why.as_str();
        self.metrics.legacy_refused(word);
        if let Some(suppressed) = self.refused.allow(word) {
            let address = caller.address;
            tracing::warn!(%address, reason = word, suppressed, "legacy agent refused: {}", detail(why));
        }
        Status::new(Code::Unknown, why.to_string())
    }

    fn stray(&self, stream: &AgentStream, what: &'static str) {
        self.metrics.legacy_stray(what);
        if what == Handled::UNKNOWN_DIAL {
            let counted = self.metrics.counted();
            counted.dial_failed(DialFailure::UnrecognizedResponse);
        }
        if let Some(suppressed) = self.strays.allow((stream.serial(), what)) {
            tracing::info!(agent = ?stream.id(), stream = stream.serial(), what, suppressed, "legacy agent sent a packet that fits nothing");
        }
    }
}

/// Whose connection a call came on.
#[derive(Clone)]
pub struct Caller {
    /// Where it comes from.
    pub address: std::net::SocketAddr,
    /// Its certificate, if it showed one.
    pub chain: Arc<[CertificateDer<'static>]>,
    /// By what certificates are judged.
    pub trust: LegacyTrust,
    /// Its place among the connections of its address that have proved nothing; given back when
    /// its first agent is admitted.
    pub unproven: Arc<Mutex<Option<Share<IpAddr>>>>,
}

impl Caller {
    /// Whether its certificate is still good: it was verified in the handshake, and files may have
    /// changed since, or its time may be over. With tokens there is nothing to look at here.
    pub fn is_trusted(&self) -> bool {
        let snapshot = self.trust.snapshot();
        let door = snapshot.agents.as_ref();
        let Some(clients) = door.and_then(|door| door.clients.as_ref()) else {
            return true;
        };
        let verified = clients.verify(&self.chain, SystemTime::now());
        if let Err(error) = &verified {
            tracing::warn!(address = %self.address, %error, "legacy agent is no longer trusted");
        }
        verified.is_ok()
    }

    /// Whether an agent was admitted on this connection.
    pub fn is_proven(&self) -> bool {
        self.lock().is_none()
    }

    fn prove(&self) {
        let share = self.lock().take();
        drop(share);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Share<IpAddr>>> {
        self.unproven.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One call, from its headers to its end.
pub async fn call(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    caller: Caller,
    reception: Arc<Reception>,
    drain: DrainWatch,
) {
    let (head, body) = request.into_parts();
    if let Err(status) = check_method(&head) {
        grpc::refuse(&mut respond, &status);
        return;
    }
    let reviewer = reception.reviewer.as_ref();
    let admitting = admit(&head.headers, &caller.chain, caller.address, reviewer);
    let announced = match Box::pin(admitting).await {
        Ok(announced) => announced,
        Err(error) => {
            grpc::refuse(&mut respond, &reception.refuse(&caller, &error));
            return;
        }
    };
    caller.prove();
    let serial = reception.agents.serial();
    let stream = AgentStream::new(serial, announced, reception.live.clone());
    let metadata = [
        (SERVER_ID, HeaderValue::from_str(&reception.server_id)),
        (SERVER_COUNT, Ok(HeaderValue::from(reception.server_count))),
    ];
    // Both were checked at the start.
    let metadata: Vec<_> = metadata
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.ok()?)))
        .collect();
    let Ok(mut sink) = grpc::accept(&mut respond, &metadata) else {
        return;
    };
    let Some(listed) = reception.agents.add(Arc::clone(&stream)) else {
        reception.metrics.legacy_refused("overloaded");
        sink.finish(&Status::new(
            Code::ResourceExhausted,
            "this server has as many agents as it may have",
        ));
        return;
    };
    // A reload ends only those that are in the table.
    if !caller.is_trusted() {
        reception.metrics.legacy_refused("untrusted");
        sink.finish(&Status::new(Code::Unavailable, NO_LONGER_TRUSTED.as_str()));
        return;
    }
    let counted = (
        reception.metrics.legacy_stream(),
        reception.metrics.counted().stream(Method::Connect),
    );
    tracing::info!(
        agent = ?stream.id(),
        stream = serial,
        address = %stream.address(),
        proof = %stream.proof(),
        identifiers = ?stream.identifiers(),
        "legacy agent connected: what it says of itself is believed"
    );
    let status = tokio::select! {
        status = read(&stream, PacketSource::new(body), &reception) => status,
        status = write(&stream, &mut sink, &reception) => status,
        reason = stream.ended() => Status::new(Code::Unavailable, reason.as_str()),
        () = stopping(&drain) => Status::new(Code::Unavailable, "this server is stopping"),
    };
    drop((listed, counted));
    tracing::info!(
        agent = ?stream.id(),
        stream = serial,
        code = status.code.as_str(),
        lasted = ?stream.since().elapsed().unwrap_or_default(),
        "legacy agent gone: {}",
        detail(&status)
    );
    sink.finish(&status);
}

fn check_method(head: &http::request::Parts) -> Result<(), Status> {
    if head.uri.path() != CONNECT_METHOD {
        let path: String = head.uri.path().chars().take(80).collect();
        let text = format!("unknown method {path}: agents call {CONNECT_METHOD}");
        return Err(Status::new(Code::Unimplemented, text));
    }
    let kind = head.headers.get("content-type");
    let grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(CONTENT_TYPE.as_bytes()));
    match head.method == http::Method::POST && grpc {
        true => Ok(()),
        false => Err(Status::new(Code::Internal, "this is no gRPC call")),
    }
}

/// Live dials may end before the streams do.
async fn stopping(drain: &DrainWatch) {
    if drain.closing().await == Stage::Closing {
        return;
    }
    drain.forced().await;
}

async fn read(
    stream: &Arc<AgentStream>,
    mut source: PacketSource,
    reception: &Reception,
) -> Status {
    let counted = reception.metrics.counted();
    let mut since_pause = 0;
    loop {
        // Hundreds of thousands of small packets may be there already: others have their turn.
        tokio::task::coop::consume_budget().await;
        let packet = match source.next().await {
            Ok(Some(packet)) => packet,
            Ok(None) => return Status::new(Code::Ok, "the agent ended the stream"),
            Err(error) => {
                let status = error.status();
                counted.stream_error(Segment::FromAgent, status.code, PacketKind::Unknown);
                return status;
            }
        };
        counted.packet(Segment::FromAgent, packet.kind());
        if let Packet::Data { data, .. } = &packet {
            since_pause += data.len() as u64;
        }
        match stream.handle(packet) {
            Handled::Done => {}
            Handled::Drains => {
                reception.agents.touch();
                tracing::info!(agent = ?stream.id(), stream = stream.serial(), "legacy agent drains");
            }
            Handled::Stray(what) => reception.stray(stream, what),
            Handled::Wait(connection) if since_pause >= limits::LEGACY_TURN => {
                since_pause = 0;
                reception.metrics.legacy_held_back();
                let _full = counted.full(Method::Connect);
                hold_back(&connection).await;
            }
            Handled::Wait(_) => {}
        }
    }
}

async fn hold_back(connection: &Connection) {
    let room = async {
        loop {
            let told = connection.room.notified();
            if connection.has_room() {
                return;
            }
            told.await;
        }
    };
    if tokio::time::timeout(limits::LEGACY_PAUSE, room)
        .await
        .is_err()
    {
        connection.judge_after_pause();
    }
}

async fn write(stream: &AgentStream, sink: &mut PacketSink, reception: &Reception) -> Status {
    let counted = reception.metrics.counted();
    loop {
        let packet = stream.next_packet().await;
        let sent = tokio::select! {
            sent = sink.send(&packet) => sent,
            reason = stream.ended() => return Status::new(Code::Unavailable, reason.as_str()),
        };
        if let Err(error) = sent {
            counted.stream_error(Segment::ToAgent, Code::Unavailable, packet.kind());
            return Status::new(Code::Unavailable, error.to_string());
        }
        stream.moved();
        counted.packet(Segment::ToAgent, packet.kind());
    }
}

/// Why every stream of an agent that is no longer trusted is ended.
pub const NO_LONGER_TRUSTED: Reason = Reason::BadCertificate;
