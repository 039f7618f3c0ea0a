//! One stream of a legacy agent: its dials, its connections, what waits to be said to it.
//!
//! Dial ids and connection ids are numbers of this stream and mean nothing outside of it. A packet
//! about a connection that this stream does not have is answered with CLOSE_REQ and touches
//! nobody else.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use towline_link::carrier::{Stream, StreamError};
use towline_link::live::LiveDials;
use towline_proto::konnectivity::{Identifiers, Packet, TCP};
use towline_proto::limits;
use towline_proto::reason::Reason;
use towline_proto::target::{Host, Target};

use super::admit::Proof;
use super::error::DialFailure;
use super::pipe::Connection;
use super::table::Candidate;

/// What is known of an agent when its stream begins.
pub struct Announced {
    /// What it calls itself: believed by nobody, shown to people.
    pub id: Box<str>,
    /// What it says it serves.
    pub identifiers: Identifiers,
    /// What it proved.
    pub proof: Proof,
    /// Where it comes from.
    pub address: SocketAddr,
}

/// A dial that waits for the agent's answer.
struct Pending {
    answer: oneshot::Sender<Result<Stream, DialFailure>>,
    /// Whether the request was handed to HTTP/2.
    sent: bool,
}

#[derive(Default)]
struct State {
    pending: HashMap<i64, Pending>,
    connections: HashMap<i64, Arc<Connection>>,
    closing: usize,
    control: VecDeque<Packet>,
    /// Connections with something to send, each at most once, in turn.
    line: VecDeque<Arc<Connection>>,
    random: i64,
    ended: Option<Reason>,
}

/// One stream.
pub struct AgentStream {
    serial: u64,
    announced: Announced,
    hosts: Vec<Host>,
    since: SystemTime,
    live: LiveDials,
    state: Mutex<State>,
    /// Something waits to be sent.
    wake: Notify,
    over: Notify,
    draining: AtomicBool,
    /// A dial timed out before its request was taken: nothing moves towards the agent.
    stuck: AtomicBool,
    dials: AtomicUsize,
}

impl std::fmt::Debug for AgentStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AgentStream({}, {:?})", self.serial, self.announced.id)
    }
}

impl Candidate for AgentStream {
    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed) || self.stuck.load(Ordering::Relaxed)
    }
}

/// What the reader of a stream has to know about a packet.
pub(super) enum Handled {
    /// It is done with.
    Done,
    /// The agent asked for no new dials.
    Drains,
    /// The queue of this connection is long, and its reader moves.
    Wait(Arc<Connection>),
    /// It was about something that is not there; already answered.
    Stray(&'static str),
}

impl Handled {
    /// DIAL_RSP for a dial that nobody waits for.
    pub(super) const UNKNOWN_DIAL: &'static str = "answer-to-unknown-dial";
}

impl AgentStream {
    pub(super) fn new(serial: u64, announced: Announced, live: LiveDials) -> Arc<Self> {
        let hosts = announced.identifiers.hosts();
        Arc::new(Self {
            serial,
            // A host that no target can name matches none.
            hosts: hosts.filter_map(|host| host.parse().ok()).collect(),
            announced,
            since: SystemTime::now(),
            live,
            state: Mutex::default(),
            wake: Notify::new(),
            over: Notify::new(),
            draining: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            dials: AtomicUsize::new(0),
        })
    }

    /// A number of this process.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// What the agent calls itself.
    pub fn id(&self) -> &str {
        &self.announced.id
    }

    /// What it says it serves.
    pub fn identifiers(&self) -> &Identifiers {
        &self.announced.identifiers
    }

    /// The same as hosts that targets can name.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// What it proved.
    pub fn proof(&self) -> &Proof {
        &self.announced.proof
    }

    /// Where it comes from.
    pub fn address(&self) -> SocketAddr {
        self.announced.address
    }

    /// Since when.
    pub fn since(&self) -> SystemTime {
        self.since
    }

    /// Dials now.
    pub fn dials(&self) -> usize {
        self.dials.load(Ordering::Relaxed)
    }

    /// `ready`, `draining` or `stuck`.
    pub fn state(&self) -> &'static str {
        if self.draining.load(Ordering::Relaxed) {
            "draining"
        } else if self.stuck.load(Ordering::Relaxed) {
            "stuck"
        } else {
            "ready"
        }
    }

