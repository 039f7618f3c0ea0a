//! Proof by a projected service-account token: the Kubernetes API says whose it is, for whom, and
//! to which pod and node it is bound.
//!
//! Nothing that was good is remembered: every token is reviewed every time, so one whose pod is
//! gone is worth nothing at once. What is remembered is for which key a token was used: it counts
//! for that key only, so a token that was copied off a node does not make a second holder of its
//! name beside the first. That memory is this process's own.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use towline_link::error::detail;
use towline_link::kube::review::{self, User, Verdict};
use towline_link::kube::{Client, KubeError, pod};
use towline_pki::join::token_hash;
use towline_proto::enrol::{Refusal, Token};
use towline_proto::id::Name;
use towline_proto::limits;

use super::No;

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const CREDENTIAL: &str = "authentication.kubernetes.io/credential-id";
pub(crate) const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Which tokens are good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountRule {
    /// The namespace of agents.
    pub namespace: String,
    /// Their service account.
    pub account: String,
    /// Our audience.
    pub audience: String,
}

/// What a good token is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    pod: Option<String>,
    uid: String,
    node: Option<String>,
}

/// Reads the API's verdict. Pure.
pub fn judge(verdict: &Verdict, rule: &AccountRule) -> Result<Bound, No> {
    let no = |refusal, text: String| Err(No::new(refusal, text));
    if !verdict.error.is_empty() {
        let said = detail(&verdict.error);
        return no(
            Refusal::BadToken,
            format!("the Kubernetes API says: {said}"),
        );
    }
    if !verdict.authenticated {
        return no(
            Refusal::BadToken,
            format!(
                "the Kubernetes API does not take the token: it has ended, is not of this cluster, or is not for audience {:?}",
                rule.audience
            ),
        );
    }
    // An authenticator that knows nothing of audiences returns none, and the token is for others.
    if !verdict.audiences.contains(&rule.audience) {
        return no(
            Refusal::Audience,
            format!("the token is not for audience {:?}", rule.audience),
        );
    }
    judge_user(&verdict.user, rule)
}

/// Reads whom the API found a caller to be. Pure.
pub fn judge_user(user: &User, rule: &AccountRule) -> Result<Bound, No> {
    let expected = format!("system:serviceaccount:{}:{}", rule.namespace, rule.account);
    if user.username != expected {
        let found = detail(&user.username);
        let text = format!("the token is of {found}, agents run as {expected}");
        return Err(No::new(Refusal::ServiceAccount, text));
    }
    // One value each, or it is not said.
    let extra = |key| match user.extra.get(key).map(Vec::as_slice) {
        Some([one]) if !one.is_empty() => Some(one.clone()),
        _ => None,
    };
    let Some(uid) = extra(POD_UID) else {
        let text = "the token is bound to no pod: it has to be a projected one (serviceAccountToken volume)";
        return Err(No::new(Refusal::Unbound, text));
    };
    Ok(Bound {
        pod: extra(POD_NAME),
        uid,
        node: extra(NODE_NAME),
    })
}

/// What a Pod has to be for a token that does not name its node. Pure.
pub fn judge_pod(pod: &pod::Pod, uid: &str, rule: &AccountRule) -> Result<String, No> {
    if pod.metadata.uid != uid {
        let text = "the pod of the token is gone; another one has its name";
        return Err(No::new(Refusal::Unbound, text));
    }
    if pod.spec.service_account_name != rule.account {
        let text = "the pod of the token runs as another service account";
        return Err(No::new(Refusal::ServiceAccount, text));
    }
    match pod.spec.node_name.is_empty() {
        true => Err(No::new(
            Refusal::Unbound,
            "the pod of the token has no node yet",
        )),
        false => Ok(pod.spec.node_name.clone()),
    }
}

/// What could not be asked.
pub fn unavailable(error: &KubeError) -> No {
    No::new(
        Refusal::Unavailable,
        format!("the Kubernetes API cannot be asked: {}", detail(error)),
    )
}

/// What makes a token this one: of a JWT what its issuer signed. The signature behind it can be
/// written in several ways that the API all takes: spare bits of the last letter, the second form of
/// an ECDSA signature.
pub fn signed_part(token: &str) -> &str {
    token.rsplit_once('.').map_or(token, |(signed, _)| signed)
}

/// What tells one token of a pod from the next, where the API says it.
fn credential(user: &User) -> Option<[u8; 32]> {
    let one = |key| match user.extra.get(key).map(Vec::as_slice) {
        Some([one]) if !one.is_empty() => Some(one.as_str()),
        _ => None,
    };
    let (credential, pod) = (one(CREDENTIAL)?, one(POD_UID)?);
    Some(token_hash(&format!("{pod} {credential}")))
}

