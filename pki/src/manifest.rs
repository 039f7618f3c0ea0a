//! Manifests: certificates in the forms in which Kubernetes takes them. Secret, ConfigMap,
//! kubeconfig with embedded data, EgressSelectorConfiguration.
//!
//! Strict: names are checked by Kubernetes' own rules before anything is written, every text that
//! was given is quoted, and the order of the lines never changes, so a manifest in a repository
//! differs only where something is different.

use std::fmt::{self, Write};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use towline_proto::limits;

use crate::inspect::escape;
use crate::secret::Secret;

/// Why a word cannot stand where it was given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WordError {
    #[error(
        "\"{word}\" is no name of a Kubernetes object: lower-case letters, digits, '-' and '.', \
         beginning and ending with a letter or digit, 253 characters at most"
    )]
    Object { word: String },
    #[error(
        "\"{word}\" is no namespace: lower-case letters, digits and '-', beginning and ending with \
         a letter or digit, 63 characters at most"
    )]
    Namespace { word: String },
    #[error(
        "\"{word}\" cannot be a key of a Secret or ConfigMap: letters, digits, '-', '_' and '.', \
         253 characters at most, and not \".\" or \"..\""
    )]
    Key { word: String },
    #[error("\"{word}\" is no address: https://HOST or https://HOST:PORT")]
    Url { word: String },
    #[error("\"{word}\" is no name: letters, digits and -_.:@/, 253 characters at most")]
    Label { word: String },
    #[error("\"{word}\" must be an absolute path of printable characters")]
    Path { word: String },
}

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident: $good:expr, $wrong:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = WordError;
            fn from_str(word: &str) -> Result<Self, WordError> {
                let good: fn(&str) -> bool = $good;
                match good(word) {
                    true => Ok(Self(word.to_owned())),
                    false => Err(WordError::$wrong { word: escape(word) }),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

words! {
    /// Name of an object: a DNS subdomain.
    ObjectName: |word| word.len() <= 253 && word.split('.').all(is_label), Object;
    /// Name of a namespace: a DNS label.
    Namespace: |word| word.len() <= 63 && is_label(word), Namespace;
    /// Key of an entry.
    DataKey: |word| (1..=253).contains(&word.len())
        && word != "." && !word.starts_with("..")
        && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)), Key;
    /// `https://HOST[:PORT]`, and nothing behind it.
    Url: is_url, Url;
    /// Name of an entry of a kubeconfig.
    EntryName: |word| (1..=253).contains(&word.len())
        && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:@/".contains(&b)), Label;
    /// A path on the machine of kube-apiserver.
    PlacePath: |word| word.starts_with('/') && word.len() <= 4096
        && word.bytes().all(|b| b.is_ascii_graphic() || b == b' '), Path;
}

fn is_label(word: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    edge(word.bytes().next()) && edge(word.bytes().last()) && word.bytes().all(inside)
}

fn is_url(word: &str) -> bool {
    let Some(rest) = word.strip_prefix("https://") else {
        return false;
    };
    let port_is_there = rest
        .rsplit_once(':')
        .is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
    let whole = match port_is_there {
        true => rest.to_owned(),
        false => format!("{rest}:443"),
    };
    whole.parse::<towline_proto::target::Target>().is_ok()
}

/// What an object is called and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    pub name: ObjectName,
    pub namespace: Option<Namespace>,
}

/// The type of a Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretType {
    /// `kubernetes.io/tls`: tls.crt and tls.key, perhaps ca.crt.
    Tls,
    /// `Opaque`.
    Opaque,
}

/// Too much for one object of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes are more than the {max} that one Secret or ConfigMap can hold")]
pub struct TooMuch {
    bytes: usize,
    max: usize,
}