    /// Dials that wait for an answer, and connections.
    pub fn counts(&self) -> (usize, usize) {
        let state = self.lock();
        let open = state.connections.len().saturating_sub(state.closing);
        (state.pending.len(), open)
    }

    pub(super) fn live(&self) -> &LiveDials {
        &self.live
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the agent for a connection. Dropping the future gives the dial up.
    pub async fn dial(
        self: &Arc<Self>,
        target: &Target,
        bound: usize,
        deadline: Instant,
    ) -> Result<(Stream, Place), DialFailure> {
        let place = self.place(bound)?;
        let (answer, answered) = oneshot::channel();
        let random = {
            let mut state = self.lock();
            if let Some(reason) = state.ended {
                return Err(DialFailure::new(reason, false));
            }
            // Requests of dials that were given up stay until the agent reads on.
            if state.control.len() >= limits::LEGACY_CONTROL {
                return Err(DialFailure::new(Reason::AgentBusy, false));
            }
            state.random += 1;
            let random = state.random;
            let sent = false;
            state.pending.insert(random, Pending { answer, sent });
            state.control.push_back(Packet::DialRequest {
                protocol: TCP.to_owned(),
                address: target.to_string(),
                random,
            });
            random
        };
        self.wake.notify_one();
        let asking = Asking {
            stream: self,
            random,
        };
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(answer)) => answer.map(|stream| (stream, place)),
            // Its sender goes only with the stream.
            Ok(Err(_)) => Err(DialFailure::new(Reason::LinkLost, true)),
            Err(_) => {
                let sent = asking.was_sent();
                if !sent {
                    self.stuck.store(true, Ordering::Relaxed);
                }
                Err(DialFailure::new(Reason::DialTimeout, sent))
            }
        }
    }

    fn place(self: &Arc<Self>, bound: usize) -> Result<Place, DialFailure> {
        let taken = self.dials.fetch_add(1, Ordering::AcqRel);
        let place = Place {
            stream: Arc::clone(self),
        };
        match taken < bound {
            true => Ok(place),
            false => Err(DialFailure::new(Reason::AgentBusy, false)),
        }
    }

    /// What the agent said.
    pub(super) fn handle(self: &Arc<Self>, packet: Packet) -> Handled {
        match packet {
            Packet::DialResponse {
                error,
                connect_id,
                random,
            } => self.dialled(&error, connect_id, random),
            // 0 is no connection.
            Packet::Data { connect_id: 0, .. } => Handled::Stray("data-without-connection"),
            Packet::Data { connect_id, data } => {
                let connection = self.lock().connections.get(&connect_id).cloned();
                match connection {
                    Some(connection) => match connection.push(data) {
                        true => Handled::Wait(connection),
                        false => Handled::Done,
                    },
                    None => {
                        self.say(Packet::CloseRequest { connect_id });
                        Handled::Stray("data-of-unknown-connection")
                    }
                }
            }
            Packet::CloseResponse { error, connect_id } => {
                let connection = self.forget(connect_id);
                match connection {
                    Some(connection) => {
                        connection.ended(&error);
                        Handled::Done
                    }
                    None => Handled::Stray("close-of-unknown-connection"),
                }
            }
            Packet::CloseDial { random } => match self.lock().pending.remove(&random) {
                Some(pending) => {
                    let failure = DialFailure::new(Reason::LinkLost, true);
                    let _ = pending.answer.send(Err(failure));
                    Handled::Done
                }
                None => Handled::Stray("close-of-unknown-dial"),
            },
            Packet::Drain => match self.draining.swap(true, Ordering::Relaxed) {
                true => Handled::Done,
                false => Handled::Drains,
            },
            Packet::DialRequest { .. } => Handled::Stray("dial-by-an-agent"),
            Packet::CloseRequest { .. } => Handled::Stray("close-request-by-an-agent"),
            Packet::Unknown(_) => Handled::Stray("unknown-type"),
        }
    }

    fn dialled(self: &Arc<Self>, error: &str, connect_id: i64, random: i64) -> Handled {
        let mut state = self.lock();
        let Some(pending) = state.pending.remove(&random) else {
            let ours = state.connections.contains_key(&connect_id);
            drop(state);
            // Somebody else's id is left alone.
            if connect_id != 0 && !ours {
                self.say(Packet::CloseRequest { connect_id });
            }
            return Handled::Stray(Handled::UNKNOWN_DIAL);
        };
        if !error.is_empty() {
            drop(state);
            let _ = pending.answer.send(Err(DialFailure::said(error)));
            return Handled::Done;
        }
        if connect_id <= 0 || state.connections.contains_key(&connect_id) {
            drop(state);
            let failure = DialFailure::new(Reason::Protocol, true);
            let _ = pending.answer.send(Err(failure));
            return Handled::Stray("answer-with-bad-id");
        }
        let connection = Connection::new(connect_id, Arc::clone(self));
        state
            .connections
            .insert(connect_id, Arc::clone(&connection));
        drop(state);
        // When nobody waits any more the pipe is dropped here, which closes the connection.
        let _ = pending.answer.send(Ok(connection.pipe()));
        Handled::Done
    }

    fn forget(&self, id: i64) -> Option<Arc<Connection>> {
        let mut state = self.lock();
        let connection = state.connections.remove(&id)?;
        if connection.is_closing() {
            state.closing = state.closing.saturating_sub(1);
        }
        Some(connection)
    }

    /// A packet that is not DATA.
    pub(super) fn say(&self, packet: Packet) {
        let mut state = self.lock();
        if state.ended.is_some() {
            return;
        }
        state.control.push_back(packet);
        let full = state.control.len() > limits::LEGACY_CONTROL;
        drop(state);
        self.wake.notify_one();
        if full {
            tracing::warn!(agent = ?self.id(), address = %self.address(), "legacy agent does not read, its stream is ended");
            self.end(Reason::PeerSilent);
        }
    }

    /// CLOSE_REQ of a connection of ours, which stays known until the agent confirms it.
    pub(super) fn ask_close(&self, connect_id: i64) {
        let mut state = self.lock();
        state.closing += 1;
        let many = state.closing > limits::LEGACY_CLOSING;
        drop(state);
        self.say(Packet::CloseRequest { connect_id });
        if many {
            tracing::warn!(agent = ?self.id(), address = %self.address(), "legacy agent confirms no close, its stream is ended");
            self.end(Reason::Protocol);
        }
    }

    /// A connection has something to send.
    pub(super) fn stand_in_line(&self, connection: &Arc<Connection>) {
        let mut state = self.lock();
        if state.ended.is_none() {
            state.line.push_back(Arc::clone(connection));
        }
        drop(state);
        self.wake.notify_one();
    }

    /// The next packet for the agent: short ones first, then connections in turn. Cancel-safe.
    pub(super) async fn next_packet(&self) -> Packet {
        loop {
            let woken = self.wake.notified();
            if let Some(packet) = self.take_packet() {
                return packet;
            }
            woken.await;
        }
    }

    fn take_packet(&self) -> Option<Packet> {
        loop {
            let connection = {
                let mut state = self.lock();
                if let Some(packet) = state.control.pop_front() {
                    if let Packet::DialRequest { random, .. } = &packet {
                        match state.pending.get_mut(random) {
                            Some(pending) => pending.sent = true,
                            // Given up before anybody heard of it.
                            None => continue,
                        }
                    }
                    return Some(packet);
                }
                state.line.pop_front()?
            };
            let turn = connection.turn();
            if matches!(turn.packet, Some(Packet::CloseRequest { .. })) {
                self.lock().closing += 1;
            }
            if turn.again {
                self.lock().line.push_back(connection);
            }
            if turn.packet.is_some() {
                return turn.packet;
            }
        }
    }

    /// A packet was taken by the agent's side of HTTP/2.
    pub(super) fn moved(&self) {
        if self.stuck.load(Ordering::Relaxed) {
            self.stuck.store(false, Ordering::Relaxed);
        }
    }

    /// Ends the stream with everything on it. The first reason counts.
    pub fn end(&self, reason: Reason) {
        let mut state = self.lock();
        if state.ended.is_some() {
            return;
        }
        state.ended = Some(reason);
        let pending = std::mem::take(&mut state.pending);
        let connections = std::mem::take(&mut state.connections);
        state.control.clear();
        state.line.clear();
        drop(state);
        for dial in pending.into_values() {
            let failure = DialFailure::new(reason, dial.sent);
            let _ = dial.answer.send(Err(failure));
        }
        for connection in connections.into_values() {
            connection.fail(StreamError::Lost(reason));
        }
        self.over.notify_waiters();
    }

    /// Resolves when [`AgentStream::end`] was called. Cancel-safe.
    pub(super) async fn ended(&self) -> Reason {
        loop {
            let told = self.over.notified();
            if let Some(reason) = self.lock().ended {
                return reason;
            }
            told.await;
        }
    }
}

