//! Whether a link has company: more than one dial that moved bytes of late.
//!
//! What a bulk dial has in flight is what every other dial of the link waits behind. While others
//! talk, each carrier therefore holds bulk short; a dial that is alone may fill the path, because
//! nobody waits. Idle dials are no company, and neither is the control stream. The first bytes
//! after a time alone may wait behind what is in flight at that moment, once.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use towline_proto::limits;

/// The last two dials that moved bytes, either way. A pure function of what it is told.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Company {
    last: Option<(u64, Instant)>,
    /// When a dial other than the last one was heard last.
    other: Option<Instant>,
}

impl Company {
    /// This dial was opened, or moved bytes.
    pub(crate) fn heard(&mut self, dial: u64, now: Instant) {
        match &mut self.last {
            Some((last, at)) if *last == dial => *at = now,
            Some((_, at)) => {
                self.other = Some(*at);
                self.last = Some((dial, now));
            }
            None => self.last = Some((dial, now)),
        }
    }

    /// Whether two dials moved bytes within [`limits::COMPANY`].
    pub(crate) fn is_here(&self, now: Instant) -> bool {
        self.other
            .is_some_and(|other| now.saturating_duration_since(other) < limits::COMPANY)
    }
}

/// The same between the streams of a link and whoever sends for all of them.
/// Nobody speaks to it to begin with.
#[derive(Debug, Default)]
pub(crate) struct SharedCompany(Mutex<Option<Company>>);

impl SharedCompany {
    fn lock(&self) -> MutexGuard<'_, Option<Company>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the dials are heard.
    pub(crate) fn listen(&self) {
        self.lock().get_or_insert_default();
    }

    pub(crate) fn heard(&self, dial: u64, now: Instant) {
        if let Some(company) = &mut *self.lock() {
            company.heard(dial, now);
        }
    }

    /// Also while nobody speaks to it: there may be anybody.
    pub(crate) fn is_here(&self, now: Instant) -> bool {
        self.lock().is_none_or(|company| company.is_here(now))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const STEP: Duration = Duration::from_millis(10);

    /// So many steps in which these dials move bytes, one after another.
    fn talk(company: &mut Company, now: &mut Instant, steps: u32, dials: &[u64]) {
        for _ in 0..steps {
            for dial in dials {
                *now += STEP;
                company.heard(*dial, *now);
            }
        }
    }

    #[test]
    fn one_dial_alone_has_no_company_however_long_it_talks() {
        let (mut company, mut now) = (Company::default(), Instant::now());
        assert!(!company.is_here(now));
        talk(&mut company, &mut now, 1000, &[7]);
        assert!(!company.is_here(now));
    }

    #[test]
    fn a_second_dial_is_company_at_once_and_stays_it_while_it_talks() {
        let (mut company, mut now) = (Company::default(), Instant::now());
        talk(&mut company, &mut now, 100, &[7]);
        talk(&mut company, &mut now, 1, &[8]);
        assert!(company.is_here(now));
        for _ in 0..1000 {
            talk(&mut company, &mut now, 10, &[7]);
            assert!(company.is_here(now));
            talk(&mut company, &mut now, 1, &[8]);
            assert!(company.is_here(now));
        }
    }

    #[test]
    fn a_dial_that_fell_silent_is_no_company_any_more() {
        let (mut company, mut now) = (Company::default(), Instant::now());
        talk(&mut company, &mut now, 50, &[7, 8]);
        let silent = now;
        while now < silent + limits::COMPANY {
            assert!(company.is_here(now));
            talk(&mut company, &mut now, 1, &[7]);
        }
        assert!(!company.is_here(now), "an idle dial counts");
        talk(&mut company, &mut now, 1, &[8]);
        assert!(company.is_here(now), "it came back");
    }

    #[test]
    fn many_dials_are_company_of_each_other() {
        let (mut company, mut now) = (Company::default(), Instant::now());
        let crowd: Vec<u64> = (0..64).collect();
        talk(&mut company, &mut now, 20, &crowd);
        assert!(company.is_here(now));
    }

    #[test]
    fn everybody_silent_is_not_company_for_whoever_begins_later() {
        let (mut company, mut now) = (Company::default(), Instant::now());
        talk(&mut company, &mut now, 50, &[7, 8]);
        now += 2 * limits::COMPANY;
        talk(&mut company, &mut now, 50, &[9]);
        assert!(!company.is_here(now));
    }
}
