//! Write: carries a plan out. The only part of `cluster` that changes anything.
//!
//! Order: the cluster's name, authorities (key before certificate), what others anchor on, the
//! service-account key; then every certificate is signed and written down in the ledger, before one
//! of them is in a file; then machines, people, and what is taken away. A machine that is new
//! appears with all its files in one step. Machines do not wait for each other's disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

use super::asking;
use super::kubeconfig::{self, Conf};
use super::layout::{self, Purpose};
use super::plan::{Act, Change, Kind, Plan};
use super::present::{Held, Present, Seen, certified};
use super::wanted::{Place, Source, Wanted, WantedAuthority, WantedLeaf};
use crate::authority::{Authority, AuthorityError, AuthoritySpec};
use crate::inspect::CertificateError;
use crate::key::{KeyError, PrivateKey};
use crate::ledger::{Ledger, LedgerError};
use crate::mint::{LeafSpec, MintError};
use crate::pem;
use crate::role::BACKDATE;
use crate::secret::Secret;
use crate::store::{self, Replace, Staged, StoreError};

/// What was done.
#[derive(Debug, Default)]
pub struct Done {
    /// Certificates that were signed, by path.
    pub signed: Vec<(String, CertificateDer<'static>)>,
}

/// Why it was not finished. What was written is whole; the next run goes on.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Mint(#[from] MintError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("the certificate that was made does not read back: {0}")]
    ReadBack(#[from] CertificateError),
    #[error("{path}: what it is made of went away while this ran; run it again")]
    Vanished { path: String },
}

/// Carries a plan out, so many machines at once.
pub fn write(
    dir: &Path,
    wanted: &Wanted,
    mut present: Present,
    plan: &Plan,
    writers: usize,
    now: SystemTime,
) -> Result<Done, WriteError> {
    store::make_private_directory(dir)?;
    let authorities = std::mem::take(&mut present.authorities);
    let mut writer = Writer {
        dir,
        wanted,
        present,
        authorities,
        signed: BTreeMap::new(),
        now,
    };
    for change in &plan.changes {
        writer.foundation(change)?;
    }
    writer.sign_all(plan, writers)?;
    let mut machines: BTreeMap<&str, Vec<&Change>> = BTreeMap::new();
    let mut people = Vec::new();
    for change in &plan.changes {
        if !matches!(change.kind, Kind::Leaf(..) | Kind::Copy(_)) {
            continue;
        }
        match machine_of(&change.path) {
            Some(name) => machines.entry(name).or_default().push(change),
            None => people.push(change),
        }
    }
    let machines: Vec<_> = machines.into_iter().collect();
    side_by_side(&machines, writers, |(name, changes)| {
        writer.machine(name, changes)
    })?;
    let mut to = Target::Place(dir);
    for change in people {
        writer.one(change, &mut to)?;
    }
    for change in &plan.changes {
        match change.kind {
            Kind::RemoveMachine => store::take_away(&dir.join(&change.path))?,
            Kind::Remove => store::remove_all(&dir.join(&change.path))?,
            _ => {}
        }
    }
    let path = |index: &usize| wanted.leaves.get(*index).map(|leaf| leaf.place.path());
    let signed = writer.signed.into_iter();
    let signed = signed.filter_map(|(index, signed)| Some((path(&index)?, signed.der)));
    Ok(Done {
        signed: signed.collect(),
    })
}

/// The machine to whose directory a path belongs.
fn machine_of(path: &str) -> Option<&str> {
    let rest = path.strip_prefix(layout::HOSTS)?.strip_prefix('/')?;
    rest.split('/').next()
}

/// Does one thing for each item, so many at once, and stops at the first that fails.
fn side_by_side<T: Sync, O: Send>(
    items: &[T],
    writers: usize,
    work: impl Fn(&T) -> Result<O, WriteError> + Sync,
) -> Result<Vec<O>, WriteError> {
    let writers = writers.min(items.len());
    if writers <= 1 {
        return items.iter().map(work).collect();
    }
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let results = Mutex::new(Vec::with_capacity(items.len()));
    std::thread::scope(|scope| {
        for _ in 0..writers {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) else {
                        break;
                    };
                    let result = work(item);
                    failed.fetch_or(result.is_err(), Ordering::Relaxed);
                    if let Ok(mut results) = results.lock() {
                        results.push(result);
                    }
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_default();
    results.into_iter().collect()
}

/// A certificate that no file holds yet.
struct Signed {
    der: CertificateDer<'static>,
    /// `None`: made for the key that is there.
    key: Option<PrivateKey>,
}

struct Writer<'a> {
    dir: &'a Path,
    wanted: &'a Wanted,
    present: Present,
    authorities: BTreeMap<Purpose, Held>,
    /// By the number of the leaf that is wanted.
    signed: BTreeMap<usize, Signed>,
    now: SystemTime,
}

/// Where files go: to their places, or into a directory that nobody sees yet.
enum Target<'a> {
    Place(&'a Path),
    Staged(Staged, String),
}

impl Target<'_> {
    fn secret(&mut self, path: &str, secret: &Secret, replace: Replace) -> Result<(), StoreError> {
        match self {
            Target::Place(dir) => {
                let path = dir.join(path);
                make_folder_of(&path)?;
                store::write_secret(&path, secret, replace)
            }
            Target::Staged(staged, above) => staged.secret(below(path, above), secret),
        }
    }

    fn public(&mut self, path: &str, text: &str, replace: Replace) -> Result<(), StoreError> {
        match self {
            Target::Place(dir) => {
                let path = dir.join(path);
                make_folder_of(&path)?;
                store::write_public(&path, text, replace)
            }
            Target::Staged(staged, above) => staged.public(below(path, above), text),
        }
    }
}

fn below<'a>(path: &'a str, above: &str) -> &'a Path {
    let rest = path.strip_prefix(above).unwrap_or(path);
    Path::new(rest.trim_start_matches('/'))
}

