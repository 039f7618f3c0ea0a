//! Why a call of the Kubernetes API failed.

use std::fmt;
use std::io;

use serde::Deserialize;
use towline_pki::store::StoreError;
use towline_pki::{TlsError, WebError};
use towline_proto::limits;

use crate::error::ConnectError;

/// What went wrong; says what to change where somebody can.
#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    /// Not in a pod and no kubeconfig.
    #[error(
        "no Kubernetes API is known: {variable} is not set, so this is no pod; give --kubeconfig"
    )]
    NotInCluster {
        /// The name in the environment that a pod has.
        variable: &'static str,
    },
    /// A value that makes no address.
    #[error("{what}: {value:?} is no {wanted}")]
    Value {
        /// Where it stands.
        what: String,
        /// What stands there.
        value: String,
        /// What should.
        wanted: &'static str,
    },
    /// The kubeconfig cannot be used.
    #[error("{path}: {cause}")]
    Kubeconfig {
        /// The file.
        path: String,
        /// Why.
        cause: String,
    },
    /// A file cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Roots or a pair.
    #[error(transparent)]
    Web(#[from] WebError),
    /// A defect.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The token's file holds no token.
    #[error("{path}: holds no usable token")]
    Token {
        /// The file.
        path: String,
    },
    /// The process ends, or a defect.
    #[error("the files of the Kubernetes API were not read: {0}")]
    Files(#[from] tokio::task::JoinError),
    /// The API server is not reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// No TLS with it.
    #[error("Kubernetes API {server}: TLS: {source}")]
    Handshake {
        /// Where it is.
        server: String,
        /// What rustls or the kernel says.
        source: io::Error,
    },
    /// The connection broke, or what came was no HTTP.
    #[error("Kubernetes API {server}: {source}")]
    Http {
        /// Where it is.
        server: String,
        /// What hyper says.
        source: hyper::Error,
    },
    /// It took too long.
    #[error("Kubernetes API {server}: no answer within {} s", limits::KUBE_REQUEST.as_secs())]
    Timeout {
        /// Where it is.
        server: String,
    },
    /// It answered more than we take.
    #[error("Kubernetes API {server}: the answer has more than {max} bytes")]
    TooLarge {
        /// Where it is.
        server: String,
        /// The bound.
        max: usize,
    },
    /// It answered something else than was expected.
    #[error("Kubernetes API {server}: the answer to {request} is not what was expected: {source}")]
    Body {
        /// Where it is.
        server: String,
        /// Verb and path.
        request: String,
        /// What serde says.
        source: serde_json::Error,
    },
    /// A request that cannot be written.
    #[error("a request for {path:?} cannot be written")]
    Request {
        /// The path.
        path: String,
    },
    /// It refused.
    #[error("Kubernetes API: {request}: {refusal}")]
    Refused {
        /// Verb and path.
        request: String,
        /// What it said.
        refusal: Refusal,
    },
    /// A watch ended because it fell behind; the list must be read again.
    #[error("the watch of {path} fell behind")]
    Gone {
        /// What was watched.
        path: String,
    },
}

impl KubeError {
    /// The status code, where there was an answer.
    pub fn status(&self) -> Option<u16> {
        match self {
            KubeError::Refused { refusal, .. } => Some(refusal.code),
            KubeError::Gone { .. } => Some(410),
            _ => None,
        }
    }

    /// The API's word for the refusal, such as `NotFound` or `Conflict`.
    pub fn reason(&self) -> Option<&str> {
        match self {
            KubeError::Refused { refusal, .. } => Some(&refusal.reason),
            KubeError::Gone { .. } => Some("Expired"),
            _ => None,
        }
    }

    /// There is no such object.
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(404)
    }

    /// Somebody was faster: the object changed since it was read, or is there already.
    pub fn is_conflict(&self) -> bool {
        self.status() == Some(409)
    }
}

/// A `Status` of the API: its text is escaped and bounded when shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Refusal {
    /// HTTP status.
    #[serde(default)]
    pub code: u16,
    /// One word for machines.
    #[serde(default)]
    pub reason: String,
    /// For people.
    #[serde(default)]
    pub message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        for text in [&self.reason, &self.message] {
            if !text.is_empty() {
                let shown: String = text
                    .chars()
                    .take(limits::KUBE_TEXT_BYTES)
                    .flat_map(char::escape_debug)
                    .collect();
                write!(f, " {shown}")?;
            }
        }
        Ok(())
    }
}
