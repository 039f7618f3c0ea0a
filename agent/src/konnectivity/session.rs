//! The life of one stream to a legacy server: packets both ways, dials, drain, the end.
//!
//! Reading goes on whatever a target does. When the queue of one connection grows long, the
//! server is held back for it, for [`limits::LEGACY_PAUSE`] at a time and only while that target
//! takes bytes; for one that takes nothing nobody waits: its bytes are charged to the
//! process-wide memory budget, and on overflow the longest-stalled dial is ended.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use towline_link::error::detail;
use towline_link::grpc::client::Taken;
use towline_link::grpc::{Code, PacketSink, PacketSource, ReceiveError};
use towline_link::process::drain::{DrainWatch, WorkGuard};
use towline_link::process::ratelimit::RateLimited;
use towline_link::splice::{Early, LocalSide, splice};
use towline_proto::konnectivity::{Packet, PacketKind};
use towline_proto::limits;
use towline_proto::reason::Reason;
use tracing::{debug, info, warn};

use super::connection::Connection;
use super::dial::dial;
use super::metrics::{LegacyMetrics, Segment};
use super::servers::Listed;
use super::stream::{Handled, ServerStream};
use crate::judged::Judged;
use crate::serve::Serve;

/// Lines in the log about refused dials and stray packets, in each interval.
const LINES: (u32, Duration) = (10, Duration::from_secs(10));

/// What all streams have in common.
pub(super) struct Common {
    pub(super) serve: Arc<Serve>,
    pub(super) metrics: LegacyMetrics,
    refused: RateLimited<&'static str>,
    strays: RateLimited<&'static str>,
}

impl Common {
    pub(super) fn new(serve: Arc<Serve>, metrics: LegacyMetrics) -> Self {
        Self {
            serve,
            metrics,
            refused: RateLimited::new(LINES.0, LINES.1),
            strays: RateLimited::new(LINES.0, LINES.1),
        }
    }
}

/// Serves a stream until it ends or the agent stops, and waits for its dials.
pub(super) async fn run(
    common: Arc<Common>,
    stream: Arc<ServerStream>,
    taken: Taken,
    drain: DrainWatch,
    listed: Listed,
) {
    let Taken {
        mut sink,
        source,
        connection,
        ..
    } = taken;
    let mut dials = JoinSet::new();
    let view = drain.view();
    let reason = tokio::select! {
        reason = read(&common, &stream, source, &mut dials, &drain) => reason,
        reason = write(&common, &stream, &mut sink) => reason,
        reason = stream.ended() => reason,
        _ = view.closing() => Reason::Shutdown,
        () = announce_drain(&stream, &drain) => Reason::Shutdown,
    };
    info!(server = ?stream.server_id(), %reason, lasted = ?stream.since().elapsed(), "stream to the legacy server ended");
    drop(listed);
    sink.close();
    drop(connection);
    stream.end(reason);
    while let Some(ended) = dials.join_next().await {
        report(ended);
    }
}

/// DRAIN when the agent begins to stop. Never ends.
async fn announce_drain(stream: &ServerStream, drain: &DrainWatch) {
    drain.view().signalled().await;
    stream.say(Packet::Drain);
    std::future::pending().await
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        warn!(%error, "a dial's task panicked; its connection was closed, nothing else is touched");
    }
}

async fn write(common: &Common, stream: &ServerStream, sink: &mut PacketSink) -> Reason {
    loop {
        let packet = stream.next_packet().await;
        let kind = packet.kind();
        common.metrics.packet(Segment::FromAgent, kind);
        if let Err(error) = sink.send(&packet).await {
            common
                .metrics
                .stream_error(Segment::FromAgent, Code::Unavailable, kind);
            debug!(server = ?stream.server_id(), %error, "sending failed");
            return Reason::LinkLost;
        }
    }
}

