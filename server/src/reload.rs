//! Files that changed come into force without a restart: certificates, roots, deny list, grants,
//! the kubelet authority and its revocation lists.
//!
//! 1. Everything is read and checked; an error leaves all of it as it was, but for the deny list and
//!    the revocation lists of peers: those never wait until another file is mended.
//! 2. New handshakes use the new files, on both carriers and at the TCP door.
//! 3. Every live link and every front end with a certificate is verified again by the new rules.
//!    Who passes is not disturbed; who does not is ended with a reason, its dials with it.
//! 4. Grants are given anew to the agents that are linked, and live dials through an agent that
//!    may no longer serve their target are ended with a reason.
//!
//! The policy file is read apart from these; see `policy::in_force`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;
use towline_link::driver::{Link, LinkState};
use towline_link::quic::{OptionsError, QuicListener};
use towline_pki::gateway::{GatewayError, GatewayMaterial};
use towline_pki::kubelet::{KubeletFiles, KubeletTrust, KubeletTrustError};
use towline_pki::{AuthorityError, Files, PeerError, chain};
use towline_proto::limits;
use towline_proto::reason::Reason;

use crate::agents::Agents;
use crate::attest::Attestor;
use crate::csr::SigningFiles;
use crate::directory::{Directory, FileDirectory};
use crate::doors::front_ends::FrontEnds;
use crate::gateway::Gateway;
use crate::grants::{Grants, GrantsError};
use crate::legacy::accept::LegacyDoor;
use crate::legacy::trust::{LegacyFiles, LegacySnapshot, LegacyTrust, LegacyTrustError};
use crate::policy::in_force::InForce;
use crate::trust::{Snapshot, Trust, TrustError};

