//! Certificates from a Towline server: one request on a TLS connection of its own, over TCP.
//!
//! The proofs, best first: the certificate that we hold, a projected service-account token, a
//! join token. With several servers each is asked, beginning with another one every time; an
//! agent whose certificate has ended goes on to the next proof by itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towline_link::error::{ConnectError, detail};
use towline_link::tls::{self, HttpProxy};
use towline_pki::first_contact::Pinned;
use towline_pki::{Anchors, Credentials, DenyList, FirstContact, JoinToken, store};
use towline_proto::enrol::{EnrolReply, EnrolRequest, Proof, Refusal, Token};
use towline_proto::id::ClusterName;
use towline_proto::limits;
use towline_proto::target::Target;
use towline_proto::version::ALPN_ENROL;

use super::flags::EnrolConfig;
use super::{EnrolError, Issuer, Obtained, Order};
use crate::attempt::{SOFTWARE, random};

/// See the module.
#[derive(Debug)]
pub struct ServerIssuer {
    /// Files and names.
    pub config: EnrolConfig,
    /// Whom to ask.
    pub servers: Vec<Target>,
    /// On the way there.
    pub proxy: Option<HttpProxy>,
}

/// What is shown to a server.
struct Shown {
    proof: Proof,
    own: Option<Credentials>,
    /// For whoever knows no authority yet.
    join: Option<JoinToken>,
}

#[async_trait]
impl Issuer for ServerIssuer {
    fn source(&self) -> &'static str {
        "server"
    }

    async fn obtain(&self, order: &Order) -> Result<Obtained, EnrolError> {
        let mut last = None;
        if let Some(own) = &order.current {
            let shown = Shown {
                proof: Proof::Certificate,
                own: Some(own.clone()),
                join: None,
            };
            match self.everywhere(order, &shown).await {
                Ok(obtained) => return Ok(obtained),
                Err(error) => last = Some(error),
            }
            // While it is valid nothing but a clear no leads to another proof.
            if !last.as_ref().is_some_and(is_no) {
                return Err(last.unwrap_or(EnrolError::NoProof("")));
            }
        }
        for proof in [self.service_account().await, self.join().await] {
            let shown = match proof {
                Ok(Some(shown)) => shown,
                Ok(None) => continue,
                Err(error) => {
                    last = Some(worse(last, error));
                    continue;
                }
            };
            match self.everywhere(order, &shown).await {
                Ok(obtained) => return Ok(obtained),
                Err(error) => last = Some(worse(last, error)),
            }
        }
        Err(last.unwrap_or(EnrolError::NoProof("")))
    }
}

/// Whether the server understood the proof and does not take it.
fn is_no(error: &EnrolError) -> bool {
    match error {
        EnrolError::Refused { refusal, .. } => !refusal.is_temporary(),
        // TLS itself refuses a certificate that has ended or is revoked.
        EnrolError::Connect(ConnectError::Handshake { reason, .. }) => !reason.retry(),
        _ => false,
    }
}

/// Of two errors the one that says more: a refusal before "not reached".
fn worse(before: Option<EnrolError>, now: EnrolError) -> EnrolError {
    match before {
        Some(before @ EnrolError::Refused { .. }) if !matches!(now, EnrolError::Refused { .. }) => {
            before
        }
        _ => now,
    }
}

impl ServerIssuer {
    async fn service_account(&self) -> Result<Option<Shown>, EnrolError> {
        let Some(path) = &self.config.token_file else {
            return Ok(None);
        };
        let text = read(path.clone(), store::read).await?;
        let token = std::str::from_utf8(&text).ok().map(str::trim_ascii);
        let token = token.and_then(Token::new).ok_or_else(|| EnrolError::File {
            path: path.clone(),
            what: "holds no token: one line of printable characters is expected".to_owned(),
        })?;
        Ok(Some(Shown {
            proof: Proof::ServiceAccount(token),
            own: None,
            join: None,
        }))
    }

