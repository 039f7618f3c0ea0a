//! What a kubelet's signing request for its serving certificate must say: rules that need no
//! knowledge of the cluster.
//!
//! They are those of the signer `kubernetes.io/kubelet-serving`, and stricter where that one is
//! silent: whoever signs in the end copies the subject and the names from the request as they
//! stand, so there must be nothing in it that was not looked at.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use towline_proto::address::{self, Refusal};
use towline_proto::id::Name;
use towline_proto::limits;
use towline_proto::target::HostName;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::{ParsedCriAttribute, X509CriAttribute};
use x509_parser::extensions::{GeneralName, ParsedExtension, X509Extension};
use x509_parser::x509::X509Name;

use crate::der;
use crate::inspect::escape;
use crate::key::PublicKey;
use crate::pem;
use crate::request::{self, RequestError};
use crate::store;

/// What stands before the node's name in the user that a kubelet is to Kubernetes.
pub const NODE_USER: &str = "system:node:";
/// The group of all kubelets.
pub const NODES_GROUP: &str = "system:nodes";

/// A request by these rules. Names are as they were asked for, and nothing is known yet of
/// whether they are the node's.
#[derive(Clone, Debug)]
pub struct ServingRequest {
    node: Name,
    dns: Vec<HostName>,
    ips: Vec<IpAddr>,
    public_key: PublicKey,
}

/// Why a request is none for a kubelet's serving certificate. Text of the request is escaped and
/// cut.
#[derive(Debug, thiserror::Error)]
pub enum ServingRefusal {
    /// No sound request at all: form, algorithm, key, proof of possession.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// More than one thing in the file.
    #[error("there is more than the one signing request in it")]
    Several,
    /// The organisation.
    #[error("its organisation is {found}; it must be exactly {NODES_GROUP}")]
    Organisation {
        /// What it is.
        found: String,
    },
    /// The common name.
    #[error("its common name is {found}; it must be {NODE_USER} and the name of the node")]
    CommonName {
        /// What it is.
        found: String,
    },
    /// Another part of the subject.
    #[error(
        "its subject has more in it than organisation and common name ({oid}); a kubelet asks for \
         nothing else"
    )]
    Subject {
        /// The attribute.
        oid: String,
    },
    /// An attribute that is no request for extensions, or two of those.
    #[error("it has an attribute that a kubelet does not send ({oid})")]
    Attribute {
        /// The attribute.
        oid: String,
    },
    /// An extension.
    #[error("it asks for {what}, which no kubelet's serving certificate has")]
    Extension {
        /// Which.
        what: String,
    },
    /// Usages.
    #[error(
        "it asks for {what}; a kubelet's serving certificate is for digital signature, key \
         encipherment where the key is RSA, and TLS servers"
    )]
    Usage {
        /// Which.
        what: &'static str,
    },
    /// Neither a DNS name nor an address.
    #[error("it names no host: at least one DNS name or IP address must be asked for")]
    NoNames,
    /// Too many.
    #[error(
        "it asks for {count} names, more than the {} that are looked at",
        limits::SERVING_NAMES
    )]
    ManyNames {
        /// How many.
        count: usize,
    },
    /// A name of another kind.
    #[error("it asks for {what}; only DNS names and IP addresses are signed")]
    NameKind {
        /// Which.
        what: String,
    },
    /// A DNS name that is none.
    #[error("it asks for DNS name {text:?}: {cause}")]
    BadDns {
        /// Which.
        text: String,
        /// Why.
        cause: String,
    },
    /// An address that is no node's.
    #[error("it asks for {ip}, a {refusal}: no node is reached by that")]
    ForbiddenIp {
        /// Which.
        ip: IpAddr,
        /// Why.
        refusal: Refusal,
    },
}