/// Which key a token was used for.
#[derive(Debug, Default)]
struct Used {
    keys: HashMap<[u8; 32], [u8; 32]>,
    order: VecDeque<(SystemTime, [u8; 32])>,
}

impl Used {
    /// From now on it counts for this key.
    fn put(&mut self, token: [u8; 32], key: [u8; 32], now: SystemTime) {
        if !self.claim(token, key, now) {
            self.keys.insert(token, key);
        }
    }

    fn claim(&mut self, token: [u8; 32], key: [u8; 32], now: SystemTime) -> bool {
        let over = |at: SystemTime| {
            let age = now.duration_since(at).unwrap_or(Duration::ZERO);
            age >= limits::ENROL_TOKEN_MEMORY
        };
        while let Some((at, oldest)) = self.order.front()
            && (self.order.len() >= limits::ENROL_TOKENS || over(*at))
        {
            self.keys.remove(oldest);
            self.order.pop_front();
        }
        match self.keys.get(&token) {
            Some(first) => *first == key,
            None => {
                self.keys.insert(token, key);
                self.order.push_back((now, token));
                true
            }
        }
    }
}

/// Asks the API about tokens.
#[derive(Debug)]
pub struct Accounts {
    client: Client,
    rule: AccountRule,
    used: Mutex<Used>,
}

impl Accounts {
    /// By this rule.
    pub fn new(client: Client, rule: AccountRule) -> Self {
        Self {
            client,
            rule,
            used: Mutex::default(),
        }
    }

    /// The node whose pod holds this token.
    pub async fn node_of(&self, token: &Token) -> Result<Name, No> {
        let audiences = [self.rule.audience.clone()];
        let asked = review::token(&self.client, token.expose(), &audiences).await;
        let verdict = asked.map_err(|error| unavailable(&error))?;
        self.node_of_bound(judge(&verdict, &self.rule)?).await
    }

    /// The node of whom the API found a caller to be.
    pub async fn node_of_user(&self, user: &User) -> Result<Name, No> {
        self.node_of_bound(judge_user(user, &self.rule)?).await
    }

    async fn node_of_bound(&self, bound: Bound) -> Result<Name, No> {
        let node = match (bound.node, bound.pod) {
            (Some(node), _) => node,
            // Kubernetes before 1.30 does not say.
            (None, Some(name)) => {
                let read = pod::get(&self.client, &self.rule.namespace, &name).await;
                let pod = match read {
                    Ok(pod) => pod,
                    Err(error) if error.is_not_found() => {
                        return Err(No::new(Refusal::Unbound, "the pod of the token is gone"));
                    }
                    Err(error) => return Err(unavailable(&error)),
                };
                judge_pod(&pod, &bound.uid, &self.rule)?
            }
            (None, None) => {
                let text = "the token names neither its node nor its pod";
                return Err(No::new(Refusal::Unbound, text));
            }
        };
        node.parse().map_err(|_| {
            let text = format!("{} is no name of a node", detail(&node));
            No::new(Refusal::Unbound, text)
        })
    }

    /// Whether the token of a signing request was used for another key than this one.
    pub fn is_used(&self, user: &User, key: &[u8; 32]) -> bool {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let first = credential(user).and_then(|token| used.keys.get(&token));
        first.is_some_and(|first| first != key)
    }

    /// The token of a signing request was used for this key.
    pub fn note(&self, user: &User, key: [u8; 32], now: SystemTime) {
        if let Some(token) = credential(user) {
            let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            used.put(token, key, now);
        }
    }

