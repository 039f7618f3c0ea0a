//! Succession: a new authority takes a seat while the old one is still trusted.
//!
//! ```text
//! prepare    writes NEXT (key, then certificate) and adds it to the trust bundle
//! activate   CURRENT becomes OLD, NEXT becomes CURRENT: it signs from now on
//! retire     the trust bundle loses OLD, its key and certificate are removed
//! ```
//!
//! Each step is a list of single file operations whose conditions are the files themselves. After
//! a crash between any two of them the same step, run again, does the rest; a seat can be signed
//! with at every moment ([`open`]), and the trust bundle never holds less than is in use.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

use super::accept::is_signed_by;
use super::{Generation, Layout, Seat};
use crate::authority::{Authority, AuthorityError};
use crate::date;
use crate::inspect::{Certificate, CertificateError, escape};
use crate::key::UnlockError;
use crate::ledger::{Ledger, LedgerError};
use crate::passphrase::Passphrases;
use crate::pem;
use crate::seal::hex;
use crate::store::{self, Replace, StoreError};

/// Why a step is not taken. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum SuccessionError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Unlock(#[from] UnlockError),
    #[error("{path}: {source}", path = path.display())]
    Certificate {
        path: PathBuf,
        source: CertificateError,
    },
    #[error(
        "{path}: the old authority of {seat} is not retired yet; run `towline-pki rotate retire \
         {seat}` first",
        path = path.display()
    )]
    OldThere { seat: Seat, path: PathBuf },
    #[error("the activation of {seat} was begun; run `towline-pki rotate activate {seat}` again")]
    ActivationBegun { seat: Seat },
    #[error("{seat} has no next authority; run `towline-pki rotate prepare {seat}` first")]
    NoNext { seat: Seat },
    #[error(
        "{request}: the next authority of {seat} is not signed yet; have it signed, then run \
         `towline-pki accept CERTIFICATE --dir DIR`",
        request = request.display()
    )]
    NotSigned { seat: Seat, request: PathBuf },
    #[error("{seat} has no old authority: there is nothing to retire")]
    NoOld { seat: Seat },
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// What a seat looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    next_key: bool,
    next_cert: bool,
    old_key: bool,
    old_cert: bool,
}

impl Stage {
    /// Looks at the files.
    pub fn of(layout: &Layout, seat: Seat) -> Self {
        let there = |path: PathBuf| path.symlink_metadata().is_ok();
        Self {
            next_key: there(layout.key(seat, Generation::Next)),
            next_cert: there(layout.cert(seat, Generation::Next)),
            old_key: there(layout.key(seat, Generation::Old)),
            old_cert: there(layout.cert(seat, Generation::Old)),
        }
    }

    /// Whether the next authority has its certificate.
    pub fn next_cert(self) -> bool {
        self.next_cert
    }

    /// Whether a next authority waits.
    pub fn has_next(self) -> bool {
        self.next_key || self.next_cert
    }

    /// Whether an old authority is there, whole or in part.
    pub fn has_old(self) -> bool {
        self.old_key || self.old_cert
    }
}

/// Checks that a next authority may be made.
pub fn may_prepare(layout: &Layout, seat: Seat) -> Result<Stage, SuccessionError> {
    let stage = Stage::of(layout, seat);
    match (stage.has_old(), stage.has_next()) {
        (true, true) => Err(SuccessionError::ActivationBegun { seat }),
        (true, false) => Err(SuccessionError::OldThere {
            seat,
            path: layout.cert(seat, Generation::Old),
        }),
        (false, _) => Ok(stage),
    }
}

/// Writes the certificate of the next authority, and the trust bundle with it.
pub fn write_next(
    layout: &Layout,
    seat: Seat,
    der: &CertificateDer<'_>,
) -> Result<(), SuccessionError> {
    let text = pem::write_certificates(std::slice::from_ref(der));
    let path = layout.cert(seat, Generation::Next);
    store::write_public(&path, &text, Replace::Atomically)?;
    store::remove(&layout.request(seat, Generation::Next))?;
    Ok(write_trust(layout, seat, &Generation::ALL)?)
}

/// The next authority, or the current one when only the rest of an activation is left to do.
pub fn successor(layout: &Layout, seat: Seat) -> Result<CertificateDer<'static>, SuccessionError> {
    let stage = Stage::of(layout, seat);
    if stage.next_key && !stage.next_cert {
        return Err(SuccessionError::NotSigned {
            seat,
            request: layout.request(seat, Generation::Next),
        });
    }
    layout
        .read_cert(seat, Generation::Next)?
        .ok_or(SuccessionError::NoNext { seat })
}

/// The next authority signs from now on. Its key and certificate must belong together, which is
/// checked as long as both still wait.
pub fn activate(
    layout: &Layout,
    seat: Seat,
    passphrases: &mut Passphrases,
    now: SystemTime,
) -> Result<(), SuccessionError> {
    use Generation::{Current, Next, Old};
    successor(layout, seat)?;
    let at = |generation| (layout.cert(seat, generation), layout.key(seat, generation));
    let ((cert, key), (next_cert, next_key), (old_cert, old_key)) =
        (at(Current), at(Next), at(Old));
    let stage = Stage::of(layout, seat);
    if stage.next_key {
        Authority::unlock(&next_cert, &next_key, passphrases, now)?;
    } else if seat != Seat::Root && !stage.has_old() {
        return Err(SuccessionError::NoNext { seat });
    }
    // A root's own key may be offline; then there is nothing to keep.
    if !stage.old_key && stage.next_key && key.symlink_metadata().is_ok() {
        store::link(&key, &old_key)?;
    }
    if !stage.old_cert {
        let text = store::read(&cert)?;
        store::write_public(&old_cert, &String::from_utf8_lossy(&text), Replace::Never)?;
    }
    if stage.next_key {
        store::rename(&next_key, &key)?;
    }
    store::rename(&next_cert, &cert)?;
    Ok(write_trust(layout, seat, &Generation::ALL)?)
}

