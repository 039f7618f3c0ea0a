//! The rules for agents' own signing requests, under a signer name of ours: who may enrol at the
//! server's door by the token of its pod may ask here, and is judged by the same rules.
//!
//! The Kubernetes API has written into the request who made it. That has to be the agents' service
//! account, bound to a pod and a node; the request has to be for that node, for TLS clients alone;
//! the identity must not be denied, the addresses must be free. What can never become right is
//! denied, so that whoever asked reads why. Only the key of a request is signed.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use towline_link::kube::csr::SigningRequest;
use towline_link::kube::review::User;
use towline_pki::agent_request::AgentRequest;
use towline_pki::seal::hex;
use towline_pki::{PublicKey, pem};
use towline_proto::enrol::Refusal as Word;
use towline_proto::id::Name;
use towline_proto::limits;

use super::office::{Office, Refusal, Signed, Subject, Texts, Verdict};
use crate::audit::enrolment::{EnrolmentEvent, IssuedFacts};
use crate::enrol::account::NODE_NAME;
use crate::enrol::{Desk, No};

/// How it is called where enrolments are counted and recorded.
pub const PROOF: &str = "signing-request";

/// Which refusals of enrolment a request can meet, their words in conditions, and what to do.
const WORDS: [(Word, &str, &str); 10] = [
    (
        Word::ServiceAccount,
        "ServiceAccount",
        "only agents ask for this signer: run them as --enrol-service-account of the servers says",
    ),
    (
        Word::Unbound,
        "Unbound",
        "mount the token as a projected volume (serviceAccountToken), and ask from a pod that runs",
    ),
    (
        Word::NoNode,
        "NoNode",
        "the agent asks again; look whether the node was removed",
    ),
    (
        Word::OtherName,
        "OtherNode",
        "an agent asks for its own node only: set --node-name from spec.nodeName, or look at what \
         runs on the node that asks",
    ),
    (
        Word::Denied,
        "DenyListed",
        "a node that is denied gets no certificate until `towline-pki revoke --lift`, or until it \
         is taken off the list",
    ),
    (
        Word::AddressTaken,
        "AddressTaken",
        "find out which of the two nodes has it; the agent asks again",
    ),
    (
        Word::NameTaken,
        "NameTaken",
        "the node's agent lives and has a key: look who else has the token of its pod",
    ),
    (
        Word::Replayed,
        "Replayed",
        "the agent asks again; if it did not lose its key, look who else has the token of its pod",
    ),
    (Word::Busy, "Busy", "the request is looked at again"),
    (
        Word::Unavailable,
        "Unavailable",
        "see the server's log; the request is looked at again",
    ),
];

/// What a sound request is for.
#[derive(Clone, Debug)]
pub struct Asked {
    name: Name,
    key: PublicKey,
    ips: Vec<IpAddr>,
    life: Duration,
}

/// See the head of this file.
pub struct AgentOffice {
    signer: String,
    desk: Arc<Desk>,
    /// What was signed and is not in its request yet, by the request's uid: a write that fails again
    /// and again makes no certificate each time.
    unwritten: Mutex<HashMap<String, (Vec<IpAddr>, Signed)>>,
}

impl AgentOffice {
    /// For requests with this signer name, by the rules and with the authority of this desk.
    pub fn new(signer: String, desk: Arc<Desk>) -> Self {
        Self {
            signer,
            desk,
            unwritten: Mutex::default(),
        }
    }

    fn unwritten(&self) -> MutexGuard<'_, HashMap<String, (Vec<IpAddr>, Signed)>> {
        self.unwritten
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What was signed for this very request, while it is what would be signed now.
    fn signed_before(&self, uid: &str, sound: &Asked, now: SystemTime) -> Option<Signed> {
        let unwritten = self.unwritten();
        let (ips, signed) = unwritten.get(uid)?;
        let fresh = signed.not_after > now + sound.life / 2;
        (fresh && *ips == sound.ips).then(|| signed.clone())
    }

    fn keep_unwritten(&self, uid: &str, sound: &Asked, signed: &Signed) {
        let mut unwritten = self.unwritten();
        if unwritten.len() >= limits::CSR_UNWRITTEN {
            unwritten.clear();
        }
        unwritten.insert(uid.to_owned(), (sound.ips.clone(), signed.clone()));
    }