    /// Whether the token may be used for this key; from then on for no other.
    pub fn claim(&self, token: &Token, key: [u8; 32], now: SystemTime) -> Result<(), No> {
        let token = token_hash(signed_part(token.expose()));
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        match used.claim(token, key, now) {
            true => Ok(()),
            false => Err(No::new(
                Refusal::Replayed,
                "this token was used for another key already: wait for the kubelet to renew it, or \
                 keep --state-dir over restarts",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule() -> AccountRule {
        AccountRule {
            namespace: "kube-system".into(),
            account: "towline-agent".into(),
            audience: "towline-enrol".into(),
        }
    }

    fn verdict() -> Verdict {
        let extra = [(POD_NAME, "p1"), (POD_UID, "u1"), (NODE_NAME, "n1")];
        Verdict {
            authenticated: true,
            audiences: vec!["towline-enrol".into()],
            error: String::new(),
            user: User {
                username: "system:serviceaccount:kube-system:towline-agent".into(),
                extra: extra
                    .into_iter()
                    .map(|(key, value)| (key.to_owned(), vec![value.to_owned()]))
                    .collect(),
                ..User::default()
            },
        }
    }

    fn refused(change: impl Fn(&mut Verdict)) -> Refusal {
        let mut changed = verdict();
        change(&mut changed);
        judge(&changed, &rule()).unwrap_err().refusal
    }

    #[test]
    fn a_token_must_be_good_ours_and_bound() {
        let bound = judge(&verdict(), &rule()).unwrap();
        assert_eq!(bound.node.as_deref(), Some("n1"));
        assert_eq!(refused(|v| v.authenticated = false), Refusal::BadToken);
        assert_eq!(refused(|v| v.error = "ended".into()), Refusal::BadToken);
        assert_eq!(refused(|v| v.audiences.clear()), Refusal::Audience);
        assert_eq!(
            refused(|v| v.audiences = vec!["https://kubernetes.default".into()]),
            Refusal::Audience
        );
        for name in [
            "system:serviceaccount:default:towline-agent",
            "system:serviceaccount:kube-system:other",
            "system:serviceaccount:kube-system:towline-agent:x",
            "system:node:n1",
            "",
        ] {
            assert_eq!(
                refused(|v| v.user.username = name.into()),
                Refusal::ServiceAccount
            );
        }
        assert_eq!(refused(|v| v.user.extra.clear()), Refusal::Unbound);
        let two = vec!["u1".to_owned(), "u2".to_owned()];
        let twice = |v: &mut Verdict| drop(v.user.extra.insert(POD_UID.into(), two.clone()));
        assert_eq!(refused(twice), Refusal::Unbound);
        let mut old = verdict();
        old.user.extra.remove(NODE_NAME);
        assert_eq!(judge(&old, &rule()).unwrap().node, None);
    }

    #[test]
    fn a_token_of_a_signing_request_is_known_by_its_number() {
        let mut user = verdict().user;
        assert_eq!(credential(&user), None);
        user.extra.insert(CREDENTIAL.into(), vec!["JTI=1".into()]);
        let first = credential(&user).unwrap();
        user.extra.insert(CREDENTIAL.into(), vec!["JTI=2".into()]);
        assert_ne!(credential(&user), Some(first));
        user.extra.insert(CREDENTIAL.into(), vec!["JTI=1".into()]);
        assert_eq!(credential(&user), Some(first));
        let two = vec!["JTI=1".to_owned(), "JTI=2".to_owned()];
        user.extra.insert(CREDENTIAL.into(), two);
        assert_eq!(credential(&user), None);
        // A renewal moves it to the new key.
        let (mut used, now) = (Used::default(), SystemTime::UNIX_EPOCH);
        used.put(first, [7; 32], now);
        used.put(first, [8; 32], now);
        assert_eq!(used.keys.get(&first), Some(&[8; 32]));
        assert_eq!(used.order.len(), 1);
    }

    #[test]
    fn a_pod_stands_in_for_the_node_name() {
        let pod = |uid: &str, account: &str, node: &str| pod::Pod {
            metadata: pod::PodMetadata { uid: uid.into() },
            spec: pod::PodSpec {
                node_name: node.into(),
                service_account_name: account.into(),
            },
        };
        let judged = |pod| judge_pod(&pod, "u1", &rule()).map_err(|no| no.refusal);
        assert_eq!(judged(pod("u1", "towline-agent", "n1")), Ok("n1".into()));
        assert_eq!(
            judged(pod("u2", "towline-agent", "n1")),
            Err(Refusal::Unbound)
        );
        assert_eq!(
            judged(pod("u1", "other", "n1")),
            Err(Refusal::ServiceAccount)
        );
        assert_eq!(
            judged(pod("u1", "towline-agent", "")),
            Err(Refusal::Unbound)
        );
    }

    #[test]
    fn a_token_counts_for_one_key_until_it_is_forgotten() {
        let mut used = Used::default();
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        assert!(used.claim([1; 32], [7; 32], start));
        assert!(used.claim([1; 32], [7; 32], start));
        assert!(!used.claim([1; 32], [8; 32], start));
        let last = start + limits::ENROL_TOKEN_MEMORY - Duration::from_secs(1);
        assert!(!used.claim([1; 32], [8; 32], last));
        assert!(used.claim([1; 32], [8; 32], last + Duration::from_secs(1)));
        for number in 0..limits::ENROL_TOKENS + 10 {
            let mut token = [0; 32];
            token[..8].copy_from_slice(&number.to_be_bytes());
            used.claim(token, [1; 32], last);
        }
        assert!(used.keys.len() <= limits::ENROL_TOKENS);
    }
}
