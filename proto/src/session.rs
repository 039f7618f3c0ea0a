//! One link's life, as both ends see it on the control stream.
//!
//! ```text
//!  Greeting ──Hello/Welcome──> Ready ──Drain──> Draining ──> Closed
//!      └────────refused / late / broken / silent / certificate over──────────┘
//! ```
//!
//! Inputs: [`Session::handle_bytes`] for what the peer wrote, [`Session::handle_end`] for its end
//! of stream, [`Session::handle_time`] when [`Session::deadline`] has come; verbs for what our
//! side wants ([`Session::welcome`], [`Session::refuse`], [`Session::drain`],
//! [`Session::close`]). After each call take outputs with [`Session::poll`] until it gives
//! `None`. Time never runs backwards: `now` of a call is at or after that of the call before.
//!
//! After [`Output::Closed`] the session is over: inputs do nothing and nothing more comes out.
//! A protocol error closes it; there is no state in which it has failed and goes on.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::control::{Drain, Framer, Goodbye, Heartbeat, Hello, Message, Welcome};
use crate::id::Name;
use crate::limits;
use crate::notes::Notes;
use crate::reason::Reason;
use crate::version::{self, Capabilities};

/// What the shell has to do or to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Write these bytes to the control stream.
    Send(Vec<u8>),
    /// Server only: an agent greeted us with a name that is its certificate's. Answer with
    /// [`Session::welcome`] or [`Session::refuse`].
    Hello(Hello),
    /// Agent only: the server took us.
    Welcome(Welcome),
    /// The peer takes no new dials (agent), or wants none on this link any more (server).
    PeerDrains(Drain),
    /// The peer's word on its own data path changed.
    PeerHealth {
        /// Its data path.
        healthy: bool,
        /// What else it says of itself.
        notes: Notes,
    },
    /// A heartbeat of ours came back after this time.
    RoundTrip(Duration),
    /// The session is over; close the link with this reason. Always the last output.
    Closed(Reason),
}

/// Where in its life a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Before Welcome.
    Greeting,
    /// New dials may be opened.
    Ready,
    /// One end asked for no new dials.
    Draining,
    /// Over.
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Agent,
    Server,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Session {
    end: End,
    state: State,
    /// The peer's name as its certificate proves it.
    peer: Name,
    hello_seen: bool,
    framer: Framer,
    outputs: VecDeque<Output>,
    timers: Timers,
    heartbeat: Beat,
    /// What both ends can do; known from Ready on.
    capabilities: Capabilities,
}

#[derive(Debug)]
struct Timers {
    /// The greeting must be over.
    greeting: Option<Instant>,
    /// Our next heartbeat.
    heartbeat: Option<Instant>,
    /// The peer is dead unless heard from.
    silent: Instant,
    /// The peer's certificate ends.
    certificate: Option<Instant>,
    /// Live dials have had their time.
    drain: Option<(Instant, Reason)>,
}

#[derive(Debug)]
struct Beat {
    sequence: u64,
    sent_at: Option<(u64, Instant)>,
    last_from_peer: u64,
    live_dials: u32,
    healthy: bool,
    notes: Notes,
    peer_said: (bool, Notes),
}

impl Session {
    /// The agent's end: greets at once.
    pub fn agent(now: Instant, server: Name, hello: Hello) -> Self {
        let mut session = Self::new(now, End::Agent, server);
        session.send(&Message::Hello(hello));
        session
    }

    /// The server's end: waits for Hello of the agent that the certificate names.
    pub fn server(now: Instant, agent: Name) -> Self {
        Self::new(now, End::Server, agent)
    }

    fn new(now: Instant, end: End, peer: Name) -> Self {
        Self {
            end,
            state: State::Greeting,
            peer,
            hello_seen: false,
            framer: Framer::default(),
            outputs: VecDeque::new(),
            timers: Timers {
                greeting: Some(now + limits::GREETING),
                heartbeat: None,
                silent: now + limits::PEER_SILENT,
                certificate: None,
                drain: None,
            },
            heartbeat: Beat {
                sequence: 0,
                sent_at: None,
                last_from_peer: 0,
                live_dials: 0,
                healthy: true,
                notes: Notes::NONE,
                peer_said: (true, Notes::NONE),
            },
            capabilities: Capabilities::NONE,
        }
    }

    // ---- what happened ---------------------------------------------------------------------

