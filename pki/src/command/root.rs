//! The flags that say where the root is: in the directory itself, in another one that several
//! clusters share, in two files, or in somebody else's hands.

use std::path::PathBuf;
use std::time::SystemTime;

use towline_pki::hierarchy::succession;
use towline_pki::store::{self, Replace};
use towline_pki::{
    Authority, Fingerprint, Generation, Layout, PassphraseSource, Passphrases, Seat,
};

use super::{Failure, unlock};

/// Where the root is.
#[derive(clap::Args)]
pub(crate) struct RootFlags {
    /// Directory of `towline-pki init` that holds the root, with its key; several clusters can
    /// stand below one root
    #[arg(long, value_name = "DIR", conflicts_with_all = ["root_cert", "external_root"])]
    pub(crate) root: Option<PathBuf>,
    /// Certificate of the root, when it is no directory of ours
    #[arg(
        long,
        value_name = "FILE",
        requires = "root_key",
        conflicts_with = "external_root"
    )]
    root_cert: Option<PathBuf>,
    /// Private key of that root
    #[arg(long, value_name = "FILE", requires = "root_cert")]
    root_key: Option<PathBuf>,
    /// The root is held elsewhere: write signing requests, and take the certificates in later with
    /// `towline-pki accept`
    #[arg(long)]
    pub(crate) external_root: bool,
    /// File whose first line is the passphrase of the root's key, where it is another one than
    /// --passphrase-file says
    #[arg(long, value_name = "FILE", conflicts_with = "root_passphrase_fd")]
    root_passphrase_file: Option<PathBuf>,
    /// Open descriptor to read that passphrase from
    #[arg(long, value_name = "NUMBER")]
    root_passphrase_fd: Option<u32>,
}

impl RootFlags {
    /// Whether the flags name a root that is at hand, other than the directory's own.
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.root.is_some() || self.root_cert.is_some()
    }

    /// Whether the root is in a directory of ours, which has a ledger.
    pub(crate) fn is_in_directory(&self) -> bool {
        self.root_cert.is_none()
    }

    /// Where the root's passphrase comes from when it has flags of its own, or when nothing is said
    /// of the other passphrase either.
    pub(crate) fn passphrases(&self, others: &Passphrases) -> Option<Passphrases> {
        let own = unlock::source(&self.root_passphrase_file, self.root_passphrase_fd);
        match own {
            None if *others.source() != PassphraseSource::Terminal => None,
            own => Some(Passphrases::new(
                own.unwrap_or(PassphraseSource::Terminal),
                "root-",
            )),
        }
    }

    /// Opens the root, with its key.
    pub(crate) fn open(
        &self,
        own: &Layout,
        others: &mut Passphrases,
        now: SystemTime,
    ) -> Result<Authority, Failure> {
        let mut root_only = self.passphrases(others);
        let passphrases = root_only.as_mut().unwrap_or(others);
        if let (Some(cert), Some(key)) = (&self.root_cert, &self.root_key) {
            return Ok(Authority::unlock(cert, key, passphrases, now)?);
        }
        let layout = match &self.root {
            Some(dir) => Layout::new(dir),
            None => own.clone(),
        };
        let key = layout.key(Seat::Root, Generation::Current);
        if key.symlink_metadata().is_err() {
            return Err(Failure::file(format!(
                "{}: the root's key is not here; name the directory that holds it with --root, its \
                 two files with --root-cert and --root-key, or have a request signed with \
                 --external-root",
                key.display()
            )));
        }
        Ok(succession::open(&layout, Seat::Root, passphrases, now)?)
    }
}

/// Keeps the certificate of the root that signed beside the issuers, for whoever checks the whole
/// chain. A root whose key is here is not touched; a copy of another one becomes the old one.
pub(crate) fn keep_certificate(layout: &Layout, root: &Authority) -> Result<(), Failure> {
    let cert = layout.cert(Seat::Root, Generation::Current);
    match layout.read_cert(Seat::Root, Generation::Current)? {
        None => {
            if let Some(folder) = cert.parent() {
                store::make_private_directory(folder)?;
            }
            store::write_public(&cert, &root.to_pem(), Replace::Atomically)?;
        }
        Some(there) if Fingerprint::of(&there) == root.certificate().fingerprint => {}
        Some(_) if layout.key(Seat::Root, Generation::Current).exists() => {}
        Some(_) => {
            let old = layout.cert(Seat::Root, Generation::Old);
            if !old.exists() {
                store::link(&cert, &old)?;
            }
            store::write_public(&cert, &root.to_pem(), Replace::Atomically)?;
        }
    }
    Ok(())
}