    async fn rules(&self, request: &SigningRequest) -> Result<Asked, Verdict<Asked>> {
        let never = |word, cause, fix| Verdict::Never(Refusal { word, cause, fix });
        let spec = &request.spec;
        let user = user(request);
        let node = self.desk.node_of_user(&user).await.map_err(refused)?;
        let fix = "look at what made it: towline-agent --enrol kubernetes makes such a request";
        let text = request.request().ok_or_else(|| {
            let cause = "it holds no signing request that can be read".into();
            never("Unreadable", cause, fix)
        })?;
        let asked = AgentRequest::parse(&text, &self.desk.cluster())
            .map_err(|refusal| never(refusal.word(), refusal.to_string(), fix))?;
        if *asked.name() != node {
            let text = format!("it is for node {}, and node {node} asks", asked.name());
            return Err(refused(No::new(Word::OtherName, text)));
        }
        check_usages(&spec.usages).map_err(Verdict::Never)?;
        let life = life(spec.expiration_seconds, self.desk.life).map_err(Verdict::Never)?;
        let key = asked.public_key().clone();
        let ips = self.desk.may_have(&user, &node, &key, SystemTime::now());
        Ok(Asked {
            ips: ips.await.map_err(refused)?,
            key,
            name: node,
            life,
        })
    }

    /// Counted and recorded as enrolments at the door are.
    fn tell(
        &self,
        request: &SigningRequest,
        node: &str,
        key: Option<String>,
        outcome: Result<IssuedFacts, (Word, String)>,
        took: Option<Duration>,
    ) {
        let event = EnrolmentEvent {
            address: None,
            request: Some(request.metadata.name.clone()),
            proof: PROOF,
            node: node.to_owned(),
            join: None,
            key,
            outcome,
        };
        self.desk.told.answered(event, took);
    }
}

/// Who the API says made it.
fn user(request: &SigningRequest) -> User {
    let spec = &request.spec;
    User {
        username: spec.username.clone(),
        uid: spec.uid.clone(),
        groups: spec.groups.clone(),
        extra: spec.extra.clone(),
    }
}

/// Exactly what an agent's certificate is for.
fn check_usages(usages: &[String]) -> Result<(), Refusal> {
    let mut given: Vec<&str> = usages.iter().map(String::as_str).collect();
    given.sort_unstable();
    match given[..] {
        ["client auth", "digital signature"] => Ok(()),
        _ => Err(Refusal {
            word: "Usages",
            cause: "its usages are not exactly digital signature and client auth".into(),
            fix: "look at what made it: an agent asks for these",
        }),
    }
}

/// What is asked for, at most our own; shorter than the least is refused.
fn life(seconds: Option<i32>, ours: Duration) -> Result<Duration, Refusal> {
    let Some(seconds) = seconds else {
        return Ok(ours);
    };
    let asked = u64::try_from(seconds).map(Duration::from_secs);
    match asked {
        Ok(asked) if asked >= limits::SERVING_LIFE_LEAST => Ok(asked.min(ours)),
        _ => Err(Refusal {
            word: "Expiration",
            cause: format!(
                "it asks for a life of {seconds} s; {} s are the least",
                limits::SERVING_LIFE_LEAST.as_secs()
            ),
            fix: "ask for a longer life, or for none",
        }),
    }
}

/// A refusal of enrolment in the words of conditions.
fn put(no: No) -> Refusal {
    let found = WORDS.iter().find(|(word, ..)| *word == no.refusal);
    let (_, word, fix) = found.unwrap_or(&WORDS[0]);
    Refusal {
        word,
        cause: no.text,
        fix,
    }
}

fn refused<S>(no: No) -> Verdict<S> {
    match no.refusal.is_temporary() {
        true => Verdict::NotYet(put(no)),
        false => Verdict::Never(put(no)),
    }
}

/// The node that the API says who asked is bound to; for showing only.
fn said_node(request: &SigningRequest) -> Option<&str> {
    match request.spec.extra.get(NODE_NAME).map(Vec::as_slice) {
        Some([one]) if !one.is_empty() => Some(one),
        _ => None,
    }
}

impl Office for AgentOffice {
    type Sound = Asked;

    fn signer(&self) -> &str {
        &self.signer
    }