/// The old authority is trusted no more; its files are removed, the certificate last, because it
/// is what says that there is something left to do.
pub fn retire(layout: &Layout, seat: Seat) -> Result<(), SuccessionError> {
    may_retire(layout, seat)?;
    write_trust(layout, seat, &[Generation::Current])?;
    store::remove(&layout.key(seat, Generation::Old))?;
    Ok(store::remove(&layout.cert(seat, Generation::Old))?)
}

/// Checks that there is an old authority, and that the new one is in its place.
pub fn may_retire(layout: &Layout, seat: Seat) -> Result<(), SuccessionError> {
    let stage = Stage::of(layout, seat);
    if stage.has_next() {
        return Err(match stage.has_old() {
            true => SuccessionError::ActivationBegun { seat },
            false => SuccessionError::NoOld { seat },
        });
    }
    if !stage.has_old() {
        return Err(SuccessionError::NoOld { seat });
    }
    Ok(())
}

/// The authority that signs. In the middle of an activation the new key is in place already and
/// its certificate still waits: then those two belong together.
pub fn open(
    layout: &Layout,
    seat: Seat,
    passphrases: &mut Passphrases,
    now: SystemTime,
) -> Result<Authority, AuthorityError> {
    let key = layout.key(seat, Generation::Current);
    let cert = layout.cert(seat, Generation::Current);
    let opened = Authority::unlock(&cert, &key, passphrases, now);
    let waiting = layout.cert(seat, Generation::Next);
    match opened {
        Err(AuthorityError::In { source, .. })
            if matches!(*source, AuthorityError::Mismatch { .. })
                && waiting.symlink_metadata().is_ok()
                && Stage::of(layout, seat).has_old() =>
        {
            Authority::unlock(&waiting, &key, passphrases, now)
        }
        other => other,
    }
}

/// Whether a certificate has not ended and was signed by this authority.
pub fn is_alive_below(
    old: &CertificateDer<'_>,
    certificate: &Certificate,
    der: &CertificateDer<'_>,
    now: SystemTime,
) -> bool {
    // Cheap questions first: the signature last.
    date::seconds(now) <= date::seconds(certificate.not_after)
        && der != old
        && is_signed_by(der, old)
}

/// What a ledger says of an authority's certificates that have not ended.
#[derive(Debug, Default)]
pub struct Known {
    /// One line each: nothing newer is known of their identity.
    pub alive: Vec<String>,
    /// How many have a newer certificate of another authority.
    pub replaced: usize,
}

/// Looks at ledgers: that of the authority, and those of servers that enrol with its key.
pub fn known_to(
    ledgers: &[Ledger],
    old: &Certificate,
    now: SystemTime,
) -> Result<Known, SuccessionError> {
    let issuer = hex(old.key_id.as_deref().unwrap_or_default());
    let mut entries = Vec::new();
    for ledger in ledgers {
        entries.extend(ledger.find(|entry| !entry.has_ended(now))?);
    }
    // In one ledger what stands further down is newer; among several the times say so.
    entries.sort_by(|one, other| one.at.cmp(&other.at));
    let mut newest: HashMap<&str, bool> = HashMap::new();
    for entry in &entries {
        if let Some(identity) = &entry.identity {
            newest.insert(identity, entry.issuer == issuer);
        }
    }
    let mut known = Known::default();
    for entry in entries.iter().filter(|entry| entry.issuer == issuer) {
        let identity = entry.identity.as_deref();
        if identity.and_then(|identity| newest.get(identity)) == Some(&false) {
            known.replaced += 1;
        } else {
            let name = identity.unwrap_or(&entry.subject);
            let name = format!("{} (serial {})", escape(name), escape(&entry.serial));
            known
                .alive
                .push(format!("{name} until {}", entry.not_after));
        }
    }
    Ok(known)
}

/// Writes the bundle of these generations, in one step, when it is not that already.
fn write_trust(layout: &Layout, seat: Seat, generations: &[Generation]) -> Result<(), StoreError> {
    let Some(path) = layout.trust(seat) else {
        return Ok(());
    };
    let mut all: Vec<CertificateDer<'static>> = Vec::new();
    for generation in generations {
        if let Some(der) = layout.read_cert(seat, *generation)?
            && !all.contains(&der)
        {
            all.push(der);
        }
    }
    let text = pem::write_certificates(&all);
    match store::read(&path) {
        Ok(there) if there == text.as_bytes() => Ok(()),
        _ => store::write_public(&path, &text, Replace::Atomically),
    }
}

/// Brings the trust bundle of a seat up to what its certificates are.
pub fn trust(layout: &Layout, seat: Seat) -> Result<(), StoreError> {
    write_trust(layout, seat, &Generation::ALL)
}

#[cfg(test)]
#[path = "succession_tests.rs"]
mod tests;