    /// Bytes of the control stream, in any pieces.
    pub fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) {
        if self.state == State::Closed {
            return;
        }
        self.timers.silent = now + limits::PEER_SILENT;
        self.framer.push(bytes);
        while self.state != State::Closed {
            match self.framer.next_message() {
                Ok(Some(message)) => self.handle_message(now, message),
                Ok(None) => break,
                Err(_) => self.end(Reason::Protocol, true),
            }
        }
    }

    /// The peer ended its control stream, or the stream broke.
    pub fn handle_end(&mut self, reason: Reason) {
        self.end(reason, false);
    }

    /// The time of [`Session::deadline`] has come.
    pub fn handle_time(&mut self, now: Instant) {
        if self.state == State::Closed {
            return;
        }
        if self.timers.silent <= now || self.unheard().is_some_and(|at| at <= now) {
            return self.end(Reason::PeerSilent, true);
        }
        if self.timers.certificate.is_some_and(|at| at <= now) {
            return self.end(Reason::CertificateEnded, true);
        }
        if self.timers.greeting.is_some_and(|at| at <= now) {
            return self.end(Reason::GreetingTimeout, true);
        }
        if let Some((at, reason)) = self.timers.drain
            && at <= now
        {
            return self.end(reason, true);
        }
        if self.timers.heartbeat.is_some_and(|at| at <= now) {
            self.beat(now);
        }
    }

    fn handle_message(&mut self, now: Instant, message: Message) {
        match (message, self.end, self.state) {
            (Message::Goodbye(goodbye), ..) => self.end(goodbye.reason, false),
            (Message::Hello(hello), End::Server, State::Greeting) if !self.hello_seen => {
                self.handle_hello(hello)
            }
            (Message::Welcome(welcome), End::Agent, State::Greeting) => {
                self.handle_welcome(now, welcome)
            }
            (Message::Heartbeat(beat), _, State::Ready | State::Draining) => {
                self.handle_heartbeat(now, beat)
            }
            (Message::Drain(drain), _, State::Ready | State::Draining) => {
                self.state = State::Draining;
                self.outputs.push_back(Output::PeerDrains(drain));
            }
            _ => self.end(Reason::Protocol, true),
        }
    }

    fn handle_hello(&mut self, hello: Hello) {
        self.hello_seen = true;
        if hello.name != self.peer {
            return self.end(Reason::ExcessClaim, true);
        }
        let ours = (version::VERSION_MIN, version::VERSION_MAX);
        if version::negotiate(ours, hello.versions).is_none() {
            return self.end(Reason::Version, true);
        }
        self.capabilities = Capabilities::OURS.meet(hello.capabilities);
        self.outputs.push_back(Output::Hello(hello));
    }

    fn handle_welcome(&mut self, now: Instant, welcome: Welcome) {
        if welcome.server != self.peer {
            return self.end(Reason::Protocol, true);
        }
        if !(version::VERSION_MIN..=version::VERSION_MAX).contains(&welcome.version) {
            return self.end(Reason::Version, true);
        }
        self.capabilities = Capabilities::OURS.meet(welcome.capabilities);
        self.outputs.push_back(Output::Welcome(welcome));
        self.ready(now);
    }

    fn handle_heartbeat(&mut self, now: Instant, beat: Heartbeat) {
        if beat.sequence <= self.heartbeat.last_from_peer || beat.echo > self.heartbeat.sequence {
            return self.end(Reason::Protocol, true);
        }
        self.heartbeat.last_from_peer = beat.sequence;
        if let Some((sequence, sent_at)) = self.heartbeat.sent_at
            && beat.echo >= sequence
        {
            self.heartbeat.sent_at = None;
            self.outputs
                .push_back(Output::RoundTrip(now.saturating_duration_since(sent_at)));
        }
        let said = (beat.healthy, beat.notes);
        if said != self.heartbeat.peer_said {
            self.heartbeat.peer_said = said;
            let (healthy, notes) = said;
            self.outputs
                .push_back(Output::PeerHealth { healthy, notes });
        }
    }

    // ---- what our side wants ---------------------------------------------------------------

    /// Server: takes the agent whose Hello came out. Does nothing in any other state.
    pub fn welcome(&mut self, now: Instant, welcome: Welcome) {
        if self.end == End::Server && self.state == State::Greeting && self.hello_seen {
            self.send(&Message::Welcome(welcome));
            self.ready(now);
        }
    }

    /// Server: does not take the agent whose Hello came out.
    pub fn refuse(&mut self, reason: Reason) {
        self.end(reason, true);
    }

    /// No new dials; the session closes with `reason` when `deadline` is over, or earlier by
    /// [`Session::close`] when the last dial has ended. A second call can only shorten the time.
    pub fn drain(&mut self, now: Instant, reason: Reason, deadline: Duration) {
        match self.state {
            State::Closed => {}
            State::Greeting => self.end(reason, true),
            State::Ready | State::Draining => {
                self.state = State::Draining;
                let at = now + deadline;
                if self.timers.drain.is_none_or(|(before, _)| at < before) {
                    self.timers.drain = Some((at, reason));
                    self.send(&Message::Drain(Drain { reason, deadline }));
                }
            }
        }
    }

    /// Ends the session now, telling the peer why.
    pub fn close(&mut self, reason: Reason) {
        self.end(reason, true);
    }

    /// The moment at which the peer's certificate ends its life; the link ends with it.
    pub fn set_certificate_end(&mut self, at: Option<Instant>) {
        self.timers.certificate = at;
    }

    /// What the next heartbeat says about us.
    pub fn set_load(&mut self, live_dials: u32, healthy: bool, notes: Notes) {
        self.heartbeat.live_dials = live_dials;
        self.heartbeat.healthy = healthy;
        self.heartbeat.notes = notes;
    }

    // ---- what to do ------------------------------------------------------------------------

    /// The next thing for the shell to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Session::handle_time`] wants to be called; `None` once closed.
    pub fn deadline(&self) -> Option<Instant> {
        if self.state == State::Closed {
            return None;
        }
        [
            self.timers.greeting,
            self.timers.heartbeat,
            Some(self.timers.silent),
            self.unheard(),
            self.timers.certificate,
            self.timers.drain.map(|(at, _)| at),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Where in its life the session is.
    pub fn state(&self) -> State {
        self.state
    }

    /// What both ends can do; [`Capabilities::NONE`] while greeting.
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    // ---- inside ----------------------------------------------------------------------------

    /// When a peer that sends but does not read counts as dead: its heartbeats echo ours.
    fn unheard(&self) -> Option<Instant> {
        let (_, sent_at) = self.heartbeat.sent_at?;
        Some(sent_at + limits::PEER_SILENT + limits::HEARTBEAT)
    }

    fn ready(&mut self, now: Instant) {
        self.state = State::Ready;
        self.timers.greeting = None;
        self.beat(now);
    }

    fn beat(&mut self, now: Instant) {
        self.timers.heartbeat = Some(now + limits::HEARTBEAT);
        self.heartbeat.sequence += 1;
        if self.heartbeat.sent_at.is_none() {
            self.heartbeat.sent_at = Some((self.heartbeat.sequence, now));
        }
        let beat = Heartbeat {
            sequence: self.heartbeat.sequence,
            echo: self.heartbeat.last_from_peer,
            live_dials: self.heartbeat.live_dials,
            healthy: self.heartbeat.healthy,
            notes: self.heartbeat.notes,
        };
        self.send(&Message::Heartbeat(beat));
    }

    fn send(&mut self, message: &Message) {
        // The shell drains outputs after every call, so this queue holds what one call made. A
        // peer that makes us answer more than it reads is cut off here.
        if self.outputs.len() >= limits::CONTROL_QUEUE {
            self.outputs.clear();
            return self.end(Reason::Protocol, false);
        }
        self.outputs.push_back(Output::Send(message.encode()));
    }

    fn end(&mut self, reason: Reason, tell: bool) {
        if self.state == State::Closed {
            return;
        }
        self.state = State::Closed;
        if tell {
            let goodbye = Message::Goodbye(Goodbye { reason }).encode();
            self.outputs.push_back(Output::Send(goodbye));
        }
        self.outputs.push_back(Output::Closed(reason));
    }
}

/// Fuzz body: arbitrary bytes at either end, in two pieces with time between them.
pub fn fuzz_session(now: Instant, hello: Hello, data: &[u8]) {
    let peer = hello.name.clone();
    let (first, second) = data.split_at(data.len() / 2);
    for mut session in [
        Session::server(now, peer.clone()),
        Session::agent(now, peer.clone(), hello),
    ] {
        session.handle_bytes(now, first);
        while session.poll().is_some() {}
        session.handle_time(now + limits::HEARTBEAT);
        session.handle_bytes(now + limits::HEARTBEAT, second);
        session.handle_time(now + limits::HEARTBEAT + limits::PEER_SILENT);
        assert_eq!(session.state(), State::Closed);
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
