//! What is decided about the requests for one signer. An [`Office`] is a set of rules, and
//! perhaps a key; the desk does the rest.

use std::time::{Duration, SystemTime};

use towline_link::kube::csr::SigningRequest;
use towline_pki::kubelet::NODE_USER;

/// Why a request is not approved: one word, what is wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For metrics and conditions, out of a closed set.
    pub word: &'static str,
    /// What is wrong; foreign text in it is escaped and bounded.
    pub cause: String,
    /// What to do.
    pub fix: &'static str,
}

/// What a request comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<S> {
    /// It may be approved, and this is what it is for.
    Sound(S),
    /// It can never become right.
    Never(Refusal),
    /// It is not right now, and may become so without changing.
    NotYet(Refusal),
    /// Somebody else's to decide.
    NotOurs(Refusal),
}

/// What was found of a request that is sound, for the trail.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// The node.
    pub node: String,
    /// Names and addresses.
    pub names: Vec<String>,
}

/// A certificate, as PEM with its issuers, and what the trail says of it.
#[derive(Clone, Debug)]
pub struct Signed {
    /// The certificate and its issuers.
    pub pem: String,
    /// Its serial number.
    pub serial: String,
    /// When it ends.
    pub not_after: SystemTime,
}

/// What is said of the requests for one signer, and differs from others.
#[derive(Debug)]
pub struct Texts {
    /// Of an approval; the node's name is put behind it.
    pub approved: &'static str,
    /// When somebody else's signature is found.
    pub foreign: &'static str,
    /// When nobody signs what was approved; empty where we do.
    pub unsigned: &'static str,
    /// Which file gives us our rights.
    pub manifest: &'static str,
}

/// Rules for one signer.
pub trait Office: Send + Sync + 'static {
    /// What a sound request was found to be.
    type Sound: Send + Sync;

    /// The signer's name.
    fn signer(&self) -> &str;
    /// The word for metrics and logs.
    fn word(&self) -> &'static str;
    /// What is said of its requests.
    fn texts(&self) -> &'static Texts;
    /// Among whom the room for waiting requests is shared: who asks.
    fn owner<'a>(&self, request: &'a SigningRequest) -> &'a str {
        &request.spec.username
    }
    /// The node that asks, by whose changes a request may become right.
    fn node<'a>(&self, request: &'a SigningRequest) -> Option<&'a str> {
        request.spec.username.strip_prefix(NODE_USER)
    }
    /// Decides, by what is known of nodes at this moment. Changes nothing.
    fn judge(&self, request: &SigningRequest) -> impl Future<Output = Verdict<Self::Sound>> + Send;
    /// Whom a sound request is for.
    fn subject(&self, sound: &Self::Sound) -> Subject;
    /// Whether we sign what is approved.
    fn signs(&self) -> bool;
    /// Signs a sound request.
    fn sign(
        &self,
        request: &SigningRequest,
        sound: &Self::Sound,
        now: SystemTime,
    ) -> impl Future<Output = Result<Signed, Refusal>> + Send;
    /// Whether the certificate in a request was signed by us, or by a server with our authority.
    fn is_ours(&self, pem: &[u8]) -> bool;
    /// What was signed is in the request now.
    /// It took this long since we first saw it.
    fn signed(
        &self,
        _request: &SigningRequest,
        _sound: &Self::Sound,
        _signed: &Signed,
        _took: Duration,
    ) {
    }
    /// A request was not approved, for the first time for this cause. How long it took, when that is
    /// its end.
    fn refused(&self, _request: &SigningRequest, _refusal: &Refusal, _took: Option<Duration>) {}
}

/// The life that a request asks for must lie within these.
pub(super) fn check_life(request: &SigningRequest) -> Result<(), Refusal> {
    use towline_proto::limits::{SERVING_LIFE_LEAST, SERVING_LIFE_MOST};
    let Some(seconds) = request.spec.expiration_seconds else {
        return Ok(());
    };
    let bounds = SERVING_LIFE_LEAST.as_secs()..=SERVING_LIFE_MOST.as_secs();
    match u64::try_from(seconds) {
        Ok(seconds) if bounds.contains(&seconds) => Ok(()),
        _ => Err(Refusal {
            word: "Expiration",
            cause: format!(
                "it asks for a life of {seconds} s; from {} s to {} days are approved",
                SERVING_LIFE_LEAST.as_secs(),
                SERVING_LIFE_MOST.as_secs() / 86_400
            ),
            fix: "ask for a life within these bounds, or for none",
        }),
    }
}
