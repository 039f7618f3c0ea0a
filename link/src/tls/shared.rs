//! Where streams and driver of one connection meet: the multiplexer and everybody's wakers,
//! under one lock that is held for the length of one call and never across a wait.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use towline_proto::mux::{Batch, Event, Interest, Mux, OpenError, StreamKey, Violation};
use towline_proto::reason::Reason;

use super::read_ahead::Counters;
use crate::carrier::StreamError;
use crate::company::Company;

/// One connection, seen from its streams and its driver.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// As many permits as streams may be opened.
    may_open: Semaphore,
    accepted: Notify,
    /// Greeted or closed.
    turned: Notify,
    pub(super) counters: Arc<Counters>,
}

#[derive(Debug)]
struct State {
    mux: Mux,
    /// By [`StreamKey::index`].
    wakers: Vec<Wakers>,
    driver: Option<Waker>,
    /// The driver sleeps and wants to know of bytes to send.
    driver_listens: bool,
    company: Company,
    flight: Flight,
}

/// Bytes of one dial that are sent before credit comes back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flight {
    /// While other dials of the link move bytes.
    pub(super) in_company: u32,
    pub(super) alone: u32,
}

#[derive(Debug, Default)]
struct Wakers {
    recv: Option<Waker>,
    send: Option<Waker>,
    stopped: Option<Waker>,
}

impl Wakers {
    fn of(&mut self, interest: Interest) -> &mut Option<Waker> {
        if interest.has(Interest::RECV) {
            &mut self.recv
        } else if interest.has(Interest::SEND) {
            &mut self.send
        } else {
            &mut self.stopped
        }
    }
}

/// Who has to be woken once the lock is free.
#[derive(Default)]
struct Due {
    /// The usual case needs no memory.
    first: Option<Waker>,
    more: Vec<Waker>,
}

impl Due {
    fn add(&mut self, waker: Option<Waker>) {
        match waker {
            Some(waker) if self.first.is_some() => self.more.push(waker),
            Some(waker) => self.first = Some(waker),
            None => {}
        }
    }

    fn wake(self) {
        self.first
            .into_iter()
            .chain(self.more)
            .for_each(Waker::wake);
    }
}

