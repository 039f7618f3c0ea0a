//! One attempt to get a stream: a handshake in which the server may choose its protocol, the
//! rule of that protocol, and, where it is the legacy one, the call.

use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue};
use towline_link::error::{ConnectError, detail};
use towline_link::grpc::client::{Call, CallError, Taken, call};
use towline_link::tls::{self, Met};
use towline_pki::store::{self, StoreError};
use towline_pki::{PeerError, TlsError, WebError, tls as configs};
use towline_proto::konnectivity::{
    AGENT_ID, AGENT_IDENTIFIERS, ALPN_GRPC, AUTHORIZATION, BEARER, CONNECT_METHOD, SERVER_COUNT,
    SERVER_ID,
};
use towline_proto::limits;
use towline_proto::reason::Reason;
use towline_proto::version::ALPN_LINK;

use super::config::LegacyConfig;
use crate::reach::Reach;
use crate::trust::{Snapshot, Trust};

/// Why an attempt gave nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum LegacyAttemptError {
    #[error(transparent)]
    Web(#[from] WebError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("Failed to read token: {0}")]
    Token(#[from] StoreError),
    #[error("the files were not read: {0}")]
    Files(#[from] tokio::task::JoinError),
    #[error(
        "the server chose towline/1, but its certificate is not one of ours: {0}; see --server-ca"
    )]
    NotOurs(PeerError),
    #[error(
        "{0} has spoken towline/1 before and is not spoken to in the legacy protocol again: give \
         --cert, --key and --server-ca, or --allow-downgrade"
    )]
    Downgrade(String),
    #[error("what we are to say of ourselves cannot be written into a header")]
    Header,
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("the server does not answer the call within {} s", limits::LEGACY_ANSWER.as_secs())]
    Silent,
    #[error("expected one server ID in the context, got [{0}]")]
    ServerId(String),
    #[error("expected one server count, got {0}")]
    ServerCount(usize),
    #[error("the server count {0:?} is no number")]
    Count(String),
}

impl LegacyAttemptError {
    /// What it means for metrics.
    pub(super) fn reason(&self) -> Reason {
        match self {
            LegacyAttemptError::Connect(error) => error.reason(),
            LegacyAttemptError::NotOurs(error) => error.reason(),
            LegacyAttemptError::Web(WebError::Server(_) | WebError::NoCertificate) => {
                Reason::BadCertificate
            }
            LegacyAttemptError::Call(CallError::Refused(_)) => Reason::Denied,
            LegacyAttemptError::Call(_) => Reason::LinkLost,
            LegacyAttemptError::Downgrade(_) => Reason::Version,
            LegacyAttemptError::Silent => Reason::GreetingTimeout,
            LegacyAttemptError::ServerId(_)
            | LegacyAttemptError::ServerCount(_)
            | LegacyAttemptError::Count(_) => Reason::Protocol,
            LegacyAttemptError::Web(_)
            | LegacyAttemptError::Tls(_)
            | LegacyAttemptError::Token(_)
            | LegacyAttemptError::Files(_)
            | LegacyAttemptError::Header => Reason::LocalResources,
        }
    }
}

/// A call that a legacy server took.
pub(super) struct Greeted {
    pub(super) server_id: String,
    pub(super) server_count: usize,
    pub(super) taken: Taken,
}

/// What was met.
pub(super) enum Outcome {
    /// A legacy server, and the stream to it.
    Legacy(Box<Greeted>),
    /// A verified Towline server; the handshake was only to find that out.
    Towline,
}

/// Whom attempts go to, and as whom.
pub(super) struct Attempts {
    pub(super) config: Arc<LegacyConfig>,
    pub(super) reach: Arc<Reach>,
    /// Our identity and the roots of Towline servers, where there are any.
    pub(super) trust: Option<Arc<Trust>>,
}

