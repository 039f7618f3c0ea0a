//! Present: what is there of everything that is wanted, read and checked before anything is touched.
//!
//! Damaged, mismatched and world-readable files, and authorities that have ended, are errors here:
//! the first one ends the run. What is merely missing or out of date is for `plan`.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

use super::kubeconfig::{self, Conf, ConfError};
use super::layout::{self, Purpose};
use super::revoked::Revoked;
use super::wanted::{Place, Wanted, WantedAuthority, WantedLeaf};
use crate::authority::{Authority, AuthorityError};
use crate::crl::RevocationListError;
use crate::inspect::{Certificate, CertificateError};
use crate::key::{KeyError, PrivateKey};
use crate::passphrase::Passphrases;
use crate::pem::{self, PemError};
use crate::revoke::DenyListError;
use crate::secret::Secret;
use crate::store::{self, StoreError};

/// What is wrong with what is there. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum PresentError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Denied(#[from] DenyListError),
    #[error(transparent)]
    List(#[from] RevocationListError),
    #[error("{path}: {source}", path = path.display())]
    Certificate {
        path: PathBuf,
        source: CertificateError,
    },
    #[error("{path}: {source}", path = path.display())]
    Pem { path: PathBuf, source: PemError },
    #[error("{path}: {source}", path = path.display())]
    Key { path: PathBuf, source: KeyError },
    #[error("{path}: {source}", path = path.display())]
    Conf { path: PathBuf, source: ConfError },
    #[error(
        "{certificate}: is there without its key {key}: put the key back, or take the certificate \
         away to have both made anew",
        certificate = certificate.display(), key = key.display()
    )]
    NoKey { certificate: PathBuf, key: PathBuf },
    #[error(
        "{key}: is not the key of {certificate}: put back the one that is, or take both away",
        certificate = certificate.display(), key = key.display()
    )]
    Mismatch { certificate: PathBuf, key: PathBuf },
    #[error(
        "{path}: is an authority where the certificate of a component belongs; an authority is \
         never written over",
        path = path.display()
    )]
    IsAuthority { path: PathBuf },
    #[error(
        "{path}: is missing, and a rotation of it was begun: run `towline-pki rotate activate` again",
        path = path.display()
    )]
    Rotation { path: PathBuf },
    #[error("{path}: is of cluster {found}, and the file is of {wanted}: use another directory", path = path.display())]
    OtherCluster {
        path: PathBuf,
        found: String,
        wanted: String,
    },
    #[error(
        "{path}: is another authority than {external}: it is never written over; with \
         `towline-pki rotate` both are trusted for a while",
        path = path.display(), external = external.display()
    )]
    OtherAuthority { path: PathBuf, external: PathBuf },
    #[error("{public}: does not hold the public half of {key}", public = public.display(), key = key.display())]
    ServiceAccount { key: PathBuf, public: PathBuf },
}

/// All that is there.
#[derive(Default)]
pub struct Present {
    pub(super) cluster: bool,
    pub(super) authorities: BTreeMap<Purpose, Held>,
    /// In the order of the leaves that are wanted.
    pub(super) leaves: Vec<Seen>,
    /// In the order of the copies that are wanted.
    pub(super) copies: Vec<Option<Secret>>,
    pub(super) service_account: Option<(PrivateKey, Secret)>,
    pub(super) service_account_public: Option<Secret>,
    /// Directories of machines.
    pub(super) machines: BTreeSet<String>,
    /// Files with names of ours that nothing wants, and directories of machines that are gone.
    pub(super) strays: Vec<String>,
    pub(super) machines_gone: Vec<String>,
    /// Who and what counts no more.
    pub(super) revoked: Revoked,
    /// Directories that a run which was cut off left behind.
    pub(super) leftovers: Vec<String>,
}

/// What is there of an authority.
#[derive(Default)]
pub(super) struct Held {
    pub(super) certificate: Option<(Certificate, CertificateDer<'static>)>,
    /// With its key.
    pub(super) authority: Option<Authority>,
    /// A key whose certificate is not there yet.
    pub(super) key: Option<PrivateKey>,
    /// The key's file, to be copied.
    pub(super) key_text: Option<Secret>,
    /// Whether its certificate lies in its place; an external one may not yet.
    pub(super) in_place: bool,
    /// All that holders of this purpose are known by, the authority among them.
    pub(super) anchors: Vec<CertificateDer<'static>>,
    /// Whether the trust file has the authority in it; `true` where there is none.
    pub(super) trusted: bool,
}

/// What is there of a certificate and its key.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) certificate: Option<(Certificate, CertificateDer<'static>)>,
    pub(super) key: Option<PrivateKey>,
    /// The key that waits beside: it fits the certificate, or it is left over.
    pub(super) next: Next,
    /// Of a kubeconfig.
    pub(super) conf: Option<Conf>,
    /// Beside a kubeconfig: the pair that it will be made of.
    pub(super) aside: Option<PrivateKey>,
    pub(super) aside_certificate: Option<(Certificate, CertificateDer<'static>)>,
    pub(super) request: Option<Vec<u8>>,
}

/// The key that waits beside a pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Next {
    #[default]
    None,
    /// It is the certificate's: it has to be put in place.
    Fits,
    /// Nobody needs it.
    LeftOver,
}