impl Shared {
    pub(super) fn new(mux: Mux, counters: Arc<Counters>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                mux,
                wakers: Vec::new(),
                driver: None,
                driver_listens: false,
                company: Company::default(),
                flight: Flight {
                    in_company: u32::MAX,
                    alone: u32::MAX,
                },
            }),
            may_open: Semaphore::new(0),
            accepted: Notify::new(),
            turned: Notify::new(),
            counters,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One call of the machine, and everything that follows from it.
    pub(super) fn with<T>(&self, call: impl FnOnce(&mut Mux) -> T) -> T {
        self.locked(|state| call(&mut state.mux))
    }

    fn locked<T>(&self, call: impl FnOnce(&mut State) -> T) -> T {
        let mut due = Due::default();
        let mut state = self.lock();
        let answer = call(&mut state);
        while let Some(event) = state.mux.poll_event() {
            match event {
                Event::Stream(key, interest) => {
                    let Some(wakers) = state.wakers.get_mut(key.index()) else {
                        continue;
                    };
                    for one in [Interest::RECV, Interest::SEND, Interest::STOPPED] {
                        if interest.has(one) {
                            due.add(wakers.of(one).take());
                        }
                    }
                }
                Event::MayOpen(streams) => {
                    // A peer may allow more than a semaphore can count on a small machine.
                    let room = Semaphore::MAX_PERMITS - self.may_open.available_permits();
                    self.may_open.add_permits(room.min(streams as usize));
                }
                Event::Accepted => self.accepted.notify_one(),
                Event::Greeted => self.turned.notify_waiters(),
                Event::Closed => {
                    self.may_open.close();
                    self.accepted.notify_waiters();
                    self.turned.notify_waiters();
                    state.driver_listens = false;
                    due.add(state.driver.take());
                }
            }
        }
        if state.driver_listens && state.mux.wants_transmit() {
            state.driver_listens = false;
            due.add(state.driver.clone());
        }
        drop(state);
        due.wake();
        answer
    }

    /// A call whose `None` means that `interest` was registered: keeps the waker for it.
    pub(super) fn poll<T>(
        &self,
        cx: &Context<'_>,
        key: StreamKey,
        interest: Interest,
        call: impl FnOnce(&mut Mux) -> Option<T>,
    ) -> Poll<T> {
        self.locked(|state| poll_in(state, cx, key, interest, call))
    }

    /// The same where it moves bytes: a dial is heard by the others, and sends as much as they
    /// leave it.
    pub(super) fn poll_moving<T>(
        &self,
        cx: &Context<'_>,
        key: StreamKey,
        dial: bool,
        interest: Interest,
        call: impl FnOnce(&mut Mux) -> Option<T>,
    ) -> Poll<T> {
        let now = Instant::now().into_std();
        self.locked(|state| {
            let bytes = match state.company.is_here(now) {
                true => state.flight.in_company,
                false => state.flight.alone,
            };
            state.mux.set_in_flight(bytes);
            let answer = poll_in(state, cx, key, interest, call);
            if dial && answer.is_ready() {
                state.company.heard(key.index() as u64, now);
            }
            answer
        })
    }

    /// What one dial may have in flight from now on.
    pub(super) fn set_flight(&self, flight: Flight) {
        self.lock().flight = flight;
    }

    /// The owner of a half is gone: its wakers go with it.
    pub(super) fn release(&self, key: StreamKey, sending: bool) {
        self.locked(|state| {
            if let Some(wakers) = state.wakers.get_mut(key.index()) {
                if sending {
                    (wakers.send, wakers.stopped) = (None, None);
                } else {
                    wakers.recv = None;
                }
            }
            if sending {
                state.mux.release_send(key);
            } else {
                state.mux.release_recv(key);
            }
            if state.mux.stream_count() == 0 {
                state.wakers = Vec::new();
            }
        });
    }

    // ---- the driver's side --------------------------------------------------------------------

    /// Takes frames to send; says whether the connection is over.
    pub(super) fn fill(&self, batch: &mut Batch, max: usize) -> bool {
        self.with(|mux| {
            mux.transmit(batch, max);
            mux.closed().is_some()
        })
    }

    pub(super) fn is_over(&self) -> bool {
        self.lock().mux.closed().is_some()
    }

    pub(super) fn handle(&self, bytes: &[u8]) -> Result<(), Violation> {
        self.with(|mux| mux.handle(bytes))
    }

    /// Goes to sleep, unless there is something to send that could be sent (`writable`).
    pub(super) fn park(&self, cx: &Context<'_>, writable: bool) -> bool {
        let mut state = self.lock();
        if writable && state.mux.wants_transmit() {
            return false;
        }
        match &mut state.driver {
            Some(waker) => waker.clone_from(cx.waker()),
            None => state.driver = Some(cx.waker().clone()),
        }
        state.driver_listens = writable;
        true
    }

    // ---- the link's side ----------------------------------------------------------------------

    pub(super) async fn open(&self) -> Result<StreamKey, StreamError> {
        loop {
            if let Ok(permit) = self.may_open.acquire().await {
                permit.forget();
            }
            match self.with(Mux::open) {
                Ok(key) => return Ok(key),
                Err(OpenError::Closed(reason)) => return Err(StreamError::Lost(reason)),
                // The machine allowed less than it announced; its next announcement follows.
                Err(OpenError::Blocked) => {}
                // The link has to be replaced; its owner reconnects at once.
                Err(OpenError::UsedUp) => self.with(|mux| mux.close(Reason::Draining)),
            }
        }
    }

    pub(super) async fn accept(&self) -> Result<StreamKey, StreamError> {
        loop {
            let notified = self.accepted.notified();
            let mut notified = std::pin::pin!(notified);
            notified.as_mut().enable();
            let (next, closed) = self.with(|mux| (mux.accept(), mux.closed()));
            match (next, closed) {
                (Some(key), _) => return Ok(key),
                (None, Some(reason)) => return Err(StreamError::Lost(reason)),
                (None, None) => notified.await,
            }
        }
    }

    /// Waits for the end.
    pub(super) async fn closed(&self) -> Reason {
        self.until(Mux::closed).await
    }

    /// Waits for the peer's first frame; fails with the reason when the end comes before it.
    pub(super) async fn greeted(&self) -> Result<(), Reason> {
        self.until(|mux| match mux.closed() {
            Some(reason) => Some(Err(reason)),
            None => mux.is_greeted().then_some(Ok(())),
        })
        .await
    }

    async fn until<T>(&self, look: impl Fn(&Mux) -> Option<T>) -> T {
        loop {
            let turned = self.turned.notified();
            let mut turned = std::pin::pin!(turned);
            turned.as_mut().enable();
            if let Some(answer) = self.with(|mux| look(mux)) {
                return answer;
            }
            turned.await;
        }
    }
}