/// A Secret.
pub fn secret(
    meta: &Meta,
    kind: SecretType,
    data: &[(DataKey, Secret)],
) -> Result<Secret, TooMuch> {
    fits(data.iter().map(|(_, value)| value.expose().len()))?;
    let mut out = head("Secret", meta);
    out.push_str(match kind {
        SecretType::Tls => "type: kubernetes.io/tls\n",
        SecretType::Opaque => "type: Opaque\n",
    });
    out.push_str("data:\n");
    for (key, value) in data {
        let _ = writeln!(out, "  {key}: {}", encoded(value.expose()));
    }
    Ok(Secret::new(out.into_bytes()))
}

/// A ConfigMap; nothing in it is secret.
pub fn config_map(meta: &Meta, data: &[(DataKey, String)]) -> Result<String, TooMuch> {
    fits(data.iter().map(|(_, value)| value.len()))?;
    let mut out = head("ConfigMap", meta);
    out.push_str("data:\n");
    for (key, value) in data {
        let _ = writeln!(out, "  {key}: |");
        for line in value.lines() {
            let _ = writeln!(out, "    {line}");
        }
    }
    Ok(out)
}

fn head(kind: &str, meta: &Meta) -> String {
    let mut out = format!(
        "apiVersion: v1\nkind: {kind}\nmetadata:\n  name: {}\n",
        quoted(meta.name.as_str())
    );
    if let Some(namespace) = &meta.namespace {
        let _ = writeln!(out, "  namespace: {}", quoted(namespace.as_str()));
    }
    out
}

fn fits(sizes: impl Iterator<Item = usize>) -> Result<(), TooMuch> {
    let bytes = sizes.sum();
    let max = limits::OBJECT_BYTES;
    match bytes > max {
        true => Err(TooMuch { bytes, max }),
        false => Ok(()),
    }
}

/// What a kubeconfig says.
pub struct Kubeconfig<'a> {
    pub server: &'a Url,
    pub cluster: &'a EntryName,
    pub user: &'a EntryName,
    pub namespace: Option<&'a Namespace>,
    /// PEM.
    pub authorities: &'a str,
    /// PEM, leaf first.
    pub chain: &'a str,
    /// PEM.
    pub key: &'a Secret,
}

/// A kubeconfig of one context, with everything inside.
pub fn kubeconfig(what: &Kubeconfig<'_>) -> Secret {
    let (cluster, user) = (quoted(what.cluster.as_str()), quoted(what.user.as_str()));
    let context = quoted(&format!("{}@{}", what.user, what.cluster));
    let namespace = what.namespace.map_or_else(String::new, |namespace| {
        format!("\n      namespace: {}", quoted(namespace.as_str()))
    });
    let text = format!(
        "apiVersion: v1\n\
         kind: Config\n\
         clusters:\n\
         \x20 - name: {cluster}\n\
         \x20   cluster:\n\
         \x20     server: {server}\n\
         \x20     certificate-authority-data: {authorities}\n\
         users:\n\
         \x20 - name: {user}\n\
         \x20   user:\n\
         \x20     client-certificate-data: {chain}\n\
         \x20     client-key-data: {key}\n\
         contexts:\n\
         \x20 - name: {context}\n\
         \x20   context:\n\
         \x20     cluster: {cluster}\n\
         \x20     user: {user}{namespace}\n\
         current-context: {context}\n",
        server = quoted(what.server.as_str()),
        authorities = STANDARD.encode(what.authorities),
        chain = STANDARD.encode(what.chain),
        key = encoded(what.key.expose()),
    );
    Secret::new(text.into_bytes())
}

/// How kube-apiserver reaches the server's door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Door {
    /// The Unix socket, by HTTP CONNECT or gRPC.
    Unix { socket: PlacePath, grpc: bool },
    /// TCP with mutual TLS, by HTTP CONNECT; kube-apiserver has no gRPC there.
    Tcp {
        url: Url,
        authorities: PlacePath,
        cert: PlacePath,
        key: PlacePath,
    },
}

