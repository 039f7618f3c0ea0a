//! The signing of revocation lists, for one seat: a list for each authority that is trusted.
//!
//! A list is made from the record and from the list that is there, so that a list that is lost or
//! damaged loses no revocation, and its number never falls. Each step leaves the whole old file or
//! the whole new one; a revocation that a crash left out of the list is in the next one.
//!
//! Daemons that are given lists refuse whoever no list covers, and refuse a file with a list of
//! somebody they do not trust. So when an authority changes its list comes and goes with it
//! ([`Lists::follow`]).

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use towline_pki::crl::{List, ListSpec, Revoked};
use towline_pki::hierarchy::succession;
use towline_pki::store::{self, Journal, Lock, Replace};
use towline_pki::{
    Authority, Certificate, Generation, Layout, Passphrases, Seat, Serial, date, pem,
};

use super::book::{Entry, Line};
use super::{Failure, answer, crl};

/// How long what ended stays on a list, so that clocks may differ.
const AFTER_THE_END: Duration = Duration::from_secs(86_400);

/// The files of one seat, or of an authority that was there already.
pub(crate) struct Lists {
    pub(crate) list: PathBuf,
    pub(crate) trust: PathBuf,
    pub(crate) record: Journal,
}

/// Lists that can be signed: their authorities are open, and whatever may fail was looked at.
pub(crate) struct Ready {
    lists: Lists,
    authorities: Vec<Authority>,
}

/// A list that was signed.
pub(crate) struct Signed {
    pub(crate) path: PathBuf,
    pub(crate) issuer: String,
    pub(crate) number: u64,
    pub(crate) revoked: usize,
    pub(crate) next_update: SystemTime,
}

/// What a change of an authority did to the lists.
#[derive(Default)]
pub(crate) struct Followed {
    /// The file, when it was written.
    pub(crate) path: Option<PathBuf>,
    /// What a person should know.
    pub(crate) notes: Vec<String>,
}

impl Followed {
    /// For people; nothing when no list changed.
    pub(crate) fn lines(&self, what: &str) -> String {
        let file = |path: &PathBuf| format!("  file     {}  {what}\n", path.display());
        let mut text = self.path.as_ref().map_or_else(String::new, file);
        for note in &self.notes {
            text.push_str(&format!("  note     {note}\n"));
        }
        text
    }

    /// For machines.
    pub(crate) fn files(&self) -> Option<Value> {
        let path = self.path.as_ref()?;
        Some(answer::file(path, "revocation-list"))
    }
}

/// Everything that was written down, oldest first.
pub(crate) fn lines(record: &Journal) -> Result<Vec<Line>, Failure> {
    let mut lines = Vec::new();
    record.each(|text| {
        let line: Line = serde_json::from_slice(text)
            .map_err(|error| format!("is no record of a revocation: {error}"))?;
        if let Some(entry) = &line.revoked {
            let serial = entry.serial.parse::<Serial>();
            serial.map_err(|error| format!("serial {:?}: {error}", entry.serial))?;
        }
        lines.push(line);
        Ok(())
    })?;
    Ok(lines)
}

/// The authorities of a seat that can sign lists here, the current one first. With `all`, one that
/// is trusted and whose key is elsewhere is an error.
pub(crate) fn authorities(
    layout: &Layout,
    seat: Seat,
    passphrases: &mut Passphrases,
    all: bool,
    now: SystemTime,
) -> Result<Vec<Authority>, Failure> {
    let mut found = vec![succession::open(layout, seat, passphrases, now)?];
    for generation in [Generation::Next, Generation::Old] {
        let Some(der) = layout.read_cert(seat, generation)? else {
            continue;
        };
        let ended = |read: Certificate| date::seconds(now) > date::seconds(read.not_after);
        if found.iter().any(|known| *known.der() == der)
            || Certificate::parse(der.as_ref()).is_ok_and(ended)
        {
            continue;
        }
        let (cert, key) = (layout.cert(seat, generation), layout.key(seat, generation));
        if key.symlink_metadata().is_ok() {
            found.push(Authority::unlock(&cert, &key, passphrases, now)?);
        } else if all && generation == Generation::Old {
            return Err(Failure::failed(format!(
                "{} is trusted still, and without its key {} its list cannot be signed; nothing was \
                 changed. Use --deny-only, which needs no list",
                cert.display(),
                key.display()
            )));
        }
    }
    Ok(found)
}