fn poll_in<T>(
    state: &mut State,
    cx: &Context<'_>,
    key: StreamKey,
    interest: Interest,
    call: impl FnOnce(&mut Mux) -> Option<T>,
) -> Poll<T> {
    if let Some(answer) = call(&mut state.mux) {
        return Poll::Ready(answer);
    }
    if state.wakers.len() <= key.index() {
        state.wakers.resize_with(key.index() + 1, Wakers::default);
    }
    if let Some(wakers) = state.wakers.get_mut(key.index()) {
        let place = wakers.of(interest);
        match place {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *place = Some(cx.waker().clone()),
        }
    }
    Poll::Pending
}

#[cfg(test)]
mod tests {
    use std::task::Context;

    use bytes::Bytes;
    use towline_proto::limits;
    use towline_proto::mux::{Config, Side};

    use super::*;

    fn end(side: Side) -> Arc<Shared> {
        let shared = Shared::new(Mux::new(Config::new(side, 8)), Arc::default());
        shared.set_flight(Flight {
            in_company: limits::MUX_FLIGHT,
            alone: limits::MUX_FLIGHT_ALONE,
        });
        shared
    }

    fn deliver(ends: [&Shared; 2]) {
        let mut batch = Batch::default();
        for (from, to) in [(ends[0], ends[1]), (ends[1], ends[0])] {
            from.fill(&mut batch, usize::MAX);
            for slice in batch.slices() {
                to.handle(slice).expect("own frames are well formed");
            }
            batch.advance(batch.len());
        }
    }

    fn send(end: &Shared, key: StreamKey, chunk: &mut Bytes) -> bool {
        let cx = Context::from_waker(Waker::noop());
        let sent = end.poll_moving(&cx, key, true, Interest::SEND, |mux| {
            mux.send(key, chunk).ok()
        });
        sent.is_ready()
    }

    /// Bytes that one end sends on one dial while the other end reads none.
    fn unread(from: &Shared, to: &Shared, key: StreamKey) -> u32 {
        let mut chunk = Bytes::from(vec![7; 2 * limits::STREAM_WINDOW as usize]);
        let whole = chunk.len();
        while send(from, key, &mut chunk) {
            deliver([from, to]);
        }
        (whole - chunk.len()) as u32
    }

    #[tokio::test(start_paused = true)]
    async fn either_end_sends_less_of_a_dial_while_another_one_moves_bytes() {
        for company in [false, true] {
            for downwards in [true, false] {
                let (server, agent) = (end(Side::Acceptor), end(Side::Connector));
                deliver([&server, &agent]);
                let dial = async || {
                    let here = server.open().await.expect("within the limit");
                    assert!(send(&server, here, &mut Bytes::from_static(b"request")));
                    deliver([&server, &agent]);
                    let there = agent.accept().await.expect("it was opened");
                    assert!(send(&agent, there, &mut Bytes::from_static(b"answer")));
                    deliver([&server, &agent]);
                    (here, there)
                };
                dial().await;
                if !company {
                    tokio::time::advance(limits::COMPANY).await;
                }
                let (here, there) = dial().await;
                let (sent, said) = match downwards {
                    true => (unread(&agent, &server, there), "answer".len() as u32),
                    false => (unread(&server, &agent, here), "request".len() as u32),
                };
                let expected = match company {
                    true => limits::MUX_FLIGHT,
                    false => limits::MUX_FLIGHT_ALONE,
                };
                assert_eq!(sent + said, expected, "{company} {downwards}");
            }
        }
    }
}
