//! CertificateSigningRequests of certificates.k8s.io: read, made, approved or denied, signed.

use std::collections::BTreeMap;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use towline_proto::limits;
use towline_proto::target::HostName;

use super::client::{Client, escape};
use super::error::KubeError;
use super::follow::{Collection, Listed};
use super::lease::Metadata;
use super::watch::Watch;

const VERSION: &str = "certificates.k8s.io/v1";
const PATH: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

/// The signer of kubelets' serving certificates.
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";

/// The signer of agents' certificates, unless a flag says otherwise.
pub const AGENT_SIGNER: &str = "towline.dev/agent";

/// The name of a signer of ours: a domain and a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignerName(String);

/// A text that names no signer of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no signer name: use DOMAIN/PATH such as {AGENT_SIGNER}; those of kubernetes.io are not ours"
)]
pub struct NoSignerName(String);

impl SignerName {
    /// As the API has it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for SignerName {
    fn default() -> Self {
        Self(AGENT_SIGNER.to_owned())
    }
}

impl FromStr for SignerName {
    type Err = NoSignerName;

    fn from_str(text: &str) -> Result<Self, NoSignerName> {
        let wrong = || NoSignerName(text.chars().take(limits::FLAG_VALUE_BYTES).collect());
        let (domain, path) = text.split_once('/').ok_or_else(wrong)?;
        let host: HostName = domain.parse().map_err(|_| wrong())?;
        let reserved =
            host.as_str() == "kubernetes.io" || host.as_str().ends_with(".kubernetes.io");
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'/');
        let path_good = path.bytes().all(plain)
            && path
                .split('/')
                .all(|part| !part.is_empty() && !part.starts_with(['-', '.']));
        let whole = text.len() <= limits::SIGNER_NAME_BYTES && domain == host.as_str();
        match whole && path_good && !reserved {
            true => Ok(Self(text.to_owned())),
            false => Err(wrong()),
        }
    }
}

/// A CertificateSigningRequest. What we do not know of is kept, so that an update does not remove
/// it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SigningRequest {
    /// Name, version.
    #[serde(default)]
    pub metadata: Metadata,
    /// What is asked for, and by whom: the latter was written by the API server.
    #[serde(default)]
    pub spec: SigningSpec,
    /// What became of it.
    #[serde(default)]
    pub status: SigningStatus,
}

/// See [`SigningRequest::spec`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SigningSpec {
    /// PEM, in base64.
    #[serde(default)]
    pub request: String,
    /// Who is to sign.
    #[serde(default)]
    pub signer_name: String,
    /// The life that is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiration_seconds: Option<i32>,
    /// What the certificate is to be for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub usages: Vec<String>,
    /// Who asks.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub username: String,
    /// Unique over time.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Groups of who asks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// What else the API server knows of who asks.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
    /// The rest.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// See [`SigningRequest::status`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SigningStatus {
    /// Decisions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The certificate and its issuers: PEM, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// The rest.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// A decision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Condition {
    /// `Approved`, `Denied` or `Failed`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Always `True`.
    pub status: String,
    /// One word for machines.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The rest.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// The kinds of [`Condition`] that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// May be signed.
    Approved,
    /// Must not be signed.
    Denied,
    /// The signer cannot sign it.
    Failed,
}

impl Decision {
    /// As the API writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Decision::Approved => "Approved",
            Decision::Denied => "Denied",
            Decision::Failed => "Failed",
        }
    }
}

impl SigningRequest {
    /// Whether this was decided. Only a condition that is `True` counts.
    pub fn is(&self, decision: Decision) -> bool {
        let said = |condition: &Condition| {
            condition.kind == decision.as_str() && condition.status == "True"
        };
        self.status.conditions.iter().any(said)
    }

    /// The request: PEM. `None` when it is no base64, or longer than a request is.
    pub fn request(&self) -> Option<Vec<u8>> {
        decoded(&self.spec.request)
    }

    /// The certificate, when there is one: PEM, empty when it cannot be read.
    pub fn certificate(&self) -> Option<Vec<u8>> {
        let text = self.status.certificate.as_deref()?;
        (!text.is_empty()).then(|| decoded(text).unwrap_or_default())
    }

    /// Adds a decision.
    pub fn decide(&mut self, decision: Decision, reason: &str, message: &str) {
        self.status.conditions.push(Condition {
            kind: decision.as_str().to_owned(),
            status: "True".to_owned(),
            reason: reason.to_owned(),
            message: message.chars().take(limits::KUBE_TEXT_BYTES).collect(),
            rest: Map::new(),
        });
    }
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    // Four letters for three bytes.
    if text.len() / 4 * 3 > limits::CSR_REQUEST_BYTES {
        return None;
    }
    STANDARD.decode(text).ok()
}

impl Listed for SigningRequest {
    fn version(&self) -> &str {
        &self.metadata.resource_version
    }
}

#[derive(Serialize)]
struct Typed<'a> {
    #[serde(rename = "apiVersion")]
    version: &'static str,
    kind: &'static str,
    #[serde(flatten)]
    request: &'a SigningRequest,
}

