//! A connection for enrolment: its place, its time, its bytes.
//!
//! It waits for a place with nothing but its first message read, which is short, so a thousand that
//! come at once cost little, and it takes no slot of the links' listener; each address has a share
//! only of the places, and of those who wait, so nobody who holds many connections open keeps the
//! others out; who is slow loses its place after seconds; and an address whose
//! proofs are refused again and again is closed before its handshake for the rest of a minute.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout, timeout_at};
use towline_link::process::drain::DrainWatch;
use towline_link::process::shares::{Share, Shares, network};
use towline_link::tls::Arrived;
use towline_pki::tls;
use towline_proto::enrol::EnrolReply;
use towline_proto::limits;

use super::Desk;

/// See the head of this file.
pub struct EnrolDoor {
    /// Who answers.
    pub desk: Arc<Desk>,
    places: Semaphore,
    shares: Shares<IpAddr>,
    waiting: Semaphore,
    waiting_shares: Shares<IpAddr>,
    /// Since when and how often proofs of an address were refused.
    refused: Mutex<HashMap<IpAddr, (Instant, u32)>>,
}

/// A place among those that are worked on.
struct Place<'a> {
    _one: SemaphorePermit<'a>,
    _share: Share<IpAddr>,
}

/// Counted as waiting until it is dropped.
struct Waiting<'a> {
    door: &'a EnrolDoor,
    _one: SemaphorePermit<'a>,
    _share: Share<IpAddr>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.door.desk.told.waiting.dec();
    }
}

/// Counted as worked on until it is dropped.
struct Working<'a>(&'a EnrolDoor);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.desk.told.places.dec();
    }
}

impl EnrolDoor {
    /// With places of its own.
    pub fn new(desk: Arc<Desk>) -> Arc<Self> {
        Arc::new(Self {
            desk,
            places: Semaphore::new(limits::ENROL_PLACES),
            shares: Shares::new(limits::ENROL_PLACES_PER_ADDRESS),
            waiting: Semaphore::new(limits::ENROL_WAITING),
            waiting_shares: Shares::new(limits::ENROL_WAITING_PER_ADDRESS),
            refused: Mutex::default(),
        })
    }

    fn refused(&self) -> MutexGuard<'_, HashMap<IpAddr, (Instant, u32)>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
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
        let caller = network(address.ip());
        if arrived.received() > limits::ENROL_HELLO_BYTES {
            return Err("long-hello");
        }
        if self.is_tiresome(caller) {
            return Err("refused-too-often");
        }
        let _place = self.place(caller).await?;
        // Those that were refused meanwhile may have been its own.
        if self.is_tiresome(caller) {
            return Err("refused-too-often");
        }
        self.desk.told.places.inc();
        let _working = Working(self);
        let until = Instant::now() + limits::ENROL_READ;
        let config = {
            let trust = self.desk.trust.snapshot();
            let issuing = self.desk.issuer.current();
            let own = trust.material.credentials();
            let agents = Arc::clone(&trust.agents);
            let made = tls::enrol_server(own, &issuing.servers, agents);
            made.map_err(|error| {
                // What is checked when the authority is read; a longer chain of ours may have come since.
                self.desk.told.broken(&error);
                "tls"
            })?
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
            self.note_refused(network(address.ip()));
        }
        let written = async {
            io.write_all(&reply.encode()).await?;
            io.flush().await?;
            io.shutdown().await
        };
        written.await.map_err(|_| "gone")
    }

    async fn place(&self, caller: IpAddr) -> Result<Place<'_>, &'static str> {
        let _waiting = self.wait(caller)?;
        let both = async {
            let share = self.shares.wait(&caller).await;
            (self.places.acquire().await, share)
        };
        match timeout(limits::ENROL_WAIT, both).await {
            Ok((Ok(one), share)) => Ok(Place {
                _one: one,
                _share: share,
            }),
            // Semaphores are never closed.
            Ok(_) => Err("shutdown"),
            Err(_) => Err("waited-too-long"),
        }
    }

    /// Those who wait are bounded too, and one address has a part of them only.
    fn wait(&self, caller: IpAddr) -> Result<Waiting<'_>, &'static str> {
        let share = self.waiting_shares.take(&caller).ok_or("crowded")?;
        let one = self.waiting.try_acquire().map_err(|_| "too-many-wait")?;
        self.desk.told.waiting.inc();
        Ok(Waiting {
            door: self,
            _one: one,
            _share: share,
        })
    }

    fn is_tiresome(&self, caller: IpAddr) -> bool {
        self.refused().get(&caller).is_some_and(|(since, count)| {
            since.elapsed() < limits::ENROL_REFUSALS_IN && *count >= limits::ENROL_REFUSALS
        })
    }

    fn note_refused(&self, caller: IpAddr) {
        let mut refused = self.refused();
        if refused.len() >= limits::ENROL_ADDRESSES {
            refused.retain(|_, (since, _)| since.elapsed() < limits::ENROL_REFUSALS_IN);
            if refused.len() >= limits::ENROL_ADDRESSES {
                refused.clear();
            }
        }
        let now = Instant::now();
        let (since, count) = refused.entry(caller).or_insert((now, 0));
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
