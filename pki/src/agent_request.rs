//! What an agent's signing request must say where it is signed by what it names: in the Kubernetes
//! API, where people read it too.
//!
//! Its common name is the node. Its names, if it has any, are that node's identity and nothing
//! else. Only the key is taken from it in the end, so what cannot be signed is refused rather than
//! passed over: whoever sees the request sees what it will become.

use rustls_pki_types::CertificateSigningRequestDer;
use towline_proto::id::{ClusterName, Name, Role};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::x509::X509Name;

use crate::identity::Identity;
use crate::inspect::escape;
use crate::key::{PrivateKey, PublicKey};
use crate::pem;
use crate::request::{self, RequestError, RequestSpec};

/// A request by these rules.
#[derive(Clone, Debug)]
pub struct AgentRequest {
    name: Name,
    public_key: PublicKey,
}

/// Why a request is none of an agent. Text of the request is escaped and cut.
#[derive(Debug, thiserror::Error)]
pub enum AgentRefusal {
    /// No sound request at all: form, algorithm, key, proof of possession.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// More than one thing in it.
    #[error("there is more than the one signing request in it")]
    Several,
    /// The subject.
    #[error("its subject is {found}; it must be a common name alone, the name of the node")]
    Subject {
        /// What it is.
        found: String,
    },
    /// A name that is not the node's identity.
    #[error("it asks for {found}; no name may be in it but {expected}")]
    Names {
        /// What it asks for.
        found: String,
        /// What it may.
        expected: String,
    },
    /// Another extension or attribute.
    #[error("it asks for {found}, which agents' certificates do not take from a request")]
    Extension {
        /// Which.
        found: String,
    },
}

impl AgentRefusal {
    /// The word for metrics and conditions.
    pub const fn word(&self) -> &'static str {
        match self {
            AgentRefusal::Request(RequestError::Key(_)) => "WeakKey",
            AgentRefusal::Request(RequestError::Algorithm { .. }) => "SignatureAlgorithm",
            AgentRefusal::Request(RequestError::Possession) => "NoPossession",
            AgentRefusal::Request(_) | AgentRefusal::Several => "Unreadable",
            AgentRefusal::Subject { .. } => "Subject",
            AgentRefusal::Names { .. } => "Names",
            AgentRefusal::Extension { .. } => "Extension",
        }
    }
}

impl AgentRequest {
    /// What the agent of this node asks for; its identity is named where the cluster is known.
    pub fn spec(node: &Name, cluster: Option<&ClusterName>) -> RequestSpec {
        let identity =
            |cluster: &ClusterName| Identity::new(cluster.clone(), Role::Agent, node.clone());
        RequestSpec {
            common_name: node.to_string(),
            uris: cluster
                .map(|cluster| identity(cluster).to_string())
                .into_iter()
                .collect(),
            ..RequestSpec::default()
        }
    }

    /// Makes such a request. Returns PEM.
    pub fn make(
        key: &PrivateKey,
        node: &Name,
        cluster: Option<&ClusterName>,
    ) -> Result<String, RequestError> {
        Self::spec(node, cluster).make(key)
    }

    /// DER as PEM.
    pub fn to_pem(der: &[u8]) -> String {
        pem::write_request(&CertificateSigningRequestDer::from(der))
    }

    /// Reads and checks PEM text, for agents of this cluster.
    pub fn parse(text: &[u8], cluster: &ClusterName) -> Result<Self, AgentRefusal> {
        let der = pem::only_request(text)
            .map_err(RequestError::from)?
            .ok_or(AgentRefusal::Several)?;
        request::read(&der, |request, key| check(request, key, cluster))?
    }

    /// The node that it names.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The key to sign for; its sender holds the private half.
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }
}

fn check(
    request: &X509CertificationRequest<'_>,
    public_key: PublicKey,
    cluster: &ClusterName,
) -> Result<AgentRequest, AgentRefusal> {
    let info = &request.certification_request_info;
    let name = subject(&info.subject)?;
    let expected = Identity::new(cluster.clone(), Role::Agent, name.clone()).to_string();
    for attribute in info.attributes() {
        let ParsedCriAttribute::ExtensionRequest(requested) = attribute.parsed_attribute() else {
            return Err(AgentRefusal::Extension {
                found: format!("attribute {}", attribute.oid.to_id_string()),
            });
        };
        for one in &requested.extensions {
            let ParsedExtension::SubjectAlternativeName(names) = one.parsed_extension() else {
                return Err(AgentRefusal::Extension {
                    found: format!("extension {}", one.oid.to_id_string()),
                });
            };
            match names.general_names[..] {
                [GeneralName::URI(uri)] if uri == expected => {}
                _ => {
                    let found = names.general_names.iter().take(4).map(shown);
                    let found = found.collect::<Vec<_>>().join(", ");
                    return Err(AgentRefusal::Names { found, expected });
                }
            }
        }
    }
    Ok(AgentRequest { name, public_key })
}

