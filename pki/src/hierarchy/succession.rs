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

use std::path::PathBuf;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

use super::accept::is_signed_by;
use super::{Generation, Layout, Seat};
use crate::authority::{Authority, AuthorityError};
use crate::inspect::{Certificate, CertificateError};
use crate::key::{PrivateKey, UnlockError};
use crate::passphrase::Passphrases;
use crate::pem;
use crate::secret::Secret;
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

/// The key of the next authority: the one that an earlier run wrote, or `new`, written here.
pub fn next_key(
    layout: &Layout,
    seat: Seat,
    passphrases: &mut Passphrases,
    new: impl FnOnce() -> Result<(PrivateKey, Secret), AuthorityError>,
) -> Result<PrivateKey, SuccessionError> {
    let path = layout.key(seat, Generation::Next);
    if path.symlink_metadata().is_ok() {
        return Ok(PrivateKey::unlock(&path, passphrases)?);
    }
    let (key, text) = new()?;
    store::write_secret(&path, &text, Replace::Never)?;
    Ok(key)
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
    write_trust(layout, seat, &[Generation::Current])?;
    store::remove(&layout.key(seat, Generation::Old))?;
    Ok(store::remove(&layout.cert(seat, Generation::Old))?)
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

/// Certificates of `found` that the old authority signed and that have not ended.
pub fn still_alive<'a, T>(
    old: &CertificateDer<'_>,
    found: impl IntoIterator<Item = &'a T>,
    read: impl Fn(&'a T) -> (&'a Certificate, &'a CertificateDer<'static>),
    now: SystemTime,
) -> Vec<&'a T> {
    found
        .into_iter()
        .filter(|item| {
            let (certificate, der) = read(item);
            // Cheap questions first: the signature last.
            crate::date::seconds(now) <= crate::date::seconds(certificate.not_after)
                && der != old
                && is_signed_by(der, old)
        })
        .collect()
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