async fn read(
    common: &Arc<Common>,
    stream: &Arc<ServerStream>,
    mut source: PacketSource,
    dials: &mut JoinSet<()>,
    drain: &DrainWatch,
) -> Reason {
    let mut since_pause = 0;
    loop {
        // Hundreds of thousands of small packets may be there already: others have their turn.
        tokio::task::coop::consume_budget().await;
        let packet = tokio::select! {
            packet = source.next() => packet,
            Some(ended) = dials.join_next() => {
                report(ended);
                continue;
            }
        };
        let packet = match packet {
            Ok(Some(packet)) => packet,
            Ok(None) => return end_of_call(common, stream, &mut source).await,
            Err(error) => return broken(common, stream, &error),
        };
        common.metrics.packet(Segment::ToAgent, packet.kind());
        if let Packet::Data { data, .. } = &packet {
            since_pause += data.len() as u64;
        }
        match stream.handle(packet) {
            Handled::Done => {}
            Handled::Dial {
                protocol,
                address,
                random,
                id,
            } => {
                let asked = Asked {
                    protocol,
                    address,
                    random,
                    id,
                };
                let serving = serve(Arc::clone(common), Arc::clone(stream), asked, drain.guard());
                let handle = dials.spawn(serving);
                stream.dialling(random, handle);
            }
            Handled::Stray(what) => {
                common.serve.metrics().legacy_stray(what);
                if let Some(suppressed) = common.strays.allow(what) {
                    debug!(server = ?stream.server_id(), what, suppressed, "a packet that fits nothing");
                }
            }
            Handled::Wait(connection) if since_pause >= limits::LEGACY_TURN => {
                since_pause = 0;
                hold_back(&connection).await;
            }
            Handled::Wait(_) => {}
        }
    }
}

/// The server ended the call: in order, or with an error.
async fn end_of_call(common: &Common, stream: &ServerStream, source: &mut PacketSource) -> Reason {
    match source.status().await {
        Ok(status) if status.code == Code::Ok => Reason::Done,
        Ok(status) => {
            common
                .metrics
                .stream_error(Segment::ToAgent, status.code, PacketKind::Unknown);
            warn!(server = ?stream.server_id(), code = status.code.as_str(), "the legacy server ended the stream: {}", detail(&status));
            Reason::LinkLost
        }
        Err(error) => broken(common, stream, &error.into()),
    }
}

fn broken(common: &Common, stream: &ServerStream, error: &ReceiveError) -> Reason {
    let code = error.status().code;
    common
        .metrics
        .stream_error(Segment::ToAgent, code, PacketKind::Unknown);
    warn!(server = ?stream.server_id(), code = code.as_str(), "stream to the legacy server broke: {}", detail(error));
    match error {
        ReceiveError::Stream(_) => Reason::LinkLost,
        ReceiveError::Frame(_) | ReceiveError::Packet(_) => Reason::Protocol,
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

struct Asked {
    protocol: String,
    address: String,
    random: i64,
    id: i64,
}

/// One dial, from its request to its end.
async fn serve(common: Arc<Common>, stream: Arc<ServerStream>, asked: Asked, _work: WorkGuard) {
    let begun = Instant::now();
    let serve = &common.serve;
    let round = serve.round();
    let connected = match Box::pin(dial(serve, &asked.protocol, &asked.address)).await {
        Ok(connected) => connected,
        Err(failure) => {
            let text = failure.text(&asked.protocol);
            common.metrics.dial_failed(failure.is_timeout());
            if let Some(suppressed) = common.refused.allow("dial") {
                info!(server = ?stream.server_id(), dial = asked.random, suppressed, "dial failed: {}", detail(&text));
            }
            stream.refused(asked.random, text);
            return;
        }
    };
    common.metrics.dialled(begun.elapsed());
    let _endpoint = common.metrics.endpoint();
    let Some(connection) = stream.connected(asked.random, asked.id) else {
        return;
    };
    debug!(server = ?stream.server_id(), connection = asked.id, address = %connected.address, "dial connected");
    let pipe = connection.pipe();
    // The reference client forgets DATA that comes before it has filed the connection: a target
    // that speaks first is heard after the front end's first word, or a moment later.
    let _ = tokio::time::timeout(limits::LEGACY_FIRST_WORD, connection.spoken()).await;
    drop(connection);
    let live = serve.live().register();
    let judged = serve.follow(
        round,
        Judged {
            target: connected.asked,
            class: connected.class,
            address: connected.address,
            dial: Arc::clone(live.dial()),
        },
    );
    let end = splice(
        connected.target,
        pipe,
        LocalSide::Target,
        Early::default(),
        &live,
    )
    .await;
    drop((judged, live, connected.slot));
    serve.metrics().dial_ended(connected.class, end.reason);
    debug!(server = ?stream.server_id(), connection = asked.id, reason = %end.reason, bytes_in = end.from_peer, bytes_out = end.to_peer, "dial ended");
}
