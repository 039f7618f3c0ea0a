//! The agent's own certificate: made on this node, signed elsewhere, renewed in time.
//!
//! The key is made here and never leaves. Who signs is an [`Issuer`]: a Towline server, asked on a
//! connection of its own ([`server`]), or the Kubernetes API ([`kubernetes`]). [`files`] puts
//! what came back in place so that a crash leaves a pair that works; [`keep`] decides when to ask
//! and how long to wait after a refusal; [`waiting`] is the agent before its first certificate.

pub mod files;
pub mod flags;
pub mod keep;
pub mod kubernetes;
pub mod metrics;
pub mod server;
pub mod start;
pub mod waiting;

use std::path::PathBuf;

use async_trait::async_trait;
use rustls_pki_types::CertificateDer;
use towline_link::error::ConnectError;
use towline_link::kube::KubeError;
use towline_pki::{
    AnchorsError, Credentials, CredentialsError, DenyListError, Identity, IdentityError,
    RequestError, RequestSpec, TlsError,
};
use towline_proto::enrol::Refusal;
use towline_proto::target::Target;

pub use keep::Enrolling;

/// What is asked of an issuer.
#[derive(Debug)]
pub struct Order {
    /// PKCS#10, DER, signed by the key on this node.
    pub csr: Vec<u8>,
    /// What we hold now, while it is valid: the best proof of who we are.
    pub current: Option<Credentials>,
}

/// What an issuer gave.
#[derive(Debug)]
pub struct Obtained {
    /// To present, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Authorities of servers that were believed for the first time; none where a file names them.
    pub authorities: Vec<CertificateDer<'static>>,
    /// How we proved who we are, in a word: `certificate`, `service-account`, `join-token`,
    /// `signing-request`.
    pub proof: &'static str,
}

/// One source of certificates.
#[async_trait]
pub trait Issuer: Send + Sync + std::fmt::Debug + 'static {
    /// The word of `--enrol`.
    fn source(&self) -> &'static str;

    /// What a request says, apart from its key.
    fn request(&self) -> RequestSpec {
        RequestSpec {
            common_name: "towline-agent".to_owned(),
            ..RequestSpec::default()
        }
    }

    /// What an attempt under way waits for, where that may take long.
    fn waits(&self) -> Option<String> {
        None
    }

    /// Asks for a certificate once, at every place where one may be had. Cancel-safe.
    async fn obtain(&self, order: &Order) -> Result<Obtained, EnrolError>;
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Nothing to prove ourselves with.
    #[error(
        "nothing proves which node this is: give --enrol-token-file (a projected service-account \
         token) or --join-token-file (of `towline-pki token create`){0}"
    )]
    NoProof(&'static str),
    /// A file.
    #[error("{path}: {what}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The authority of servers.
    #[error("--server-ca: {0}")]
    Anchors(#[from] AnchorsError),
    /// The deny list.
    #[error("deny list: {0}")]
    DenyList(#[from] DenyListError),
    /// Nothing is known of the servers' authority.
    #[error("no server can be verified: give --server-ca, or a join token, which carries its hash")]
    NoAnchors,
    /// The server was not reached, or is none of ours.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server does not enrol.
    #[error(
        "{0} does not enrol agents: it needs --enrol-issuer-certificate and --enrol-issuer-key, and links over TCP"
    )]
    NoEnrolment(Target),
    /// It said no.
    #[error("{server} refuses a certificate by {proof}: {refusal}: {text}")]
    Refused {
        /// Who.
        server: String,
        /// What we showed.
        proof: &'static str,
        /// Why.
        refusal: Refusal,
        /// In its own words, escaped.
        text: String,
    },
    /// The Kubernetes API cannot be asked.
    #[error("{source}{fix}")]
    Api {
        /// Why.
        source: KubeError,
        /// What to do, where that is known.
        fix: &'static str,
    },
    /// A signing request was denied, or cannot be signed.
    #[error("signing request {request} was {}: {reason}: {message}", decision.to_lowercase())]
    Decided {
        /// Its name.
        request: String,
        /// `Denied` or `Failed`.
        decision: String,
        /// The condition's reason, escaped.
        reason: String,
        /// The condition's message, escaped.
        message: String,
    },
    /// Nobody decided about a signing request.
    #[error("signing request {request} {what}")]
    Undecided {
        /// Its name.
        request: String,
        /// What became of it.
        what: String,
    },
    /// It said something that is no answer.
    #[error("{server} gave no usable answer: {what}")]
    Answer {
        /// Who.
        server: String,
        /// What was wrong.
        what: String,
    },
    /// The certificate is not what was asked for.
    #[error("the certificate from {server} is of {found}, this agent is {expected}")]
    Identity {
        /// Who.
        server: String,
        /// Its identity.
        found: Identity,
        /// Ours.
        expected: String,
    },
    /// The certificate or the key does not do.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// Our key could not be made, or does not sign.
    #[error("the key of this node: {0}")]
    Request(#[from] RequestError),
    /// A name that is none.
    #[error(transparent)]
    Name(#[from] IdentityError),
    /// A defect.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl EnrolError {
    /// The word for metrics, from a closed set.
    pub fn as_str(&self) -> &'static str {
        match self {
            EnrolError::NoProof(_) => "no-proof",
            EnrolError::File { .. } | EnrolError::Request(_) => "file",
            EnrolError::Anchors(_) | EnrolError::DenyList(_) | EnrolError::NoAnchors => "anchors",
            EnrolError::Connect(error) => error.reason().as_str(),
            EnrolError::NoEnrolment(_) => "no-enrolment",
            EnrolError::Refused { refusal, .. } => refusal.as_str(),
            EnrolError::Api { .. } => "api",
            EnrolError::Decided { .. } => "signing-request-denied",
            EnrolError::Undecided { .. } => "signing-request-undecided",
            EnrolError::Answer { .. } => "answer",
            EnrolError::Identity { .. } | EnrolError::Name(_) => "identity",
            EnrolError::Credentials(_) | EnrolError::Tls(_) => "certificate",
        }
    }

    /// Whether waiting alone may help; otherwise somebody or something has to change.
    pub fn is_temporary(&self) -> bool {
        match self {
            EnrolError::Refused { refusal, .. } => refusal.is_temporary(),
            EnrolError::Connect(_) | EnrolError::Api { .. } | EnrolError::Undecided { .. } => true,
            _ => false,
        }
    }
}
