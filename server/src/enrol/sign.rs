//! The end of every enrolment, at the door and by the Kubernetes API alike: signed, read back by
//! the very verifier that links will use, written to the ledger, and only then handed out.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use towline_link::kube::review::User;
use towline_pki::kubelet::issued_by;
use towline_pki::{Identity, Issue, PublicKey, pem};
use towline_proto::enrol::Refusal;
use towline_proto::id::{ClusterName, Name, Role};

use super::desk::{Kind, Proven, check_denied};
use super::{Desk, No};
use crate::audit::enrolment::IssuedFacts;

impl Desk {
    /// The cluster whose agents are signed for.
    pub fn cluster(&self) -> ClusterName {
        self.trust.snapshot().identity().cluster.clone()
    }

    /// The node of somebody whom the Kubernetes API let in.
    pub async fn node_of_user(&self, user: &User) -> Result<Name, No> {
        let off = || No::new(Refusal::ProofOff, "no service account is configured here");
        let accounts = self.accounts.as_ref().ok_or_else(off)?;
        let _turn = self.asking.acquire().await.ok();
        accounts.node_of_user(user).await
    }

    /// Whether an agent that the API found to be this user, of this node, may have a certificate now,
    /// and the addresses for it.
    pub async fn may_have(
        &self,
        user: &User,
        name: &Name,
        key: &PublicKey,
        now: SystemTime,
    ) -> Result<Vec<IpAddr>, No> {
        if let Some(why) = self.told.obstacle() {
            let text = format!("nothing is issued that cannot be recorded: {why}");
            return Err(No::new(Refusal::Unavailable, text));
        }
        self.may_still(user, name, key, now)?;
        let proven = Proven {
            name: name.clone(),
            join: None,
            shown: Vec::new(),
        };
        self.addresses(&proven, Kind::Account, now).await
    }

    /// Whether it is not denied, and nobody holds the name so that it gets nothing.
    pub fn may_still(
        &self,
        user: &User,
        name: &Name,
        key: &PublicKey,
        now: SystemTime,
    ) -> Result<(), No> {
        let trust = self.trust.snapshot();
        check_denied(name, &trust)?;
        let (hash, accounts) = (key.hash(), self.accounts.as_ref());
        self.check_held(name, &hash, &trust, now)?;
        let used = accounts.is_some_and(|accounts| accounts.is_used(user, &hash));
        self.check_beside(name, &hash, &trust, used, now)
    }

    /// The token of whoever the API found to be this user was used for this key.
    pub fn note_used(&self, user: &User, key: &PublicKey, now: SystemTime) {
        if let Some(accounts) = &self.accounts {
            accounts.note(user, key.hash(), now);
        }
    }

    /// Whether the certificate in this PEM is of our authority, or of another server's that counts
    /// here.
    pub fn is_ours(&self, text: &[u8], now: SystemTime) -> bool {
        let taken = |chain: Vec<CertificateDer<'static>>| {
            let agents = &self.trust.snapshot().agents;
            agents.verify(&chain, now).is_ok()
        };
        issued_by(text, self.issuer.current().authority())
            || pem::certificates(text).is_ok_and(taken)
    }

    /// Signs for a name that is reserved and may have these addresses.
    pub async fn issue(
        &self,
        name: Name,
        ips: Vec<IpAddr>,
        key: &PublicKey,
        life: Duration,
        now: SystemTime,
    ) -> Result<(IssuedFacts, Vec<CertificateDer<'static>>), No> {
        // Somebody else may have been given one of them since they were found free.
        let _claimed = self.names.claim(&ips)?;
        self.check_free(&name, &ips, now).await?;
        let issue = Issue {
            identity: Identity::new(self.cluster(), Role::Agent, name.clone()),
            dns: Vec::new(),
            ips,
            life: None,
            public_key: key.clone(),
        };
        let signed = self.issuer.current().sign(issue, life, now);
        let (issued, chain) = signed.map_err(|error| {
            tracing::error!(node = %name, %error, "nothing can be issued");
            No::new(
                Refusal::Unavailable,
                "the issuing authority cannot sign now",
            )
        })?;
        // By what is in force when it is handed out, which may be newer than the proof's check.
        let trust = self.trust.snapshot();
        check_denied(&name, &trust)?;
        trust.agents.verify(&chain, now).map_err(|error| {
            tracing::error!(node = %name, %error, "what was signed is not taken by --agent-ca");
            No::new(
                Refusal::Unavailable,
                "the issuing authority is not trusted here",
            )
        })?;
        let der = chain.first().cloned().unwrap_or_else(|| Vec::new().into());
        self.names
            .record(&issued.leaf, der, key.hash(), now)
            .await?;
        let facts = IssuedFacts {
            serial: issued.leaf.serial.to_string(),
            until: issued.leaf.not_after,
            ips: issued.leaf.ip_sans.clone(),
        };
        Ok((facts, chain))
    }
}