impl<'a> From<&'a SigningRequest> for Typed<'a> {
    fn from(request: &'a SigningRequest) -> Self {
        Self {
            version: VERSION,
            kind: "CertificateSigningRequest",
            request,
        }
    }
}

/// The signing requests of a cluster.
#[derive(Clone, Debug)]
pub struct SigningRequests {
    client: Client,
}

impl SigningRequests {
    /// By this client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Those for one signer, for following.
    pub fn of(&self, signer: &str) -> Collection {
        let selector = format!("spec.signerName={signer}");
        Collection::new(self.client.clone(), PATH, &selector)
    }

    /// What happens to one of them after this state of it.
    pub async fn watch(
        &self,
        request: &SigningRequest,
    ) -> Result<Watch<SigningRequest>, KubeError> {
        let metadata = &request.metadata;
        let selector = escape(&format!("metadata.name={}", metadata.name));
        let version = escape(&metadata.resource_version);
        let path = format!("{PATH}?fieldSelector={selector}&resourceVersion={version}");
        self.client.watch(&path).await
    }

    /// One of them, as it is now.
    pub async fn get(&self, name: &str) -> Result<SigningRequest, KubeError> {
        self.client.get(&one(name, "")).await
    }

    /// A new one. With `generate_name` in its metadata the API server finds the name.
    pub async fn create(&self, request: &SigningRequest) -> Result<SigningRequest, KubeError> {
        self.client.create(PATH, &Typed::from(request)).await
    }

    /// Writes the decisions `Approved` and `Denied`; a conflict when it changed since it was read.
    pub async fn approval(&self, request: &SigningRequest) -> Result<SigningRequest, KubeError> {
        let path = one(&request.metadata.name, "/approval");
        self.client.update(&path, &Typed::from(request)).await
    }

    /// Writes the certificate, or that it failed; a conflict when it changed since it was read.
    pub async fn status(&self, request: &SigningRequest) -> Result<SigningRequest, KubeError> {
        let path = one(&request.metadata.name, "/status");
        self.client.update(&path, &Typed::from(request)).await
    }
}

fn one(name: &str, part: &str) -> String {
    format!("{PATH}/{}{part}", escape(name))
}

/// PEM as the API carries it.
pub fn encoded(pem: &[u8]) -> String {
    STANDARD.encode(pem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signer_names_of_ours() {
        for good in [AGENT_SIGNER, "a.example/b", "a.example/b/c-d.e"] {
            assert_eq!(good.parse::<SignerName>().unwrap().as_str(), good);
        }
        let long = format!("a.example/{}", "x".repeat(limits::SIGNER_NAME_BYTES));
        for bad in [
            "",
            "agent",
            "a.example/",
            "/agent",
            "a.example//b",
            "a.example/b/",
            "a.example/-b",
            "a.example/..",
            "a.example/b c",
            "a.example/b?c",
            "a_b!.example/c",
            "kubernetes.io/kubelet-serving",
            "x.kubernetes.io/y",
            &long,
        ] {
            assert!(bad.parse::<SignerName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_what_is_true_is_decided() {
        let mut request = SigningRequest::default();
        for status in ["False", "Unknown", ""] {
            request.status.conditions = vec![Condition {
                kind: "Approved".into(),
                status: status.into(),
                ..Condition::default()
            }];
            assert!(!request.is(Decision::Approved), "{status}");
        }
        request.decide(Decision::Approved, "Node", "it is the node's");
        assert!(request.is(Decision::Approved) && !request.is(Decision::Denied));
    }

    #[test]
    fn what_is_no_request_is_none() {
        let mut request = SigningRequest::default();
        request.spec.request = "%%".into();
        assert_eq!(request.request(), None);
        request.spec.request = encoded(&vec![b'x'; limits::CSR_REQUEST_BYTES + 3]);
        assert_eq!(request.request(), None);
        request.spec.request = encoded(b"abc");
        assert_eq!(request.request(), Some(b"abc".to_vec()));
        assert_eq!(request.certificate(), None);
        request.status.certificate = Some(String::new());
        assert_eq!(request.certificate(), None);
    }

    #[test]
    fn what_we_do_not_know_of_survives_an_update() {
        let text = r#"{"metadata":{"name":"a","annotations":{"x":"y"}},
            "spec":{"request":"YQ==","signerName":"s","future":1},
            "status":{"conditions":[{"type":"Approved","status":"True","lastUpdateTime":"z"}],"more":2}}"#;
        let request: SigningRequest = serde_json::from_str(text).unwrap();
        let back = serde_json::to_value(Typed::from(&request)).unwrap();
        assert_eq!(back["kind"], "CertificateSigningRequest");
        assert_eq!(back["metadata"]["annotations"]["x"], "y");
        assert_eq!(back["spec"]["future"], 1);
        assert_eq!(back["status"]["conditions"][0]["lastUpdateTime"], "z");
        assert_eq!(back["status"]["more"], 2);
    }
}