    fn word(&self) -> &'static str {
        "agent"
    }

    fn texts(&self) -> &'static Texts {
        &Texts {
            approved: "this is the agent of node",
            foreign: "somebody else signs these requests too, and only Towline's servers may: see \
                      who has the verb sign on this signer name",
            unsigned: "",
            manifest: "server/deploy/enrol-signer.yaml",
        }
    }

    /// All agents are one user; each node has its own share.
    fn owner<'a>(&self, request: &'a SigningRequest) -> &'a str {
        said_node(request).unwrap_or(&request.spec.username)
    }

    fn node<'a>(&self, request: &'a SigningRequest) -> Option<&'a str> {
        said_node(request)
    }

    async fn judge(&self, request: &SigningRequest) -> Verdict<Asked> {
        match self.rules(request).await {
            Ok(sound) => Verdict::Sound(sound),
            Err(verdict) => verdict,
        }
    }

    fn subject(&self, sound: &Asked) -> Subject {
        Subject {
            node: sound.name.to_string(),
            names: sound.ips.iter().map(ToString::to_string).collect(),
        }
    }

    fn signs(&self) -> bool {
        true
    }

    async fn sign(
        &self,
        request: &SigningRequest,
        sound: &Asked,
        now: SystemTime,
    ) -> Result<Signed, Refusal> {
        let uid = &request.metadata.uid;
        if let Some(signed) = self.signed_before(uid, sound, now) {
            return Ok(signed);
        }
        let desk = &self.desk;
        let _reserved = desk.names.reserve(&sound.name).map_err(put)?;
        // Two of one name may have been judged together.
        let user = user(request);
        desk.may_still(&user, &sound.name, &sound.key, now)
            .map_err(put)?;
        desk.note_used(&user, &sound.key, now);
        let (name, key) = (sound.name.clone(), &sound.key);
        let signed = desk.issue(name, sound.ips.clone(), key, sound.life, now);
        let (facts, chain) = signed.await.map_err(put)?;
        let signed = Signed {
            pem: pem::write_certificates(&chain),
            serial: facts.serial,
            not_after: facts.until,
        };
        self.keep_unwritten(uid, sound, &signed);
        Ok(signed)
    }

    fn is_ours(&self, text: &[u8]) -> bool {
        self.desk.is_ours(text, SystemTime::now())
    }

    fn signed(&self, request: &SigningRequest, sound: &Asked, signed: &Signed, took: Duration) {
        self.unwritten().remove(&request.metadata.uid);
        let facts = IssuedFacts {
            serial: signed.serial.clone(),
            until: signed.not_after,
            ips: sound.ips.clone(),
        };
        let key = Some(hex(&sound.key.hash()));
        self.tell(request, sound.name.as_str(), key, Ok(facts), Some(took));
    }

    fn refused(&self, request: &SigningRequest, refusal: &Refusal, took: Option<Duration>) {
        let found = WORDS.iter().find(|(_, word, _)| *word == refusal.word);
        let word = found.map_or(Word::SigningRequest, |(word, ..)| *word);
        let node = said_node(request).unwrap_or_default();
        let outcome = Err((word, refusal.cause.clone()));
        self.tell(request, node, None, outcome, took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usages_are_exactly_an_agents() {
        let check = |list: &[&str]| {
            let list: Vec<String> = list.iter().map(ToString::to_string).collect();
            check_usages(&list).is_ok()
        };
        assert!(check(&["client auth", "digital signature"]));
        assert!(check(&["digital signature", "client auth"]));
        for bad in [
            &[][..],
            &["client auth"],
            &["digital signature"],
            &["digital signature", "server auth"],
            &["digital signature", "client auth", "server auth"],
            &["digital signature", "client auth", "client auth"],
            &["digital signature", "client auth", "key encipherment"],
            &["any", "client auth"],
        ] {
            assert!(!check(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_life_is_at_most_ours_and_at_least_the_least() {
        let day = Duration::from_secs(86_400);
        let of = |seconds| life(seconds, day).map_err(|refusal| refusal.word);
        assert_eq!(of(None), Ok(day));
        assert_eq!(of(Some(600)), Ok(Duration::from_secs(600)));
        assert_eq!(of(Some(86_401)), Ok(day));
        assert_eq!(of(Some(i32::MAX)), Ok(day));
        for seconds in [599, 0, -1, i32::MIN] {
            assert_eq!(of(Some(seconds)), Err("Expiration"), "{seconds}");
        }
        // A server that issues for a minute does so here, too.
        let minute = Duration::from_secs(60);
        assert_eq!(life(Some(600), minute).map_err(|r| r.word), Ok(minute));
    }

    #[test]
    fn what_may_mend_itself_waits_and_the_rest_is_denied() {
        for (word, text, fix) in WORDS {
            let verdict = refused::<()>(No::new(word, "x"));
            let waits = matches!(verdict, Verdict::NotYet(_));
            assert_eq!(waits, word.is_temporary(), "{text}");
            assert!(!fix.is_empty());
        }
    }
}
