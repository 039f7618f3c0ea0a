//! What the server proves itself with and whom it trusts: one snapshot, replaced as a whole.
//!
//! A new snapshot counts for every handshake from then on; whoever is connected is checked again
//! by it (see `reload`). Files that do not load leave the old snapshot in force.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use towline_pki::{Files, Identity, Material, MaterialError, PeerVerifier, TlsError, tls};
use towline_proto::id::Role;

use crate::doors::tcp::DoorTls;

/// Why a set of files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file is missing, unreadable or wrong.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// No roots for agents were given.
    #[error("no roots for agents: give --agent-ca")]
    NoRoots,
    /// A process is one identity for its life.
    #[error("the certificate now names {new}, this process is {old}: restart it to change that")]
    Identity {
        /// Who we are.
        old: Identity,
        /// Who the file says we are.
        new: Identity,
    },
    /// A defect.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// One loaded set.
#[derive(Clone)]
pub struct Snapshot {
    /// As it was read.
    pub material: Arc<Material>,
    /// Links, both carriers.
    pub link_tls: Arc<rustls::ServerConfig>,
    /// Who may be an agent.
    pub agents: Arc<PeerVerifier>,
    /// The door over TCP, when there is one.
    pub door: Option<Arc<DoorTls>>,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Snapshot").field(&self.material).finish()
    }
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
        Self::of(Material::load_after(files, Role::Server, before, now)?)
    }

    /// The same with the deny list and the revocation lists of now.
    pub fn revoked_anew(&self, files: &Files) -> Result<Self, TrustError> {
        Self::of(self.material.revoked_anew(files))
    }

    fn of(material: Material) -> Result<Self, TrustError> {
        let own = material.credentials();
        let agents = material.verifier(Role::Agent).ok_or(TrustError::NoRoots)?;
        let door = match material.verifier(Role::Client) {
            Some(clients) => Some(Arc::new(DoorTls {
                config: tls::door_server(own, Arc::clone(clients))?,
                verifier: Arc::clone(clients),
            })),
            None => None,
        };
        Ok(Self {
            link_tls: tls::link_server(own, Arc::clone(agents))?,
            agents: Arc::clone(agents),
            door,
            material: Arc::new(material),
        })
    }

    /// Our identity.
    pub fn identity(&self) -> &Identity {
        self.material.credentials().identity()
    }
}

/// The snapshot in force. Clones are the same.
#[derive(Clone)]
pub struct Trust {
    now: Arc<ArcSwap<Snapshot>>,
}

impl Trust {
    /// Begins with what was read at the start.
    pub fn new(first: Snapshot) -> Self {
        Self {
            now: Arc::new(ArcSwap::from_pointee(first)),
        }
    }

    /// What is in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.now.load_full()
    }

    /// Puts a new one in force, unless it makes us somebody else.
    pub fn replace(&self, new: Snapshot) -> Result<(), TrustError> {
        let old = self.now.load();
        if !new.material.keeps_identity(&old.material) {
            return Err(TrustError::Identity {
                old: old.identity().clone(),
                new: new.identity().clone(),
            });
        }
        self.now.store(Arc::new(new));
        Ok(())
    }
}