type Read<T> = Result<T, PresentError>;
pub(super) type Certified = (Certificate, CertificateDer<'static>);

impl Present {
    /// Reads everything below `dir` that is wanted.
    pub fn read(dir: &Path, wanted: &Wanted, now: SystemTime) -> Read<Self> {
        Self::read_all(dir, wanted, None, now)
    }

    /// As [`read`](Self::read), and opens encrypted keys of authorities.
    pub fn unlock(
        dir: &Path,
        wanted: &Wanted,
        passphrases: &mut Passphrases,
        now: SystemTime,
    ) -> Read<Self> {
        Self::read_all(dir, wanted, Some(passphrases), now)
    }

    fn read_all(
        dir: &Path,
        wanted: &Wanted,
        mut passphrases: Option<&mut Passphrases>,
        now: SystemTime,
    ) -> Read<Self> {
        let mut present = Self {
            cluster: cluster(dir, &wanted.cluster)?,
            revoked: Revoked::read(dir)?,
            ..Self::default()
        };
        for authority in &wanted.authorities {
            let held = held(dir, authority, passphrases.as_deref_mut(), now)?;
            present.authorities.insert(authority.purpose, held);
        }
        if wanted.service_account.is_some() {
            present.read_service_account(dir)?;
        }
        for leaf in &wanted.leaves {
            present.leaves.push(seen(dir, leaf)?);
        }
        for copy in &wanted.copies {
            let path = dir.join(&copy.path);
            present.copies.push(match copy.of.is_secret() {
                true => store::read_secret_if_there(&path)?,
                false => store::read_if_there(&path)?.map(Secret::new),
            });
        }
        present.read_names(dir, wanted)?;
        Ok(present)
    }

    fn read_service_account(&mut self, dir: &Path) -> Read<()> {
        let key = dir.join(layout::SERVICE_ACCOUNT_KEY);
        let public = dir.join(layout::SERVICE_ACCOUNT_PUBLIC);
        let text = store::read_secret_if_there(&key)?;
        let public_text = store::read_if_there(&public)?;
        let private = match &text {
            Some(text) => Some(private_key(&key, text)?),
            None => None,
        };
        match (&private, &public_text) {
            (None, Some(_)) => {
                return Err(PresentError::NoKey {
                    certificate: public,
                    key,
                });
            }
            (Some(private), Some(text)) => {
                let wanted = pem::write_public_key(private.public().der());
                let found = String::from_utf8_lossy(text).replace("\r\n", "\n");
                if !found.contains(wanted.trim_end()) {
                    return Err(PresentError::ServiceAccount { key, public });
                }
            }
            _ => {}
        }
        self.service_account = private.zip(text);
        self.service_account_public = public_text.map(Secret::new);
        Ok(())
    }

    /// What nobody wants any more.
    fn read_names(&mut self, dir: &Path, wanted: &Wanted) -> Read<()> {
        let mut ours = HashSet::new();
        for leaf in &wanted.leaves {
            let stem = leaf.place.stem();
            for end in ["crt", "key", "key.next", "csr", "conf"] {
                ours.insert(format!("{stem}.{end}"));
            }
        }
        ours.extend(wanted.copies.iter().map(|copy| copy.path.clone()));
        for name in store::names_in(&dir.join(layout::HOSTS))? {
            if name.starts_with('.') {
                continue;
            } else if wanted.hosts.contains(&name) {
                self.strays_of(dir, &name, &ours);
                for folder in ["", "/pki", "/pki/etcd", "/kubelet", "/towline"] {
                    self.left_over(dir, &format!("{}{folder}", layout::host(&name)))?;
                }
                self.machines.insert(name);
            } else if is_ours(&dir.join(layout::host(&name))) {
                self.machines_gone.push(name);
            }
        }
        for folder in layout::FOLDERS {
            self.left_over(dir, folder)?;
        }
        for folder in layout::PEOPLE {
            for name in store::names_in(&dir.join(folder))? {
                let path = format!("{folder}/{name}");
                let known = [".crt", ".key", ".key.next", ".csr"];
                if known.iter().any(|end| name.ends_with(end)) && !ours.contains(&path) {
                    self.strays.push(path);
                }
            }
        }
        Ok(())
    }

    fn left_over(&mut self, dir: &Path, folder: &str) -> Read<()> {
        for name in store::names_in(&dir.join(folder))? {
            if store::is_left_over(&name) {
                let path = Path::new(folder).join(name);
                self.leftovers.push(path.display().to_string());
            }
        }
        Ok(())
    }

    fn strays_of(&mut self, dir: &Path, machine: &str, ours: &HashSet<String>) {
        let host = layout::host(machine);
        let pairs = layout::HOST_PAIRS
            .iter()
            .flat_map(|stem| ["crt", "key", "key.next", "csr"].map(|end| format!("{stem}.{end}")));
        let files = layout::HOST_FILES.iter().map(|name| (*name).to_owned());
        for name in pairs.chain(files) {
            let path = format!("{host}/{name}");
            if !ours.contains(&path) && store::is_there(&dir.join(&path)) {
                self.strays.push(path);
            }
        }
    }
}

/// Whether a directory holds anything that is made for machines. What is somebody else's is not
/// told and not taken away.
fn is_ours(directory: &Path) -> bool {
    let pairs = layout::HOST_PAIRS.iter().map(|stem| format!("{stem}.key"));
    let files = layout::HOST_FILES.iter().map(|name| (*name).to_owned());
    let mut all = pairs.chain(files);
    all.any(|name| store::is_there(&directory.join(name)))
}

/// Whether the directory is the cluster's already; an error when it is another's.
fn cluster(dir: &Path, wanted: &str) -> Read<bool> {
    let path = dir.join(layout::CLUSTER);
    let Some(text) = store::read_if_there(&path)? else {
        return Ok(false);
    };
    let found = String::from_utf8_lossy(&text);
    if found.trim() == wanted {
        return Ok(true);
    }
    Err(PresentError::OtherCluster {
        path,
        found: found.trim().escape_debug().take(80).collect(),
        wanted: wanted.to_owned(),
    })
}

fn held(
    dir: &Path,
    wanted: &WantedAuthority,
    passphrases: Option<&mut Passphrases>,
    now: SystemTime,
) -> Read<Held> {
    let purpose = wanted.purpose;
    let own = dir.join(purpose.certificate());
    let own_key = dir.join(purpose.key());
    let placed = certificates(&own)?;
    let (path, key, all) = match &wanted.external {
        Some(external) => {
            let all = store::read_certificates(&external.certificate)?;
            if !placed.is_empty() && !all.first().is_some_and(|first| placed.contains(first)) {
                return Err(PresentError::OtherAuthority {
                    path: own,
                    external: external.certificate.clone(),
                });
            }
            (external.certificate.clone(), external.key.clone(), all)
        }
        None => (own, Some(own_key), placed.clone()),
    };
    let mut held = Held {
        in_place: !placed.is_empty(),
        ..Held::default()
    };
    if let Some(key) = &key {
        // An external authority's key must be there when it is named.
        held.key_text = match wanted.external {
            Some(_) => Some(store::read_secret(key)?),
            None => store::read_secret_if_there(key)?,
        };
    }
    let Some(first) = all.first() else {
        let begun = ["next", "old"].map(|word| dir.join(format!("{}-{word}.crt", purpose.stem())));
        if begun.iter().any(|path| store::is_there(path)) {
            return Err(PresentError::Rotation { path });
        }
        if let (Some(text), Some(path)) = (&held.key_text, &key) {
            held.key = Some(private_key(path, text)?);
        }
        return trusted(dir, purpose, held);
    };
    let certificate = read_certificate(&path, first)?;
    match (&held.key_text, &key) {
        (Some(text), Some(key)) => {
            let authority = match (is_encrypted(text), passphrases) {
                (true, Some(passphrases)) => Authority::unlock(&path, key, passphrases, now)?,
                _ => Authority::load(&path, key, now)?,
            };
            // Where a copy goes, a daemon reads it, and nobody is there to ask.
            if is_encrypted(text) {
                held.key_text = Some(authority.key_to_pem());
            }
            held.authority = Some(authority);
        }
        _ => Authority::check(&certificate, now).map_err(|source| AuthorityError::In {
            path,
            source: Box::new(source),
        })?,
    }
    held.certificate = Some((certificate, first.clone()));
    held.anchors = match held.in_place {
        true => placed,
        false => all,
    };
    trusted(dir, purpose, held)
}

fn is_encrypted(text: &Secret) -> bool {
    matches!(pem::encrypted_key(text.expose()), Ok(Some(_)))
}

/// Adds what the trust file says, where the purpose has one.
fn trusted(dir: &Path, purpose: Purpose, mut held: Held) -> Read<Held> {
    held.trusted = true;
    if let Some(trust) = purpose.trust() {
        let mut anchors = certificates(&dir.join(trust))?;
        if let Some((_, der)) = &held.certificate {
            held.trusted = anchors.contains(der);
            if !held.trusted {
                anchors.push(der.clone());
            }
        }
        held.anchors = anchors;
    }
    Ok(held)
}

fn seen(dir: &Path, wanted: &WantedLeaf) -> Read<Seen> {
    let stem = wanted.place.stem();
    let file = |end: &str| dir.join(format!("{stem}.{end}"));
    let request = store::read_if_there(&file("csr"))?;
    let key = optional_key(&file("key"))?;
    match &wanted.place {
        Place::Pair { .. } => {
            let mut seen = pair(&file("crt"), &file("key"), key)?;
            seen.request = request;
            Ok(seen)
        }
        Place::Conf { .. } => {
            let path = file("conf");
            let mut seen = match store::read_secret_if_there(&path)? {
                Some(text) => conf(&path, &text)?,
                None => Seen::default(),
            };
            let aside = pair(&file("crt"), &file("key"), key)?;
            seen.aside = aside.key;
            seen.aside_certificate = aside.certificate;
            seen.request = request;
            Ok(seen)
        }
    }
}

fn pair(cert: &Path, key_path: &Path, key: Option<PrivateKey>) -> Read<Seen> {
    let next = optional_key(&store::next_key(key_path))?;
    let left_over = match next {
        Some(_) => Next::LeftOver,
        None => Next::None,
    };
    let Some(der) = certificates(cert)?.into_iter().next() else {
        return Ok(Seen {
            key,
            next: left_over,
            ..Seen::default()
        });
    };
    let certificate = read_certificate(cert, &der)?;
    if certificate.is_authority {
        return Err(PresentError::IsAuthority { path: cert.into() });
    }
    let fits = |key: &Option<PrivateKey>| {
        let key = key.as_ref();
        key.is_some_and(|key| key.public().der() == certificate.public_key_der)
    };
    let (key, next) = if fits(&key) {
        (key, left_over)
    } else if fits(&next) {
        (next, Next::Fits)
    } else if key.is_none() {
        return Err(PresentError::NoKey {
            certificate: cert.into(),
            key: key_path.into(),
        });
    } else {
        return Err(PresentError::Mismatch {
            certificate: cert.into(),
            key: key_path.into(),
        });
    };
    Ok(Seen {
        certificate: Some((certificate, der)),
        key,
        next,
        ..Seen::default()
    })
}

fn conf(path: &Path, text: &Secret) -> Read<Seen> {
    let conf = kubeconfig::read(text.expose()).map_err(|source| PresentError::Conf {
        path: path.into(),
        source,
    })?;
    let broken = |source| PresentError::Pem {
        path: path.into(),
        source,
    };
    let chain = pem::certificates(&conf.certificate).map_err(broken)?;
    let der = chain.into_iter().next().ok_or_else(|| {
        broken(PemError::Missing {
            wanted: "CERTIFICATE",
            hint: "",
        })
    })?;
    let certificate = read_certificate(path, &der)?;
    if certificate.is_authority {
        return Err(PresentError::IsAuthority { path: path.into() });
    }
    let key = private_key(path, &conf.key)?;
    if key.public().der() != certificate.public_key_der {
        return Err(PresentError::Mismatch {
            certificate: path.into(),
            key: path.into(),
        });
    }
    Ok(Seen {
        certificate: Some((certificate, der)),
        key: Some(key),
        conf: Some(conf),
        ..Seen::default()
    })
}

/// None when the file is not there.
fn certificates(path: &Path) -> Read<Vec<CertificateDer<'static>>> {
    match store::read_if_there(path)? {
        None => Ok(Vec::new()),
        Some(text) => pem::certificates(&text).map_err(|source| PresentError::Pem {
            path: path.into(),
            source,
        }),
    }
}

fn read_certificate(path: &Path, der: &CertificateDer<'_>) -> Read<Certificate> {
    Certificate::parse(der.as_ref()).map_err(|source| PresentError::Certificate {
        path: path.into(),
        source,
    })
}

fn optional_key(path: &Path) -> Read<Option<PrivateKey>> {
    match store::read_secret_if_there(path)? {
        Some(text) => private_key(path, &text).map(Some),
        None => Ok(None),
    }
}

fn private_key(path: &Path, text: &Secret) -> Read<PrivateKey> {
    let der = pem::private_key(text.expose()).map_err(|source| PresentError::Pem {
        path: path.into(),
        source,
    })?;
    PrivateKey::from_der(&der).map_err(|source| PresentError::Key {
        path: path.into(),
        source,
    })
}

/// A certificate as it is kept here.
pub(super) fn certified(der: CertificateDer<'static>) -> Result<Certified, CertificateError> {
    Ok((Certificate::parse(der.as_ref())?, der))
}