/// What goes through the door: `cluster`, or all three.
pub fn egress_selector(door: &Door, selections: &[Selection]) -> String {
    let mut out =
        "apiVersion: apiserver.k8s.io/v1beta1\nkind: EgressSelectorConfiguration\negressSelections:\n"
            .to_owned();
    for selection in Selection::ALL {
        let _ = writeln!(out, "  - name: {}\n    connection:", selection.as_str());
        if !selections.contains(&selection) {
            out.push_str("      proxyProtocol: Direct\n");
            continue;
        }
        match door {
            Door::Unix { socket, grpc } => {
                let protocol = if *grpc { "GRPC" } else { "HTTPConnect" };
                let socket = quoted(socket.as_str());
                let _ = write!(
                    out,
                    "      proxyProtocol: {protocol}\n      transport:\n        uds:\n          \
                     udsName: {socket}\n"
                );
            }
            Door::Tcp {
                url,
                authorities,
                cert,
                key,
            } => {
                let _ = write!(
                    out,
                    "      proxyProtocol: HTTPConnect\n      transport:\n        tcp:\n          \
                     url: {}\n          tlsConfig:\n            caBundle: {}\n            \
                     clientCert: {}\n            clientKey: {}\n",
                    quoted(url.as_str()),
                    quoted(authorities.as_str()),
                    quoted(cert.as_str()),
                    quoted(key.as_str()),
                );
            }
        }
    }
    out
}

/// Where kube-apiserver connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Nodes, pods, services.
    Cluster,
    /// Webhooks and the like beside the control plane.
    ControlPlane,
    Etcd,
}

impl Selection {
    /// All there are.
    pub const ALL: [Selection; 3] = [Selection::Cluster, Selection::ControlPlane, Selection::Etcd];

    /// kube-apiserver's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Selection::Cluster => "cluster",
            Selection::ControlPlane => "controlplane",
            Selection::Etcd => "etcd",
        }
    }
}

/// A double-quoted scalar; JSON's is one of YAML.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn encoded(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_follow_kubernetes_rules() {
        for (good, word) in [
            (true, "a"),
            (true, "towline-server.v1"),
            (false, ""),
            (false, "A"),
            (false, "-a"),
            (false, "a-"),
            (false, "a..b"),
            (false, "a/b"),
            (false, "a\nb"),
            (false, "a b"),
        ] {
            assert_eq!(word.parse::<ObjectName>().is_ok(), good, "{word:?}");
        }
        assert!("a.b".parse::<Namespace>().is_err());
        assert!("a".repeat(254).parse::<ObjectName>().is_err());
        for (good, word) in [
            (true, "tls.crt"),
            (true, "A_b-c"),
            (false, ""),
            (false, "."),
            (false, ".."),
            (false, "../x"),
            (false, "a/b"),
            (false, "a:b"),
        ] {
            assert_eq!(word.parse::<DataKey>().is_ok(), good, "{word:?}");
        }
        for (good, word) in [
            (true, "https://api.example:6443"),
            (true, "https://api.example"),
            (true, "https://[fd00::1]:6443"),
            (true, "https://10.0.0.1"),
            (false, "http://api.example"),
            (false, "https://"),
            (false, "https://a b"),
            (false, "https://user@api.example"),
            (false, "https://api.example/path"),
            (false, "https://api.example:0"),
            (false, "https://api.example:99999"),
        ] {
            assert_eq!(word.parse::<Url>().is_ok(), good, "{word:?}");
        }
        assert!("etc/x".parse::<PlacePath>().is_err());
        assert!("/etc/\u{1b}".parse::<PlacePath>().is_err());
    }

    #[test]
    fn an_object_that_kubernetes_would_not_store_is_refused() {
        let meta = Meta {
            name: "a".parse().unwrap(),
            namespace: None,
        };
        let entry = |len: usize| ("k".parse().unwrap(), "x".repeat(len));
        assert!(config_map(&meta, &[entry(limits::OBJECT_BYTES)]).is_ok());
        assert!(config_map(&meta, &[entry(limits::OBJECT_BYTES + 1)]).is_err());
    }
}