/// A dial under way; dropping it takes it off the stream's list, and an agent that was asked is
/// told that nobody waits for its answer.
struct Asking<'a> {
    stream: &'a AgentStream,
    random: i64,
}

impl Asking<'_> {
    fn was_sent(&self) -> bool {
        let state = self.stream.lock();
        // One that is gone was answered at this very moment.
        state.pending.get(&self.random).is_none_or(|dial| dial.sent)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let random = self.random;
        let mut state = self.stream.lock();
        let asked = state.pending.remove(&random).is_some_and(|dial| dial.sent);
        // The answer to a dial that is not pending is a CLOSE_REQ anyhow: for an agent that reads
        // nothing this is not worth its stream.
        if !asked || state.control.len() >= limits::LEGACY_CONTROL {
            return;
        }
        state.control.push_back(Packet::CloseDial { random });
        drop(state);
        self.stream.wake.notify_one();
    }
}

/// A dial's place among those of its stream.
pub struct Place {
    stream: Arc<AgentStream>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.stream.dials.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> Arc<AgentStream> {
        let announced = Announced {
            id: "a".into(),
            identifiers: Identifiers::default(),
            proof: Proof::Certificate(Vec::new()),
            address: ([127, 0, 0, 1], 1).into(),
        };
        AgentStream::new(1, announced, LiveDials::new(0))
    }

