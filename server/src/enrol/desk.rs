//! One request from its bytes to its answer.
//!
//! In this order, and the first failure decides: the request reads; something can be issued and
//! recorded at all; the signing request is signed by its key; the proof says which node it is;
//! what was asked for is that node; the identity is not denied; nobody else is at it; a join token
//! meets no other holder of the name; the addresses are free; the proof was not used for another
//! key, and is spent; it is signed, read back by the very verifier that links will use, written to
//! the ledger, and only then handed out.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use towline_pki::join::JoinEntry;
use towline_pki::seal::hex;
use towline_pki::{Identity, Request};
use towline_proto::enrol::{EnrolReply, EnrolRequest, Proof, Refusal};
use towline_proto::id::{Name, Role};
use towline_proto::limits;

use super::No;
use super::account::Accounts;
use super::issuer::Issuer;
use super::join::Joins;
use super::names::Names;
use super::nodes::{Looked, Nodes};
use super::told::Told;
use crate::audit::enrolment::{EnrolmentEvent, IssuedFacts};
use crate::trust::{Snapshot, Trust};

/// Everything that an answer needs.
pub struct Desk {
    /// Whose certificates are taken, and who is denied.
    pub trust: Trust,
    /// Who signs.
    pub issuer: Arc<Issuer>,
    /// Service-account tokens, where they are taken.
    pub accounts: Option<Accounts>,
    /// Join tokens, where they are taken.
    pub joins: Option<Arc<Joins>>,
    /// Who holds which name.
    pub names: Names,
    /// Whose addresses are whose.
    pub nodes: Nodes,
    /// What is said of it.
    pub told: Told,
    /// `--enrol-certificate-life`.
    pub life: Duration,
    /// Questions to the Kubernetes API at once.
    pub asking: Semaphore,
}

/// What is known of a request, as far as it came.
#[derive(Default)]
struct Known {
    node: String,
    join: Option<String>,
    key: Option<String>,
}

/// What a proof says.
pub(super) struct Proven {
    pub(super) name: Name,
    pub(super) join: Option<JoinEntry>,
    /// Addresses in the certificate that was shown.
    pub(super) shown: Vec<IpAddr>,
}

/// How a name was proved, as far as addresses depend on it.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Certificate,
    Account,
    Join,
}

impl Kind {
    const fn of(proof: &Proof) -> Self {
        match proof {
            Proof::Certificate => Kind::Certificate,
            Proof::ServiceAccount(_) => Kind::Account,
            Proof::Join(_) => Kind::Join,
        }
    }
}

pub(super) fn check_denied(name: &Name, trust: &Snapshot) -> Result<(), No> {
    let cluster = trust.identity().cluster.clone();
    let identity = Identity::new(cluster, Role::Agent, name.clone());
    match trust.agents.deny_list().has_identity(&identity) {
        true => {
            let text = format!("{identity} is denied until an operator lifts that");
            Err(No::new(Refusal::Denied, text))
        }
        false => Ok(()),
    }
}

