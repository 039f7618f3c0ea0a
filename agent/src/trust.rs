//! What the agent proves itself with and whom it trusts, as one snapshot that can be replaced.
//!
//! A new set of files counts for every handshake from then on, and the live links' servers are
//! checked again by it (see `reconnect`). A set that does not load leaves the old one in force.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::ClientConfig;
use tokio::sync::watch;
use towline_pki::{
    Files, Identity, Material, MaterialError, PeerError, PeerVerifier, TlsError, VerifiedPeer, tls,
};
use towline_proto::id::Role;
use towline_proto::limits;

/// Why a set of files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file is missing, unreadable or wrong.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// No roots for servers were given.
    #[error("no roots for servers: give --server-ca")]
    NoRoots,
    /// The rest is in force; of revocation lists older ones are.
    #[error("{0} is not taken, the older list and all other files are in force: {1}")]
    Crl(String, String),
    /// A defect.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// One loaded set.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// What was loaded, with its ends.
    pub material: Material,
    /// For handshakes on both carriers.
    pub client: Arc<ClientConfig>,
    /// Decides who is a server.
    pub verifier: Arc<PeerVerifier>,
}

impl Snapshot {
    /// Reads and checks every file.
    ///
    /// Revocation lists that may not follow those of `before` leave them in force.
    pub fn load(
        files: &Files,
        before: Option<&Material>,
        now: SystemTime,
    ) -> Result<Self, TrustError> {
        Self::of(Material::load_after(files, Role::Agent, before, now)?)
    }

    /// The same with the deny list and the revocation lists of now.
    pub fn revoked_anew(&self, files: &Files) -> Result<Self, TrustError> {
        Self::of(self.material.revoked_anew(files))
    }

    fn of(material: Material) -> Result<Self, TrustError> {
        let verifier = Arc::clone(material.verifier(Role::Server).ok_or(TrustError::NoRoots)?);
        let client = tls::link_client(material.credentials(), Arc::clone(&verifier))?;
        Ok(Self {
            material,
            client,
            verifier,
        })
    }

    /// Who we are.
    pub fn identity(&self) -> &Identity {
        self.material.credentials().identity()
    }

    /// Whether a server that we are linked to would be taken now.
    pub fn recheck(&self, peer: &VerifiedPeer, now: SystemTime) -> Result<(), PeerError> {
        self.verifier.verify(peer.chain(), now).map(|_| ())
    }
}

/// The set in force.
#[derive(Debug)]
pub struct Trust {
    files: Files,
    current: ArcSwap<Snapshot>,
    replaced: watch::Sender<u64>,
}

impl Trust {
    /// With a first set that was loaded from `files`.
    pub fn new(files: Files, first: Snapshot) -> Self {
        Self {
            files,
            current: ArcSwap::from_pointee(first),
            replaced: watch::Sender::new(0),
        }
    }

    /// The set in force now.
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Changes whenever a new set is in force.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.replaced.subscribe()
    }

    /// Which files it is loaded from.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Has every link checked again when a revocation list comes to the end of its time and that
    /// matters, until the task is dropped.
    pub async fn keep_fresh(&self) {
        let mut looked = SystemTime::now();
        loop {
            tokio::time::sleep(limits::REVOCATION_LOOK).await;
            let (now, snapshot) = (SystemTime::now(), self.current());
            if snapshot.material.crl_went_stale(looked, now) {
                self.replace(Snapshot::clone(&snapshot));
            }
            looked = now;
        }
    }

    /// Puts a loaded set in force.
    pub fn replace(&self, snapshot: Snapshot) {
        self.current.store(Arc::new(snapshot));
        self.replaced.send_modify(|generation| *generation += 1);
    }
}