/// Why the files that are there now are not in force.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// Certificates, roots, deny list.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The rest is in force; of revocation lists older ones are.
    #[error("{0} is not taken, the older list and all other files are in force: {1}")]
    Crl(String, String),
    /// Files of the compatibility profile.
    #[error(transparent)]
    Legacy(#[from] LegacyTrustError),
    /// The grants file.
    #[error("grants: {0}")]
    Grants(#[from] GrantsError),
    /// The kubelet authority or its revocation lists.
    #[error(transparent)]
    Kubelets(#[from] KubeletTrustError),
    /// The kubelet gateway's.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// The authority of the approver.
    #[error("--kubelet-serving-signer-certificate: {0}")]
    Signing(#[from] AuthorityError),
    /// A defect.
    #[error("quic: {0}")]
    Quic(#[from] OptionsError),
}

/// What a reload does for the compatibility profile.
pub struct LegacyReload {
    /// Which files.
    pub files: LegacyFiles,
    /// In force now.
    pub trust: LegacyTrust,
    /// Who is connected.
    pub door: Option<Arc<LegacyDoor>>,
    /// Who is connected to the signed TCP door.
    pub front_ends: FrontEnds,
}

impl LegacyReload {
    fn verify_again(&self, now: SystemTime, changed: &mut Changed) {
        changed.links += self.door.as_ref().map_or(0, |door| door.check(now));
        let snapshot = self.trust.snapshot();
        let door = snapshot.front_ends.as_ref();
        if let Some(clients) = door.and_then(|door| door.clients.as_ref()) {
            let verify = |chain: &[_]| clients.verify(chain, now);
            changed.front_ends += self.front_ends.check(verify, chain::reason);
        }
    }
}

/// What a reload changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Links that were ended.
    pub links: usize,
    /// Front ends that were ended.
    pub front_ends: usize,
    /// Live dials through agents that may no longer serve their targets.
    pub dials: usize,
}

/// Puts files in force.
pub struct Reloader {
    /// Certificates, roots, deny list; none without an identity of our own.
    pub files: Option<Files>,
    /// The grants file.
    pub grants: Option<PathBuf>,
    /// In force now.
    pub trust: Option<Trust>,
    /// The compatibility profile's files, and the door where they count.
    pub legacy: Option<LegacyReload>,
    /// Grants in force.
    pub directory: Arc<FileDirectory>,
    /// Who is linked.
    pub agents: Arc<Agents>,
    /// New handshakes on quic.
    pub quic: Option<Arc<QuicListener>>,
    /// Who is connected at the TCP door.
    pub front_ends: FrontEnds,
    /// By what kubelets are verified: which files, when they are.
    pub kubelets: Option<KubeletFiles>,
    /// Who verifies them.
    pub attestor: Arc<Attestor>,
    /// The kubelet gateway, when there is one.
    pub gateway: Option<Arc<Gateway>>,
    /// By what signing requests are signed.
    pub signing: SigningFiles,
    /// Judges live dials again when grants change.
    pub policy: Arc<InForce>,
}

impl Reloader {
    /// Every file that is read.
    pub fn paths(&self) -> Vec<PathBuf> {
        let own = self.files.iter().flat_map(Files::paths);
        let legacy = self.legacy.iter().flat_map(|legacy| legacy.files.paths());
        let kubelets = self.kubelets.iter().flat_map(KubeletFiles::paths);
        let gateway = self.gateway.iter().flat_map(|one| one.files().paths());
        let files = own.chain(legacy).chain(&self.grants).chain(kubelets);
        let signing = self.signing.paths();
        files.chain(gateway).chain(signing).cloned().collect()
    }

    /// Reads the files and puts them in force.
    pub fn reload(&self, now: SystemTime) -> Result<Changed, ReloadError> {
        let done = self.reload_whole(now);
        if let Err(error) = &done
            && !matches!(error, ReloadError::Crl(..))
        {
            self.revoke_anew(now);
        }
        done
    }

    /// Something cannot be used and the files stay as they were, but a revocation does not wait
    /// for it: deny list and revocation lists come into force by themselves.
    fn revoke_anew(&self, now: SystemTime) {
        let (Some(trust), Some(files)) = (&self.trust, &self.files) else {
            return;
        };
        let replaced = trust.snapshot().revoked_anew(files);
        let replaced = replaced.and_then(|snapshot| trust.replace(snapshot));
        let snapshot = trust.snapshot();
        let quic = self.quic.as_ref().map_or(Ok(()), |quic| {
            quic.replace_config(Arc::clone(&snapshot.link_tls), Arc::clone(&snapshot.agents))
        });
        if let Err(error) = replaced
            .map_err(ReloadError::from)
            .and(quic.map_err(ReloadError::from))
        {
            tracing::error!(%error, "revocations are not in force");
        }
        self.verify_again(now);
    }

    fn reload_whole(&self, now: SystemTime) -> Result<Changed, ReloadError> {
        let own = match &self.files {
            Some(files) => {
                let before = self.trust.as_ref().map(Trust::snapshot);
                let before = before.as_ref().map(|before| &*before.material);
                Some(Snapshot::load(files, before, now)?)
            }
            None => None,
        };
        let legacy = match &self.legacy {
            Some(legacy) => Some(LegacySnapshot::load(&legacy.files)?),
            None => None,
        };
        let grants = match &self.grants {
            Some(path) => Some(Grants::load(path)?),
            None => None,
        };
        let kubelets = match &self.kubelets {
            Some(files) => Some(KubeletTrust::load(files)?),
            None => None,
        };
        let gateway = match &self.gateway {
            Some(gateway) => Some((gateway, GatewayMaterial::load(gateway.files(), now)?)),
            None => None,
        };
        let signing = self.signing.read(now)?;
        if let (Some(trust), Some(snapshot)) = (&self.trust, own) {
            trust.replace(snapshot)?;
            let snapshot = trust.snapshot();
            if let Some(quic) = &self.quic {
                quic.replace_config(Arc::clone(&snapshot.link_tls), Arc::clone(&snapshot.agents))?;
            }
        }
        if let (Some(reload), Some(snapshot)) = (&self.legacy, legacy) {
            reload.trust.replace(snapshot);
        }
        if let Some(grants) = grants {
            self.directory.replace(grants);
        }
        if let Some(kubelets) = kubelets {
            self.attestor.replace(kubelets);
        }
        if let Some((gateway, material)) = gateway {
            gateway.replace(Arc::new(material));
        }
        self.signing.replace(signing);
        let mut changed = self.verify_again(now);
        self.agents.regrant(|peer| self.directory.route(peer));
        changed.dials = self.policy.judge_all();
        let snapshot = self.trust.as_ref().map(Trust::snapshot);
        match snapshot.and_then(|own| own.material.crl_faults().first().cloned()) {
            Some(fault) => Err(ReloadError::Crl(fault.what, fault.error)),
            None => Ok(changed),
        }
    }

    /// Step 3; also done from time to time, because front ends' certificates end too.
    pub fn verify_again(&self, now: SystemTime) -> Changed {
        let mut changed = Changed::default();
        if let Some(legacy) = &self.legacy {
            legacy.verify_again(now, &mut changed);
        }
        if let Some(gateway) = &self.gateway {
            changed.front_ends += gateway.check_again(now);
        }
        let Some(snapshot) = self.trust.as_ref().map(Trust::snapshot) else {
            return changed;
        };
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
            let verify = |chain: &[_]| door.verifier.verify(chain, now).map(drop);
            changed.front_ends += self.front_ends.check(verify, PeerError::reason);
        }
        changed
    }

    /// Verifies again every [`limits::DOOR_CHECK`] and when a revocation list comes to the end of
    /// its time; ends front ends at the end of their certificates. Until the task is dropped.
    pub async fn keep_verifying(self: Arc<Self>) {
        let mut looked = SystemTime::now();
        let mut verified = Instant::now();
        loop {
            tokio::time::sleep(limits::REVOCATION_LOOK).await;
            let now = SystemTime::now();
            let own = self.trust.as_ref().map(Trust::snapshot);
            let stale = own.is_some_and(|own| own.material.crl_went_stale(looked, now));
            if stale || verified.elapsed() >= limits::DOOR_CHECK {
                // Thousands of signatures: not where bytes are moved.
                let all = Arc::clone(&self);
                let verifying = tokio::task::spawn_blocking(move || all.verify_again(now));
                if let Err(error) = verifying.await {
                    tracing::error!(%error, "live links and front ends were not verified again");
                }
                verified = Instant::now();
            } else {
                self.front_ends.end_ended(now);
            }
            looked = now;
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