impl Attempts {
    /// One attempt. Nothing of it is left when it is dropped.
    pub(super) async fn attempt(&self) -> Result<Outcome, LegacyAttemptError> {
        let Some(met) = self.meet().await? else {
            return Ok(Outcome::Towline);
        };
        let metadata = self.metadata().await?;
        let authority = self.config.server.to_string();
        let asked = Call {
            authority: &authority,
            method: CONNECT_METHOD,
            metadata,
            keepalive: self.config.keepalive,
        };
        let taken = tokio::time::timeout(limits::LEGACY_ANSWER, call(met.stream, asked))
            .await
            .map_err(|_| LegacyAttemptError::Silent)??;
        let server_id = one(&taken.metadata, SERVER_ID)
            .map_err(|values| LegacyAttemptError::ServerId(values.join(" ")))?;
        let count = one(&taken.metadata, SERVER_COUNT)
            .map_err(|values| LegacyAttemptError::ServerCount(values.len()))?;
        let server_count = count
            .parse::<u16>()
            .map_err(|_| LegacyAttemptError::Count(detail(&count)))?;
        Ok(Outcome::Legacy(Box::new(Greeted {
            server_id,
            server_count: server_count.into(),
            taken,
        })))
    }

    /// Whether the server speaks the legacy protocol now.
    pub(super) async fn is_legacy(&self) -> bool {
        matches!(self.meet().await, Ok(Some(_)))
    }

    /// A legacy server after the handshake, or none when it is a Towline server.
    async fn meet(&self) -> Result<Option<Met>, LegacyAttemptError> {
        let files = self.config.files.clone();
        let (roots, pair) = tokio::task::spawn_blocking(move || files.load()).await??;
        let trust: Option<Arc<Snapshot>> = self.trust.as_ref().map(|trust| trust.current());
        let mut alpn: Vec<&[u8]> = self.config.alpn.iter().map(Vec::as_slice).collect();
        let config = match &trust {
            Some(trust) => {
                alpn.extend([ALPN_LINK, ALPN_GRPC]);
                configs::auto_client(Arc::clone(&trust.verifier), &roots, pair.as_ref(), &alpn)?
            }
            None => {
                alpn.push(ALPN_GRPC);
                configs::web_client(&roots, pair.as_ref(), &alpn)?
            }
        };
        let server = &self.config.server;
        let proxy = self.reach.proxy.as_ref();
        let proxy = proxy.filter(|proxy| proxy.applies_to(server));
        let met = tls::meet(server, self.config.name.clone(), config, proxy).await?;
        if proxy.is_none() {
            self.reach.addresses.reached(server, met.remote);
        }
        let now = SystemTime::now();
        match &trust {
            Some(trust) if met.alpn.as_deref() == Some(ALPN_LINK) => {
                let verified = trust.verifier.verify(&met.chain, now);
                verified.map_err(LegacyAttemptError::NotOurs)?;
                Ok(None)
            }
            _ => {
                roots.check(&met.chain, &self.config.name, now)?;
                Ok(Some(met))
            }
        }
    }

    async fn metadata(&self) -> Result<Vec<(HeaderName, HeaderValue)>, LegacyAttemptError> {
        let value =
            |text: &str| HeaderValue::from_str(text).map_err(|_| LegacyAttemptError::Header);
        let mut metadata = vec![
            (
                HeaderName::from_static(AGENT_ID),
                value(&self.config.agent_id)?,
            ),
            (
                HeaderName::from_static(AGENT_IDENTIFIERS),
                value(&self.config.identifiers)?,
            ),
        ];
        if let Some(path) = self.config.files.token.clone() {
            let token = tokio::task::spawn_blocking(move || store::read(&path)).await??;
            let text = [BEARER.as_bytes(), token.trim_ascii_end()].concat();
            let mut value =
                HeaderValue::from_bytes(&text).map_err(|_| LegacyAttemptError::Header)?;
            value.set_sensitive(true);
            metadata.push((HeaderName::from_static(AUTHORIZATION), value));
        }
        Ok(metadata)
    }
}

/// The one value of a key, or what there is instead.
fn one(metadata: &HeaderMap, key: &str) -> Result<String, Vec<String>> {
    let text = |value: &HeaderValue| {
        let text = String::from_utf8_lossy(value.as_bytes());
        text.chars().take(limits::KONNECTIVITY_ID_BYTES).collect()
    };
    let mut values: Vec<String> = metadata.get_all(key).iter().map(text).collect();
    match values.pop() {
        Some(value) if values.is_empty() => Ok(value),
        last => {
            values.extend(last);
            Err(values)
        }
    }
}
