//! Who holds which name, as far as this server issued it: the ledger of enrolment, in memory and
//! on the disk.
//!
//! A certificate is in the ledger before it is handed out. Many that are issued at once wait for
//! the disk together (`writer`). What has ended is forgotten.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use towline_pki::ledger::Entry;
use towline_pki::{Identity, Leaf, Ledger, LedgerError, Serial};
use towline_proto::enrol::Refusal;
use towline_proto::id::{Name, Role};
use towline_proto::limits;

use super::No;
use super::writer::{Line, Unwritten, Writer};

/// A certificate that was issued here.
#[derive(Clone, Debug)]
pub struct Holding {
    /// Its serial number.
    pub serial: Serial,
    /// From when it counts, which is some time before it was issued.
    pub not_before: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
    /// Hash of its key; not known of those that an older version wrote down.
    pub key: Option<[u8; 32]>,
    /// Its addresses; not known of those that an older version wrote down.
    pub ips: Vec<IpAddr>,
}

#[derive(Debug, Default)]
struct Inner {
    /// What was issued and has not ended, of each name; never an empty list.
    names: HashMap<Name, Vec<Holding>>,
    /// Which names have, or had, certificates with an address: where to look, not what counts.
    with: HashMap<IpAddr, Vec<Name>>,
    /// At this size it is looked through.
    with_most: usize,
    /// Names that are being enrolled.
    busy: HashSet<Name>,
    /// Addresses that are being put into a certificate.
    claimed: HashSet<IpAddr>,
    /// Since when, and how often, names were given certificates.
    pace: HashMap<Name, (Instant, u32)>,
}

/// Whether a certificate that counts has this address.
fn has(held: &[Holding], ip: IpAddr, now: SystemTime) -> bool {
    let counts = |one: &Holding| one.not_after >= now && one.ips.contains(&ip);
    held.iter().any(counts)
}

impl Inner {
    fn add(&mut self, name: Name, holding: Holding, now: SystemTime) {
        let ips = holding.ips.clone();
        let held = self.names.entry(name.clone()).or_default();
        held.retain(|one| one.not_after >= now);
        if held.len() >= limits::ENROL_HOLDINGS
            && let Some(first) = (0..held.len()).min_by_key(|at| held[*at].not_after)
        {
            held.swap_remove(first);
        }
        held.push(holding);
        let names = &self.names;
        let still = |ip: IpAddr, one: &Name| names.get(one).is_some_and(|held| has(held, ip, now));
        for ip in ips {
            let with = self.with.entry(ip).or_default();
            with.retain(|one| *one != name && still(ip, one));
            with.push(name.clone());
        }
        // Addresses that nobody has any more go when there are twice as many as were left.
        if self.with.len() > self.with_most {
            self.with
                .retain(|ip, with| with.iter().any(|one| still(*ip, one)));
            self.with_most = limits::ENROL_PLACES.max(2 * self.with.len());
        }
    }

    fn count(&mut self, name: &Name) {
        let now = Instant::now();
        if self.pace.len() >= limits::ENROL_NAMES {
            self.pace
                .retain(|_, (since, _)| since.elapsed() < limits::ENROL_NAME_IN);
        }
        let (since, count) = self.pace.entry(name.clone()).or_insert((now, 0));
        if since.elapsed() >= limits::ENROL_NAME_IN {
            (*since, *count) = (now, 0);
        }
        *count += 1;
    }
}

/// See the head of this file.
#[derive(Debug)]
pub struct Names {
    inner: Arc<Mutex<Inner>>,
    lines: mpsc::Sender<Line>,
}

/// A name that nobody else can be given meanwhile.
pub struct Reserved {
    inner: Arc<Mutex<Inner>>,
    name: Name,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        lock(&self.inner).busy.remove(&self.name);
    }
}

/// Addresses that go into no other certificate meanwhile.
pub struct Claimed {
    inner: Arc<Mutex<Inner>>,
    ips: Vec<IpAddr>,
}

