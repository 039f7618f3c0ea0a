//! One stream to one legacy server: its connections, and what waits to be said to it.
//!
//! Connection ids are numbers of this stream and mean nothing outside of it. A packet about a
//! connection that this stream does not have is answered as the protocol has it and touches
//! nobody else.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;
use tokio::task::AbortHandle;
use towline_link::carrier::StreamError;
use towline_link::live::LiveDials;
use towline_proto::konnectivity::{CLOSE_UNKNOWN, DATA_UNKNOWN, Packet};
use towline_proto::limits;
use towline_proto::reason::Reason;

use super::connection::Connection;

#[derive(Default, Debug)]
struct State {
    /// Dials that have no connection yet, by the server's number.
    dialling: HashMap<i64, AbortHandle>,
    connections: HashMap<i64, Arc<Connection>>,
    last_id: i64,
    /// Everything but DATA and what stands behind it.
    control: VecDeque<Packet>,
    /// Connections with something to send, each at most once, in turn.
    line: VecDeque<Arc<Connection>>,
    ended: Option<Reason>,
}

/// One stream.
pub(super) struct ServerStream {
    server_id: String,
    since: Instant,
    live: LiveDials,
    state: Mutex<State>,
    wake: Notify,
    over: Notify,
}

impl std::fmt::Debug for ServerStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ServerStream({:?})", self.server_id)
    }
}

/// What the reader of a stream has to do about a packet.
pub(super) enum Handled {
    /// Nothing.
    Done,
    /// Dial this.
    Dial {
        /// `tcp`, or what the server thinks a protocol is.
        protocol: String,
        /// `host:port`, hopefully.
        address: String,
        /// The server's number for it.
        random: i64,
        /// Ours, if it works.
        id: i64,
    },
    /// The queue of this connection is long, and its target moves.
    Wait(Arc<Connection>),
    /// It was about something that is not there.
    Stray(&'static str),
}

impl ServerStream {
    pub(super) fn new(server_id: String, live: LiveDials) -> Arc<Self> {
        Arc::new(Self {
            server_id,
            since: Instant::now(),
            live,
            state: Mutex::default(),
            wake: Notify::new(),
            over: Notify::new(),
        })
    }

    pub(super) fn server_id(&self) -> &str {
        &self.server_id
    }

    pub(super) fn since(&self) -> Instant {
        self.since
    }

    pub(super) fn live(&self) -> &LiveDials {
        &self.live
    }

    /// Connections now.
    pub(super) fn connections(&self) -> usize {
        self.lock().connections.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the server said.
    pub(super) fn handle(&self, packet: Packet) -> Handled {
        match packet {
            Packet::DialRequest {
                protocol,
                address,
                random,
            } => {
                let mut state = self.lock();
                state.last_id += 1;
                Handled::Dial {
                    protocol,
                    address,
                    random,
                    id: state.last_id,
                }
            }
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
                        self.unknown(connect_id, DATA_UNKNOWN);
                        Handled::Stray("data-of-unknown-connection")
                    }
                }
            }
            Packet::CloseRequest { connect_id } => {
                let connection = self.lock().connections.get(&connect_id).cloned();
                match connection {
                    Some(connection) => connection.close_requested(),
                    // Common: our CLOSE_RSP and this packet met on the way.
                    None => self.unknown(connect_id, CLOSE_UNKNOWN),
                }
                Handled::Done
            }
            Packet::CloseDial { random } => {
                if let Some(dial) = self.lock().dialling.remove(&random) {
                    dial.abort();
                }
                Handled::Done
            }
            Packet::DialResponse { .. } => Handled::Stray("dial-response-by-a-server"),
            Packet::CloseResponse { .. } => Handled::Stray("close-response-by-a-server"),
            Packet::Drain => Handled::Stray("drain-by-a-server"),
            Packet::Unknown(_) => Handled::Stray("unknown-type"),
        }
    }

    fn unknown(&self, connect_id: i64, error: &str) {
        self.say(Packet::CloseResponse {
            error: error.to_owned(),
            connect_id,
        });
    }

    /// A dial is under way; `handle` gives it up.
    pub(super) fn dialling(&self, random: i64, handle: AbortHandle) {
        let mut state = self.lock();
        if state.dialling.len() >= limits::LEGACY_CLOSING {
            state.dialling.retain(|_, dial| !dial.is_finished());
        }
        state.dialling.insert(random, handle);
    }

    /// A dial failed.
    pub(super) fn refused(&self, random: i64, error: String) {
        self.lock().dialling.remove(&random);
        self.say(Packet::DialResponse {
            error,
            connect_id: 0,
            random,
        });
    }

    /// A dial worked: DIAL_RSP, before anything that the target says.
    pub(super) fn connected(self: &Arc<Self>, random: i64, id: i64) -> Option<Arc<Connection>> {
        let mut state = self.lock();
        state.dialling.remove(&random);
        if state.ended.is_some() {
            return None;
        }
        let connection = Connection::new(id, Arc::clone(self));
        state.connections.insert(id, Arc::clone(&connection));
        drop(state);
        self.say(Packet::DialResponse {
            error: String::new(),
            connect_id: id,
            random,
        });
        Some(connection)
    }

    /// A packet that stands behind no DATA.
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
            tracing::warn!(server = ?self.server_id, "the server does not read, its stream is ended");
            self.end(Reason::PeerSilent);
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

    /// The next packet for the server: short ones first, then connections in turn. Cancel-safe.
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
                    return Some(packet);
                }
                state.line.pop_front()?
            };
            let turn = connection.turn();
            let mut state = self.lock();
            if matches!(turn.packet, Some(Packet::CloseResponse { .. })) {
                state.connections.remove(&connection.id());
            }
            if turn.again {
                state.line.push_back(connection);
            }
            drop(state);
            if turn.packet.is_some() {
                return turn.packet;
            }
        }
    }

    /// Ends the stream with everything on it. The first reason counts.
    pub(super) fn end(&self, reason: Reason) {
        let mut state = self.lock();
        if state.ended.is_some() {
            return;
        }
        state.ended = Some(reason);
        let dialling = std::mem::take(&mut state.dialling);
        let connections = std::mem::take(&mut state.connections);
        state.control.clear();
        state.line.clear();
        drop(state);
        for dial in dialling.into_values() {
            dial.abort();
        }
        for connection in connections.into_values() {
            connection.fail(StreamError::Lost(reason));
        }
        self.over.notify_waiters();
    }

    /// Resolves when [`ServerStream::end`] was called. Cancel-safe.
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
