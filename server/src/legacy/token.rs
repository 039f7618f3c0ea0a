//! Whether the token of a legacy agent is one of the service account that agents run as.
//!
//! The texts are those that Konnectivity's agents log, word for word.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::Semaphore;
use towline_link::kube::review::{self, Verdict};
use towline_link::kube::{Client, KubeError};
use towline_link::process::shares::{Shares, network};
use towline_proto::konnectivity::BEARER;
use towline_proto::limits;

/// Which tokens are good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRule {
    /// `--agent-namespace`.
    pub namespace: String,
    /// `--agent-service-account`.
    pub service_account: String,
    /// `--authentication-audience`.
    pub audience: String,
}

/// Why a token, or what stands in its place, is refused.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// No `Authorization`.
    #[error("Authentication context was not found in metadata")]
    Missing,
    /// More than one.
    #[error("too many ({0}) tokens are received")]
    Many(usize),
    /// Something else than a bearer token.
    #[error("received token does not have \"{BEARER}\" prefix")]
    Prefix,
    /// The API was not asked, or did not answer.
    #[error("Failed to validate authentication token, err:Failed to authenticate request. err:{0}")]
    Api(#[from] KubeError),
    /// It took too long.
    #[error(
        "Failed to validate authentication token, err:Failed to authenticate request. err:no answer within {} s",
        limits::LEGACY_ADMIT.as_secs()
    )]
    Late,
    /// The API said no, or named somebody else.
    #[error("Failed to validate authentication token, err:lookup failed: {0}")]
    Lookup(Lookup),
}

/// What is wrong with the API's verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The API's own words.
    Said(String),
    /// Wrong, expired, or for another audience.
    Invalid,
    /// Not four words.
    UserFormat,
    /// A user that is no service account.
    NoServiceAccount,
    /// Another namespace: found, expected.
    Namespace(String, String),
    /// Another service account: found, expected.
    ServiceAccount(String, String),
}

impl fmt::Display for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lookup::Said(text) => f.write_str(text),
            Lookup::Invalid => f.write_str("service account jwt not valid"),
            Lookup::UserFormat => f.write_str("unexpected username format"),
            Lookup::NoServiceAccount => f.write_str("username returned is not a service account"),
            Lookup::Namespace(found, expected) => write!(
                f,
                "incoming request from {found:?} namespace. Expected {expected:?}"
            ),
            Lookup::ServiceAccount(found, expected) => write!(
                f,
                "incoming request from {found:?} service account. Expected {expected:?}"
            ),
        }
    }
}

impl TokenError {
    /// The word for metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            TokenError::Missing => "no-token",
            TokenError::Many(_) => "many-tokens",
            TokenError::Prefix => "no-bearer",
            TokenError::Api(_) => "review-failed",
            TokenError::Late => "review-late",
            TokenError::Lookup(_) => "bad-token",
        }
    }
}

/// Asks the Kubernetes API about tokens.
#[derive(Clone, Debug)]
pub struct Reviewer {
    client: Client,
    rule: TokenRule,
    /// Whoever reaches the port can make us ask the API; so many at once.
    places: Arc<Semaphore>,
    shares: Shares<IpAddr>,
}

impl Reviewer {
    /// A judge that asks this client's API.
    pub fn new(client: Client, rule: TokenRule) -> Self {
        Self {
            client,
            rule,
            places: Arc::new(Semaphore::new(limits::LEGACY_REVIEWS)),
            shares: Shares::new(limits::LEGACY_REVIEWS_PER_ADDRESS),
        }
    }

    /// Judges the values of the `authorization` header of a call from this address.
    pub async fn review(&self, values: &[&[u8]], from: IpAddr) -> Result<(), TokenError> {
        let token = bearer(values)?;
        let audiences = [self.rule.audience.clone()];
        let asking = async {
            let _share = self.shares.wait(&network(from)).await;
            // The semaphore is never closed; if it were, there would be no bound and no harm.
            let _place = self.places.acquire().await.ok();
            review::token(&self.client, token, &audiences).await
        };
        let verdict = tokio::time::timeout(limits::LEGACY_ADMIT, asking)
            .await
            .map_err(|_| TokenError::Late)??;
        check(&verdict, &self.rule).map_err(TokenError::Lookup)
    }

    /// What tokens must be.
    pub fn rule(&self) -> &TokenRule {
        &self.rule
    }
}

