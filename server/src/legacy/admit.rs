//! Who becomes a legacy agent: what it proved, then what it says of itself.

use std::fmt;
use std::net::SocketAddr;

use http::HeaderMap;
use rustls_pki_types::CertificateDer;
use towline_pki::chain;
use towline_proto::konnectivity::{
    AGENT_ID, AGENT_IDENTIFIERS, AUTHORIZATION, Identifiers, IdentifiersError,
};
use towline_proto::limits;

use super::stream::Announced;
use super::token::{Reviewer, TokenError, TokenRule};

/// What a legacy agent proved.
#[derive(Clone, Debug)]
pub enum Proof {
    /// It holds a certificate of `--cluster-ca-cert`.
    Certificate(Vec<CertificateDer<'static>>),
    /// It holds a token of the service account.
    Token(TokenRule),
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Proof::Certificate(chain) => match chain.first() {
                Some(leaf) => write!(f, "certificate of {:?}", chain::subject(leaf)),
                None => f.write_str("no certificate"),
            },
            Proof::Token(rule) => write!(f, "token of {}/{}", rule.namespace, rule.service_account),
        }
    }
}

/// Why a call does not become an agent. The texts are Konnectivity's.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// None or several ids.
    #[error("expected one agent ID in the context, got {0}")]
    Id(Values),
    /// Several sets of identifiers.
    #[error("expected at most one set of agent identifiers in the context, got {0}")]
    IdentifierSets(Values),
    /// Identifiers that do not parse.
    #[error("fail to parse url encoded string: {0}")]
    Identifiers(#[from] IdentifiersError),
    /// An id that is longer than any.
    #[error("agent ID is longer than {} bytes", limits::KONNECTIVITY_ID_BYTES)]
    LongId,
    /// Its token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Neither a certificate nor a rule for tokens: a defect.
    #[error("no proof of who this is")]
    NoProof,
}

impl AdmitError {
    /// The word for metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            AdmitError::Id(_) | AdmitError::LongId => "agent-id",
            AdmitError::IdentifierSets(_) | AdmitError::Identifiers(_) => "identifiers",
            AdmitError::Token(error) => error.as_str(),
            AdmitError::NoProof => "no-proof",
        }
    }
}

/// Values of one key as Go prints a list of texts, escaped and bounded.
#[derive(Debug)]
pub struct Values(String);

impl Values {
    fn of(values: &[&[u8]]) -> Self {
        let shown = values.iter().take(4).map(|value| {
            let value = &value[..value.len().min(limits::FLAG_VALUE_BYTES)];
            value.escape_ascii().to_string()
        });
        Self(format!("[{}]", shown.collect::<Vec<_>>().join(" ")))
    }
}

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn values<'a>(headers: &'a HeaderMap, key: &str) -> Vec<&'a [u8]> {
    let all = headers.get_all(key).iter();
    all.map(|value| value.as_bytes()).collect()
}

/// Judges a call by its metadata and the certificate of its connection, in Konnectivity's order.
pub async fn admit(
    headers: &HeaderMap,
    chain: &[CertificateDer<'static>],
    address: SocketAddr,
    reviewer: Option<&Reviewer>,
) -> Result<Announced, AdmitError> {
    let id = match &values(headers, AGENT_ID)[..] {
        [one] if one.len() <= limits::KONNECTIVITY_ID_BYTES => {
            one.escape_ascii().to_string().into_boxed_str()
        }
        [_] => return Err(AdmitError::LongId),
        other => return Err(AdmitError::Id(Values::of(other))),
    };
    let identifiers = match &values(headers, AGENT_IDENTIFIERS)[..] {
        [] => Identifiers::default(),
        [one] => Identifiers::parse(&String::from_utf8_lossy(one))?,
        more => return Err(AdmitError::IdentifierSets(Values::of(more))),
    };
    let proof = match reviewer {
        Some(reviewer) => {
            reviewer
                .review(&values(headers, AUTHORIZATION), address.ip())
                .await?;
            Proof::Token(reviewer.rule().clone())
        }
        None if chain.is_empty() => return Err(AdmitError::NoProof),
        None => Proof::Certificate(chain.to_vec()),
    };
    Ok(Announced {
        id,
        identifiers,
        proof,
        address,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (key, value) in list {
            headers.append(*key, value.parse().unwrap());
        }
        headers
    }

    async fn ask(list: &[(&'static str, &'static str)]) -> Result<Announced, AdmitError> {
        let chain = [CertificateDer::from(vec![0])];
        admit(&headers(list), &chain, ([127, 0, 0, 1], 1).into(), None).await
    }

    #[tokio::test]
    async fn metadata_is_judged_with_the_texts_of_the_reference() {
        for (list, text) in [
            (&[][..], "expected one agent ID in the context, got []"),
            (
                &[("agentid", "a"), ("agentid", "b")],
                "expected one agent ID in the context, got [a b]",
            ),
            (
                &[
                    ("agentid", "a"),
                    ("agentidentifiers", "host=x"),
                    ("agentidentifiers", "host=y"),
                ],
                "expected at most one set of agent identifiers in the context, got [host=x host=y]",
            ),
            (
                &[("agentid", "a"), ("agentidentifiers", "ipv4=%zz")],
                "fail to parse url encoded string: invalid URL escape \"%zz\"",
            ),
        ] {
            let error = ask(list).await.err().expect("a refusal");
            assert_eq!(error.to_string(), text);
        }
    }

    #[tokio::test]
    async fn an_agent_is_what_it_says_and_nothing_without_a_proof() {
        let list = [
            ("agentid", "n1"),
            ("agentidentifiers", "host=x&default-route=1"),
        ];
        let Ok(announced) = ask(&list).await else {
            panic!("an agent");
        };
        assert_eq!(&*announced.id, "n1");
        assert!(announced.identifiers.default_route);
        let nobody = admit(&headers(&list), &[], ([127, 0, 0, 1], 1).into(), None).await;
        assert!(matches!(nobody, Err(AdmitError::NoProof)));
    }
}
