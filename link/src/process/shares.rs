//! How much of something that all peers share one of them may hold: connections that have proved
//! nothing yet by address, links by name.
//!
//! An address stands for itself, one of IPv6 for its /64, because whoever has one of those has all
//! of it. What nobody holds takes no memory.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Whose share it is, of an address.
pub fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => {
            let bits = ip.to_bits() & (u128::MAX << 64);
            IpAddr::V6(bits.into())
        }
        v4 => v4,
    }
}

/// Places, so many for each holder. Clones are the same places.
#[derive(Debug)]
pub struct Shares<K> {
    each: usize,
    holders: Arc<Mutex<HashMap<K, Arc<Semaphore>>>>,
}

impl<K> Clone for Shares<K> {
    fn clone(&self) -> Self {
        Self {
            each: self.each,
            holders: Arc::clone(&self.holders),
        }
    }
}

/// A place that somebody holds, or waits for.
#[derive(Debug)]
pub struct Share<K: Eq + Hash> {
    of: Shares<K>,
    holder: K,
    places: Option<Arc<Semaphore>>,
    permit: Option<OwnedSemaphorePermit>,
}

impl<K: Eq + Hash + Clone> Shares<K> {
    /// So many places for each.
    pub fn new(each: usize) -> Self {
        Self {
            each: each.clamp(1, Semaphore::MAX_PERMITS),
            holders: Arc::default(),
        }
    }

    /// A place, if the holder has one left.
    pub fn take(&self, holder: &K) -> Option<Share<K>> {
        let mut share = self.share(holder);
        let places = share.places.clone()?;
        share.permit = Some(places.try_acquire_owned().ok()?);
        Some(share)
    }

    /// A place, as soon as the holder has one left. Cancel-safe.
    pub async fn wait(&self, holder: &K) -> Share<K> {
        let mut share = self.share(holder);
        if let Some(places) = share.places.clone() {
            // The semaphore is never closed; if it were, there would be no bound and no harm.
            share.permit = places.acquire_owned().await.ok();
        }
        share
    }

    /// How many hold or wait for something.
    pub fn holders(&self) -> usize {
        self.lock().len()
    }

    fn share(&self, holder: &K) -> Share<K> {
        let mut holders = self.lock();
        let places = holders
            .entry(holder.clone())
            .or_insert_with(|| Arc::new(Semaphore::new(self.each)));
        Share {
            of: self.clone(),
            holder: holder.clone(),
            places: Some(Arc::clone(places)),
            permit: None,
        }
    }
}

impl<K: Eq + Hash> Shares<K> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, Arc<Semaphore>>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut holders = self.of.lock();
        self.permit = None;
        self.places = None;
        // Whoever holds or waits has another reference, and new ones are made under this lock.
        let unused = holders
            .get(&self.holder)
            .is_some_and(|places| Arc::strong_count(places) == 1);
        if unused {
            holders.remove(&self.holder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_ipv6_stands_for_its_network() {
        for (one, other, same) in [
            ("10.0.0.1", "10.0.0.2", false),
            ("10.0.0.1", "::ffff:10.0.0.1", true),
            ("fd00::1", "fd00::ffff:ffff:ffff:ffff", true),
            ("fd00::1", "fd00:0:0:1::1", false),
        ] {
            let [one, other] = [one, other].map(|text| network(text.parse().expect("an address")));
            assert_eq!(one == other, same, "{one} {other}");
        }
    }

    #[tokio::test]
    async fn nobody_takes_more_than_his_share_and_nothing_is_kept() {
        let shares = Shares::new(2);
        let held = [shares.take(&"a"), shares.take(&"a")].map(|share| share.expect("a place"));
        assert!(shares.take(&"a").is_none());
        assert!(shares.take(&"b").is_some());
        let waiting = shares.clone();
        let mut waiting = Box::pin(async move { waiting.wait(&"a").await });
        let waker = std::task::Waker::noop();
        let mut cx = std::task::Context::from_waker(waker);
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
        let [first, second] = held;
        drop(first);
        let third = waiting.await;
        assert!(shares.take(&"a").is_none());
        assert_eq!(shares.holders(), 1);
        drop((second, third));
        assert_eq!(shares.holders(), 0);
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_leaves_nothing() {
        let shares = Shares::new(1);
        let held = shares.take(&1).expect("a place");
        let mut waiting = Box::pin(shares.wait(&1));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
        drop(held);
        drop(waiting);
        assert_eq!(shares.holders(), 0);
        assert!(shares.take(&1).is_some());
    }
}
