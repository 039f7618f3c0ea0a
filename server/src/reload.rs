//! Files that changed come into force without a restart: certificates, roots, deny list, grants.
//!
//! 1. Everything is read and checked; an error leaves all of it as it was.
//! 2. New handshakes use the new files, on both carriers and at the TCP door.
//! 3. Every live link and every front end with a certificate is verified again by the new rules.
//!    Who passes is not disturbed; who does not is ended with a reason, its dials with it.
//! 4. Grants are given anew to the agents that are linked.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use towline_link::driver::{Link, LinkState};
use towline_link::quic::{OptionsError, QuicListener};
use towline_pki::Files;
use towline_proto::limits;
use towline_proto::reason::Reason;

use crate::agents::Agents;
use crate::directory::{Directory, FileDirectory};
use crate::doors::front_ends::FrontEnds;
use crate::grants::{Grants, GrantsError};
use crate::trust::{Snapshot, Trust, TrustError};

/// Why the files that are there now are not in force.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// Certificates, roots, deny list.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The grants file.
    #[error("grants: {0}")]
    Grants(#[from] GrantsError),
    /// A defect.
    #[error("quic: {0}")]
    Quic(#[from] OptionsError),
}

/// What a reload changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Links that were ended.
    pub links: usize,
    /// Front ends that were ended.
    pub front_ends: usize,
}

/// Puts files in force.
pub struct Reloader {
    /// Certificates, roots, deny list.
    pub files: Files,
    /// The grants file.
    pub grants: Option<PathBuf>,
    /// In force now.
    pub trust: Trust,
    /// Grants in force.
    pub directory: Arc<FileDirectory>,
    /// Who is linked.
    pub agents: Arc<Agents>,
    /// New handshakes on quic.
    pub quic: Option<Arc<QuicListener>>,
    /// Who is connected at the TCP door.
    pub front_ends: FrontEnds,
}

impl Reloader {
    /// Every file that is read.
    pub fn paths(&self) -> Vec<PathBuf> {
        let files = self.files.paths().chain(&self.grants);
        files.cloned().collect()
    }

    /// Reads the files and puts them in force.
    pub fn reload(&self, now: SystemTime) -> Result<Changed, ReloadError> {
        let snapshot = Snapshot::load(&self.files, now)?;
        let grants = match &self.grants {
            Some(path) => Some(Grants::load(path)?),
            None => None,
        };
        self.trust.replace(snapshot)?;
        let snapshot = self.trust.snapshot();
        if let Some(quic) = &self.quic {
            quic.replace_config(Arc::clone(&snapshot.link_tls), Arc::clone(&snapshot.agents))?;
        }
        if let Some(grants) = grants {
            self.directory.replace(grants);
        }
        let changed = self.verify_again(now);
        self.agents.regrant(|peer| self.directory.route(peer));
        Ok(changed)
    }

    /// Step 3; also done from time to time, because front ends' certificates end too.
    pub fn verify_again(&self, now: SystemTime) -> Changed {
        let snapshot = self.trust.snapshot();
        let mut changed = Changed::default();
        for entry in self.agents.links() {
            if matches!(entry.link.state(), LinkState::Closed(_)) {
                continue;
            }
            let Err(error) = snapshot.agents.verify(entry.peer().chain(), now) else {
                continue;
            };
            changed.links += 1;
            let identity = entry.peer().identity();
            tracing::warn!(peer = %identity, link = %entry.link.id(), %error, "agent is no longer trusted, its link is closed");
            end(&entry.link, error.reason());
        }
        if let Some(door) = &snapshot.door {
            changed.front_ends = self.front_ends.check(&door.verifier, now);
        }
        changed
    }

    /// Verifies again every [`limits::DOOR_CHECK`], until the task is dropped.
    pub async fn keep_verifying(self: Arc<Self>) {
        loop {
            tokio::time::sleep(limits::DOOR_CHECK).await;
            self.verify_again(SystemTime::now());
        }
    }
}

/// A link in order is told why by Goodbye first; one that drains would go on for its dials.
fn end(link: &Link, reason: Reason) {
    match link.state() {
        LinkState::Ready => link.close(reason),
        _ => link.carrier().close(reason),
    }
}
