//! Certificates by Kubernetes' own API (certificates.k8s.io): a signing request object with a
//! signer name of ours, made with the token of our pod, and signed by a server that watches for it.
//!
//! No connection to a server is needed for it; the API says to the server who we are. A request
//! that was not decided in time is waited for again at the next attempt, as long as its key is
//! the one that is asked with: an agent leaves no heap of objects behind. What is denied is told in
//! the words of the condition.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rustls_pki_types::CertificateDer;
use serde_json::Value;
use tokio::time::Instant;
use towline_link::error::detail;
use towline_link::kube::csr::{
    Condition, Decision, SignerName, SigningRequest, SigningRequests, encoded,
};
use towline_link::kube::watch::Event;
use towline_link::kube::{Client, KubeError};
use towline_pki::agent_request::AgentRequest;
use towline_pki::{Leaf, Request, RequestSpec, pem};
use towline_proto::id::{ClusterName, Name, Role};
use towline_proto::limits;

use super::flags::EnrolConfig;
use super::{EnrolError, Issuer, Obtained, Order};

/// How we prove who we are: the API knows by whose token the request was made.
const PROOF: &str = "signing-request";
/// Whom a certificate is from, in errors.
const FROM: &str = "the Kubernetes API";
/// Names of our objects begin so.
const PREFIX: &str = "towline-agent-";

/// A request that was made and not decided yet.
#[derive(Clone, Debug)]
struct Pending {
    key: [u8; 32],
    name: String,
}

/// See the module.
#[derive(Debug)]
pub struct KubernetesIssuer {
    node: Name,
    cluster: Option<ClusterName>,
    signer: SignerName,
    requests: SigningRequests,
    pending: Mutex<Option<Pending>>,
}

impl KubernetesIssuer {
    /// For this node, by this API.
    pub fn new(config: &EnrolConfig, node: Name, client: Client) -> Self {
        Self {
            node,
            cluster: config.cluster.clone(),
            signer: config.signer.clone(),
            requests: SigningRequests::new(client),
            pending: Mutex::default(),
        }
    }

    fn remember(&self, pending: Option<Pending>) {
        *self.pending.lock().unwrap_or_else(PoisonError::into_inner) = pending;
    }

    fn remembered(&self, key: [u8; 32]) -> Option<String> {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let same = pending.as_ref().filter(|pending| pending.key == key);
        same.map(|pending| pending.name.clone())
    }

    async fn create(&self, csr: &[u8], key: [u8; 32]) -> Result<SigningRequest, EnrolError> {
        let mut request = SigningRequest::default();
        let name = Value::String(PREFIX.to_owned());
        request.metadata.rest.insert("generateName".into(), name);
        request.spec.request = encoded(AgentRequest::to_pem(csr).as_bytes());
        request.spec.signer_name = self.signer.as_str().to_owned();
        request.spec.usages = vec!["digital signature".into(), "client auth".into()];
        let made = self.requests.create(&request).await.map_err(api)?;
        let name = made.metadata.name.clone();
        tracing::info!(
            request = name,
            signer = self.signer.as_str(),
            "a certificate is asked for"
        );
        self.remember(Some(Pending { key, name }));
        Ok(made)
    }

