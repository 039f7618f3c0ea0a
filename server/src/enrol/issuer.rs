//! The signature: an authority of agents, read from files that may be replaced while we run.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls_pki_types::CertificateDer;
use towline_pki::store::{self, StoreError};
use towline_pki::{
    Authority, AuthorityError, Expiry, Identity, Issue, IssueError, Issued, KeyKind, PeerError,
    PrivateKey, TlsError, tls,
};
use towline_proto::id::Role;
use towline_proto::limits;

use crate::trust::Snapshot;

/// Which files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerFiles {
    /// The authority's certificate, those above it behind it.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authorities of servers, shown to agents that know no more than a hash of them.
    pub servers: Option<PathBuf>,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// The authority's certificate or key.
    #[error("--enrol-issuer-certificate and --enrol-issuer-key: {0}")]
    Authority(#[from] AuthorityError),
    /// A file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It may not sign agents.
    #[error("--enrol-issuer-certificate: {0}")]
    Issue(#[from] IssueError),
    /// Nobody would take what it signs.
    #[error(
        "--enrol-issuer-certificate {path}: --agent-ca does not take what it signs: {source}. Use the \
         agents' issuer of `towline-pki init`, and put its certificate into --agent-ca",
        path = path.display()
    )]
    NotTrusted {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: PeerError,
    },
    /// No agent would take our chain.
    #[error("--enrol-server-ca {path}: {source}", path = path.display())]
    Shown {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: TlsError,
    },
}

/// One loaded set.
pub struct Issuing {
    authority: Authority,
    /// What agents present behind their leaf so that `--agent-ca` takes it.
    above: Vec<CertificateDer<'static>>,
    /// Shown behind our own chain.
    pub servers: Vec<CertificateDer<'static>>,
}

impl std::fmt::Debug for Issuing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.authority.fmt(f)
    }
}

impl Issuing {
    /// The authority itself.
    pub(super) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Reads the files, signs once for trial, and makes the configuration of the door: what agents
    /// or `--agent-ca` would not take is an error now.
    pub fn load(
        files: &IssuerFiles,
        trust: &Snapshot,
        now: SystemTime,
    ) -> Result<Self, IssuerError> {
        let agents = &trust.agents;
        let authority = Authority::load(&files.cert, &files.key, now)?;
        let chain = store::read_certificates(&files.cert)?;
        let servers = match &files.servers {
            Some(path) => store::read_certificates(path)?,
            None => Vec::new(),
        };
        if let Some(path) = &files.servers {
            let own = trust.material.credentials();
            let made = tls::enrol_server(own, &servers, Arc::clone(agents));
            made.map_err(|source| IssuerError::Shown {
                path: path.clone(),
                source,
            })?;
        }
        let mut loaded = Self {
            authority,
            above: Vec::new(),
            servers,
        };
        let key = PrivateKey::generate(KeyKind::default()).map_err(AuthorityError::Key)?;
        let trial = Issue {
            identity: Identity::new(
                agents.cluster().clone(),
                Role::Agent,
                // Never handed out, and ended in a minute.
                "trial".parse().map_err(|_| IssueError::NoLife)?,
            ),
            dns: Vec::new(),
            ips: Vec::new(),
            life: Some(loaded.life(Duration::from_secs(60), now)),
            public_key: key.public(),
        };
        let signed = loaded.authority.issue(&trial, now)?;
        // An issuer that is an anchor itself need not be shown; one below an anchor has to be.
        let Err(source) = agents.verify(&signed.chain, now) else {
            return Ok(loaded);
        };
        let whole: Vec<_> = signed.chain.iter().chain(&chain).cloned().collect();
        if agents.verify(&whole, now).is_err() {
            let path = files.cert.clone();
            return Err(IssuerError::NotTrusted { path, source });
        }
        loaded.above = chain;
        Ok(loaded)
    }

    /// At most what is left of the authority.
    fn life(&self, wanted: Duration, now: SystemTime) -> Duration {
        let end = self.authority.certificate().not_after;
        // Whole seconds, rounded down: certificates know no parts of one.
        let left = end.duration_since(now).unwrap_or_default().as_secs();
        let left = Duration::from_secs(left);
        wanted.min(left)
    }

    /// Signs, and gives what to present.
    pub fn sign(
        &self,
        mut issue: Issue,
        wanted: Duration,
        now: SystemTime,
    ) -> Result<(Issued, Vec<CertificateDer<'static>>), IssueError> {
        issue.life = Some(self.life(wanted, now));
        let issued = self.authority.issue(&issue, now)?;
        let whole = issued.chain.iter().chain(&self.above);
        let whole = whole.take(limits::CHAIN_CERTIFICATES).cloned().collect();
        Ok((issued, whole))
    }

    /// When it ends.
    pub fn expiry(&self, path: PathBuf) -> Expiry {
        let certificate = self.authority.certificate();
        Expiry {
            what: "enrol-issuer".into(),
            path,
            not_before: certificate.not_before,
            not_after: certificate.not_after,
        }
    }
}

/// The set in force.
#[derive(Debug)]
pub struct Issuer {
    files: IssuerFiles,
    now: ArcSwap<Issuing>,
}

impl Issuer {
    /// Begins with what was read at the start.
    pub fn new(files: IssuerFiles, first: Issuing) -> Self {
        Self {
            files,
            now: ArcSwap::from_pointee(first),
        }
    }

    /// In force now.
    pub fn current(&self) -> Arc<Issuing> {
        self.now.load_full()
    }

    /// Every file, for watching.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        let both = [&self.files.cert, &self.files.key];
        both.into_iter().chain(&self.files.servers)
    }

    /// Reads the files again; what does not load leaves the old set in force.
    pub fn reload(&self, trust: &Snapshot, now: SystemTime) -> Result<(), IssuerError> {
        let new = Issuing::load(&self.files, trust, now)?;
        self.now.store(Arc::new(new));
        Ok(())
    }

    /// When it ends.
    pub fn expiry(&self) -> Expiry {
        self.current().expiry(self.files.cert.clone())
    }
}