impl ServingRefusal {
    /// The word for metrics and conditions.
    pub const fn word(&self) -> &'static str {
        match self {
            ServingRefusal::Request(RequestError::Key(_)) => "WeakKey",
            ServingRefusal::Request(RequestError::Algorithm { .. }) => "SignatureAlgorithm",
            ServingRefusal::Request(RequestError::Possession) => "NoPossession",
            ServingRefusal::Request(_) | ServingRefusal::Several => "Unreadable",
            ServingRefusal::Organisation { .. } => "Organization",
            ServingRefusal::CommonName { .. } => "CommonName",
            ServingRefusal::Subject { .. } => "Subject",
            ServingRefusal::Attribute { .. } | ServingRefusal::Extension { .. } => "Extension",
            ServingRefusal::Usage { .. } => "Usages",
            ServingRefusal::NoNames => "NoNames",
            ServingRefusal::ManyNames { .. } => "ManyNames",
            ServingRefusal::NameKind { .. } => "NameKind",
            ServingRefusal::BadDns { .. } => "BadName",
            ServingRefusal::ForbiddenIp { .. } => "ForbiddenAddress",
        }
    }
}

impl ServingRequest {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ServingRefusal> {
        let text = store::read(path).map_err(RequestError::from)?;
        Self::parse(&text)
    }

    /// Reads and checks PEM text.
    pub fn parse(text: &[u8]) -> Result<Self, ServingRefusal> {
        let der = pem::only_request(text)
            .map_err(RequestError::from)?
            .ok_or(ServingRefusal::Several)?;
        request::read(&der, Self::check)?
    }

    fn check(
        request: &X509CertificationRequest<'_>,
        public_key: PublicKey,
    ) -> Result<Self, ServingRefusal> {
        let info = &request.certification_request_info;
        let node = subject(&info.subject)?;
        let mut names = Names::default();
        let mut seen = false;
        for attribute in info.attributes() {
            let ParsedCriAttribute::ExtensionRequest(requested) = attribute.parsed_attribute()
            else {
                return Err(unexpected(attribute));
            };
            if seen || !is_whole(attribute) {
                return Err(unexpected(attribute));
            }
            seen = true;
            for (at, one) in requested.extensions.iter().enumerate() {
                let before = requested.extensions.get(..at).unwrap_or_default();
                if before.iter().any(|other| other.oid == one.oid) {
                    return Err(ServingRefusal::Extension {
                        what: format!("extension {} twice", one.oid.to_id_string()),
                    });
                }
                extension(one, &mut names)?;
            }
        }
        if names.dns.is_empty() && names.ips.is_empty() {
            return Err(ServingRefusal::NoNames);
        }
        Ok(Self {
            node,
            dns: names.dns,
            ips: names.ips,
            public_key,
        })
    }

    /// The node that its common name names.
    pub fn node(&self) -> &Name {
        &self.node
    }

    /// DNS names that it asks for.
    pub fn dns(&self) -> &[HostName] {
        &self.dns
    }

    /// Addresses that it asks for; IPv4 never in the form of IPv6.
    pub fn ips(&self) -> &[IpAddr] {
        &self.ips
    }

    /// The key to sign for; its sender holds the private half.
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }
}

#[derive(Default)]
struct Names {
    dns: Vec<HostName>,
    ips: Vec<IpAddr>,
}

fn subject(name: &X509Name<'_>) -> Result<Name, ServingRefusal> {
    const COMMON_NAME: &str = "2.5.4.3";
    const ORGANISATION: &str = "2.5.4.10";
    let (mut common_names, mut organisations) = (Vec::new(), Vec::new());
    for attribute in name.iter_attributes() {
        let oid = attribute.attr_type().to_id_string();
        let text = attribute.as_str().ok();
        match oid.as_str() {
            COMMON_NAME => common_names.push(text),
            ORGANISATION => organisations.push(text),
            _ => return Err(ServingRefusal::Subject { oid }),
        }
    }
    if organisations != [Some(NODES_GROUP)] {
        return Err(ServingRefusal::Organisation {
            found: shown(&organisations),
        });
    }
    let node = match common_names[..] {
        [Some(one)] => one
            .strip_prefix(NODE_USER)
            .and_then(|node| node.parse().ok()),
        _ => None,
    };
    node.ok_or_else(|| ServingRefusal::CommonName {
        found: shown(&common_names),
    })
}

fn shown(values: &[Option<&str>]) -> String {
    let one = |value: &Option<&str>| value.map_or("unreadable".into(), cut);
    match values {
        [] => "missing".into(),
        some => some.iter().take(4).map(one).collect::<Vec<_>>().join(", "),
    }
}