impl Ready {
    /// Signs them, with what is added.
    pub(crate) fn sign(
        &self,
        added: &[Entry],
        days: u64,
        now: SystemTime,
    ) -> Result<Vec<Signed>, Failure> {
        self.lists.sign(&self.authorities, added, days, now)
    }
}

impl Lists {
    /// Those of a seat; the root has none.
    pub(crate) fn of_seat(layout: &Layout, seat: Seat) -> Option<Self> {
        let trust = layout.trust(seat)?;
        Some(Self {
            list: trust.with_extension("crl"),
            trust,
            record: Journal::at(layout.dir().join("revoked.jsonl")),
        })
    }

    /// Before an authority comes or goes: whether its lists can follow.
    pub(crate) fn may_follow(layout: &Layout, seat: Seat) -> Result<(), Failure> {
        if let Some(lists) = Self::of_seat(layout, seat).filter(|lists| lists.list.exists()) {
            lists.there()?;
            self::lines(&lists.record)?;
        }
        Ok(())
    }

    /// After an authority came or went, where there are lists: one that has none gets one, with what
    /// was written down of it; that of one that is trusted no more goes.
    pub(crate) fn follow(
        layout: &Layout,
        seat: Seat,
        passphrases: &mut Passphrases,
        now: SystemTime,
    ) -> Result<Followed, Failure> {
        let mut followed = Followed::default();
        let Some(lists) = Self::of_seat(layout, seat).filter(|lists| lists.list.exists()) else {
            return Ok(followed);
        };
        let _lock = Lock::take(&layout.dir().join("revoke.lock"))?;
        let there = lists.there()?;
        let has = |certificate: &Certificate| there.iter().any(|list| list.is_of(certificate));
        let trusted = lists.trusted()?;
        let missing = trusted.iter().any(|certificate| !has(certificate));
        let mut new = match missing {
            true => authorities(layout, seat, passphrases, false, now)?,
            false => Vec::new(),
        };
        new.retain(|authority| !has(authority.certificate()));
        for authority in &new {
            let certificate = authority.certificate();
            if !certificate.signs_lists {
                followed.notes.push(format!(
                    "{} may not sign revocation lists (its key usage lacks cRLSign): daemons that are \
                     given lists refuse whatever it signs",
                    certificate.subject
                ));
            }
        }
        new.retain(|authority| authority.certificate().signs_lists);
        let gone = |list: &List| !trusted.iter().any(|certificate| list.is_of(certificate));
        if !new.is_empty() || there.iter().any(gone) {
            followed.path = Some(lists.list.clone());
            lists.ready(new)?.sign(&[], crl::DAYS, now)?;
        }
        Ok(followed)
    }

    /// Looks at everything that may fail before a list of these is signed.
    pub(crate) fn ready(self, authorities: Vec<Authority>) -> Result<Ready, Failure> {
        let there = self.there()?;
        lines(&self.record)?;
        self.trusted()?;
        for authority in &authorities {
            let certificate = authority.certificate();
            if !certificate.signs_lists {
                return Err(Failure::failed(format!(
                    "{} may not sign revocation lists (its key usage lacks cRLSign); nothing was \
                     changed. Use --deny-only, which needs no list",
                    certificate.subject
                )));
            }
            if let Some(mine) = there.iter().find(|list| list.is_of(certificate)) {
                mine.check_signature(certificate)
                    .map_err(|error| unusable(&self.list, &error))?;
            }
        }
        Ok(Ready {
            lists: self,
            authorities,
        })
    }

    /// Signs a list for each of these; those of others who are trusted stay as they are.
    fn sign(
        &self,
        authorities: &[Authority],
        added: &[Entry],
        days: u64,
        now: SystemTime,
    ) -> Result<Vec<Signed>, Failure> {
        let (there, lines) = (self.there()?, lines(&self.record)?);
        let trusted = self.trusted()?;
        let mut made = Vec::new();
        let mut text = String::new();
        for authority in authorities {
            let mine = there
                .iter()
                .find(|list| list.is_of(authority.certificate()));
            let spec = self.next(authority, mine, &lines, added, days, now)?;
            let list = authority.sign_list(&spec).map_err(Failure::failed)?;
            text.push_str(&pem::write_revocation_list(&list));
            made.push(Signed {
                path: self.list.clone(),
                issuer: authority.certificate().subject.clone(),
                number: spec.number,
                revoked: spec.revoked.len(),
                next_update: spec.next_update,
            });
        }
        for other in &there {
            let ours = |one: &Authority| other.is_of(one.certificate());
            if !authorities.iter().any(ours) && trusted.iter().any(|one| other.is_of(one)) {
                text.push_str(&other.to_pem());
            }
        }
        store::write_public(&self.list, &text, Replace::Atomically)?;
        Ok(made)
    }