fn make_folder_of(path: &Path) -> Result<(), StoreError> {
    match path.parent() {
        Some(folder) => store::make_private_directory(folder),
        None => Ok(()),
    }
}

impl Writer<'_> {
    /// What everything else stands on.
    fn foundation(&mut self, change: &Change) -> Result<(), WriteError> {
        let mut to = Target::Place(self.dir);
        match change.kind {
            Kind::Cluster => {
                let text = format!("{}\n", self.wanted.cluster);
                to.public(layout::CLUSTER, &text, Replace::Never)?;
            }
            Kind::Authority(purpose) => self.make_authority(purpose, &mut to)?,
            Kind::Adopt(purpose) => {
                let text = self.anchors(purpose)?;
                to.public(&purpose.certificate(), &text, Replace::Never)?;
            }
            Kind::Trust(purpose) => {
                let text = self.anchors(purpose)?;
                to.public(&change.path, &text, Replace::Atomically)?;
            }
            Kind::ServiceAccount => self.service_account(&mut to)?,
            Kind::Leaf(..) | Kind::Copy(_) | Kind::RemoveMachine | Kind::Remove => {}
        }
        Ok(())
    }

    fn make_authority(&mut self, purpose: Purpose, to: &mut Target<'_>) -> Result<(), WriteError> {
        let wanted = self
            .wanted
            .authority(purpose)
            .ok_or_else(|| vanished(purpose.stem()))?;
        let mut held = self.authorities.remove(&purpose).unwrap_or_default();
        let key = match held.key.take() {
            Some(key) => key,
            None => {
                let key = PrivateKey::generate(self.wanted.authority_kind)?;
                let text = key.to_pem();
                to.secret(&purpose.key(), &text, Replace::Never)?;
                held.key_text = Some(text);
                key
            }
        };
        let spec = self.authority_spec(wanted);
        let authority = match purpose {
            Purpose::Agents | Purpose::Servers => {
                let root = self.authorities.get(&Purpose::Root);
                let root = root.and_then(|root| root.authority.as_ref());
                let root = root.ok_or_else(|| vanished(Purpose::Root.stem()))?;
                let spec = AuthoritySpec {
                    not_after: spec.not_after.min(root.certificate().not_after),
                    ..spec
                };
                root.create_below(&spec, key)?
            }
            _ => Authority::create(&spec, key)?,
        };
        to.public(&purpose.certificate(), &authority.to_pem(), Replace::Never)?;
        let der = authority.der().clone();
        held.anchors.push(der.clone());
        held.certificate = Some(certified(der)?);
        held.authority = Some(authority);
        self.authorities.insert(purpose, held);
        Ok(())
    }

    fn authority_spec(&self, wanted: &WantedAuthority) -> AuthoritySpec {
        AuthoritySpec {
            purpose: wanted.title.into(),
            organisation: self.wanted.cluster.clone(),
            not_before: self.now.checked_sub(BACKDATE).unwrap_or(self.now),
            not_after: self.now.checked_add(wanted.life).unwrap_or(self.now),
            path_length: Some(wanted.path_length),
            usages: wanted.usages.clone(),
        }
    }

    fn service_account(&mut self, to: &mut Target<'_>) -> Result<(), WriteError> {
        if self.present.service_account.is_none() {
            let kind = self.wanted.service_account.unwrap_or_default();
            let key = PrivateKey::generate(kind)?;
            let text = key.to_pem();
            to.secret(layout::SERVICE_ACCOUNT_KEY, &text, Replace::Never)?;
            self.present.service_account = Some((key, text));
        }
        if let Some((key, _)) = &self.present.service_account {
            let text = pem::write_public_key(key.public().der());
            to.public(layout::SERVICE_ACCOUNT_PUBLIC, &text, Replace::Never)?;
            self.present.service_account_public = Some(Secret::new(text.into_bytes()));
        }
        Ok(())
    }

    fn held(&self, purpose: Purpose) -> Result<&Held, WriteError> {
        self.authorities
            .get(&purpose)
            .ok_or_else(|| vanished(purpose.stem()))
    }

    fn anchors(&self, purpose: Purpose) -> Result<String, WriteError> {
        Ok(pem::write_certificates(&self.held(purpose)?.anchors))
    }

    /// Signs all that is to be signed, and writes it down before anybody has it.
    fn sign_all(&mut self, plan: &Plan, writers: usize) -> Result<(), WriteError> {
        let to_sign = |change: &Change| match change.kind {
            Kind::Leaf(index, Act::Make { new_key }) => Some((index, new_key)),
            Kind::Leaf(index, Act::Reissue) => Some((index, true)),
            _ => None,
        };
        let work: Vec<_> = plan.changes.iter().filter_map(to_sign).collect();
        let signed = side_by_side(&work, writers, |(index, new_key)| {
            self.sign(*index, *new_key).map(|signed| (*index, signed))
        })?;
        self.signed = signed.into_iter().collect();
        let certificates = self.signed.values().map(|signed| signed.der.as_ref());
        if !self.signed.is_empty() {
            Ledger::in_dir(self.dir).record(certificates, "apply", self.now)?;
        }
        Ok(())
    }

    fn machine(&self, name: &str, changes: &[&Change]) -> Result<(), WriteError> {
        let host = layout::host(name);
        let mut to = match self.present.machines.contains(name) {
            true => Target::Place(self.dir),
            false => Target::Staged(Staged::begin(&self.dir.join(&host))?, host),
        };
        for change in changes {
            self.one(change, &mut to)?;
        }
        if let Target::Staged(staged, _) = to {
            staged.finish()?;
        }
        Ok(())
    }

    fn one(&self, change: &Change, to: &mut Target<'_>) -> Result<(), WriteError> {
        match change.kind {
            Kind::Copy(index) => self.copy(index, to),
            Kind::Leaf(index, act) => {
                let (leaf, seen) = self.pair_of(index)?;
                match act {
                    Act::Make { .. } | Act::Reissue => {
                        let signed = self.signed.get(&index);
                        let signed = signed.ok_or_else(|| vanished(&change.path))?;
                        self.put(leaf, seen, signed, act, to)
                    }
                    _ => self.leaf(leaf, seen, act, to),
                }
            }
            _ => Ok(()),
        }
    }

    fn pair_of(&self, index: usize) -> Result<(&WantedLeaf, &Seen), WriteError> {
        let leaf = self.wanted.leaves.get(index);
        let seen = self.present.leaves.get(index);
        leaf.zip(seen).ok_or_else(|| vanished("a certificate"))
    }

    fn copy(&self, index: usize, to: &mut Target<'_>) -> Result<(), WriteError> {
        let Some(copy) = self.wanted.copies.get(index) else {
            return Ok(());
        };
        let missing = || vanished(&copy.path);
        let service_account = self.present.service_account.as_ref();
        let replace = Replace::Atomically;
        match copy.of {
            Source::Anchors(purpose) => to.public(&copy.path, &self.anchors(purpose)?, replace)?,
            Source::Certificate(purpose) => {
                let held = self.held(purpose)?;
                let (_, der) = held.certificate.as_ref().ok_or_else(missing)?;
                let text = pem::write_certificates(std::slice::from_ref(der));
                to.public(&copy.path, &text, replace)?;
            }
            Source::Key(purpose) => {
                let held = self.held(purpose)?;
                let text = held.key_text.as_ref().ok_or_else(missing)?;
                to.secret(&copy.path, text, replace)?;
            }
            Source::ServiceAccountKey => {
                let (_, text) = service_account.ok_or_else(missing)?;
                to.secret(&copy.path, text, replace)?;
            }
            Source::ServiceAccountPublic => {
                let text = self.present.service_account_public.as_ref();
                let text = text.ok_or_else(missing)?.expose();
                to.public(&copy.path, &String::from_utf8_lossy(text), replace)?;
            }
        }
        Ok(())
    }

    /// A certificate that was signed, with its key, into its files.
    fn put(
        &self,
        leaf: &WantedLeaf,
        seen: &Seen,
        signed: &Signed,
        act: Act,
        to: &mut Target<'_>,
    ) -> Result<(), WriteError> {
        let path = leaf.place.path();
        let key_path = format!("{}.key", leaf.place.stem());
        let text = pem::write_certificates(std::slice::from_ref(&signed.der));
        let key = signed.key.as_ref().or(seen.key.as_ref());
        let key = key.ok_or_else(|| vanished(&path))?.to_pem();
        match (&leaf.place, act) {
            (Place::Conf { .. }, _) => {
                let replace = match seen.conf {
                    Some(_) => Replace::Atomically,
                    None => Replace::Never,
                };
                let conf = self.conf(leaf, text.into_bytes(), key)?;
                to.secret(&path, &conf, replace)?;
            }
            (Place::Pair { .. }, Act::Reissue) => {
                let file = |name: &str| self.dir.join(name);
                store::replace_pair(&file(&path), &text, &file(&key_path), &key)?;
            }
            (Place::Pair { .. }, _) => {
                if signed.key.is_some() {
                    to.secret(&key_path, &key, Replace::Never)?;
                }
                to.public(&path, &text, Replace::Never)?;
            }
        }
        Ok(())
    }

    /// What happens to a certificate that nobody here signs now.
    fn leaf(
        &self,
        leaf: &WantedLeaf,
        seen: &Seen,
        act: Act,
        to: &mut Target<'_>,
    ) -> Result<(), WriteError> {
        let stem = leaf.place.stem();
        let path = leaf.place.path();
        let key_path = format!("{stem}.key");
        let missing = || vanished(&path);
        match act {
            Act::Rewrite => {
                let old = seen.conf.as_ref().ok_or_else(missing)?;
                let key = Secret::new(old.key.expose().to_vec());
                let conf = self.conf(leaf, old.certificate.clone(), key)?;
                to.secret(&path, &conf, Replace::Atomically)?;
            }
            Act::Finish => store::finish_pair(&self.dir.join(&key_path))?,
            Act::Tidy => store::remove_all(&store::next_key(&self.dir.join(&key_path)))?,
            Act::Request { new_key } => {
                let held = match &leaf.place {
                    Place::Pair { .. } => seen.key.as_ref(),
                    Place::Conf { .. } => seen.aside.as_ref(),
                };
                let made = match new_key {
                    true => Some(PrivateKey::generate(self.wanted.leaf_kind)?),
                    false => None,
                };
                let key = made.as_ref().or(held).ok_or_else(missing)?;
                if new_key {
                    to.secret(&key_path, &key.to_pem(), Replace::Never)?;
                }
                let text = asking::make(&leaf.subject, key)?;
                to.public(&format!("{stem}.csr"), &text, Replace::Atomically)?;
            }
            Act::Assemble => {
                let (_, der) = seen.aside_certificate.as_ref().ok_or_else(missing)?;
                let key = seen.aside.as_ref().ok_or_else(missing)?;
                let text = pem::write_certificates(std::slice::from_ref(der));
                let conf = self.conf(leaf, text.into_bytes(), key.to_pem())?;
                to.secret(&path, &conf, Replace::Atomically)?;
                self.answered(leaf)?;
            }
            Act::Answered => self.answered(leaf)?,
            // These are put.
            Act::Make { .. } | Act::Reissue => return Err(missing()),
        }
        Ok(())
    }

    /// What a request leaves behind. The key goes last: a certificate without one is an error.
    fn answered(&self, leaf: &WantedLeaf) -> Result<(), WriteError> {
        let ends: &[&str] = match leaf.place {
            Place::Pair { .. } => &["csr"],
            Place::Conf { .. } => &["csr", "crt", "key"],
        };
        for end in ends {
            let name = format!("{}.{end}", leaf.place.stem());
            store::remove_all(&self.dir.join(name))?;
        }
        Ok(())
    }

    fn sign(&self, index: usize, new_key: bool) -> Result<Signed, WriteError> {
        let (leaf, seen) = self.pair_of(index)?;
        let made = match new_key {
            true => Some(PrivateKey::generate(self.wanted.leaf_kind)?),
            false => None,
        };
        let key = made.as_ref().or(seen.key.as_ref());
        let key = key.ok_or_else(|| vanished(leaf.place.stem()))?;
        let authority = self.held(leaf.issuer)?.authority.as_ref();
        let authority = authority.ok_or_else(|| vanished(leaf.issuer.stem()))?;
        let issuer = authority.certificate();
        let backdated = self.now.checked_sub(BACKDATE).unwrap_or(self.now);
        let end = self.now.checked_add(leaf.life).unwrap_or(issuer.not_after);
        let spec = LeafSpec {
            not_before: backdated.max(issuer.not_before),
            not_after: end.min(issuer.not_after),
            ..asking::spec(&leaf.subject)
        };
        let group = leaf.subject.organisation;
        let der = authority.issue_raw_of(group, &spec, &key.public())?;
        Ok(Signed { der, key: made })
    }

    fn conf(
        &self,
        leaf: &WantedLeaf,
        certificate: Vec<u8>,
        key: Secret,
    ) -> Result<Secret, WriteError> {
        let Place::Conf { user, server, .. } = &leaf.place else {
            return Err(vanished(leaf.place.stem()));
        };
        let conf = Conf {
            server: server.clone(),
            authority: self.anchors(leaf.issuer)?.into_bytes(),
            certificate,
            key,
        };
        Ok(kubeconfig::write(&self.wanted.cluster, user, &conf))
    }
}

fn vanished(path: &str) -> WriteError {
    WriteError::Vanished {
        path: path.to_owned(),
    }
}