impl Drop for Claimed {
    fn drop(&mut self) {
        let mut inner = lock(&self.inner);
        for ip in &self.ips {
            inner.claimed.remove(ip);
        }
    }
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Names {
    /// Reads what was issued before, and leaves what ended long ago out of the ledger.
    pub fn open(ledger: Ledger, now: SystemTime) -> Result<(Self, Writer), LedgerError> {
        let mut inner = Inner::default();
        let mut lines = 0;
        let counting = |entry: &Entry| {
            lines += 1;
            !entry.has_ended(now)
        };
        for entry in ledger.find(counting)? {
            let identity = entry.identity.as_ref().map(|text| text.parse::<Identity>());
            let (Some(Ok(identity)), Ok(serial)) = (identity, entry.serial()) else {
                continue;
            };
            if identity.role == Role::Agent {
                let holding = Holding {
                    serial,
                    not_before: entry.not_before(),
                    not_after: entry.not_after(),
                    key: entry.key(),
                    ips: entry.ips,
                };
                inner.add(identity.name, holding, now);
            }
        }
        let (lines, writer) = Writer::new(ledger, lines);
        let names = Self {
            inner: Arc::new(Mutex::new(inner)),
            lines,
        };
        Ok((names, writer))
    }

    /// Takes a name for one enrolment.
    pub fn reserve(&self, name: &Name) -> Result<Reserved, No> {
        match lock(&self.inner).busy.insert(name.clone()) {
            true => Ok(Reserved {
                inner: Arc::clone(&self.inner),
                name: name.clone(),
            }),
            false => Err(No::new(
                Refusal::Busy,
                format!("{name} is being enrolled on another connection"),
            )),
        }
    }

    /// Takes addresses for one certificate, all or none: of two nodes that claim one at the same
    /// moment the second finds it held when it comes again.
    pub fn claim(&self, ips: &[IpAddr]) -> Result<Claimed, No> {
        let mut inner = lock(&self.inner);
        if let Some(ip) = ips.iter().find(|ip| inner.claimed.contains(ip)) {
            let text = format!("{ip} is being put into another certificate");
            return Err(No::new(Refusal::Busy, text));
        }
        inner.claimed.extend(ips);
        Ok(Claimed {
            inner: Arc::clone(&self.inner),
            ips: ips.to_vec(),
        })
    }

    /// The certificates of this name that have not ended.
    pub fn holdings(&self, name: &Name, now: SystemTime) -> Vec<Holding> {
        let inner = lock(&self.inner);
        let all = inner.names.get(name).into_iter().flatten();
        all.filter(|holding| holding.not_after >= now)
            .cloned()
            .collect()
    }

    /// Refuses a name that was given as many certificates as one may have in a while: whoever
    /// holds one valid certificate could otherwise have us write without end.
    pub fn check_pace(&self, name: &Name) -> Result<(), No> {
        let inner = lock(&self.inner);
        let pace = inner.pace.get(name);
        match pace {
            Some((since, count))
                if *count >= limits::ENROL_NAME && since.elapsed() < limits::ENROL_NAME_IN =>
            {
                Err(No::new(
                    Refusal::Busy,
                    format!("{name} was given {count} certificates within minutes"),
                ))
            }
            _ => Ok(()),
        }
    }

    /// Another name whose certificate has this address.
    pub fn holder_of(&self, ip: IpAddr, but: &Name, now: SystemTime) -> Option<Name> {
        let inner = lock(&self.inner);
        let held = |name: &&Name| {
            inner
                .names
                .get(*name)
                .is_some_and(|held| has(held, ip, now))
        };
        let mut with = inner.with.get(&ip)?.iter().filter(|name| *name != but);
        with.find(held).cloned()
    }

    /// Whether a certificate of this name has this address.
    pub fn holds(&self, name: &Name, ip: IpAddr, now: SystemTime) -> bool {
        let inner = lock(&self.inner);
        inner.names.get(name).is_some_and(|held| has(held, ip, now))
    }

    /// How many names are held.
    pub fn len(&self) -> usize {
        lock(&self.inner).names.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is room for one more.
    pub fn has_room(&self, name: &Name, now: SystemTime) -> bool {
        let mut inner = lock(&self.inner);
        if inner.names.len() >= limits::ENROL_NAMES && !inner.names.contains_key(name) {
            inner.names.retain(|_, held| {
                held.retain(|one| one.not_after >= now);
                !held.is_empty()
            });
        }
        inner.names.len() < limits::ENROL_NAMES || inner.names.contains_key(name)
    }

    /// Records what was signed; only then may it be handed out.
    pub async fn record(
        &self,
        leaf: &Leaf,
        der: CertificateDer<'static>,
        key: [u8; 32],
        now: SystemTime,
    ) -> Result<(), No> {
        let (done, written) = oneshot::channel();
        let sent = self.lines.send((der, done)).await.is_ok();
        let written = match sent {
            true => written.await.unwrap_or(Err(Unwritten::Failed)),
            false => Err(Unwritten::Failed),
        };
        written.map_err(|why| No::new(Refusal::Unavailable, why.as_str()))?;
        let holding = Holding {
            serial: leaf.serial.clone(),
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            key: Some(key),
            ips: leaf.ip_sans.clone(),
        };
        let mut inner = lock(&self.inner);
        inner.count(&leaf.identity.name);
        inner.add(leaf.identity.name.clone(), holding, now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn names() -> Names {
        Names {
            inner: Arc::default(),
            lines: mpsc::channel(1).0,
        }
    }

    fn holding(serial: u8, not_after: SystemTime) -> Holding {
        Holding {
            serial: Serial::from_bytes(&[serial]),
            not_before: SystemTime::UNIX_EPOCH,
            not_after,
            key: None,
            ips: vec!["10.0.0.1".parse().unwrap()],
        }
    }

    #[test]
    fn an_older_certificate_that_lives_longer_is_not_forgotten() {
        let (names, name) = (names(), "n1".parse::<Name>().unwrap());
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let after = |hours: u64| now + Duration::from_secs(3600 * hours);
        lock(&names.inner).add(name.clone(), holding(1, after(24)), now);
        lock(&names.inner).add(name.clone(), holding(2, after(1)), now);
        let serials = |at| {
            let held = names.holdings(&name, at);
            held.iter()
                .map(|one| one.serial.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(serials(after(1)), ["01", "02"]);
        assert_eq!(serials(after(2)), ["01"]);
        let other = "n2".parse().unwrap();
        let ip = "10.0.0.1".parse().unwrap();
        assert_eq!(names.holder_of(ip, &other, after(24)), Some(name.clone()));
        assert_eq!(names.holder_of(ip, &other, after(25)), None);
        // Of more than are kept those go that end first.
        for number in 0..2 * limits::ENROL_HOLDINGS as u64 {
            lock(&names.inner).add(name.clone(), holding(3, after(2 + number % 5)), now);
        }
        let held = names.holdings(&name, now);
        assert_eq!(held.len(), limits::ENROL_HOLDINGS);
        assert!(held.iter().any(|one| one.serial.to_string() == "01"));
    }

    #[test]
    fn of_an_address_only_those_are_told_who_have_it() {
        let names = names();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let after = |hours: u64| now + Duration::from_secs(3600 * hours);
        let [one, two] = ["n1", "n2"].map(|name| name.parse::<Name>().unwrap());
        let ip = "10.0.0.1".parse().unwrap();
        assert_eq!(names.holder_of(ip, &one, now), None);
        lock(&names.inner).add(one.clone(), holding(1, after(24)), now);
        lock(&names.inner).add(two.clone(), holding(2, after(30)), now);
        assert_eq!(names.holder_of(ip, &two, now), Some(one.clone()));
        assert_eq!(names.holder_of(ip, &one, after(30)), Some(two.clone()));
        assert_eq!(names.holder_of(ip, &two, after(25)), None);
        assert_eq!(names.holder_of(ip, &one, after(31)), None);
        assert!(names.holds(&one, ip, now) && !names.holds(&one, ip, after(25)));
        // What ended is not looked at again.
        lock(&names.inner).add(one.clone(), holding(3, after(40)), after(31));
        let with = lock(&names.inner).with.get(&ip).cloned();
        assert_eq!(with, Some(vec![one]));
        // Nor does what nobody has any more stay for ever.
        for number in 0..20_u32 * limits::ENROL_PLACES as u32 {
            let mut short = holding(4, after(41));
            short.ips = vec![IpAddr::from(number.to_be_bytes())];
            let at = after(42 + u64::from(number));
            short.not_after = at;
            lock(&names.inner).add(two.clone(), short, at);
        }
        assert!(lock(&names.inner).with.len() <= limits::ENROL_PLACES + 1);
    }

    #[test]
    fn an_address_goes_into_one_certificate_at_a_time() {
        let names = names();
        let [one, two, three] = [1, 2, 3].map(|end| IpAddr::from([10, 0, 0, end]));
        let first = names.claim(&[one, two]).unwrap();
        let second = names.claim(&[three, two]).map(drop).unwrap_err();
        assert_eq!(second.refusal, Refusal::Busy);
        // Nothing of it was taken.
        drop(names.claim(&[three]).unwrap());
        drop(first);
        assert!(names.claim(&[three, two]).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn one_name_is_given_so_many_in_a_while() {
        let (names, name) = (names(), "n1".parse::<Name>().unwrap());
        for _ in 0..limits::ENROL_NAME {
            assert!(names.check_pace(&name).is_ok());
            lock(&names.inner).count(&name);
        }
        let refused = names.check_pace(&name).unwrap_err();
        assert_eq!(refused.refusal, Refusal::Busy);
        assert!(names.check_pace(&"n2".parse().unwrap()).is_ok());
        tokio::time::advance(limits::ENROL_NAME_IN).await;
        assert!(names.check_pace(&name).is_ok());
    }
}