    /// Asks until `deadline` while the agent takes `packets`.
    async fn ask(stream: &Arc<AgentStream>, packets: usize) -> Vec<Packet> {
        let target = "10.0.0.1:1".parse().unwrap();
        let asking = stream.dial(&target, usize::MAX, Instant::now() + LATER);
        let taking = async {
            let mut taken = Vec::new();
            for _ in 0..packets {
                taken.push(stream.next_packet().await);
            }
            taken
        };
        let (asked, taken) = tokio::join!(asking, taking);
        assert!(asked.is_err_and(|failure| failure.reason == Reason::DialTimeout));
        taken
    }

    const LATER: std::time::Duration = std::time::Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_was_asked_is_told_that_nobody_waits() {
        let stream = stream();
        assert_eq!(ask(&stream, 0).await, []);
        // The first was never said, and neither is its end.
        let taken = ask(&stream, 2).await;
        let Packet::DialRequest { random, .. } = &taken[0] else {
            panic!("{taken:?}");
        };
        assert_eq!(taken[1], Packet::CloseDial { random: *random });
        assert!(stream.take_packet().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answered_dial_is_not_taken_back() {
        let stream = stream();
        let target = "10.0.0.1:1".parse().unwrap();
        let answering = async {
            let Packet::DialRequest { random, .. } = stream.next_packet().await else {
                panic!("no dial");
            };
            let (error, connect_id) = ("no".to_owned(), 0);
            stream.handle(Packet::DialResponse {
                error,
                connect_id,
                random,
            });
        };
        let asking = stream.dial(&target, usize::MAX, Instant::now() + LATER);
        let (asked, ()) = tokio::join!(asking, answering);
        assert!(asked.is_err());
        assert!(stream.take_packet().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_reads_nothing_is_asked_so_often_and_no_more() {
        let stream = stream();
        let target = "10.0.0.1:1".parse().unwrap();
        let mut busy = 0;
        for _ in 0..limits::LEGACY_CONTROL + 10 {
            let failed = stream.dial(&target, usize::MAX, Instant::now()).await;
            busy += u32::from(failed.is_err_and(|failure| failure.reason == Reason::AgentBusy));
        }
        assert_eq!(busy, 10);
        assert_eq!(stream.lock().control.len(), limits::LEGACY_CONTROL);
        // When it reads again, those that were given up are not said.
        assert!(stream.take_packet().is_none());
        assert!(stream.lock().control.is_empty());
    }
}
