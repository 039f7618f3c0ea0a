//! A connection for enrolment: its place, its time, its bytes.
//!
//! It waits for a place with nothing but its first message read, so a thousand that come at once
//! cost little; each address has a share of the places only, so nobody who holds many connections
//! open keeps the others out; who is slow loses its place after seconds; and an address whose
//! proofs are refused again and again is closed before its handshake for the rest of a minute.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};
use towline_link::process::drain::DrainWatch;
use towline_link::tls::Arrived;
use towline_pki::tls;
use towline_proto::address;
use towline_proto::enrol::EnrolReply;
use towline_proto::limits;

use super::Desk;

#[derive(Default)]
struct Callers {
    /// Who has or waits for places; gone with its last connection.
    shares: HashMap<IpAddr, Arc<Semaphore>>,
    /// Since when and how often proofs were refused.
    refused: HashMap<IpAddr, (Instant, u32)>,
}

/// See the head of this file.
pub struct EnrolDoor {
    /// Who answers.
    pub desk: Arc<Desk>,
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    callers: Mutex<Callers>,
}

/// A place among those that are worked on.
struct Place {
    _one: OwnedSemaphorePermit,
    _share: OwnedSemaphorePermit,
}

/// Counted as waiting until it is dropped.
struct Waiting<'a>(&'a EnrolDoor);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.desk.told.waiting.dec();
    }
}

/// Counted as worked on until it is dropped.
struct Working<'a>(&'a EnrolDoor);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.desk.told.places.dec();
    }
}

/// By whom connections are counted: an address, of IPv6 the network of one customer.
fn caller(address: SocketAddr) -> IpAddr {
    match address::canonical(address.ip()) {
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

impl EnrolDoor {
    /// With places of its own.
    pub fn new(desk: Arc<Desk>) -> Arc<Self> {
        Arc::new(Self {
            desk,
            places: Arc::new(Semaphore::new(limits::ENROL_PLACES)),
            waiting: AtomicUsize::new(0),
            callers: Mutex::default(),
        })
    }

    fn callers(&self) -> MutexGuard<'_, Callers> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves one connection to its end.
    pub async fn serve(self: Arc<Self>, arrived: Arrived, address: SocketAddr, drain: DrainWatch) {
        let stage = drain.view();
        let closed = tokio::select! {
            biased;
            _ = stage.signalled() => Err("shutdown"),
            done = self.whole(arrived, address) => done,
        };
        if let Err(reason) = closed {
            self.desk.told.closed(address, reason);
        }
    }

    async fn whole(&self, arrived: Arrived, address: SocketAddr) -> Result<(), &'static str> {
        let caller = caller(address);
        if self.is_tiresome(caller) {
            return Err("refused-too-often");
        }
        let _place = self.place(caller).await?;
        self.desk.told.places.inc();
        let _working = Working(self);
        let until = Instant::now() + limits::ENROL_READ;
        let config = {
            let trust = self.desk.trust.snapshot();
            let issuing = self.desk.issuer.current();
            let own = trust.material.credentials();
            let agents = Arc::clone(&trust.agents);
            tls::enrol_server(own, &issuing.servers, agents).map_err(|_| "tls")?
        };
        let shaking = timeout_at(until, arrived.other(config));
        let shaken = shaking.await.map_err(|_| "late")?;
        let (mut io, chain) = shaken.map_err(|error| {
            tracing::debug!(%address, %error, "handshake for enrolment failed");
            "handshake"
        })?;
        let body = timeout_at(until, read(&mut io));
        let body = body.await.map_err(|_| "late")??;
        timeout(limits::ENROL_ANSWER, self.answer(io, body, chain, address))
            .await
            .map_err(|_| "late-answer")?
    }

    async fn answer(
        &self,
        mut io: impl AsyncRead + AsyncWrite + Unpin,
        body: Vec<u8>,
        chain: Vec<CertificateDer<'static>>,
        address: SocketAddr,
    ) -> Result<(), &'static str> {
        let now = SystemTime::now();
        let reply = self.desk.answer(&body, &chain, address, now).await;
        if let EnrolReply::Refused { refusal, .. } = &reply
            && !refusal.is_temporary()
        {
            self.note_refused(caller(address));
        }
        let written = async {
            io.write_all(&reply.encode()).await?;
            io.flush().await?;
            io.shutdown().await
        };
        written.await.map_err(|_| "gone")
    }

    async fn place(&self, caller: IpAddr) -> Result<Place, &'static str> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= limits::ENROL_WAITING {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err("too-many-wait");
        }
        self.desk.told.waiting.inc();
        let _waiting = Waiting(self);
        let share = {
            let mut callers = self.callers();
            if callers.shares.len() >= limits::ENROL_WAITING {
                callers
                    .shares
                    .retain(|_, share| Arc::strong_count(share) > 1);
            }
            let share = callers
                .shares
                .entry(caller)
                .or_insert_with(|| Arc::new(Semaphore::new(limits::ENROL_PLACES_PER_ADDRESS)));
            Arc::clone(share)
        };
        let both = async {
            let share = share.acquire_owned().await;
            (self.places.clone().acquire_owned().await, share)
        };
        match timeout(limits::ENROL_WAIT, both).await {
            Ok((Ok(one), Ok(share))) => Ok(Place {
                _one: one,
                _share: share,
            }),
            // Semaphores are never closed.
            Ok(_) => Err("shutdown"),
            Err(_) => Err("waited-too-long"),
        }
    }

    fn is_tiresome(&self, caller: IpAddr) -> bool {
        let callers = self.callers();
        callers.refused.get(&caller).is_some_and(|(since, count)| {
            since.elapsed() < limits::ENROL_REFUSALS_IN && *count >= limits::ENROL_REFUSALS
        })
    }

    fn note_refused(&self, caller: IpAddr) {
        let mut callers = self.callers();
        if callers.refused.len() >= limits::ENROL_ADDRESSES {
            callers
                .refused
                .retain(|_, (since, _)| since.elapsed() < limits::ENROL_REFUSALS_IN);
            if callers.refused.len() >= limits::ENROL_ADDRESSES {
                callers.refused.clear();
            }
        }
        let now = Instant::now();
        let (since, count) = callers.refused.entry(caller).or_insert((now, 0));
        if since.elapsed() >= limits::ENROL_REFUSALS_IN {
            (*since, *count) = (now, 0);
        }
        *count += 1;
    }
}

/// The request, without its length.
async fn read(io: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, &'static str> {
    let mut head = [0; 2];
    io.read_exact(&mut head).await.map_err(|_| "no-request")?;
    let len = usize::from(u16::from_be_bytes(head));
    if len > limits::ENROL_REQUEST_BYTES {
        return Err("too-long");
    }
    let mut body = vec![0; len];
    io.read_exact(&mut body).await.map_err(|_| "no-request")?;
    Ok(body)
}