fn subject(name: &X509Name<'_>) -> Result<Name, AgentRefusal> {
    const COMMON_NAME: &str = "2.5.4.3";
    let mut attributes = name.iter_attributes();
    let common_name = match (attributes.next(), attributes.next()) {
        (Some(one), None) if one.attr_type().to_id_string() == COMMON_NAME => one.as_str().ok(),
        _ => None,
    };
    let node = common_name.and_then(|text| text.parse().ok());
    node.ok_or_else(|| AgentRefusal::Subject {
        found: cut(&name.to_string()),
    })
}

fn shown(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::URI(text) => format!("URI {}", cut(text)),
        GeneralName::DNSName(text) => format!("DNS name {}", cut(text)),
        GeneralName::IPAddress(_) => "an address".into(),
        _ => "a name of another kind".into(),
    }
}

/// For a message: escaped, and no longer than a line bears.
fn cut(text: &str) -> String {
    let short: String = text.chars().take(120).collect();
    format!("{:?}", escape(&short))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::KeyKind;

    fn cluster() -> ClusterName {
        "prod.example".parse().unwrap()
    }

    fn node() -> Name {
        "n1".parse().unwrap()
    }

    fn word(change: impl Fn(&mut RequestSpec)) -> &'static str {
        let mut spec = AgentRequest::spec(&node(), Some(&cluster()));
        change(&mut spec);
        let key = PrivateKey::generate(KeyKind::default()).unwrap();
        let pem = spec.make(&key).unwrap();
        match AgentRequest::parse(pem.as_bytes(), &cluster()) {
            Ok(_) => "good",
            Err(error) => {
                let text = error.to_string();
                assert!(text.len() < 800 && !text.contains('\u{1b}'), "{text}");
                error.word()
            }
        }
    }

    #[test]
    fn what_an_agent_asks_is_taken_with_and_without_its_cluster() {
        let key = PrivateKey::generate(KeyKind::default()).unwrap();
        for cluster_known in [None, Some(cluster())] {
            let pem = AgentRequest::make(&key, &node(), cluster_known.as_ref()).unwrap();
            let read = AgentRequest::parse(pem.as_bytes(), &cluster()).unwrap();
            assert_eq!(read.name(), &node());
            assert_eq!(read.public_key().hash(), key.public().hash());
        }
    }

    #[test]
    fn anything_else_in_it_is_refused_by_word() {
        assert_eq!(word(|_| ()), "good");
        assert_eq!(word(|s| s.common_name = "\u{1b}[31mn1".into()), "Subject");
        assert_eq!(word(|s| s.common_name.clear()), "Subject");
        assert_eq!(word(|s| s.common_name = "system:node:n1".into()), "Subject");
        assert_eq!(
            word(|s| s.organisation = "system:masters".into()),
            "Subject"
        );
        assert_eq!(word(|s| s.common_name = "n2".into()), "Names");
        let other = "spiffe://prod.example/towline/server/n1";
        assert_eq!(word(|s| s.uris = vec![other.into()]), "Names");
        assert_eq!(word(|s| s.uris.push(other.into())), "Names");
        assert_eq!(word(|s| s.dns.push("n1".into())), "Names");
        assert_eq!(word(|s| s.ips.push([10, 0, 0, 1].into())), "Names");
        assert_eq!(word(|s| s.emails.push("a@b.example".into())), "Names");
    }

    #[test]
    fn damaged_and_doubled_requests_are_refused() {
        let key = PrivateKey::generate(KeyKind::default()).unwrap();
        let pem = AgentRequest::make(&key, &node(), None).unwrap();
        let refused = |text: &str| {
            let read = AgentRequest::parse(text.as_bytes(), &cluster());
            read.map(|_| ()).unwrap_err().word()
        };
        assert_eq!(refused(&format!("{pem}{pem}")), "Unreadable");
        assert_eq!(refused(""), "Unreadable");
        assert_eq!(refused(&pem[..pem.len() / 2]), "Unreadable");
    }
}