fn bearer<'a>(values: &[&'a [u8]]) -> Result<&'a str, TokenError> {
    let one = match values {
        [] => return Err(TokenError::Missing),
        [one] => one,
        more => return Err(TokenError::Many(more.len())),
    };
    // A token that is not text is no token of the API's.
    let text = std::str::from_utf8(one).map_err(|_| TokenError::Prefix)?;
    let token = text.strip_prefix(BEARER).ok_or(TokenError::Prefix)?;
    match token.len() <= limits::KUBE_TOKEN_BYTES {
        true => Ok(token),
        false => Err(TokenError::Lookup(Lookup::Invalid)),
    }
}

fn check(verdict: &Verdict, rule: &TokenRule) -> Result<(), Lookup> {
    let shown = |text: &str| text.chars().take(limits::FLAG_VALUE_BYTES).collect();
    if !verdict.error.is_empty() {
        let said: String = verdict
            .error
            .chars()
            .take(limits::KUBE_TEXT_BYTES)
            .collect();
        return Err(Lookup::Said(said));
    }
    if !verdict.authenticated {
        return Err(Lookup::Invalid);
    }
    let words: Vec<&str> = verdict.user.username.split(':').collect();
    let [system, kind, namespace, account] = words[..] else {
        return Err(Lookup::UserFormat);
    };
    if system != "system" || kind != "serviceaccount" {
        return Err(Lookup::NoServiceAccount);
    }
    if namespace != rule.namespace {
        return Err(Lookup::Namespace(shown(namespace), rule.namespace.clone()));
    }
    if account != rule.service_account {
        return Err(Lookup::ServiceAccount(
            shown(account),
            rule.service_account.clone(),
        ));
    }
    // An authenticator that knows nothing of audiences returns none, and the token then is for
    // the API server itself and for whoever else was meant by its audience.
    if !verdict.audiences.contains(&rule.audience) {
        return Err(Lookup::Invalid);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use towline_link::kube::review::User;

    fn rule() -> TokenRule {
        TokenRule {
            namespace: "kube-system".to_owned(),
            service_account: "konnectivity-agent".to_owned(),
            audience: "system:konnectivity-server".to_owned(),
        }
    }

    fn verdict(username: &str) -> Verdict {
        Verdict {
            authenticated: true,
            user: User {
                username: username.to_owned(),
                ..User::default()
            },
            audiences: vec![rule().audience],
            error: String::new(),
        }
    }

    #[test]
    fn only_that_service_account_is_an_agent() {
        let good = "system:serviceaccount:kube-system:konnectivity-agent";
        assert_eq!(check(&verdict(good), &rule()), Ok(()));
        for (username, text) in [
            ("alice", "unexpected username format"),
            ("system:serviceaccount:a:b:c", "unexpected username format"),
            (
                "system:node:kube-system:konnectivity-agent",
                "username returned is not a service account",
            ),
            (
                "system:serviceaccount:default:konnectivity-agent",
                "incoming request from \"default\" namespace. Expected \"kube-system\"",
            ),
            (
                "system:serviceaccount:kube-system:x",
                "incoming request from \"x\" service account. Expected \"konnectivity-agent\"",
            ),
        ] {
            let error = check(&verdict(username), &rule()).unwrap_err();
            assert_eq!(error.to_string(), text, "{username}");
        }
    }

    #[test]
    fn a_verdict_that_says_no_is_no() {
        let good = || verdict("system:serviceaccount:kube-system:konnectivity-agent");
        let unauthenticated = Verdict {
            authenticated: false,
            ..good()
        };
        assert_eq!(check(&unauthenticated, &rule()), Err(Lookup::Invalid));
        let failed = Verdict {
            error: "token expired".to_owned(),
            ..good()
        };
        let error = TokenError::Lookup(check(&failed, &rule()).unwrap_err());
        assert_eq!(
            error.to_string(),
            "Failed to validate authentication token, err:lookup failed: token expired"
        );
        for audiences in [vec![], vec!["https://kubernetes.default".to_owned()]] {
            let other = Verdict {
                audiences,
                ..good()
            };
            assert_eq!(check(&other, &rule()), Err(Lookup::Invalid));
        }
    }

    #[test]
    fn the_header_holds_one_bearer_token() {
        assert_eq!(bearer(&[b"Bearer abc"]).unwrap(), "abc");
        for (values, text) in [
            (&[][..], "Authentication context was not found in metadata"),
            (
                &[&b"Bearer a"[..], b"Bearer b"],
                "too many (2) tokens are received",
            ),
            (
                &[&b"bearer a"[..]],
                "received token does not have \"Bearer \" prefix",
            ),
        ] {
            assert_eq!(bearer(values).unwrap_err().to_string(), text);
        }
    }
}