impl Desk {
    /// Answers the request in `body`, from a peer that showed `chain`.
    pub async fn answer(
        &self,
        body: &[u8],
        chain: &[CertificateDer<'static>],
        address: SocketAddr,
        now: SystemTime,
    ) -> EnrolReply {
        let begun = Instant::now();
        let mut known = Known::default();
        let request = EnrolRequest::decode(body)
            .map_err(|error| No::new(Refusal::Malformed, error.to_string()));
        let proof = request.as_ref().map_or("none", |one| one.proof.as_str());
        let done = match &request {
            Ok(request) => self.decide(request, chain, now, &mut known).await,
            Err(no) => Err(no.clone()),
        };
        let (reply, outcome) = match done {
            Ok((issued, chain)) => {
                let ders = chain.iter().map(|der| der.to_vec()).collect();
                (EnrolReply::Issued(ders), Ok(issued))
            }
            Err(No { refusal, text }) => {
                let outcome = Err((refusal, text.clone()));
                (EnrolReply::Refused { refusal, text }, outcome)
            }
        };
        let event = EnrolmentEvent {
            address: Some(address),
            request: None,
            proof,
            node: known.node,
            join: known.join,
            key: known.key,
            outcome,
        };
        self.told.answered(event, Some(begun.elapsed()));
        reply
    }

    async fn decide(
        &self,
        request: &EnrolRequest,
        chain: &[CertificateDer<'static>],
        now: SystemTime,
        known: &mut Known,
    ) -> Result<(IssuedFacts, Vec<CertificateDer<'static>>), No> {
        if let Some(asked) = &request.name {
            known.node = asked.to_string();
        }
        if let Some(why) = self.told.obstacle() {
            let text = format!("nothing is issued that cannot be recorded: {why}");
            return Err(No::new(Refusal::Unavailable, text));
        }
        let signing = Request::parse_der(&request.csr)
            .map_err(|error| No::new(Refusal::SigningRequest, error.to_string()))?;
        let key = signing.public_key().hash();
        known.key = Some(hex(&key));
        let trust = self.trust.snapshot();
        let proven = self.prove(request, chain, &trust, now).await?;
        let name = proven.name.clone();
        known.join = proven.join.as_ref().map(|entry| entry.id.to_string());
        if let Some(asked) = request.name.as_ref().filter(|asked| **asked != name) {
            let text = format!("the proof is {name}'s, not {asked}'s");
            known.node = name.to_string();
            return Err(No::new(Refusal::OtherName, text));
        }
        known.node = name.to_string();
        check_denied(&name, &trust)?;
        let _reserved = self.names.reserve(&name)?;
        self.check_held(&name, &key, &trust, now)?;
        match &request.proof {
            Proof::Join(_) => self.check_untaken(&name, &key, &trust, now)?,
            Proof::ServiceAccount(_) => self.check_beside(&name, &key, &trust, false, now)?,
            Proof::Certificate => {}
        }
        let ips = self
            .addresses(&proven, Kind::of(&request.proof), now)
            .await?;
        if let Proof::ServiceAccount(token) = &request.proof
            && let Some(accounts) = &self.accounts
        {
            accounts.claim(token, key, now)?;
        }
        if let (Some(joins), Some(entry)) = (&self.joins, proven.join) {
            let (joins, name) = (Arc::clone(joins), name.clone());
            let spending =
                tokio::task::spawn_blocking(move || joins.spend(&entry, &name, &key, now));
            spending
                .await
                .map_err(|_| No::new(Refusal::Unavailable, "the server failed"))??;
        }
        self.issue(name, ips, signing.public_key(), self.life, now)
            .await
    }

    /// Which node it is.
    async fn prove(
        &self,
        request: &EnrolRequest,
        chain: &[CertificateDer<'static>],
        trust: &Snapshot,
        now: SystemTime,
    ) -> Result<Proven, No> {
        let off = |what: &str| {
            let text = format!("this server takes no {what}");
            No::new(Refusal::ProofOff, text)
        };
        match &request.proof {
            Proof::Certificate => {
                if chain.is_empty() {
                    let text = "no certificate was shown, and no token";
                    return Err(No::new(Refusal::NoCertificate, text));
                }
                // Once more: the handshake may lie behind a reload.
                let peer = trust.agents.verify(chain, now).map_err(|error| {
                    let refusal = match error {
                        towline_pki::PeerError::Denied { .. } => Refusal::Denied,
                        _ => Refusal::NoCertificate,
                    };
                    No::new(refusal, error.to_string())
                })?;
                Ok(Proven {
                    name: peer.identity().name.clone(),
                    join: None,
                    shown: peer.leaf().ip_sans.clone(),
                })
            }
            Proof::ServiceAccount(token) => {
                let accounts = self.accounts.as_ref();
                let accounts = accounts.ok_or_else(|| off("service-account tokens"))?;
                let _turn = self.asking.acquire().await.ok();
                Ok(Proven {
                    name: accounts.node_of(token).await?,
                    join: None,
                    shown: Vec::new(),
                })
            }
            Proof::Join(token) => {
                let joins = self.joins.as_ref().ok_or_else(|| off("join tokens"))?;
                let cluster = &trust.identity().cluster;
                let (entry, name) = joins.find(token, request.name.as_ref(), cluster, now)?;
                Ok(Proven {
                    name,
                    join: Some(entry),
                    shown: Vec::new(),
                })
            }
        }
    }

    pub(super) async fn addresses(
        &self,
        proven: &Proven,
        kind: Kind,
        now: SystemTime,
    ) -> Result<Vec<IpAddr>, No> {
        let looked = {
            let _turn = self.asking.acquire().await.ok();
            self.nodes.look(&proven.name).await
        };
        let given = proven.join.as_ref().map(|entry| entry.ips.clone());
        let given = given.unwrap_or_default();
        let (mut ips, claimed) = match (looked, kind) {
            (Ok(Looked::Addresses(found)), _) => (found, true),
            // A renewal goes on with what was found before; the API may be away for a while.
            (Ok(Looked::Nothing) | Err(_), Kind::Certificate) => (proven.shown.clone(), false),
            (Ok(Looked::NoNode), Kind::Certificate | Kind::Account) => {
                let text = format!("there is no Node {} any more", proven.name);
                return Err(No::new(Refusal::NoNode, text));
            }
            (Err(no), Kind::Account) => return Err(no),
            // Of a join token the Node may register later.
            (Ok(Looked::Nothing), Kind::Account) | (_, Kind::Join) => (Vec::new(), false),
        };
        let (name, nodes, told) = (&proven.name, &self.nodes, &self.told);
        let all: Vec<IpAddr> = ips.iter().chain(&given).copied().collect();
        self.check_free(name, &all, now).await?;
        if claimed {
            let held = |ip| {
                let by_word = given.contains(&ip) || proven.shown.contains(&ip);
                by_word || self.names.holds(name, ip, now)
            };
            ips = nodes.settle(name, ips, held, kind, told).await?;
        }
        nodes.look_at_given(name, &given, told);
        ips.extend(given);
        ips.sort_unstable();
        ips.dedup();
        ips.truncate(limits::LIST_ITEMS);
        Ok(ips)
    }

    /// Neither a link nor a certificate of another name has one of these addresses.
    pub(super) async fn check_free(
        &self,
        name: &Name,
        ips: &[IpAddr],
        now: SystemTime,
    ) -> Result<(), No> {
        let (names, told) = (&self.names, &self.told);
        self.nodes.check_free(name, ips, names, told, now).await
    }
}
