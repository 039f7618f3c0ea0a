//! Runs one link's [`Session`] on its control stream: wake-ups in, effects out, no decisions.
//!
//! [`greet_agent`] and [`greet_server`] end with a [`Link`] handle and a driver future. The
//! caller owns the future (spawns it where it is joined or aborted); when it ends, the link is
//! closed and every stream on it is lost.
//!
//! A drained link ends in this order, so that bytes already accepted are delivered: the server,
//! which alone opens dials, sends Goodbye when it has none left; the agent answers by closing
//! the connection once its own dials have ended; the server waits for that. The deadline of the
//! drain cuts every one of these waits, and so do [`Link::close`] and the end of the peer's
//! certificate: nobody stays by draining. A session that ends in any other way (silence, a
//! broken rule, a lost stream) has no such wait.

mod start;

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, watch};
use towline_proto::control::{Hello, Welcome};
use towline_proto::id::LinkId;
use towline_proto::limits;
use towline_proto::notes::Notes;
use towline_proto::reason::Reason;
use towline_proto::session::{Output, Session};

use crate::carrier::{Carrier, SendStream, Stream, StreamError};
use start::{certificate_end, next_link_id};

/// Where in its life a greeted link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// New dials may be opened.
    Ready,
    /// No new dials; who asked, why, and until when.
    Draining {
        /// The peer asked.
        by_peer: bool,
        /// Why.
        reason: Reason,
        /// When live dials are cut.
        until: Instant,
    },
    /// Over.
    Closed(Reason),
}

enum Command {
    Drain { reason: Reason, deadline: Duration },
    Close(Reason),
}

struct Shared {
    id: LinkId,
    carrier: Arc<dyn Carrier>,
    commands: mpsc::Sender<Command>,
    state: watch::Sender<LinkState>,
    dials: AtomicU32,
    dial_ended: Notify,
    healthy: AtomicBool,
    peer_healthy: AtomicBool,
    notes: AtomicU32,
    peer_notes: AtomicU32,
    rtt_us: AtomicU64,
    heard_ms: AtomicU64,
    since: Instant,
}

/// A greeted link. Clones share; the link lives as long as its driver runs.
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("id", &self.shared.id)
            .field("carrier", &self.shared.carrier.kind())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl Link {
    /// Unique in this process.
    pub fn id(&self) -> LinkId {
        self.shared.id
    }

    /// What the link runs on.
    pub fn carrier(&self) -> &Arc<dyn Carrier> {
        &self.shared.carrier
    }

    /// Where in its life it is.
    pub fn state(&self) -> LinkState {
        *self.shared.state.borrow()
    }

    /// Changes of [`Link::state`].
    pub fn watch(&self) -> watch::Receiver<LinkState> {
        self.shared.state.subscribe()
    }

    /// Resolves when the link is over.
    pub async fn closed(&self) -> Reason {
        let mut state = self.watch();
        loop {
            if let LinkState::Closed(reason) = *state.borrow_and_update() {
                return reason;
            }
            if state.changed().await.is_err() {
                return Reason::LinkLost;
            }
        }
    }

    /// Asks the peer for no new dials and closes when the live ones have ended, at the latest
    /// after `deadline`.
    pub fn drain(&self, reason: Reason, deadline: Duration) {
        // A full queue means that the driver is about to end or already draining.
        let _ = self
            .shared
            .commands
            .try_send(Command::Drain { reason, deadline });
    }

    /// Closes now; live dials are lost.
    pub fn close(&self, reason: Reason) {
        if self
            .shared
            .commands
            .try_send(Command::Close(reason))
            .is_err()
        {
            self.shared.carrier.close(reason);
        }
    }

    /// Counts a dial for as long as the guard lives; `None` when `max` are live already.
    pub fn begin_dial(&self, max: u32) -> Option<DialGuard> {
        let before = self.shared.dials.fetch_add(1, Ordering::AcqRel);
        let guard = DialGuard {
            shared: Arc::clone(&self.shared),
        };
        (before < max).then_some(guard)
    }

    /// Live dials.
    pub fn dials(&self) -> u32 {
        self.shared.dials.load(Ordering::Acquire)
    }

    /// What our heartbeats say about our data path.
    pub fn set_healthy(&self, healthy: bool) {
        self.shared.healthy.store(healthy, Ordering::Relaxed);
    }

    /// What the peer's heartbeats say about its data path.
    pub fn peer_healthy(&self) -> bool {
        self.shared.peer_healthy.load(Ordering::Relaxed)
    }

    /// What our heartbeats say of us beside that.
    pub fn set_notes(&self, notes: Notes) {
        self.shared.notes.store(notes.bits(), Ordering::Relaxed);
    }

    /// What the peer's heartbeats say of it beside that.
    pub fn peer_notes(&self) -> Notes {
        Notes::from_bits(self.shared.peer_notes.load(Ordering::Relaxed))
    }

    /// Last heartbeat round trip.
    pub fn rtt(&self) -> Option<Duration> {
        match self.shared.rtt_us.load(Ordering::Relaxed) {
            0 => None,
            us => Some(Duration::from_micros(us)),
        }
    }

    /// When the link was greeted.
    pub fn since(&self) -> Instant {
        self.shared.since
    }

    /// Time since the last byte on the control stream.
    pub fn silent_for(&self) -> Duration {
        let heard = Duration::from_millis(self.shared.heard_ms.load(Ordering::Relaxed));
        now().saturating_duration_since(self.shared.since + heard)
    }
}