    /// What the next list of this authority says; its number is written down.
    fn next(
        &self,
        authority: &Authority,
        mine: Option<&List>,
        lines: &[Line],
        added: &[Entry],
        days: u64,
        now: SystemTime,
    ) -> Result<ListSpec, Failure> {
        let certificate = authority.certificate();
        let issuer = authority.key_id_text();
        let ours = || lines.iter().filter(|line| line.issuer == issuer);
        let last = ours().map(|line| line.number).max().unwrap_or(0);
        let had = mine.and_then(|list| list.number().small()).unwrap_or(0);
        let number = last.max(had).saturating_add(1);
        self.write_down(&issuer, number, added, now)?;

        let mut revoked: Vec<Revoked> = mine.map_or_else(Vec::new, |list| list.entries().to_vec());
        let recorded = ours().filter_map(|line| Some((line.at.as_str(), line.revoked.as_ref()?)));
        let at = date::text(now);
        let all: Vec<_> = recorded
            .chain(added.iter().map(|entry| (at.as_str(), entry)))
            .collect();
        for (at, entry) in &all {
            let Ok(serial) = entry.serial.parse::<Serial>() else {
                continue;
            };
            if revoked.iter().all(|known| known.serial != serial) {
                revoked.push(Revoked {
                    serial,
                    at: date::from_text(at).unwrap_or(now),
                    reason: entry.reason.parse().unwrap_or_default(),
                });
            }
        }
        let ended = |serial: &Serial| {
            let serial = serial.to_string();
            let mut of = all.iter().filter(|(_, entry)| entry.serial == serial);
            let end = of.find_map(|(_, entry)| date::from_text(entry.not_after.as_deref()?));
            let gone = end.and_then(|end| end.checked_add(AFTER_THE_END));
            gone.is_some_and(|gone| gone < now)
        };
        revoked.retain(|entry| !ended(&entry.serial));
        let wanted = now.checked_add(Duration::from_secs(days.saturating_mul(86_400)));
        let next_update =
            wanted.map_or(certificate.not_after, |end| end.min(certificate.not_after));
        Ok(ListSpec {
            number,
            this_update: now,
            next_update,
            revoked,
        })
    }

    fn there(&self) -> Result<Vec<List>, Failure> {
        match self.list.exists() {
            true => List::load(&self.list).map_err(|error| unusable(&self.list, &error)),
            false => Ok(Vec::new()),
        }
    }

    /// The authorities of the trust file.
    fn trusted(&self) -> Result<Vec<Certificate>, Failure> {
        let named = |error| Failure::file(format!("{}: {error}", self.trust.display()));
        let all = store::read_certificates(&self.trust)?;
        all.iter()
            .map(|der| Certificate::parse(der.as_ref()).map_err(named))
            .collect()
    }

    fn write_down(
        &self,
        issuer: &str,
        number: u64,
        added: &[Entry],
        now: SystemTime,
    ) -> Result<(), Failure> {
        let line = |revoked: Option<&Entry>| {
            let line = Line {
                at: date::text(now),
                issuer: issuer.to_owned(),
                number,
                revoked: revoked.cloned(),
            };
            serde_json::to_string(&line).map_err(Failure::failed)
        };
        let lines = match added {
            [] => vec![line(None)?],
            added => added
                .iter()
                .map(|entry| line(Some(entry)))
                .collect::<Result<_, _>>()?,
        };
        Ok(self.record.append(&lines)?)
    }
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::file(format!(
        "{}: {error}. Nothing was changed. Move the file away and run `towline-pki crl renew`: what \
         was revoked is written down in revoked.jsonl and is not lost",
        path.display()
    ))
}