    async fn join(&self) -> Result<Option<Shown>, EnrolError> {
        let Some(path) = &self.config.join_token_file else {
            return Ok(None);
        };
        let wrong = |what: String| EnrolError::File {
            path: path.clone(),
            what,
        };
        let text = read(path.clone(), |path| {
            store::read_secret(path).map(|secret| secret.expose().to_vec())
        })
        .await?;
        let text = std::str::from_utf8(&text).map_err(|_| wrong("is not text".to_owned()))?;
        let join = JoinToken::parse(text).map_err(|error| wrong(error.to_string()))?;
        let token = Token::new(text.trim_ascii());
        let token = token.ok_or_else(|| wrong("holds no join token".to_owned()))?;
        Ok(Some(Shown {
            proof: Proof::Join(token),
            own: None,
            join: Some(join),
        }))
    }

    /// Each server in turn, beginning anywhere, so that a thousand agents spread.
    async fn everywhere(&self, order: &Order, shown: &Shown) -> Result<Obtained, EnrolError> {
        let servers = &self.servers;
        let begin = random() as usize % servers.len().max(1);
        let mut last = None;
        for server in servers[begin..].iter().chain(&servers[..begin]) {
            match self.ask(server, order, shown).await {
                Ok(obtained) => return Ok(obtained),
                Err(error) => {
                    tracing::debug!(%server, %error, "no certificate");
                    last = Some(worse(last, error));
                }
            }
        }
        Err(last.unwrap_or(EnrolError::NoProof("; and give --server")))
    }

    async fn first_contact(&self, shown: &Shown) -> Result<Arc<FirstContact>, EnrolError> {
        let config = self.config.clone();
        let hashes = shown.join.as_ref().map(|join| join.authorities.clone());
        let cluster = self.cluster(shown);
        let reading = tokio::task::spawn_blocking(move || {
            let deny = match &config.files.deny_list {
                Some(path) => DenyList::load(path)?,
                None => DenyList::default(),
            };
            let file = config.server_ca();
            let file = file.filter(|path| config.pinned_by_file || path.exists());
            let pinned = match (file, hashes) {
                (Some(path), _) => Pinned::Anchors(Anchors::load(path)?),
                (None, Some(hashes)) => Pinned::Hashes(hashes),
                (None, None) => return Err(EnrolError::NoAnchors),
            };
            Ok(FirstContact::new(pinned, cluster, deny))
        });
        reading.await.unwrap_or(Err(EnrolError::NoAnchors))
    }

    /// The cluster, where it is known beforehand.
    fn cluster(&self, shown: &Shown) -> Option<ClusterName> {
        let own = shown.own.as_ref().map(|own| own.identity().cluster.clone());
        let join = || shown.join.as_ref().map(|join| join.cluster.clone());
        own.or_else(|| self.config.cluster.clone()).or_else(join)
    }

    async fn ask(
        &self,
        server: &Target,
        order: &Order,
        shown: &Shown,
    ) -> Result<Obtained, EnrolError> {
        let contact = self.first_contact(shown).await?;
        let tls = towline_pki::tls::enrol_client(shown.own.as_ref(), Arc::clone(&contact))?;
        let name = server.to_string();
        let whole = async {
            let met = tls::meet_within(
                limits::ENROL_ATTEMPT,
                server,
                towline_pki::tls::server_name(),
                tls,
                self.proxy.as_ref(),
            )
            .await
            .map_err(|error| match error {
                ConnectError::Alpn { .. } => EnrolError::NoEnrolment(server.clone()),
                other => other.into(),
            })?;
            if met.alpn.as_deref() != Some(ALPN_ENROL) {
                return Err(EnrolError::NoEnrolment(server.clone()));
            }
            let peer = contact
                .verify(&met.chain, SystemTime::now())
                .map_err(|source| ConnectError::Peer {
                    server: name.clone(),
                    source,
                })?;
            let reply = exchange(met.stream, order, shown, self, &name).await?;
            match reply {
                EnrolReply::Refused { refusal, text } => Err(EnrolError::Refused {
                    server: name.clone(),
                    proof: shown.proof.as_str(),
                    refusal,
                    text: detail(text),
                }),
                EnrolReply::Issued(chain) => {
                    let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
                    self.check(&chain, &peer.identity().cluster, shown, &name)?;
                    Ok(Obtained {
                        chain,
                        authorities: contact.authorities(&met.chain),
                        proof: shown.proof.as_str(),
                    })
                }
            }
        };
        match tokio::time::timeout(limits::ENROL_ATTEMPT, Box::pin(whole)).await {
            Ok(done) => done,
            Err(_) => Err(ConnectError::Timeout {
                server: server.to_string(),
                after: limits::ENROL_ATTEMPT,
            }
            .into()),
        }
    }