/// A live dial's place in the count of its link.
pub struct DialGuard {
    shared: Arc<Shared>,
}

impl Drop for DialGuard {
    fn drop(&mut self) {
        if self.shared.dials.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.dial_ended.notify_waiters();
        }
    }
}

/// tokio's clock, so that tests can pause it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Why a greeting did not end in a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("greeting failed: {reason}")]
pub struct GreetError {
    /// Why.
    pub reason: Reason,
}

/// The agent's end: opens the control stream, sends Hello, awaits Welcome.
pub async fn greet_agent(
    carrier: Arc<dyn Carrier>,
    hello: Hello,
) -> Result<(Link, Welcome, impl Future<Output = Reason> + Send + 'static), GreetError> {
    let opened = tokio::time::timeout(limits::GREETING, carrier.open()).await;
    let stream = match opened {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(refused(&carrier, error.reason())),
        Err(_) => return Err(refused(&carrier, Reason::GreetingTimeout)),
    };
    let name = carrier.peer().identity().name.clone();
    let session = Session::agent(now(), name, hello);
    let mut driver = Driver::new(carrier, stream, session);
    loop {
        match driver.step(None).await {
            Step::Output(Output::Welcome(welcome)) => {
                let (link, run) = driver.begin(Role::Agent);
                return Ok((link, welcome, run));
            }
            Step::Output(_) => {}
            Step::Closed(reason) => return Err(driver.give_up(reason).await),
        }
    }
}

/// The server's end: awaits the control stream and Hello, asks `decide`, answers.
pub async fn greet_server(
    carrier: Arc<dyn Carrier>,
    decide: impl FnOnce(&Hello) -> Result<Welcome, Reason> + Send,
) -> Result<(Link, Hello, impl Future<Output = Reason> + Send + 'static), GreetError> {
    let accepted = tokio::time::timeout(limits::GREETING, carrier.accept()).await;
    let stream = match accepted {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(refused(&carrier, error.reason())),
        Err(_) => return Err(refused(&carrier, Reason::GreetingTimeout)),
    };
    let name = carrier.peer().identity().name.clone();
    let session = Session::server(now(), name);
    let mut driver = Driver::new(carrier, stream, session);
    let mut decide = Some(decide);
    loop {
        match driver.step(None).await {
            Step::Output(Output::Hello(hello)) => {
                let Some(decide) = decide.take() else {
                    continue;
                };
                match decide(&hello) {
                    Ok(welcome) => {
                        driver.session.welcome(now(), welcome);
                        let (link, run) = driver.begin(Role::Server);
                        return Ok((link, hello, run));
                    }
                    Err(reason) => driver.session.refuse(reason),
                }
            }
            Step::Output(_) => {}
            Step::Closed(reason) => return Err(driver.give_up(reason).await),
        }
    }
}

fn refused(carrier: &Arc<dyn Carrier>, reason: Reason) -> GreetError {
    carrier.close(reason);
    GreetError { reason }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Agent,
    Server,
}

enum Step {
    Output(Output),
    Closed(Reason),
}

struct Driver {
    carrier: Arc<dyn Carrier>,
    control: Stream,
    session: Session,
    /// Encoded messages that the control stream has not taken yet.
    outgoing: VecDeque<Bytes>,
    certificate_look: tokio::time::Instant,
}

/// The system clock may be set while a link lives, so the certificate's end is placed on our
/// clock anew this often.
const CERTIFICATE_LOOK: Duration = Duration::from_secs(30);

/// For the last message of a session to be written, and again for it to arrive.
const FAREWELL: Duration = Duration::from_millis(200);