/// For a message: escaped, and no longer than a line bears.
fn cut(text: &str) -> String {
    let short: String = text.chars().take(80).collect();
    format!("{:?}", escape(&short))
}

fn unexpected(attribute: &X509CriAttribute<'_>) -> ServingRefusal {
    ServingRefusal::Attribute {
        oid: attribute.oid.to_id_string(),
    }
}

/// Whether the attribute's set holds one value and nothing behind it: what is not looked at here
/// another reader might take.
fn is_whole(attribute: &X509CriAttribute<'_>) -> bool {
    let value = || {
        let (content, after) = der::take(0x31, attribute.value)?;
        let (_, behind) = der::take(0x30, content)?;
        Some(after.is_empty() && behind.is_empty())
    };
    value().unwrap_or(false)
}

fn extension(extension: &X509Extension<'_>, names: &mut Names) -> Result<(), ServingRefusal> {
    match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(asked) => {
            let count = asked.general_names.len();
            if count > limits::SERVING_NAMES {
                return Err(ServingRefusal::ManyNames { count });
            }
            asked
                .general_names
                .iter()
                .try_for_each(|name| add_name(name, names))
        }
        ParsedExtension::KeyUsage(usage) => {
            // Bits 0 and 2; the bits stand in one number, the first lowest.
            let signs = usage.digital_signature();
            match signs && usage.flags & !0b101 == 0 {
                true => Ok(()),
                false => Err(ServingRefusal::Usage {
                    what: "another key usage",
                }),
            }
        }
        ParsedExtension::ExtendedKeyUsage(usage) => {
            let others = usage.any
                || usage.client_auth
                || usage.code_signing
                || usage.email_protection
                || usage.time_stamping
                || usage.ocsp_signing
                || !usage.other.is_empty();
            match usage.server_auth && !others {
                true => Ok(()),
                false => Err(ServingRefusal::Usage {
                    what: "another extended key usage",
                }),
            }
        }
        ParsedExtension::BasicConstraints(basic) if basic.ca => Err(ServingRefusal::Extension {
            what: "to be an authority".into(),
        }),
        ParsedExtension::BasicConstraints(_) => Ok(()),
        _ => Err(ServingRefusal::Extension {
            what: format!("extension {}", extension.oid.to_id_string()),
        }),
    }
}

fn add_name(name: &GeneralName<'_>, names: &mut Names) -> Result<(), ServingRefusal> {
    let kind = |what: &str, text: &str| ServingRefusal::NameKind {
        what: format!("{what} {}", cut(text)),
    };
    match name {
        GeneralName::DNSName(text) => {
            names.dns.push(dns_name(text)?);
            Ok(())
        }
        GeneralName::IPAddress(bytes) => {
            let ip = if let Ok(v4) = <[u8; 4]>::try_from(*bytes) {
                IpAddr::V4(Ipv4Addr::from(v4))
            } else if let Ok(v6) = <[u8; 16]>::try_from(*bytes) {
                address::canonical(IpAddr::V6(Ipv6Addr::from(v6)))
            } else {
                let what = format!("an address of {} bytes", bytes.len());
                return Err(ServingRefusal::NameKind { what });
            };
            if let Some(refusal) = address::refusal(ip) {
                return Err(ServingRefusal::ForbiddenIp { ip, refusal });
            }
            names.ips.push(ip);
            Ok(())
        }
        GeneralName::RFC822Name(text) => Err(kind("e-mail address", text)),
        GeneralName::URI(text) => Err(kind("URI", text)),
        _ => Err(ServingRefusal::NameKind {
            what: "a name of another kind".into(),
        }),
    }
}

/// A host name as it stands: no address in any spelling, no wildcard, no dot at its end.
fn dns_name(text: &str) -> Result<HostName, ServingRefusal> {
    let bad = |cause: String| ServingRefusal::BadDns {
        text: text.chars().take(80).collect(),
        cause,
    };
    if text.ends_with('.') {
        return Err(bad("a name in a certificate has no dot at its end".into()));
    }
    if text.parse::<IpAddr>().is_ok() {
        return Err(bad(
            "it is an IP address, which verifiers look for among the IP addresses".into(),
        ));
    }
    text.parse::<HostName>()
        .map_err(|error| bad(error.to_string()))
}