    /// Whether the certificate is this node's; that its key is ours is checked with the pair.
    fn check(
        &self,
        chain: &[CertificateDer<'static>],
        cluster: &ClusterName,
        shown: &Shown,
        server: &str,
    ) -> Result<(), EnrolError> {
        let leaf = chain.first().map(towline_pki::Leaf::parse);
        let leaf = match leaf {
            Some(Ok(leaf)) => leaf,
            Some(Err(error)) => {
                return Err(EnrolError::Answer {
                    server: server.to_owned(),
                    what: error.to_string(),
                });
            }
            None => {
                return Err(EnrolError::Answer {
                    server: server.to_owned(),
                    what: "no certificate".to_owned(),
                });
            }
        };
        let found = leaf.identity;
        let own = shown.own.as_ref().map(Credentials::identity);
        let wanted = self.config.node_name.as_ref();
        let expected = if found.cluster != *cluster {
            format!("of cluster {cluster}")
        } else if let Some(own) = own.filter(|own| **own != found) {
            own.to_string()
        } else if let Some(wanted) = wanted.filter(|wanted| **wanted != found.name) {
            format!("node {wanted}")
        } else {
            return Ok(());
        };
        Err(EnrolError::Identity {
            server: server.to_owned(),
            found,
            expected,
        })
    }
}

/// The request and its answer.
async fn exchange(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    order: &Order,
    shown: &Shown,
    issuer: &ServerIssuer,
    server: &str,
) -> Result<EnrolReply, EnrolError> {
    let failed = |error: std::io::Error| -> EnrolError {
        match tls::handshake_error(server, &error) {
            ConnectError::Alpn { server } => EnrolError::Answer {
                server,
                what: "it does not speak towline-enrol/1".to_owned(),
            },
            other => other.into(),
        }
    };
    let answer = |what: String| EnrolError::Answer {
        server: server.to_owned(),
        what,
    };
    let request = EnrolRequest {
        csr: order.csr.clone(),
        proof: shown.proof.clone(),
        name: issuer.config.node_name.clone(),
        software: SOFTWARE.to_owned(),
    };
    // A server that is done with us has closed its reading half: its answer says why.
    let sent = async {
        stream.write_all(&request.encode()).await?;
        stream.flush().await
    };
    let sent = sent.await;
    let mut head = [0; 3];
    if let Err(error) = stream.read_exact(&mut head).await {
        return Err(failed(sent.err().unwrap_or(error)));
    }
    let [kind, high, low] = head;
    let len = usize::from(u16::from_be_bytes([high, low]));
    if len > limits::ENROL_REPLY_BYTES {
        return Err(answer("its answer is too long".to_owned()));
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await.map_err(failed)?;
    let _ = tokio::time::timeout(Duration::from_secs(1), stream.shutdown()).await;
    EnrolReply::decode(kind, &body).map_err(|error| answer(error.to_string()))
}

async fn read(
    path: PathBuf,
    read: impl FnOnce(&std::path::Path) -> Result<Vec<u8>, store::StoreError> + Send + 'static,
) -> Result<Vec<u8>, EnrolError> {
    let asked = path.clone();
    let done = tokio::task::spawn_blocking(move || read(&asked)).await;
    let what = match done {
        Ok(Ok(bytes)) => return Ok(bytes),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    let named = format!("{}: ", path.display());
    Err(EnrolError::File {
        what: what.strip_prefix(&named).unwrap_or(&what).to_owned(),
        path,
    })
}

/// Whether an error means that the operator has to act before anything can go on.
pub fn needs_a_person(error: &EnrolError) -> bool {
    matches!(
        error,
        EnrolError::Decided { .. }
            | EnrolError::Refused {
                refusal: Refusal::Denied
                    | Refusal::JoinUsed
                    | Refusal::JoinExpired
                    | Refusal::JoinUnknown
                    | Refusal::NameTaken,
                ..
            }
    )
}