/// Cancel-safe: what was not taken stays in the queue.
async fn send_all(send: &mut SendStream, queue: &mut VecDeque<Bytes>) -> Result<(), StreamError> {
    std::future::poll_fn(|cx| {
        while let Some(chunk) = queue.front_mut() {
            if chunk.is_empty() {
                queue.pop_front();
            } else {
                ready!(send.poll_send(cx, chunk))?;
            }
        }
        Poll::Ready(Ok(()))
    })
    .await
}

impl Driver {
    fn new(carrier: Arc<dyn Carrier>, mut control: Stream, mut session: Session) -> Self {
        // The control stream is never behind a dial.
        control.send.set_priority(i32::MAX);
        session.set_certificate_end(certificate_end(&*carrier));
        let certificate_look = tokio::time::Instant::now() + CERTIFICATE_LOOK;
        Self {
            carrier,
            control,
            session,
            outgoing: VecDeque::new(),
            certificate_look,
        }
    }

    /// Feeds the session with the next thing that happens until it has something for the caller.
    /// Cancel-safe: what is half done is kept in `self`.
    async fn step(&mut self, shared: Option<&Shared>) -> Step {
        loop {
            while let Some(output) = self.session.poll() {
                match output {
                    Output::Send(_) if self.outgoing.len() >= limits::CONTROL_QUEUE => {
                        // The peer reads nothing and makes us say more and more.
                        self.outgoing.clear();
                        self.session.handle_end(Reason::PeerSilent);
                    }
                    Output::Send(bytes) => self.outgoing.push_back(bytes.into()),
                    Output::Closed(reason) => return Step::Closed(reason),
                    other => return Step::Output(other),
                }
            }
            let deadline = match self.session.deadline() {
                Some(at) => tokio::time::Instant::from_std(at).min(self.certificate_look),
                None => return Step::Closed(Reason::LinkLost),
            };
            tokio::select! {
                sent = send_all(&mut self.control.send, &mut self.outgoing), if !self.outgoing.is_empty() => {
                    if let Err(error) = sent {
                        self.session.handle_end(error.reason());
                    }
                }
                received = self.control.recv.recv(limits::CONTROL_MESSAGE_BYTES) => match received {
                    Ok(Some(bytes)) => {
                        if let Some(shared) = shared {
                            let heard = now().saturating_duration_since(shared.since);
                            shared.heard_ms.store(u64::try_from(heard.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
                        }
                        self.session.handle_bytes(now(), &bytes);
                    }
                    Ok(None) => self.session.handle_end(Reason::LinkLost),
                    Err(error) => self.session.handle_end(error.reason()),
                },
                () = tokio::time::sleep_until(deadline) => {
                    if tokio::time::Instant::now() >= self.certificate_look {
                        self.certificate_look += CERTIFICATE_LOOK;
                        self.session.set_certificate_end(certificate_end(&*self.carrier));
                    }
                    self.session.handle_time(now());
                }
            }
        }
    }

    /// Writes what is left (Goodbye, mostly) and ends our direction; does not wait long.
    async fn farewell(&mut self) {
        let all = send_all(&mut self.control.send, &mut self.outgoing);
        if let Ok(Ok(())) = tokio::time::timeout(FAREWELL, all).await {
            self.control.send.finish();
        }
    }

    /// Ends a connection that never became a link. The peer reads Goodbye first, where it can.
    async fn give_up(mut self, reason: Reason) -> GreetError {
        self.farewell().await;
        // A moment for Goodbye to arrive, cut short when the peer closes.
        let _ = tokio::time::timeout(FAREWELL, self.carrier.closed()).await;
        self.carrier.close(reason);
        GreetError { reason }
    }

    fn begin(self, role: Role) -> (Link, impl Future<Output = Reason> + Send + 'static) {
        let (commands, inbox) = mpsc::channel(limits::CONTROL_QUEUE);
        let (state, _) = watch::channel(LinkState::Ready);
        let shared = Arc::new(Shared {
            id: next_link_id(),
            carrier: Arc::clone(&self.carrier),
            commands,
            state,
            dials: AtomicU32::new(0),
            dial_ended: Notify::new(),
            healthy: AtomicBool::new(true),
            peer_healthy: AtomicBool::new(true),
            notes: AtomicU32::new(0),
            peer_notes: AtomicU32::new(0),
            rtt_us: AtomicU64::new(0),
            heard_ms: AtomicU64::new(0),
            since: now(),
        });
        let link = Link {
            shared: Arc::clone(&shared),
        };
        (link, self.run(role, shared, inbox))
    }

    async fn run(
        mut self,
        role: Role,
        shared: Arc<Shared>,
        mut inbox: mpsc::Receiver<Command>,
    ) -> Reason {
        // However this future ends, the link is closed and its state says so.
        let mut end = CloseOnDrop {
            shared: Arc::clone(&shared),
            reason: Reason::Shutdown,
        };
        let mut closing = false;
        // Whether the server has said that it has no dials left.
        let mut in_order = false;
        let reason = loop {
            self.session.set_load(
                shared.dials.load(Ordering::Acquire),
                shared.healthy.load(Ordering::Relaxed),
                Notes::from_bits(shared.notes.load(Ordering::Relaxed)),
            );
            let idle_drain = !closing
                && role == Role::Server
                && matches!(*shared.state.borrow(), LinkState::Draining { .. });
            tokio::select! {
                biased;
                command = inbox.recv(), if !closing => match command {
                    Some(Command::Drain { reason, deadline }) => {
                        self.session.drain(now(), reason, deadline);
                        let until = now() + deadline;
                        set_draining(&shared.state, LinkState::Draining { by_peer: false, reason, until });
                    }
                    Some(Command::Close(reason)) => {
                        closing = true;
                        self.session.close(reason);
                    }
                    None => closing = true,
                },
                () = no_dials(&shared), if idle_drain => {
                    let LinkState::Draining { reason, .. } = *shared.state.borrow() else { continue };
                    (closing, in_order) = (true, true);
                    self.session.close(reason);
                }
                step = self.step(Some(&shared)) => match step {
                    Step::Output(Output::PeerDrains(drain)) => {
                        // The peer's number is its wish; a year is not granted.
                        let until = now() + drain.deadline.min(limits::DRAIN_TIMEOUT_MAX);
                        set_draining(&shared.state, LinkState::Draining { by_peer: true, reason: drain.reason, until });
                    }
                    Step::Output(Output::PeerHealth { healthy, notes }) => {
                        shared.peer_healthy.store(healthy, Ordering::Relaxed);
                        shared.peer_notes.store(notes.bits(), Ordering::Relaxed);
                    }
                    Step::Output(Output::RoundTrip(time)) => {
                        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
                        shared.rtt_us.store(us, Ordering::Relaxed);
                    }
                    Step::Output(_) => {}
                    Step::Closed(reason) => {
                        in_order |= role == Role::Agent && !closing && !broken(reason);
                        break reason;
                    }
                },
            }
        };
        end.reason = reason;
        self.farewell().await;
        let drained = *shared.state.borrow();
        if let LinkState::Draining { until, .. } = drained
            && in_order
        {
            let certificate = certificate_end(&*self.carrier).unwrap_or(until);
            let waited = Self::linger(role, &shared, until.min(certificate));
            tokio::select! {
                () = waited => {}
                reason = closed_by_owner(&mut inbox) => end.reason = reason,
            }
        }
        end.reason
    }

    /// See the head of this file: lets bytes that were accepted arrive before the end.
    async fn linger(role: Role, shared: &Shared, until: Instant) {
        let until = tokio::time::Instant::from_std(until);
        let wait = async {
            match role {
                Role::Agent => no_dials(shared).await,
                Role::Server => {
                    shared.carrier.closed().await;
                }
            }
        };
        tokio::select! {
            _ = tokio::time::timeout_at(until, wait) => {}
            _ = shared.carrier.closed() => {}
        }
    }
}

/// Whether a session that ended for this reason is beyond an orderly end.
const fn broken(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::PeerSilent | Reason::CertificateEnded | Reason::Protocol | Reason::LinkLost
    )
}

/// The next [`Link::close`]; drains are over.
async fn closed_by_owner(inbox: &mut mpsc::Receiver<Command>) -> Reason {
    loop {
        match inbox.recv().await {
            Some(Command::Close(reason)) => return reason,
            Some(Command::Drain { .. }) => {}
            None => return Reason::Shutdown,
        }
    }
}

/// A later word on the same drain can only shorten it.
fn set_draining(state: &watch::Sender<LinkState>, new: LinkState) {
    state.send_if_modified(|old| match (*old, new) {
        (LinkState::Ready, _) => {
            *old = new;
            true
        }
        (LinkState::Draining { until: before, .. }, LinkState::Draining { until, .. })
            if until < before =>
        {
            *old = new;
            true
        }
        _ => false,
    });
}

async fn no_dials(shared: &Shared) {
    loop {
        let ended = shared.dial_ended.notified();
        tokio::pin!(ended);
        ended.as_mut().enable();
        if shared.dials.load(Ordering::Acquire) == 0 {
            return;
        }
        ended.await;
    }
}

struct CloseOnDrop {
    shared: Arc<Shared>,
    reason: Reason,
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.shared.carrier.close(self.reason);
        self.shared
            .state
            .send_replace(LinkState::Closed(self.reason));
    }
}
