//! The files of the compatibility doors as one snapshot: what we show, whom we believe. Read at
//! the start and again whenever they change.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use towline_pki::{ChainVerifier, Expiry, TlsError, WebError, WebPair, WebRoots, tls};
use towline_proto::konnectivity::ALPN_GRPC;

/// A certificate, its key, and the authority of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoorFiles {
    /// Our certificate, issuers after it.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Who signs clients; without it they show tokens.
    pub ca: Option<PathBuf>,
}

impl DoorFiles {
    /// Every file.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.cert, &self.key].into_iter().chain(&self.ca)
    }
}

/// Which files there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LegacyFiles {
    /// `--cluster-cert`, `--cluster-key`, `--cluster-ca-cert`.
    pub agents: Option<DoorFiles>,
    /// `--server-cert`, `--server-key`, `--server-ca-cert`.
    pub front_ends: Option<DoorFiles>,
}

impl LegacyFiles {
    /// Every file, for watching.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        let doors = [&self.agents, &self.front_ends].into_iter().flatten();
        doors.flat_map(DoorFiles::paths)
    }
}

/// Why a set of files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LegacyTrustError {
    /// A file.
    #[error(transparent)]
    Web(#[from] WebError),
    /// A defect.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// One door, ready for handshakes.
#[derive(Clone)]
pub struct DoorTrust {
    /// For the handshake.
    pub tls: Arc<rustls::ServerConfig>,
    /// For live connections when the files change.
    pub clients: Option<ChainVerifier>,
    expiries: Vec<Expiry>,
}

impl DoorTrust {
    fn load(files: &DoorFiles, word: &str, alpn: &[&[u8]]) -> Result<Self, LegacyTrustError> {
        let pair = WebPair::load(&files.cert, &files.key)?;
        let mut expiries = pair.expiries(&format!("{word}-certificate"), &files.cert);
        let clients = match &files.ca {
            Some(path) => {
                let roots = WebRoots::load(path)?;
                expiries.extend(roots.expiries(&format!("{word}-ca"), path));
                Some(ChainVerifier::new(&roots)?)
            }
            None => None,
        };
        Ok(Self {
            expiries,
            tls: tls::chain_server(&pair, clients.as_ref(), alpn)?,
            clients,
        })
    }
}

impl std::fmt::Debug for DoorTrust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DoorTrust")
    }
}

/// One loaded set.
#[derive(Clone, Debug, Default)]
pub struct LegacySnapshot {
    /// Where legacy agents come in.
    pub agents: Option<DoorTrust>,
    /// Where front ends come in over TCP.
    pub front_ends: Option<DoorTrust>,
}

impl LegacySnapshot {
    /// Reads and checks every file.
    pub fn load(files: &LegacyFiles) -> Result<Self, LegacyTrustError> {
        let agents = files.agents.as_ref();
        let front_ends = files.front_ends.as_ref();
        let both: [&[u8]; 2] = [ALPN_GRPC, tls::ALPN_HTTP11];
        Ok(Self {
            agents: agents
                .map(|files| DoorTrust::load(files, "legacy-agents", &[ALPN_GRPC]))
                .transpose()?,
            front_ends: front_ends
                .map(|files| DoorTrust::load(files, "signed-door", &both))
                .transpose()?,
        })
    }
}

/// The snapshot in force. Clones are the same.
#[derive(Clone, Debug)]
pub struct LegacyTrust {
    now: Arc<ArcSwap<LegacySnapshot>>,
}

impl LegacyTrust {
    /// Begins with what was read at the start.
    pub fn new(first: LegacySnapshot) -> Self {
        Self {
            now: Arc::new(ArcSwap::from_pointee(first)),
        }
    }

    /// Everything loaded that ends.
    pub fn expiries(&self) -> Vec<Expiry> {
        let snapshot = self.snapshot();
        let doors = [&snapshot.agents, &snapshot.front_ends]
            .into_iter()
            .flatten();
        doors.flat_map(|door| door.expiries.clone()).collect()
    }

    /// What is in force.
    pub fn snapshot(&self) -> Arc<LegacySnapshot> {
        self.now.load_full()
    }

    /// Puts another one in force.
    pub fn replace(&self, new: LegacySnapshot) {
        self.now.store(Arc::new(new));
    }
}