    /// The request as it is when somebody has decided.
    async fn decided(&self, mut request: SigningRequest) -> Result<SigningRequest, EnrolError> {
        let name = request.metadata.name.clone();
        let (first, longest) = limits::CSR_LOOK;
        let mut pause = first;
        loop {
            if is_decided(&request) {
                return Ok(request);
            }
            // A watch tells at once; where it may not be made, or ends, a look now and then does.
            let change = tokio::time::timeout(limits::CSR_AGAIN, self.change(&request));
            match change.await.unwrap_or(Ok(None)) {
                Ok(Some(changed)) => {
                    request = changed;
                    pause = first;
                    continue;
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(request = name, %error, "no watch"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
            match self.requests.get(&name).await {
                Ok(read) => request = read,
                Err(error) if error.is_not_found() => return Err(self.gone(name)),
                Err(error) => tracing::debug!(request = name, %error, "not read"),
            }
        }
    }

    /// The next state of the request; `None` when the watch ended in order.
    async fn change(&self, request: &SigningRequest) -> Result<Option<SigningRequest>, KubeError> {
        let name = &request.metadata.name;
        let mut watch = self.requests.watch(request).await?;
        while let Some(event) = watch.next().await? {
            match event {
                // A selector that an API server does not know of would select everything.
                Event::Is(changed) if changed.metadata.name == *name => return Ok(Some(changed)),
                Event::Was(gone) if gone.metadata.name == *name => return Ok(None),
                _ => {}
            }
        }
        Ok(None)
    }

    fn gone(&self, name: String) -> EnrolError {
        self.remember(None);
        EnrolError::Undecided {
            request: name,
            what: "was removed before anybody decided about it".into(),
        }
    }

    /// Waits for the request and takes what came of it.
    async fn await_answer(&self, request: SigningRequest) -> Result<Obtained, EnrolError> {
        let name = request.metadata.name.clone();
        let begun = Instant::now();
        let waiting = tokio::time::timeout(limits::CSR_WAIT, self.decided(request));
        let Ok(decided) = waiting.await else {
            return Err(undecided(name, &self.signer, begun.elapsed()));
        };
        let decided = decided?;
        // Whatever it is: it is of no use once more.
        self.remember(None);
        if let Some(condition) = refusal(&decided) {
            return Err(EnrolError::Decided {
                request: name,
                decision: condition.kind.clone(),
                reason: detail(&condition.reason),
                message: detail(&condition.message),
            });
        }
        let text = decided.certificate().unwrap_or_default();
        let chain = pem::certificates(&text).map_err(|error| EnrolError::Answer {
            server: FROM.to_owned(),
            what: format!("signing request {}: {error}", detail(&name)),
        })?;
        self.check(&chain)?;
        Ok(Obtained {
            chain,
            authorities: Vec::new(),
            proof: PROOF,
        })
    }

    /// Whether the certificate is this node's; that its key is ours is checked with the pair.
    fn check(&self, chain: &[CertificateDer<'static>]) -> Result<(), EnrolError> {
        let answer = |what: String| EnrolError::Answer {
            server: FROM.to_owned(),
            what,
        };
        let leaf = chain
            .first()
            .ok_or_else(|| answer("no certificate".into()))?;
        let leaf = Leaf::parse(leaf).map_err(|error| answer(error.to_string()))?;
        let found = leaf.identity;
        let cluster = self.cluster.as_ref();
        let expected = if found.name != self.node || found.role != Role::Agent {
            format!("node {}", self.node)
        } else if let Some(cluster) = cluster.filter(|cluster| **cluster != found.cluster) {
            format!("of cluster {cluster}")
        } else {
            return Ok(());
        };
        Err(EnrolError::Identity {
            server: FROM.to_owned(),
            found,
            expected,
        })
    }
}

#[async_trait]
impl Issuer for KubernetesIssuer {
    fn source(&self) -> &'static str {
        "kubernetes"
    }

    fn request(&self) -> RequestSpec {
        AgentRequest::spec(&self.node, self.cluster.as_ref())
    }

    fn waits(&self) -> Option<String> {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let name = &pending.as_ref()?.name;
        Some(format!(
            "signing request {} is not decided yet",
            detail(name)
        ))
    }

    async fn obtain(&self, order: &Order) -> Result<Obtained, EnrolError> {
        let key = Request::parse_der(&order.csr)?.public_key().hash();
        let request = match self.remembered(key) {
            Some(name) => match self.requests.get(&name).await {
                Ok(request) => request,
                // The API removes what nobody decides about.
                Err(error) if error.is_not_found() => self.create(&order.csr, key).await?,
                Err(error) => return Err(api(error)),
            },
            None => self.create(&order.csr, key).await?,
        };
        self.await_answer(request).await
    }
}

fn is_decided(request: &SigningRequest) -> bool {
    request.certificate().is_some() || refusal(request).is_some()
}

fn refusal(request: &SigningRequest) -> Option<&Condition> {
    let is_no = |condition: &&Condition| {
        let no = [Decision::Denied.as_str(), Decision::Failed.as_str()];
        condition.status == "True" && no.contains(&condition.kind.as_str())
    };
    request.status.conditions.iter().find(is_no)
}

fn undecided(request: String, signer: &SignerName, waited: Duration) -> EnrolError {
    EnrolError::Undecided {
        request,
        what: format!(
            "was neither signed nor denied within {} s: does a server run with \
             --enrol-signing-requests and signer name {}?",
            waited.as_secs(),
            signer.as_str()
        ),
    }
}

fn api(error: KubeError) -> EnrolError {
    let fix = match error.status() {
        Some(403) => {
            "; give the agents' service account the rights of agent/deploy/daemonset-enrol-kubernetes.yaml"
        }
        Some(401) => "; the token that this agent shows to the API is not taken",
        _ => "",
    };
    EnrolError::Api { source: error, fix }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_said_with_true_is_a_decision() {
        let mut request = SigningRequest::default();
        assert!(!is_decided(&request));
        request.decide(Decision::Approved, "", "");
        assert!(!is_decided(&request), "approved is not signed");
        for kind in ["Denied", "Failed"] {
            let mut request = SigningRequest::default();
            request.status.conditions = vec![Condition {
                kind: kind.into(),
                status: "False".into(),
                ..Condition::default()
            }];
            assert!(!is_decided(&request));
            request.status.conditions[0].status = "True".into();
            assert!(is_decided(&request));
        }
        let signed = SigningRequest {
            status: towline_link::kube::csr::SigningStatus {
                certificate: Some(encoded(b"x")),
                ..Default::default()
            },
            ..SigningRequest::default()
        };
        assert!(is_decided(&signed));
    }

    #[test]
    fn what_is_missing_is_named() {
        let text = undecided("r".into(), &SignerName::default(), limits::CSR_WAIT).to_string();
        assert!(text.contains("--enrol-signing-requests") && text.contains("towline.dev/agent"));
    }
}
